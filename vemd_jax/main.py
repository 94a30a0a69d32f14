r"""Trains and evaluates a recipe.

  python -m vemd_jax.main --config=configs/group_scenes.py --workdir=RUN

The same command resumes an interrupted run. On SIGTERM or SIGINT the run saves
a checkpoint and exits with code 75. With several processes the same command
runs in each of them, see launch/README.md.

A recipe's options follow a colon (configs/folder.py:tiny,ve_md), and every
value of the config can be overridden: --config.optim.learning_rate=3e-4.
"""

import contextlib
import faulthandler
import logging as logging_lib
import sys
import traceback
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax import devices, processes, stopping, train

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
    'Start jax.distributed; by default if there are several processes.',
)
_PROCESSES = {
    'coordinator_address': flags.DEFINE_string(
        'coordinator_address',
        None,
        'HOST:PORT of process 0; a launcher that JAX supports sets it itself.',
    ),
    'num_processes': flags.DEFINE_integer(
        'num_processes', None, 'Number of processes of the run.'
    ),
    'process_id': flags.DEFINE_integer(
        'process_id', None, 'Index of this process, from 0.'
    ),
}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  config, workdir = _CONFIG.value, epath.Path(_WORKDIR.value).absolute()
  if _MODE.value:
    config.mode = _MODE.value
  try:
    devices.set_up(
        (config.batch_size, config.eval.batch_size),
        config.mesh.fsdp,
        _DISTRIBUTED.value,
        config.deterministic,
        {key: flag.value for key, flag in _PROCESSES.items()},
    )
  except (ValueError, ConnectionError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  # Warnings and errors come from every process, the rest from the first.
  first = jax.process_index() == 0
  logging.set_verbosity(logging.INFO if first else logging.WARNING)
  logging.get_absl_handler().addFilter(_ours)
  logging.info('Devices: %s', jax.devices())
  if jax.process_count() > 1:
    # If another process ends, JAX aborts this one with a clear message; without
    # this, the stacks of all threads would follow it.
    faulthandler.disable()
  try:
    train.train_and_evaluate(config, workdir, _recipe())
  except stopping.Stopped as stopped:
    print(
        f'Stopped {stopped}; the same command resumes the run',
        file=sys.stderr,
    )
    sys.exit(stopping.EXIT_CODE)
  except (
      ValueError, FloatingPointError, OSError, jax.errors.JaxRuntimeError
  ) as error:  # fmt: skip
    if processes.another_has_ended(error):
      # A normal exit would block waiting for it.
      print(
          _one_line(error, workdir)
          + '; another process of the run has ended; the same command on all '
          'processes resumes the run from the last checkpoint',
          file=sys.stderr,
          flush=True,
      )
      stopping.end_now(stopping.EXIT_CODE)
    if isinstance(error, jax.errors.JaxRuntimeError):
      raise
    if isinstance(error, OSError):
      # Exits immediately, as background threads of a failed save would print
      # more after this line.
      print(_one_line(error, workdir), file=sys.stderr, flush=True)
      stopping.end_now(1)
    sys.exit(_one_line(error, workdir))


def _one_line(error: Exception, workdir: epath.Path) -> str:
  """Formats an error as one line and writes the traceback to a file."""
  where = f' (workdir {workdir}, to which no traceback could be written)'
  with contextlib.suppress(OSError):
    path = workdir / 'traceback.txt'
    path.write_text(traceback.format_exc())
    where = f' (traceback in {path})'
  return f'error: {" ".join(str(error).split())}{where}'


def _recipe() -> dict[str, Any]:
  """The recipe and the config overrides on the command line."""
  holder = flags.FLAGS['config']
  return {
      'recipe': holder.config_filename,
      'changes': config_flags.get_override_values(holder),
  }


def _ours(record) -> bool:
  """Drops log records of other libraries below the level ERROR."""
  if 'orbax' in record.pathname:  # Its errors are raised and reported.
    return False
  return 'vemd_jax' in record.pathname or record.levelno >= logging_lib.ERROR


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(
          argv, 'config', 'workdir'
      ),
  )
