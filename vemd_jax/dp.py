"""Differentially private training: DP-SGD (arXiv 1607.00133).

Each step draws every unit (a sample, or a subject with one of its samples) with
the same probability, independently (Poisson sampling), clips the gradient of
each sample to the L2 norm C, adds Gaussian noise of standard deviation
noise x C to their sum, and divides by the expected batch size.

The weights are then (epsilon, delta) differentially private with respect to the
addition or removal of one unit of the training split, as computed by Google's
dp_accounting for this sampling. The guarantee is about the weights: the metrics
of training batches in metrics.jsonl, and everything that is computed from the
validation split, are not covered. The noise is a function of the seed and the
step, so that a run can be resumed exactly; hence it protects only from those
who do not know the seed, which is also in config.json.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vemd_jax import rng
from vemd_jax.data import poisson

# Probability per step that more samples are drawn than a batch has rows, so
# that some are dropped; it is added to delta.
_OVERFLOW = 1e-10


class Private(NamedTuple):
  """Settings of a private training step.

  Attributes:
    noise: standard deviation of the noise, in units of the clipping norm.
    clip: clipping norm C.
    expected: expected number of samples in a batch.
    microbatch: number of samples whose gradients are computed at a time.
  """

  noise: float
  clip: float
  expected: int
  microbatch: int


def settings(config: ConfigDict) -> Private | None:
  """Settings of the step; None unless the training is private."""
  dp = config.get('dp')
  if dp is None or not dp.noise:
    return None
  return Private(dp.noise, dp.clip, config.batch_size, dp.microbatch)


def sampling(config: ConfigDict) -> poisson.Sampling | None:
  """How batches are drawn; None unless the training is private."""
  private = settings(config)
  if private is None:
    return None
  from scipy import stats

  # The number of drawn samples is binomial, whose upper tail is below that of
  # the Poisson distribution (Anderson and Samuels 1967).
  rows = int(stats.poisson.isf(_OVERFLOW, private.expected)) + 1
  # A sample's augmentation depends on its place in the sequence of batches, and
  # that on their size: a multiple that most settings share, so that a run does
  # not change with the microbatch or the devices.
  multiple = math.lcm(64, private.microbatch, jax.device_count())
  return poisson.Sampling(
      config.dp.unit, -(-rows // multiple) * multiple
  )


def check(config: ConfigDict) -> None:
  """Checks that nothing in a config breaks the guarantee.

  Args:
    config: the whole config.

  Raises:
    ValueError: names the key, its value, and what is expected.
  """
  dp = config.get('dp')
  if dp is None:
    return
  for key, right, expected in (
      ('noise', dp.noise >= 0, '0 (off) or more'),
      ('clip', dp.clip > 0, 'more than 0'),
      ('delta', 0 < dp.delta < 1, 'a probability'),
      ('microbatch', dp.microbatch >= 1, '1 or more'),
      ('unit', dp.unit in poisson.UNITS, f'one of {", ".join(poisson.UNITS)}'),
  ):
    if not right:
      raise ValueError(f'config.dp.{key} is {dp[key]!r}, expected {expected}')
  if not dp.noise:
    return
  optim, faults = config.optim, config.faults
  wanted = [
      ('model.norm', config.model.norm, 'group',
       'batch statistics mix the samples of a batch'),
      ('optim.accumulation', optim.accumulation, 1,
       'gradients are accumulated by config.dp.microbatch'),
      ('optim.per_dataset', optim.per_dataset, False, 'of mixtures'),
      ('mixture', tuple(config.mixture), (), 'the accountant has one dataset'),
      ('faults.spike', faults.spike, 'ignore',
       'skipping a step depends on the batch'),
      ('faults.not_finite', faults.not_finite, 'stop',
       'skipping or repeating a step depends on the batch'),
      ('checkpoint.resume', config.checkpoint.resume, '',
       'the steps of the other run are not accounted for'),
      ('model.head.attend', config.model.head.attend, 'frames',
       'attention mixes the samples of a batch'),
      ('data.num_workers', config.data.num_workers, 0,
       'batches are drawn in this process'),
  ]  # fmt: skip
  for name, term in config.losses.items():
    weights = term.kwargs.get('class_weights', '')
    wanted.append((
        f'losses.{name}.kwargs.class_weights', weights, '',
        'each gradient is that of one sample, in which a weight cancels, and '
        'balanced weights are a statistic of the labels',
    ))  # fmt: skip
    if term.fn == 'mmd' and term.weight:
      wanted.append((f'losses.{name}.weight', term.weight, 0.0,
                     'it compares the samples of a batch'))  # fmt: skip
  for key, value, right, why in wanted:
    if value != right:
      raise ValueError(
          f'config.{key} is {value!r}, but config.dp.noise is set; expected '
          f'{right!r}, since {why}'
      )
  if jax.process_count() > 1:
    raise ValueError('config.dp.noise is set; expected a single process')


class Accountant:
  """The privacy spent by a run as a function of its steps."""

  def __init__(self, config: ConfigDict, count: int):
    """Checks the settings against the size of the data.

    Args:
      config: the whole config, of a private run.
      count: number of units in the training split.

    Raises:
      ImportError: if dp_accounting is not installed.
      ValueError: if the batch size or delta do not fit the number of units.
    """
    try:
      import dp_accounting  # noqa: F401
      from dp_accounting import rdp  # noqa: F401
    except ImportError as error:
      raise ImportError(
          'config.dp needs dp_accounting: pip install -e ".[dp]"'
      ) from error
    self._dp = config.dp
    self._rate = config.batch_size / count
    if self._rate > 1:
      raise ValueError(
          f'config.batch_size is {config.batch_size}, expected at most '
          f'{count}, the {config.dp.unit}s in the training split'
      )
    if config.dp.delta >= 1 / count:
      raise ValueError(
          f'config.dp.delta is {config.dp.delta}, expected less than 1 / '
          f'{count}, one over the number of units in the training split'
      )

  def epsilon(self, steps: int) -> float:
    """Epsilon after a number of steps, 0 after none.

    Raises:
      ValueError: if the steps are too many for delta.
    """
    import dp_accounting
    from dp_accounting import rdp

    if not steps:
      return 0.0
    # The batches overflow with a probability of at most this.
    delta = self._dp.delta - steps * _OVERFLOW
    if delta <= 0:
      raise ValueError(
          f'config.dp.delta is {self._dp.delta}, expected more than '
          f'{steps * _OVERFLOW} for {steps} steps'
      )
    event = dp_accounting.PoissonSampledDpEvent(
        self._rate, dp_accounting.GaussianDpEvent(self._dp.noise)
    )
    accountant = rdp.RdpAccountant()
    accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))

  def spent(self, steps: int) -> dict[str, Any]:
    """What results.json says of the guarantee after a number of steps."""
    return {
        'epsilon': self.epsilon(steps),
        'delta': self._dp.delta,
        'unit': self._dp.unit,
        'noise': self._dp.noise,
        'clip': self._dp.clip,
        'sampling_probability': self._rate,
        'steps': steps,
        'neighbours': 'addition or removal of one unit',
        'covers': 'the weights, for those who do not know the seed',
    }


def drawn_rows(mask: jax.Array) -> jax.Array:
  """Number of rows of a batch before its padding.

  Args:
    mask: [n], samples that count. Those drawn come first; some between them may
      be unreadable.

  Returns:
    int32 scalar.
  """
  rows = jnp.arange(1, len(mask) + 1, dtype=jnp.int32)
  return jnp.max(mask.astype(jnp.int32) * rows)


def clip_sum(grads: Any, clip: float, mask: jax.Array) -> Any:
  """Clips the gradient of each sample and sums over the samples.

  Args:
    grads: tree of [m, ...] gradients.
    clip: largest L2 norm of a sample's gradient over the whole tree.
    mask: [m] bool; others contribute nothing, nor do non-finite gradients.

  Returns:
    Tree of sums.
  """
  squares = [
      jnp.square(g.astype(jnp.float32)).reshape(len(mask), -1).sum(1)
      for g in jax.tree.leaves(grads)
  ]
  norm = jnp.sqrt(sum(squares))
  used = mask & jnp.isfinite(norm)
  scale = jnp.where(used, jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)), 0)

  def one(g):
    # `where`, since 0 times a non-finite gradient is not 0.
    shape = (-1,) + (1,) * (g.ndim - 1)
    kept = jnp.where(used.reshape(shape), g, 0)
    return (kept * scale.reshape(shape).astype(g.dtype)).sum(0)

  return jax.tree.map(one, grads)


def add_noise(grads: Any, scale: float, key: jax.Array) -> Any:
  """Adds independent Gaussian noise of a standard deviation to each entry."""
  leaves, tree = jax.tree.flatten(grads)
  noisy = [
      g
      + scale
      * jax.random.normal(jax.random.fold_in(key, i), g.shape, g.dtype)
      for i, g in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, noisy)


def gradients(loss_fn: Callable, private: Private, seed: int) -> Callable:
  """Builds the computation of private gradients of a step.

  Args:
    loss_fn: (params, batch_stats, state, batch, dataset, keys) -> (loss,
      (metrics, batch_stats, loss)).
    private: settings.
    seed: seed of the run, which must be secret.

  Returns:
    (state, batch, dataset, keys) -> (gradients, metrics, batch statistics,
    mean loss). The drawn samples are the first rows of the batch.
  """

  def compute(state, batch, dataset, keys):
    if state.batch_stats:
      raise ValueError(
          f'the modules {", ".join(state.batch_stats)} use batch statistics, '
          'which mix the samples of a batch, but config.dp.noise is set; '
          'expected modules without batch_stats'
      )
    micro = private.microbatch

    def one(sample, index):
      own = {k: jax.random.fold_in(v, index) for k, v in keys.items()}
      single = jax.tree.map(lambda x: x[None], sample)
      return jax.grad(loss_fn, has_aux=True)(
          state.params, {}, state, single, dataset, own
      )

    def sums(i):
      index = i * micro + jnp.arange(micro)
      part = jax.tree.map(
          lambda x: jax.lax.dynamic_slice_in_dim(x, i * micro, micro), batch
      )
      mask = part['mask'].astype(bool)
      grads, (metrics, _, loss) = jax.vmap(one)(part, index)
      return (
          clip_sum(grads, private.clip, mask),
          metrics.reduce(),
          jnp.where(mask, loss, 0).sum(),
      )

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, 0)
    )
    # The padding is skipped.
    grads, metrics, loss = jax.lax.fori_loop(
        0,
        -(-drawn_rows(batch['mask']) // micro),
        lambda i, carry: jax.tree.map(jnp.add, carry, sums(i)),
        zeros,
    )
    key = jax.random.fold_in(rng.named(seed, 'dp'), state.step)
    grads = add_noise(grads, private.noise * private.clip, key)
    grads = jax.tree.map(lambda g: g / private.expected, grads)
    count = batch['mask'].astype(jnp.int32).sum()
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return grads, metrics, {}, loss / count

  return compute
