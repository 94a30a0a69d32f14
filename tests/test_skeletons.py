"""Joint names, limbs and flips against drawn figures."""

import numpy as np
import pytest

from vemd_jax import skeletons


def _ibug_face() -> np.ndarray:
  """A drawn iBUG-68 face, mirror symmetric about x = 0: [68, 2]."""
  jaw = np.linspace(-1, 1, 17)
  points = [(x, 2 - x * x) for x in jaw]
  brow = np.linspace(0.15, 0.85, 5)
  points += [(-x, -0.5) for x in brow[::-1]] + [(x, -0.5) for x in brow]
  points += [(0, y) for y in (-0.3, -0.1, 0.1, 0.3)]
  points += [(x, 0.45) for x in (-0.2, -0.1, 0, 0.1, 0.2)]
  eye = [(-0.2, 0), (-0.07, -0.1), (0.07, -0.1), (0.2, 0), (0.07, 0.1),
         (-0.07, 0.1)]  # fmt: skip
  points += [(x - 0.45, y - 0.25) for x, y in eye]
  points += [(x + 0.45, y - 0.25) for x, y in eye]
  outer = [(-0.5, 0.9), (-0.3, 0.8), (-0.1, 0.75), (0, 0.78), (0.1, 0.75),
           (0.3, 0.8), (0.5, 0.9), (0.3, 1.05), (0.1, 1.1), (0, 1.12),
           (-0.1, 1.1), (-0.3, 1.05)]  # fmt: skip
  inner = [(-0.4, 0.9), (-0.1, 0.85), (0, 0.86), (0.1, 0.85), (0.4, 0.9),
           (0.1, 0.97), (0, 0.98), (-0.1, 0.97)]  # fmt: skip
  return np.array(points + outer + inner)


def test_face_flip_mirrors_a_symmetric_face():
  face = _ibug_face()
  mirrored = face * [-1, 1]
  np.testing.assert_allclose(mirrored[skeletons.FACE_FLIP], face, atol=1e-12)


def test_body_flip_swaps_names():
  for i, name in enumerate(skeletons.BODY_JOINTS):
    other = skeletons.BODY_JOINTS[skeletons.BODY_FLIP[i]]
    swapped = name.replace('left', 'LEFT').replace('right', 'left')
    assert other == swapped.replace('LEFT', 'right')


@pytest.mark.parametrize('part', ['body', 'face'])
def test_flip_is_an_involution_and_keeps_the_limbs(part):
  flip = skeletons.FLIPS[part]
  np.testing.assert_array_equal(flip[flip], np.arange(len(flip)))
  assert len(flip) == skeletons.NUM_POINTS[part]
  # A mirrored skeleton has the same limbs. The reference's 20 face limbs have
  # not: it joins lids and lips slantwise, 37-40 on one side, 43-46 on the
  # other.
  limbs = skeletons.HEATMAP_LIMBS[part][20 if part == 'face' else 0 :]
  pairs = {tuple(sorted(pair)) for pair in limbs.tolist()}
  mirrored = {tuple(sorted(pair)) for pair in flip[limbs].tolist()}
  assert pairs == mirrored


def test_numbers_of_limbs():
  assert len(skeletons.BODY_LIMBS) == 18
  assert len(skeletons.FACE_QUERY_LIMBS) == 20
  assert len(skeletons.FACE_LIMBS) == 83
  distinct = {tuple(pair) for pair in skeletons.FACE_LIMBS.tolist()}
  assert len(distinct) == 73
  assert skeletons.FACE_LIMBS.min() == 0 and skeletons.FACE_LIMBS.max() == 67


def test_shared_joint():
  shared = skeletons.shared_joint(skeletons.BODY_LIMBS)
  limbs = skeletons.BODY_LIMBS.tolist()
  for i, a in enumerate(limbs):
    for j, b in enumerate(limbs):
      assert shared[i, j] == (i != j and bool(set(a) & set(b)))


def test_limb_visible_needs_both_ends_inside():
  points = np.zeros((4, 3), np.float32)
  points[0] = 5, 5, 1
  points[1] = 9, 9, skeletons.MIN_SCORE
  points[2] = 10, 5, 1
  points[3] = 5, 5, skeletons.MIN_SCORE - 0.01
  limbs = np.array([(0, 1), (0, 2), (0, 3)])
  visible = skeletons.limb_visible(points, limbs, height=10, width=10)
  np.testing.assert_array_equal(visible, [True, False, False])
  visible = skeletons.limb_visible(points, limbs, height=10, width=11)
  np.testing.assert_array_equal(visible, [True, True, False])
