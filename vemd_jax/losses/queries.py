"""Loss terms of PersonQuery decoders, which predict sets of people."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vemd_jax import matching, skeletons
from vemd_jax.losses.heatmaps import counted_pixels, has_area
from vemd_jax.losses.term import (
  Batch,
  Term,
  empty_term,
  f32,
  mean_over_frames,
  real,
  structure_of,
)
from vemd_jax.models.outputs import Outputs


def _queries(term, outputs, batch, part):
  """Structure, target people (masked where not annotated), frames [B, T]."""
  structure = structure_of(term, outputs, part)
  if structure.limbs is None:
    raise ValueError(f'{term}: the model decodes no {part} queries')
  if f'{part}_annotated' not in batch:
    return None
  frames = batch[f'{part}_annotated'].astype(bool) & real(batch)[:, None]
  return structure, matching.people_of(batch, part, frames), frames


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

  The people of each frame are matched with queries; the loss is the mean cost
  (`matching.pair_costs`) of the matched pairs. If the model has presence
  logits, a binary cross-entropy of whether a query is matched is added, in
  which unmatched queries are down-weighted as in DETR (arXiv 2005.12872).

  Args:
    outputs: limbs, adjacency_logits and presence_logits of the part.
    batch: keypoints, mask and annotated frames of the part; image for its size.
    rng: not used.
    part: 'body' or 'face'.
    l1_weight: weight of the limb vectors, in the cost and the loss.
    adjacency_weight: weight of the adjacency, in the cost and the loss.
    presence_weight: weight of the presence loss, if there are presence logits.
    no_object: weight of unmatched queries in the presence loss.
    beta: where smooth L1 becomes linear, in image sizes.

  Returns:
    Mean of the matching loss over frames with people, plus the mean of the
    presence loss over all annotated frames.
  """
  del rng
  queries = _queries('person_query', outputs, batch, part)
  if queries is None:
    return empty_term(batch)
  structure, target, frames = queries
  adjacency = structure.adjacency_logits
  frame_loss, match = matching.set_loss(
      f32(structure.limbs),
      None if adjacency is None else f32(adjacency),
      target,
      l1_weight=l1_weight,
      adjacency_weight=adjacency_weight,
      beta=beta,
  )
  pose = mean_over_frames(frame_loss, match.matched.any(-1))
  if structure.presence_logits is None:
    return pose
  logits = f32(structure.presence_logits)
  somebody = f32(matching.taken(match, logits.shape[-1]))
  bce = jax.nn.softplus(logits) - logits * somebody
  nobody = no_object * (1 - somebody)
  if 'ignore_boxes' in batch:
    # With unlabelled people in the frame, an unmatched query may be correct.
    known = ~has_area(f32(batch['ignore_boxes'])).any(-1)
    nobody = nobody * f32(known)[..., None]
  weight = somebody + nobody
  total = weight.sum(-1)
  presence = (weight * bce).sum(-1) / jnp.where(total > 0, total, 1.0)
  presence = mean_over_frames(presence, frames)
  return Term(
      pose.values + presence_weight * presence.values,
      pose.mask | presence.mask,
  )


def person_centers(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str,
    limb_weight: float = 5.0,
    direction_weight: float = 0.2,
    beta: float = 0.05,
) -> Term:
  """Loss of the center detector and of the limbs decoded at the centers.

  Detection: the focal loss of arXiv 1904.07850 (eq. 1) with a Gaussian around
  each center, summed over positions, per person. Limbs: at the positions around
  a center, smooth L1 of the limb vectors in units of the person's size, and of
  the limb directions (end - start) in units of the limb's length, so that small
  people and short limbs (nose, eyes, ears: where somebody looks) count as much
  as large ones.

  Args:
    outputs: center_logits and center_limbs of the part.
    batch: keypoints, mask and annotated frames of the part; image for its size.
    rng: not used.
    part: 'body' or 'face'.
    limb_weight: weight of the limbs relative to the detection.
    direction_weight: weight of the limb directions relative to the limbs.
    beta: where smooth L1 becomes linear, in sizes of the person.

  Returns:
    Mean over the annotated frames of each example.
  """
  del rng
  queries = _queries('person_centers', outputs, batch, part)
  if queries is None:
    return empty_term(batch)
  structure, target, frames = queries
  if structure.center_logits is None:
    raise ValueError(
        'person_centers: the model has no center logits; set'
        ' config.model.person_query.initial=centers'
    )
  logits = f32(structure.center_logits)  # [B, T, h, w]
  h, w = logits.shape[2:]
  center, size = _centers(batch, part, target)
  # Distance, in grid positions, from the position that contains the center.
  place = jnp.floor(center * f32([w, h]).reshape(1, 1, 1, 2))
  # [B, T, P, w] and [B, T, P, h].
  dx = f32(np.arange(w)).reshape(1, 1, 1, -1) - place[..., 0, None]
  dy = f32(np.arange(h)).reshape(1, 1, 1, -1) - place[..., 1, None]
  squared = dx[..., None, :] ** 2 + dy[..., :, None] ** 2  # [B, T, P, h, w]
  sigma = jnp.maximum(0.7, 0.1 * size * max(h, w))[..., None, None]
  there = target.mask[..., None, None]
  near = jnp.where(there, jnp.exp(-squared / (2 * sigma**2)), 0.0)
  owner, peak = near.argmax(2), near.max(2)  # [B, T, h, w]

  p = nn.sigmoid(logits)
  hit = (1 - p) ** 2 * jax.nn.softplus(-logits)
  miss = (1 - peak) ** 4 * p**2 * jax.nn.softplus(logits)
  if 'ignore_boxes' in batch:
    # Without complete labels, an unmatched center may be correct.
    miss = miss * counted_pixels(batch, (h, w))[..., 0]
  people = jnp.maximum(f32(target.mask.sum(-1)), 1.0)
  focal = jnp.where(peak >= 1.0, hit, miss).sum((2, 3)) / people

  def owned(values):  # [B, T, P, ...] -> [B, T, h w, ...]
    index = owner.reshape(*owner.shape[:2], -1)
    index = index.reshape(*index.shape, *[1] * (values.ndim - 3))
    return jnp.take_along_axis(values, index, 2)

  found = f32(structure.center_limbs)
  found = found.reshape(*logits.shape[:2], h * w, *found.shape[4:])
  true, exists = owned(target.limbs), f32(owned(target.exists))
  extent = owned(size)[..., None, None]
  difference = (found - true) / extent
  error = _mean(_smooth(difference, beta), exists)
  # Relative to the limb's length, at least 4 % of the person's size.
  along = true[..., 2:] - true[..., :2]
  length = jnp.sqrt(jnp.sum(along**2, -1, keepdims=True))
  length = jnp.maximum(length / extent, 0.04)
  turn = (difference[..., 2:] - difference[..., :2]) / length
  both = exists[..., :2] * exists[..., 2:]
  error = error + direction_weight * _mean(_smooth(turn, 0.5), both)
  weight = jnp.where(peak > 0.3, peak, 0.0).reshape(*peak.shape[:2], -1)
  total = weight.sum(-1)
  error = (weight * error).sum(-1) / jnp.where(total > 0, total, 1.0)
  return mean_over_frames(focal + limb_weight * error, frames)


def _smooth(difference, beta):
  size = jnp.abs(difference)
  close = jnp.minimum(size, beta)
  return close * (size - 0.5 * close) / beta


def _mean(values, weights):
  """Weighted mean over the last two axes."""
  total = weights.sum((-2, -1))
  return (values * weights).sum((-2, -1)) / jnp.maximum(total, 1.0)


def _centers(batch, part, target):
  """Centers [B, T, P, 2], 0..1, and sizes [B, T, P], shares of the image."""
  height, width = batch['image'].shape[2:4]
  count = skeletons.NUM_POINTS[part]
  joints = np.repeat(np.arange(count)[:, None], 2, 1)
  keypoints = f32(batch[f'{part}_keypoints'])
  present = skeletons.limb_visible(keypoints, joints, height, width)
  preferred = np.full(count, 1e-4, np.float32)
  preferred[list(skeletons.CENTER_JOINTS[part])] = 1.0
  weight = (f32(present) * preferred.reshape(1, 1, 1, -1))[..., None]
  xy = keypoints[..., :2] / f32([width, height]).reshape(1, 1, 1, 1, 2)
  xy = jnp.where(present[..., None], xy, 0.0)
  total = weight.sum(3)
  center = (xy * weight).sum(3) / jnp.where(total > 0, total, 1.0)
  ends = target.limbs.reshape(*target.limbs.shape[:3], -1, 2)
  exists = target.exists.reshape(ends.shape)
  low = jnp.where(exists, ends, jnp.inf).min(3)
  high = jnp.where(exists, ends, -jnp.inf).max(3)
  size = jnp.where(target.mask, (high - low).max(-1), 1.0)
  # A person with a single visible joint has no extent.
  return center, jnp.maximum(size, 0.05)


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
  """`1 - OKS` of matched people, an error relative to person size and joint.

  Object keypoint similarity is the mean over existing limb ends of
  `exp(-d^2 / (2 s^2 k^2))`, with d in pixels, k = 2 sigma of the joint, and s^2
  the person's area. People are matched as in `person_query`, with which this
  term should be combined, since its gradient vanishes far from the target.

  Args:
    outputs: limbs and adjacency_logits of the part.
    batch: as in `person_query`.
    rng: not used.
    part: 'body' or 'face'.
    area_share: area of a person relative to the bounding box of its joints
      (0.53 on COCO).

  Returns:
    0..1, the mean over the frames with people of each example.
  """
  del rng
  queries = _queries('oks_keypoints', outputs, batch, part)
  if queries is None:
    return empty_term(batch)
  structure, target, _ = queries
  limbs, adjacency = f32(structure.limbs), structure.adjacency_logits
  _, match = matching.set_loss(
      limbs, None if adjacency is None else f32(adjacency), target
  )
  height, width = batch['image'].shape[2:4]
  ends = (*target.limbs.shape[:-1], 2, 2)  # [B, T, P, L, end, (x, y)]
  size = jnp.broadcast_to(f32([width, height]), ends)
  true = target.limbs.reshape(ends) * size
  found = matching.take(limbs, match).reshape(ends) * size
  exists = target.exists.reshape(ends)
  squared = jnp.sum(jnp.where(exists, found - true, 0.0) ** 2, -1)
  low = jnp.min(jnp.where(exists, true, jnp.inf), (-3, -2))
  high = jnp.max(jnp.where(exists, true, -jnp.inf), (-3, -2))
  box = jnp.where(match.matched, jnp.prod(high - low, -1), 0.0)
  # The box of a single joint has no area; at least one pixel keeps the
  # similarity defined.
  area = jnp.maximum(area_share * box, 1.0)[..., None, None]
  k = 2 * OKS_SIGMAS[part][skeletons.QUERY_LIMBS[part]]  # [L, end]
  scale = area * jnp.broadcast_to(f32(k**2), squared.shape)
  counts = f32(exists[..., 0])
  similar = jnp.sum(jnp.exp(-squared / (2 * scale)) * counts, (-2, -1))
  similar = similar / jnp.maximum(counts.sum((-2, -1)), 1.0)
  frame_loss = matching.matched_mean(1 - similar, match.matched)
  return mean_over_frames(frame_loss, match.matched.any(-1))
