"""Images against pixel positions known by definition."""

import numpy as np
import pytest

from vemd_jax import canvas, skeletons, viz
from vemd_jax.models.outputs import Outputs, Structure


def brightness(picture):
  return picture.astype(np.float64).sum(-1)


def centre_of_light(picture):
  """(x, y) of the brightness centroid of an image on black."""
  light = brightness(picture)
  y, x = np.indices(light.shape)
  return (light * x).sum() / light.sum(), (light * y).sum() / light.sum()


def limb_heatmap(ends, size, image_size):
  """The definition: exp(-d^2 / 2), d in heatmap pixels from the segment."""
  (h, w), (height, width) = size, image_size
  scale = np.array([w / width, h / height])
  start, end = np.array(ends) * scale
  y, x = np.mgrid[:h, :w]
  pixel = np.stack([x, y], -1).astype(float)
  along = end - start
  t = np.clip(((pixel - start) @ along) / max(along @ along, 1e-9), 0, 1)
  distance = np.linalg.norm(pixel - start - t[..., None] * along, axis=-1)
  return np.exp(-(distance**2) / 2).astype(np.float32)


def test_a_hot_cell_lights_its_own_pixels():
  heat = np.zeros((8, 16), np.float32)
  heat[2, 5] = 1.0
  picture = viz.overlay_heatmap(np.zeros((64, 128, 3), np.uint8), heat)
  light = brightness(picture)
  # Cell (2, 5) lies at pixel (2 * 8, 5 * 8), as keypoints are scaled by 1 / 8.
  assert np.unravel_index(light.argmax(), light.shape) == (16, 40)
  np.testing.assert_allclose(centre_of_light(picture), (40, 16), atol=1e-6)
  # One cell away it has vanished.
  assert light[16 - 8, 40] == light[16, 40 + 8] == 0
  assert light[16 - 4, 40] > 0


def test_overlay_lies_on_the_keypoints():
  ends = [(61.0, 100.0), (121.0, 140.0)]
  heat = limb_heatmap(ends, (56, 56), (224, 224))
  picture = viz.overlay_heatmap(np.zeros((224, 224, 3), np.uint8), heat)
  # A shift by half a heatmap pixel would be 2 pixels.
  np.testing.assert_allclose(centre_of_light(picture), (91, 120), atol=0.2)


def test_overlay_lies_on_the_picture_before_it_was_resized():
  height, width, side = 300, 500, 100
  ends = np.array([(120.0, 90.0), (300.0, 200.0)])
  # Resizing keeps the outer edges of the pixels in place.
  scale = np.array([side / width, side / height])
  seen = (ends + 0.5) * scale - 0.5
  heat = limb_heatmap(seen, (50, 50), (side, side))
  black = np.zeros((height, width, 3), np.uint8)
  picture = viz.overlay_heatmap(black, heat, input_size=(side, side))
  np.testing.assert_allclose(centre_of_light(picture), (210, 145), atol=0.6)
  limbs = (seen / side).reshape(1, 1, 4)
  picture = viz.draw_limbs(black, limbs, np.ones(1), (side, side))
  np.testing.assert_allclose(centre_of_light(picture), (210, 145), atol=0.3)
  assert picture[90, 120].max() > 200
  assert picture[200, 300].max() > 200


def test_strongest_limb_counts_and_no_heat_changes_nothing():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  heat = np.zeros((16, 16, 3), np.float32)
  np.testing.assert_array_equal(viz.overlay_heatmap(image, heat), image)
  heat[4, 4, 0], heat[10, 12, 2] = 0.5, 1.0
  picture = viz.overlay_heatmap(image, heat)
  one = viz.overlay_heatmap(image, heat.max(-1))
  np.testing.assert_array_equal(picture, one)
  changed = (picture != image).any(-1)
  assert changed[8, 8] and changed[20, 24]
  assert not changed[20, 8]


def test_body_and_face_have_different_hues():
  heat = np.full((4, 4), 0.5, np.float32)
  black = np.zeros((8, 8, 3), np.uint8)
  body = viz.overlay_heatmap(black, heat, 'body')[4, 4].astype(int)
  face = viz.overlay_heatmap(black, heat, 'face')[4, 4].astype(int)
  assert body[2] > body[0]  # Bluish,
  assert face[0] > face[2]  # reddish.


def test_limbs_end_where_they_should():
  limbs = np.array([[[0.25, 0.5, 0.75, 0.5]], [[0.1, 0.1, 0.1, 0.9]]])
  image = np.zeros((100, 200, 3), np.uint8)
  picture = viz.draw_limbs(image, limbs, np.array([0.9, 0.2]))
  assert image.max() == 0  # Drawn on a copy.
  lit = np.argwhere(brightness(picture) > 300)
  top, left = lit.min(0)
  bottom, right = lit.max(0)
  assert abs(left - 50) <= 1 and abs(right - 150) <= 1
  assert abs(top - 50) <= 1 and abs(bottom - 50) <= 1
  # The second person is absent: presence below the threshold.
  both = viz.draw_limbs(image, limbs, np.array([0.9, 0.7]))
  assert brightness(both)[20, 20] > 300
  first, second = both[50, 100], both[50, 20]
  assert np.abs(first.astype(int) - second).max() > 60


def test_limbs_that_do_not_exist_are_left_out():
  limbs = np.full((1, 2, 4), np.nan)
  limbs[0, 1] = 0.2, 0.2, 0.4, 0.2
  picture = viz.draw_limbs(np.zeros((50, 50, 3), np.uint8), limbs, np.ones(1))
  assert brightness(picture)[10, 15] > 300
  assert brightness(picture)[20:].max() == 0


def test_people_have_colours_of_their_own():
  colours = np.array([viz.person_colour(n) for n in range(10)], int)
  apart = np.abs(colours[:, None] - colours[None]).sum(-1)
  assert apart[~np.eye(10, dtype=bool)].min() > 40


def test_keypoint_limbs():
  keypoints = np.zeros((2, 17, 3), np.float32)
  keypoints[0, 5] = 20, 40, 1  # Left shoulder
  keypoints[0, 7] = 60, 80, 1  # and elbow.
  keypoints[0, 9] = 70, 90, 0  # The wrist is hidden.
  limbs = viz.keypoint_limbs(
      keypoints, np.array([True, False]), skeletons.BODY_LIMBS, (100, 200)
  )
  arm = skeletons.BODY_LIMBS.tolist().index([5, 7])
  np.testing.assert_allclose(limbs[0, arm], (0.1, 0.4, 0.3, 0.8), rtol=1e-6)
  assert np.isnan(np.delete(limbs[0], arm, 0)).all()
  assert np.isnan(limbs[1]).all()


def test_text_in_any_script_and_cut_to_width():
  assert canvas.text('').shape[1] < 5
  ascii_only, other = canvas.text('abc'), canvas.text('жéß中')
  assert ascii_only.shape[0] == other.shape[0]
  assert (other < 128).any() and (ascii_only < 128).any()
  # No row of question marks or boxes: the letters differ.
  assert canvas.text('жжж').tobytes() != canvas.text('ззз').tobytes()
  long = canvas.contact_sheet(
      [([np.zeros((9, 9, 3), np.uint8)], 'caption ' * 90)], (), 60
  )
  assert long.shape[1] < 100


def test_contact_sheet_places_each_picture():
  red = np.zeros((10, 20, 3), np.uint8) + np.uint8([255, 0, 0])
  green = np.zeros((20, 10, 3), np.uint8) + np.uint8([0, 255, 0])
  sheet = canvas.contact_sheet([([red], 'one'), ([red, green], '')], ('a',), 40)
  is_red = (sheet == [255, 0, 0]).all(-1)
  is_green = (sheet == [0, 255, 0]).all(-1)
  assert is_red.sum() == 2 * 40 * 20  # Keeps the aspect ratio.
  assert is_green.sum() == 40 * 20
  assert np.argwhere(is_green)[:, 1].min() > np.argwhere(is_red)[:, 1].max()
  assert canvas.contact_sheet([]).ndim == 3


def make_batch(heatmaps):
  rng = np.random.default_rng(0)
  keypoints = np.zeros((3, 1, 2, 17, 3), np.float32)
  keypoints[:, :, 0] = rng.uniform(5, 60, (3, 1, 17, 3))
  keypoints[..., 2] = 1
  batch = {
      'image': rng.integers(0, 256, (3, 1, 64, 64, 3), np.uint8),
      'label': np.array([1, 0, 0]),
      'label_mask': np.array([True, False, False]),
      'mask': np.array([True, True, False]),
      'body_keypoints': keypoints,
      'body_mask': np.array([[[True, False]]] * 3),
      'body_annotated': np.array([[True], [False], [False]]),
  }
  if heatmaps:
    batch['body_heatmap'] = rng.uniform(0, 1, (3, 1, 16, 16, 18))
  return batch


@pytest.mark.parametrize('decoder', ['none', 'heatmap', 'person_query'])
def test_sheet_of_structure(decoder):
  rng = np.random.default_rng(1)
  body = None
  if decoder == 'heatmap':
    logits = rng.normal(size=(2, 3, 1, 16, 16, 18)).astype(np.float32)
    body = Structure(heatmap_logits=logits)
  elif decoder == 'person_query':
    body = Structure(
        limbs=rng.uniform(size=(3, 1, 4, 18, 4)).astype(np.float32),
        presence_logits=np.full((3, 1, 4), 5.0, np.float32),
    )
  outputs = Outputs(logits=np.eye(3, 2) * 4, latents=(), body=body)
  batch = make_batch(decoder == 'heatmap')
  sheet = viz.structure_sheet(batch, outputs, ('calm', 'glad'), 8)
  columns = 1 if decoder == 'none' else 3
  assert sheet.shape[1] == 8 + columns * 232
  two_rows = viz.structure_sheet(batch, outputs, ('calm', 'glad'), 2)
  np.testing.assert_array_equal(sheet, two_rows)  # Without the padding.
  one_row = viz.structure_sheet(batch, outputs, ('calm', 'glad'), 1)
  assert one_row.shape[0] < sheet.shape[0]
  if columns == 3:
    target, prediction = sheet[100:200, 240:464], sheet[100:200, 472:696]
    assert (target != prediction).any()
  assert viz.structure_sheet(batch, outputs, (), 2).shape[0] < sheet.shape[0]


def test_a_sheet_hides_people_where_it_shall():
  batch = make_batch(False)
  # The first sample's face, and nothing annotated in the second.
  batch['body_keypoints'][0, 0, 0, :5, :2] = [
      (30, 20), (28, 18), (32, 18), (26, 19), (34, 19)
  ]  # fmt: skip
  batch['body_keypoints'][0, 0, 0, 5:, 2] = 0
  batch |= {
      'face_keypoints': np.zeros((3, 1, 2, 68, 3), np.float32),
      'face_mask': np.zeros((3, 1, 2), bool),
      'face_annotated': np.zeros((3, 1), bool),
  }
  outputs = Outputs(logits=None, latents=())
  plain = viz.structure_sheet(batch, outputs)
  hidden = viz.structure_sheet(batch, outputs, blur=True)
  assert plain.shape == hidden.shape
  cell, left = 224, canvas.GAP
  top = left + canvas.line_height(15) + 6
  first = (plain != hidden)[top : top + cell, left : left + cell].any(-1)
  y, x = np.argwhere(first).mean(0) * 64 / cell
  assert abs(x - 30) < 2 and abs(y - 19) < 2 and first.mean() < 0.2
  top += cell + canvas.GAP
  second = (plain != hidden)[top : top + cell, left : left + cell].any(-1)
  assert second.mean() > 0.95


def test_people_are_hidden_by_their_heads():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (120, 160, 3), np.uint8)
  face = np.ones((1, 68, 3), np.float32)
  face[0, :, 0] = 60 + 20 * np.cos(np.arange(68))
  face[0, :, 1] = 50 + 25 * np.sin(np.arange(68))
  hidden = viz.hide_people(image, faces=face)
  y, x = np.indices(image.shape[:2])
  inside = ((x - 60) / 20) ** 2 + ((y - 50) / 25) ** 2 <= 1
  changed = (hidden != image).any(-1)
  assert changed[inside].mean() > 0.98
  assert not changed[:, 105:].any() and not changed[95:].any()
  # So few colours are left of a face that nobody knows it.
  assert len(np.unique(hidden[inside], axis=0)) < 30
  # A body without a head in sight tells of nobody: all is hidden.
  body = np.zeros((1, 17, 3), np.float32)
  body[0, 11:] = 50, 60, 1
  for people in (None, None), (body, None), (body[:0], face[:0]):
    everything = viz.hide_people(image, *people)
    assert (everything != image).any(-1).mean() > 0.95
    assert len(np.unique(everything.reshape(-1, 3), axis=0)) <= 8 * 8
  # From the side the head is as large as the shoulders say.
  body[0, :7] = [
      (80, 40, 1), (81, 39, 1), (0, 0, 0), (83, 40, 1), (0, 0, 0),
      (65, 60, 1), (105, 60, 1),
  ]  # fmt: skip
  changed = (viz.hide_people(image, bodies=body) != image).any(-1)
  assert 20 < np.ptp(np.argwhere(changed)[:, 0]) < 70


def test_decoded_structure_is_the_last_stage_as_probability():
  logits = np.zeros((2, 1, 2, 4, 4, 18), np.float32)
  logits[0] = 9.0
  logits[1, 0, 1, 2, 3, 7] = np.log(3.0)
  outputs = Outputs(
      logits=None,
      latents=(),
      body=Structure(heatmap_logits=logits),
      face=Structure(limbs=np.zeros((1, 2, 3, 20, 4), np.float32)),
  )
  structure = viz.decoded_structure(outputs, 0, 1)
  assert structure['body'].shape == (4, 4, 18)
  np.testing.assert_allclose(structure['body'][2, 3, 7], 0.75, rtol=1e-6)
  np.testing.assert_allclose(structure['body'][0, 0, 0], 0.5)
  limbs, presence = structure['face']
  # Without a presence output all people are shown.
  assert limbs.shape == (3, 20, 4)
  np.testing.assert_array_equal(presence, 1)


def test_limbs_that_adjoin_no_other_are_not_drawn():
  adjacency = np.full((1, 1, 2, 18, 18), -4.0, np.float32)
  adjacency[0, 0, 0, 3, 5] = adjacency[0, 0, 0, 5, 3] = 4.0
  outputs = Outputs(
      logits=np.zeros((1, 2)),
      latents=(),
      body=Structure(
          limbs=np.zeros((1, 1, 2, 18, 4), np.float32),
          adjacency_logits=adjacency,
      ),
  )
  limbs, _ = viz.decoded_structure(outputs, 0, 0)['body']
  drawn = np.isfinite(limbs).all(-1)
  assert drawn[0].nonzero()[0].tolist() == [3, 5]
  assert not drawn[1].any()
