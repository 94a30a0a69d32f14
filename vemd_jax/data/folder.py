"""The plain folder format, for the user's own images and clips.

  DIR/labels.csv          file,split,label and any other columns
  DIR/annotations.jsonl   optional, one JSON object per line
  DIR/...                 the files that labels.csv names

`file` is relative to DIR: an image, a video, or a folder with the frames of a
clip (images, in the natural order of their names, so that 2.jpg comes before
10.jpg). An empty `label`, or a negative number, marks a sample without label.
Four columns are optional: `audio`, the path of a sound file; `transcript`, the
spoken text; `subject`, which keeps the rows of a person, group or recording on
one side of a holdout; and `source`, the origin of a row, such as a film, by
which the report of a run groups its results. `vemd_jax.data.labels_csv`
describes the other forms of the table that are accepted.

Without a `labels.csv`, DIR may contain one folder of images per class, see
`class_folders`.

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
import os
import pathlib
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vemd_jax.data import (
  annotations,
  class_folders,
  decoding,
  files,
  labels_csv,
  naming,
  video,
)

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
    remarks: `labels_csv.Table.remarks`, which concern all splits.
  """

  split: str
  samples: int = 0
  classes: dict[str, int] = dataclasses.field(default_factory=dict)
  unlabelled: int = 0
  annotated: int = 0
  left_out: int = 0
  invalid_lines: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)
  remarks: list[str] = dataclasses.field(default_factory=list)

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
    sources: the column `source` of labels.csv, '' without it.
    subjects: the column `subject`, '' without it.
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
      outside_root: bool = False,
      audio: Features | None = None,
      text: Features | None = None,
  ):
    """Reads the labels and annotations of a split.

    Args:
      root: the folder, DIR above.
      split: value of the column `split`, see `labels_csv.Table.split`.
      classes: label names in order; () takes all of labels.csv, sorted.
      holdout: share of the split that is held out, by a hash of the subjects,
        or of the file names of rows without subject.
      held_out: selects the held-out share instead of the rest.
      frames: number of evenly spaced frames read of a folder of frames; 0 reads
        all.
      bodies: whether bodies are read.
      faces: whether faces are read.
      max_unreadable: largest share of files, or lines, that may be left out.
      outside_root: whether labels.csv may name files outside DIR, by absolute
        paths, .., or links.
      audio: name of a file -> float32 [Ta, M] or None.
      text: name of a file -> float32 [Tt, E] or None.

    Raises:
      FileNotFoundError: there is no folder, or no labels.csv in it.
      ValueError: the data are invalid; the message names file, line and value.
    """
    self._root = pathlib.Path(root)
    self._frames, self._audio, self._text = frames, audio, text
    table = class_folders.table(self._root, tuple(classes))
    self.report = Report(split, remarks=table.remarks)
    rows = table.split(split)
    if holdout:
      kept = [row for row in rows if (_share(row) < holdout) == held_out]
      if not kept:
        raise ValueError(
            f'{table.path}: a holdout of {holdout} leaves nothing of the '
            f'{len(rows)} samples of split {split!r}'
        )
      rows = kept
    self.classes = tuple(classes) or table.classes
    inside = None if outside_root else files.Inside(self._root)
    rows, self._paths, self._clips = self._existing(
        table.path, rows, inside, max_unreadable
    )
    self.files = [row.file for row in rows]
    self.sources = [row.source for row in rows]
    self.subjects = [row.subject for row in rows]
    self._audio_paths = [
        self._path(table.path, row, row.audio, inside) if row.audio else None
        for row in rows
    ]
    self._transcripts = [row.transcript for row in rows]
    labels = _numbers(table.path, rows, self.classes)
    self.labels = np.array(labels, np.int32)
    report = self.report
    parts = [p for p, use in (('body', bodies), ('face', faces)) if use]
    self._annotations = annotations.read(
        self._root,
        self.files,
        self._clips,
        {naming.file_key(row.file) for row in table.rows},
        parts,
        report,
        max_unreadable,
    )
    report.samples = len(rows)
    report.annotated = len(self._annotations)
    report.unlabelled = labels.count(-1)
    if table.classes:
      counts = Counter(labels)
      report.classes = {c: counts[i] for i, c in enumerate(self.classes)}

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A record, see `vemd_jax.data.transforms.Transform.__call__`."""
    file, path = self.files[index], self._paths[index]
    annotated = self._annotations.get(index, {})
    record = {'file': file, 'label': int(self.labels[index])}
    if naming.is_video(file):
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
        record[key] = {f: values[i] for f, values in annotated.items()}
      else:
        none = (None, None, None)
        record[key] = [annotated.get(f, none)[i] for f in chosen]
    if self._audio_paths[index]:
      record['audio_path'] = str(self._audio_paths[index])
    if self._transcripts[index]:
      record['transcript'] = self._transcripts[index]
    if self._audio is not None:
      record['audio'] = self._audio(file)
    if self._text is not None:
      record['text_embedding'] = self._text(file)
    return record

  def _path(self, table, row, name, inside) -> pathlib.Path:
    """The path of a file name, in whichever Unicode form it is stored."""
    names = [name]
    names += [
        unicodedata.normalize(form, name.replace('\\', '/'))
        for form in ('NFC', 'NFD')
    ]
    paths = [self._root / name for name in names]
    path = next((path for path in paths if files.exists(path)), paths[0])
    if inside is not None and not inside(path):
      raise ValueError(
          f'{table}:{row.line}: {name} is outside {self._root} (absolute path, '
          '.., or link); config.data.outside_root=True or --outside_root '
          'accepts such files'
      )
    return path

  def _existing(self, table, rows, inside, max_unreadable):
    """Rows whose files are usable, their paths, and the frames of clips."""
    kept, paths, clips = [], [], []
    for row in rows:
      path = self._path(table, row, row.file, inside)
      names, reason = None, ''
      try:
        found = files.retry(os.stat, path)
        if stat.S_ISDIR(found.st_mode):
          names = files.retry(_images, path, inside)
          reason = '' if names else 'contains no images'
        elif not stat.S_ISREG(found.st_mode):
          reason = 'is not a regular file'
        elif not found.st_size:
          reason = 'is empty'
      except FileNotFoundError:
        reason = 'does not exist'
      except OSError as error:
        reason = f'cannot be read ({error.strerror})'
      if not (names or reason or naming.is_image(path.name)
              or naming.is_video(path.name)):  # fmt: skip
        reason = 'has no suffix of an image or video'
      if reason:
        self.report.left_out += 1
        self.report.add(f'{table}:{row.line}: {row.file} {reason}')
        continue
      kept.append(row)
      paths.append(path)
      clips.append(names)
    annotations.check_share(
        self.report.left_out,
        len(rows),
        max_unreadable,
        f'files of split {self.report.split!r} in {self._root}',
        self.report.problems,
    )
    return kept, paths, clips


def _images(folder: pathlib.Path, inside: files.Inside | None) -> list[str]:
  """Names of the images in a folder, ordered by the numbers in the names."""
  with os.scandir(folder) as entries:
    names = [
        entry.name
        for entry in entries
        if naming.is_image(entry.name)
        and entry.is_file()
        and not (entry.is_symlink() and inside and not inside(entry.path))
    ]
  return sorted(names, key=naming.natural_key)


def _numbers(table, rows, classes: tuple[str, ...]) -> list[int]:
  """Number of each row's class, -1 without label."""
  numbers: dict[str, int] = {}
  for i, name in enumerate(classes):
    other = numbers.setdefault(naming.label_key(name), i)
    if other != i:
      raise ValueError(
          f'config.data.classes has {classes[other]!r} and {name!r}, which '
          'differ only in case or white space; expected one of them'
      )
  for row in rows:
    if row.label and naming.label_key(row.label) not in numbers:
      raise ValueError(
          f'{table}:{row.line}: label {row.label!r} is not one of the '
          f'classes {naming.some(classes, 20)}'
      )
  return [
      numbers[naming.label_key(row.label)] if row.label else -1
      for row in rows
  ]


def _share(row: labels_csv.Row) -> float:
  """A number in [0, 1) that depends only on the subject, or the file name."""
  name = naming.file_key(row.file)
  if row.subject:
    name = f'subject {row.subject.casefold()}'
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:4], 'big') / 2**32


def _read(path: pathlib.Path) -> bytes:
  """A file's content; empty if the file can no longer be read."""
  try:
    return files.read_bytes(path)
  except OSError as error:
    decoding.warn_once(
        str(path), f'{path}: {error.strerror}; the file is left out'
    )
    return b''
