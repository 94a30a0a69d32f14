r"""Stage 1: fine-tunes CLIP ViT-L/14 on a dataset's labels (section 4).

The model is the ViT with attention pooling over frames and a linear classifier.
Stage 2, the recipe of the dataset, uses the fine-tuned ViT as a frozen branch.
Training starts from CLIP weights (LAION-2B), which are imported by

  python -m vemd_jax.models.torch_import CLIP.safetensors \
      --config=configs/stage1.py:gaf3 --out=CLIP
  python -m vemd_jax.main --config=configs/stage1.py:gaf3 \
      --config.data.root=DATA --config.checkpoint.init_from="('CLIP',)" \
      --workdir=STAGE1

Options: the dataset (gaf3, vgaf, samsemo, dfew, mer2023, engagenet); tiny.
There is no published result for this stage.
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
