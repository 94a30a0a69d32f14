"""Against SciPy, scikit-learn, and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from vemd_jax.report import statistics


@pytest.mark.parametrize('right, count', [(0, 5), (3, 5), (87, 100), (9, 9)])
def test_wilson(right, count):
  found = statistics.wilson(right, count)
  wanted = stats.binomtest(right, count).proportion_ci(0.95, 'wilson')
  np.testing.assert_allclose(found, [wanted.low, wanted.high], atol=1e-6)
  assert statistics.wilson(0, 0) == (0.0, 1.0)


def drawn(count=400, classes=4, seed=0):
  """Labels, and predictions of two runs of which the second is better."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes - 1, count)  # The last one has no label.
  runs = [
      np.where(rng.random(count) < p, labels, rng.integers(0, classes, count))
      for p in (0.5, 0.65)
  ]
  return labels, *runs


def test_metrics_of_a_confusion_matrix():
  labels, first, _ = drawn()
  confusion = metrics.confusion_matrix(labels, first, labels=range(4))
  wanted = {
      statistics.accuracy: metrics.accuracy_score(labels, first),
      statistics.macro_f1: metrics.f1_score(labels, first, average='macro'),
      statistics.uar: metrics.recall_score(
          labels, first, average='macro', labels=[0, 1, 2]
      ),
  }
  for metric, value in wanted.items():
    assert float(metric(confusion)) == pytest.approx(value)
    # Many at once.
    both = metric(np.stack([confusion, 3 * confusion]))
    np.testing.assert_allclose(both, value)
  np.testing.assert_allclose(
      statistics.f1(confusion),
      metrics.f1_score(labels, first, average=None, labels=range(4)),
  )


def test_bootstrap_resamples_samples():
  labels, first, _ = drawn()
  confusion = metrics.confusion_matrix(labels, first, labels=range(4))
  found = statistics.bootstrap(confusion, statistics.macro_f1)
  rng = np.random.default_rng(1)
  values = []
  for _ in range(500):
    rows = rng.integers(0, len(labels), len(labels))
    values.append(
        metrics.f1_score(labels[rows], first[rows], average='macro')
    )
  np.testing.assert_allclose(found, np.percentile(values, [2.5, 97.5]),
                             atol=0.012)  # fmt: skip


def test_paired_bootstrap_and_mcnemar():
  labels, first, second = drawn()
  joint = np.zeros((4, 4, 4), int)
  np.add.at(joint, (labels, first, second), 1)
  a, b = first == labels, second == labels
  difference = b.astype(float) - a
  low, high = statistics.paired_bootstrap(joint, statistics.accuracy)
  error = 1.96 * difference.std() / np.sqrt(len(labels))
  np.testing.assert_allclose(
      [low, high], [difference.mean() - error, difference.mean() + error],
      atol=0.01,
  )  # fmt: skip
  same = np.zeros((4, 4, 4), int)
  np.add.at(same, (labels, first, first), 1)
  assert statistics.paired_bootstrap(same, statistics.macro_f1) == (0, 0)

  only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
  tail = stats.binom.cdf(
      min(only_first, only_second), only_first + only_second, 0.5
  )
  assert statistics.mcnemar(only_first, only_second) == pytest.approx(2 * tail)
  assert statistics.mcnemar(0, 0) == 1
  assert statistics.mcnemar(0, 5) == pytest.approx(2 / 2**5)


def test_reliability_by_hand():
  confidence = np.array([0.95, 0.91, 1.0, 0.55, 0.52])
  right = np.array([True, True, False, False, True])
  bins, error = statistics.reliability(confidence, right)
  assert [(b.count, b.accuracy) for b in bins] == [(2, 0.5), (3, 2 / 3)]
  np.testing.assert_allclose([b.confidence for b in bins], [0.535, 2.86 / 3])
  assert error == pytest.approx((2 * 0.035 + 3 * (2.86 - 2) / 3) / 5)
  assert bins[1].low < 2 / 3 < bins[1].high


def test_log_loss():
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.ones(3), 50)
  labels = rng.integers(0, 3, 50)
  assert statistics.log_loss(probabilities, labels) == pytest.approx(
      metrics.log_loss(labels, probabilities, labels=[0, 1, 2])
  )
