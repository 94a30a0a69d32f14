"""Finds bodies and faces in every image or frame of a dataset.

  python -m vemd_jax.data.annotate --data=DIR
  python -m vemd_jax.data.annotate --data=DIR --backend=movenet \\
      --model=movenet_multipose.onnx --face_model=shape_predictor_68.dat

DIR is a folder with `labels.csv` (see `vemd_jax.data.folder`) or the output of
`vemd_jax.data.prepare`. Writes `DIR/annotations.jsonl` in the format that
`vemd_jax.data.folder` documents, and `DIR/annotations.meta.json` with the
settings. A part that the backend does not detect is null, i.e. not annotated.
An interrupted run is resumed by the same command; a second run does nothing.

Backends (`pip install 'vemd-jax[annotate]'`; training needs none of them):

  rtmlib   whole-body models: bodies and faces. Downloads its models, or takes
           --model (whole-body) and --detector (people) .onnx files.
  movenet  MoveNet MultiPose, --model=FILE.onnx: bodies of up to six people.
  dlib     --face_model=FILE.dat alone: faces.

With --face_model the faces come from dlib, regardless of the backend.

All frames of a clip are annotated, or with --frames=T those that training with
`config.data.frames=T` reads; a later run with another T adds the missing ones.

Skeletons can identify people: protect the result like the images. No other
personal data is written.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vemd_jax import progress
from vemd_jax.data import feature_cache, jsonl
from vemd_jax.prepare import rows
from vemd_jax.prepare.backends import (
  BACKENDS,
  Annotator,
  Settings,
  load,
  made_with,
)
from vemd_jax.prepare.items import Item, make_item, read_images
from vemd_jax.prepare.preview import preview

NAME = 'annotations.jsonl'


@dataclasses.dataclass
class Report:
  """Result of `annotate`.

  Attributes:
    done: rows annotated by this call.
    kept: rows that were already annotated.
    images: images and frames annotated by this call.
    bodies: people found in them.
    faces: faces found in them.
    unreadable: number of rows and frames that were left out.
    problems: a line for each of them.
  """

  done: int = 0
  kept: int = 0
  images: int = 0
  bodies: int = 0
  faces: int = 0
  unreadable: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    lines = [
        f'{self.done} rows annotated ({self.images} images, {self.bodies} '
        f'bodies, {self.faces} faces), {self.kept} already annotated, '
        f'{self.unreadable} unreadable'
    ]
    return '\n'.join(lines + [f'  left out: {p}' for p in self.problems])


# --- annotation -------------------------------------------------------------


def annotate_item(
    item: Item, annotator: Annotator
) -> tuple[list[dict[str, Any]], list[str]]:
  """Annotates a row.

  Args:
    item: the row.
    annotator: see `load`.

  Returns:
    Lines of annotations.jsonl, and a problem for each frame, or the row, that
    cannot be read. The last line of a clip has `clip_done`, the requested
    number of frames: without it the clip is incomplete.
  """
  lines, problems = [], []
  images = read_images(item)
  while True:
    # Only reading errors are handled; an error of the annotator ends the run.
    try:
      number, image = next(images)
    except StopIteration:
      break
    except (ValueError, OSError) as error:
      return [], [f'{item.file}: {error}']
    if isinstance(image, str):
      frame = '' if number is None else f' frame {number}'
      problems.append(f'{item.file}{frame}: {image}')
      continue
    line: dict[str, Any] = {'file': item.file}
    if number is not None:
      line['frame'] = number
    line['height'], line['width'] = image.shape[:2]
    for key, people in zip(('bodies', 'faces'), annotator(image)):
      line[key] = None if people is None else _plain(people)
    lines.append(line)
  if lines and item.is_clip:
    lines[-1]['clip_done'] = item.wanted
  return lines, problems


def _plain(people: np.ndarray) -> list:
  """Nested lists, rounded to 0.1 pixels and scores to 0.001."""
  people = np.asarray(people, np.float64)
  sound = np.isfinite(people).all(-1, keepdims=True)
  people = np.where(sound, people, 0)
  return [
      [[round(x, 1), round(y, 1), round(score, 3)] for x, y, score in person]
      for person in people.tolist()
  ]


def annotate(
    data: str | pathlib.Path,
    settings: Settings,
    annotator: Annotator | None = None,
    out: str | pathlib.Path = '',
    frames: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    outside_root: bool = False,
) -> Report:
  """Annotates every row that is not annotated yet.

  Args:
    data: folder of the dataset.
    settings: settings of the backend.
    annotator: replaces the backend's annotator; for one process only.
    out: file to write; '' is `annotations.jsonl` in `data`.
    frames: number of evenly spaced frames of a clip; 0 takes all.
    workers: number of processes.
    overwrite: starts a new file if the existing one has other settings.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    The report.

  Raises:
    ValueError: settings are incompatible, or the existing annotations were made
      with others.
    FileNotFoundError: no such data or model.
    ImportError: an optional package is missing.
    RuntimeError: another process is writing to the file.
  """
  data = pathlib.Path(data)
  path = pathlib.Path(out) if out else data / NAME
  if not data.is_dir():
    raise FileNotFoundError(f'{data} is not a folder')
  with jsonl.lock(path):
    if jsonl.meta(path) is not None:
      # The readers of the data would reject an incomplete last line.
      jsonl.drop_torn_line(path)
    source = rows.Rows(data, outside_root)
    report = Report(unreadable=source.left_out, problems=list(source.problems))
    if annotator is None:
      # Before anything is written, since it may fail or download models.
      annotator = load(settings)
    done = _done(jsonl.resume(path, made_with(settings), overwrite))
    todo = [
        i
        for i, file in enumerate(source.files)
        if not done.get(file, set()) & {None, 0, frames}
    ]
    report.kept = len(source) - len(todo)
    read = functools.partial(make_item, source, data, frames)
    results = _results(todo, read, annotator, settings, workers)
    with (
        jsonl.open_to_append(path) as file,
        progress.bar(len(source), 'row', done=report.kept) as bar,
    ):
      for lines, problems in results:
        jsonl.append(file, *lines)
        report.done += bool(lines)
        report.images += len(lines)
        report.bodies += sum(len(line['bodies'] or ()) for line in lines)
        report.faces += sum(len(line['faces'] or ()) for line in lines)
        report.unreadable += len(problems)
        report.problems += problems
        bar.update()
  return report


def _done(lines: Sequence[dict[str, Any]]) -> dict[str, set[int | None]]:
  """File -> None for an image, for a clip the numbers of frames done."""
  done: dict[str, set[int | None]] = {}
  for line in lines:
    if 'frame' not in line:
      done.setdefault(line['file'], set()).add(None)
    elif 'clip_done' in line:
      done.setdefault(line['file'], set()).add(line['clip_done'])
  return done


def _results(
    todo: Sequence[int],
    read: Callable[[int], Item],
    annotator: Annotator,
    settings: Settings,
    workers: int,
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
  if workers <= 1:
    for index in todo:
      yield annotate_item(read(index), annotator)
    return
  with concurrent.futures.ProcessPoolExecutor(
      workers,
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_start_worker,
      initargs=(settings,),
  ) as pool:
    try:
      yield from feature_cache.ordered(
          pool, _work, map(read, todo), 4 * workers
      )
    except concurrent.futures.process.BrokenProcessPool as error:
      raise RuntimeError(
          'a worker process died; run with --workers=1 to see at which file'
      ) from error


_annotator: Annotator | None = None


def _start_worker(settings: Settings) -> None:
  """Loads the models in a worker, and ends it when its parent is killed."""
  global _annotator
  _annotator = load(settings)
  parent = multiprocessing.parent_process()

  def follow():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _work(item: Item) -> tuple[list[dict[str, Any]], list[str]]:
  return annotate_item(item, _annotator)


# --- command line -----------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.data.annotate',
      description='Finds bodies and faces in every image or frame.',
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--data', required=True, help='folder with labels.csv, or prepared data')
  add('--backend', default='rtmlib', help=f'one of {", ".join(BACKENDS)}')
  add('--model', default='', help='.onnx file of the backend')
  add('--detector', default='', help="rtmlib's people detector, .onnx")
  add('--face_model', default='', help="dlib's 68-point predictor, .dat")
  add('--min_score', type=float, default=0.0, help='score threshold; '
      "0 = the backend's default")  # fmt: skip
  add('--device', default='cpu', choices=('cpu', 'cuda'),
      help='device of .onnx models')  # fmt: skip
  add('--frames', type=int, default=0, help='frames per clip; 0 = all')
  add('--workers', type=int, default=1, help='processes; an .onnx model uses '
      'all cores in a single process')  # fmt: skip
  add('--out', default='', help='file to write; empty = '
      f'{NAME} in --data')  # fmt: skip
  add('--outside_root', action='store_true', help='accept files outside DATA '
      'in labels.csv')  # fmt: skip
  add('--overwrite', action='store_true', help='replace existing annotations '
      'that were made with other settings')  # fmt: skip
  add('--preview', default='', help='folder for a contact sheet of annotated '
      'images')  # fmt: skip
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parse(argv)
  fields = [f.name for f in dataclasses.fields(Settings)]
  settings = Settings(**{name: getattr(args, name) for name in fields})
  try:
    if args.frames < 0:
      raise ValueError(f'--frames={args.frames}: expected 0 or more')
    report = annotate(
        args.data,
        settings,
        out=args.out,
        frames=args.frames,
        workers=args.workers,
        overwrite=args.overwrite,
        outside_root=args.outside_root,
    )
    print(report)
    if args.preview:
      path = args.out or pathlib.Path(args.data) / NAME
      sheet = preview(
          args.data, path, args.preview, outside_root=args.outside_root
      )
      print(f'preview: {sheet}')
  except KeyboardInterrupt:
    print('interrupted; the same command resumes', file=sys.stderr)
    return 130
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
