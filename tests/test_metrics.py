"""Metrics against scikit-learn and NumPy, independently of batching."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vemd_jax import losses, metrics, people_metrics, skeletons
from vemd_jax.models.outputs import Outputs, Structure

H, W, P, Q, T = 40, 80, 3, 5, 2
CLASSES = ('negative', 'neutral', 'positive', 'other')


@jax.jit
def from_outputs(outputs, batch, sums):
  return metrics.Metrics.from_outputs(outputs, batch, sums)


def emotions(logits, labels, counts=None, **more):
  n = len(labels)
  counts = np.ones(n, bool) if counts is None else counts
  batch = {
      'label': np.asarray(labels, np.int32),
      'label_mask': counts,
      'mask': np.ones(n, bool),
      **more,
  }
  outputs = Outputs(jnp.asarray(logits, jnp.float32), ())
  return from_outputs(outputs, jax.tree.map(jnp.asarray, batch), {})


# --- Classification ---


@pytest.mark.parametrize(
    'classes',
    [
        {'true': (0, 1, 2, 3), 'predicted': (0, 1, 2, 3)},
        {'true': (0, 1, 3), 'predicted': (0, 1, 2, 3)},  # 2 never true
        {'true': (0, 1, 2, 3), 'predicted': (0, 1)},  # 2, 3 never predicted
        {'true': (0, 2), 'predicted': (0, 2)},  # 1, 3 neither
        {'true': (1,), 'predicted': (1,)},
    ],
)
@pytest.mark.filterwarnings('ignore:y_pred contains classes')
@pytest.mark.filterwarnings('ignore:A single label was found')
def test_classification_is_scikit_learns(classes):
  sk = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  labels = rng.choice(classes['true'], 101)
  predictions = rng.choice(classes['predicted'], 101)
  predictions = np.where(
      (rng.random(101) < 0.5) & np.isin(labels, classes['predicted']),
      labels,
      predictions,
  )
  logits = np.eye(4)[predictions] + 0.1 * rng.random((101, 4))
  results = emotions(logits, labels).compute(CLASSES)
  wanted = {
      'accuracy': sk.accuracy_score(labels, predictions),
      'macro_f1': sk.f1_score(labels, predictions, average='macro'),
      'weighted_f1': sk.f1_score(labels, predictions, average='weighted'),
      'uar': sk.balanced_accuracy_score(labels, predictions),
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(results[name], value, rtol=1e-12, err_msg=name)
  assert results['confusion'] == (
      sk.confusion_matrix(labels, predictions, labels=range(4)).tolist()
  )
  recall = sk.recall_score(
      labels, predictions, labels=range(4), average=None, zero_division=0
  )
  for i, name in enumerate(CLASSES):
    if i in classes['true']:
      np.testing.assert_allclose(results[f'recall_{name}'], recall[i])
    else:
      assert f'recall_{name}' not in results


def test_masked_examples_do_not_count():
  labels, logits = [0, 1, 2, 3], np.eye(4)[[0, 1, 1, 1]]
  counts = np.array([True, True, True, False])
  mask = np.array([True, True, False, True])
  results = emotions(logits, labels, counts, mask=mask).compute(CLASSES)
  assert results['accuracy'] == 1.0
  assert results['examples'] == 3
  assert np.sum(results['confusion']) == 2
  none = emotions(logits, labels, np.zeros(4, bool)).compute(CLASSES)
  assert none == {'examples': 4.0}
  with pytest.raises(ValueError, match='2 class names for 4'):
    emotions(logits, labels).compute(('a', 'b'))


def test_multilabel_f1_is_scikit_learns():
  sk = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(1)
  logits = 3 * rng.standard_normal((50, 4))
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  true = (rng.random((50, 4)) < 0.4).astype(np.float32)
  true[40:] = 0
  # The first ten have several labels, hence no single one.
  true[:10, :2] = 1
  counts = (np.arange(50) >= 10) & (np.arange(50) < 40)
  results = emotions(
      logits, np.zeros(50), counts, label_multi_hot=true
  ).compute(CLASSES)
  wanted = sk.f1_score(true[:40], p[:40] >= 0.25, average='macro')
  np.testing.assert_allclose(results['multilabel_f1'], wanted, rtol=1e-6)


def test_metric_names():
  assert metrics.metric('war') == 'accuracy'
  assert metrics.metric('uar') == 'uar'
  with pytest.raises(ValueError, match='weighted_f1'):
    metrics.metric('weigthed_f1')


# --- Independence of the batches ---


def make_split(n, seed=2):
  rng = np.random.default_rng(seed)
  limbs = len(skeletons.BODY_LIMBS)
  keypoints = rng.random((n, T, P, 17, 3), np.float32) * np.float32([W, H, 1])
  batch = {
      'image': np.zeros((n, T, H, W, 3), np.uint8),
      'label': rng.integers(0, 4, n, np.int32),
      'label_mask': rng.random(n) < 0.8,
      'mask': np.ones(n, bool),
      'body_keypoints': keypoints,
      'body_mask': rng.random((n, T, P)) < 0.6,
      'body_annotated': rng.random((n, T)) < 0.7,
      'body_heatmap': rng.random((n, T, 6, 8, limbs), np.float32),
  }
  outputs = {
      'logits': rng.standard_normal((n, 4), np.float32),
      'heatmap': rng.standard_normal((n, 2, T, 6, 8, limbs), np.float32),
      'limbs': rng.random((n, T, Q, limbs, 4), np.float32),
      'adjacency': rng.standard_normal((n, T, Q, limbs, limbs), np.float32),
      'presence': rng.standard_normal((n, T, Q), np.float32),
  }
  return batch, outputs


def as_outputs(arrays):
  return Outputs(
      arrays['logits'],
      (),
      body=Structure(
          jnp.moveaxis(arrays['heatmap'], 1, 0),
          arrays['limbs'],
          arrays['adjacency'],
          arrays['presence'],
      ),
  )


TERMS = losses.prepare({
    'emotion': {'fn': 'emotion_cross_entropy', 'weight': 2.0},
    'maps': {'fn': 'heatmap_mse', 'weight': 0.5, 'kwargs': {'part': 'body'}},
})


@jax.jit
def step(batch, arrays):
  outputs = as_outputs(arrays)
  loss, sums = losses.total(outputs, batch, jax.random.key(0), TERMS, 0)
  return loss, metrics.Metrics.from_outputs(outputs, batch, sums)


@functools.cache
def whole_split():
  batch, arrays = jax.tree.map(jnp.asarray, make_split(12))
  return step(batch, arrays)


def test_loss_of_one_batch_is_the_total():
  loss, whole = whole_split()
  results = whole.compute(CLASSES)
  np.testing.assert_allclose(results['loss'], loss, rtol=1e-6)
  np.testing.assert_allclose(
      results['loss'], 2 * results['emotion'] + 0.5 * results['maps'], rtol=1e-6
  )


def test_split_into_batches_and_padded():
  batch, arrays = make_split(12)
  whole = whole_split()[1].compute(CLASSES)

  def part(i):
    """Batches of five, the last one padded with arbitrary values."""
    rows = np.arange(5 * i, 5 * i + 5)
    real = rows < 12
    pick = lambda x: jnp.asarray(x[np.minimum(rows, 11)])  # noqa: E731
    part, out = jax.tree.map(pick, (batch, arrays))
    out['logits'] = jnp.where(real[:, None], out['logits'], jnp.nan)
    return {**part, 'mask': jnp.asarray(real)}, out

  parts = [step(*part(i))[1] for i in range(3)]
  merged = functools.reduce(metrics.Metrics.merge, parts)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts).reduce()
  for results in (merged.compute(CLASSES), stacked.compute(CLASSES)):
    assert results.keys() == whole.keys()
    assert results['confusion'] == whole['confusion']
    for name, value in whole.items():
      if name != 'confusion':
        np.testing.assert_allclose(
            results[name], value, rtol=1e-5, err_msg=name
        )


def test_sums_come_back_from_json_bit_for_bit():
  batch, arrays = jax.tree.map(jnp.asarray, make_split(12))
  sums = losses.total(
      as_outputs(arrays), batch, jax.random.key(0), TERMS, 0
  )[1]
  whole = jax.device_get(
      metrics.Metrics.from_outputs(
          as_outputs(arrays), batch, sums, precision=True
      )
  )
  text = json.dumps(whole.plain())
  restored = metrics.Metrics.from_plain(json.loads(text))
  assert jax.tree.structure(restored) == jax.tree.structure(whole)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(whole)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_sharded_over_devices():
  mesh = jax.make_mesh(
      (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.NamedSharding(mesh, jax.P('data'))
  whole = whole_split()[1].compute(CLASSES)
  split = jax.device_put(make_split(12), sharding)
  results = step(*split)[1].compute(CLASSES)
  assert results.pop('confusion') == whole.pop('confusion')
  for name, value in whole.items():
    np.testing.assert_allclose(results[name], value, rtol=1e-5, err_msg=name)


# --- Structure ---


def test_heatmap_error_is_of_the_last_stage_in_annotated_frames():
  batch, arrays = make_split(12)
  p = 1 / (1 + np.exp(-np.float64(arrays['heatmap'][:, -1])))
  error = ((p - batch['body_heatmap']) ** 2).mean((-3, -2, -1))
  wanted = error[batch['body_annotated']].mean()
  results = whole_split()[1].compute(CLASSES)
  np.testing.assert_allclose(results['body_heatmap_mse'], wanted, rtol=1e-5)


def scene(shift, presence, part='body', score=1.0):
  """One frame: two people, found by queries 3 and 1, `shift` pixels off."""
  topology, count = skeletons.QUERY_LIMBS[part], skeletons.NUM_POINTS[part]
  rng = np.random.default_rng(3)
  points = rng.random((2, count, 2)) * [W - 1, H - 1]
  keypoints = np.zeros((1, 1, P, count, 3), np.float32)
  keypoints[0, 0, [0, 2], :, :2] = points
  keypoints[0, 0, [0, 2], :, 2] = score
  mask = np.array([[[True, False, True]]])
  limbs = np.full((1, 1, Q, len(topology), 4), 5.0, np.float32)
  ends = ((points + shift) / [W, H])[:, topology].reshape(2, -1, 4)
  limbs[0, 0, [3, 1]] = ends
  batch = {
      'image': np.zeros((1, 1, H, W, 3), np.uint8),
      'mask': np.ones(1, bool),
      f'{part}_keypoints': keypoints,
      f'{part}_mask': mask,
      f'{part}_annotated': np.ones((1, 1), bool),
  }
  structure = Structure(
      limbs=jnp.asarray(limbs),
      adjacency_logits=jnp.zeros((1, 1, Q, len(topology), len(topology))),
      presence_logits=jnp.asarray(presence, jnp.float32)[None, None],
  )
  outputs = Outputs(None, (), **{part: structure})
  batch = jax.tree.map(jnp.asarray, batch)
  return from_outputs(outputs, batch, {}), points


@pytest.mark.parametrize('part', ['body', 'face'])
def test_keypoint_error_in_pixels(part):
  sums, points = scene([3.0, -4.0], np.zeros(Q), part)
  results = sums.compute()
  np.testing.assert_allclose(
      results[f'{part}_keypoint_error'], 5.0, rtol=1e-4
  )
  used = np.unique(skeletons.QUERY_LIMBS[part])
  sides = np.ptp(points[:, used], axis=1).max(1)
  assert (sides > 51).any()
  wanted = (0.1 * sides >= 5).mean()
  np.testing.assert_allclose(results[f'{part}_pck'], wanted)
  close, _ = scene([1.0, 0.0], np.zeros(Q), part)
  assert close.compute()[f'{part}_pck'] == 1.0
  far, _ = scene([30.0, 0.0], np.zeros(Q), part)
  assert far.compute()[f'{part}_pck'] == 0.0


def test_nobody_to_find():
  results, _ = scene([0.0, 0.0], np.zeros(Q), score=0.0)
  assert results.compute() == {'examples': 1.0}


def test_presence_precision():
  # People are at queries 3 and 1.
  best, _ = scene([0.0, 0.0], [-5, 4, -6, 5, -7])
  assert best.compute()['body_presence_ap'] == 1.0
  # Ranked 0, 3, 2, 1: hits at places 2 and 4.
  mixed, _ = scene([0.0, 0.0], [9, 1, 2, 3, -9])
  np.testing.assert_allclose(
      mixed.compute()['body_presence_ap'], (1 / 2 + 2 / 4) / 2
  )


def test_stored_sums_are_restored_bit_for_bit():
  for sums in (whole_split()[1], scene([3.0, -4.0], np.arange(float(Q)))[0]):
    stored = json.loads(json.dumps(sums.plain()))
    restored = metrics.Metrics.from_plain(stored)
    jax.tree.map(np.testing.assert_array_equal, restored, sums)
    dtypes = jax.tree.map(lambda a, b: a.dtype == b.dtype, restored, sums)
    assert all(jax.tree.leaves(dtypes))
    assert restored.compute() == sums.compute()


def histograms(scores, true):
  scores = jnp.asarray(scores, jnp.float32)
  return [
      people_metrics._histogram(scores, jnp.asarray(x)) for x in (true, ~true)
  ]


def test_average_precision_is_scikit_learns():
  sk = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(4)
  true = rng.random(3000) < 0.1
  scores = (2 * rng.standard_normal(3000) + 3 * true).astype(np.float32)
  found, empty = histograms(scores, true)
  ours = people_metrics.average_precision(found, empty, true.sum())
  np.testing.assert_allclose(
      ours, sk.average_precision_score(true, scores), atol=1e-3
  )
  # Scores in the middle of a bin lose nothing; equal ones fall together.
  middle = np.linspace(-16, 16, people_metrics.BINS)
  middle = middle[rng.integers(0, 40, 3000) * 50]
  found, empty = histograms(middle, true)
  ours = people_metrics.average_precision(found, empty, true.sum())
  np.testing.assert_allclose(
      ours, sk.average_precision_score(true, middle), rtol=1e-6
  )
  # People that no query stands for lower the recall.
  missed = people_metrics.average_precision(found, empty, 2 * true.sum())
  np.testing.assert_allclose(missed, ours / 2)
