"""The command line of the programs that take a recipe by `--config`."""

import sys

from absl import flags


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
