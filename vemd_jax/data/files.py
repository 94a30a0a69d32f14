"""Reads dataset files with retries, and only inside the dataset's folder.

Reads are retried because network file systems fail for seconds at a time. Paths
are restricted because the names in label files are untrusted input.
"""

import errno
import io
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from absl import logging

# Errors of a server or connection, which may be transient; a missing file or
# permission is not.
TRANSIENT = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR,
    errno.EREMOTEIO, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
})  # fmt: skip
# Seconds between attempts, 16 in total.
DELAYS = (0.1, 0.4, 1.5, 4.0, 10.0)
# Limit of the uncompressed size of a feature file, in bytes.
MAX_ARRAY_BYTES = 1 << 30

Result = TypeVar('Result')


def retry(
    read: Callable[..., Result],
    *args: Any,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
  """Calls a function and retries it on transient file system errors.

  Args:
    read: the function.
    *args: its arguments, the path first.
    sleep: waits for a number of seconds.

  Returns:
    The function's result.

  Raises:
    OSError: if the error is not in `TRANSIENT`, or persists.
  """
  for delay in DELAYS:
    try:
      return read(*args)
    except OSError as error:
      if error.errno not in TRANSIENT:
        raise
      logging.warning(
          '%s: %s; trying again in %s s', args[0], error.strerror, delay
      )
      sleep(delay)
  return read(*args)


def read_bytes(path: str | os.PathLike) -> bytes:
  """Reads a file, see `retry`.

  Args:
    path: the file.

  Returns:
    Its bytes.

  Raises:
    OSError: it cannot be read.
  """
  return retry(_read, path)


def _read(path):
  with _open(path) as file:
    return file.read()


def _open(path):
  # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
  return open(path, 'rb', 0, opener=lambda path, flags: os.open(
      path, flags | os.O_NONBLOCK))  # fmt: skip


def exists(path: str | os.PathLike) -> bool:
  """Whether a file or folder exists; raises OSError if this is unknown."""
  try:
    retry(os.stat, path)
  except OSError as error:
    if error.errno in TRANSIENT:
      raise
    return False
  return True


def open_binary(path: str | os.PathLike) -> io.BufferedReader:
  """Opens a file for buffered reading, see `Reader`."""
  return io.BufferedReader(Reader(path))


class Reader(io.RawIOBase):
  """A file whose reads are retried, see `retry`.

  Attributes:
    name: the path.
    size: of the file in bytes, when it was opened.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the file.

    Args:
      path: the file.

    Raises:
      OSError: it cannot be opened.
    """
    super().__init__()
    self.name = os.fspath(path)
    self._at = 0
    self._file = retry(_open, self.name)
    self.size = os.fstat(self._file.fileno()).st_size

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = retry(self._piece, self.name, len(buffer))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def _piece(self, path: str, size: int) -> bytes:
    if self._file.closed:
      self._file = _open(path)
    try:
      return os.pread(self._file.fileno(), size, self._at)
    except OSError:
      # Handles become stale when the server restarts, so the file is reopened.
      self._file.close()
      raise

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}
    self._at = max(0, start[whence] + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def close(self) -> None:
    if not self.closed:
      self._file.close()
    super().close()


class Inside:
  """Tests whether paths, with links resolved, are inside a folder.

  The real paths of folders are cached, so that a file costs one `lstat`.
  """

  def __init__(self, root: str | os.PathLike):
    """Resolves the folder.

    Args:
      root: the folder.
    """
    self._root = os.path.realpath(root)
    self._real: dict[str, str] = {}

  def __call__(self, path: str | os.PathLike) -> bool:
    """Whether the path, which need not exist, is inside the folder."""
    # `abspath` would be wrong here: '..' after a link leads to the parent of
    # the link's target, not of the link.
    folder, name = os.path.split(path)
    real = self._real.get(folder)
    if real is None:
      real = self._real[folder] = os.path.realpath(folder)
    path = os.path.join(real, name)
    if name in ('', '.', '..') or os.path.islink(path):
      path = os.path.realpath(path)
    return path == self._root or path.startswith(
        self._root.rstrip(os.sep) + os.sep
    )


def load_arrays(
    path: str | os.PathLike, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
  """Loads the arrays of a `.npz` or `.npy` file, but no pickled objects.

  Args:
    path: the file.
    names: arrays to load; None loads all. The array of a `.npy` is named ''.

  Returns:
    Name -> array.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is damaged, too large, or contains objects; the message
      names the file.
  """
  with io.BufferedReader(reader := Reader(path)) as file:
    try:
      if pathlib.Path(path).suffix == '.npy':
        return {'': np.load(file, allow_pickle=False)}
      with zipfile.ZipFile(file) as members:
        size = sum(member.file_size for member in members.infolist())
      if size > max(MAX_ARRAY_BYTES, 100 * reader.size):
        raise ValueError(f'{size} bytes, compressed to {reader.size}')
      with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names or arrays.files}
    except Exception as error:  # NumPy and zipfile raise many kinds.
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
      raise ValueError(
          f'{path}: cannot be read as arrays ({reason})'
      ) from error
