"""Damaged checkpoints, other configs, two runs in one folder, no room."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from absl import logging

from tests.faults import harness, toy
from vemd_jax import checkpoint, checksums, train, weights
from vemd_jax import workdir as workdir_lib

pytestmark = pytest.mark.usefixtures('toy_runs')


@pytest.fixture
def copy(straight, tmp_path):
  """A run to be damaged."""
  return shutil.copytree(straight, tmp_path / 'copy')


def largest(folder):
  files = [p for p in folder.rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def remove(path):
  path.unlink()


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def alter(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


# ----------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize(
    'damage, message',
    [(remove, 'missing'), (cut, 'bytes, expected'), (alter, 'altered')],
)
def test_a_damaged_step_is_passed_over(copy, straight, caplog, damage, message):
  damage(largest(copy / 'checkpoints/12/model'))
  train.train_and_evaluate(toy.config(), copy)
  assert 'checkpoints/12 is damaged' in caplog.text and message in caplog.text
  assert 'Falling back to the checkpoint of step 9' in caplog.text
  assert (copy / 'damaged_checkpoints/12').exists()
  harness.assert_same_run(copy, straight)


def test_every_byte_that_is_read_is_guarded(straight, tmp_path):
  step = straight / 'checkpoints/12'
  assert checksums.problem(checkpoint.epath.Path(step)) == ''
  names = [
      str(p.relative_to(step)) for p in step.rglob('*')
      if p.is_file() and p.parent != step
  ]  # fmt: skip
  assert len(names) > 10
  for number, name in enumerate(names):
    for damage in (remove, cut, alter):
      other = tmp_path / str(number) / damage.__name__
      shutil.copytree(step, other)
      if (other / name).stat().st_size or damage is remove:
        damage(other / name)
        found = checksums.problem(checkpoint.epath.Path(other))
        assert found.startswith(name), (name, damage, found)
      shutil.rmtree(other)


@pytest.mark.parametrize('name', ['model', 'data'])
def test_a_step_without_an_item_is_damaged(copy, straight, name):
  shutil.rmtree(copy / 'checkpoints/12' / name)
  train.train_and_evaluate(toy.config(), copy)
  harness.assert_same_run(copy, straight)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(copy):
  for step in (copy / 'checkpoints').iterdir():
    alter(largest(step / 'model'))
  before = harness.history(copy)
  message = 'all checkpoints in .* are damaged .12: '
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(toy.config(), copy)
  assert harness.history(copy) == before


def test_a_best_step_that_is_damaged_is_not_evaluated(copy):
  manager = checkpoint.Checkpoints(copy, toy.config().checkpoint, True)
  best = manager.best_step()
  manager.close()
  alter(largest(copy / f'checkpoints/{best}/model'))
  for use in (
      lambda: weights.restore_variables(copy),
      lambda: train.train_and_evaluate(toy.config(mode='evaluate'), copy),
  ):
    with pytest.raises(ValueError, match=f'checkpoints/{best} is damaged'):
      use()
  assert (copy / f'checkpoints/{best}').exists()


def test_a_look_at_a_run_leaves_a_save_in_progress_alone(copy):
  part = copy / 'checkpoints/15.orbax-checkpoint-tmp'
  part.mkdir()
  weights.restore_variables(copy)
  assert part.exists()
  train.train_and_evaluate(toy.config(steps=14), copy)
  assert not part.exists()


def test_a_run_from_before_checksums_goes_on(copy, straight):
  for step in (copy / 'checkpoints').iterdir():
    (step / checksums.FILE).unlink()
    path = step / 'data/metadata'
    data = json.loads(path.read_text())
    old = {k: data[k] for k in ('seed', 'batch_size', 'datasets')}
    path.write_text(json.dumps({**old, 'processes': 1}))
  train.train_and_evaluate(toy.config(steps=14), copy)
  assert harness.history(copy).keys() >= harness.history(straight).keys()


# ------------------------------------------------- other configs, two runs


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'seed': 1}, 'config.seed was 0, is 1'),
        (
            {'optim.learning_rate': 0.5, 'model.variant': 've_md'},
            "model.variant was 've_sd', is 've_md'; config.optim.learning_rate",
        ),
        ({'losses.emotion.weight': 2.0}, 'losses.emotion.weight was 1.0, is 2'),
    ],
)
def test_another_config_is_refused(copy, changes, message):
  with pytest.raises(ValueError, match='belongs to another config') as error:
    train.train_and_evaluate(toy.config(**changes), copy)
  assert message in str(error.value)
  assert f'checkpoint.resume={copy}' in str(error.value)


def test_what_may_change_does(copy, caplog):
  logging.set_verbosity(logging.INFO)
  caplog.set_level('INFO')
  train.train_and_evaluate(
      toy.config(**{
          'steps': 14, 'log_every': 1, 'eval.every': 7, 'checkpoint.every': 5,
          'faults.not_finite': 'skip', 'data.num_threads': 2,
      }),
      copy,
  )  # fmt: skip
  assert 'config.steps was 12, is 14' in caplog.text
  lines = harness.history(copy)
  assert ('train', 13) in lines and ('val', 14) in lines
  assert 'guard' in str(harness.checkpoints(copy).keys())
  # And back: what `skip` had carried is dropped.
  train.train_and_evaluate(toy.config(steps=15), copy)


def test_a_term_that_has_gone_is_named(copy):
  config = toy.config()
  with config.unlocked():
    del config.losses.kl
  with pytest.raises(ValueError, match='losses.kl.* is None'):
    train.train_and_evaluate(config, copy)


def test_evaluation_needs_the_same_model_only(copy):
  train.train_and_evaluate(toy.config(mode='evaluate', seed=5), copy)
  config = toy.config(mode='evaluate', **{'model.head.attend': 'batch'})
  with pytest.raises(ValueError, match="model.head.attend was 'frames'"):
    train.train_and_evaluate(config, copy)


def test_other_classes_and_another_order_are_refused(copy, tmp_path):
  (copy / 'classes.json').write_text('{"toy": ["a", "c", "b"]}')
  elsewhere = toy.config(**{'checkpoint.resume': str(copy)})
  for config, workdir in (
      (toy.config(steps=14), copy),
      (toy.config(mode='evaluate'), copy),
      (elsewhere, tmp_path / 'new'),
  ):
    with pytest.raises(ValueError, match='a, c, b, in this order, .*a, b, c'):
      train.train_and_evaluate(config, workdir)
  with pytest.raises(ValueError, match='the data have no labels; expected'):
    weights.check_classes(copy, {'toy': ()})


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
  message = f'in use by another run .process {os.getpid()} on'
  with (
      workdir_lib.lock(checkpoint.epath.Path(tmp_path)),
      pytest.raises(ValueError, match=message),
  ):
    train.train_and_evaluate(toy.config(), tmp_path)
  assert not (tmp_path / 'config.json').exists()


HOLD = """
import sys, time
from etils import epath
from vemd_jax import workdir
with workdir.lock(epath.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(1000)
"""


def test_a_killed_run_leaves_no_lock(tmp_path):
  holder = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(tmp_path)],
      env=harness.environment(),
      stdout=subprocess.PIPE,
  )
  assert holder.stdout.readline() == b'held\n'
  workdir = checkpoint.epath.Path(tmp_path)
  with pytest.raises(ValueError, match='in use'), workdir_lib.lock(workdir):
    pass
  holder.send_signal(signal.SIGKILL)
  holder.communicate()
  with workdir_lib.lock(workdir):
    pass


# ------------------------------------------------------------------ no room


@pytest.fixture
def disk(tmp_path):
  """A file system of 4 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(folder)]
  if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
    pytest.skip('needs to mount a small file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder, leave):
  """Leaves so many bytes of room."""
  room = os.statvfs(folder)
  with (folder / 'filler').open('wb') as f:
    f.write(bytes(room.f_bavail * room.f_bsize - leave))


@pytest.mark.slow
@pytest.mark.parametrize('leave', [0, 20_000, 60_000])
def test_a_full_disk_stops_the_run_and_loses_nothing(disk, straight, leave):
  workdir = disk / 'run'
  shutil.copytree(straight, workdir)
  shutil.rmtree(workdir / 'checkpoints/12')
  fill(disk, leave)
  command = harness.TOY, f'--workdir={workdir}'
  process = harness.Process(disk.with_name('full'), *command)
  assert process.end() == 1
  last = process.text().strip().splitlines()[-1]
  assert last.startswith('error: ') and 'No space left on device' in last
  assert str(workdir) in last
  (disk / 'filler').unlink()
  harness.run(disk.with_name('room'), *command)
  harness.assert_same_run(workdir, straight)


def test_a_workdir_that_cannot_be_written_ends_in_one_line(disk, straight):
  shutil.copytree(straight, disk / 'run')
  subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  process = harness.Process(
      disk.with_name('elsewhere'), harness.TOY, f'--workdir={disk / "run"}'
  )
  assert process.end() == 1
  lines = process.text().strip().splitlines()
  assert 'Traceback' not in process.text()
  assert lines[-1].startswith('error: ') and 'Read-only' in lines[-1]
  with contextlib.suppress(subprocess.CalledProcessError):
    weights.restore_variables(disk / 'run')  # To read it is all right.
