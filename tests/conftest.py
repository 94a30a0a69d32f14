"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import os

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# See vemd_jax.devices: threads for collectives of 8 devices on fewer cores.
os.environ.setdefault('PJRT_NPROC', '32')
# Compilation dominates the time of the tests; child processes inherit this
# setting, so that their results are bitwise equal.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import jax
import pytest
from absl import flags, logging

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Grain reads absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def standard_promotion():
  """For tests that run optax, whose code mixes int32 and float32."""
  with jax.numpy_dtype_promotion('standard'):
    yield


_VERBOSITY = logging.get_verbosity()


@pytest.fixture(autouse=True)
def verbosity():
  """Restores the logging verbosity, which commands set process-wide.

  Also before a test: fixtures of a wider scope may have run commands.
  """
  logging.set_verbosity(_VERBOSITY)
  yield
  logging.set_verbosity(_VERBOSITY)
