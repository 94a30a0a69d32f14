"""All rows of a dataset on disk, of every split: a folder or prepared data."""

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from vemd_jax.data import (
  class_folders,
  datasets,
  feature_cache,
  folder,
  prepared,
)


class Rows:
  """Random access to the records of all splits, each file once.

  Attributes:
    files: names of the rows.
    is_prepared: whether `vemd_jax.data.prepare` made the data.
    problems: a line for each file that cannot be used.
    left_out: number of files that cannot be used.
  """

  def __init__(self, data: str | pathlib.Path, outside_root: bool = False):
    """Lists the rows.

    Args:
      data: a folder with `labels.csv`, or the `--out` of
        `vemd_jax.data.prepare`.
      outside_root: whether labels.csv may name files outside the folder.

    Raises:
      FileNotFoundError: it is neither.
      ValueError: it cannot be read, or no split has a usable file.
    """
    data = pathlib.Path(data)
    self.is_prepared = (data / 'prepared.json').exists()
    self.problems: list[str] = []
    self.left_out = 0
    sources = (
        _prepared(data)
        if self.is_prepared
        else self._folder(data, outside_root)
    )
    self.files: list[str] = []
    self._places = []
    known = set()
    for source in sources:
      for i, file in enumerate(source.files):
        if file not in known:
          known.add(file)
          self.files.append(file)
          self._places.append((source, i))

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    source, i = self._places[index]
    return source[i]

  def _folder(self, data: pathlib.Path, outside_root) -> list[folder.Folder]:
    failures = []
    sources = []
    table = class_folders.table(data)
    self.problems += table.remarks
    for split in table.splits:
      try:
        source = folder.Folder(
            data, split, bodies=False, faces=False, max_unreadable=1.0,
            outside_root=outside_root,
        )  # fmt: skip
      except ValueError as error:
        failures.append(str(error))
        continue
      self.left_out += source.report.left_out
      self.problems += source.report.problems
      sources.append(source)
    if failures and not sources:
      raise ValueError(failures[0])
    self.problems += failures
    return sources


def _prepared(data: pathlib.Path) -> list[prepared.PreparedSource]:
  """Opens every split; with folds a sample occurs in several of them."""
  made = json.loads((data / 'prepared.json').read_text(encoding='utf-8'))
  folds = datasets.get(made['dataset']).folds
  # Incomplete annotations are accepted, so that a run can complete them.
  open_split = functools.partial(
      prepared.PreparedSource, data, max_unreadable=1.0
  )
  if not folds:
    return [open_split(split=split) for split in made['splits']]
  sources = []
  for fold in range(1, folds + 1):
    for split in ('train', 'test'):
      # A fold whose list is missing is empty.
      with contextlib.suppress(ValueError):
        sources.append(open_split(split=split, fold=fold))
  return sources


def fill_command(fill: Callable[[], feature_cache.Counts], noun: str) -> int:
  """Runs a program that fills a feature cache.

  Args:
    fill: fills the cache.
    noun: input of the features, for the report.

  Returns:
    The exit status; errors are printed as one line.
  """
  try:
    counts = fill()
  except KeyboardInterrupt:
    print('interrupted; the same command resumes', file=sys.stderr)
    return 130
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(feature_cache.report(counts, noun))
  return 0
