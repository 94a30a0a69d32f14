"""Trainable encoders from an image to a grid of features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax import import_path
from vemd_jax.models import layers, vit
from vemd_jax.models.convolution import Conv, max_pool

# Bottleneck blocks per stage (arXiv 1512.03385, table 1).
RESNETS = {
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
}

# Trunk, and kernel size of the convolution that reduces its grid to 7 x 7.
VIT_ENCODERS = {
    'vit_b': (
        {
            'patch': 16, 'dim': 768, 'depth': 12, 'heads': 12,
            'pre_norm': False, 'epsilon': 1e-12,
        },
        8,
    ),
    'vit_l': (vit.VITS['clip_vit_l_14'], 10),
}  # fmt: skip


class ResidualEncoder(nn.Module):
  """A 7 x 7 convolution, then ResDown blocks that double the channels.

  Attributes:
    width: channels of the first convolution.
    blocks: number of ResDown blocks, each of stride 2.
    stem_stride: stride of the first convolution; 1 in the reference.
    dim: latent channels.
    dtype: dtype of the computation.
  """

  width: int = 64
  blocks: int = 5
  stem_stride: int = 1
  dim: int = 512
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, image: jax.Array, *, train: bool, skips: int = 0
  ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]:
    """Encodes images; see `make_encoder`."""
    x = Conv(
        self.width, (7, 7), strides=self.stem_stride, padding=3,
        dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name='stem',
    )(image)  # fmt: skip
    x = nn.elu(x)
    stages = [x]
    for i in range(self.blocks):
      block = layers.ResDown(
          self.width * 2 ** (i + 1), self.dtype, name=f'block_{i}'
      )
      stages.append(block(stages[-1], train=train))
    project = Conv(self.dim, (1, 1), dtype=self.dtype, name='projection')
    return _with_skips(project(stages[-1]), stages, skips)


class _Bottleneck(nn.Module):
  """Bottleneck block v1.5: the stride is on the 3 x 3 convolution."""

  features: int
  stride: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def conv_norm(x, features, size, stride, conv, norm):
      x = Conv(
          features, (size, size), strides=stride, padding=size // 2,
          use_bias=False, dtype=self.dtype, name=conv,
          kernel_init=nn.initializers.he_normal(),
      )(x)  # fmt: skip
      return layers.BatchNorm(dtype=self.dtype, name=norm)(x, train=train)

    out = 4 * self.features
    y = nn.relu(conv_norm(x, self.features, 1, 1, 'conv1', 'norm1'))
    y = nn.relu(conv_norm(y, self.features, 3, self.stride, 'conv2', 'norm2'))
    y = conv_norm(y, out, 1, 1, 'conv3', 'norm3')
    if x.shape[-1] != out or self.stride != 1:
      x = conv_norm(x, out, 1, self.stride, 'skip', 'skip_norm')
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Trunk of a bottleneck ResNet, torchvision's v1.5.

  Attributes:
    depths: blocks per stage.
    width: channels of the stem; 64 in the published networks.
    dtype: dtype of the computation.
  """

  depths: tuple[int, ...]
  width: int = 64
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> list[jax.Array]:
    """[N, H, W, 3] normalised float -> the grids of the stem and the stages.

    The last one is [N, H / 32, W / 32, 32 width].
    """
    x = Conv(
        self.width, (7, 7), strides=2, padding=3, use_bias=False,
        dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name='stem',
    )(image)  # fmt: skip
    x = layers.BatchNorm(dtype=self.dtype, name='norm')(x, train=train)
    stages = [nn.relu(x)]
    x = max_pool(stages[0])
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        block = _Bottleneck(
            self.width * 2**i, 2 if i and not j else 1, self.dtype,
            name=f'stage_{i}_block_{j}',
        )  # fmt: skip
        x = block(x, train=train)
      stages.append(x)
    return stages


class ResNetEncoder(nn.Module):
  """ResNet trunk and a 1 x 1 convolution to the latent channels.

  Attributes:
    depths: blocks per stage.
    width: channels of the stem.
    dim: latent channels.
    dtype: dtype of the computation.
  """

  depths: tuple[int, ...]
  width: int = 64
  dim: int = 512
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, image: jax.Array, *, train: bool, skips: int = 0
  ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]:
    """Encodes images; see `make_encoder`."""
    trunk = ResNet(self.depths, self.width, self.dtype, name='trunk')
    stages = trunk(image, train=train)
    project = Conv(self.dim, (1, 1), dtype=self.dtype, name='projection')
    return _with_skips(project(stages[-1]), stages, skips)


def _with_skips(latent, stages, skips):
  """The latent grid, and the stages before the last one, coarsest first."""
  if not skips:
    return latent
  if skips >= len(stages):
    raise ValueError(
        f'encoder.skips is {skips}, but only {len(stages) - 1} earlier stages '
        'have a finer grid'
    )
  return latent, tuple(stages[-2 : -2 - skips : -1])


class ViTEncoder(nn.Module):
  """ViT patch tokens as a grid, reduced by one convolution without padding.

  Attributes:
    trunk: fields of `vit.VisionTransformer`.
    kernel: kernel size of the convolution; the grid shrinks by `kernel - 1`.
    dim: latent channels.
    token_order: 'grid' arranges the patch tokens as a grid. 'reference' takes
      the first h w tokens, including the class token, and reshapes them as if
      they were channels first, as the reference's weights expect.
    dtype: dtype of the computation.
  """

  trunk: dict
  kernel: int
  dim: int = 512
  token_order: str = 'grid'
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
    """[N, H, W, 3] normalized float -> [N, h, w, dim]."""
    del train  # The encoder has neither dropout nor batch norm.
    n, height, width, _ = image.shape
    h, w = height // self.trunk['patch'], width // self.trunk['patch']
    if min(h, w) < self.kernel:
      raise ValueError(
          f'image of {height} x {width} pixels gives {h} x {w} patches; the '
          f'encoder needs at least {self.kernel} x {self.kernel}'
      )
    trunk = vit.VisionTransformer(
        **self.trunk, dtype=self.dtype, name='trunk'
    )
    _, tokens = trunk(image)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(tokens)
    if self.token_order == 'reference':
      x = x[:, : h * w].reshape(n, self.dim, h, w).transpose(0, 2, 3, 1)
    else:
      x = x[:, 1:].reshape(n, h, w, self.dim)
    return nn.Conv(
        self.dim, (self.kernel, self.kernel), padding='VALID',
        dtype=self.dtype, name='reduce',
    )(x)  # fmt: skip


def make_encoder(
    name: str,
    width: int = 64,
    blocks: int = 5,
    stem_stride: int = 1,
    dim: int = 512,
    dtype: DTypeLike = jnp.float32,
    token_order: str = 'grid',
) -> nn.Module:
  """Makes the encoder with the given name.

  Args:
    name: 'residual', 'resnet50', 'resnet101', 'resnet152', 'vit_b', 'vit_l', or
      `package.module:Class` of a module with the fields `dim` and `dtype`.
    width: channels of the first convolution (residual, resnet).
    blocks: number of ResDown blocks (residual).
    stem_stride: stride of the first convolution (residual).
    dim: latent channels.
    dtype: dtype of the computation.
    token_order: 'grid' or 'reference' (vit), see `ViTEncoder`.

  Returns:
    A module, called with normalised images [N, H, W, 3] and `train`, that gives
    [N, h, w, dim]. Those of stages (residual, resnet) also take `skips`, and
    give then that grid and the features of so many earlier stages, each twice
    as fine as the one before it.

  Raises:
    ValueError: for an unknown name or token order.
  """
  if token_order not in ('grid', 'reference'):
    raise ValueError(
        f"encoder.token_order {token_order!r} is neither 'grid' nor 'reference'"
    )
  if import_path.is_path(name):
    make = import_path.load(name, 'config.model.encoder.name')
    return make(dim=dim, dtype=dtype)
  if name == 'residual':
    return ResidualEncoder(width, blocks, stem_stride, dim, dtype)
  if name in RESNETS:
    return ResNetEncoder(RESNETS[name], width, dim, dtype)
  if name in VIT_ENCODERS:
    trunk, kernel = VIT_ENCODERS[name]
    return ViTEncoder(trunk, kernel, dim, token_order, dtype)
  names = ('residual', *RESNETS, *VIT_ENCODERS)
  raise ValueError(f'encoder.name {name!r} is not one of {", ".join(names)}')
