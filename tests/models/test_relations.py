"""Relations between people: who counts, in which order, seen from where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vemd_jax import skeletons
from vemd_jax.models import relations

RNG = np.random.default_rng(0)


def limbs_of(keypoints, part='body'):
  """[N, Q, K, 2] -> [N, Q, L, 4]."""
  topology = skeletons.QUERY_LIMBS[part]
  return keypoints[:, :, topology].reshape(
      *keypoints.shape[:2], len(topology), 4
  )


def scenes(part='body', people=4):
  """Key points 0..1 of three frames, presence, and a feature grid."""
  count = skeletons.NUM_POINTS[part]
  places = RNG.uniform(0.2, 0.8, (3, people, 1, 2))
  keypoints = places + RNG.uniform(-0.1, 0.1, (3, people, count, 2))
  presence = RNG.uniform(-2, 4, (3, people))
  features = RNG.normal(size=(3, 6, 8, 5))
  return (x.astype(np.float32) for x in (keypoints, presence, features))


def reader(part, *example):
  """`relations` of random weights, as a function of its inputs."""
  module = relations.PeopleRelations(part, 8)
  variables = module.init(jax.random.key(0), *example, train=False)
  # Biases off 0, so that a hidden part that is empty would be noticed.
  variables = jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
      variables,
  )
  return jax.jit(lambda *inputs: module.apply(variables, *inputs, train=False))


@pytest.mark.parametrize('part', ['body', 'face'])
def test_the_order_of_people_tells_nothing(part):
  keypoints, presence, features = scenes(part)
  limbs = limbs_of(keypoints, part)
  read = reader(part, limbs, presence, features)
  order = [2, 0, 3, 1]
  np.testing.assert_allclose(
      read(limbs[:, order], presence[:, order], features),
      read(limbs, presence, features),
      rtol=1e-4, atol=1e-5,
  )  # fmt: skip


def test_who_is_absent_changes_nothing():
  keypoints, presence, features = scenes()
  limbs = limbs_of(keypoints)
  read = reader('body', limbs, presence, features)
  presence[:, 1] = -60.0
  with_absent = read(limbs, presence, features)
  moved = limbs.copy()
  moved[:, 1] = 0.3
  np.testing.assert_allclose(
      read(moved, presence, features), with_absent, rtol=1e-5, atol=1e-6
  )
  others = [0, 2, 3]
  np.testing.assert_allclose(
      read(limbs[:, others], presence[:, others], features), with_absent,
      rtol=1e-4, atol=1e-5,
  )  # fmt: skip
  # Who is there does change it.
  presence[:, 1] = 4.0
  present = read(limbs, presence, features)
  assert np.abs(present - with_absent).max() > 1e-3
  assert np.abs(read(moved, presence, features) - present).max() > 1e-3


@pytest.mark.parametrize('part', ['body', 'face'])
def test_a_mirrored_frame_reads_the_same(part):
  keypoints, presence, _ = scenes(part)
  read = reader(part, limbs_of(keypoints, part), presence, None)
  mirrored = keypoints[:, :, skeletons.FLIPS[part]] * [-1, 1] + [1, 0]
  before = read(limbs_of(keypoints, part), presence, None)
  np.testing.assert_allclose(
      read(limbs_of(mirrored.astype(np.float32), part), presence, None),
      before, rtol=1e-3, atol=1e-4,
  )  # fmt: skip
  # Turned on the spot instead, people no longer face whom they faced.
  middle = keypoints.mean(2, keepdims=True)
  turned = (keypoints - middle)[:, :, skeletons.FLIPS[part]] * [-1, 1] + middle
  after = read(limbs_of(turned.astype(np.float32), part), presence, None)
  assert np.abs(after - before).max() > 1e-2


def test_relations_depend_on_offset_and_distance_not_on_the_place():
  keypoints, presence, _ = scenes(people=2)
  read = reader('body', limbs_of(keypoints), presence, None)
  before = read(limbs_of(keypoints), presence, None)
  np.testing.assert_allclose(
      read(limbs_of(keypoints + np.float32(0.1)), presence, None), before,
      rtol=1e-3, atol=1e-4,
  )  # fmt: skip
  apart = keypoints.copy()
  apart[:, 1] += np.float32([0.3, 0.0])
  assert np.abs(read(limbs_of(apart), presence, None) - before).max() > 1e-2


def test_without_presence_all_are_people_and_one_alone_is_finite():
  keypoints, _, features = scenes()
  limbs = limbs_of(keypoints)
  read = reader('body', limbs, None, features)
  sure = np.full(limbs.shape[:2], 80.0, np.float32)
  np.testing.assert_allclose(
      read(limbs, None, features), read(limbs, sure, features), rtol=1e-5
  )
  alone = np.asarray(read(limbs[:, :1], None, features))
  assert alone.shape == (3, 16) and np.isfinite(alone).all()


def test_samples_are_bilinear():
  grid = RNG.normal(size=(2, 5, 7, 3)).astype(np.float32)
  points = RNG.uniform(-0.1, 1.1, (2, 6, 2)).astype(np.float32)
  sampled = relations.sample(jnp.asarray(grid), jnp.asarray(points))
  for n in range(2):
    for c in range(3):
      x, y = points[n].T * [[7], [5]] - 0.5
      expected = scipy.ndimage.map_coordinates(
          grid[n, :, :, c], [y, x], order=1, mode='nearest'
      )
      np.testing.assert_allclose(
          sampled[n, :, c], expected, rtol=1e-4, atol=1e-5
      )


def test_maps_are_read_limb_by_limb_with_who_stands_beside():
  module = relations.MapRelations('body', 8)
  maps = np.zeros((3, 15, 21, 4), np.float32)
  maps[:, 7, 6, 0] = 1
  maps[0, 7, 9, 1] = 1
  maps[1, 7, 13, 1] = 1  # Further away.
  maps[2, 7, 9, 2] = 1  # Another limb.
  variables = module.init(jax.random.key(0), maps, train=False)
  out = module.apply(variables, maps, train=False)
  assert out.shape == (3, 16)
  assert np.abs(out[0] - out[1]).max() > 1e-3
  assert np.abs(out[0] - out[2]).max() > 1e-3
  # The sum over limbs is the same in 0 and 2, the sums over places in 0 and 1.
