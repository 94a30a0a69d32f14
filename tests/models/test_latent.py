"""The Gaussian latent."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_rule import random_input, random_variables
from vemd_jax.models.latent import LOG_VARIANCE_RANGE, GaussianLatent

SHAPE = (2, 3, 4, 4, 8)


def features(scale=1.0):
  return scale * jnp.asarray(random_input(0, SHAPE))


def test_deterministic_latent_is_the_encoder_output():
  module = GaussianLatent(deterministic=True)
  variables = random_variables(module, features(), train=False)
  assert not variables
  for train in (False, True):  # needs no rng
    latent = module.apply({}, features().astype(jnp.bfloat16), train=train)
    assert latent.log_variance is None
    np.testing.assert_array_equal(latent.sample, latent.mean)
    assert latent.sample.dtype == jnp.float32


def test_samples_have_the_mean_and_the_variance():
  module = GaussianLatent()
  x = jnp.broadcast_to(features()[:1, :1, :1, :1], (64, 8, 8, 8, 8))
  variables = random_variables(module, x, train=False)
  kernel = 0.5 * jnp.asarray(random_input(3, (8, 8)))
  variables['params']['log_variance']['kernel'] = kernel
  latent = module.apply(
      variables, x, train=True, rngs={'latent': jax.random.key(1)}
  )
  bias = variables['params']['log_variance']['bias']
  expected = np.asarray(x[0, 0, 0, 0]) @ np.asarray(kernel) + np.asarray(bias)
  np.testing.assert_allclose(
      latent.log_variance[0, 0, 0, 0], expected, rtol=1e-4
  )
  sample = np.asarray(latent.sample).reshape(-1, 8)
  deviation = np.exp(0.5 * expected)
  error = np.abs(sample.mean(0) - np.asarray(x[0, 0, 0, 0]))
  assert np.all(error < 5 * deviation / len(sample) ** 0.5)
  np.testing.assert_allclose(sample.std(0), deviation, rtol=0.03)


def test_evaluation_gives_the_mean():
  module = GaussianLatent()
  variables = random_variables(module, features(), train=False)
  latent = module.apply(variables, features(), train=False)
  np.testing.assert_array_equal(latent.sample, latent.mean)
  np.testing.assert_allclose(latent.mean, features())
  assert latent.log_variance.shape == SHAPE


def test_each_step_draws_anew_and_gradients_reach_both_maps():
  module = GaussianLatent()
  variables = random_variables(module, features(), train=False)

  @jax.jit
  def sample(variables, x, seed=1):
    return module.apply(
        variables, x, train=True, rngs={'latent': jax.random.key(seed)}
    ).sample

  assert not np.allclose(
      sample(variables, features()), sample(variables, features(), 2)
  )
  by_params, by_input = jax.grad(
      lambda v, x: jnp.square(sample(v, x)).sum(), (0, 1)
  )(variables, features())
  assert np.abs(by_params['params']['log_variance']['bias']).max() > 0
  assert np.abs(by_input).min() > 0


def test_large_features_stay_finite():
  module = GaussianLatent(dtype='bfloat16')
  variables = random_variables(module, features(), train=False)
  latent = module.apply(
      variables, features(1e6), train=True, rngs={'latent': jax.random.key(1)}
  )
  low, high = LOG_VARIANCE_RANGE
  assert latent.log_variance.dtype == jnp.float32
  assert low <= latent.log_variance.min() < latent.log_variance.max() <= high
  assert np.isfinite(latent.sample).all()
