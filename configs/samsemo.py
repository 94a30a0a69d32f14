r"""SAMSEMO: one speaker in a clip, 5 classes, with audio and transcript.

Published: 77.9 % accuracy with text (arXiv 2604.02397).

  python -m vemd_jax.data.prepare samsemo --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:samsemo \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/samsemo.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
`text` fuses embeddings of the transcripts, `audio` the log-mel spectrogram.
`multi_label` also trains on samples with several labels and selects the
checkpoint by multi-label F1 (prepare with --multi_label).
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('samsemo')
  # For single people the projection of the structure acts as a bottleneck.
  config.model.head.sr_input = 'projected'
  return config_lib.finish(config, options, {'multi_label': _multi_label})


def _multi_label(config):
  config.data.multi_label = True
  config.losses.emotion = config_lib.loss('multi_label_emotion', 1.0)
  config.checkpoint.best_metric = 'multilabel_f1'
