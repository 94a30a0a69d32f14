"""Bipartite matching between decoded queries and the people of a frame.

All functions accept any leading axes, written `...` below: frames, or clips and
frames. A person is represented by a vector `(x1, y1, x2, y2)` in 0..1 of the
image for each limb, a mask of the coordinates that exist, and the adjacency of
its limbs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import assignment, skeletons
from vemd_jax.models import axes


class People(NamedTuple):
  """The targets that the queries of a frame are matched with.

  Attributes:
    limbs: [..., P, L, 4] (x1, y1, x2, y2) in 0..1; arbitrary where missing.
    exists: [..., P, L, 4] bool, the coordinates that exist.
    adjacency: [..., P, L, L] 0 or 1.
    mask: [..., P] bool, the slots that hold a person with a visible joint.
  """

  limbs: jax.Array
  exists: jax.Array
  adjacency: jax.Array
  mask: jax.Array


class Match(NamedTuple):
  """An assignment of a query to each person.

  Attributes:
    query: [..., P] int32, index of the query of each person (0 if unmatched).
    matched: [..., P] bool, False for padding and for unmatched people.
  """

  query: jax.Array
  matched: jax.Array


def people(
    keypoints: jax.Array,
    mask: jax.Array,
    limbs: np.ndarray,
    image_size: tuple[int, int],
) -> People:
  """Limb targets of annotated people.

  If one end of a limb is missing, the other end is still used. Two limbs are
  adjacent if they share a joint and both are visible. People without a visible
  joint are masked out.

  Args:
    keypoints: [..., P, K, 3] (x, y, score) in pixels.
    mask: [..., P] bool, slots that hold a person.
    limbs: [L, 2] joint numbers.
    image_size: (height, width) in pixels.

  Returns:
    The people, float32.
  """
  height, width = image_size
  joints = np.repeat(np.arange(keypoints.shape[-2])[:, None], 2, axis=1)
  present = skeletons.limb_visible(keypoints, joints, height, width)
  visible = skeletons.limb_visible(keypoints, limbs, height, width)
  xy = keypoints[..., :2].astype(jnp.float32)
  xy = xy / jnp.broadcast_to(jnp.array([width, height], jnp.float32), xy.shape)
  ends = jnp.where(present[..., None], xy, 0.0)[..., limbs, :]
  exists = jnp.broadcast_to(present[..., limbs][..., None], ends.shape)
  flat = (*ends.shape[:-3], len(limbs), 4)
  shared = skeletons.shared_joint(limbs)
  both = visible[..., :, None] & visible[..., None, :]
  adjacency = both & jnp.broadcast_to(shared, both.shape)
  exists = exists.reshape(flat)
  return People(
      ends.reshape(flat),
      exists,
      adjacency.astype(jnp.float32),
      mask.astype(bool) & exists.any((-2, -1)),
  )


def people_of(
    batch: Mapping[str, jax.Array], part: str, frames: jax.Array
) -> People:
  """Limb targets of the people of a part, from `people`.

  Args:
    batch: keypoints and mask of the part; image for its size.
    part: 'body' or 'face'.
    frames: [B, T] bool; the people of other frames are masked out.

  Returns:
    The people, [B, T, P, ...].
  """
  return people(
      batch[f'{part}_keypoints'],
      batch[f'{part}_mask'].astype(bool) & frames[..., None],
      skeletons.QUERY_LIMBS[part],
      batch['image'].shape[2:4],
  )


def _smooth_l1(difference, beta):
  # d^2 / 2 beta below beta, d - beta / 2 above. This form without a branch is
  # twice as fast on a CPU.
  size = jnp.abs(difference)
  near = jnp.minimum(size, beta)
  return near * (size - 0.5 * near) / beta


def _softplus(x):
  # Three times as fast as jax.nn.softplus, which also handles cases (such as
  # infinities) that do not occur here.
  return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _limb_cost(limbs, targets, exists, beta):
  """Smooth L1 averaged over the coordinates that exist (0 if none do)."""
  exists = exists.astype(jnp.float32)
  # A missing coordinate may have any value, including NaN.
  difference = jnp.where(exists > 0, limbs - targets, 0.0)
  cost = _smooth_l1(difference, beta).sum(-1)
  return cost / jnp.maximum(exists.sum(-1), 1.0)


def _flatten(values):
  *lead, rows, columns = values.shape
  return values.astype(jnp.float32).reshape(*lead, rows * columns)


def _check(limbs, adjacency_logits, target: People):
  lead, (queries, count, _) = limbs.shape[:-3], limbs.shape[-3:]
  persons = target.mask.shape[-1]
  expected = {
      'limbs': (limbs.shape, (*lead, queries, count, 4)),
      'target limbs': (target.limbs.shape, (*lead, persons, count, 4)),
      'target exists': (target.exists.shape, (*lead, persons, count, 4)),
      'person mask': (target.mask.shape, (*lead, persons)),
  }
  if adjacency_logits is not None:
    expected |= {
        'adjacency logits': (
            adjacency_logits.shape,
            (*lead, queries, count, count),
        ),
        'target adjacency': (
            target.adjacency.shape,
            (*lead, persons, count, count),
        ),
    }
  for name, (shape, wanted) in expected.items():
    if shape != wanted:
      raise ValueError(f'{name}: shape {shape}, expected {wanted}')


def pair_costs(
    limbs: jax.Array,
    adjacency_logits: jax.Array | None,
    target: People,
    *,
    l1_weight: float = 1.0,
    adjacency_weight: float = 0.5,
    beta: float = 1.0,
) -> jax.Array:
  """Matching cost of each pair of query and person.

  `l1_weight` x smooth L1 of the limb vectors, averaged over the coordinates
  that exist, plus `adjacency_weight` x mean binary cross-entropy of the
  adjacency (the matching cost of arXiv 2604.02397, PersonQuery).

  Args:
    limbs: [..., Q, L, 4] in 0..1.
    adjacency_logits: [..., Q, L, L], or None to leave adjacency out.
    target: the people, [..., P, ...].
    l1_weight: weight of the limb vectors.
    adjacency_weight: weight of the adjacency.
    beta: where smooth L1 turns from quadratic to linear, in image sizes.

  Returns:
    [..., Q, P] float32. Columns of masked people are meaningless.

  Raises:
    ValueError: if the shapes are inconsistent.
  """
  _check(limbs, adjacency_logits, target)
  cost = l1_weight * _limb_cost(
      _flatten(limbs)[..., :, None, :],
      _flatten(target.limbs)[..., None, :, :],
      _flatten(target.exists)[..., None, :, :],
      beta,
  )
  if adjacency_logits is None:
    return cost
  # BCE(x, t) = softplus(x) - t x needs one matrix product instead of an array
  # over queries x people x limbs x limbs.
  logits = _flatten(adjacency_logits)
  entropy = _softplus(logits).mean(-1)[..., :, None]
  agreement = jnp.einsum(
      '...qa,...pa->...qp',
      logits,
      _flatten(target.adjacency),
      precision=jax.lax.Precision.HIGHEST,
  )
  bce = entropy - agreement / logits.shape[-1]
  return cost + adjacency_weight * bce


def assign(cost: jax.Array, mask: jax.Array) -> Match:
  """The assignment of minimal cost (Hungarian algorithm).

  Each person is assigned a different query; if there are more people than
  queries, the subset of minimal cost is matched. There are no gradients.

  Args:
    cost: [..., Q, P]; non-finite entries rank after all finite ones.
    mask: [..., P] bool, people that exist.

  Returns:
    The match.
  """
  if mask.shape != (*cost.shape[:-2], cost.shape[-1]):
    raise ValueError(f'mask: shape {mask.shape} for costs {cost.shape}')
  queries, persons = cost.shape[-2:]
  if not queries or not persons:
    return Match(jnp.zeros(mask.shape, jnp.int32), jnp.zeros(mask.shape, bool))
  cost = jax.lax.stop_gradient(cost.astype(jnp.float32))
  present = mask.astype(bool)[..., None, :]
  usable = jnp.isfinite(cost) & present
  top = jnp.max(jnp.where(usable, jnp.abs(cost), 0.0), (-2, -1), keepdims=True)
  # The cost of padding is the same for all queries, so it does not change the
  # assignment of real people, and higher than theirs, so it never takes their
  # query.
  cost = jnp.where(usable, cost, 2.0 * top + 1.0)
  cost = jnp.where(present, cost, 4.0 * top + 2.0)

  query = axes.locally(_assign, cost)
  matched = (query >= 0) & mask.astype(bool)
  return Match(jnp.where(matched, query, 0), matched)


def _assign(cost: jax.Array) -> jax.Array:
  """[..., Q, P] -> [..., P] int32, the query of each person, -1 without."""
  *lead, queries, persons = cost.shape
  cost = cost.reshape(-1, queries, persons)
  if persons <= queries:
    query = assignment.solve(cost.swapaxes(1, 2))
  else:
    person = assignment.solve(cost)  # [N, Q]
    given = person[:, :, None] == jnp.arange(persons)[None, None]
    query = jnp.where(given.any(1), given.argmax(1).astype(jnp.int32), -1)
  return query.reshape(*lead, persons)


def take(values: jax.Array, match: Match) -> jax.Array:
  """Gathers the values of the matched queries.

  Args:
    values: [..., Q, *rest].
    match: match with the same leading axes.

  Returns:
    [..., P, *rest]; the values of query 0 for unmatched people.
  """
  rest = values.ndim - match.query.ndim
  index = match.query.reshape(*match.query.shape, *[1] * rest)
  return jnp.take_along_axis(values, index, axis=match.query.ndim - 1)


def matched_costs(
    limbs: jax.Array,
    adjacency_logits: jax.Array | None,
    target: People,
    match: Match,
    *,
    l1_weight: float = 1.0,
    adjacency_weight: float = 0.5,
    beta: float = 1.0,
) -> jax.Array:
  """`pair_costs` of the matched pairs only, for the loss and its gradient.

  Args:
    limbs: as in `pair_costs`.
    adjacency_logits: as in `pair_costs`.
    target: as in `pair_costs`.
    match: the assignment.
    l1_weight: as in `pair_costs`.
    adjacency_weight: as in `pair_costs`.
    beta: as in `pair_costs`.

  Returns:
    [..., P] float32, 0 where unmatched.
  """
  if not match.query.size:
    return jnp.zeros(match.query.shape, jnp.float32)
  cost = l1_weight * _limb_cost(
      _flatten(take(limbs, match)),
      _flatten(target.limbs),
      _flatten(target.exists),
      beta,
  )
  if adjacency_logits is not None:
    logits = _flatten(take(adjacency_logits, match))
    bce = _softplus(logits) - logits * _flatten(target.adjacency)
    cost = cost + adjacency_weight * bce.mean(-1)
  return jnp.where(match.matched, cost, 0.0)


def matched_mean(values: jax.Array, matched: jax.Array) -> jax.Array:
  """Mean over the matched people of a frame, 0 if there are none.

  Args:
    values: [..., P].
    matched: [..., P] bool.

  Returns:
    [...] float32.
  """
  values = jnp.where(matched, values.astype(jnp.float32), 0.0)
  return values.sum(-1) / jnp.maximum(matched.sum(-1), 1).astype(jnp.float32)


def taken(match: Match, queries: int) -> jax.Array:
  """Which queries are matched with a person.

  Args:
    match: the match.
    queries: number of queries Q.

  Returns:
    [..., Q] bool.
  """
  return _pairs(match, queries).any(-1)


def _pairs(match: Match, queries: int) -> jax.Array:
  """The match as a mask [..., Q, P]."""
  shape = (*match.query.shape[:-1], queries, match.query.shape[-1])
  numbers = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)
  same = numbers == match.query[..., None, :]
  return same & match.matched[..., None, :]


def set_loss(
    limbs: jax.Array,
    adjacency_logits: jax.Array | None,
    target: People,
    *,
    l1_weight: float = 1.0,
    adjacency_weight: float = 0.5,
    beta: float = 1.0,
) -> tuple[jax.Array, Match]:
  """Mean cost of the matched pairs of each frame.

  Args:
    limbs: [..., Q, L, 4] in 0..1.
    adjacency_logits: [..., Q, L, L], or None to leave adjacency out.
    target: the people, [..., P, ...].
    l1_weight: weight of the limb vectors.
    adjacency_weight: weight of the adjacency.
    beta: where smooth L1 turns from quadratic to linear, in image sizes.

  Returns:
    The loss of each frame [...], 0 without people, and the match. Gradients
    flow through the matched costs only.
  """
  weights = dict(
      l1_weight=l1_weight, adjacency_weight=adjacency_weight, beta=beta
  )
  # stop_gradient restricts the backward pass to the matched pairs.
  cost = pair_costs(
      *jax.lax.stop_gradient((limbs, adjacency_logits, target)), **weights
  )
  match = assign(cost, target.mask)
  costs = matched_costs(limbs, adjacency_logits, target, match, **weights)
  return matched_mean(costs, match.matched), match


def replace(
    limbs: jax.Array,
    presence_logits: jax.Array | None,
    target: People,
    frames: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
  """Annotated people in the place of the decoded ones they are matched with.

  Coordinates that are not annotated keep their decoded values. There are no
  gradients.

  Args:
    limbs: [..., Q, L, 4] in 0..1.
    presence_logits: [..., Q], or None.
    target: the people, [..., P, ...].
    frames: [...] bool, the annotated frames; the others are not changed.

  Returns:
    The limbs, and presence logits that are high for annotated people and low
    for all other queries.
  """
  limbs, presence_logits = jax.lax.stop_gradient((limbs, presence_logits))
  match = assign(pair_costs(limbs, None, target), target.mask)
  pairs = _pairs(match, limbs.shape[-3])
  person = pairs.argmax(-1)[..., None, None]  # [..., Q, 1, 1]
  exists = pairs.any(-1)[..., None, None] & jnp.take_along_axis(
      target.exists, person, -3
  )
  true = jnp.take_along_axis(target.limbs, person, -3)
  limbs = jnp.where(exists, true, limbs)
  if presence_logits is not None:
    sure = jnp.where(pairs.any(-1), 10.0, -20.0)
    presence_logits = jnp.where(frames[..., None], sure, presence_logits)
  return limbs, presence_logits


def joints(limbs: jax.Array, topology: np.ndarray, count: int) -> jax.Array:
  """Joint positions from limb vectors, as the mean of the limb ends there.

  Args:
    limbs: [..., L, 4] (x1, y1, x2, y2).
    topology: [L, 2] joint numbers.
    count: number of joints K.

  Returns:
    [..., K, 2], 0 for a joint without limbs.
  """
  ends = limbs.reshape(*limbs.shape[:-2], -1, 2)
  share = np.equal(np.arange(count)[:, None], topology.reshape(-1))
  share = share / np.maximum(share.sum(1, keepdims=True), 1)
  return jnp.einsum(
      'ke,...ec->...kc',
      jnp.asarray(share, limbs.dtype),
      ends,
      precision=jax.lax.Precision.HIGHEST,
  )
