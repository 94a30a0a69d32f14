"""The command with a model of known output: the brightness of its input."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import ClassVar

import av
import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from vemd_jax import config as config_lib
from vemd_jax import inference, predict, weights
from vemd_jax.inference import clips
from vemd_jax.inference import trained as trained_lib
from vemd_jax.models.outputs import Latent, Outputs, Structure

CLASSES = ('dark', 'bright')
SIDE = 16
ROOT = pathlib.Path(__file__).parents[1]


def fake_model(frames=1, decodes=True, seen=None):
  """p(bright) is the mean of the clip / 255; heatmaps where it is red."""

  def prepare(images):
    assert len(images) == frames
    return np.stack([cv2.resize(image, (SIDE, SIDE)) for image in images])

  def forward(image):
    assert image.dtype == np.uint8
    assert image.shape[1:] == (frames, SIDE, SIDE, 3)
    if seen is not None:
      seen.append(image)
    bright = image.mean((1, 2, 3, 4)) / 255
    red = (image[..., 0] > 200) & (image[..., 1] < 50)
    logits = np.where(red, 9.0, -9.0)[None, ..., None]
    body = Structure(heatmap_logits=np.repeat(logits, 18, -1))
    outputs = Outputs(logits=None, latents=(), body=body if decodes else None)
    return np.stack([1 - bright, bright], 1), outputs

  return inference.Model(
      config={},
      classes=CLASSES,
      frames=frames,
      prepare=prepare,
      probabilities=lambda image: forward(image)[0],
      outputs=forward,
      decodes=decodes,
  )


def run(*argv, model=None):
  model = model or fake_model()
  argv = [str(a) for a in argv]
  return predict.main(['--workdir=W', *argv], load=lambda w, d: model)


def save(path, grey, size=(20, 30)):
  cv2.imwrite(str(path), np.full((*size, 3), grey, np.uint8))


def save_video(path, greys, rate=10):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=rate)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
    for grey in greys:
      image = np.full((48, 64, 3), grey, np.uint8)
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def json_lines(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_of_photos_in_order(tmp_path, capsys):
  for name, grey in ('b.png', 51), ('a.png', 204), ('c.jpg', 255):
    save(tmp_path / name, grey)
  files = [str(tmp_path / n) for n in ('b.png', 'a.png', 'c.jpg')]
  seen = []
  model = fake_model(seen=seen)
  assert run(*files, '--json', '--batch_size=2', model=model) == 0
  answers = json_lines(capsys)
  assert [a['file'] for a in answers] == files
  assert [a['label'] for a in answers] == ['dark', 'bright', 'bright']
  for answer, p in zip(answers, (0.2, 0.8, 1.0)):
    assert set(answer) == {'file', 'label', 'probabilities'}
    assert list(answer['probabilities']) == list(CLASSES)
    assert answer['probabilities']['bright'] == pytest.approx(p, abs=1e-3)
  # One shape for all batches, so one compilation.
  assert [len(batch) for batch in seen] == [2, 2]


def test_table(tmp_path, capsys):
  save(tmp_path / 'group.png', 51)
  assert run(tmp_path / 'group.png') == 0
  head, row = capsys.readouterr().out.splitlines()
  assert head.split() == ['file', 'group', 'dark', 'bright']
  path = str(tmp_path / 'group.png')
  assert row.split() == [path, 'dark', '0.8000', '0.2000']
  assert len(head) == len(row)


def test_folder_is_searched_in_order(tmp_path, capsys):
  (tmp_path / 'inner').mkdir()
  save(tmp_path / 'z.png', 0)
  save(tmp_path / 'inner' / 'a.JPG', 0)
  (tmp_path / 'labels.csv').write_text('file\n')
  (tmp_path / 'inner' / '._a.JPG').write_bytes(b'metadata of macOS')
  assert run(tmp_path, '--json') == 0
  names = [a['file'] for a in json_lines(capsys)]
  assert names == [str(tmp_path / 'inner' / 'a.JPG'), str(tmp_path / 'z.png')]


def test_unreadable_files_are_named_and_the_others_done(tmp_path, capsys):
  save(tmp_path / 'good.png', 0)
  (tmp_path / 'empty.jpg').write_bytes(b'')
  (tmp_path / 'text.jpg').write_text('no image')
  (tmp_path / 'bad.mp4').write_bytes(b'no video')
  names = ['empty.jpg', 'missing.png', 'bad.mp4', 'text.jpg', 'no.mp4']
  files = [tmp_path / n for n in names]
  assert run(*files, tmp_path / 'good.png', '--json') == 1
  captured = capsys.readouterr()
  errors = captured.err.splitlines()
  assert len(errors) == len(files)
  for path, error in zip(files, errors):
    assert re.match(re.escape(f'{path}: ') + r'\w', error)
  assert json.loads(captured.out)['file'] == str(tmp_path / 'good.png')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['missing_folder/'], 'missing_folder'),
        (['.', '--batch_size=0'], 'not above 0'),
        (['.', '--stride=x'], 'invalid float'),
        ([], 'PHOTO'),
    ],
)
def test_wrong_arguments(argv, message, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  try:
    code = run(*argv)
  except SystemExit as stop:
    code = stop.code
  assert code in (1, 2)
  assert message in capsys.readouterr().err


def test_empty_folder_missing_workdir_and_no_structure(tmp_path, capsys):
  assert run(tmp_path) == 2
  assert str(tmp_path) in capsys.readouterr().err
  save(tmp_path / 'a.png', 0)
  missing = tmp_path / 'nothing'
  argv = [str(tmp_path / 'a.png'), f'--workdir={missing}']
  assert predict.main(argv) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and str(missing) in error
  missing.mkdir()
  assert predict.main(argv) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and str(missing) in error
  model = fake_model(decodes=False)
  overlay = f'--overlay={tmp_path / "o"}'
  assert run(tmp_path / 'a.png', overlay, model=model) == 2
  assert '--overlay' in capsys.readouterr().err


def test_choice_of_the_head():
  assert trained_lib.choose_head(('gaf3',), '') == 'gaf3'
  assert trained_lib.choose_head(('gaf3', 'vgaf'), 'vgaf') == 'vgaf'
  for heads, wanted in (('gaf3', 'vgaf'), ''), (('gaf3', 'vgaf'), 'dfew'):
    with pytest.raises(ValueError, match=r'--dataset=gaf3\|vgaf'):
      trained_lib.choose_head(heads, wanted)
  with pytest.raises(ValueError, match='no emotion head'):
    trained_lib.choose_head((), '')


def test_video_timeline_of_single_images(tmp_path, capsys):
  path = tmp_path / 'v.mp4'
  save_video(path, [30] * 20 + [220] * 10)  # 2 s dark, 1 s bright.
  assert run(path, '--json', '--stride=0.5') == 0
  (answer,) = json_lines(capsys)
  timeline = answer['timeline']
  times = [t['seconds'] for t in timeline]
  assert times == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
  assert [t['label'] for t in timeline] == ['dark'] * 4 + ['bright'] * 2
  values = [t['probabilities']['bright'] for t in timeline]
  greys = np.array([30] * 4 + [220] * 2)
  np.testing.assert_allclose(values, greys / 255, atol=0.02)
  assert answer['probabilities']['bright'] == pytest.approx(np.mean(values))
  assert answer['label'] == 'dark'

  assert run(path, '--stride=1') == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 + 3
  assert lines[-1].split()[:3] == ['2.5', 's', 'bright']


def test_video_windows_hold_t_frames(tmp_path, capsys):
  path = tmp_path / 'v.avi'
  save_video(path, [10 * second for second in range(12) for _ in range(10)])
  seen = []
  model = fake_model(frames=4, seen=seen)
  argv = ['--json', '--window=4', '--stride=2', '--batch_size=3']
  assert run(path, *argv, model=model) == 0
  (answer,) = json_lines(capsys)
  # Windows from 0, 2, 4, 6, 8 s; frames in the middle of their seconds.
  assert [t['seconds'] for t in answer['timeline']] == [2, 4, 6, 8, 10]
  clips = np.concatenate(seen)
  assert len(clips) == 6 and clips[5].max() == 0  # Padding.
  greys = clips[:5].mean((2, 3, 4))
  expected = [[10 * (2 * i + k) for k in range(4)] for i in range(5)]
  np.testing.assert_allclose(greys, expected, atol=3)


def test_last_window_reaches_the_end_and_short_videos_have_one(tmp_path):
  path = str(tmp_path / 'v.mp4')
  save_video(path, [60] * 70)
  times = [c.seconds for c in clips.read_video(path, 2, 2.0, 3.0)]
  assert times == [1.0, 4.0, 6.0]  # 0-2, 3-5, and 5-7 s.
  save_video(path, [10 * k for k in range(5)])
  (clip,) = clips.read_video(path, 5, 5.0, 1.0)
  greys = [image.mean() for image in clip.images]
  np.testing.assert_allclose(greys, [0, 10, 20, 30, 40], atol=3)
  assert 0 < clip.seconds < 0.5
  (clip,) = clips.read_video(path, 1, 5.0, 10.0)  # Below half a stride.
  assert len(clip.images) == 1


def test_photo_for_a_model_of_clips(tmp_path, capsys):
  save(tmp_path / 'a.png', 102)
  assert run(tmp_path / 'a.png', '--json', model=fake_model(frames=3)) == 0
  (answer,) = json_lines(capsys)
  assert answer['probabilities']['bright'] == pytest.approx(0.4, abs=1e-3)
  assert 'timeline' not in answer


def test_results_say_nothing_about_single_people(tmp_path, capsys):
  path = tmp_path / 'v.mp4'
  save_video(path, [90] * 20)
  save(tmp_path / 'a.png', 0)
  run(path, tmp_path / 'a.png', '--json', f'--overlay={tmp_path / "o"}')
  for answer in json_lines(capsys):
    assert set(answer) <= {'file', 'label', 'probabilities', 'timeline'}
    for moment in answer.get('timeline', ()):
      assert set(moment) == {'seconds', 'label', 'probabilities'}


def test_overlays(tmp_path, capsys):
  image = np.full((120, 200, 3), 90, np.uint8)
  image[60:90, 25:100] = 0, 0, 255  # BGR: a red box.
  for folder in 'a', 'b':
    (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / folder / 'x.png'), image)
  save_video(tmp_path / 'v.mp4', [90] * 20)
  out = tmp_path / 'new' / 'out'
  argv = [tmp_path / 'a', tmp_path / 'b', tmp_path / 'v.mp4']
  assert run(*argv, f'--overlay={out}') == 0
  assert sorted(p.name for p in out.iterdir()) == [
      'v_00000.50s_overlay.jpg', 'v_00001.50s_overlay.jpg',
      'x_2_overlay.jpg', 'x_overlay.jpg',
  ]  # fmt: skip
  overlay = cv2.imread(str(out / 'x_overlay.jpg')).astype(int)
  assert overlay.shape == image.shape
  changed = np.abs(overlay - image).max(-1) > 40
  assert changed[65:85, 32:90].mean() > 0.95
  assert changed[:45].mean() < 0.01 and changed[:, 120:].mean() < 0.01
  assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 1 + 2


def make_folder(folder, count):
  folder.mkdir(exist_ok=True)
  for i in range(count):
    save(folder / f'{i:03d}.png', 5 * i)
  (folder / '004.png').write_text('no image')
  save_video(folder / '002_clip.mp4', [30] * 20 + [220] * 10)


def rows_of_csv(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def test_batches_cross_files(tmp_path, capsys):
  make_folder(tmp_path / 'in', 8)
  seen = []
  assert run(tmp_path / 'in', '--json', '--batch_size=5',
             model=fake_model(seen=seen)) == 1  # fmt: skip
  names = [a['file'].rpartition('/')[2] for a in json_lines(capsys)]
  assert names == ['000.png', '001.png', '002.png', '002_clip.mp4', '003.png',
                   '005.png', '006.png', '007.png']  # fmt: skip
  # Seven photographs and three moments of the video make two batches.
  assert [len(batch) for batch in seen] == [5, 5]
  greys = np.concatenate(seen).mean((1, 2, 3, 4))
  expected = [0, 5, 10, 30, 30, 220, 15, 25, 30, 35]
  np.testing.assert_allclose(greys, expected, atol=4)


def test_csv_json_lines_and_parquet_say_the_same(tmp_path, capsys):
  parquet = pytest.importorskip('pyarrow.parquet')
  make_folder(tmp_path / 'in', 8)
  (tmp_path / 'in' / 'a, "b"\n.png').write_bytes(
      (tmp_path / 'in' / '001.png').read_bytes()
  )
  for suffix in 'csv', 'jsonl', 'parquet':
    out = tmp_path / 'out' / f'moods.{suffix}'
    assert run(tmp_path / 'in', f'--out={out}') == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f'{out}: 9 files predicted, 1 unreadable')
    assert '004.png: not a readable image' in printed.err
  lines = (tmp_path / 'out' / 'moods.jsonl').read_text().splitlines()
  answers = {a['file']: a for a in map(json.loads, lines)}
  table = rows_of_csv(tmp_path / 'out' / 'moods.csv')
  assert list(table[0]) == ['file', 'seconds', 'label', 'p_dark', 'p_bright',
                            'error']  # fmt: skip
  arrow = parquet.read_table(tmp_path / 'out' / 'moods.parquet').to_pylist()
  assert len(table) == len(arrow) == 10 + 3  # Three moments of the video.
  for row, other in zip(table, arrow):
    answer = answers[row['file']]
    assert {k: '' if v is None else str(v) for k, v in other.items()} == row
    if row['seconds']:
      moments = {m['seconds']: m for m in answer['timeline']}
      answer = moments[float(row['seconds'])]
    assert row['error'] == answer.get('error', '')
    assert row['label'] == answer.get('label', '')
    if row['label']:
      assert float(row['p_bright']) == answer['probabilities']['bright']


def test_an_interrupted_command_goes_on(tmp_path, capsys):
  make_folder(tmp_path / 'in', 12)
  whole, out = tmp_path / 'whole.csv', tmp_path / 'moods.csv'
  assert run(tmp_path / 'in', f'--out={whole}') == 1
  model, seen = fake_model(), []

  def stopped(image):
    if len(seen) == 2:
      raise KeyboardInterrupt
    seen.append(image)
    return model.probabilities(image)

  argv = [tmp_path / 'in', f'--out={out}', '--batch_size=4']
  broken = model._replace(probabilities=stopped)
  assert run(*argv, model=broken) == 130
  assert not out.exists()
  # A line that was being written when the process died.
  with (tmp_path / 'moods.csv.jsonl').open('a') as file:
    file.write('{"file": "')
  seen = []
  assert run(*argv, model=fake_model(seen=seen)) == 1
  assert 1 <= len(seen) <= 2
  assert rows_of_csv(out) == rows_of_csv(whole)
  # Only the file that could not be read is tried again, and what is new.
  save(tmp_path / 'in' / '004.png', 50)
  save(tmp_path / 'in' / 'new.png', 60)
  seen = []
  assert run(*argv, model=fake_model(seen=seen)) == 0
  assert [len(batch) for batch in seen] == [2]
  rows = rows_of_csv(out)
  assert len(rows) == 14 + 3 and not any(row['error'] for row in rows)
  capsys.readouterr()
  assert run(*argv) == 0
  assert '0 files predicted, 0 unreadable, 14 predicted' in (
      capsys.readouterr().out
  )


def test_results_of_two_models_do_not_mix(tmp_path, capsys):
  make_folder(tmp_path / 'in', 3)
  out = tmp_path / 'moods.jsonl'
  assert run(tmp_path / 'in', f'--out={out}') == 1
  other = fake_model()._replace(step=9)
  assert run(tmp_path / 'in', f'--out={out}', model=other) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith(f'error: {out} was made with')
  assert '"step": 0' in error
  assert run(tmp_path / 'in', f'--out={out}', '--overwrite', model=other) == 1
  assert (tmp_path / 'moods.jsonl.bak').exists()
  assert run(tmp_path / 'in', f'--out={tmp_path / "a.xlsx"}') == 2
  assert 'a.xlsx: expected a name that ends in .csv' in capsys.readouterr().err


def test_names_that_are_no_text(tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  save(tmp_path / 'good.png', 0)
  name = os.fsdecode(os.fsencode(tmp_path / 'in') + b'/\xff.png')
  os.rename(tmp_path / 'good.png', name)
  out = tmp_path / 'o.csv'
  for _ in range(2):
    assert run(tmp_path / 'in', f'--out={out}') == 0
  (row,) = rows_of_csv(out)
  assert row['file'] == f'{tmp_path}/in/\\xff.png'
  assert run(tmp_path / 'in') == 0


@pytest.mark.slow
def test_ten_thousand_files_in_constant_memory(tmp_path):
  """The most that a process holds does not grow with the number of files."""
  save(tmp_path / 'a.png', 100, (600, 800))
  peaks = []
  for count in 500, 10_000:
    folder = tmp_path / f'{count}'
    folder.mkdir()
    for i in range(count):
      (folder / f'{i:05d}.png').symlink_to(tmp_path / 'a.png')
    code = (
        'import resource\n'
        'from tests import test_predict as t\n'
        f'assert t.run("{folder}", "--out={folder}.csv") == 0\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    )
    process = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert len(rows_of_csv(tmp_path / f'{count}.csv')) == count
    peaks.append(int(process.stdout.split()[-1]) / 1024)
  assert peaks[1] < peaks[0] + 40, peaks  # MiB; a file decoded has 1.4.


class BrightModel:
  """Replaces VEMD: the logits are the brightness of each frame."""

  made_with: ClassVar = {}

  def __init__(self, **fields):
    self.made_with.update(fields)

  def apply(self, variables, batch, *, dataset, train):
    assert (dataset, train) == ('mine', False)
    bright = batch['image'].astype(jnp.float32).mean((2, 3, 4)) / 255
    logits = bright * variables['params']['scale'][None]
    limbs = jnp.full((*bright.shape, 4, 18, 4), 0.5)
    return Outputs(
        logits=logits,
        latents=(Latent(bright, None, bright),),
        body=Structure(limbs=limbs, presence_logits=limbs[..., 0, 0]),
    )


def test_load_model(tmp_path, monkeypatch):
  """Config, classes and weights of a workdir become a model of images."""
  config = config_lib.default()
  config.data.update(name='mine', image_size=32, frames=2, grayscale=True)
  config = config_lib.finish(config, 've_md')
  variables = {'params': {'scale': jnp.array([3.0, 2.0])}}
  classes = {'mine': CLASSES, 'structure_only': ()}
  config_lib.save(config, tmp_path / 'config.json')
  (tmp_path / 'classes.json').write_text(json.dumps(classes))
  monkeypatch.setattr(weights, 'restore_step', lambda w: (variables, 7))
  monkeypatch.setattr(trained_lib, 'VEMD', BrightModel)
  model = inference.load(str(tmp_path))
  assert (model.classes, model.frames, model.decodes) == (CLASSES, 2, True)
  assert model.step == 7
  fields = BrightModel.made_with
  assert fields.pop('classes') == (('mine', 2), ('structure_only', 0))
  assert fields == config.model.to_dict()

  red = np.zeros((50, 70, 3), np.uint8) + np.uint8([255, 0, 0])
  white = np.full((64, 48, 3), 255, np.uint8)
  (prediction,) = inference.predict_clips(
      model, [clips.Clip(None, [red, white])], 3
  )
  assert prediction.input_size == (32, 32)
  # Grey of pure red: 0.299 by ITU-R BT.601.
  odds = np.exp([3 * 0.299, 2 * 1.0])
  expected = odds / odds.sum()
  np.testing.assert_allclose(prediction.probabilities, expected, atol=2e-3)
  limbs, presence = prediction.structure['body']
  assert limbs.shape == (4, 18, 4)
  np.testing.assert_allclose(presence, 1 / (1 + np.exp(-0.5)), rtol=1e-5)
