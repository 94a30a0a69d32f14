"""Configs as JSON files in a workdir."""

import json

from etils import epath
from ml_collections import ConfigDict


def save(config: ConfigDict, path: epath.PathLike) -> None:
  """Writes the config as JSON, atomically."""
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


def _tuples(value):
  """Converts lists to tuples, which JSON does not have."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
