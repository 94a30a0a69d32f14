"""Complete runs of the tiny demo recipe."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import group_scenes
from tests.faults import harness
from vemd_jax import run as run_lib
from vemd_jax import sharding, train, weights
from vemd_jax.report import runs

MAKE_MESH = sharding.make_mesh
ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures('standard_promotion', 'one_device')


def tiny(**changes):
  config = group_scenes.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return config


def params_at(workdir, which='latest'):
  return weights.restore_variables(workdir, which)


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def start(*arguments):
  """The command line, in a process with one device."""
  return subprocess.Popen(
      [sys.executable, '-m', 'vemd_jax.main', *arguments],
      cwd=ROOT,
      env=harness.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
  )


@pytest.fixture(scope='module')
def straight(tiny_run, tmp_path_factory):
  """One run from the first step to the last."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  shutil.copytree(tiny_run, workdir)
  return workdir


def test_a_run_leaves_what_it_promises(straight, capsys):
  for name in (
      'config.json', 'versions.json', 'classes.json', 'metrics.jsonl',
      'results.json', 'tensorboard', 'pictures', 'checkpoints', 'curves.png',
      'confusion.png',
  ):  # fmt: skip
    assert (straight / name).exists(), name
  rows = lines(straight)
  assert [r['step'] for r in rows if r['split'] == 'train'] == [1, 2, 3, 4]
  assert [r['step'] for r in rows if r['split'] == 'val'][:2] == [2, 4]
  assert any(r['split'] == 'test' for r in rows)
  for row in rows:
    for key in ('loss', 'accuracy', 'macro_f1', 'emotion', 'body_heatmap'):
      assert np.isfinite(row[key]), (key, row)
  results = json.loads((straight / 'results.json').read_text())
  matrix = np.array(results['val']['confusion'])
  assert matrix.sum() == 10
  assert results['val']['accuracy'] == pytest.approx(np.trace(matrix) / 10)

  # The predictions of each sample give the same results.
  said = runs.read(straight)
  assert said.recipe == {
      'recipe': 'configs/group_scenes.py:tiny', 'changes': {}
  }  # fmt: skip
  for split, count in ('val', 10), ('test', 8):
    scores = said.scores[split, 'group_scenes']
    assert scores.files == [
        f'group_scenes/{split}/{i:06d}' for i in range(count)
    ]
    assert scores.confusion().tolist() == results[split]['confusion']
    assert said.data['group_scenes'][split]['samples'] == count
    shown = [e for e in said.gallery if e['split'] == split]
    assert 4 <= len(shown) <= 6  # Two of each kind, if there are as many.
    for entry in shown:
      right = entry['label'] == entry['predicted']
      assert {'right': right, 'wrong': not right}.get(entry['kind'], True)
      number = scores.files.index(entry['file'])
      assert entry['probability'] == scores.probabilities[number].max()
  page = (straight / 'report.html').read_text()
  assert page.count('data:image/jpeg') == len(said.gallery)

  # A second call reports that the run is complete and changes nothing.
  before = params_at(straight)
  train.train_and_evaluate(tiny(), straight)
  assert 'Results on val' in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, before, params_at(straight))
  assert [r['step'] for r in lines(straight) if r['split'] == 'train'] == [
      1, 2, 3, 4,
  ]  # fmt: skip


def test_killed_and_started_again_ends_with_the_same_bits(straight, tmp_path):
  command = (
      '--mode=train', '--config=configs/group_scenes.py:tiny',
      f'--workdir={tmp_path}',
  )  # fmt: skip
  process = start(*command)
  # Independent of time: as soon as the first checkpoint is complete.
  while not (tmp_path / 'checkpoints' / '2').exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  process = start(*command)
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  jax.tree.map(
      np.testing.assert_array_equal, params_at(straight), params_at(tmp_path)
  )
  steps = [r['step'] for r in lines(tmp_path) if r['split'] == 'train']
  assert steps == [1, 2, 3, 4]


def test_one_device_and_eight_give_the_same_loss(tmp_path):
  config = tiny(**{
      'model.variant': 've_sd', 'model.encoder.blocks': 1,
      'mesh.min_shard_size': 64,
  })  # fmt: skip
  results = []
  for mesh in (
      MAKE_MESH(1, 1, jax.devices()[:1]),
      MAKE_MESH(2, 4),
  ):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(run_lib.sharding, 'make_mesh', lambda *a, m=mesh: m)
      run = train.set_up(config, tmp_path / str(mesh.size))
    name, batch = next(train._train_batches(run, 0))
    state, _, scalars = run.train_step(
        run.create(), sharding.put_batch(batch, mesh), dataset=name
    )
    run.checkpoints.close()
    results.append(jax.device_get(scalars))
    specs = {str(x.sharding.spec) for x in jax.tree.leaves(state.params)}
    assert any('fsdp' in spec for spec in specs) == (mesh.size > 1)
  one, eight = results
  for key in ('loss', 'grad_norm', 'param_norm'):
    np.testing.assert_allclose(eight[key], one[key], rtol=2e-4, err_msg=key)
  np.testing.assert_allclose(eight['loss'], one['loss'], rtol=1e-5)


def test_moving_average_forgets_the_first_parameters(tmp_path):
  config = tiny(**{
      'model.variant': 've_sd', 'model.encoder.blocks': 1,
      'optim.ema_decay': 0.15,
  })  # fmt: skip
  run = train.set_up(config, tmp_path)
  state = run.create()
  expected = jax.device_get(state.params)
  batches = train._train_batches(run, 0)
  for decay in (1 / 10, 0.15, 0.15):  # The second would be 2 / 11.
    name, batch = next(batches)
    batch.pop('unreadable', None)
    state, _, _ = run.train_step(
        state, sharding.put_batch(batch, run.mesh), dataset=name
    )
    expected = jax.tree.map(
        lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new),
        expected,
        jax.device_get(state.params),
    )
  run.checkpoints.close()
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      jax.device_get(state.ema),
      expected,
  )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = tiny(**{
      'optim.learning_rate': 1e30, 'optim.warmup_steps': 0,
      'model.variant': 've_sd', 'model.encoder.blocks': 1,
  })  # fmt: skip
  with pytest.raises(FloatingPointError, match='not finite at step 0'):
    train.train_and_evaluate(config, tmp_path)


def test_another_seed_cannot_go_on(straight, tmp_path):
  with pytest.raises(ValueError, match='config.seed was 0, is 1'):
    train.train_and_evaluate(tiny(seed=1, steps=8), straight)
  config = tiny(seed=1, steps=8, **{'checkpoint.resume': str(straight)})
  with pytest.raises(ValueError, match='seed 0, now it is 1'):
    train.train_and_evaluate(config, tmp_path)


def test_a_checkpoint_of_another_width_is_named(straight, tmp_path):
  changes = {'model.latent.dim': 24, 'steps': 8}
  with pytest.raises(ValueError, match='config.model.latent.dim was 16, is 24'):
    train.train_and_evaluate(tiny(**changes), straight)
  changes['checkpoint.resume'] = str(straight)
  with pytest.raises(ValueError, match='does not match the model.*params/'):
    train.train_and_evaluate(tiny(**changes), tmp_path)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--config=configs/nothing.py'], 'nothing.py'),
        (
            ['--config=configs/folder.py:tiny', '--config.batchsize=3'],
            'batchsize',
        ),
        (
            ['--config=configs/folder.py:tiny', '--config.batch_size=many'],
            'many',
        ),
        (['--config=configs/folder.py:tinny'], "unknown option 'tinny'"),
        (
            ['--config=configs/folder.py:tiny', '--config.data.root=/nowhere'],
            '/nowhere',
        ),
    ],
)
def test_a_wrong_argument_ends_in_one_line(tmp_path, arguments, message):
  process = start(*arguments, f'--workdir={tmp_path}')
  _, errors = process.communicate()
  assert process.returncode == 1
  assert 'Traceback' not in errors
  last = errors.strip().splitlines()[-1]
  assert last.startswith('error: ') and message in last
