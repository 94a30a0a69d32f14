"""Estimates the number of people in an image from the decoded structure.

Only the resulting abstain flag is an output of the exported model. Limb
heatmaps do not separate instances, so people are counted per limb: each
connected region of a limb's map counts as one person, and the estimate is the
upper quartile over the limbs that occur. People who touch share a region, which
biases the count towards too few.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vemd_jax.models.outputs import Outputs, Structure

# Threshold on heatmap values and presence probabilities.
_THRESHOLD = {'heatmap': 0.4, 'person_query': 0.5}


def people(outputs: Outputs) -> tuple[jax.Array, jax.Array]:
  """Counts people and computes the area share of the largest person.

  Args:
    outputs: outputs of a model that decodes structure.

  Returns:
    count [B, T], the maximum of the counts of bodies and faces; and share
    [B, T], the largest person's share of the area of all people, the minimum
    over bodies and faces. The share is 1 for one person or none.
  """
  measured = [
      _of_heatmaps(part) if part.limbs is None else _of_queries(part)
      for part in (outputs.body, outputs.face)
      if part is not None
  ]
  counts, shares = zip(*measured)
  return jnp.stack(counts).max(0), jnp.stack(shares).min(0)


def _of_queries(part: Structure) -> tuple[jax.Array, jax.Array]:
  present = nn.sigmoid(part.presence_logits) > _THRESHOLD['person_query']
  ends = part.limbs.reshape(*part.limbs.shape[:-2], -1, 2)
  area = (ends.max(-2) - ends.min(-2)).prod(-1)
  area = jnp.where(present, area, 0.0)
  count = present.sum(-1).astype(jnp.float32)
  return count, _share(area.max(-1), area.sum(-1))


def _of_heatmaps(part: Structure) -> tuple[jax.Array, jax.Array]:
  maps = nn.sigmoid(part.heatmap_logits[-1])  # [B, T, h, w, L]
  grid = maps.shape[:2]
  mask = maps.reshape(-1, *maps.shape[2:]) > _THRESHOLD['heatmap']
  label = components(mask)
  size = mask[0, ..., 0].size
  label = jnp.where(mask, label, size).reshape(mask.shape[0], size, -1)

  def areas(label):
    """Areas of the regions of one map: [h w] -> [h w]."""
    return jnp.zeros(size + 1, jnp.int32).at[label].add(1)[:size]

  area = jax.vmap(jax.vmap(areas, 1, 1))(label).astype(jnp.float32)
  count = (area > 0).sum(1).astype(jnp.float32)  # [N, L]
  share = _share(area.max(1), area.sum(1))
  occurs = count > 0
  count, share = (
      jnp.nanquantile(jnp.where(occurs, x, jnp.nan), q, axis=-1, method=method)
      for x, q, method in ((count, 0.75, 'lower'), (share, 0.25, 'higher'))
  )
  none = ~occurs.any(-1)
  count, share = jnp.where(none, 0.0, count), jnp.where(none, 1.0, share)
  return count.reshape(grid), share.reshape(grid)


def components(mask: jax.Array) -> jax.Array:
  """Labels connected components with 8-connectivity.

  Args:
    mask: bool [N, h, w, L]; each of the N * L maps is labelled independently.

  Returns:
    int32 [N, h, w, L]: the smallest index y w + x in the component of a pixel;
    undefined outside the mask.
  """
  height, width = mask.shape[1:3]
  outside = jnp.int32(height * width)
  index = jnp.arange(height * width, dtype=jnp.int32)
  index = index.reshape(1, height, width, 1)
  start = jnp.where(mask, index, outside)

  def spread(state):
    label, _ = state
    lowest = label
    for axis in (1, 2):
      lowest = _lowest_neighbour(lowest, axis, outside)
    lowest = jnp.where(mask, lowest, outside)
    return lowest, (lowest != label).any()

  return jax.lax.while_loop(
      lambda state: state[1], spread, (start, mask.any())
  )[0]


def _lowest_neighbour(x, axis, outside):
  pad = [(0, 0)] * x.ndim
  pad[axis] = (1, 1)
  padded = jnp.pad(x, pad, constant_values=outside)
  size = x.shape[axis]
  return jnp.minimum(
      x,
      jnp.minimum(
          jax.lax.slice_in_dim(padded, 0, size, axis=axis),
          jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis),
      ),
  )


def _share(largest, total):
  return jnp.where(total > 0, largest / jnp.maximum(total, 1e-9), 1.0)
