"""Attribute inference, and the utility of a tap by the same method."""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vemd_jax.audit import probe
from vemd_jax.audit.measure import Measure
from vemd_jax.data import files, labels_csv, naming

# More values than this, all of them numbers, count as a number.
_CLASSES = 10
_KNOWN = ('file', 'split', 'label', 'audio', 'transcript')


class Attribute(NamedTuple):
  """What an attacker infers about each picture.

  Attributes:
    name: its name.
    classes: names of its values; () for a number.
    fit: [n] int class, -1 where unknown; or float, NaN where unknown.
    test: [m] likewise.
  """

  name: str
  classes: tuple[str, ...]
  fit: np.ndarray
  test: np.ndarray


def columns(root: str) -> dict[str, dict[str, str]]:
  """Reads all columns of labels.csv, which training mostly ignores.

  Args:
    root: folder with labels.csv.

  Returns:
    Column -> file -> value; {} without labels.csv.

  Raises:
    ValueError: if the table is invalid.
  """
  path = pathlib.Path(root or '.') / labels_csv.NAME
  if not root or not files.exists(path):
    return {}
  table = labels_csv.read(root)
  text, _ = labels_csv.decode(files.read_bytes(path), path)
  lines = list(io.StringIO(text, newline=''))
  first = int(lines[0].lstrip('"').startswith('sep='))
  separator = max(',;\t', key=lines[first].count)
  reader = csv.reader(lines[first:], delimiter=separator)
  header = [cell.strip() for cell in next(reader)]
  rows = {}
  for cells in reader:
    rows[first + reader.line_num] = [cell.strip() for cell in cells]
  return {
      name: {
          naming.file_key(row.file): rows[row.line][i]
          for row in table.rows
          if row.line in rows and i < len(rows[row.line])
      }
      for i, name in enumerate(header)
      if name
  }


def of_column(
    name: str,
    values: Mapping[str, str],
    fit: Sequence[str],
    test: Sequence[str],
) -> Attribute | None:
  """An attribute from a column of labels.csv.

  Args:
    name: name of the column.
    values: file -> value.
    fit: files of the fitting split.
    test: files of the test split.

  Returns:
    The attribute; None if it has one value only, or too many to be classes.
  """
  got = [
      [values.get(naming.file_key(f), '') for f in names]
      for names in (fit, test)
  ]
  numbers = [[_number(v) for v in column] for column in got]
  if all(v == '' or math.isfinite(x) for c, n in zip(got, numbers)
         for v, x in zip(c, n)):  # fmt: skip
    return of_numbers(name, *(np.array(n, np.float64) for n in numbers))
  return _of_classes(name, *got)


def _number(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return math.nan


def of_numbers(
    name: str, fit: np.ndarray, test: np.ndarray
) -> Attribute | None:
  """An attribute from numbers; few distinct ones count as classes.

  Args:
    name: its name.
    fit: [n] values, NaN where unknown.
    test: [m] values.

  Returns:
    The attribute; None if there is a single value.
  """
  known = np.unique(fit[np.isfinite(fit)])
  if len(known) > _CLASSES:
    return Attribute(name, (), fit, test)
  return _of_classes(
      name,
      *(['' if math.isnan(v) else f'{v:g}' for v in x] for x in (fit, test)),
  )


def _of_classes(name, fit, test) -> Attribute | None:
  found, counts = np.unique([v for v in fit if v], return_counts=True)
  # A class with few samples to fit cannot be inferred.
  classes = tuple(str(v) for v in found[counts >= 10])
  if not 1 < len(classes) <= 5 * _CLASSES:
    return None
  number = {value: i for i, value in enumerate(classes)}
  return Attribute(
      name,
      classes,
      *(np.array([number.get(v, -1) for v in x]) for x in (fit, test)),
  )


def find(
    wanted: Sequence[str],
    table: Mapping[str, Mapping[str, str]],
    identity: str,
    fit: tuple[Sequence[str], Mapping[str, np.ndarray]],
    test: tuple[Sequence[str], Mapping[str, np.ndarray]],
) -> list[Attribute]:
  """The attributes to infer: columns of labels.csv, and the annotations.

  Args:
    wanted: names; () selects all that there are.
    table: from `columns`.
    identity: column of the subjects, which is no attribute.
    fit: (files, truth from the annotations) of the fitting split.
    test: those of the test split.

  Returns:
    The attributes.

  Raises:
    ValueError: if a wanted attribute does not exist or cannot be inferred.
  """
  names = [n for n in table if n not in (*_KNOWN, identity)]
  there = [*names, *(n for n in fit[1] if n not in names)]
  for name in wanted:
    if name not in there:
      raise ValueError(
          f'--attributes has {name!r}, expected some of '
          f'{", ".join(there) or "none, since the data have no attributes"}'
      )
  result = []
  for name in wanted or there:
    if name in names:
      one = of_column(name, table[name], fit[0], test[0])
    else:
      one = of_numbers(name, fit[1][name], test[1][name])
    if one is not None:
      result.append(one)
    elif wanted:
      raise ValueError(
          f'--attributes: {name} has no two values with ten samples each in '
          'the training split, or too many values; expected a number or up to '
          f'{5 * _CLASSES} values'
      )
  return result


def attack(
    tap: str,
    reduced: probe.Reduced,
    attribute: Attribute,
    name: str = 'attribute',
) -> Measure:
  """Infers an attribute from a tap.

  Args:
    tap: name of the tap.
    reduced: its values.
    attribute: the attribute.
    name: name of the attack; `utility` for the emotion.

  Returns:
    Balanced accuracy for classes, explained variance for a number.

  Raises:
    ValueError: if there are too few samples.
  """
  if attribute.classes:
    values, method = probe.classify(
        reduced, attribute.fit, attribute.test, len(attribute.classes)
    )
    metric, known = 'balanced accuracy', attribute.test >= 0
    present = np.unique(attribute.test[known])
    chance = 1 / max(len(present), 1)
  else:
    values, method = probe.regress(reduced, attribute.fit, attribute.test)
    metric, known, chance = 'R²', np.isfinite(attribute.test), 0.0
  return Measure(
      name, attribute.name, tap, metric, *values, chance, int(known.sum()),
      'samples', method,
  )  # fmt: skip
