"""Annotating a dataset: format, resuming, clips, preview, command line.

The annotator is a fake that finds one person whose coordinates encode the
colour of the image, so that every line identifies its frame.
"""

import json
import sys

import av
import cv2
import numpy as np
import official_layouts as layouts
import pytest

from vemd_jax.data import decoding, folder, jsonl, prepared, video
from vemd_jax.prepare import annotate, backends, index, preview
from vemd_jax.prepare import dataset as prepare
from vemd_jax.prepare.annotate import Settings

FAKE = Settings('movenet')  # made_with takes no file of it


def colour(image):
  """Body at (red, green), face at (blue, 5), of the picture's middle."""
  r, g, b = image[image.shape[0] // 2, image.shape[1] // 2].astype(np.float32)
  body = np.tile(np.array([r, g, 0.25], np.float32), (1, 17, 1))
  face = np.tile(np.array([b, 5, 1], np.float32), (1, 68, 1))
  return body, face


def picture(path, rgb, size=(40, 60)):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.full((*size, 3), rgb[::-1], np.uint8)
  # imwrite does not support non-ASCII names on every platform.
  path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def clip(path, frames=7):
  """Frame i is grey of about 30 i."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=8)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
    for i in range(frames):
      grey = np.full((48, 64, 3), 30 * i, np.uint8)
      for packet in stream.encode(av.VideoFrame.from_ndarray(grey)):
        container.mux(packet)
    container.mux(stream.encode(None))


@pytest.fixture
def data(tmp_path):
  """Two splits: images, one broken, one gone; frames in a folder; a video."""
  root = tmp_path / 'data'
  for i in range(3):
    picture(root / f'été {i}.png', (10 + i, 20, 30))
  (root / 'broken.png').write_bytes(b'\x89PNG nothing')
  for i in (1, 2, 10):
    picture(root / 'frames' / f'{i}.png', (i, 50, 60), (30, 20))
  clip(root / 'clip.mp4')
  rows = [
      'été 0.png,train,a', 'été 1.png,train,b', 'été 2.png,val,a',
      'broken.png,val,b', 'gone.png,val,b', 'frames,val,a', 'clip.mp4,Train,b',
  ]  # fmt: skip
  (root / 'labels.csv').write_bytes(
      '\r\n'.join(['file,split,label', *rows, '']).encode('utf-8-sig')
  )
  return root


def run(data, annotator=colour, **kwargs):
  return annotate.annotate(data, FAKE, annotator, **kwargs)


def lines_of(data):
  return jsonl.read(data / 'annotations.jsonl')


def test_every_image_and_frame_has_its_line(data):
  report = run(data)
  lines = {(x['file'], x.get('frame')): x for x in lines_of(data)}
  assert set(lines) == {
      *((f'été {i}.png', None) for i in range(3)),
      *(('frames', i) for i in range(3)),
      *(('clip.mp4', i) for i in range(7)),
  }
  for i in range(3):
    line = lines[f'été {i}.png', None]
    assert (line['width'], line['height']) == (60, 40)
    assert line['bodies'] == [[[10 + i, 20, 0.25]] * 17]
    assert line['faces'] == [[[30, 5, 1]] * 68]
    # 2.png comes before 10.png.
    assert lines['frames', i]['bodies'][0][0][0] == (1, 2, 10)[i]
  for i in range(7):
    assert abs(lines['clip.mp4', i]['bodies'][0][0][0] - 30 * i) < 6
  assert (report.done, report.kept, report.images) == (5, 0, 13)
  assert report.unreadable == 2
  assert len(report.problems) == 2
  assert 'broken.png' in str(report) and 'gone.png' in str(report)


def test_the_folder_source_reads_it(data):
  run(data)
  source = folder.Folder(data, 'val', max_unreadable=0.5)
  frames = source[source.files.index('frames')]
  assert [b[0, 0, 0] for b in frames['bodies']] == [1, 2, 10]
  image = source[source.files.index('été 2.png')]
  np.testing.assert_array_equal(image['faces'][0][0, 3], [30, 5, 1])
  assert not source.report.invalid_lines
  train = folder.Folder(data, 'train')
  clips = train[train.files.index('clip.mp4')]
  assert sorted(clips['bodies']) == list(range(7))


def test_a_part_that_is_not_looked_for_is_not_annotated(data):
  run(data, lambda image: (None, colour(image)[1]))
  assert all(line['bodies'] is None for line in lines_of(data))
  source = folder.Folder(data, 'train')
  assert source[0]['bodies'] == [None] and len(source[0]['faces'][0]) == 1


@pytest.mark.parametrize('stop_at', [0, 1, 4, 9])
def test_interrupted_and_started_again_it_goes_on(data, tmp_path, stop_at):
  straight = tmp_path / 'straight.jsonl'
  run(data, out=straight)
  calls = []

  def stopping(image):
    if len(calls) == stop_at:
      raise KeyboardInterrupt
    calls.append(1)
    return colour(image)

  with pytest.raises(KeyboardInterrupt):
    run(data, stopping)
  path = data / 'annotations.jsonl'
  # The writer may also be killed in the middle of a line.
  with path.open('ab') as file:
    file.write('{"file":"été 2.p'.encode()[:-1])
  report = run(data)
  assert path.read_bytes() == straight.read_bytes()
  assert report.kept + report.done == 5
  assert run(data, stopping).done == 0  # nothing is left to annotate
  assert path.read_bytes() == straight.read_bytes()


def test_a_clip_without_its_last_line_is_done_again(data):
  run(data)
  path = data / 'annotations.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  last = b'"clip.mp4","frame":6'
  path.write_bytes(b''.join(x for x in lines if last not in x))
  assert run(data).done == 1
  found = {x['frame'] for x in lines_of(data) if x['file'] == 'clip.mp4'}
  assert found == set(range(7))


def test_frames_are_those_that_training_reads(data):
  run(data, frames=3)
  train = [x for x in lines_of(data) if x['file'] == 'clip.mp4']
  assert [x['frame'] for x in train] == video.spread(7, 3).tolist()
  read = video.read_frames(str(data / 'clip.mp4'), 3)
  assert [x['frame'] for x in train] == read.indices.tolist()
  assert run(data, frames=3).done == 0
  # Another number adds its frames; all frames include those of any number.
  assert run(data, frames=2).done == 2
  assert run(data).done == 2
  assert run(data, frames=3).done == 0
  assert run(data, frames=5).done == 0
  numbers = {x['frame'] for x in lines_of(data) if x['file'] == 'clip.mp4'}
  assert numbers == set(range(7))


def test_a_damaged_frame_of_a_clip_is_left_out_alone(data):
  (data / 'frames' / '2.png').write_bytes(b'nothing')
  report = run(data)
  numbers = [x['frame'] for x in lines_of(data) if x['file'] == 'frames']
  assert numbers == [0, 2]
  assert any('frames frame 1' in p for p in report.problems)
  assert run(data).kept == 5


def test_another_making_is_noticed(data, tmp_path):
  run(data)
  path = data / 'annotations.jsonl'
  before = path.read_bytes()
  model = tmp_path / 'm.onnx'
  model.write_bytes(b'weights')
  other = Settings('movenet', model=str(model))
  with pytest.raises(ValueError, match=r'annotations.jsonl was made with'):
    annotate.annotate(data, other, colour)
  assert path.read_bytes() == before
  # Moved weights are the same settings; changed weights are not.
  annotate.annotate(data, other, colour, overwrite=True)
  assert (data / 'annotations.jsonl.bak').read_bytes() == before
  moved = tmp_path / 'moved.onnx'
  moved.write_bytes(b'weights')
  moved = Settings('movenet', model=str(moved))
  assert annotate.annotate(data, moved, colour).done == 0
  model.write_bytes(b'other weights')
  with pytest.raises(ValueError, match=r'--overwrite starts a new file'):
    annotate.annotate(data, other, colour)


def test_annotations_of_someone_else_are_left_alone(data):
  path = data / 'annotations.jsonl'
  path.write_text('{"file": "été 0.png", "bodies": [], "faces": []}')
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r'made with unknown settings'):
    run(data)
  assert path.read_bytes() == before


def test_an_error_of_the_model_is_no_unreadable_image(data):
  def broken(image):
    raise ValueError('17 points, expected 133')

  with pytest.raises(ValueError, match='expected 133'):
    run(data, broken)


def test_two_runs_at_once_do_not_mix(data):
  def nested(image):
    with pytest.raises(RuntimeError, match=r'another process is writing to'):
      run(data)
    return colour(image)

  assert run(data, nested).done == 5


def test_numbers_are_rounded_and_finite(data):
  def odd(image):
    body, face = colour(image)
    body[0, 0] = [1.23456, 2.98765, 0.123456]
    body[0, 1] = [np.nan, 3, 0.5]
    body[0, 2] = [3, 4, np.inf]
    return body, face

  run(data, odd)
  text = (data / 'annotations.jsonl').read_text(encoding='utf-8')
  assert 'NaN' not in text and 'Infinity' not in text
  person = lines_of(data)[0]['bodies'][0]
  assert person[:3] == [[1.2, 3.0, 0.123], [0, 0, 0], [0, 0, 0]]


def test_nobody_is_an_empty_list(data):
  nobody = np.zeros((0, 17, 3), np.float32), np.zeros((0, 68, 3), np.float32)
  report = run(data, lambda image: nobody)
  assert all(x['bodies'] == x['faces'] == [] for x in lines_of(data))
  assert (report.bodies, report.faces) == (0, 0)


def test_nothing_else_is_written(data):
  """Lines have the documented keys, the sidecar only the settings."""
  run(data)
  keys = {key for line in lines_of(data) for key in line}
  assert keys == {
      'file', 'frame', 'width', 'height', 'bodies', 'faces', 'clip_done'
  }  # fmt: skip
  assert jsonl.meta(data / 'annotations.jsonl') == backends.made_with(FAKE)
  new = {p.name for p in data.iterdir()} - {
      'labels.csv', 'broken.png', 'frames', 'clip.mp4',
      *(f'été {i}.png' for i in range(3)),
  }  # fmt: skip
  assert new == {'annotations.jsonl', 'annotations.meta.json'}


def test_preview_draws_limbs_where_they_are(data, tmp_path):
  def cross(image):
    height, width = image.shape[:2]
    body = np.zeros((1, 17, 3), np.float32)
    # Shoulders, a quarter and three quarters of the width at half height.
    body[0, 5] = [width / 4, height / 2, 1]
    body[0, 6] = [3 * width / 4, height / 2, 1]
    return body, None

  run(data, cross)
  annotations = data / 'annotations.jsonl'
  path = annotate.preview(data, annotations, tmp_path / 'sheets', cell=100)
  sheet = cv2.imread(str(path))
  assert sheet.shape[0] > 100 and sheet.shape[1] > 100
  line = next(x for x in lines_of(data) if x['file'] == 'été 0.png')
  image = np.full((40, 60, 3), 7, np.uint8)
  drawn = preview.draw(image, line, side=120)
  assert drawn.shape == (80, 120, 3)
  assert (drawn[40, 40:80] != 7).any(-1).all()
  assert (drawn[40, :20] == 7).all() and (drawn[:30] == 7).all()


# --- prepared data ----------------------------------------------------------


def _prepare(name, root, frames):
  source = root / 'source'
  layouts.MAKERS[name](source)
  prepare.prepare(
      name, source, root / 'out', index.Options(frames=frames), workers=1,
      log=lambda _: None,
  )  # fmt: skip
  return root / 'out'


def test_prepared_images_and_clips(tmp_path):
  data = _prepare('vgaf', tmp_path, 4)
  report = run(data)
  names = json.loads((data / 'prepared.json').read_text())['splits']
  splits = [prepared.PreparedSource(data, split=name) for name in names]
  assert report.done == sum(len(s) for s in splits)
  for source in splits:
    assert source.report.annotated == len(source)
    assert not source.report.invalid_lines
    for i in range(len(source)):
      record = source[i]
      assert len(record['bodies']) == len(record['frames']) == 4
      for frame, bodies in zip(record['frames'], record['bodies']):
        want, _ = colour(decoding.decode_image(frame))
        np.testing.assert_array_equal(bodies, want)
  # Training with fewer frames uses a subset of them.
  assert run(data, frames=2).done == 0
  # Killed in the very first line.
  (data / 'annotations.jsonl').write_bytes(b'{"file":"torn')
  assert run(data).done == report.done


def test_prepared_folds_have_each_sample_once(tmp_path):
  data = _prepare('dfew', tmp_path, 2)
  run(data)
  keys = [(x['file'], x['frame']) for x in lines_of(data)]
  assert len(keys) == len(set(keys))
  source = prepared.PreparedSource(data, split='train', fold=2)
  assert source.report.annotated == len(source) > 0


# --- command line -----------------------------------------------------------


def test_a_missing_package_is_one_line(data, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'rtmlib', None)
  assert annotate.main([f'--data={data}']) == 1
  error = capsys.readouterr().err.strip()
  assert "pip install 'vemd-jax[annotate]'" in error and '\n' not in error
  assert not (data / 'annotations.jsonl').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (['--backend=openpose'], 'expected one of rtmlib, movenet, dlib'),
        (['--backend=movenet'], 'needs --model=FILE.onnx'),
        (['--backend=dlib'], 'needs --face_model=FILE.dat'),
        (['--backend=movenet', '--model=/no/x.onnx'], '/no/x.onnx does not'),
        (['--min_score=2'], '--min_score=2.0'),
        (['--frames=-1'], '--frames=-1'),
    ],
)
def test_wrong_options_are_one_line(data, capsys, options, message):
  assert annotate.main([f'--data={data}', *options]) == 1
  error = capsys.readouterr().err.strip()
  assert message in error and '\n' not in error


def test_no_data_is_one_line(tmp_path, capsys):
  assert annotate.main([f'--data={tmp_path}']) == 1
  error = capsys.readouterr().err.strip()
  assert 'no such labels.csv' in error and '\n' not in error
  assert annotate.main([f'--data={tmp_path / "typo"}']) == 1
  assert 'typo is not a folder' in capsys.readouterr().err
  assert not (tmp_path / 'typo').exists()


def test_command_line_reports_and_previews(data, capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(annotate, 'load', lambda settings: colour)
  model = tmp_path / 'm.onnx'
  model.write_bytes(b'')
  arguments = [
      f'--data={data}', '--backend=movenet', f'--model={model}',
      f'--preview={tmp_path / "sheets"}',
  ]  # fmt: skip
  assert annotate.main(arguments) == 0
  out = capsys.readouterr().out
  assert '5 rows annotated (13 images, 13 bodies, 13 faces)' in out
  assert 'broken.png' in out and 'annotations.png' in out
  assert annotate.main(arguments) == 0
  assert '0 rows annotated' in capsys.readouterr().out
  # The written lines are standard JSON.
  for line in (data / 'annotations.jsonl').read_bytes().splitlines():
    json.loads(line)
