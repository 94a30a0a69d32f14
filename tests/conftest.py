"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

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
# Emitters of the CPU backend; the older ones compile in 0.6 of the time.
_FLAG = '--xla_cpu_use_fusion_emitters=false'


def _is_known(flag: str) -> bool:
  """Whether this version of XLA has a flag; it aborts on those it has not."""
  code = 'import jax; jax.devices()'
  process = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, check=False,
      env={**os.environ, 'XLA_FLAGS': flag},
  )  # fmt: skip
  return process.returncode == 0


# Child processes, such as those of pytest-xdist, inherit the decision.
if 'VEMD_TEST_FLAG' not in os.environ:
  os.environ['VEMD_TEST_FLAG'] = _FLAG if _is_known(_FLAG) else ''
os.environ['XLA_FLAGS'] += f' {os.environ["VEMD_TEST_FLAG"]}'

# Programs that several tests or processes compile are compiled once a session.
_OWN_CACHE = 'JAX_COMPILATION_CACHE_DIR' not in os.environ
if _OWN_CACHE:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='vemd_jax_')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

import jax
import pytest
from absl import flags, logging

from vemd_jax import devices, sharding

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

devices.keep_freed_memory()

# Grain reads absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def standard_promotion():
  """For tests that run optax, whose code mixes int32 and float32."""
  with jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture
def one_device(monkeypatch):
  """Runs of this process use one device: their programs compile faster."""
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  monkeypatch.setattr(sharding, 'make_mesh', lambda *_: mesh)


# Files that take longest; they are run first.
_LONG = (
    'test_chains', 'test_train', 'test_extending', 'test_convert',
    'test_export', 'test_recipes', 'test_vemd', 'test_stopped', 'test_phases',
    'test_devices', 'test_api',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Sorts the tests by file, the longest files first."""
  rank = {name: i for i, name in enumerate(_LONG)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(_LONG)))


def pytest_unconfigure(config):
  """Removes the compiled programs, unless they were to be kept."""
  del config
  if _OWN_CACHE:
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> pathlib.Path:
  """Workdir of one tiny run of the demo; tests that change it copy it."""
  from tests.faults import harness

  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent  # Shared by the workers.
  workdir = base / 'tiny_run' / 'group_scenes'
  workdir.parent.mkdir(exist_ok=True)
  with open(base / 'tiny_run' / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / 'report.html').exists():
      process = subprocess.run(
          [sys.executable, '-m', 'vemd_jax.main',
           '--config=configs/group_scenes.py:tiny', f'--workdir={workdir}'],
          cwd=pathlib.Path(__file__).parents[1],
          # One device, not eight: its programs compile faster.
          env=harness.environment(),
          capture_output=True, text=True, check=False,
      )  # fmt: skip
      assert process.returncode == 0, process.stderr
  return workdir


_VERBOSITY = logging.get_verbosity()


@pytest.fixture(autouse=True)
def verbosity():
  """Restores the logging verbosity, which commands set process-wide.

  Also before a test: fixtures of a wider scope may have run commands.
  """
  logging.set_verbosity(_VERBOSITY)
  yield
  logging.set_verbosity(_VERBOSITY)
