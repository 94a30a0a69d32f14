r"""Checks a labelled folder before a model is trained on it.

  vemd check DIR

DIR contains a labels.csv or one folder of images per class. The check reports
the number of samples per class and split, image sizes, unreadable files, near
duplicates across splits, class balance and annotations, and writes a contact
sheet with the annotations drawn over the images.

Exit status: 0; 1 if there are problems that invalidate results; 2 if the folder
cannot be read at all.
"""

import argparse
import collections
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from vemd_jax import canvas
from vemd_jax.data import (
  class_folders,
  decoding,
  labels_csv,
  naming,
  near_duplicates,
  video,
)
from vemd_jax.data.folder import Folder
from vemd_jax.prepare import preview

# Classes with fewer training samples are reported.
_FEW = 10


@dataclasses.dataclass
class Sample:
  """A sample of the folder.

  Attributes:
    file: name of the file.
    split: name of the split.
    label: name of the class; '' without label.
    source: source of the split.
    index: index of the sample in the source.
    look: properties of the image.
  """

  file: str
  split: str
  label: str
  source: Folder
  index: int
  look: class_folders.Look


@dataclasses.dataclass
class Check:
  """The result of a check.

  Attributes:
    samples: all samples.
    classes: names of the classes.
    splits: names of the splits.
    problems: findings that invalidate results, one line each.
    remarks: other findings, one line each.
    across: near duplicates in different splits.
  """

  samples: list[Sample]
  classes: tuple[str, ...]
  splits: tuple[str, ...]
  problems: list[str]
  remarks: list[str]
  across: list[tuple[Sample, Sample]]

  def __str__(self) -> str:
    lines = [*_counts(self), *_sizes(self), *_annotated(self)]
    lines += [f'remark: {line}' for line in self.remarks]
    lines += [f'problem: {line}' for line in self.problems]
    return '\n'.join(lines)


def check(
    root: pathlib.Path, image_size: int = 112, outside_root: bool = False
) -> Check:
  """Checks a folder.

  Args:
    root: folder with labels.csv or class folders.
    image_size: side of the model's input in pixels; smaller images are counted.
    outside_root: whether files may be outside the folder.

  Returns:
    The findings.

  Raises:
    FileNotFoundError: the folder has neither.
    ValueError: the folder cannot be read at all.
  """
  table = class_folders.table(root)
  found = Check([], table.classes, tuple(table.splits), [], [], [])
  found.remarks += table.remarks
  found.problems += labels_csv.shared_subjects(table.rows)
  for split in found.splits:
    try:
      # The middle frame represents a clip.
      source = Folder(
          root, split, frames=1, max_unreadable=1.0, outside_root=outside_root
      )
    except ValueError as error:
      found.problems.append(str(error))
      continue
    found.problems += source.report.problems
    found.samples += [
        Sample(
            file, split, table.classes[n] if n >= 0 else '', source, i, seen
        )
        for i, (file, n, seen) in enumerate(
            zip(source.files, source.labels, class_folders.look(source))
        )
    ]
  _find_unreadable(found)
  _find_near_duplicates(found)
  _find_imbalance(found)
  small = sum(
      min(s.look.size) < image_size for s in found.samples if s.look.size
  )
  if small:
    found.remarks.append(
        f'{small} of {len(found.samples)} have a side of less than '
        f'{image_size} pixels, the input size of the laptop recipe'
    )
  return found


def _find_unreadable(found: Check) -> None:
  bad = [s for s in found.samples if s.look.problem]
  if bad:
    found.problems.append(
        f'{len(bad)} cannot be read: '
        + naming.some([f'{s.file} ({s.look.problem})' for s in bad])
    )


def _find_near_duplicates(found: Check) -> None:
  whole = [s for s in found.samples if s.look.fingerprint is not None]
  pairs = [
      (whole[i], whole[j])
      for i, j in near_duplicates.pairs([s.look.fingerprint for s in whole])
  ]
  found.across = [(a, b) for a, b in pairs if a.split != b.split]
  if found.across:
    found.problems.append(
        f'{len(found.across)} pairs of near duplicates in different splits: '
        + naming.some([
            f'{a.file} ({a.split}) = {b.file} ({b.split})'
            for a, b in found.across
        ])
    )
  inside = len(pairs) - len(found.across)
  if inside:
    found.remarks.append(
        f'{inside} pairs of near duplicates within a split'
    )
  other = [(a, b) for a, b in pairs if a.label != b.label]
  if other:
    found.remarks.append(
        f'{len(other)} pairs of near duplicates with different labels: '
        + naming.some([
            f'{a.file} ({a.label or "none"}) = {b.file} ({b.label or "none"})'
            for a, b in other
        ])
    )


def _find_imbalance(found: Check) -> None:
  counts = collections.Counter((s.split, s.label) for s in found.samples)
  for split in 'train', 'val':
    if split not in found.splits:
      found.problems.append(f'there is no split {split}')
      continue
    lacking = [c for c in found.classes if not counts[split, c]]
    if lacking:
      found.problems.append(
          f'{split} has no samples of {naming.some(lacking)}'
      )
  few = [
      f'{c} ({counts["train", c]})'
      for c in found.classes
      if 0 < counts['train', c] < _FEW
  ]
  if few:
    found.remarks.append(f'few training samples: {naming.some(few)}')
  if not found.classes:
    found.problems.append('there are no labels')
    return
  most = max(found.classes, key=lambda c: counts['val', c])
  total = sum(counts['val', c] for c in found.classes)
  if total:
    found.remarks.append(
        f'the most frequent class of val, {most}, is '
        f'{counts["val", most] / total:.3f} of it; compare accuracies with '
        'that'
    )
  train = [counts['train', c] for c in found.classes]
  if max(train) > 3 * min(train) > 0:
    found.remarks.append(
        'the classes are imbalanced: '
        '--config.losses.emotion.kwargs.class_weights=balanced gives rare '
        'classes a larger weight'
    )


def _counts(found: Check) -> list[str]:
  counts = collections.Counter((s.label, s.split) for s in found.samples)
  names = list(found.classes)
  if any(not s.label for s in found.samples):
    names.append('')
  rows = [['class', *found.splits]]
  rows += [
      [c or 'no label', *(str(counts[c, s]) for s in found.splits)]
      for c in names
  ]
  sums = [sum(counts[c, s] for c in names) for s in found.splits]
  rows.append(['all', *map(str, sums)])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
      '  '.join([row[0].ljust(widths[0]),
                 *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
      for row in rows
  ]  # fmt: skip


def _sizes(found: Check) -> list[str]:
  sizes = [s.look.size for s in found.samples if s.look.size]
  if not sizes:
    return []
  sizes.sort(key=lambda size: size[0] * size[1])
  small, middle, large = (
      f'{w} x {h}' for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
  )
  return [f'size: {small} to {large}, median {middle}']


def _annotated(found: Check) -> list[str]:
  parts = []
  for split in found.splits:
    people = [s.look.people for s in found.samples if s.split == split]
    annotated = [n for n in people if n is not None]
    if annotated:
      parts.append(
          f'{len(annotated)} of {len(people)} of {split}, '
          f'{sum(n > 0 for n in annotated)} with people (up to '
          f'{max(annotated)})'
      )
  if not parts:
    return ['annotated: none; vemd annotate detects bodies and faces']
  return [f'annotated: {"; ".join(parts)}']


def contact_sheet(
    found: Check, columns: int = 8, cell: int = 160
) -> np.ndarray:
  """Draws samples of each class, and near duplicates across splits.

  The sheet contains the images: it is personal data if they are.

  Args:
    found: result of `check`.
    columns: number of samples per class.
    cell: side of an image on the sheet, in pixels.

  Returns:
    uint8 [H, W, 3].
  """
  rows = []
  for label in found.classes:
    counts = ', '.join(
        f'{sum(s.label == label for s in group)} {split}'
        for split, group in itertools.groupby(found.samples, lambda s: s.split)
    )
    of_class = [s for s in found.samples if s.label == label and s.look.size]
    if of_class:
      chosen = np.unique(video.spread(len(of_class), columns))
      pictures = [_draw(of_class[i], cell) for i in chosen]
      rows.append((pictures, f'{label}: {counts}'))
  for start in range(0, min(len(found.across), 3 * columns), columns // 2):
    pairs = found.across[start : start + columns // 2]
    pictures = [_draw(sample, cell) for pair in pairs for sample in pair]
    caption = 'near duplicates in different splits, in pairs'
    rows.append((pictures, caption))
  return canvas.contact_sheet(rows, cell=cell)


def _draw(sample: Sample, cell: int) -> np.ndarray:
  """A sample with its annotation drawn over it."""
  record = decoding.decode(sample.source[sample.index], 1)
  (image,) = record['frames']
  line: dict[str, Any] = {'width': image.shape[1], 'height': image.shape[0]}
  for key in 'bodies', 'faces':
    (line[key],) = (
        [] if people is None else people.tolist() for people in record[key]
    )
  return preview.draw(image, line, cell)


def write_sheet(found: Check, path: pathlib.Path) -> None:
  """Writes the contact sheet as a JPEG or PNG file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  data = cv2.imencode(path.suffix, contact_sheet(found)[..., ::-1])[1]
  path.write_bytes(data.tobytes())


def report(found: Check, sheet: pathlib.Path | None) -> int:
  """Prints the findings and writes the contact sheet.

  Args:
    found: result of `check`.
    sheet: file of the contact sheet, or None.

  Returns:
    The exit status.
  """
  print(found)
  if sheet and any(s.look.size for s in found.samples):
    write_sheet(found, sheet)
    print(f'contact sheet: {sheet} (it contains the images)')
  return 1 if found.problems else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of a check to a parser."""
  add = parser.add_argument
  add('folder', metavar='DIR', help='the folder')
  add('--sheet', metavar='FILE', help='file of the contact sheet (default '
      'DIR/contact_sheet.jpg); "" for none')  # fmt: skip
  add('--image_size', type=int, default=112, help="side of the model's input "
      'in pixels (default 112)')  # fmt: skip
  add('--outside_root', action='store_true', help='allow files outside DIR '
      '(absolute names, .. or links)')  # fmt: skip


def sheet_path(args: argparse.Namespace) -> pathlib.Path | None:
  """The file of the contact sheet according to the arguments."""
  if args.sheet is None:
    return pathlib.Path(args.folder) / 'contact_sheet.jpg'
  if args.sheet and pathlib.Path(args.sheet).suffix not in ('.jpg', '.png'):
    raise ValueError(f'--sheet={args.sheet}: expected a .jpg or .png file')
  return pathlib.Path(args.sheet) if args.sheet else None


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='vemd check',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    sheet = sheet_path(args)
    found = check(
        pathlib.Path(args.folder), args.image_size, args.outside_root
    )
    return report(found, sheet)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
