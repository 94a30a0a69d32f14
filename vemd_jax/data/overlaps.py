"""Finds images and subjects that are in more than one split.

Such overlaps make the evaluation too optimistic. Files are compared byte for
byte, so an image that was resized or encoded again is not found.
"""

import hashlib
import json
import os
import pathlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

from vemd_jax.data import class_folders, files, folder, labels_csv


def find(data: str | os.PathLike, outside_root: bool = False) -> list[str]:
  """Lists what the splits of a dataset share.

  Of a folder, only files of equal size are read. For prepared data, the answer
  is in the report of the preparation.

  Args:
    data: a folder with labels.csv, or one written by `vemd_jax.data.prepare`.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    One line for images and one for subjects; [] if nothing is shared.

  Raises:
    OSError: there is no labels.csv, or a file cannot be read.
    ValueError: labels.csv or the report is invalid; the message names the file.
  """
  data = pathlib.Path(data)
  if files.exists(data / 'prepared.json'):
    path = data / 'report.json'
    try:
      report = json.loads(files.read_bytes(path))
      return [str(line) for line in report.get('overlaps', ())]
    except (ValueError, AttributeError, TypeError) as error:
      raise ValueError(
          f'{path}: not a report of vemd_jax.data.prepare'
      ) from error
  table = class_folders.table(data)
  by_size: dict[int, list[tuple[str, str, pathlib.Path]]] = defaultdict(list)
  for split in table.splits:
    try:
      source = folder.Folder(
          data, split, bodies=False, faces=False, max_unreadable=1.0,
          outside_root=outside_root,
      )  # fmt: skip
    except ValueError:
      # No file of the split is usable; reading the split reports it.
      continue
    for name, path in source.pictures():
      by_size[files.retry(os.stat, path).st_size].append((split, name, path))
  contents: dict[str, list[tuple[str, str]]] = defaultdict(list)
  for same in by_size.values():
    if len({split for split, _, _ in same}) > 1:
      for split, name, path in same:
        contents[_digest(path)].append((split, name))
  return described(contents, 'identical files') + [
      f'{table.path}: {line}' for line in labels_csv.shared_subjects(table.rows)
  ]


def described(
    places: Mapping[Hashable, Iterable[tuple[str, str]]], what: str
) -> list[str]:
  """Describes what is in more than one split.

  Args:
    places: key of equal things -> (split, name) of each of them.
    what: noun for them, in the plural.

  Returns:
    One line, or none.
  """
  shared = []
  for same in places.values():
    first: dict[str, str] = {}
    for split, name in same:
      first.setdefault(split, name)
    if len(first) > 1:
      shared.append(' = '.join(f'{name} ({s})' for s, name in first.items()))
  if not shared:
    return []
  return [
      f'{len(shared)} {what} are in more than one split: '
      f'{labels_csv.some(shared)}'
  ]


def _digest(path: pathlib.Path) -> str:
  with files.open_binary(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
