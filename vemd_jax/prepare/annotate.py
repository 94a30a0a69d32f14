"""Finds bodies and faces in every image or frame of a dataset.

  python -m vemd_jax.data.annotate --data=DIR
  python -m vemd_jax.data.annotate --data=DIR --backend=movenet \\
      --model=movenet_multipose.onnx --face_model=shape_predictor_68.dat

DIR is a folder with `labels.csv` (see `vemd_jax.data.folder`) or what
`vemd_jax.data.prepare` has made. Writes `DIR/annotations.jsonl` in the format
that `vemd_jax.data.folder` documents, and `DIR/annotations.meta.json`, which
says what made it. A part that the backend does not look for is null: not
annotated. Interrupted and started again it goes on; a second run does nothing.

Backends (`pip install 'vemd-jax[annotate]'`; training needs none of them):

  rtmlib   whole-body models: bodies and faces. Downloads its models, or takes
           --model (whole-body) and --detector (people) .onnx files.
  movenet  MoveNet MultiPose, --model=FILE.onnx: bodies, six people at most.
  dlib     --face_model=FILE.dat alone: faces.

With --face_model the faces come from dlib, whatever the backend.

Of a clip every frame is annotated, or with --frames=T those that training with
`config.data.frames=T` reads; another T later adds what is missing.

Skeletons can identify people, too: treat the result like the pictures. Nothing
else about anybody is written.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import cv2
import numpy as np
import tqdm

from vemd_jax import skeletons, viz
from vemd_jax.data import feature_cache, jsonl, transforms, video
from vemd_jax.prepare import rows
from vemd_jax.prepare.annotators import dlib_faces, movenet, rtmlib_wholebody

BACKENDS = ('rtmlib', 'movenet', 'dlib')
NAME = 'annotations.jsonl'

# Image uint8 RGB [H, W, 3] -> bodies [n, 17, 3] and faces [m, 68, 3], or None.
Annotator = Callable[
    [np.ndarray], tuple[np.ndarray | None, np.ndarray | None]
]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides what is found.

  Attributes:
    backend: one of `BACKENDS`.
    model: .onnx file of the backend, '' for its own.
    detector: .onnx file of rtmlib's person detector, '' for its own.
    face_model: .dat file of dlib's predictor, '' for none.
    min_score: smallest score that counts, 0 for the backend's own.
    device: 'cpu' or 'cuda'.
  """

  backend: str = 'rtmlib'
  model: str = ''
  detector: str = ''
  face_model: str = ''
  min_score: float = 0.0
  device: str = 'cpu'


@dataclasses.dataclass
class Report:
  """What was done.

  Attributes:
    done: rows annotated now.
    kept: rows that were there already.
    images: images and frames annotated now.
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
        f'bodies, {self.faces} faces), {self.kept} there already, '
        f'{self.unreadable} unreadable'
    ]
    return '\n'.join(lines + [f'  left out: {p}' for p in self.problems])


# --- backends ---------------------------------------------------------------


def check(settings: Settings) -> None:
  """Rejects settings that do not fit together.

  Args:
    settings: of this run.

  Raises:
    ValueError: names the option.
    FileNotFoundError: a model file is not there.
  """
  backend = settings.backend
  if backend not in BACKENDS:
    raise ValueError(
        f'--backend={backend}: expected one of {", ".join(BACKENDS)}'
    )
  if backend == 'movenet' and not settings.model:
    raise ValueError('--backend=movenet needs --model=FILE.onnx')
  if backend == 'dlib' and not settings.face_model:
    raise ValueError('--backend=dlib needs --face_model=FILE.dat')
  if backend == 'dlib' and settings.model:
    raise ValueError('--model is for rtmlib and movenet; dlib: --face_model')
  if backend != 'rtmlib' and settings.detector:
    raise ValueError('--detector is for --backend=rtmlib')
  if not 0 <= settings.min_score < 1:
    raise ValueError(f'--min_score={settings.min_score}: expected 0 to 1')
  for file in (settings.model, settings.detector, settings.face_model):
    if file and not pathlib.Path(file).is_file():
      raise FileNotFoundError(f'{file} does not exist')


def load(settings: Settings) -> Annotator:
  """Loads the models.

  Args:
    settings: see `check`.

  Returns:
    The annotator.

  Raises:
    ImportError: an optional package is missing; says how to install it.
    ValueError: a file is of another model.
  """
  check(settings)
  parts = []
  if settings.backend == 'rtmlib':
    parts.append(
        rtmlib_wholebody.load(
            settings.model or None,
            settings.detector or None,
            settings.device,
            _min_score(settings),
        )
    )
  elif settings.backend == 'movenet':
    parts.append(
        movenet.load(settings.model, settings.device, _min_score(settings))
    )
  if settings.face_model:
    parts.append(dlib_faces.load(settings.face_model))

  def annotate(image: np.ndarray):
    bodies = faces = None
    for part in parts:
      found = part(image)
      bodies = bodies if found[0] is None else found[0]
      faces = faces if found[1] is None else found[1]
    return bodies, faces

  return annotate


def made_with(settings: Settings) -> dict[str, Any]:
  """What is written beside the annotations; equal for equal results."""
  return {
      'backend': settings.backend,
      'model': _digest(settings.model),
      'detector': _digest(settings.detector),
      'face_model': _digest(settings.face_model),
      'min_score': _min_score(settings),
  }


def _min_score(settings: Settings) -> float:
  own = {
      'rtmlib': rtmlib_wholebody.MIN_SCORE,
      'movenet': movenet.MIN_SCORE,
      'dlib': 0.0,
  }
  return settings.min_score or own[settings.backend]


def _digest(file: str) -> str:
  """Content decides, not the place: the same model may lie elsewhere."""
  if not file:
    return ''
  with open(file, 'rb') as content:
    return hashlib.file_digest(content, 'sha256').hexdigest()[:16]


# --- images of a row --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Item:
  """A row, ready to be sent to a worker.

  Attributes:
    file: name of the row.
    numbers: frame numbers of `frames`; (None,) for a single image.
    frames: encoded images.
    video: path of a video instead of frames, '' for none.
    wanted: frames of a clip that are read, 0 for all.
  """

  file: str
  numbers: tuple[int | None, ...] = ()
  frames: tuple[bytes, ...] = ()
  video: str = ''
  wanted: int = 0

  @property
  def is_clip(self) -> bool:
    return bool(self.video) or self.numbers != (None,)


def _item(
    source: rows.Rows, data: pathlib.Path, wanted: int, index: int
) -> Item:
  record = source[index]
  file = record['file']
  if 'video' in record:
    return Item(file, video=str(record['video']), wanted=wanted)
  frames = record['frames']
  if not source.is_prepared and not (data / file).is_dir():
    return Item(file, (None,), tuple(frames))
  numbers = range(len(frames))
  if wanted and wanted < len(frames):
    numbers = video.spread(len(frames), wanted).tolist()
  return Item(
      file, tuple(numbers), tuple(frames[i] for i in numbers), '', wanted
  )


def _images(item: Item) -> Iterator[tuple[int | None, np.ndarray | str]]:
  """(number, RGB image or why it cannot be read) of each frame."""
  if item.video and item.wanted:
    clip = video.read_frames(item.video, item.wanted)
    # A short clip repeats frames; a number has one line.
    yield from dict(zip(clip.indices.tolist(), clip.frames)).items()
  elif item.video:
    yield from _all_frames(item.video)
  for number, frame in zip(item.numbers, item.frames):
    try:
      yield number, transforms.decode_image(frame)
    except ValueError as error:
      yield number, str(error)


def _all_frames(path: str) -> Iterator[tuple[int, np.ndarray]]:
  """Every frame of a video, numbered as `video.read_frames` does."""
  number = -1
  try:
    with av.open(path) as container:
      if not container.streams.video:
        raise ValueError('no video stream')
      for number, frame in enumerate(container.decode(video=0)):
        yield number, video._upright(frame, 0)
  except (av.FFmpegError, OSError) as error:
    # A damaged end: what came before it is used.
    if number < 0:
      raise ValueError(f'cannot be read as a video ({error})') from error


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
    cannot be read. The last line of a clip has `clip_done`, the number of
    frames that was asked for: without it the clip is incomplete.
  """
  lines, problems = [], []
  images = _images(item)
  while True:
    # Only reading may fail: what the annotator raises ends the run.
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
  """Nested lists, to a tenth of a pixel and a thousandth of a score."""
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
) -> Report:
  """Annotates every row that is not annotated yet.

  Args:
    data: folder of the dataset.
    settings: of the backend.
    annotator: in place of the backend's; for one process only.
    out: file to write; '' is `annotations.jsonl` in `data`.
    frames: frames of a clip, evenly spread; 0 all.
    workers: processes.
    overwrite: starts anew where the existing lines are of other settings.

  Returns:
    The report.

  Raises:
    ValueError: settings do not fit, or the existing annotations were made with
      others.
    FileNotFoundError: no such data or model.
    ImportError: an optional package is missing.
    RuntimeError: another process writes to the file.
  """
  data = pathlib.Path(data)
  path = pathlib.Path(out) if out else data / NAME
  if not data.is_dir():
    raise FileNotFoundError(f'{data} is no folder')
  with jsonl.lock(path):
    if jsonl.meta(path) is not None:
      # Ours; the readers of the data would object to a torn line.
      jsonl.drop_torn_line(path)
    source = rows.Rows(data)
    report = Report(unreadable=source.left_out, problems=list(source.problems))
    if annotator is None:
      # Here, before anything is written: it may fail, or download.
      annotator = load(settings)
    done = _done(jsonl.resume(path, made_with(settings), overwrite))
    todo = [
        i
        for i, file in enumerate(source.files)
        if not done.get(file, set()) & {None, 0, frames}
    ]
    report.kept = len(source) - len(todo)
    read = functools.partial(_item, source, data, frames)
    results = _results(todo, read, annotator, settings, workers)
    with (
        jsonl.open_to_append(path) as file,
        tqdm.tqdm(
            total=len(source),
            initial=report.kept,
            unit='row',
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=not todo,
        ) as bar,
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
          'a worker process died; --workers=1 shows at which file'
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


# --- preview ----------------------------------------------------------------


def preview(
    data: str | pathlib.Path,
    annotations: str | pathlib.Path,
    out: str | pathlib.Path,
    pictures: int = 24,
    cell: int = 320,
) -> pathlib.Path:
  """Draws a contact sheet of annotated pictures.

  It shows the pictures themselves: it is as personal as they are.

  Args:
    data: folder of the dataset.
    annotations: `annotations.jsonl`.
    out: folder to write to.
    pictures: how many, evenly spread over the lines.
    cell: side of a picture on the sheet, in pixels.

  Returns:
    The file, `annotations.png`.

  Raises:
    ValueError: there is no annotation.
  """
  data, out = pathlib.Path(data), pathlib.Path(out)
  source = rows.Rows(data)
  places = {file: i for i, file in enumerate(source.files)}
  lines = jsonl.read(pathlib.Path(annotations))
  lines = [line for line in lines if line['file'] in places]
  if not lines:
    raise ValueError(f'{annotations}: no annotation to draw')
  chosen = [lines[i] for i in np.unique(video.spread(len(lines), pictures))]
  drawn = []
  for line in chosen:
    item = _item(source, data, 0, places[line['file']])
    number = line.get('frame')
    image = next((i for n, i in _images(item) if n == number), None)
    if isinstance(image, np.ndarray):
      drawn.append(draw(image, line, cell))
  columns = max(1, round(len(drawn) ** 0.5 * 1.25))
  sheet = viz.contact_sheet(
      [
          (drawn[i : i + columns], '')
          for i in range(0, len(drawn), columns)
      ],
      cell=cell,
  )
  out.mkdir(parents=True, exist_ok=True)
  path = out / 'annotations.png'
  encoded = cv2.imencode('.png', sheet[..., ::-1])[1]
  path.write_bytes(encoded.tobytes())
  return path


def draw(
    image: np.ndarray, line: dict[str, Any], side: int = 320
) -> np.ndarray:
  """Draws a line of annotations.jsonl onto its image.

  Args:
    image: uint8 [H, W, 3] RGB.
    line: with `width`, `height`, `bodies` and `faces`.
    side: longer side of the result in pixels.

  Returns:
    uint8 [H', W', 3].
  """
  height, width = image.shape[:2]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  image = cv2.resize(image, size, interpolation=how)
  factor = np.array([size[0] / line['width'], size[1] / line['height'], 1])
  for key, part in (('bodies', 'body'), ('faces', 'face')):
    if not line.get(key):
      continue
    people = np.array(line[key], np.float32) * factor.astype(np.float32)
    everybody = np.ones(len(people), bool)
    limbs = viz.keypoint_limbs(
        people, everybody, skeletons.HEATMAP_LIMBS[part], image.shape[:2]
    )
    image = viz.draw_limbs(image, limbs, everybody)
  return image


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
  add('--min_score', type=float, default=0.0, help='smallest score that '
      "counts; 0 = the backend's own")  # fmt: skip
  add('--device', default='cpu', choices=('cpu', 'cuda'), help='for .onnx')
  add('--frames', type=int, default=0, help='frames of a clip; 0 = all')
  add('--workers', type=int, default=1, help='processes; .onnx models use all '
      'cores with one already')  # fmt: skip
  add('--out', default='', help='file to write; empty = '
      f'{NAME} in --data')  # fmt: skip
  add('--overwrite', action='store_true', help='start anew where existing '
      'annotations are of another making')  # fmt: skip
  add('--preview', default='', help='folder for a contact sheet; it shows the '
      'pictures')  # fmt: skip
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
    )
    print(report)
    if args.preview:
      path = args.out or pathlib.Path(args.data) / NAME
      print(f'preview: {preview(args.data, path, args.preview)}')
  except KeyboardInterrupt:
    print('interrupted; the same command goes on', file=sys.stderr)
    return 130
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
