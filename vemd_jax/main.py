"""Trains and evaluates: `python -m vemd_jax.main --config=… --workdir=…`."""

import logging as logging_lib
import math
import os
import sys
import traceback

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax import train

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A recipe, such as configs/folder.py:tiny.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run keeps what it makes; also gs:// paths.'
)
_MODE = flags.DEFINE_enum(
    'mode', None, config_lib.MODES, 'Instead of config.mode.'
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    None,
    'Start jax.distributed; by default wherever a cluster is recognised.',
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  config, workdir = _CONFIG.value, epath.Path(_WORKDIR.value).absolute()
  if _MODE.value:
    config.mode = _MODE.value
  if _DISTRIBUTED.value or (_DISTRIBUTED.value is None and _on_cluster()):
    jax.distributed.initialize()
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = os.path.expanduser('~/.cache/vemd_jax/compiled')
    jax.config.update('jax_compilation_cache_dir', cache)
  if 'xla_force_host_platform_device_count' not in os.environ.get(
      'XLA_FLAGS', ''
  ):
    jax.config.update('jax_num_cpu_devices', _cpu_devices(config))
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_ours)
  logging.info('Devices: %s', jax.devices())
  try:
    train.train_and_evaluate(config, workdir)
  except (ValueError, OSError, FloatingPointError) as error:
    # One line says what is wrong; the traceback is for who needs it.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'traceback.txt').write_text(traceback.format_exc())
    line = ' '.join(str(error).split())
    sys.exit(f'error: {line} (traceback in {workdir / "traceback.txt"})')


def _cpu_devices(config) -> int:
  """Devices that a CPU is split into, if there is nothing better.

  A program keeps several cores less busy than as many devices do, with a part
  of the batch each: on 2 cores these take 0.8 times as long for the demo's
  step.
  """
  batch = math.gcd(config.batch_size, config.eval.batch_size)
  cores = getattr(os, 'process_cpu_count', os.cpu_count)() or 1
  return max(n for n in range(1, min(cores, 8) + 1) if batch % n == 0)


def _ours(record) -> bool:
  """Keeps other libraries' messages out, unless something went wrong."""
  return 'vemd_jax' in record.pathname or record.levelno >= logging_lib.ERROR


def _on_cluster() -> bool:
  """Whether a launcher that JAX knows has started several processes."""
  several = (
      int(os.environ.get('SLURM_NTASKS', 1)) > 1
      or int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
      or 'JAX_COORDINATOR_ADDRESS' in os.environ
  )
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return several or ',' in hosts


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(
          argv, 'config', 'workdir'
      ),
  )
