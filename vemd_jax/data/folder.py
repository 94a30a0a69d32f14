"""The plain folder format, for the user's own images and clips.

  DIR/labels.csv          file,split,label and any other columns
  DIR/annotations.jsonl   optional, one JSON object per line
  DIR/...                 the files that labels.csv names

`labels.csv` is UTF-8. `file` is relative to DIR: an image, a video, or a folder
with the frames of a clip (images, in the natural order of their names, so that
2.jpg comes before 10.jpg). An empty `label`, or a negative number, marks a
sample without label. Two columns are optional: `audio`, the path of a sound
file, and `transcript`, the spoken text.

A line of `annotations.jsonl` annotates an image:

  {"file": "a.jpg", "width": 640, "height": 480,
   "bodies": [[[x, y, score] * 17], ...], "faces": [[[x, y, score] * 68], ...]}

Bodies have COCO joints, faces iBUG landmarks, any number of each. Coordinates
are pixels of the upright image (by its EXIF or rotation flag) at the size width
x height; if the image has another size, they are scaled, and without `width`
and `height` they are pixels of the image itself. A list that is missing or null
means not annotated; `data.empty_annotation` sets what an empty list means.

Each frame of a clip has its own line: `file` is the frame's own file, or the
clip's with `"frame": i`, the number of the frame from 0, in the order of its
names or of the video. A frame of a video without a line is not annotated.

A problem with a single file or line is counted, skipped and reported (see
`Folder.report`); a share of more than `max_unreadable` is an error.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vemd_jax import skeletons
from vemd_jax.data import labels_csv, video
from vemd_jax.data.labels_csv import file_key, label_key, natural_key

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff',
    '.jp2', '.ppm', '.pgm',
)  # fmt: skip

_LABELS = labels_csv.NAME
_ANNOTATIONS = 'annotations.jsonl'
# Finds the file name of a line without parsing the whole line.
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
    problems: the first hundred problems, one line each.
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
    """Adds a problem; only the first hundred are kept."""
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
      root: the folder, DIR above.
      split: value of the column `split`.
      classes: label names in order; () takes all of labels.csv, sorted.
      holdout: share of the split that is held out, by a hash of file names.
      held_out: selects the held-out share instead of the rest.
      frames: number of evenly spaced frames read of a folder of frames; 0 reads
        all.
      bodies: whether bodies are read.
      faces: whether faces are read.
      max_unreadable: largest share of files, or lines, that may be left out.
      audio: name of a file -> float32 [Ta, M] or None.
      text: name of a file -> float32 [Tt, E] or None.

    Raises:
      FileNotFoundError: there is no folder, or no labels.csv in it.
      ValueError: the data are invalid; the message names file, line and value.
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
    rows, files = labels_csv.read(
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
            f'{self._root / _LABELS}:{row["line"]}: label {label!r} is not one '
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
    """A record, see `vemd_jax.data.transforms.Transform.__call__`."""
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
    """The path of a file name, in whichever Unicode form it is stored."""
    path = self._root / name
    if path.exists():
      return path
    for form in ('NFC', 'NFD'):
      other = unicodedata.normalize(form, name.replace('\\', '/'))
      if (self._root / other).exists():
        return self._root / other
    return path

  def _existing(self, rows, split, max_unreadable):
    """Rows whose files are usable, and the frames of those that are clips."""
    kept, clips = [], []
    for row in rows:
      path = self._path(row['file'])
      names, reason = None, ''
      if path.is_dir():
        names = sorted(
            (n for n in os.listdir(path) if _is_image(n)), key=natural_key
        )
        reason = '' if names else 'contains no images'
      elif not path.exists():
        reason = 'does not exist'
      elif not path.stat().st_size:
        reason = 'is empty'
      elif not (_is_image(row['file']) or _is_video(row['file'])):
        reason = 'has no suffix of an image or video'
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
      places[file_key(file)] = (row, None if clip or _is_video(file) else 0)
      for frame, name in enumerate(clip or ()):
        places[file_key(f'{file}/{name}')] = (row, frame)
    total, unknown, problems = 0, [], []
    # Only \n ends a line; file names may contain other separators.
    with path.open('rb') as file:
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        total += 1
        try:
          text = line.decode('utf-8-sig')
          name = _FILE.match(text)
          name = json.loads(name[1]) if name else None
          if name is not None and file_key(name) not in places:
            if not _listed(file_key(name), known):
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
          f'{path}: {len(unknown)} lines name files that {_LABELS} does not '
          f'list, the first {unknown[0]!r}'
      )
    _check_share(
        len(problems), total, max_unreadable, f'lines of {path}', problems
    )

  def _annotate(self, entry: dict, places: dict) -> None:
    """Stores one line; raises ValueError if it is invalid."""
    if not isinstance(entry, dict) or not isinstance(entry.get('file'), str):
      raise ValueError('no "file"')
    place = places.get(file_key(entry['file']))
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
            f'{key} of {entry["file"]} has points that are not x, y, score'
        )
      people[key] = array.reshape(len(value), points, 3)
    # A file may have lines of two runs; the later line is the newer one.
    annotations = self._annotations.setdefault(row, {})
    annotations[frame] = (size, people['bodies'], people['faces'])


def _check_share(bad, total, limit, what, problems):
  if bad and (bad > limit * total or bad == total):
    raise ValueError(
        f'{bad} of {total} {what} cannot be used, more than '
        f'data.max_unreadable={limit}; the first: {problems[0]}'
    )


def _listed(key: str, known: set[str]) -> bool:
  return key in known or key.rpartition('/')[0] in known


def _share(file: str) -> float:
  """A number in [0, 1) that depends only on the file name."""
  digest = hashlib.sha256(file_key(file).encode()).digest()
  return int.from_bytes(digest[:4], 'big') / 2**32


def _is_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def _is_video(name: str) -> bool:
  return name.lower().endswith(video.SUFFIXES)


def _read(path: pathlib.Path) -> bytes:
  """A file's content; empty if the file was removed since the start."""
  try:
    return path.read_bytes()
  except OSError:
    return b''


def _short(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f'not a complete JSON object ({error.msg} at column {error.colno})'
  return str(error)
