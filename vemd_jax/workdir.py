"""The output folder of a run: locking, atomic writes and synced appends."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
  """Locks a workdir, so that a second run cannot use it at the same time.

  The lock is an `flock`, which the operating system releases when the process
  ends, also when it is killed. Whether it holds across hosts on a network file
  system depends on that file system. Buckets (gs://) are not locked.

  Args:
    workdir: output folder of the run; created if missing.

  Yields:
    Nothing; the lock is held until the context ends.

  Raises:
    ValueError: if another process holds the lock.
    OSError: if the folder is not writable.
  """
  if '://' in str(workdir):
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'lock', 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise ValueError(
          f'workdir {workdir} is in use by another run ({file.read().strip()});'
          ' stop that run or choose another workdir'
      ) from None
    with _named(workdir):
      file.truncate(0)
      file.write(f'process {os.getpid()} on {os.uname().nodename}\n')
      file.flush()
    yield


def read_json(path: epath.PathLike) -> dict[str, Any]:
  """Reads a JSON object that a run has written.

  Args:
    path: path of the file.

  Returns:
    The object; {} if the file does not exist.

  Raises:
    ValueError: if the file is damaged; names it.
  """
  path = epath.Path(path)
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file atomically.

  Args:
    path: path of the file.
    content: text or bytes.
  """
  path = epath.Path(path)
  part = path.with_name(path.name + '.part')
  if isinstance(content, str):
    content = content.encode()
  with _named(path), part.open('wb') as f:
    f.write(content)
    _to_disk(f)
  part.replace(path)


def append(path: epath.PathLike, text: str) -> None:
  """Appends text to a file and syncs it to disk.

  Args:
    path: path of the file.
    text: text to append.
  """
  path = epath.Path(path)
  if '://' in str(path):  # Objects in a bucket cannot be appended to.
    path.write_text((path.read_text() if path.exists() else '') + text)
    return
  with _named(path), path.open('a') as f:
    f.write(text)
    _to_disk(f)


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
  """Adds the path to errors of write(), such as that of a full disk."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


def _to_disk(file) -> None:
  """Syncs a file, so that a power failure does not lose lines of metrics
  that are older than the last checkpoint."""
  file.flush()
  with contextlib.suppress(OSError, AttributeError):  # A file in a bucket.
    os.fsync(file.fileno())
