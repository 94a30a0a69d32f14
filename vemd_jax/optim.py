"""Builds the optimizer of a config as an optax chain."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vemd_jax import import_path
from vemd_jax.phases import Phase


def make_schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate schedule: linear warm-up, then `optim.schedule`.

  Args:
    optim: `config.optim`.
    steps: number of steps of the run, or of the phase.

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
    steps: number of steps of the run.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if there is no such optimizer, or it rejects the kwargs.
  """
  return _chain(optim, make_schedule(optim, steps))


def _chain(
    optim: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
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


class PhasedState(NamedTuple):
  """State of an optimizer that is reset at the start of each phase.

  Attributes:
    phase: int32, index of the phase that `inner` belongs to.
    inner: optimizer state.
  """

  phase: jax.Array
  inner: Any


def make_phased_optimizer(
    optim: ConfigDict, phases: Sequence[Phase]
) -> optax.GradientTransformationExtraArgs:
  """Builds an optimizer whose state is reset at the start of each phase.

  Args:
    optim: `config.optim`; each phase may override some of its keys.
    phases: phases from `phases.parse`.

  Returns:
    The gradient transformation; its update takes `phase`, the index of the
    current phase. With a single phase it equals `make_optimizer`.

  Raises:
    ValueError: see `make_optimizer`.
  """
  schedules = _schedules(optim, phases)
  first = _chain(optim, schedules[0])
  if len(phases) == 1:
    return optax.with_extra_args_support(first)

  def init(params):
    return PhasedState(jnp.zeros((), jnp.int32), first.init(params))

  def update(grads, state, params, *, phase):
    inner = jax.tree.map(
        lambda fresh, old: jnp.where(phase == state.phase, old, fresh),
        first.init(params),
        state.inner,
    )

    def schedule(count):
      rates = [jnp.asarray(s(count), jnp.float32) for s in schedules]
      return jnp.stack(rates)[phase]

    # The chain of `first`, with the schedule of the current phase.
    updates, inner = _chain(optim, schedule).update(grads, inner, params)
    return updates, PhasedState(phase, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def of_phase(optim: ConfigDict, phase: Phase) -> ConfigDict:
  """`config.optim` with the overrides of a phase."""
  settings = optim.copy_and_resolve_references()
  settings.update(phase.optim)
  return settings


def _schedules(
    optim: ConfigDict, phases: Sequence[Phase]
) -> list[optax.Schedule]:
  """The schedule of each phase, over the steps of the phase."""
  return [make_schedule(of_phase(optim, p), p.steps) for p in phases]


def make_learning_rate(
    optim: ConfigDict, phases: Sequence[Phase]
) -> Callable[[int], float]:
  """Builds the learning rate as a function of the step of the run.

  Args:
    optim: `config.optim`.
    phases: phases from `phases.parse`.

  Returns:
    Step of the run, from 0 -> learning rate.
  """
  schedules = _schedules(optim, phases)

  def learning_rate(step: int) -> float:
    index = max(i for i, p in enumerate(phases) if p.start <= step)
    return float(schedules[index](step - phases[index].start))

  return learning_rate
