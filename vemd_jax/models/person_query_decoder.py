"""PersonQuery decoders: a set of people, one query per person."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vemd_jax.models import layers, transformer
from vemd_jax.models.convolution import Conv
from vemd_jax.models.outputs import Structure

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
    fine = Conv(
        dim, (3, 3), padding='VALID', dtype=self.dtype, name='conv',
        kernel_init=nn.initializers.he_normal(),
    )(z)  # fmt: skip
    fine = nn.elu(fine)
    down = layers.ResDown(dim, self.dtype, name='down')
    return z, fine, down(fine, train=train)


class Centers(nn.Module):
  """Detects people at their centers and decodes their limbs from there.

  As in CenterNet (arXiv 1904.07850), each grid position predicts whether a
  person's center lies in it, and that person's limbs as offsets from it. The Q
  highest local maxima are the queries. The predictor is shared by all
  positions, so it does not depend on where in the image a person stands.

  Attributes:
    limbs: number of limbs L.
    queries: number of people Q.
    dtype: dtype of the computation; the results are float32.
  """

  limbs: int
  queries: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self,
      z: jax.Array,
      skips: tuple[jax.Array, ...] = (),
      *,
      train: bool,
  ) -> Structure:
    """Decodes frames.

    Args:
      z: [N, h, w, D] latents.
      skips: encoder features at 2, 4, ... times the resolution of the latent.
      train: use and update the batch statistics.

    Returns:
      All fields except heatmaps and adjacency, without the frame axis.
    """
    x = z.astype(self.dtype)
    for i, skip in enumerate(skips):
      finer = layers.Finer(z.shape[-1], self.dtype, name=f'finer_{i}')
      x = finer(x, skip, train=train)
    features = Conv(
        z.shape[-1], (3, 3), padding=1, use_bias=False, dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(), name='conv',
    )(x)  # fmt: skip
    norm = layers.BatchNorm(dtype=self.dtype, name='norm')
    features = nn.relu(norm(features, train=train))
    n, h, w, _ = features.shape
    # Initial probability of 0.1, as in arXiv 1708.02002.
    logits = nn.Dense(
        1, name='center', bias_init=nn.initializers.constant(-2.2)
    )(features)[..., 0]
    # Initially all limbs are points at the center.
    offsets = nn.Dense(
        4 * self.limbs, name='offsets', kernel_init=nn.initializers.normal(1e-2)
    )(features).reshape(n, h, w, self.limbs, 4)
    limbs = offsets + place_centers(h, w)[None, :, :, None]

    best, index = _local_maxima(logits, self.queries)
    return Structure(
        limbs=jnp.take_along_axis(
            limbs.reshape(n, h * w, self.limbs, 4), index[..., None, None], 1
        ),
        presence_logits=best,
        center_logits=logits,
        center_limbs=limbs,
        features=features,
    )


def place_centers(height: int, width: int) -> np.ndarray:
  """[height, width, 4] float32 positions (x, y, x, y), 0..1 of the image."""
  y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
  x, y = x / width, y / height
  return np.stack([x, y, x, y], -1)


def _local_maxima(
    logits: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
  """The highest local maxima of a grid, over neighbourhoods of 3 x 3.

  Args:
    logits: [N, h, w].
    count: number of maxima.

  Returns:
    Logits [N, count], -20 if there are fewer maxima, and indices [N, count]
    int32 into the flattened grid.
  """
  n, h, w = logits.shape
  if count > h * w:
    raise ValueError(
        f'person_query.queries is {count}, but the grid has {h * w} places'
    )
  around = nn.max_pool(logits[..., None], (3, 3), padding='SAME')[..., 0]
  flat = logits.reshape(n, -1)
  highest = (logits >= around).reshape(n, -1)
  ranked = jnp.where(highest, jax.lax.stop_gradient(flat), -1e4)
  _, index = jax.lax.top_k(ranked, count)
  best = jnp.take_along_axis(jnp.where(highest, flat, -20.0), index, 1)
  return best, index


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
      layer = transformer.EncoderLayer(*options, name=f'encoder_{i}')
      x = layer(x, train=train)
    memory = layers.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)

    queries = self.param(
        'queries', nn.initializers.normal(1.0), (self.queries, dim)
    )
    x = jnp.broadcast_to(queries, (n, self.queries, dim))
    for i in range(self.layers):
      layer = transformer.DecoderLayer(*options, name=f'decoder_{i}')
      x = layer(x, memory, train=train)
    x = layers.LayerNorm(dtype=self.dtype, name='decoder_norm')(x)

    def readout(features, name):
      return layers.Readout(features, self.dtype, name=name)

    hidden = nn.relu(nn.Dense(256, dtype=self.dtype, name='limbs_hidden')(x))
    limbs = nn.sigmoid(readout(self.limbs * 4, 'limbs')(hidden))
    adjacency = readout(self.limbs**2, 'adjacency')(x)
    presence = readout(1, 'presence')(x)[..., 0] if self.presence else None
    return (
        limbs.reshape(n, self.queries, self.limbs, 4),
        adjacency.reshape(n, self.queries, self.limbs, self.limbs),
        presence,
    )

  def _positions(self, length: int, dim: int) -> jax.Array:
    """Position encoding of the tokens, [length, dim]."""
    if self.positions == 'sinusoidal':
      return jnp.asarray(transformer.sinusoidal_table(length, dim))
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
