"""Loads a trained run: config, classes, module and weights."""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import config as config_lib
from vemd_jax import weights
from vemd_jax.models.outputs import Outputs
from vemd_jax.models.vemd import VEMD


class Trained(NamedTuple):
  """The best checkpoint of a run.

  Attributes:
    config: config of the run.
    data: `config.data` of the dataset whose emotion head is used.
    dataset: name of that dataset.
    classes: names of its C classes.
    model: VEMD.
    variables: variables for `model.apply`.
    step: training step of the checkpoint.
  """

  config: ConfigDict
  data: ConfigDict
  dataset: str
  classes: tuple[str, ...]
  model: VEMD
  variables: dict[str, Any]
  step: int

  def apply(self, variables: Any, image: jax.Array) -> Outputs:
    """Runs the model: uint8 [B, T, S, S, 3] -> `Outputs`; a pure function."""
    return self.model.apply(
        variables, {'image': image}, dataset=self.dataset, train=False
    )


def load(workdir: epath.PathLike, dataset: str = '') -> Trained:
  """Loads the best checkpoint of a run.

  Args:
    workdir: workdir of the run.
    dataset: dataset whose emotion head is used; required if the model has
      several heads.

  Returns:
    The parts of the run.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint.
    ValueError: if `dataset` does not identify a single emotion head.
  """
  if '://' not in str(workdir) and not os.path.isdir(workdir):
    raise FileNotFoundError(f"no folder {workdir}; expected a run's workdir")
  workdir = epath.Path(workdir).absolute()
  config = config_lib.load(workdir / 'config.json')
  variables, step = weights.restore_step(workdir)
  classes = {
      name: tuple(names)
      for name, names in json.loads(
          (workdir / 'classes.json').read_text()
      ).items()
  }
  heads = {name: names for name, names in classes.items() if names}
  dataset = choose_head(tuple(heads), dataset)
  model = VEMD(
      **config.model.to_dict(),
      classes=tuple((name, len(names)) for name, names in classes.items()),
  )
  return Trained(
      config=config,
      data=config_lib.datasets(config)[dataset],
      dataset=dataset,
      classes=heads[dataset],
      model=model,
      variables=variables,
      step=step,
  )


def choose_head(heads: Sequence[str], wanted: str) -> str:
  """Selects the emotion head to use.

  Args:
    heads: datasets for which the model has an emotion head.
    wanted: one of them; may be empty if there is only one.

  Returns:
    The dataset of the head.

  Raises:
    ValueError: if there is no such head, or several and `wanted` is empty.
  """
  if not heads:
    raise ValueError('this model has no emotion head, only structure')
  if not wanted and len(heads) == 1:
    return heads[0]
  if wanted not in heads:
    given = f'has no dataset {wanted!r}' if wanted else 'has several heads'
    raise ValueError(f'the model {given}: --dataset={"|".join(heads)}')
  return wanted
