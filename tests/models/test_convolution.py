"""Gradients of convolution and pooling against XLA's and sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vemd_jax.models import convolution


def _layer(size, stride, padding, dilation=1):
  return convolution.Conv(
      128, (size, size), strides=stride, padding=padding,
      kernel_dilation=dilation, use_bias=False,
  )  # fmt: skip


def _kernel_gradient(layer, x, weights):
  variables = layer.init(jax.random.key(0), x)

  def total(variables):
    return jnp.sum(layer.apply(variables, x) * weights)

  return jax.grad(total)(variables)['params']['kernel']


@pytest.mark.parametrize(
    ('size', 'stride', 'padding', 'dilation', 'height', 'width'),
    [
        (1, 1, 0, 1, 5, 4),
        (1, 2, 0, 1, 6, 5),
        (3, 1, 1, 1, 5, 4),
        (3, 2, 1, 1, 7, 6),
        (3, 1, 'SAME', 2, 6, 5),
        (3, 2, 'SAME', 1, 6, 7),
        (3, 1, 'VALID', 1, 6, 5),
    ],
)
def test_kernel_gradient(
    monkeypatch, size, stride, padding, dilation, height, width
):
  x = jax.random.normal(jax.random.key(1), (2, height, width, 128))
  layer = _layer(size, stride, padding, dilation)
  shape = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
  weights = jax.random.normal(jax.random.key(2), shape)
  ours = jax.jit(lambda: _kernel_gradient(layer, x, weights))
  # On the CPU it is one product for each position of the kernel.
  assert ours.lower().as_text().count('stablehlo.dot_general') == size**2
  monkeypatch.setattr(convolution, '_LEAST_CHANNELS', 2**30)
  wanted = _kernel_gradient(layer, x, weights)
  np.testing.assert_allclose(ours(), wanted, rtol=1e-4, atol=1e-4)


def test_kernel_gradient_of_few_channels():
  """Of 1 x 1 kernels a product, of larger ones XLA's."""
  x = jax.random.normal(jax.random.key(1), (2, 6, 5, 8))
  for size, products in ((1, 1), (3, 0)):
    layer = convolution.Conv(4, (size, size), strides=2, use_bias=False)
    weights = jax.random.normal(jax.random.key(2), (2, 3, 3, 4))
    ours = jax.jit(lambda y=layer, w=weights: _kernel_gradient(y, x, w))
    assert ours.lower().as_text().count('stablehlo.dot_general') == products
  found = _kernel_gradient(
      convolution.Conv(4, (1, 1), strides=2, use_bias=False), x, weights
  )
  wanted = np.einsum('nhwc,nhwf->cf', x[:, ::2, ::2], weights)
  np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (1, 5, 7, 2), (1, 1, 2, 1)])
def test_max_pool(shape):
  """Value and gradient by hand; of equal pixels the first one counts."""
  rng = np.random.default_rng(0)
  x = rng.integers(-3, 3, shape).astype(np.float32)
  n, height, width, channels = shape
  size = n, (height + 1) // 2, (width + 1) // 2, channels
  weights = rng.normal(size=size).astype(np.float32)
  value, gradient = np.zeros(size), np.zeros(shape)
  for b, y, z, c in np.ndindex(size):
    pixels = [
        (i, j)
        for i in range(max(2 * y - 1, 0), min(2 * y + 2, height))
        for j in range(max(2 * z - 1, 0), min(2 * z + 2, width))
    ]
    i, j = max(pixels, key=lambda p: x[b, *p, c])
    value[b, y, z, c] = x[b, i, j, c]
    gradient[b, i, j, c] += weights[b, y, z, c]

  @jax.jit
  @jax.value_and_grad
  def total(x):
    return jnp.sum(convolution.max_pool(x) * weights)

  found = convolution.max_pool(jnp.asarray(x))
  np.testing.assert_array_equal(found, value)
  np.testing.assert_allclose(total(x)[1], gradient, rtol=1e-5, atol=1e-6)
  # The gradient of XLA is the same, and not what the CPU uses.
  other = jax.vjp(convolution._max_pool, jnp.asarray(x))[1](weights)[0]
  np.testing.assert_allclose(other, gradient, rtol=1e-5, atol=1e-6)
  assert 'select_and_scatter' not in total.lower(x).as_text()


def test_groups_keep_the_gradient_of_xla(monkeypatch):
  x = jax.random.normal(jax.random.key(1), (2, 5, 4, 128))
  weights = jax.random.normal(jax.random.key(2), (2, 5, 4, 256))
  layer = convolution.Conv(256, (3, 3), feature_group_count=2, use_bias=False)
  found = _kernel_gradient(layer, x, weights)
  monkeypatch.setattr(convolution, '_LEAST_CHANNELS', 2**30)
  wanted = _kernel_gradient(layer, x, weights)
  np.testing.assert_array_equal(found, wanted)


def test_kernel_gradient_by_hand():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 6, 128)).astype(np.float32)
  weights = rng.normal(size=(2, 3, 3, 128)).astype(np.float32)
  found = _kernel_gradient(_layer(3, 2, 1), jnp.asarray(x), weights)
  padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  wanted = np.zeros((3, 3, 128, 128))
  for i in range(3):
    for j in range(3):
      for y in range(3):
        for z in range(3):
          pixel = padded[:, 2 * y + i, 2 * z + j]
          wanted[i, j] += pixel.T @ weights[:, y, z]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_other_gradients_and_values_are_those_of_xla():
  x = jax.random.normal(jax.random.key(1), (3, 6, 6, 128))
  layer = _layer(3, 1, 1)
  variables = layer.init(jax.random.key(0), x)

  def plain(x):
    return jax.lax.conv_general_dilated(
        x, variables['params']['kernel'], (1, 1), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip

  def ours(x):
    return layer.apply(variables, x)

  np.testing.assert_array_equal(ours(x), plain(x))
  found, wanted = (
      jax.grad(lambda x, f=f: jnp.square(f(x)).sum())(x) for f in (ours, plain)
  )
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_one_gradient_per_example():
  x = jax.random.normal(jax.random.key(1), (3, 4, 4, 128))
  layer = _layer(3, 1, 1)
  variables = layer.init(jax.random.key(0), x)

  def loss(variables, x):
    return jnp.square(layer.apply(variables, x[None])).sum()

  each = jax.vmap(jax.grad(loss), (None, 0))(variables, x)
  for i in range(3):
    one = jax.grad(loss)(variables, x[i])
    jax.tree.map(
        lambda a, b, i=i: np.testing.assert_allclose(
            a[i], b, rtol=1e-4, atol=1e-4
        ),
        each,
        one,
    )
