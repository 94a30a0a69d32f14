r"""Runs a sweep: every row of a table, for several seeds.

  python -m vemd_jax.sweep configs/claim.py --seeds=5 --workdir=SWEEP
  python -m vemd_jax.table SWEEP

Each run is a process of its own in SWEEP/GROUP/ROW/seed_K. A run that fails is
reported, and the others continue. The same command resumes an interrupted sweep
and tries failed runs again.

  --paths NAME=PATH    data and weights; rows whose path is missing are left out
  --jobs=N             N runs at a time, which share the CPU cores
  --devices=0,1,2,3    one run at a time on each GPU or TPU chip
  --only='single*/*'   only these rows, GROUP/NAME
  --list               shows the runs and their numbers, executes nothing
  --index=I            only run I, for a job array (launch/sweep.sh)

Several such commands may work on the same SWEEP at the same time: each run is
locked while it is executed. Options after the file's name are passed to every
recipe (configs/claim.py:tiny), and so are arguments --config.KEY=VALUE.
"""

import argparse
import contextlib
import fcntl
import fnmatch
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from vemd_jax import stopping, sweep_plan
from vemd_jax import workdir as workdir_lib
from vemd_jax.sweep_plan import Planned

# The program of a run, and the file that it writes on completion.
PROGRAM = ('-m', 'vemd_jax.main')
RESULTS = 'results.json'


class Place(NamedTuple):
  """Resources for one run at a time.

  Attributes:
    environment: environment variables that make one device visible.
    cores: CPU cores that the run may use; None for all.
  """

  environment: dict[str, str]
  cores: set[int] | None


class Process(NamedTuple):
  """A run that is being executed."""

  run: Planned
  place: Place
  process: subprocess.Popen
  begun: float


class Workers:
  """Executes runs, several at a time."""

  def __init__(
      self,
      commands: sweep_plan.Commands,
      workdir: pathlib.Path,
      places: Sequence[Place],
  ):
    """Initializes the workers.

    Args:
      commands: commands and dependencies of the runs.
      workdir: workdir of the sweep.
      places: resources; each executes one run at a time.
    """
    self._commands, self._workdir = commands, workdir
    self._places = list(places)
    self._working: list[Process] = []
    self._waiting: list[Planned] = []
    self._given: set[Planned] = set()
    self._stopped = False
    self.done: set[Planned] = set()
    self.failed: dict[Planned, str] = {}
    self.elsewhere: set[Planned] = set()

  def work(self, runs: Sequence[Planned]) -> bool:
    """Executes runs until each is done, failed or locked by another process.

    Args:
      runs: runs to execute; the runs that they depend on are executed first.

    Returns:
      False if the sweep was interrupted.
    """
    self._waiting, self._given = list(runs), set(runs)
    before = {
        s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
      while (self._waiting or self._working) and not self._stopped:
        started = self._start_what_can()
        ended = self._collect()
        if not started and not ended:
          time.sleep(0.1)
    finally:
      for one in self._working:  # Each saves a checkpoint and exits.
        one.process.terminate()
      for one in self._working:
        one.process.wait()
      for number, handler in before.items():
        signal.signal(number, handler)
    return not self._stopped

  def _stop(self, *_) -> None:
    self._stopped = True

  def _start_what_can(self) -> bool:
    for run in list(self._waiting):
      if len(self._working) == len(self._places):
        return False
      if self._is_done(run):
        self._waiting.remove(run)
        self.done.add(run)
        continue
      needs = [n for n in self._commands.needs(run) if not self._is_done(n)]
      lost = [need for need in needs if need in self.failed]
      if lost:
        self._fail(run, f'needs {lost[0]}, which failed')
        continue
      if needs:
        # If another process executes a dependency, the run waits for it.
        for need in needs:
          if need not in self._waiting and need not in self._at_work():
            self._waiting.insert(0, need)
        continue
      if self._start(run):
        return True
      if run in self._given:
        self._waiting.remove(run)
        self.elsewhere.add(run)
    return False

  def _at_work(self) -> set[Planned]:
    return {one.run for one in self._working}

  def _is_done(self, run: Planned) -> bool:
    return (self._workdir / run.folder / RESULTS).exists()

  def _start(self, run: Planned) -> bool:
    """Starts a run; False if another process holds its lock."""
    folder = self._workdir / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    taken = {id(one.place) for one in self._working}
    place = next(p for p in self._places if id(p) not in taken)
    with (
        # Distinct from the workdir's lock, which the run itself acquires.
        open(folder / 'sweep.lock', 'w') as lock,
        open(folder / 'log.txt', 'a') as log,
    ):
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        return False
      if self._is_done(run):  # Another process has completed it meanwhile.
        return True
      arguments = self._commands.arguments(run)
      text = json.dumps(arguments, indent=2) + '\n'
      workdir_lib.write(folder / 'arguments.json', text)
      (folder / 'failed.txt').unlink(missing_ok=True)
      process = subprocess.Popen(
          [
              sys.executable, *PROGRAM, f'--workdir={folder}',
              '--distributed=false', *arguments,
          ],
          stdin=subprocess.DEVNULL, stdout=log, stderr=log,
          env={**os.environ, **place.environment},
          # In a new session Ctrl-C reaches only this process, which then
          # lets the runs save a checkpoint.
          start_new_session=True,
          # The run inherits the lock and keeps it if this process dies.
          pass_fds=(lock.fileno(),),
      )  # fmt: skip
    if place.cores:
      # Set immediately, before Python and its libraries count the cores.
      with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(process.pid, place.cores)
    self._waiting.remove(run)
    self._working.append(Process(run, place, process, time.monotonic()))
    self._say(run, 'started')
    return True

  def _collect(self) -> bool:
    """Collects finished runs and reports failures."""
    ended = [one for one in self._working if one.process.poll() is not None]
    for one in ended:
      self._working.remove(one)
      if one.process.returncode == 0 and self._is_done(one.run):
        self.done.add(one.run)
        self._say(one.run, f'done in {time.monotonic() - one.begun:.0f} s')
      elif not self._stopped:
        folder = self._workdir / one.run.folder
        self._fail(one.run, reason(folder, one.process.returncode))
    return bool(ended)

  def _fail(self, run: Planned, why: str) -> None:
    if run in self._waiting:
      self._waiting.remove(run)
    self.failed[run] = why
    (self._workdir / run.folder).mkdir(parents=True, exist_ok=True)
    (self._workdir / run.folder / 'failed.txt').write_text(why + '\n')
    self._say(run, f'failed: {why}')

  def _say(self, run: Planned, what: str) -> None:
    print(f'[{len(self.done)} of {len(self._given)} done] {run}: {what}',
          flush=True)  # fmt: skip


def check_same(folder: pathlib.Path, arguments: list[str]) -> None:
  """Checks that a run resumes with the arguments that it was started with.

  Args:
    folder: workdir of the run.
    arguments: arguments of the run.

  Raises:
    ValueError: if they differ; names the differences.
  """
  path = folder / 'arguments.json'
  if not path.exists():
    return
  differ = sorted(set(json.loads(path.read_text())) ^ set(arguments))
  if differ:
    raise ValueError(
        f'{folder} was started with other arguments ({", ".join(differ)}); '
        'expected another --workdir, or that folder removed'
    )


def reason(folder: pathlib.Path, status: int) -> str:
  """Why a run failed: its error message, or the signal that killed it."""
  if status < 0:
    return f'ended by signal {-status} ({folder / "log.txt"})'
  lines = (folder / 'log.txt').read_text(errors='replace').splitlines()
  lines = [line for line in lines if line.strip()] or ['no output']
  errors = [line for line in lines if line.startswith('error: ')]
  return f'{(errors or lines)[-1]} ({folder / "log.txt"})'


def make_places(jobs: int, devices: Sequence[str]) -> list[Place]:
  """Divides the machine among concurrent runs.

  Args:
    jobs: number of concurrent runs, which share the CPU cores.
    devices: indices of accelerators, one per place; replaces `jobs`.

  Returns:
    The places, one per concurrent run.
  """
  if devices:
    return [
        Place({
            'CUDA_VISIBLE_DEVICES': device,
            'ROCR_VISIBLE_DEVICES': device,
            # The chip is used as a slice of one chip.
            'TPU_VISIBLE_CHIPS': device,
            'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
            'TPU_PROCESS_BOUNDS': '1,1,1',
        }, None)
        for device in devices
    ]  # fmt: skip
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [Place({}, None) for _ in range(jobs)]
  cores = sorted(os.sched_getaffinity(0))
  return [Place({}, set(cores[i::jobs]) or None) for i in range(jobs)]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.sweep',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
  )
  add = parser.add_argument
  add('sweep', help='configs/claim.py, or with options configs/claim.py:tiny')
  add('--workdir', required=True, help='folder for all runs and the table')
  add('--seeds', type=int, help='how many, 0 to N - 1; default the file says')
  add('--paths', nargs='+', action='extend', default=[], metavar='NAME=PATH',
      help='data and weights that rows ask for')  # fmt: skip
  add('--only', default='*', help='rows, GROUP/NAME with * and ?')
  add('--jobs', type=int, default=1, help='runs at a time')
  add('--devices', default='', help='numbers of accelerators, 0,1,2')
  add('--index', type=int, help='only the run of this number, see --list')
  add('--list', action='store_true', help='show the runs, do nothing')
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  arguments, more = _parser().parse_known_args(argv)
  try:
    return _run(arguments, more)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 1


def _run(arguments: argparse.Namespace, more: list[str]) -> int:
  for argument in more:
    if not argument.startswith('--config.') or '=' not in argument:
      raise ValueError(
          f'{argument}: expected an argument of --help, or --config.KEY=VALUE'
      )
  sweep, base, options = sweep_plan.load(arguments.sweep)
  paths = {}
  for item in arguments.paths:
    name, equals, path = item.partition('=')
    if not equals:
      raise ValueError(f'--paths {item}: expected NAME=PATH')
    paths[name] = path if '://' in path else os.path.abspath(path)
  seeds = sweep.seeds if arguments.seeds is None else arguments.seeds
  if seeds < 1 or arguments.jobs < 1:
    raise ValueError('--seeds and --jobs: expected 1 or more')
  if '://' in arguments.workdir:
    raise ValueError(
        f'--workdir {arguments.workdir}: expected a folder of a file system, '
        'because runs are locked there'
    )
  workdir = pathlib.Path(arguments.workdir).absolute()
  commands = sweep_plan.Commands(sweep, base, options, workdir, paths, more)
  wanted = [
      run
      for run in sweep_plan.planned(sweep, seeds)
      if fnmatch.fnmatchcase(run.row.key, arguments.only)
  ]
  runs = [run for run in wanted if not commands.missing(run.row)]
  left_out: dict[tuple[str, ...], list[str]] = {}
  for row in dict.fromkeys(run.row for run in wanted):
    if commands.missing(row):
      names = row.group, *sorted(commands.missing(row))
      left_out.setdefault(names, []).append(row.name)
  for (group, *names), rows in left_out.items():
    print(f'{group}: no --paths {", ".join(names)}; left out: '
          f'{", ".join(rows)}')  # fmt: skip
  if not runs:
    raise ValueError('no row is left to run')
  if arguments.list:
    for i, run in enumerate(runs):
      print(f'{i:4d}  {run}: {" ".join(commands.arguments(run))}')
    return 0
  if arguments.index is not None:
    if not 0 <= arguments.index < len(runs):
      raise ValueError(
          f'--index is {arguments.index}, expected 0 to {len(runs) - 1}'
      )
    runs = [runs[arguments.index]]

  # Checked before any run starts: results obtained with other settings must
  # not count as done.
  for run in runs:
    check_same(workdir / run.folder, commands.arguments(run))
  sweep_plan.save(sweep, workdir)
  devices = [d for d in arguments.devices.split(',') if d]
  workers = Workers(commands, workdir, make_places(arguments.jobs, devices))
  finished = workers.work(runs)
  for run, why in workers.failed.items():
    print(f'failed: {run}: {why}', file=sys.stderr)
  done = [run for run in runs if (workdir / run.folder / RESULTS).exists()]
  for run in sorted(workers.elsewhere - set(done), key=str):
    print(f'executed by another process: {run}')
  print(f'{len(done)} of {len(runs)} runs are done; '
        f'table: python -m vemd_jax.table {arguments.workdir}')  # fmt: skip
  if not finished:
    print('interrupted; the same command resumes', file=sys.stderr)
    return stopping.EXIT_CODE
  return 1 if workers.failed else 0


if __name__ == '__main__':
  sys.exit(main())
