"""Decodes evenly spaced frames of videos."""

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import av
import cv2
import numpy as np

from vemd_jax.data import files

# Limit on the pixels of an image or frame, checked against the header; the same
# as Pillow's. A file of a few kilobytes can decode to more than the memory.
MAX_PIXELS = 178_956_970

SUFFIXES = (
    '.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv',
    '.flv', '.3gp', '.ts', '.mts',
)  # fmt: skip


class Clip(NamedTuple):
  """Frames of a video.

  Attributes:
    frames: T uint8 [H, W, 3] RGB images, upright.
    indices: [T] int, their frame numbers in the video, from 0.
    seconds: [T] float, their presentation times.
  """

  frames: list[np.ndarray]
  indices: np.ndarray
  seconds: np.ndarray


def spread(total: int, count: int) -> np.ndarray:
  """Indices of the middles of `count` equal parts of `total` frames.

  Args:
    total: number of frames, at least 1.
    count: number of indices; if it exceeds `total`, some are repeated.

  Returns:
    [count] int, non-decreasing, in 0 .. total - 1.
  """
  return ((2 * np.arange(count) + 1) * total) // (2 * count)


def bound(image: np.ndarray, max_side: int) -> np.ndarray:
  """Shrinks an image so that its longer side is at most `max_side` pixels.

  Args:
    image: [H, W, 3] uint8.
    max_side: pixels; 0 leaves the image unchanged.

  Returns:
    [H', W', 3] uint8; the image itself if it is small enough.
  """
  height, width = image.shape[:2]
  if not max_side or max(height, width) <= max_side:
    return image
  scale = max_side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def opened(
    path: str | bytes, format: str | None = None
) -> Iterator[av.container.InputContainer]:
  """Opens a video or sound file of unknown origin.

  Args:
    path: the file, or its content.
    format: FFmpeg's name of the format; None lets it guess.

  Yields:
    The container. FFmpeg opens no other file, even if a playlist names one, and
    decodes no frame of more than `MAX_PIXELS`.

  Raises:
    av.FFmpegError: the file is not in a known format.
    OSError: it cannot be read.
    ValueError: its frames are too large.
  """
  options = {'protocol_whitelist': 'none'}
  content = isinstance(path, bytes)
  with (
      io.BytesIO(path) if content else files.Reader(path) as file,
      av.open(file, format=format, options=options) as container,
  ):
    for stream in container.streams.video:
      # Later frames may be larger than the first.
      stream.codec_context.options = {'max_pixels': str(MAX_PIXELS)}
      if stream.width * stream.height > MAX_PIXELS:
        raise ValueError(
            f'{_name(path)}: {stream.width} x {stream.height} is more than '
            f'{MAX_PIXELS} pixels'
        )
    yield container


def _name(path: str | bytes) -> str:
  return 'the video' if isinstance(path, bytes) else path


def read_frames(
    path: str | bytes, num_frames: int, max_side: int = 0
) -> Clip:
  """Decodes evenly spaced frames, turned upright by the rotation flag.

  Args:
    path: video file, or its content.
    num_frames: number of frames; of a shorter video some are repeated.
    max_side: upper bound of the longer side in pixels; 0 keeps the size.

  Returns:
    The clip.

  Raises:
    ValueError: no frame can be decoded, or frames are too large; the message
      names the file.
  """
  try:
    with opened(path) as container:
      if not container.streams.video:
        raise ValueError(f'{_name(path)}: no video stream')
      stream = container.streams.video[0]
      # Packets are counted, since the header's number of frames may be missing
      # or wrong.
      total = sum(packet.size > 0 for packet in container.demux(stream))
    with opened(path) as container:
      stream = container.streams.video[0]
      stream.thread_type = 'SLICE'
      return _pick(_name(path), container, stream, total, num_frames, max_side)
  except (av.FFmpegError, OSError) as error:
    raise ValueError(
        f'{_name(path)}: cannot be read as a video ({error})'
    ) from error


def _pick(path, container, stream, total, num_frames, max_side) -> Clip:
  """Selects the wanted frames of a stream that is decoded from its start."""
  wanted = spread(total, num_frames) if total else np.zeros(num_frames, int)
  frames, indices, seconds = [], [], []
  last = None
  try:
    for index, frame in enumerate(container.decode(stream)):
      last = (index, frame)
      while len(frames) < num_frames and wanted[len(frames)] == index:
        # A repeated frame is converted only once.
        again = bool(indices) and indices[-1] == index
        frames.append(frames[-1] if again else _upright(frame, max_side))
        indices.append(index)
        seconds.append(frame.time or 0.0)
      if len(frames) == num_frames:
        break
  except av.FFmpegError:
    # The end is damaged; the frames before it are used.
    if last is None:
      raise
  if last is None:
    raise ValueError(f'{path}: no frame could be decoded')
  while len(frames) < num_frames:
    index, frame = last
    again = bool(indices) and indices[-1] == index
    frames.append(frames[-1] if again else _upright(frame, max_side))
    indices.append(index)
    seconds.append(frame.time or 0.0)
  return Clip(frames, np.array(indices), np.array(seconds))


def _upright(frame: av.VideoFrame, max_side: int) -> np.ndarray:
  image = bound(frame.to_ndarray(format='rgb24'), max_side)
  # Counterclockwise degrees, as in np.rot90.
  turns = round(frame.rotation / 90) % 4
  return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
