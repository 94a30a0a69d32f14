"""Losses that are not finite, and spikes: stop, skip or go back."""

import logging as logging_lib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.faults import harness, toy
from vemd_jax import guard, train
from vemd_jax.data import pipeline
from vemd_jax.state import TrainState

pytestmark = pytest.mark.usefixtures('toy_runs')


def run(tmp_path, **changes):
  config = toy.config(**changes)
  train.train_and_evaluate(config, tmp_path / 'run')
  return harness.history(tmp_path / 'run')


def order(steps=40):
  """Pictures by step, from the batches themselves."""
  config = toy.config()
  batches = pipeline.train_batches({'toy': config.data}, 4, seed=config.seed)
  result = []
  for _ in range(steps):
    level = next(batches)[1]['image'][:, 0, 0, 0, 0].astype(int)
    result.append(((level - 10) // 5).tolist())
  batches.close()
  return result


def picture_of(step):
  """A picture that is not drawn before this step."""
  batches = order(step + 1)
  seen = {i for batch in batches[:-1] for i in batch}
  return next(i for i in batches[-1] if i not in seen)


def test_names_of_samples_are_those_of_the_batch():
  config = toy.config()
  for step, pictures in enumerate(order(20)):
    names = pipeline.sample_names(
        step, {'toy': config.data}, 4, seed=config.seed
    )
    assert names == [f'picture_{i}.png' for i in pictures]


def test_stop_names_the_step_and_logs_the_samples(tmp_path, caplog):
  bad = picture_of(4)
  message = 'not finite at step 4.*loss nan'
  with pytest.raises(FloatingPointError, match=message):
    run(tmp_path, **{'data.source_kwargs.white': (bad,)})
  assert f'picture_{bad}.png' in caplog.text
  assert max(p.name for p in (tmp_path / 'run/checkpoints').iterdir()) == '4'


def test_skip_leaves_exactly_that_update_out(tmp_path, caplog):
  caplog.set_level(logging_lib.WARNING)
  bad = picture_of(4)
  changes = {
      'data.source_kwargs.white': (bad,), 'faults.not_finite': 'skip',
      'steps': 6, 'checkpoint.every': 1, 'checkpoint.keep_latest': 9,
  }  # fmt: skip
  lines = run(tmp_path, **changes)
  steps = harness.checkpoints(tmp_path / 'run')
  before, after = steps['4/model'], steps['5/model']
  for part in ('params', 'ema'):
    harness.assert_same_bits(after[part], before[part], part)
  harness.assert_same_bits(steps['5/optimizer'], steps['4/optimizer'], 'adam')
  assert after['step'] == 5 and steps['5/guard']['in_row'] == 1
  assert np.abs(
      steps['6/model']['params']['Dense_0']['kernel']
      - after['params']['Dense_0']['kernel']
  ).max()
  # The line of steps 4 and 5, of which one batch counts.
  assert lines['train', 6]['skipped_updates'] == 1
  assert lines['train', 6]['examples'] == 4
  assert np.isfinite(lines['train', 6]['loss'])
  assert f'picture_{bad}.png' in caplog.text


def test_too_many_in_a_row_stop_the_run(tmp_path):
  everything = tuple(range(24))
  message = '4 updates in a row.*limit = 3'
  with pytest.raises(FloatingPointError, match=message):
    run(
        tmp_path,
        **{
            'data.source_kwargs.white': everything,
            'faults.not_finite': 'skip',
            'faults.limit': 3,
        },
    )


def test_rewind_goes_on_with_the_batches_after(tmp_path):
  bad = picture_of(4)
  changes = {'data.source_kwargs.white': (bad,), 'steps': 6}
  lines = run(tmp_path, **{**changes, 'faults.not_finite': 'rewind'})
  assert [s for split, s in sorted(lines) if split == 'train'] == [2, 4, 6]
  data = harness.checkpoints(tmp_path / 'run')['6/data/metadata']
  # Back from step 4 to the checkpoint of step 4: batch 4 is passed over.
  assert data['ahead'] == 1
  # The same steps by hand, from the checkpoint of step 4.
  config = toy.config(**changes)
  made = train.set_up(config, tmp_path / 'by_hand')
  state, _ = _restore(made, tmp_path / 'run', 4)
  for step in (5, 6):
    name, batch = next(
        pipeline.train_batches(
            {'toy': config.data}, 4, seed=config.seed, start_step=step
        )
    )
    batch.pop('unreadable')
    state, _, _ = made.train_step(state, batch, dataset=name)
  made.checkpoints.close()
  saved = harness.checkpoints(tmp_path / 'run')['6/model']
  harness.assert_same_bits(
      jax.device_get(state.params), saved['params'], 'by hand'
  )


def _restore(made, workdir, step):
  from vemd_jax.checkpoint import Checkpoints

  checkpoints = Checkpoints(workdir, made.config.checkpoint, read_only=True)
  result = checkpoints.restore(made.target, step)
  checkpoints.close()
  return result


def test_going_back_without_end_stops(tmp_path):
  with pytest.raises(FloatingPointError, match='returned to step 0 2 times'):
    run(
        tmp_path,
        **{
            'data.source_kwargs.white': tuple(range(24)),
            'faults.not_finite': 'rewind',
            'faults.limit': 2,
        },
    )


def judged(losses, settings, norms=None):
  """Losses through `guard.judge` -> spikes, updates kept; in one program."""
  settings = ConfigDict(settings)
  empty = {'params': {'w': jnp.zeros(2)}, 'frozen': {}, 'batch_stats': {}}
  state = TrainState(
      step=jnp.int32(0), ema={}, opt_state={}, **empty,
      guard=guard.initial(settings, ('one',)),
  )  # fmt: skip

  @jax.jit
  def step(state, loss, norm):
    new = state.replace(
        step=state.step + 1, params={'w': state.params['w'] + 1.0}
    )
    scalars = {'loss': loss, 'grad_norm': norm}
    return guard.judge(settings, state, new, {'n': loss}, scalars, 'one')

  spikes, kept = [], []
  for i, loss in enumerate(losses):
    norm = np.float32(1.0 if norms is None else norms[i])
    count = float(state.params['w'][0])
    state, _, scalars = step(state, np.float32(loss), norm)
    spikes.append(bool(scalars['spike']))
    kept.append(float(state.params['w'][0]) > count)
  assert step._cache_size() == 1
  assert int(state.step) == len(losses)
  return spikes, kept, state


SPIKES = {
    'not_finite': 'skip', 'spike': 'skip', 'spike_factor': 3.0, 'limit': 5
}  # fmt: skip


def test_spikes_are_those_above_the_running_mean():
  rng = np.random.default_rng(0)
  losses = rng.uniform(0.5, 1.5, 300)
  losses[[20, 150, 151, 280]] = 30.0
  losses[200] = np.nan
  # By hand: the mean of usual losses, from 100 of them on.
  mean, count, expected = 0.0, 0, []
  for loss in losses:
    spike = count >= 100 and loss > 3 * mean
    expected.append(bool(spike))
    if np.isfinite(loss) and not spike:
      mean += max(0.01, 1 / (count + 1)) * (loss - mean)
      count += 1
  spikes, kept, state = judged(losses, SPIKES)
  assert spikes == expected and sum(spikes) == 3
  assert [not k for k in kept] == [
      s or not np.isfinite(x) for s, x in zip(spikes, losses)
  ]
  np.testing.assert_allclose(state.guard['loss']['one'], mean, rtol=1e-4)


def test_a_gradient_that_is_not_finite_counts_too():
  spikes, kept, state = judged([1.0, 1.0, 1.0], SPIKES, [1.0, np.inf, 1.0])
  assert spikes == [False] * 3 and kept == [True, False, True]
  assert int(state.guard['steps']['one']) == 2


def test_spikes_that_only_stop_or_rewind_are_not_left_out():
  losses = [1.0] * 110 + [9.0]
  spikes, kept, _ = judged(losses, {**SPIKES, 'spike': 'rewind'})
  assert spikes[-1] and all(kept)
  steps = [(7, 'one', {'loss': 9.0, 'spike': True, 'in_row': 0})]
  for action, error in ('stop', FloatingPointError), ('rewind', guard.Rewind):
    with pytest.raises(error, match='step 7'):
      guard.react(
          ConfigDict({**SPIKES, 'spike': action}), steps, 2, lambda batch: []
      )


def test_nothing_is_carried_where_nothing_is_judged():
  settings = toy.config().faults
  assert guard.initial(settings, ('one',)) == {}
