"""The backends; each test is skipped if its package is missing."""

import json
import os
import pathlib

import numpy as np
import pytest

from vemd_jax.data import decoding, jsonl
from vemd_jax.data.oks import best_match
from vemd_jax.prepare import annotate, annotators
from vemd_jax.prepare.annotators import dlib_faces, movenet, rtmlib_wholebody

SHARED = pathlib.Path(
    os.environ.get(
        'VEMD_SHARED', pathlib.Path(__file__).parents[2].parent / 'shared'
    )
)
MOVENET = SHARED / 'models' / 'movenet_multipose.onnx'
COCO = SHARED / 'data' / 'coco4'
# dlib's 68-point predictor is not in SHARED: its path has to be given.
PREDICTOR = pathlib.Path(os.environ.get('VEMD_FACE_MODEL', '/nonexistent'))


def needs(*paths):
  gone = [str(p) for p in paths if not p.exists()]
  return pytest.mark.skipif(bool(gone), reason=f'not there: {gone}')


def test_a_missing_package_gives_one_line_with_the_command():
  with pytest.raises(ImportError) as error:
    annotators.require('vemd_no_such_module', 'some-package')
  message = str(error.value)
  assert "pip install 'vemd-jax[annotate]'" in message
  assert 'some-package' in message and '\n' not in message


# --- MoveNet ----------------------------------------------------------------


def coco_truth():
  path = COCO / 'annotations' / 'person_keypoints_val2017.json'
  return json.loads(path.read_text())


def coco_names():
  return [entry['file_name'] for entry in coco_truth()['images']]


def coco_people():
  """Pixels, bodies, areas of each of the four COCO images."""
  truth = coco_truth()
  for entry in truth['images']:
    people = [
        a
        for a in truth['annotations']
        if a['image_id'] == entry['id'] and a['num_keypoints']
    ]
    image = (COCO / 'val2017' / entry['file_name']).read_bytes()
    yield (
        decoding.decode_image(image),
        np.array([p['keypoints'] for p in people]).reshape(-1, 17, 3),
        np.array([p['area'] for p in people]),
    )


@needs(MOVENET, COCO)
def test_movenet_reaches_its_similarity_on_coco():
  pytest.importorskip('onnxruntime')
  annotate = movenet.load(MOVENET)
  similarity = []
  for image, truth, area in coco_people():
    bodies, faces = annotate(image)
    assert faces is None and bodies.dtype == np.float32
    assert ((bodies[..., 2] >= 0) & (bodies[..., 2] <= 1)).all()
    similarity.extend(best_match(bodies, truth, area))
  assert len(similarity) == 12
  # 0.725, from 0.30 to 0.96 (shared/models/README.md).
  np.testing.assert_allclose(np.mean(similarity), 0.725, atol=0.01)
  np.testing.assert_allclose(min(similarity), 0.30, atol=0.05)
  np.testing.assert_allclose(max(similarity), 0.96, atol=0.02)


@needs(MOVENET, COCO)
def test_movenet_follows_the_image():
  """Another scale, padding at the other side, another aspect ratio."""
  pytest.importorskip('onnxruntime')
  annotate = movenet.load(MOVENET)
  image, _, area = next(coco_people())
  bodies, _ = annotate(image)
  doubled, _ = annotate(image.repeat(2, 0).repeat(2, 1))
  half = doubled * np.array([0.5, 0.5, 1])
  assert best_match(half, bodies, area).min() > 0.95
  # Extended to portrait by a strip below: the same positions.
  height, width = image.shape[:2]
  strip = np.zeros((2 * width - height, width, 3), np.uint8)
  tall, _ = annotate(np.concatenate([image, strip]))
  assert best_match(tall, bodies, area).max() > 0.6
  empty, _ = annotate(np.zeros((100, 50, 3), np.uint8))
  assert empty.shape == (0, 17, 3)


def test_movenet_rejects_another_model(tmp_path):
  pytest.importorskip('onnxruntime')
  onnx = pytest.importorskip('onnx')
  path = tmp_path / 'other.onnx'
  save_onnx(onnx, path, [('x', 'FLOAT', [1, 3])], [('y', [1, 3])], [
      onnx.helper.make_node('Identity', ['x'], ['y'])
  ])  # fmt: skip
  with pytest.raises(ValueError, match=r'other.onnx: expected MoveNet'):
    movenet.load(path)


def test_what_is_no_model_is_named(tmp_path):
  pytest.importorskip('onnxruntime')
  path = tmp_path / 'page.onnx'
  path.write_text('<html>404</html>')
  with pytest.raises(ValueError, match=r'page.onnx: not a usable ONNX') as e:
    movenet.load(path)
  assert '\n' not in str(e.value)


# --- rtmlib -----------------------------------------------------------------


def save_onnx(onnx, path, inputs, outputs, nodes, constants=()):
  h, types = onnx.helper, onnx.TensorProto
  graph = h.make_graph(
      nodes,
      'graph',
      [h.make_tensor_value_info(n, getattr(types, t), s) for n, t, s in inputs],
      [h.make_tensor_value_info(n, types.FLOAT, s) for n, s in outputs],
      [onnx.numpy_helper.from_array(a, n) for n, a in constants],
  )
  model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)])
  model.ir_version = 8
  onnx.save(model, str(path))


BOXES = np.array([[40, 20, 100, 200], [120, 50, 300, 90]], np.float32)
SIDE, WIDTH, HEIGHT = 320, 48, 64  # of the detector, of the pose model


def fake_wholebody(onnx, folder, face_score=0.9):
  """Models of rtmlib's form that answer only to a picture that is all blue,
  each in the order of channels that it was trained with."""
  node = onnx.helper.make_node
  channel = lambda i: [  # noqa: E731
      node('Gather', ['image', 'channel'], ['plane'], axis=1),
      node('ReduceMax', ['plane'], ['level'], keepdims=0),
  ]
  # A detector with its own NMS: [1, n, (x1, y1, x2, y2, score)].
  found = np.concatenate([BOXES, [[0.9], [0.8]]], 1)[None].astype(np.float32)
  found[..., :4] *= SIDE / 400  # the test's picture is 400 wide
  save_onnx(
      onnx,
      folder / 'det.onnx',
      [('image', 'FLOAT', [1, 3, SIDE, SIDE])],
      [('found', [1, 2, 5])],
      [
          *channel(0),
          node('Equal', ['level', 'full'], ['is_blue']),
          node('Where', ['is_blue', 'boxes', 'nothing'], ['found']),
      ],
      [
          ('channel', np.array(0)),  # blue in BGR
          ('full', np.array(255, np.float32)),
          ('boxes', found),
          ('nothing', np.zeros_like(found)),
      ],
  )
  # SimCC: per point a distribution over half pixels of each axis.
  score = np.full(133, 0.9, np.float32)
  score[23:91] = face_score
  score[3] = 0.2  # a joint that is not there
  score[23] = 1.3 if face_score > 0.5 else face_score
  x = np.zeros((1, 133, 2 * WIDTH), np.float32)
  y = np.zeros((1, 133, 2 * HEIGHT), np.float32)
  points = np.arange(133)
  x[0, points, points % (2 * WIDTH)] = score
  y[0, points, points % (2 * HEIGHT)] = score
  save_onnx(
      onnx,
      folder / 'pose.onnx',
      [('image', 'FLOAT', [1, 3, HEIGHT, WIDTH])],
      [('x', list(x.shape)), ('y', list(y.shape))],
      [
          *channel(2),
          # Normalised blue is 2.64, normalised 0 is -1.8.
          node('Clip', ['level', 'zero', 'one'], ['gate']),
          node('Mul', ['x0', 'gate'], ['x']),
          node('Mul', ['y0', 'gate'], ['y']),
      ],
      [
          ('channel', np.array(2)),  # blue in RGB
          ('zero', np.array(0, np.float32)),
          ('one', np.array(1, np.float32)),
          ('x0', x),
          ('y0', y),
      ],
  )
  return folder / 'pose.onnx', folder / 'det.onnx'


def blue():
  return np.full((300, 400, 3), (0, 0, 255), np.uint8)


def test_rtmlib_gives_bodies_and_faces_in_image_pixels(tmp_path):
  pytest.importorskip('rtmlib')
  onnx = pytest.importorskip('onnx')
  pose, detector = fake_wholebody(onnx, tmp_path)
  annotate = rtmlib_wholebody.load(pose, detector)
  bodies, faces = annotate(blue())
  assert bodies.shape == (2, 17, 3) and faces.shape == (2, 68, 3)
  assert bodies.dtype == faces.dtype == np.float32
  for person, (x1, y1, x2, y2) in enumerate(BOXES):
    # The box enlarged by a quarter, then widened to the model's aspect ratio.
    w, h = 1.25 * (x2 - x1), 1.25 * (y2 - y1)
    w, h = max(w, h * WIDTH / HEIGHT), max(h, w * HEIGHT / WIDTH)
    for got, first in ((bodies, 0), (faces, 23)):
      points = np.arange(first, first + got.shape[1])
      x = (x1 + x2) / 2 + w * (points % (2 * WIDTH) / 2 / WIDTH - 0.5)
      y = (y1 + y2) / 2 + h * (points % (2 * HEIGHT) / 2 / HEIGHT - 0.5)
      np.testing.assert_allclose(
          got[person, :, :2], np.stack([x, y], -1), atol=1e-2
      )
  np.testing.assert_allclose(bodies[0, :5, 2], [0.9, 0.9, 0.9, 0, 0.9])
  np.testing.assert_allclose(faces[0, :2, 2], [1, 0.9])


def test_rtmlib_leaves_out_faces_from_behind_and_empty_pictures(tmp_path):
  pytest.importorskip('rtmlib')
  onnx = pytest.importorskip('onnx')
  annotate = rtmlib_wholebody.load(
      *fake_wholebody(onnx, tmp_path, face_score=0.1)
  )
  bodies, faces = annotate(blue())
  assert len(bodies) == 2 and faces.shape == (0, 68, 3)
  # Without boxes rtmlib itself would treat the whole image as a person.
  dark = np.full((300, 400, 3), (0, 0, 200), np.uint8)
  bodies, faces = annotate(dark)
  assert bodies.shape == (0, 17, 3) and faces.shape == (0, 68, 3)


# --- dlib -------------------------------------------------------------------


@needs(PREDICTOR, SHARED / 'data' / 'faces')
def test_dlib_finds_the_stored_landmarks():
  """shared/data/faces/annotations.jsonl was made with the same files."""
  pytest.importorskip('dlib')
  annotate = dlib_faces.load(PREDICTOR)
  folder = SHARED / 'data' / 'faces'
  lines = (folder / 'annotations.jsonl').read_text().splitlines()
  for line in lines[::300]:
    entry = json.loads(line)
    data = (folder / entry["file"]).read_bytes()
    image = decoding.decode_image(data)
    bodies, faces = annotate(image)
    assert bodies is None
    np.testing.assert_array_equal(
        faces, np.reshape(entry['faces'], (-1, 68, 3)).astype(np.float32)
    )


# --- with a real model over a dataset ---------------------------------------


@needs(MOVENET, COCO)
def test_two_workers_write_what_one_writes(tmp_path):
  pytest.importorskip('onnxruntime')
  data = tmp_path / 'data'
  data.mkdir()
  rows = ['file,split,label']
  for path in sorted((COCO / 'val2017').iterdir()):
    (data / path.name).write_bytes(path.read_bytes())
    rows.append(f'{path.name},train,x')
  (data / 'labels.csv').write_text('\n'.join(rows) + '\n')
  settings = annotate.Settings('movenet', model=str(MOVENET))
  one, two = tmp_path / 'one.jsonl', tmp_path / 'two.jsonl'
  report = annotate.annotate(data, settings, out=one)
  annotate.annotate(data, settings, out=two, workers=2)
  assert one.read_bytes() == two.read_bytes()
  assert (report.done, report.bodies) == (4, 12)
  # Rounding in the stored format does not reduce the accuracy.
  lines = {line['file']: line for line in jsonl.read(one)}
  similarity = []
  for name, (_, truth, area) in zip(coco_names(), coco_people()):
    assert lines[name]['faces'] is None
    similarity.extend(best_match(np.array(lines[name]['bodies']), truth, area))
  np.testing.assert_allclose(np.mean(similarity), 0.725, atol=0.01)
