"""The kernel gradient of convolutions against XLA's and a sum by hand."""

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
