r"""GAF-3.0: the emotion of a group in a photograph, 3 classes.

Published: 90.06 % accuracy (arXiv 2604.02397, abstract; split not stated,
presumably Validation). For one 80 GB GPU or a TPU v5e-8.

  python -m vemd_jax.data.prepare gaf3 --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:gaf3 \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/gaf3.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('gaf3')
  # For groups the paper feeds the unprojected structure to the emotion head
  # (section 4); the option person_query projects it.
  config.model.head.sr_input = 'raw'
  return config_lib.finish(config, options)
