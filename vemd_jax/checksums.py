"""Checksums of the files in a folder, to detect damaged files."""

import hashlib
import json
from collections.abc import Sequence

from etils import epath

FILE = 'checksums.json'
_BLOCK = 2**22


def write(folder: epath.Path, leave_out: Sequence[str] = ()) -> None:
  """Writes the size and SHA-256 of all files in a folder to `FILE` in it.

  Args:
    folder: folder whose files are complete.
    leave_out: names of files directly in the folder that may still change.
  """
  sums = {
      name: [path.stat().length, _digest(path)]
      for name, path in _files(folder)
      if name not in leave_out
  }
  (folder / FILE).write_text(json.dumps(sums, indent=1) + '\n')


def problem(folder: epath.Path, parts: Sequence[str] = ()) -> str:
  """Compares the files of a folder with their checksums.

  Args:
    folder: folder that `write` was called for.
    parts: subfolders to check; by default all files are.

  Returns:
    The first file that is missing, truncated or altered, and what is wrong
    with it; '' if all files match or the folder has no checksums.
  """
  if not (folder / FILE).exists():
    return ''
  try:
    sums = json.loads((folder / FILE).read_text())
    entries = sorted((name, *entry) for name, entry in sums.items())
  except (ValueError, TypeError, AttributeError):
    return f'{FILE} is not a JSON object of checksums'
  for name, size, digest in entries:
    if parts and name.split('/')[0] not in parts:
      continue
    path = folder / name
    if not path.exists():
      return f'{name} is missing'
    if path.stat().length != size:
      return f'{name} has {path.stat().length} bytes, expected {size}'
    if _digest(path) != digest:
      return f'{name} was altered: its checksum does not match'
  return ''


def _files(folder: epath.Path, prefix: str = ''):
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path, f'{prefix}{path.name}/')
    else:
      yield prefix + path.name, path


def _digest(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as f:
    while block := f.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()
