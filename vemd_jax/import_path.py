"""Functions and classes named in a config: built in, or by import path.

Everything that a recipe can name (encoder, decoder, emotion head, loss, metric,
optimizer, dataset) is looked up here, so that a part of one's own is named as
`package.module:name` everywhere.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def find(name: str, known: Mapping[str, Any], key: str) -> Any:
  """The built-in entry of that name, or what an import path names.

  Args:
    name: key of `known`, or `package.module:name`.
    known: what is built in.
    key: the config key, for the message.

  Returns:
    The entry, or the imported function or class.

  Raises:
    ValueError: if there is none; names the key and what was expected.
  """
  if is_path(name):
    return load(name, key)
  if name in known:
    return known[name]
  near = difflib.get_close_matches(str(name), known, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise ValueError(
      f'{key} is {name!r}, expected package.module:name or one of '
      f'{", ".join(known)}{hint}'
  )


def is_path(name: str) -> bool:
  """Whether a config names something outside this package."""
  return ':' in str(name)


def load(path: str, key: str) -> Any:
  """Imports what a path names.

  Args:
    path: `package.module:name`.
    key: the config key, for the message.

  Returns:
    The function or class.

  Raises:
    ValueError: if it cannot be imported, or cannot be called.
  """
  module, _, name = path.partition(':')
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f'{key} is {path!r}: {error}') from error
  if not callable(found):
    raise ValueError(f'{key} is {path!r}, neither a function nor a class')
  return found
