r"""GAF-3.0 with encoder and decoders pretrained on COCO.

Starts from the encoder and the decoders of configs/coco.py and from the ViT of
stage 1; the emotion head is initialized randomly. Published for GAF-3.0:
90.06 % accuracy (arXiv 2604.02397, abstract; split not stated).

  python -m vemd_jax.main --config=configs/coco.py --config.data.root=COCO \
      --workdir=PRETRAINED
  python -m vemd_jax.main --config=configs/stage1.py:gaf3 \
      --config.data.root=GAF3 --workdir=STAGE1
  python -m vemd_jax.main --config=configs/gaf3_from_coco.py \
      --config.data.root=GAF3 \
      --config.checkpoint.init_from="('PRETRAINED', 'STAGE1')" --workdir=W

Options: ve_md, ve_md_sr; heatmap, person_query; tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('gaf3')
  config.model.head.sr_input = 'raw'
  config.epochs = 30.0
  config.optim.learning_rate = 3e-5
  return config_lib.finish(config, options)
