r"""DFEW: one face in a film clip, 7 classes, five folds.

No published result of VE-MD was found; HumanOmni reports 82.46 WAR / 74.86 UAR,
MAE-DFER 74.43 / 63.41, each the mean of 5 folds. --config.data.fold=K selects a
fold, in both stages; configs/paper/dfew.py runs all folds and averages them.

  python -m vemd_jax.data.prepare dfew --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:dfew \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/dfew.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('dfew')
  config.model.head.sr_input = 'projected'
  return config_lib.finish(config, options)
