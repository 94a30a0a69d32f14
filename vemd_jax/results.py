"""Statistics over repeated runs: means, intervals and paired tests.

The unit of replication is the seed. With cross-validation it is the fold, and
the seeds of a fold are averaged first.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from scipy import stats

from vemd_jax.audit import measure

_FOLDER = re.compile(r'seed_(\d+)(?:_fold_(\d+))?')
CONFIDENCE = 0.95

# (seed, fold) -> metric -> value.
Runs = dict[tuple[int, int], dict[str, float]]


class Summary(NamedTuple):
  """Statistics of a row.

  Attributes:
    n: number of units (seeds or folds).
    mean: mean over the units; None if n = 0.
    std: sample standard deviation (n - 1 in the denominator); None if n < 2.
    low: lower bound of the 95 % confidence interval of the mean (Student's t);
      None if n < 2.
    high: upper bound of the interval; None if n < 2.
  """

  n: int
  mean: float | None
  std: float | None
  low: float | None
  high: float | None


class Comparison(NamedTuple):
  """Statistics of the paired differences between two rows.

  Attributes:
    n: number of units that both rows have.
    difference: mean difference over these units; None if n = 0.
    low: lower bound of its 95 % confidence interval; None if n < 2.
    high: upper bound of the interval; None if n < 2.
    p: two-sided p value of the paired t-test; None if n < 2 or if all
      differences are equal.
  """

  n: int
  difference: float | None
  low: float | None
  high: float | None
  p: float | None


def read(workdirs: Iterable[epath.Path], split: str) -> Runs:
  """Reads finished runs that differ only in seed and fold.

  Args:
    workdirs: workdirs of the runs; those without results are skipped.
    split: val or test.

  Returns:
    The metrics of each run; for a mixture, their means over the datasets. Of a
    private run also `privacy/epsilon`, and of an audited one the results of
    `vemd audit`, as `audit/TAP/TARGET/METRIC`.

  Raises:
    ValueError: if a run would be counted twice, its seed or fold differs from
      that in the name of its folder, or it has no results for the split; names
      the folder.
  """
  runs: Runs = {}
  for workdir in workdirs:
    if not (workdir / 'results.json').exists():
      continue
    config = json.loads((workdir / 'config.json').read_text())
    unit = config['seed'], config['data']['fold']
    named = _FOLDER.fullmatch(workdir.name)
    if named and unit != (int(named[1]), int(named[2] or 0)):
      raise ValueError(
          f'{workdir} holds the run of seed {unit[0]}, fold {unit[1]}: it '
          'would be counted twice'
      )
    if unit in runs:
      raise ValueError(
          f'{workdir}: a run of seed {unit[0]}, fold {unit[1]} is there '
          'already, and would be counted twice'
      )
    results = json.loads((workdir / 'results.json').read_text())
    if split not in results:
      raise ValueError(
          f'{workdir / "results.json"} has no split {split!r}, expected one of '
          f'{", ".join(k for k in ("val", "test") if k in results)}'
      )
    runs[unit] = {
        key: float(value)
        for key, value in results[split].items()
        if isinstance(value, int | float)
    }
    if 'privacy' in results:
      runs[unit]['privacy/epsilon'] = results['privacy']['epsilon']
    for m in measure.read(workdir).get('measures', ()):
      if math.isfinite(m.value):
        runs[unit][f'audit/{m.tap}/{m.target}/{m.metric}'] = m.value
  return runs


def run_folders(row: epath.Path) -> list[epath.Path]:
  """The folders of a row's runs; other folders are ignored."""
  if not row.is_dir():
    return []
  return sorted(p for p in row.iterdir() if _FOLDER.fullmatch(p.name))


def units(runs: Runs, metric: str) -> dict[int, float]:
  """Values of a metric by unit of replication.

  Args:
    runs: result of `read`.
    metric: key of the metric.

  Returns:
    With folds, fold -> mean over its seeds; otherwise seed -> value.
  """
  folds = any(fold for _, fold in runs)
  values: dict[int, list[float]] = {}
  for (seed, fold), numbers in runs.items():
    if metric in numbers:
      values.setdefault(fold if folds else seed, []).append(numbers[metric])
  return {unit: float(np.mean(several)) for unit, several in values.items()}


def summary(values: Sequence[float]) -> Summary:
  """Mean, standard deviation and confidence interval.

  Args:
    values: one value per unit.

  Returns:
    The statistics.
  """
  mean, std, low, high = _interval(values)
  return Summary(len(values), mean, std, low, high)


def _interval(values: Sequence[float]) -> tuple[float | None, ...]:
  if not len(values):
    return None, None, None, None
  mean = float(np.mean(values))
  if len(values) == 1:
    return mean, None, None, None
  std = float(np.std(values, ddof=1))
  half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
  half = float(half) * std / len(values) ** 0.5
  return mean, std, mean - half, mean + half


def compare(
    row: Mapping[int, float], other: Mapping[int, float]
) -> Comparison:
  """Compares two rows on the units that both have.

  Args:
    row: values by unit, from `units`.
    other: values by unit of the row to compare with.

  Returns:
    The statistics of row - other.
  """
  common = sorted(row.keys() & other.keys())
  differences = [row[unit] - other[unit] for unit in common]
  mean, std, low, high = _interval(differences)
  p = None
  # Differences that are equal in exact arithmetic may differ by rounding.
  if std and std > 1e-12 * max(map(abs, differences)):
    a, b = ([values[unit] for unit in common] for values in (row, other))
    p = float(stats.ttest_rel(a, b).pvalue)
  return Comparison(len(common), mean, low, high, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
  """Corrects p values for multiple testing by Holm's method.

  Args:
    values: p values; None where no test was made.

  Returns:
    The adjusted p values, in the same order.
  """
  order = sorted(
      (i for i, value in enumerate(values) if value is not None),
      key=lambda i: values[i],
  )
  result: list[float | None] = [None] * len(values)
  largest = 0.0
  for rank, i in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
    result[i] = largest
  return result
