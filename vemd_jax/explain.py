"""Occlusion maps of predictions: `vemd explain W PHOTO`.

A sliding window occludes the image; where the probability of the class
decreases, the prediction depends on the occluded region. The prediction is that
of the group as a whole, not of any person in it.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from absl import logging

from vemd_jax import canvas, inference, progress, viz
from vemd_jax.inference import Model
from vemd_jax.inference.clips import (
    Unreadable,
    find_inputs,
    is_video,
    read_photo,
)

MEANING = (
    'The result concerns the probability of the whole group; it says nothing '
    'about any single person.'
)
# Colours of regions whose occlusion lowers and raises the probability.
_FOR, _AGAINST = (214, 69, 26), (24, 110, 190)
# Range of the longer side of an image, in pixels.
_SIDES = 480, 1024


def occlusion(
    probability: Callable[[np.ndarray], np.ndarray],
    clip: np.ndarray,
    window: float = 1 / 6,
    batch_size: int = 16,
    update: Callable[[int], object] = lambda n: None,
) -> np.ndarray:
  """Computes the decrease of a probability under occlusion of each region.

  Args:
    probability: uint8 [B, T, S, S, 3] -> [B], probability of one class.
    clip: uint8 [T, S, S, 3]; all of its images are occluded at once.
    window: side of the occluding square, as a share of the image side; the
      stride is half of it.
    batch_size: number of occluded clips per call.
    update: called with the number of clips done after each batch.

  Returns:
    [S, S] float32: mean decrease over all windows that cover a pixel; negative
    where the probability increases.
  """
  corners, side = windows(clip.shape[1], window)
  # Filling with the mean colour introduces weaker edges than black.
  mean = clip.mean((0, 1, 2)).round().astype(np.uint8)
  whole = float(probability(np.repeat(clip[None], batch_size, 0))[0])
  fall = np.zeros(clip.shape[1:3], np.float32)
  count = np.zeros_like(fall)
  places = [(y, x) for y in corners for x in corners]
  for start in range(0, len(places), batch_size):
    part = places[start : start + batch_size]
    hidden = np.repeat(clip[None], batch_size, 0)
    for version, (y, x) in zip(hidden, part):
      version[:, y : y + side, x : x + side] = mean
    for value, (y, x) in zip(probability(hidden), part):
      fall[y : y + side, x : x + side] += whole - float(value)
      count[y : y + side, x : x + side] += 1
    update(len(part))
  return fall / count


def windows(size: int, window: float) -> tuple[list[int], int]:
  """Positions of the windows along one axis, and their side, in pixels."""
  side = min(size, max(1, round(window * size)))
  steps = max(1, -(-(size - side) // max(1, side // 2)))
  first = np.linspace(0, size - side, steps + 1)
  return first.round().astype(int).tolist(), side


def picture(image: np.ndarray, fall: np.ndarray, caption: str) -> np.ndarray:
  """Draws the image and, beside it, the regions that the result depends on.

  Args:
    image: uint8 [H, W, 3].
    fall: [S, S], occlusion map of the full image, see `occlusion`.
    caption: text below the picture.

  Returns:
    uint8 [H', W', 3]: orange where occlusion lowers the probability, blue where
    it raises it.
  """
  longer = max(image.shape[:2])
  scale = min(max(longer, _SIDES[0]), _SIDES[1]) / longer
  size = tuple(max(1, round(s * scale)) for s in image.shape[1::-1])
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  image = cv2.resize(image, size, interpolation=method)
  fall = cv2.resize(fall, size, interpolation=cv2.INTER_LINEAR)
  strength = fall / max(float(np.abs(fall).max()), 1e-6)
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  ground = np.repeat(0.35 * grey[..., None] + 140.0, 3, -1)
  colour = np.where(strength[..., None] > 0, _FOR, _AGAINST)
  alpha = 0.8 * np.abs(strength)[..., None]
  mixed = (ground * (1 - alpha) + colour * alpha).round().astype(np.uint8)
  pair = np.concatenate([image, mixed], 1)
  letters = round(pair.shape[1] / 60)
  height = canvas.line_height(letters)
  sheet = np.full(
      (pair.shape[0] + 2 * height, pair.shape[1], 3), canvas.PAPER, np.uint8
  )
  canvas.put(sheet, pair, 0, 0)
  lines = caption, 'occlusion lowers (orange) or raises (blue) the probability'
  for number, line in enumerate(lines):
    line = canvas.fit(line, pair.shape[1] - 2 * canvas.GAP, letters)
    y = pair.shape[0] + number * height
    canvas.put(sheet, canvas.text(line, letters), canvas.GAP, y)
  return sheet


def explain(
    model: Model, path: str, label: str, window: float
) -> tuple[str, float, np.ndarray, np.ndarray]:
  """Explains the prediction of one photograph.

  Args:
    model: the model.
    path: path of the photograph.
    label: name of the class; '' selects the most probable class.
    window: see `occlusion`.

  Returns:
    (class, its probability, the image, the occlusion map [S, S]).

  Raises:
    Unreadable: if it cannot be read.
  """
  clip = read_photo(path, model.frames)
  images = model.prepare(clip.images)
  probabilities = np.asarray(model.probabilities(images[None])[0])
  label = label or model.classes[int(probabilities.argmax())]
  index = model.classes.index(label)
  corners, _ = windows(images.shape[1], window)
  with progress.bar(
      len(corners) ** 2, 'window', os.path.basename(path), brief=True
  ) as bar:
    fall = occlusion(
        lambda x: np.asarray(model.probabilities(x))[:, index],
        images,
        window,
        update=bar.update,
    )
  return label, float(probabilities[index]), clip.images[0], fall


def main(argv: Sequence[str] | None = None, load=inference.load) -> int:
  """The command; see `--help`.

  Args:
    argv: arguments; those of the process by default.
    load: `(workdir, dataset) -> Model`.

  Returns:
    0; 1 if a photograph could not be read, 2 for invalid arguments.
  """
  parser = argparse.ArgumentParser(
      prog='vemd explain',
      description='Shows the regions of a photograph that the probability of '
      f'its group depends on, by occlusion. {MEANING}',
      epilog='examples:\n'
      '  vemd explain RUN PHOTO.jpg\n'
      '  vemd explain RUN FOLDER --out=EXPLAINED --label=positive\n',
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='W', help='workdir of a trained model')
  parser.add_argument(
      'paths', nargs='+', metavar='PHOTO|FOLDER', help='photographs to explain'
  )
  parser.add_argument(
      '--out', default='explained', metavar='DIR',
      help='folder for the pictures (default: explained)',
  )  # fmt: skip
  parser.add_argument(
      '--label', default='', help='class to explain (default: the predicted)'
  )
  parser.add_argument(
      '--window', type=_share, default=1 / 6,
      help='side of the occluding square, as a share of the picture '
      '(default: 1/6)',
  )  # fmt: skip
  parser.add_argument(
      '--dataset', default='', help='emotion head, where there are several'
  )
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  try:
    files = [f for f in find_inputs(args.paths) if not is_video(f)]
    if not files:
      raise ValueError('only videos were given; expected photographs')
    model = load(args.workdir, args.dataset)
    blur = inference.hides_people(model)
    if args.label and args.label not in model.classes:
      raise ValueError(
          f'--label is {args.label!r}, expected one of '
          f'{", ".join(model.classes)}'
      )
    os.makedirs(args.out, exist_ok=True)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  failed = 0
  for path in files:
    try:
      label, value, image, fall = explain(model, path, args.label, args.window)
    except Unreadable as error:
      failed += 1
      print(f'{path}: {" ".join(str(error).split())}', file=sys.stderr)
      continue
    if blur:
      image = viz.hide_people(image)
    caption = (
        f'{label} {value:.2f}; with a region occluded '
        f'{value - float(fall.max()):.2f} to {value - float(fall.min()):.2f}'
    )
    target = os.path.join(args.out, f'{pathlib.Path(path).stem}_explained.jpg')
    data = cv2.imencode('.jpg', picture(image, fall, caption)[..., ::-1])[1]
    pathlib.Path(target).write_bytes(data.tobytes())
    print(f'{target}  {caption}', flush=True)
  print(MEANING)
  return 1 if failed else 0


def _share(text: str) -> float:
  value = float(text)
  if not 0 < value <= 1:
    raise argparse.ArgumentTypeError(f'{text} is not in 0..1')
  return value


if __name__ == '__main__':
  sys.exit(main())
