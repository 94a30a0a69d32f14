"""Batches from the data settings of a config, with Grain.

A sample of a training run, with its augmentation, is a pure function of the
seed, the step and its row in the global batch. An interrupted run therefore
resumes exactly by starting at its step, and the data depend neither on the
number of threads and worker processes nor on the number of processes of the
run: each process reads only its own rows of every global batch. The data are
reshuffled in every epoch.

In a mixture each batch comes from one dataset. An epoch ends when every dataset
has contributed `weight * size` samples; the order of the datasets within it is
random (the reference draws the dataset of each batch until all are exhausted).
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import flags

from vemd_jax.data import decoding, poisson, transforms
from vemd_jax.data.sources import Settings, make_source, plain

Batch = dict[str, np.ndarray]


def make_transform(data: Settings, train: bool) -> transforms.Transform:
  """Builds the transform of the data settings.

  Args:
    data: `config.data`.
    train: whether to augment.

  Returns:
    The transform.

  Raises:
    ValueError: heatmaps are rendered on the host but have no size.
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
    datasets: Mapping[str, Settings], batch_size: int
) -> dict[str, int]:
  """Number of batches of each dataset in an epoch.

  Args:
    datasets: name -> settings.
    batch_size: global batch size.

  Returns:
    Name -> batches, at least one each.
  """
  return {
      name: max(
          1,
          math.ceil(
              getattr(data, 'weight', 1.0)
              * len(make_source(data, 'train'))
              / batch_size
          ),
      )
      for name, data in datasets.items()
  }


def steps_per_epoch(datasets: Mapping[str, Settings], batch_size: int) -> int:
  """Steps of an epoch over all datasets, see `batches_per_epoch`."""
  return sum(batches_per_epoch(datasets, batch_size).values())


def train_batches(
    datasets: Mapping[str, Settings],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    sampling: poisson.Sampling | None = None,
) -> Iterator[tuple[str, Batch]]:
  """Yields training batches, shuffled and augmented, without end.

  Args:
    datasets: name -> settings; several are mixed.
    batch_size: global batch size.
    seed: determines shuffling, augmentation and mixture.
    start_step: step of the first batch.
    rows: rows of the global batch that this process reads, see
      `sharding.local_rows`; None reads all.
    sampling: how private batches are drawn; `batch_size` is then their expected
      size.

  Yields:
    Name of the dataset, and these rows of a batch of it.
  """
  names = list(datasets)
  streams = [
      _batches(
          _stream(make_source(data, 'train'), name, batch_size, seed, sampling)
          .random_map(make_transform(data, train=True)),
          batch_size if sampling is None else sampling.rows,
          rows,
      )
      for name, data in datasets.items()
  ]
  counts = batches_per_epoch(datasets, batch_size)
  mixture = _Mixture(streams, [counts[name] for name in names], seed)
  read = grain.MapDataset.source(mixture)
  if start_step:
    read = read[start_step:]
  threads = max(data.num_threads for data in datasets.values())
  workers = max(data.num_workers for data in datasets.values())
  for which, batch in _iterate(read, threads, workers):
    yield names[which], batch


def sample_names(
    step: int,
    datasets: Mapping[str, Settings],
    batch_size: int,
    seed: int,
    sampling: poisson.Sampling | None = None,
) -> list[str]:
  """Names of the samples in a batch of `train_batches`, without decoding.

  Args:
    step: index of the batch.
    datasets: datasets of the run, as for `train_batches`.
    batch_size: global batch size.
    seed: seed of the run.
    sampling: see `train_batches`.

  Returns:
    The file of each sample; its index if the source has no file names.
  """
  sources = {n: make_source(data, 'train') for n, data in datasets.items()}
  if sampling is not None:
    ((name, source),) = sources.items()
    drawn = poisson.Drawn(source, name, seed, batch_size, sampling)
    drawn = drawn.indices(step)
    files = getattr(source, 'files', None)
    return [str(i) if files is None else files[i] for i in drawn]
  streams = [
      _shuffled(range(len(source)), name, seed).batch(batch_size)
      for name, source in sources.items()
  ]
  counts = batches_per_epoch(datasets, batch_size)
  mixture = _Mixture(streams, [counts[name] for name in datasets], seed)
  which, indices = mixture[step]
  files = getattr(list(sources.values())[which], 'files', None)
  return [str(i) if files is None else files[i] for i in indices]


def _stream(
    source: Sequence,
    name: str,
    batch_size: int,
    seed: int,
    sampling: poisson.Sampling | None,
) -> grain.MapDataset:
  """The samples of a dataset in the order of the batches, without end."""
  if sampling is None:
    return _shuffled(source, name, seed)
  drawn = poisson.Drawn(source, name, seed, batch_size, sampling)
  return grain.MapDataset.source(drawn).seed(_own_seed(name, seed))


def _shuffled(elements: Sequence, name: str, seed: int) -> grain.MapDataset:
  """A dataset without end, reshuffled in every epoch."""
  read = grain.MapDataset.source(elements).seed(_own_seed(name, seed))
  # Repeat before batching, since a split may be smaller than a batch.
  return read.shuffle().repeat()


def _own_seed(name: str, seed: int) -> int:
  # The 0 was the index of the process when each had a shard of its own; with
  # it, the order of a single process is that of earlier versions.
  entropy = (seed, zlib.crc32(name.encode()), 0)
  return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _batches(
    read: grain.MapDataset, batch_size: int, rows: Sequence[int] | None
) -> grain.MapDataset:
  """Global batches of a dataset, or these rows of each."""
  if rows is None or list(rows) == list(range(batch_size)):
    return read.batch(batch_size)
  return grain.MapDataset.source(_Rows(read, batch_size, rows)).batch(len(rows))


class _Rows:
  """The samples of a dataset that lie in certain rows of the global batches.

  They are read from the augmented dataset by their global index, which
  determines their augmentation.
  """

  def __init__(
      self, read: grain.MapDataset, batch_size: int, rows: Sequence[int]
  ):
    self._read, self._batch_size = read, batch_size
    self._rows = [int(row) for row in rows]

  def __len__(self) -> int:
    return len(self._read) // self._batch_size * len(self._rows)

  def __repr__(self) -> str:
    return f'_Rows({self._batch_size}, {self._rows})'

  def __getitem__(self, index: int):
    batch, place = divmod(index, len(self._rows))
    return self._read[batch * self._batch_size + self._rows[place]]


class _Mixture:
  """Random access to the infinite sequence of a mixture's batches."""

  def __init__(
      self, streams: list[grain.MapDataset], counts: list[int], seed: int
  ):
    self._streams, self._counts, self._seed = streams, counts, seed
    # The order of the last epoch, so that it is drawn once and not every step.
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
    """Dataset of each step of an epoch, and its batch number in the epoch."""
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
  """Prefetches in threads, and in worker processes if `workers` is not 0."""
  # An element is a whole batch, so a short queue suffices.
  options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=2 * threads
  )
  read = read.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    read = read.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), _set_up_worker
    )
  iterator = iter(read)
  try:
    yield from iterator
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise OSError(
        'a data worker process was killed, possibly because memory ran out; '
        'try a smaller config.data.num_workers'
    ) from error
  finally:
    iterator.close()


def _set_up_worker(index: int, count: int) -> None:
  """Makes a worker ignore signals and exit with its parent process."""
  del index, count
  # Ctrl-C and Slurm also signal the workers, but the run needs them until it
  # has saved its checkpoint.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


# -------------------------------------------------------------- evaluation


def eval_batches(
    data: Settings,
    split: str,
    batch_size: int,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
  """One pass over a split, in order, without augmentation.

  The last batch is padded with samples whose mask is False, so that every
  process has the same number of batches.

  Args:
    data: `config.data`.
    split: see `make_source`.
    batch_size: global batch size.
    rows: rows of the global batch that this process reads, see
      `sharding.local_rows`; None reads all.

  Yields:
    Batches of equal size, with `index`, int32 [B]: the position of each sample
    in the source, -1 for padding.
  """
  padded = _Padded(make_source(data, split), batch_size)
  read = grain.MapDataset.source(padded)
  read = read.map(make_transform(data, train=False))
  read = read.map_with_index(
      lambda i, sample: {**sample, 'index': np.int32(padded.index(i))}
  )
  # The samples cached in the memory of a worker process would be lost.
  workers = 0 if data.cache else data.num_workers
  read = _batches(read, batch_size, rows)
  yield from _iterate(read, data.num_threads, workers)


class _Padded:
  """The samples of a source, padded to whole batches with empty records."""

  def __init__(self, source, batch_size: int):
    self._source = source
    self._length = -(-len(source) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f'_Padded({self._length})'

  def __getitem__(self, index: int) -> decoding.Record:
    return self._source[index] if self.index(index) >= 0 else {}

  def index(self, position: int) -> int:
    """Index in the source; -1 beyond its end."""
    return position if position < len(self._source) else -1
