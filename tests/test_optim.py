import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vemd_jax import config as config_lib
from vemd_jax import optim

pytestmark = pytest.mark.usefixtures('standard_promotion')

PARAMS = {'kernel': jnp.full((2, 2), 2.0), 'bias': jnp.full((2,), 2.0)}
GRADS = {'kernel': jnp.full((2, 2), 30.0), 'bias': jnp.full((2,), -40.0)}


def settings(**changes):
  result = config_lib.default().optim
  result.update(changes)
  return result


@pytest.mark.parametrize(
    'name, expected',
    [
        ('constant', [0.0, 0.5, 1.0, 1.0, 1.0]),
        ('linear', [0.0, 0.5, 1.0, 0.5, 0.0]),
        ('cosine', [0.0, 0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_schedules_rise_then_fall(name, expected):
  schedule = optim.make_schedule(
      settings(learning_rate=1.0, schedule=name, warmup_steps=10), 50
  )
  values = [float(schedule(s)) for s in (0, 5, 10, 30, 50)]
  np.testing.assert_allclose(values, expected, atol=1e-6)


def test_warmup_longer_than_the_run_still_reaches_the_peak():
  schedule = optim.make_schedule(
      settings(learning_rate=1.0, warmup_steps=1000), 10
  )
  assert float(schedule(5)) == 1.0


def test_adam_after_clipping_by_hand():
  # Adam's first step is the sign of the gradient times the rate; with an
  # epsilon that is large for a gradient clipped to norm 1e-6.
  optimizer = optim.make_optimizer(
      settings(learning_rate=0.1, clip=1e-6), steps=10
  )
  updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  norm = np.sqrt(4 * 30.0**2 + 2 * 40.0**2)
  for key, grad in ('kernel', 30.0), ('bias', -40.0):
    clipped = grad * 1e-6 / norm
    expected = -0.1 * clipped / (abs(clipped) + 1e-8)
    np.testing.assert_allclose(updates[key].ravel()[0], expected, rtol=1e-4)


def test_an_optimizer_of_optax():
  # Lion's first step is the sign of the gradient times the rate.
  optimizer = optim.make_optimizer(
      settings(name='optax:lion', learning_rate=0.1), steps=10
  )
  updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  for key, sign in ('kernel', 1), ('bias', -1):
    # optax decays weights by 1e-3.
    np.testing.assert_allclose(updates[key], -0.1 * (sign + 2e-3), rtol=1e-5)


def test_weight_decay_spares_biases():
  plain = optim.make_optimizer(settings(name='adam', clip=0.0), 10)
  decayed = optim.make_optimizer(
      settings(name='adamw', weight_decay=0.5, clip=0.0), 10
  )
  a, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
  b, _ = decayed.update(GRADS, decayed.init(PARAMS), PARAMS)
  rate = 1e-4
  np.testing.assert_allclose(b['bias'], a['bias'])
  np.testing.assert_allclose(
      b['kernel'], a['kernel'] - rate * 0.5 * PARAMS['kernel'], rtol=1e-5
  )
  optax.apply_updates(PARAMS, b)
