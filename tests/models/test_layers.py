"""Shared blocks against the golden files and against NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.golden_rule import (
    channels_first,
    channels_last,
    load_golden,
    random_input,
    random_variables,
)
from vemd_jax.models import layers, transformer
from vemd_jax.models.torch import layout


def check_block(name, module, rows):
  """Evaluation, training and running statistics of one golden block."""
  golden = load_golden(name)
  variables = layout.to_variables(rows, golden.state_dict())
  x = jnp.asarray(channels_last(golden.inputs()['x']))
  out = jax.jit(lambda v: module.apply(v, x, train=False))(variables)
  golden.check('eval__out', channels_first(out))
  out, updates = jax.jit(
      lambda v: module.apply(v, x, train=True, mutable=['batch_stats'])
  )(variables)
  golden.check('train__out', channels_first(out))
  check_statistics(golden, rows, updates['batch_stats'])


def check_statistics(golden, rows, batch_stats):
  """Running statistics after the one train forward, unbiased variance."""
  checked = 0
  for row in rows:
    if f'trainstat__{row.torch}' in golden.arrays:
      theirs = golden.arrays[f'trainstat__{row.torch}']
      ours = batch_stats
      for name in row.path:
        ours = ours[name]
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
      checked += 1
  assert checked == sum(k.startswith('trainstat__') for k in golden.arrays)


def test_res_down_is_the_reference():
  check_block('c01_resdown_8_16', layers.ResDown(16),
              layout.res_down_rows())  # fmt: skip


def test_res_up_is_the_reference():
  check_block('c01_resup_8_16', layers.ResUp(16), layout.res_up_rows())


def test_attention_pooling_is_the_reference():
  golden = load_golden('c10_attention_pooling')
  variables = layout.to_variables(
      layout.attention_pooling_rows(), golden.state_dict()
  )
  pooled, weights = transformer.AttentionPooling().apply(
      variables, jnp.asarray(golden.inputs()['x'])
  )
  golden.check('eval__out', pooled)
  np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)


def test_sinusoidal_table_is_the_reference():
  golden = load_golden('c04_sinusoidal_pe')
  table = golden.arrays['detr_pe_first83_d32']
  np.testing.assert_allclose(
      transformer.sinusoidal_table(83, 32), table, rtol=0, atol=5e-6
  )
  table = golden.arrays['head_pe_first10_d20'][0]
  np.testing.assert_allclose(
      transformer.sinusoidal_table(10, 20), table, rtol=0, atol=1e-6
  )
  odd = transformer.sinusoidal_table(4, 5)
  assert odd.shape == (4, 5)
  np.testing.assert_allclose(odd[:, 0], np.sin(np.arange(4)), rtol=1e-6)


def conv_transpose(x, kernel, padding, output_padding):
  """Transposed convolution of stride 2 by its definition: scatter and crop.

  Kernel [C, k, k, F]; input pixel y adds kernel row i to output row
  2 y + i - padding.
  """
  n, h, w, _ = x.shape
  k = kernel.shape[1]
  full = np.zeros((n, 2 * h + k, 2 * w + k, kernel.shape[-1]))
  for i in range(k):
    for j in range(k):
      full[:, i : i + 2 * h : 2, j : j + 2 * w : 2] += x @ kernel[:, i, j]
  height = 2 * (h - 1) - 2 * padding + k + output_padding
  width = 2 * (w - 1) - 2 * padding + k + output_padding
  return full[:, padding : padding + height, padding : padding + width]


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (4, 2)])
@pytest.mark.parametrize(('kernel', 'padding'), [(2, 0), (3, 1)])
def test_transposed_convolutions_by_definition(kernel, padding, size):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, *size, 3)).astype(np.float32)
  w = rng.standard_normal((3, kernel, kernel, 5)).astype(np.float32)
  b = rng.standard_normal(5).astype(np.float32)
  out = jax.jit(layers.ConvTranspose(5, kernel).apply)(
      {'params': {'kernel': w, 'bias': b}}, jnp.asarray(x)
  )
  expected = conv_transpose(x, w, padding, output_padding=padding) + b
  assert out.shape == (2, 2 * size[0], 2 * size[1], 5)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_follows_torch():
  rng = np.random.default_rng(1)
  x = (3 + 2 * rng.standard_normal((2, 3, 2, 4))).astype(np.float32)
  module = layers.BatchNorm(1e-3)
  variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
  assert not np.any(variables['batch_stats']['mean'])  # not updated by init
  out, updates = module.apply(
      variables, jnp.asarray(x), train=True, mutable=['batch_stats']
  )
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(
      out, (x - mean) / np.sqrt(var + 1e-3), rtol=1e-4, atol=1e-5
  )
  stats = jax.tree.map(np.asarray, updates['batch_stats'])
  np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(
      stats['var'], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5
  )
  out = module.apply({**variables, **updates}, jnp.asarray(x), train=False)
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-3)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_a_sharded_batch_is_that_of_the_whole():
  x = np.random.default_rng(2).standard_normal((16, 3, 3, 4))
  x = jnp.asarray(x * np.arange(1, 17)[:, None, None, None], jnp.float32)
  module = layers.BatchNorm()
  variables = random_variables(module, x, train=False)

  @jax.jit
  def forward(x):
    return module.apply(variables, x, train=True, mutable=['batch_stats'])

  out, updates = forward(x)
  mesh = Mesh(np.asarray(jax.devices()), ('data',))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  out_sharded, updates_sharded = forward(sharded)
  np.testing.assert_allclose(out_sharded, out, rtol=1e-5, atol=1e-5)
  for key in ('mean', 'var'):
    np.testing.assert_allclose(
        updates_sharded['batch_stats'][key], updates['batch_stats'][key],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_batch_norm_of_one_value_is_finite():
  module = layers.BatchNorm()
  x = jnp.ones((1, 1, 1, 2))
  variables = random_variables(module, x, train=False)
  out, updates = module.apply(
      variables, x, train=True, mutable=['batch_stats']
  )
  assert np.isfinite(out).all()
  assert np.isfinite(updates['batch_stats']['var']).all()


def test_attention_by_hand():
  rng = np.random.default_rng(3)
  x = rng.standard_normal((2, 3, 8)).astype(np.float32)
  memory = rng.standard_normal((2, 5, 8)).astype(np.float32)
  module = transformer.Attention(2)
  variables = random_variables(module, x, memory, train=False)
  params = jax.tree.map(
      lambda p: rng.standard_normal(p.shape).astype(np.float32),
      variables['params'],
  )
  out = module.apply(
      {'params': params}, jnp.asarray(x), jnp.asarray(memory), train=False
  )

  def linear(x, name):
    return x @ params[name]['kernel'] + params[name]['bias']

  q, k, v = linear(x, 'query'), linear(memory, 'key'), linear(memory, 'value')
  heads = []
  for h in (slice(0, 4), slice(4, 8)):
    scores = q[..., h] @ k[..., h].transpose(0, 2, 1) / 2.0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads.append(weights @ v[..., h])
  expected = linear(np.concatenate(heads, -1), 'out')
  np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_attention_refuses_heads_that_do_not_divide():
  x = jnp.ones((1, 2, 6))
  with pytest.raises(ValueError, match='6 channels do not divide into 4'):
    random_variables(transformer.Attention(4), x, x, train=False)


def test_dropout_only_in_training():
  x = jnp.asarray(random_input(0, (2, 5, 8)))
  module = transformer.EncoderLayer(2, 16, dropout=0.5)
  variables = random_variables(module, x, train=False)

  @jax.jit
  def forward(seed):
    return module.apply(
        variables, x, train=True, rngs={'dropout': jax.random.key(seed)}
    )

  assert not np.allclose(forward(0), forward(1))
  np.testing.assert_array_equal(forward(0), forward(0))
  module.apply(variables, x, train=False)  # needs no rng


def test_layers_in_bfloat16():
  x = jnp.asarray(random_input(0, (2, 7, 5, 8)))

  def train(module):
    return jax.jit(
        lambda v: module.apply(v, x, train=True, mutable=['batch_stats'])
    )(variables)

  for block in (layers.ResDown, layers.ResUp):
    variables = random_variables(block(6), x, train=False)
    out, updates = train(block(6, 'bfloat16'))
    full, _ = train(block(6))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), full, atol=0.1)
    dtypes = {a.dtype for a in jax.tree.leaves((variables, updates))}
    assert dtypes == {jnp.dtype('float32')}

  x = x.reshape(2, 35, 8)
  layer = transformer.DecoderLayer(2, 16)
  variables = random_variables(layer, x, x, train=False)

  def decode(dtype):
    module = transformer.DecoderLayer(2, 16, dtype=dtype)
    return jax.jit(lambda v: module.apply(v, x, x, train=False))(variables)

  assert decode('bfloat16').dtype == jnp.bfloat16
  np.testing.assert_allclose(
      decode('bfloat16').astype(jnp.float32), decode('float32'), atol=0.1
  )


@pytest.mark.parametrize(('size', 'down'), [((7, 5), (4, 3)), ((1, 2), (1, 1))])
def test_odd_sizes(size, down):
  x = jnp.ones((1, *size, 4))

  def shape(module):
    out, _ = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), x, train=False)
    )
    return out.shape

  assert shape(layers.ResDown(6)) == (1, *down, 6)
  assert shape(layers.ResUp(6)) == (1, 2 * size[0], 2 * size[1], 6)


def test_float32_product_and_its_gradients():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 5, 3, 8))
  y = jax.random.normal(keys[1], (2, 7, 3, 8))
  out = jax.random.normal(keys[2], (2, 3, 5, 7))

  def loss(product, x, y):
    return (product('nshd,nmhd->nhsm', x, y) * out).sum()

  # In float32, exactly the product that it replaces.
  both = [
      jax.value_and_grad(functools.partial(loss, f), (0, 1))(x, y)
      for f in (jnp.einsum, layers.float32_product)
  ]
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), *both
  )

  # In bfloat16, the result is float32 and no product reads float32.
  low = (x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))
  exact = np.einsum(
      'nshd,nmhd->nhsm', *(np.asarray(a, np.float64) for a in low)
  )
  found = layers.float32_product('nshd,nmhd->nhsm', *low)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, exact, atol=1e-5)
  grad = jax.grad(functools.partial(loss, layers.float32_product), (0, 1))
  compiled = jax.jit(grad).lower(*low).as_text()
  products = [s for s in compiled.splitlines() if 'dot_general' in s]
  # Those of the gradient; the text has the types of the operands.
  assert len(products) == 2
  assert not any(s.split('->')[0].count('xf32>') for s in products)
  for got, want in zip(grad(*low), both[0][1]):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.1)


def test_readout_is_a_dense_layer_in_float32():
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  variables = nn.Dense(3).init(jax.random.key(1), x)
  variables = jax.tree.map(lambda p: p + 0.1, variables)
  np.testing.assert_array_equal(
      layers.Readout(3).apply(variables, x), nn.Dense(3).apply(variables, x)
  )
  low = layers.Readout(3, jnp.bfloat16).apply(variables, x)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, nn.Dense(3).apply(variables, x), atol=0.05)


@pytest.mark.parametrize('mean', [0.0, 30.0])
def test_batch_norm_of_bfloat16_is_that_of_two_passes(mean):
  x = mean + jax.random.normal(jax.random.key(0), (16, 4, 4, 8))
  x = x.astype(jnp.bfloat16)
  exact = np.asarray(x, np.float64)
  average, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
  wanted = (exact - average) / np.sqrt(var + 1e-5)
  # The running mean starts at 0, far from the mean of the data.
  module = layers.BatchNorm()
  variables = module.init(jax.random.key(1), x, train=False)
  out, updates = module.apply(
      variables, x, train=True, mutable=['batch_stats']
  )
  np.testing.assert_allclose(out, wanted, atol=2e-3)
  stats = updates['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * average, rtol=1e-5)
  np.testing.assert_allclose(
      stats['var'], 0.9 + 0.1 * var * 256 / 255, rtol=1e-3
  )

  # The gradient of two passes, which float32 inputs take.
  weights = jax.random.normal(jax.random.key(2), x.shape)

  def loss(x):
    out, _ = module.apply(variables, x, train=True, mutable=['batch_stats'])
    return (out * weights).sum()

  got = jax.grad(loss)(x).astype(jnp.float32)
  two = jax.grad(loss)(x.astype(jnp.float32))
  np.testing.assert_allclose(got, two, atol=0.03)


def test_attention_in_bfloat16_is_that_of_float32():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 5, 16))
  memory = 3 * jax.random.normal(keys[1], (2, 9, 16))
  variables = transformer.Attention(4).init(keys[2], x, memory, train=False)

  def loss(dtype, variables, x, memory):
    out = transformer.Attention(4, dtype=dtype).apply(
        variables, x, memory, train=False
    )
    return jnp.square(out.astype(jnp.float32)).sum(), out

  results = [
      jax.value_and_grad(functools.partial(loss, dtype), (0, 1), has_aux=True)(
          variables, x, memory
      )
      for dtype in (jnp.float32, jnp.bfloat16)
  ]
  (exact, low) = (jax.tree.map(np.asarray, r) for r in results)
  np.testing.assert_allclose(
      low[0][1].astype(np.float32), exact[0][1], atol=0.05
  )
  # Relative to the largest, since the gradient of the keys' bias is 0.
  scale = max(np.abs(g).max() for g in jax.tree.leaves(exact[1]))
  for a, b in zip(jax.tree.leaves(low[1]), jax.tree.leaves(exact[1])):
    np.testing.assert_allclose(a.astype(np.float32), b, atol=0.01 * scale)
