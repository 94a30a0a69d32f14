"""The options of recipes and the config changes that they make.

Options are given after a colon: `--config=configs/folder.py:tiny,ve_sd`.
"""

from collections.abc import Callable, Mapping

from etils import epath
from ml_collections import ConfigDict

from vemd_jax.config import files
from vemd_jax.config.defaults import loss
from vemd_jax.models import vit

VARIANTS = ('ve_sd', 've_md', 've_md_sr')
DECODERS = ('heatmap', 'person_query')


def laptop(config: ConfigDict) -> None:
  """Changes a config to a size that trains on two CPU cores."""
  # For a given compute budget, many steps with a small batch leave the initial
  # plateau sooner than few steps with a large one.
  config.batch_size = 16
  config.data.image_size = 112
  config.data.cache = True
  # With few cores, additional Python threads only contend for the GIL and CPU.
  config.data.num_threads = 1
  # Crops are mild, since removing people can change the emotion of the group.
  config.data.augment.update(crop_scale=(0.7, 1.0), hue=0.0)
  # On the CPU, NumPy renders target heatmaps several times faster than XLA.
  config.data.targets = 'host'
  config.model.encoder.update(
      name='residual', width=16, blocks=3, stem_stride=2
  )
  config.model.latent.dim = 64
  # The heatmap side is a quarter of the image side, as in the paper.
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
  # With the paper's weights the gradients of the structure losses dominate, and
  # a small encoder does not learn the emotion in a short training.
  for part in ('body', 'face'):
    config.losses[f'{part}_heatmap'].weight = 0.1
    # L1 weight as in DETR; a small beta keeps the gradient of smooth L1 for
    # nearly correct limbs. With 10 instead of 100 queries there are few
    # unmatched ones, so their presence loss need not be down-weighted.
    config.losses[f'{part}_query'].weight = 1.0
    config.losses[f'{part}_query'].kwargs.update(
        l1_weight=5.0, beta=0.05, no_object=1.0
    )


def _person_query(config: ConfigDict, exact: bool) -> None:
  """Decodes people from queries; projects raw limbs, unless for `reference`."""
  config.model.decoder = 'person_query'
  if config.model.head.sr_input == 'raw' and not exact:
    # The limbs of 100 queries are 15,200 numbers, and the frame transformer is
    # as wide as its input: 1.05 billion parameters.
    config.model.head.sr_input = 'projected'


def _relations(config: ConfigDict) -> None:
  """Detects people at their centers and reads relations between them."""
  config.model.update(variant='ve_md_sr', decoder='person_query')
  config.model.encoder.skips = 1
  config.model.person_query.initial = 'centers'
  # Bodies are read as limbs alone, which the emotion does not bend: else both
  # parts learn the faces and nothing learns the relations.
  config.model.head.update(sr_input='relations', structure_gradient=0.0)
  if config.model.encoder.name == 'residual':
    # At the laptop's size; the structure is learned in half the steps.
    config.optim.learning_rate = 2.4e-3


def _audio(config: ConfigDict) -> None:
  """Fuses the log-mel spectrogram of the clip: 10 s at 100 frames/s."""
  config.data.update(audio_frames=1000, audio_dim=64)
  config.model.fusion.update(audio='mel', modality_dropout=0.1)


def _text(config: ConfigDict) -> None:
  """Fuses embeddings of the transcript, of MiniLM's width 384."""
  config.data.update(text_tokens=64, text_dim=384)
  config.model.fusion.update(text=True, modality_dropout=0.1)


def _cached(config: ConfigDict) -> None:
  """Reads the frozen ViT's features cached by vemd_jax.cache_features."""
  name = config.model.vit.name
  if name == 'none' or config.model.variant == 'vit':
    raise ValueError('the option cached requires a recipe with a frozen ViT')
  config.data.vit_dim = vit.VITS[name]['dim']
  for data in config.mixture.values():
    if not data.get('labels', True):
      data.vit_dim = 0


def _dp(config: ConfigDict) -> None:
  """Trains with differential privacy, see vemd_jax.dp."""
  config.dp.noise = 1.0
  config.model.norm = 'group'
  # Clipping after the noise would only rescale it.
  config.optim.clip = 0.0


def reference(config: ConfigDict) -> None:
  """Sets all fields to reproduce the authors' code, including its bugs."""
  config.model.dtype = 'float32'
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


def _from_run(config: ConfigDict, workdir: str) -> None:
  """Starts from another run: copies its sizes and loads its weights."""
  other = files.load(epath.Path(workdir) / 'config.json')
  name = config.data.name
  config.model.update(other.model)
  config.data.update(
      {key: other.data[key] for key in ('image_size', 'grayscale', 'sigma')}
  )
  config.data.name = name
  config.checkpoint.init_from = (workdir,)


def _tiny(config: ConfigDict) -> None:
  """Shrinks any recipe so that it runs in seconds on a CPU."""
  config.steps = 4
  config.phases = tuple(
      {**phase, 'steps': 1} if 'steps' in phase else phase
      for phase in config.phases
  )
  config.batch_size = 8
  config.eval.update(every=2, batch_size=8)
  config.pictures.update(samples=2, gallery=2)
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
      widths=(16, 8),
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
    options: str = '',
    more: Mapping[str, Callable[[ConfigDict], None]] | None = None,
) -> ConfigDict:
  """Applies the options of a recipe's argument and locks the config.

  Args:
    config: config of the recipe.
    options: comma-separated options: a variant, a decoder, `laptop`, `tiny`,
      `from=WORKDIR` (sizes and weights of another run), or one of the recipe's
      own options.
    more: the recipe's own options, name -> function that changes the config.

  Returns:
    The config, locked: setting an unknown key or a value of the wrong type
    raises an error.

  Raises:
    ValueError: for an option that neither the recipe nor this module defines.
  """
  known = dict(more or {})
  for variant in VARIANTS:
    known[variant] = lambda c, v=variant: c.model.update(variant=v)
  known['heatmap'] = lambda c: c.model.update(decoder='heatmap')
  exact = 'reference' in options.split(',')
  known['person_query'] = lambda c: _person_query(c, exact)
  known['relations'] = _relations
  known['dp'] = _dp
  known['audio'] = _audio
  known['text'] = _text
  known['cached'] = _cached
  known.setdefault('laptop', laptop)
  known.setdefault('reference', reference)
  known['tiny'] = _tiny
  given = [option for option in options.split(',') if option]
  for option in given:
    if option.startswith('from='):
      _from_run(config, option.removeprefix('from='))
  given = [option for option in given if not option.startswith('from=')]
  for option in given:
    if option not in known:
      raise ValueError(
          f'unknown option {option!r} of the config; this recipe has '
          f'{", ".join(sorted([*known, "from=WORKDIR"]))}'
      )
  # tiny is applied last, since it shrinks values that other options set.
  for option in sorted(given, key=lambda w: w == 'tiny'):
    known[option](config)
  return config.lock()
