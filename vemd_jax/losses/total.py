"""The loss of a recipe: lookup, validation and weighted sum of its terms."""

import inspect
import numbers
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vemd_jax import import_path
from vemd_jax.losses import emotion, heatmaps, latent, queries
from vemd_jax.losses.term import Batch, Sums, Term, Weighted, f32
from vemd_jax.models.outputs import Outputs

TERMS = {
    fn.__name__: fn
    for fn in (
        emotion.emotion_cross_entropy,
        emotion.emotion_sources,
        emotion.emotion_teacher_forcing,
        emotion.multi_label_emotion,
        emotion.focal_emotion,
        emotion.ordinal_emotion,
        heatmaps.heatmap_mse,
        heatmaps.heatmap_weighted_mse,
        heatmaps.heatmap_focal,
        heatmaps.heatmap_awing,
        queries.person_query,
        queries.person_centers,
        queries.oks_keypoints,
        latent.kl,
        latent.mmd,
    )
}
SCHEDULES = ('constant', 'cyclic')


def resolve(name: str, key: str = 'loss') -> Callable[..., Term]:
  """Finds the function of a loss term.

  Args:
    name: key of `TERMS`, or `package.module:function`.
    key: config key, for the error message.

  Returns:
    The function.

  Raises:
    ValueError: if there is none.
  """
  return import_path.find(name, TERMS, key)


def _hashable(value):
  if isinstance(value, list | tuple):
    return tuple(_hashable(v) for v in value)
  return value


def _check_kwargs(name, fn, kwargs):
  parameters = list(inspect.signature(fn).parameters.values())
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return
  # The first three are (outputs, batch, rng).
  own = {
      p.name: p.default is p.empty
      for p in parameters[3:]
      if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
  }
  for key in kwargs:
    if key not in own:
      raise ValueError(
          f'losses.{name}.kwargs.{key}: {fn.__name__} takes'
          f' {", ".join(own) or "no arguments"}'
      )
  for key, required in own.items():
    if required and key not in kwargs:
      raise ValueError(f'losses.{name}.kwargs.{key}: missing')


def prepare(config_losses: Mapping[str, Any]) -> tuple[Weighted, ...]:
  """Checks the terms of a recipe and looks up their functions.

  Args:
    config_losses: name -> entry, as a dict or a ConfigDict, with `fn` (default:
      the name), `weight` (default 1; or pairs of first step and weight),
      `warmup_steps` over which the weight rises, counted from the first step
      with a weight, `schedule` 'constant' (the weight stays) or 'cyclic' (after
      another `warmup_steps` at its maximum it restarts from 0, arXiv
      1903.10145), and `kwargs` of the function.

  Returns:
    The terms in the given order.

  Raises:
    ValueError: if an entry is invalid; names the key.
  """
  terms = []
  for name, entry in config_losses.items():
    entry = dict(entry.items())
    fn = resolve(entry.pop('fn', name), f'losses.{name}.fn')
    weight = entry.pop('weight', 1.0)
    schedule = entry.pop('schedule', 'constant')
    warmup = entry.pop('warmup_steps', 0)
    kwargs = {
        k: _hashable(v) for k, v in dict(entry.pop('kwargs', {})).items()
    }
    if entry:
      raise ValueError(
          f'losses.{name}.{next(iter(entry))}: expected fn, weight, schedule,'
          ' warmup_steps or kwargs'
      )
    pairs = weight if isinstance(weight, list | tuple) else ((0, weight),)
    for _, value in pairs:
      if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f'losses.{name}.weight: {value!r}, expected a number')
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
      raise ValueError(
          f'losses.{name}.warmup_steps: {warmup!r}, expected steps >= 0'
      )
    if schedule not in SCHEDULES:
      raise ValueError(
          f'losses.{name}.schedule: {schedule!r}, expected one of'
          f' {", ".join(SCHEDULES)}'
      )
    if schedule == 'cyclic' and not warmup:
      raise ValueError(f'losses.{name}.schedule: cyclic needs warmup_steps')
    _check_kwargs(name, fn, kwargs)
    terms.append(
        Weighted(
            name,
            fn,
            tuple((int(start), float(value)) for start, value in pairs),
            schedule,
            warmup,
            tuple(kwargs.items()),
        )
    )
  if not terms:
    raise ValueError(
        'losses: no term applies to this model, expected at least one'
    )
  return tuple(terms)


def weight_at(term: Weighted, step: jax.Array | int) -> jax.Array:
  """Weight of a term at a step.

  Args:
    term: term from `prepare`.
    step: training step, from 0.

  Returns:
    Scalar float32.
  """
  step = jnp.asarray(step, jnp.int32)
  weight = f32(term.weight[0][1])
  for start, value in term.weight[1:]:
    weight = jnp.where(step >= start, f32(value), weight)
  if term.warmup_steps:
    since = step - next((start for start, value in term.weight if value), 0)
    if term.schedule == 'cyclic':
      since = jnp.where(since >= 0, since % (2 * term.warmup_steps), 0)
    weight = weight * jnp.clip(f32(since) / term.warmup_steps, 0.0, 1.0)
  return weight


def total(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    terms: tuple[Weighted, ...],
    step: jax.Array | int,
) -> tuple[jax.Array, dict[str, Sums]]:
  """The total loss: sum over terms of weight x masked mean.

  Args:
    outputs: outputs of the model.
    batch: `mask` [B] and the targets of the terms.
    rng: random key, folded with the name of each term.
    terms: terms from `prepare`.
    step: training step, for the schedules.

  Returns:
    Scalar float32, and the sums of each term by name.

  Raises:
    ValueError: if the model lacks the outputs of a term, or a term does not
      return one value and one mask entry per example; names the term.
  """
  shape = batch['mask'].shape
  loss, sums = jnp.zeros((), jnp.float32), {}
  for term in terms:
    key = jax.random.fold_in(rng, zlib.crc32(term.name.encode()))
    try:
      values, mask = term.fn(outputs, batch, key, **dict(term.kwargs))
    except ValueError as error:
      raise ValueError(f'losses.{term.name}: {error}') from error
    if jnp.shape(values) != shape or jnp.shape(mask) != shape:
      raise ValueError(
          f'losses.{term.name}: values {jnp.shape(values)} and mask'
          f' {jnp.shape(mask)}, expected {shape} both'
      )
    if not any(value for _, value in term.weight):
      # Reported only: no gradient is computed for it.
      values = jax.lax.stop_gradient(values)
    # Padding is always masked. Masked values may be anything, including NaN;
    # `where` also stops their gradient.
    mask = f32(mask) * f32(batch['mask'])
    values = jnp.where(mask > 0, f32(values), 0.0)
    count, value = mask.sum(), jnp.sum(values * mask)
    weight = weight_at(term, step)
    # Not maximum(count, 1): with class weights a positive count may be below 1.
    loss = loss + weight * value / jnp.where(count > 0, count, 1.0)
    sums[term.name] = Sums(value, count, weight)
  return loss, sums
