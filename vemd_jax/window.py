"""Metrics accumulated since the last progress line."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vemd_jax import evaluate, guard
from vemd_jax.metrics import Metrics


class Window:
  """Sums of metrics, and the scalars of each step until they are checked."""

  def __init__(
      self,
      config: ConfigDict,
      datasets: dict[str, ConfigDict],
      classes: dict[str, tuple[str, ...]],
      stored: dict[str, Any],
      sample_names: Callable[[int], list[str]],
  ):
    """Starts an empty window, or restores one that a checkpoint has stored.

    Args:
      config: the whole config.
      datasets: data settings by dataset name.
      classes: class names by dataset name.
      stored: what `plain` returned, and `ahead`, see `guard.react`.
      sample_names: number of a batch -> names of its samples.
    """
    self._faults, self._batch_size = config.faults, config.batch_size
    self._datasets, self._classes = datasets, classes
    self._ahead, self._names = stored['ahead'], sample_names
    self._metrics = {
        name: [Metrics.from_plain(sums)]
        for name, sums in stored.get('window', {}).items()
    }
    self._steps, self._skipped = [], stored.get('skipped_updates', 0)
    self._unreadable, self._read = stored.get('unreadable', (0, 0))

  def plain(self) -> dict[str, Any]:
    """The window as JSON, so that a resumed run writes the same next line."""
    return {
        'window': {n: m.plain() for n, m in self._sums().items()},
        'skipped_updates': self._skipped,
        'unreadable': (self._unreadable, self._read),
    }

  def add(self, step: int, name: str, metrics, scalars) -> None:
    self._metrics.setdefault(name, []).append(metrics)
    self._steps.append((step, name, scalars))

  def check(self) -> dict[str, Any]:
    """Handles faults of the steps since the last check, see `guard.react`.

    Returns:
      The scalars of the last step.

    Raises:
      ValueError: if too many samples could not be read.
    """
    steps, self._steps = jax.device_get(self._steps), []
    guard.react(self._faults, steps, self._ahead, self._names)
    self._check_readable(steps)
    self._skipped += sum(int(s.get('in_row', 0) > 0) for _, _, s in steps)
    return steps[-1][2] if steps else {}

  def _sums(self) -> dict[str, Metrics]:
    # Summed on the host, to avoid dispatching many tiny device operations, and
    # from left to right, so that a restored partial sum gives the same bits.
    for name, metrics in self._metrics.items():
      merged = functools.reduce(
          lambda a, b: a.merge(b), jax.device_get(metrics)
      )
      self._metrics[name] = [merged]
    return {name: metrics[0] for name, metrics in self._metrics.items()}

  def compute(self) -> dict[str, Any]:
    """Computes the metrics of the window and resets it."""
    last = self.check()
    result = evaluate.join({
        name: sums.compute(self._classes[name])
        for name, sums in self._sums().items()
    })
    result.update({
        key: float(value)
        for key, value in last.items()
        if key not in ('loss', *guard.FLAGS)
    })
    if 'in_row' in last:
      result['skipped_updates'] = self._skipped
    self._metrics, self._skipped = {}, 0
    return result

  def _check_readable(self, steps: list) -> None:
    """Counts unreadable samples; raises if their share is too large."""
    for _, name, scalars in steps:
      self._unreadable += int(scalars['unreadable'])
      self._read += self._batch_size
      # The share of the first few samples is too noisy to act on.
      limit = self._datasets[name].max_unreadable
      if self._unreadable > limit * max(self._read, 100):
        raise ValueError(
            f'{self._unreadable} of {self._read} samples of {name} could not '
            f'be read, more than config.data.max_unreadable = {limit} allows; '
            'the log names them'
        )
