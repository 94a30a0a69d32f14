"""Converts a dataset in its official layout to the data that training reads.

  python -m vemd_jax.data.prepare DATASET --source=DIR --out=DIR

reads the official layout, decodes, downsizes and encodes the frames, and writes
to `--out`:

  data/            a TFDS dataset, array_record
  index.jsonl      one line per sample: split, file, label, holdout value, folds
  report.json      counts against the official numbers, what is left out and why
  prepared.json    options; written last, so it exists only when complete
  source.jsonl     files of the source with size and modification time

The same command resumes after an interruption at any point; a second run does
nothing; changes of the source or the options are reported. Names of people,
crops and features of single people are not written; JPEG metadata is removed;
with `--hash_names` file names are replaced by hashes.
"""

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vemd_jax.data import datasets, files
from vemd_jax.prepare.chunks import (
    FORMAT,
  Chunk,
  encode_all,
  examples,
  make_chunks,
  write_bytes,
)
from vemd_jax.prepare.index import FOREIGN, Index, Options, finish
from vemd_jax.prepare.layouts import (
  coco,
  dfew,
  engagenet,
  gaf3,
  mer2023,
  samsemo,
  vgaf,
)
from vemd_jax.prepare.report import in_several_splits, make_report, table

_READ = {
    'gaf3': gaf3.read,
    'vgaf': vgaf.read,
    'samsemo': samsemo.read,
    'dfew': dfew.read,
    'mer2023': mer2023.read,
    'mer2023_semi': mer2023.read_semi,
    'engagenet': engagenet.read,
    'coco': coco.read,
}


class SourceChanged(ValueError):
  """The source or the options differ from those of the prepared data."""


def prepare(
    name: str,
    source: str | Path,
    out: str | Path,
    options: Options | None = None,
    workers: int = 0,
    update: bool = False,
    outside_root: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Prepares a dataset.

  Args:
    name: name of the dataset.
    source: folder with its official layout.
    out: folder to write.
    options: see `Options`; None takes the dataset's number of frames.
    workers: processes; 0 = one per core, 1 = this process, which then dies if
      a decoder crashes.
    update: prepares again if the source or the options have changed.
    outside_root: whether links in the source may lead to files outside it.
    log: called with lines for the user.

  Returns:
    The report, as in report.json.

  Raises:
    ValueError: unknown dataset, or a label file that does not belong to it.
    FileNotFoundError: the layout is not this dataset's.
    SourceChanged: see `update`.
    RuntimeError: another preparation is writing to `out`.
  """
  facts = datasets.get(name)
  options = options or Options(frames=facts.frames)
  source, out = Path(source), Path(out)
  if not source.is_dir():
    raise FileNotFoundError(f'{source} is not a folder')
  out.mkdir(parents=True, exist_ok=True)
  with _lock(out):
    if facts.notice:
      log(f'Note: {facts.notice}')
    log(f'{facts.title}: reading the layout of {source}')
    index = Index(outside_root=outside_root)
    _READ[name](source, options, index)
    finish(index)
    _leave_out_foreign(source, index)
    for key, value in index.facts.items():
      log(f'  {key}: {value}')
    manifest = _manifest(source, index)
    shown = {
        _shown(name, f, index, options): stamp for f, stamp in manifest.items()
    }
    holdout = [
        datasets.holdout_value(name, s.group or s.file) for s in index.samples
    ]
    shared = in_several_splits(
        _groups(index), 'subjects or source videos'
    )
    if shared and options.hash_names:
      shared = [shared[0].partition(':')[0]]
    _hash_names(name, index, options)
    if _is_complete(out, facts, options, shown, update):
      shutil.rmtree(out / 'work', ignore_errors=True)
      report = json.loads((out / 'report.json').read_text(encoding='utf-8'))
      log(f'{out} is complete; nothing to do')
      log(table(report))
      return report
    if not index.samples:
      reasons = collections.Counter(r for _, _, r in index.left_out)
      raise ValueError(f'{source} has no usable sample; {dict(reasons)}')
    work = out / 'work'
    work.mkdir(exist_ok=True)
    _name_changes(work / 'source.jsonl', shown, log)
    chunks = make_chunks(index.samples, manifest, name, options, work)
    encode_all(chunks, source, options, workers, log)
    report = _write(
        out, work, facts, options, index, holdout, chunks, shown, shared
    )
    stale = (out / 'annotations.jsonl').exists()
  log(table(report))
  log(f'{out} is complete')
  if stale:
    log('annotations.jsonl belongs to the previous data: recreate it with '
        'python -m vemd_jax.data.annotate')  # fmt: skip
  return report


def hash_name(dataset: str, file: str) -> str:
  """Replaces a file name for `--hash_names`: 16 hexadecimal digits."""
  data = f'{dataset}/{file}'.encode()
  return hashlib.blake2b(data, digest_size=8).hexdigest()


def _leave_out_foreign(source: Path, index: Index) -> None:
  """Leaves out samples whose files are links to outside the source."""
  if index.outside_root:
    return
  inside = files.Inside(source)
  kept = []
  for sample in index.samples:
    if all(inside(source / name) for name in sample.media):
      kept.append(sample)
    else:
      index.leave_out(sample.file, sample.split, FOREIGN)
  index.samples = kept
  index.left_out.sort()


def _groups(index: Index) -> dict[str, list[tuple[str, str]]]:
  """Subject or source video -> (split, its name) of its samples."""
  groups = collections.defaultdict(list)
  for sample in index.samples:
    if sample.group:
      groups[sample.group].append((sample.split, sample.group))
  return groups


def _shown(name: str, file: str, index: Index, options: Options) -> str:
  """A name as it is written; names of label files are not personal data."""
  if not options.hash_names or file.split(':')[0] in index.files:
    return file
  return hash_name(name, file)


def _hash_names(name: str, index: Index, options: Options) -> None:
  """Replaces every file name in the index, see `_shown`."""
  index.samples = [
      dataclasses.replace(s, file=_shown(name, s.file, index, options))
      for s in index.samples
  ]
  index.left_out = sorted(
      (_shown(name, f, index, options), split, reason)
      for f, split, reason in index.left_out
  )
  for remark, names in index.handled.items():
    index.handled[remark] = sorted(
        _shown(name, f, index, options) for f in names
    )


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
  with (out / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise RuntimeError(
          f'another preparation is writing to {out}'
      ) from None
    yield


# --- changes of the source --------------------------------------------------


def _manifest(source: Path, index: Index) -> dict[str, list[int]]:
  """Label and media files -> [size, modification ns]; -1 if unreadable."""
  names = {*index.files, *(m for s in index.samples for m in s.media)}
  manifest = {}
  for name in sorted(names):
    try:
      stat = (source / name).stat()
      manifest[name] = [stat.st_size, stat.st_mtime_ns]
    except OSError:
      manifest[name] = [-1, -1]
  return manifest


def _changes(old: dict, new: dict) -> list[str]:
  """Lists the first ten differences of two manifests."""
  lines = [f'new: {f}' for f in new if f not in old]
  lines += [f'gone: {f}' for f in old if f not in new]
  lines += [f'changed: {f}' for f in new if f in old and new[f] != old[f]]
  more = len(lines) - 10
  return lines[:10] + ([f'and {more} more'] if more > 0 else [])


def _read_manifest(path: Path) -> dict[str, list[int]]:
  lines = path.read_text(encoding='utf-8', errors='surrogateescape')
  return {
      name: stamp
      for name, stamp in map(json.loads, lines.strip().split('\n'))
  }


def _write_manifest(path: Path, manifest: dict[str, list[int]]) -> None:
  _write_text(path, ''.join(json.dumps(i) + '\n' for i in manifest.items()))


def _name_changes(path: Path, manifest, log: Callable[[str], None]) -> None:
  """Logs what changed since an interrupted run; only that is reencoded."""
  if path.exists():
    changes = _changes(_read_manifest(path), manifest)
    if changes:
      log('The source has changed since the interrupted run:')
      for line in changes:
        log(f'  {line}')
  _write_manifest(path, manifest)


def _is_complete(
    out: Path,
    facts: datasets.Dataset,
    options: Options,
    manifest: dict[str, list[int]],
    update: bool,
) -> bool:
  """Whether there is nothing to do.

  Raises:
    SourceChanged: the prepared data are of another source or other options.
    ValueError: they are of another dataset.
  """
  if not (out / 'prepared.json').exists():
    return False
  made = json.loads((out / 'prepared.json').read_text(encoding='utf-8'))
  if made['dataset'] != facts.name:
    raise ValueError(f'{out} contains {made["dataset"]}; give another --out')
  wanted = json.loads(json.dumps(dataclasses.asdict(options)))
  changes = [
      f'option {k}: {made["options"].get(k)} -> {v}'
      for k, v in wanted.items()
      if made['options'].get(k) != v
  ]
  if made['format'] != FORMAT:
    changes.append(f'format: {made["format"]} -> {FORMAT}')
  if not changes:
    changes = _changes(_read_manifest(out / 'source.jsonl'), manifest)
  if changes and not update:
    raise SourceChanged(
        f'{out} was prepared from another source or with other options '
        f'({"; ".join(changes)}); --update prepares it again'
    )
  return not changes


def _write_text(path: Path, text: str) -> None:
  write_bytes(path, text.encode('utf-8', 'surrogateescape'))


# --- the result -------------------------------------------------------------


def _write(
    out: Path,
    work: Path,
    facts: datasets.Dataset,
    options: Options,
    index: Index,
    holdout: Sequence[float],
    chunks: Sequence[Chunk],
    manifest: dict[str, list[int]],
    shared: list[str],
) -> dict[str, Any]:
  """Writes the TFDS dataset, index and report from the work files."""
  # Imported here, since workers do not need it.
  import tensorflow_datasets as tfds

  from vemd_jax.prepare import tfds_builder

  left_out = list(index.left_out)
  handled = {k: list(v) for k, v in index.handled.items()}
  values = {s.file: h for s, h in zip(index.samples, holdout, strict=True)}
  lines: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
  contents = collections.defaultdict(list)
  for split in dict.fromkeys(c.split for c in chunks):
    for e in examples(chunks, split):
      if 'left_out' in e:
        left_out.append((e['file'], split, e['left_out']))
        continue
      for remark in e['remarks']:
        handled.setdefault(remark, []).append(e['file'])
      line = {
          'split': split,
          'file': e['file'],
          'label': e['label'],
          'holdout': values[e['file']],
          'frames': len(e['frames']),
      }
      if facts.folds:
        line['folds'] = e['folds']
      if e['bodies'] is not None or e['faces'] is not None:
        line['annotated'] = True
      lines[split].append(line)
      content = hashlib.sha256(b''.join(e['frames'])).digest()
      if not facts.folds:
        contents[content].append((split, e['file']))
      for fold, part in enumerate(e['folds'], 1):
        if part:
          where = f'fold {fold} {("train", "test")[part - 1]}'
          contents[fold, content].append((where, e['file']))
  if not lines:
    raise ValueError(f'no sample could be read; the first: {left_out[0]}')

  def stream(split):
    return lambda: (e for e in examples(chunks, split) if 'left_out' not in e)

  scratch = work / 'tfds'
  shutil.rmtree(scratch, ignore_errors=True)
  tfds.disable_progress_bar()
  builder = tfds_builder.Vemd(
      {split: stream(split) for split in lines},
      data_dir=scratch,
      config=facts.name,
  )
  # It prints its output folder, which is not where the data end up.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()
  shared = shared + in_several_splits(contents, 'identical samples')
  report = make_report(
      facts, options, index, lines, left_out, handled, shared
  )
  (out / 'prepared.json').unlink(missing_ok=True)
  shutil.rmtree(out / 'data', ignore_errors=True)
  Path(builder.data_path).replace(out / 'data')
  everything = [line for split in lines.values() for line in split]
  _write_text(
      out / 'index.jsonl',
      ''.join(json.dumps(i, ensure_ascii=False) + '\n' for i in everything),
  )
  _write_text(
      out / 'report.json',
      json.dumps(report, indent=2, ensure_ascii=False) + '\n',
  )
  _write_manifest(out / 'source.jsonl', manifest)
  made = {
      'format': FORMAT,
      'dataset': facts.name,
      'classes': facts.classes,
      'options': dataclasses.asdict(options),
      'facts': index.facts,
      'splits': {split: len(rows) for split, rows in lines.items()},
      'about_people': report['about_people'],
  }
  _write_text(
      out / 'prepared.json',
      json.dumps(made, indent=2, ensure_ascii=False) + '\n',
  )
  shutil.rmtree(work)
  return report


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.data.prepare',
      description='Converts a dataset in its official layout for training.',
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('dataset', choices=tuple(datasets.DATASETS))
  add('--source', required=True, help='folder with the official layout')
  add('--out', required=True, help='folder to write')
  add('--frames', type=int, default=0, help='frames per clip; 0 = as published')
  add('--longer_side', type=int, default=640, help='upper bound in pixels')
  add('--audio', action='store_true', help='store log-mel spectrograms')
  add('--hash_names', action='store_true', help='write hashes for file names')
  add('--label_order', default='', help='GAF-3.0, flat layout: classes of the '
      'labels 0,1,2; empty = the order of the table of datasets')  # fmt: skip
  add('--multi_label', action='store_true', help='SAMSEMO: keep samples with '
      'several labels')  # fmt: skip
  add('--drop_empty', action='store_true', help='COCO: leave out images '
      'without a labelled person')  # fmt: skip
  add('--workers', type=int, default=0, help='processes; 0 = one per core')
  add('--outside_root', action='store_true', help='accept links in the '
      'source that lead outside it')  # fmt: skip
  add('--update', action='store_true', help='prepare again if the source or '
      'the options have changed')  # fmt: skip
  return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> Options:
  """The options of a command line.

  Raises:
    ValueError: an option does not apply to this dataset or is out of range.
  """
  facts = datasets.get(args.dataset)
  order = tuple(
      c.strip().lower() for c in args.label_order.split(',') if c.strip()
  )
  if order and args.dataset != 'gaf3':
    raise ValueError('--label_order is for gaf3')
  if order and sorted(order) != sorted(facts.classes):
    raise ValueError(
        f'--label_order={args.label_order}: expected {",".join(facts.classes)} '
        'in some order'
    )
  if args.multi_label and args.dataset != 'samsemo':
    raise ValueError('--multi_label is for samsemo')
  if args.drop_empty and args.dataset != 'coco':
    raise ValueError('--drop_empty is for coco')
  if args.audio and facts.media != 'video':
    raise ValueError(f'--audio: {facts.title} has no sound tracks')
  if args.frames < 0 or (args.frames > 1 and facts.media == 'image'):
    raise ValueError(f'--frames={args.frames}: {facts.title} has {facts.media}')
  if args.longer_side < 32:
    raise ValueError(f'--longer_side={args.longer_side}: expected at least 32')
  return Options(
      frames=args.frames or facts.frames,
      longer_side=args.longer_side,
      hash_names=args.hash_names,
      audio=args.audio,
      label_order=order,
      multi_label=args.multi_label,
      drop_empty=args.drop_empty,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parse(argv)
  try:
    prepare(
        args.dataset,
        args.source,
        args.out,
        options_of(args),
        args.workers,
        args.update,
        args.outside_root,
    )
  except (ValueError, OSError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
