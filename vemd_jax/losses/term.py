"""The types of loss terms, and helpers that several terms share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vemd_jax import skeletons
from vemd_jax.models.outputs import Outputs, Structure

Batch = Mapping[str, jax.Array]


class Term(NamedTuple):
  """The result of a loss term for a batch.

  Attributes:
    values: [B] float32, one value per example.
    mask: [B] bool, or a weight >= 0 per example.
  """

  values: jax.Array
  mask: jax.Array


class Sums(NamedTuple):
  """Sums of a loss term over a batch, for the metrics.

  Attributes:
    total: sum of the values times the mask.
    count: sum of the mask.
    weight: weight of the term at this step.
  """

  total: jax.Array
  count: jax.Array
  weight: jax.Array


class Weighted(NamedTuple):
  """A loss term with the settings of a recipe.

  Attributes:
    name: name under which it is reported.
    fn: the function of the term.
    weight: weight in the total loss after the warm-up, as pairs of first step
      and weight; the first pair starts at step 0.
    schedule: 'constant' or 'cyclic', after the warm-up.
    warmup_steps: number of steps over which the weight rises from 0, counted
      from the first step with a weight.
    kwargs: (name, value) pairs of keyword arguments of the function.
  """

  name: str
  fn: Callable[..., Term]
  weight: tuple[tuple[int, float], ...]
  schedule: str
  warmup_steps: int
  kwargs: tuple[tuple[str, Any], ...]


def f32(values) -> jax.Array:
  return jnp.asarray(values, jnp.float32)


def real(batch: Batch) -> jax.Array:
  """[B] bool, False for padding and for samples that could not be read."""
  real = batch['mask'].astype(bool)
  if 'unreadable' in batch:
    real = real & (batch['unreadable'] == 0)
  return real


def empty_term(batch: Batch) -> Term:
  zeros = jnp.zeros(batch['mask'].shape, jnp.float32)
  return Term(zeros, zeros)


def mean_over_frames(values, frames) -> Term:
  """Mean over the selected frames; examples without one are masked.

  Args:
    values: [B, T], one value per frame.
    frames: [B, T] bool, the selected frames.

  Returns:
    The term.
  """
  values = jnp.where(frames, values, 0.0)
  count = frames.sum(1)
  mean = values.sum(1) / jnp.maximum(count, 1).astype(jnp.float32)
  return Term(mean, count > 0)


def check_same_shape(term: str, outputs, targets):
  if outputs.shape != targets.shape:
    raise ValueError(
        f'{term}: outputs {outputs.shape} and targets {targets.shape}'
        ' have different shapes'
    )


def structure_of(term: str, outputs: Outputs, part: str) -> Structure:
  if part not in skeletons.NUM_POINTS:
    raise ValueError(f"{term}: part {part!r}, expected 'body' or 'face'")
  structure = getattr(outputs, part)
  if structure is None:
    raise ValueError(f'{term}: the model decodes no {part}')
  return structure
