"""Encodes samples in chunks, one work file each, with several processes."""

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgpack

from vemd_jax import progress
from vemd_jax.prepare import encode
from vemd_jax.prepare.index import Options, Sample

# To be changed when the stored data change for the same source and options.
FORMAT = 1
# Samples per work file: the most that a worker loses when it is killed.
_CHUNK = {'image': 64, 'video': 8, 'frames': 8}


# --- encoding, in work files ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some samples of one split, and the work file of their encoded data."""

  split: str
  samples: tuple[Sample, ...]
  path: Path


def make_chunks(
    samples: Sequence[Sample],
    manifest: dict[str, list[int]],
    name: str,
    options: Options,
    work: Path,
) -> list[Chunk]:
  """Splits the samples; a work file is named by a hash of its inputs."""
  settings = (FORMAT, name, dataclasses.astuple(options))
  groups: list[list[Sample]] = []
  for sample in samples:
    size = _CHUNK[sample.kind]
    if (
        not groups
        or len(groups[-1]) >= size
        or groups[-1][0].split != sample.split
    ):
      groups.append([])
    groups[-1].append(sample)
  chunks = []
  for group in groups:
    content = [
        (dataclasses.astuple(s), [manifest[m] for m in s.media]) for s in group
    ]
    key = hashlib.blake2b(repr((settings, content)).encode(
        'utf-8', 'surrogateescape'), digest_size=16).hexdigest()  # fmt: skip
    chunks.append(
        Chunk(group[0].split, tuple(group), work / f'{key}.msgpack')
    )
  return chunks


def _encode_chunk(chunk: Chunk, source: Path, options: Options) -> int:
  """Writes a chunk's work file; returns its number of samples."""
  running = chunk.path.with_suffix('.running')
  running.touch()
  examples = [encode.encode_sample(s, source, options) for s in chunk.samples]
  write_bytes(chunk.path, msgpack.packb(examples))
  running.unlink()
  return len(examples)


def write_bytes(path: Path, data: bytes) -> None:
  """Writes a file atomically."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  with part.open('wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def _follow_parent() -> None:
  """Ends this worker when its parent is killed, as it would wait forever."""
  parent = multiprocessing.parent_process()

  def wait():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _start_worker() -> None:
  _follow_parent()
  cv2.setNumThreads(1)


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(
      workers,
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_start_worker,
  )


def encode_all(
    chunks: Sequence[Chunk],
    source: Path,
    options: Options,
    workers: int,
    log: Callable[[str], None],
) -> None:
  """Writes the work files that do not exist yet."""
  missing = [c for c in chunks if not c.path.exists()]
  done = sum(len(c.samples) for c in chunks if c.path.exists())
  total = sum(len(c.samples) for c in chunks)
  if done:
    log(f'Resuming: {done} of {total} samples are encoded')
  with progress.bar(total, 'sample', 'encoding', done) as bar:
    if workers == 1:
      for chunk in missing:
        bar.update(_encode_chunk(chunk, source, options))
      return
    workers = workers or len(os.sched_getaffinity(0))
    while missing:
      try:
        _encode_in_pool(missing, source, options, workers, bar)
      except concurrent.futures.process.BrokenProcessPool:
        suspects = [
            c for c in missing if c.path.with_suffix('.running').exists()
        ]
        log('A worker died; the samples that it was encoding are retried one '
            'by one')  # fmt: skip
        _encode_singly(suspects or missing, source, options)
      missing = [c for c in missing if not c.path.exists()]
      bar.update(total - sum(len(c.samples) for c in missing) - bar.n)


def _encode_in_pool(chunks, source, options, workers, bar) -> None:
  for chunk in chunks:
    chunk.path.with_suffix('.running').unlink(missing_ok=True)
  with _pool(min(workers, len(chunks))) as pool:
    jobs = [pool.submit(_encode_chunk, c, source, options) for c in chunks]
    try:
      for job in concurrent.futures.as_completed(jobs):
        bar.update(job.result())
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _encode_singly(chunks, source, options) -> None:
  """Finds and leaves out the samples whose decoding crashes the process."""
  pool = _pool(1)
  for chunk in chunks:
    examples = []
    for sample in chunk.samples:
      try:
        job = pool.submit(encode.encode_sample, sample, source, options)
        examples.append(job.result())
      except concurrent.futures.process.BrokenProcessPool:
        pool = _pool(1)
        examples.append({
            'file': sample.file,
            'split': sample.split,
            'left_out': 'the decoder crashed',
        })
    write_bytes(chunk.path, msgpack.packb(examples))
  pool.shutdown()


def examples(chunks: Sequence[Chunk], split: str) -> Iterator[dict[str, Any]]:
  """The encoded samples of a split, including those left out."""
  for chunk in chunks:
    if chunk.split == split:
      yield from msgpack.unpackb(chunk.path.read_bytes())
