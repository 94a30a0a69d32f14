"""Functions and classes of other packages, named in a config."""

import importlib
from typing import Any


def load(path: str, what: str) -> Any:
  """Imports what a path names.

  Args:
    path: `package.module:name`.
    what: the config key it stands in, for the message.

  Returns:
    The function or class.

  Raises:
    ValueError: if there is none.
  """
  module, _, name = path.partition(':')
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f'{what} {path!r}: {error}') from error
  if not callable(found):
    raise ValueError(f'{what} {path!r} is neither a function nor a class')
  return found
