"""Results of repeated runs, and what they say about differences.

The unit of the statistics is the seed. Where there are folds, it is the fold,
and the seeds of a fold are averaged.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from scipy import stats

_FOLDER = re.compile(r'seed_(\d+)(?:_fold_(\d+))?')
CONFIDENCE = 0.95

# (seed, fold) -> metric -> value.
Runs = dict[tuple[int, int], dict[str, float]]


class Summary(NamedTuple):
  """Statistics of a row.

  Attributes:
    n: units.
    mean: of them; None without any.
    std: between them, with n - 1; None for one.
    low: of the 95 % interval of the mean, by Student's t; None for one.
    high: as `low`.
  """

  n: int
  mean: float | None
  std: float | None
  low: float | None
  high: float | None


class Comparison(NamedTuple):
  """Statistics of the differences between two rows, unit by unit.

  Attributes:
    n: units that both have.
    difference: mean over them; None without any.
    low: of its 95 % interval; None for one unit.
    high: as `low`.
    p: of the paired t-test, two-sided; None for one unit, or where all
      differences are the same.
  """

  n: int
  difference: float | None
  low: float | None
  high: float | None
  p: float | None


def read(workdirs: Iterable[epath.Path], split: str) -> Runs:
  """Reads finished runs that differ only in seed and fold.

  Args:
    workdirs: of the runs; those without results are left out.
    split: val or test.

  Returns:
    The numbers of each run; of several datasets, their means.

  Raises:
    ValueError: if a run would be counted twice, or its seed is not that of its
      folder; names the folder.
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
  return runs


def run_folders(row: epath.Path) -> list[epath.Path]:
  """The folders of a row's runs; other folders are ignored."""
  if not row.is_dir():
    return []
  return sorted(p for p in row.iterdir() if _FOLDER.fullmatch(p.name))


def units(runs: Runs, metric: str) -> dict[int, float]:
  """Values of a metric by unit.

  Args:
    runs: of `read`.
    metric: its key.

  Returns:
    Fold -> mean over seeds where there are folds, else seed -> value.
  """
  folds = any(fold for _, fold in runs)
  values: dict[int, list[float]] = {}
  for (seed, fold), numbers in runs.items():
    if metric in numbers:
      values.setdefault(fold if folds else seed, []).append(numbers[metric])
  return {unit: float(np.mean(several)) for unit, several in values.items()}


def summary(values: Sequence[float]) -> Summary:
  """Mean, standard deviation and interval.

  Args:
    values: one a unit.

  Returns:
    See `Summary`.
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
    row: of `units`.
    other: of `units`, what it is compared with.

  Returns:
    See `Comparison`.
  """
  common = sorted(row.keys() & other.keys())
  differences = [row[unit] - other[unit] for unit in common]
  mean, std, low, high = _interval(differences)
  p = None
  # Equal differences still differ by rounding.
  if std and std > 1e-12 * max(map(abs, differences)):
    a, b = ([values[unit] for unit in common] for values in (row, other))
    p = float(stats.ttest_rel(a, b).pvalue)
  return Comparison(len(common), mean, low, high, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
  """Holm's correction for several tests.

  Args:
    values: p values; None is no test.

  Returns:
    The adjusted ones, in the same order.
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
