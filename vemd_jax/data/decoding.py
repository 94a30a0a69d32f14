"""Decodes the images, videos and frames of records."""

import contextlib
import functools
import io
import struct
import threading
from typing import Any

import cv2
import numpy as np
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

from vemd_jax.data import video
from vemd_jax.data.geometry import resize_matrix, then, transform_points

Record = dict[str, Any]
# OpenCV names its flags for reduced sizes in BGR order only.
_RGB = cv2.IMREAD_COLOR_RGB
_READ = {1: _RGB, 2: _RGB | 16, 4: _RGB | 32, 8: _RGB | 64}
# Formats of photographs. For some of its other formats Pillow runs external
# programs.
_FORMATS = (
    'JPEG', 'PNG', 'BMP', 'WEBP', 'GIF', 'TIFF', 'JPEG2000', 'PPM', 'AVIF',
)  # fmt: skip


class TooLarge(ValueError):
  """An image has more than `video.MAX_PIXELS`."""


# ---------------------------------------------------------------- decoding


def decode_image(data: bytes) -> np.ndarray:
  """Decodes an image file, turned upright by its EXIF flag.

  Supports every format of OpenCV and Pillow, including CMYK, 16-bit, greyscale
  and images with alpha (dropped). Of an animation the first frame is used.

  Args:
    data: the file's content.

  Returns:
    [H, W, 3] uint8 RGB.

  Raises:
    ValueError: the data is not an image, or is truncated.
  """
  return decode_reduced(data, 0)[0]


def decode_reduced(
    data: bytes, min_side: int
) -> tuple[np.ndarray, int, tuple[int, int]]:
  """Like `decode_image`, but decodes large JPEG files at a reduced size.

  Decoding at a reduced size is faster than resizing afterwards.

  Args:
    data: the file's content.
    min_side: the size is halved while the shorter side remains at least this
      long, in pixels; 0 keeps the full size.

  Returns:
    [H, W, 3] uint8 RGB; the reduction factor (1, 2, 4 or 8; sides are rounded
    up); the full (width, height).

  Raises:
    ValueError: the data is not an image, is truncated, or is too large.
  """
  if not data:
    raise ValueError('the file is empty')
  reduced = 1
  size = _jpeg_size(data)
  if size:
    check_size(*size)
  else:
    try:
      with open_image(data):
        pass
    except TooLarge:
      raise
    except Exception as error:  # Pillow raises many types for damaged files.
      raise _unreadable(error) from error
  if size and min_side:
    while reduced < 8 and min(size) // (2 * reduced) >= min_side:
      reduced *= 2
  image = None
  with contextlib.suppress(cv2.error):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ[reduced])
  if image is not None:
    height, width = image.shape[:2]
    if reduced == 1:
      return image, 1, (width, height)
    # The header states the size before rotation by the EXIF flag.
    turned = (width, height) != tuple(-(-s // reduced) for s in size)
    return image, reduced, size[::-1] if turned else size
  try:
    with open_image(data) as picture:
      picture = ImageOps.exif_transpose(picture)
      if picture.mode.startswith(('I', 'F')):
        values = np.asarray(picture, np.float64)
        # 16-bit images have integer values up to 65535.
        values = values / 257.0 if values.max() > 255 else values
        grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        picture = Image.fromarray(grey)
      return np.array(picture.convert('RGB')), 1, picture.size
  except Exception as error:  # Pillow raises many types for a broken file.
    raise _unreadable(error) from error


def _unreadable(error: Exception) -> ValueError:
  # This error's message names an object in memory.
  known = isinstance(error, UnidentifiedImageError)
  return ValueError('not a readable image' + ('' if known else f' ({error})'))


def open_image(data: bytes) -> Image.Image:
  """Opens an image with Pillow, without decoding it.

  Args:
    data: the file's content.

  Returns:
    The image.

  Raises:
    TooLarge: it has more than `video.MAX_PIXELS`.
    PIL.UnidentifiedImageError: it is not an image.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=_formats())
  except Image.DecompressionBombError:
    raise TooLarge(f'more than {video.MAX_PIXELS} pixels') from None
  check_size(*image.size)
  return image


@functools.cache
def _formats() -> tuple[str, ...]:
  """Formats that the installed build of Pillow reads."""
  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_size(width: int, height: int) -> None:
  """Rejects images that need too much memory.

  Args:
    width: of the image, in pixels.
    height: of the image, in pixels.

  Raises:
    TooLarge: it has more than `video.MAX_PIXELS`.
  """
  if width * height > video.MAX_PIXELS:
    raise TooLarge(
        f'{width} x {height} is more than {video.MAX_PIXELS} pixels'
    )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(width, height) from a JPEG file's header; None for anything else."""
  if data[:2] != b'\xff\xd8':
    return None
  at = 2
  while at + 9 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height, width = struct.unpack('>HH', data[at + 5 : at + 9])
      return width, height
    # A marker may be preceded by any number of fill bytes.
    at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
  return None


_warned = set()
_warned_lock = threading.Lock()


def warn_once(key: str, message: str) -> None:
  """Logs a warning once per `key`."""
  with _warned_lock:
    if key in _warned:
      return
    _warned.add(key)
  logging.warning('%s', message)


def decode(
    record: Record, num_frames: int, min_side: int = 0, max_side: int = 0
) -> Record:
  """Replaces encoded frames by `num_frames` evenly spaced images.

  Keypoints stay with their frames and are rescaled with them. If the annotated
  size (`annotation_size`, per frame (width, height) or None) differs from the
  image's, they are scaled to the image; if the aspect ratios differ as well,
  they are left out.

  Args:
    record: with `frames`, or `video`, the path of a video; `bodies`, `faces`,
      `ignore` (regions without labels, two corners each: [n, 2, 3]) and
      `annotation_size` are lists per frame, or dicts by frame number.
    num_frames: T.
    min_side: see `decode_reduced`.
    max_side: upper bound of the longer side in pixels, 0 for none.

  Returns:
    A new record whose `frames`, `bodies`, `faces` and `ignore` have length T;
    `frames` is empty if an image cannot be read (logged once per file).
  """
  result = {
      k: v for k, v in record.items() if k not in ('video', 'annotation_size')
  }
  name = record.get('file', 'a sample')
  try:
    if 'video' in record:
      clip = video.read_frames(record['video'], num_frames)
      images, chosen = clip.frames, clip.indices
      images = [(image, 1, image.shape[1::-1]) for image in images]
    else:
      chosen = video.spread(len(record['frames']), num_frames)
      once = {i: _image(record['frames'][i], min_side) for i in {*chosen}}
      images = [once[i] for i in chosen]
  except (ValueError, OSError) as error:
    warn_once(name, f'{name} is unreadable and left out: {error}')
    return {**result, 'frames': [], 'bodies': [], 'faces': [], 'ignore': []}
  once = {id(image): video.bound(image, max_side) for image, _, _ in images}
  result['frames'] = [once[id(image)] for image, _, _ in images]
  sizes = _per_frame(record.get('annotation_size'), chosen)
  for part in ('bodies', 'faces', 'ignore'):
    people = _per_frame(record.get(part), chosen)
    result[part] = [
        _rescale(*args, name)
        for args in zip(people, sizes, images, result['frames'])
    ]
  return result


def _image(frame: bytes | np.ndarray, min_side: int):
  if isinstance(frame, np.ndarray):
    return frame, 1, frame.shape[1::-1]
  return decode_reduced(frame, min_side)


def _per_frame(values, chosen: np.ndarray) -> list:
  if values is None:
    return [None] * len(chosen)
  if isinstance(values, dict):
    return [values.get(int(i)) for i in chosen]
  return [values[i] for i in chosen]


def _rescale(people, size, decoded, result, name):
  """Maps keypoints from the annotated or stored size to that of `result`."""
  if people is None:
    return None
  image, reduced, stored = decoded
  height, width = image.shape[:2]
  matrix = np.eye(2, 3)
  if size is not None and tuple(size) != stored:
    # More than rounding of a pixel: another crop, or a 90 degree rotation.
    if abs(size[0] * stored[1] - size[1] * stored[0]) > max(*size, *stored):
      warn_once(
          f'{name} annotation',
          f'{name} was annotated at {size[0]} x {size[1]}, but the image has '
          f'{stored[0]} x {stored[1]}; its annotation is left out',
      )
      return None
    matrix = resize_matrix((0, 0, *size), stored[::-1])
  if reduced > 1:
    box = (0, 0, width * reduced, height * reduced)
    matrix = then(matrix, resize_matrix(box, (height, width)))
  if result is not image:
    box = (0, 0, width, height)
    matrix = then(matrix, resize_matrix(box, result.shape[:2]))
  if (matrix == np.eye(2, 3)).all():
    return people
  return transform_points(people, matrix)
