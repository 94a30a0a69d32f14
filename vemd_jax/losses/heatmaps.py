"""Loss terms of decoded limb heatmaps, and the mask of ignored pixels."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from vemd_jax import skeletons
from vemd_jax.losses.term import (
  Batch,
  Term,
  check_same_shape,
  empty_term,
  f32,
  mean_over_frames,
  real,
  structure_of,
)
from vemd_jax.models.outputs import Outputs


def _heatmaps(term, outputs, batch, part):
  """Logits [S, B, T, h, w, L], targets [B, T, h, w, L], annotated frames
  [B, T], and the pixel mask of `counted_pixels`; None without annotations."""
  structure = structure_of(term, outputs, part)
  if structure.heatmap_logits is None:
    raise ValueError(f'{term}: the model decodes no {part} heatmaps')
  if f'{part}_annotated' not in batch:
    return None
  if f'{part}_heatmap' not in batch:
    raise ValueError(f'{term}: the batch has no {part}_heatmap')
  logits = f32(structure.heatmap_logits)
  targets = f32(batch[f'{part}_heatmap'])
  check_same_shape(term, logits[0], targets)
  frames = batch[f'{part}_annotated'].astype(bool) & real(batch)[:, None]
  return logits, targets, frames, counted_pixels(batch, targets.shape[2:4])


def has_area(boxes: jax.Array) -> jax.Array:
  """Which boxes [..., 4] have an area, [...] bool; the others are padding."""
  return (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])


def counted_pixels(batch: Batch, size: tuple[int, int]) -> jax.Array | None:
  """Mask of the heatmap pixels outside of ignore regions (unlabelled people).

  Args:
    batch: batch with or without `ignore_boxes` [B, T, R, 4], (x1, y1, x2, y2)
      in pixels of `image`; boxes without area are padding.
    size: (h, w) of the heatmaps.

  Returns:
    [B, T, h, w, 1] float32, 0 or 1; None if there are no ignore boxes.
  """
  if 'ignore_boxes' not in batch:
    return None
  height, width = batch['image'].shape[2:4]
  boxes = f32(batch['ignore_boxes'])
  x1, y1, x2, y2 = jnp.moveaxis(boxes[..., None], -2, 0)
  y = jnp.arange(size[0], dtype=jnp.float32) * (height / size[0])
  x = jnp.arange(size[1], dtype=jnp.float32) * (width / size[1])
  y, x = (v.reshape(1, 1, 1, -1) for v in (y, x))
  columns = (x1 <= x) & (x <= x2)  # [B, T, R, w]
  rows = (y1 <= y) & (y <= y2) & has_area(boxes)[..., None]
  inside = (rows[..., :, None] & columns[..., None, :]).any(2)
  return f32(~inside)[..., None]


def pixel_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
  """Mean over pixels and limbs.

  Args:
    values: [..., h, w, L].
    weights: broadcastable to `values`; None for equal weights.

  Returns:
    [...]; 0 where all weights are 0.
  """
  axes = (-3, -2, -1)
  if weights is None:
    return values.mean(axes)
  total = jnp.broadcast_to(weights, values.shape).sum(axes)
  return (values * weights).sum(axes) / jnp.where(total > 0, total, 1.0)


def _stages(pixels, frames, weights=None) -> Term:
  """Sum over stages of the mean over pixels and limbs, then over frames."""
  weights = None if weights is None else weights[None]
  return mean_over_frames(pixel_mean(pixels, weights).sum(0), frames)


def heatmap_mse(
    outputs: Outputs, batch: Batch, rng: jax.Array, *, part: str
) -> Term:
  """Sum over stages of the mean squared error of the sigmoid maps.

  This is the reference's heatmap loss (arXiv 2604.02397).

  Args:
    outputs: heatmap_logits of the part, [S, B, T, h, w, L].
    batch: target maps in 0..1 and the mask of annotated frames.
    rng: not used.
    part: 'body' or 'face'.

  Returns:
    Mean over the annotated frames of each example.
  """
  del rng
  maps = _heatmaps('heatmap_mse', outputs, batch, part)
  if maps is None:
    return empty_term(batch)
  logits, targets, frames, counted = maps
  errors = (jax.nn.sigmoid(logits) - targets[None]) ** 2
  return _stages(errors, frames, counted)


def heatmap_weighted_mse(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    foreground: float = 10.0,
    threshold: float = 0.01,
) -> Term:
  """`heatmap_mse` with weighted pixels and without unannotated limbs.

  As in OpenPose (arXiv 1812.08008, eq. 5), a limb that is visible on none of
  the annotated people of a frame is masked out, since it may be present but
  unlabelled. Pixels on limbs, which are few, have a larger weight than the
  background.

  Args:
    outputs: heatmap_logits of the part.
    batch: target maps, annotated frames, keypoints and mask of the people.
    rng: not used.
    part: 'body' or 'face'.
    foreground: weight of a pixel on a limb; the background's is 1.
    threshold: target above which a pixel is on a limb.

  Returns:
    Weighted mean over the annotated frames of each example.
  """
  del rng
  maps = _heatmaps('heatmap_weighted_mse', outputs, batch, part)
  if maps is None:
    return empty_term(batch)
  logits, targets, frames, counted = maps
  there = batch[f'{part}_mask'].astype(bool)
  visible = skeletons.limb_visible(
      batch[f'{part}_keypoints'],
      skeletons.HEATMAP_LIMBS[part],
      *batch['image'].shape[2:4],
  )
  shown = (visible & there[..., None]).any(2)  # [B, T, L]
  counts = f32(shown | ~there.any(2)[..., None])
  weights = jnp.where(targets > threshold, foreground, 1.0)
  weights = weights * counts[:, :, None, None, :]
  if counted is not None:
    weights = weights * counted
  errors = (jax.nn.sigmoid(logits) - targets[None]) ** 2
  return _stages(errors, frames, weights)


def heatmap_focal(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    gamma: float = 2.0,
) -> Term:
  """Focal loss for soft targets: `|t - p|^gamma` x binary cross-entropy.

  This is the quality focal loss of arXiv 2006.04388.

  Args:
    outputs: heatmap_logits of the part.
    batch: target maps and annotated frames.
    rng: not used.
    part: 'body' or 'face'.
    gamma: strength of the down-weighting of easy pixels, >= 1.

  Returns:
    Sum over stages of the mean over pixels; mean over annotated frames.
  """
  del rng
  maps = _heatmaps('heatmap_focal', outputs, batch, part)
  if maps is None:
    return empty_term(batch)
  logits, targets, frames, counted = maps
  bce = jax.nn.softplus(logits) - logits * targets[None]
  distance = jnp.abs(targets[None] - jax.nn.sigmoid(logits))
  return _stages(distance**gamma * bce, frames, counted)


def heatmap_awing(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    omega: float = 14.0,
    theta: float = 0.5,
    epsilon: float = 1.0,
    alpha: float = 2.1,
    weight: float = 10.0,
) -> Term:
  """Adaptive wing loss with its weighted map (arXiv 1904.07399, eq. 3 to 5).

  Args:
    outputs: heatmap_logits of the part.
    batch: target maps and annotated frames.
    rng: not used.
    part: 'body' or 'face'.
    omega: scale of the nonlinear part.
    theta: error at which the loss becomes linear.
    epsilon: curvature of the nonlinear part.
    alpha: exponent on the background, > 2.
    weight: additional weight of pixels at or next to a target >= 0.2.

  Returns:
    Sum over stages of the mean over pixels; mean over annotated frames.
  """
  del rng
  maps = _heatmaps('heatmap_awing', outputs, batch, part)
  if maps is None:
    return empty_term(batch)
  logits, targets, frames, counted = maps
  power = alpha - targets
  ratio = theta / epsilon
  slope = omega * power * ratio ** (power - 1) / (epsilon * (1 + ratio**power))
  offset = theta * slope - omega * jnp.log1p(ratio**power)
  error = jnp.abs(targets[None] - jax.nn.sigmoid(logits))
  curve = omega * jnp.log1p(
      (error / epsilon) ** jnp.broadcast_to(power, error.shape)
  )
  line = slope[None] * error - offset[None]
  b, t, *map_shape = targets.shape
  near = nn.max_pool(
      targets.reshape(b * t, *map_shape), (3, 3), padding='SAME'
  ).reshape(targets.shape)
  emphasis = 1 + weight * f32(near >= 0.2)
  values = jnp.where(error < theta, curve, line) * emphasis[None]
  return _stages(values, frames, counted)
