"""VE-MD in JAX and Flax: group emotion recognition.

`load` gives a trained run as a function; `build` gives model, variables, a
batch and the loss of a config. Both import JAX only when they are called.

Letters used for dimensions everywhere:

  B batch          T frames           H W image height, width
  P people         K joints           h w heatmap or latent height, width
  L limbs          Q queries          D latent channels
  C classes        S decoder stages   E embedding channels
"""

from typing import Any

__version__ = '0.1.0'


def load(workdir: Any, dataset: str = '') -> Any:
  """A trained run as a function from images to the group's probabilities.

  Args:
    workdir: of the run; its best checkpoint is read.
    dataset: which emotion head, for a model that has several.

  Returns:
    `vemd_jax.inference.Model`: `config`, `classes`, `prepare` (images of any
    size to the model's), `probabilities` (jitted, pure: uint8 [B, T, S, S, 3]
    to [B, C]) and `outputs` (with the decoded structure).

  Raises:
    FileNotFoundError: if there is no run or no checkpoint.
    ValueError: if the dataset does not say which head to use.
  """
  from vemd_jax import inference

  return inference.load(workdir, dataset)


def build(config: Any) -> Any:
  """Model, initial variables, a batch and the loss of a config.

  Args:
    config: of a recipe, such as `configs.group_scenes.get_config()`.

  Returns:
    `vemd_jax.run.Experiment`: `model`, `variables`, `batch`, `loss`.

  Raises:
    ValueError: for a config or data that cannot be used.
    FileNotFoundError: if the data are not there.
  """
  from vemd_jax import run

  return run.build(config)
