"""Frozen ViT features of every frame, cached beside the data.

`vemd_jax.cache_features` fills `DIR/vit_cache/`. A row's features belong to its
content, to the weights of the ViT, and to the evaluation transform; where one
of them is another, reading stops with an error. They are stored in float32: a
run that reads them and one that runs the ViT see the same numbers, but the
former always those of the image as evaluation sees it, not of a random crop.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vemd_jax.data import feature_cache, video

CACHE = 'vit_cache'
COMMAND = 'python -m vemd_jax.cache_features'

Record = Mapping[str, Any]


def content_key(record: Record, frames: int, settings: Mapping) -> str:
  """Hash of a row's images and of what their features are made with.

  Args:
    record: with `frames`, encoded or not, or `video`, the path of a video.
    frames: T, that many are used.
    settings: plain JSON, what the features depend on besides the images.

  Returns:
    32 hexadecimal digits.

  Raises:
    OSError: the video cannot be read.
  """
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  if 'video' in record:
    with open(record['video'], 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  else:
    # As `decoding.decode` chooses them.
    for i in video.spread(len(record['frames']), frames):
      frame = record['frames'][i]
      if isinstance(frame, np.ndarray):
        digest.update(repr(frame.shape).encode())
        frame = frame.tobytes()
      digest.update(hashlib.sha256(frame).digest())
  return digest.hexdigest()[:32]


def check(made_with: Mapping, wanted: Mapping, where: str) -> None:
  """Compares what a cache was made with and what a run needs.

  Args:
    made_with: settings of the cache.
    wanted: some of them, as they are in the run.
    where: the folder of the data, for the message.

  Raises:
    ValueError: names what differs.
  """
  wrong = [
      f'{key} {made_with.get(key)!r}, the run has {value!r}'
      for key, value in json.loads(json.dumps(dict(wanted))).items()
      if made_with.get(key) != value
  ]
  if wrong:
    raise ValueError(
        f'the ViT features in {pathlib.Path(where) / CACHE} were made with '
        f'{"; ".join(wrong)}. Make them again with {COMMAND} --overwrite and '
        "the run's own --config arguments, or set config.data.vit_dim=0"
    )


def features(data: str | pathlib.Path, **wanted: Any) -> 'Features':
  """The look-up that sources use: record -> float32 [T, E] or None.

  Args:
    data: folder of the dataset.
    **wanted: settings that the cache must have.

  Returns:
    The look-up.

  Raises:
    FileNotFoundError: the cache has not been made.
    ValueError: it was made with other settings.
  """
  stored = feature_cache.Features(
      pathlib.Path(data) / CACHE,
      f"{COMMAND} and the run's own --config arguments",
  )
  check(stored.made_with, wanted, str(data))
  return Features(stored, str(data))


class Features:
  """Looks up the features of a record by file name, and checks its content.

  Attributes:
    made_with: the settings.
  """

  def __init__(self, stored: feature_cache.Features, data: str):
    self.made_with = stored.made_with
    self._stored, self._data = stored, data

  def missing(self, files: Sequence[str]) -> list[str]:
    """Those that have no features."""
    return [file for file in files if self._stored.key(file) is None]

  def __call__(self, record: Record) -> np.ndarray | None:
    """Features [T, E]; None where the row could not be read."""
    key = self._stored.key(record['file'])
    if key is None:
      return None
    frames = self.made_with['frames']
    if key != content_key(record, frames, self.made_with):
      raise ValueError(
          f'{self._data}: {record["file"]} is not what it was when its ViT '
          f'features were cached; run {COMMAND} again'
      )
    return self._stored(record['file'])
