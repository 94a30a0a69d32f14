"""DP-SGD: clipping, noise, sampling, accounting, and what is refused."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from configs import folder, group_scenes
from vemd_jax import config as config_lib
from vemd_jax import dp
from vemd_jax.data import poisson


def recipe(**changes):
  config = group_scenes.get_config('tiny,dp,ve_sd')
  config.update_from_flattened_dict(changes)
  return config


def test_gradients_are_clipped_like_by_hand():
  rng = np.random.default_rng(0)
  a = rng.normal(size=(5, 3, 2)).astype(np.float32)
  b = rng.normal(size=(5, 4)).astype(np.float32)
  a[0] *= 0.01
  b[0] *= 0.01  # Below the norm: unchanged.
  b[3, 1] = np.nan
  mask = np.array([True, True, False, True, True])
  got = dp.clip_sum({'a': jnp.asarray(a), 'b': jnp.asarray(b)}, 0.7,
                    jnp.asarray(mask))  # fmt: skip
  wanted = {'a': np.zeros((3, 2)), 'b': np.zeros(4)}
  for i in (0, 1, 4):
    norm = np.sqrt((a[i] ** 2).sum() + (b[i] ** 2).sum())
    scale = min(1.0, 0.7 / norm)
    wanted['a'] += scale * a[i]
    wanted['b'] += scale * b[i]
  np.testing.assert_allclose(got['a'], wanted['a'], rtol=1e-5)
  np.testing.assert_allclose(got['b'], wanted['b'], rtol=1e-5)


def test_noise_has_the_stated_scale_and_depends_on_the_key_alone():
  zeros = {'a': jnp.zeros((300, 200)), 'b': jnp.zeros(1000)}
  key = jax.random.key(3)
  noisy = dp.add_noise(zeros, 1.7, key)
  again = dp.add_noise(zeros, 1.7, key)
  jax.tree.map(np.testing.assert_array_equal, noisy, again)
  x = np.asarray(noisy['a']).ravel()
  # 60,000 draws: the standard error of the deviation is 0.3 %.
  assert abs(x.std() / 1.7 - 1) < 0.015
  assert abs(x.mean()) < 5 * 1.7 / np.sqrt(x.size)
  # Leaves do not share noise.
  assert abs(np.corrcoef(x[:1000], np.asarray(noisy['b']))[0, 1]) < 0.15


class Toy:
  """A linear model with a squared loss, whose gradients are known."""

  def loss(self, params, stats, state, batch, dataset, keys):
    error = batch['x'] @ params['w'] - batch['y']
    mask = batch['mask'].astype(jnp.float32)
    value = (mask * error**2).sum() / jnp.maximum(mask.sum(), 1)
    return value, (Sums(mask.sum()[None]), {}, value)


@jax.tree_util.register_pytree_node_class
class Sums:
  """Stands for the metrics of a batch."""

  def __init__(self, count):
    self.count = count

  def reduce(self):
    return Sums(self.count.sum(0))

  def tree_flatten(self):
    return (self.count,), None

  @classmethod
  def tree_unflatten(cls, _, children):
    return cls(*children)


def test_the_gradient_of_a_step_is_the_clipped_sum_and_noise():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(12, 3)).astype(np.float32)
  y = rng.normal(size=12).astype(np.float32)
  w = np.array([0.5, -1.0, 2.0], np.float32)
  mask = np.arange(12) < 7
  mask[2] = False  # An unreadable one among the drawn.
  batch = {'x': jnp.asarray(x), 'y': jnp.asarray(y), 'mask': jnp.asarray(mask)}
  keys = {'dropout': jax.random.key(0)}

  @functools.partial(jax.jit, static_argnames=('noise', 'seed'))
  def compute(batch, step, noise, seed):
    state = types.SimpleNamespace(
        params={'w': jnp.asarray(w)}, batch_stats={}, step=step
    )
    private = dp.Private(noise, 1.5, 6, 4)
    return dp.gradients(Toy().loss, private, seed)(state, batch, 'a', keys)

  def gradient(noise, step=5, seed=9):
    grads, metrics, _, loss = compute(batch, jnp.asarray(step), noise, seed)
    return np.asarray(grads['w']), metrics, float(loss)

  exact, metrics, loss = gradient(0.0)
  by_hand = np.zeros(3)
  for i in np.flatnonzero(mask):
    g = 2 * (x[i] @ w - y[i]) * x[i]
    by_hand += g * min(1.0, 1.5 / np.linalg.norm(g))
  np.testing.assert_allclose(exact, by_hand / 6, rtol=1e-5)
  np.testing.assert_allclose(loss, ((x @ w - y)[mask] ** 2).mean(), rtol=1e-5)
  assert float(metrics.count[0]) == mask.sum()
  # Noise is a function of seed and step.
  noisy = gradient(2.0)[0]
  np.testing.assert_array_equal(noisy, gradient(2.0)[0])
  assert (noisy != gradient(2.0, step=6)[0]).all()
  assert (noisy != gradient(2.0, seed=10)[0]).all()
  many = np.concatenate([
      gradient(2.0, step=s)[0] - exact for s in range(150)
  ])
  assert abs(many.std() / (2.0 * 1.5 / 6) - 1) < 0.12
  # Without drawn samples only noise is left.
  batch['mask'] = jnp.zeros(12, bool)
  assert gradient(0.0)[0].tolist() == [0, 0, 0]


def test_batch_statistics_are_refused_in_the_step():
  compute = dp.gradients(Toy().loss, dp.Private(1.0, 1.0, 4, 2), 0)
  state = types.SimpleNamespace(params={}, batch_stats={'encoder_0': 1}, step=0)
  with pytest.raises(ValueError, match='encoder_0 use batch statistics'):
    compute(state, {'mask': jnp.ones(4)}, 'a', {})


def renyi(noise, rate, order):
  """Bound of arXiv 1908.10530, section 3.3, for integer orders, by hand."""
  k = np.arange(order + 1)
  terms = (
      np.log(special.comb(order, k))
      + k * np.log(rate)
      + (order - k) * np.log1p(-rate)
      + (k * k - k) / (2 * noise**2)
  )
  return special.logsumexp(terms) / (order - 1)


def test_epsilon_is_that_of_the_accountant():
  pytest.importorskip('dp_accounting')
  config = recipe(**{'batch_size': 250, 'dp.noise': 1.3, 'dp.delta': 1e-5})
  accountant = dp.Accountant(config, 60_000)
  rate, steps = 250 / 60_000, 3600
  # Conversion of arXiv 2004.00010, Proposition 12.
  delta = 1e-5 - steps * 1e-10
  by_hand = min(
      steps * renyi(1.3, rate, a)
      + np.log1p(-1 / a) - np.log(delta * a) / (a - 1)
      for a in range(2, 200)
  )  # fmt: skip
  epsilon = accountant.epsilon(steps)
  # The accountant also has orders that are no integers.
  assert 0.97 * by_hand < epsilon <= by_hand * 1.0001
  # The tutorial of TensorFlow Privacy gives 1.18 with an earlier conversion.
  assert 0.8 < epsilon < 1.18
  assert accountant.epsilon(0) == 0.0
  assert accountant.epsilon(1) < accountant.epsilon(100) < epsilon
  spent = accountant.spent(steps)
  assert spent['epsilon'] == epsilon and spent['delta'] == 1e-5
  assert spent['sampling_probability'] == rate


def test_settings_that_do_not_fit_the_data_are_refused():
  pytest.importorskip('dp_accounting')
  with pytest.raises(ValueError, match='batch_size is 8, expected at most 5'):
    dp.Accountant(recipe(), 5)
  with pytest.raises(ValueError, match='dp.delta is 0.1, expected less than'):
    dp.Accountant(recipe(**{'dp.delta': 0.1}), 100)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model.norm', 'batch'),
        ('optim.accumulation', 2),
        ('faults.spike', 'skip'),
        ('faults.not_finite', 'skip'),
        ('losses.emotion.kwargs.class_weights', 'balanced'),
        ('checkpoint.resume', 'OTHER'),
        ('model.head.attend', 'batch'),
        ('data.num_workers', 1),
        ('dp.clip', 0.0),
        ('dp.delta', 0.0),
        ('dp.unit', 'person'),
        ('dp.microbatch', 0),
    ],
)
def test_what_breaks_the_guarantee_is_refused(key, value):
  config = recipe()
  config_lib.check(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=f'config.{key} is') as error:
    config_lib.check(config)
  assert '\n' not in str(error.value)
  if not key.startswith('dp.'):
    with config.unlocked():
      config.dp.noise = 0.0
    config_lib.check(config)


def test_group_normalization_is_that_of_numpy_and_mixes_no_samples():
  from flax import linen as nn

  from vemd_jax.models import layers

  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return layers.BatchNorm(name='n')(x, train=train)

  class Model(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x, train):
      return Inner(name='inner')(x, train)

  rng = np.random.default_rng(0)
  x = rng.normal(2, 3, size=(3, 4, 5, 16)).astype(np.float32)
  model = Model('group')
  variables = model.init(jax.random.key(0), jnp.asarray(x), True)
  assert set(variables) == {'params'}
  got = np.asarray(model.apply(variables, jnp.asarray(x), True))
  groups = x.reshape(3, 20, 8, 2)
  mean = groups.mean((1, 3), keepdims=True)
  spread = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
  wanted = ((groups - mean) / spread).reshape(x.shape)
  np.testing.assert_allclose(got, wanted, atol=1e-4)
  alone = model.apply(variables, jnp.asarray(x[:1]), False)
  np.testing.assert_allclose(got[:1], alone, atol=1e-5)
  other = Model('batch').init(jax.random.key(0), jnp.asarray(x), True)
  assert set(other) == {'params', 'batch_stats'}
  # The same parameters, so that weights fit both.
  assert jax.tree.structure(other['params']) == jax.tree.structure(
      variables['params']
  )


class Source:
  subjects = ('a', '', 'A', 'b', 'a', '')
  files = tuple('012345')

  def __len__(self):
    return 6

  def __getitem__(self, index):
    return {'file': str(index)}


def test_units_are_samples_or_subjects():
  assert poisson.units(Source(), 'sample') == [[i] for i in range(6)]
  assert poisson.units(Source(), 'subject') == [[0, 2, 4], [1], [3], [5]]
  with pytest.raises(ValueError, match='no subjects'):
    poisson.units([1, 2], 'subject')


def test_batches_are_poisson_samples_and_a_function_of_seed_and_step():
  class Many(Source):
    subjects = ()

    def __len__(self):
      return 40

  sampling = poisson.Sampling('sample', 24)

  def drawn(seed):
    return poisson.Drawn(Many(), 'a', seed, 8, sampling)

  one, other = drawn(1), drawn(1)
  batches = [one.indices(k) for k in range(2000)]
  assert [other.indices(k) for k in (1500, 3)] == [batches[1500], batches[3]]
  assert drawn(2).indices(3) != batches[3]
  sizes = np.array(list(map(len, batches)))
  # Binomial with n = 40, p = 0.2: mean 8, variance 6.4.
  assert abs(sizes.mean() - 8) < 0.25 and abs(sizes.var() - 6.4) < 0.8
  inside = np.zeros((2000, 40))
  for k, batch in enumerate(batches):
    assert len(set(batch)) == len(batch)
    inside[k, batch] = 1
  assert np.abs(inside.mean(0) - 0.2).max() < 0.05
  # Samples are drawn independently of each other.
  between = np.corrcoef(inside.T) - np.eye(40)
  assert np.abs(between).max() < 0.12
  rows = [one[24 * 3 + i] for i in range(24)]
  assert [r['file'] for r in rows if r] == list(map(str, batches[3]))
  assert rows[len(batches[3]):] == [{}] * (24 - len(batches[3]))


def test_a_subject_gives_one_random_sample():
  sampling = poisson.Sampling('subject', 8)
  source = poisson.Drawn(Source(), 'a', 0, 4, sampling)
  counts = np.zeros(6)
  for step in range(300):
    batch = source.indices(step)
    # All four units are drawn with probability 1.
    assert len(batch) == 4 and len({0, 2, 4} & set(batch)) == 1
    counts[batch] += 1
  assert counts[[1, 3, 5]].tolist() == [300] * 3
  assert (counts[[0, 2, 4]] > 70).all()


def test_a_batch_has_room_for_every_draw_but_one_in_ten_billion():
  config = folder.get_config('dp')
  sampling = dp.sampling(config)
  from scipy import stats

  for count in (100, 100_000):
    tail = stats.binom.sf(sampling.rows, count, config.batch_size / count)
    assert tail <= 1e-10
  assert sampling.rows % config.dp.microbatch == 0
  assert dp.sampling(folder.get_config('')) is None


def test_the_microbatch_does_not_change_where_a_sample_stands():
  config = folder.get_config('dp')
  rows = set()
  for microbatch in (1, 2, 8, 64):
    config.dp.microbatch = microbatch
    rows.add(dp.sampling(config).rows)
  assert len(rows) == 1
  config.dp.microbatch = 24
  assert dp.sampling(config).rows % 24 == 0


@pytest.mark.slow
@pytest.mark.usefixtures('standard_promotion')
def test_a_private_run_reports_epsilon_and_resumes_exactly(tmp_path, capsys):
  pytest.importorskip('dp_accounting')
  from vemd_jax import train, weights

  def start(name, steps):
    config = recipe(**{'dp.delta': 1e-3})
    config.steps = steps
    # A warm-up would depend on the number of steps.
    config.optim.update(schedule='constant', warmup_steps=0)
    config.eval.every, config.checkpoint.every = 0, 2
    train.train_and_evaluate(config, tmp_path / name)
    return weights.restore_step(tmp_path / name)[0]

  whole = start('whole', 4)
  assert 'epsilon' in capsys.readouterr().out
  start('parts', 2)
  parts = start('parts', 4)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  results = json.loads((tmp_path / 'whole' / 'results.json').read_text())
  assert results['privacy']['steps'] == 4
  assert results['privacy']['epsilon'] > 0
  lines = (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()
  spent = [json.loads(x)['epsilon'] for x in lines if 'epsilon' in x]
  assert spent == sorted(spent) and spent[-1] == pytest.approx(
      results['privacy']['epsilon']
  )
