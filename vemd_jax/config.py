"""The default config, the words a recipe understands, and what they change.

A recipe is a file with `get_config(words='')` that starts from `default()`,
changes what it wants and ends with `finish(config, words)`. Words are given
after a colon: `--config=configs/folder.py:tiny,ve_sd`.
"""

import difflib
import json
import sys
from collections.abc import Callable, Mapping

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import metrics
from vemd_jax.data import datasets as datasets_lib
from vemd_jax.models import vit

VARIANTS = ('ve_sd', 've_md', 've_md_sr')
DECODERS = ('heatmap', 'person_query')
# Datasets with emotion labels.
LABELLED = tuple(n for n, d in datasets_lib.DATASETS.items() if d.labels)
MODES = ('train', 'evaluate', 'both')


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
      # group_scenes | folder | tfds (what vemd_jax.data.prepare writes)
      'source': 'group_scenes',
      'root': '',
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
      'dtype': 'float32',
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

  config.optim = ConfigDict({
      'name': 'adam',
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

  # Devices along each axis; -1 takes what is left. Parameters with at least
  # min_shard_size elements are split over fsdp.
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'min_shard_size': 2**18})

  config.checkpoint = ConfigDict({
      # Steps between checkpoints; each evaluation saves one, too.
      'every': 500,
      'keep_latest': 1,
      'keep_best': 1,
      'best_metric': 'accuracy',
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
    start_step: int = 0,
    **kwargs,
) -> ConfigDict:
  """One entry of `config.losses`.

  Args:
    fn: name of a function in `vemd_jax.losses`, or `package.module:function`.
    weight: factor of the term in the total.
    decoder: '' or the decoder that the term needs.
    schedule: how the weight goes over the steps, see `losses.prepare`.
    warmup_steps: steps over which the weight rises.
    start_step: step before which the weight is 0.
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
      'start_step': start_step,
      'kwargs': kwargs,
  })


def laptop(config: ConfigDict) -> None:
  """Changes a config to a size that trains on two CPU cores."""
  # Many small steps leave the first plateau sooner than few large ones.
  config.batch_size = 16
  config.data.image_size = 112
  config.data.cache = True
  # More Python threads get into each other's way where cores are few.
  config.data.num_threads = 1
  # Who is cut off takes a part of the mood away.
  config.data.augment.update(crop_scale=(0.7, 1.0), hue=0.0)
  # On the CPU NumPy renders them several times faster than XLA.
  config.data.targets = 'host'
  config.model.encoder.update(
      name='residual', width=16, blocks=3, stem_stride=2
  )
  config.model.latent.dim = 64
  # Heatmaps of a quarter of the image's side, as in the paper.
  config.model.heatmap.update(
      stages=1,
      bottleneck=64,
      widths=(48, 24),
      features=24,
      stage_width=24,
      stage_convs=1,
  )
  config.model.person_query.update(
      queries=10, layers=2, heads=4, mlp_dim=256, dropout=0.0
  )
  config.model.head.update(
      mlp_dim=256, width=128, proj_dim=64, latent_input='pooled'
  )
  config.model.fusion.dim = 64
  config.optim.update(
      name='adamw',
      learning_rate=8e-4,
      schedule='cosine',
      warmup_steps=200,
      weight_decay=1e-2,
      ema_decay=0.998,
  )
  # At the paper's weight the structure's gradient drowns the emotion's, and a
  # small encoder learns nothing else in the time that a laptop has.
  for part in ('body', 'face'):
    config.losses[f'{part}_heatmap'].weight = 0.1
    # As DETR weighs them: a limb that is nearly right still pulls, and few
    # queries that stand for nobody count as much as many.
    config.losses[f'{part}_query'].weight = 1.0
    config.losses[f'{part}_query'].kwargs.update(
        l1_weight=5.0, beta=0.05, no_object=1.0
    )


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


def _audio(config: ConfigDict) -> None:
  """Fuses the log-mel spectrogram of the clip: 10 s at 100 frames a second."""
  config.data.update(audio_frames=1000, audio_dim=64)
  config.model.fusion.update(audio='mel', modality_dropout=0.1)


def _text(config: ConfigDict) -> None:
  """Fuses embeddings of the transcript, 384 wide as MiniLM's."""
  config.data.update(text_tokens=64, text_dim=384)
  config.model.fusion.update(text=True, modality_dropout=0.1)


def _cached(config: ConfigDict) -> None:
  """Reads the frozen ViT's features where vemd_jax.cache_features put them."""
  name = config.model.vit.name
  if name == 'none' or config.model.variant == 'vit':
    raise ValueError('the word cached needs a recipe with a frozen ViT')
  config.data.vit_dim = vit.VITS[name]['dim']
  for data in config.mixture.values():
    if not data.get('labels', True):
      data.vit_dim = 0


def reference(config: ConfigDict) -> None:
  """Sets every switch to what the authors' code does, faults included."""
  config.model.latent.deterministic = True
  config.model.encoder.token_order = 'reference'
  config.model.person_query.update(presence=False)
  if config.model.person_query.st_gcn != 'none':
    config.model.person_query.st_gcn = 'reference'
  config.model.head.classifier_dropout = 0.0
  if config.model.decoder == 'heatmap' and config.model.head.sr_input == 'raw':
    config.model.head.attend = 'batch'
  del config.losses['kl']
  config.losses.mmd = loss(
      'mmd', 1.0, form='rows', include_vit=True, estimator='biased'
  )
  config.optim.update(name='adam', schedule='constant', per_dataset=True)
  config.data.augment.update(
      flip=0.1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0,
      crop_scale=(0.08, 1.0),
  )  # fmt: skip


def _tiny(config: ConfigDict) -> None:
  """Shrinks any recipe so that it runs in seconds on a CPU."""
  config.steps = 4
  config.batch_size = 8
  config.eval.update(every=2, batch_size=8, pictures=2)
  config.checkpoint.every = 2
  config.log_every = 1
  for data in (config.data, *config.mixture.values()):
    data.update({
        k: v
        for k, v in {'image_size': 96, 'max_people': 4}.items()
        if k in data or data is config.data
    })
    if 'frames' in data:
      data.frames = min(data.frames, 2)
  config.data.group_scenes.update(
      size=96, train_samples=16, val_samples=10, test_samples=8
  )
  config.model.encoder.update(
      name='residual', width=4, blocks=3, stem_stride=2
  )
  config.model.latent.dim = 16
  if config.model.vit.name != 'none':
    config.model.vit.name = 'tiny'
    if config.data.vit_dim:
      config.data.vit_dim = vit.VITS['tiny']['dim']
  config.model.heatmap.update(
      stages=2,
      bottleneck=16,
      widths=(16, 8, 8),
      features=8,
      stage_width=8,
      stage_convs=1,
  )
  config.model.person_query.update(queries=6, layers=1, heads=2, mlp_dim=32)
  config.model.head.update(mlp_dim=32, width=16, proj_dim=16)
  config.model.fusion.dim = 16
  config.data.audio_frames = min(config.data.audio_frames, 100)


def finish(
    config: ConfigDict,
    words: str = '',
    more: Mapping[str, Callable[[ConfigDict], None]] | None = None,
) -> ConfigDict:
  """Applies the words of a recipe's argument and locks the config.

  Args:
    config: the recipe.
    words: comma-separated; a variant, a decoder, `laptop`, `tiny`, or one of
      the recipe's own.
    more: the recipe's own words, name -> function that changes the config.

  Returns:
    The config, locked: an unknown key or a value of the wrong type fails.

  Raises:
    ValueError: for a word that neither the recipe nor this module knows.
  """
  known = dict(more or {})
  for variant in VARIANTS:
    known[variant] = lambda c, v=variant: c.model.update(variant=v)
  for decoder in DECODERS:
    known[decoder] = lambda c, d=decoder: c.model.update(decoder=d)
  known['audio'] = _audio
  known['text'] = _text
  known['cached'] = _cached
  known.setdefault('laptop', laptop)
  known.setdefault('reference', reference)
  known['tiny'] = _tiny
  given = [word for word in words.split(',') if word]
  for word in given:
    if word not in known:
      raise ValueError(
          f'unknown word {word!r} in the config argument; this recipe knows '
          f'{", ".join(sorted(known))}'
      )
  # tiny comes last, whatever the order: it shrinks what the others have set.
  for word in sorted(given, key=lambda w: w == 'tiny'):
    known[word](config)
  return config.lock()


def parse_flags(argv: list[str], *needed: str) -> list[str]:
  """Parses the command line of a program that takes a recipe by `--config`.

  Args:
    argv: of the program.
    *needed: names of the flags that must be given, `config` among them.

  Returns:
    The arguments that are no flags.

  Raises:
    SystemExit: with one line that says what is wrong, a recipe's own error
      included.
  """
  try:
    argv = flags.FLAGS(argv)
    if any(flags.FLAGS[name].value is None for name in needed):
      text = 'both {} are needed' if len(needed) > 1 else '{} is needed'
      names = ' and '.join(f'--{name}' for name in needed)
      raise ValueError(text.format(names))
    # A recipe that could not be loaded says so at its first use only.
    _ = flags.FLAGS['config'].value.mode
    return argv
  except Exception as error:  # A recipe may raise whatever it likes.
    lines = str(error).strip().splitlines() or [repr(error)]
    # A recipe's own error comes with its traceback; the last line says it.
    nested = any(line.startswith('Traceback') for line in lines)
    text = ' '.join(lines[-1:] if nested else lines)
    sys.exit(f'error: {" ".join(text.split())}')


def datasets(config: ConfigDict) -> dict[str, ConfigDict]:
  """Data settings by dataset name: `config.data`, or the mixture's parts.

  Args:
    config: the whole config.

  Returns:
    Name -> settings with the fields of `config.data`.

  Raises:
    ValueError: if a part of the mixture sets a field that does not exist.
  """
  if not config.mixture:
    return {config.data.name: config.data}
  result = {}
  for name, changes in config.mixture.items():
    data = config.data.copy_and_resolve_references()
    data.name = name
    try:
      data.update(changes)
    except (KeyError, AttributeError, TypeError) as error:
      raise ValueError(f'config.mixture.{name}: {error}') from error
    result[name] = data.lock()
  return result


def active_losses(config: ConfigDict) -> dict[str, dict]:
  """The loss terms that the model of this config has a place for.

  Args:
    config: the whole config.

  Returns:
    Name -> entry, without the field `decoder`.
  """
  model = config.model
  active = {}
  for name, entry in config.losses.items():
    entry = entry.to_dict()
    decoder = entry.pop('decoder')
    part = entry['kwargs'].get('part', '')
    if (part or decoder) and model.variant in ('ve_sd', 'vit'):
      continue
    if decoder and decoder != model.decoder:
      continue
    if part and part not in model.parts:
      continue
    if entry['fn'] == 'kl' and model.latent.deterministic:
      continue
    if model.variant == 'vit' and entry['fn'] in ('kl', 'mmd'):
      continue
    if entry['weight']:
      active[name] = entry
  return active


def check(config: ConfigDict) -> None:
  """Rejects values that fit their type and still make no sense.

  Args:
    config: the whole config.

  Raises:
    ValueError: names the key, the value, and what was expected.
  """
  choices = {
      'mode': MODES,
      'model.variant': (*VARIANTS, 'vit'),
      'model.decoder': DECODERS,
      'model.dtype': ('float32', 'bfloat16'),
      'model.head.latent_input': ('flat', 'pooled'),
      'model.head.sr_input': ('raw', 'projected'),
      'model.head.attend': ('frames', 'batch'),
      'model.head.positions': ('sinusoidal', 'learnable', 'relative', 'none'),
      'model.person_query.positions': ('sinusoidal', 'learned'),
      'model.person_query.st_gcn': ('none', 'graph', 'reference'),
      'model.fusion.method': ('concat', 'attention', 'gated'),
      'model.fusion.audio': ('none', 'embedding', 'mel'),
      'data.source': ('group_scenes', 'folder', 'tfds'),
      'data.targets': ('device', 'host'),
      'data.empty_annotation': ('mask', 'nobody'),
      'optim.name': ('adam', 'adamw'),
      'optim.schedule': ('constant', 'cosine', 'linear'),
  }
  for key, allowed in choices.items():
    value = _get(config, key)
    if key == 'model.decoder' and ':' in value:
      continue
    if value not in allowed:
      near = difflib.get_close_matches(str(value), allowed, 1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ValueError(
          f'config.{key} is {value!r}, expected one of {", ".join(allowed)}'
          f'{hint}'
      )
  for key in (
      'batch_size', 'eval.batch_size', 'data.frames', 'data.max_people',
      'data.image_size', 'optim.accumulation', 'log_every', 'checkpoint.every',
      'checkpoint.keep_latest',
  ):  # fmt: skip
    if _get(config, key) < 1:
      raise ValueError(
          f'config.{key} is {_get(config, key)}, expected 1 or more'
      )
  if (
      config.model.vit.name == 'clip_vit_l_14'
      and config.model.variant != 'vit'
      and not (config.checkpoint.init_from or config.checkpoint.resume)
  ):
    raise ValueError(
        'config.model.vit.name is clip_vit_l_14, a frozen branch, but '
        'config.checkpoint.init_from names no weights for it; train stage 1 '
        "with configs/stage1.py, or set config.model.vit.name=none"
    )
  if config.data.vit_dim and (
      config.model.vit.name == 'none' or config.model.variant == 'vit'
  ):
    raise ValueError(
        f'config.data.vit_dim is {config.data.vit_dim}, but the model has no '
        'frozen ViT; expected 0'
    )
  if config.steps <= 0 and config.epochs <= 0:
    raise ValueError('config.steps and config.epochs are both 0')
  if config.batch_size % config.optim.accumulation:
    raise ValueError(
        f'config.batch_size {config.batch_size} is not a multiple of '
        f'config.optim.accumulation {config.optim.accumulation}'
    )
  unknown = set(config.model.parts) - {'body', 'face'}
  if unknown:
    raise ValueError(
        f'config.model.parts has {sorted(unknown)}, expected body, face'
    )


def _get(config: ConfigDict, key: str):
  for name in key.split('.'):
    config = config[name]
  return config


def save(config: ConfigDict, path: epath.PathLike) -> None:
  """Writes the config as JSON, in one piece."""
  path = epath.Path(path)
  part = path.with_name(path.name + '.part')
  part.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
  part.replace(path)


def load(path: epath.PathLike) -> ConfigDict:
  """Reads a config that `save` wrote.

  Args:
    path: the JSON file.

  Returns:
    The config, locked.

  Raises:
    FileNotFoundError: names the file.
    ValueError: if the file is no config.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no config at {path}; expected a run\'s workdir')
  try:
    return ConfigDict(_tuples(json.loads(path.read_text()))).lock()
  except ValueError as error:
    raise ValueError(f'{path} is not a config: {error}') from error


def _tuples(value):
  """JSON has lists where configs have tuples."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
