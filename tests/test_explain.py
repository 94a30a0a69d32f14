"""Occlusion of probabilities that depend on known regions."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vemd_jax import explain
from vemd_jax.inference import Model

SIDE = 48


def brightness_of(where):
  """Probability that is the mean brightness of a region, 0..1."""

  def probability(clips):
    return clips[:, 0][(slice(None), *where)].mean((1, 2, 3)) / 255

  return probability


def white_square():
  clip = np.zeros((2, SIDE, SIDE, 3), np.uint8)
  clip[:, 6:18, 30:42] = 255
  return clip


def test_occlusion_finds_the_region():
  region = np.s_[6:18, 30:42]
  calls = []
  fall = explain.occlusion(
      brightness_of(region), white_square(), 1 / 6, 7, calls.append
  )
  assert fall.shape == (SIDE, SIDE) and sum(calls) == 11**2
  inside = np.zeros((SIDE, SIDE), bool)
  inside[region] = True
  assert fall[inside].min() > 0
  # Windows of 8 pixels that touch the region reach 7 pixels beyond it.
  far = np.ones((SIDE, SIDE), bool)
  far[0:26, 22:50] = False
  assert np.abs(fall[far]).max() < 1e-6
  # Four windows cover this pixel; along each axis they cover 6 and 8 pixels of
  # the region, which go from white to the mean colour.
  mean = round(255 * 144 / SIDE**2) / 255
  assert fall[10, 34] == pytest.approx(7 * 7 / 144 * (1 - mean), rel=1e-4)
  # A probability that darkness raises falls below zero there.
  dark = explain.occlusion(
      lambda x: 1 - brightness_of(region)(x), white_square()
  )
  np.testing.assert_allclose(dark, -fall, atol=1e-5)


@pytest.mark.parametrize('size, window', [(48, 1 / 6), (50, 0.3), (7, 0.01),
                                          (20, 1.0)])  # fmt: skip
def test_windows_cover_everything(size, window):
  corners, side = explain.windows(size, window)
  covered = np.zeros(size, int)
  for corner in corners:
    assert 0 <= corner <= size - side
    covered[corner : corner + side] += 1
  assert covered.min() >= 1 and corners[0] == 0


def make_model(**pictures):
  probability = brightness_of(np.s_[6:18, 30:42])

  def both(clips):
    value = probability(np.asarray(clips))
    return np.stack([1 - value, value], 1)

  def prepare(images):
    import cv2

    return np.stack([cv2.resize(i, (SIDE, SIDE)) for i in images])

  return Model(
      config=ConfigDict({'pictures': pictures} if pictures else {}),
      classes=('calm', 'glad'), frames=2, prepare=prepare,
      probabilities=both, outputs=None, decodes=False,
  )  # fmt: skip


@pytest.fixture
def photo(tmp_path):
  image = np.kron(white_square()[0], np.ones((4, 6, 1), np.uint8))
  path = tmp_path / 'photo.png'
  Image.fromarray(image).save(path)
  return path


def run(photo, tmp_path, *more, **pictures):
  return explain.main(
      ['W', str(photo), *more, f'--out={tmp_path / "out"}'],
      load=lambda workdir, dataset: make_model(**pictures),
  )


def test_the_program(photo, tmp_path, capsys):
  broken = tmp_path / 'broken.jpg'
  broken.write_bytes(b'nothing')
  assert run(photo, tmp_path, str(broken)) == 1
  printed = capsys.readouterr()
  first, last = printed.out.splitlines()
  assert 'glad 1.00; with a region occluded 0.6' in first
  assert 'nothing about any single person' in last
  assert str(broken) in printed.err and printed.err.count('\n') == 1
  with Image.open(tmp_path / 'out' / 'photo_explained.jpg') as picture:
    array = np.asarray(picture).astype(int)
  assert array.shape[1] == 2 * 480  # Enlarged from 6 * SIDE to that.
  # Orange over the white square, in the right half.
  left, x, y = 480, 480 / SIDE, 320 / SIDE

  def part(array, top, bottom, first, last):
    return array[
        round(y * top) : round(y * bottom),
        left + round(x * first) : left + round(x * last),
    ]

  inside = part(array, 10, 14, 34, 38)
  assert (inside[..., 0] - inside[..., 2]).mean() > 80
  grey = part(array, 30, 44, 0, 20)
  assert np.abs(grey[..., 0] - grey[..., 2]).max() < 12

  # Of the other class the same region speaks against.
  assert run(photo, tmp_path, '--label=calm') == 0
  with Image.open(tmp_path / 'out' / 'photo_explained.jpg') as picture:
    inside = part(np.asarray(picture).astype(int), 10, 14, 34, 38)
  assert (inside[..., 2] - inside[..., 0]).mean() > 80


@pytest.mark.parametrize('more, pictures, message', [
    (['--label=sad'], {}, "--label is 'sad', expected one of calm, glad"),
    ([], {'people': 'off'}, 'config.pictures.people of this run is off'),
])  # fmt: skip
def test_errors_are_one_line(photo, tmp_path, capsys, more, pictures, message):
  assert run(photo, tmp_path, *more, **pictures) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_people_are_hidden(photo, tmp_path, monkeypatch):
  hidden = []
  stand_in = types.SimpleNamespace(
      hide_people=lambda image: hidden.append(image.shape) or image
  )
  monkeypatch.setattr(explain, 'viz', stand_in)
  assert run(photo, tmp_path, people='blur') == 0
  assert run(photo, tmp_path, people='show') == 0
  assert hidden == [(4 * SIDE, 6 * SIDE, 3)]
