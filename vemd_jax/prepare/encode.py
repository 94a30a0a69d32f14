"""Encodes the files of a sample: JPEGs of bounded size, without metadata.

Imports neither JAX nor TFDS, so that worker processes start quickly.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from vemd_jax.data import decoding, files, video
from vemd_jax.prepare import audio
from vemd_jax.prepare.index import Options, Sample, printable

QUALITY = 92


@dataclasses.dataclass
class Remarks:
  """Irregularities of a sample that were handled."""

  lines: list[str] = dataclasses.field(default_factory=list)

  def add(self, remark: str) -> None:
    if remark not in self.lines:
      self.lines.append(remark)


class Unreadable(ValueError):
  """A file that cannot be used; the message is the reason, without a name."""


def strip_jpeg(data: bytes) -> bytes | None:
  """A JPEG without EXIF, XMP, IPTC, colour profile, comments, thumbnails.

  Args:
    data: a complete JPEG.

  Returns:
    The same image in fewer bytes: JFIF and Adobe headers, tables and scans are
    kept; data after the end of the image are removed. None if the structure is
    not as expected.
  """
  if data[:2] != b'\xff\xd8':
    return None
  kept = [data[:2]]
  at = 2
  while at + 4 <= len(data):
    if data[at] != 0xFF:
      return None
    marker = data[at + 1]
    if marker == 0xFF:  # fill byte
      at += 1
      continue
    if marker == 0xD9:
      break
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    if marker == 0xDA:
      # Entropy-coded data end at a marker other than an escape or restart.
      while True:
        end = data.find(b'\xff', end)
        if end < 0 or end + 1 >= len(data):
          return None
        if data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
          end += 2
        elif data[end + 1] == 0xFF:
          end += 1
        else:
          break
    application = 0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE)
    # A JFIF extension (JFXX) is a thumbnail.
    thumbnail = marker == 0xE0 and data[at + 4 : at + 8] != b'JFIF'
    if not (application or thumbnail or marker == 0xFE):
      kept.append(data[at:end])
    at = end
  if data[at : at + 2] != b'\xff\xd9':
    return None
  return b''.join(kept) + b'\xff\xd9'


def encode_pixels(image: np.ndarray) -> bytes:
  """JPEG of a uint8 [H,W,3] RGB image."""
  encoded = cv2.imencode(
      '.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
  )[1]
  return encoded.tobytes()


def _to_rgb(image: Image.Image, remarks: Remarks) -> np.ndarray:
  """Converts an image of any Pillow mode to uint8 [H, W, 3]."""
  if getattr(image, 'is_animated', False) and image.format != 'MPO':
    remarks.add('animated image: its first frame')
  if image.mode in ('I;16', 'I;16B', 'I;16L', 'I', 'F'):
    remarks.add('16-bit image: converted to 8 bits')
    values = np.asarray(image).astype(np.float64)
    # Some 16-bit files open as mode 'I', and both modes may hold 8-bit values.
    values = values / 257 if values.max(initial=0) > 255 else values
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)
  if image.mode == 'CMYK':
    remarks.add('CMYK image: converted to RGB')
  if 'transparency' in image.info or image.mode in ('RGBA', 'LA', 'PA'):
    remarks.add('transparent image: composited over white')
    image = image.convert('RGBA')
    ground = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(ground, image)
  return np.asarray(image.convert('RGB'))


def encode_image(
    path: Path, longer_side: int, remarks: Remarks
) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
  """Reads one image file.

  Args:
    path: an image in any format that Pillow reads.
    longer_side: upper bound in pixels.
    remarks: receives irregularities.

  Returns:
    JPEG bytes, the size (h, w) before resizing, and after. A plain JPEG within
    the bound keeps its bytes except for metadata; everything else is rotated
    upright and reencoded.

  Raises:
    Unreadable: it cannot be used.
  """
  try:
    data = files.read_bytes(path)
  except FileNotFoundError:
    raise Unreadable('file is missing') from None
  except OSError as error:
    raise Unreadable(f'file cannot be read ({error.strerror})') from None
  if not data:
    raise Unreadable('file is empty (0 bytes)')
  try:
    with decoding.open_image(data) as image:
      turned = image.getexif().get(0x0112, 1) not in (0, 1)
      plain = (
          image.format == 'JPEG'
          and image.mode in ('RGB', 'L')
          and max(image.size) <= longer_side
          and not turned
      )
      image.load()
      if plain:
        stripped = strip_jpeg(data)
        if stripped is not None:
          size = (image.height, image.width)
          return stripped, size, size
      pixels = image
      if turned:
        remarks.add('EXIF rotation applied')
        pixels = ImageOps.exif_transpose(image)
      rgb = _to_rgb(pixels, remarks)
      if image.mode == 'RGB' and image.format == 'PNG' and _png_depth(data) > 8:
        remarks.add('16-bit image: converted to 8 bits')
  except decoding.TooLarge as error:
    raise Unreadable(str(error)) from None
  except Image.UnidentifiedImageError:
    raise Unreadable('not an image') from None
  except Exception as error:  # Pillow's plugins raise nearly anything
    raise Unreadable(f'damaged image ({type(error).__name__})') from None
  return _bounded(rgb, longer_side)


def _png_depth(data: bytes) -> int:
  return data[24] if len(data) > 24 else 8


def _bounded(
    rgb: np.ndarray, longer_side: int
) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
  """JPEG, the size (h, w) before resizing, and after."""
  image = video.bound(rgb, longer_side)
  return encode_pixels(image), rgb.shape[:2], image.shape[:2]


def _frames_of_clip(
    sample: Sample, source: Path, options: Options, remarks: Remarks
):
  """Frames stored as files; an unreadable one is replaced by its neighbour."""
  frames: list[Any] = []
  for path in sample.media:
    try:
      frames.append(encode_image(source / path, options.longer_side, remarks))
    except Unreadable as error:
      frames.append(str(error))
  good = [i for i, f in enumerate(frames) if not isinstance(f, str)]
  if not good:
    raise Unreadable(f'no readable frame: {frames[0]}')
  if len(good) < len(frames):
    remarks.add('unreadable frames replaced by the nearest readable one')
  nearest = [min(good, key=lambda g: (abs(g - i), g))
             for i in range(len(frames))]
  return [frames[i] for i in nearest]


def _frames_of_video(path: Path, options: Options, remarks: Remarks):
  """T frames of a video file."""
  if not path.is_file():
    raise Unreadable('file is missing')
  if not path.stat().st_size:
    raise Unreadable('file is empty (0 bytes)')
  try:
    clip = video.read_frames(str(path), options.frames, options.longer_side)
  except Exception as error:  # The reason must not contain the file name.
    kind = type(error.__cause__ or error).__name__
    raise Unreadable(f'damaged video ({kind})') from None
  if len(set(clip.indices)) < options.frames:
    remarks.add(f'fewer than {options.frames} frames: some are repeated')
  return [(encode_pixels(f), f.shape[:2], f.shape[:2]) for f in clip.frames]


def _scaled(
    points: tuple[tuple[float, ...], ...] | None,
    before: tuple[int, int],
    after: tuple[int, int],
    width: int,
) -> list[list[float]] | None:
  """Maps coordinates in the source image to pixels of the stored image.

  Args:
    points: rows of (x, y, ...) groups, each `width` long.
    before: source size (h, w).
    after: stored size (h, w).
    width: 3 for keypoints (x, y, score), 2 for boxes (x1, y1, x2, y2).
  """
  if points is None:
    return None
  scale, shift = np.ones(width), np.zeros(width)
  # Pixel centres have integer coordinates.
  scale[:2] = after[1] / before[1], after[0] / before[0]
  shift[:2] = (scale[:2] - 1) / 2
  rows = []
  for values in points:
    row = np.reshape(values, (-1, width)) * scale[None] + shift[None]
    if width == 3:
      row = np.where(row[:, 2:] > 0, row, 0)
    rows.append(row.reshape(-1).tolist())
  return rows


def encode_sample(
    sample: Sample, source: Path, options: Options
) -> dict[str, Any]:
  """Encodes everything that is stored of a sample.

  Args:
    sample: from the index.
    source: the dataset's folder.
    options: options of this preparation.

  Returns:
    dict of plain values: `file`, `split`, `label`, `label_multi_hot`, `folds`,
    `frames` JPEGs, `size` (h, w) of the first, `bodies`, `faces` flat rows or
    None, `ignore_boxes`, `transcript`, `audio` None or (float32 bytes, shape),
    `remarks`; or, if it cannot be used, `file`, `split` and `left_out`.
  """
  remarks = Remarks()
  spectrogram = None
  try:
    if sample.kind == 'video':
      path = source / sample.media[0]
      frames = _frames_of_video(path, options, remarks)
      if options.audio:
        spectrogram = _spectrogram(path, remarks)
    elif sample.kind == 'frames':
      frames = _frames_of_clip(sample, source, options, remarks)
    else:
      frames = [
          encode_image(source / sample.media[0], options.longer_side, remarks)
      ]
  except Unreadable as error:
    return {'file': sample.file, 'split': sample.split, 'left_out': str(error)}
  before, after = frames[0][1:]
  return {
      'file': sample.file,
      'split': sample.split,
      'label': sample.label,
      'label_multi_hot': list(sample.multi_hot),
      'folds': list(sample.folds),
      'frames': [f[0] for f in frames],
      'size': list(after),
      'bodies': _scaled(sample.bodies, before, after, 3),
      'faces': _scaled(sample.faces, before, after, 3),
      'ignore_boxes': _scaled(sample.ignore_boxes, before, after, 2),
      'transcript': printable(sample.transcript),
      'audio': spectrogram,
      'remarks': remarks.lines,
  }


def _spectrogram(path: Path, remarks: Remarks):
  try:
    mel = audio.spectrogram(path)
  except (ValueError, OSError):
    remarks.add('sound track cannot be decoded: stored without audio')
    return None
  if mel is None:
    remarks.add('no sound: stored without audio')
    return None
  return np.ascontiguousarray(mel, '<f4').tobytes(), list(mel.shape)
