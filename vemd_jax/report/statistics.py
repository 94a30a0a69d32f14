"""Statistics of an evaluation: intervals, calibration, paired tests.

Resampling uses a fixed seed, so the intervals are reproducible.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from vemd_jax.plots import Bin

_Z = 1.959964  # Of 95 %.
_RESAMPLES = 2000

Interval = tuple[float, float]


def wilson(right: int, count: int) -> Interval:
  """Wilson score interval (95 %) of a share.

  Args:
    right: number of successes.
    count: number of trials; 0 gives (0, 1).

  Returns:
    (low, high).
  """
  if not count:
    return 0.0, 1.0
  share, z2 = right / count, _Z**2
  centre = (share + z2 / (2 * count)) / (1 + z2 / count)
  half = (
      _Z
      / (1 + z2 / count)
      * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
  )
  return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(confusion: np.ndarray) -> np.ndarray:
  """Accuracy: [..., C, C] counts, true classes as rows -> [...]."""
  right = np.trace(confusion, axis1=-2, axis2=-1)
  return _ratio(right, confusion.sum((-2, -1)))


def f1(confusion: np.ndarray) -> np.ndarray:
  """F1 of each class: [..., C, C] -> [..., C], 0 for an absent class."""
  right = np.diagonal(confusion, axis1=-2, axis2=-1)
  return _ratio(2 * right, confusion.sum(-1) + confusion.sum(-2))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
  """Mean F1 of the classes that occur as label or prediction: -> [...]."""
  there = (confusion.sum(-1) + confusion.sum(-2)) > 0
  return _ratio((f1(confusion) * there).sum(-1), there.sum(-1))


def uar(confusion: np.ndarray) -> np.ndarray:
  """Mean recall of the classes that occur as label: [..., C, C] -> [...]."""
  labelled = confusion.sum(-1)
  right = np.diagonal(confusion, axis1=-2, axis2=-1)
  return _ratio(_ratio(right, labelled).sum(-1), (labelled > 0).sum(-1))


def _ratio(a, b) -> np.ndarray:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def bootstrap(
    confusion: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]
) -> Interval:
  """Percentile bootstrap interval (95 %) of a metric.

  Resampling with replacement is equivalent to a multinomial draw of the cells
  of the confusion matrix.

  Args:
    confusion: [C, C] counts.
    metric: [..., C, C] -> [...].

  Returns:
    (low, high).
  """
  drawn = _resample(np.asarray(confusion))
  low, high = np.percentile(metric(drawn), [2.5, 97.5])
  return float(low), float(high)


def _resample(counts: np.ndarray) -> np.ndarray:
  rng = np.random.default_rng(0)
  flat = counts.ravel().astype(np.float64)
  count = round(flat.sum())
  drawn = rng.multinomial(count, flat / flat.sum(), _RESAMPLES)
  return drawn.reshape(_RESAMPLES, *counts.shape)


def paired_bootstrap(
    joint: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]
) -> Interval:
  """Paired bootstrap interval (95 %) of the difference between two runs.

  Args:
    joint: [C, C, C] counts by true class, prediction of the first run, and of
      the second.
    metric: [..., C, C] -> [...].

  Returns:
    (low, high) of second - first.
  """
  drawn = _resample(joint)
  difference = metric(drawn.sum(2)) - metric(drawn.sum(3))
  low, high = np.percentile(difference, [2.5, 97.5])
  return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
  """McNemar's exact test of two runs on the same samples.

  Args:
    only_first: number of samples that only the first run classifies right.
    only_second: number of those that only the second classifies right.

  Returns:
    The two-sided p value.
  """
  count = only_first + only_second
  # Two tails of a binomial distribution with p = 1/2.
  ways, tail = 1, 0
  for k in range(min(only_first, only_second) + 1):
    tail += ways
    ways = ways * (count - k) // (k + 1)
  return min(1.0, 2 * tail / 2**count)


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> tuple[list[Bin], float]:
  """Accuracy by confidence, and the expected calibration error.

  Args:
    confidence: [n] probability of the predicted class.
    right: [n] bool, whether the prediction is right.
    bins: number of bins of equal width over 0..1.

  Returns:
    (bins that are not empty, mean difference between confidence and accuracy
    of a bin, weighted by its count).
  """
  confidence, right = np.asarray(confidence), np.asarray(right, bool)
  number = np.minimum((confidence * bins).astype(int), bins - 1)
  result, error = [], 0.0
  for one in np.unique(number):
    inside = number == one
    count, hits = int(inside.sum()), int(right[inside].sum())
    mean = float(confidence[inside].mean())
    result.append(Bin(mean, hits / count, *wilson(hits, count), count))
    error += count * abs(hits / count - mean)
  return result, error / max(len(confidence), 1)


def log_loss(probabilities: np.ndarray, labels: Sequence[int]) -> float:
  """Mean negative log-probability of the true class, in nats."""
  labels = np.asarray(labels)
  true = np.asarray(probabilities)[np.arange(len(labels)), labels]
  return float(-np.log(np.maximum(true, 1e-7)).mean())
