"""Two processes of one run: one is killed, or asked to stop."""

import os
import re
import shutil
import signal
import time

import pytest

from tests.faults import harness
from vemd_jax import stopping

pytestmark = pytest.mark.slow
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


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('two')
  for process in pair(folder / 'straight', 1000, folder / 'cache'):
    assert process.end() == 0, process.text()
  return folder / 'straight'


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
