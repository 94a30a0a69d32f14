"""Reads labels.csv of the folder format, see `vemd_jax.data.folder`.

Spreadsheet programs save the table in several forms, all of which are read: the
encoding may be UTF-8, UTF-16 or Windows-1252 (a superset of Latin-1's letters),
the separator a comma, semicolon or tab, and columns and splits may have common
synonyms (`COLUMNS`, `SPLITS`) in any case. If the form is not UTF-8 with
`file,split,label`, one remark states how the file was read. An ambiguous header
is an error that shows the line to write instead.
"""

import csv
import dataclasses
import io
import math
import os
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from vemd_jax.data import datasets, files, naming, video

NAME = 'labels.csv'
# Synonyms of the columns, without white space, '-' and '_'.
COLUMNS = {
    'file': (
        'filename', 'filepath', 'path', 'image', 'imagename', 'imagepath',
        'imagefile', 'img', 'imgname', 'picture', 'photo', 'video', 'videoname',
        'clip',
    ),
    'split': ('set', 'subset', 'partition', 'usage'),
    'label': ('labels', 'emotion', 'class', 'classname', 'category', 'mood'),
    'subject': ('subjectid', 'person', 'personid'),
}  # fmt: skip
# Synonyms of the splits.
SPLITS = {
    'train': ('training',),
    'val': ('validation', 'valid', 'dev', 'development'),
    'test': ('testing',),
}
_REQUIRED = ('file', 'split', 'label')
_OPTIONAL = ('audio', 'transcript', 'subject', 'source')
_SEPARATORS = {',': 'commas', ';': 'semicolons', '\t': 'tabs'}
# Limits in characters, so that messages stay readable.
_LONGEST = {'file': 1000, 'audio': 1000, 'split': 200, 'label': 200,
            'subject': 200, 'source': 200}  # fmt: skip
# Control characters: neither valid in names nor safe on a terminal.
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')


@dataclasses.dataclass(slots=True)
class Row:
  """A line of labels.csv.

  Attributes:
    line: its number, from 1.
    file: image, video, or folder of frames, relative to the folder.
    split: as written.
    label: as written, without surrounding white space and quotes; '' without
      label.
    audio: path of a sound file, or ''.
    transcript: the spoken text, or ''.
    subject: identifies the person, group or recording, or ''.
    source: origin of the row, such as a film, or ''.
  """

  line: int
  file: str
  split: str
  label: str
  audio: str = ''
  transcript: str = ''
  subject: str = ''
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """The content of a labels.csv, all splits together.

  Attributes:
    path: the file.
    rows: one per image or clip, in the file's order.
    classes: the most frequent spelling of each label, sorted.
    remarks: how the file was interpreted, and likely mistakes, one line each.
  """

  path: pathlib.Path
  rows: list[Row]
  classes: tuple[str, ...]
  remarks: list[str]

  @property
  def splits(self) -> dict[str, int]:
    """Value of the column `split`, as first spelled -> number of rows."""
    spelled: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in self.rows:
      counts[spelled.setdefault(row.split.casefold(), row.split)] += 1
    return dict(counts)

  def names(self, wanted: str) -> list[str]:
    """Values of the column `split` that denote a split.

    Args:
      wanted: see `split`.

    Returns:
      The value itself in any case, else the synonyms that are present.
    """
    there = self.splits
    exact = [s for s in there if s.casefold() == wanted.casefold()]
    others = SPLITS.get(wanted, ())
    return exact or [s for s in there if s.casefold() in others]

  def split(self, wanted: str) -> list[Row]:
    """The rows of a split.

    Args:
      wanted: a value of the column `split`, in any case; train, val and test
        also denote their synonyms.

    Returns:
      The rows, at least one.

    Raises:
      ValueError: there are none, or several synonyms are present.
    """
    there, names = self.splits, self.names(wanted)
    if len(names) > 1:
      raise ValueError(
          f'{self.path}: split {wanted!r} may be {" or ".join(names)}; name '
          f'one of them, such as --config.data.{wanted}_split={names[0]}'
      )
    if not names:
      listed = naming.some([f'{k!r} ({v})' for k, v in there.items()])
      hint = ''
      if wanted == 'val':
        hint = (
            '; --config.data.holdout=0.1 holds out a tenth of train to select '
            'the checkpoint'
        )
      raise ValueError(
          f'{self.path}: no rows of split {wanted!r}; there are '
          f'{listed or "none"}{hint}'
      )
    return [r for r in self.rows if r.split.casefold() == names[0].casefold()]


def read(
    root: str | os.PathLike, classes: Iterable[str] = ()
) -> Table:
  """Reads a labels.csv.

  Args:
    root: folder with labels.csv.
    classes: label names, to tell a negative class name from a missing label.

  Returns:
    The table.

  Raises:
    FileNotFoundError: there is no labels.csv.
    ValueError: it is invalid; the message names file, line and value.
  """
  root = pathlib.Path(root)
  path = root / NAME
  try:
    data = files.read_bytes(path)
  except (FileNotFoundError, NotADirectoryError):
    what = NAME if root.is_dir() else 'folder'
    raise FileNotFoundError(
        f'{path}: no such {what}; expected a file with the columns file, '
        'split, label'
    ) from None
  text, encoding = decode(data, path)
  lines, first, separator, width, columns = _open(text, path)
  rows = list(_rows(lines, first, width, columns, path))
  remarks = []
  unlabelled = []
  for row in rows:
    number = datasets.canonical_number(row.label) or ''
    if number.startswith('-') and row.label not in classes:
      # -1 is a common convention for a missing label.
      unlabelled.append((row.line, f'label {row.label} is treated as missing'))
      row.label = ''
  rows, twice = _unique(rows, path)
  remarks += _said(unlabelled, path) + _said(twice, path)
  form = _form(encoding, separator, columns, rows)
  if form:
    remarks.insert(0, f'{path}: {form}')
  spelled: dict[str, Counter] = defaultdict(Counter)
  for row in rows:
    if row.label:
      spelled[naming.label_key(row.label)][row.label] += 1
  for spellings in spelled.values():
    if len(spellings) > 1:
      remarks.append(
          f'{path}: treated as one label: '
          + naming.some([f'{k} ({v})' for k, v in spellings.items()])
      )
  # The most frequent spelling of a label represents the others.
  names = {
      key: max(s, key=lambda name: (s[name], name))
      for key, s in spelled.items()
  }
  remarks += [f'{path}: {line}' for line in _suspicious(rows, names)]
  classes = tuple(sorted(names.values(), key=naming.natural_key))
  return Table(path, rows, classes, remarks)


# ------------------------------------------------------------------- the text


def decode(data: bytes, path: pathlib.Path) -> tuple[str, str]:
  """Decodes a table's text, guessing the encoding.

  Args:
    data: the file's content.
    path: the file, for the message.

  Returns:
    The text without byte order mark, and the name of the encoding.

  Raises:
    ValueError: it is not UTF-8, UTF-16 or Windows-1252.
  """
  name = 'UTF-8'
  try:
    if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
      name = 'UTF-16'
      return data.decode('utf-16'), name
    if b'\0' in data[:4] and len(data) % 2 == 0:
      name = 'UTF-16'
      order = 'be' if data[:1] == b'\0' else 'le'
      return data.decode(f'utf-16-{order}'), name
    if b'\0' in data:
      raise ValueError(f'{path}: not a text file, it contains zero bytes')
    try:
      return data.decode('utf-8-sig'), name
    except UnicodeDecodeError:
      # In other 8-bit encodings, whole words are runs of such bytes.
      if re.search(rb'[\x80-\xff]{3}', data):
        raise
      name = 'Windows-1252'
      return data.decode('cp1252'), name
  except UnicodeDecodeError as error:
    raise ValueError(
        f'{path}: not {name} ({error.reason} at byte {error.start}); save it '
        'as UTF-8, in Excel as "CSV UTF-8"'
    ) from error


def _open(text: str, path: pathlib.Path):
  """Reader of the lines below the header, and what the header says."""
  lines = io.StringIO(text, newline='')
  first, header = 1, lines.readline()
  # Excel's own way to declare the separator.
  if re.fullmatch(r'"?sep=."?\s*', header):
    first, header = 2, lines.readline()
  header = header.strip('\r\n')
  found = []
  for separator in _SEPARATORS:
    cells = _cells(header, separator)
    columns = _columns(cells)
    if all(len(columns[c]) == 1 for c in _REQUIRED):
      found.append((separator, len(cells), columns))
  if len(found) != 1:
    raise ValueError(f'{path}:{first}: {_wrong_header(header)}')
  ((separator, width, columns),) = found
  columns = {name: where[0] for name, where in columns.items() if where}
  reader = csv.reader(lines, delimiter=separator, strict=True)
  return reader, first, separator, width, columns


def _cells(header: str, separator: str) -> list[str]:
  try:
    cells = next(csv.reader([header], delimiter=separator), [])
  except csv.Error:
    cells = header.split(separator)
  while cells and not cells[-1].strip():
    cells.pop()
  return cells


def _columns(cells: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
  """Column -> (index, name) of the cells that may denote it."""
  names = [c.strip().strip('"\'').casefold() for c in cells]
  plain = [re.sub(r'[\s_-]+', '', n) for n in names]
  columns = {}
  for column in _REQUIRED + _OPTIONAL:
    exact = [i for i, n in enumerate(names) if n == column]
    other = [i for i, n in enumerate(plain) if n in COLUMNS.get(column, ())]
    if column in _OPTIONAL and len(other) > 1:
      other = []
    columns[column] = [(i, names[i]) for i in exact or other]
  return columns


def _wrong_header(header: str) -> str:
  """Describes what is wrong with a header, and the line to write."""
  separator = max(_SEPARATORS, key=header.count)
  cells = [c.strip() for c in _cells(header, separator)]
  columns = _columns(cells)
  missing = [c for c in _REQUIRED if not columns[c]]
  several = [c for c in _REQUIRED if len(columns[c]) > 1]
  names = [''] * len(cells)
  for column, places in columns.items():
    for i, _ in places[:1]:
      names[i] = column
  if len(missing) == 3 and header:
    # The first line may be a row.
    guess = ['label'] * len(cells)
    for i, cell in enumerate(cells):
      if cell.lower().endswith(naming.IMAGE_SUFFIXES + video.SUFFIXES):
        guess[i] = 'file'
      elif any(cell.casefold() in (k, *v) for k, v in SPLITS.items()):
        guess[i] = 'split'
    if sorted(guess) == sorted(_REQUIRED):
      return (
          f'no header, the first line is {header[:100]!r}; insert the line '
          f'{separator.join(guess)} above it'
      )
  rest = [i for i, name in enumerate(names) if not name]
  if len(missing) == 1 and len(rest) == 1:
    names[rest[0]] = missing[0]
  names = [
      name or cell + '_2' * (cell.casefold() in columns)
      for name, cell in zip(names, cells)
  ]
  line = separator.join(names)
  if len(missing) > 1 or (missing and len(rest) != 1) or len(line) > 200:
    line = separator.join(_REQUIRED)
  what = f'no column {", ".join(missing)}' if missing else ''
  if several:
    places = '; '.join(
        f'{c} may be {" or ".join(name for _, name in columns[c])}'
        for c in several
    )
    what = f'{what}; {places}' if what else places
  shown = ', '.join(cells)[:200] or 'nothing'
  return (
      f'{what}; the header has {shown}; expected a first line such as {line}'
  )


# ------------------------------------------------------------------- the rows


def _rows(lines, first, width, columns, path) -> Iterator[Row]:
  """All rows, including repeated ones."""
  try:
    for cells in lines:
      line = first + lines.line_num
      if not any(cell.strip() for cell in cells):
        continue
      if len(cells) < width or any(c.strip() for c in cells[width:]):
        raise ValueError(
            f'{path}:{line}: {len(cells)} values for {width} columns'
            + '; quote values that contain the separator'
            * (len(cells) > width)
        )
      values = {name: cells[i].strip() for name, (i, _) in columns.items()}
      values['label'] = datasets.clean_label(values['label'])
      file = values['file'] = values['file'].removeprefix('./').rstrip('/')
      if not file:
        raise ValueError(f'{path}:{line}: the column file is empty')
      for name, value in values.items():
        if len(value) > _LONGEST.get(name, math.inf):
          raise ValueError(f'{path}:{line}: {name} has {len(value)} characters')
      for name in (file, values.get('audio', '')):
        if _CONTROL.search(name):
          raise ValueError(
              f'{path}:{line}: {name[:80]!r} is not a valid file name'
          )
      yield Row(line, **values)
  except csv.Error as error:
    raise ValueError(f'{path}:{first + lines.line_num}: {error}') from error


def _unique(rows: Sequence[Row], path: pathlib.Path):
  """Rows without repetitions, and (line, remark) of the repeated ones."""
  first: dict[str, Row] = {}
  twice = []
  for row in rows:
    known = first.setdefault(naming.file_key(row.file), row)
    if known is row:
      continue
    same = all(
        key(one) == key(two)
        for key, one, two in (
            (str.casefold, known.split, row.split),
            (naming.label_key, known.label, row.label),
        )
    )
    if not same:
      raise ValueError(
          f'{path}:{row.line}: {row.file} is listed in line {known.line} '
          f'with {known.split}, {known.label} and here with {row.split}, '
          f'{row.label}'
      )
    twice.append((row.line, f'{row.file} is listed twice'))
  return list(first.values()), twice


def _said(what: list[tuple[int, str]], path: pathlib.Path) -> list[str]:
  """The first of the remarks, with the number of the others; [] if none."""
  if not what:
    return []
  line, said = what[0]
  more = f' (and {len(what) - 1} more such lines)' if len(what) > 1 else ''
  return [f'{path}:{line}: {said}{more}']


def _form(encoding, separator, columns, rows) -> str:
  """How the file was read; '' if it has the documented form."""
  said = []
  if encoding != 'UTF-8':
    said.append(f'as {encoding}')
  if separator != ',':
    said.append(f'with {_SEPARATORS[separator]} as separators')
  said += [
      f'with {written} as the column {column}'
      for column, (_, written) in columns.items()
      if written != column
  ]
  there = {row.split.casefold(): row.split for row in rows}
  for split, others in SPLITS.items():
    found = [there[other] for other in others if other in there]
    if len(found) == 1 and split not in there:
      said.append(f'with {found[0]} as the split {split}')
  return 'read ' + ', '.join(said) if said else ''


def _suspicious(rows: Sequence[Row], names: dict[str, str]) -> Iterator[str]:
  """Remarks about labels and subjects that suggest a wrong split."""
  splits = {row.split.casefold() for row in rows if row.label}
  where = defaultdict(set)
  for row in rows:
    if row.label:
      where[naming.label_key(row.label)].add(row.split.casefold())
  if len(splits) > 1:
    alone = [
        f'{names[key]} ({next(iter(places))})'
        for key, places in where.items()
        if len(places) == 1
    ]
    if alone:
      yield f'labels in one split only: {naming.some(alone)}'
  yield from shared_subjects(rows)


def shared_subjects(rows: Sequence[Row]) -> list[str]:
  """A remark about subjects in more than one split, if there are any."""
  subjects = defaultdict(set)
  for row in rows:
    if row.subject:
      subjects[row.subject.casefold()].add(row.split.casefold())
  shared = [
      f'{subject} ({", ".join(sorted(places))})'
      for subject, places in subjects.items()
      if len(places) > 1
  ]
  if not shared:
    return []
  return [
      f'{len(shared)} subjects are in more than one split: '
      f'{naming.some(shared)}'
  ]
