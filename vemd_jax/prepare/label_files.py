"""Label files of official layouts: reading them, and joining media files."""

import csv
import io
import os
import re
from collections.abc import Callable, Hashable
from pathlib import Path

from vemd_jax.data import datasets, files
from vemd_jax.prepare.index import Files, Index, fold, printable


def read_text(path: Path, source: Path, index: Index) -> str:
  """Reads a text file with any line ends and encoding.

  Byte order marks and Windows line ends are noted and removed; text that is
  not UTF-8 is read as GB 18030 (Chinese; MER2023), or else as Windows-1252.
  """
  data = files.read_bytes(path)
  name = path.relative_to(source).as_posix()
  index.files.append(name)
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    index.note('label file is UTF-16', printable(name))
    try:
      text = data.decode('utf-16')
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}: not UTF-16 ({error.reason})') from error
  else:
    if data[:3] == b'\xef\xbb\xbf':
      index.note('label file starts with a byte order mark', printable(name))
    # Chinese text has longer runs of such bytes than text with accents.
    run = re.search(rb'[\x80-\xff]{3}', data)
    for encoding in (
        'utf-8-sig', *(('gb18030',) if run else ()), 'cp1252', 'latin-1'
    ):  # fmt: skip
      try:
        text = data.decode(encoding)
      except UnicodeDecodeError:
        continue
      if encoding != 'utf-8-sig':
        index.note(f'label file is not UTF-8, read as {encoding}',
                   printable(name))
      break
  if '\r' in text:
    index.note('label file has Windows line ends', printable(name))
  return text.replace('\r\n', '\n').replace('\r', '\n').replace('\0', '')


def read_lines(path: Path, source: Path, index: Index) -> list[str]:
  """The non-blank lines of a list file, stripped."""
  lines = read_text(path, source, index).split('\n')
  return [line.strip() for line in lines if line.strip()]


def read_table(
    path: Path,
    source: Path,
    index: Index,
    split: str,
    columns: tuple[str, ...],
    delimiter: str = ',',
    optional: tuple[str, ...] = (),
) -> list[dict[str, str]]:
  """The rows of a label file.

  Args:
    path: the file; its first non-blank line is the header.
    source: the dataset's folder.
    index: receives remarks, and rows with too few fields as left out.
    split: split of the left-out rows.
    columns: required columns, in any letter case.
    delimiter: ',' or tab; ' ' splits at the last blank, so that names may
      contain blanks.
    optional: optional columns; '' is returned if they are missing.

  Returns:
    Rows as dicts with the names of `columns` and `optional`.

  Raises:
    ValueError: a column is missing.
  """
  text = read_text(path, source, index)
  name = printable(path.relative_to(source).as_posix())
  if delimiter == ' ':
    rows = [line.strip().rsplit(None, 1) for line in text.split('\n')]
  else:
    # Transcripts in tab-separated files contain unpaired quotes.
    quoting = csv.QUOTE_NONE if delimiter == '\t' else csv.QUOTE_MINIMAL
    csv.field_size_limit(1 << 24)
    lines = csv.reader(
        io.StringIO(text), delimiter=delimiter, quoting=quoting
    )
    try:
      rows = list(lines)
    except csv.Error as error:
      raise ValueError(f'{path}:{lines.line_num}: {error}') from error
  numbered = [
      (i, r) for i, r in enumerate(rows, 1) if any(f.strip() for f in r)
  ]
  if not numbered:
    raise ValueError(f'{path} is empty; expected a header {columns}')
  header = [h.strip().casefold() for h in numbered[0][1]]
  missing = [c for c in columns if c.casefold() not in header]
  if missing:
    raise ValueError(
        f'{path} has no column {missing[0]!r}; its header is '
        f'{repr(header)[:200]}'
    )
  where = {
      c: header.index(c.casefold())
      for c in columns + optional
      if c.casefold() in header
  }
  result = []
  for number, row in numbered[1:]:
    if any(len(row) <= where[c] for c in columns):
      index.leave_out(
          f'{name}:{number}', split, f'row without {", ".join(columns)}'
      )
      continue
    result.append({
        c: row[where[c]].strip() if c in where and where[c] < len(row) else ''
        for c in columns + optional
    })
  return result


def name_key(name: str) -> str:
  """Key that all spellings of a sample's name share: no folder, no suffix."""
  name = os.path.basename(fold(name.strip()).rstrip('/'))
  stem, suffix = os.path.splitext(name)
  # '12.0' and 'clip.7' have no suffix; those of media begin with a letter.
  return stem if suffix[1:2].isalpha() or suffix[1:] == '3gp' else name


def unique_rows(
    rows: list[dict[str, str]],
    name: str,
    label: str,
    split: str,
    index: Index,
    key: Callable[[dict[str, str]], Hashable] | None = None,
    class_of: Callable[[str], int] | None = None,
) -> list[dict[str, str]]:
  """Removes repeated rows.

  A sample whose rows agree on its label counts once; one whose rows disagree is
  left out.

  Args:
    rows: rows of a label file.
    name: column that names the sample.
    label: column with its label.
    split: split of samples that are left out.
    index: receives the remarks.
    key: row -> identity of its sample; by default the name without folder and
      suffix.
    class_of: label -> class number, so that two labels of one class agree; by
      default the labels themselves are compared.

  Returns:
    The first row of each sample, in order.
  """

  def meaning(row: dict[str, str]) -> Hashable:
    text = datasets.normalize_label(row[label])
    if class_of is None:
      return text
    try:
      return class_of(row[label])
    except ValueError:
      return text

  key = key or (lambda row: name_key(row[name]))
  by_key: dict[Hashable, list[dict[str, str]]] = {}
  for row in rows:
    by_key.setdefault(key(row), []).append(row)
  result = []
  for same in by_key.values():
    file = printable(same[0][name])
    if len({meaning(r) for r in same}) > 1:
      labels = ', '.join(sorted({r[label] for r in same}))
      index.leave_out(file, split, f'rows disagree about its label: {labels}')
      continue
    if len(same) > 1:
      index.note('row is repeated in the label file', file)
    result.append(same[0])
  return result


def match(
    table: Path,
    source: Path,
    split: str,
    columns: tuple[str, str],
    files: Files,
    index: Index,
    class_of: Callable[[str], int],
    delimiter: str = ',',
) -> tuple[list[tuple[dict[str, str], str, int]], list[str]]:
  """Joins the rows of a label file with the files that they name.

  Rows that name the same file, in any spelling, belong to one sample.

  Args:
    table: label file.
    source: the dataset's folder.
    split: split of the label file and the media files.
    columns: names of the columns with the file name and the label.
    files: media files of the split.
    index: receives what is left out.
    class_of: label -> class number; raises ValueError with the reason for
      which a sample is left out.
    delimiter: see `read_table`.

  Returns:
    (row, path, class number) of each usable row, and the paths that no row
    names.
  """
  rows = read_table(table, source, index, split, columns, delimiter)
  paths: dict[int, str | None] = {}
  reasons: dict[int, str] = {}
  for row in rows:
    try:
      paths[id(row)] = files.find(row[columns[0]])
      if paths[id(row)] is None:
        reasons[id(row)] = 'file is missing'
    except ValueError as error:
      paths[id(row)], reasons[id(row)] = None, str(error)

  def key(row: dict[str, str]) -> Hashable:
    return paths[id(row)] or ('', fold(row[columns[0]].strip()))

  result = []
  for row in unique_rows(rows, *columns, split, index, key, class_of):
    path, reason = paths[id(row)], reasons.get(id(row), '')
    try:
      label = class_of(row[columns[1]])
    except ValueError as error:
      reason = str(error)
    if reason:
      index.leave_out(printable(row[columns[0]]), split, reason)
    else:
      result.append((row, path, label))
  named = set(paths.values())
  return result, [p for p in files.paths if p not in named]
