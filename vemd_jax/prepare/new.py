r"""Writes the labels.csv of a folder with one folder of images per class.

  vemd new DIR
  vemd new DIR --val=0.15 --test=0.15 --subject='(s\d+)_'

  DIR/happy/1.jpg           or   DIR/train/happy/1.jpg
  DIR/sad/2.jpg                  DIR/val/sad/2.jpg

Images are neither moved nor changed. Folders of splits are kept; otherwise
samples are split such that near duplicates, images in the same subfolder of a
class, and images of the same subject stay together. Then the folder is checked
as by `vemd check`, and the command to train is printed.
"""

import argparse
import csv
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from vemd_jax.data import class_folders, labels_csv
from vemd_jax.prepare import check


def make(
    root: pathlib.Path,
    val: float = 0.2,
    test: float = 0.0,
    subject: str = '',
    overwrite: bool = False,
) -> pathlib.Path:
  """Writes the labels.csv of class folders.

  Args:
    root: the folder.
    val: share of the samples in the split val.
    test: share of the samples in the split test; 0 for none.
    subject: regular expression whose first group is the subject in the name of
      a file; '' if subjects are unknown.
    overwrite: whether an existing labels.csv is replaced.

  Returns:
    The file.

  Raises:
    FileExistsError: there is a labels.csv already.
    FileNotFoundError: there is no such folder.
    ValueError: the folder has another layout, or an argument is invalid.
  """
  path = root / labels_csv.NAME
  if path.exists() and not overwrite:
    raise FileExistsError(
        f'{path} exists: vemd check {root} checks it, --overwrite replaces '
        'it'
    )
  if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
    raise ValueError(
        f'--val={val} --test={test}: expected shares above 0 that sum to less '
        'than 1'
    )
  samples = class_folders.find(root)
  subjects = _subjects(samples, subject) if subject else []
  shares = {'train': 1 - val - test, 'val': val}
  if test:
    shares['test'] = test
  splits = class_folders.splits(root, samples, shares, subjects)
  part = path.with_name(path.name + '.part')
  with part.open('w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    columns = [*zip(*[(s.file, split, s.label)
                      for s, split in zip(samples, splits)])]  # fmt: skip
    header = ['file', 'split', 'label']
    if subjects:
      header.append('subject')
      columns.append(subjects)
    writer.writerow(header)
    writer.writerows(zip(*columns))
  part.replace(path)
  return path


def _subjects(
    samples: Sequence[class_folders.Sample], expression: str
) -> list[str]:
  try:
    pattern = re.compile(expression)
  except re.error as error:
    raise ValueError(f'--subject={expression}: {error}') from error
  if pattern.groups < 1:
    raise ValueError(
        f'--subject={expression}: expected a group in parentheses, such as '
        r"'(s\d+)_'"
    )
  found = [pattern.search(sample.file) for sample in samples]
  if not any(found):
    raise ValueError(
        f'--subject={expression}: matches no file, such as {samples[0].file}'
    )
  return [match[1] or '' if match else '' for match in found]


def commands(root: pathlib.Path, run: pathlib.Path) -> list[str]:
  """The commands that train on the folder.

  Args:
    root: the labelled folder.
    run: workdir of the demo, from which training starts.

  Returns:
    Lines of text.
  """
  lines = []
  if not (run / 'checkpoints').exists():
    lines = [
        'train the demo first, to start from its weights (about 11 minutes):',
        f'  vemd train --config=configs/group_scenes.py --workdir={run}',
    ]
  workdir = shlex.quote(f'runs/{root.resolve().name}')
  return [
      *lines,
      'then train on this folder:' if lines else 'train on this folder:',
      f'  vemd train --config=configs/folder.py:from={run} '
      f'--config.data.root={shlex.quote(str(root))} --workdir={workdir}',
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='vemd new',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  check.add_arguments(parser)
  add = parser.add_argument
  add('--val', type=float, default=0.2, help='share of the samples in val '
      '(default 0.2)')  # fmt: skip
  add('--test', type=float, default=0.0, help='share of the samples '
      'in test (default none)')  # fmt: skip
  add('--subject', default='', help='regular expression whose first '
      'group is the subject in the name of a file')  # fmt: skip
  add('--overwrite', action='store_true', help='replace labels.csv')
  args = parser.parse_args(argv)
  root = pathlib.Path(args.folder)
  try:
    sheet = check.sheet_path(args)
    path = make(root, args.val, args.test, args.subject, args.overwrite)
    print(f'{path} written')
    found = check.check(root, args.image_size, args.outside_root)
    status = check.report(found, sheet)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  print('\n'.join(commands(root, pathlib.Path('runs/group_scenes'))))
  return status


if __name__ == '__main__':
  sys.exit(main())
