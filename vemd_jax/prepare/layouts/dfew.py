"""DFEW: `Clip/clip_224x224_16f/<id>/`, csv files of five folds.

`EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv` assign clips to
folds; frames are stored once for all folds.
"""

import os
import re
from pathlib import Path

from vemd_jax.data import datasets, video
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_PARTS = {'train': 1, 'test': 2}


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Args:
    source: the folder with the layout.
    options: `frames` evenly spaced frames are taken from folders with more.
    index: the index to fill.

  Raises:
    FileNotFoundError: frames or folds are missing.
  """
  facts = datasets.get('dfew')
  clips = ix.subfolder(source, 'Clip') or source
  folder = ix.need(
      ix.subfolder(clips, 'clip_224x224_16f', 'clip_224x224'),
      source,
      'folder Clip/clip_224x224_16f',
  )
  index.facts['layout'] = folder.name
  lists = ix.need(
      ix.subfolder(source, 'EmoLabel_DataSplit'),
      source,
      'folder EmoLabel_DataSplit',
  )
  labels: dict[str, set[str]] = {}
  folds: dict[str, list[int]] = {}
  for part, number in _PARTS.items():
    where = ix.need(
        ix.subfolder(lists, f'{part}(single-labeled)'),
        lists,
        f'folder {part}(single-labeled)',
    )
    for fold in range(facts.folds):
      path = ix.subfile(where, f'set_{fold + 1}.csv')
      path = ix.need(path, where, f'set_{fold + 1}.csv')
      columns = ('video_name', 'label')
      rows = label_files.read_table(path, source, index, 'folds', columns)
      seen = set()
      for row in rows:
        name = _clip_id(row['video_name'])
        if name in seen:
          index.note(
              'row is repeated in the label file',
              f'{part}/{path.name}: {ix.printable(name)}',
          )
        seen.add(name)
        labels.setdefault(name, set()).add(row['label'])
        member = folds.setdefault(name, [0] * facts.folds)
        if member[fold] not in (0, number):
          index.note(
              f'in train and test of fold {fold + 1}: kept in test',
              ix.printable(name),
          )
        member[fold] = max(member[fold], number)
  by_id = {_clip_id(f.name): f for f in sorted(folder.iterdir()) if f.is_dir()}
  for name, values in labels.items():
    _add(name, values, tuple(folds[name]), by_id.get(name), source, options,
         index)  # fmt: skip
  unlisted = [n for n in by_id if n not in labels]
  if unlisted:
    index.facts['clips in no fold'] = (
        f'{len(unlisted)} (not single-labelled; not prepared)'
    )


def _clip_id(name: str) -> str:
  """Identity of a clip, equal for '00012', '12', '12.mp4' and '12.0'."""
  name = name.strip().replace('\\', '/').split('/')[-1]
  head = name.split('.')[0]
  return head.lstrip('0').casefold() or '0'


def _frames(folder: Path, source: Path) -> list[str]:
  """Image files of a clip in temporal order."""
  files = [
      f for f in os.listdir(folder)
      if f.lower().endswith(ix.IMAGE_SUFFIXES) and not f.startswith('.')
  ]  # fmt: skip
  files.sort(key=lambda f: [int(n) for n in re.findall(r'\d+', f)] or [0])
  prefix = folder.relative_to(source).as_posix()
  return [f'{prefix}/{f}' for f in files]


def _add(name, values, folds, folder, source, options, index):
  shown = name.zfill(5) if name.isdigit() else ix.printable(name)
  try:
    classes = {datasets.class_of(datasets.get('dfew'), v) for v in values}
  except ValueError as error:
    index.leave_out(shown, 'folds', str(error))
    return
  if len(classes) > 1:
    index.leave_out(
        shown, 'folds', f'rows disagree about its label: {sorted(values)}'
    )
    return
  frames = _frames(folder, source) if folder else []
  if not frames:
    index.leave_out(shown, 'folds', 'file is missing')
    return
  if len(frames) < options.frames:
    index.note(
        f'clip of fewer than {options.frames} frames: some are repeated', shown
    )
  chosen = tuple(frames[i] for i in video.spread(len(frames), options.frames))
  index.samples.append(
      ix.Sample(shown, 'folds', chosen, 'frames', classes.pop(), folds=folds)
  )
