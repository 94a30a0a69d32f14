"""The code blocks of docs/extending.md, run as they stand."""

import importlib
import json
import pathlib
import re
import sys

import pytest

from configs import group_scenes
from vemd_jax import train

TEXT = pathlib.Path(__file__).parents[1] / 'docs' / 'extending.md'

pytestmark = pytest.mark.usefixtures('standard_promotion')


@pytest.fixture
def written(tmp_path, monkeypatch):
  """Each Python block in the file that its first line names."""
  blocks = re.findall(r'```python\n# (\S+)\n(.*?)```', TEXT.read_text(), re.S)
  assert len(blocks) == 5
  for name, code in blocks:
    (tmp_path / name).write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  for name, _ in blocks:
    sys.modules.pop(name.removesuffix('.py'), None)


def run(config, workdir):
  config.update(steps=1, mode='train')
  train.train_and_evaluate(config, workdir)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return json.loads(lines[-1])


def test_loss(written, tmp_path):
  recipe = importlib.import_module('with_my_loss')
  row = run(recipe.get_config('tiny'), tmp_path / 'run')
  # Two frames: between even attention and all of it on one.
  assert 0 <= row['attention'] <= 0.6932


def test_encoder(written, tmp_path):
  config = group_scenes.get_config('tiny')
  config.model.encoder.name = 'my_encoders:PatchEncoder'
  row = run(config, tmp_path / 'run')
  table = (tmp_path / 'run' / 'parameters.txt').read_text()
  assert 'encoder_0/Conv_0/kernel' in table and row['loss'] > 0


def test_decoder(written, tmp_path):
  recipe = importlib.import_module('with_my_decoder')
  row = run(recipe.get_config('tiny'), tmp_path / 'run')
  table = (tmp_path / 'run' / 'parameters.txt').read_text()
  assert 'face_decoder/Conv_1/kernel' in table
  assert row['face_heatmap'] > 0 and row['face_heatmap_mse'] > 0
