import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vemd_jax import sharding


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


def test_large_arrays_are_split_along_their_largest_free_dimension():
  mesh = sharding.make_mesh(2, 4)
  shapes = {
      'kernel': jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
      'tall': jax.ShapeDtypeStruct((1000, 10), jnp.float32),
      'odd': jax.ShapeDtypeStruct((999, 8), jnp.float32),
      'free': jax.ShapeDtypeStruct((999, 11), jnp.float32),
      'small': jax.ShapeDtypeStruct((8, 8), jnp.float32),
      'scalar': jax.ShapeDtypeStruct((), jnp.int32),
  }
  placed = sharding.state_shardings(mesh, shapes, 1000)
  specs = {k: v.spec for k, v in placed.items()}
  assert specs == {
      'kernel': P(None, None, None, 'fsdp'),
      'tall': P('fsdp', None),
      'odd': P(None, 'fsdp'),
      'free': P(),
      'small': P(),
      'scalar': P(),
  }


def test_without_fsdp_all_is_replicated():
  mesh = sharding.make_mesh(8, 1)
  shapes = {'kernel': jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
  assert sharding.state_shardings(mesh, shapes, 1)['kernel'].spec == P()


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
