"""Cached features of the frozen ViT equal those of the ViT itself."""

import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from vemd_jax import cache_features, train
from vemd_jax import config as config_lib
from vemd_jax.data import pipeline
from vemd_jax.models import vit

pytestmark = pytest.mark.usefixtures('standard_promotion')


def folder(root):
  root.mkdir()
  rng = np.random.default_rng(0)
  rows = ['file,split,label']
  for i in range(5):
    split, label = ('train', 'val')[i > 2], ('x', 'y')[i % 2]
    for frame in range(3) if i == 1 else ('',):
      # Not square, and larger than the input of the ViT.
      image = rng.integers(0, 256, (70, 130, 3), np.uint8)
      path = root / f'{i}' / f'{frame}.png' if i == 1 else root / f'{i}.png'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
    rows.append(f'{i if i == 1 else f"{i}.png"},{split},{label}')
  (root / 'torn.png').write_bytes(b'not an image')
  rows.append('torn.png,val,x')
  (root / 'labels.csv').write_text('\n'.join(rows))
  return root


def recipe(root, words='cached,tiny', **changes):
  config = config_lib.for_dataset('gaf3')
  config.data.update(
      source='folder', root=str(root), classes=('x', 'y'), frames=2,
      holdout=0.0, max_unreadable=0.4,
  )  # fmt: skip
  config = config_lib.finish(config, words)
  config.update_from_flattened_dict({
      'batch_size': 2, 'data.image_size': 32, 'model.variant': 've_sd',
      **changes,
  })  # fmt: skip
  return config


def logits(run, variables, split):
  apply = jax.jit(
      lambda v, b: run.model.apply(v, b, dataset='gaf3', train=False).logits
  )
  data = run.datasets['gaf3']
  return np.concatenate([
      apply(variables, batch)[batch['mask']]
      for batch in pipeline.eval_batches(data, split, 2)
  ])


def test_cached_and_live_give_the_same_logits(
    tmp_path, one_device, capsys
):
  root = folder(tmp_path / 'data')
  cached = recipe(root)
  with pytest.raises(FileNotFoundError, match=r'vemd_jax\.cache_features'):
    train.set_up(cached, tmp_path)

  cache_features.run(cached)
  assert '5 rows computed' in capsys.readouterr().out
  run = train.set_up(cached, tmp_path)
  state = run.create()
  # Predictions on new images need the ViT.
  assert 'vit' in state.frozen
  run.check_cached_features(state)
  one = next(pipeline.eval_batches(run.datasets['gaf3'], 'train', 2))
  assert one['vit_features'].shape == (2, 2, 32)

  variables = state.variables()
  live = train.set_up(recipe(root, 'tiny'), tmp_path)
  expected = [logits(live, variables, split) for split in ('train', 'val')]
  # Reading must not run the ViT: break it.
  broken = {**variables, 'params': {**variables['params']}}
  broken['params']['vit'] = jax.tree.map(
      lambda x: x * np.nan, variables['params']['vit']
  )
  for split, wanted in zip(('train', 'val'), expected):
    assert np.ptp(wanted, 0).min() > 1e-4
    np.testing.assert_allclose(
        logits(run, broken, split), wanted, rtol=1e-5, atol=1e-6
    )

  # A second run retries only unreadable rows.
  cache_features.run(cached)
  assert '0 rows computed, 5 already cached' in capsys.readouterr().out

  # Other weights, another transform, another image.
  with pytest.raises(ValueError, match=r"weights '.*', the run has"):
    run.check_cached_features(state.replace(
        frozen={'vit': jax.tree.map(lambda x: -x, state.frozen['vit'])}
    ))  # fmt: skip
  with pytest.raises(ValueError, match='frames 2, the run has 1'):
    train.set_up(recipe(root, **{'data.frames': 1}), tmp_path)
  (root / '0.png').write_bytes((root / '2.png').read_bytes())
  with pytest.raises(ValueError, match=r'0\.png has changed since'):
    list(pipeline.eval_batches(run.datasets['gaf3'], 'train', 2))
  cache_features.run(cached)
  assert '1 rows computed, 4 already cached' in capsys.readouterr().out
  list(pipeline.eval_batches(run.datasets['gaf3'], 'train', 2))


def test_a_fingerprint_tells_weights_apart():
  def of(array):
    return vit.fingerprint({'a': {'b': array}})

  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  assert of(x) == of(x.copy())
  others = [x[::-1].copy(), x.T.copy(), -x, x + np.float32(1e-6)]
  assert len({of(y) for y in (x, *others)}) == 5


def test_a_model_without_vit_has_no_cache():
  with pytest.raises(ValueError, match='frozen ViT'):
    config_lib.finish(config_lib.default(), 'cached')
  with pytest.raises(ValueError, match='vit_dim is 8'):
    config = config_lib.default()
    config.data.vit_dim = 8
    config_lib.check(config)


def test_an_unknown_word_ends_in_one_line():
  process = subprocess.run(
      [
          sys.executable,
          *('-m', 'vemd_jax.cache_features', '--config=configs/gaf3.py:nope'),
      ],
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=False,
  )
  assert process.returncode == 1
  assert 'Traceback' not in process.stderr
  last = process.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and "unknown option 'nope'" in last
