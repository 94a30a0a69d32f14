r"""VGAF: the emotion of a group in clips of 5 seconds, 3 classes.

Published: 82.25 % accuracy with audio fusion (arXiv 2604.02397, abstract; split
not stated).

  python -m vemd_jax.data.prepare vgaf --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:vgaf \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/vgaf.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
`audio` fuses the log-mel spectrogram (prepare with --audio).
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('vgaf')
  config.model.head.sr_input = 'raw'
  return config_lib.finish(config, options)
