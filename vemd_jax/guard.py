"""Handling of non-finite losses and loss spikes, set by `config.faults`.

Faults are detected, and updates skipped, inside the jitted step. The host reads
the flags together with the metrics, at each progress line and before each
checkpoint, so that no step waits for the device.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vemd_jax.state import TrainState

ACTIONS = ('stop', 'skip', 'rewind')
# Scalars of a step that are no measurements.
FLAGS = ('spike', 'in_row', 'unreadable')
# Decay of the running mean of a dataset's loss, and the number of steps after
# which losses are compared with it.
MEAN_DECAY, MEAN_STEPS = 0.99, 100


class Rewind(Exception):
  """Requests a return to the last checkpoint and other data.

  Attributes:
    step: step of the fault.
    batch: index of its batch in the order of the data.
  """

  def __init__(self, step: int, batch: int):
    super().__init__(f'step {step}, batch {batch}')
    self.step, self.batch = step, batch


def initial(settings: ConfigDict, datasets: Iterable[str]) -> dict[str, Any]:
  """The initial state of the guard.

  Args:
    settings: `config.faults`.
    datasets: names of the datasets.

  Returns:
    {} if the jitted step performs no checks; otherwise `in_row`, the number of
    consecutive skipped updates, and for each dataset the running mean of the
    `loss` and the number of `steps` that it includes.
  """
  if settings.not_finite != 'skip' and settings.spike == 'ignore':
    return {}
  return {
      'in_row': jnp.zeros((), jnp.int32),
      'loss': {name: jnp.zeros((), jnp.float32) for name in datasets},
      'steps': {name: jnp.zeros((), jnp.int32) for name in datasets},
  }


def judge(
    settings: ConfigDict,
    old: TrainState,
    new: TrainState,
    metrics: Any,
    scalars: Mapping[str, jax.Array],
    dataset: str,
    restart: jax.Array | bool = False,
) -> tuple[TrainState, Any, dict[str, jax.Array]]:
  """Detects faults of a step and skips its update; part of the jitted step.

  Args:
    settings: `config.faults`.
    old: state before the step, with `guard` from `initial`.
    new: state after the step.
    metrics: metrics of the batch.
    scalars: loss and norms.
    dataset: dataset of the batch.
    restart: whether to reset the running means, because a phase with other
      loss weights starts at this step.

  Returns:
    (state, metrics, scalars), unchanged if `initial` returned {}. A skipped
    update changes nothing in the state but the step, not even the step count
    of the optimizer, and its metrics are zero. `spike` and `in_row`, the number
    of consecutive skipped updates, are added to the scalars.
  """
  if not old.guard:
    return new, metrics, dict(scalars)
  loss = scalars['loss'].astype(jnp.float32)
  counts = jax.tree.map(
      lambda count: jnp.where(restart, 0, count), old.guard['steps']
  )
  mean, steps = old.guard['loss'][dataset], counts[dataset]
  finite = jnp.all(jnp.isfinite(jnp.stack(list(scalars.values()))))
  spike = finite & (steps >= MEAN_STEPS) & (
      loss > settings.spike_factor * mean
  )
  if settings.spike == 'ignore':
    spike = jnp.zeros_like(spike)
  out = jnp.zeros_like(spike)
  if settings.not_finite == 'skip':
    out |= ~finite
  if settings.spike == 'skip':
    out |= spike
  kept = jax.tree.map(lambda a, b: jnp.where(out, a, b), old, new)
  # The plain mean of the first steps, then an exponential moving average.
  share = jnp.maximum(1 - MEAN_DECAY, 1 / (steps + 1).astype(jnp.float32))
  usual = finite & ~spike
  in_row = jnp.where(out, old.guard['in_row'] + 1, 0)
  state = kept.replace(
      step=new.step,
      guard={
          'in_row': in_row,
          'loss': {
              **old.guard['loss'],
              dataset: jnp.where(usual, mean + share * (loss - mean), mean),
          },
          'steps': {
              **counts,
              dataset: steps + usual.astype(jnp.int32),
          },
      },
  )
  metrics = jax.tree.map(lambda x: jnp.where(out, 0, x), metrics)
  return state, metrics, {**scalars, 'spike': spike, 'in_row': in_row}


def react(
    settings: ConfigDict,
    steps: Iterable[tuple[int, str, Mapping[str, Any]]],
    ahead: int,
    samples: Callable[[int], list[str]],
) -> None:
  """Handles the faults of steps on the host.

  Args:
    settings: `config.faults`.
    steps: (step, dataset, scalars on the host), in order.
    ahead: offset of the data from the step after earlier rewinds: step s has
      consumed batch s + ahead.
    samples: index of a batch -> names of its samples, which are logged.

  Raises:
    FloatingPointError: if the run must stop; names step, dataset and values.
    Rewind: if the run must return to the last checkpoint.
  """
  for step, name, scalars in steps:
    numbers = {
        k: float(v) for k, v in scalars.items() if k not in FLAGS
    }
    if not all(map(np.isfinite, numbers.values())):
      what, action = 'not finite', settings.not_finite
    elif scalars.get('spike', False):
      what, action = 'a spike of the loss', settings.spike
    else:
      continue
    values = ', '.join(f'{k} {v:.6g}' for k, v in numbers.items())
    message = f'{what} at step {step}, dataset {name}: {values}'
    logging.warning(
        '%s (%s); samples of its batch: %s',
        message, action, ', '.join(samples(step + ahead)),
    )  # fmt: skip
    if action == 'rewind':
      raise Rewind(step, step + ahead)
    if action == 'stop':
      raise FloatingPointError(
          f'{message}; the last checkpoint is from an earlier step; the log '
          'lists the samples; config.faults can skip such steps instead'
      )
    if scalars['in_row'] > settings.limit:
      raise FloatingPointError(
          f'{message}; {int(scalars["in_row"])} updates in a row were '
          f'skipped, more than config.faults.limit = {settings.limit} allows'
      )
