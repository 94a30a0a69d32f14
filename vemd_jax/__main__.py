"""`python -m vemd_jax` runs the command line program `vemd`."""

import sys

from vemd_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
