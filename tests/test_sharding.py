import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vemd_jax import sharding, state
from vemd_jax.models import emotion_head, layers


@pytest.mark.parametrize(
    'data, fsdp, shape',
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (8, 1, (8, 1))],
)
def test_mesh_fills_what_is_left(data, fsdp, shape):
  mesh = sharding.make_mesh(data, fsdp)
  assert mesh.axis_names == ('data', 'fsdp')
  assert mesh.devices.shape == shape


@pytest.mark.parametrize('data, fsdp', [(3, 1), (-1, 3), (4, 1), (-1, -1)])
def test_mesh_that_does_not_fit_is_named(data, fsdp):
  with pytest.raises(ValueError, match=f'data={data}, fsdp={fsdp}.*8 devices'):
    sharding.make_mesh(data, fsdp)


def train_state(params):
  """Shapes of a state with Adam's moments."""
  params = jax.tree.map(
      lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
      params,
      is_leaf=lambda x: isinstance(x, tuple),
  )
  return state.TrainState(
      step=jax.ShapeDtypeStruct((), jnp.int32), params=params, frozen={},
      batch_stats={}, ema=params, guard={},
      opt_state={'all': jax.eval_shape(optax.adam(1.0).init, params)},
  )  # fmt: skip


SHAPES = {
    'encoder_0': {'conv1': {'kernel': (3, 3, 64, 128), 'bias': (4096,)}},
    'body_decoder': {
        'up_0': {
            'conv1': {'kernel': (3, 3, 64, 30)},
            'conv2': {'kernel': (64, 3, 3, 32)},
        }
    },
    'head_x': {'hidden': {'kernel': (1000, 16)}, 'logits': {'kernel': (8, 8)}},
    'vit_projection_x': {'kernel': (32, 1200)},
    'odd': {'kernel': (999, 11)},
}


def specs(tree):
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): place.spec
      for path, place in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_parameters_are_split_by_the_names_of_their_dimensions():
  mesh = sharding.make_mesh(2, 4)
  placed = sharding.state_shardings(mesh, train_state(SHAPES), 1000)
  found = specs(placed.params)
  assert found == {
      'encoder_0/conv1/kernel': P(None, None, None, 'fsdp'),
      'encoder_0/conv1/bias': P(),
      # 30 outputs do not divide by 4; the first dimension is no input.
      'body_decoder/up_0/conv1/kernel': P(None, None, 'fsdp', None),
      'body_decoder/up_0/conv2/kernel': P(None, None, None, 'fsdp'),
      # The contracted dimension, although the other divides, too.
      'head_x/hidden/kernel': P('fsdp', None),
      'head_x/logits/kernel': P(),
      'vit_projection_x/kernel': P(None, 'fsdp'),
      'odd/kernel': P(),
  }
  assert specs(placed.ema) == found
  for moment in 'mu', 'nu':
    assert specs(getattr(placed.opt_state['all'][0], moment)) == found
  assert placed.opt_state['all'][0].count.spec == P()


@pytest.mark.parametrize(
    'data, fsdp, hidden, conv1',
    [
        (8, 1, P('data', None), P(None, None, 'data', None)),
        (2, 4, P(('fsdp', 'data'), None),
         P(None, None, ('fsdp', 'data'), None)),
        (1, 8, P('fsdp', None), P(None, None, 'fsdp', None)),
    ],
)  # fmt: skip
def test_moments_are_split_over_data(data, fsdp, hidden, conv1):
  mesh = sharding.make_mesh(data, fsdp)
  shapes = train_state(SHAPES)
  placed = sharding.state_shardings(mesh, shapes, 1000, True)
  for moment in 'mu', 'nu':
    found = specs(getattr(placed.opt_state['all'][0], moment))
    assert found['head_x/hidden/kernel'] == hidden
    assert found['body_decoder/up_0/conv1/kernel'] == conv1
    assert found['odd/kernel'] == P()
  gradients = sharding.gradient_shardings(mesh, shapes.params, 1000, True)
  assert specs(gradients) == found
  # Parameters are split over fsdp only.
  assert placed.params['head_x']['hidden']['kernel'].spec == (
      P('fsdp', None) if fsdp > 1 else P()
  )


def test_the_table_counts_the_bytes_of_a_device():
  mesh = sharding.make_mesh(2, 4)
  shapes = train_state({'head_x': {'hidden': {'kernel': (8000, 16)}}})
  placed = sharding.state_shardings(mesh, shapes, 1000, True)
  target = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
      shapes,
      placed,
  )
  _, *rows = (line.split() for line in sharding.describe(target, mesh))
  # 0.512 MB: with its average over 4 devices, the two moments over 8.
  assert rows == [
      ['parameters', 'head_*/hidden/kernel', 'wide/fsdp,', 'out', '2', '0.3'],
      ['moments', 'head_*/hidden/kernel', 'wide/fsdp+data,', 'out', '2', '0.1'],
      ['all', 'others', 'whole', '1', '0.0'],
  ]


def test_without_fsdp_all_parameters_are_replicated():
  mesh = sharding.make_mesh(8, 1)
  placed = sharding.state_shardings(mesh, train_state(SHAPES), 1, True)
  assert set(specs(placed.params).values()) == {P()}


def test_a_batch_lies_on_all_devices():
  mesh = sharding.make_mesh(2, 4)
  x = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
  put = sharding.put_batch({'x': x}, mesh)['x']
  assert len({str(s.index) for s in put.addressable_shards}) == 8
  assert put.addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(put, x)
  assert sharding.local_rows(mesh, 16).tolist() == list(range(16))
  with pytest.raises(ValueError, match='config.eval.batch_size is 12'):
    sharding.check_batch_size(12, mesh, 'eval.batch_size')


def test_a_wide_matrix_is_not_gathered():
  """Each device multiplies its part of the vectors with its rows."""
  mesh = sharding.make_mesh(1, 4, jax.devices()[:4])
  head = emotion_head.EmotionHead(num_classes=3, mlp_dim=8, width=8)
  latents = (jnp.ones((8, 1, 7, 7, 64)),) * 2
  latents = jax.tree.map(
      lambda x: jax.random.normal(jax.random.key(1), x.shape), latents
  )

  def loss(params, latents):
    logits, *_ = head.apply(
        {'params': params}, latents, {}, {}, train=False
    )
    return (logits**2).mean()

  params = head.init(jax.random.key(0), latents, {}, {}, train=False)['params']
  assert params['reduction']['kernel'].shape == (2 * 7 * 7 * 64, 64)
  expected = jax.jit(jax.grad(loss))(params, latents)
  places = sharding.gradient_shardings(mesh, {'head_x': params}, 2**15)
  places = places['head_x']
  assert places['reduction']['kernel'].spec == P('fsdp', None)
  step = jax.jit(
      sharding.constrained(mesh, jax.grad(loss)), out_shardings=places
  )
  compiled = step.lower(
      jax.device_put(params, places),
      jax.device_put(latents, sharding.batch_sharding(mesh)),
  ).compile()
  gathered = [
      math.prod(map(int, shape.split(',')))
      for shape in re.findall(r'f32\[([\d,]+)\][^=]* all-gather\(',
                              compiled.as_text())
  ]  # fmt: skip
  assert max(gathered, default=0) < 6272 * 64 / 4
  found = compiled(
      jax.device_put(params, places),
      jax.device_put(latents, sharding.batch_sharding(mesh)),
  )
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
      found,
      expected,
  )


def test_batch_normalization_is_over_the_global_batch():
  """Four devices: the statistics of numpy over all samples."""
  mesh = sharding.make_mesh(2, 2, jax.devices()[:4])
  # Each device's quarter has another mean, so that local ones would differ.
  x = np.random.default_rng(0).normal(size=(8, 3, 3, 5)).astype(np.float32)
  x += np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
  layer = layers.BatchNorm()
  variables = layer.init(jax.random.key(0), x, train=True)

  @jax.jit
  def apply(x):
    return layer.apply(variables, x, train=True, mutable=['batch_stats'])

  y, updates = apply(jax.device_put(x, sharding.batch_sharding(mesh)))
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  found = updates['batch_stats']
  np.testing.assert_allclose(found['mean'], 0.1 * mean, 1e-5)
  unbiased = var * 72 / 71
  np.testing.assert_allclose(found['var'], 0.9 + 0.1 * unbiased, 1e-5)
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), 1e-4, 1e-5)
