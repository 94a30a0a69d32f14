"""The evaluation of one split: every sample once, on all processes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import sharding
from vemd_jax.metrics import Metrics


def evaluate(
    eval_step: Callable,
    variables: Any,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    mesh: jax.sharding.Mesh,
    dataset: str,
    step: int,
) -> tuple[Metrics, tuple[Any, Any]]:
  """Sums the metrics of a split and keeps its first batch for pictures.

  Args:
    eval_step: jitted, of `step.make_eval_step`.
    variables: what the model takes.
    batches: this process's share of the split; equally many on each process.
    mesh: where the batches go.
    dataset: whose head to use.
    step: steps trained, for the schedules of the loss terms.

  Returns:
    (metrics of the whole split, (outputs, batch) of the first batch).
  """
  metrics, first = None, None
  step_array = jax.device_put(
      jnp.asarray(step, jnp.int32), sharding.replicated(mesh)
  )
  for batch in batches:
    new, outputs, batch = eval_step(
        variables, sharding.put_batch(batch, mesh), step_array, dataset
    )
    metrics = new if metrics is None else metrics.merge(new)
    first = first or (outputs, batch)
  return metrics, first
