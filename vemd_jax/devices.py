"""The devices of a process: clusters, and how a CPU is split into devices.

Everything here has to be called before JAX looks at its devices for the first
time.
"""

import math
import os
import pathlib
import re

import jax
from absl import logging

_CGROUPS = pathlib.Path('/sys/fs/cgroup')
_OWN_CGROUPS = pathlib.Path('/proc/self/cgroup')


def set_up(
    batch_sizes: tuple[int, ...], fsdp: int, distributed: bool | None
) -> None:
  """Joins the cluster, if there is one, and splits the CPU into devices.

  Args:
    batch_sizes: that the devices have to divide.
    fsdp: of `config.mesh`; at least as many CPU devices are made.
    distributed: starts `jax.distributed`; None wherever a cluster is found.
  """
  if distributed or (distributed is None and on_cluster()):
    jax.distributed.initialize()
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
    count = cpu_devices(batch_sizes, fsdp)
    jax.config.update('jax_num_cpu_devices', count)
  if count > 1:
    # A device's thread waits in a collective for the other devices' threads.
    # XLA's pool has as many threads as there are cores: where another program
    # holds one of them, the collective waits for a thread that never comes, and
    # after 40 s the process is aborted. Threads beyond the cores prevent that,
    # and cost nothing that could be measured.
    os.environ.setdefault('PJRT_NPROC', str(max(usable_cpus(), 4 * count)))


def cpu_devices(batch_sizes: tuple[int, ...], fsdp: int = 1) -> int:
  """Devices that a CPU is split into.

  One program keeps several cores less busy than several devices do, with a part
  of the batch each: on 2 cores two devices take 0.8 times as long for a step of
  the demo.

  Args:
    batch_sizes: that the devices have to divide.
    fsdp: of `config.mesh`; the number is a multiple of it.

  Returns:
    As many as the process may use CPUs, at most 8, that divide the batches; at
    least `fsdp`.
  """
  batch = math.gcd(*batch_sizes)
  least = max(fsdp, 1)
  most = min(usable_cpus(), 8)
  fits = [
      n for n in range(least, most + 1) if batch % n == 0 and n % least == 0
  ]
  return max(fits, default=least)


def usable_cpus() -> int:
  """CPUs that this process may use: affinity and the quota of its container.

  Returns:
    1 or more; parts of a CPU are rounded down.
  """
  if hasattr(os, 'sched_getaffinity'):
    count = len(os.sched_getaffinity(0))  # taskset, Slurm, cpusets.
  else:
    count = os.cpu_count() or 1
  quotas = [q for q in map(_quota, _cgroup_folders()) if q]
  return max(int(min([count, *quotas])), 1)


def _cgroup_folders() -> list[pathlib.Path]:
  """Folders that may hold a CPU quota of this process or of its parents."""
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
  """CPUs that a cgroup, version 2 or 1, allows; None without a limit."""
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


def on_cluster() -> bool:
  """Whether a launcher that JAX knows has started several processes."""
  several = (
      int(os.environ.get('SLURM_NTASKS', 1)) > 1
      or int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
      or 'JAX_COORDINATOR_ADDRESS' in os.environ
  )
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return several or ',' in hosts
