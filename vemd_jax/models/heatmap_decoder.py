"""Heatmap decoder: limb heatmaps from the latent grid, with several stages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import layers
from vemd_jax.models.convolution import Conv


class UpsamplingTrunk(nn.Module):
  """Upsamples the latent grid to features of 2^U times its height and width.

  Attributes:
    bottleneck: channels of the first 1 x 1 convolution.
    widths: U channel numbers, at 2, 4, … times the grid; three in the paper.
    features: channels of the result.
    dtype: dtype of the computation.
  """

  bottleneck: int = 2048
  widths: tuple[int, ...] = (512, 256, 128)
  features: int = 256
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, z: jax.Array, skips: tuple[jax.Array, ...] = (), *, train: bool
  ) -> jax.Array:
    """[N, h, w, D] -> [N, 2^U h, 2^U w, features].

    The skips, at 2, 4, ... times the grid, are added where x has their size.
    """

    def conv(features, size, name, bias=True):
      return Conv(
          features, (size, size), padding=size // 2, use_bias=bias,
          dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=name,
      )  # fmt: skip

    def double_conv(x, i):
      for j in range(2):
        x = conv(x.shape[-1], 3, f'conv_{i}_{j}', bias=False)(x)
        norm = layers.BatchNorm(dtype=self.dtype, name=f'norm_{i}_{j}')
        x = nn.relu(norm(x, train=train))
      return x

    def join(x, i):
      if i >= len(skips):
        return x
      return x + layers.join_skip(skips[i], x, self.dtype, f'skip_{i}')

    doublings = len(self.widths)
    x = conv(self.bottleneck, 1, 'bottleneck')(z)
    x = layers.ResUp(self.widths[0], self.dtype, name='up_0')(x, train=train)
    x = double_conv(join(x, 0), 0)
    for i in range(1, doublings):
      up = layers.ConvTranspose(
          self.widths[i], 2, self.dtype, name=f'up_{i}'
      )
      x = double_conv(join(up(x), i), i)
    x = conv(self.widths[-1], 1, f'up_{doublings}')(x)
    x = double_conv(x, doublings)
    return conv(self.features, 1, 'features')(x)


class _Stage(nn.Module):
  """3 x 3 convolutions with ReLU, then a 1 x 1 convolution to limb logits."""

  limbs: int
  width: int
  convs: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.convs):
      x = Conv(
          self.width, (3, 3), padding=1, dtype=self.dtype,
          kernel_init=nn.initializers.he_normal(), name=f'conv_{i}',
      )(x)  # fmt: skip
      x = nn.relu(x)
    # The bias gives an initial probability of 0.1, since maps are mostly empty.
    return Conv(
        self.limbs, (1, 1), dtype=self.dtype, name='logits',
        bias_init=nn.initializers.constant(-2.2),
    )(x)  # fmt: skip


class HeatmapDecoder(nn.Module):
  """Limb heatmaps of one part, body or face.

  The stages are parallel: each reads the same features. All are supervised; the
  last one is the prediction.

  Attributes:
    limbs: number of limb channels L.
    stages: number of stages S.
    bottleneck: channels at the resolution of the latent grid.
    widths: U channel numbers, at 2, 4, … times the grid; three in the paper.
    features: input channels of the stages.
    stage_width: channels inside a stage.
    stage_convs: number of 3 x 3 convolutions in a stage.
    dtype: dtype of the computation; the logits are float32.
  """

  limbs: int
  stages: int = 6
  bottleneck: int = 2048
  widths: tuple[int, ...] = (512, 256, 128)
  features: int = 256
  stage_width: int = 256
  stage_convs: int = 4
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, z: jax.Array, skips: tuple[jax.Array, ...] = (), *, train: bool
  ) -> jax.Array:
    """Decodes frames.

    Args:
      z: [N, h, w, D] latents.
      skips: at most U feature grids of the encoder, at 2, 4, ... times the
        latent grid.
      train: use and remember the batch statistics.

    Returns:
      [S, N, 2^U h, 2^U w, L] float32 logits, in training and evaluation.

    Raises:
      ValueError: for more skips than the maps are doubled.
    """
    if len(skips) > len(self.widths):
      raise ValueError(
          f'encoder.skips is {len(skips)}, but heatmap.widths doubles the grid '
          f'only {len(self.widths)} times'
      )
    trunk = UpsamplingTrunk(
        self.bottleneck, self.widths, self.features, self.dtype, name='trunk'
    )
    x = trunk(z, skips, train=train)
    logits = []
    for s in range(self.stages):
      stage = _Stage(
          self.limbs, self.stage_width, self.stage_convs, self.dtype,
          name=f'stage_{s}',
      )  # fmt: skip
      logits.append(stage(x))
    # Stacked in the dtype of the computation, of which float32 is only a view
    # for the losses: the maps are the largest arrays of a step.
    return jnp.stack(logits).astype(jnp.float32)
