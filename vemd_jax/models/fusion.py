"""Late fusion of audio and text with the frames (arXiv 2604.02397, figure 2).

A modality is a pair (tokens [B, T', E], mask [B] bool). Where the mask is
False, the sample does not have the modality, and its tokens do not affect the
result.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import layers, transformer
from vemd_jax.models.convolution import Conv

Modalities = dict[str, tuple[jax.Array, jax.Array]]

# Attention heads of the mel encoder and of the cross-attention from frames to
# tokens, if they divide the channels.
_HEADS = 4


class MelEncoder(nn.Module):
  """Encodes a log-mel spectrogram as tokens by convolutions and a transformer.

  It has no batch norm, so that the tokens of a sample do not depend on the
  rest of its batch.

  Attributes:
    dim: channels of the tokens.
    dropout: dropout rate of the transformer.
    dtype: dtype of the computation.
  """

  dim: int
  dropout: float = 0.1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, mel: jax.Array, *, train: bool) -> jax.Array:
    """Encodes spectrograms.

    Args:
      mel: [B, Ta, M] log-mel energies.
      train: whether dropout is active.

    Returns:
      [B, ceil(Ta / 8), dim].
    """
    x = mel.astype(self.dtype)[..., None]  # [B, Ta, M, 1]
    for i in range(3):
      width = max(self.dim // 2 ** (2 - i), 1)
      x = Conv(width, (3, 3), (2, 2), dtype=self.dtype, name=f'conv_{i}')(x)
      x = layers.LayerNorm(dtype=self.dtype, name=f'norm_{i}')(x)
      x = nn.gelu(x)
    x = x.reshape(*x.shape[:2], -1)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    table = transformer.sinusoidal_table(x.shape[1], self.dim)
    x = x + jnp.asarray(table, self.dtype)[None]
    for i in range(2):
      x = transformer.EncoderLayer(
          heads=_heads(self.dim),
          mlp_dim=4 * self.dim,
          dropout=self.dropout,
          dtype=self.dtype,
          name=f'layer_{i}',
      )(x, train=train)
    return x


class Fusion(nn.Module):
  """Fuses the frame vectors of a clip with its other modalities.

  Attributes:
    names: modalities of the model, in the order of fusion.
    method: 'concat' concatenates the mean of a modality's tokens to each frame,
      'attention' adds cross-attention from frames to all tokens, 'gated' adds
      the mean times a gate computed from frame and modality.
    dim: channels to which each modality is projected.
    dtype: dtype of the computation.
  """

  names: tuple[str, ...]
  method: str = 'concat'
  dim: int = 256
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, frames: jax.Array, modalities: Modalities) -> jax.Array:
    """Fuses frames and modalities.

    Args:
      frames: [B, T, E].
      modalities: name -> (tokens [B, T', E'], mask [B]); a missing name means
        that no sample of the batch has the modality.

    Returns:
      [B, T, E], or [B, T, E + dim * modalities] with 'concat'.

    Raises:
      ValueError: for an unknown method.
    """
    if self.method not in ('concat', 'attention', 'gated'):
      raise ValueError(
          f'fusion.method is {self.method!r}, expected concat, attention, gated'
      )
    tokens = {}
    for name in self.names:
      if name in modalities:
        x = layers.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(
            modalities[name][0].astype(self.dtype)
        )
        x = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')(x)
        tokens[name] = (x, modalities[name][1])
    if self.method == 'attention':
      return self._attention(frames, tokens)

    joined = [frames]
    for name in self.names:
      shape = (*frames.shape[:2], self.dim)
      if name not in tokens:
        if self.method == 'concat':
          joined.append(jnp.zeros(shape, frames.dtype))
        continue
      x, mask = tokens[name]
      mean = jnp.broadcast_to(x.mean(1, keepdims=True), shape)
      if self.method == 'gated':
        pair = jnp.concatenate([frames, mean], -1)
        gate = nn.Dense(
            frames.shape[-1], dtype=self.dtype, name=f'{name}_gate'
        )(pair)
        value = nn.Dense(
            frames.shape[-1], dtype=self.dtype, name=f'{name}_value'
        )(mean)
        mean = nn.sigmoid(gate) * value
      joined.append(jnp.where(mask[:, None, None], mean, 0))
    if self.method == 'concat':
      return jnp.concatenate(joined, -1)
    return sum(joined[1:], joined[0])

  def _attention(self, frames: jax.Array, tokens: Modalities) -> jax.Array:
    if not tokens:
      return frames
    x = jnp.concatenate([x for x, _ in tokens.values()], 1)
    # [B, sum of T']
    mask = jnp.concatenate(
        [jnp.tile(m[:, None], (1, x.shape[1])) for x, m in tokens.values()], 1
    )
    query = layers.LayerNorm(dtype=self.dtype, name='query_norm')(frames)
    out = nn.MultiHeadDotProductAttention(
        num_heads=_heads(self.dim),
        qkv_features=self.dim,
        out_features=frames.shape[-1],
        dtype=self.dtype,
        force_fp32_for_softmax=True,
        name='attention',
    )(query, x, mask=mask[:, None, None, :])
    # Without any unmasked token the attention output is meaningless.
    return frames + jnp.where(mask.any(1)[:, None, None], out, 0)


def drop(modalities: Modalities, rate: float, key: jax.Array) -> Modalities:
  """Modality dropout: masks each modality of each sample with a probability.

  Args:
    modalities: name -> (tokens, mask [B]).
    rate: probability in 0..1.
    key: random key.

  Returns:
    The same tokens, with masks set to False at random.
  """
  dropped = {}
  for i, (name, (tokens, mask)) in enumerate(sorted(modalities.items())):
    keep = jax.random.bernoulli(
        jax.random.fold_in(key, i), 1 - rate, mask.shape
    )
    dropped[name] = (tokens, mask & keep)
  return dropped


def _heads(dim: int) -> int:
  return _HEADS if dim % _HEADS == 0 else 1
