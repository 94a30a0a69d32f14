"""The number of CPUs a process may use, and of devices made of them."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vemd_jax import devices, processes

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ('cpus', 'batches', 'fsdp', 'expected'),
    [
        (2, (16, 50), 1, 2),
        (1, (16, 16), 1, 1),
        (6, (16, 32), 1, 4),
        (64, (32, 32), 1, 8),
        (4, (15, 32), 1, 1),
        # At least four samples a device.
        (8, (16, 32), 1, 4),
        (2, (4, 4), 1, 1),
        # As many as the mesh asks for, even on fewer cores.
        (1, (16, 16), 2, 2),
        (3, (16, 16), 2, 2),
        (8, (16, 16), 4, 4),
        (8, (32, 32), 4, 8),
    ],
)
def test_a_cpu_is_split_where_the_batches_divide(
    monkeypatch, cpus, batches, fsdp, expected
):
  monkeypatch.setattr(devices, 'usable_cpus', lambda: cpus)
  assert devices.cpu_devices(batches, fsdp) == expected


@pytest.mark.parametrize(
    ('batches', 'fsdp', 'count', 'expected'),
    [((64, 64), 1, 2, 8), ((16, 32), 1, 2, 2), ((8, 8), 1, 4, 1),
     ((8, 8), 4, 2, 2), ((32, 32), 4, 2, 4), ((6, 6), 2, 3, 2),
     ((4, 4), 1, 3, 1)],
)  # fmt: skip
def test_the_devices_of_all_processes_divide_the_batch(
    monkeypatch, batches, fsdp, count, expected
):
  monkeypatch.setattr(devices, 'usable_cpus', lambda: 8)
  assert devices.cpu_devices(batches, fsdp, count) == expected


ALL = {'coordinator_address': 'a:1', 'num_processes': 4, 'process_id': 3}
EXPLICIT = {**ALL, 'cluster_detection_method': 'deactivate'}
SLURM = {'SLURM_NTASKS': '4', 'SLURM_PROCID': '3'}
JAX = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4'}


@pytest.mark.parametrize(
    ('flags', 'environment', 'expected'),
    [
        ({}, {}, None),
        ({}, {'SLURM_NTASKS': '1', 'JOB_COMPLETION_INDEX': '0'}, None),
        ({}, SLURM, ({}, 4)),
        ({}, {'OMPI_COMM_WORLD_SIZE': '2'}, ({}, 2)),
        ({}, {'TPU_WORKER_HOSTNAMES': 'a,b,c', 'TPU_WORKER_ID': '0'}, ({}, 3)),
        ({}, {'TPU_WORKER_HOSTNAMES': 'a'}, None),
        (ALL, {}, (EXPLICIT, 4)),
        ({}, {**JAX, 'JAX_PROCESS_ID': '3'}, (EXPLICIT, 4)),
        ({}, {**JAX, 'JOB_COMPLETION_INDEX': '3'}, (EXPLICIT, 4)),
        # A flag is stronger than the environment.
        ({'process_id': 3}, {**JAX, 'JAX_PROCESS_ID': '1'}, (EXPLICIT, 4)),
        # The launcher completes what is given.
        (
            {'coordinator_address': 'b:2'},
            SLURM,
            ({'coordinator_address': 'b:2'}, 4),
        ),
        (ALL, SLURM, (ALL, 4)),
    ],
)
def test_settings_of_the_processes(flags, environment, expected):
  assert processes.plan(flags, environment) == expected


def test_distributed_by_force_or_not_at_all():
  assert processes.plan({}, {}, True) == ({}, 1)
  assert processes.plan({}, SLURM, False) is None


@pytest.mark.parametrize(
    ('flags', 'environment', 'message'),
    [
        (
            {'num_processes': 2},
            {},
            '--num_processes is set, but not --coordinator_address or '
            'JAX_COORDINATOR_ADDRESS and --process_id or JAX_PROCESS_ID',
        ),
        ({}, {'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'but not --num_processes'),
        ({**ALL, 'process_id': 4}, {}, '--process_id is 4, expected 0 to 3'),
        ({**ALL, 'process_id': -1}, {}, 'expected 0 to 3'),
        ({**ALL, 'num_processes': 0}, {}, 'expected 1 or more'),
        ({**ALL, 'coordinator_address': 'a'}, {}, "is 'a', expected HOST:PORT"),
        (
            {},
            {**JAX, 'JAX_PROCESS_ID': 'x'},
            "JAX_PROCESS_ID is 'x', expected an integer",
        ),
        (
            {'process_id': 2},
            SLURM,
            '--process_id is 2, but Slurm has set SLURM_PROCID to 3',
        ),
        (
            {},
            {**SLURM, 'JAX_NUM_PROCESSES': '2'},
            'JAX_NUM_PROCESSES is 2, but Slurm has set SLURM_NTASKS to 4',
        ),
    ],
)
def test_wrong_settings_of_the_processes_are_named(
    flags, environment, message
):
  with pytest.raises(ValueError, match=message):
    processes.plan(flags, environment)


def test_no_processes_and_flags_for_them_contradict():
  with pytest.raises(ValueError, match='--nodistributed contradicts'):
    processes.plan({'process_id': 0}, {}, False)


@pytest.mark.parametrize(
    ('files', 'own', 'expected'),
    [
        ({}, '', 8),
        ({'cpu.max': 'max 100000'}, '0::/\n', 8),
        ({'cpu.max': '250000 100000'}, '0::/\n', 2),
        ({'cpu.max': '50000 100000'}, '0::/\n', 1),
        # The quota of a parent group applies, too.
        (
            {'job/cpu.max': '300000 100000', 'job/a/cpu.max': 'max 1'},
            '0::/job/a\n',
            3,
        ),
        # Version 1.
        (
            {
                'cpu/x/cpu.cfs_quota_us': '400000',
                'cpu/x/cpu.cfs_period_us': '100000',
            },
            '5:memory:/y\n4:cpu,cpuacct:/x\n',
            4,
        ),
        ({'cpu.max': 'nonsense'}, '0::/\n', 8),
    ],
)  # fmt: skip
def test_quota_of_a_container(tmp_path, monkeypatch, files, own, expected):
  for name, text in files.items():
    (tmp_path / 'fs' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'fs' / name).write_text(text + '\n')
  (tmp_path / 'own').write_text(own)
  monkeypatch.setattr(devices, '_CGROUPS', tmp_path / 'fs')
  monkeypatch.setattr(devices, '_OWN_CGROUPS', tmp_path / 'own')
  monkeypatch.setattr(
      os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False
  )
  assert devices.usable_cpus() == expected


# Not `preexec_fn`: it forks this process, and JAX warns of forks.
PIN = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def pinned_to_one_core(*arguments):
  """Runs Python with these arguments in a process that has one core."""
  environment = {k: v for k, v in os.environ.items() if k != 'PJRT_NPROC'}
  environment['XLA_FLAGS'] = environment['VEMD_TEST_FLAG']
  return subprocess.run(
      [sys.executable, '-c', PIN, *arguments],
      cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
      check=False,
  )  # fmt: skip


def run(workdir, *arguments):
  """The command line on one core."""
  return pinned_to_one_core(
      '-m', 'vemd_jax.main', f'--workdir={workdir}',
      '--config=configs/group_scenes.py:tiny,ve_sd', '--config.steps=20',
      '--config.eval.every=10', '--mode=train', *arguments,
  )  # fmt: skip


pinned = pytest.mark.skipif(
    not hasattr(os, 'sched_setaffinity'), reason='no affinity on this system'
)


@pinned
@pytest.mark.slow
def test_a_run_that_is_pinned_to_one_core_ends(tmp_path):
  process = run(tmp_path)
  assert process.returncode == 0, process.stderr
  assert (tmp_path / 'checkpoints' / '20').exists()


@pinned
@pytest.mark.slow
def test_two_devices_end_on_one_core(tmp_path):
  process = run(tmp_path, '--config.mesh.fsdp=2')
  assert process.returncode == 0, process.stderr
  assert (tmp_path / 'checkpoints' / '20').exists()


COLLECTIVES = """
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from vemd_jax import devices, sharding

devices.set_up((8,), 2, False)
mesh = sharding.make_mesh(1, 2)
x = jax.device_put(jnp.ones((64, 64, 64)), NamedSharding(mesh, P('fsdp')))
w = jax.device_put(jnp.full((64, 64), 0.01), sharding.replicated(mesh))

@jax.jit
def reduce(x, w):
  for _ in range(20):
    w = w + 1e-6 * jnp.einsum('abc,abd->cd', x, jnp.tanh(x @ w))
  return w

total = jax.jit(lambda x, w: (x @ w).sum())
for _ in range(60):
  w, s = reduce(x, w), total(x, w)
jax.block_until_ready((w, s))
print('ended')
"""


@pinned
def test_collectives_have_threads():
  """Without more threads than cores this aborts after 40 s."""
  process = pinned_to_one_core('-c', COLLECTIVES)
  assert process.stdout == 'ended\n', process.stderr[-2000:]


def test_errors_that_another_process_causes(monkeypatch):
  lost = ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer')
  save = OSError('cannot write a checkpoint')
  save.__cause__ = lost
  runtime = jax.errors.JaxRuntimeError
  ended = [lost, save, runtime('INTERNAL: a task has crashed')]
  own = [
      ValueError('labels.csv: unknown column'), OSError('disk full'),
      runtime('RESOURCE_EXHAUSTED: out of memory'),
      FloatingPointError('loss is nan'),
  ]  # fmt: skip
  for error in ended:  # With one process there is no other.
    assert not processes.another_has_ended(error)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  for error in ended:
    assert processes.another_has_ended(error), error
  for error in own:
    assert not processes.another_has_ended(error), error
