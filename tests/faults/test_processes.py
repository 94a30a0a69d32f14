"""Two processes of one run: what they compute; one is killed or stopped."""

import os
import re
import shutil
import signal
import socket
import time

import jax
import pytest

from tests.faults import harness, toy
from vemd_jax import run as run_lib
from vemd_jax import sharding, stopping, train

# Seconds in which the other process has to end (docs/reliability.md).
LIMIT = 120


def pair(workdir, job, cache):
  """Both processes, as Slurm would start them on one node."""
  workdir.parent.mkdir(exist_ok=True)
  return [
      harness.Process(
          workdir,
          harness.TOY,
          cache=cache,
          name=f'{workdir.name}_{index}',
          more={
              'SLURM_JOB_ID': str(job), 'SLURM_STEP_NODELIST': 'localhost',
              'SLURM_NTASKS': '2', 'SLURM_PROCID': str(index),
              'SLURM_LOCALID': str(index),
          },
      )
      for index in range(2)
  ]  # fmt: skip


def together(workdir, count, *arguments, cache=None, devices=2, **more):
  """Runs this many processes, which the flags tell of each other, to the end.

  Returns:
    What each has printed.
  """
  workdir.parent.mkdir(exist_ok=True)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  more = {
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
      + os.environ['VEMD_TEST_FLAG'],
      'PJRT_NPROC': '8', **more,
  }  # fmt: skip
  running = [
      harness.Process(
          workdir, *arguments, f'--coordinator_address={address}',
          f'--num_processes={count}', f'--process_id={index}', cache=cache,
          name=f'{workdir.name}_{index}', more=more,
      )
      for index in range(count)
  ]  # fmt: skip
  try:
    for process in running:
      assert process.end() == 0, process.text()
  finally:
    for process in running:
      if process.popen.poll() is None:
        process.popen.kill()
        process.end()
  return [process.text() for process in running]


# Eight samples a step, so that eight devices have one each; the learning rate
# does not depend on the number of steps, and every step writes a line.
LONG = {
    'batch_size': 8, 'eval.batch_size': 8, 'eval.every': 3, 'log_every': 1,
    'optim.schedule': 'constant', 'optim.clip': 1.0, 'mesh.min_shard_size': 1,
    'checkpoint.keep_latest': 20,
}  # fmt: skip


def on_mesh(workdir, data, fsdp, steps):
  """Runs the toy in this process; returns the samples of each step."""
  mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
  seen = []

  def put(batch, mesh, original=sharding.put_batch):
    if 'index' not in batch:  # Not in an evaluation.
      level = batch['image'][:, 0, 0, 0, 0].astype(int)
      seen.append(((level - 10) // 5).tolist())
    return original(batch, mesh)

  with (
      pytest.MonkeyPatch.context() as patch,
      jax.numpy_dtype_promotion('standard'),
  ):
    patch.setattr(run_lib, '_make_model', toy.make_model)
    patch.setattr(run_lib.sharding, 'make_mesh', lambda *args: mesh)
    patch.setattr(train.sharding, 'put_batch', put)
    train.train_and_evaluate(toy.config(**LONG, steps=steps), workdir)
  return seen


@pytest.fixture(scope='module')
def on_four_devices(tmp_path_factory):
  """Workdir and samples of a run of nine steps."""
  workdir = tmp_path_factory.mktemp('four') / 'run'
  return workdir, on_mesh(workdir, 4, 1, 9)


@pytest.mark.parametrize(
    'meshes',
    [
        [(8, 1), (1, 4), (1, 1)],
        pytest.param([(8, 1), (4, 1), (1, 1)], marks=pytest.mark.slow),
        pytest.param([(1, 1), (1, 4), (1, 1)], marks=pytest.mark.slow),
        pytest.param([(1, 4), (1, 1), (2, 4)], marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_any_number_of_devices(
    tmp_path, on_four_devices, meshes
):
  straight, samples = on_four_devices
  seen = []
  for steps, mesh in zip((3, 6, 9), meshes):
    seen += on_mesh(tmp_path / 'run', *mesh, steps)
  assert len(seen) == 9 and seen == samples
  harness.assert_close_run(tmp_path / 'run', straight)


def test_two_processes_are_as_one(tmp_path, on_four_devices):
  """Two with two devices each begin, one with four goes on to the end."""
  straight, samples = on_four_devices
  arguments = [harness.TOY, *(f'--config.{k}={v}' for k, v in LONG.items())]
  first, second = together(
      tmp_path / 'run', 2, *arguments, '--config.steps=6', ALTERNATE='yes'
  )
  assert 'step 6/6' in first and 'loss' not in second
  assert on_mesh(tmp_path / 'run', 4, 1, 9) == samples[6:]
  harness.assert_close_run(tmp_path / 'run', straight)


@pytest.mark.slow
@pytest.mark.parametrize('options', ['', 'mixture,accumulation'])
def test_the_model_goes_on_from_two_processes_to_one_and_to_two(
    tmp_path, options
):
  """With batch normalization, dropout and a sampled latent."""
  arguments = [
      f'--config=tests/faults/recipe.py:tiny,ve_sd,{options}'.rstrip(','),
      *harness.TINY[1:], '--config.optim.schedule=constant',
      # The warm-up would be at most half of the steps.
      '--config.optim.warmup_steps=0',
      '--config.batch_size=8', '--config.log_every=1',
      '--config.checkpoint.keep_latest=20', '--config.eval.every=2',
      '--mode=train',
  ]  # fmt: skip
  cache = tmp_path / 'cache'
  together(
      tmp_path / 'straight', 1, *arguments, '--config.steps=6', devices=4,
      cache=cache,
  )  # fmt: skip
  for count, steps in (2, 2), (1, 4), (2, 6):
    together(
        tmp_path / 'run', count, *arguments, f'--config.steps={steps}',
        cache=cache,
    )  # fmt: skip
  harness.assert_close_run(tmp_path / 'run', tmp_path / 'straight', 1e-4)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('two')
  for process in pair(folder / 'straight', 1000, folder / 'cache'):
    assert process.end() == 0, process.text()
  return folder / 'straight'


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('phase', ['step', 'save', 'evaluate'])
def test_the_other_process_ends_with_a_message(straight, victim, phase):
  cache, job = straight.parent / 'cache', 1100 + 10 * victim + len(phase)
  workdir = straight.with_name(f'killed_{victim}_{phase}')
  both = pair(workdir, job, cache)
  assert both[victim].wait_for(phase), both[victim].text()
  os.kill(both[victim].popen.pid, signal.SIGKILL)
  both[victim].end()
  began = time.monotonic()
  other = both[1 - victim]
  code = other.end(timeout=LIMIT)
  seconds = time.monotonic() - began
  # JAX's own message, or that of vemd_jax.main.
  message = re.search('.*another (process|task).*', other.text())
  assert code != 0 and message, other.text()
  print(f'{victim} killed in {phase}: {seconds:.1f} s, {code}: {message[0]}')
  for process in pair(workdir, job + 100, cache):
    assert process.end() == 0, process.text()
  harness.assert_same_run(workdir, straight)
  shutil.rmtree(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('phase', ['step', 'evaluate'])
def test_a_signal_to_one_stops_both_at_one_step(straight, phase):
  cache, job = straight.parent / 'cache', 1400 + len(phase)
  workdir = straight.with_name(f'stopped_{phase}')
  both = pair(workdir, job, cache)
  assert both[1].wait_for(phase), both[1].text()
  both[1].popen.send_signal(signal.SIGTERM)
  assert [p.end() for p in both] == [stopping.EXIT_CODE] * 2, both[0].text()
  steps = [re.search(r'Stopped at step (\d+)', p.text())[1] for p in both]
  assert steps[0] == steps[1]
  for process in pair(workdir, job + 100, cache):
    assert process.end() == 0, process.text()
  harness.assert_same_run(workdir, straight)
