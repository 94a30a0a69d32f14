"""Reads photographs and videos as clips of images."""

import os
import pathlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np

from vemd_jax.data import decoding, video

PHOTO_SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif',
    '.jp2', '.ppm', '.pgm',
)  # fmt: skip


class Unreadable(Exception):
  """A file cannot be decoded; the message has the reason but not the path."""


class Clip(NamedTuple):
  """T images that are classified together.

  Attributes:
    seconds: time of the middle of the clip in a video; None for a photograph.
    images: the images in their original size.
  """

  seconds: float | None
  images: list[np.ndarray]


def read_photo(path: str, frames: int) -> Clip:
  """Reads a photograph as a clip, repeated T times.

  Args:
    path: path of an image file.
    frames: T.

  Returns:
    The clip.

  Raises:
    Unreadable: if it cannot be opened or is not an image.
  """
  try:
    with open(path, 'rb') as f:
      image = decoding.decode_image(f.read())
  except OSError as error:
    raise Unreadable(error.strerror) from error
  except ValueError as error:
    raise Unreadable(str(error)) from error
  return Clip(None, [image] * frames)


def read_video(
    path: str | bytes, frames: int, window: float, stride: float
) -> Iterator[Clip]:
  """Cuts a video into overlapping clips, with one of them in memory at a time.

  For T = 1, one image every `stride` seconds is read.

  Args:
    path: path of a video file, or its content.
    frames: T.
    window: duration of a clip in seconds, for T > 1.
    stride: seconds between the starts of clips.

  Yields:
    The clips. A video shorter than the window gives one clip of evenly spaced
    frames.

  Raises:
    Unreadable: if it cannot be opened or is not a video.
  """
  interval = window / frames if frames > 1 else stride
  hop = max(1, round(stride / interval))
  recent = deque(maxlen=frames)
  count, new = 0, 0  # Images read in total, and since the last clip.
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
    path: str | bytes, interval: float
) -> Iterator[tuple[float, np.ndarray]]:
  """The frame in the middle of each interval: (seconds, RGB image)."""
  number = 0
  start, now, shown, image = None, 0.0, None, None

  def take(end):
    nonlocal number, image
    while (seconds := (number + 0.5) * interval) < end:
      image = _upright(shown) if image is None else image
      number += 1
      yield seconds, image

  try:
    with video.opened(path) as container:
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
  except (av.FFmpegError, OSError, ValueError) as error:
    if shown is None:
      reason = getattr(error, 'strerror', None) or error
      raise Unreadable(f'not a readable video ({reason})') from error
    # The end of the video is damaged; the frames before it are used.
  if shown is None:
    raise Unreadable('no frame in the video')
  yield from take(now + length)
  if not number:  # Shorter than half an interval.
    yield now, _upright(shown)


def _upright(frame: av.VideoFrame) -> np.ndarray:
  # Phones store the rotation as metadata.
  turns = round(frame.rotation / 90) % 4
  return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), turns))


def find_inputs(paths: Sequence[str]) -> list[str]:
  """Lists input files; folders are searched for photographs and videos.

  Hidden files, such as the metadata files of macOS, are skipped in folders.

  Args:
    paths: files and folders.

  Returns:
    Paths in the given order, those in a folder in alphabetical order. Missing
    files are not checked here; reading them raises `Unreadable`.

  Raises:
    ValueError: if a folder has neither photographs nor videos.
  """
  files = []
  for path in paths:
    if not os.path.isdir(path):
      files.append(path)
      continue
    found = sorted(
        str(p)
        for p in pathlib.Path(path).rglob('*')
        if p.suffix.lower() in PHOTO_SUFFIXES + video.SUFFIXES
        and not p.name.startswith('.')
        and p.is_file()
    )
    if not found:
      raise ValueError(f'{path}: no photographs or videos in this folder')
    files += found
  return files


def is_video(path: str) -> bool:
  return path.lower().endswith(video.SUFFIXES)
