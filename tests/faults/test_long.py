"""A long run uses as much memory, as many threads and files as a short one."""

import os
import pathlib
import threading

import pytest

from tests.faults import toy
from vemd_jax import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('toy_runs')]


def resources():
  """Resident memory in MB, threads, open files."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return (
      pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
      threading.active_count(),
      len(list(pathlib.Path('/proc/self/fd').iterdir())),
  )


def test_twenty_thousand_steps(tmp_path, monkeypatch):
  config = toy.config(**{
      'steps': 20_000, 'log_every': 50, 'checkpoint.every': 500,
      'eval.every': 1000, 'faults.not_finite': 'skip',
      'faults.spike': 'skip', 'data.cache': True,
  })  # fmt: skip
  seen = {}
  set_up = train.set_up

  def then_measure(*args):
    run = set_up(*args)
    train_step = run.train_step
    count = iter(range(20_001))

    def call(*args, **kwargs):
      step = next(count)
      if step % 2500 == 0:
        seen[step] = resources()
        print(step, 'MB, threads, files:', seen[step], flush=True)
      return train_step(*args, **kwargs)

    run.train_step = call
    return run

  monkeypatch.setattr(train, 'set_up', then_measure)
  train.train_and_evaluate(config, tmp_path / 'run')
  seen[20_000] = resources()
  print('end', seen[20_000])
  # Threads and files come and go with each save, so the most of them counts.
  first = [max(x) for x in zip(*(seen[s] for s in range(2500, 10_001, 2500)))]
  last = [max(x) for x in zip(*(seen[s] for s in range(12_500, 20_000, 2500)))]
  assert last[0] < first[0] + 30
  assert last[1] <= first[1] and last[2] <= first[2]
