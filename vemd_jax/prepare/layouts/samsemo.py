"""SAMSEMO: `data/<LANG>/`, `samsemo.tsv`, `splits/<split>_split_<LANG>.txt`."""

import re
from pathlib import Path

from vemd_jax.data import datasets, video
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_SPLITS = {'train': 'train', 'valid': 'val', 'test': 'test'}
_YES = ('1', 'true', 'yes', 'y')


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Samples whose label is empty, unknown, fear, or several labels are left out
  and counted. With `multi_label`, several labels are kept as a multi-hot vector
  without a single label; labels that are not a class are ignored there.

  Args:
    source: the folder with the layout.
    options: `multi_label` is used.
    index: the index to fill.

  Raises:
    FileNotFoundError: a part of the layout is missing.
  """
  facts = datasets.get('samsemo')
  data = ix.need(ix.subfolder(source, 'data'), source, 'folder data')
  table = ix.subfile(source, 'samsemo.tsv') or ix.subfile(data, 'samsemo.tsv')
  table = ix.need(table, source, 'samsemo.tsv')
  lists = ix.need(ix.subfolder(source, 'splits'), source, 'folder splits')
  rows = label_files.read_table(
      table, source, index, '', ('utterance_id', 'aggregated_emotions'), '\t',
      ('language', 'transcript', 'multiple_faces'),
  )  # fmt: skip
  # The same number in another language is another clip.
  rows = label_files.unique_rows(
      rows, 'utterance_id', 'aggregated_emotions', '', index,
      lambda row: _key(row['language'], row['utterance_id']),
  )  # fmt: skip
  by_key = {_key(r['language'], r['utterance_id']): r for r in rows}
  files = ix.Files(source, data, video.SUFFIXES, index)
  seen = set()
  found_list = False
  for path in sorted(lists.iterdir()):
    match = re.fullmatch(
        r'(train|valid|test)_split_(\w+)\.txt', path.name, re.IGNORECASE
    )
    if not match:
      continue
    found_list = True
    split = _SPLITS[match[1].lower()]
    for name in dict.fromkeys(label_files.read_lines(path, source, index)):
      key = _find(name, match[2], by_key)
      file = ix.printable(name)
      if key is None:
        index.leave_out(file, split, f'no usable row in {table.name}')
        continue
      row = by_key[key]
      seen.add(key)
      sample = _sample(row, match[2], split, files, facts, options, index)
      if sample is not None:
        index.samples.append(sample)
  if not found_list:
    raise FileNotFoundError(f'{lists} has no train_split_<LANG>.txt')
  for key, row in by_key.items():
    if key not in seen:
      index.leave_out(
          ix.printable(row['utterance_id']), '', 'in no split file'
      )


def _key(language: str, name: str) -> tuple[str, str]:
  """Identity of a clip: language, and name without folder and suffix."""
  return language.strip().casefold(), label_files.name_key(name)


def _find(name: str, language: str, by_key) -> tuple[str, str] | None:
  """Finds the row of a name in a language's split file.

  A row without language, or the only row of this name, matches any language.
  """
  for key in (_key(language, name), _key('', name)):
    if key in by_key:
      return key
  same = [key for key in by_key if key[1] == label_files.name_key(name)]
  return same[0] if len(same) == 1 else None


def _sample(row, language, split, files, facts, options, index):
  name = row['utterance_id']
  try:
    label, multi_hot = _labels(row['aggregated_emotions'], facts, options)
    language = row['language'] or language
    file = files.find(f'{language}/{name}') or files.find(name)
  except ValueError as error:
    index.leave_out(ix.printable(name), split, str(error))
    return None
  if file is None:
    index.leave_out(ix.printable(name), split, 'file is missing')
    return None
  if row['multiple_faces'].casefold() in _YES:
    index.note('several faces in the clip (multiple_faces)', ix.printable(file))
  group = re.sub(r'[_-]\d+$', '', f'{language}/{name}')
  return ix.Sample(
      ix.printable(file), split, (file,), 'video', label, multi_hot,
      group=ix.printable(group), transcript=row['transcript'],
  )  # fmt: skip


def _labels(text, facts, options):
  """Parses labels to a class and a multi-hot vector.

  The text is e.g. `sadness`, `anger, surprise` or `['anger', 'surprise']`.
  """
  names = [
      n for n in re.split(r'[,;|/&+\s]+', re.sub(r'[\[\](){}"\']', ' ', text))
      if n
  ]  # fmt: skip
  if len(set(map(datasets.normalize_label, names))) > 1:
    if not options.multi_label:
      raise ValueError('several labels')
    known = []
    for name in names:
      try:
        known.append(datasets.class_of(facts, name))
      except ValueError:
        continue
    if not known:
      raise ValueError('several labels, none of them used')
    label = -1
  else:
    known = [datasets.class_of(facts, names[0] if names else '')]
    label = known[0]
  return label, tuple(int(c in known) for c in range(len(facts.classes)))
