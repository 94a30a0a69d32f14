"""ROC and bootstrap intervals against scikit-learn and hand calculations."""

import numpy as np
import pytest

from vemd_jax.audit import measure

metrics = pytest.importorskip('sklearn.metrics')


def test_a_weighted_roc_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  positive = rng.random(400) < 0.3
  # Rounded, so that many scores are equal.
  scores = np.round(rng.normal(size=400) + positive, 1)
  roc = measure.Roc(scores, positive)
  for weights in (np.ones(400), rng.integers(0, 4, 400).astype(float)):
    false, true, _ = metrics.roc_curve(
        positive, scores, sample_weight=weights, drop_intermediate=False
    )
    got = roc.curve(weights)
    # The same curve; scikit-learn leaves out scores of weight 0.
    for x, y in zip(*got):
      assert np.abs(np.hypot(false - x, true - y)).min() < 1e-12
    area = metrics.roc_auc_score(positive, scores, sample_weight=weights)
    assert roc.area(weights) == pytest.approx(area, abs=1e-12)
    for rate in (0.0, 0.001, 0.1):
      wanted = true[false <= rate].max()
      assert roc.true_at(weights, rate) == pytest.approx(wanted)


def test_the_equal_error_rate_is_where_the_errors_are_equal():
  roc = measure.Roc([4, 3, 2, 1], [True, False, True, False])
  # After the second score: half of each are on the wrong side.
  assert roc.equal_error(np.ones(4)) == 0.5
  assert measure.Roc([4, 3, 2, 1], [1, 1, 0, 0]).equal_error(np.ones(4)) == 0
  assert measure.Roc([4, 3, 2, 1], [0, 0, 1, 1]).equal_error(np.ones(4)) == 1
  rng = np.random.default_rng(1)
  positive = rng.random(20_000) < 0.5
  roc = measure.Roc(rng.normal(size=20_000) + 2 * positive, positive)
  # Two normal distributions, two deviations apart: Phi(-1).
  assert roc.equal_error(np.ones(20_000)) == pytest.approx(0.1587, abs=0.01)


def test_units_are_resampled_as_a_whole():
  rng = np.random.default_rng(0)
  effect = rng.normal(size=40)
  values = np.repeat(effect, 50)  # No variation within units.
  units = np.repeat(np.arange(40), 50)

  def mean(weights):
    return float(np.average(values, weights=weights))

  value, low, high = measure.bootstrap(mean, units, 'subjects')
  assert value == pytest.approx(effect.mean())
  # The standard error is that of 40 units, not of 2,000 samples.
  wanted = 2 * 1.96 * effect.std() / np.sqrt(40)
  assert (high - low) == pytest.approx(wanted, rel=0.15)


def test_too_few_units_are_refused():
  with pytest.raises(ValueError, match='3 subjects are too few for an interv'):
    measure.bootstrap(lambda w: 0.0, [1, 1, 2, 3], 'subjects')


def test_a_damaged_file_is_named(tmp_path):
  assert measure.read(tmp_path) == {}
  (tmp_path / 'audit').mkdir()
  (tmp_path / 'audit' / 'audit.json').write_text('{"measures": [{"x": 1}]}')
  with pytest.raises(ValueError, match='audit.json is damaged or from another'):
    measure.read(tmp_path)
