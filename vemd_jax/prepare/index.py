"""Index of an official layout: its samples, and those left out with reasons.

Each dataset's module fills an `Index` without decoding images or videos.
Unusable samples are counted by reason; only a layout that does not belong to
the dataset raises an error.
"""

import csv
import dataclasses
import io
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from vemd_jax.data import datasets, files

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff',
)  # fmt: skip

# A sample that is listed in two splits is kept in the later one.
_PRECEDENCE = ('train', 'val', 'test3', 'test2', 'test1', 'test')


@dataclasses.dataclass(frozen=True)
class Sample:
  """One sample of an official layout.

  Attributes:
    file: its name, unique within the dataset.
    split: name of the split, see `datasets`; 'folds' with folds.
    media: paths relative to the source: an image, a video, or the frames.
    kind: 'image', 'video' or 'frames'.
    label: class number, -1 without one.
    multi_hot: 0 or 1 per class for multi-label data, else ().
    folds: per fold: 0 not in it, 1 in its train part, 2 in its test part.
    group: subject or source video, '' if the name does not contain it.
    transcript: the spoken text, '' without one.
    bodies: people with 17 x (x, y, score) flat, pixels of the source image;
      None = not annotated.
    faces: the same with 68.
    ignore_boxes: (x1, y1, x2, y2) of crowds and people without joints.
  """

  file: str
  split: str
  media: tuple[str, ...]
  kind: str
  label: int = -1
  multi_hot: tuple[int, ...] = ()
  folds: tuple[int, ...] = ()
  group: str = ''
  transcript: str = ''
  bodies: tuple[tuple[float, ...], ...] | None = None
  faces: tuple[tuple[float, ...], ...] | None = None
  ignore_boxes: tuple[tuple[float, ...], ...] = ()


@dataclasses.dataclass
class Index:
  """Contents of a source.

  Attributes:
    samples: samples to be prepared.
    left_out: (file, split, reason) of every sample that is not prepared.
    handled: remark -> files or rows it concerns; they are prepared.
    files: label files read, relative to the source.
    facts: other lines for the report (layout, label order).
    outside_root: whether links may lead to files outside the source.
  """

  samples: list[Sample] = dataclasses.field(default_factory=list)
  left_out: list[tuple[str, str, str]] = dataclasses.field(
      default_factory=list
  )
  handled: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  files: list[str] = dataclasses.field(default_factory=list)
  facts: dict[str, str] = dataclasses.field(default_factory=dict)
  outside_root: bool = False

  def leave_out(self, file: str, split: str, reason: str) -> None:
    self.left_out.append((file, split, reason))

  def note(self, remark: str, file: str) -> None:
    self.handled.setdefault(remark, []).append(file)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a preparation, stored with the data.

  Attributes:
    frames: number of frames stored per clip, T.
    longer_side: upper bound of the longer side in pixels.
    hash_names: replace names by hashes wherever they are written.
    audio: store log-mel spectrograms of the sound tracks.
    label_order: class names for the labels 0, 1, ... of GAF-3.0's flat layout.
    multi_label: keep samples with several labels; they have no single label.
    drop_empty: leave out images without a person (COCO).
  """

  frames: int
  longer_side: int = 640
  hash_names: bool = False
  audio: bool = False
  label_order: tuple[str, ...] = ()
  multi_label: bool = False
  drop_empty: bool = False


def printable(name: str) -> str:
  """A file name as text in NFC; bytes that are not UTF-8 are escaped."""
  try:
    data = os.fsencode(name)
  except UnicodeEncodeError:
    # A lone surrogate, from a JSON file.
    data = name.encode('utf-8', 'backslashreplace')
  text = data.decode('utf-8', 'backslashreplace')
  return unicodedata.normalize('NFC', text)


def _fold(name: str) -> str:
  return printable(name).replace('\\', '/').casefold()


# Reason for leaving out files behind links.
FOREIGN = 'link to outside the source folder (--outside_root accepts it)'


def _walk(folder: Path, source: Path, index: Index) -> Iterator[str]:
  """Visible files below a folder, sorted, relative to it."""
  inside = files.Inside(source)
  seen = set()
  for path, folders, names in os.walk(folder, followlinks=True):
    # A link to a parent folder would never end.
    real = os.path.realpath(path)
    foreign = not (index.outside_root or inside(path))
    if foreign:
      index.leave_out(printable(os.path.relpath(path, source)), '', FOREIGN)
    if foreign or real in seen:
      folders[:] = []
      continue
    seen.add(real)
    folders[:] = sorted(f for f in folders if not f.startswith('.'))
    for file in sorted(names):
      if not file.startswith('.') and file.lower() != 'thumbs.db':
        yield os.path.relpath(os.path.join(path, file), folder)


class Files:
  """Media files below a folder, found by the names that label files use.

  A name is found with or without folder and suffix, in any letter case and
  Unicode form.
  """

  def __init__(
      self,
      source: Path,
      folder: Path,
      suffixes: tuple[str, ...],
      index: Index,
  ):
    """Lists the files.

    Args:
      source: the dataset's folder.
      folder: the one to search, below it.
      suffixes: of the media, in lower case.
      index: says whether links may lead outside the source; links that must
        not are recorded as left out.
    """
    self.paths = []
    self.other = []
    prefix = folder.relative_to(source).as_posix()
    self._keys: dict[str, list[str]] = {}
    for file in _walk(folder, source, index):
      path = file if prefix == '.' else f'{prefix}/{file}'
      if not file.lower().endswith(suffixes):
        self.other.append(path)
        continue
      self.paths.append(path)
      keys = {file, os.path.basename(file), path}
      keys |= {os.path.splitext(k)[0] for k in keys}
      for key in {_fold(k) for k in keys}:
        self._keys.setdefault(key, []).append(path)

  def find(self, name: str) -> str | None:
    """The file of a name.

    Args:
      name: as a label file has it.

    Returns:
      Path relative to the source, or None where there is no such file.

    Raises:
      ValueError: several files have this name.
    """
    name = name.strip().removeprefix('./')
    for key in (name, os.path.basename(name.replace('\\', '/'))):
      found = self._keys.get(_fold(key), [])
      if len(found) > 1:
        exact = [
            f for f in found
            if printable(key) in (
                printable(os.path.basename(f)),
                os.path.splitext(printable(os.path.basename(f)))[0],
            )
        ]  # fmt: skip
        if len(exact) != 1:
          raise ValueError('several files have this name')
        found = exact
      if found:
        return found[0]
    return None


def subfolder(folder: Path, *names: str) -> Path | None:
  """The first subfolder with one of these names, in any letter case."""
  if not folder.is_dir():
    return None
  by_name = {p.name.casefold(): p for p in sorted(folder.iterdir())}
  for name in names:
    path = by_name.get(name.casefold())
    if path is not None and path.is_dir():
      return path
  return None


def subfile(folder: Path, *names: str) -> Path | None:
  """The first file with one of these names, in any letter case."""
  if not folder.is_dir():
    return None
  by_name = {p.name.casefold(): p for p in sorted(folder.iterdir())}
  for name in names:
    path = by_name.get(name.casefold())
    if path is not None and path.is_file():
      return path
  return None


def need(path: Path | None, source: Path, what: str) -> Path:
  """Returns a path, or raises an error that says what is missing where."""
  if path is None:
    raise FileNotFoundError(f'{source} has no {what}')
  return path


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
  name = os.path.basename(_fold(name.strip()).rstrip('/'))
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
    return paths[id(row)] or ('', _fold(row[columns[0]].strip()))

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


def finish(index: Index) -> None:
  """Sorts, and keeps a sample of two splits only in the later one."""
  rank = {s: i for i, s in enumerate(_PRECEDENCE)}
  best: dict[tuple[str, ...], Sample] = {}
  for s in index.samples:
    old = best.get(s.media)
    if old is None:
      best[s.media] = s
    elif old.split == s.split:
      index.note('sample is listed more than once', s.file)
    else:
      keep, drop = sorted(
          (old, s), key=lambda x: rank.get(x.split, -1), reverse=True
      )
      index.leave_out(drop.file, drop.split, f'also in split {keep.split}')
      best[s.media] = keep
  index.samples = sorted(best.values(), key=lambda s: (s.split, s.file))
  index.left_out.sort()
  for names in index.handled.values():
    names.sort()

