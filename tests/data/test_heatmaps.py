"""Limb heatmaps against values of the reference and a plain loop."""

import json
import pathlib

import jax
import numpy as np
import pytest

from vemd_jax import skeletons
from vemd_jax.data import heatmaps

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_LIMBS = skeletons.HEATMAP_LIMBS


def _keypoints(xy: np.ndarray) -> np.ndarray:
  """Adds scores: the golden files mark missing points by -1."""
  inside = ((xy > 0) & (xy < 224)).all(-1)
  return np.concatenate([xy, inside[..., None]], -1).astype(np.float32)


def _both(*args, **kwargs):
  """Renders in NumPy and JAX, checks that both agree, returns the former."""
  host = heatmaps.render(*args, **kwargs)
  limbs = args[2]
  device = jax.jit(
      lambda k, m: heatmaps.render_jax(k, m, limbs, **kwargs)
  )(*args[:2])
  assert host.dtype == np.float32 and device.dtype == np.float32
  np.testing.assert_allclose(host, device, atol=1e-5, rtol=0)
  return host


def _random_people(rng, shape, part, size=(224, 224)):
  """People of random size and position, some points missing or outside."""
  joints = skeletons.NUM_POINTS[part]
  centre = rng.uniform(0, size[::-1], (*shape, 1, 2))
  spread = rng.uniform(1, 80, (*shape, 1, 1))
  xy = centre + spread * rng.standard_normal((*shape, joints, 2))
  score = rng.uniform(0, 1, (*shape, joints, 1))
  return np.concatenate([xy, score], -1).astype(np.float32)


def _loop(keypoints, mask, limbs, image_size, heatmap_size, sigma):
  """One image by the paper's formula, in float64."""
  height, width = heatmap_size
  y, x = np.mgrid[:height, :width].astype(np.float64)
  scale = np.array([width / image_size[1], height / image_size[0]])
  result = np.zeros((height, width, len(limbs)))
  for person, real in zip(keypoints.astype(np.float64), mask):
    for channel, (i, j) in enumerate(limbs):
      ends = person[[i, j]]
      outside = (ends[:, :2] < 0) | (ends[:, :2] >= image_size[::-1])
      if not real or (ends[:, 2] < 0.1).any() or outside.any():
        continue
      a, b = ends[:, :2] * scale
      length = np.linalg.norm(b - a)
      t = 0 * x
      if length >= 1e-3:
        t = (x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]
        t = np.clip(t / length**2, 0, 1)
      dx, dy = x - a[0] - t * (b - a)[0], y - a[1] - t * (b - a)[1]
      result[..., channel] += np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
  return np.minimum(result, 1)


@pytest.mark.parametrize(
    'name, points, part',
    [
        ('c08_heatmap_face_sigma1', 'keypoints_xy', 'face'),
        ('c08_heatmap_person_sigma2', 'keypoints_yx', 'body'),
    ],
)
def test_golden(name, points, part):
  golden = np.load(_GOLDEN / f'{name}.npz')
  config = json.loads(str(golden['config']))
  np.testing.assert_array_equal(_LIMBS[part], config['limbs'])
  xy = golden[points]
  if points.endswith('yx'):
    xy = xy[..., ::-1]
  result = _both(
      _keypoints(xy),
      np.ones(len(xy), bool),
      _LIMBS[part],
      image_size=(224, 224),
      heatmap_size=(56, 56),
      sigma=float(config['sigma']),
  )
  # The copy keeps every n-th limb only.
  (step,) = config['cut']['heatmap']
  expected = golden['heatmap'].transpose(1, 2, 0)
  np.testing.assert_allclose(
      result[..., ::step], expected, atol=1e-5, rtol=0
  )


def test_golden_of_another_shape():
  golden = np.load(_GOLDEN / 'c08_helpers.npz')['person_20x28_sigma1.5']
  people = np.load(_GOLDEN / 'c08_heatmap_person_sigma2.npz')['keypoints_yx']
  result = _both(
      _keypoints(people[..., ::-1]),
      np.ones(len(people), bool),
      _LIMBS['body'],
      image_size=(224, 224),
      heatmap_size=(20, 28),
      sigma=1.5,
  )
  np.testing.assert_allclose(
      result, golden.transpose(1, 2, 0), atol=1e-5, rtol=0
  )


def test_peak_is_where_the_joint_is():
  # A shift by half a pixel would reduce the peak by 12 %.
  keypoints = np.zeros((1, 17, 3), np.float32)
  keypoints[0, [5, 7]] = 80, 44, 1
  result = _both(
      keypoints,
      np.ones(1, bool),
      _LIMBS['body'],
      image_size=(224, 224),
      heatmap_size=(56, 56),
  )
  limb = _LIMBS['body'].tolist().index([5, 7])
  y, x = np.mgrid[:56, :56]
  expected = np.exp(-((x - 20.0) ** 2 + (y - 11.0) ** 2) / 2)
  np.testing.assert_allclose(result[..., limb], expected, atol=2e-6)
  assert result[11, 20, limb] == 1
  assert not np.delete(result, limb, -1).any()


@pytest.mark.parametrize('part', ['body', 'face'])
@pytest.mark.parametrize(
    'image_size, heatmap_size, sigma',
    [((224, 224), (56, 56), 1.0), ((150, 300), (24, 40), 0.7),
     ((224, 224), (56, 56), 3.0), ((64, 64), (8, 8), 1.0)],
)  # fmt: skip
def test_equals_a_loop(part, image_size, heatmap_size, sigma):
  rng = np.random.default_rng(0)
  keypoints = _random_people(rng, (6,), part, image_size)
  mask = np.array([True, True, False, True, True, False])
  # Joints so close that the limb is a point, and identical joints.
  keypoints[0, :8, :2] = keypoints[0, :1, :2] + np.float32(1e-5)
  keypoints[0, :8, 2] = 1
  result = _both(
      keypoints,
      mask,
      _LIMBS[part],
      image_size=image_size,
      heatmap_size=heatmap_size,
      sigma=sigma,
  )
  expected = _loop(
      keypoints, mask, _LIMBS[part], image_size, heatmap_size, sigma
  )
  assert expected.max() > 0.5
  np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


def test_leading_dimensions_and_vmap():
  rng = np.random.default_rng(1)
  size = dict(image_size=(224, 224), heatmap_size=(28, 28))
  keypoints = _random_people(rng, (2, 2, 3), 'body')
  mask = rng.random((2, 2, 3)) < 0.7
  result = _both(keypoints, mask, _LIMBS['body'], **size)
  assert result.shape == (2, 2, 28, 28, 18)
  for i in range(2):
    for t in range(2):
      alone = (keypoints[i, t], mask[i, t], _LIMBS['body'])
      alone = heatmaps.render(*alone, **size)
      np.testing.assert_allclose(result[i, t], alone, atol=1e-6)
  mapped = jax.vmap(
      lambda k, m: heatmaps.render_jax(k, m, _LIMBS['body'], **size)
  )(keypoints, mask)
  np.testing.assert_allclose(mapped, result, atol=1e-5)


def test_people_add_up_and_are_clipped():
  rng = np.random.default_rng(2)
  size = dict(image_size=(224, 224), heatmap_size=(56, 56))
  keypoints = _random_people(rng, (5,), 'body')
  everybody = np.ones(5, bool)
  together = _both(keypoints, everybody, _LIMBS['body'], **size)
  alone = [
      heatmaps.render(k[None], everybody[:1], _LIMBS['body'], **size)
      for k in keypoints
  ]
  np.testing.assert_allclose(together, np.minimum(sum(alone), 1), atol=1e-5)
  order = rng.permutation(5)
  np.testing.assert_allclose(
      heatmaps.render(keypoints[order], everybody, _LIMBS['body'], **size),
      together,
      atol=1e-6,
  )
  assert together.max() == 1 and (np.array(sum(alone)) > 1).any()


def test_nobody():
  result = _both(
      np.zeros((2, 0, 17, 3), np.float32),
      np.zeros((2, 0), bool),
      _LIMBS['body'],
      image_size=(32, 32),
      heatmap_size=(8, 8),
  )
  assert result.shape == (2, 8, 8, 18) and not result.any()


def test_missing_points_may_be_anything():
  keypoints = _random_people(np.random.default_rng(3), (4,), 'body')
  mask = np.array([True, True, True, False])
  size = dict(image_size=(224, 224), heatmap_size=(56, 56))
  keypoints[:, :5, 2] = 0
  expected = _both(keypoints, mask, _LIMBS['body'], **size)
  keypoints[:3, :5, :2] = np.nan
  keypoints[3] = np.inf
  result = _both(keypoints, mask, _LIMBS['body'], **size)
  np.testing.assert_array_equal(result, expected)
