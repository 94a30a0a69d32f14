"""Iterates over the images of a dataset, the input of annotators."""

import dataclasses
import pathlib
from collections.abc import Iterator

import av
import numpy as np

from vemd_jax.data import decoding, video
from vemd_jax.prepare import rows

# --- images of a row --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Item:
  """A row in a form that can be sent to a worker process.

  Attributes:
    file: name of the row.
    numbers: frame numbers of `frames`; (None,) for a single image.
    frames: encoded images.
    video: path of a video instead of frames, '' for none.
    wanted: number of frames of a clip to read, 0 for all.
  """

  file: str
  numbers: tuple[int | None, ...] = ()
  frames: tuple[bytes, ...] = ()
  video: str = ''
  wanted: int = 0

  @property
  def is_clip(self) -> bool:
    return bool(self.video) or self.numbers != (None,)


def make_item(
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


def read_images(item: Item) -> Iterator[tuple[int | None, np.ndarray | str]]:
  """Yields (number, RGB image or error message) of each frame."""
  if item.video and item.wanted:
    clip = video.read_frames(item.video, item.wanted)
    # Frames of a short clip are repeated, but annotated only once.
    yield from dict(zip(clip.indices.tolist(), clip.frames)).items()
  elif item.video:
    yield from _all_frames(item.video)
  for number, frame in zip(item.numbers, item.frames):
    try:
      yield number, decoding.decode_image(frame)
    except ValueError as error:
      yield number, str(error)


def _all_frames(path: str) -> Iterator[tuple[int, np.ndarray]]:
  """Yields all frames of a video, numbered as by `video.read_frames`."""
  number = -1
  try:
    with video.opened(path) as container:
      if not container.streams.video:
        raise ValueError('no video stream')
      for number, frame in enumerate(container.decode(video=0)):
        yield number, video._upright(frame, 0)
  except (av.FFmpegError, OSError) as error:
    # The end is damaged; the frames before it are used.
    if number < 0:
      raise ValueError(f'cannot be read as a video ({error})') from error
