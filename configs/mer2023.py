r"""MER2023-MULTI: one speaker in a clip, 6 classes.

No published result of VE-MD was found; on MER2023-SEMI, Emotion-LLaMA has a
weighted F1 of 0.9036 and the baseline 0.8675.

  python -m vemd_jax.data.prepare mer2023 --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:mer2023 \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/mer2023.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
`audio` fuses the log-mel spectrogram, `text` embeddings of the transcripts.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('mer2023')
  config.model.head.sr_input = 'projected'
  return config_lib.finish(config, options)
