"""Group normalization (arXiv 1803.08494), which does not mix samples."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

_GROUPS = 8


def kind(module: nn.Module | None) -> str:
  """The field `norm` of the model that a module is part of, else 'batch'."""
  while isinstance(module, nn.Module):
    if hasattr(module, 'norm') and isinstance(module.norm, str):
      return module.norm
    module = module.parent
  return 'batch'


def normalize(x: jax.Array, epsilon: float) -> jax.Array:
  """Normalizes each sample over its positions and groups of channels.

  Args:
    x: [N, ..., C].
    epsilon: added to the variance.

  Returns:
    [N, ..., C], before scale and bias; 8 groups, or fewer if they do not divide
    the channels.
  """
  count = math.gcd(x.shape[-1], _GROUPS)
  grouped = x.reshape(len(x), -1, count, x.shape[-1] // count)
  mean = grouped.mean((1, 3), keepdims=True)
  var = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
  return ((grouped - mean) * jax.lax.rsqrt(var + epsilon)).reshape(x.shape)
