"""Resizing of uint8 images on the device, for image sizes known at run time.

The result is identical to `data.geometry.resize_crop` on the full image: the
image is halved while it is at least twice the target size, then resized
bilinearly in OpenCV's fixed-point arithmetic; both steps round to uint8.
"""

import jax
import jax.numpy as jnp

# Fractional bits of an interpolation weight in OpenCV.
_BITS = 11


def resize(image: jax.Array, side: int) -> jax.Array:
  """Resizes images to a square, as in evaluation.

  Args:
    image: uint8 [..., H, W, 3]; H and W may be symbolic.
    side: target side S in pixels.

  Returns:
    uint8 [..., S, S, 3].
  """
  size = [jnp.asarray(n, jnp.int32) for n in image.shape[-3:-1]]
  halves = [_halvings(n, side) for n in size]
  size = [n >> k << k for n, k in zip(size, halves)]

  def halve(i, state):
    image, height, width = state
    down, across = (i < k for k in halves)
    # Shapes are static, so the halved image stays in a buffer of the original
    # size, of which only the first height x width pixels are used.
    above, below = _pair(image, -3, height, down)
    total = sum(
        x.astype(jnp.int32)
        for row in (above, below)
        for x in _pair(row, -2, width, across)
    )
    return (
        ((total + 2) >> 2).astype(jnp.uint8),
        jnp.where(down, height >> 1, height),
        jnp.where(across, width >> 1, width),
    )

  image, height, width = jax.lax.fori_loop(
      0, jnp.maximum(*halves), halve, (image, *size)
  )
  return _bilinear(image, height, width, side)


def grayscale(image: jax.Array) -> jax.Array:
  """Converts to grayscale in 3 channels, in OpenCV's fixed-point arithmetic."""
  red, green, blue = jnp.split(image.astype(jnp.int32), 3, -1)
  grey = 9798 * red + 19235 * green + 3735 * blue + (1 << 14)
  grey = (grey >> 15).astype(jnp.uint8)
  return jnp.broadcast_to(grey, image.shape)


def _halvings(length: jax.Array, side: int) -> jax.Array:
  """Number of halvings that leave at least `side` pixels."""
  ratio = length // side
  return jnp.maximum(31 - jax.lax.clz(ratio), 0)


def _pair(image, axis, length, active):
  """Pixels 2 i and 2 i + 1 along an axis if active, otherwise pixel i twice."""
  index = jnp.arange(image.shape[axis])
  last = length - 1
  first = jnp.where(active, 2 * index, index)
  second = jnp.where(active, 2 * index + 1, index)
  return [
      jnp.take(image, jnp.minimum(i, last), axis=axis, mode='clip')
      for i in (first, second)
  ]


def _bilinear(image, height, width, side):
  (top, bottom, v), (left, right, u) = (
      _weights(n, side) for n in (height, width)
  )
  one = 1 << _BITS
  ones = (1,) * (image.ndim - 3)
  u = u.reshape(*ones, 1, side, 1)
  v = v.reshape(*ones, side, 1, 1)

  def across(rows):
    rows = jnp.take(image, rows, axis=-3, mode='clip')
    a, b = (
        jnp.take(rows, i, axis=-2, mode='clip').astype(jnp.int32)
        for i in (left, right)
    )
    return a * (one - u) + b * u

  # The shifts of OpenCV's vertical pass; without them the products would
  # overflow 32 bits.
  total = ((across(top) >> 4) * (one - v) >> 16) + (
      (across(bottom) >> 4) * v >> 16
  )
  return jnp.clip((total + 2) >> 2, 0, 255).astype(jnp.uint8)


def _weights(length, side):
  """Left and right neighbour of each sample position, and the right weight."""
  # (i + 0.5) length / side - 0.5 as a fraction of integers.
  numerator = (2 * jnp.arange(side, dtype=jnp.int32) + 1) * length - side
  before = numerator // (2 * side)
  rest = (numerator - before * 2 * side).astype(jnp.float32) / (2 * side)
  weight = jnp.round(rest * (1 << _BITS)).astype(jnp.int32)
  last = length - 1
  return (
      jnp.clip(before, 0, last),
      jnp.clip(before + 1, 0, last),
      weight,
  )
