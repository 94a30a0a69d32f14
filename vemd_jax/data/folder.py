"""Anyone's own pictures and clips: the plain folder format.

  DIR/labels.csv          file,split,label and any other columns
  DIR/annotations.jsonl   optional, one object a line
  DIR/...                 the files that labels.csv names

`labels.csv` is UTF-8. `file` is relative to DIR: an image, a video, or a folder
with the frames of a clip (images, in the natural order of their names, so that
2.jpg comes before 10.jpg). An empty `label`, or a negative number, is a sample
without label. Two more columns are used if they exist: `audio`, the path of a
sound file, and `transcript`, what is said.

A line of `annotations.jsonl` belongs to an image:

  {"file": "a.jpg", "width": 640, "height": 480,
   "bodies": [[[x, y, score] * 17], ...], "faces": [[[x, y, score] * 68], ...]}

Bodies are in COCO, faces in iBUG order, any number of each, in pixels of an
image of width x height, seen upright (by its EXIF or rotation flag). Where the
image has another size the points are scaled; without `width` and `height` they
are in its own pixels. A list that is missing or null means not annotated; what
an empty list means is set by `data.empty_annotation`.

Frames of a clip have a line each: `file` is the frame's own file, or the clip's
with `"frame": i`, the number of the frame from 0, in the order of its names or
of the video. A frame of a video that is read but has no line is not annotated.

A problem with a single file or line is counted, skipped and reported (see
`Folder.report`); above a share of `max_unreadable` it is an error.
"""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vemd_jax import skeletons
from vemd_jax.data import datasets, video

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff',
    '.jp2', '.ppm', '.pgm',
)  # fmt: skip

_LABELS = 'labels.csv'
_ANNOTATIONS = 'annotations.jsonl'
# The name of a line's file, found without parsing all of the line.
_FILE = re.compile(r'\s*\{\s*"file"\s*:\s*("(?:[^"\\]|\\.)*")')

Features = Callable[[str], np.ndarray | None]


@dataclasses.dataclass
class Report:
  """What was read and what was left out.

  Attributes:
    split: name of the split.
    samples: number of samples that can be used.
    classes: class -> samples of this split.
    unlabelled: samples without label.
    annotated: samples with at least one annotated frame.
    left_out: files that cannot be used.
    invalid_lines: lines of annotations.jsonl that cannot be used.
    problems: one line each, the first hundred.
  """

  split: str
  samples: int = 0
  classes: dict[str, int] = dataclasses.field(default_factory=dict)
  unlabelled: int = 0
  annotated: int = 0
  left_out: int = 0
  invalid_lines: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)

  def add(self, problem: str) -> None:
    """Adds a problem; after a hundred nobody reads on."""
    if len(self.problems) < 100:
      self.problems.append(problem)

  def __str__(self) -> str:
    counts = ', '.join(f'{k} {v}' for k, v in self.classes.items())
    lines = [
        f'{self.split}: {self.samples} samples ({counts or "no labels"}), '
        f'{self.unlabelled} without label, {self.annotated} annotated; left '
        f'out {self.left_out} files, {self.invalid_lines} annotation lines'
    ]
    return '\n  '.join(lines + self.problems)


class Folder:
  """Random access to a split of a folder; see the module's docstring.

  Attributes:
    classes: names, in the order of the label numbers.
    labels: [n] int32, -1 without label.
    files: names as in labels.csv.
    report: what was read and left out.
  """

  def __init__(
      self,
      root: str | os.PathLike,
      split: str,
      *,
      classes: Iterable[str] = (),
      holdout: float = 0.0,
      held_out: bool = False,
      frames: int = 0,
      bodies: bool = True,
      faces: bool = True,
      max_unreadable: float = 0.05,
      audio: Features | None = None,
      text: Features | None = None,
  ):
    """Reads the labels and annotations of a split.

    Args:
      root: DIR.
      split: value of the column `split`.
      classes: label names in order; () takes all of labels.csv, sorted.
      holdout: share of the split that is set apart, chosen by file name.
      held_out: takes that share instead of the rest.
      frames: of a folder of frames so many are read, evenly spread; 0 all.
      bodies: whether bodies are read.
      faces: whether faces are read.
      max_unreadable: largest share of files, or lines, that may be left out.
      audio: name of a file -> float32 [Ta, M] or None.
      text: name of a file -> float32 [Tt, E] or None.

    Raises:
      FileNotFoundError: no folder, or no labels.csv in it.
      ValueError: one line with the file, line and value at fault.
    """
    self._root = pathlib.Path(root)
    self._frames, self._audio, self._text = frames, audio, text
    self._parts = [
        (part, key)
        for part, key, use in (
            ('body', 'bodies', bodies),
            ('face', 'faces', faces),
        )
        if use
    ]
    self.report = Report(split)
    rows, files = _read_labels(
        self._root, split, self.report, tuple(classes)
    )
    if holdout:
      kept = [r for r in rows if (_share(r['file']) < holdout) == held_out]
      if not kept:
        raise ValueError(
            f'{self._root / _LABELS}: a holdout of {holdout} leaves nothing '
            f'of the {len(rows)} samples of split {split!r}'
        )
      rows = kept
    self.classes = tuple(classes) or files.classes
    spelled = {label_key(c): i for i, c in enumerate(self.classes)}

    rows, self._clips = self._existing(rows, split, max_unreadable)
    self.files = [row['file'] for row in rows]
    self._audio_paths = [row.get('audio', '') for row in rows]
    self._transcripts = [row.get('transcript', '') for row in rows]
    labels = []
    for row in rows:
      label = row['label']
      if label and label_key(label) not in spelled:
        raise ValueError(
            f'{self._root / _LABELS}:{row["line"]}: label {label!r} is none '
            f'of the classes {", ".join(self.classes)}'
        )
      labels.append(spelled[label_key(label)] if label else -1)
    self.labels = np.array(labels, np.int32)
    # Row -> frame number -> ((width, height) or None, bodies, faces).
    self._annotations: dict[int, dict[int, tuple]] = {}
    self._read_annotations(files.names, max_unreadable)

    report = self.report
    report.samples = len(rows)
    report.annotated = len(self._annotations)
    report.unlabelled = labels.count(-1)
    if files.classes:
      counts = Counter(labels)
      report.classes = {c: counts[i] for i, c in enumerate(self.classes)}

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A record: see the package's contract in `vemd_jax.data.transforms`."""
    file = self.files[index]
    path = self._path(file)
    annotations = self._annotations.get(index, {})
    record = {'file': file, 'label': int(self.labels[index])}
    if _is_video(file):
      record['video'] = str(path)
      chosen = None
    elif self._clips[index] is None:
      record['frames'] = [_read(path)]
      chosen = [0]
    else:
      names = self._clips[index]
      chosen = range(len(names))
      if self._frames and len(names) > self._frames:
        chosen = video.spread(len(names), self._frames).tolist()
      record['frames'] = [_read(path / names[i]) for i in chosen]
    for i, key in enumerate(('annotation_size', 'bodies', 'faces')):
      if chosen is None:
        record[key] = {f: values[i] for f, values in annotations.items()}
      else:
        none = (None, None, None)
        record[key] = [annotations.get(f, none)[i] for f in chosen]
    if self._audio_paths[index]:
      record['audio_path'] = str(self._path(self._audio_paths[index]))
    if self._transcripts[index]:
      record['transcript'] = self._transcripts[index]
    if self._audio is not None:
      record['audio'] = self._audio(file)
    if self._text is not None:
      record['text_embedding'] = self._text(file)
    return record

  def _path(self, name: str) -> pathlib.Path:
    """The file of a name, whichever way its letters are composed."""
    path = self._root / name
    if path.exists():
      return path
    for form in ('NFC', 'NFD'):
      other = unicodedata.normalize(form, name.replace('\\', '/'))
      if (self._root / other).exists():
        return self._root / other
    return path

  def _existing(self, rows, split, max_unreadable):
    """Rows whose files can be read, and the frames of those that are clips."""
    kept, clips = [], []
    for row in rows:
      path = self._path(row['file'])
      names, reason = None, ''
      if path.is_dir():
        names = sorted(
            (n for n in os.listdir(path) if _is_image(n)), key=_natural
        )
        reason = '' if names else 'has no images in it'
      elif not path.exists():
        reason = 'does not exist'
      elif not path.stat().st_size:
        reason = 'is empty'
      elif not (_is_image(row['file']) or _is_video(row['file'])):
        reason = 'is neither image nor video by its name'
      if reason:
        self.report.left_out += 1
        self.report.add(
            f'{self._root / _LABELS}:{row["line"]}: {row["file"]} {reason}'
        )
        continue
      kept.append(row)
      clips.append(names)
    _check_share(
        self.report.left_out,
        len(rows),
        max_unreadable,
        f'files of split {split!r} in {self._root}',
        self.report.problems,
    )
    return kept, clips

  def _read_annotations(self, known, max_unreadable):
    """Fills `_annotations` from annotations.jsonl, if there is one."""
    path = self._root / _ANNOTATIONS
    if not path.exists() or not self._parts:
      return
    places = {}
    for row, (file, clip) in enumerate(zip(self.files, self._clips)):
      places[_key(file)] = (row, None if clip or _is_video(file) else 0)
      for frame, name in enumerate(clip or ()):
        places[_key(f'{file}/{name}')] = (row, frame)
    total, unknown, problems = 0, [], []
    # Lines end with \n alone; a name may hold other separators.
    with path.open('rb') as file:
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        total += 1
        try:
          text = line.decode('utf-8-sig')
          name = _FILE.match(text)
          name = json.loads(name[1]) if name else None
          if name is not None and _key(name) not in places:
            if not _listed(_key(name), known):
              unknown.append(name)
            continue
          self._annotate(json.loads(text), places)
        except (ValueError, TypeError, OverflowError) as error:
          problems.append(f'{path}:{number}: {_short(error)}')
    self.report.invalid_lines = len(problems)
    for problem in problems[:50]:
      self.report.add(problem)
    if unknown:
      self.report.add(
          f'{path}: {len(unknown)} lines are of files that {_LABELS} does not '
          f'list, the first {unknown[0]!r}'
      )
    _check_share(
        len(problems), total, max_unreadable, f'lines of {path}', problems
    )

  def _annotate(self, entry: dict, places: dict) -> None:
    """Stores one line; raises ValueError where it does not hold together."""
    if not isinstance(entry, dict) or not isinstance(entry.get('file'), str):
      raise ValueError('no "file"')
    place = places.get(_key(entry['file']))
    if place is None:
      return
    row, frame = place
    if frame is None:
      frame = entry.get('frame')
      if not isinstance(frame, int) or frame < 0:
        raise ValueError(f'{entry["file"]} is a clip: expected "frame" from 0')
    size = entry.get('width'), entry.get('height')
    if size == (None, None):
      size = None
    elif not all(isinstance(s, int | float) and s > 0 for s in size):
      raise ValueError(f'width and height are {size[0]!r} and {size[1]!r}')
    people = {'bodies': None, 'faces': None}
    for part, key in self._parts:
      points = skeletons.NUM_POINTS[part]
      value = entry.get(key)
      if value is None:
        continue
      if not isinstance(value, list):
        raise ValueError(f'{key} is {type(value).__name__}, expected a list')
      for i, one in enumerate(value):
        if not isinstance(one, list) or len(one) != points:
          count = len(one) if isinstance(one, list) else type(one).__name__
          raise ValueError(
              f'{key}[{i}] of {entry["file"]} has {count} points, expected '
              f'{points}'
          )
      array = np.array(value, np.float32)
      if value and array.shape[2:] != (3,):
        raise ValueError(
            f'{key} of {entry["file"]} has points of another form than '
            'x, y, score'
        )
      people[key] = array.reshape(len(value), points, 3)
    # A file may have lines of two makings; the later one is the newer.
    annotations = self._annotations.setdefault(row, {})
    annotations[frame] = (size, people['bodies'], people['faces'])


@dataclasses.dataclass(frozen=True)
class _Files:
  """What all splits of a labels.csv have together."""

  names: set[str]
  classes: tuple[str, ...]


def _read_labels(root, split, report, classes=()):
  """Rows of a split, and the names and classes of all splits."""
  path = root / _LABELS
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
          # Lists write -1 where there is no label.
          report.add(
              f'{path}:{line}: label {row["label"]} is taken as no label'
          )
          row['label'] = ''
        row['line'] = line
        row['file'] = row['file'].removeprefix('./').rstrip('/')
        if not row['file']:
          raise ValueError(f'{path}:{line}: the column file is empty')
        known = first.setdefault(_key(row['file']), row)
        if known is not row:
          same = known['split'].casefold() == row['split'].casefold()
          same = same and label_key(known['label']) == label_key(row['label'])
          if not same:
            raise ValueError(
                f'{path}:{line}: {row["file"]} stands in line {known["line"]} '
                f'with {known["split"]}, {known["label"]} and here with '
                f'{row["split"]}, {row["label"]}'
            )
          if row['split'].casefold() == split.casefold():
            report.add(f'{path}:{line}: {row["file"]} stands twice')
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
  # The usual spelling of a label stands for the others.
  classes = [max(c, key=lambda s: (c[s], s)) for c in spellings.values()]
  for spelled in spellings.values():
    if len(spelled) > 1:
      report.add(
          f'{path}: taken as one label: '
          + ', '.join(f'{k} ({v})' for k, v in spelled.items())
      )
  return rows, _Files(set(first), tuple(sorted(classes, key=_natural)))


def _check_share(bad, total, limit, what, problems):
  if bad and (bad > limit * total or bad == total):
    raise ValueError(
        f'{bad} of {total} {what} cannot be used, more than '
        f'data.max_unreadable={limit}; the first: {problems[0]}'
    )


def _key(name: str) -> str:
  """Names are compared in one composition, with one separator."""
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  return posixpath.normpath(name)


def label_key(label: str) -> str:
  """Labels are compared without letter case, numbers by their value."""
  return datasets.canonical_number(label) or label.casefold()


def _listed(key: str, known: set[str]) -> bool:
  return key in known or key.rpartition('/')[0] in known


def _share(file: str) -> float:
  """A number in 0..1 that depends on the name alone."""
  digest = hashlib.sha256(_key(file).encode()).digest()
  return int.from_bytes(digest[:4], 'big') / 2**32


def _natural(name: str) -> tuple:
  """Sorts numbers in names by value."""
  parts = re.split(r'([0-9]+)', name.casefold())
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def _is_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def _is_video(name: str) -> bool:
  return name.lower().endswith(video.SUFFIXES)


def _read(path: pathlib.Path) -> bytes:
  """A file's content; nothing where it has gone since the start."""
  try:
    return path.read_bytes()
  except OSError:
    return b''


def _short(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f'not a whole JSON object ({error.msg} at column {error.colno})'
  return str(error)
