"""JSON Lines files (one object per line) that survive an interruption.

Lines are appended whole and flushed. A sidecar `NAME.meta.json` stores the
settings that they were made with, so that a file never mixes two settings.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from vemd_jax.data import files


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads all complete lines.

  Args:
    path: the file.

  Returns:
    The objects, in the file's order. A last line without a newline is
    incomplete (the writer was interrupted) and is ignored.

  Raises:
    ValueError: a complete line is not a JSON object.
  """
  return list(lines(path))


def lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Like `read`, but yields one object at a time."""
  with files.open_binary(path) as file:
    # Binary files end lines at b'\n' only: file names may contain other line
    # separators.
    for number, line in enumerate(file, 1):
      if not line.endswith(b'\n') or not line.strip():
        continue
      try:
        value = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} line {number}: not JSON ({error})') from error
      if not isinstance(value, dict):
        raise ValueError(f'{path} line {number}: expected an object')
      yield value


def resume(
    path: pathlib.Path, made_with: Mapping[str, Any], overwrite: bool = False
) -> list[dict[str, Any]]:
  """Like `begin`; returns the existing lines."""
  begin(path, made_with, overwrite)
  return read(path) if path.exists() else []


def begin(
    path: pathlib.Path, made_with: Mapping[str, Any], overwrite: bool = False
) -> None:
  """Prepares a file for appending.

  Drops an incomplete last line; writes the sidecar of a new file.

  Args:
    path: the file; it need not exist.
    made_with: settings that the lines depend on, as plain JSON values.
    overwrite: starts a new file if the existing lines were made with other
      settings; the old file is kept as `NAME.bak`.

  Raises:
    ValueError: the existing lines were made with other settings.
  """
  sidecar = meta_path(path)
  made_with = json.loads(json.dumps(made_with))
  found = meta(path)
  if path.exists() and path.stat().st_size and found != made_with:
    if not overwrite:
      before = 'unknown settings' if found is None else json.dumps(found)
      raise ValueError(
          f'{path} was made with {before}, not with {json.dumps(made_with)}; '
          '--overwrite starts a new file and keeps the old one as '
          f'{path.name}.bak, --out writes to another file'
      )
    path.replace(path.with_name(path.name + '.bak'))
  path.parent.mkdir(parents=True, exist_ok=True)
  part = sidecar.with_name(sidecar.name + '.part')
  part.write_text(json.dumps(made_with, indent=2) + '\n', encoding='utf-8')
  part.replace(sidecar)
  drop_torn_line(path)


def drop_torn_line(path: pathlib.Path) -> None:
  """Truncates a last line that was not written completely."""
  if not path.exists():
    return
  content = path.read_bytes()
  whole = content.rfind(b'\n') + 1
  if whole < len(content):
    with path.open('r+b') as file:
      file.truncate(whole)


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
  """Locks a folder against other writing processes.

  Args:
    path: the file to be written; its folder is created.

  Yields:
    Nothing.

  Raises:
    RuntimeError: another process has the lock.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    try:
      fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise RuntimeError(
          f'another process is writing to {path.parent}'
      ) from None
    except OSError:
      pass  # A network file system without locks: continue unlocked.
    yield
  finally:
    os.close(folder)


def append(file: IO[str], *objects: Mapping[str, Any]) -> None:
  """Writes lines with one call and flushes them.

  Args:
    file: opened for appending as UTF-8 with newline=''.
    *objects: one per line.
  """
  file.write(
      ''.join(
          json.dumps(o, ensure_ascii=False, separators=(',', ':')) + '\n'
          for o in objects
      )
  )
  file.flush()


def open_to_append(path: pathlib.Path) -> IO[str]:
  """Opens a file for `append`."""
  return path.open('a', encoding='utf-8', newline='')


def meta_path(path: pathlib.Path) -> pathlib.Path:
  """`annotations.jsonl` -> `annotations.meta.json`."""
  return path.with_name(path.stem + '.meta.json')


def meta(path: pathlib.Path) -> dict[str, Any] | None:
  """Settings stored in a file's sidecar; None without a sidecar.

  Args:
    path: the file.

  Returns:
    The settings.

  Raises:
    ValueError: the sidecar is damaged.
  """
  sidecar = meta_path(path)
  if not sidecar.exists():
    return None
  try:
    value = json.loads(files.read_bytes(sidecar))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{sidecar}: not JSON ({error})') from error
  if not isinstance(value, dict):
    raise ValueError(f'{sidecar}: expected a JSON object')
  return value
