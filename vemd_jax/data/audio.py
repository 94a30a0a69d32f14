"""Program: caches spectrograms, see `vemd_jax.prepare.audio`."""

import sys

from vemd_jax.prepare.audio import main

if __name__ == '__main__':
  sys.exit(main())
