r"""Predicts the emotion of groups: photographs, folders of them, and videos.

  vemd predict --workdir=RUN PHOTO.jpg VIDEO.mp4
  vemd predict --workdir=RUN --json --overlay=OVERLAYS FOLDER
  vemd predict --workdir=RUN --out=MOODS.csv FOLDER
  vemd predict --artifact MODEL.vemd PHOTO.jpg

Predictions describe the group in an image, never an individual person. With
--out an interrupted command is resumed by the same command, which also predicts
files that were added since and retries files that could not be read. A row of
the CSV or Parquet file is a file or, if `seconds` is set, one clip of a video.
Where an exported model abstains (vemd export), the label is `abstained` and
there are no probabilities; those of a video are the mean of its other clips.

Exit status: 0; 1 if a file could not be read; 2 if the arguments are invalid or
the model cannot be loaded.
"""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cv2
from absl import logging

from vemd_jax import inference, progress, viz
from vemd_jax.data import jsonl
from vemd_jax.inference import Model, Prediction, results
from vemd_jax.inference.clips import Unreadable, find_inputs, is_video
from vemd_jax.inference.files import predict_files


class Overlays:
  """Writes images with the decoded structure drawn over them."""

  def __init__(self, folder: str, blur: bool = False):
    self._folder, self._blur = folder, blur
    self._used = set()
    os.makedirs(folder, exist_ok=True)

  def add(self, path: str, prediction: Prediction) -> None:
    images = prediction.clip.images
    picture = images[len(images) // 2]
    if self._blur:
      picture = viz.hide_people(picture)
    picture = viz.overlay_structure(
        picture, prediction.structure, prediction.input_size
    )
    stem = pathlib.Path(path).stem
    if prediction.clip.seconds is not None:
      stem += f'_{prediction.clip.seconds:08.2f}s'
    name, number = stem, 1
    while name in self._used:  # Files in different folders may share a name.
      number += 1
      name = f'{stem}_{number}'
    self._used.add(name)
    data = cv2.imencode('.jpg', picture[..., ::-1])[1]
    target = os.path.join(self._folder, f'{name}_overlay.jpg')
    with open(target, 'wb') as f:
      f.write(data.tobytes())


def main(argv: Sequence[str] | None = None, load=None) -> int:
  """Runs the command line program; see `--help`.

  Args:
    argv: arguments; by default those of the process.
    load: `(workdir, dataset) -> Model`, by default `inference.load`.

  Returns:
    The exit status.
  """
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)
  with contextlib.ExitStack() as stack:
    try:
      if args.out:
        stack.enter_context(jsonl.lock(pathlib.Path(args.out)))
      files = find_inputs(args.paths)
      model = _load(args, load or inference.load)
      if args.overlay and not model.decodes:
        raise ValueError('--overlay: this model decodes no structure')
      look = None
      if args.overlay:
        look = Overlays(args.overlay, inference.hides_people(model)).add
      out = None
      if args.out:
        out = _open_results(args, model)
        stack.callback(out.close)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
      print(f'error: {_one_line(error)}', file=sys.stderr)
      return 2
    try:
      return _run(args, model, files, look, out)
    except KeyboardInterrupt:
      hint = '; the same command resumes' if out else ''
      print(f'interrupted{hint}', file=sys.stderr)
      return 130


def _load(args: argparse.Namespace, load: Callable[..., Model]) -> Model:
  if not args.artifact:
    return load(args.workdir, args.dataset)
  if args.dataset:
    raise ValueError('--dataset: an exported model has one emotion head')
  from vemd_jax.artifact import read

  return read.load(args.artifact)


def _run(
    args: argparse.Namespace,
    model: Model,
    files: Sequence[str],
    look: Callable[[str, Prediction], None] | None,
    out: results.Results | None,
) -> int:
  todo = files
  if out:
    todo = [path for path in files if _name(path) not in out.done]
    tell = out.add
  elif args.json:
    tell = results.print_json
  else:
    tell = results.Table([*map(_name, files)], model.classes).add
  batch_size = args.batch_size
  if not any(map(is_video, todo)):
    batch_size = max(1, min(batch_size, len(todo)))
  failed = 0
  done = len(files) - len(todo)
  with progress.bar(
      len(files), 'file', done=done, shown=out is not None
  ) as bar:
    for path, found in predict_files(
        model,
        todo,
        batch_size=batch_size,
        window=args.window,
        stride=args.stride,
        look=look,
    ):
      name = _name(path)
      if isinstance(found, Unreadable):
        failed += 1
        reason = _one_line(found)
        with bar.external_write_mode(file=sys.stderr):
          print(f'{name}: {reason}', file=sys.stderr, flush=True)
        if out:
          out.add({'file': name, 'error': reason})
      else:
        tell(results.result(name, model.classes, found))
      bar.update()
  if out:
    out.finish()
    print(
        f'{args.out}: {len(todo) - failed} files predicted, {failed} '
        f'unreadable, {done} predicted before'
    )
  return 1 if failed else 0


def _open_results(args: argparse.Namespace, model: Model) -> results.Results:
  made_with = {
      'workdir': os.path.abspath(args.workdir or args.artifact),
      'step': model.step,
      'dataset': args.dataset,
      'classes': model.classes,
      'window': args.window,
      'stride': args.stride,
  }
  path = pathlib.Path(args.out)
  return results.Results(path, model.classes, made_with, args.overwrite)


def _name(path: str) -> str:
  """The name of a file as text; bytes that are not UTF-8 become \\xff."""
  return os.fsencode(path).decode('utf-8', 'backslashreplace')


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.predict',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('paths', nargs='+', metavar='PHOTO|FOLDER|VIDEO', help='inputs')
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--workdir', help='workdir of a trained run')
  source.add_argument('--artifact', metavar='FILE', help='a model written by '
      'vemd export')  # fmt: skip
  add('--dataset', default='', help='emotion head, if the model has '
      'several')  # fmt: skip
  add('--out', metavar='FILE', help='write the results to a file: '
      f'{", ".join(results.SUFFIXES)}')  # fmt: skip
  add('--overwrite', action='store_true', help='start a new file if --out '
      'was made with another model or other settings')  # fmt: skip
  add('--json', action='store_true', help='print one JSON object per line')
  add('--overlay', metavar='DIR', help='write images with the decoded '
      'structure to this folder')  # fmt: skip
  add('--batch_size', type=_positive(int), default=8, help='number of '
      'clips per batch (default 8)')  # fmt: skip
  add('--window', type=_positive(float), default=5.0, help='duration of '
      'a video clip in seconds (default 5)')  # fmt: skip
  add('--stride', type=_positive(float), default=1.0, help='seconds between '
      'entries of the timeline (default 1)')  # fmt: skip
  return parser.parse_args(argv)


def _positive(kind: type) -> Callable[[str], Any]:
  def parse(text: str):
    value = kind(text)
    if not value > 0:
      raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return value

  parse.__name__ = kind.__name__  # argparse uses it in error messages.
  return parse


def _one_line(error: Any) -> str:
  return ' '.join(str(error).split())


if __name__ == '__main__':
  try:
    sys.exit(main())
  except BrokenPipeError:  # The reader, such as `head`, closed the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
