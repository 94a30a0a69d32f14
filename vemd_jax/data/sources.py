"""Opens the datasets that a config names as sources of records."""

import functools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from vemd_jax import import_path
from vemd_jax.data import (
  class_folders,
  datasets,
  decoding,
  feature_cache,
  files,
  labels_csv,
  vit_features,
)

Batch = dict[str, np.ndarray]
# An object with the attributes of `config.data`.
Settings = Any


def make_source(data: Settings, split: str):
  """Opens a split of a dataset.

  Sources are cached: a second call with the same settings returns the same
  source, including its samples in memory, unless the files that list the data
  have changed.

  Args:
    data: `config.data`; `source` is a key of `SOURCES`, or the import path of a
      function that is called with these settings and the split.
    split: 'train', 'val', 'test', or 'holdout', the held-out share
      `data.holdout` of 'train'. Without `data.val_split`, 'val' is 'holdout'.

  Returns:
    `len(s)`, `s[i]` (a record, see `decoding.decode`), `s.classes`,
    `s.labels` int32 [n].

  Raises:
    FileNotFoundError: the data do not exist.
    ValueError: there is no such split, or the data are invalid.
  """
  make = import_path.find(data.source, SOURCES, 'config.data.source')
  if split == 'val' and not data.val_split and data.source != 'group_scenes':
    split = 'holdout'
  if split not in ('train', 'val', 'test', 'holdout'):
    raise ValueError(
        f'split {split!r}, expected train, val, test or holdout'
    )
  if split == 'holdout' and not data.holdout:
    raise ValueError(
        'there is no split to select the checkpoint on: set data.val_split, or '
        'data.holdout to a share of train'
    )
  if split == 'test' and not data.test_split:
    raise ValueError('data.test_split is empty')
  stamps = []
  if data.source != 'group_scenes':
    for name in _LISTS:
      path = pathlib.Path(data.root) / name
      if files.exists(path):
        found = files.retry(os.stat, path)
        stamps.append((name, found.st_mtime_ns, found.st_size))
    listed = any(name == labels_csv.NAME for name, *_ in stamps)
    if data.source == 'folder' and not listed:
      stamps += class_folders.stamps(pathlib.Path(data.root))
  settings = {key: getattr(data, key) for key in _SOURCE_SETTINGS}
  if data.source == 'group_scenes':
    settings['group_scenes'] = plain(data.group_scenes)
  if import_path.is_path(data.source):
    settings = plain(data)
  elif not (data.cache or data.vit_dim):
    del settings['image_size'], settings['grayscale']
  settings = json.dumps(settings, sort_keys=True)
  with _opening:
    return _open(make, settings, split, tuple(stamps))


_opening = threading.Lock()

# Files whose modification invalidates a cached source.
_LISTS = (
    'labels.csv', 'annotations.jsonl', 'prepared.json',
    f'{vit_features.CACHE}/index.jsonl',
)  # fmt: skip

# Settings that a source depends on; the others only affect the transform.
_SOURCE_SETTINGS = (
    'name', 'source', 'root', 'classes', 'train_split', 'val_split',
    'test_split', 'holdout', 'fold', 'image_size', 'grayscale', 'frames',
    'bodies', 'faces', 'max_unreadable', 'outside_root', 'cache',
    'audio_frames', 'text_tokens', 'multi_label', 'vit_dim',
)  # fmt: skip


@functools.lru_cache(maxsize=32)
def _open(make: Callable, settings: str, split: str, stamps: tuple):
  """Opens a source; the arguments form the complete cache key."""
  del stamps
  data = _Settings(json.loads(settings))
  source = make(data, split)
  if not len(source):
    raise ValueError(f'{data.name}: split {split!r} is empty')
  if data.vit_dim:
    source = _with_vit_features(source, data)
  if data.cache:
    # Twice the size gives full resolution to crops of a quarter of the area.
    source = Cached(source, data.frames, 2 * data.image_size)
  return source


class _Settings:
  """Attribute access to nested dicts."""

  def __init__(self, values: Mapping[str, Any]):
    for key, value in values.items():
      value = _Settings(value) if isinstance(value, dict) else value
      setattr(self, key, tuple(value) if isinstance(value, list) else value)


def plain(settings: Settings) -> dict[str, Any]:
  """Converts settings to nested dicts."""
  if hasattr(settings, 'to_dict'):
    return settings.to_dict()
  return {
      key: plain(value) if isinstance(value, _Settings) else value
      for key, value in vars(settings).items()
  }


def _group_scenes(data: Settings, split: str):
  from vemd_jax.scenes import group_scenes

  scenes = data.group_scenes
  source = group_scenes.GroupScenes(
      'train' if split == 'holdout' else split,
      getattr(scenes, f'{"train" if split == "holdout" else split}_samples'),
      cue=scenes.cue,
      size=scenes.size,
      frames=data.frames,
      people=scenes.people,
      zoom=scenes.zoom,
      seed=scenes.seed,
      single_cue=(
          scenes.single_cue
          if (split, scenes.cue) == ('train', 'both')
          else (0.0, 0.0)
      ),
  )
  if split in ('train', 'holdout') and data.holdout:
    # Samples are exchangeable, so the last ones serve as the holdout.
    first = round(len(source) * (1 - data.holdout))
    ends = (0, first) if split == 'train' else (first, len(source))
    source = _Part(source, *ends)
  return source


def _folder(data: Settings, split: str):
  from vemd_jax.data import class_folders, folder

  audio = text = None
  if data.audio_frames:
    audio = feature_cache.look_up(data.root, 'audio')
  if data.text_tokens:
    text = feature_cache.look_up(data.root, 'text')
  if (
      split == 'val'
      and data.val_split == 'val'
      and data.holdout
      and not class_folders.table(data.root).names('val')
  ):
    # There is no split of the default name; the held-out part replaces it.
    split = 'holdout'
  wanted = {
      'train': data.train_split,
      'holdout': data.train_split,
      'val': data.val_split,
      'test': data.test_split,
  }[split]
  source = folder.Folder(
      data.root,
      wanted,
      classes=data.classes,
      holdout=data.holdout if split in ('train', 'holdout') else 0.0,
      held_out=split == 'holdout',
      frames=data.frames,
      bodies=data.bodies,
      faces=data.faces,
      max_unreadable=data.max_unreadable,
      outside_root=data.outside_root,
      audio=audio,
      text=text,
  )
  for remark in source.report.remarks:
    # They concern all splits, so one warning is enough.
    decoding.warn_once(remark, remark)
  log = logging.warning if source.report.problems else logging.info
  log('%s: %s', data.root, source.report)
  return source


def _prepared(data: Settings, split: str):
  from vemd_jax.data import prepared

  wanted = {
      'train': data.train_split,
      'holdout': 'holdout',
      'val': data.val_split,
      'test': data.test_split,
  }[split]
  text = None
  if data.text_tokens:
    text = feature_cache.look_up(data.root, 'text')
  source = prepared.PreparedSource(
      data.root,
      split=wanted,
      fold=data.fold,
      holdout=data.holdout if split in ('train', 'holdout') else 0.0,
      frames=data.frames,
      max_unreadable=data.max_unreadable,
      text=text,
  )
  lacking = [
      option
      for option, wanted in (
          ('audio', data.audio_frames),
          ('multi_label', data.multi_label),
      )
      if wanted and not source.options[option]
  ]
  # Images in a mixture with clips have no sound.
  if lacking and (lacking != ['audio'] or datasets.get(source.name).audio):
    raise ValueError(
        f'{data.root} was prepared without --{lacking[-1]}, which this run '
        f'needs: add it to python -m vemd_jax.data.prepare {source.name}'
    )
  return source


# Name -> function of (settings, split) that opens a source.
SOURCES = {
    'group_scenes': _group_scenes,
    'folder': _folder,
    'tfds': _prepared,
}


def _with_vit_features(source, data: Settings):
  if data.source == 'group_scenes':
    raise ValueError(
        'data.vit_dim: group_scenes does not support cached ViT features'
    )
  look_up = vit_features.features(
      data.root,
      width=data.vit_dim,
      image_size=data.image_size,
      frames=data.frames,
      grayscale=data.grayscale,
  )
  missing = look_up.missing(source.files)
  if len(missing) > data.max_unreadable * len(source):
    raise ValueError(
        f'{data.root}: {len(missing)} of {len(source)} samples, such as '
        f'{missing[0]}, have no cached ViT features; {vit_features.COMMAND} '
        'resumes where it stopped'
    )
  return _WithVitFeatures(source, look_up)


class _WithVitFeatures:
  """A source's records with their cached `vit_features`."""

  def __init__(self, source, look_up):
    self._source, self._look_up = source, look_up
    self.classes, self.labels = source.classes, source.labels
    self.files, self.report = source.files, source.report
    self.sources = getattr(source, 'sources', None)
    self.subjects = getattr(source, 'subjects', None)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> decoding.Record:
    record = self._source[index]
    return {**record, 'vit_features': self._look_up(record)}


class _Part:
  """Samples `first` to `end` of a source."""

  def __init__(self, source, first: int, end: int):
    self._source, self._first = source, first
    self.classes, self.labels = source.classes, source.labels[first:end]

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> decoding.Record:
    return self._source[self._first + index]


class Cached:
  """Caches the decoded records of a source in memory after their first use."""

  def __init__(self, source, frames: int, max_side: int):
    """Starts with an empty cache.

    Args:
      source: source of the records.
      frames: T.
      max_side: upper bound of the longer side of cached images, in pixels.
    """
    self._source, self._frames, self._max_side = source, frames, max_side
    self._records: dict[int, decoding.Record] = {}
    self.classes, self.labels = source.classes, source.labels
    for name in ('files', 'sources', 'subjects', 'report'):
      setattr(self, name, getattr(source, name, None))

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> decoding.Record:
    # Two threads may decode the same record. Their results are equal, and
    # setting an item of a dict is atomic.
    record = self._records.get(index)
    if record is None:
      record = decoding.decode(
          self._source[index], self._frames, max_side=self._max_side
      )
      self._records[index] = record
    return record

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes start with an empty cache of their own.
    return {**self.__dict__, '_records': {}}
