"""The code blocks of docs/extending.md, run unchanged."""

import importlib
import json
import pathlib
import re
import sys

import pytest

from configs import group_scenes
from vemd_jax import train

TEXT = pathlib.Path(__file__).parents[1] / 'docs' / 'extending.md'

pytestmark = pytest.mark.usefixtures('standard_promotion', 'one_device')


@pytest.fixture
def written(tmp_path, monkeypatch):
  """Writes each Python block to the file that its first line names."""
  blocks = re.findall(r'```python\n# (\S+)\n(.*?)```', TEXT.read_text(), re.S)
  assert len(blocks) == 12
  for name, code in blocks:
    (tmp_path / name).write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  for name, _ in blocks:
    sys.modules.pop(name.removesuffix('.py'), None)


def run(config, workdir, variant='ve_sd'):
  # Without decoders where they do not matter, and with a small encoder:
  # programs compile much faster.
  config.model.variant = variant
  config.model.encoder.blocks = 1
  config.update(steps=1, mode='train')
  train.train_and_evaluate(config, workdir)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return json.loads(lines[-1])


def test_loss(written, tmp_path):
  recipe = importlib.import_module('with_my_loss')
  row = run(recipe.get_config('tiny'), tmp_path / 'run')
  # Two frames: between uniform attention and all of it on one.
  assert 0 <= row['attention'] <= 0.6932


def test_encoder(written, tmp_path):
  config = group_scenes.get_config('tiny')
  config.model.encoder.name = 'my_encoders:PatchEncoder'
  row = run(config, tmp_path / 'run')
  table = (tmp_path / 'run' / 'parameters.txt').read_text()
  assert 'encoder_0/Conv_0/kernel' in table and row['loss'] > 0


def test_decoder(written, tmp_path):
  recipe = importlib.import_module('with_my_decoder')
  row = run(recipe.get_config('tiny'), tmp_path / 'run', 've_md')
  table = (tmp_path / 'run' / 'parameters.txt').read_text()
  assert 'face_decoder/Conv_1/kernel' in table
  assert row['face_heatmap'] > 0 and row['face_heatmap_mse'] > 0


def test_metric(written, tmp_path):
  recipe = importlib.import_module('with_my_metric')
  config = recipe.get_config('tiny')
  config.checkpoint.update(best_metric='confidence', best_mode='min')
  row = run(config, tmp_path / 'run')
  assert row['split'] == 'val' and 1 / 3 <= row['confidence'] <= 1
  # It is reported, but not a part of the loss.
  terms = json.loads((tmp_path / 'run' / 'config.json').read_text())['losses']
  weighted = sum(row[name] * terms[name]['weight'] for name in terms
                 if name in row and name != 'kl')  # fmt: skip
  assert row['loss'] == pytest.approx(weighted, rel=1e-3)


def test_head(written, tmp_path):
  config = group_scenes.get_config('tiny')
  config.model.head.name = 'my_heads:PresenceHead'
  config.model.parts = ('body',)
  row = run(config, tmp_path / 'run', config.model.variant)
  table = (tmp_path / 'run' / 'parameters.txt').read_text()
  assert 'head_group_scenes/Dense_1/kernel' in table
  assert 'accuracy' in row


def test_optimizer(written, tmp_path):
  recipe = importlib.import_module('with_my_optimizer')
  config = recipe.get_config('tiny')
  assert run(config, tmp_path / 'run')['loss'] > 0
  with config.unlocked():
    config.optim.kwargs.mass = 1.0
  with pytest.raises(ValueError, match=r'config\.optim\.name.*mass'):
    run(config, tmp_path / 'other')


def test_dataset(written, tmp_path):
  recipe = importlib.import_module('with_my_dataset')
  row = run(recipe.get_config('tiny'), tmp_path / 'run')
  classes = json.loads((tmp_path / 'run' / 'classes.json').read_text())
  assert classes == {'squares': ['one', 'two']}
  assert row['examples'] == 24 and 'recall_two' in row
