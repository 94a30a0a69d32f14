"""Index of an official layout: its samples, and those left out with reasons.

Each dataset's module fills an `Index` without decoding images or videos.
Unusable samples are counted by reason; only a layout that does not belong to
the dataset raises an error.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from vemd_jax.data import files

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


def fold(name: str) -> str:
  """Key for comparing names in any letter case and Unicode form."""
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
      for key in {fold(k) for k in keys}:
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
      found = self._keys.get(fold(key), [])
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

