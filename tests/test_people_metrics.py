"""Metrics of decoded people, against COCO's and 300-W's rules in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vemd_jax import people_metrics, skeletons
from vemd_jax.models.outputs import Structure

H, W, P, Q = 200, 240, 4, 6
TOPOLOGY = skeletons.BODY_LIMBS


@pytest.fixture(scope='module')
def frames():
  """Twelve frames: people of all sizes, queries near some of them."""
  rng = np.random.default_rng(1)
  n = 12
  size = rng.choice([20.0, 60.0, 170.0], (n, P, 1, 1))
  low = rng.uniform(0, 1, (n, P, 1, 2)) * ([W - 1, H - 1] - size)
  points = low + size * rng.random((n, P, 17, 2))
  score = (rng.random((n, P, 17)) < 0.8) * 1.0
  mask = rng.random((n, P)) < 0.8
  bodies = np.concatenate([points, score[..., None]], -1).astype(np.float32)
  found = points[:, rng.integers(0, P, Q)]
  spread = 0.05 * rng.choice([0.2, 1.0, 3.0], (n, Q, 1, 1))
  found = found + spread * 60 * rng.standard_normal(found.shape)
  # In the middle of bins, so that they lose nothing.
  middle = np.linspace(-16, 16, people_metrics.BINS)
  presence = middle[rng.permutation(people_metrics.BINS)[: n * Q]]
  return bodies, mask, found, presence.reshape(n, Q).astype(np.float32)


def measured(frames, part='body', precision=True):
  keypoints, mask, found, presence = frames
  topology = skeletons.QUERY_LIMBS[part]
  n = len(mask)
  limbs = (found / [W, H])[:, :, topology].reshape(n, 1, Q, -1, 4)
  structure = Structure(
      limbs=jnp.asarray(limbs, jnp.float32),
      presence_logits=jnp.asarray(presence)[:, None],
  )
  batch = {
      'image': jnp.zeros((n, 1, H, W, 3), jnp.uint8),
      f'{part}_keypoints': jnp.asarray(keypoints)[:, None],
      f'{part}_mask': jnp.asarray(mask)[:, None],
  }
  counted = np.ones((n, 1), bool)
  counted[-1] = False

  @jax.jit
  def sums(structure, batch):
    return people_metrics.measure(
        structure, batch, part, jnp.asarray(counted), precision=precision
    )

  return jax.device_get(sums(structure, batch)).compute()


def coco(frames, low, high):
  """pycocotools' evaluateImg and accumulate, in plain loops."""
  sigmas = np.float64(skeletons.BODY_SIGMAS)
  people, rows = 0, {t: [] for t in range(10)}
  for body, there, queries, scores in list(zip(*frames))[:-1]:
    there = there & (body[..., 2] > 0).any(1)
    truth = []
    for person in body[there].astype(np.float64):
      seen = person[:, 2] > 0
      side = np.ptp(person[seen, :2], axis=0)
      area = 0.53 * side.prod()
      truth.append((person, seen, area, not low <= area < high))
    # Those that count come first.
    truth.sort(key=lambda t: t[3])
    people += sum(not t[3] for t in truth)
    order = np.argsort(-scores, kind='mergesort')
    for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
      taken = [False] * len(truth)
      for q in order:
        best, match = min(threshold, 1 - 1e-10), -1
        for g, (person, seen, area, ignored) in enumerate(truth):
          if taken[g]:
            continue
          if match > -1 and not truth[match][3] and ignored:
            break
          d2 = ((queries[q] - person[:, :2]) ** 2).sum(1)
          e = d2 / (2 * sigmas) ** 2 / max(area, 1.0) / 2
          oks = np.exp(-e)[seen].mean()
          if oks < best:
            continue
          best, match = oks, g
        if match > -1:
          taken[match] = True
          if not truth[match][3]:
            rows[t].append((scores[q], True))
        elif low <= np.ptp(queries[q], axis=0).prod() < high:
          rows[t].append((scores[q], False))
  values = []
  for found_ in rows.values():
    hits = np.array([hit for _, hit in sorted(found_, reverse=True)], float)
    recall = hits.cumsum() / people
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    for i in range(len(precision) - 1, 0, -1):
      precision[i - 1] = max(precision[i], precision[i - 1])
    index = np.searchsorted(recall, np.linspace(0, 1, 101), side='left')
    values.append(
        np.mean([precision[i] if i < len(precision) else 0 for i in index])
    )
  return np.mean(values)


def test_average_precision_is_cocos_in_all_and_by_size(frames):
  results = measured(frames)
  for size, (low, high) in people_metrics.SIZES.items():
    name = 'oks_ap' if size == 'all' else f'oks_ap_{size}'
    wanted = coco(frames, low, high)
    assert 0.02 < wanted < 0.98
    np.testing.assert_allclose(results[name], wanted, atol=1e-3, err_msg=name)
  assert 'oks_ap' not in measured(frames, precision=False)


def test_pck_by_size(frames):
  bodies, mask, _, presence = frames
  # Everybody is found; every joint of the small is off by 5 pixels.
  found = np.full((len(mask), Q, 17, 2), -500.0)
  found[:, :P] = bodies[..., :2]
  area = []
  for n in range(len(mask)):
    for p in range(P):
      side = np.ptp(bodies[n, p, bodies[n, p, :, 2] > 0, :2], axis=0)
      area.append(0.53 * side.prod())
  small = np.array(area).reshape(len(mask), P) < 32**2
  found[:, :P][small] += [3.0, 4.0]
  results = measured((bodies, mask, found, presence))
  assert results['pck_small'] == 0.0
  assert results['pck_medium'] == results['pck_large'] == 1.0
  joints = (bodies[..., 2] > 0).sum(-1) * mask
  share = joints[:-1][~small[:-1]].sum() / joints[:-1].sum()
  np.testing.assert_allclose(results['pck'], share, rtol=1e-5)


def test_landmark_error_is_over_the_distance_of_the_eyes():
  rng = np.random.default_rng(2)
  points = rng.uniform(20, 180, (2, P, 68, 2))
  faces = np.concatenate([points, np.ones((2, P, 68, 1))], -1)
  faces[0, 1, 36, 2] = 0  # An eye is hidden: the face has no measure.
  mask = np.array([[True, True, True, False]] * 2)
  found = np.full((2, Q, 68, 2), 500.0)
  found[:, :P] = points + [6.0, 8.0]
  presence = np.zeros((2, Q), np.float32)
  results = measured((faces.astype(np.float32), mask, found, presence), 'face')
  # The last frame does not count.
  eyes = np.linalg.norm(points[0, :, 36] - points[0, :, 45], axis=-1)
  wanted = (10 / eyes[[0, 2]]).mean()
  np.testing.assert_allclose(results['nme'], wanted, rtol=1e-4)
