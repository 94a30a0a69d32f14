"""What a run carries from step to step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vemd_jax import rng


@flax.struct.dataclass
class TrainState:
  """No keys, no Python objects: arrays only.

  Attributes:
    step: int32 scalar, steps done.
    params: the trained parameters.
    frozen: the parameters that are not trained, kept out of the optimizer;
      their matrices in the dtype of the computation.
    batch_stats: running statistics.
    ema: moving average of `params`, or {} without one.
    opt_state: the optimizer's state, by dataset name where each has its own,
      else under 'all'.
  """

  step: jax.Array
  params: Any
  frozen: Any
  batch_stats: Any
  ema: Any
  opt_state: Any

  def variables(self, averaged: bool = False) -> dict[str, Any]:
    """What `model.apply` takes; with the moving average where asked."""
    params = self.ema if averaged and self.ema else self.params
    return {
        'params': {**params, **self.frozen},
        'batch_stats': self.batch_stats,
    }


def split_frozen(params: Any, frozen: tuple[str, ...]) -> tuple[Any, Any]:
  """Parts parameters by the names of their top-level modules.

  Args:
    params: the model's parameters.
    frozen: names of modules that are not trained.

  Returns:
    (trained, frozen).
  """
  return (
      {k: v for k, v in params.items() if k not in frozen},
      {k: v for k, v in params.items() if k in frozen},
  )


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    batch: Any,
    *,
    seed: int,
    frozen: tuple[str, ...] = (),
    ema: bool = False,
    groups: tuple[str, ...] = ('all',),
    frozen_dtype: str = 'float32',
) -> TrainState:
  """A fresh state; pure, so that it can be traced for shapes or sharded.

  Args:
    model: called as `model(batch, dataset=..., train=False)`.
    optimizer: of `vemd_jax.optim`.
    batch: an example batch; only shapes matter.
    seed: of the run.
    frozen: top-level modules that are not trained.
    ema: whether to keep a moving average.
    groups: names of the optimizer states.
    frozen_dtype: of the frozen matrices. The computation casts them to its own
      dtype anyway, so that keeping them in it changes no result.

  Returns:
    The state at step 0.
  """
  variables = model.init(
      {'params': rng.named(seed, 'params')},
      batch,
      dataset=model.classes[0][0],
      train=False,
  )
  params, rest = split_frozen(variables['params'], frozen)
  rest = jax.tree.map(
      lambda x: x.astype(frozen_dtype) if x.ndim > 1 else x, rest
  )
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      frozen=rest,
      batch_stats=variables.get('batch_stats', {}),
      # A copy: the step donates every buffer, and none may be donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else {},
      opt_state={group: optimizer.init(params) for group in groups},
  )
