"""Object keypoint similarity against COCO's formula, written as loops."""

import math

import numpy as np

from vemd_jax import skeletons
from vemd_jax.data import oks


def _people(rng, number):
  points = rng.uniform(0, 200, (number, 17, 3))
  points[..., 2] = rng.integers(0, 3, (number, 17))
  return points


def test_equals_a_loop_over_pairs_and_joints():
  rng = np.random.default_rng(0)
  truth = _people(rng, 3)
  found = np.concatenate([truth, _people(rng, 1)])
  found[..., :2] += rng.normal(0, 8, (4, 17, 2))
  area = np.array([500.0, 4000.0, 90000.0])
  # The constants in tenths, as in pycocotools.
  sigmas = [.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07,
            .87, .87, .89, .89]  # fmt: skip
  want = np.zeros((4, 3))
  for n in range(4):
    for m in range(3):
      terms = []
      for k in range(17):
        if truth[m, k, 2] > 0:
          dx, dy = found[n, k, :2] - truth[m, k, :2]
          variance = (2 * sigmas[k] / 10) ** 2
          terms.append(math.exp(-(dx**2 + dy**2) / variance / area[m] / 2))
      want[n, m] = sum(terms) / len(terms)
  got = oks.object_keypoint_similarity(found, truth, area)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(
      oks.best_match(found, truth, area), want.max(0), rtol=1e-5
  )


def test_identical_people_are_1_and_scores_do_not_matter():
  truth = _people(np.random.default_rng(1), 2)
  truth[..., 2] = 2
  found = truth * np.array([1, 1, 0])
  similarity = oks.object_keypoint_similarity(
      found, truth, np.array([1e3, 1e3])
  )
  np.testing.assert_allclose(np.diag(similarity), 1)
  assert similarity[0, 1] < 0.1


def test_nobody_found_and_nothing_labelled():
  truth = _people(np.random.default_rng(2), 2)
  truth[1, :, 2] = 0
  area = np.array([100.0, 100.0])
  np.testing.assert_array_equal(
      oks.best_match(np.zeros((0, 17, 3)), truth, area), [0, 0]
  )
  assert oks.best_match(truth, truth, area).tolist() == [1, 0]


def test_sigmas_are_symmetric():
  flipped = skeletons.BODY_SIGMAS[skeletons.BODY_FLIP]
  np.testing.assert_array_equal(flipped, skeletons.BODY_SIGMAS)
