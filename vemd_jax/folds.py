"""Averages the results of several runs, as DFEW's protocol does for five folds.

  python -m vemd_jax.folds WORKDIR/fold_*

reads `results.json` of each run, prints a table and writes `folds.json` to the
parent folder of the first run.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath

# Metric -> its name in DFEW's protocol; these come first in the table.
_NAMES = {'accuracy': 'WAR', 'uar': 'UAR'}


def mean(
    workdirs: Sequence[epath.PathLike],
) -> dict[str, dict[str, dict[str, float]]]:
  """Averages the results of runs.

  Args:
    workdirs: workdirs of the runs.

  Returns:
    Split -> metric -> `mean`, `std` (over the runs, with n - 1), `min` and
    `max`, for the metrics that all runs have.

  Raises:
    FileNotFoundError: if a run has no results yet.
    ValueError: if the runs have no split in common.
  """
  results = []
  for workdir in workdirs:
    path = epath.Path(workdir) / 'results.json'
    if not path.exists():
      raise FileNotFoundError(
          f'{path} does not exist: this run has not finished'
      )
    results.append(json.loads(path.read_text()))
  table = {}
  for split in ('val', 'test'):
    if not all(split in result for result in results):
      continue
    parts = [result[split] for result in results]
    table[split] = {
        key: _statistics([part[key] for part in parts])
        for key, value in parts[0].items()
        if isinstance(value, float) and all(key in part for part in parts)
    }
  if not table:
    raise ValueError(f'{", ".join(map(str, workdirs))}: no split in common')
  return table


def _statistics(values: list[float]) -> dict[str, float]:
  return {
      'mean': float(np.mean(values)),
      'std': float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
      'min': min(values),
      'max': max(values),
  }


def text(table: dict, count: int) -> str:
  """Formats the table as text.

  Args:
    table: averages, from `mean`.
    count: number of runs.

  Returns:
    One line per metric.
  """
  lines = []
  for split, metrics in table.items():
    lines.append(f'{split}, mean of {count} runs (standard deviation)')
    for key in sorted(metrics, key=lambda k: (k not in _NAMES, k)):
      values = metrics[key]
      name = f'{_NAMES[key]} ({key})' if key in _NAMES else key
      lines.append(f'  {name:24} {values["mean"]:.4f} ({values["std"]:.4f})')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.folds',
      description='Averages the results of several runs.',
  )
  parser.add_argument('workdirs', nargs='+', help='workdirs, one per fold')
  workdirs = parser.parse_args(argv).workdirs
  try:
    table = mean(workdirs)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(text(table, len(workdirs)))
  path = epath.Path(workdirs[0]).absolute().parent / 'folds.json'
  path.write_text(
      json.dumps({'runs': [str(w) for w in workdirs], **table}, indent=2) + '\n'
  )
  print(f'written to {path}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
