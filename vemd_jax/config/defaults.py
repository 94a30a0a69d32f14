"""The default config, at the paper's size, and the base recipe of a dataset."""

from ml_collections import ConfigDict

from vemd_jax import metrics
from vemd_jax.data import datasets as datasets_lib

# Datasets with emotion labels.
LABELLED = tuple(n for n, d in datasets_lib.DATASETS.items() if d.labels)


def default() -> ConfigDict:
  """The default config, at the paper's size (arXiv 2604.02397, section 4)."""
  config = ConfigDict()
  config.seed = 0
  config.mode = 'both'

  # Training length; epochs are used if steps is 0, but at least min_steps.
  config.steps = 0
  config.epochs = 50.0
  config.min_steps = 0
  # Global batch size, over all processes.
  config.batch_size = 32

  config.data = ConfigDict({
      'name': 'group_scenes',
      # group_scenes | folder | tfds (written by vemd_jax.data.prepare), or
      # package.module:function, called with these settings and a split.
      'source': 'group_scenes',
      'root': '',
      # Additional settings for a custom source.
      'source_kwargs': {},
      # Class names in label order; () reads them from the data.
      'classes': (),
      'train_split': 'train',
      'val_split': 'val',
      'test_split': '',
      # Share of the training split that is held out for checkpoint selection;
      # the val split is then used for the final report only.
      'holdout': 0.0,
      # Cross-validation fold of a dataset that has folds (DFEW: 1 to 5).
      'fold': 0,
      # In a mixture, weight * size samples are drawn per epoch.
      'weight': 1.0,
      'image_size': 224,
      'frames': 1,
      'max_people': 10,
      # Maximum number of ignore regions per image: unlabelled people, such as
      # COCO's crowds, that are masked out of the heatmap loss. Images with more
      # count as not annotated. 0 disables ignore regions.
      'max_ignore': 0,
      'grayscale': False,
      # Which annotations are used.
      'labels': True,
      'bodies': True,
      'faces': True,
      # Meaning of an annotation without people: mask (detection failed, no
      # loss) or nobody (the target is an empty map).
      'empty_annotation': 'mask',
      # Where target heatmaps are rendered: device or host.
      'targets': 'device',
      # Side of the target heatmaps; 0 uses the size that the model decodes.
      'heatmap_size': 0,
      # Width of a limb in the target heatmaps, in heatmap pixels.
      'sigma': 1.0,
      # Training fails if more than this share of the samples is unreadable.
      'max_unreadable': 0.05,
      # Whether labels.csv may name files outside root (absolute paths, `..`
      # or links).
      'outside_root': False,
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
      # Lengths and widths of optional inputs; 0 disables them.
      'audio_frames': 0,
      'audio_dim': 0,
      'text_tokens': 0,
      'text_dim': 0,
      # Width of features cached by vemd_jax.cache_features; 0 runs the ViT
      # instead of reading cached features.
      'vit_dim': 0,
      # Samples may have several labels (SAMSEMO).
      'multi_label': False,
      'group_scenes': {
          'cue': 'both',
          # Shares of training scenes drawn with expression alone and with
          # interaction alone, so that the model learns each of them; val and
          # test are not affected.
          'single_cue': (0.0, 0.0),
          'size': 224,
          'people': (1, 10),
          # 1 shows whole people; 1.45 crops them at the hips, which makes the
          # faces larger.
          'zoom': 1.0,
          'train_samples': 4000,
          'val_samples': 500,
          'test_samples': 500,
          'seed': 0,
      },
  })
  # Several datasets in one run: name -> fields that differ from config.data.
  config.mixture = ConfigDict()

  config.model = ConfigDict({
      'variant': 've_md_sr',
      'decoder': 'heatmap',
      'parts': ('body', 'face'),
      'num_encoders': 1,
      # auto: bfloat16 on TPU and GPU, float32 on the CPU.
      'dtype': 'auto',
      # batch, or group: normalization that does not mix samples.
      'norm': 'batch',
      'encoder': {
          'name': 'resnet50',
          'width': 64,
          'blocks': 5,
          'stem_stride': 1,
          'normalization': 'imagenet',
          # For vit_b and vit_l: grid, or reference (the scrambled reshape of
          # the reference).
          'token_order': 'grid',
          # Number of earlier encoder stages that feed the decoders through skip
          # connections, each at twice the resolution of the next (residual and
          # resnet encoders).
          'skips': 0,
      },
      'latent': {'dim': 512, 'deterministic': False},
      'vit': {'name': 'none', 'normalization': 'imagenet'},
      'heatmap': {
          'stages': 6,
          'bottleneck': 2048,
          # Channels of the upsampling stages; each doubles the resolution, so
          # three stages map 7 x 7 to 56 x 56.
          'widths': (512, 256, 128),
          'features': 256,
          'stage_width': 256,
          'stage_convs': 4,
      },
      'person_query': {
          # learned: queries are learned vectors (the paper). centers: queries
          # are the grid positions at which a person's center is detected; the
          # decoder then has no transformer, and of these options only `queries`
          # has an effect.
          'initial': 'learned',
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
          # flat (as in the paper) or pooled (fewer parameters, needs less
          # training data).
          'latent_input': 'flat',
          # raw, projected, or relations: read from pairs of people
          # (person_query) or from neighbourhoods of the limb maps (heatmap).
          # The frame transformer is as wide as its input: with raw structure of
          # 100 queries 15,712 channels, with projected structure 1,536.
          'sr_input': 'projected',
          # Scale of the emotion loss's gradient with respect to the decoded
          # structure: 1 passes it unchanged, 0 stops it.
          'structure_gradient': 1.0,
          # Parts whose relations also use encoder features at each person's
          # center; the other parts use the limbs only.
          'relation_features': ('face',),
          # In training, relations are also read from the annotated people, with
          # the loss term teacher_forcing (person_query).
          'teacher_forcing': True,
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
  # kwargs to models that decode the part. Terms that do not apply to the model
  # are skipped.
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
      # Replace <part>_query if person_query.initial is centers.
      **{
          f'{part}_centers': loss(
              'person_centers', 1.0, 'person_query', part=part
          )
          for part in ('body', 'face')
      },
      # Used if head.sr_input is relations.
      'sources': loss('emotion_sources', 1.0),
      'teacher_forcing': loss('emotion_teacher_forcing', 1.0),
      'kl': loss('kl', 1e-4, warmup_steps=1000, free_bits=0.0),
  })

  # Loss terms that are reported but not trained on: name -> entry with fn and
  # kwargs, as in config.losses; fn is a built-in term or an import path.
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
      # Maximum global norm of the gradients; 0 disables clipping.
      'clip': 1.0,
      # Micro-batches per step (gradient accumulation).
      'accumulation': 1,
      # Decay of the moving average of the parameters; 0 disables it.
      'ema_decay': 0.0,
      # Top-level modules that are not trained.
      'frozen': ('vit',),
      # A separate optimizer state for each dataset of a mixture, as in the
      # reference.
      'per_dataset': False,
  })

  # Differentially private training, see vemd_jax.dp and docs/privacy.md. The
  # guarantee holds only for those who do not know `seed`, which is also in the
  # workdir's config.json.
  config.dp = ConfigDict({
      # Standard deviation of the noise in units of clip; 0 is no DP.
      'noise': 0.0,
      # Largest L2 norm of the gradient of a sample.
      'clip': 1.0,
      # Probability with which the guarantee may fail; less than 1 / units.
      'delta': 1e-5,
      # Whose data are protected: sample (picture or clip), or subject, of whom
      # a step uses one sample.
      'unit': 'sample',
      # Number of samples whose gradients are computed at a time.
      'microbatch': 8,
  })

  # Phases of the training, in order: dicts with any of
  #   steps: length of the phase; the last phase ends with the run
  #   losses: {name: weight}, instead of the weights in config.losses
  #   frozen: ('encoder_0', 'head_*'), modules that are not updated
  #   learning_rate, schedule, warmup_steps: instead of those in config.optim
  # The optimizer, its schedule and the moving average restart with each phase
  # (vemd_jax.phases). () trains everything from the first step on.
  config.phases = ()

  config.mesh = ConfigDict({
      # Size of each mesh axis; -1 uses the remaining devices.
      'data': -1,
      'fsdp': 1,
      # Parameters with at least so many elements are sharded over fsdp.
      'min_shard_size': 2**18,
      # Whether the optimizer's moments of these parameters are sharded over
      # data, too (ZeRO-1): less memory, and the same amount of communication.
      'shard_moments': True,
  })

  config.checkpoint = ConfigDict({
      # Steps between checkpoints; every evaluation also saves one.
      'every': 500,
      # At least 2, since a damaged checkpoint is replaced by the previous one.
      'keep_latest': 2,
      'keep_best': 1,
      'best_metric': 'accuracy',
      # max | min | auto (min for the loss and squared errors, else max).
      'best_mode': 'auto',
      # Workdir of another run to resume, with optimizer state and step.
      'resume': '',
      # Weights to start from: workdirs or outputs of
      # vemd_jax.models.torch_import, loaded in this order.
      'init_from': (),
  })

  config.faults = ConfigDict({
      # Action on a non-finite loss or gradient: stop (the run), skip (the
      # update), or rewind (resume from the last checkpoint with the data after
      # this batch).
      'not_finite': 'stop',
      # Action on a loss above spike_factor times the running mean of its
      # dataset: ignore, stop, skip or rewind.
      'spike': 'ignore',
      'spike_factor': 3.0,
      # Number of consecutive skipped updates, or of rewinds to the same
      # checkpoint, after which the run stops.
      'limit': 10,
  })

  config.eval = ConfigDict({
      # Steps between evaluations; 0 evaluates only at the end.
      'every': 500,
      'batch_size': 32,
  })
  config.pictures = ConfigDict({
      # People in the pictures of a run or a program: show | blur | off. blur
      # pixelates heads where the annotation has them and the whole picture
      # elsewhere; off writes no pictures of people.
      'people': 'show',
      # Number of clips on the sheet of an evaluation.
      'samples': 8,
      # Number of samples of each kind (right, wrong, least confident) in the
      # gallery of the report.
      'gallery': 8,
  })
  # Steps between progress lines.
  config.log_every = 20
  # Makes XLA use deterministic kernels on a GPU, which are slower.
  config.deterministic = False
  # Any number of tensorboard | wandb | mlflow, or package.module:Class.
  config.loggers = ('tensorboard',)
  # First step and number of steps to profile; 0 steps disable the profiler.
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
    weight: weight of the term in the total loss, unless a phase sets another.
    decoder: decoder that the term requires, or ''.
    schedule: schedule of the weight, see `losses.prepare`.
    warmup_steps: number of steps over which the weight rises from 0.
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
  """The paper's recipe for a dataset, with the reference's hyperparameters.

  Args:
    name: dataset name in `vemd_jax.data.datasets`.

  Returns:
    A config with the dataset's properties; `data.root` must be set to the
    output of `vemd_jax.data.prepare`.
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
    # The weights of the ViT come from stage 1, configs/stage1.py.
    config.model.vit.name = 'clip_vit_l_14'
  return config
