"""Loss terms, and their weighted sum.

A term is a pure function `fn(outputs, batch, rng, **kwargs) -> Term`: one value
an example and a mask of the examples that it applies to. A recipe names it by
its function here or by import path, `package.module:function`:

  config.losses.kl = {'fn': 'kl', 'weight': 1e-4, 'warmup_steps': 1000,
                      'kwargs': {'free_bits': 0.1}}

What the batch lacks (labels, annotation) masks a term out; what the model lacks
(a decoder, a variance) is an error at trace time. Terms compute in float32.
"""

import difflib
import inspect
import math
import numbers
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vemd_jax import import_path, matching, skeletons
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
    weight: factor in the total once it is warm.
    schedule: 'constant' or 'cyclic', after the warm-up.
    start_step: step before which the weight is 0.
    warmup_steps: steps over which it rises from 0.
    kwargs: (name, value) pairs for the function.
  """

  name: str
  fn: Callable[..., Term]
  weight: float
  schedule: str
  start_step: int
  warmup_steps: int
  kwargs: tuple[tuple[str, Any], ...]


# --- Pieces ---


def _f32(values) -> jax.Array:
  return jnp.asarray(values, jnp.float32)


def _real(batch: Batch) -> jax.Array:
  """[B] bool: neither padding nor an image that could not be read."""
  real = batch['mask'].astype(bool)
  if 'unreadable' in batch:
    real = real & (batch['unreadable'] == 0)
  return real


def _nothing(batch: Batch) -> Term:
  zeros = jnp.zeros(batch['mask'].shape, jnp.float32)
  return Term(zeros, zeros)


def _frame_mean(values, frames) -> Term:
  """Mean over the frames that count; examples without one are masked.

  Args:
    values: [B, T] one value a frame.
    frames: [B, T] bool.
  """
  values = jnp.where(frames, values, 0.0)
  count = frames.sum(1)
  mean = values.sum(1) / jnp.maximum(count, 1).astype(jnp.float32)
  return Term(mean, count > 0)


def _same_shape(term: str, outputs, targets):
  if outputs.shape != targets.shape:
    raise ValueError(
        f'{term}: outputs {outputs.shape} and targets {targets.shape}'
        ' have different shapes'
    )


def _part(term: str, outputs: Outputs, part: str) -> Structure:
  if part not in skeletons.NUM_POINTS:
    raise ValueError(f"{term}: part {part!r}, expected 'body' or 'face'")
  structure = getattr(outputs, part)
  if structure is None:
    raise ValueError(f'{term}: the model decodes no {part}')
  return structure


# --- Emotion ---


def _labels(term, outputs, batch, class_weights):
  """Logits [B, C], one-hot labels [B, C], and the mask or weights [B]."""
  logits, labels = _f32(outputs.logits), batch['label']
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
        f'{term}: logits {logits.shape} need labels of shape'
        f' {logits.shape[:1]}, not {labels.shape}'
    )
  classes = logits.shape[1]
  mask = _f32(batch['label_mask'].astype(bool) & _real(batch))
  if class_weights is not None and len(class_weights):
    if isinstance(class_weights, str) or len(class_weights) != classes:
      raise ValueError(
          f'{term}: class_weights {class_weights!r}, expected {classes} numbers'
      )
    mask = mask * _f32(class_weights)[labels]
  return logits, jax.nn.one_hot(labels, classes), mask


def _without_labels(outputs: Outputs, batch: Batch) -> bool:
  # A dataset without classes has no emotion head: its batches train the rest.
  return outputs.logits is None or 'label' not in batch


def emotion_cross_entropy(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Cross-entropy of the group emotion.

  Args:
    outputs: logits [B, C].
    batch: label, label_mask.
    rng: not used.
    label_smoothing: share of the target spread over all classes, 0..1.
    class_weights: C numbers >= 0. The mean over examples is weighted by that of
      the true class, as in torch; empty or None for equal weights.

  Returns:
    Nats an example; labelled examples count.
  """
  del rng
  if _without_labels(outputs, batch):
    return _nothing(batch)
  logits, target, mask = _labels(
      'emotion_cross_entropy', outputs, batch, class_weights
  )
  target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
  return Term(-jnp.sum(target * jax.nn.log_softmax(logits), -1), mask)


def multi_label_emotion(
    outputs: Outputs, batch: Batch, rng: jax.Array
) -> Term:
  """Cross-entropy to equal shares of all labels that an example has.

  The probabilities still sum to 1, so that the same head serves single labels
  and several; of one label it is `emotion_cross_entropy`.

  Args:
    outputs: logits [B, C].
    batch: label_multi_hot [B, C], 0 or 1.
    rng: not used.

  Returns:
    Nats an example; those with a label count.

  Raises:
    ValueError: if the batch has no `label_multi_hot` of the logits' shape.
  """
  del rng
  if outputs.logits is None:
    return _nothing(batch)
  if 'label_multi_hot' not in batch:
    raise ValueError(
        'multi_label_emotion: the batch has no label_multi_hot; set'
        ' config.data.multi_label'
    )
  logits, labels = _f32(outputs.logits), _f32(batch['label_multi_hot'] > 0)
  _same_shape('multi_label_emotion', logits, labels)
  count = labels.sum(-1)
  target = labels / jnp.maximum(count, 1)[:, None]
  values = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
  return Term(values, (count > 0) & _real(batch))


def focal_emotion(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Focal loss `(1 - p)^gamma (-log p)` of the true class (arXiv 1708.02002).

  Args:
    outputs: logits [B, C].
    batch: label, label_mask.
    rng: not used.
    gamma: how much easy examples are held back; 0 is the cross-entropy.
    class_weights: as in `emotion_cross_entropy`.

  Returns:
    One value an example; labelled examples count.
  """
  del rng
  if _without_labels(outputs, batch):
    return _nothing(batch)
  logits, target, mask = _labels('focal_emotion', outputs, batch, class_weights)
  log_p = jnp.sum(target * jax.nn.log_softmax(logits), -1)
  # 1 - p from the other classes' sum keeps its digits, and its power a finite
  # derivative, where p is close to 1.
  others = jnp.sum((1 - target) * jax.nn.softmax(logits), -1)
  tiny = jnp.finfo(jnp.float32).tiny
  return Term(-(jnp.maximum(others, tiny) ** gamma) * log_p, mask)


def ordinal_emotion(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Squared earth mover's distance on classes that have an order.

  The sum over c of `(P(class <= c) - [label <= c])^2` (arXiv 1611.05916): a
  miss by two classes costs more than a miss by one.

  Args:
    outputs: logits [B, C], classes from one end of the scale to the other.
    batch: label, label_mask.
    rng: not used.
    class_weights: as in `emotion_cross_entropy`.

  Returns:
    0..C-1 an example; labelled examples count.
  """
  del rng
  if _without_labels(outputs, batch):
    return _nothing(batch)
  logits, target, mask = _labels(
      'ordinal_emotion', outputs, batch, class_weights
  )
  difference = jnp.cumsum(jax.nn.softmax(logits) - target, -1)
  return Term(jnp.sum(difference**2, -1), mask)


# --- Heatmaps ---


def _heatmaps(term, outputs, batch, part):
  """Logits [S, B, T, h, w, L], targets [B, T, h, w, L], frames [B, T], and
  which pixels count, see `counted_pixels`."""
  structure = _part(term, outputs, part)
  if structure.heatmap_logits is None:
    raise ValueError(f'{term}: the model decodes no {part} heatmaps')
  if f'{part}_annotated' not in batch:
    return None
  if f'{part}_heatmap' not in batch:
    raise ValueError(f'{term}: the batch has no {part}_heatmap')
  logits = _f32(structure.heatmap_logits)
  targets = _f32(batch[f'{part}_heatmap'])
  _same_shape(term, logits[0], targets)
  frames = batch[f'{part}_annotated'].astype(bool) & _real(batch)[:, None]
  return logits, targets, frames, counted_pixels(batch, targets.shape[2:4])


def _regions(boxes: jax.Array) -> jax.Array:
  """Which boxes [..., 4] have an area, [...] bool; the others fill up."""
  return (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])


def counted_pixels(batch: Batch, size: tuple[int, int]) -> jax.Array | None:
  """Where a heatmap counts: outside the regions without labels.

  Args:
    batch: `ignore_boxes` [B, T, R, 4], (x1, y1, x2, y2) in pixels of `image`,
      or without; a box without area is none.
    size: (h, w) of the heatmaps.

  Returns:
    [B, T, h, w, 1] float32, 0 or 1; None where every pixel counts.
  """
  if 'ignore_boxes' not in batch:
    return None
  height, width = batch['image'].shape[2:4]
  boxes = _f32(batch['ignore_boxes'])
  x1, y1, x2, y2 = jnp.moveaxis(boxes[..., None], -2, 0)
  y = jnp.arange(size[0], dtype=jnp.float32) * (height / size[0])
  x = jnp.arange(size[1], dtype=jnp.float32) * (width / size[1])
  y, x = (v.reshape(1, 1, 1, -1) for v in (y, x))
  columns = (x1 <= x) & (x <= x2)  # [B, T, R, w]
  rows = (y1 <= y) & (y <= y2) & _regions(boxes)[..., None]
  inside = (rows[..., :, None] & columns[..., None, :]).any(2)
  return _f32(~inside)[..., None]


def pixel_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
  """Mean over pixels and limbs.

  Args:
    values: [..., h, w, L].
    weights: of the same axes, 1 long where they do not differ; None for equal
      ones.

  Returns:
    [...]; 0 where all weights are.
  """
  axes = (-3, -2, -1)
  if weights is None:
    return values.mean(axes)
  total = jnp.broadcast_to(weights, values.shape).sum(axes)
  return (values * weights).sum(axes) / jnp.where(total > 0, total, 1.0)


def _stages(pixels, frames, weights=None) -> Term:
  """Sum over stages of the mean over pixels and limbs, then over frames."""
  weights = None if weights is None else weights[None]
  return _frame_mean(pixel_mean(pixels, weights).sum(0), frames)


def heatmap_mse(
    outputs: Outputs, batch: Batch, rng: jax.Array, *, part: str
) -> Term:
  """Sum over stages of the mean squared error of the sigmoid maps.

  The reference's heatmap loss (arXiv 2604.02397).

  Args:
    outputs: heatmap_logits of the part, [S, B, T, h, w, L].
    batch: its target maps in 0..1 and which frames are annotated.
    rng: not used.
    part: 'body' or 'face'.

  Returns:
    Mean over the annotated frames of each example.
  """
  del rng
  maps = _heatmaps('heatmap_mse', outputs, batch, part)
  if maps is None:
    return _nothing(batch)
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

  As in OpenPose (arXiv 1812.08008, eq. 5), a limb that nobody in the frame
  shows does not count where there are people, since it may be there unlabelled;
  and pixels on limbs, few among many, count more than the background.

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
    return _nothing(batch)
  logits, targets, frames, counted = maps
  there = batch[f'{part}_mask'].astype(bool)
  visible = skeletons.limb_visible(
      batch[f'{part}_keypoints'],
      skeletons.HEATMAP_LIMBS[part],
      *batch['image'].shape[2:4],
  )
  shown = (visible & there[..., None]).any(2)  # [B, T, L]
  counts = _f32(shown | ~there.any(2)[..., None])
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

  The quality focal loss of arXiv 2006.04388.

  Args:
    outputs: heatmap_logits of the part.
    batch: target maps and annotated frames.
    rng: not used.
    part: 'body' or 'face'.
    gamma: how much easy pixels are held back, >= 1.

  Returns:
    Sum over stages of the mean over pixels; mean over annotated frames.
  """
  del rng
  maps = _heatmaps('heatmap_focal', outputs, batch, part)
  if maps is None:
    return _nothing(batch)
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
    omega: height of the curved part.
    theta: error at which the curve becomes a line.
    epsilon: curvature.
    alpha: exponent on the background, above 2.
    weight: extra weight of pixels at or beside a target of 0.2 and more.

  Returns:
    Sum over stages of the mean over pixels; mean over annotated frames.
  """
  del rng
  maps = _heatmaps('heatmap_awing', outputs, batch, part)
  if maps is None:
    return _nothing(batch)
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
  emphasis = 1 + weight * _f32(near >= 0.2)
  values = jnp.where(error < theta, curve, line) * emphasis[None]
  return _stages(values, frames, counted)


# --- PersonQuery ---


def _queries(term, outputs, batch, part):
  """Structure, the people (none in frames that do not count), frames [B, T]."""
  structure = _part(term, outputs, part)
  if structure.limbs is None:
    raise ValueError(f'{term}: the model decodes no {part} queries')
  if f'{part}_annotated' not in batch:
    return None
  frames = batch[f'{part}_annotated'].astype(bool) & _real(batch)[:, None]
  target = matching.people(
      batch[f'{part}_keypoints'],
      batch[f'{part}_mask'].astype(bool) & frames[..., None],
      skeletons.QUERY_LIMBS[part],
      batch['image'].shape[2:4],
  )
  return structure, target, frames


def person_query(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    l1_weight: float = 1.0,
    adjacency_weight: float = 0.5,
    presence_weight: float = 1.0,
    no_object: float = 0.1,
    beta: float = 1.0,
) -> Term:
  """Set loss of the PersonQuery decoder (arXiv 2604.02397).

  Each frame's people are matched with queries; the matched pairs' mean cost
  (`matching.pair_costs`) is the loss. Where the model has presence logits, each
  query also learns whether it stands for somebody: binary cross-entropy with
  the "nobody" class weighted down as in DETR (arXiv 2005.12872).

  Args:
    outputs: limbs, adjacency_logits and presence_logits of the part.
    batch: keypoints, mask and annotated frames of the part; image for its size.
    rng: not used.
    part: 'body' or 'face'.
    l1_weight: weight of the limb vectors, in the cost and the loss.
    adjacency_weight: weight of the adjacency, in the cost and the loss.
    presence_weight: weight of the presence; without effect where it is off.
    no_object: weight of a query that stands for nobody.
    beta: where smooth L1 becomes linear, in image sizes.

  Returns:
    Mean over the frames with people; with presence, plus its mean over all
    annotated frames.
  """
  del rng
  queries = _queries('person_query', outputs, batch, part)
  if queries is None:
    return _nothing(batch)
  structure, target, frames = queries
  adjacency = structure.adjacency_logits
  frame_loss, match = matching.set_loss(
      _f32(structure.limbs),
      None if adjacency is None else _f32(adjacency),
      target,
      l1_weight=l1_weight,
      adjacency_weight=adjacency_weight,
      beta=beta,
  )
  pose = _frame_mean(frame_loss, match.matched.any(-1))
  if structure.presence_logits is None:
    return pose
  logits = _f32(structure.presence_logits)
  somebody = _f32(matching.taken(match, logits.shape[-1]))
  bce = jax.nn.softplus(logits) - logits * somebody
  nobody = no_object * (1 - somebody)
  if 'ignore_boxes' in batch:
    # Where people lack labels, a query without a match may be right.
    known = ~_regions(_f32(batch['ignore_boxes'])).any(-1)
    nobody = nobody * _f32(known)[..., None]
  weight = somebody + nobody
  total = weight.sum(-1)
  presence = (weight * bce).sum(-1) / jnp.where(total > 0, total, 1.0)
  presence = _frame_mean(presence, frames)
  return Term(
      pose.values + presence_weight * presence.values,
      pose.mask | presence.mask,
  )


# COCO-WholeBody (arXiv 2007.11858) has the constants of the 68 landmarks.
OKS_SIGMAS = {
    'body': skeletons.BODY_SIGMAS,
    'face': np.array([
        42, 43, 44, 43, 40, 35, 31, 25, 20, 23, 29, 32, 37, 38, 43, 41, 45,
        13, 12, 11, 11, 12, 12, 11, 11, 13, 15, 9, 7, 7, 7, 12, 9, 8, 16, 10,
        17, 11, 9, 11, 9, 7, 13, 8, 11, 12, 10, 34, 8, 8, 9, 8, 8, 7, 10, 8, 9,
        9, 9, 7, 7, 8, 11, 8, 8, 8, 10, 8,
    ], np.float32) / 1000,
}  # fmt: skip


def oks_keypoints(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    area_share: float = 0.53,
) -> Term:
  """`1 - OKS` of matched people: errors in units of person and joint.

  Object keypoint similarity: the mean over existing limb ends of
  `exp(-d^2 / (2 s^2 k^2))`, d in pixels, k = 2 sigma of the joint, s^2 the
  person's area. Matched as in `person_query`, which it should go with: far from
  the target its gradient vanishes.

  Args:
    outputs: limbs and adjacency_logits of the part.
    batch: as in `person_query`.
    rng: not used.
    part: 'body' or 'face'.
    area_share: area of a person in their joints' bounding box (0.53 over
      COCO's people).

  Returns:
    0..1, the mean over the frames with people of each example.
  """
  del rng
  queries = _queries('oks_keypoints', outputs, batch, part)
  if queries is None:
    return _nothing(batch)
  structure, target, _ = queries
  limbs, adjacency = _f32(structure.limbs), structure.adjacency_logits
  _, match = matching.set_loss(
      limbs, None if adjacency is None else _f32(adjacency), target
  )
  height, width = batch['image'].shape[2:4]
  ends = (*target.limbs.shape[:-1], 2, 2)  # [B, T, P, L, end, (x, y)]
  size = jnp.broadcast_to(_f32([width, height]), ends)
  true = target.limbs.reshape(ends) * size
  found = matching.take(limbs, match).reshape(ends) * size
  exists = target.exists.reshape(ends)
  squared = jnp.sum(jnp.where(exists, found - true, 0.0) ** 2, -1)
  low = jnp.min(jnp.where(exists, true, jnp.inf), (-3, -2))
  high = jnp.max(jnp.where(exists, true, -jnp.inf), (-3, -2))
  box = jnp.where(match.matched, jnp.prod(high - low, -1), 0.0)
  # A single joint has no box: one pixel keeps the similarity defined.
  area = jnp.maximum(area_share * box, 1.0)[..., None, None]
  k = 2 * OKS_SIGMAS[part][skeletons.QUERY_LIMBS[part]]  # [L, end]
  scale = area * jnp.broadcast_to(_f32(k**2), squared.shape)
  counts = _f32(exists[..., 0])
  similar = jnp.sum(jnp.exp(-squared / (2 * scale)) * counts, (-2, -1))
  similar = similar / jnp.maximum(counts.sum((-2, -1)), 1.0)
  frame_loss = matching.matched_mean(1 - similar, match.matched)
  return _frame_mean(frame_loss, match.matched.any(-1))


# --- Latent ---


def kl(
    outputs: Outputs, batch: Batch, rng: jax.Array, *, free_bits: float = 0.0
) -> Term:
  """KL divergence of the latent Gaussians from the standard normal.

  `KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - log s^2 - 1) / 2` (arXiv 1312.6114,
  app. B). Two encoders add up. A schedule of the weight is the term's beta.

  Args:
    outputs: latents, mean and log_variance [B, T, h, w, D].
    batch: mask.
    rng: not used.
    free_bits: nats that each channel may hold for free; its divergence, the
      mean over frames and positions, counts from there (arXiv 1606.04934).

  Returns:
    Nats a position, summed over channels.
  """
  del rng
  values = jnp.zeros(batch['mask'].shape, jnp.float32)
  for latent in outputs.latents:
    if latent.log_variance is None:
      raise ValueError('kl: the latent is deterministic and has no variance')
    mean, log_variance = _f32(latent.mean), _f32(latent.log_variance)
    _same_shape('kl', mean, log_variance)
    # expm1 keeps the digits near the prior, where exp(v) - 1 - v cancels.
    nats = 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance)
    channels = nats.mean((1, 2, 3))  # [B, D]
    values = values + jnp.maximum(channels, free_bits).sum(-1)
  return Term(values, _real(batch))


KERNELS = ('rbf', 'imq', 'linear')


def _kernel(name, x, y, bandwidth):
  """[..., n, m] kernel between points [..., n, d] and [..., m, d]."""
  product = jnp.einsum(
      '...id,...jd->...ij', x, y, precision=jax.lax.Precision.HIGHEST
  )
  if name == 'linear':
    return product
  squared = jnp.sum(x * x, -1)[..., :, None] + jnp.sum(y * y, -1)[..., None, :]
  squared = jnp.maximum(squared - 2 * product, 0.0)
  if name == 'rbf':
    return jnp.exp(-squared / (2 * bandwidth**2))
  scale = 2 * bandwidth**2
  return scale / (scale + squared)


def mmd_contributions(
    x: jax.Array,
    y: jax.Array,
    mask: jax.Array | None = None,
    *,
    kernels: Sequence[str] = ('rbf',),
    bandwidths: Sequence[float] = (1.0,),
    estimator: str = 'biased',
) -> jax.Array:
  """Each point's share of the squared maximum mean discrepancy.

  `MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` (Gretton et al., JMLR
  13, 2012); the mean over the points that count is the estimate. Kernels:
  'rbf' `exp(-d^2 / 2 s^2)`, 'imq' `2 s^2 / (2 s^2 + d^2)`, 'linear' `x . y`;
  several kernels and bandwidths are averaged.

  Args:
    x: [..., n, d] points.
    y: [..., n, d] as many points of the other distribution.
    mask: [..., n] bool, the pairs of points that count; None for all.
    kernels: names.
    bandwidths: s of rbf and imq.
    estimator: 'biased' (all pairs, never below 0) or 'unbiased' (a point is not
      paired with itself, nor with its own number in the other sample; needs two
      points to say anything).

  Returns:
    [..., n] float32, 0 where masked.

  Raises:
    ValueError: for shapes, kernels or estimators that do not exist.
  """
  x, y = _f32(x), _f32(y)
  _same_shape('mmd', x, y)
  unknown = [name for name in kernels if name not in KERNELS]
  if unknown or not kernels or not bandwidths:
    raise ValueError(
        f'mmd: kernels {tuple(kernels)} at bandwidths {tuple(bandwidths)},'
        f' expected some of {KERNELS}'
    )
  if estimator not in ('biased', 'unbiased'):
    raise ValueError(
        f"mmd: estimator {estimator!r}, expected 'biased' or 'unbiased'"
    )
  n = x.shape[-2]
  mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask.astype(bool)
  _same_shape('mmd mask', mask, x[..., 0])
  x, y = jnp.where(mask[..., None], x, 0.0), jnp.where(mask[..., None], y, 0.0)
  pairs = mask[..., :, None] & mask[..., None, :]
  if estimator == 'unbiased':
    pairs = pairs & jnp.broadcast_to(~np.eye(n, dtype=bool), pairs.shape)
  pairs = _f32(pairs)
  shares = []
  for name in kernels:
    for bandwidth in (0.0,) if name == 'linear' else bandwidths:
      within = _kernel(name, x, x, bandwidth) + _kernel(name, y, y, bandwidth)
      across = _kernel(name, x, y, bandwidth)
      # k(x, y) of row i and of column i: the same sum, and both gradients
      # reach the point whose share it is.
      shares.append(within - across - jnp.swapaxes(across, -1, -2))
  h = sum(shares) / len(shares)
  return (h * pairs).sum(-1) / jnp.maximum(pairs.sum(-1), 1.0)


def mmd(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    form: str = 'batch',
    kernels: Sequence[str] = ('rbf',),
    bandwidths: Sequence[float] = (),
    estimator: str = '',
    include_vit: bool = False,
) -> Term:
  """Maximum mean discrepancy of the latent from the standard normal.

  InfoVAE's divergence (arXiv 1706.02262). In the batch form the points are the
  latent vectors that the batch's frames have at one position of the grid, so
  that it tests the aggregate posterior there; positions are averaged. An
  example's value is its share of the estimate. In the reference's row form the
  points are the h rows (w-vectors) of each channel of each frame; with
  `include_vit` it is the authors' loss.

  Args:
    outputs: latents, their samples [B, T, h, w, D]; two encoders are joined.
    batch: mask.
    rng: for the normal sample.
    form: 'batch' or 'rows'.
    kernels: of 'rbf', 'imq', 'linear', averaged.
    bandwidths: of rbf and imq; empty for 1 in the row form, and in the batch
      form for 1/2, 1 and 2 times the root of the vector length (the distance
      of two normal vectors is about 1.4 such roots).
    estimator: 'biased' or 'unbiased'; empty for unbiased in the batch form, for
      the reference's biased one in the row form.
    include_vit: join the projected features of the frozen ViT.

  Returns:
    Values whose mean is the estimate over the batch.
  """
  if form not in ('batch', 'rows'):
    raise ValueError(f"mmd: form {form!r}, expected 'batch' or 'rows'")
  parts = [latent.sample for latent in outputs.latents]
  if include_vit:
    if outputs.vit_latent is None:
      raise ValueError('mmd: include_vit is set, but the model has no ViT')
    parts.append(outputs.vit_latent)
  z = jnp.concatenate([_f32(part) for part in parts], -1)
  b, t, h, w, d = z.shape
  # The same numbers as for the shape itself, and compiled in a tenth the time.
  prior = jax.random.normal(rng, (z.size,), jnp.float32).reshape(z.shape)
  real = _real(batch)
  if form == 'rows':
    points = mmd_contributions(
        *(jnp.moveaxis(x, -1, 2) for x in (z, prior)),  # [B, T, D, h, w]
        kernels=kernels,
        bandwidths=tuple(bandwidths) or (1.0,),
        estimator=estimator or 'biased',
    )
    return Term(points.mean((1, 2, 3)), real)
  root = math.sqrt(d)
  points = mmd_contributions(
      *(x.reshape(b * t, h * w, d).swapaxes(0, 1) for x in (z, prior)),
      mask=jnp.broadcast_to(jnp.repeat(real, t)[None], (h * w, b * t)),
      kernels=kernels,
      bandwidths=tuple(bandwidths) or (root / 2, root, 2 * root),
      estimator=estimator or 'unbiased',
  )  # [h w, B T]
  return Term(points.mean(0).reshape(b, t).mean(1), real)


# --- The total ---


def resolve(name: str) -> Callable[..., Term]:
  """The term of that name.

  Args:
    name: a function of this module, or `package.module:function`.

  Returns:
    The function.

  Raises:
    ValueError: if there is none.
  """
  if ':' in name:
    return import_path.load(name, 'loss')
  if name in TERMS:
    return TERMS[name]
  near = difflib.get_close_matches(name, TERMS, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise ValueError(
      f'loss {name!r}: expected package.module:function or one of'
      f' {", ".join(TERMS)}{hint}'
  )


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


SCHEDULES = ('constant', 'cyclic')


def prepare(config_losses: Mapping[str, Any]) -> tuple[Weighted, ...]:
  """Checks the terms of a recipe and looks up their functions.

  Args:
    config_losses: name -> entry with `fn` (default: the name), `weight`
      (default 1), `warmup_steps` over which the weight rises from 0,
      `start_step` from which it does so, `schedule` 'constant' (it stays there)
      or 'cyclic' (after as many steps at the top it starts from 0 again, arXiv
      1903.10145), and `kwargs` of the function. A dict or a ConfigDict.
      What only a late term trains has no second moments in Adam until then:
      its first updates are several times the learning rate and may break it.
      A second run with `checkpoint.init_from` starts gently.

  Returns:
    The terms in the order given.

  Raises:
    ValueError: names the key that is wrong.
  """
  terms = []
  for name, entry in config_losses.items():
    entry = dict(entry.items())
    fn = resolve(entry.pop('fn', name))
    weight = entry.pop('weight', 1.0)
    schedule = entry.pop('schedule', 'constant')
    start = entry.pop('start_step', 0)
    warmup = entry.pop('warmup_steps', 0)
    kwargs = {
        k: _hashable(v) for k, v in dict(entry.pop('kwargs', {})).items()
    }
    if entry:
      raise ValueError(
          f'losses.{name}.{next(iter(entry))}: expected fn, weight, schedule,'
          ' start_step, warmup_steps or kwargs'
      )
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
      raise ValueError(f'losses.{name}.weight: {weight!r} is no number')
    for key, steps in (('start_step', start), ('warmup_steps', warmup)):
      if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f'losses.{name}.{key}: {steps!r}, expected steps >= 0')
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
            float(weight),
            schedule,
            start,
            warmup,
            tuple(kwargs.items()),
        )
    )
  if not terms:
    raise ValueError('losses: no term')
  return tuple(terms)


def weight_at(term: Weighted, step: jax.Array | int) -> jax.Array:
  """Weight of a term at a step.

  Args:
    term: of `prepare`.
    step: of the training, from 0.

  Returns:
    Scalar float32.
  """
  since = jnp.asarray(step, jnp.int32) - term.start_step
  factor = _f32(since >= 0)
  if term.warmup_steps:
    if term.schedule == 'cyclic':
      since = jnp.where(since >= 0, since % (2 * term.warmup_steps), 0)
    factor = factor * jnp.clip(_f32(since) / term.warmup_steps, 0.0, 1.0)
  return term.weight * factor


def total(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    terms: tuple[Weighted, ...],
    step: jax.Array | int,
) -> tuple[jax.Array, dict[str, Sums]]:
  """The loss: sum over terms of weight x masked mean.

  Args:
    outputs: of the model.
    batch: `mask` [B] and what the terms read.
    rng: key; each term gets its own by its name.
    terms: of `prepare`.
    step: of the training, for the schedules.

  Returns:
    Scalar float32, and what the metrics need of each term, by name.

  Raises:
    ValueError: names a term that the model has no output for, or whose result
      does not have one value and one mask entry an example.
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
    # Padding never counts, whatever a term says, and what is masked may be
    # anything, NaN included: its gradient is cut here.
    mask = _f32(mask) * _f32(batch['mask'])
    values = jnp.where(mask > 0, _f32(values), 0.0)
    count, value = mask.sum(), jnp.sum(values * mask)
    weight = weight_at(term, step)
    # Class weights make counts below 1 that are not empty.
    loss = loss + weight * value / jnp.where(count > 0, count, 1.0)
    sums[term.name] = Sums(value, count, weight)
  return loss, sums


TERMS = {
    fn.__name__: fn
    for fn in (
        emotion_cross_entropy,
        multi_label_emotion,
        focal_emotion,
        ordinal_emotion,
        heatmap_mse,
        heatmap_weighted_mse,
        heatmap_focal,
        heatmap_awing,
        person_query,
        oks_keypoints,
        kl,
        mmd,
    )
}
