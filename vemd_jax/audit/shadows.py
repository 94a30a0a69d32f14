"""Shadow models: the run's recipe, trained on known halves of the data."""

from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from scipy import special

from vemd_jax import import_path, train
from vemd_jax.audit import membership, taps
from vemd_jax.data import sources
from vemd_jax.inference import trained as trained_lib

_SOURCE = 'vemd_jax.audit.shadows:source'


class Shadows(NamedTuple):
  """What shadow models say about each picture.

  Attributes:
    log_odds: [m, n] of the true class.
    inside: [m, n] bool, whether the model was trained with the picture.
  """

  log_odds: np.ndarray
  inside: np.ndarray


def halves(count: int, number: int) -> np.ndarray:
  """The pictures that a shadow model is trained with.

  Args:
    count: n, number of pictures of the training and the test split.
    number: number of the shadow model; 2 k and 2 k + 1 have opposite halves,
      so that each picture is in exactly half of an even number of models.

  Returns:
    [n] bool.
  """
  order = np.random.default_rng((7, number // 2)).permutation(count)
  return (order < count // 2) ^ bool(number % 2)


def source(data: Any, split: str) -> Any:
  """Opens a half of a dataset, see `config.data.source`.

  Args:
    data: settings; `source_kwargs` has `source`, that of the audited run, and
      `number`, that of the shadow model.
    split: 'train' for the half that the model is trained with, else the rest.

  Returns:
    The samples.
  """
  original = data.source_kwargs.source
  make = import_path.find(original, sources.SOURCES, 'config.data.source')
  parts = [make(data, name) for name in ('train', 'val')]
  inside = halves(sum(map(len, parts)), data.source_kwargs.number)
  return _Half(parts, np.flatnonzero(inside == (split == 'train')))


class _Half:
  """Some samples of the training and the test split together."""

  def __init__(self, parts: list, chosen: np.ndarray):
    self._parts, self._chosen = parts, chosen
    self.classes = parts[0].classes
    self.labels = np.concatenate([p.labels for p in parts])[chosen]
    names = [getattr(p, 'files', None) or [''] * len(p) for p in parts]
    names = [name for part in names for name in part]
    self.files = [names[i] for i in chosen]

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = int(self._chosen[index])
    first = len(self._parts[0])
    part = self._parts[index >= first]
    return part[index - first * (index >= first)]


def make_config(
    config: ConfigDict, data: ConfigDict, number: int, steps: int
) -> ConfigDict:
  """The config of a shadow model: the run's, with half of the data.

  Args:
    config: config of the audited run.
    data: its data settings.
    number: number of the shadow model.
    steps: number of training steps.

  Returns:
    The config.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.mode, config.steps, config.seed = 'train', steps, 1000 + number
    config.data = data.copy_and_resolve_references()
    config.data.unlock()
    config.data.source_kwargs = {'source': data.source, 'number': number}
    config.data.update(source=_SOURCE, holdout=0.0, test_split='', cache=True)
    config.eval.every = 0
    config.pictures.people = 'off'
    config.checkpoint.every = steps
    config.loggers = ()
    if config.phases:
      raise ValueError(
          'shadow models of a run with phases are not supported: their steps '
          'cannot be reduced; use --shadows=0'
      )
  return config.lock()


def run(
    workdir: epath.Path,
    config: ConfigDict,
    data: ConfigDict,
    samples: tuple[taps.Samples, taps.Samples],
    sizes: tuple[int, int],
    count: int,
    steps: int,
) -> Shadows:
  """Trains shadow models; those that exist already are not trained again.

  Args:
    workdir: folder for their workdirs.
    config: config of the audited run.
    data: its data settings.
    samples: samples of the training and the test split.
    sizes: number of samples of each split, including unreadable ones.
    count: number of shadow models, even.
    steps: number of training steps of each.

  Returns:
    Their log odds, for the samples of both splits in order.

  Raises:
    ValueError: if the run has several datasets, or unreadable samples.
  """
  if config.mixture:
    raise ValueError(
        'shadow models of a run with several datasets are not supported; use '
        '--shadows=0'
    )
  if sizes != tuple(len(s.labels) for s in samples):
    raise ValueError(
        'shadow models need data in which all samples are readable; '
        'vemd check lists the others'
    )
  labels = np.concatenate([s.labels for s in samples])
  odds, inside = [], []
  for number in range(count):
    folder = workdir / f'{steps}_steps' / str(number)
    logging.info('Shadow model %d of %d', number + 1, count)
    train.train_and_evaluate(
        make_config(config, data, number, steps), folder
    )
    shadow = trained_lib.load(folder)
    found = [
        taps.collect(shadow, data, split, None, ('logits',)).taps['logits']
        for split in ('train', 'val')
    ]
    p = special.softmax(np.concatenate(found).astype(np.float64), 1)
    odds.append(membership.log_odds(p, np.maximum(labels, 0)))
    inside.append(halves(len(labels), number))
  return Shadows(np.stack(odds), np.stack(inside))
