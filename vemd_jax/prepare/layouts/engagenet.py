"""EngageNet: videos by chunk, `final_labels.csv`, `{train,valid,test}.txt`."""

import re
from pathlib import Path

from vemd_jax.data import datasets, video
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_LISTS = {'train': 'train.txt', 'val': 'valid.txt', 'test': 'test.txt'}


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Rows with the label SNP (subject not present) are left out and counted. Clips
  are grouped for the holdout by subject, if the name contains it.

  Args:
    source: the folder with the layout; videos are anywhere below it.
    options: not used here.
    index: the index to fill.

  Raises:
    FileNotFoundError: a part of the layout is missing.
  """
  facts = datasets.get('engagenet')
  table = ix.need(
      ix.subfile(source, 'final_labels.csv'), source, 'final_labels.csv'
  )
  rows = label_files.read_table(table, source, index, '', ('chunk', 'label'))
  usable = label_files.unique_rows(
      rows, 'chunk', 'label', '', index,
      lambda row: _key(row['chunk']),
      lambda label: datasets.class_of(facts, label),
  )  # fmt: skip
  by_chunk = {_key(r['chunk']): r for r in usable}
  files = ix.Files(source, source, video.SUFFIXES, index)
  seen = set()
  for split, name in _LISTS.items():
    path = ix.need(
        ix.subfile(source, name, name.replace('valid', 'val')), source, name
    )
    for line in dict.fromkeys(label_files.read_lines(path, source, index)):
      chunk = line.split(',')[0].strip()
      shown = ix.printable(chunk)
      row = by_chunk.get(_key(chunk))
      seen.add(_key(chunk))
      if row is None:
        index.leave_out(shown, split, f'no usable row in {table.name}')
        continue
      try:
        label = datasets.class_of(facts, row['label'])
        file = files.find(chunk)
      except ValueError as error:
        index.leave_out(shown, split, str(error))
        continue
      if file is None:
        index.leave_out(shown, split, 'file is missing')
        continue
      subject = re.search(r'subject[_-]?\d+', shown, re.IGNORECASE)
      index.samples.append(
          ix.Sample(
              ix.printable(file), split, (file,), 'video', label,
              group=subject[0].lower() if subject else '',
          )
      )  # fmt: skip
  for key, row in by_chunk.items():
    if key not in seen:
      index.leave_out(ix.printable(row['chunk']), '', 'in no split file')


def _key(chunk: str) -> str:
  """A chunk's name without folder and suffix."""
  return Path(ix.printable(chunk).replace('\\', '/')).stem.casefold()
