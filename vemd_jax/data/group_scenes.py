"""Program: shows the embedded dataset; see `vemd_jax.scenes.contact_sheet`."""

import sys

from vemd_jax.scenes.contact_sheet import main

if __name__ == '__main__':
  sys.exit(main())
