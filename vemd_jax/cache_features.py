r"""Caches the frozen ViT's features beside the data of a recipe.

  python -m vemd_jax.cache_features --config=configs/gaf3.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)"

computes them for every image or frame of every split, as evaluation sees it,
and stores `DATA/vit_cache/`. Run again it goes on where it stopped. The word
`cached` (configs/gaf3.py:cached) makes a run read them instead of paying for
the ViT at every epoch; its other arguments must be those given here.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax.data import feature_cache
from vemd_jax.prepare import frozen_vit


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  logging.set_verbosity(logging.WARNING)
  try:
    run(_CONFIG.value, _OVERWRITE.value, _WORKERS.value)
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on')
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')


def run(config, overwrite: bool = False, workers: int = 1) -> None:
  """Fills the cache of each dataset of a config that has labels.

  Args:
    config: the whole config.
    overwrite: starts anew where a cache has other settings.
    workers: threads that decode.

  Raises:
    ValueError: the model has no frozen ViT, or a cache has other settings.
    FileNotFoundError: data or weights are not there.
  """
  config_lib.check(config)
  if config.model.vit.name == 'none' or config.model.variant == 'vit':
    raise ValueError(
        'this recipe has no frozen ViT: config.model.vit.name is '
        f'{config.model.vit.name!r}, config.model.variant '
        f'{config.model.variant!r}'
    )
  params = frozen_vit.load(config)
  for name, data in config_lib.datasets(config).items():
    # Without an emotion head nothing reads them.
    if data.labels:
      print(f'{name}: {data.root}')
      counts = frozen_vit.fill(config, data, params, overwrite, workers)
      print(feature_cache.report(counts, 'features'))


if __name__ == '__main__':
  # Here, since vemd_jax.main has a flag of the same name.
  _CONFIG = config_flags.DEFINE_config_file(
      'config', None, 'A recipe, such as configs/gaf3.py.', lock_config=True
  )
  _OVERWRITE = flags.DEFINE_bool(
      'overwrite', False, 'Start anew where the cache has other settings.'
  )
  _WORKERS = flags.DEFINE_integer(
      'workers', os.cpu_count(), 'Threads that decode.', lower_bound=1
  )
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(argv, 'config'),
  )
