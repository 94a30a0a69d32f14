"""The mean over folds."""

import json
import statistics

import pytest

from vemd_jax import folds


def runs(root, values):
  paths = []
  for i, (war, uar) in enumerate(values, 1):
    path = root / f'fold_{i}'
    path.mkdir()
    val = {'accuracy': war, 'uar': uar, 'confusion': [[1, 0], [0, 1]]}
    if i == 1:
      val['recall_fear'] = 0.5  # Not in every fold.
    result = {'step': 10 * i, 'chosen_on': 'holdout', 'val': val}
    (path / 'results.json').write_text(json.dumps(result))
    paths.append(str(path))
  return paths


def test_mean_of_the_folds(tmp_path, capsys):
  wars, uars = [0.70, 0.74, 0.75, 0.72, 0.79], [0.5, 0.6, 0.55, 0.65, 0.7]
  paths = runs(tmp_path, zip(wars, uars))
  assert folds.main(paths) == 0
  printed = capsys.readouterr().out
  assert f'WAR (accuracy)           {sum(wars) / 5:.4f}' in printed
  written = json.loads((tmp_path / 'folds.json').read_text())
  assert written['runs'] == paths
  assert set(written['val']) == {'accuracy', 'uar'}
  uar = written['val']['uar']
  assert uar['mean'] == pytest.approx(sum(uars) / 5)
  assert uar['std'] == pytest.approx(statistics.stdev(uars))
  assert (uar['min'], uar['max']) == (0.5, 0.7)


def test_a_fold_that_is_not_done_is_named(tmp_path, capsys):
  paths = runs(tmp_path, [(0.5, 0.5)])
  assert folds.main([*paths, str(tmp_path / 'fold_2')]) == 1
  assert 'fold_2/results.json does not exist' in capsys.readouterr().err
