"""COCO keypoints 2017, with WholeBody faces if its files exist.

`annotations/person_keypoints_{train,val}2017.json`, `{train,val}2017/`, and
optionally `annotations/coco_wholebody_{train,val}_v1.0.json`.

People without labelled joints and crowds are not targets: their boxes are kept
as regions to ignore. Visibility is mapped to a score: 0 unlabelled -> 0, 1
labelled but hidden -> 0.5, 2 visible -> 1.
"""

import json
import math
from pathlib import Path

from vemd_jax import skeletons
from vemd_jax.data import annotations
from vemd_jax.prepare import index as ix

# Unused fields, gigabytes in total, are dropped while the file is parsed.
_UNUSED = {
    'segmentation', 'foot_kpts', 'lefthand_kpts', 'righthand_kpts', 'area',
    'coco_url', 'flickr_url', 'date_captured', 'license',
}  # fmt: skip

_SCORE = {0: 0.0, 1: 0.5, 2: 1.0}


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Args:
    source: the folder with the layout.
    options: `drop_empty` leaves out images without joints or faces.
    index: the index to fill.

  Raises:
    FileNotFoundError: the annotations of both splits are missing.
    ValueError: an annotation file is not a COCO keypoint file.
  """
  folder = ix.need(
      ix.subfolder(source, 'annotations'), source, 'folder annotations'
  )
  found = False
  for split in ('train', 'val'):
    path = ix.subfile(folder, f'person_keypoints_{split}2017.json')
    if path is None:
      continue
    found = True
    images = ix.need(
        ix.subfolder(source, f'{split}2017'), source, f'folder {split}2017'
    )
    wholebody = ix.subfile(folder, f'coco_wholebody_{split}_v1.0.json')
    index.facts[f'faces of {split}'] = (
        'WholeBody' if wholebody else 'none: there is no coco_wholebody file'
    )
    _read_split(source, path, wholebody, images, split, options, index)
  if not found:
    raise FileNotFoundError(
        f'{folder} has no person_keypoints_train2017.json or '
        'person_keypoints_val2017.json'
    )


def _load(path: Path, source: Path, index: ix.Index) -> dict:
  index.files.append(path.relative_to(source).as_posix())
  try:
    with path.open(encoding='utf-8-sig') as file:
      data = json.load(file, object_hook=_used)
    data = {key: data[key] for key in ('images', 'annotations')}
    for key, entries in data.items():
      if not isinstance(entries, list):
        raise TypeError(f'{key} is not a list')
      for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
          raise TypeError(f'{key}[{i}] is not an object')
    return data
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
        f'{path} is not a COCO annotation file ({error})'
    ) from error


def _used(entry: dict) -> dict:
  return {k: v for k, v in entry.items() if k not in _UNUSED}


def _read_split(source, path, wholebody, folder, split, options, index):
  data = _load(path, source, index)
  faces, bodies, ignore, wrong = None, {}, {}, {}
  if wholebody is not None:
    faces = {}
    for i, a in enumerate(_load(wholebody, source, index)['annotations']):
      if a.get('face_valid') and not a.get('iscrowd'):
        _add(faces, a, lambda a: _face(a['face_kpts']), wholebody, i, wrong)
  for i, a in enumerate(data['annotations']):
    if a.get('iscrowd') or not a.get('num_keypoints'):
      _add(ignore, a, lambda a: _box(a['bbox']), path, i, wrong)
    else:
      _add(bodies, a, lambda a: _body(a['keypoints']), path, i, wrong)
  files = ix.Files(source, folder, ix.IMAGE_SUFFIXES, index)
  for i, image in enumerate(data['images']):
    number, name = image.get('id'), image.get('file_name')
    if not isinstance(number, int | str) or not isinstance(name, str):
      raise ValueError(f'{path}: images[{i}] has no id or no file_name')
    name = ix.printable(name)
    try:
      file = files.find(image['file_name'])
      reason = '' if file else 'file is missing'
    except ValueError as error:
      reason = str(error)
    # The image is left out, since a person with an unusable annotation would
    # otherwise count as absent.
    reason = reason or wrong.get(number, '')
    if reason:
      index.leave_out(name, split, reason)
      continue
    people = tuple(bodies.get(number, ()))
    heads = None if faces is None else tuple(faces.get(number, ()))
    if options.drop_empty and not people and not heads:
      index.leave_out(name, split, 'no person with labelled joints or face')
      continue
    boxes = tuple(ignore.get(number, ()))
    if boxes:
      index.note('image with a crowd or people without joints: not targets, '
                 'kept as regions to ignore', ix.printable(file))  # fmt: skip
    index.samples.append(
        ix.Sample(
            ix.printable(file), split, (file,), 'image', bodies=people,
            faces=heads, ignore_boxes=boxes,
        )
    )  # fmt: skip


def _add(people, annotation, read, path, number, wrong) -> None:
  """Adds an annotation to its image, or the reason why it is unusable."""
  image = annotation.get('image_id')
  if not isinstance(image, int | str):
    raise ValueError(f'{path}: annotations[{number}] has no image_id')
  try:
    people.setdefault(image, []).append(read(annotation))
  except (ValueError, KeyError, TypeError, OverflowError) as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:100]
    wrong[image] = f'annotations[{number}] cannot be used ({reason})'


def _box(values) -> tuple[float, ...]:
  """Converts x, y, width, height to two corners."""
  x, y, w, h = map(float, values)
  box = (x, y, x + w, y + h)
  if not all(map(math.isfinite, box)):
    raise ValueError('box is not finite')
  return box


def _point(x: float, y: float, score: float) -> list[float]:
  """x, y, score; all 0 if the point is missing or out of a plausible range."""
  point = [float(x), float(y), score]
  if score and all(abs(value) <= annotations.MAX_SIDE for value in point):
    return point
  return [0.0, 0.0, 0.0]


def _body(values) -> tuple[float, ...]:
  """Converts 17 x (x, y, visibility) to (x, y, score)."""
  points = []
  for x, y, v in zip(*[iter(values)] * 3, strict=True):
    points += _point(x, y, _SCORE[int(v)])
  return _whole(points, 'body')


def _face(values) -> tuple[float, ...]:
  """Clips 68 x (x, y, confidence) to 0..1, with zeros for missing points."""
  points = []
  for x, y, s in zip(*[iter(values)] * 3, strict=True):
    points += _point(x, y, min(max(float(s), 0.0), 1.0))
  return _whole(points, 'face')


def _whole(points: list[float], part: str) -> tuple[float, ...]:
  expected = skeletons.NUM_POINTS[part]
  if len(points) != 3 * expected:
    raise ValueError(f'{len(points) // 3} points, expected {expected}')
  return tuple(points)
