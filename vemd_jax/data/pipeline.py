"""Batches from the data settings of a config, with Grain.

Batch k of a training run is a pure function of the seed and k: so a run that is
stopped goes on exactly where it was by starting at its step, and neither
threads nor worker processes change what comes. Each epoch has its own order.

In a mixture each batch is of one dataset. An epoch is over when every dataset
has given `weight * size` samples; the order of the datasets within it is drawn
at random (the reference draws the next batch's dataset until all are used up).
"""

import functools
import json
import math
import pathlib
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from vemd_jax.data import datasets, transforms, vit_features

Batch = dict[str, np.ndarray]
# An object with the attributes of `config.data`.
Settings = Any


def make_source(data: Settings, split: str):
  """Opens a split of a dataset.

  Asked again for the same data it gives the same source, with what that keeps
  in memory, as long as the files that list the data have not changed.

  Args:
    data: `config.data`.
    split: 'train', 'val', 'test', or 'holdout', the share `data.holdout` of
      'train' that is set apart. Without a `data.val_split`, 'val' is that, too.

  Returns:
    `len(s)`, `s[i]` (a record, see `transforms.decode`), `s.classes`,
    `s.labels` int32 [n].

  Raises:
    FileNotFoundError: if the data are not there.
    ValueError: if there is no such split, or the data make no sense.
  """
  if data.source not in _SOURCES:
    raise ValueError(
        f'data.source is {data.source!r}, expected one of {", ".join(_SOURCES)}'
    )
  if split == 'val' and not data.val_split and data.source != 'group_scenes':
    split = 'holdout'
  if split not in ('train', 'val', 'test', 'holdout'):
    raise ValueError(
        f'split {split!r}, expected train, val, test or holdout'
    )
  if split == 'holdout' and not data.holdout:
    raise ValueError(
        'there is nothing to choose the checkpoint on: set data.val_split, or '
        'data.holdout to a share of train'
    )
  if split == 'test' and not data.test_split:
    raise ValueError('data.test_split is empty')
  stamps = []
  if data.source != 'group_scenes':
    for name in _LISTS:
      path = pathlib.Path(data.root) / name
      if path.exists():
        stamps.append((name, path.stat().st_mtime_ns, path.stat().st_size))
  settings = {key: getattr(data, key) for key in _SOURCE_SETTINGS}
  if data.source == 'group_scenes':
    settings['group_scenes'] = _plain(data.group_scenes)
  if not (data.cache or data.vit_dim):
    del settings['image_size'], settings['grayscale']
  settings = json.dumps(settings, sort_keys=True)
  with _opening:
    return _open(settings, split, tuple(stamps))


_opening = threading.Lock()

# Files whose change makes a source another one.
_LISTS = (
    'labels.csv', 'annotations.jsonl', 'prepared.json',
    f'{vit_features.CACHE}/index.jsonl',
)  # fmt: skip

# What a source depends on; the others only change what is made of it.
_SOURCE_SETTINGS = (
    'name', 'source', 'root', 'classes', 'train_split', 'val_split',
    'test_split', 'holdout', 'fold', 'image_size', 'grayscale', 'frames',
    'bodies', 'faces', 'max_unreadable', 'cache', 'audio_frames',
    'text_tokens', 'multi_label', 'vit_dim',
)  # fmt: skip


@functools.lru_cache(maxsize=32)
def _open(settings: str, split: str, stamps: tuple):
  """Opens a source; the arguments say all that it depends on."""
  del stamps
  data = _Settings(json.loads(settings))
  source = _SOURCES[data.source](data, split)
  if not len(source):
    raise ValueError(f'{data.name}: split {split!r} is empty')
  if data.vit_dim:
    source = _with_vit_features(source, data)
  if data.cache:
    # Twice the size leaves enough for crops of a quarter of the area.
    source = Cached(source, data.frames, 2 * data.image_size)
  return source


class _Settings:
  """Nested dicts as attributes."""

  def __init__(self, values: Mapping[str, Any]):
    for key, value in values.items():
      value = _Settings(value) if isinstance(value, dict) else value
      setattr(self, key, tuple(value) if isinstance(value, list) else value)


def _plain(settings: Settings) -> dict[str, Any]:
  """Settings that are not nested, as a dict."""
  if hasattr(settings, 'to_dict'):
    return settings.to_dict()
  return dict(vars(settings))


def _group_scenes(data: Settings, split: str):
  from vemd_jax.data import group_scenes

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
  )
  if split in ('train', 'holdout') and data.holdout:
    # Samples are exchangeable: the last ones will do.
    first = round(len(source) * (1 - data.holdout))
    ends = (0, first) if split == 'train' else (first, len(source))
    source = _Part(source, *ends)
  return source


def _folder(data: Settings, split: str):
  from vemd_jax.data import folder

  audio = text = None
  if data.audio_frames:
    from vemd_jax.data import audio as audio_lib

    audio = audio_lib.features(data.root)
  if data.text_tokens:
    from vemd_jax.data import text as text_lib

    text = text_lib.features(data.root)
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
      audio=audio,
      text=text,
  )
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
    from vemd_jax.data import text as text_lib

    text = text_lib.features(data.root)
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
        f'needs: give it to python -m vemd_jax.data.prepare {source.name}'
    )
  return source


_SOURCES = {
    'group_scenes': _group_scenes,
    'folder': _folder,
    'tfds': _prepared,
}


def _with_vit_features(source, data: Settings):
  if data.source == 'group_scenes':
    raise ValueError(
        'data.vit_dim: group_scenes has no place for cached ViT features'
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
        'goes on where it stopped'
    )
  return _WithVitFeatures(source, look_up)


class _WithVitFeatures:
  """A source's records with their cached `vit_features`."""

  def __init__(self, source, look_up):
    self._source, self._look_up = source, look_up
    self.classes, self.labels = source.classes, source.labels
    self.files, self.report = source.files, source.report

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> transforms.Record:
    record = self._source[index]
    return {**record, 'vit_features': self._look_up(record)}


class _Part:
  """Samples `first` to `end` of a source."""

  def __init__(self, source, first: int, end: int):
    self._source, self._first = source, first
    self.classes, self.labels = source.classes, source.labels[first:end]

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> transforms.Record:
    return self._source[self._first + index]


class Cached:
  """Keeps a source's records in memory, decoded, after their first use."""

  def __init__(self, source, frames: int, max_side: int):
    """Keeps nothing yet.

    Args:
      source: what gives the records.
      frames: T.
      max_side: of the images that are kept, in pixels.
    """
    self._source, self._frames, self._max_side = source, frames, max_side
    self._records: dict[int, transforms.Record] = {}
    self.classes, self.labels = source.classes, source.labels

  @property
  def report(self):
    """The source's own, or None."""
    return getattr(self._source, 'report', None)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> transforms.Record:
    # Two threads may decode the same record; both get the same, and setting
    # an item of a dict is atomic.
    record = self._records.get(index)
    if record is None:
      record = transforms.decode(
          self._source[index], self._frames, max_side=self._max_side
      )
      self._records[index] = record
    return record

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes start with an empty memory of their own.
    return {**self.__dict__, '_records': {}}


def make_transform(data: Settings, train: bool) -> transforms.Transform:
  """The transform that the settings describe.

  Args:
    data: `config.data`.
    train: whether it augments.

  Returns:
    The transform.

  Raises:
    ValueError: if heatmaps of no size are to be rendered on the host.
  """
  host = data.targets == 'host'
  if host and not data.heatmap_size:
    raise ValueError(
        "data.targets is 'host', but data.heatmap_size is 0; expected the side "
        "of the model's heatmaps"
    )
  augment = transforms.Augment()
  if train:
    augment = transforms.Augment(**_plain(data.augment))
  return transforms.Transform(
      image_size=data.image_size,
      frames=data.frames,
      max_people=data.max_people,
      max_ignore=data.max_ignore,
      labels=data.labels,
      bodies=data.bodies,
      faces=data.faces,
      gray=data.grayscale,
      nobody=data.empty_annotation == 'nobody',
      heatmap_size=data.heatmap_size if host else 0,
      sigma=data.sigma,
      audio=(data.audio_frames, data.audio_dim),
      text=(data.text_tokens, data.text_dim),
      vit_dim=data.vit_dim,
      multi_label=len(data.classes) if data.multi_label else 0,
      augment=augment,
  )


# ---------------------------------------------------------------- training


def batches_per_epoch(
    datasets: Mapping[str, Settings], batch_size: int, process_count: int = 1
) -> dict[str, int]:
  """How many batches of each dataset an epoch has.

  Args:
    datasets: name -> settings.
    batch_size: of one process.
    process_count: number of processes.

  Returns:
    Name -> batches, at least one each.
  """
  return {
      name: max(
          1,
          math.ceil(
              getattr(data, 'weight', 1.0)
              * len(make_source(data, 'train'))
              / (batch_size * process_count)
          ),
      )
      for name, data in datasets.items()
  }


def steps_per_epoch(
    datasets: Mapping[str, Settings], batch_size: int, process_count: int = 1
) -> int:
  """Steps until all datasets are used up, see `batches_per_epoch`."""
  return sum(batches_per_epoch(datasets, batch_size, process_count).values())


def train_batches(
    datasets: Mapping[str, Settings],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[str, Batch]]:
  """Endless training batches, shuffled and augmented.

  Args:
    datasets: name -> settings; several are mixed.
    batch_size: of this process.
    seed: everything random follows from it.
    start_step: the first batch is that of this step.
    process_index: number of this process.
    process_count: each process has its own part of every dataset.

  Yields:
    Name of the dataset, and a batch of it.

  Raises:
    ValueError: if a dataset has fewer samples than there are processes.
  """
  names = list(datasets)
  streams = [
      _stream(name, data, batch_size, seed, process_index, process_count)
      for name, data in datasets.items()
  ]
  counts = batches_per_epoch(datasets, batch_size, process_count)
  mixture = _Mixture(streams, [counts[name] for name in names], seed)
  read = grain.MapDataset.source(mixture)
  if start_step:
    read = read[start_step:]
  threads = max(data.num_threads for data in datasets.values())
  workers = max(data.num_workers for data in datasets.values())
  for which, batch in _iterate(read, threads, workers):
    yield names[which], batch


def _stream(
    name: str,
    data: Settings,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
  """One dataset's batches of one process, without end."""
  source = make_source(data, 'train')
  if len(source) < process_count:
    raise ValueError(
        f'{name}: {len(source)} training samples for {process_count} processes'
    )
  entropy = (seed, zlib.crc32(name.encode()), process_index)
  own_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
  read = grain.MapDataset.source(source)
  if process_count > 1:
    read = read[process_index::process_count]
  # Repeated before it is batched: a split may be smaller than a batch.
  read = read.seed(own_seed).shuffle().repeat()
  read = read.random_map(make_transform(data, train=True))
  return read.batch(batch_size)


class _Mixture:
  """Random access to the batches of several datasets, without end."""

  def __init__(
      self, streams: list[grain.MapDataset], counts: list[int], seed: int
  ):
    self._streams, self._counts, self._seed = streams, counts, seed
    # What was computed last; without it a step would cost an epoch's drawing.
    self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

  def __len__(self) -> int:
    return sys.maxsize

  def __repr__(self) -> str:
    return f'_Mixture({self._counts}, {self._seed})'

  def __getitem__(self, step: int) -> tuple[int, Batch]:
    epoch, at = divmod(step, sum(self._counts))
    which, turn = self.order(epoch)
    index = int(which[at])
    position = epoch * self._counts[index] + int(turn[at])
    return index, self._streams[index][position]

  def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's datasets in order, and which batch of its dataset each is."""
    last = self._epoch
    if last is None or last[0] != epoch:
      which = np.repeat(np.arange(len(self._counts)), self._counts)
      which = np.random.default_rng((self._seed, epoch)).permutation(which)
      turn = np.zeros_like(which)
      for index, count in enumerate(self._counts):
        turn[which == index] = np.arange(count)
      last = self._epoch = (epoch, which, turn)
    return last[1], last[2]


def _iterate(read: grain.MapDataset, threads: int, workers: int) -> Iterator:
  """Reads ahead in threads, and in worker processes if there are any."""
  # Elements are whole batches: few of them make a long queue.
  options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=2 * threads
  )
  read = read.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    read = read.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  iterator = iter(read)
  try:
    yield from iterator
  finally:
    iterator.close()


# -------------------------------------------------------------- evaluation


def eval_batches(
    data: Settings,
    split: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
  """One pass over a split, in order, without augmentation.

  Every process gets the same number of batches; what is missing is filled up
  with samples whose mask is False.

  Args:
    data: `config.data`.
    split: see `make_source`.
    batch_size: of this process.
    process_index: number of this process.
    process_count: process i has samples i, i + process_count, ...

  Yields:
    Batches of one size.
  """
  source = make_source(data, split)
  own = -(-len(source) // process_count)
  own = -(-own // batch_size) * batch_size
  padded = _Padded(source, own, process_index, process_count)
  read = grain.MapDataset.source(padded)
  read = read.map(make_transform(data, train=False)).batch(batch_size)
  # Worker processes would forget what is kept in memory.
  workers = 0 if data.cache else data.num_workers
  yield from _iterate(read, data.num_threads, workers)


class _Padded:
  """A process's samples of a source, then empty records up to a length."""

  def __init__(self, source, length: int, first: int, step: int):
    self._source, self._length = source, length
    self._first, self._step = first, step

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f'_Padded({self._length}, {self._first}, {self._step})'

  def __getitem__(self, index: int) -> transforms.Record:
    index = self._first + index * self._step
    return self._source[index] if index < len(self._source) else {}
