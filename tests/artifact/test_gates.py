"""Counting people in decoded structure, against drawn scenes and SciPy."""

import numpy as np
import pytest
from scipy import ndimage

from vemd_jax.artifact import gates
from vemd_jax.data import transforms
from vemd_jax.models.outputs import Outputs, Structure
from vemd_jax.scenes.group_scenes import GroupScenes

SIDE, MAP = 112, 28


def scene_maps(people, count=6):
  """True heatmaps of scenes with a number of people: part -> [n, h, w, L]."""
  source = GroupScenes(
      'gates', count, cue='expression', size=SIDE, people=(people, people)
  )
  transform = transforms.Transform(
      image_size=SIDE, heatmap_size=MAP, sigma=0.6, nobody=True
  )
  samples = [transform(source[i]) for i in range(count)]
  return {
      part: np.stack([s[f'{part}_heatmap'] for s in samples])[:, 0]
      for part in ('body', 'face')
  }


def decoded(maps):
  """Outputs of a model that decodes these heatmaps perfectly."""
  parts = {}
  for part, values in maps.items():
    values = np.clip(values, 1e-4, 1 - 1e-4)
    logits = np.log(values / (1 - values)).astype(np.float32)
    parts[part] = Structure(heatmap_logits=logits[None, :, None])
  return Outputs(None, (), **parts)


def test_one_person_is_one_and_a_group_is_more():
  count, share = gates.people(decoded(scene_maps(1)))
  np.testing.assert_array_equal(count[:, 0], 1)
  np.testing.assert_array_equal(share[:, 0], 1)
  count, share = gates.people(decoded(scene_maps(6)))
  # Never too many; people who overlap may count as one.
  assert (np.asarray(count) <= 6).all() and (np.asarray(count) >= 3).all()
  assert (np.asarray(share) < 0.6).all()


def test_nobody():
  nobody = {'body': np.zeros((2, 8, 8, 3)), 'face': np.zeros((2, 8, 8, 5))}
  count, share = gates.people(decoded(nobody))
  np.testing.assert_array_equal(count, 0)
  np.testing.assert_array_equal(share, 1)


def test_regions_are_those_of_scipy():
  rng = np.random.default_rng(0)
  mask = rng.random((3, 15, 13, 4)) < 0.45
  spiral = np.zeros((15, 13), bool)
  spiral[1, 1:12] = spiral[1:14, 11] = spiral[13, 3:12] = True
  spiral[4:14, 3] = spiral[4, 3:9] = spiral[4:10, 8] = True
  mask[0, ..., 0] = spiral
  label = np.asarray(gates.components(mask))
  for i in range(3):
    for limb in range(4):
      inside = mask[i, ..., limb]
      wanted, count = ndimage.label(inside, np.ones((3, 3)))
      pairs = {*zip(wanted[inside], label[i, ..., limb][inside])}
      assert len(pairs) == count == len({b for _, b in pairs})


@pytest.mark.parametrize(
    ('presence', 'count', 'share'),
    [((4, 4, -4), 2, 0.8), ((-4, 4, -4), 1, 1), ((-4, -4, -4), 0, 1)],
)
def test_queries(presence, count, share):
  limbs = np.zeros((1, 1, 3, 2, 4), np.float32)
  # Boxes of 0.4 x 0.4 and 0.2 x 0.2.
  limbs[0, 0, 0] = [(0.1, 0.1, 0.5, 0.2), (0.2, 0.5, 0.3, 0.3)]
  limbs[0, 0, 1] = [(0.7, 0.7, 0.9, 0.9), (0.8, 0.8, 0.8, 0.8)]
  body = Structure(
      limbs=limbs, presence_logits=np.array([[presence]], np.float32)
  )
  found = gates.people(Outputs(None, (), body=body))
  np.testing.assert_allclose(np.ravel(found), (count, share), rtol=1e-5)
