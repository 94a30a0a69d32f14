"""VGAF: `{Train,Val,Test}/<Vid_name>.mp4`, `{Train,Val}_labels.txt`."""

from pathlib import Path

from vemd_jax.data import datasets, video
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_SPLITS = {
    'train': ('Train',),
    'val': ('Val', 'Validation'),
    'test': ('Test',),
}


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Clips are cut from longer videos and named `<video>_<number>`: for the holdout
  they are grouped by the part before the last '_'.

  Args:
    source: the folder with the layout.
    options: not used here.
    index: the index to fill.

  Raises:
    FileNotFoundError: the training or validation part is missing.
  """
  facts = datasets.get('vgaf')
  for split, names in _SPLITS.items():
    folder = ix.subfolder(source, *names)
    path = ix.subfile(source, *(f'{n}_labels.txt' for n in names))
    if split == 'test' and folder is None:
      continue
    folder = ix.need(folder, source, f'folder {names[0]}')
    files = ix.Files(source, folder, video.SUFFIXES, index)
    if split == 'test' and path is None:
      index.facts['test'] = 'without labels: they are not public'
      for file in files.paths:
        index.samples.append(_sample(file, split, -1))
      continue
    path = ix.need(path, source, f'{names[0]}_labels.txt')
    rows, unlisted = label_files.match(
        path, source, split, ('Vid_name', 'Label'), files, index,
        lambda label: datasets.class_of(facts, label), ' ',
    )  # fmt: skip
    index.samples += [_sample(file, split, label) for _, file, label in rows]
    for file in unlisted:
      index.leave_out(ix.printable(file), split, f'no row in {path.name}')


def _sample(file: str, split: str, label: int) -> ix.Sample:
  name = ix.printable(file)
  group = Path(name).stem.rpartition('_')[0] or Path(name).stem
  return ix.Sample(name, split, (file,), 'video', label, group=group)
