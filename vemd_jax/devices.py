"""Device setup: multi-process initialization, and virtual devices on the CPU.

`set_up` must be called before JAX initializes its backends.
"""

import ctypes
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from vemd_jax import processes

_CGROUPS = pathlib.Path('/sys/fs/cgroup')
_OWN_CGROUPS = pathlib.Path('/proc/self/cgroup')
# Of a batch, on each device of a CPU.
_LEAST_SAMPLES = 4


def set_up(
    batch_sizes: tuple[int, ...],
    fsdp: int,
    distributed: bool | None,
    deterministic: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
  """Starts `jax.distributed` on a cluster; sets the number of CPU devices.

  Args:
    batch_sizes: batch sizes that must be divisible by the number of devices.
    fsdp: `config.mesh.fsdp`; the minimum number of CPU devices.
    distributed: whether to start `jax.distributed`; None starts it if
      `processes.plan` finds several processes.
    deterministic: whether to ask XLA for deterministic GPU kernels.
    settings: flags that describe the processes, see `processes.plan`.

  Raises:
    ValueError: if settings of the processes are missing or contradictory.
    ConnectionError: if the processes do not find each other.
  """
  if deterministic:
    # This also disables autotuning, whose choice of kernels varies between
    # processes.
    os.environ['XLA_FLAGS'] = (
        os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
    )
  chosen = processes.plan(settings or {}, os.environ, distributed)
  if chosen is not None:
    processes.start(chosen)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = os.path.expanduser('~/.cache/vemd_jax/compiled')
    jax.config.update('jax_compilation_cache_dir', cache)
  given = re.search(
      r'xla_force_host_platform_device_count=(\d+)',
      os.environ.get('XLA_FLAGS', ''),
  )
  if given:
    count = int(given.group(1))
  else:
    count = cpu_devices(batch_sizes, fsdp, chosen.count if chosen else 1)
    jax.config.update('jax_num_cpu_devices', count)
  if count > 1:
    # In a collective each device's thread waits for those of the other devices.
    # XLA's pool has one thread per core: if one of them is busy with another
    # program, the collective blocks, and XLA aborts the process after 40 s.
    # A larger pool prevents this at no measurable cost.
    os.environ.setdefault('PJRT_NPROC', str(max(usable_cpus(), 4 * count)))
  keep_freed_memory()
  if chosen is not None and jax.process_count() > 1:
    # The processes start at about the same time. If they met for the first time
    # in the first step, those that compile faster would wait for the others
    # longer than the 30 s that Gloo allows.
    multihost_utils.sync_global_devices('start')


def keep_freed_memory() -> None:
  """Asks glibc to keep freed memory rather than return it to the system.

  On the CPU, XLA allocates its buffers anew at each step. Returned to the
  system, each of their pages is mapped and cleared again: for the demo on 2
  cores, that is a sixth of the time of a step. Other C libraries lack the call.
  """
  if any(name.startswith('MALLOC_') for name in os.environ):
    return  # The user has set the allocator.
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  trim_threshold, mmap_threshold = -1, -3  # From malloc.h.
  mallopt(trim_threshold, 2**31 - 1)
  mallopt(mmap_threshold, 2**30)


def cpu_devices(
    batch_sizes: tuple[int, ...], fsdp: int = 1, count: int = 1
) -> int:
  """Number of virtual devices that this process uses on the CPU.

  Data parallelism over several devices uses multiple cores better than the
  intra-op parallelism of one: on 2 cores a step of the demo with two devices
  takes 0.8 times as long. With few samples each they lose by exchanging the
  gradients (benchmarks/RESULTS.md).

  Args:
    batch_sizes: batch sizes that must be divisible by the number of devices.
    fsdp: `config.mesh.fsdp`; the number of devices of all processes is a
      multiple of it.
    count: number of processes of the run.

  Returns:
    The largest valid number up to the usable CPUs and 8 that leaves each device
    4 samples or more, at least `fsdp` divided by the number of processes.
  """
  batch = max(math.gcd(*batch_sizes) // count, 1)
  least = max(fsdp // math.gcd(fsdp, count), 1)
  samples = min(batch_sizes) // count
  most = min(usable_cpus(), 8, samples // _LEAST_SAMPLES)
  valid = [
      n for n in range(least, most + 1) if batch % n == 0 and n % least == 0
  ]
  return max(valid, default=least)


def usable_cpus() -> int:
  """Number of CPUs that this process may use, by affinity and cgroup quota.

  Returns:
    1 or more; fractions of a CPU are rounded down.
  """
  if hasattr(os, 'sched_getaffinity'):
    # Respects taskset, Slurm and cpusets.
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  quotas = [q for q in map(_quota, _cgroup_folders()) if q]
  return max(int(min([count, *quotas])), 1)


def _cgroup_folders() -> list[pathlib.Path]:
  """Cgroup folders that may set a CPU quota for this process."""
  folders = [_CGROUPS, _CGROUPS / 'cpu']
  try:
    lines = _OWN_CGROUPS.read_text().splitlines()
  except OSError:  # Not Linux.
    return folders
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controllers and 'cpu' not in controllers.split(','):
      continue
    folder = _CGROUPS / ('cpu' if controllers else '')
    for part in pathlib.PurePosixPath(path).parts[1:]:
      folder = folder / part
      folders.append(folder)
  return folders


def _quota(folder: pathlib.Path) -> float | None:
  """CPU quota of a cgroup (v2 or v1), in CPUs; None without a limit."""
  try:
    if (folder / 'cpu.max').exists():
      quota, period = (folder / 'cpu.max').read_text().split()
    else:
      quota = (folder / 'cpu.cfs_quota_us').read_text().strip()
      period = (folder / 'cpu.cfs_period_us').read_text().strip()
    if quota in ('max', '-1'):
      return None
    return int(quota) / int(period)
  except (OSError, ValueError, ZeroDivisionError) as error:
    if not isinstance(error, FileNotFoundError):
      logging.debug('No CPU quota from %s: %s', folder, error)
    return None
