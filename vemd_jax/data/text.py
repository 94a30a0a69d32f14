"""Program: caches embeddings of transcripts, see `vemd_jax.prepare.text`."""

import sys

from vemd_jax.prepare.text import main

if __name__ == '__main__':
  sys.exit(main())
