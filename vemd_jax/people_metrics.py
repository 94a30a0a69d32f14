"""Metrics of decoded people, as sums over batches.

Bodies: average precision over object keypoint similarity as COCO defines it
(https://cocodataset.org/#keypoints-eval), overall and by size of the person.
Faces: normalized mean error as in 300-W, the mean error of the landmarks over
the distance between the outer corners of the eyes.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import losses, matching, skeletons
from vemd_jax.models.outputs import Structure

# PCK threshold, relative to the longer side of the person's bounding box.
PCK_SHARE = 0.1
# Average precision depends only on the order of the presence logits, so they
# are binned over [-RANGE, RANGE]: histograms can be summed over batches and
# processes.
BINS, RANGE = 2048, 16.0
# Area of a person relative to the bounding box of the joints (mean of COCO).
AREA_SHARE = 0.53
# COCO's ranges of a person's area in square pixels, of the model's input.
SIZES = {
    'all': (0.0, 1e10),
    'small': (0.0, 32.0**2),
    'medium': (32.0**2, 96.0**2),
    'large': (96.0**2, 1e10),
}
_THRESHOLDS = np.linspace(0.5, 0.95, 10).astype(np.float32)
# Outer corners of the eyes.
_EYES = (36, 45)


@flax.struct.dataclass
class People:
  """Sums over the matched people of one part.

  Attributes:
    people: number of annotated people.
    joints: [sizes] number of visible joints of the matched people.
    error: sum over those joints of the distance in pixels.
    right: [sizes] number of joints within `PCK_SHARE` of the person's size.
    found: [bins] matched queries by presence logit; None without presence.
    empty: [bins] unmatched queries by presence logit.
    faces: number of matched faces with both outer corners of the eyes visible.
    landmark_error: sum over those faces of the normalized mean error.
    precision: histograms for `oks_ap`; None in training.
  """

  people: jax.Array
  joints: jax.Array
  error: jax.Array
  right: jax.Array
  found: jax.Array | None
  empty: jax.Array | None
  faces: jax.Array
  landmark_error: jax.Array
  precision: 'Precision | None'

  def compute(self) -> dict[str, float]:
    """`keypoint_error`, `pck`, `presence_ap`, `oks_ap`, `nme`, by size too."""
    results = {}
    total = self.joints[0]
    if total:
      results['keypoint_error'] = float(self.error / total)
    for i, size in enumerate(SIZES):
      if self.joints[i] and (not i or self.joints[i] != total):
        name = 'pck' if size == 'all' else f'pck_{size}'
        results[name] = float(self.right[i] / self.joints[i])
    if self.found is not None and self.people:
      results['presence_ap'] = average_precision(
          self.found, self.empty, self.people
      )
    if self.faces:
      results['nme'] = float(self.landmark_error / self.faces)
    if self.precision is not None:
      results |= self.precision.compute()
    return results


@flax.struct.dataclass
class Precision:
  """Histograms for COCO's average precision over keypoint similarity.

  Attributes:
    people: [sizes] number of people.
    hits: [sizes, thresholds, bins] true positives by presence logit.
    misses: [sizes, thresholds, bins] false positives by presence logit.
  """

  people: jax.Array
  hits: jax.Array
  misses: jax.Array

  def compute(self) -> dict[str, float]:
    """`oks_ap`, and `oks_ap_<size>` of the sizes that occur."""
    results = {}
    for i, size in enumerate(SIZES):
      if self.people[i] and (not i or self.people[i] != self.people[0]):
        name = 'oks_ap' if size == 'all' else f'oks_ap_{size}'
        results[name] = float(np.mean([
            interpolated_precision(hits, misses, self.people[i])
            for hits, misses in zip(self.hits[i], self.misses[i])
        ]))
    return results


def measure(
    structure: Structure,
    batch: Mapping[str, jax.Array],
    part: str,
    frames: jax.Array,
    *,
    precision: bool,
) -> People:
  """Sums of one batch.

  Args:
    structure: decoded structure with limbs.
    batch: keypoints and mask of the part; image for its size.
    part: 'body' or 'face'.
    frames: [B, T] bool, annotated frames of real examples.
    precision: whether to compute the histograms for `oks_ap`.

  Returns:
    The sums.
  """
  height, width = batch['image'].shape[2:4]
  topology = skeletons.QUERY_LIMBS[part]
  keypoints = batch[f'{part}_keypoints']
  target = matching.people_of(batch, part, frames)
  limbs = structure.limbs.astype(jnp.float32)
  adjacency = structure.adjacency_logits
  cost = matching.pair_costs(limbs, adjacency, target)
  match = matching.assign(cost, target.mask)
  size = jnp.array([width, height], jnp.float32)
  count = skeletons.NUM_POINTS[part]
  queries = matching.joints(limbs, topology, count)
  queries = queries * jnp.broadcast_to(size, queries.shape)
  found = matching.take(queries, match)
  true = keypoints[..., :2].astype(jnp.float32)
  # A joint exists where a limb end does; landmarks that belong to no limb are
  # not evaluated.
  exists = matching.joints(target.exists.astype(jnp.float32), topology, count)
  exists = (exists[..., 0] > 0) & target.mask[..., None]
  present = exists & match.matched[..., None]
  distance = jnp.sqrt(jnp.sum((found - true) ** 2, -1))
  low = jnp.where(exists[..., None], true, jnp.inf).min(-2)
  high = jnp.where(exists[..., None], true, -jnp.inf).max(-2)
  extent = jnp.where(target.mask[..., None], high - low, 0.0)
  right = present & (distance <= PCK_SHARE * extent.max(-1, keepdims=True))
  area = AREA_SHARE * jnp.prod(extent, -1)
  inside = _in_range(area) & target.mask[None]  # [sizes, B, T, P]
  hit = miss = None
  scores = structure.presence_logits
  if scores is not None:
    scores = scores.astype(jnp.float32)
    taken = matching.taken(match, scores.shape[-1])
    counted = jnp.broadcast_to(frames[..., None], scores.shape)
    hit = _histogram(scores, taken & counted)
    miss = _histogram(scores, ~taken & counted)
  faces, landmark_error = _landmarks(part, keypoints, distance, present)
  result = None
  if precision and part == 'body' and scores is not None:
    similarity = _similarity(queries, true, exists, area)
    low, high = queries.min(-2), queries.max(-2)
    result = _precision(
        similarity, scores, inside, target.mask, _in_range(
            jnp.prod(high - low, -1)
        ), frames,
    )  # fmt: skip
  return People(
      people=target.mask.astype(jnp.float32).sum(),
      joints=_by_size(present, inside),
      error=jnp.where(present, distance, 0.0).sum(),
      right=_by_size(right, inside),
      found=hit,
      empty=miss,
      faces=faces,
      landmark_error=landmark_error,
      precision=result,
  )


def _in_range(area):
  low, high = np.array(list(SIZES.values()), np.float32).T
  shape = (len(SIZES), *[1] * area.ndim)
  return (low.reshape(shape) <= area[None]) & (area[None] < high.reshape(shape))


def _by_size(joints, inside):
  """[..., P, K] bool, [sizes, ..., P] bool -> [sizes] sums."""
  both = joints[None] & inside[..., None]
  return both.astype(jnp.float32).sum(tuple(range(1, both.ndim)))


def _landmarks(part, keypoints, distance, present):
  """Number of faces with visible eyes, and the sum of their errors."""
  if part != 'face':
    return jnp.zeros(()), jnp.zeros(())
  eyes = keypoints[..., _EYES, :].astype(jnp.float32)
  between = jnp.sqrt(((eyes[..., 0, :2] - eyes[..., 1, :2]) ** 2).sum(-1))
  known = (eyes[..., 2] >= skeletons.MIN_SCORE).all(-1)
  known &= present.any(-1) & (between > 0)
  error = jnp.where(present, distance, 0.0).sum(-1)
  error = error / jnp.maximum(present.sum(-1), 1).astype(jnp.float32)
  error = jnp.where(known, error / jnp.where(known, between, 1.0), 0.0)
  return known.astype(jnp.float32).sum(), error.sum()


def _similarity(queries, true, exists, area):
  """Object keypoint similarity of each query with each person, [..., Q, P]."""
  difference = queries[..., :, None, :, :] - true[..., None, :, :, :]
  squared = jnp.sum(difference**2, -1)
  spread = (2 * losses.OKS_SIGMAS['body']) ** 2
  spread = spread.reshape((1,) * (squared.ndim - 1) + (-1,))
  scale = 2 * jnp.maximum(area, 1.0)[..., None, :, None] * spread
  counts = exists.astype(jnp.float32)[..., None, :, :]
  similar = (jnp.exp(-squared / scale) * counts).sum(-1)
  return similar / jnp.maximum(counts.sum(-1), 1.0)


def _precision(similarity, scores, inside, there, own_size, frames):
  """Greedy matching as in pycocotools, in descending order of presence."""
  q, p = similarity.shape[-2:]
  order = jnp.argsort(-scores, -1).reshape(-1, q)
  similarity = similarity.reshape(-1, q, p)
  inside = inside.reshape(len(SIZES), -1, p)
  own_size = own_size.reshape(len(SIZES), -1, q)
  shape = (len(SIZES), len(_THRESHOLDS))

  def frame(similarity, order, there, inside, own_size):

    def step(taken, query):  # taken [sizes, thresholds, P]
      own = jnp.broadcast_to(similarity[query], taken.shape)
      enough = own >= _THRESHOLDS.reshape(1, -1, 1)
      free = enough & ~taken & there.reshape(1, 1, -1)
      # People of other sizes are ignored, and are matched last.
      counts = jnp.broadcast_to(inside[:, None], taken.shape)
      rank = jnp.where(free, own + jnp.where(counts, 2.0, 0.0), -1.0)
      best = rank.argmax(-1)
      any_ = rank.max(-1) >= 0
      new = jax.nn.one_hot(best, p, dtype=bool) & any_[..., None]
      hit = (new & counts).any(-1)
      miss = ~any_ & own_size[:, query][:, None]
      return taken | new, (query, hit, miss)

    taken = jnp.zeros((*shape, p), bool)
    _, (query, hit, miss) = jax.lax.scan(step, taken, order)
    # From the order of presence to that of the queries.
    back = jnp.argsort(query)
    return hit[back], miss[back]

  hit, miss = jax.vmap(frame, (0, 0, 0, 1, 1))(
      similarity, order, there.reshape(-1, p), inside, own_size
  )  # [N, Q, sizes, thresholds]
  counted = frames.reshape(-1, 1, 1, 1)
  bins = jnp.broadcast_to(
      _bin(scores).reshape(-1, q, 1, 1), hit.shape
  )
  index = jnp.arange(len(SIZES) * len(_THRESHOLDS)).reshape(1, 1, *shape)
  flat = (index * BINS + bins).reshape(-1)

  def histogram(values):
    values = (values & counted).astype(jnp.float32).reshape(-1)
    zeros = jnp.zeros(len(SIZES) * len(_THRESHOLDS) * BINS, jnp.float32)
    return zeros.at[flat].add(values).reshape(*shape, BINS)

  people = inside.astype(jnp.float32).sum((1, 2))
  return Precision(people, histogram(hit), histogram(miss))


def _bin(scores):
  bins = (jnp.clip(scores / RANGE, -1, 1) + 1) * (0.5 * (BINS - 1))
  return jnp.round(bins).astype(jnp.int32)


def _histogram(scores, counts):
  bins = _bin(scores).reshape(-1)
  counts = counts.astype(jnp.float32).reshape(-1)
  return jnp.zeros(BINS, jnp.float32).at[bins].add(counts)


def _precisions(found, empty):
  """Matches and precision by descending score; 0 / 0 is 0."""
  found = np.asarray(found, np.float64)[::-1]
  all_ = (found + np.asarray(empty, np.float64)[::-1]).cumsum()
  hits = found.cumsum()
  return found, np.divide(hits, all_, out=np.zeros_like(hits), where=all_ > 0)


def average_precision(
    found: np.ndarray, empty: np.ndarray, people: float
) -> float:
  """Area under the precision-recall curve, from histograms over the score.

  Args:
    found: [bins] number of matched queries, by ascending score.
    empty: [bins] number of unmatched queries.
    people: number of people; people without a matched query count as misses.

  Returns:
    0..1: sum over bins of the increase in recall times the precision.
  """
  found, precision = _precisions(found, empty)
  return float((found * precision).sum() / people)


def interpolated_precision(
    found: np.ndarray, empty: np.ndarray, people: float
) -> float:
  """COCO's average precision, interpolated at 101 recall levels.

  Args:
    found: [bins] as in `average_precision`.
    empty: [bins] as in `average_precision`.
    people: as in `average_precision`.

  Returns:
    0..1.
  """
  found, precision = _precisions(found, empty)
  recall = found.cumsum() / people
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  index = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
  return float(np.append(precision, 0.0)[index].mean())
