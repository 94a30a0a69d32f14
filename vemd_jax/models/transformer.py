"""Attention and transformer layers, after arXiv 1706.03762.

They are post-norm, as PyTorch's default and the authors' implementation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vemd_jax.models import layers

# Uniform with the variance of torch's Xavier initialization of the joint
# query-key-value matrix [3 D, D].
_attention_init = nn.initializers.variance_scaling(0.5, 'fan_avg', 'uniform')


class Attention(nn.Module):
  """Multi-head attention with dropout on the attention weights.

  Attributes:
    heads: number of heads; divides the channels.
    dropout: dropout rate of the attention weights.
    dtype: dtype of the computation; the softmax is float32.
  """

  heads: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, memory: jax.Array, *, train: bool
  ) -> jax.Array:
    """Attends from `x` to `memory` (the same array for self-attention).

    Args:
      x: [N, S, D], the source of the queries.
      memory: [N, M, D], the source of the keys and values.
      train: apply dropout.

    Returns:
      [N, S, D].
    """
    dim = x.shape[-1]
    if dim % self.heads:
      raise ValueError(f'{dim} channels do not divide into {self.heads} heads')

    def project(x, name):
      x = nn.Dense(
          dim, dtype=self.dtype, kernel_init=_attention_init, name=name
      )(x)
      return x.reshape(*x.shape[:2], self.heads, dim // self.heads)

    query = project(x, 'query') * (dim // self.heads) ** -0.5
    key, value = project(memory, 'key'), project(memory, 'value')
    logits = layers.float32_product('nshd,nmhd->nhsm', query, key)
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    if value.dtype == jnp.float32:
      x = jnp.einsum('nhsm,nmhd->nshd', dropout(nn.softmax(logits)), value)
    else:
      # Divided by the sum only after the product, whose result is smaller than
      # the weights; these are written and read once less.
      top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
      weights = jnp.exp(logits - top)
      total = weights.sum(-1).swapaxes(1, 2)[..., None]  # [N, S, heads, 1]
      weights = dropout(weights).astype(value.dtype)
      x = layers.float32_product('nhsm,nmhd->nshd', weights, value) / total
      x = x.astype(value.dtype)
    return nn.Dense(
        dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(),
        name='out',
    )(x.reshape(*x.shape[:2], dim))  # fmt: skip


class _FeedForward(nn.Module):
  """Linear, ReLU, linear: the second half of a transformer layer."""

  mlp_dim: int
  dropout: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def dense(features, name):
      return nn.Dense(
          features, dtype=self.dtype, name=name,
          kernel_init=nn.initializers.xavier_uniform(),
      )  # fmt: skip

    hidden = nn.relu(dense(self.mlp_dim, 'linear1')(x))
    hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
    return dense(x.shape[-1], 'linear2')(hidden)


class EncoderLayer(nn.Module):
  """Post-norm transformer encoder layer (torch.nn.TransformerEncoderLayer).

  Attributes:
    heads: number of attention heads.
    mlp_dim: width of the feed-forward part.
    dropout: dropout rate of attention weights, hidden units and both branches.
    dtype: dtype of the computation.
  """

  heads: int
  mlp_dim: int = 2048
  dropout: float = 0.1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[N, S, D] -> [N, S, D]."""
    x = x.astype(self.dtype)
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    attention = Attention(
        self.heads, self.dropout, self.dtype, name='self_attention'
    )
    x = x + dropout(attention(x, x, train=train))
    x = layers.LayerNorm(dtype=self.dtype, name='norm1')(x)
    mlp = _FeedForward(self.mlp_dim, self.dropout, self.dtype, name='mlp')
    x = x + dropout(mlp(x, train=train))
    return layers.LayerNorm(dtype=self.dtype, name='norm2')(x)


class DecoderLayer(nn.Module):
  """Post-norm transformer decoder layer (torch.nn.TransformerDecoderLayer).

  Attributes are those of `EncoderLayer`.
  """

  heads: int
  mlp_dim: int = 2048
  dropout: float = 0.1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, memory: jax.Array, *, train: bool
  ) -> jax.Array:
    """[N, Q, D], [N, S, D] -> [N, Q, D]."""
    x = x.astype(self.dtype)
    dropout = nn.Dropout(self.dropout, deterministic=not train)

    def attention(name):
      return Attention(self.heads, self.dropout, self.dtype, name=name)

    x = x + dropout(attention('self_attention')(x, x, train=train))
    x = layers.LayerNorm(dtype=self.dtype, name='norm1')(x)
    x = x + dropout(attention('cross_attention')(x, memory, train=train))
    x = layers.LayerNorm(dtype=self.dtype, name='norm2')(x)
    mlp = _FeedForward(self.mlp_dim, self.dropout, self.dtype, name='mlp')
    x = x + dropout(mlp(x, train=train))
    return layers.LayerNorm(dtype=self.dtype, name='norm3')(x)


class AttentionPooling(nn.Module):
  """Weighted mean over frames, with a softmax of a linear score as weights.

  Attributes:
    dtype: dtype of the result; scores and weights are float32.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pools over frames.

    Args:
      x: [B, T, D].

    Returns:
      The weighted mean [B, D], and the float32 weights [B, T], which sum to 1.
    """
    x = x.astype(jnp.float32)
    weights = nn.softmax(nn.Dense(1, name='score')(x)[..., 0])
    pooled = jnp.einsum('bt,btd->bd', weights, x)
    return pooled.astype(self.dtype), weights


def sinusoidal_table(length: int, dim: int) -> np.ndarray:
  """Sines and cosines of positions, interleaved (arXiv 1706.03762, 3.5).

  Computed in float32, as in the reference.

  Args:
    length: number of positions.
    dim: channels; the last cosine is dropped if it is odd.

  Returns:
    [length, dim] float32.
  """
  step = np.float32(-np.log(10000.0) / dim)
  frequency = np.exp(np.arange(0, dim, 2, dtype=np.float32) * step)
  angle = np.arange(length, dtype=np.float32)[:, None] * frequency[None]
  table = np.empty((length, dim), np.float32)
  table[:, 0::2] = np.sin(angle)
  table[:, 1::2] = np.cos(angle[:, : dim // 2])
  return table
