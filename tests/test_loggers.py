"""Loggers besides the files of a run; each is read back by other means."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from vemd_jax import loggers
from vemd_jax.writer import Writer

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = np.zeros((4, 6, 3), np.uint8)


class Own:
  """A logger of one's own, named by its import path."""

  calls = []  # noqa: RUF012

  def __init__(self, workdir, resume_step):
    self.calls.append(('open', workdir.name, resume_step))

  def start(self, config, versions):
    self.calls.append(('start', config, versions))

  def scalars(self, step, values):
    self.calls.append(('scalars', step, values))

  def picture(self, step, tag, picture):
    self.calls.append(('picture', step, tag, picture.shape))

  def close(self):
    self.calls.append(('close',))


def test_a_logger_of_ones_own_gets_everything(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'own', types.ModuleType('own'))
  sys.modules['own'].Logger = Own
  Own.calls.clear()
  with Writer(tmp_path / 'run', 7, loggers=('own:Logger',)) as writer:
    writer.setup({'seed': 1}, {'jax': '1'})
    writer.scalars(8, 'val', {'loss': 2.0, 'bad': float('inf'), 'm': {'x': 1}})
    writer.pictures(8, {'val/structure': PICTURE})
    writer.confusion(8, 'val', {'mine': (np.eye(2), ('a', 'b'))}, False)
  calls = Own.calls
  assert calls[:4] == [
      ('open', 'run', 7),
      ('start', {'seed': 1}, {'jax': '1'}),
      ('scalars', 8, {'val/loss': 2.0, 'val/m/x': 1.0}),
      ('picture', 8, 'val/structure', (4, 6, 3)),
  ]
  assert calls[4][:3] == ('picture', 8, 'val/confusion')
  assert calls[5:] == [('close',)]
  assert not (tmp_path / 'run' / 'tensorboard').exists()


def test_none_and_unknown_and_missing(tmp_path, monkeypatch):
  with Writer(tmp_path, loggers=()) as writer:
    writer.scalars(1, 'train', {'loss': 1.0})
  with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
    loggers.open_all(['tensorbord'], tmp_path, 0)
  for name in 'wandb', 'mlflow':
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf'pip install "vemd-jax\[{name}\]"'):
      loggers.open_all([name], tmp_path, 0)


MLFLOW = """
import sys
import numpy as np
from vemd_jax import writer
for resume, steps in (0, (1, 2)), (2, (3,)):
  with writer.Writer(sys.argv[1], resume, loggers=('mlflow',)) as w:
    w.setup({'seed': 3}, {'jax': '1'})
    for step in steps:
      w.scalars(step, 'val', {'loss': 1 / step})
    w.pictures(2, {'val/structure': np.zeros((4, 6, 3), np.uint8)})
"""


@pytest.mark.skipif(
    importlib.util.find_spec('mlflow') is None,
    reason='the extra mlflow is not installed',
)
def test_mlflow_file_store(tmp_path):
  store = tmp_path / 'store'
  # MLflow's own warnings are not ours: a process of its own.
  subprocess.run(
      [sys.executable, '-c', MLFLOW, str(tmp_path / 'run')], cwd=ROOT,
      check=True, capture_output=True, env={
          **os.environ, 'MLFLOW_TRACKING_URI': store.as_uri(),
          'MLFLOW_ALLOW_FILE_STORE': 'true',
      },
  )  # fmt: skip
  # A resumed run goes on in the same MLflow run.
  (metric,) = store.glob('*/*/metrics/val/loss')
  rows = [line.split() for line in metric.read_text().splitlines()]
  assert [(float(v), int(s)) for _, v, s in rows] == [
      (1.0, 1), (0.5, 2), (pytest.approx(1 / 3), 3)
  ]  # fmt: skip
  artifacts = metric.parents[2] / 'artifacts'
  assert json.loads((artifacts / 'config.json').read_text()) == {'seed': 3}
  assert (artifacts / 'pictures' / 'val_structure_00000002.png').exists()
  meta = (metric.parents[2] / 'meta.yaml').read_text()
  assert 'run_name: run\n' in meta and 'status: 3\n' in meta  # FINISHED


def test_wandb_is_called_as_its_interface_asks(tmp_path, monkeypatch):
  """Against a stand-in: the package needs an account or a server."""
  calls = []
  run = types.SimpleNamespace(
      config=types.SimpleNamespace(
          update=lambda values, allow_val_change: calls.append(values)
      ),
      log=lambda values, step: calls.append((step, values)),
      finish=lambda: calls.append('finish'),
  )

  def init(**kwargs):
    calls.append(kwargs['id'])
    assert kwargs['resume'] == 'allow' and kwargs['name'] == 'run'
    return run

  stand_in = types.SimpleNamespace(
      init=init, Image=lambda x: x.shape,
      util=types.SimpleNamespace(generate_id=lambda: f'id{len(calls)}'),
      Settings=dict,
  )  # fmt: skip
  monkeypatch.setitem(sys.modules, 'wandb', stand_in)
  for resume in 0, 2:
    with Writer(tmp_path / 'run', resume, loggers=('wandb',)) as writer:
      writer.setup({'seed': 3}, {'jax': '1'})
      writer.scalars(2, 'val', {'loss': 0.5})
      writer.pictures(2, {'val/structure': PICTURE})
  assert calls[: len(calls) // 2] == calls[len(calls) // 2 :] == [
      'id0',
      {'seed': 3, 'versions': {'jax': '1'}},
      (2, {'val/loss': 0.5}),
      (2, {'val/structure': (4, 6, 3)}),
      'finish',
  ]
