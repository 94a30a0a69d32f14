"""Features computed once for each row of a dataset and kept beside the data.

A cache is a folder: `KEY.npz` for each different content, `index.jsonl` that
says which row has which, `index.meta.json` with the settings that they were
made with.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from vemd_jax.data import jsonl

_INDEX = 'index.jsonl'
# Folders beside the data, and the commands that fill them.
FOLDERS = {'audio': 'audio_cache', 'text': 'text_cache'}
_COMMANDS = {
    'audio': 'python -m vemd_jax.data.audio --data={data}',
    'text': 'python -m vemd_jax.data.text --data={data} --model=MODELDIR',
}


@dataclasses.dataclass(frozen=True)
class Job:
  """One row whose features are wanted.

  Attributes:
    file: name of the row.
    stamp: cheap to get and different when the content is, plain JSON.
    key: gives a hash of the content and the settings, '' for no content.
    compute: gives float [T, E], or None where the row has no such features;
      raises ValueError or OSError where they cannot be read.
  """

  file: str
  stamp: Any
  key: Callable[[], str]
  compute: Callable[[], np.ndarray | None]


def nothing(file: str) -> Job:
  """The job of a row that has nothing to compute features of."""
  return Job(file, None, lambda: '', lambda: None)


@dataclasses.dataclass(frozen=True)
class Counts:
  """What `fill` did.

  Attributes:
    done: rows computed now.
    kept: rows that were there already.
    empty: rows without features, of both.
    unreadable: file -> reason.
  """

  done: int
  kept: int
  empty: int
  unreadable: Mapping[str, str]


def fill(
    cache: pathlib.Path,
    made_with: Mapping[str, Any],
    jobs: Sequence[Job],
    overwrite: bool = False,
    workers: int = 1,
    dtype: type = np.float16,
) -> Counts:
  """Computes what is not there yet.

  Args:
    cache: the folder; made where it does not exist.
    made_with: the settings, plain JSON.
    jobs: the rows.
    overwrite: starts a new index where the old one has other settings.
    workers: threads.
    dtype: that is stored; half precision is finer than sound and text are.

  Returns:
    Counts. Unreadable rows are left out and tried again next time.

  Raises:
    ValueError: the cache was made with other settings.
    RuntimeError: another process fills it.
  """
  with jsonl.lock(cache / _INDEX):
    return _fill(cache, made_with, jobs, overwrite, workers, dtype)


def _fill(cache, made_with, jobs, overwrite, workers, dtype) -> Counts:
  index = cache / _INDEX
  lines = {
      line['file']: line for line in jsonl.resume(index, made_with, overwrite)
  }

  def is_there(job: Job) -> bool:
    line = lines.get(job.file)
    return (
        line is not None
        and line['stamp'] == job.stamp
        and (line['key'] is None or _path(cache, line['key']).exists())
    )

  todo = [job for job in jobs if not is_there(job)]
  unreadable = {}
  empty = sum(
      lines[job.file]['key'] is None for job in jobs if is_there(job)
  )

  def run(job: Job) -> tuple[Job, str | None, str]:
    try:
      key = job.key()
      if not key or not _path(cache, key).exists():
        features = job.compute()
        if features is None:
          return job, None, ''
        _save(_path(cache, key), np.asarray(features, dtype))
      return job, key, ''
    except (ValueError, OSError) as error:
      return job, None, str(error) or type(error).__name__

  with (
      jsonl.open_to_append(index) as file,
      concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    results = ordered(pool, run, todo, 4 * workers)
    for job, key, reason in tqdm.tqdm(results, total=len(todo), unit='row'):
      if reason:
        unreadable[job.file] = reason
        continue
      empty += key is None
      jsonl.append(file, {'file': job.file, 'key': key, 'stamp': job.stamp})
  return Counts(
      done=len(todo) - len(unreadable),
      kept=len(jobs) - len(todo),
      empty=empty,
      unreadable=unreadable,
  )


def ordered(
    pool: concurrent.futures.Executor,
    function: Callable[[Any], Any],
    items: Iterable[Any],
    ahead: int,
) -> Iterable[Any]:
  """`pool.map` that holds only some results in memory.

  Args:
    pool: where the function runs.
    function: of one item.
    items: any number of them.
    ahead: how many are begun before the first result is taken.

  Yields:
    Results in the order of the items.
  """
  items = iter(items)
  waiting = collections.deque(
      pool.submit(function, item) for item in itertools.islice(items, ahead)
  )
  try:
    while waiting:
      result = waiting.popleft().result()
      for item in itertools.islice(items, 1):
        waiting.append(pool.submit(function, item))
      yield result
  finally:
    # After an error or Ctrl-C nothing that is still queued shall run.
    for future in waiting:
      future.cancel()


class Features:
  """Looks up a row's features: `features(file) -> float32 [T, E] or None`.

  None stands for a row without features and for one that could not be read.

  Attributes:
    made_with: the settings.
  """

  def __init__(self, cache: str | pathlib.Path, command: str):
    """Reads the index.

    Args:
      cache: the folder.
      command: that makes the cache, for the message.

    Raises:
      FileNotFoundError: there is no cache.
    """
    self._cache = pathlib.Path(cache)
    index = self._cache / _INDEX
    if not index.exists():
      raise FileNotFoundError(f'{index} does not exist; make it by {command}')
    self._keys = {line['file']: line['key'] for line in jsonl.read(index)}
    self.made_with = jsonl.meta(index) or {}

  def __len__(self) -> int:
    """Number of rows with features."""
    return sum(key is not None for key in self._keys.values())

  def key(self, file: str) -> str | None:
    """The `Job.key` that a row's features were computed for."""
    return self._keys.get(file)

  def __call__(self, file: str) -> np.ndarray | None:
    key = self._keys.get(file)
    if key is None:
      return None
    with np.load(_path(self._cache, key)) as arrays:
      return arrays['features'].astype(np.float32)


def look_up(data: str | pathlib.Path, kind: str) -> Features:
  """The cached features of a dataset: file of a row -> float32 [T, E] or None.

  Args:
    data: folder of the dataset.
    kind: 'audio' (log-mel spectrograms) or 'text' (embeddings of transcripts).

  Returns:
    The look-up; None for rows without sound or transcript.

  Raises:
    FileNotFoundError: the cache has not been made; names the command.
  """
  return Features(
      pathlib.Path(data) / FOLDERS[kind], _COMMANDS[kind].format(data=data)
  )


def report(counts: Counts, noun: str) -> str:
  """What was done, in lines for people."""
  lines = [
      f'{counts.done} rows done, {counts.kept} there already, of both '
      f'{counts.empty} without {noun}; {len(counts.unreadable)} unreadable'
  ]
  lines += [
      f'  left out: {file}: {reason}'
      for file, reason in counts.unreadable.items()
  ]
  return '\n'.join(lines)


def _path(cache: pathlib.Path, key: str) -> pathlib.Path:
  return cache / f'{key}.npz'


def _save(path: pathlib.Path, features: np.ndarray) -> None:
  """Writes in one piece."""
  # Two threads may have the same content at the same time.
  part = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.part')
  with part.open('wb') as file:
    np.savez(file, features=features)
  part.replace(path)
