"""GAF-3.0, in both layouts in circulation.

(a) `GAF3.0_Original/{Train,Validation}/{Positive,Neutral,Negative}/<image>`;
(b) `Train/`, `Val/` beside `Train_labels.txt`, `Val_labels.txt` with the header
`Img_name,Labels` and labels 0..2, whose order varies, hence `--label_order`.
"""

from pathlib import Path

from vemd_jax.data import datasets
from vemd_jax.prepare import index as ix
from vemd_jax.prepare import label_files

_SPLITS = {
    'train': ('Train', 'Training'),
    'val': ('Validation', 'Val', 'Valid'),
}


def read(source: Path, options: ix.Options, index: ix.Index) -> None:
  """Fills the index.

  Args:
    source: the folder with the layout, or its parent.
    options: `label_order` is used by layout (b).
    index: the index to fill.

  Raises:
    FileNotFoundError: neither layout is found.
  """
  facts = datasets.get('gaf3')
  base = ix.subfolder(source, 'GAF3.0_Original') or source
  labels = {
      split: ix.subfile(base, *(f'{n}_labels.txt' for n in names))
      for split, names in _SPLITS.items()
  }
  flat = any(labels.values())
  order = options.label_order or facts.classes
  if flat:
    meaning = ', '.join(f'{i} = {c}' for i, c in enumerate(order))
    index.facts['layout'] = 'flat, with label files'
    index.facts['label order'] = f'{meaning} (set by --label_order)'
  else:
    index.facts['layout'] = 'one folder per class'
  for split, names in _SPLITS.items():
    folder = ix.need(
        ix.subfolder(base, *names),
        source,
        f'folder {names[0]}; expected GAF3.0_Original/{{Train,Validation}}/'
        '{Positive,Neutral,Negative} or Train, Val with Train_labels.txt, '
        'Val_labels.txt',
    )
    if flat:
      path = ix.need(labels[split], source, f'{names[0]}_labels.txt')
      _read_flat(source, folder, path, split, order, index)
    else:
      _read_classes(source, folder, split, index)


def _read_classes(source, folder, split, index):
  facts = datasets.get('gaf3')
  for name in facts.classes:
    path = ix.need(ix.subfolder(folder, name), source,
                   f'folder {folder.name}/{name.capitalize()}')  # fmt: skip
    files = ix.Files(source, path, ix.IMAGE_SUFFIXES, index)
    for file in files.paths:
      index.samples.append(
          ix.Sample(
              ix.printable(file), split, (file,), 'image',
              facts.classes.index(name),
          )
      )  # fmt: skip
    for file in files.other:
      index.leave_out(ix.printable(file), split, 'not an image file')


def _read_flat(source, folder, path, split, order, index):
  facts = datasets.get('gaf3')
  files = ix.Files(source, folder, ix.IMAGE_SUFFIXES, index)
  rows, unlisted = label_files.match(
      path, source, split, ('Img_name', 'Labels'), files, index,
      lambda label: datasets.class_of(facts, label, order),
  )  # fmt: skip
  for _, file, label in rows:
    index.samples.append(
        ix.Sample(ix.printable(file), split, (file,), 'image', label)
    )
  for file in unlisted:
    index.leave_out(ix.printable(file), split, f'no row in {path.name}')
