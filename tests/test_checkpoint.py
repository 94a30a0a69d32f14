
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from vemd_jax import checkpoint, sharding, state, weights
from vemd_jax import config as config_lib


class Net(nn.Module):
  classes: tuple = (('a', 3),)
  width: int = 8

  @nn.compact
  def __call__(self, batch, *, dataset, train):
    x = nn.Dense(self.width, name='encoder_0')(batch['x'])
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(4, name='vit')(x)


BATCH = {'x': jnp.ones((2, 16))}
OPTIMIZER = optax.adam(1e-3)


def make(mesh, seed=0, min_size=32, **kwargs):
  def create():
    return state.create(
        Net(**kwargs), OPTIMIZER, BATCH, seed=seed, frozen=('vit',), ema=True
    )

  shapes = jax.eval_shape(create)
  shardings = sharding.state_shardings(mesh, shapes, min_size)
  target = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
      shapes,
      shardings,
  )
  return jax.jit(create, out_shardings=shardings), target


def settings():
  settings = config_lib.default().checkpoint
  settings.best_metric = 'accuracy'
  return settings


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_save_on_2x4_restore_on_1x4(tmp_path):
  create, _ = make(sharding.make_mesh(2, 4))
  saved = create()
  assert saved.params['encoder_0']['kernel'].sharding.spec == P(None, 'fsdp')
  first = checkpoint.Checkpoints(tmp_path, settings())
  first.save(saved, {'seed': 3}, {'accuracy': 0.5})
  first.close()

  mesh = sharding.make_mesh(1, 4, devices=jax.devices()[:4])
  _, target = make(mesh)
  second = checkpoint.Checkpoints(tmp_path, settings())
  restored, data = second.restore(target)
  second.close()
  assert data == {'seed': 3}
  assert restored.params['encoder_0']['kernel'].sharding.mesh == mesh
  assert_equal(saved, restored)


def test_keeps_latest_and_best(tmp_path):
  create, _ = make(sharding.make_mesh())
  checkpoints = checkpoint.Checkpoints(tmp_path, settings())
  fresh = create()
  for step, accuracy in (1, 0.2), (2, 0.9), (3, 0.4), (4, None), (5, 0.3):
    metrics = None if accuracy is None else {'accuracy': accuracy}
    checkpoints.save(fresh.replace(step=jnp.int32(step)), {}, metrics)
  checkpoints.wait()
  assert checkpoints.latest_step() == 5
  assert checkpoints.best_step() == 2
  checkpoints.close()
  steps = {p.name for p in (tmp_path / 'checkpoints').iterdir() if p.is_dir()}
  assert steps == {'2', '4', '5'}


def test_unknown_best_metric_is_named(tmp_path):
  create, _ = make(sharding.make_mesh())
  wanted = settings()
  wanted.best_metric = 'acuracy'
  checkpoints = checkpoint.Checkpoints(tmp_path, wanted)
  with pytest.raises(ValueError, match=r"'acuracy'.*accuracy, loss"):
    checkpoints.save(create(), {}, {'accuracy': 0.1, 'loss': 1.0})
  checkpoints.close()


def test_misfit_names_the_array(tmp_path):
  mesh = sharding.make_mesh()
  create, _ = make(mesh)
  checkpoints = checkpoint.Checkpoints(tmp_path, settings())
  checkpoints.save(create(), {})
  checkpoints.wait()
  _, target = make(mesh, width=9)
  message = r'params/encoder_0/bias is float32.8., the model has float32.9.'
  with pytest.raises(ValueError, match=message):
    checkpoints.restore(target)
  checkpoints.close()


def test_check_fit_sees_names_shapes_and_types():
  have = {'a': jnp.ones(3), 'b': jnp.ones(2), 'c': jnp.ones(1)}
  want = {
      'a': jnp.ones(3),
      'b': jnp.ones(2, jnp.bfloat16),
      'd': jnp.ones(1),
  }
  checkpoint.check_fit(have, have, 'x')
  with pytest.raises(ValueError) as error:
    checkpoint.check_fit(have, want, 'the file')
  text = str(error.value)
  assert text.startswith('the file does not match')
  assert '1 missing (d)' in text
  assert '1 unexpected (c)' in text
  assert 'b is float32[2], the model has bfloat16[2]' in text


def test_weights_find_their_place_and_the_rest_stays(tmp_path):
  create, _ = make(sharding.make_mesh(2, 4))
  fresh = create()
  kernel = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
  vit = np.full(4, 7.0, np.float32)
  weights.save_variables(
      tmp_path / 'weights',
      {
          'params': {
              'encoder_0': {'kernel': kernel},
              'vit': {'bias': vit},
              'head_other': {'bias': np.zeros(3, np.float32)},
              'face_decoder': {'bias': np.zeros(3, np.float32)},
          }
      },
  )
  loaded = weights.load_weights(fresh, tmp_path / 'weights')
  np.testing.assert_array_equal(loaded.params['encoder_0']['kernel'], kernel)
  np.testing.assert_array_equal(loaded.ema['encoder_0']['kernel'], kernel)
  np.testing.assert_array_equal(loaded.frozen['vit']['bias'], vit)
  np.testing.assert_array_equal(
      loaded.params['encoder_0']['bias'], fresh.params['encoder_0']['bias']
  )
  assert int(loaded.step) == 0


def test_weights_without_a_place_are_named(tmp_path):
  create, _ = make(sharding.make_mesh())
  weights.save_variables(
      tmp_path / 'weights',
      {
          'params': {
              'encoder_0': {'kernel': np.zeros((2, 2), np.float32)},
              'encoder_7': {'kernel': np.zeros((2, 2), np.float32)},
          }
      },
  )
  with pytest.raises(ValueError, match='2 problems') as error:
    weights.load_weights(create(), tmp_path / 'weights')
  assert 'encoder_0/kernel is [2, 2], the model has [16, 8]' in str(error.value)
  assert 'encoder_7/kernel does not exist' in str(error.value)
  with pytest.raises(FileNotFoundError, match='nowhere'):
    weights.load_weights(create(), tmp_path / 'nowhere')


def test_order_of_initialisation(tmp_path):
  mesh = sharding.make_mesh()
  create, target = make(mesh)
  config = settings()
  other = checkpoint.Checkpoints(tmp_path / 'other', settings())
  other.save(create().replace(step=jnp.int32(7)), {'seed': 1})
  other.close()
  stored = {'params': {'encoder_0': {'bias': np.full(8, 5.0, np.float32)}}}
  weights.save_variables(tmp_path / 'weights', stored)

  own = checkpoint.Checkpoints(tmp_path / 'own', settings())
  start, data = weights.initialise(create, target, own, config, {})
  assert int(start.step) == 0 and data is None

  # Without weights, a frozen part would stay random.
  config.init_from = (str(tmp_path / 'weights'),)
  with pytest.raises(ValueError, match='2 frozen arrays .vit/bias'):
    weights.initialise(create, target, own, config, {})
  vit = jax.tree.map(np.asarray, create().frozen['vit'])
  weights.save_variables(tmp_path / 'vit', {'params': {'vit': vit}})
  config.init_from += (str(tmp_path / 'vit'),)
  start, data = weights.initialise(create, target, own, config, {})
  assert float(start.params['encoder_0']['bias'][0]) == 5.0 and data is None

  config.resume = str(tmp_path / 'other')
  start, data = weights.initialise(create, target, own, config, {})
  assert int(start.step) == 7 and data == {'seed': 1}

  own.save(create().replace(step=jnp.int32(3)), {'seed': 2})
  own.wait()
  start, data = weights.initialise(create, target, own, config, {})
  assert int(start.step) == 3 and data == {'seed': 2}
  own.close()


def test_restored_variables_are_those_of_the_best_and_its_average(tmp_path):
  create, _ = make(sharding.make_mesh())
  config = config_lib.default()
  config_lib.save(config, tmp_path / 'config.json')
  checkpoints = checkpoint.Checkpoints(tmp_path, settings())
  fresh = create()
  for step, accuracy in (1, 0.9), (2, 0.1):
    ema = jax.tree.map(lambda x, s=step: jnp.full_like(x, s), fresh.ema)
    checkpoints.save(
        fresh.replace(step=jnp.int32(step), ema=ema),
        {},
        {'accuracy': accuracy},
    )
  checkpoints.close()
  variables = weights.restore_variables(tmp_path)
  assert float(variables['params']['encoder_0']['kernel'][0, 0]) == 1.0
  assert_equal(variables['params']['vit'], fresh.frozen['vit'])
  variables = weights.restore_variables(tmp_path, 'latest')
  assert float(variables['params']['encoder_0']['kernel'][0, 0]) == 2.0
