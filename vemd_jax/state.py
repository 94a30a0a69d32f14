"""The training state: parameters, statistics and optimizer state."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vemd_jax import rng


@flax.struct.dataclass
class TrainState:
  """State that a training step updates; a pytree of arrays, without rng keys.

  Attributes:
    step: int32 scalar, number of steps done.
    params: trained parameters.
    frozen: parameters that are not trained and have no optimizer state; their
      matrices are stored in the compute dtype.
    batch_stats: running statistics.
    ema: moving average of `params`, or {} if there is none.
    opt_state: optimizer state by dataset name if each dataset has its own, else
      under 'all'.
    guard: state of `vemd_jax.guard`, or {} if there is none.
  """

  step: jax.Array
  params: Any
  frozen: Any
  batch_stats: Any
  ema: Any
  opt_state: Any
  guard: Any

  def variables(self, averaged: bool = False) -> dict[str, Any]:
    """Variables for `model.apply`.

    Args:
      averaged: use the moving average of the parameters, if there is one.

    Returns:
      {'params': …, 'batch_stats': …}.
    """
    params = self.ema if averaged and self.ema else self.params
    return {
        'params': {**params, **self.frozen},
        'batch_stats': self.batch_stats,
    }


def split_frozen(params: Any, frozen: tuple[str, ...]) -> tuple[Any, Any]:
  """Splits parameters by the names of their top-level modules.

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
    guard: Any = None,
) -> TrainState:
  """Creates the initial state; pure, so that it can be traced and sharded.

  Args:
    model: called as `model(batch, dataset=..., train=False)`.
    optimizer: optimizer from `vemd_jax.optim`.
    batch: an example batch; only its shapes are used.
    seed: seed of the run.
    frozen: top-level modules that are not trained.
    ema: whether to keep a moving average of the parameters.
    groups: names of the optimizer states.
    frozen_dtype: dtype of the frozen matrices. Layers cast them to the compute
      dtype anyway, so storing them in it does not change results.
    guard: initial value of `guard`.

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
      # Copied, since the train step donates its buffers and a buffer cannot be
      # donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else {},
      opt_state={group: optimizer.init(params) for group in groups},
      guard=guard or {},
  )
