"""What a loss term is, and the pieces that several of them share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vemd_jax import skeletons
from vemd_jax.models.outputs import Outputs, Structure

Batch = Mapping[str, jax.Array]


class Term(NamedTuple):
  """What a term says about a batch.

  Attributes:
    values: [B] float32, one value an example.
    mask: [B] bool, or a weight >= 0 an example.
  """

  values: jax.Array
  mask: jax.Array


class Sums(NamedTuple):
  """What the metrics keep of a term.

  Attributes:
    total: sum of the values that count.
    count: how many they are.
    weight: of the term at this step.
  """

  total: jax.Array
  count: jax.Array
  weight: jax.Array


class Weighted(NamedTuple):
  """A term as a recipe lists it.

  Attributes:
    name: under which it reports itself.
    fn: the term.
    weight: (first step, factor in the total once it is warm) pairs; the first
      step of the first pair is 0.
    schedule: 'constant' or 'cyclic', after the warm-up.
    warmup_steps: steps over which it rises from 0, counted from the first step
      with a weight.
    kwargs: (name, value) pairs for the function.
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
  """[B] bool: neither padding nor an image that could not be read."""
  real = batch['mask'].astype(bool)
  if 'unreadable' in batch:
    real = real & (batch['unreadable'] == 0)
  return real


def empty_term(batch: Batch) -> Term:
  zeros = jnp.zeros(batch['mask'].shape, jnp.float32)
  return Term(zeros, zeros)


def mean_over_frames(values, frames) -> Term:
  """Mean over the frames that count; examples without one are masked.

  Args:
    values: [B, T] one value a frame.
    frames: [B, T] bool.
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
