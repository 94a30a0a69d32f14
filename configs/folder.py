r"""Your own images: a folder with images and `labels.csv`.

  DIR/labels.csv         file,split,label       (splits train, val, test)
  DIR/annotations.jsonl  optional: bodies and faces, see vemd_jax.data.folder

or one folder of images per class: DIR/CLASS/*.jpg or DIR/SPLIT/CLASS/*.jpg.

The default size trains on 2 CPU cores in about 15 minutes for 2,000 images, and
in about 5 minutes for a few hundred or less; `full` is the paper's size, for an
accelerator.

  python -m vemd_jax.main --config=configs/folder.py \
      --config.data.root=DIR --workdir=W

Options: ve_sd, ve_md, ve_md_sr, person_query, full, tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.default()
  config.data.update(name='folder', source='folder')
  given = options.split(',')
  if 'full' not in given:
    config_lib.laptop(config)
    config.epochs = 40.0
    # 40 epochs of 50 images would end within the warm-up.
    config.min_steps = 1500
    config.eval.every = 400
    config.checkpoint.every = 400
  options = ','.join(option for option in given if option != 'full')
  return config_lib.finish(config, options)
