"""The undisturbed toy run that the others are compared with."""

import jax
import pytest

from tests.faults import toy
from vemd_jax import train


@pytest.fixture
def toy_runs(monkeypatch):
  """Runs of this test are around the toy."""
  toy.patch(monkeypatch)
  with jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture(scope='package')
def straight(tmp_path_factory):
  """A whole run of the toy that nothing has disturbed."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  with (
      pytest.MonkeyPatch.context() as patch,
      jax.numpy_dtype_promotion('standard'),
  ):
    toy.patch(patch)
    train.train_and_evaluate(toy.config(), workdir)
  return workdir
