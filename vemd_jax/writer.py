"""Logging of a run: metrics.jsonl, curves, loggers, progress, versions.

Only process 0 writes; on other processes all calls are no-ops. Files in the
workdir:

  versions.json   libraries and devices     metrics.jsonl  one object per line
  recipe.json     recipe and changes to it  curves.png     curve of each metric
  tensorboard/    scalars and pictures      confusion.png  latest matrix
                                            pictures/      latest ones as PNG
"""

import importlib.metadata
import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath

import vemd_jax
from vemd_jax import loggers as loggers_lib
from vemd_jax import plots, progress
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
      loggers: Sequence[str] = ('tensorboard',),
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
      loggers: names of loggers, see `loggers.open_all`.

    Raises:
      ValueError: if a logger is unknown or its package is missing.
    """
    self.workdir = epath.Path(workdir)
    self._line = progress.Line()
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
    self._loggers = loggers_lib.open_all(loggers, self.workdir, resume_step)

  def setup(
      self,
      config: Mapping[str, Any],
      versions: Mapping[str, Any],
      recipe: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes versions.json and recipe.json; sends the config to the loggers.

    Args:
      config: the whole config, as plain JSON.
      versions: see `versions`.
      recipe: `recipe` as on the command line, and `changes`, config key ->
        value; None for a config that was created in Python.
    """
    if not self._active:
      return
    for name, value in ('versions', versions), ('recipe', recipe or {}):
      text = json.dumps(dict(value), indent=2)
      workdir_lib.write(self.workdir / f'{name}.json', text + '\n')
    for logger in self._loggers:
      logger.start(config, versions)

  def scalars(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
    """Writes the metrics of one split at one step.

    Args:
      step: number of training steps done.
      split: train, val or test.
      metrics: name -> number, array, or a mapping of those. All are written to
        metrics.jsonl, non-finite floats as null; numbers are also sent to the
        loggers as `<split>/<name>`, nested names for those in a mapping.

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
    values = dict(_numbers(split, metrics))
    for logger in self._loggers:
      logger.scalars(step, values)

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Sends pictures to the loggers; writes the latest of each name as PNG.

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
      for logger in self._loggers:
        logger.picture(step, name, picture)
      save_picture(folder / (name.replace('/', '_') + '.png'), picture)

  def confusion(
      self,
      step: int,
      split: str,
      matrices: Mapping[str, tuple[np.ndarray, Sequence[str]]],
      to_file: bool,
  ) -> None:
    """Draws the confusion matrices of an evaluation and sends them to loggers.

    Args:
      step: number of training steps done.
      split: split that was evaluated.
      matrices: dataset -> (counts [C, C], names of the C classes).
      to_file: whether to write confusion.png, too.
    """
    if not self._active or not matrices:
      return
    picture = plots.confusion_picture({
        f'{name}, {split} at step {step}': matrix
        for name, matrix in matrices.items()
    })
    for logger in self._loggers:
      logger.picture(step, f'{split}/confusion', picture)
    if to_file:
      save_picture(self.workdir / 'confusion.png', picture)

  def curves(self, best: int | None = None) -> None:
    """Draws the metrics of metrics.jsonl into curves.png.

    Args:
      best: step of the best checkpoint; None does not mark one.
    """
    if self._active:
      picture = plots.curves_picture(read_lines(self._metrics), best)
      save_picture(self.workdir / 'curves.png', picture)

  def progress(
      self,
      step: int,
      total: int,
      metrics: Mapping[str, float],
      rates: Mapping[str, float],
  ) -> None:
    """Shows a progress line; see `progress.progress_line`."""
    if self._active:
      self._line.show(progress.progress_line(step, total, metrics, rates))

  def message(self, text: str) -> None:
    """Prints text to standard output, unbuffered."""
    if self._active:
      self._line.message(text)

  def places(self) -> str:
    """The paths of the results, to print at the end of a run."""
    places = {
        'metrics': 'metrics.jsonl',
        'pictures': 'pictures',
        'TensorBoard': 'tensorboard',
        'report': 'report.html',
    }
    return '\n'.join(
        f'{what:11}  {self.workdir / name}'
        for what, name in places.items()
        if (self.workdir / name).exists()
    )

  def close(self) -> None:
    self._line.close()
    if self._active:
      for logger in self._loggers:
        logger.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *exc) -> None:
    self.close()


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


def memory() -> dict[str, float]:
  """Peak memory usage so far, in bytes.

  Returns:
    host_memory of this process, and device_memory of its first device if the
    backend reports it (the CPU does not).
  """
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # In KiB on Linux, in bytes on macOS.
  result = {'host_memory': peak * (1 if sys.platform == 'darwin' else 1024)}
  on_device = (jax.local_devices()[0].memory_stats() or {}).get(
      'peak_bytes_in_use'
  )
  if on_device:
    result['device_memory'] = on_device
  return result


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




def _keep_lines(path: epath.Path, wanted: Callable[[dict], bool]) -> None:
  """Rewrites metrics.jsonl with the complete lines that `wanted` accepts."""
  if not path.exists():
    return
  kept = [json.dumps(x) + '\n' for x in read_lines(path) if wanted(x)]
  workdir_lib.write(path, ''.join(kept))


def read_lines(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; skips a line truncated when a run was killed."""
  path = epath.Path(path)
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except ValueError:
      continue
  return lines


def save_picture(path: epath.Path, picture: np.ndarray) -> None:
  """Writes a picture, uint8 [H, W, 3], as PNG."""
  png = cv2.imencode('.png', picture[..., ::-1])[1].tobytes()
  workdir_lib.write(path, png)


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
