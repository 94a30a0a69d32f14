"""Reads the output of `vemd_jax.data.prepare` and its annotations.

`annotations.jsonl` has the folder format (see `vemd_jax.data.folder`): `file`
as in index.jsonl, and for clips `frame`, the number of the stored frame.
Keypoints that are distributed with the dataset are not replaced.
"""

import contextlib
import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vemd_jax.data import (
  annotations,
  datasets,
  decoding,
  files,
  folder,
  jsonl,
  naming,
  video,
)

# TFDS imports its modules on first use; in several threads at once it deadlocks
# (seen with Python 3.11, whose cached properties hold a lock).
_OPENING = threading.Lock()

# What a sample that cannot be read contains, like an unreadable image file.
_UNREADABLE = {
    'frames': [b''], 'bodies': None, 'num_bodies': -1, 'faces': None,
    'num_faces': -1, 'ignore_boxes': (), 'label_multi_hot': (),
    'transcript': b'', 'audio': (),
}  # fmt: skip


class PreparedSource:
  """Random access to the records of one split.

  Attributes:
    classes: names, in the order of the label numbers.
    labels: [n] int32, -1 without label.
    files: names as in index.jsonl.
    options: options of the preparation.
    report: what was read and left out here; report.json lists what the
      preparation left out.
  """

  def __init__(
      self,
      root: str | Path,
      name: str = '',
      split: str = 'train',
      fold: int = 0,
      holdout: float = 0.0,
      frames: int = 0,
      max_unreadable: float = 0.05,
      audio: folder.Features | None = None,
      text: folder.Features | None = None,
  ):
    """Opens prepared data.

    Args:
      root: the folder that was given as `--out`.
      name: expected dataset; '' accepts any.
      split: one of the prepared splits; of a dataset with folds 'train' or
        'test'. 'holdout' is the held-out part of train.
      fold: 1 .. number of folds; 0 without folds.
      holdout: share of train that is held out, by whole subjects or source
        videos if file names identify them. 'train' is the rest.
      frames: number of evenly spaced frames to take from longer clips; 0 takes
        all.
      max_unreadable: largest share of annotation lines that may be left out.
      audio: name of a file -> float32 [Ta, M] or None; used if no spectrogram
        is stored.
      text: name of a file -> float32 [Tt, E] or None.

    Raises:
      FileNotFoundError: there is no complete preparation.
      ValueError: split, fold or name do not match it, or the split is empty.
    """
    root = Path(root)
    made_file = root / 'prepared.json'
    if not made_file.exists():
      raise FileNotFoundError(
          f'{root} contains no complete preparation (no prepared.json); create '
          f'it with python -m vemd_jax.data.prepare {name or "DATASET"} '
          f'--source=DIR --out={root}'
      )
    made = _made(made_file)
    if name and name != made['dataset']:
      raise ValueError(f'{root} contains {made["dataset"]}, not {name}')
    self.name = made['dataset']
    self.classes = tuple(made['classes'])
    self.options = made['options']
    self._root, self._frames = root, frames
    self._audio, self._text = audio, text
    if 'label order' in made['facts']:
      logging.info('%s: labels %s', root, made['facts']['label order'])
    everything = _lines(root, made['splits'])
    self._stored, self._positions, lines = _select(
        root, made, everything, split, fold, holdout
    )
    self.files = [line['file'] for line in lines]
    self.labels = np.array([line['label'] for line in lines], np.int32)
    counts = Counter(self.labels.tolist())
    self.report = folder.Report(
        split,
        samples=len(self.files),
        classes={c: counts[i] for i, c in enumerate(self.classes)},
        unlabelled=counts[-1],
    )
    counts = [line['frames'] for line in lines]
    self._annotations = annotations.read(
        root,
        self.files,
        [list(map(str, range(n))) if n > 1 else None for n in counts],
        {naming.file_key(line['file']) for line in everything},
        ('body', 'face'),
        self.report,
        max_unreadable,
    )
    annotated = {i for i, line in enumerate(lines) if line.get('annotated')}
    self.report.annotated = len(annotated | self._annotations.keys())
    self._data = None

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A record, the input of `vemd_jax.data.decoding.decode`.

    Depending on the dataset it also has `ignore` (crowds and people without
    joints), `label_multi_hot` int32 [C] and `transcript`.
    """
    path = str(self._root / 'data')
    try:
      stored = files.retry(self._read, path, int(self._positions[index]))
    except OSError as error:
      name = self.files[index]
      decoding.warn_once(
          f'{path} {name}', f'{path}: {name} is left out: {error.strerror}'
      )
      stored = _UNREADABLE
    frames = stored['frames']
    chosen = list(range(len(frames)))
    if self._frames and len(frames) > self._frames:
      chosen = video.spread(len(frames), self._frames).tolist()
    record = {
        'file': self.files[index],
        'label': int(self.labels[index]),
        'frames': [frames[c] for c in chosen],
    }
    # Only image datasets store keypoints; the frames of clips have none here.
    ignore = np.asarray(stored['ignore_boxes'], np.float32)
    given = {
        'annotation_size': None,
        'bodies': _people(stored['bodies'], stored['num_bodies']),
        'faces': _people(stored['faces'], stored['num_faces']),
    }
    for key in ('bodies', 'faces'):
      # An image that shows only people without joints does not count as empty.
      if len(ignore) and given[key] is not None and not len(given[key]):
        given[key] = None
    found = self._annotations.get(index, {})
    for i, (key, value) in enumerate(given.items()):
      record[key] = [
          value if value is not None or c not in found else found[c][i]
          for c in chosen
      ]
    if len(ignore):
      corners = np.pad(
          ignore.reshape(-1, 2, 2), [(0, 0), (0, 0), (0, 1)], constant_values=1
      )
      record['ignore'] = [corners] * len(chosen)
    several = np.asarray(stored['label_multi_hot'], np.int32)
    if len(several):
      record['label_multi_hot'] = several
    if stored['transcript']:
      record['transcript'] = stored['transcript'].decode()
    if len(stored['audio']):
      record['audio'] = np.asarray(stored['audio'], np.float32)
    elif self._audio is not None:
      record['audio'] = self._audio(record['file'])
    if self._text is not None:
      record['text_embedding'] = self._text(record['file'])
    return record

  def _read(self, path: str, position: int) -> Mapping[str, Any]:
    data = self._data
    if data is None:
      # Opened on first use, so that each worker process opens its own.
      with _OPENING:
        if self._data is None:
          self._data = _open(self._root, self._stored)
        data = self._data
    try:
      return data[position]
    except RuntimeError as error:
      # The readers of array_record report all errors as text.
      message = str(error)
      names = (n for n in errno.errorcode if os.strerror(n) in message)
      number = next(names, errno.EBADMSG)
      if number != errno.EBADMSG:
        # A reader that could not open its file fails until it is made anew;
        # one that has met damaged records still reads the others.
        self._data = None
      raise OSError(number, message.partition(';')[0], path) from error

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_data': None}


def _open(root: Path, split: str):
  # Imported late, since it is slow and not needed to list the files.
  import tensorflow_datasets as tfds

  # TFDS imports the modules of the classes named in this file, which may come
  # from an untrusted source.
  path = root / 'data' / 'features.json'
  try:
    names = list(_class_names(json.loads(files.read_bytes(path))))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path}: not JSON ({error})') from error
  for name in names:
    if not str(name).startswith('tensorflow_datasets.core.features.'):
      raise ValueError(f'{path} names {name!r}, expected classes of TFDS')
  data = tfds.builder_from_directory(root / 'data').as_data_source(split)
  if len(data):
    # Decoding imports more modules.
    with contextlib.suppress(RuntimeError):
      data[0]
  return data


def _class_names(value: Any) -> Iterator[Any]:
  """Names of the Python classes in the content of a features.json."""
  if isinstance(value, dict):
    for key, inner in value.items():
      if key in ('pythonClassName', 'python_class_name'):
        yield inner
      else:
        yield from _class_names(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _class_names(inner)


def _people(keypoints, count) -> np.ndarray | None:
  return None if count < 0 else np.asarray(keypoints, np.float32)


def _made(path: Path) -> dict[str, Any]:
  """The content of prepared.json."""
  try:
    made = json.loads(files.read_bytes(path))
    datasets.get(made['dataset'])
    for key, kind in (
        ('classes', list), ('options', dict), ('facts', dict), ('splits', dict)
    ):  # fmt: skip
      if not isinstance(made[key], kind):
        raise TypeError(f'{key} is {made[key]!r}')
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
        f'{path} is not from vemd_jax.data.prepare '
        f'({type(error).__name__}: {error})'
    ) from error
  return made


def _lines(root: Path, counts: Mapping[str, int]) -> list[dict[str, Any]]:
  """The lines of index.jsonl, one per stored sample."""
  path = root / 'index.jsonl'
  lines = jsonl.read(path)
  kinds = {'split': str, 'file': str, 'label': int, 'frames': int,
           'holdout': int | float}  # fmt: skip
  for number, line in enumerate(lines, 1):
    for key, kind in kinds.items():
      if not isinstance(line.get(key), kind):
        raise ValueError(
            f'{path} line {number}: {key} is {line.get(key)!r}; prepare the '
            'data again'
        )
  found = Counter(line['split'] for line in lines)
  if found != counts:
    raise ValueError(
        f'{path} has {dict(found)} samples, but prepared.json says '
        f'{dict(counts)}; prepare the data again'
    )
  return lines


def _select(
    root: Path,
    made: Mapping[str, Any],
    everything: list[dict[str, Any]],
    split: str,
    fold: int,
    holdout: float,
) -> tuple[str, np.ndarray, list[dict[str, Any]]]:
  """TFDS split, positions in it, and index lines of the requested split."""
  facts = datasets.get(made['dataset'])
  if not 0 <= holdout < 1:
    raise ValueError(f'holdout={holdout}: expected 0 <= share < 1')
  if split == 'holdout' and not holdout:
    raise ValueError("split 'holdout' needs a share: set holdout")
  if facts.folds and not 1 <= fold <= facts.folds:
    raise ValueError(
        f'fold={fold}: {facts.title} has folds 1 .. {facts.folds}'
    )
  if fold and not facts.folds:
    raise ValueError(f'fold={fold}: {facts.title} has no folds')
  wanted = 'train' if split == 'holdout' else split
  known = ('train', 'test') if facts.folds else tuple(made['splits'])
  if wanted not in known:
    raise ValueError(
        f'{root} has no split {split!r}; it has {", ".join(known)}'
    )
  stored = 'folds' if facts.folds else wanted
  lines = [line for line in everything if line['split'] == stored]
  positions = []
  for i, line in enumerate(lines):
    if facts.folds and line['folds'][fold - 1] != known.index(wanted) + 1:
      continue
    held_out = line['holdout'] < holdout
    if wanted == 'train' and held_out != (split == 'holdout'):
      continue
    positions.append(i)
  if not positions:
    raise ValueError(f'{root}: split {split!r} is empty')
  return stored, np.array(positions), [lines[i] for i in positions]
