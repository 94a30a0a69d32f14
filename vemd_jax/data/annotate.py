"""Program: finds bodies and faces, see `vemd_jax.prepare.annotate`."""

import sys

from vemd_jax.prepare.annotate import main

if __name__ == '__main__':
  sys.exit(main())
