r"""Removes everything that shows a person from a workdir.

  vemd scrub RUN --dry_run
  vemd scrub RUN --hash_names

It removes pictures and videos (except curves.png and confusion.png, which show
numbers), the gallery, HTML pages with pictures, the TensorBoard, W&B and MLflow
logs, which store pictures, and traceback.txt, which may name files, and prints
what it removed. Links are removed, not what they point to. Metrics, results,
config and checkpoints remain: the run can be evaluated, resumed and exported.
Weights may reveal something about the training pictures; this command does not
change that.

--hash_names replaces the names of files in predictions.jsonl by keyed hashes.
The key is random and not stored, unless --salt gives one, with which several
runs get the same hashes.

Resuming or evaluating the run writes pictures again, unless
--config.pictures.people=off.

Exit status: 0; 2 if it is no workdir or something cannot be removed.
"""

import argparse
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vemd_jax.data import jsonl, video
from vemd_jax.inference.clips import PHOTO_SUFFIXES

# Pictures of numbers.
_KEPT = ('curves.png', 'confusion.png')
# Pages without pictures.
_PAGES = ('model_card.html',)
_FOLDERS = ('pictures', 'gallery', 'tensorboard', 'wandb', 'mlruns')
# Never searched.
_WEIGHTS = 'checkpoints'


class Removed(NamedTuple):
  """What was removed from a workdir.

  Attributes:
    path: relative to the workdir.
    files: number of files, 1 for a file.
    bytes: their size.
  """

  path: pathlib.Path
  files: int
  bytes: int


def find(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Finds everything that shows a person.

  Args:
    workdir: workdir of a run.

  Returns:
    Folders and files, relative to the workdir.

  Raises:
    FileNotFoundError: if it is not the workdir of a run.
  """
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(
        f"no config at {workdir / 'config.json'}; expected a run's workdir"
    )
  found = []
  for folder, below, names in os.walk(workdir):
    here = pathlib.Path(folder).relative_to(workdir)
    top = here == pathlib.Path()
    shown = [n for n in below if top and n in _FOLDERS]
    found += [here / name for name in shown]
    below[:] = sorted(
        n for n in below if n not in shown and not (top and n == _WEIGHTS)
    )
    found += [here / n for n in names if _shows(n, top)]
  return sorted(found)


def _shows(name: str, top: bool) -> bool:
  suffix = pathlib.PurePath(name).suffix.lower()
  if suffix in PHOTO_SUFFIXES + video.SUFFIXES:
    return not (top and name in _KEPT)
  if suffix in ('.html', '.htm'):
    return not (top and name in _PAGES)
  return name.startswith('events.out.tfevents') or (
      top and name == 'traceback.txt'
  )


def remove(workdir: pathlib.Path, paths: Sequence[pathlib.Path]) -> None:
  """Removes folders and files; of a link, only the link.

  Args:
    workdir: workdir of a run.
    paths: paths relative to it.
  """
  for path in paths:
    path = workdir / path
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink()


def measure(workdir: pathlib.Path, path: pathlib.Path) -> Removed:
  """Counts the files of a path relative to a workdir."""
  whole = workdir / path
  files = [whole]
  if whole.is_dir() and not whole.is_symlink():
    files = [p for p in whole.rglob('*') if not p.is_dir()]
  size = sum(p.lstat().st_size for p in files)
  return Removed(path, len(files), size)


def hash_names(workdir: pathlib.Path, salt: str = '') -> int:
  """Replaces the names of files in predictions.jsonl by keyed hashes.

  Names alone may identify people, and a plain hash of a guessable name can be
  found by trying names. Names that are hashed already are left as they are.

  Args:
    workdir: workdir of a run.
    salt: the key; '' draws a random one that is not stored.

  Returns:
    The number of names.
  """
  path = workdir / 'predictions.jsonl'
  if not path.exists():
    return 0
  key = salt.encode() or secrets.token_bytes(32)
  lines = jsonl.read(path)
  count = 0
  for line in lines:
    if line['file'].startswith('hash:'):
      continue
    name = line['file'].encode('utf-8', 'surrogatepass')
    digest = hmac.new(key, name, hashlib.sha256).hexdigest()
    line['file'] = f'hash:{digest[:24]}'
    count += 1
  part = path.with_name(path.name + '.part')
  part.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  part.replace(path)
  return count


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  args = _parse(argv)
  workdir = pathlib.Path(args.workdir)
  try:
    if args.salt and not args.hash_names:
      raise ValueError('--salt is the key of --hash_names, which is missing')
    found = [measure(workdir, path) for path in find(workdir)]
    if not args.dry_run:
      remove(workdir, [one.path for one in found])
    verb = 'would remove' if args.dry_run else 'removed'
    for path, files, size in found:
      print(f'{verb} {path}  {files} files, {size / 1e6:.2f} MB')
    if not found:
      print(f'{workdir}: nothing shows a person')
    if args.hash_names and not args.dry_run:
      count = hash_names(workdir, args.salt)
      print(f'hashed {count} names in predictions.jsonl')
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='vemd scrub',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('workdir', metavar='RUN', help='workdir of a run')
  add('--dry_run', action='store_true', help='only print what it would remove')
  add('--hash_names', action='store_true', help='hash the names of files')
  add('--salt', default='', metavar='TEXT', help='key of the hashes (default: '
      'random, not stored)')  # fmt: skip
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
