"""Batches from the data settings of a config, with Grain.

Batch k of a training run is a pure function of the seed and k: so a run that is
stopped goes on exactly where it was by starting at its step, and neither
threads nor worker processes change what comes. Each epoch has its own order.

In a mixture each batch is of one dataset. An epoch is over when every dataset
has given `weight * size` samples; the order of the datasets within it is drawn
at random (the reference draws the next batch's dataset until all are used up).
"""

import math
import sys
import zlib
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags

from vemd_jax.data import decoding, transforms
from vemd_jax.data.sources import Settings, make_source, plain

Batch = dict[str, np.ndarray]


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
    augment = transforms.Augment(**plain(data.augment))
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

  def __getitem__(self, index: int) -> decoding.Record:
    index = self._first + index * self._step
    return self._source[index] if index < len(self._source) else {}
