"""Predicts photographs and videos in batches that span several files."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator

from vemd_jax.data import feature_cache
from vemd_jax.inference.clips import (
    Clip,
    Unreadable,
    is_video,
    read_photo,
    read_video,
)
from vemd_jax.inference.model import Model, Prediction, predict_prepared

# Threads that decode photographs while the model runs.
_READERS = 2


def predict_files(
    model: Model,
    files: Iterable[str],
    *,
    batch_size: int,
    window: float,
    stride: float,
    look: Callable[[str, Prediction], None] | None = None,
) -> Iterator[tuple[str, list[Prediction] | Unreadable]]:
  """Predicts files in order; unreadable files do not stop it.

  Memory depends on the batch size, not on the number of files.

  Args:
    model: the model.
    files: photographs and videos.
    batch_size: number of clips per batch, of one file or several.
    window: duration of a video clip in seconds.
    stride: seconds between the starts of clips.
    look: called with the path and each prediction, including its images and
      decoded structure; without it neither is computed or kept.

  Yields:
    (path, predictions of its clips without images) in order, or
    (path, `Unreadable`).
  """
  # Read but not yet yielded: (path, None) for a clip, then (path, '') or
  # (path, `Unreadable`) for the end of the file.
  events = collections.deque()

  def prepared() -> Iterator[tuple[Clip, object]]:
    for path, item in _read(model, files, window, stride, bool(look)):
      if isinstance(item, Unreadable | str):
        events.append((path, item))
      else:
        events.append((path, None))
        yield item

  finished: list[Prediction] = []

  def ended():
    while events and events[0][1] is not None:
      path, reason = events.popleft()
      yield path, reason or list(finished)
      finished.clear()

  for prediction in predict_prepared(
      model, prepared(), batch_size, structure=bool(look)
  ):
    yield from ended()
    path, _ = events.popleft()
    if look:
      look(path, prediction)
    # Drops the images: those of a long video would not fit into memory.
    clip = prediction.clip._replace(images=[])
    finished.append(prediction._replace(clip=clip, structure={}))
    yield from ended()
  yield from ended()


def _read(model, files, window, stride, keep_images):
  """(path, (clip, model input)) for clips, then (path, '' or `Unreadable`)."""

  def prepare(clip):
    image = model.prepare(clip.images)
    return clip if keep_images else clip._replace(images=[]), image

  def read(path):
    if is_video(path):
      return path, None
    try:
      return path, prepare(read_photo(path, model.frames))
    except Unreadable as error:
      return path, error

  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    for path, item in feature_cache.ordered(pool, read, files, 2 * _READERS):
      if isinstance(item, Unreadable):
        yield path, item
        continue
      try:
        if item is None:
          for clip in read_video(path, model.frames, window, stride):
            yield path, prepare(clip)
        else:
          yield path, item
      except Unreadable as error:
        yield path, error
      else:
        yield path, ''
