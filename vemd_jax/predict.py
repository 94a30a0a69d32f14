"""Predicts the emotion of groups: `python -m vemd_jax.predict --workdir=W …`.

Accepts photographs, folders of photographs, and videos. Predictions describe
the group in an image, never an individual person.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from absl import logging

from vemd_jax import inference, viz
from vemd_jax.inference import Model, Prediction, predict_clips
from vemd_jax.inference.clips import (
    Unreadable,
    find_inputs,
    is_video,
    read_photo,
    read_video,
)


def result(
    path: str, classes: Sequence[str], predictions: Sequence[Prediction]
) -> dict[str, Any]:
  """The result for one file, with a timeline if it is a video.

  Args:
    path: path of the file.
    classes: names of the C classes.
    predictions: the prediction of a photograph, or those of a video's clips in
      order.

  Returns:
    The object of a JSON line. A video's probabilities are the mean over its
    clips.
  """
  mean = np.mean([p.probabilities for p in predictions], axis=0)
  answer = {'file': path, **_answer(classes, mean)}
  if predictions[0].clip.seconds is not None:
    answer['timeline'] = [
        {
            'seconds': round(p.clip.seconds, 3),
            **_answer(classes, p.probabilities),
        }
        for p in predictions
    ]
  return answer


def _answer(
    classes: Sequence[str], probabilities: np.ndarray
) -> dict[str, Any]:
  return {
      'label': classes[int(np.argmax(probabilities))],
      'probabilities': {
          name: round(float(p), 6) for name, p in zip(classes, probabilities)
      },
  }


class Table:
  """Prints results as a table, one row at a time."""

  def __init__(self, files: Sequence[str], classes: Sequence[str]):
    self._name = max(10, *map(len, files))
    self._label = max(len('group'), *map(len, classes))
    self._columns = [max(len(name), 6) for name in classes]
    self._row('file', 'group', classes)

  def add(self, answer: dict[str, Any]) -> None:
    self._row(answer['file'], answer['label'], _cells(answer))
    for moment in answer.get('timeline', ()):
      name = f'{moment["seconds"]:.1f} s'.rjust(10)
      self._row(name, moment['label'], _cells(moment))

  def _row(self, name: str, label: str, cells: Iterable[str]) -> None:
    cells = '  '.join(c.rjust(w) for c, w in zip(cells, self._columns))
    print(
        f'{name:{self._name}}  {label:{self._label}}  {cells}', flush=True
    )


def _cells(answer: dict[str, Any]) -> list[str]:
  return [f'{p:.4f}' for p in answer['probabilities'].values()]


class Overlays:
  """Writes images with the decoded structure drawn over them."""

  def __init__(self, folder: str):
    self._folder = folder
    self._used = set()
    os.makedirs(folder, exist_ok=True)

  def add(self, path: str, prediction: Prediction) -> None:
    images = prediction.clip.images
    picture = viz.overlay_structure(
        images[len(images) // 2], prediction.structure, prediction.input_size
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


def predict_files(
    model: Model,
    files: Sequence[str],
    *,
    batch_size: int,
    window: float,
    stride: float,
    tell: Callable[[dict[str, Any]], None],
    complain: Callable[[str, str], None],
    overlay: Callable[[str, Prediction], None] | None = None,
) -> None:
  """Predicts files in order; unreadable files are reported and skipped.

  Args:
    model: the model.
    files: photographs and videos.
    batch_size: number of clips per batch.
    window: duration of a video clip in seconds.
    stride: seconds between the starts of clips.
    tell: called with the result of each file, in order.
    complain: called with the path of an unreadable file and the reason.
    overlay: called with the path and each prediction, to write images.
  """
  photos = []

  def flush():
    predictions = predict_clips(model, [c for _, c in photos], batch_size)
    for (path, _), prediction in zip(photos, predictions):
      tell(result(path, model.classes, [prediction]))
      if overlay:
        overlay(path, prediction)
    photos.clear()

  def watch(path):
    clips = read_video(path, model.frames, window, stride)
    predictions = []
    for prediction in predict_clips(model, clips, batch_size):
      if overlay:
        overlay(path, prediction)
      # Drops the images: those of a long video would not fit into memory.
      clip = prediction.clip._replace(images=[])
      predictions.append(prediction._replace(clip=clip, structure={}))
    return predictions

  for path in files:
    try:
      if not is_video(path):
        photos.append((path, read_photo(path, model.frames)))
      else:
        flush()
        tell(result(path, model.classes, watch(path)))
    except Unreadable as error:
      flush()
      complain(path, str(error))
    if len(photos) == batch_size:
      flush()
  flush()


def main(argv: Sequence[str] | None = None, load=inference.load) -> int:
  """Runs the command line program; see `--help`.

  Args:
    argv: arguments; by default those of the process.
    load: `(workdir, dataset) -> Model`.

  Returns:
    Exit status: 0; 1 if a file could not be read; 2 if the arguments are
    invalid or the model cannot be loaded.
  """
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.predict',
      description='Predicts the emotion of the group in an image or video.',
  )
  parser.add_argument(
      'paths', nargs='+', metavar='PHOTO|FOLDER|VIDEO', help='inputs'
  )
  parser.add_argument(
      '--workdir', required=True, help='workdir of a trained run'
  )
  parser.add_argument(
      '--dataset', default='', help='emotion head, if the model has several'
  )
  parser.add_argument(
      '--json', action='store_true', help='print one JSON object per line'
  )
  parser.add_argument(
      '--overlay', metavar='DIR',
      help='write images with the decoded structure to this folder',
  )  # fmt: skip
  parser.add_argument('--batch_size', type=_positive(int), default=8)
  parser.add_argument(
      '--window', type=_positive(float), default=5.0,
      help='duration of a video clip in seconds (default 5)',
  )  # fmt: skip
  parser.add_argument(
      '--stride', type=_positive(float), default=1.0,
      help='seconds between entries of the timeline (default 1)',
  )  # fmt: skip
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)

  try:
    files = find_inputs(args.paths)
    model = load(args.workdir, args.dataset)
    if args.overlay and not model.decodes:
      raise ValueError('--overlay: this model decodes no structure')
    overlay = Overlays(args.overlay).add if args.overlay else None
  except (ValueError, OSError) as error:
    print(f'error: {_one_line(error)}', file=sys.stderr)
    return 2

  failed = []

  def complain(path, reason):
    failed.append(path)
    print(f'{path}: {_one_line(reason)}', file=sys.stderr, flush=True)

  tell = _print_json if args.json else Table(files, model.classes).add
  batch_size = args.batch_size
  if not any(map(is_video, files)):
    batch_size = min(batch_size, len(files))
  predict_files(
      model,
      files,
      batch_size=batch_size,
      window=args.window,
      stride=args.stride,
      tell=tell,
      complain=complain,
      overlay=overlay,
  )
  return 1 if failed else 0


def _print_json(answer: dict[str, Any]) -> None:
  print(json.dumps(answer), flush=True)


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
