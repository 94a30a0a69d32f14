"""The TFDS builder that writes prepared data, with one config per dataset.

TFDS works without TensorFlow in the array_record format if images are passed as
encoded bytes, and nested lists as flat values with their counts.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vemd_jax.data import datasets
from vemd_jax.prepare import audio

NOT_ANNOTATED = -1


class Vemd(tfds.core.GeneratorBasedBuilder):
  """Builder of prepared datasets; configs are named like the datasets."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012, TFDS wants a list
      tfds.core.BuilderConfig(name=d.name, description=d.title)
      for d in datasets.DATASETS.values()
  ]

  def __init__(
      self,
      examples: Mapping[str, Callable[[], Iterator[Mapping[str, Any]]]],
      **kwargs: Any,
  ):
    """Creates the builder.

    Args:
      examples: split -> iterator over results of `encode.encode_sample`.
      **kwargs: passed to the base class; `config` names the dataset.
    """
    self._examples = examples
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    tensor, text = tfds.features.Tensor, tfds.features.Text
    numbers = tensor(shape=(None,), dtype=np.int32)
    return tfds.core.DatasetInfo(
        builder=self,
        # Samples stay in the order of index.jsonl.
        disable_shuffling=True,
        features=tfds.features.FeaturesDict({
            'file': text(),
            'label': tfds.features.Scalar(np.int32),
            'label_multi_hot': numbers,
            # Encoded JPEGs: an Image feature would require TensorFlow to read a
            # sequence of them without decoding.
            'frames': tfds.features.Sequence(text()),
            'bodies': tensor(shape=(None, 17, 3), dtype=np.float32),
            'faces': tensor(shape=(None, 68, 3), dtype=np.float32),
            'num_bodies': tfds.features.Scalar(np.int32),
            'num_faces': tfds.features.Scalar(np.int32),
            'ignore_boxes': tensor(shape=(None, 4), dtype=np.float32),
            'transcript': text(),
            'audio': tensor(shape=(None, audio.BANDS), dtype=np.float32),
        }),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {s: self._generate_examples(s) for s in self._examples}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    for i, e in enumerate(self._examples[split]()):
      sound = np.zeros((0, audio.BANDS), np.float32)
      if e['audio'] is not None:
        data, shape = e['audio']
        sound = np.frombuffer(data, '<f4').reshape(shape).astype(np.float32)
      bodies, num_bodies = _people(e['bodies'], 17)
      faces, num_faces = _people(e['faces'], 68)
      yield i, {
          'file': e['file'],
          'label': e['label'],
          'label_multi_hot': np.array(e['label_multi_hot'], np.int32),
          'frames': e['frames'],
          'bodies': bodies,
          'faces': faces,
          'num_bodies': num_bodies,
          'num_faces': num_faces,
          'ignore_boxes': np.array(e['ignore_boxes'], np.float32).reshape(
              -1, 4
          ),
          'transcript': e['transcript'],
          'audio': sound,
      }


def _people(rows: list[list[float]] | None, points: int):
  """Keypoints [n, points, 3] and their number, -1 where not annotated."""
  if rows is None:
    return np.zeros((0, points, 3), np.float32), NOT_ANNOTATED
  people = np.array(rows, np.float32).reshape(-1, points, 3)
  return people, len(people)
