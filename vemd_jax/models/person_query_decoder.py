"""PersonQuery decoder: a set of people from learned queries, DETR-like."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import layers

# Rows of a learned position table; more than any grid needs, as the reference.
MAX_POSITIONS = 10_000


class AuxiliaryConvolutions(nn.Module):
  """The latent grid at two coarser scales.

  Attributes:
    dtype: dtype of the computation.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, z: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes the scales.

    Args:
      z: [N, h, w, D]; h and w at least 3.
      train: use and remember the batch statistics.

    Returns:
      `z` itself, [N, h - 2, w - 2, D] and [N, ceil(h / 2) - 1, ceil(w / 2) - 1,
      D].
    """
    _, h, w, dim = z.shape
    if min(h, w) < 3:
      raise ValueError(
          f'the PersonQuery decoder needs a latent grid of at least 3 x 3, not '
          f'{h} x {w}: use larger images or an encoder of smaller stride'
      )
    fine = nn.Conv(
        dim, (3, 3), padding='VALID', dtype=self.dtype, name='conv',
        kernel_init=nn.initializers.he_normal(),
    )(z)  # fmt: skip
    fine = nn.elu(fine)
    down = layers.ResDown(dim, self.dtype, name='down')
    return z, fine, down(fine, train=train)


class PersonQueryDecoder(nn.Module):
  """People of one part, body or face, one a query.

  Tokens of three scales go through a post-norm transformer encoder; learned
  queries read them in a post-norm decoder. Positions are added to the encoder's
  input only, the queries are the decoder's input (arXiv 2005.12872 adds both in
  every layer; the reference does not).

  Attributes:
    limbs: number of limbs L.
    queries: number of queries Q.
    layers: of the encoder, and of the decoder.
    heads: attention heads; divides D.
    mlp_dim: width of the feed-forward parts.
    dropout: in the transformer.
    positions: 'sinusoidal', or 'learned' (a table of `MAX_POSITIONS`).
    presence: give a presence logit a query; the reference has none.
    dtype: dtype of the computation; the results are float32.
  """

  limbs: int
  queries: int = 100
  layers: int = 3
  heads: int = 8
  mlp_dim: int = 2048
  dropout: float = 0.1
  positions: str = 'sinusoidal'
  presence: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, z: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Decodes frames.

    Args:
      z: [N, h, w, D] latents; h and w at least 3.
      train: batch statistics and dropout.

    Returns:
      limbs: [N, Q, L, 4] (x1, y1, x2, y2) in 0..1 of the image.
      adjacency_logits: [N, Q, L, L].
      presence_logits: [N, Q], or None.
    """
    n, _, _, dim = z.shape
    scales = AuxiliaryConvolutions(self.dtype, name='auxiliary')(
        z.astype(self.dtype), train=train
    )
    x = jnp.concatenate([s.reshape(n, -1, dim) for s in scales], 1)
    x = x + self._positions(x.shape[1], dim)[None].astype(self.dtype)

    options = (self.heads, self.mlp_dim, self.dropout, self.dtype)
    for i in range(self.layers):
      x = layers.EncoderLayer(*options, name=f'encoder_{i}')(x, train=train)
    memory = layers.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)

    queries = self.param(
        'queries', nn.initializers.normal(1.0), (self.queries, dim)
    )
    x = jnp.broadcast_to(queries, (n, self.queries, dim))
    for i in range(self.layers):
      layer = layers.DecoderLayer(*options, name=f'decoder_{i}')
      x = layer(x, memory, train=train)
    x = layers.LayerNorm(dtype=self.dtype, name='decoder_norm')(x)

    def dense(features, name, dtype=jnp.float32):
      return nn.Dense(features, dtype=dtype, name=name)

    hidden = nn.relu(dense(256, 'limbs_hidden', self.dtype)(x))
    limbs = nn.sigmoid(dense(self.limbs * 4, 'limbs')(hidden))
    adjacency = dense(self.limbs**2, 'adjacency')(x)
    presence = dense(1, 'presence')(x)[..., 0] if self.presence else None
    return (
        limbs.reshape(n, self.queries, self.limbs, 4),
        adjacency.reshape(n, self.queries, self.limbs, self.limbs),
        presence,
    )

  def _positions(self, length: int, dim: int) -> jax.Array:
    """[length, dim] what is added to the tokens."""
    if self.positions == 'sinusoidal':
      return jnp.asarray(layers.sinusoidal_table(length, dim))
    if self.positions != 'learned':
      raise ValueError(
          f"person_query.positions {self.positions!r} is neither 'sinusoidal' "
          "nor 'learned'"
      )
    if length > MAX_POSITIONS:
      raise ValueError(f'{length} tokens, but {MAX_POSITIONS} positions')
    table = self.param(
        'positions', nn.initializers.normal(0.02), (MAX_POSITIONS, dim)
    )
    return table[:length]
