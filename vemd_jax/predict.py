"""Predicts the emotion of groups: `python -m vemd_jax.predict --workdir=W …`.

Takes photographs, folders of photographs, and videos. What comes out is about
the group in a picture, never about one person in it.
"""

import argparse
import json
import os
import pathlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import cv2
import jax
import numpy as np
from absl import logging

from vemd_jax import checkpoint, viz
from vemd_jax import config as config_lib
from vemd_jax.data import transforms, video
from vemd_jax.models.vemd import VEMD

PHOTO_SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif',
    '.jp2', '.ppm', '.pgm',
)  # fmt: skip


class Unreadable(Exception):
  """A file that is no picture; the message says why, without its name."""


class Model(NamedTuple):
  """A trained model, ready for pictures.

  Attributes:
    classes: names of the C classes.
    prepare: T uint8 [H, W, 3] images of any size -> uint8 [T, S, S, 3].
    frames: T, images in a clip.
    forward: uint8 [B, T, S, S, 3] -> (probabilities [B, C], `Outputs`), as
      NumPy arrays.
    decodes: whether there is structure to lay over a picture.
  """

  classes: tuple[str, ...]
  prepare: Callable[[Sequence[np.ndarray]], np.ndarray]
  frames: int
  forward: Callable[[np.ndarray], tuple[np.ndarray, Any]]
  decodes: bool


class Clip(NamedTuple):
  """T images that are judged together.

  Attributes:
    seconds: the middle of it in a video; None for a photograph.
    images: the images in their own size.
  """

  seconds: float | None
  images: list[np.ndarray]


class Prediction(NamedTuple):
  """What the model says about one clip.

  Attributes:
    clip: what it was given.
    probabilities: [C] of the classes.
    structure: of its middle image, see `viz.overlay_structure`.
    input_size: (H, W) that the model has seen the image at.
  """

  clip: Clip
  probabilities: np.ndarray
  structure: dict[str, Any]
  input_size: tuple[int, int]


def load_model(workdir: str, dataset: str = '') -> Model:
  """Reads the best checkpoint of a run.

  Args:
    workdir: of the run.
    dataset: which emotion head, for a model that has several.

  Returns:
    The model.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: if the dataset does not say which head to use.
  """
  if not os.path.isdir(workdir) and '://' not in workdir:
    raise FileNotFoundError(f'--workdir: no folder {workdir}')
  config, classes, variables = checkpoint.load_for_inference(workdir)
  heads = {name: names for name, names in classes.items() if names}
  dataset = choose_head(tuple(heads), dataset)
  data = config_lib.datasets(config)[dataset]
  model = VEMD(
      **config.model.to_dict(),
      classes=tuple((name, len(names)) for name, names in classes.items()),
  )
  transform = transforms.images_only(data)

  @jax.jit
  def apply(variables, image):
    batch = {'image': image, 'mask': np.ones(len(image), bool)}
    outputs = model.apply(variables, batch, dataset=dataset, train=False)
    return jax.nn.softmax(outputs.logits), outputs.replace(
        latents=(), vit_latent=None
    )

  return Model(
      classes=heads[dataset],
      prepare=lambda images: transform({'frames': images})['image'],
      frames=data.frames,
      forward=lambda image: jax.device_get(apply(variables, image)),
      decodes=config.model.variant in ('ve_md', 've_md_sr'),
  )


def choose_head(heads: Sequence[str], wanted: str) -> str:
  """The emotion head to use.

  Args:
    heads: datasets whose emotions the model has learned.
    wanted: one of them; may be empty where there is just one.

  Returns:
    Its name.

  Raises:
    ValueError: if there is no such head, or a choice to be made.
  """
  if not heads:
    raise ValueError('this model has no emotion head, only structure')
  if not wanted and len(heads) == 1:
    return heads[0]
  if wanted not in heads:
    given = f'has no dataset {wanted!r}' if wanted else 'has several heads'
    raise ValueError(f'the model {given}: --dataset={"|".join(heads)}')
  return wanted


def predict_clips(
    model: Model, clips: Iterable[Clip], batch_size: int
) -> Iterator[Prediction]:
  """Runs the model over clips, in batches of one size.

  Args:
    model: what judges.
    clips: any number of them.
    batch_size: the last batch is filled up, so that one program serves all.

  Yields:
    A prediction for each clip, in order.
  """
  waiting = []
  for clip in clips:
    waiting.append((clip, model.prepare(clip.images)))
    if len(waiting) == batch_size:
      yield from _predict_batch(model, waiting, batch_size)
      waiting = []
  if waiting:
    yield from _predict_batch(model, waiting, batch_size)


def _predict_batch(
    model: Model, waiting: list[tuple[Clip, np.ndarray]], batch_size: int
) -> Iterator[Prediction]:
  images = np.stack([image for _, image in waiting])
  missing = batch_size - len(images)
  padding = np.zeros((missing, *images.shape[1:]), np.uint8)
  probabilities, outputs = model.forward(np.concatenate([images, padding]))
  for i, (clip, image) in enumerate(waiting):
    structure = {}
    if model.decodes:
      structure = viz.decoded_structure(outputs, i, len(image) // 2)
    yield Prediction(clip, probabilities[i], structure, image.shape[1:3])


def read_photo(path: str, frames: int) -> Clip:
  """A photograph as a clip: a model of clips sees it T times.

  Args:
    path: of an image file.
    frames: T.

  Returns:
    The clip.

  Raises:
    Unreadable: if it cannot be opened, or is no image.
  """
  try:
    with open(path, 'rb') as f:
      image = transforms.decode_image(f.read())
  except OSError as error:
    raise Unreadable(error.strerror) from error
  except ValueError as error:
    raise Unreadable(str(error)) from error
  return Clip(None, [image] * frames)


def read_video(
    path: str, frames: int, window: float, stride: float
) -> Iterator[Clip]:
  """Cuts a video into overlapping clips; holds one of them at a time.

  A model of single images gets one every `stride` seconds.

  Args:
    path: of a video file.
    frames: T.
    window: seconds that a clip lasts, for T > 1.
    stride: seconds from one clip to the next.

  Yields:
    The clips. A video shorter than the window gives one, evenly spread.

  Raises:
    Unreadable: if it cannot be opened, or is no video.
  """
  interval = window / frames if frames > 1 else stride
  hop = max(1, round(stride / interval))
  recent = deque(maxlen=frames)
  count, new = 0, 0  # Images so far, and since the last clip.
  for item in _sample_frames(path, interval):
    recent.append(item)
    count, new = count + 1, new + 1
    if count == frames or (count > frames and new == hop):
      yield _clip(recent)
      new = 0
  if count < frames:
    short = video.read_frames(path, frames)
    yield _clip(zip(short.seconds.tolist(), short.frames))
  elif new:
    yield _clip(recent)


def _clip(items: Iterable[tuple[float, np.ndarray]]) -> Clip:
  seconds, images = zip(*items)
  return Clip((seconds[0] + seconds[-1]) / 2, list(images))


def _sample_frames(
    path: str, interval: float
) -> Iterator[tuple[float, np.ndarray]]:
  """What is shown in the middle of each interval: (seconds, RGB image)."""
  number = 0
  start, now, shown, image = None, 0.0, None, None

  def take(end):
    nonlocal number, image
    while (seconds := (number + 0.5) * interval) < end:
      image = _upright(shown) if image is None else image
      number += 1
      yield seconds, image

  try:
    with av.open(path) as container:
      if not container.streams.video:
        raise Unreadable('no video stream')
      stream = container.streams.video[0]
      stream.thread_type = 'AUTO'
      length = 1 / float(stream.average_rate or 25)
      for index, frame in enumerate(container.decode(stream)):
        time = index * length if frame.time is None else frame.time
        start = time if start is None else start
        now = time - start
        if shown is not None:
          yield from take(now)
        shown, image = frame, None
  except av.FFmpegError as error:
    if shown is None:
      raise Unreadable(f'not a readable video ({error.strerror})') from error
    # A damaged end: what came before it is used.
  if shown is None:
    raise Unreadable('no picture in the video')
  yield from take(now + length)
  if not number:  # Shorter than half an interval.
    yield now, _upright(shown)


def _upright(frame: av.VideoFrame) -> np.ndarray:
  # Telephones store the turn beside the picture.
  turns = round(frame.rotation / 90) % 4
  return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), turns))


def find_inputs(paths: Sequence[str]) -> list[str]:
  """Files to predict: folders are searched for photographs and videos.

  Args:
    paths: files and folders.

  Returns:
    Paths in the order given, a folder's in alphabetical order. A path that
    does not exist stays, and fails when it is read.

  Raises:
    ValueError: if a folder has neither.
  """
  files = []
  for path in paths:
    if not os.path.isdir(path):
      files.append(path)
      continue
    found = sorted(
        str(p)
        for p in pathlib.Path(path).rglob('*')
        if p.suffix.lower() in PHOTO_SUFFIXES + video.SUFFIXES and p.is_file()
    )
    if not found:
      raise ValueError(f'{path}: no photographs or videos in this folder')
    files += found
  return files


def is_video(path: str) -> bool:
  return path.lower().endswith(video.SUFFIXES)


def result(
    path: str, classes: Sequence[str], predictions: Sequence[Prediction]
) -> dict[str, Any]:
  """What is told about one file: its group, and for a video its timeline.

  Args:
    path: of the file.
    classes: names of the C classes.
    predictions: one of a photograph, those of a video's clips in order.

  Returns:
    The object of a JSON line. A video's probabilities are the mean over time.
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
  """Prints results as a table, row by row."""

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
  """Writes pictures with the decoded structure laid over them."""

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
    while name in self._used:  # Of the same name in another folder.
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
  """Predicts file after file; goes on after one that cannot be read.

  Args:
    model: what judges.
    files: photographs and videos.
    batch_size: clips at a time.
    window: seconds of a clip of a video.
    stride: seconds between clips.
    tell: gets the result of each file, in order.
    complain: gets the files that cannot be read, and why.
    overlay: gets each prediction, if there is use for pictures.
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
      # The images of a long video would not fit into memory.
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


def main(argv: Sequence[str] | None = None, load=load_model) -> int:
  """The command; see `--help`.

  Args:
    argv: arguments, default those of the process.
    load: `(workdir, dataset) -> Model`.

  Returns:
    0; 1 if a file could not be read, 2 if nothing could be done.
  """
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.predict',
      description='Predicts the emotion of the group in a picture.',
  )
  parser.add_argument(
      'paths', nargs='+', metavar='PHOTO|FOLDER|VIDEO', help='what to look at'
  )
  parser.add_argument('--workdir', required=True, help='of a trained model')
  parser.add_argument(
      '--dataset', default='', help='emotion head, where there are several'
  )
  parser.add_argument(
      '--json', action='store_true', help='one JSON object a line'
  )
  parser.add_argument(
      '--overlay', metavar='DIR', help='writes pictures with the structure'
  )
  parser.add_argument('--batch_size', type=_positive(int), default=8)
  parser.add_argument(
      '--window', type=_positive(float), default=5.0,
      help='seconds of a video that are judged together (default 5)',
  )  # fmt: skip
  parser.add_argument(
      '--stride', type=_positive(float), default=1.0,
      help='seconds between points of the timeline (default 1)',
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

  parse.__name__ = kind.__name__  # argparse names it in its messages.
  return parse


def _one_line(error: Any) -> str:
  return ' '.join(str(error).split())


if __name__ == '__main__':
  try:
    sys.exit(main())
  except BrokenPipeError:  # The reader, perhaps `head`, has enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
