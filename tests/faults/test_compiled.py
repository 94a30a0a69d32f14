"""Compilation, once for each dataset; states that are split over devices."""

import jax
import numpy as np
import pytest

from tests.faults import harness, toy
from vemd_jax import run as run_lib
from vemd_jax import sharding, train

pytestmark = pytest.mark.usefixtures('standard_promotion')


def run_on(monkeypatch, workdir, data, fsdp, **changes):
  """Runs the toy on a mesh of this process; returns the run."""
  mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
  set_up, runs = train.set_up, []

  def kept(*args):
    runs.append(set_up(*args))
    return runs[-1]

  config = toy.config(**{
      'batch_size': 8, 'eval.batch_size': 8, 'optim.schedule': 'constant',
      'mesh.min_shard_size': 1, 'eval.every': 4, 'checkpoint.every': 100,
      **changes,
  })  # fmt: skip
  with config.unlocked():
    config.mixture.first = {'weight': 0.5}
    config.mixture.second = {'weight': 1.0}
  with monkeypatch.context() as patch:
    patch.setattr(run_lib, '_make_model', toy.make_model)
    patch.setattr(run_lib.sharding, 'make_mesh', lambda *args: mesh)
    patch.setattr(train, 'set_up', kept)
    train.train_and_evaluate(config, workdir)
  return runs[0]


def test_nothing_is_compiled_after_the_first_step_of_each_dataset(
    tmp_path, monkeypatch
):
  run = run_on(monkeypatch, tmp_path, 2, 2, steps=8)
  assert run.train_step._cache_size() == 2
  assert run.eval_step._cache_size() == 2


@pytest.mark.slow
def test_nothing_is_compiled_again_with_a_restored_state(
    tmp_path, monkeypatch
):
  for steps in 3, 12:
    run = run_on(monkeypatch, tmp_path, 2, 2, steps=steps)
  assert run.train_step._cache_size() == 2
  assert run.eval_step._cache_size() == 2


@pytest.mark.slow
def test_a_resumed_run_with_split_moments_has_the_same_bits(
    tmp_path, monkeypatch
):
  for folder, steps in ('run', 4), ('run', 8), ('straight', 8):
    run_on(monkeypatch, tmp_path / folder, 2, 2, steps=steps)
  harness.assert_same_run(tmp_path / 'run', tmp_path / 'straight')


@pytest.mark.slow
def test_split_moments_change_nothing(tmp_path, monkeypatch):
  runs = [
      run_on(
          monkeypatch, tmp_path / str(shard), 4, 1, steps=6, mode='train',
          **{'mesh.shard_moments': shard, 'optim.clip': 1.0},
      )
      for shard in (True, False)
  ]  # fmt: skip
  split, whole = (
      {str(x.sharding.spec) for x in jax.tree.leaves(run.target.opt_state)}
      for run in runs
  )
  assert any('data' in spec for spec in split)
  assert not any('data' in spec for spec in whole)
  ours, theirs = (harness.checkpoints(run.workdir) for run in runs)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7),
      ours['6/model'],
      theirs['6/model'],
  )
