"""The default config at the paper's size, and the recipes of its datasets."""

from ml_collections import ConfigDict

from vemd_jax import metrics
from vemd_jax.data import datasets as datasets_lib

# Datasets with emotion labels.
LABELLED = tuple(n for n, d in datasets_lib.DATASETS.items() if d.labels)


def default() -> ConfigDict:
  """The whole config at the paper's size (arXiv 2604.02397, section 4)."""
  config = ConfigDict()
  config.seed = 0
  config.mode = 'both'

  # Either a number of steps or of epochs; steps win where both are given.
  config.steps = 0
  config.epochs = 50.0
  # Of all processes together.
  config.batch_size = 32

  config.data = ConfigDict({
      'name': 'group_scenes',
      # group_scenes | folder | tfds (what vemd_jax.data.prepare writes), or
      # package.module:function, called with these settings and a split.
      'source': 'group_scenes',
      'root': '',
      # Settings of a source of your own.
      'source_kwargs': {},
      # In order; () takes them from the data.
      'classes': (),
      'train_split': 'train',
      'val_split': 'val',
      'test_split': '',
      # Share of the training split held out to choose the checkpoint; the
      # val split is then only reported.
      'holdout': 0.0,
      # Cross-validation fold, where the dataset has them (DFEW: 1 to 5).
      'fold': 0,
      # Drawn weight * size times an epoch, in a mixture.
      'weight': 1.0,
      'image_size': 224,
      'frames': 1,
      'max_people': 10,
      # Most regions of people without labels (COCO's crowds), where no heatmap
      # counts; images with more are not annotated. 0 knows of none.
      'max_ignore': 0,
      'grayscale': False,
      # Which of the annotations are used.
      'labels': True,
      'bodies': True,
      'faces': True,
      # What an annotation without anybody means: mask (nothing was found, no
      # loss) or nobody (an empty map is the truth).
      'empty_annotation': 'mask',
      # Where the heatmaps are rendered: device or host.
      'targets': 'device',
      # Side of the heatmaps; 0 takes it from the model.
      'heatmap_size': 0,
      'sigma': 1.0,
      # A run stops when more than this share of its samples is unreadable.
      'max_unreadable': 0.05,
      'num_threads': 4,
      'num_workers': 0,
      # Keeps decoded samples in memory.
      'cache': False,
      'augment': {
          'crop_scale': (0.5, 1.0),
          'crop_ratio': (0.75, 1.3333),
          'flip': 0.5,
          'brightness': 0.2,
          'contrast': 0.2,
          'saturation': 0.2,
          'hue': 0.02,
      },
      # Lengths and widths of optional inputs; 0 leaves them out.
      'audio_frames': 0,
      'audio_dim': 0,
      'text_tokens': 0,
      'text_dim': 0,
      # Width of features cached by vemd_jax.cache_features; 0 runs the ViT.
      'vit_dim': 0,
      # Samples may have several labels (SAMSEMO).
      'multi_label': False,
      'group_scenes': {
          'cue': 'both',
          'size': 224,
          'people': (1, 10),
          # 1 shows whole people; 1.45 cuts them at the hips: larger faces.
          'zoom': 1.0,
          'train_samples': 4000,
          'val_samples': 500,
          'test_samples': 500,
          'seed': 0,
      },
  })
  # Several datasets in one run: name -> what differs from config.data.
  config.mixture = ConfigDict()

  config.model = ConfigDict({
      'variant': 've_md_sr',
      'decoder': 'heatmap',
      'parts': ('body', 'face'),
      'num_encoders': 1,
      # auto: bfloat16 on TPU and GPU, float32 on the CPU.
      'dtype': 'auto',
      'encoder': {
          'name': 'resnet50',
          'width': 64,
          'blocks': 5,
          'stem_stride': 1,
          'normalization': 'imagenet',
          # vit_b, vit_l: grid, or reference (its scrambled reshape).
          'token_order': 'grid',
      },
      'latent': {'dim': 512, 'deterministic': False},
      'vit': {'name': 'none', 'normalization': 'imagenet'},
      'heatmap': {
          'stages': 6,
          'bottleneck': 2048,
          # Each doubles the grid: three make 56 x 56 of 7 x 7.
          'widths': (512, 256, 128),
          'features': 256,
          'stage_width': 256,
          'stage_convs': 4,
      },
      'person_query': {
          'queries': 100,
          'layers': 3,
          'heads': 8,
          'mlp_dim': 2048,
          'dropout': 0.1,
          'positions': 'sinusoidal',
          'presence': True,
          'st_gcn': 'none',
      },
      'head': {
          # frame_transformer, or package.module:Class.
          'name': 'frame_transformer',
          'positions': 'sinusoidal',
          'mlp_dim': 2048,
          'width': 512,
          'dropout': 0.1,
          'classifier_dropout': 0.1,
          # flat (the paper) or pooled (learns from fewer pictures).
          'latent_input': 'flat',
          'sr_input': 'projected',
          'proj_dim': 512,
          'attend': 'frames',
      },
      'fusion': {
          'method': 'concat',
          'audio': 'none',
          'text': False,
          'dim': 256,
          'modality_dropout': 0.0,
      },
  })

  # name -> term; `decoder` limits a term to one kind of decoder, `part` in its
  # kwargs to models that decode the part. Terms without place are left out.
  config.losses = ConfigDict({
      # class_weights: '' (all 1), 'balanced' (from the labels), or numbers in
      # the order of the classes: '1,0.5,2'.
      'emotion': loss(
          'emotion_cross_entropy', 1.0, label_smoothing=0.0, class_weights=''
      ),
      'body_heatmap': loss('heatmap_mse', 1.0, 'heatmap', part='body'),
      'face_heatmap': loss('heatmap_mse', 1.0, 'heatmap', part='face'),
      **{
          f'{part}_query': loss(
              'person_query', 0.1, 'person_query', part=part,
              l1_weight=1.0, beta=1.0, no_object=0.1,
          )
          for part in ('body', 'face')
      },
      'kl': loss('kl', 1e-4, warmup_steps=1000, free_bits=0.0),
  })

  # Reported with the metrics and not trained on: name -> entry with fn and
  # kwargs, as in config.losses; a term of vemd_jax.losses or of your own.
  config.metrics = ConfigDict()

  config.optim = ConfigDict({
      # adam | adamw, or package.module:function such as optax:lion, called
      # with learning_rate and the kwargs.
      'name': 'adam',
      'kwargs': {},
      'learning_rate': 1e-4,
      # constant | cosine | linear, after a linear warm-up.
      'schedule': 'constant',
      'warmup_steps': 0,
      'b1': 0.9,
      'b2': 0.999,
      'weight_decay': 0.0,
      # Global norm of the gradient; 0 does not clip.
      'clip': 1.0,
      # Micro-batches a step.
      'accumulation': 1,
      # 0 keeps no moving average of the parameters.
      'ema_decay': 0.0,
      # Top-level modules that are not trained.
      'frozen': ('vit',),
      # One optimiser state for each dataset of a mixture (the reference's way).
      'per_dataset': False,
  })

  # What is learned when, in order: dicts with any of
  #   steps: of this phase; the last one lasts to the end of the run
  #   losses: {name: weight}, instead of the weights in config.losses
  #   frozen: ('encoder_0', 'head_*'), modules that stay as they are
  #   learning_rate, schedule, warmup_steps: instead of those in config.optim
  # The optimizer, its schedule and the moving average start anew with each
  # phase (vemd_jax.phases). () trains everything from the first step on.
  config.phases = ()

  # Devices along each axis; -1 takes what is left. Parameters with at least
  # min_shard_size elements are split over fsdp.
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'min_shard_size': 2**18})

  config.checkpoint = ConfigDict({
      # Steps between checkpoints; each evaluation saves one, too.
      'every': 500,
      'keep_latest': 1,
      'keep_best': 1,
      'best_metric': 'accuracy',
      # max | min; auto: min for the loss and squared errors, else max.
      'best_mode': 'auto',
      # Workdir of another run to go on from.
      'resume': '',
      # Weights to start from: files of vemd_jax.models.torch_import, workdirs.
      'init_from': (),
  })

  config.eval = ConfigDict({
      # Steps between evaluations; 0 evaluates only at the end.
      'every': 500,
      'batch_size': 32,
      'pictures': 8,
  })
  config.log_every = 20
  config.profile = ConfigDict({'start': 0, 'steps': 0})
  return config


def loss(
    fn: str,
    weight: float,
    decoder: str = '',
    schedule: str = 'constant',
    warmup_steps: int = 0,
    **kwargs,
) -> ConfigDict:
  """One entry of `config.losses`.

  Args:
    fn: name of a function in `vemd_jax.losses`, or `package.module:function`.
    weight: factor of the term in the total, where no phase sets another.
    decoder: '' or the decoder that the term needs.
    schedule: how the weight goes over the steps, see `losses.prepare`.
    warmup_steps: steps over which the weight rises.
    **kwargs: passed to the function.

  Returns:
    The entry.
  """
  return ConfigDict({
      'fn': fn,
      'weight': weight,
      'decoder': decoder,
      'schedule': schedule,
      'warmup_steps': warmup_steps,
      'kwargs': kwargs,
  })


def metric(fn: str, **kwargs) -> ConfigDict:
  """One entry of `config.metrics`.

  Args:
    fn: name of a function in `vemd_jax.losses`, or `package.module:function`.
    **kwargs: passed to the function.

  Returns:
    The entry.
  """
  return ConfigDict({'fn': fn, 'kwargs': kwargs})


def for_dataset(name: str) -> ConfigDict:
  """The paper's recipe for one of its datasets, with the reference's numbers.

  Args:
    name: in `vemd_jax.data.datasets`.

  Returns:
    A config whose facts come from the table of datasets; `data.root` is where
    `vemd_jax.data.prepare` has written.
  """
  facts = datasets_lib.get(name)
  config = default()
  config.batch_size = facts.batch_size
  config.epochs = float(facts.epochs)
  config.optim.learning_rate = facts.learning_rate
  held_out = facts.choose_split == 'holdout'
  first, *rest = facts.report_splits
  config.data.update(
      name=name,
      source='tfds',
      classes=facts.classes,
      frames=facts.frames,
      labels=facts.labels,
      bodies=facts.bodies,
      faces=facts.faces,
      fold=1 if facts.folds else 0,
      holdout=0.1 if held_out else 0.0,
      val_split=('' if first == 'holdout' else first)
      if held_out
      else facts.choose_split,
      test_split=(rest[0] if rest else '') if held_out else first,
  )
  if not held_out and first == facts.choose_split:
    config.data.test_split = ''
  config.model.parts = tuple(
      part
      for part, has in (('body', facts.bodies), ('face', facts.faces))
      if has
  )
  config.checkpoint.best_metric = (
      metrics.metric(facts.metrics[0]) if facts.labels else 'loss'
  )
  if facts.labels:
    # Stage 1 of the paper gives the ViT: configs/stage1.py.
    config.model.vit.name = 'clip_vit_l_14'
  return config
