"""Values derived from a config, and validation of its fields."""

import difflib
import sys

from ml_collections import ConfigDict

from vemd_jax import dp, guard, import_path, optim, phases, viz
from vemd_jax.config.options import DECODERS, VARIANTS
from vemd_jax.data import sources
from vemd_jax.models import layers

# Keys that also accept an import path, package.module:name.
IMPORTABLE = (
    'data.source',
    'model.encoder.name',
    'model.decoder',
    'model.head.name',
    'optim.name',
)
MODES = ('train', 'evaluate', 'both')


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
  """The loss terms that apply to the model of this config, and the metrics.

  Args:
    config: the whole config.

  Returns:
    Name -> entry without the field `decoder`; metrics have weight 0.

  Raises:
    ValueError: if a metric has the name of a loss term.
  """
  model = config.model
  # The length of the run is not needed here: only the phases' starts matter.
  parts = phases.parse(config.phases, sys.maxsize)
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
    if not _has_place(entry['fn'], model):
      continue
    entry['weight'] = phases.weights(parts, name, entry['weight'])
    if any(weight for _, weight in entry['weight']):
      active[name] = entry
  for name, entry in config.metrics.items():
    if name in active:
      raise ValueError(
          f'config.metrics.{name}: a loss term has this name; expected another '
          'name'
      )
    active[name] = {**entry.to_dict(), 'weight': 0.0}
  return active


def _has_place(fn: str, model: ConfigDict) -> bool:
  """Whether the model has the outputs that a loss function requires."""
  if fn in ('person_query', 'person_centers'):
    centers = model.person_query.initial == 'centers'
    return centers == (fn == 'person_centers')
  if fn == 'emotion_sources':
    own_head = import_path.is_path(model.head.name)
    relations = model.head.sr_input == 'relations'
    return model.variant == 've_md_sr' and relations and not own_head
  if fn == 'emotion_teacher_forcing':
    return (
        _has_place('emotion_sources', model)
        and model.decoder == 'person_query'
        and model.head.teacher_forcing
    )
  return True


def check(config: ConfigDict) -> None:
  """Checks values and combinations of values that types do not exclude.

  Args:
    config: the whole config.

  Raises:
    ValueError: names the key, its value, and valid values.
  """
  choices = {
      'mode': MODES,
      'model.variant': (*VARIANTS, 'vit'),
      'model.decoder': DECODERS,
      'model.dtype': layers.DTYPES,
      'model.norm': ('batch', 'group'),
      'model.head.latent_input': ('flat', 'pooled'),
      'model.head.sr_input': ('raw', 'projected', 'relations'),
      'model.head.attend': ('frames', 'batch'),
      'model.head.positions': ('sinusoidal', 'learnable', 'relative', 'none'),
      'model.person_query.initial': ('learned', 'centers'),
      'model.person_query.positions': ('sinusoidal', 'learned'),
      'model.person_query.st_gcn': ('none', 'graph', 'reference'),
      'model.fusion.method': ('concat', 'attention', 'gated'),
      'model.fusion.audio': ('none', 'embedding', 'mel'),
      'model.head.name': ('frame_transformer',),
      'data.source': tuple(sources.SOURCES),
      'data.targets': ('device', 'host'),
      'data.empty_annotation': ('mask', 'nobody'),
      'optim.name': tuple(optim.OPTIMIZERS),
      'checkpoint.best_mode': ('auto', 'max', 'min'),
      'faults.not_finite': guard.ACTIONS,
      'faults.spike': ('ignore', *guard.ACTIONS),
      'optim.schedule': ('constant', 'cosine', 'linear'),
      'pictures.people': viz.PEOPLE,
  }
  for key, allowed in choices.items():
    value = _get(config, key)
    if key in IMPORTABLE and import_path.is_path(value):
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
      'faults.limit',
  ):  # fmt: skip
    if _get(config, key) < 1:
      raise ValueError(
          f'config.{key} is {_get(config, key)}, expected 1 or more'
      )
  if config.checkpoint.keep_latest < 2:
    raise ValueError(
        f'config.checkpoint.keep_latest is {config.checkpoint.keep_latest}, '
        'expected 2 or more, since a damaged checkpoint is replaced by the '
        'previous one'
    )
  if config.faults.spike_factor <= 1:
    raise ValueError(
        f'config.faults.spike_factor is {config.faults.spike_factor}, expected '
        'more than 1, since it is a multiple of the running mean of the loss'
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
  for i, phase in enumerate(phases.parse(config.phases, sys.maxsize)):
    for name in phase.losses:
      if name not in config.losses:
        raise ValueError(
            f'config.phases[{i}].losses has {name!r}, expected some of '
            f'{", ".join(config.losses)}'
        )
    schedule = phase.optim.get('schedule', config.optim.schedule)
    if schedule not in choices['optim.schedule']:
      raise ValueError(
          f'config.phases[{i}].schedule is {schedule!r}, expected one of '
          f'{", ".join(choices["optim.schedule"])}'
      )
  model = config.model
  centers = model.person_query.initial == 'centers'
  centers = centers and model.decoder == 'person_query'
  if model.encoder.skips and not (centers or model.decoder == 'heatmap'):
    raise ValueError(
        f'config.model.encoder.skips is {model.encoder.skips}, but learned '
        'queries do not read skips; expected 0, or '
        'config.model.person_query.initial=centers'
    )
  if centers and model.person_query.st_gcn != 'none':
    raise ValueError(
        f'config.model.person_query.st_gcn is {model.person_query.st_gcn!r}, '
        "but initial='centers' decodes no adjacency; expected none"
    )
  dp.check(config)
  unknown = set(config.model.parts) - {'body', 'face'}
  if unknown:
    raise ValueError(
        f'config.model.parts has {sorted(unknown)}, expected body, face'
    )


def _get(config: ConfigDict, key: str):
  for name in key.split('.'):
    config = config[name]
  return config
