"""Convolution and max pooling whose gradients are fast on the CPU, too."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# With fewer (input times output) channels the products are too small to be
# faster, unless there is only one product, as for 1 x 1 kernels.
_LEAST_CHANNELS = 128 * 128


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **options,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` with another kernel gradient on the CPU.

  XLA computes the kernel gradient as a convolution whose window is the whole
  image; on the CPU that has a tenth to a half of the speed of a matrix product
  (benchmarks/RESULTS.md). There it is computed as one product for each position
  of the kernel. Other platforms keep XLA's, and so do kernels with groups,
  those larger than 1 x 1 with few channels, and dilated inputs.

  Args:
    lhs: [N, H, W, C].
    rhs: [k, l, C, F], the kernel.
    window_strides: two strides.
    padding: 'SAME', 'VALID', or pixels (before, after) for both axes.
    lhs_dilation: distances between the pixels.
    rhs_dilation: distances between the positions of the kernel.
    feature_group_count: number of groups of channels.
    **options: further arguments of `jax.lax.conv_general_dilated`.

  Returns:
    [N, h, w, F].
  """
  convolution = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=window_strides,
      padding=padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      feature_group_count=feature_group_count,
      **options,
  )
  plain = feature_group_count > 1 or max(lhs_dilation) > 1 or rhs.ndim != 4
  small = rhs.shape[2] * rhs.shape[3] < _LEAST_CHANNELS
  if plain or (small and rhs.shape[:2] != (1, 1)):
    return convolution(lhs, rhs)

  def xla_gradient(x, gradient):
    transpose = jax.linear_transpose(lambda k: convolution(x, k), rhs)
    return transpose(gradient)[0]

  def products(x, gradient):
    pads = padding
    if isinstance(padding, str):
      reach = [(rhs.shape[i] - 1) * rhs_dilation[i] + 1 for i in (0, 1)]
      pads = jax.lax.padtype_to_pads(
          x.shape[1:3], reach, window_strides, padding
      )
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def seen(axis, position):
      """The pixels that this position of the kernel is multiplied with."""
      start = position * rhs_dilation[axis]
      stride = window_strides[axis]
      length = (gradient.shape[1 + axis] - 1) * stride + 1
      return slice(start, start + length, stride)

    return jnp.stack([
        jnp.stack([
            jnp.einsum('nhwc,nhwf->cf', x[:, seen(0, i), seen(1, j)], gradient)
            for j in range(rhs.shape[1])
        ])
        for i in range(rhs.shape[0])
    ])

  @jax.custom_vjp
  def differentiable(x, kernel):
    return convolution(x, kernel)

  def forward(x, kernel):
    return convolution(x, kernel), (x, kernel)

  def backward(operands, gradient):
    x, kernel = operands
    transpose = jax.linear_transpose(lambda x: convolution(x, kernel), x)
    return transpose(gradient)[0], jax.lax.platform_dependent(
        x, gradient, cpu=products, default=xla_gradient
    )

  differentiable.defvjp(forward, backward)
  return differentiable(lhs, rhs)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


def _max_pool(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _max_pool_by_slices(x: jax.Array) -> jax.Array:
  """As `_max_pool`, with the same pixel of several equal ones, the first."""
  height, width = ((side + 1) // 2 for side in x.shape[1:3])
  pads = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, pads, constant_values=-jnp.inf)
  largest = None
  for i in range(3):
    for j in range(3):
      pixels = x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
      if largest is None:
        largest = pixels
      else:
        largest = jnp.where(pixels > largest, pixels, largest)
  return largest


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """The largest of 3 x 3 pixels, stride 2, padding 1.

  XLA's gradient looks for the largest pixel with index arrays as large as the
  input; on the CPU comparing slices is several times faster
  (benchmarks/RESULTS.md). Other platforms keep XLA's.

  Args:
    x: [N, H, W, C].

  Returns:
    [N, (H + 1) // 2, (W + 1) // 2, C].
  """
  return _max_pool(x)


def _max_pool_forward(x):
  return _max_pool(x), x


def _max_pool_backward(x, gradient):
  def gradient_of(function):
    return lambda x, gradient: jax.vjp(function, x)[1](gradient)

  return jax.lax.platform_dependent(
      x,
      gradient,
      cpu=gradient_of(_max_pool_by_slices),
      default=gradient_of(_max_pool),
  )


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
