r"""MER2023-SEMI: pretraining of the structure on unlabelled clips.

Pretrains encoder and decoders on the clips of test3 that have no label;
configs/mer2023.py starts from these weights. There is no published result; the
heatmap error on a held-out tenth of the clips is reported.

  python -m vemd_jax.data.prepare mer2023_semi --source=DIR --out=SEMI
  python -m vemd_jax.data.annotate --data=SEMI
  python -m vemd_jax.main --config=configs/mer2023_semi.py \
      --config.data.root=SEMI --workdir=STRUCTURE
  python -m vemd_jax.main --config=configs/mer2023.py \
      --config.data.root=DATA --workdir=W \
      --config.checkpoint.init_from="('STRUCTURE','STAGE1')"

DATA and STAGE1 as in configs/mer2023.py. Options: heatmap, person_query,
reference, tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('mer2023_semi')
  config.model.variant = 've_md'
  config.epochs = 20.0
  return config_lib.finish(config, options)
