"""MER2023: `train/ test1/ test2/ test3/` and `<split>-label.csv`.

test3 also contains the unlabelled clips of the SEMI track: `mer2023_semi` are
those without a row in `test3-label.csv`.
"""

from pathlib import Path

from vemd_jax.data import datasets, video
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_TRANSCRIPTS = ('transcription.csv', 'transcript.csv', 'transcripts.csv')
_TEXT = ('sentence', 'transcript', 'text', 'chinese', 'english')


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index with the labelled parts.

  Args:
    source: the folder with the layout.
    options: not used here.
    index: the index to fill.

  Raises:
    FileNotFoundError: the training part is missing.
  """
  facts = datasets.get('mer2023')
  transcripts = _transcripts(source, index)
  for split in facts.splits:
    folder = ix.subfolder(source, split)
    path = ix.subfile(source, f'{split}-label.csv')
    if split != 'train' and folder is None and path is None:
      continue
    folder = ix.need(folder, source, f'folder {split}')
    path = ix.need(path, source, f'{split}-label.csv')
    files = ix.Files(source, folder, video.SUFFIXES, index)
    rows, unlisted = label_files.match(
        path, source, split, ('name', 'discrete'), files, index,
        lambda label: datasets.class_of(facts, label),
    )  # fmt: skip
    for row, file, label in rows:
      said = transcripts.get(ix.printable(row['name']).casefold(), '')
      index.samples.append(
          ix.Sample(
              ix.printable(file), split, (file,), 'video', label,
              transcript=said,
          )
      )  # fmt: skip
    if split == 'test3':
      index.facts['unlabelled clips in test3'] = (
          f'{len(unlisted)} (dataset mer2023_semi)'
      )
      continue
    for file in unlisted:
      index.leave_out(ix.printable(file), split, f'no row in {path.name}')


def read_semi(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index with the unlabelled clips.

  Args:
    source: the folder with the layout.
    options: not used here.
    index: the index to fill.

  Raises:
    FileNotFoundError: test3 or its label file is missing; without the file,
      labelled test clips would be treated as unlabelled ones.
  """
  folder = ix.need(ix.subfolder(source, 'test3'), source, 'folder test3')
  path = ix.need(
      ix.subfile(source, 'test3-label.csv'), source, 'test3-label.csv'
  )
  files = ix.Files(source, folder, video.SUFFIXES, index)
  labelled = set()
  for row in label_files.read_table(path, source, index, 'train', ('name',)):
    try:
      labelled.add(files.find(row['name']))
    except ValueError:
      index.note('several files have a labelled name: all are treated as '
                 'unlabelled', ix.printable(row['name']))  # fmt: skip
  index.facts['labelled clips in test3'] = f'{len(labelled)} (not used here)'
  for file in files.paths:
    if file not in labelled:
      index.samples.append(
          ix.Sample(ix.printable(file), 'train', (file,), 'video')
      )


def _transcripts(source: Path, index: ix.Index) -> dict[str, str]:
  """Transcripts by clip name, if the folder contains a table of them."""
  path = ix.subfile(source, *_TRANSCRIPTS)
  if path is None:
    index.facts['transcripts'] = f'none ({_TRANSCRIPTS[0]} does not exist)'
    return {}
  rows = label_files.read_table(
      path, source, index, '', ('name',), optional=_TEXT
  )
  return {
      ix.printable(r['name']).casefold(): next(
          (r[c] for c in _TEXT if r[c]), ''
      )
      for r in rows
  }
