"""Reads annotations.jsonl; `vemd_jax.data.folder` documents its format."""

import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vemd_jax import skeletons
from vemd_jax.data import files, labels_csv, naming

NAME = 'annotations.jsonl'
# Limit of a line in bytes; 10,000 people with bodies and faces use a fifth.
MAX_LINE = 1 << 26
# Limit of image sides and coordinates, in pixels.
MAX_SIDE = 1 << 20
_KEYS = {'body': 'bodies', 'face': 'faces'}
# Finds the file name of a line without parsing the whole line.
_FILE = re.compile(r'\s*\{\s*"file"\s*:\s*("(?:[^"\\]|\\.)*")')

# Frame number -> ((width, height) or None, bodies, faces).
Frames = dict[int, tuple]


def read(
    root: str | os.PathLike,
    names: Sequence[str],
    clips: Sequence[Sequence[str] | None],
    known: Collection[str],
    parts: Sequence[str],
    report: Any,
    max_unreadable: float,
) -> dict[int, Frames]:
  """Reads the annotations of a split.

  Args:
    root: folder of annotations.jsonl, which need not exist.
    names: file of each row of the split.
    clips: names of the frames of each row; None for images and videos.
    known: `naming.file_key` of the files of all splits.
    parts: those to read, of 'body' and 'face'.
    report: a `folder.Report`, to which problems are added.
    max_unreadable: largest share of lines that may be left out.

  Returns:
    Row number -> frame number -> annotation.

  Raises:
    ValueError: if too many lines are invalid; names the first.
  """
  path = pathlib.Path(root) / NAME
  if not parts or not files.exists(path):
    return {}
  places: dict[str, tuple[int, int | None]] = {}
  for row, (name, clip) in enumerate(zip(names, clips)):
    whole = clip or naming.is_video(name)
    places[naming.file_key(name)] = (row, None if whole else 0)
    for frame, one in enumerate(clip or ()):
      places[naming.file_key(f'{name}/{one}')] = (row, frame)
  found = _Found(places, clips, [(p, _KEYS[p]) for p in parts])
  total, unknown, problems = 0, [], []
  with files.open_binary(path) as file:
    number = 0
    # Only \n ends a line; file names may contain other separators.
    while line := file.readline(MAX_LINE):
      number += 1
      if not line.strip():
        continue
      total += 1
      try:
        if len(line) == MAX_LINE and not line.endswith(b'\n'):
          while len(file.readline(MAX_LINE)) == MAX_LINE:
            pass
          raise ValueError(f'longer than {MAX_LINE} bytes')
        text = line.decode('utf-8-sig')
        name = _FILE.match(text)
        name = json.loads(name[1]) if name else None
        if name is not None and naming.file_key(name) not in places:
          if not _listed(naming.file_key(name), known):
            unknown.append(name)
          continue
        found.add(json.loads(text), number)
      except (ValueError, TypeError, OverflowError, RecursionError) as error:
        problems.append(f'{path}:{number}: {_short(error)}')
  report.invalid_lines = len(problems)
  for problem in problems[:50]:
    report.add(problem)
  for remark in found.remarks():
    report.add(f'{path}{remark}')
  if unknown:
    report.add(
        f'{path}: {len(unknown)} lines name files that {labels_csv.NAME} does '
        f'not list, the first {unknown[0]!r}'
    )
  check_share(
      len(problems), total, max_unreadable, f'lines of {path}', problems
  )
  return found.frames


def check_share(bad, total, limit, what, problems) -> None:
  """Raises ValueError if the share of unusable entries exceeds the limit."""
  if bad and (bad > limit * total or bad == total):
    raise ValueError(
        f'{bad} of {total} {what} cannot be used, more than '
        f'data.max_unreadable={limit}; the first: {problems[0]}'
    )


class _Found:
  """The annotations read so far."""

  def __init__(self, places, clips, parts):
    self.frames: dict[int, Frames] = {}
    self._places, self._clips, self._parts = places, clips, parts
    self._lines: dict[tuple[int, int], int] = {}
    self._replaced, self._odd = [], []

  def add(self, entry: Mapping[str, Any], line: int) -> None:
    """Stores one line; raises ValueError if it is invalid."""
    if not isinstance(entry, dict) or not isinstance(entry.get('file'), str):
      raise ValueError('no "file"')
    place = self._places.get(naming.file_key(entry['file']))
    if place is None:
      return
    row, frame = place
    if frame is None:
      frame = entry.get('frame')
      if not isinstance(frame, int) or frame < 0:
        raise ValueError(f'{entry["file"]} is a clip: expected "frame" from 0')
      clip = self._clips[row]
      if clip and frame >= len(clip):
        raise ValueError(
            f'"frame" is {frame}, expected 0 to {len(clip) - 1} for '
            f'{entry["file"]}'
        )
    size = entry.get('width'), entry.get('height')
    if size == (None, None):
      size = None
    elif not all(
        isinstance(s, int | float) and 0 < s <= MAX_SIDE for s in size
    ):
      raise ValueError(f'width and height are {size[0]!r} and {size[1]!r}')
    people = {'bodies': None, 'faces': None}
    odd = 0
    for part, key in self._parts:
      if entry.get(key) is not None:
        people[key], count = _people(entry, part, key)
        odd += count
    new = (size, people['bodies'], people['faces'])
    frames = self.frames.setdefault(row, {})
    # The file may contain lines of two annotation runs; later lines are newer.
    if frame in frames and not _same(frames[frame], new):
      self._replaced.append((line, entry['file'], self._lines[row, frame]))
    if odd:
      self._odd.append((line, entry['file'], odd))
    frames[frame] = new
    self._lines[row, frame] = line

  def remarks(self) -> list[str]:
    """Warnings about lines that are valid but likely to be mistakes."""
    remarks = []
    if self._replaced:
      line, file, before = self._replaced[0]
      remarks.append(
          f':{line}: differs from line {before}, which annotates {file}, too, '
          f'and replaces it; {len(self._replaced)} lines do so'
      )
    if self._odd:
      line, file, count = self._odd[0]
      remarks.append(
          f':{line}: {count} points of {file} are not finite or exceed '
          f'{MAX_SIDE} pixels and are treated as missing; {len(self._odd)} '
          'lines have such points'
      )
    return remarks


def _people(entry, part: str, key: str) -> tuple[np.ndarray, int]:
  """People [n, K, 3], and the number of points treated as missing."""
  value, points = entry[key], skeletons.NUM_POINTS[part]
  if not isinstance(value, list):
    raise ValueError(f'{key} is {type(value).__name__}, expected a list')
  for i, one in enumerate(value):
    if not isinstance(one, list) or len(one) != points:
      count = len(one) if isinstance(one, list) else type(one).__name__
      raise ValueError(
          f'{key}[{i}] of {entry["file"]} has {count} points, expected {points}'
      )
  array = np.array(value, np.float64)
  if value and array.shape[2:] != (3,):
    raise ValueError(
        f'{key} of {entry["file"]} has points that are not x, y, score'
    )
  array = array.reshape(len(value), points, 3)
  odd = ~(np.abs(array) <= MAX_SIDE).all(-1)
  array[odd] = 0
  return array.astype(np.float32), int(odd.sum())


def _same(first: tuple, second: tuple) -> bool:
  return first[0] == second[0] and all(
      a is b or (a is not None and b is not None and np.array_equal(a, b))
      for a, b in zip(first[1:], second[1:])
  )


def _listed(key: str, known: Collection[str]) -> bool:
  return key in known or key.rpartition('/')[0] in known


def _short(error: Exception) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f'not a complete JSON object ({error.msg} at column {error.colno})'
  if isinstance(error, RecursionError):
    return 'lists are nested too deeply'
  return ' '.join(str(error).split())
