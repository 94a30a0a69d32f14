"""Program: shows the embedded dataset; see `vemd_jax.scenes.group_scenes`."""

import sys

from vemd_jax.scenes.group_scenes import main

if __name__ == '__main__':
  sys.exit(main())
