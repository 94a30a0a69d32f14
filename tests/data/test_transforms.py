"""Decoding, geometry, colours and padding of single records."""

import dataclasses
import io
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from vemd_jax import skeletons
from vemd_jax.data import decoding, geometry, heatmaps, transforms
from vemd_jax.data.transforms import Augment, Transform

_LEFT, _RIGHT = 9, 10  # Wrists.


def _blobs(size, points, sigma=5.0):
  """One soft blob per colour channel, black elsewhere: [H, W, 3] uint8."""
  y, x = np.mgrid[: size[0], : size[1]]
  channels = [
      255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
      for px, py in points
  ]
  return np.rint(np.stack(channels, -1)).astype(np.uint8)


def _centre(channel):
  """(x, y) of a blob."""
  weight = channel.astype(np.float64)
  y, x = np.mgrid[: channel.shape[0], : channel.shape[1]]
  return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def _record(size, left, right, face=None, **more):
  """A red left wrist, a green right one, a blue tip of the left brow."""
  face = face or left
  body = np.zeros((1, 17, 3), np.float32)
  body[0, _LEFT], body[0, _RIGHT] = (*left, 1), (*right, 1)
  points = np.zeros((1, 68, 3), np.float32)
  points[0, 26] = (*face, 1)
  image = _blobs(size, [left, right, face])
  return {
      'frames': [image],
      'label': 1,
      'bodies': [body],
      'faces': [points],
      'file': 'a.png',
      **more,
  }


def _encode(image, suffix='.png', *args):
  return cv2.imencode(suffix, image[..., ::-1], *args)[1].tobytes()


def _pillow(image, form, **kwargs):
  data = io.BytesIO()
  image.save(data, form, **kwargs)
  return data.getvalue()


@pytest.fixture(scope='module')
def photo():
  """Smooth colours, which compression hardly changes: [48, 64, 3]."""
  y, x = np.mgrid[:48, :64]
  image = np.stack([60 + 2 * x, 200 - 3 * y, 80 + x + y], -1)
  return image.astype(np.uint8)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize('flip', [0.0, 1.0])
@pytest.mark.parametrize('seed', range(4))
def test_points_stay_on_the_picture(flip, seed):
  record = _record((240, 320), (140, 110), (190, 140), (160, 90))
  transform = Transform(
      image_size=112,
      augment=Augment(crop_scale=(0.4, 0.9), crop_ratio=(0.7, 1.4), flip=flip),
  )
  sample = transform(record, np.random.default_rng(seed))
  image, body = sample['image'][0], sample['body_keypoints'][0, 0]
  # A flip turns a left wrist into a right one: the joints are swapped, the
  # colours are not.
  left, right = (1, 0) if flip else (0, 1)
  for channel, joint in ((left, _LEFT), (right, _RIGHT)):
    assert body[joint, 2] == 1
    np.testing.assert_allclose(
        body[joint, :2], _centre(image[..., channel]), atol=0.15
    )
  face = sample['face_keypoints'][0, 0, 17 if flip else 26]
  np.testing.assert_allclose(face[:2], _centre(image[..., 2]), atol=0.15)


@pytest.mark.parametrize(
    'size', [(96, 96), (150, 200), (451, 677), (901, 1203), (120, 700)]
)
@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_points_stay_in_evaluation(size, suffix):
  # Odd sizes, halved sizes, JPEG files that are decoded at reduced size.
  left, right = (size[1] * 0.3, size[0] * 0.4), (size[1] * 0.7, size[0] * 0.6)
  record = _record(size, left, right)
  image = _blobs(size, [left, right, left], sigma=size[0] / 20)
  record['frames'] = [_encode(image, suffix)]
  sample = Transform(image_size=96)(record)
  body = sample['body_keypoints'][0, 0]
  for channel, joint in ((0, _LEFT), (1, _RIGHT)):
    where = sample['image'][0, ..., channel]
    where = np.where(where > 20, where, 0)
    np.testing.assert_allclose(body[joint, :2], _centre(where), atol=0.25)


def test_large_jpeg_is_decoded_smaller_and_alike():
  image = _blobs((800, 1000), [(300, 300), (700, 500), (500, 600)], 60)
  data = _encode(image, '.jpg')
  reduced, factor, size = decoding.decode_reduced(data, 200)
  assert factor == 4 and size == (1000, 800)
  assert reduced.shape == (200, 250, 3)
  full, factor, size = decoding.decode_reduced(data, 401)
  assert factor == 1 and size == (1000, 800)
  assert full.shape == image.shape
  expected = cv2.resize(full, (250, 200), interpolation=cv2.INTER_AREA)
  assert np.abs(expected.astype(int) - reduced).max() <= 8


def test_turned_jpeg_is_decoded_smaller():
  left, right = (300, 200), (900, 700)
  image = _blobs((801, 1203), [left, right, right], 40)
  flag = Image.Exif()
  flag[0x112] = 6  # Displayed rotated clockwise.
  data = _pillow(Image.fromarray(image), 'JPEG', exif=flag, quality=95)
  reduced, factor, size = decoding.decode_reduced(data, 200)
  assert factor == 4 and size == (801, 1203)
  assert reduced.shape == (301, 201, 3)
  expected = cv2.resize(np.rot90(image, -1), (201, 301))
  assert np.abs(expected.astype(int) - reduced).mean() < 2
  # An annotation of the upright image is valid, one of the stored image is not.
  record = {'frames': [data], 'label': 0, 'bodies': [np.ones((1, 17, 3))]}
  transform = Transform(image_size=64)
  record['annotation_size'] = [(801, 1203)]
  assert transform(record)['body_annotated'].all()
  record['annotation_size'] = [(1203, 801)]
  assert not transform(record)['body_annotated'].any()


def test_shrinking_averages():
  # A checkerboard becomes grey, not a pattern.
  board = np.indices((512, 768)).sum(0) % 2 * 255
  image = np.repeat(board[..., None], 3, -1).astype(np.uint8)
  for box in ((0, 0, 768, 512), (3, 5, 700, 500), (0, 0, 765, 100)):
    small, _ = geometry.resize_crop(image, box, 64)
    assert small.shape == (64, 64, 3)
    assert np.abs(small.astype(int) - 127).max() < 40, box


def test_whole_image_is_seen_in_evaluation():
  # People at the edges of a wide photograph must not be lost.
  record = _record((100, 400), (4, 50), (396, 50))
  sample = Transform(image_size=64)(record)
  body = sample['body_keypoints'][0, 0]
  assert (body[[_LEFT, _RIGHT], 2] == 1).all()
  np.testing.assert_allclose(body[_LEFT, 0], 4.5 * 64 / 400 - 0.5, atol=1e-4)
  np.testing.assert_allclose(body[_RIGHT, 0], 396.5 * 64 / 400 - 0.5, atol=1e-4)


def test_largest_crop_is_what_evaluation_sees():
  record = _record((120, 300), (100, 50), (200, 60))
  evaluated = Transform(image_size=64)(record)
  trained = Transform(image_size=64)(record, np.random.default_rng(0))
  for key in evaluated:
    np.testing.assert_array_equal(evaluated[key], trained[key])


def test_whole_clip_moves_together():
  record = _record((120, 160), (60, 50), (100, 60))
  record.update({k: record[k] * 3 for k in ('frames', 'bodies', 'faces')})
  augment = Augment((0.5, 0.9), (0.8, 1.2), 0.5, 0.3, 0.3, 0.3, 0.05)
  transform = Transform(image_size=64, frames=3, augment=augment)
  sample = transform(record, np.random.default_rng(3))
  for key in ('image', 'body_keypoints', 'face_keypoints'):
    assert sample[key].shape[0] == 3
    np.testing.assert_array_equal(sample[key][0], sample[key][1])
    np.testing.assert_array_equal(sample[key][0], sample[key][2])


def test_frames_are_spread_and_keep_their_people():
  records = [_record((64, 64), (10 + 5 * i, 20), (40, 40)) for i in range(6)]
  record = {**records[0]}
  for key in ('frames', 'bodies', 'faces'):
    record[key] = [r[key][0] for r in records]
  record['bodies'][4] = None
  sample = Transform(image_size=64, frames=3)(record)
  x = sample['body_keypoints'][:, 0, _LEFT, 0]
  np.testing.assert_allclose(x, [15, 25, 35], atol=1e-4)  # Of 1, 3 and 5.
  repeated = Transform(image_size=64, frames=12)(record)
  x = repeated['body_keypoints'][:, 0, _LEFT, 0]
  np.testing.assert_allclose(x[:4], [10, 10, 15, 15], atol=1e-4)
  np.testing.assert_array_equal(
      repeated['body_annotated'], np.repeat([1, 1, 1, 1, 0, 1], 2)
  )


def test_same_generator_same_sample():
  record = _record((120, 160), (60, 50), (100, 60))
  augment = Augment((0.5, 0.9), (0.8, 1.2), 0.5, 0.3, 0.3, 0.3, 0.05)
  transform = Transform(image_size=64, augment=augment)
  first = transform(record, np.random.default_rng(5))
  again = transform(record, np.random.default_rng(5))
  other = transform(record, np.random.default_rng(6))
  for key in first:
    np.testing.assert_array_equal(first[key], again[key])
  assert (first['image'] != other['image']).any()


def test_random_box_has_the_wanted_area_and_aspect():
  rng = np.random.default_rng(0)
  boxes = np.array([
      geometry.random_box((300, 600), (0.2, 0.5), (0.5, 2.0), rng)
      for _ in range(500)
  ])
  left, top, width, height = boxes.T
  assert (left >= 0).all() and (left + width <= 600).all()
  assert (top >= 0).all() and (top + height <= 300).all()
  area = width * height / (300 * 600)
  aspect = (width / 600) / (height / 300)
  assert 0.19 < area.min() < 0.22 and 0.48 < area.max() < 0.51
  assert 0.49 < aspect.min() < 0.55 and 1.8 < aspect.max() < 2.02
  # The aspect ratio is log-uniform, so half of the values are below 1.
  assert abs(np.log(aspect).mean()) < 0.06
  assert left.min() == 0 and abs((left / (600 - width)).mean() - 0.5) < 0.05


def test_heatmaps_belong_to_the_moved_keypoints():
  record = _record((120, 160), (60, 50), (100, 60))
  record['bodies'][0][0, 5:13] = [
      (x, y, 1) for x, y in zip(range(50, 130, 10), range(30, 110, 10))
  ]
  transform = Transform(
      image_size=64,
      heatmap_size=16,
      sigma=0.8,
      augment=Augment((0.6, 0.9), (1.0, 1.0), 1.0),
  )
  sample = transform(record, np.random.default_rng(0))
  expected = heatmaps.render(
      sample['body_keypoints'],
      sample['body_mask'],
      skeletons.BODY_LIMBS,
      image_size=(64, 64),
      heatmap_size=(16, 16),
      sigma=0.8,
  )
  assert expected.max() > 0.5
  np.testing.assert_array_equal(sample['body_heatmap'], expected)
  assert sample['face_heatmap'].shape == (1, 16, 16, 83)


# ---------------------------------------------------------------- colours


def test_color_matrix_does_nothing_by_default():
  identity = transforms.color_matrix(1, 1, 1, 0, 100)
  np.testing.assert_allclose(identity, np.eye(3, 4), atol=1e-6)
  full_turn = transforms.color_matrix(1, 1, 1, 1, 100)
  np.testing.assert_allclose(full_turn, np.eye(3, 4), atol=1e-6)


def test_color_matrix_changes_what_it_says():
  luma = np.array([0.299, 0.587, 0.114])
  rgb = np.array([200.0, 90.0, 30.0])

  def apply(*args):
    return transforms.color_matrix(*args) @ np.append(rgb, 1)

  np.testing.assert_allclose(apply(1.3, 1, 1, 0, 50), 1.3 * rgb, atol=1e-4)
  np.testing.assert_allclose(
      apply(1, 0.5, 1, 0, 50), 50 + 0.5 * (rgb - 50), atol=1e-4
  )
  # Contrast is applied after brightness, around the brightened mean.
  np.testing.assert_allclose(
      apply(1.2, 0.5, 1, 0, 50), 60 + 0.5 * (1.2 * rgb - 60), atol=1e-4
  )
  grey = rgb @ luma
  np.testing.assert_allclose(apply(1, 1, 0, 0, 50), grey, atol=1e-3)
  np.testing.assert_allclose(
      apply(1, 1, 0.7, 0, 50), grey + 0.7 * (rgb - grey), atol=1e-3
  )
  turned = apply(1, 1, 1, 0.3, 50)
  assert np.abs(turned - rgb).max() > 20
  np.testing.assert_allclose(turned @ luma, grey, atol=1e-3)


def test_brightness_of_a_sample(photo):
  record = {'frames': [photo], 'label': 0}
  transform = Transform(image_size=48, augment=Augment(brightness=0.4))
  plain = transform(record)['image'].astype(float)
  seeds = range(20)
  factors = []
  for seed in seeds:
    image = transform(record, np.random.default_rng(seed))['image']
    factors.append(image.mean() / plain.mean())
    dark = plain * factors[-1] < 240
    np.testing.assert_allclose(
        image[dark], (plain * factors[-1])[dark], atol=2.5
    )
  assert min(factors) < 0.75 and max(factors) > 1.2


def test_grayscale(photo):
  record = {'frames': [photo], 'label': 0}
  augment = Augment(brightness=0.3, saturation=0.5, hue=0.2)
  transform = Transform(image_size=48, gray=True, augment=augment)
  for image in (
      transform(record)['image'],
      transform(record, np.random.default_rng(0))['image'],
  ):
    assert (image == image[..., :1]).all()
  colour = Transform(image_size=48)(record)['image'].astype(float)
  expected = colour @ [0.299, 0.587, 0.114]
  grey = transform(record)['image'][..., 0]
  np.testing.assert_allclose(grey, expected, atol=1)


# ---------------------------------------------------------------- people


def test_regions_without_labels_move_along():
  rng = np.random.default_rng(0)
  augment = Augment(crop_scale=(0.5, 1.0), crop_ratio=(0.8, 1.25), flip=0.5)
  transform = Transform(64, max_ignore=2, augment=augment)
  # The box is painted white, so its transformed region must be bright.
  image = np.zeros((120, 160, 3), np.uint8)
  image[40:81, 50:101] = 255
  corners = np.array([[[50, 40, 1], [100, 80, 1]]], np.float32)
  record = {'frames': [image], 'bodies': [None], 'faces': [None],
            'ignore': [corners], 'file': 'a.png'}  # fmt: skip
  for generator in (None, *[rng] * 20):
    sample = transform(record, generator)
    (x1, y1, x2, y2), second = sample['ignore_boxes'][0]
    assert not second.any()
    y, x = np.nonzero(sample['image'][0, ..., 0] > 127)
    ends = [x.min(), y.min(), x.max(), y.max()]
    np.testing.assert_allclose([x1, y1, x2, y2], ends, atol=1.6)


def test_too_many_regions_leave_the_frame_without_annotation():
  corners = np.array([[[i, 0, 1], [i + 9, 9, 1]] for i in range(3)], np.float32)
  record = _record((64, 64), (20, 20), (40, 40), ignore=[corners])
  assert Transform(64, max_ignore=3)(record)['body_annotated'].all()
  sample = Transform(64, max_ignore=2)(record)
  assert not sample['body_annotated'].any()
  assert not sample['face_annotated'].any()
  assert not sample['ignore_boxes'].any()
  assert 'ignore_boxes' not in Transform(64)(record)


def test_pad_people_keeps_the_largest():
  people = np.ones((5, 17, 3), np.float32)
  for i, extent in enumerate((5, 40, 2, 60, 20)):
    people[i, :, :2] = 10 + i
    people[i, 3, :2] += extent
  keypoints, mask, dropped = transforms.pad_people(people, 3, (100, 100))
  assert dropped == 2 and mask.all()
  np.testing.assert_array_equal(keypoints, people[[3, 1, 4]])
  # If all people fit, their order is kept.
  keypoints, mask, dropped = transforms.pad_people(people, 7, (100, 100))
  assert dropped == 0
  np.testing.assert_array_equal(mask, [1, 1, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(keypoints[:5], people)
  assert not keypoints[5:].any()


def test_pad_people_masks_what_cannot_be_used():
  people = np.full((3, 17, 3), 20, np.float32)
  people[..., 2] = 1
  people[0, 0] = -3, 20, 1
  people[0, 1] = 20, 100, 1
  people[0, 2] = np.nan, 20, 1
  people[0, 3] = 20, 20, 0.05
  people[0, 4] = np.inf, np.inf, 1
  people[0, 5] = -0.4, 99.4, 0.7
  people[1, :, 0] += 500  # Entirely outside the image.
  keypoints, mask, dropped = transforms.pad_people(people, 4, (100, 100))
  np.testing.assert_array_equal(mask, [1, 1, 0, 0])
  assert dropped == 0
  assert not keypoints[0, :5].any()
  np.testing.assert_allclose(keypoints[0, 5], (0, 99.4, 0.7))
  np.testing.assert_array_equal(keypoints[0, 6:], people[0, 6:])
  np.testing.assert_array_equal(keypoints[1], people[2])


def test_annotated_or_not():
  record = _record((64, 64), (20, 20), (40, 40))
  record['bodies'] = [None]
  record['faces'] = [np.zeros((0, 68, 3), np.float32)]
  sample = Transform(image_size=64)(record)
  assert not sample['body_annotated'].any()
  assert not sample['face_annotated'].any()
  sample = Transform(image_size=64, nobody=True)(record)
  assert not sample['body_annotated'].any()
  assert sample['face_annotated'].all() and not sample['face_mask'].any()
  # The annotated people are outside the crop; the frame stays annotated.
  record['faces'] = [np.full((1, 68, 3), 500, np.float32)]
  sample = Transform(image_size=64)(record)
  assert sample['face_annotated'].all() and not sample['face_mask'].any()
  sample = Transform(image_size=64, faces=False, labels=False)(record)
  assert not sample['face_annotated'].any() and not sample['label_mask']
  assert sample['mask']


def test_annotation_of_another_size():
  record = _record((120, 160), (60, 50), (100, 60))
  half = geometry.resize_matrix((0, 0, 160, 120), (60, 80))
  expected = Transform(image_size=64)(record)['body_keypoints']
  record['bodies'] = [geometry.transform_points(record['bodies'][0], half)]
  record['annotation_size'] = [(80, 60)]
  sample = Transform(image_size=64)(record)
  np.testing.assert_allclose(sample['body_keypoints'], expected, atol=1e-3)
  record['annotation_size'] = [(60, 80)]  # As displayed without its EXIF flag.
  assert not Transform(image_size=64)(record)['body_annotated'].any()


def test_annotation_of_a_reduced_jpeg():
  record = _record((401, 603), (200, 100), (400, 300))
  record['frames'] = [_encode(record['frames'][0], '.jpg')]
  plain = Transform(image_size=96)(record)['body_keypoints']
  where = plain[0, 0, _LEFT, :2] / 96
  np.testing.assert_allclose(where, (1 / 3, 1 / 4), atol=0.01)
  record['annotation_size'] = [(603, 401)]
  same = Transform(image_size=96)(record)['body_keypoints']
  np.testing.assert_array_equal(same, plain)
  doubled = geometry.resize_matrix((0, 0, 603, 401), (802, 1206))
  record['bodies'] = [geometry.transform_points(record['bodies'][0], doubled)]
  record['annotation_size'] = [(1206, 802)]
  moved = Transform(image_size=96)(record)['body_keypoints']
  np.testing.assert_allclose(moved, plain, atol=1e-3)


# ---------------------------------------------------------------- decoding


def test_decode_kinds(photo):
  picture = Image.fromarray(photo)
  turned = Image.Exif()
  turned[0x112] = 6
  sixteen = photo[..., 0].astype(np.uint16) * 257
  others = [picture.transpose(0)] * 2
  alpha = np.dstack([photo, np.full(photo.shape[:2], 7, np.uint8)])
  grey = np.repeat(photo[..., :1], 3, -1)
  cases = [
      (_pillow(picture, 'PNG'), photo, 0),
      (_pillow(picture, 'JPEG', quality=95), photo, 4),
      (_pillow(picture.convert('CMYK'), 'JPEG', quality=95), photo, 12),
      (_pillow(picture, 'JPEG', quality=95, exif=turned),
       np.rot90(photo, -1), 4),
      (_pillow(Image.fromarray(sixteen), 'PNG'), grey, 0),
      (_pillow(Image.fromarray(sixteen), 'TIFF'), grey, 0),
      (_pillow(Image.fromarray(photo[..., 0]), 'PNG'), grey, 0),
      (_pillow(Image.fromarray(alpha), 'PNG'), photo, 0),
      (_pillow(picture, 'WEBP', lossless=True), photo, 0),
      (_pillow(picture, 'WEBP', save_all=True, append_images=others,
               lossless=True), photo, 0),
      (_pillow(picture.quantize(64), 'GIF', save_all=True,
               append_images=[o.quantize(64) for o in others]), photo, 60),
      (_pillow(picture, 'BMP'), photo, 0),
  ]  # fmt: skip
  for number, (data, expected, tolerance) in enumerate(cases):
    image = decoding.decode_image(data)
    assert image.dtype == np.uint8 and image.shape == expected.shape, number
    error = np.abs(image.astype(int) - expected)
    assert error.max() <= tolerance and error.mean() <= 6, number


@pytest.mark.parametrize(
    'data', [b'', b'not an image', b'\xff\xd8\xff\xe0', b'\x89PNG\r\n\x1a\n']
)
def test_decode_rubbish(data):
  with pytest.raises(ValueError, match=r'empty|readable'):
    decoding.decode_image(data)


def test_decode_half_a_file(photo):
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  data = _encode(noise, '.jpg')
  with pytest.raises(ValueError, match=r'not a readable image'):
    decoding.decode_image(data[: len(data) // 2])


def test_unreadable_sample_counts_for_nothing(caplog):
  record = _record((64, 64), (20, 20), (40, 40))
  record.update(frames=[b'broken'], file='broken in test_transforms.jpg')
  transform = Transform(image_size=32, heatmap_size=8, audio=(5, 4))
  good = transform({**record, 'frames': [np.zeros((64, 64, 3), np.uint8)]})
  with caplog.at_level(logging.WARNING):
    samples = [transform(record) for _ in range(3)]
  assert caplog.text.count('broken in test_transforms.jpg') == 1
  for sample in samples:
    assert sample['unreadable'] == 1
    for key, value in sample.items():
      assert np.shape(value) == np.shape(good[key])
      assert np.asarray(value).dtype == np.asarray(good[key]).dtype
      assert key == 'unreadable' or not np.any(value), key
  assert good['mask'] and good['label_mask'] and good['body_annotated'].all()
  padding = transform({})
  assert padding['unreadable'] == 0 and not padding['mask']


# ---------------------------------------------------------------- the rest


def test_no_label(photo):
  sample = Transform(image_size=32)({'frames': [photo], 'label': -1})
  assert sample['mask'] and not sample['label_mask'] and sample['label'] == 0


def test_optional_inputs(photo):
  transform = Transform(
      image_size=32, frames=2, audio=(4, 3), text=(3, 2), vit_dim=5
  )
  audio = np.arange(18, dtype=np.float32).reshape(6, 3) + 1
  text = np.ones((2, 2), np.float32)
  features = np.arange(20, dtype=np.float32).reshape(4, 5)
  record = {
      'frames': [photo],
      'label': 0,
      'audio': audio,
      'text_embedding': text,
      'vit_features': features,
  }
  sample = transform(record)
  np.testing.assert_array_equal(sample['audio'], audio[:4])
  np.testing.assert_array_equal(sample['text_embedding'][:2], text)
  assert not sample['text_embedding'][2].any()
  assert sample['audio_mask'] and sample['text_mask']
  np.testing.assert_array_equal(sample['vit_features'], features[[1, 3]])
  sample = transform({**record, 'audio': None, 'text_embedding': None})
  assert not sample['audio_mask'] and not sample['audio'].any()
  assert not sample['text_mask'] and sample['mask']
  with pytest.raises(ValueError, match=r'audio has shape .*expected \[n, 3\]'):
    transform({**record, 'audio': audio[:, :2]})
  with pytest.raises(ValueError, match=r'no vit_features'):
    transform({**record, 'vit_features': None})


def test_frames_of_different_sizes():
  small = _record((120, 160), (70, 55), (90, 60))
  large = _record((240, 320), (140.5, 110.5), (180.5, 120.5))
  record = {**small}
  for key in ('frames', 'bodies', 'faces'):
    record[key] = [small[key][0], large[key][0]]
  augment = Augment((0.6, 0.6), (1.0, 1.0), 0.0)
  transform = Transform(image_size=64, frames=2, augment=augment)
  sample = transform(record, np.random.default_rng(1))
  for i in range(2):
    np.testing.assert_allclose(
        sample['body_keypoints'][i, 0, _LEFT, :2],
        _centre(sample['image'][i, ..., 0]),
        atol=0.3,
    )


def test_transform_is_plain_data():
  # Worker processes receive a copy.
  transform = Transform(augment=Augment(flip=0.3))
  assert dataclasses.replace(transform) == transform
