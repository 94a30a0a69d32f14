"""Relations between people, read from decoded structure before pooling.

Both modules compute one vector per frame, independent of the order of people.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vemd_jax import skeletons
from vemd_jax.models import layers
from vemd_jax.models.convolution import Conv


def _symmetric_joints(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Joints of a limb vector whose mirror image is part of it, too.

  Args:
    part: 'body' or 'face'.

  Returns:
    [K, 2 L] float32 weights of the limb ends in each joint (their mean); [K]
    the index of each joint's mirror image; [K] float32 weights of the joints
    in the person's center. Joints without a limb, or whose mirror image has
    none, are left out.
  """
  ends = skeletons.QUERY_LIMBS[part].reshape(-1)
  flip = skeletons.FLIPS[part]
  there = np.unique(ends)
  joints = there[np.isin(flip[there], there)]
  share = (joints[:, None] == ends).astype(np.float32)
  share /= share.sum(1, keepdims=True)
  center = np.isin(joints, skeletons.CENTER_JOINTS[part])
  return (
      share,
      np.searchsorted(joints, flip[joints]),
      (center / center.sum()).astype(np.float32),
  )


class PeopleRelations(nn.Module):
  """Relations between people, from their limbs and positions.

  For each ordered pair (i, j), person i is described as seen toward j: joints
  relative to the center of i's bounding box, in units of its size, and mirrored
  (left and right joints swapped) if j is on the left. Facing j is thus the same
  direction on either side, and without features the result is invariant to
  mirroring the image. Features split into an even and an odd linear map; the
  odd one changes sign with the side. A pair is encoded from the two
  descriptions, the offset and the ratio of sizes. Each person attends to the
  others with the log presence and the log inverse squared distance as bias; the
  frame's vector is the mean and the maximum over people, weighted by presence.

  Attributes:
    part: 'body' or 'face'.
    dim: number of channels.
    dropout: dropout rate of the encoded persons and pairs.
    dtype: dtype of the computation; geometry and softmax are float32.
  """

  part: str
  dim: int = 64
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self,
      limbs: jax.Array,
      presence_logits: jax.Array | None,
      features: jax.Array | None,
      *,
      train: bool,
  ) -> jax.Array:
    """Encodes the relations of each frame.

    Args:
      limbs: [N, Q, L, 4] (x1, y1, x2, y2), 0..1 of the image.
      presence_logits: [N, Q], or None if every query is a person.
      features: [N, h, w, F] feature grid, sampled at each person's center; or
        None.
      train: whether dropout is active.

    Returns:
      [N, 2 dim] of `dtype`.
    """
    n, count = limbs.shape[:2]
    share, flip, center = _symmetric_joints(self.part)
    joints = jnp.einsum(
        'ke,nqec->nqkc',
        share,
        limbs.astype(jnp.float32).reshape(n, count, -1, 2),
    )
    low, high = joints.min(2), joints.max(2)
    middle = (low + high) / 2
    size = jnp.sqrt(jnp.square(high - low).mean(-1) + 1e-4)
    if presence_logits is None:
      presence_logits = jnp.full((n, count), 1e2)
    presence_logits = presence_logits.astype(jnp.float32)
    presence = nn.sigmoid(presence_logits)

    def drop(x):
      return nn.Dropout(self.dropout, deterministic=not train)(x)

    def dense(x, name, features=self.dim):
      return nn.Dense(features, dtype=self.dtype, name=name)(x)

    # [N, Q, 2, D]: as decoded, and mirrored.
    seen = (joints - middle[:, :, None]) / size[..., None, None]
    mirror = seen[:, :, flip] * jnp.array([[[[-1.0, 1.0]]]])
    tokens = jnp.stack([seen, mirror], 2).reshape(n, count, 2, -1)
    tokens = dense(tokens, 'joints')
    if features is not None:
      # The position from which the decoder `Centers` predicts this person.
      local = sample(features, jnp.einsum('k,nqkc->nqc', center, joints))
      even = dense(local, 'features_even')
      odd = dense(local, 'features_odd')
      tokens += jnp.stack([even + odd, even - odd], 2)
    tokens = drop(nn.relu(dense(nn.relu(tokens), 'person')))

    offset = middle[:, None] - middle[:, :, None]  # [N, i, j, 2]: from i to j
    scale = (size[:, None] + size[:, :, None]) / 2
    offset = offset / scale[..., None]
    right = (offset[..., 0] >= 0)[..., None]
    from_i = jnp.where(right, tokens[:, :, None, 0], tokens[:, :, None, 1])
    from_j = jnp.where(right, tokens[:, None, :, 1], tokens[:, None, :, 0])
    geometry = jnp.stack(
        [
            jnp.abs(offset[..., 0]),
            offset[..., 1],
            jnp.abs(offset[..., 1]),
            jnp.log(size[:, None] / size[:, :, None]),
        ],
        -1,
    )
    near = nn.relu(dense(geometry, 'geometry'))
    pair = dense(from_i, 'from') + dense(from_j, 'to') + dense(near, 'near')
    pair = drop(nn.relu(dense(nn.relu(pair), 'pair')))
    weights = dense(jnp.concatenate([pair, near], -1), 'attention', 1)[..., 0]
    # Prior: weights proportional to the inverse squared distance.
    weights = weights.astype(jnp.float32) - 2 * jnp.log(
        jnp.square(offset).sum(-1) + 0.1
    )
    others = ~np.eye(count, dtype=bool)[None]
    weights += nn.log_sigmoid(presence_logits)[:, None]
    weights = nn.softmax(jnp.where(others, weights, -1e9))
    # Absent people and the person itself contribute nothing.
    weights *= jnp.where(others, presence[:, None], 0.0)
    related = jnp.einsum('nij,nijd->nid', weights.astype(self.dtype), pair)
    alone = tokens.mean(2)
    people = nn.relu(dense(jnp.concatenate([related, alone], -1), 'people'))
    share = presence / jnp.maximum(presence.sum(-1, keepdims=True), 1e-3)
    return jnp.concatenate(
        [
            (people * share[..., None].astype(self.dtype)).sum(1),
            (people * presence[..., None].astype(self.dtype)).max(1),
        ],
        -1,
    )


def sample(grid: jax.Array, points: jax.Array) -> jax.Array:
  """Samples a grid bilinearly; points outside are clamped to the border.

  Args:
    grid: [N, h, w, F].
    points: [N, Q, 2] (x, y), 0..1 of the image.

  Returns:
    [N, Q, F].
  """
  h, w = grid.shape[1:3]
  x = jnp.clip(points[..., 0] * w - 0.5, 0, w - 1)
  y = jnp.clip(points[..., 1] * h - 0.5, 0, h - 1)

  def weights(place, count):  # [N, Q, count]
    numbers = jax.lax.broadcasted_iota(
        jnp.float32, (*place.shape, count), place.ndim
    )
    near = nn.relu(1 - jnp.abs(place[..., None] - numbers))
    return near.astype(grid.dtype)

  grid = jnp.einsum('nqh,nhwf->nqwf', weights(y, h), grid)
  return jnp.einsum('nqw,nqwf->nqf', weights(x, w), grid)


class MapRelations(nn.Module):
  """Relations between people, from decoded limb maps.

  Dilated convolutions over the separate limb channels give every position a
  receptive field that covers neighboring people; pooling comes last.

  Attributes:
    part: 'body' or 'face'.
    dim: number of channels.
    dropout: dropout rate before pooling.
    dtype: dtype of the computation.
  """

  part: str
  dim: int = 64
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
    """[N, h, w, L] in 0..1 -> [N, 2 dim] of `dtype`."""
    x = maps.astype(self.dtype)
    for i, dilation in enumerate((1, 2, 4)):
      y = Conv(
          self.dim, (3, 3), kernel_dilation=dilation, padding='SAME',
          dtype=self.dtype, kernel_init=nn.initializers.he_normal(),
          name=f'conv_{i}', use_bias=False,
      )(x)  # fmt: skip
      norm = layers.BatchNorm(dtype=self.dtype, name=f'norm_{i}')
      y = nn.relu(norm(y, train=train))
      x = x + y if i else y
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)
