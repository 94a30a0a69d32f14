"""Builds the optimizer of a config as an optax chain."""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from vemd_jax import import_path


def make_schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate schedule: linear warm-up, then `optim.schedule`.

  Args:
    optim: `config.optim`.
    steps: of the whole run.

  Returns:
    step -> learning rate.
  """
  warmup = min(optim.warmup_steps, steps // 2)
  rest = max(steps - warmup, 1)
  peak = optim.learning_rate
  after = {
      'constant': lambda: optax.constant_schedule(peak),
      'cosine': lambda: optax.cosine_decay_schedule(peak, rest),
      'linear': lambda: optax.linear_schedule(peak, 0.0, rest),
  }[optim.schedule]()
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def adam(
    optim: ConfigDict, schedule: optax.Schedule
) -> tuple[optax.GradientTransformation, ...]:
  """Adam.

  Args:
    optim: `config.optim`.
    schedule: step -> learning rate.

  Returns:
    Transformations to be chained. (Returning a chain would nest the optimizer
    state, and checkpoints of earlier versions could not be restored.)
  """
  return (
      optax.scale_by_adam(b1=optim.b1, b2=optim.b2),
      optax.scale_by_learning_rate(schedule),
  )


def adamw(
    optim: ConfigDict, schedule: optax.Schedule
) -> tuple[optax.GradientTransformation, ...]:
  """AdamW with weight decay on kernels and embeddings, not norms and biases.

  Args:
    optim: `config.optim`.
    schedule: step -> learning rate.

  Returns:
    Transformations to be chained.
  """
  return (
      optax.scale_by_adam(b1=optim.b1, b2=optim.b2),
      optax.add_decayed_weights(
          optim.weight_decay,
          mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
      ),
      optax.scale_by_learning_rate(schedule),
  )


OPTIMIZERS: dict[str, Callable] = {'adam': adam, 'adamw': adamw}


def make_optimizer(
    optim: ConfigDict, steps: int
) -> optax.GradientTransformation:
  """Gradient clipping by global norm, then the optimizer with its schedule.

  Args:
    optim: `config.optim`; `name` is a key of `OPTIMIZERS`, or the import path
      of a function such as `optax:lion`, which is called with `learning_rate`
      (the schedule) and `optim.kwargs`.
    steps: of the whole run.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if there is no such optimizer, or it rejects the kwargs.
  """
  schedule = make_schedule(optim, steps)
  make = import_path.find(optim.name, OPTIMIZERS, 'config.optim.name')
  if import_path.is_path(optim.name):
    try:
      core = (make(learning_rate=schedule, **optim.kwargs),)
    except TypeError as error:
      raise ValueError(f'config.optim.name {optim.name!r}: {error}') from error
  else:
    core = make(optim, schedule)
  clip = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
  return optax.chain(*clip, *core)
