"""PersonQuery decoder: a set of people from learned queries, DETR-like."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import layers

# Rows of a learned position table, as in the reference; more than are used.
MAX_POSITIONS = 10_000


class AuxiliaryConvolutions(nn.Module):
  """The latent grid and two coarser scales of it.

  Attributes:
    dtype: dtype of the computation.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, z: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the scales.

    Args:
      z: [N, h, w, D]; h and w at least 3.
      train: use the batch statistics and update the running ones.

    Returns:
      `z` itself, [N, h - 2, w - 2, D] and [N, ceil(h / 2) - 1, ceil(w / 2) - 1,
      D].
    """
    _, h, w, dim = z.shape
    if min(h, w) < 3:
      raise ValueError(
          f'the latent grid is {h} x {w}, but the PersonQuery decoder needs at '
          'least 3 x 3: use larger images or an encoder of smaller stride'
      )
    fine = nn.Conv(
        dim, (3, 3), padding='VALID', dtype=self.dtype, name='conv',
        kernel_init=nn.initializers.he_normal(),
    )(z)  # fmt: skip
    fine = nn.elu(fine)
    down = layers.ResDown(dim, self.dtype, name='down')
    return z, fine, down(fine, train=train)


class PersonQueryDecoder(nn.Module):
  """Decodes the people of one part, body or face, from one query per person.

  Tokens of three scales are encoded by a post-norm transformer encoder; learned
  queries attend to them in a post-norm decoder. As in the reference, positions
  are added to the encoder's input only and the queries are the decoder's input,
  whereas DETR (arXiv 2005.12872) adds both in every layer.

  Attributes:
    limbs: number of limbs L.
    queries: number of queries Q.
    layers: number of encoder layers, and of decoder layers.
    heads: number of attention heads; divides D.
    mlp_dim: width of the feed-forward parts.
    dropout: dropout rate of the transformer.
    positions: 'sinusoidal', or 'learned' (a table of `MAX_POSITIONS`).
    presence: predict a presence logit per query, which the reference lacks.
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
      train: apply dropout, use the batch statistics and update the running
        ones.

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
    """Position encoding of the tokens, [length, dim]."""
    if self.positions == 'sinusoidal':
      return jnp.asarray(layers.sinusoidal_table(length, dim))
    if self.positions != 'learned':
      raise ValueError(
          f"person_query.positions {self.positions!r} is neither 'sinusoidal' "
          "nor 'learned'"
      )
    if length > MAX_POSITIONS:
      raise ValueError(
          f'person_query.positions=learned supports {MAX_POSITIONS} tokens, '
          f'but there are {length}'
      )
    table = self.param(
        'positions', nn.initializers.normal(0.02), (MAX_POSITIONS, dim)
    )
    return table[:length]
