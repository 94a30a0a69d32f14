"""Program: prepares a dataset, see `vemd_jax.prepare.dataset`."""

import sys

from vemd_jax.prepare.dataset import main

if __name__ == '__main__':
  sys.exit(main())
