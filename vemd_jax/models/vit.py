"""Vision transformers with pre-norm blocks: CLIP's and the original ViT."""

import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike

from vemd_jax.models import layers, transformer

# 'clip_vit_l_14' is OpenCLIP's ViT-L/14 (LAION-2B), arXiv 2103.00020. The
# number of position embeddings depends on the image size at initialization.
VITS = {
    'clip_vit_l_14': {'patch': 14, 'dim': 1024, 'depth': 24, 'heads': 16},
    'tiny': {'patch': 14, 'dim': 32, 'depth': 2, 'heads': 2},
}


class _Block(nn.Module):
  """Pre-norm transformer block with exact GELU."""

  heads: int
  epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def norm(name):
      return layers.LayerNorm(self.epsilon, self.dtype, name=name)

    def dense(features, name):
      return nn.Dense(
          features, dtype=self.dtype, name=name,
          kernel_init=nn.initializers.xavier_uniform(),
      )  # fmt: skip

    attention = transformer.Attention(
        self.heads, dtype=self.dtype, name='attention'
    )
    y = norm('norm1')(x)
    x = x + attention(y, y, train=False)
    y = dense(4 * x.shape[-1], 'linear1')(norm('norm2')(x))
    return x + dense(x.shape[-1], 'linear2')(nn.gelu(y, approximate=False))


class VisionTransformer(nn.Module):
  """Vision transformer without a head (arXiv 2010.11929).

  It has no dropout, so training and evaluation are identical.

  Attributes:
    patch: side of a patch in pixels.
    dim: channels.
    depth: number of blocks.
    heads: number of attention heads.
    pre_norm: CLIP's variant, with a norm before the blocks and without a bias
      in the patch convolution.
    epsilon: epsilon of all layer norms.
    dtype: dtype of the computation.
  """

  patch: int
  dim: int
  depth: int
  heads: int
  pre_norm: bool = True
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes images.

    Args:
      image: [N, H, W, 3] normalized float. H and W are at least one patch;
        pixels beyond the last whole patch are ignored.

    Returns:
      The class token [N, dim], and all tokens [N, 1 + h w, dim]: the class
      token, then the patches row by row. Both are after the final norm.
    """
    n, height, width, _ = image.shape
    if min(height, width) < self.patch:
      raise ValueError(
          f'image of {height} x {width} pixels is smaller than a patch of '
          f'{self.patch}'
      )
    x = nn.Conv(
        self.dim, (self.patch, self.patch), strides=self.patch,
        padding='VALID', use_bias=not self.pre_norm, dtype=self.dtype,
        name='patches',
    )(image)  # fmt: skip
    x = x.reshape(n, -1, self.dim)
    init = nn.initializers.normal(0.02)
    class_token = self.param('class_token', init, (self.dim,))
    class_token = jnp.broadcast_to(class_token, (n, 1, self.dim))
    x = jnp.concatenate([class_token.astype(self.dtype), x], 1)
    positions = self.param('positions', init, x.shape[1:])
    x = x + positions[None].astype(self.dtype)
    if self.pre_norm:
      x = layers.LayerNorm(self.epsilon, self.dtype, name='pre_norm')(x)
    for i in range(self.depth):
      x = _Block(self.heads, self.epsilon, self.dtype, name=f'block_{i}')(x)
    x = layers.LayerNorm(self.epsilon, self.dtype, name='norm')(x)
    return x[:, 0], x


def make_vit(name: str, dtype: DTypeLike = jnp.float32) -> VisionTransformer:
  """The ViT of the frozen branch.

  Args:
    name: 'clip_vit_l_14' or 'tiny'.
    dtype: dtype of the computation.

  Returns:
    The module.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in VITS:
    raise ValueError(f'vit.name {name!r} is not one of {", ".join(VITS)}')
  return VisionTransformer(**VITS[name], dtype=dtype)


def description(model: Any, params: Any) -> dict[str, Any]:
  """Everything that the frozen ViT's features depend on, except the images.

  Args:
    model: `config.model`.
    params: parameters of the ViT.

  Returns:
    A dict that can be stored as JSON.
  """
  name = model.vit.name
  return {
      'vit': name,
      'width': VITS[name]['dim'],
      'normalization': model.vit.normalization,
      'dtype': layers.compute_dtype(model.dtype),
      'weights': fingerprint(params),
  }


def fingerprint(params: Any) -> str:
  """A hash of weights that does not depend on their sharding.

  Args:
    params: tree of float arrays.

  Returns:
    16 hexadecimal digits.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  sums = jax.jit(lambda arrays: jax.tree.map(_mixed_sum, arrays))(flat)
  content = [(k, flat[k].shape, int(sums[k])) for k in sorted(flat)]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _mixed_sum(x: jax.Array) -> jax.Array:
  """Hash of an array: an integer sum, which does not depend on the order."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  bits = bits.reshape(-1)
  bits ^= jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1)
  # The finalizer of MurmurHash3.
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return (bits ^ (bits >> 16)).sum(dtype=jnp.uint32)
