"""Poisson sampling of training batches, for differential privacy."""

import sys
import zlib
from typing import Any, NamedTuple

import numpy as np

from vemd_jax.data import decoding

UNITS = ('sample', 'subject')


class Sampling(NamedTuple):
  """How the batches of a private run are drawn.

  Attributes:
    unit: 'sample' or 'subject'.
    rows: rows of a batch; those that were not drawn are padding.
  """

  unit: str
  rows: int


def units(source: Any, unit: str) -> list[list[int]]:
  """Indices of the samples of each unit.

  Args:
    source: the training split.
    unit: 'sample' or 'subject'; a sample without subject is its own unit.

  Returns:
    For each unit, its samples.

  Raises:
    ValueError: for subjects, if the data have none.
  """
  if unit == 'sample':
    return [[i] for i in range(len(source))]
  subjects = getattr(source, 'subjects', None)
  if not subjects or not any(subjects):
    raise ValueError(
        "config.dp.unit is 'subject', but the data have no subjects; expected "
        "a column subject in labels.csv, or config.dp.unit='sample'"
    )
  groups: dict[Any, list[int]] = {}
  for i, subject in enumerate(subjects):
    groups.setdefault(subject.casefold() or i, []).append(i)
  return list(groups.values())


class Drawn:
  """Poisson sampling: batch k has each unit with the same probability.

  Row i of the infinite sequence is row i % rows of batch i // rows; rows that
  were not drawn are empty records.
  """

  def __init__(
      self,
      source,
      name: str,
      seed: int,
      expected: int,
      sampling: Sampling,
  ):
    """Groups the samples by unit.

    Args:
      source: the training split.
      name: name of the dataset.
      seed: seed of the run.
      expected: expected number of samples in a batch.
      sampling: unit and rows.
    """
    self._source, self._rows = source, sampling.rows
    self._units = units(source, sampling.unit)
    self._rate = expected / len(self._units)
    self._entropy = (seed, zlib.crc32(name.encode()), 1)
    # The last batch, so that it is drawn once and not for every row.
    self._last: tuple[int, list[int]] | None = None

  def __len__(self) -> int:
    return sys.maxsize

  def __repr__(self) -> str:
    return f'Drawn({len(self._units)}, {self._rate}, {self._rows})'

  def indices(self, step: int) -> list[int]:
    """The samples of a batch; a unit with several gives a random one."""
    last = self._last
    if last is None or last[0] != step:
      rng = np.random.default_rng((*self._entropy, step))
      drawn = np.flatnonzero(rng.random(len(self._units)) < self._rate)
      drawn = rng.permutation(drawn)[: self._rows]
      chosen = [
          self._units[u][rng.integers(len(self._units[u]))] for u in drawn
      ]
      last = self._last = (step, chosen)
    return last[1]

  def __getitem__(self, index: int) -> decoding.Record:
    step, row = divmod(index, self._rows)
    chosen = self.indices(step)
    return self._source[chosen[row]] if row < len(chosen) else {}
