r"""COCO keypoints 2017 (+ WholeBody faces): structure only, no emotion labels.

Pretrains encoder and decoders; configs/gaf3_from_coco.py starts from these
weights. There is no published result; the heatmap error is reported.

  python -m vemd_jax.data.prepare coco --source=DIR --out=COCO
  python -m vemd_jax.main --config=configs/coco.py --config.data.root=COCO \
      --workdir=W

Options: heatmap, person_query, reference, tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('coco')
  config.model.variant = 've_md'
  config.epochs = 20.0
  config.data.max_ignore = 20
  config.batch_size = 32
  return config_lib.finish(config, options)
