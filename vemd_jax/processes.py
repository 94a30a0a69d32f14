"""How the processes of a run find each other: flags, environment, launchers.

A run has several processes on a cluster, usually one per host or one per GPU.
Each must know the address of process 0, the number of processes and its own
index. In order of precedence these come from

1. the flags --coordinator_address, --num_processes and --process_id;
2. the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
   JAX_PROCESS_ID, or instead of the last one JOB_COMPLETION_INDEX, which
   Kubernetes sets in the pods of an indexed Job (launch/gke_jobset.yaml);
3. a launcher that JAX supports: Slurm, Open MPI, a TPU slice.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

# How the runtime's errors start when a connection is lost.
_STATUSES = tuple(
    f'{name}: '
    for name in ('UNKNOWN', 'UNAVAILABLE', 'INTERNAL', 'ABORTED', 'CANCELLED',
                 'DEADLINE_EXCEEDED')
)  # fmt: skip

# Parameters of jax.distributed.initialize, which are also the names of the
# flags, and the environment variables that set them.
VARIABLES = {
    'coordinator_address': ('JAX_COORDINATOR_ADDRESS',),
    'num_processes': ('JAX_NUM_PROCESSES',),
    'process_id': ('JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX'),
}
# Launcher -> variables with the number of processes and the own index.
_LAUNCHERS = {
    'Slurm': ('SLURM_NTASKS', 'SLURM_PROCID'),
    'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
}


class Plan(NamedTuple):
  """How to start `jax.distributed`.

  Attributes:
    arguments: arguments of `jax.distributed.initialize`; JAX takes missing ones
      from the launcher.
    count: number of processes; 1 if only JAX can find out.
  """

  arguments: dict[str, Any]
  count: int


def plan(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    distributed: bool | None = None,
) -> Plan | None:
  """Decides whether and how to start `jax.distributed`.

  Args:
    flags: parameter -> value of the flag, or None; the keys of `VARIABLES`.
    environment: environment variables.
    distributed: the flag --distributed; None decides by the other settings.

  Returns:
    The plan; None for a run of a single process.

  Raises:
    ValueError: if settings are missing, invalid or contradictory; names them.
  """
  given = {k: v for k, v in flags.items() if v not in (None, '')}
  if distributed is False:
    if given:
      raise ValueError(
          f'--nodistributed contradicts --{next(iter(given))}; expected one of '
          'them'
      )
    return None
  source = {key: f'--{key}' for key in given}
  for key, names in VARIABLES.items():
    for name in names:
      # Kubernetes also sets the index where there is only one process.
      alone = name == 'JOB_COMPLETION_INDEX' and not given
      if key not in given and environment.get(name) and not alone:
        given[key], source[key] = environment[name], name
  for key in given.keys() & {'num_processes', 'process_id'}:
    given[key] = _integer(given[key], source[key])
  _check_values(given, source)
  launcher, count = _launcher(given, source, environment)
  if not given and not launcher:
    return Plan({}, 1) if distributed else None
  missing = [key for key in VARIABLES if key not in given]
  if missing and not launcher:
    names = ' and '.join(f'--{k} or {VARIABLES[k][0]}' for k in missing)
    have = ', '.join(source.values())
    raise ValueError(
        f'{have} {"is" if len(source) == 1 else "are"} set, but not {names}; '
        'several processes need all three of --coordinator_address, '
        '--num_processes and --process_id'
    )
  if not launcher:
    # Otherwise JAX would look for a launcher to choose local devices by.
    given['cluster_detection_method'] = 'deactivate'
  return Plan(given, given.get('num_processes', count))


def start(chosen: Plan) -> None:
  """Starts `jax.distributed`, before JAX initializes its backends.

  Args:
    chosen: result of `plan`.

  Raises:
    ConnectionError: if the processes do not find each other.
  """
  try:
    # A process that disappears without notice is detected within a minute.
    jax.distributed.initialize(
        **chosen.arguments,
        heartbeat_timeout_seconds=60,
        shutdown_timeout_seconds=60,
    )
  except (ValueError, RuntimeError) as error:
    known = [f'{k} {v}' for k, v in chosen.arguments.items() if k in VARIABLES]
    raise ConnectionError(
        'the processes of the run did not find each other '
        f'({", ".join(known) or "settings of the launcher"}): {error}'
    ) from error


def another_has_ended(error: BaseException) -> bool:
  """Whether an error means that another process of the run has ended.

  Args:
    error: that a step, a save or an evaluation has raised.

  Returns:
    False with a single process.
  """
  if jax.process_count() == 1:
    return False
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, jax.errors.JaxRuntimeError):
      return 'RESOURCE_EXHAUSTED' not in str(cause)
    # Some functions raise the runtime's errors as ValueError.
    if isinstance(cause, ValueError) and str(cause).startswith(_STATUSES):
      return True
    cause = cause.__cause__
  return False


def _integer(value: Any, name: str) -> int:
  try:
    return int(value)
  except ValueError:
    raise ValueError(f'{name} is {value!r}, expected an integer') from None


def _check_values(given: Mapping[str, Any], source: Mapping[str, str]) -> None:
  address = given.get('coordinator_address')
  if address is not None:
    host, _, port = address.rpartition(':')
    if not host or not port.isdigit():
      raise ValueError(
          f'{source["coordinator_address"]} is {address!r}, expected HOST:PORT '
          'of process 0, such as 10.0.0.1:8476'
      )
  count, index = given.get('num_processes'), given.get('process_id')
  if count is not None and count < 1:
    raise ValueError(
        f'{source["num_processes"]} is {count}, expected 1 or more'
    )
  if index is not None and not 0 <= index < (count or index + 1):
    raise ValueError(
        f'{source["process_id"]} is {index}, expected 0 to '
        + (f'{count - 1}, as {source["num_processes"]} is {count}'
           if count else 'the number of processes less one')
    )  # fmt: skip


def _launcher(
    given: Mapping[str, Any],
    source: Mapping[str, str],
    environment: Mapping[str, str],
) -> tuple[str, int]:
  """The launcher that has started several processes ('' if none), and how many.

  Raises:
    ValueError: if given settings contradict those of the launcher.
  """
  for launcher, names in _LAUNCHERS.items():
    count = _integer(environment.get(names[0], 1), names[0])
    if count == 1:
      continue
    for key, name in zip(('num_processes', 'process_id'), names):
      value = environment.get(name)
      if value and key in given and given[key] != _integer(value, name):
        raise ValueError(
            f'{source[key]} is {given[key]}, but {launcher} has set {name} to '
            f'{value}; expected the same, or only one of them'
        )
    return launcher, count
  hosts = environment.get('TPU_WORKER_HOSTNAMES', '')
  if ',' in hosts or 'MEGASCALE_COORDINATOR_ADDRESS' in environment:
    return 'TPU', len(hosts.split(','))
  return '', 1
