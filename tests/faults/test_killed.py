"""SIGKILL at any moment, then the same command again: nothing is lost."""

import collections
import os
import random
import shutil
import signal
import time

import pytest

from tests.faults import harness
from tests.faults.program import PHASES

RECIPE = '--config=tests/faults/recipe.py:tiny,ve_sd'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def kill(process: harness.Process, kind: str, rng, seconds: float):
  """Kills a process at a random moment.

  Args:
    process: just started.
    kind: a phase, in which it is killed; or clock, any time of a whole run.
    rng: draws the moment.
    seconds: that a whole run takes.

  Returns:
    What it was doing; None if it had ended before.
  """
  if kind == 'clock':
    time.sleep(rng.uniform(0, seconds))
  elif kind == 'start':
    time.sleep(rng.uniform(0, 1))
  elif process.wait_for(kind):
    time.sleep(rng.uniform(0, 0.5 if kind == 'step' else 0.03))
  if process.popen.poll() is not None:
    return None
  os.kill(process.popen.pid, signal.SIGSTOP)  # So that it stays in its phase.
  doing = '+'.join(process.phases()) or 'between'
  os.kill(process.popen.pid, signal.SIGKILL)
  process.end()
  return doing


def disturb(folder, arguments, kills, cache, seed):
  """Kills as often as asked for, over as many runs as that takes.

  Each run that comes to its end is compared with an undisturbed one.

  Returns:
    (how often it was killed while doing what, number of runs compared).
  """
  rng, done = random.Random(seed), 0
  harness.run(folder / 'straight', *arguments, cache=cache)
  began = time.monotonic()
  harness.run(folder / 'again', *arguments, cache=cache)
  seconds = time.monotonic() - began
  harness.assert_same_run(folder / 'again', folder / 'straight')
  counts = collections.Counter()
  # Some moments are so short that the clock alone would miss them.
  kinds = ('clock', 'save', 'evaluate', 'step', 'clock', 'restore', 'start')
  for number in range(kills):
    doing, kind = None, kinds[number % len(kinds)]
    while doing is None:
      process = harness.Process(folder / 'disturbed', *arguments, cache=cache)
      doing = kill(process, kind, rng, seconds)
      if doing is None:
        kind = 'clock'  # It has missed the phase.
        assert process.end() == 0, process.text()
        harness.assert_same_run(folder / 'disturbed', folder / 'straight')
        shutil.rmtree(folder / 'disturbed')
        done += 1
      assert process.all_gone(60), 'its workers live on'
    counts[doing] += 1
    print(f'kill {number + 1}: {doing}', flush=True)
  harness.run(folder / 'disturbed', *arguments, cache=cache)
  harness.assert_same_run(folder / 'disturbed', folder / 'straight')
  return counts, done + 1


@pytest.mark.slow
def test_killed_fifty_times(tmp_path, cache):
  counts, runs = disturb(tmp_path, harness.TINY, 50, cache, seed=0)
  print(f'killed {sum(counts.values())} times: {dict(counts)}; {runs} runs')
  hit = {phase for doing in counts for phase in doing.split('+')}
  assert {'restore', 'step', 'evaluate', 'save'} <= hit
  assert counts['between'] + counts['start']


@pytest.mark.slow
@pytest.mark.parametrize('option', ['workers', 'mixture', 'accumulation'])
def test_killed_with(tmp_path, cache, option):
  arguments = (f'{RECIPE},{option}', *harness.TINY[1:], '--mode=train')
  counts, runs = disturb(tmp_path, arguments, 7, cache, seed=len(option))
  print(f'{option}: killed {dict(counts)}; {runs} runs')
  assert set('+'.join(counts).split('+')) <= {*PHASES, 'between'}
