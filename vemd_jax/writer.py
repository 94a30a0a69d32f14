"""Logging of a run: progress lines, metrics.jsonl, TensorBoard, versions.

Only process 0 writes; on other processes all calls are no-ops. Files in the
workdir:

  config.json     resolved config           metrics.jsonl  one object per line
  versions.json   libraries and devices     tensorboard/   scalars, pictures
                                            pictures/      latest ones as PNG
"""

import contextlib
import importlib.metadata
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

import vemd_jax
from vemd_jax import workdir as workdir_lib

_LIBRARIES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
)  # fmt: skip


class Writer:
  """Writes scalars, pictures and text of one run to its workdir."""

  def __init__(
      self,
      workdir: epath.PathLike,
      resume_step: int | None = 0,
      evaluated: bool = True,
  ):
    """Opens the files of a run.

    Args:
      workdir: output folder of the run; created if missing.
      resume_step: step that the run resumes from. Metrics of later steps are
        deleted, since they will be written again; 0 deletes all. None keeps
        them, for the evaluation of a finished run, whose metrics then replace
        those of the same step and split.
      evaluated: False if the evaluation at `resume_step` was interrupted and
        will be repeated; its metrics are then deleted, too.
    """
    self.workdir = epath.Path(workdir)
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self.workdir.mkdir(parents=True, exist_ok=True)
    self._metrics = self.workdir / 'metrics.jsonl'
    self._replace = resume_step is None
    if resume_step is None:
      _keep_lines(self._metrics, lambda line: True)
    else:
      last = resume_step if resume_step else -1
      _keep_lines(
          self._metrics,
          lambda line: line['step'] < last + (line['split'] == 'train')
          or (evaluated and line['step'] == last),
      )
    self._board = _Board(self.workdir / 'tensorboard')
    if resume_step is not None:
      # TensorBoard discards events from this step on, also of earlier files.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._board.add(resume_step + 1, session_log=start)

  def setup(
      self, config: Mapping[str, Any], versions: Mapping[str, Any]
  ) -> None:
    """Writes versions.json, and config and versions as TensorBoard text.

    Args:
      config: the whole config, as plain JSON.
      versions: see `versions`.
    """
    if not self._active:
      return
    text = json.dumps(dict(versions), indent=2)
    workdir_lib.write(self.workdir / 'versions.json', text + '\n')
    for tag, value in ('config', config), ('versions', versions):
      indented = json.dumps(value, indent=2).replace('\n', '\n    ')
      self._board.add(0, summary=summary.text(tag, '    ' + indented))
    self._board.flush()

  def scalars(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
    """Writes the metrics of one split at one step.

    Args:
      step: number of training steps done.
      split: train, val or test.
      metrics: name -> number, array, or a mapping of those. All are written to
        metrics.jsonl, non-finite floats as null; numbers are also written to
        TensorBoard as `<split>/<name>`, nested names for those in a mapping.

    Raises:
      ValueError: if a metric is named step or split.
    """
    if not self._active:
      return
    clash = {'step', 'split'} & metrics.keys()
    if clash:
      raise ValueError(f'a metric must not be named {min(clash)!r}')
    metrics = {name: _plain(value) for name, value in metrics.items()}
    key = {'step': int(step), 'split': split}
    line = {**key, **_finite(metrics)}
    if self._replace:
      _keep_lines(self._metrics, lambda line: not key.items() <= line.items())
    workdir_lib.append(self._metrics, json.dumps(line, allow_nan=False) + '\n')
    for tag, value in _numbers(split, metrics):
      self._board.add(step, summary=summary.scalar(tag, value))
    self._board.flush()

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Writes pictures to TensorBoard, and the latest of each name as PNG.

    Args:
      step: number of training steps done.
      pictures: name -> uint8 [H, W, 3]; `val/structure` becomes the file
        pictures/val_structure.png.
    """
    if not self._active:
      return
    folder = self.workdir / 'pictures'
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
      image = summary.image(name, picture, dataformats='HWC')
      self._board.add(step, summary=image)
      png = cv2.imencode('.png', picture[..., ::-1])[1].tobytes()
      workdir_lib.write(folder / (name.replace('/', '_') + '.png'), png)
    self._board.flush()

  def progress(
      self,
      step: int,
      total: int,
      metrics: Mapping[str, float],
      rates: Mapping[str, float],
  ) -> None:
    """Prints a progress line; see `progress_line`."""
    self.message(progress_line(step, total, metrics, rates))

  def message(self, text: str) -> None:
    """Prints text to standard output, unbuffered."""
    if self._active:
      print(text, flush=True)

  def places(self) -> str:
    """The paths of the results, to print at the end of a run."""
    return (
        f'metrics      {self.workdir / "metrics.jsonl"}\n'
        f'pictures     {self.workdir / "pictures"}\n'
        f'TensorBoard  {self.workdir / "tensorboard"}'
    )

  def close(self) -> None:
    if self._active:
      self._board.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *exc) -> None:
    self.close()


class Clock:
  """Measures the training speed and estimates the remaining time.

  Example:
    clock = Clock(total=1000, examples_per_step=32, step=0)
    ...
    with clock.pause():
      evaluate()
    rates = clock.report(step)
  """

  def __init__(
      self,
      total: int,
      examples_per_step: int,
      step: int = 0,
      now: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total: the step at which training ends.
      examples_per_step: global batch size.
      step: number of steps done already.
      now: returns the time in seconds.
    """
    self._total = total
    self._examples = examples_per_step
    self._now = now
    self._step = step
    self._time = now()
    self._paused = 0.0
    self._first: tuple[int, float] | None = None

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Excludes time spent inside (evaluation, checkpoints) from the speed."""
    start = self._now()
    try:
      yield
    finally:
      self._paused += self._now() - start

  def report(self, step: int) -> dict[str, float]:
    """Speed since the last report.

    Args:
      step: number of steps done; larger than at the last report.

    Returns:
      steps_per_second and examples_per_second without pauses; seconds_left
      including pauses at their average rate since the first report, which
      excludes the initial compilation.
    """
    now = self._now()
    seconds = max(now - self._time - self._paused, 1e-9)
    steps_per_second = (step - self._step) / seconds
    left = self._total - step
    if self._first is None:
      self._first = step, now
      seconds_left = left / steps_per_second
    else:
      first_step, first_time = self._first
      seconds_left = left * (now - first_time) / (step - first_step)
    self._step, self._time, self._paused = step, now, 0.0
    return {
        'steps_per_second': steps_per_second,
        'examples_per_second': steps_per_second * self._examples,
        'seconds_left': seconds_left,
    }


def progress_line(
    step: int,
    total: int,
    metrics: Mapping[str, float],
    rates: Mapping[str, float],
) -> str:
  """One progress line with aligned columns that fits a terminal.

  Args:
    step: number of steps done.
    total: number of steps of the whole run.
    metrics: `loss`, and `accuracy` if there are labels.
    rates: rates from `Clock.report`.

  Returns:
    `step  120/1000  loss 0.9314  accuracy 0.552  412 examples/s  3m20s left`
  """
  parts = [f'step {step:{len(str(total))}d}/{total}']
  parts.append(f'loss {float(metrics["loss"]):<8.5g}')
  if 'accuracy' in metrics:
    parts.append(f'accuracy {float(metrics["accuracy"]):.3f}')
  parts.append(f'{rates["examples_per_second"]:6.4g} examples/s')
  parts.append(f'{duration(rates["seconds_left"])} left')
  return '  '.join(parts)


def duration(seconds: float) -> str:
  """Formats seconds, rounded: 42s, 3m20s, 5h07m."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'


def results_table(metrics: Mapping[str, Any], classes: Sequence[str]) -> str:
  """Formats the final results as text.

  Args:
    metrics: numbers by name, printed in their order; `confusion` [C, C]
      with true classes as rows; other arrays and mappings are skipped.
    classes: names of the C classes.

  Returns:
    One line per number, then the confusion matrix with the recall of each
    class ('-' for a class without examples).
  """
  metrics = {name: _plain(value) for name, value in metrics.items()}
  matrix = metrics.pop('confusion', None)
  numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
  if matrix is not None:  # The matrix has a column of recalls.
    for name in classes:
      numbers.pop(f'recall_{name}', None)
  width = max(map(len, numbers), default=0)
  lines = [f'{k:{width}}  {_short(v)}' for k, v in numbers.items()]
  if matrix is None:
    return '\n'.join(lines)

  # Counts may be floating point sums.
  matrix = np.asarray(matrix).round().astype(np.int64)
  if matrix.shape != (len(classes), len(classes)):
    raise ValueError(
        f'confusion has shape {matrix.shape}, expected a row and a '
        f'column for each of the {len(classes)} classes'
    )
  rows = [['true \\ predicted', *classes, 'recall', 'examples']]
  for name, row in zip(classes, matrix):
    index = len(rows) - 1
    recall = f'{row[index] / row.sum():.3f}' if row.sum() else '-'
    rows.append([name, *map(str, row), recall, str(row.sum())])
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines.append('')
  for row in rows:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
    lines.append('  '.join(cells))
  return '\n'.join(lines).strip('\n')


def versions() -> dict[str, Any]:
  """Versions and devices of this process.

  Returns:
    Versions of Python and the libraries, the devices, and the git commit of
    the source tree if there is one (`-dirty` with uncommitted changes).
  """
  devices = jax.devices()
  result = {
      'vemd_jax': vemd_jax.__version__,
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _LIBRARIES},
      'platform': platform.platform(),
      'device_kind': devices[0].device_kind,
      'devices': len(devices),
      'processes': jax.process_count(),
  }
  commit = _git_commit()
  if commit:
    result['git_commit'] = commit
  return result


def _git_commit() -> str:
  root = epath.Path(vemd_jax.__file__).parent.parent
  # An installed package may be inside an unrelated repository.
  if not (root / '.git').exists():
    return ''

  def git(*args: str) -> str:
    return subprocess.run(
        ['git', '-C', str(root), *args],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

  try:
    commit = git('rev-parse', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.CalledProcessError):
    return ''
  return commit + ('-dirty' if changed else '')


class _Board:
  """Writes TensorBoard events synchronously.

  tensorboardX's SummaryWriter has a queue, whose events a killed run loses.
  """

  def __init__(self, folder: epath.Path):
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    # TensorBoard reads the files in the order of their names.
    name = f'events.out.tfevents.{now // 10**9}.{platform.node()}.{now}'
    self._records = record_writer.RecordWriter(str(folder / name))
    self.add(0, file_version='brain.Event:2')
    self.flush()

  def add(self, step: int, **what) -> None:
    event = event_pb2.Event(step=int(step), wall_time=time.time(), **what)
    self._records.write(event.SerializeToString())

  def flush(self) -> None:
    self._records.flush()

  def close(self) -> None:
    self._records.flush()
    self._records.close()


def _keep_lines(path: epath.Path, wanted: Callable[[dict], bool]) -> None:
  """Rewrites metrics.jsonl with the complete lines that `wanted` accepts."""
  if not path.exists():
    return
  kept = []
  for text in path.read_text().splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue  # Truncated when a run was killed.
    if wanted(line):
      kept.append(text + '\n')
  workdir_lib.write(path, ''.join(kept))


def _plain(value: Any) -> Any:
  """Converts arrays, NumPy and JAX numbers to Python numbers and lists."""
  if isinstance(value, Mapping):
    return {str(name): _plain(v) for name, v in value.items()}
  if isinstance(value, str | None):
    return value
  return np.asarray(value).tolist()


def _finite(value: Any) -> Any:
  """Replaces NaN and infinity by None, since JSON has neither."""
  if isinstance(value, dict):
    return {name: _finite(v) for name, v in value.items()}
  if isinstance(value, list):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
  if isinstance(value, dict):
    for name, v in value.items():
      yield from _numbers(f'{tag}/{name}', v)
  elif isinstance(value, int | float) and math.isfinite(value):
    yield tag, float(value)


def _short(value: float) -> str:
  count = value > 1 and float(value).is_integer()
  return str(int(value)) if count else f'{value:.4f}'
