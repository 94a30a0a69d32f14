r"""Caches the frozen ViT's features in the data folder of a recipe.

  python -m vemd_jax.cache_features --config=configs/gaf3.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)"

computes them for every image or frame of every split, with the preprocessing of
evaluation, and writes them to `DATA/vit_cache/`. An interrupted run resumes
where it stopped. The option `cached` (configs/gaf3.py:cached) makes training
read them instead of running the ViT in every epoch; the other arguments of that
run must be the ones given here.
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
    sys.exit('interrupted; run the same command again to resume')
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')


def run(config, overwrite: bool = False, workers: int = 1) -> None:
  """Fills the feature cache of each labelled dataset of a config.

  Args:
    config: the whole config.
    overwrite: rebuilds a cache that was made with other settings.
    workers: number of decoding threads.

  Raises:
    ValueError: if the model has no frozen ViT, or a cache was made with other
      settings.
    FileNotFoundError: if data or weights are missing.
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
    # Only the emotion head reads the features.
    if data.labels:
      print(f'{name}: {data.root}')
      counts = frozen_vit.fill(config, data, params, overwrite, workers)
      print(feature_cache.report(counts, 'features'))


if __name__ == '__main__':
  # Defined here and not on import: vemd_jax.main has a flag of the same name.
  _CONFIG = config_flags.DEFINE_config_file(
      'config', None, 'A recipe, such as configs/gaf3.py.', lock_config=True
  )
  _OVERWRITE = flags.DEFINE_bool(
      'overwrite', False, 'Rebuild a cache that was made with other settings.'
  )
  _WORKERS = flags.DEFINE_integer(
      'workers', os.cpu_count(), 'Number of decoding threads.', lower_bound=1
  )
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(argv, 'config'),
  )
