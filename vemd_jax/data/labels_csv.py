"""Reads labels.csv of the folder format, see `vemd_jax.data.folder`."""

import csv
import dataclasses
import posixpath
import re
import unicodedata
from collections import Counter

from vemd_jax.data import datasets

NAME = 'labels.csv'


@dataclasses.dataclass(frozen=True)
class Files:
  """File names (see `file_key`) and classes of all splits of a labels.csv."""

  names: set[str]
  classes: tuple[str, ...]


def read(root, split, report, classes=()):
  """Reads the rows of a split.

  Args:
    root: folder with labels.csv.
    split: value of the column `split`.
    report: a `folder.Report`, to which problems are added.
    classes: label names, to tell a negative class name from a missing label.

  Returns:
    The rows of the split, as dicts by column with the further keys `line` (its
    number), and the `Files` of all splits.

  Raises:
    FileNotFoundError: there is no labels.csv.
    ValueError: it is invalid; the message names file, line and value.
  """
  path = root / NAME
  if not path.exists():
    what = 'folder' if not root.exists() else 'labels.csv'
    raise FileNotFoundError(
        f'{path}: no such {what}; expected a file with the columns file, '
        'split, label'
    )
  rows, first, spellings, splits = [], {}, {}, Counter()
  try:
    with path.open(encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file)
      header = [h.strip().casefold() for h in next(reader, [])]
      missing = [c for c in ('file', 'split', 'label') if c not in header]
      if missing:
        raise ValueError(
            f'{path}:1: no column {", ".join(missing)}; the header has '
            f'{", ".join(header) or "nothing"}'
        )
      for cells in reader:
        if not any(cell.strip() for cell in cells):
          continue
        line = reader.line_num
        if len(cells) < len(header):
          raise ValueError(
              f'{path}:{line}: {len(cells)} values for {len(header)} columns'
          )
        row = dict(zip(header, (cell.strip() for cell in cells)))
        row['label'] = datasets.clean_label(row['label'])
        number = datasets.canonical_number(row['label']) or ''
        if number.startswith('-') and row['label'] not in classes:
          # -1 is a common convention for a missing label.
          report.add(
              f'{path}:{line}: label {row["label"]} is treated as missing'
          )
          row['label'] = ''
        row['line'] = line
        row['file'] = row['file'].removeprefix('./').rstrip('/')
        if not row['file']:
          raise ValueError(f'{path}:{line}: the column file is empty')
        known = first.setdefault(file_key(row['file']), row)
        if known is not row:
          same = known['split'].casefold() == row['split'].casefold()
          same = same and label_key(known['label']) == label_key(row['label'])
          if not same:
            raise ValueError(
                f'{path}:{line}: {row["file"]} is listed in line '
                f'{known["line"]} with {known["split"]}, {known["label"]} and '
                f'here with {row["split"]}, {row["label"]}'
            )
          if row['split'].casefold() == split.casefold():
            report.add(f'{path}:{line}: {row["file"]} is listed twice')
          continue
        splits[row['split']] += 1
        if row['label']:
          spelled = spellings.setdefault(label_key(row['label']), Counter())
          spelled[row['label']] += 1
        if row['split'].casefold() == split.casefold():
          rows.append(row)
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 ({error})') from error
  except csv.Error as error:
    raise ValueError(f'{path}:{reader.line_num}: {error}') from error
  if not rows:
    there = ', '.join(f'{k!r} ({v})' for k, v in splits.items())
    raise ValueError(
        f'{path}: no rows of split {split!r}; there are {there or "none"}'
    )
  # The most frequent spelling of a label represents the others.
  classes = [max(c, key=lambda s: (c[s], s)) for c in spellings.values()]
  for spelled in spellings.values():
    if len(spelled) > 1:
      report.add(
          f'{path}: treated as one label: '
          + ', '.join(f'{k} ({v})' for k, v in spelled.items())
      )
  return rows, Files(set(first), tuple(sorted(classes, key=natural_key)))


def file_key(name: str) -> str:
  """Key for comparing file names: normalised Unicode form and separators."""
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  return posixpath.normpath(name)


def label_key(label: str) -> str:
  """Key for comparing labels: regardless of case, numbers by their value."""
  return datasets.canonical_number(label) or label.casefold()


def natural_key(name: str) -> tuple:
  """Sort key that orders the numbers in names by value."""
  parts = re.split(r'([0-9]+)', name.casefold())
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name
