"""Resizing on the device equals OpenCV's, bit for bit."""

import jax
import numpy as np
import pytest

from vemd_jax.artifact import preprocess
from vemd_jax.data import geometry, transforms

SIDE = 24


@pytest.fixture(scope='module')
def resize():
  """The function for any size, exported once."""
  shape = (1, *jax.export.symbolic_shape('h, w'), 3)
  exported = jax.export.export(
      jax.jit(lambda image: preprocess.resize(image, SIDE))
  )(jax.ShapeDtypeStruct(shape, np.uint8))
  return exported.call


@pytest.mark.parametrize(
    'size',
    [(24, 24), (12, 17), (25, 90), (48, 48), (48, 30), (30, 48), (1, 1),
     (3, 500), (101, 205), (96, 191)],
)  # fmt: skip
def test_pixels_equal_those_of_evaluation(resize, size):
  rng = np.random.default_rng(sum(size))
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  wanted, _ = geometry.resize_crop(image, (0, 0, size[1], size[0]), SIDE)
  np.testing.assert_array_equal(resize(image[None])[0], wanted)


def test_grey_equals_that_of_evaluation():
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  np.testing.assert_array_equal(
      preprocess.grayscale(image), transforms.grayscale(image)
  )
