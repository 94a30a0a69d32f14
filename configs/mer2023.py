r"""MER2023-MULTI: one speaker in a clip, 6 classes.

No number of VE-MD was found; on SEMI Emotion-LLaMA has a weighted F1 of 0.9036,
the baseline 0.8675.

  python -m vemd_jax.data.prepare mer2023 --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:mer2023 \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/mer2023.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
settings to the letter); cached (reads the ViT's features where
vemd_jax.cache_features, with these arguments, has stored them); tiny.
`audio` and `text` fuse sound and transcripts.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('mer2023')
  config.model.head.sr_input = 'projected'
  return config_lib.finish(config, options)
