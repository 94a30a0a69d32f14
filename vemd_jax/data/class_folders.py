"""Reads the common layout of one folder of images per class.

  DIR/happy/1.jpg           or   DIR/train/happy/1.jpg
  DIR/sad/a/2.jpg                DIR/val/sad/2.jpg

Folders of splits are recognised by the names in `labels_csv.SPLITS`. Without
them, or without `val`, samples are split by `near_duplicates.split`: near
duplicates, and images in the same subfolder of a class, stay together.

If the folder contains a labels.csv, that is read instead.
"""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vemd_jax import progress
from vemd_jax.data import (
  decoding,
  feature_cache,
  files,
  labels_csv,
  naming,
  near_duplicates,
  video,
)

SHARES = {'train': 0.8, 'val': 0.2}

# Folders created by archive programs and network drives.
_IGNORED = ('__macosx', '@eadir', '$recycle.bin')


class Sample(NamedTuple):
  """An image or video in a class folder.

  Attributes:
    file: path relative to the root folder.
    split: '' if there are no folders of splits.
    label: name of the class folder.
  """

  file: str
  split: str
  label: str


def table(
    root: str | os.PathLike, classes: Sequence[str] = ()
) -> labels_csv.Table:
  """Reads the labels of a folder, from labels.csv or from class folders.

  Args:
    root: the folder.
    classes: see `labels_csv.read`.

  Returns:
    The table.

  Raises:
    FileNotFoundError: there is no folder, or it has neither.
    ValueError: the layout or labels.csv is invalid.
  """
  root = pathlib.Path(root)
  if files.exists(root / labels_csv.NAME) or not _folders(root):
    return labels_csv.read(root, classes)
  samples = find(root)
  found = _splits(root, tuple(samples))
  rows = [
      labels_csv.Row(number, sample.file, split, sample.label)
      for number, (sample, split) in enumerate(zip(samples, found), 1)
  ]
  names = sorted({s.label for s in samples}, key=naming.natural_key)
  remarks = []
  if any(not s.split for s in samples):
    remarks.append(
        f'{root} has no folders of splits: a fifth of each class is used as '
        'val, without near duplicates of train; vemd new writes this split '
        'to labels.csv'
    )
  return labels_csv.Table(root, rows, tuple(names), remarks)


def find(root: pathlib.Path) -> list[Sample]:
  """Lists the samples of class folders.

  Args:
    root: the root folder.

  Returns:
    Samples in the natural order of their names.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: the folder has another layout.
  """
  if not root.is_dir():
    raise FileNotFoundError(f'{root}: no such folder')
  spelled = {
      other: split
      for split, others in labels_csv.SPLITS.items()
      for other in (split, *others)
  }
  top = _folders(root)
  of_splits = [name for name in top if name.casefold() in spelled]
  if of_splits and len(of_splits) < len(top):
    others = [name for name in top if name not in of_splits]
    raise ValueError(
        f'{root}: {", ".join(of_splits)} are folders of splits, {others[0]} is '
        'not; expected either DIR/SPLIT/CLASS/*.jpg or DIR/CLASS/*.jpg'
    )
  samples = []
  for name in of_splits or ['']:
    for label in _folders(root / name):
      samples += [
          Sample(file, spelled.get(name.casefold(), ''), label)
          for file in _pictures(root, root / name / label)
      ]
  labels = {sample.label for sample in samples}
  if len(labels) < 2:
    found = f'only {labels.pop()!r}' if labels else 'none'
    raise ValueError(
        f'{root}: expected folders of images for at least two classes, '
        f'DIR/CLASS/*.jpg, found {found}'
    )
  return samples


def divide(
    samples: Sequence[Sample],
    prints: Sequence[near_duplicates.Fingerprint | None],
    shares: Mapping[str, float],
    subjects: Sequence[str] = (),
) -> list[str]:
  """Assigns samples to splits.

  Args:
    samples: samples of class folders.
    prints: fingerprints of the samples, None if a file cannot be read.
    shares: split -> its share of the samples; the shares sum to 1.
    subjects: subject of each sample, '' if unknown, or (). The samples of a
      subject are not separated.

  Returns:
    The split of each sample.
  """
  whole = [i for i, p in enumerate(prints) if p is not None]
  together = [
      (whole[i], whole[j])
      for i, j in near_duplicates.pairs([prints[i] for i in whole])
  ]
  first: dict[tuple[str, str], int] = {}
  for i, sample in enumerate(samples):
    # Images in a subfolder of the class may be frames of one scene.
    folder = sample.file.rpartition('/')[0]
    below = folder.count('/') > bool(sample.split)
    keys = [('folder', folder if below else '')]
    keys += [('subject', subjects[i])] if subjects else []
    together += [(first.setdefault(key, i), i) for key in keys if key[1]]
  return near_duplicates.split(
      [s.file for s in samples],
      [s.label for s in samples],
      near_duplicates.groups(len(samples), together),
      shares,
  )


def splits(
    root: pathlib.Path,
    samples: Sequence[Sample],
    shares: Mapping[str, float],
    subjects: Sequence[str] = (),
) -> list[str]:
  """Reads the split of each sample from its folder, or assigns one.

  Args:
    root: the root folder.
    samples: samples of class folders.
    shares: split -> its share of the samples without split; the shares sum to
      1. If only `val` is missing, it is split off `train`.
    subjects: see `divide`.

  Returns:
    The split of each sample.
  """
  there = {s.split for s in samples}
  if {'train', 'val'} <= there:
    return [s.split for s in samples]
  todo = [i for i, s in enumerate(samples) if s.split in ('', 'train')]
  if 'train' in there:
    shares = {'train': 1 - shares['val'], 'val': shares['val']}
  chosen = [samples[i] for i in todo]
  seen = look(_Files(root, chosen))
  found = divide(
      chosen,
      [one.fingerprint for one in seen],
      shares,
      [subjects[i] for i in todo] if subjects else (),
  )
  result = [s.split for s in samples]
  for i, split in zip(todo, found):
    result[i] = split
  return result


@functools.lru_cache(maxsize=4)
def _splits(root: pathlib.Path, samples: tuple[Sample, ...]) -> list[str]:
  return splits(root, samples, SHARES)


class Look(NamedTuple):
  """Properties of an image, or of the middle frame of a clip.

  Attributes:
    size: (width, height) in pixels; None if it cannot be read.
    fingerprint: its fingerprint; None if it cannot be read.
    people: number of annotated bodies or of faces, whichever is larger; None if
      it is not annotated.
    problem: why it cannot be read, or ''.
  """

  size: tuple[int, int] | None
  fingerprint: near_duplicates.Fingerprint | None
  people: int | None
  problem: str


def look(source: Any) -> list[Look]:
  """Reads all images and videos of a source and shows progress.

  Args:
    source: sequence of records with `frames` or `video`.

  Returns:
    The properties of each sample, in order.
  """
  with (
      concurrent.futures.ThreadPoolExecutor() as pool,
      progress.bar(len(source), 'file', 'reading images', brief=True) as bar,
  ):
    seen = []
    read = functools.partial(_look, source)
    for one in feature_cache.ordered(pool, read, range(len(source)), 32):
      seen.append(one)
      bar.update()
  return seen


def _look(source: Any, index: int) -> Look:
  people = None
  try:
    record = source[index]
    people = _people(record)
    if 'video' in record:
      image = video.read_frames(record['video'], 1).frames[0]
      size = image.shape[1::-1]
    else:
      middle = record['frames'][len(record['frames']) // 2]
      image, _, size = decoding.decode_reduced(middle, 64)
  except ValueError as error:
    return Look(None, None, people, str(error))
  except OSError as error:
    return Look(None, None, people, error.strerror or str(error))
  return Look(tuple(size), near_duplicates.fingerprint(image), people, '')


def _people(record: Mapping[str, Any]) -> int | None:
  counts = []
  for key in 'bodies', 'faces':
    values = record.get(key, ())
    values = values.values() if isinstance(values, dict) else values
    counts += [len(people) for people in values if people is not None]
  return max(counts, default=None)


class _Files:
  """Samples as records, without labels and annotations."""

  def __init__(self, root: pathlib.Path, samples: Sequence[Sample]):
    self._root, self._samples = root, samples

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self._root / self._samples[index].file
    if naming.is_video(path.name):
      return {'video': str(path)}
    return {'frames': [files.read_bytes(path)]}


def stamps(root: pathlib.Path) -> list[tuple[str, int]]:
  """Modification times of class folders, which change when files are added.

  Args:
    root: the root folder.

  Returns:
    (folder, modification time in ns), two levels deep.
  """
  return [
      (f'{name}/{below}', os.stat(root / name / below).st_mtime_ns)
      for name in _folders(root)
      for below in ('', *_folders(root / name))
  ]


def _folders(path: pathlib.Path) -> list[str]:
  """Names of subfolders, without hidden and ignored ones."""
  if not path.is_dir():
    return []
  with os.scandir(path) as entries:
    names = [
        entry.name
        for entry in entries
        if entry.is_dir()
        and not entry.name.startswith('.')
        and entry.name.casefold() not in _IGNORED
    ]
  return sorted(names, key=naming.natural_key)


def _pictures(root: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Images and videos in a folder and its subfolders."""
  found = []
  for path, folders, names in os.walk(folder):
    folders[:] = [
        n for n in folders
        if not n.startswith('.') and n.casefold() not in _IGNORED
    ]  # fmt: skip
    found += [
        (pathlib.Path(path) / name).relative_to(root).as_posix()
        for name in names
        if not name.startswith('.')
        and (naming.is_image(name) or naming.is_video(name))
    ]
  return sorted(found, key=naming.natural_key)
