r"""Stage 1: fine-tunes CLIP ViT-L/14 on a dataset's labels (section 4).

The ViT with attention pooling over frames and a linear classifier. Stage 2, the
recipe of the dataset, takes the ViT from here and holds it frozen. The weights
to start from are CLIP's (LAION-2B), brought over by

  python -m vemd_jax.models.torch_import CLIP.safetensors \
      --config=configs/stage1.py:gaf3 --out=CLIP
  python -m vemd_jax.main --config=configs/stage1.py:gaf3 \
      --config.data.root=DATA --config.checkpoint.init_from="('CLIP',)" \
      --workdir=STAGE1

The first option is the dataset (gaf3, vgaf, samsemo, dfew, mer2023, engagenet);
tiny. There is no published number for this stage.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  given = options.split(',')
  name = next((w for w in given if w in config_lib.LABELLED), 'gaf3')
  config = config_lib.for_dataset(name)
  config.model.variant = 'vit'
  config.optim.frozen = ()
  config.optim.learning_rate = 1e-5
  config.epochs = 10.0
  options = ','.join(w for w in given if w != name)
  return config_lib.finish(config, options)
