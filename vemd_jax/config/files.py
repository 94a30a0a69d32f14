"""Configs as JSON files in a workdir."""

import json
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import workdir as workdir_lib
from vemd_jax.config.defaults import default

# Keys that may change when a run is resumed: logging, evaluation, number of
# steps, fault handling, checkpointing, data loading and hardware.
MAY_CHANGE = (
    'mode', 'steps', 'epochs', 'min_steps', 'log_every', 'eval', 'metrics',
    'pictures', 'loggers',
    'profile', 'mesh', 'deterministic', 'faults', 'checkpoint.every',
    'checkpoint.keep_latest', 'checkpoint.keep_best', 'checkpoint.resume',
    'checkpoint.init_from', 'data.root', 'data.val_split', 'data.test_split',
    'data.max_unreadable', 'data.num_threads', 'data.num_workers',
)  # fmt: skip


def save(config: ConfigDict, path: epath.PathLike) -> None:
  """Writes the config as JSON, atomically."""
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  workdir_lib.write(path, text)


def load(path: epath.PathLike) -> ConfigDict:
  """Reads a config that `save` wrote.

  Args:
    path: the JSON file.

  Returns:
    The config, locked.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if the file is not a config.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no config at {path}; expected a run\'s workdir')
  try:
    return ConfigDict(_tuples(json.loads(path.read_text()))).lock()
  except ValueError as error:
    raise ValueError(f'{path} is not a config: {error}') from error


def check_same(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Compares a config with the one that a workdir was created with.

  Args:
    config: the config to resume the run with; with the mode 'evaluate' only
      `config.model` is compared.
    workdir: output folder of the run; may have no config yet.

  Raises:
    ValueError: if keys differ other than those in `MAY_CHANGE`; lists them.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    return
  now, before = _flat(config), _flat(load(path))
  for key, value in _flat(default()).items():
    if not key.startswith('losses.'):
      # Keys added in a later version had their default value.
      before.setdefault(key, value)
  refused = []
  for key in sorted(before.keys() | now.keys()):
    old, new = before.get(key), now.get(key)
    if old == new:
      continue
    change = f'config.{key} was {old!r}, is {new!r}'
    if config.mode == 'evaluate':
      may = not key.startswith('model.')
    else:
      may = _may_change(key)
    if may:
      logging.info('Changed since the run was started: %s', change)
    else:
      refused.append(change)
  if refused:
    more = f', and {len(refused) - 5} more' if len(refused) > 5 else ''
    raise ValueError(
        f'workdir {workdir} belongs to another config: '
        f'{"; ".join(refused[:5])}{more}. Use the same values or another '
        f'workdir, with --config.checkpoint.resume={workdir} to start from '
        f'this state. Keys that may change: {", ".join(MAY_CHANGE)}'
    )


def _may_change(key: str) -> bool:
  parts = key.split('.')
  if parts[0] == 'mixture':  # mixture.NAME.KEY overrides data.KEY.
    key = '.'.join(['data', *parts[2:]])
  return any(key == k or key.startswith(k + '.') for k in MAY_CHANGE)


def _flat(config: ConfigDict) -> dict[str, Any]:
  """Flattens a config: dotted key a.b.c -> value as plain JSON."""
  flat = {}

  def walk(prefix, value):
    if isinstance(value, dict):
      for name, v in value.items():
        walk(f'{prefix}.{name}' if prefix else name, v)
    else:
      flat[prefix] = value

  walk('', json.loads(json.dumps(config.to_dict())))
  return flat


def _tuples(value):
  """Converts lists to tuples, which JSON does not have."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
