"""Layers shared by several modules, numerically equal to the reference's.

All layers are channels last. Parameters are float32; `dtype` is the dtype of
the computation, but statistics and softmaxes are always float32. The blocks
follow arXiv 2604.02397 and the authors' implementation.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import group_norm
from vemd_jax.models.convolution import Conv

_conv_init = nn.initializers.he_normal()

DTYPES = ('auto', 'float32', 'bfloat16')


def compute_dtype(name: str) -> str:
  """Resolves `config.model.dtype` to the dtype of the computation.

  Args:
    name: one of `DTYPES`.

  Returns:
    'float32' or 'bfloat16'; 'auto' gives bfloat16 if the default device has
    matrix units for it (TPU, GPU) and float32 on the CPU.

  Raises:
    ValueError: for another name.
  """
  if name not in DTYPES:
    raise ValueError(
        f'config.model.dtype is {name!r}, expected one of {", ".join(DTYPES)}'
    )
  if name == 'auto':
    return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return name


def _per_channel(x: jax.Array, ndim: int) -> jax.Array:
  """[C] -> [1, ..., 1, C] with `ndim` axes."""
  return x.reshape((1,) * (ndim - 1) + (-1,))


def float32_product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """A product whose result is float32, whatever the dtype of its operands.

  The products of its gradient are computed in the dtype of the operands; JAX
  would convert the operands to the float32 of the result's gradient.

  Args:
    subscripts: of `jnp.einsum`; each letter is in at least two of its three
      terms.
    x: first operand.
    y: second operand, of the same dtype.

  Returns:
    float32.
  """
  if x.dtype == jnp.float32:
    return jnp.einsum(subscripts, x, y)
  return _product(subscripts, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(subscripts, x, y):
  return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _product_forward(subscripts, x, y):
  return _product(subscripts, x, y), (x, y)


def _product_backward(subscripts, operands, gradient):
  x, y = operands
  gradient = gradient.astype(x.dtype)
  inputs, out = subscripts.split('->')
  first, second = inputs.split(',')
  return (
      jnp.einsum(f'{out},{second}->{first}', gradient, y),
      jnp.einsum(f'{first},{out}->{second}', x, gradient),
  )


_product.defvjp(_product_forward, _product_backward)


class Readout(nn.Module):
  """A linear map to float32 results, with operands of the compute dtype.

  With dtype float32 it equals `nn.Dense`, whose parameters it has.

  Attributes:
    features: number of results.
    dtype: dtype of the operands.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, D] -> [N, S, features] float32."""
    kernel = self.param(
        'kernel',
        nn.initializers.lecun_normal(),
        (x.shape[-1], self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    x = float32_product('nsd,df->nsf', x, kernel)
    return x + _per_channel(bias, x.ndim)


class BatchNorm(nn.Module):
  """Batch normalization with PyTorch's running statistics.

  If the model's field `norm` is 'group', it is group normalization instead (8
  groups of channels, arXiv 1803.08494), which does not mix samples and has no
  running statistics.

  The running variance is the unbiased one, n / (n - 1) times the variance that
  normalizes the batch; Linen's layer stores the biased one. Under jit with a
  sharded batch the statistics are those of the global batch.

  The variance is that of two passes over a float32 input, as PyTorch's; of an
  input in bfloat16 it is computed in one pass.

  Attributes:
    epsilon: added to the variance.
    momentum: weight of the old running statistics in an update
      (1 - PyTorch's `momentum`).
    dtype: dtype of the result; the statistics are float32.
  """

  epsilon: float = 1e-5
  momentum: float = 0.9
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalizes each channel.

    Args:
      x: [..., C].
      train: use the statistics of this batch and update the running ones.

    Returns:
      [..., C] of `dtype`.
    """
    size = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, size)
    bias = self.param('bias', nn.initializers.zeros, size)
    if group_norm.kind(self.parent) == 'group':
      x = group_norm.normalize(x.astype(jnp.float32), self.epsilon)
      x = x * _per_channel(scale, x.ndim)
      return (x + _per_channel(bias, x.ndim)).astype(self.dtype)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, size)
    running_var = self.variable('batch_stats', 'var', jnp.ones, size)
    axes = tuple(range(x.ndim - 1))
    low, x = x.dtype != jnp.float32, x.astype(jnp.float32)
    if train and low:
      # Both moments in one pass over x, and summed over the devices at once.
      # Around the running mean they cancel less than around 0.
      around = jax.lax.stop_gradient(running_mean.value)
      apart = x - _per_channel(around, x.ndim)
      offset = apart.mean(axes)
      mean = around + offset
      var = jnp.square(apart).mean(axes) - jnp.square(offset)
      var = jnp.maximum(var, 0.0)
    elif train:
      mean = x.mean(axes)
      var = jnp.square(x - _per_channel(mean, x.ndim)).mean(axes)
    if train:
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        old = self.momentum
        running_mean.value = old * running_mean.value + (1 - old) * mean
        running_var.value = old * running_var.value + (1 - old) * unbiased
    else:
      mean, var = running_mean.value, running_var.value
    x = x - _per_channel(mean, x.ndim)
    x = x * _per_channel(scale * jax.lax.rsqrt(var + self.epsilon), x.ndim)
    return (x + _per_channel(bias, x.ndim)).astype(self.dtype)


class LayerNorm(nn.Module):
  """Layer normalization over channels, with a two-pass variance.

  Linen's layer does not accept bfloat16 under strict dtype promotion.

  Attributes:
    epsilon: added to the variance.
    dtype: dtype of the result; the statistics are float32.
  """

  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C] of `dtype`."""
    size = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, size)
    bias = self.param('bias', nn.initializers.zeros, size)
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    var = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(var + self.epsilon) * _per_channel(scale, x.ndim)
    return (x + _per_channel(bias, x.ndim)).astype(self.dtype)


class ConvTranspose(nn.Module):
  """Transposed convolution of stride 2: doubles height and width.

  The kernel is 2 x 2, or 3 x 3 with padding 1 and output padding 1. One matrix
  product computes the contribution of each input pixel to all kernel positions;
  the output is a rearrangement of these, for 3 x 3 with sums of shifted planes.
  Unlike a convolution of the dilated input, this multiplies no zeros.

  Attributes:
    features: output channels.
    size: kernel size, 2 or 3.
    dtype: dtype of the computation.
  """

  features: int
  size: int = 2
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, h, w, C] -> [N, 2h, 2w, features]."""
    n, h, w, c = x.shape
    shape = (c, self.size, self.size, self.features)
    kernel = self.param('kernel', _conv_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(
        x, kernel, bias, dtype=self.dtype
    )
    if self.size == 2:
      # The 2 x 2 output blocks of the input pixels do not overlap.
      x = jnp.einsum('nhwc,cijf->nhiwjf', x, kernel)
    else:
      x = jnp.einsum('nhwc,cijf->nijhwf', x, kernel)
      # Rows: [N, i, j, h, w, F] -> [N, j, h, parity, w, F]; then columns.
      x = self._interleave(x, axis=2)
      x = self._interleave(x, axis=3)
    x = x.reshape(n, 2 * h, 2 * w, self.features)
    return x + _per_channel(bias, x.ndim)

  def _interleave(self, x: jax.Array, axis: int) -> jax.Array:
    """Sums the three kernel positions of axis 1 into even and odd pixels.

    Output pixel 2y is kernel position 1 at input y; output pixel 2y + 1 is the
    sum of position 2 at y and position 0 at y + 1 (zero at the border).

    Args:
      x: [N, 3, ...].
      axis: pixel axis, after axis 1 is removed.

    Returns:
      [N, ...] with an axis of the two parities after `axis`.
    """
    first = x[:, 0]
    pad = [(0, 0)] * first.ndim
    pad[axis] = (0, 1)
    after = jnp.pad(jax.lax.slice_in_dim(first, 1, None, axis=axis), pad)
    return jnp.stack([x[:, 1], x[:, 2] + after], axis + 1)


class ResDown(nn.Module):
  """Residual block that halves height and width (rounding up).

  ELU(BN(main + skip)) with skip = conv 3 x 3 of stride 2, main = conv 3 x 3 of
  stride 2 to half the channels, BN, ELU, conv 3 x 3.

  Attributes:
    features: output channels.
    dtype: dtype of the computation.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[N, h, w, C] -> [N, ceil(h / 2), ceil(w / 2), features]."""

    def conv(features, stride, name):
      return Conv(
          features, (3, 3), strides=stride, padding=1, dtype=self.dtype,
          kernel_init=_conv_init, name=name,
      )  # fmt: skip

    skip = conv(self.features, 2, 'skip')(x)
    x = conv(self.features // 2, 2, 'conv1')(x)
    x = BatchNorm(1e-4, dtype=self.dtype, name='norm1')(x, train=train)
    x = conv(self.features, 1, 'conv2')(nn.elu(x))
    x = BatchNorm(1e-4, dtype=self.dtype, name='norm2')(x + skip, train=train)
    return nn.elu(x)


class ResUp(nn.Module):
  """Residual block that doubles height and width.

  ELU(BN(main + skip)) with skip = transposed conv 3 x 3 of stride 2, main =
  transposed conv 3 x 3 of stride 1 to half the channels of the input, BN, ELU,
  transposed conv 3 x 3 of stride 2. The transposed convolution of stride 1 is
  implemented as a convolution, which equals it for the flipped kernel.

  Attributes:
    features: output channels.
    dtype: dtype of the computation.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[N, h, w, C] -> [N, 2h, 2w, features]."""
    skip = ConvTranspose(self.features, 3, self.dtype, name='skip')(x)
    x = Conv(
        x.shape[-1] // 2, (3, 3), padding=1, dtype=self.dtype,
        kernel_init=_conv_init, name='conv1',
    )(x)  # fmt: skip
    x = BatchNorm(1e-4, dtype=self.dtype, name='norm1')(x, train=train)
    x = ConvTranspose(self.features, 3, self.dtype, name='conv2')(nn.elu(x))
    x = BatchNorm(1e-4, dtype=self.dtype, name='norm2')(x + skip, train=train)
    return nn.elu(x)


class Finer(nn.Module):
  """Doubles the resolution of a grid and adds features of an earlier stage.

  Attributes:
    features: output channels.
    dtype: dtype of the computation.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, skip: jax.Array, *, train: bool
  ) -> jax.Array:
    """[N, h, w, C], [N, 2h, 2w, S] -> [N, 2h, 2w, features]."""

    def norm(x, name):
      return nn.relu(BatchNorm(dtype=self.dtype, name=name)(x, train=train))

    x = ConvTranspose(self.features, 2, self.dtype, name='up')(x)
    x = norm(x + join_skip(skip, x, self.dtype, 'skip'), 'norm1')
    x = Conv(
        self.features, (3, 3), padding=1, dtype=self.dtype,
        kernel_init=_conv_init, use_bias=False, name='conv',
    )(x)  # fmt: skip
    return norm(x, 'norm2')


def join_skip(
    skip: jax.Array, x: jax.Array, dtype: DTypeLike, name: str
) -> jax.Array:
  """Projects an earlier stage's features to the channels of `x`.

  Args:
    skip: [N, h, w, S].
    x: [N, h, w, C].
    dtype: dtype of the computation.
    name: of the 1 x 1 convolution.

  Returns:
    [N, h, w, C].

  Raises:
    ValueError: if the grids differ, because an odd size was rounded up.
  """
  if skip.shape[:3] != x.shape[:3]:
    raise ValueError(
        f'encoder.skips: a grid of {x.shape[1]} x {x.shape[2]} does not fit '
        f'the {skip.shape[1]} x {skip.shape[2]} of an earlier stage; use a '
        'data.image_size that is a multiple of the encoder\'s stride'
    )
  return Conv(x.shape[-1], (1, 1), dtype=dtype, name=name)(skip)
