"""Results of attacks, with bootstrap intervals, and their JSON file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vemd_jax import workdir as workdir_lib

NAME = 'audit/audit.json'
# The baseline: the pictures that the model reads.
PIXELS = 'pixels'
# Fewer units, such as subjects, give no usable interval.
FEWEST = 10
_RESAMPLES = 500


class Measure(NamedTuple):
  """The result of one attack on one tap.

  Attributes:
    attack: utility, identity, attribute, membership or inversion.
    target: what is inferred, such as the name of an attribute.
    tap: name of the tap, or `pixels`.
    metric: name of the metric.
    value: its value.
    low: lower end of the 95 % interval.
    high: its upper end.
    chance: value without any information.
    count: number of units that were resampled.
    unit: what they are, such as subjects.
    method: the attacker's method.
  """

  attack: str
  target: str
  tap: str
  metric: str
  value: float
  low: float
  high: float
  chance: float
  count: int
  unit: str
  method: str


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    units: Sequence[Any],
    unit: str,
) -> tuple[float, float, float]:
  """A statistic and its percentile bootstrap interval (95 %).

  Args:
    statistic: weights [n] -> value; NaN where it is undefined.
    units: [n] the unit that each sample belongs to, which are resampled as a
      whole.
    unit: name of the units, plural, for the error message.

  Returns:
    (value, low, high).

  Raises:
    ValueError: if there are fewer than `FEWEST` units.
  """
  _, index = np.unique(np.asarray(units), return_inverse=True)
  count = int(index.max()) + 1 if len(index) else 0
  if count < FEWEST:
    raise ValueError(
        f'{count} {unit} are too few for an interval, expected {FEWEST} or '
        'more'
    )
  rng = np.random.default_rng(0)
  drawn = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES)
  values = [statistic(row[index].astype(np.float64)) for row in drawn]
  low, high = np.nanpercentile(values, [2.5, 97.5])
  whole = statistic(np.ones(len(index)))
  return float(whole), float(low), float(high)


class Roc:
  """A receiver operating characteristic under changing sample weights."""

  def __init__(self, scores: np.ndarray, positive: np.ndarray):
    """Sorts the scores.

    Args:
      scores: [n], higher for positives.
      positive: [n] bool.
    """
    scores = np.asarray(scores, np.float64)
    self._order = np.argsort(-scores, kind='stable')
    ordered = scores[self._order]
    # A threshold cannot separate equal scores.
    self._last = np.append(ordered[1:] != ordered[:-1], True)
    self._positive = np.asarray(positive, bool)[self._order]

  def curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates of false and true positives over all thresholds, from (0, 0)."""
    weights = weights[self._order]
    true = np.cumsum(weights * self._positive)[self._last]
    false = np.cumsum(weights * ~self._positive)[self._last]
    with np.errstate(invalid='ignore', divide='ignore'):
      return (
          np.concatenate([[0.0], false / false[-1]]),
          np.concatenate([[0.0], true / true[-1]]),
      )

  def area(self, weights: np.ndarray) -> float:
    """Area under the curve."""
    return float(np.trapezoid(*self.curve(weights)[::-1]))

  def equal_error(self, weights: np.ndarray) -> float:
    """The rate at which false positives and false negatives are equal."""
    false, true = self.curve(weights)
    gap = false - (1 - true)  # Rises from -1 to 1.
    if not np.isfinite(gap).all():
      return float('nan')
    i = int(np.argmax(gap >= 0))
    if gap[i] == 0 or i == 0:
      return float(false[i])
    share = -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))

  def true_at(self, weights: np.ndarray, rate: float) -> float:
    """Largest rate of true positives with at most `rate` false positives."""
    false, true = self.curve(weights)
    return float(true[false <= rate].max(initial=0.0))


def write(
    workdir: epath.PathLike,
    facts: Mapping[str, Any],
    measures: Sequence[Measure],
    curves: Mapping[str, Any],
) -> epath.Path:
  """Writes audit.json.

  Args:
    workdir: workdir of the run.
    facts: run, data, samples, notes.
    measures: the results.
    curves: tap -> (false positive rates, true positive rates) of verification.

  Returns:
    The path.
  """
  path = epath.Path(workdir) / NAME
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {
      **facts,
      'measures': [
          {k: _plain(v) for k, v in m._asdict().items()} for m in measures
      ],
      'curves': curves,
  }
  workdir_lib.write(path, json.dumps(content, indent=1) + '\n')
  return path


def _plain(value: Any) -> Any:
  if isinstance(value, float):
    return round(value, 6) if np.isfinite(value) else None
  return value


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """Reads audit.json; `measures` are `Measure`.

  Args:
    workdir: workdir of a run.

  Returns:
    Its content; {} if the run was not audited.

  Raises:
    ValueError: if the file is damaged.
  """
  path = epath.Path(workdir) / NAME
  found = workdir_lib.read_json(path)
  if not found:
    return {}
  try:
    measures = [
        Measure(**{k: math.nan if v is None else v for k, v in m.items()})
        for m in found['measures']
    ]
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path} is damaged or from another version: {error}'
    ) from error
  return {**found, 'measures': measures}
