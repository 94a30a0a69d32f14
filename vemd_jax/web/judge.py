"""Predicts uploaded photographs and videos.

Uploads are processed in memory; nothing is written to disk.
"""

import base64
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import av
import cv2
import numpy as np

from vemd_jax import viz
from vemd_jax.data import decoding, video
from vemd_jax.inference import Model, Prediction, predict_clips
from vemd_jax.inference.clips import Clip, Unreadable, read_video
from vemd_jax.inference.results import result
from vemd_jax.web import faces

# Number of frames of a video that are returned as images.
_MOMENTS = 6
# Longer side of the returned images, in pixels.
_SHOWN = 960
_BATCH = 8


class Refused(Exception):
  """The upload cannot be used; the message has the reason.

  Attributes:
    status: HTTP status.
  """

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class Judge:
  """A model as a function of uploaded bytes; safe to call from threads."""

  def __init__(
      self,
      model: Model,
      *,
      max_pixels: int = 50_000_000,
      max_seconds: float = 60.0,
      window: float = 5.0,
      stride: float = 1.0,
  ):
    """Compiles the model for photographs.

    Args:
      model: the model.
      max_pixels: largest number of pixels of a photograph or frame.
      max_seconds: the part of a video that is processed.
      window: duration of a video clip in seconds.
      stride: seconds between the starts of clips.
    """
    self._model = model
    self._max_pixels, self._max_seconds = max_pixels, max_seconds
    self._window, self._stride = window, stride
    # Concurrent batches would compete for the same cores.
    self._computing = threading.Lock()
    blank = np.zeros((32, 32, 3), np.uint8)
    self._predict([Clip(None, [blank] * model.frames)], 1)

  def __call__(
      self, data: bytes, heatmap: bool = False, blur: bool = False
  ) -> dict[str, Any]:
    """Predicts a photograph or a video.

    Args:
      data: content of the file.
      heatmap: whether images with the decoded structure are returned.
      blur: whether images with hidden faces are returned.

    Returns:
      `label`, `probabilities` and, for a video, `timeline`, as `vemd predict`
      returns them; `cut`, whether a video was longer than `max_seconds`;
      `pictures`, a list of `seconds`, `image` (a data URL) and `hidden`, the
      number of hidden faces, or 'all' if none was found and the whole image is
      hidden.

    Raises:
      Refused: it is neither a photograph nor a video, or it is too large.
    """
    if heatmap and not self._model.decodes:
      raise Refused(400, 'this model decodes no structure')
    if _is_video(data):
      predictions, cut = self._video(data, heatmap or blur)
    else:
      image = self._photo(data)
      clip = Clip(None, [image] * self._model.frames)
      predictions, cut = self._predict([clip], 1), False
    answer = result('', self._model.classes, predictions)
    del answer['file']
    answer['cut'] = cut
    shown = [p for p in predictions if p.clip.images] if heatmap or blur else []
    answer['pictures'] = [_picture(p, heatmap, blur) for p in shown]
    return answer

  def _predict(
      self, clips: Sequence[Clip], batch_size: int
  ) -> list[Prediction]:
    with self._computing:
      return list(predict_clips(self._model, clips, batch_size))

  def _photo(self, data: bytes) -> np.ndarray:
    try:
      with decoding.open_image(data) as picture:
        self._check_size(*picture.size)
      return decoding.decode_image(data)
    except decoding.TooLarge as error:
      raise Refused(413, str(error)) from error
    except OSError as error:
      raise Refused(
          415, 'expected a photograph or a video; not a readable image'
      ) from error
    except ValueError as error:
      raise Refused(
          415, f'expected a photograph or a video; {error}'
      ) from error

  def _video(self, data: bytes, keep: bool) -> tuple[list[Prediction], bool]:
    """Predictions, some of them with images, and whether the end was cut."""
    try:
      with video.opened(data) as container:
        if not container.streams.video:
          raise Refused(415, 'the video has no frames')
        stream = container.streams.video[0]
        self._check_size(stream.width, stream.height)
      clips = read_video(data, self._model.frames, self._window, self._stride)
      predictions: list[Prediction] = []
      cut = False
      while batch := list(itertools.islice(clips, _BATCH)):
        whole = [c for c in batch if c.seconds <= self._max_seconds]
        if whole:
          found = self._predict(whole, _BATCH)
          predictions += [_without_images(p) if not keep else _small(p)
                          for p in found]  # fmt: skip
        cut = len(whole) < len(batch)
        if cut:
          break
    except Unreadable as error:
      raise Refused(415, str(error)) from error
    except (av.FFmpegError, OSError, ValueError) as error:
      raise Refused(415, 'not a readable video') from error
    if not predictions:
      raise Refused(415, 'no frame in the video')
    few = {*video.spread(len(predictions), _MOMENTS).tolist()}
    return [
        p if i in few else _without_images(p)
        for i, p in enumerate(predictions)
    ], cut

  def _check_size(self, width: int, height: int) -> None:
    if width * height > self._max_pixels:
      raise Refused(
          413,
          f'{width} x {height} pixels are too many, expected at most '
          f'{self._max_pixels / 1e6:g} million',
      )


def _is_video(data: bytes) -> bool:
  """Whether the first bytes are those of a video container."""
  boxes = b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip'
  # Still images in the same container.
  stills = b'avif', b'heic', b'heix', b'mif1', b'msf1'
  return (
      (data[4:8] in boxes and data[8:12] not in stills)
      or data[:4] == b'\x1a\x45\xdf\xa3'  # Matroska, WebM
      or (data[:4] == b'RIFF' and data[8:12] == b'AVI ')
  )  # fmt: skip


def _without_images(prediction: Prediction) -> Prediction:
  clip = prediction.clip._replace(images=[])
  return prediction._replace(clip=clip, structure={})


def _small(prediction: Prediction) -> Prediction:
  """Keeps only the middle image, at the size in which it is returned."""
  images = prediction.clip.images
  image = video.bound(images[len(images) // 2], _SHOWN)
  return prediction._replace(clip=prediction.clip._replace(images=[image]))


def _picture(
    prediction: Prediction, heatmap: bool, blur: bool
) -> dict[str, Any]:
  (image,) = _small(prediction).clip.images
  answer = {'seconds': prediction.clip.seconds}
  if blur:
    image, answer['hidden'] = faces.hide(image)
  if heatmap:
    image = viz.overlay_structure(
        image, prediction.structure, prediction.input_size
    )
  data = cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()
  code = base64.b64encode(data).decode()
  return {**answer, 'image': f'data:image/jpeg;base64,{code}'}
