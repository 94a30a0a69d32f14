"""Crops, resizes and flips of images and points, as matrices."""

import math

import cv2
import numpy as np


def then(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Composes two affine maps: `first`, then `second`."""
  return second @ np.vstack([first, [0.0, 0.0, 1.0]])


# ---------------------------------------------------------------- geometry


def resize_matrix(
    box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
  """The affine map of a crop followed by a resize.

  Args:
    box: (left, top, width, height) in whole pixels.
    size: (H, W) of the result.

  Returns:
    [2, 3] float64; maps (x, y, 1) to pixels of the result.
  """
  left, top, width, height = box
  sx, sy = size[1] / width, size[0] / height
  return np.array([
      [sx, 0.0, (0.5 - left) * sx - 0.5],
      [0.0, sy, (0.5 - top) * sy - 0.5],
  ])


def flip_matrix(matrix: np.ndarray, width: int) -> np.ndarray:
  """Appends a horizontal flip of a result of `width` pixels to a map."""
  mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])
  return then(matrix, mirror)


def transform_points(
    points: np.ndarray, matrix: np.ndarray, order: np.ndarray | None = None
) -> np.ndarray:
  """Moves keypoints by an affine map.

  Args:
    points: [..., K, 3] (x, y, score).
    matrix: [2, 3].
    order: [K] index of the joint that becomes joint k; for a flip
      `skeletons.FLIPS`.

  Returns:
    [..., K, 3] float32.
  """
  moved = np.array(points, np.float32)
  moved[..., :2] = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
  return moved if order is None else moved[..., order, :]


def random_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
  """Draws a random crop.

  Args:
    size: (H, W) of the image.
    scale: range of the crop's share of the image's area.
    ratio: range of the crop's aspect ratio relative to the image's, drawn
      log-uniformly.
    rng: source of randomness.

  Returns:
    (left, top, width, height) in whole pixels.
  """
  height, width = size
  area = rng.uniform(*scale)
  aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
  w = min(max(1, round(width * math.sqrt(area * aspect))), width)
  h = min(max(1, round(height * math.sqrt(area / aspect))), height)
  left = int(rng.integers(0, width - w + 1))
  top = int(rng.integers(0, height - h + 1))
  return left, top, w, h


def resize_crop(
    image: np.ndarray, box: tuple[int, int, int, int], side: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a box out of an image and resizes it to a square.

  Args:
    image: [H, W, 3] uint8.
    box: (left, top, width, height).
    side: of the result, in pixels.

  Returns:
    [side, side, 3] uint8, and the [2, 3] matrix that maps pixels of the image
    to pixels of the result.
  """
  left, top, *size = box
  # Number of halvings per side before the final resize. Bilinear filtering
  # does not alias at factors below 2, averages pairs at exactly 2, and is ten
  # times as fast as INTER_AREA. A remainder of 1 to 7 pixels is cut off.
  halves = [max(0, (length // side).bit_length() - 1) for length in size]
  size = [length >> n << n for length, n in zip(size, halves)]
  matrix = resize_matrix((left, top, *size), (side, side))
  image = image[top : top + size[1], left : left + size[0]]
  for i in range(max(halves)):
    size = [length >> (i < n) for length, n in zip(size, halves)]
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
  if size != [side, side]:
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
  return image, matrix
