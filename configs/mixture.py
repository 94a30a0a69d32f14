r"""GAF-3.0, VGAF and COCO in one run: shared encoder, one head per dataset.

Every batch comes from one dataset; an epoch ends when all are exhausted. COCO
has no emotion labels and trains the structure only. Published: 90.06 % on
GAF-3.0, 82.25 % on VGAF with audio (arXiv 2604.02397, abstract; splits not
stated).

  python -m vemd_jax.main --config=configs/mixture.py \
      --config.mixture.gaf3.root=GAF3 --config.mixture.vgaf.root=VGAF \
      --config.mixture.coco.root=COCO --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference; tiny.
"""

from vemd_jax import config as config_lib
from vemd_jax.data import datasets


def get_config(options: str = ''):
  config = config_lib.default()
  config.data.update(name='mixture', source='tfds')
  config.batch_size = 16
  for name, weight in ('gaf3', 1.0), ('vgaf', 1.0), ('coco', 0.2):
    facts = datasets.get(name)
    config.mixture[name] = {
        'root': '',
        'classes': facts.classes,
        'frames': facts.frames,
        'weight': weight,
        'labels': facts.labels,
        'val_split': 'val',
        'max_ignore': 20 if name == 'coco' else 0,
    }
  return config_lib.finish(config, options)
