"""Lookup of functions and classes that a config names.

Every component that a recipe can name (encoder, decoder, emotion head, loss,
metric, optimizer, dataset) is either built in or given as an import path,
`package.module:name`; this module resolves both.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def find(name: str, known: Mapping[str, Any], key: str) -> Any:
  """Finds a built-in entry by name, or imports an object by its path.

  Args:
    name: key of `known`, or `package.module:name`.
    known: built-in entries.
    key: config key, for the error message.

  Returns:
    The entry, or the imported function or class.

  Raises:
    ValueError: if there is no such entry; names the key and valid values.
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
  """Whether a name is an import path and not a built-in name."""
  return ':' in str(name)


def load(path: str, key: str) -> Any:
  """Imports the function or class at an import path.

  Args:
    path: `package.module:name`.
    key: config key, for the error message.

  Returns:
    The function or class.

  Raises:
    ValueError: if the import fails or the object is not callable.
  """
  module, _, name = path.partition(':')
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f'{key} is {path!r}: {error}') from error
  if not callable(found):
    raise ValueError(f'{key} is {path!r}, expected a function or a class')
  return found
