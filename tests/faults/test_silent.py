"""Errors that no message would show: samples counted twice, other classes."""

import subprocess
import sys

import numpy as np
import pytest

from tests.faults import harness, toy
from vemd_jax.data import pipeline


@pytest.mark.parametrize('processes', [1, 2, 3, 5])
@pytest.mark.parametrize('rows', [1, 3, 4, 16])
def test_every_sample_is_evaluated_once(processes, rows):
  data = toy.config().data  # 10 samples.
  seen, lengths, size = [], set(), rows * processes
  for index in range(processes):
    own = range(index * rows, (index + 1) * rows)
    batches = list(pipeline.eval_batches(data, 'val', size, own))
    lengths.add(len(batches))
    for batch in batches:
      assert len(batch['mask']) == rows
      level = batch['image'][:, 0, 0, 0, 0].astype(int)
      seen += ((level[batch['mask']] - 10) // 5).tolist()
      # What fills a batch up has no label that could be counted.
      assert not batch['label_mask'][~batch['mask']].any()
  assert sorted(seen) == list(range(10))
  assert len(lengths) == 1


def test_evaluation_counts_do_not_depend_on_the_batch_size(
    toy_runs, tmp_path
):
  from vemd_jax import evaluate, train

  results = []
  for batch_size in (1, 4, 7, 16):
    config = toy.config(**{'eval.batch_size': batch_size})
    run = train.set_up(config, tmp_path / str(batch_size))
    metrics, *_ = evaluate.evaluate(
        run.eval_step,
        run.create().variables(),
        pipeline.eval_batches(config.data, 'val', batch_size),
        mesh=run.mesh,
        dataset='toy',
        step=0,
    )
    run.checkpoints.close()
    results.append(metrics.compute())
    assert np.sum(results[-1]['confusion']) == 10
  for other in results[1:]:
    assert other['confusion'] == results[0]['confusion']
    np.testing.assert_allclose(other['loss'], results[0]['loss'], rtol=1e-6)


def test_xla_accepts_the_flag_for_deterministic_kernels():
  program = (
      'import os, jax; from vemd_jax import devices; '
      'devices.set_up((8,), 1, False, deterministic=True); '
      'print(jax.numpy.ones(3).sum(), os.environ["XLA_FLAGS"])'
  )
  result = subprocess.run(
      [sys.executable, '-c', program],
      env=harness.environment(),
      capture_output=True,
      text=True,
  )
  assert result.stdout.startswith('3.0'), result.stderr
  assert '--xla_gpu_deterministic_ops=true' in result.stdout
