"""Spatial-temporal graph convolution over the limbs of decoded people."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import layers


class STGCN(nn.Module):
  """A X W over the limb graph, then a convolution over frames, BN and ReLU.

  Follows arXiv 1801.07455, with the predicted adjacency as A. A query is
  assumed to represent the same person in all frames of a clip.

  Attributes:
    order: 'graph' uses the correct axes. 'reference' reshapes limb vectors to
      coordinates x limbs, and the graph convolution's result to coordinates x
      frames x limbs x queries, without transposing them, as the reference's
      weights expect.
    dtype: dtype of the computation; the result is float32.
  """

  order: str = 'graph'
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, limbs: jax.Array, adjacency: jax.Array, *, train: bool
  ) -> jax.Array:
    """Refines the limbs for the emotion head.

    Args:
      limbs: [B, T, Q, L, 4] (x1, y1, x2, y2) in 0..1 of the image.
      adjacency: [B, T, Q, L, L] probabilities.
      train: use the batch statistics and update the running ones.

    Returns:
      [B, T, Q, L, 4] float32, >= 0.
    """
    if self.order not in ('graph', 'reference'):
      raise ValueError(
          f"person_query.st_gcn {self.order!r} is not one of 'none', 'graph', "
          "'reference'"
      )
    scrambled = self.order == 'reference'
    b, t, q, num_limbs, c = limbs.shape
    x = limbs.astype(self.dtype)
    if scrambled:
      x = x.reshape(b, t, q, c, num_limbs).swapaxes(-1, -2)
    x = jnp.einsum('btqvw,btqwc->btqvc', adjacency.astype(self.dtype), x)
    x = nn.Dense(c, dtype=self.dtype, name='graph')(x)
    if scrambled:
      x = x.swapaxes(-1, -2).reshape(b, c, t, num_limbs, q)
    else:
      x = x.transpose(0, 4, 1, 3, 2)
    x = x.transpose(0, 2, 3, 4, 1)  # [B, T, L, Q, 4]
    x = nn.Conv(
        c, (3, 1, 1), padding=((1, 1), (0, 0), (0, 0)), dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(), name='temporal',
    )(x)  # fmt: skip
    x = layers.BatchNorm(dtype=self.dtype, name='norm')(x, train=train)
    x = nn.relu(x).astype(jnp.float32)
    if scrambled:
      return x.transpose(0, 4, 1, 2, 3).reshape(limbs.shape)
    return x.transpose(0, 1, 3, 2, 4)
