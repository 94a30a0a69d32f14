"""Annotations that no picture can have, through to the samples."""

import json

import cv2
import numpy as np
import pytest

from vemd_jax.data import annotations, folder, prepared, transforms
from vemd_jax.prepare import index as ix
from vemd_jax.prepare.layouts import coco

NAMES = 'abcdefghijklmnopqrst'


def person(points, x=10.0, y=10.0, score=1.0):
  return [[x, y, score]] * points


def make(root, lines, size=(32, 48)):
  """Twenty images, of which the first has the lines."""
  rows = ['file,split,label']
  for name in NAMES:
    image = np.zeros((*size, 3), np.uint8)
    cv2.imwrite(str(root / f'{name}.png'), image)
    rows.append(f'{name}.png,train,x')
  (root / 'labels.csv').write_text('\n'.join(rows))
  good = [json.dumps({'file': f'{n}.png', 'bodies': [person(17)]})
          for n in NAMES[1:]]  # fmt: skip
  text = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  (root / 'annotations.jsonl').write_text('\n'.join(good + text) + '\n')
  return folder.Folder(root, 'train', max_unreadable=0.2)


def sample(source, train=False, **kwargs):
  transform = transforms.Transform(
      image_size=32, max_people=4, heatmap_size=8,
      augment=transforms.Augment((0.5, 1.0), (0.75, 1.33), 0.5, 0.2, 0.2, 0.2),
      **kwargs,
  )  # fmt: skip
  return transform(source[0], np.random.default_rng(0) if train else None)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('bad', [
    float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 1e300, 10**30,
    '1e999',
])  # fmt: skip
@pytest.mark.parametrize('place', [0, 1, 2])
def test_absurd_points_are_missing_points(tmp_path, bad, place, train):
  body = [[20.0, 15.0, 1.0] for _ in range(17)]
  body[3][place] = bad
  line = json.dumps({'file': 'a.png', 'bodies': [body]})
  source = make(tmp_path, [line.replace('"1e999"', '1e999')])
  (problem,) = source.report.problems
  assert 'jsonl:20: 1 points of a.png are not finite or exceed 1048576' in (
      problem
  )
  with np.errstate(all='raise'):
    result = sample(source, train)
  expected = body.copy()
  expected[3] = [0, 0, 0]
  np.testing.assert_array_equal(source[0]['bodies'][0], [expected])
  assert all(np.isfinite(v).all() for v in result.values())
  assert result['body_mask'][0, 0] and result['body_keypoints'][0, 0, 3, 2] == 0
  assert (result['body_keypoints'][0, 0, [0, 1, 2, 4], 2] == 1).all()


@pytest.mark.parametrize('size', [
    (float('nan'), 32), (48, float('inf')), (1e300, 32), (10**400, 32),
    (-48, 32), ('48', 32), (None, 32), (48, 2**21),
])  # fmt: skip
def test_absurd_sizes_are_invalid_lines(tmp_path, size):
  line = {'file': 'a.png', 'width': size[0], 'height': size[1],
          'bodies': [person(17)]}  # fmt: skip
  source = make(tmp_path, [line])
  assert source.report.invalid_lines == 1
  assert 'width and height are' in source.report.problems[0]
  assert not sample(source)['body_annotated'].any()


@pytest.mark.parametrize('line', [
    {'file': 'a.png', 'bodies': [person(16)]},
    {'file': 'a.png', 'bodies': [person(18)]},
    {'file': 'a.png', 'bodies': [person(17), person(68)]},
    {'file': 'a.png', 'bodies': [[]]}, {'file': 'a.png', 'bodies': [None]},
    {'file': 'a.png', 'faces': [person(17)]},
    {'file': 'a.png', 'bodies': [[[1, 2]] * 17]},
    {'file': 'a.png', 'bodies': [[[1, 2, 3, 4]] * 17]},
    {'file': 'a.png', 'bodies': [[[1, 2, []]] * 17]},
    {'file': 'a.png', 'bodies': [[[1, 2, 'x']] * 17]},
    {'file': 'a.png', 'bodies': {'x': 1}}, {'file': 1}, {'file': None}, [], 7,
    '{"file": "a.png", "bodies": ' + 200_000 * '[',
    '{"file": "a.png", "width": ' + 10_000 * '9' + '}',
    '\x00\x01', '{"file": "a.png"', '{"file": "a.png", "bodies": []}' * 2,
])  # fmt: skip
def test_lines_that_are_left_out(tmp_path, line):
  source = make(tmp_path, [line])
  assert source.report.invalid_lines == 1
  assert all('\n' not in p for p in source.report.problems)
  assert 'annotations.jsonl:20' in source.report.problems[0]
  assert source[0]['bodies'] == [None] and len(source) == len(NAMES)


def test_a_line_of_any_length_is_read_in_bounded_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(annotations, 'MAX_LINE', 5000)
  long = json.dumps({'file': 'a.png', 'more': 'x' * 23_456})
  last = {'file': 'a.png', 'bodies': [person(17)]}
  source = make(tmp_path, [long, last])
  assert source.report.problems[0].endswith('jsonl:20: longer than 5000 bytes')
  # The lines behind it keep their numbers.
  assert source[0]['bodies'][0].shape == (1, 17, 3)
  assert source.report.invalid_lines == 1


def test_ten_thousand_people(tmp_path):
  rng = np.random.default_rng(0)
  centre = rng.uniform((0, 0), (48, 32), (10_000, 1, 2))
  extent = rng.uniform(0.1, 1, (10_000, 1, 1)) * 5
  points = centre + extent * rng.uniform(-0.5, 0.5, (10_000, 17, 2))
  people = np.concatenate([points, np.ones((10_000, 17, 1))], -1)
  line = {'file': 'a.png', 'bodies': people.round(2).tolist(),
          'faces': [person(68)] * 500}  # fmt: skip
  source = make(tmp_path, [line])
  assert source.report.annotated == len(NAMES) and not source.report.problems
  assert source[0]['bodies'][0].shape == (10_000, 17, 3)
  for train in (False, True):
    result = sample(source, train)
    assert result['body_mask'].sum() == 4
    assert result['body_dropped'][0] > 2000
    assert result['face_mask'].sum() + result['face_dropped'][0] in (0, 500)


def test_two_annotations_of_one_file_are_reported(tmp_path):
  first = {'file': 'a.png', 'bodies': [person(17)]}
  second = {'file': './a.png', 'bodies': [person(17), person(17)]}
  source = make(tmp_path, [first, first, second])
  (problem,) = source.report.problems
  assert 'annotations.jsonl:22: differs from line 21' in problem
  assert 'replaces it; 1 lines do so' in problem
  assert len(source[0]['bodies'][0]) == 2


def test_a_frame_that_the_clip_does_not_have(tmp_path):
  for i in range(3):
    (tmp_path / 'clip').mkdir(exist_ok=True)
    (tmp_path / 'clip' / f'{i}.jpg').write_bytes(b'1')
  (tmp_path / 'labels.csv').write_text('file,split,label\nclip,train,x\n')
  lines = [json.dumps({'file': 'clip', 'frame': i, 'bodies': []})
           for i in (0, 1, 2, 3)]  # fmt: skip
  (tmp_path / 'annotations.jsonl').write_text('\n'.join(lines) + '\n')
  source = folder.Folder(tmp_path, 'train', max_unreadable=0.3)
  assert '"frame" is 3, expected 0 to 2' in source.report.problems[0]


# --- COCO -------------------------------------------------------------------


def coco_index(root, people, faces=None):
  (root / 'train2017').mkdir(parents=True, exist_ok=True)
  (root / 'annotations').mkdir(exist_ok=True)
  for i in (1, 2):
    (root / 'train2017' / f'{i}.jpg').write_bytes(b'1')
  images = [{'id': i, 'file_name': f'{i}.jpg'} for i in (1, 2)]
  for name, entries in (
      ('person_keypoints_train2017', people),
      ('coco_wholebody_train_v1.0', faces),
  ):
    if entries is not None:
      (root / 'annotations' / f'{name}.json').write_text(
          json.dumps({'images': images, 'annotations': entries})
      )
  index = ix.Index()
  coco.read(root, ix.Options(frames=1), index)
  ix.finish(index)
  return index


def coco_person(image=1, **more):
  return {'image_id': image, 'num_keypoints': 17, 'bbox': [0, 0, 5, 5],
          'keypoints': [3.0, 4.0, 2] * 17, **more}  # fmt: skip


@pytest.mark.parametrize('bad', [
    {'keypoints': [1, 2, 2] * 16}, {'keypoints': [1, 2, 2] * 17 + [1]},
    {'keypoints': None}, {'keypoints': ['x'] * 51},
    {'keypoints': [1, 2, 9] * 17}, {'keypoints': [1, 2, float('nan')] * 17},
    {'keypoints': [10**400, 2, 2] * 17},
    {'num_keypoints': 0, 'bbox': [1, 2, 3]},
    {'num_keypoints': 0, 'bbox': [1, 2, 3, float('nan')]},
    {'iscrowd': 1, 'bbox': None},
])  # fmt: skip
def test_an_image_with_an_invalid_person_is_left_out(tmp_path, bad):
  index = coco_index(tmp_path, [coco_person(), coco_person(**bad),
                                coco_person(2)])  # fmt: skip
  assert [s.file for s in index.samples] == ['train2017/2.jpg']
  ((file, split, reason),) = index.left_out
  assert (file, split) == ('1.jpg', 'train')
  assert reason.startswith('annotations[1] cannot be used (')


def test_absurd_points_of_coco_are_missing(tmp_path):
  points = [[3.0, 4.0, 2]] * 17
  points[5] = [float('nan'), 1, 2]
  points[6] = [1, 1e12, 1]
  flat = np.ravel(points).tolist()
  index = coco_index(tmp_path, [coco_person(keypoints=flat)])
  body = np.reshape(index.samples[0].bodies[0], (17, 3))
  assert not body[[5, 6]].any()
  assert (np.delete(body, [5, 6], 0)[:, 2] == 1).all()


@pytest.mark.parametrize('people', [
    [1], ['x'], [[]], [{'bbox': [0, 0, 1, 1]}], [{'image_id': []}], {'a': 1},
    [coco_person(image=None)],
])  # fmt: skip
def test_files_that_are_not_coco_name_the_entry(tmp_path, people):
  with pytest.raises(ValueError, match='person_keypoints_train2017.json'):
    coco_index(tmp_path, people)


def test_prepared_data_that_are_damaged_name_the_file(tmp_path):
  for name, text in (
      ('prepared.json', '{'), ('prepared.json', '[]'), ('prepared.json', '{}'),
      ('prepared.json', '{"dataset": 1, "classes": 2}'),
  ):  # fmt: skip
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
      prepared.PreparedSource(tmp_path)
