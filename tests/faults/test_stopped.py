"""SIGTERM and SIGINT: saved at the end of the step, code 75, nothing left."""

import json
import os
import signal
import subprocess
import threading

import pytest

from tests.faults import harness, toy
from vemd_jax import evaluate, stopping, train

pytestmark = pytest.mark.usefixtures('toy_runs')


def signalled(stop: stopping.Stop, number: int) -> None:
  """Sends a signal to this process and waits until it is noted."""
  os.kill(os.getpid(), number)
  assert stop._given.wait(10)


def stop_in_step(monkeypatch, step, number=signal.SIGTERM):
  """The next run gets the signal while a step is under way."""
  set_up = train.set_up

  def then_signal(*args):
    run = set_up(*args)
    train_step = run.train_step

    def call(state, *args, **kwargs):
      if int(state.step) == step:
        signalled(run.stop, number)
      return train_step(state, *args, **kwargs)

    run.train_step = call
    return run

  monkeypatch.setattr(train, 'set_up', then_signal)


def stop_in_evaluation(monkeypatch, at, number=signal.SIGTERM):
  """The next run gets the signal between two batches of an evaluation."""
  original = evaluate.evaluate

  def call(eval_step, variables, batches, **kwargs):
    batches = iter(batches)
    first = next(batches)
    rest = [first, *batches]

    def signals():
      yield rest[0]
      if kwargs['step'] == at:
        signalled(kwargs['stop'].__self__, number)
      yield from rest[1:]

    return original(eval_step, variables, signals(), **kwargs)

  monkeypatch.setattr(evaluate, 'evaluate', call)


@pytest.mark.parametrize(
    'step, number', [
        (0, signal.SIGTERM), (6, signal.SIGINT),
        pytest.param(0, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(6, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_stopped_in_a_step_it_goes_on(
    tmp_path, straight, monkeypatch, step, number
):
  before = signal.getsignal(number)
  with monkeypatch.context() as patch:
    stop_in_step(patch, step, number)
    with pytest.raises(stopping.Stopped, match=f'step {step + 1} of 12'):
      train.train_and_evaluate(toy.config(), tmp_path / 'run')
  assert signal.getsignal(number) == before
  assert 'signals' not in {thread.name for thread in threading.enumerate()}
  assert (tmp_path / f'run/checkpoints/{step + 1}').exists()
  train.train_and_evaluate(toy.config(), tmp_path / 'run')
  harness.assert_same_run(tmp_path / 'run', straight)


@pytest.mark.parametrize(
    'step', [4, *(pytest.param(s, marks=pytest.mark.slow) for s in (8, 12))]
)
def test_stopped_in_an_evaluation_it_evaluates_again(
    tmp_path, straight, monkeypatch, step
):
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    stop_in_evaluation(patch, step)
    with pytest.raises(stopping.Stopped, match=f'step {step} of 12'):
      train.train_and_evaluate(toy.config(), workdir)
  assert ('val', step) not in harness.history(workdir)
  stored = harness.checkpoints(workdir)
  assert not stored[f'{step}/data/metadata']['evaluated']
  assert f'{step}/metrics/metrics' not in stored
  # Killed after its line was written, and before it was saved again.
  with monkeypatch.context() as patch:
    patch.setattr(train.Run, 'last_evaluation', None)
    validate = evaluate.validate

    def then_die(*args):
      validate(*args)
      raise KeyboardInterrupt

    patch.setattr(evaluate, 'validate', then_die)
    with pytest.raises(KeyboardInterrupt):
      train.train_and_evaluate(toy.config(), workdir)
  assert ('val', step) in harness.history(workdir)
  train.train_and_evaluate(toy.config(), workdir)
  harness.assert_same_run(workdir, straight)


def test_stopped_in_the_report_it_reports_again(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  config = toy.config(mode='both', **{'data.test_split': 'test'})
  with monkeypatch.context() as patch:
    report = evaluate.report

    def call(run):
      signalled(run.stop, signal.SIGINT)
      report(run)

    patch.setattr(evaluate, 'report', call)
    with pytest.raises(stopping.Stopped, match='in an evaluation'):
      train.train_and_evaluate(config, workdir)
  assert not (workdir / 'results.json').exists()
  train.train_and_evaluate(config, workdir)
  assert json.loads((workdir / 'results.json').read_text())['test']


def test_the_command_exits_with_75_and_leaves_nothing(tmp_path, straight):
  arguments = harness.TOY, '--config.data.num_workers=1'
  process = harness.Process(tmp_path / 'run', *arguments)
  assert process.wait_for('step'), process.text()
  # As a terminal and Slurm do it: to all processes of the group.
  os.killpg(process.popen.pid, signal.SIGINT)
  assert process.end() == stopping.EXIT_CODE == 75, process.text()
  assert 'Stopped at step' in process.text()
  assert 'Traceback' not in process.text()
  assert process.all_gone()
  harness.run(tmp_path / 'run', *arguments)
  assert harness.history(tmp_path / 'run') == harness.history(straight)


def test_a_second_signal_ends_at_once(tmp_path):
  process = harness.Process(
      tmp_path / 'run', harness.TOY, '--config.data.num_workers=1',
      more={'HANG': '1'},
  )  # fmt: skip
  assert process.wait_for('step'), process.text()
  process.popen.send_signal(signal.SIGTERM)
  with pytest.raises(subprocess.TimeoutExpired):
    process.popen.wait(1)
  process.popen.send_signal(signal.SIGTERM)
  assert process.end(timeout=10) == 128 + signal.SIGTERM
  assert process.all_gone()
