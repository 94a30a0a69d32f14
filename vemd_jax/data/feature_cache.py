"""Features computed once for each row of a dataset and stored beside the data.

A cache is a folder with one `KEY.npz` per distinct content, an `index.jsonl`
that maps rows to keys, an `index.meta.json` with the settings used, and a
README.md that says what it holds about people.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vemd_jax import progress
from vemd_jax.data import files, jsonl

_INDEX = 'index.jsonl'
_NOTICE = '''# What this folder holds about people

- `KEY.npz`: {}, one file for each distinct picture, sound or text.
- `index.jsonl`: the name of each row's file, its size or time, and its KEY.

It is derived from single pictures or recordings and may identify the people in
them: protect it like them, and delete the folder with them. The programs that
use it compute it again if it is missing.
'''
# Keys are parts of file names, which must stay inside the cache.
_KEY = re.compile('[0-9a-f-]{1,80}')
# Folders beside the data, and the commands that fill them.
FOLDERS = {'audio': 'audio_cache', 'text': 'text_cache'}
_COMMANDS = {
    'audio': 'python -m vemd_jax.data.audio --data={data}',
    'text': 'python -m vemd_jax.data.text --data={data} --model=MODELDIR',
}


@dataclasses.dataclass(frozen=True)
class Job:
  """A row whose features are to be computed.

  Attributes:
    file: name of the row.
    stamp: plain JSON, cheap to obtain, that changes with the content.
    key: returns a hash of the content and the settings, '' for no content.
    compute: returns float [T, E], or None if the row has no such features;
      raises ValueError or OSError if the row cannot be read.
  """

  file: str
  stamp: Any
  key: Callable[[], str]
  compute: Callable[[], np.ndarray | None]


def nothing(file: str) -> Job:
  """The job of a row without content to compute features from."""
  return Job(file, None, lambda: '', lambda: None)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Numbers of rows that `fill` has processed.

  Attributes:
    done: rows computed in this call.
    kept: rows that were already cached.
    empty: rows without features, among both.
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
    *,
    holds: str,
) -> Counts:
  """Computes the features that are not cached yet.

  Args:
    cache: the folder; created if it does not exist.
    made_with: the settings, plain JSON.
    jobs: the rows.
    overwrite: starts a new index if the existing one has other settings.
    workers: number of threads.
    dtype: dtype of the stored arrays; half precision suffices for sound and
      text.
    holds: what the features are of, for README.md.

  Returns:
    Counts. Unreadable rows are left out and retried by the next call.

  Raises:
    ValueError: the cache was made with other settings.
    RuntimeError: another process is filling the cache.
  """
  with jsonl.lock(cache / _INDEX):
    (cache / 'README.md').write_text(_NOTICE.format(holds), encoding='utf-8')
    return _fill(cache, made_with, jobs, overwrite, workers, dtype)


def _fill(cache, made_with, jobs, overwrite, workers, dtype) -> Counts:
  index = cache / _INDEX
  jsonl.resume(index, made_with, overwrite)
  lines = {line['file']: line for line in _lines(index)}

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
      progress.bar(len(jobs), 'row', done=len(jobs) - len(todo)) as bar,
  ):
    results = ordered(pool, run, todo, 4 * workers)
    for job, key, reason in results:
      bar.update()
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
  """`pool.map` with a bounded number of results in memory.

  Args:
    pool: runs the function.
    function: function of one item.
    items: the inputs, of any number.
    ahead: number of items submitted before the first result is consumed.

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
    # After an error or Ctrl-C, queued items must not run.
    for future in waiting:
      future.cancel()


class Features:
  """Looks up a row's features: `features(file) -> float32 [T, E] or None`.

  The result is None for a row without features or one that could not be read.

  Attributes:
    made_with: the settings.
  """

  def __init__(self, cache: str | pathlib.Path, command: str):
    """Reads the index.

    Args:
      cache: the folder.
      command: the command that fills the cache, for the error message.

    Raises:
      FileNotFoundError: there is no cache.
    """
    self._cache = pathlib.Path(cache)
    index = self._cache / _INDEX
    if not index.exists():
      raise FileNotFoundError(
          f'{index} does not exist; create it with {command}'
      )
    self._keys = {line['file']: line['key'] for line in _lines(index)}
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
    path = _path(self._cache, key)
    features = files.load_arrays(path, ('features',))['features']
    if features.ndim != 2 or features.dtype.kind != 'f':
      raise ValueError(
          f'{path}: features are {features.dtype} {features.shape}, expected '
          'floats [T, E]; delete the file and create it again'
      )
    if not np.isfinite(features).all():
      raise ValueError(f'{path}: features are not all finite')
    return features.astype(np.float32)


def look_up(data: str | pathlib.Path, kind: str) -> Features:
  """The cached features of a dataset: file of a row -> float32 [T, E] or None.

  Args:
    data: folder of the dataset.
    kind: 'audio' (log-mel spectrograms) or 'text' (embeddings of transcripts).

  Returns:
    The look-up; None for rows without sound or transcript.

  Raises:
    FileNotFoundError: there is no cache; the message names the command that
      creates it.
  """
  return Features(
      pathlib.Path(data) / FOLDERS[kind], _COMMANDS[kind].format(data=data)
  )


def report(counts: Counts, noun: str) -> str:
  """Formats counts for the terminal."""
  lines = [
      f'{counts.done} rows computed, {counts.kept} already cached, '
      f'{counts.empty} of them without {noun}; {len(counts.unreadable)} '
      'unreadable'
  ]
  lines += [
      f'  left out: {file}: {reason}'
      for file, reason in counts.unreadable.items()
  ]
  return '\n'.join(lines)


def _lines(index: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of an index, each with `file`, `key` and `stamp`."""
  if not index.exists():
    return []
  lines = jsonl.read(index)
  for number, line in enumerate(lines, 1):
    key = line.get('key', '')
    if not isinstance(line.get('file'), str) or 'stamp' not in line or not (
        key is None or (isinstance(key, str) and _KEY.fullmatch(key))
    ):
      raise ValueError(
          f'{index}: line {number} is not a valid entry; delete the folder and '
          'create the cache again'
      )
  return lines


def _path(cache: pathlib.Path, key: str) -> pathlib.Path:
  return cache / f'{key}.npz'


def _save(path: pathlib.Path, features: np.ndarray) -> None:
  """Writes a file atomically."""
  # Two threads may write the same content at the same time.
  part = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.part')
  with part.open('wb') as file:
    np.savez(file, features=features)
  part.replace(path)
