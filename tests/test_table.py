"""Tables of repeated runs, against NumPy and SciPy."""

import json
import statistics

import cv2
import numpy as np
import pytest
from scipy import stats

from vemd_jax import plots, results, surfaces, sweep_plan, table
from vemd_jax.audit import measure
from vemd_jax.data.datasets import Published


def run(folder, seed, fold=0, split='val', **values):
  folder.mkdir(parents=True)
  config = {'seed': seed, 'data': {'fold': fold}}
  (folder / 'config.json').write_text(json.dumps(config))
  numbers = {'confusion': [[1, 0], [0, 1]], **values}
  (folder / 'results.json').write_text(
      json.dumps({'step': 10, 'chosen_on': 'val', split: numbers})
  )
  return str(folder)


A = [0.70, 0.74, 0.75, 0.72, 0.79]
B = [0.71, 0.78, 0.77, 0.73, 0.84]
C = [0.60, 0.79, 0.70, 0.71]  # One seed less.


@pytest.fixture
def sweep(tmp_path):
  """Three rows of a group, a row of another, one without runs."""
  rows = [
      sweep_plan.Row('group', 'a', 'x.py'),
      sweep_plan.Row(
          'group', 'b_1', 'x.py',
          published=(Published(82.25, 'accuracy', 'not stated', 'VE-MD'),),
      ),
      sweep_plan.Row('group', 'c', 'x.py'),
      sweep_plan.Row('group', 'never', 'x.py'),
      sweep_plan.Row('faces', 'a', 'x.py'),
  ]  # fmt: skip
  references = {'group': (Published(79.24, 'accuracy', 'val', 'Others'),)}
  sweep_plan.save(
      sweep_plan.Sweep(tuple(rows), references=references), tmp_path
  )
  for row, values in zip(rows, (A, B, C, [], [0.5])):
    for seed, value in enumerate(values):
      run(tmp_path / row.folder / f'seed_{seed}', seed, accuracy=value)
  return tmp_path


def lines_of(sweep, *arguments):
  assert table.main([str(sweep), *arguments]) == 0
  made = json.loads((sweep / 'table.json').read_text())
  return {(t['group'], line['name']): line for t in made for line in t['lines']}


def test_what_an_audit_and_privacy_add(tmp_path):
  row = sweep_plan.Row('faces', 'a', 'x.py')
  keys = (
      'accuracy', 'audit/latent/emotion/balanced accuracy', 'privacy/epsilon',
      'audit/latent/mouth/PSNR (dB)', 'uar',
  )  # fmt: skip
  sweep_plan.save(sweep_plan.Sweep((row,), metrics=keys), tmp_path)
  for seed, epsilon in enumerate((3.0, 3.5)):
    folder = tmp_path / row.folder / f'seed_{seed}'
    run(folder, seed, accuracy=0.5)
    found = json.loads((folder / 'results.json').read_text())
    found['privacy'] = {'epsilon': epsilon, 'unit': 'sample'}
    (folder / 'results.json').write_text(json.dumps(found))
    measures = [
        measure.Measure('utility', 'emotion', 'latent', 'balanced accuracy',
                        0.4 + 0.1 * seed, 0.3, 0.6, 0.2, 10, 'samples', 'x'),
        measure.Measure('inversion', 'mouth', 'latent', 'PSNR (dB)',
                        float('nan'), 0.3, 0.6, 0.2, 10, 'samples', 'x'),
    ]  # fmt: skip
    measure.write(folder, {}, measures, {})
  assert table.main([str(tmp_path)]) == 0
  made = {
      t['metric']: t for t in json.loads((tmp_path / 'table.json').read_text())
  }
  # Neither a metric that no run has nor one that is undefined makes a table.
  assert list(made) == [
      'accuracy (WAR)', 'balanced accuracy of emotion from latent', 'epsilon',
  ]  # fmt: skip
  values = {
      name: t['lines'][0]['summary']['mean'] for name, t in made.items()
  }
  assert list(values.values()) == pytest.approx([0.5, 0.45, 3.25])
  text = (tmp_path / 'table.md').read_text()
  assert '45.00' in text and '3.2500' in text and '325' not in text


def test_numbers_against_scipy(sweep):
  lines = lines_of(sweep)
  for name, values in ('a', A), ('b_1', B), ('c', C):
    summary = lines['group', name]['summary']
    assert summary['n'] == len(values)
    assert summary['mean'] == pytest.approx(statistics.fmean(values))
    assert summary['std'] == pytest.approx(statistics.stdev(values))
    low, high = stats.t.interval(
        0.95, len(values) - 1, np.mean(values), stats.sem(values)
    )
    assert (summary['low'], summary['high']) == pytest.approx((low, high))
  tests = []
  for name, values in ('b_1', B), ('c', C):
    first = A[: len(values)]
    expected = stats.ttest_rel(values, first)
    comparison = lines['group', name]['comparison']
    assert comparison['n'] == len(values)
    assert comparison['p'] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert comparison['low'] == pytest.approx(interval.low)
    assert comparison['high'] == pytest.approx(interval.high)
    assert comparison['difference'] == pytest.approx(
        np.mean(np.subtract(values, first))
    )
    tests.append(expected.pvalue)
  # Of two tests the smaller p counts twice.
  small, large = sorted(tests)
  assert lines['group', 'b_1']['holm'] == pytest.approx(2 * small)
  assert lines['group', 'c']['holm'] == pytest.approx(max(large, 2 * small))
  assert lines['group', 'a']['comparison'] is None
  assert lines['group', 'never']['summary']['n'] == 0
  assert lines['faces', 'a']['summary'] == {
      'n': 1, 'mean': 0.5, 'std': None, 'low': None, 'high': None,
  }  # fmt: skip


def test_the_row_to_compare_with_can_be_chosen(sweep, capsys):
  lines = lines_of(sweep, '--against=c')
  assert lines['group', 'c']['comparison'] is None
  assert lines['group', 'a']['comparison']['p'] == pytest.approx(
      stats.ttest_rel(A[:4], C).pvalue
  )
  assert table.main([str(sweep), '--against=d']) == 1
  assert 'expected one of a, b_1, c, never' in capsys.readouterr().err


def test_text_of_the_tables(sweep, capsys):
  lines_of(sweep)
  text = (sweep / 'table.md').read_text()
  assert text in capsys.readouterr().out
  row = next(line for line in text.splitlines() if line.startswith('| b_1 '))
  mean, std = statistics.fmean(B) * 100, statistics.stdev(B) * 100
  half = stats.t.ppf(0.975, 4) * std / 5**0.5
  p = stats.ttest_rel(B, A).pvalue
  assert row.startswith(
      f'| b_1 | 5 | {mean:.2f} | {std:.2f} | '
      f'{mean - half:.2f} to {mean + half:.2f} | +2.60 | '
  )
  assert f'| {p:.3f} | {2 * p:.3f} | 82.25 |' in row
  assert '| never | 0 | – | – |' in text
  assert '| Others (val) | – |' in text and '| 79.24 |' in text
  assert 'Published for b_1: 82.25 (VE-MD; split: not stated).' in text
  # The faces have one run: no interval, no comparison, nothing published.
  assert '|  | n | accuracy (WAR), % | std |\n' not in text
  faces = text[text.index('### faces') :]
  assert '|  | n | accuracy (WAR), % |\n' in faces
  latex = (sweep / 'table.tex').read_text()
  assert r'b\_1 & 5 & ' in latex and r'95 \% interval' in latex
  assert latex.count(r'\begin{tabular}') == 2
  for line in latex.splitlines():
    if line.endswith(r'\\'):
      assert line.count('&') in (9, 2)


def test_the_picture_shows_means_where_they_are(sweep, monkeypatch):
  dots, bars = [], []
  draw_dot, draw_line = surfaces.Raster.dot, surfaces.Raster.line

  def dot(self, x, y, *args):
    dots.append((float(x), float(y)))
    draw_dot(self, x, y, *args)

  def line(self, points, colour, *args, **kwargs):
    if colour == plots.EVALUATION:
      bars.append([(float(x), float(y)) for x, y in points])
    draw_line(self, points, colour, *args, **kwargs)

  monkeypatch.setattr(surfaces.Raster, 'dot', dot)
  monkeypatch.setattr(surfaces.Raster, 'line', line)
  lines_of(sweep)
  # Three rows of the first group, one row of the second.
  assert len(dots) == 4 and len(bars) == 3
  means = [np.mean(A), np.mean(B), np.mean(C)]
  scale = np.polyfit(means, [x for x, _ in dots[:3]], 1)
  np.testing.assert_allclose(
      np.polyval(scale, means), [x for x, _ in dots[:3]], atol=1e-6
  )
  assert scale[0] > 0 and dots[0][1] < dots[1][1] < dots[2][1]
  for values, bar, (_, y) in zip((A, B, C), bars, dots):
    summary = results.summary(values)
    np.testing.assert_allclose(
        bar, [(np.polyval(scale, v), y) for v in (summary.low, summary.high)]
    )
  picture = cv2.imread(str(sweep / 'table.png'))[..., ::-1]
  for x, y in dots[:3]:
    assert '#' + bytes(picture[round(y), round(x)]).hex() == plots.EVALUATION


def test_a_run_is_not_counted_twice(sweep, capsys):
  folder = sweep / 'group' / 'a'
  (folder / 'seed_0_copy').mkdir()  # No run of the sweep.
  run(folder / 'seed_5', 4, accuracy=0.79)  # A copy of seed 4.
  assert table.main([str(sweep)]) == 1
  error = capsys.readouterr().err
  assert 'seed_5 holds the run of seed 4, fold 0: it would be' in error
  one = run(sweep / 'x' / 'one', 0, accuracy=0.5)
  assert table.main([one, one]) == 1
  assert 'counted twice' in capsys.readouterr().err


def test_seeds_of_a_fold_are_one_unit(tmp_path):
  values = {(0, 1): 0.5, (1, 1): 0.7, (0, 2): 0.8}
  workdirs = []
  for (seed, fold), value in values.items():
    folder = tmp_path / f'seed_{seed}_fold_{fold}'
    run(folder, seed, fold, accuracy=value)
    workdirs.append(folder)
  read = results.read(workdirs, 'val')
  assert results.units(read, 'accuracy') == pytest.approx({1: 0.6, 2: 0.8})


def test_mean_of_the_folds(tmp_path, capsys):
  uars = [0.5, 0.6, 0.55, 0.65, 0.7]
  paths = [
      run(
          tmp_path / f'fold_{fold}', 0, fold, accuracy=war, uar=uar,
          body_heatmap_mse=0.01 * fold,
          # Not in every fold.
          **({'recall_fear': 0.5} if fold == 1 else {}),
      )
      for fold, (war, uar) in enumerate(zip(A, uars), 1)
  ]  # fmt: skip
  assert table.main(paths) == 0
  out = capsys.readouterr().out
  mean, std = statistics.fmean(A) * 100, statistics.stdev(A) * 100
  assert f'| accuracy (WAR) | 5 | {mean:.2f} | {std:.2f} |' in out
  assert '| UAR | 5 | 60.00 |' in out
  assert '| body_heatmap_mse | 5 | 0.0300 | 0.0158 |' in out
  assert 'recall_fear' not in out and 'confusion' not in out
  assert (tmp_path / 'table.tex').exists()


def test_a_run_that_is_not_done_is_named(tmp_path, capsys):
  path = run(tmp_path / 'fold_1', 0, 1, accuracy=0.5)
  assert table.main([path, str(tmp_path / 'fold_2')]) == 1
  assert 'fold_2/results.json does not exist' in capsys.readouterr().err
  assert table.main([path, '--split=test']) == 1
  assert "no split 'test', expected one of val" in capsys.readouterr().err


def test_differences_that_are_all_the_same_have_no_test():
  row = {i: v + 0.1 for i, v in enumerate(A)}
  comparison = results.compare(row, dict(enumerate(A)))
  assert comparison.p is None and comparison.n == 5
  assert comparison.difference == pytest.approx(0.1)
  assert results.compare({0: 0.5}, {1: 0.5}).n == 0


def test_holm_by_hand():
  # 0.01 x 4, then 0.02 x 3, then 0.03 x 2 and no less than before, then 0.5.
  assert results.holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx(
      [0.06, 0.04, None, 0.5, 0.06]
  )
  assert results.holm([0.9, 0.8]) == [1.0, 1.0]
