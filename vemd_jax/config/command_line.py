"""The command line of the programs that take a recipe by `--config`."""

import sys

from absl import flags


def parse_flags(argv: list[str], *needed: str) -> list[str]:
  """Parses the command line of a program that takes a recipe by `--config`.

  Args:
    argv: arguments of the program.
    *needed: names of required flags, including `config`.

  Returns:
    The arguments that are not flags.

  Raises:
    SystemExit: with a one-line message, also for errors raised by the recipe.
  """
  try:
    argv = flags.FLAGS(argv)
    if any(flags.FLAGS[name].value is None for name in needed):
      text = 'both {} are needed' if len(needed) > 1 else '{} is needed'
      names = ' and '.join(f'--{name}' for name in needed)
      raise ValueError(text.format(names))
    # Errors of a recipe are raised only when the config is first accessed.
    _ = flags.FLAGS['config'].value.mode
    return argv
  except Exception as error:  # A recipe may raise any exception.
    lines = str(error).strip().splitlines() or [repr(error)]
    # absl includes the traceback of a recipe's error in the message; its last
    # line is the error itself.
    nested = any(line.startswith('Traceback') for line in lines)
    text = ' '.join(lines[-1:] if nested else lines)
    sys.exit(f'error: {" ".join(text.split())}')
