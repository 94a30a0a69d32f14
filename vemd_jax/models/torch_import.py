r"""Converts PyTorch weights to a folder that a run can start from.

  python -m vemd_jax.models.torch_import FILE \
      --config=configs/reference.py:heatmap --out=WEIGHTS

reads weights of the authors' VE-MD, torchvision ResNets or CLIP ViTs, and
writes a folder for `--config.checkpoint.init_from="('WEIGHTS',)"`. The model
fields of the config must describe the network that was trained;
configs/reference.py does so for the authors' settings. See
`vemd_jax.models.torch.convert`.
"""

import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from vemd_jax import weights
from vemd_jax.models.torch.convert import convert_file


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise app.UsageError('expected one FILE, --config and --out')
  config = _CONFIG.value
  try:
    variables = convert_file(argv[1], config.model, config.data.image_size)
    weights.save_variables(_OUT.value, variables)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  print(f'{_OUT.value}: {count:,} parameters from {argv[1]}')


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file(
      'config', None, 'A recipe, such as configs/reference.py:heatmap.'
  )
  _OUT = flags.DEFINE_string('out', None, 'A new folder.')
  flags.mark_flags_as_required(['config', 'out'])
  app.run(main)
