"""COCO keypoints 2017, with WholeBody faces if its files exist.

`annotations/person_keypoints_{train,val}2017.json`, `{train,val}2017/`, and
optionally `annotations/coco_wholebody_{train,val}_v1.0.json`.

People without labelled joints and crowds are not targets: their boxes are kept
as regions to ignore. Visibility is mapped to a score: 0 unlabelled -> 0, 1
labelled but hidden -> 0.5, 2 visible -> 1.
"""

import json
from pathlib import Path

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
    return {'images': data['images'], 'annotations': data['annotations']}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
        f'{path} is not a COCO annotation file ({error})'
    ) from error


def _used(entry: dict) -> dict:
  return {k: v for k, v in entry.items() if k not in _UNUSED}


def _read_split(source, path, wholebody, folder, split, options, index):
  data = _load(path, source, index)
  faces = None
  if wholebody is not None:
    faces = {}
    for a in _load(wholebody, source, index)['annotations']:
      if a.get('face_valid') and not a.get('iscrowd'):
        faces.setdefault(a['image_id'], []).append(_face(a['face_kpts']))
  bodies, ignore = {}, {}
  for a in data['annotations']:
    if a.get('iscrowd') or not a.get('num_keypoints'):
      x, y, w, h = a['bbox']
      ignore.setdefault(a['image_id'], []).append((x, y, x + w, y + h))
    else:
      bodies.setdefault(a['image_id'], []).append(_body(a['keypoints']))
  files = ix.Files(source, folder, ix.IMAGE_SUFFIXES)
  for image in data['images']:
    number = image['id']
    name = ix.printable(image['file_name'])
    file = files.find(image['file_name'])
    if file is None:
      index.leave_out(name, split, 'file is missing')
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


def _body(values) -> tuple[float, ...]:
  """Converts 17 x (x, y, visibility) to (x, y, score)."""
  points = []
  for x, y, v in zip(*[iter(values)] * 3, strict=True):
    score = _SCORE[int(v)]
    points += [float(x), float(y), score] if score else [0.0, 0.0, 0.0]
  return tuple(points)


def _face(values) -> tuple[float, ...]:
  """Clips 68 x (x, y, confidence) to 0..1, with zeros for missing points."""
  points = []
  for x, y, s in zip(*[iter(values)] * 3, strict=True):
    score = min(max(float(s), 0.0), 1.0)
    points += [float(x), float(y), score] if score else [0.0, 0.0, 0.0]
  return tuple(points)
