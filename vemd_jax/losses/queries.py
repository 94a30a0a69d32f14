"""Loss terms of PersonQuery decoders: sets of people."""

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import skeletons
from vemd_jax.losses import matching
from vemd_jax.losses.heatmaps import has_area
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
  """Structure, the people (none in frames that do not count), frames [B, T]."""
  structure = structure_of(term, outputs, part)
  if structure.limbs is None:
    raise ValueError(f'{term}: the model decodes no {part} queries')
  if f'{part}_annotated' not in batch:
    return None
  frames = batch[f'{part}_annotated'].astype(bool) & real(batch)[:, None]
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
    # Where people lack labels, a query without a match may be right.
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
  # A single joint has no box: one pixel keeps the similarity defined.
  area = jnp.maximum(area_share * box, 1.0)[..., None, None]
  k = 2 * OKS_SIGMAS[part][skeletons.QUERY_LIMBS[part]]  # [L, end]
  scale = area * jnp.broadcast_to(f32(k**2), squared.shape)
  counts = f32(exists[..., 0])
  similar = jnp.sum(jnp.exp(-squared / (2 * scale)) * counts, (-2, -1))
  similar = similar / jnp.maximum(counts.sum((-2, -1)), 1.0)
  frame_loss = matching.matched_mean(1 - similar, match.matched)
  return mean_over_frames(frame_loss, match.matched.any(-1))
