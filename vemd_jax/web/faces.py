"""Hides faces in images."""

import functools

import cv2
import numpy as np

# Blocks along a face, and along an image in which no face was found.
_BLOCKS = 5
_BLOCKS_OF_ALL = 14


def hide(image: np.ndarray) -> tuple[np.ndarray, int | str]:
  """Pixelates faces.

  The detector misses some faces (profile, small, dark). If it finds none, the
  whole image is pixelated.

  Args:
    image: uint8 [H, W, 3].

  Returns:
    uint8 [H, W, 3]; the number of faces, or 'all' if none was found.

  Raises:
    ImportError: dlib is not installed.
  """
  found = detect(image)
  if not len(found):
    return _blocks(image, _BLOCKS_OF_ALL), 'all'
  result = image.copy()
  height, width = image.shape[:2]
  for left, top, right, bottom in found:
    # Includes hair and chin.
    dx, dy = round(0.25 * (right - left)), round(0.35 * (bottom - top))
    left, right = max(0, left - dx), min(width, right + dx)
    top, bottom = max(0, top - dy), min(height, bottom + dy)
    if left < right and top < bottom:
      face = result[top:bottom, left:right]
      face[:] = _blocks(face, _BLOCKS)
  return result, len(found)


def detect(image: np.ndarray) -> np.ndarray:
  """Detects faces.

  Args:
    image: uint8 [H, W, 3].

  Returns:
    int [n, 4]: left, top, right, bottom in pixels; may exceed the image.
  """
  # Upsampled once: the detector is trained on faces of at least 80 pixels.
  boxes = _detector()(np.ascontiguousarray(image), 1)
  boxes = [(b.left(), b.top(), b.right(), b.bottom()) for b in boxes]
  return np.array(boxes, int).reshape(-1, 4)


@functools.cache
def _detector():
  try:
    import dlib
  except ImportError as error:
    raise ImportError(
        'blurring faces needs dlib: pip install "vemd-jax[demo]"'
    ) from error
  return dlib.get_frontal_face_detector()


def _blocks(image: np.ndarray, count: int) -> np.ndarray:
  height, width = image.shape[:2]
  step = max(height, width) / count
  small = max(1, round(width / step)), max(1, round(height / step))
  coarse = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
