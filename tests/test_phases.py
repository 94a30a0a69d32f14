"""Phases: what is learned when, in one run."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import group_scenes
from vemd_jax import checkpoint, optim, phases, sharding, stopping, train
from vemd_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures('standard_promotion')

# Structure, without the head; then the head and the decoder, on an encoder
# that stays. The run has two steps more.
PHASES = (
    {
        'steps': 3,
        'losses': {'emotion': 0.0, 'body_heatmap': 2.0},
        'frozen': ('head_*',),
        'schedule': 'constant',
    },
    {
        'steps': 1,
        'frozen': ('encoder_0', 'latent_0'),
        'learning_rate': 3e-4,
        'warmup_steps': 0,
    },
    {'losses': {'body_heatmap': 0.0, 'kl': 0.0}, 'learning_rate': 2e-3},
)
RATE, DECAY = 1e-3, 0.1
# The first phase and the last have a warm-up of one step.
RATES = (0.0, RATE, RATE, 3e-4, 0.0, 2e-3)
FROZEN = {
    step: {'head_group_scenes'}
    if step < 3
    else {'encoder_0', 'latent_0'}
    if step == 3
    else set()
    for step in range(6)
}


def tiny():
  config = group_scenes.get_config('tiny')
  config.update_from_flattened_dict({
      'mode': 'train', 'steps': 6, 'phases': PHASES, 'log_every': 1,
      'checkpoint.every': 1, 'checkpoint.keep_latest': 10, 'eval.every': 2,
      'pictures.samples': 0, 'model.parts': ('body',),
      'model.heatmap.stages': 1,
      'model.encoder.blocks': 1,
      'optim.name': 'adamw', 'optim.learning_rate': RATE,
      'optim.weight_decay': DECAY, 'optim.warmup_steps': 2, 'optim.clip': 0.0,
      'optim.schedule': 'linear', 'optim.ema_decay': 0.15,
  })  # fmt: skip
  return config


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """One run, and its state before and after every step."""
  with pytest.MonkeyPatch.context() as patch:
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    patch.setattr(sharding, 'make_mesh', lambda data, fsdp: mesh)
    run = train.set_up(tiny(), tmp_path_factory.mktemp('straight'))
  states, step = [], run.train_step

  def recorded(state, batch, dataset):
    # Copies: the step donates its buffers.
    if not states:
      states.append(jax.tree.map(np.array, state))
    state, *rest = step(state, batch, dataset=dataset)
    states.append(jax.tree.map(np.array, state))
    return state, *rest

  with jax.numpy_dtype_promotion('standard'), stopping.Stop() as stop:
    run.train_step, run.stop = recorded, stop
    train.train(run)
  run.train_step = step
  return run, states


def equal(a, b):
  return all(
      jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b))
  )


def test_frozen_means_frozen(straight):
  _, states = straight
  for step, (before, after) in enumerate(itertools.pairwise(states)):
    for name in before.params:
      kept = equal(before.params[name], after.params[name])
      still = name in FROZEN[step] or not RATES[step]
      assert kept == still, (step, name)
      if name in before.batch_stats:
        kept = equal(before.batch_stats[name], after.batch_stats[name])
        assert kept == (name in FROZEN[step]), (step, name)


def test_each_phase_begins_with_a_first_step_of_adam(straight):
  """Its size is the learning rate, whatever the gradients were before."""
  _, states = straight
  for step in 3, 5:
    rate = RATES[step]
    before, after = states[step].params, states[step + 1].params
    for name in before.keys() - FROZEN[step]:
      old, new = (
          np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[name])])
          for tree in (before, after)
      )
      decayed = np.concatenate([
          np.full(x.size, DECAY * (x.ndim > 1))
          for x in jax.tree.leaves(before[name])
      ])
      moved = np.abs(new - old + rate * decayed * old)
      # Two steps of Adam with its moments from the phase's beginning move by
      # at most 1.05 times the rate; with moments of zero from before it by
      # more than 3 times.
      assert moved.max() < 1.06 * rate, (step, name)
      if name == 'head_group_scenes':
        assert moved.max() > 0.9 * rate


def test_the_optimizer_by_hand():
  """AdamW in NumPy, begun anew at each phase, against the whole run."""
  settings = config_lib.default().optim
  settings.update(
      name='adamw', learning_rate=0.1, weight_decay=0.5, clip=0.0,
      schedule='linear', warmup_steps=2,
  )  # fmt: skip
  parsed = phases.parse(
      ({'steps': 4}, {'learning_rate': 0.03, 'schedule': 'constant'}), 9
  )
  rates = [0, 0.05, 0.1, 0.05, 0, 0.015, 0.03, 0.03, 0.03]
  optimizer = optim.make_phased_optimizer(settings, parsed)
  rng = np.random.default_rng(0)
  value = rng.normal(size=(2, 3))
  params = {'a': jnp.asarray(value, jnp.float32)}
  state = optimizer.init(params)
  mean = square = np.zeros((2, 3))
  for step, rate in enumerate(rates):
    # As after a change of the weights: gradients of another size.
    grad = rng.normal(size=(2, 3)) * (100 if step >= 4 else 1)
    if step == 4:
      mean = square = np.zeros((2, 3))
    count = step + 1 if step < 4 else step - 3
    mean = 0.9 * mean + 0.1 * grad
    square = 0.999 * square + 0.001 * grad**2
    hat = mean / (1 - 0.9**count)
    hat = hat / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
    value = value - rate * (hat + 0.5 * value)
    index = phases.index_at(parsed, jnp.int32(step))
    updates, state = optimizer.update(
        {'a': jnp.asarray(grad, jnp.float32)}, state, params, phase=index
    )
    params = {'a': params['a'] + updates['a']}
    np.testing.assert_allclose(params['a'], value, rtol=2e-5, atol=1e-6)
    assert optim.make_learning_rate(settings, parsed)(step) == pytest.approx(
        rate
    )


def test_the_moving_average_begins_anew(straight):
  _, states = straight
  expected = states[0].params
  for step, since in enumerate((0, 1, 2, 0, 0, 1)):
    decay = min(0.15, (1 + since) / (10 + since))
    expected = jax.tree.map(
        lambda old, new, d=decay: d * old + (1 - d) * new,
        expected, states[step + 1].params,
    )  # fmt: skip
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        states[step + 1].ema, expected,
    )  # fmt: skip


def test_weights_and_rates_are_reported(straight):
  run, _ = straight
  rows = [
      json.loads(line)
      for line in (run.workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  rows = [row for row in rows if row['split'] == 'train']
  np.testing.assert_allclose([row['learning_rate'] for row in rows], RATES)
  weights = [(0, 2)] * 3 + [(1, 0.1)] + [(1, 0)] * 2
  for row, (emotion, body) in zip(rows, weights):
    # kl has the warm-up of the default, and is 0 to this precision.
    expected = emotion * row['emotion'] + body * row['body_heatmap']
    assert row['loss'] == pytest.approx(expected, rel=1e-3), row['step']
  # Chosen within the last phase, although steps 2 and 4 were evaluated, too.
  metrics = run.checkpoints._manager.metrics
  assert [bool(metrics(step)) for step in range(1, 7)] == [False] * 5 + [True]
  # All phases are one program.
  assert run.train_step._cache_size() == 1


def test_stopped_at_every_step_ends_with_the_same_bits(straight, tmp_path):
  """At the first step of a phase, too, and at its last."""
  run, states = straight
  step = run.train_step
  stopped = dataclasses.replace(
      run,
      workdir=tmp_path,
      checkpoints=checkpoint.Checkpoints(tmp_path, run.config.checkpoint),
  )

  def then_signal(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.stop._given.wait(10)
    return step(*args, **kwargs)

  stopped.train_step = then_signal
  for done in range(1, 7):
    with stopping.Stop() as stop:
      stopped.stop = stop
      with pytest.raises(stopping.Stopped, match=f'at step {done} of 6'):
        train.train(stopped)
  last, _ = stopped.checkpoints.restore(stopped.target)
  jax.tree.map(np.testing.assert_array_equal, last, states[-1])
  stopped.checkpoints.close()


def test_a_run_without_phases_cannot_be_resumed_with_them(straight):
  run, _ = straight
  other = run.target.replace(
      opt_state={'all': run.target.opt_state['all'].inner}
  )
  with pytest.raises(ValueError, match=r'config\.optim and config\.phases'):
    run.checkpoints.restore(other)


def test_the_documented_recipe(tmp_path):
  block = re.search(
      r'# with_phases.py\n(.*?)```',
      (ROOT / 'docs' / 'experiments.md').read_text(),
      re.S,
  )
  scope = {}
  exec(block[1], scope)
  config = scope['get_config']('tiny')
  run = train.set_up(config, tmp_path)
  run.checkpoints.close()
  assert [(p.start, p.steps) for p in run.phases] == [(0, 1), (1, 3)]
  config = scope['get_config']('ve_sd')
  config_lib.check(config)
  assert 'body_heatmap' not in config_lib.active_losses(config)


def test_phases_follow_one_another():
  parsed = phases.parse(({'steps': 5}, {'steps': 2}, {}), 20)
  assert [(p.start, p.steps) for p in parsed] == [(0, 5), (5, 2), (7, 13)]
  steps = jnp.arange(9)
  index = [int(phases.index_at(parsed, s)) for s in steps]
  assert index == [0] * 5 + [1] * 2 + [2] * 2
  since = [int(phases.since_start(parsed, s)) for s in steps]
  assert since == [0, 1, 2, 3, 4, 0, 1, 0, 1]
  (only,) = phases.parse((), 20)
  assert (only.start, only.steps) == (0, 20)


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (({'step': 3}, {}), r'phases\[0\]\.step: expected one of steps'),
        (({}, {}), r'phases\[0\]\.steps is 0, expected 1 or more'),
        (({'steps': 2}, {'steps': 3}), r'phases\[1\]\.steps is 3; the last'),
        (({'steps': 10}, {}), 'would start at step 10, the run has 10'),
        (({'steps': 2, 'frozen': 'head'}, {}), "frozen is 'head', expected n"),
        (({'steps': 2, 'losses': {'kl': '1'}}, {}), r"losses\.kl is '1'"),
        (({'steps': 2, 'losses': ('kl',)}, {}), 'losses is .*expected a dict'),
        (({'learning_rate': '1'},), r"learning_rate is '1', expected 0"),
        ((3,), r'phases\[0\] is 3, expected a dict'),
    ],
)
def test_what_is_wrong_is_named(entries, message):
  with pytest.raises(ValueError, match=message):
    phases.parse(entries, 10)


def test_names_that_do_not_exist_are_refused():
  config = group_scenes.get_config('tiny')
  config.phases = ({'losses': {'emotoin': 0.0}},)
  with pytest.raises(ValueError, match="'emotoin', expected some of .*emotion"):
    config_lib.check(config)
  config.phases = ({'schedule': 'cosin'},)
  with pytest.raises(ValueError, match="schedule is 'cosin', expected"):
    config_lib.check(config)
  parsed = phases.parse(({'frozen': ('encoder',)},), 10)
  with pytest.raises(ValueError, match="'encoder' is trained; .*encoder_0"):
    phases.check_modules(parsed, ('encoder_0', 'latent_0'))


def test_a_term_that_only_a_phase_weighs_is_active():
  config = group_scenes.get_config('tiny')
  config.losses.kl.weight = 0.0
  assert 'kl' not in config_lib.active_losses(config)
  config.phases = ({'steps': 2}, {'losses': {'kl': 0.5, 'emotion': 0}})
  active = config_lib.active_losses(config)
  assert active['kl']['weight'] == ((0, 0.0), (2, 0.5))
  assert active['emotion']['weight'] == ((0, 1.0), (2, 0.0))
