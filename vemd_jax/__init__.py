"""VE-MD in JAX and Flax: group emotion recognition.

`load` returns a trained model as a function; `build` returns the model, initial
variables, a batch and the loss of a config. Both import JAX only when called.

Dimension names used throughout the package:

  B batch          T frames           H W image height, width
  P people         K joints           h w heatmap or latent height, width
  L limbs          Q queries          D latent channels
  C classes        S decoder stages   E embedding channels
"""

from typing import Any

__version__ = '0.1.0'


def load(workdir: Any, dataset: str = '') -> Any:
  """Loads a trained model as a function from images to class probabilities.

  Args:
    workdir: workdir of the run; its best checkpoint is read.
    dataset: dataset whose emotion head is used; required if the model has
      several heads.

  Returns:
    `vemd_jax.inference.Model`: `config`, `classes`, `prepare` (resizes images
    to the model's input size), `probabilities` (jitted, pure:
    uint8 [B, T, S, S, 3] to [B, C]) and `outputs` (with decoded structure).

  Raises:
    FileNotFoundError: if there is no run or no checkpoint.
    ValueError: if `dataset` does not identify a single emotion head.
  """
  from vemd_jax import inference

  return inference.load(workdir, dataset)


def build(config: Any) -> Any:
  """Builds the model, initial variables, a batch and the loss of a config.

  Args:
    config: config of a recipe, such as `configs.group_scenes.get_config()`.

  Returns:
    `vemd_jax.run.Experiment`: `model`, `variables`, `batch`, `loss`.

  Raises:
    ValueError: if the config or the data are invalid.
    FileNotFoundError: if the data are missing.
  """
  from vemd_jax import run

  return run.build(config)
