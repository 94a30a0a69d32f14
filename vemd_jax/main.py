r"""Trains and evaluates a recipe.

  python -m vemd_jax.main --config=configs/group_scenes.py --workdir=RUN

The same command resumes an interrupted run. A recipe's options follow a colon
(configs/folder.py:tiny,ve_md), and every value of the config can be overridden:
--config.optim.learning_rate=3e-4.
"""

import logging as logging_lib
import sys
import traceback

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax import devices, train

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A recipe, such as configs/folder.py:tiny.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder for checkpoints, metrics and pictures; also a gs:// path.',
)
_MODE = flags.DEFINE_enum(
    'mode', None, config_lib.MODES, 'Overrides config.mode.'
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    None,
    'Start jax.distributed; by default if a cluster is detected.',
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  config, workdir = _CONFIG.value, epath.Path(_WORKDIR.value).absolute()
  if _MODE.value:
    config.mode = _MODE.value
  devices.set_up(
      (config.batch_size, config.eval.batch_size),
      config.mesh.fsdp,
      _DISTRIBUTED.value,
  )
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_ours)
  logging.info('Devices: %s', jax.devices())
  try:
    train.train_and_evaluate(config, workdir)
  except (ValueError, OSError, FloatingPointError) as error:
    # The message is one line; the traceback goes to a file.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'traceback.txt').write_text(traceback.format_exc())
    line = ' '.join(str(error).split())
    sys.exit(f'error: {line} (traceback in {workdir / "traceback.txt"})')


def _ours(record) -> bool:
  """Drops log records of other libraries below the level ERROR."""
  return 'vemd_jax' in record.pathname or record.levelno >= logging_lib.ERROR


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(
          argv, 'config', 'workdir'
      ),
  )
