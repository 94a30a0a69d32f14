"""Frozen ViT features of every frame, cached beside the data.

`vemd_jax.cache_features` fills `DIR/vit_cache/`. A row's features depend on its
content, the weights of the ViT and the evaluation transform; if one of them has
changed, reading raises an error. They are stored in float32, so that a run that
reads them sees the same numbers as one that runs the ViT, but always for the
evaluation view of the image rather than a random crop.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vemd_jax.data import feature_cache, files, video

CACHE = 'vit_cache'
COMMAND = 'python -m vemd_jax.cache_features'

Record = Mapping[str, Any]


def content_key(record: Record, frames: int, settings: Mapping) -> str:
  """Hash of a row's images and of the settings of their features.

  Args:
    record: with `frames`, encoded or not, or `video`, the path of a video.
    frames: number of frames used, T.
    settings: what the features depend on besides the images, plain JSON.

  Returns:
    32 hexadecimal digits.

  Raises:
    OSError: the video cannot be read.
  """
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  if 'video' in record:
    with files.open_binary(record['video']) as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  else:
    # The same frames as `decoding.decode` selects.
    for i in video.spread(len(record['frames']), frames):
      frame = record['frames'][i]
      if isinstance(frame, np.ndarray):
        digest.update(repr(frame.shape).encode())
        frame = frame.tobytes()
      digest.update(hashlib.sha256(frame).digest())
  return digest.hexdigest()[:32]


def check(made_with: Mapping, wanted: Mapping, where: str) -> None:
  """Checks that a cache has the settings that a run needs.

  Args:
    made_with: settings of the cache.
    wanted: the run's values of some of them.
    where: the folder of the data, for the message.

  Raises:
    ValueError: settings differ; the message names them.
  """
  wrong = [
      f'{key} {made_with.get(key)!r}, the run has {value!r}'
      for key, value in json.loads(json.dumps(dict(wanted))).items()
      if made_with.get(key) != value
  ]
  if wrong:
    raise ValueError(
        f'the ViT features in {pathlib.Path(where) / CACHE} were made with '
        f'{"; ".join(wrong)}. Recompute them with {COMMAND} --overwrite and '
        "the run's own --config arguments, or set config.data.vit_dim=0"
    )


def features(data: str | pathlib.Path, **wanted: Any) -> 'Features':
  """Opens the cache for look-ups: record -> float32 [T, E] or None.

  Args:
    data: folder of the dataset.
    **wanted: settings that the cache must have.

  Returns:
    The look-up.

  Raises:
    FileNotFoundError: there is no cache.
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
    """The files that have no features."""
    return [file for file in files if self._stored.key(file) is None]

  def __call__(self, record: Record) -> np.ndarray | None:
    """Features [T, E]; None where the row could not be read."""
    key = self._stored.key(record['file'])
    if key is None:
      return None
    frames = self.made_with['frames']
    if key != content_key(record, frames, self.made_with):
      raise ValueError(
          f'{self._data}: {record["file"]} has changed since its ViT features '
          f'were cached; run {COMMAND} again'
      )
    return self._stored(record['file'])
