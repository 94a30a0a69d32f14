"""Progress of a program: one line updated in place, or plain lines.

In a terminal the progress is one line below all other output; elsewhere it is a
plain line from time to time.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import tqdm
from absl import logging

# Seconds between the lines of a bar that is not in a terminal.
_LOG_INTERVAL = 30.0


class _Bar(tqdm.tqdm):
  # Without tqdm's monitor thread, since worker processes may be forked.
  monitor_interval = 0


class _Lines:
  """A stream in which a bar writes lines instead of updating one in place."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> None:
    text = text.strip()
    if text:
      self._stream.write(text + '\n')

  def flush(self) -> None:
    self._stream.flush()


def bar(
    total: int,
    unit: str,
    what: str = '',
    done: int = 0,
    brief: bool = False,
    shown: bool = True,
) -> tqdm.tqdm:
  """A progress bar on standard error; a context manager.

  Args:
    total: number of items.
    unit: name of an item.
    what: description in front of the bar.
    done: number of items done in an earlier run.
    brief: whether the bar is removed when it ends.
    shown: whether there is a bar at all.

  Returns:
    The bar; `update(n)` advances it by n items.
  """
  terminal = sys.stderr.isatty()
  return _Bar(
      total=total,
      initial=done,
      unit=unit,
      desc=what or None,
      file=sys.stderr if terminal else _Lines(sys.stderr),
      ascii=None if terminal else True,
      mininterval=0.2 if terminal else _LOG_INTERVAL,
      delay=0.5 if terminal else _LOG_INTERVAL if brief else 0,
      leave=not brief,
      disable=not shown or done >= total,
      dynamic_ncols=terminal,
  )


class Line:
  """A line on standard output that is updated in place below other output."""

  def __init__(self):
    self._bar = None

  def show(self, text: str) -> None:
    """Replaces the line; prints a new one if the output is no terminal."""
    if not sys.stdout.isatty():
      print(text, flush=True)
      return
    if self._bar is None:
      self._bar = _Bar(bar_format='{desc}', file=sys.stdout)
      logging.get_absl_handler().addFilter(self._make_room)
    width = shutil.get_terminal_size().columns
    self._bar.set_description_str(text[: width - 1])

  def message(self, text: str) -> None:
    """Prints text above the line, unbuffered."""
    if self._bar is None:
      print(text, flush=True)
    else:
      self._bar.write(text, file=sys.stdout)
      sys.stdout.flush()

  def close(self) -> None:
    """Ends the line; it stays visible."""
    if self._bar is not None:
      logging.get_absl_handler().removeFilter(self._make_room)
      self._bar.close()
      self._bar = None

  def _make_room(self, record) -> bool:
    # Log messages would otherwise be appended to the line.
    del record
    self._bar.clear()
    return True


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
    self._paused = self._waited = 0.0
    self._first: tuple[int, float] | None = None

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Excludes time spent inside (evaluation, checkpoints) from the speed."""
    start = self._now()
    try:
      yield
    finally:
      self._paused += self._now() - start

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts time spent inside as waiting for input."""
    start = self._now()
    try:
      yield
    finally:
      self._waited += self._now() - start

  def report(self, step: int) -> dict[str, float]:
    """Speed since the last report.

    Args:
      step: number of steps done; larger than at the last report.

    Returns:
      steps_per_second and examples_per_second without pauses; input_wait, the
      share of that time spent waiting for batches; seconds since the last
      report, including pauses; seconds_left including pauses at their average
      rate since the first report, which excludes the initial compilation.
    """
    now = self._now()
    passed = now - self._time
    seconds = max(passed - self._paused, 1e-9)
    waited = self._waited / seconds
    steps_per_second = (step - self._step) / seconds
    left = self._total - step
    if self._first is None:
      self._first = step, now
      seconds_left = left / steps_per_second
    else:
      first_step, first_time = self._first
      seconds_left = left * (now - first_time) / (step - first_step)
    self._step, self._time = step, now
    self._paused = self._waited = 0.0
    return {
        'steps_per_second': steps_per_second,
        'examples_per_second': steps_per_second * self._examples,
        'input_wait': waited,
        'seconds': passed,
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
    metrics: `loss`, `accuracy` if there are labels, and `epsilon` in private
      training.
    rates: rates from `Clock.report`.

  Returns:
    `step  12/100  loss 0.9314  accuracy 0.552  412 ex/s  wait  2%  3m20s left`,
    where `wait` is the share of the time spent waiting for input
  """
  parts = [f'step {step:{len(str(total))}d}/{total}']
  parts.append(f'loss {float(metrics["loss"]):<8.5g}')
  if 'accuracy' in metrics:
    parts.append(f'accuracy {float(metrics["accuracy"]):.3f}')
  if 'epsilon' in metrics:
    parts.append(f'epsilon {metrics["epsilon"]:.3g}')
  parts.append(f'{rates["examples_per_second"]:5.4g} ex/s')
  parts.append(f'wait {100 * rates["input_wait"]:2.0f}%')
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
