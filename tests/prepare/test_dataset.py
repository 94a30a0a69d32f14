"""Preparation of every dataset, from files in its official layout."""

import concurrent.futures
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import official_layouts as layouts
import pytest
from PIL import Image

from vemd_jax.data import datasets, decoding, files, prepared
from vemd_jax.prepare import chunks, encode, index
from vemd_jax.prepare import dataset as prepare


def run(name, root, make=None, **kwargs):
  """Makes a source once, prepares it in this process; returns the report."""
  source = root / 'source'
  if not source.exists():
    (make or layouts.MAKERS[name])(source)
  facts = datasets.get(name)
  options = index.Options(frames=kwargs.pop('frames', facts.frames), **kwargs)
  return prepare.prepare(
      name, source, root / 'out', options, workers=1, log=lambda _: None
  )


def records(root, split='train', **kwargs):
  """name -> record of a split."""
  source = prepared.PreparedSource(root / 'out', split=split, **kwargs)
  items = [source[i] for i in range(len(source))]
  assert [r['label'] for r in items] == source.labels.tolist()
  assert source.labels.dtype == np.int32
  return {Path(r['file']).name: r for r in items}


def pixels(data: bytes) -> np.ndarray:
  """RGB of a stored frame, without Pillow and regardless of EXIF."""
  flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
  return cv2.imdecode(np.frombuffer(data, np.uint8), flags)[..., ::-1]


def reasons(report):
  return {(Path(x['file']).name, x['reason']) for x in report['left_out']}


def remarks(report):
  return {h['remark']: [Path(f).name for f in h['files']]
          for h in report['handled']}  # fmt: skip


def near(a, b, tolerance=6):
  return np.abs(a.astype(float) - b).mean() < tolerance


# --- GAF-3.0 and images -----------------------------------------------------


def test_gaf3_folders_and_strange_images(tmp_path):
  report = run('gaf3', tmp_path, longer_side=200)
  found = records(tmp_path)
  assert report['splits']['train']['classes'] == {
      'negative': 4, 'neutral': 4, 'positive': 9,
  }  # fmt: skip
  assert report['splits']['val']['samples'] == 3
  assert report['splits']['val']['official'] == 4346
  assert reasons(report) == {
      ('empty.jpg', 'file is empty (0 bytes)'),
      ('torn.jpg', 'damaged image (OSError)'),
      ('page.jpg', 'not an image'),
      ('notes.txt', 'not an image file'),
  }
  assert found['Neutral1.jpg']['label'] == 1
  assert found['Grüße an alle.jpg']['label'] == 2
  image = layouts.picture()
  shown = {k: pixels(v['frames'][0]) for k, v in found.items()}
  assert near(shown['Grüße an alle.jpg'], image)
  assert near(shown['cmyk.jpg'], image, 12)
  assert near(shown['deep16.png'], image)
  assert near(shown['film.gif'], image, 12)
  assert near(shown['clear.png'], 255)
  ramp = np.linspace(0, 255, 48)[None, :, None]
  assert near(shown['grey16.png'], ramp)
  # Orientation 6: the stored top is the right side of the upright image.
  assert near(shown['turned.jpg'], np.rot90(image, -1))
  assert shown['large.png'].shape == (100, 200, 3)
  notes = remarks(report)
  assert notes['CMYK image: converted to RGB'] == ['cmyk.jpg']
  assert notes['16-bit image: converted to 8 bits'] == [
      'deep16.png', 'grey16.png',
  ]  # fmt: skip
  assert notes['animated image: its first frame'] == ['film.gif']
  assert notes['EXIF rotation applied'] == ['turned.jpg']


def test_metadata_is_removed_and_plain_jpegs_are_kept(tmp_path):
  run('gaf3', tmp_path)
  stored = records(tmp_path)
  original = tmp_path / 'source/GAF3.0_Original/Train/Positive/marked.jpg'
  data = original.read_bytes()
  assert b'SECRET' in data
  kept = stored['marked.jpg']['frames'][0]
  assert len(kept) < len(data)
  # Not reencoded, so no pixel differs.
  np.testing.assert_array_equal(pixels(kept), pixels(data))
  everything = b''.join(
      p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()
  )
  assert b'SECRET' not in everything
  assert b'Exif' not in everything


@pytest.mark.parametrize('kwargs', [
    {}, {'progressive': True}, {'optimize': True}, {'subsampling': 2},
    {'restart_marker_rows': 1}, {'icc_profile': b'SECRET' * 20000},
    {'exif': layouts.exif(1)}, {'comment': b'SECRET'},
])  # fmt: skip
def test_strip_jpeg_keeps_the_image(kwargs):
  noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(noise).save(buffer, 'JPEG', **kwargs)
  data = buffer.getvalue()
  stripped = encode.strip_jpeg(data + b'SECRET second picture')
  assert b'SECRET' not in stripped
  np.testing.assert_array_equal(pixels(stripped), pixels(data))


def test_strip_jpeg_gives_up_on_what_it_does_not_know():
  buffer = io.BytesIO()
  Image.fromarray(layouts.picture()).save(buffer, 'JPEG')
  data = buffer.getvalue()
  assert encode.strip_jpeg(b'GIF89a') is None
  assert encode.strip_jpeg(data[:200]) is None
  assert encode.strip_jpeg(data[:-2]) is None


def test_gaf3_flat_layout(tmp_path):
  report = run('gaf3', tmp_path, layouts.gaf3_flat)
  labels = {k: r['label'] for k, r in records(tmp_path).items()}
  assert labels == {
      '0.jpg': 0, '1.jpg': 1, '2.jpg': 2, '5.jpg': 1, 'Größe 7.jpg': 2,
  }  # fmt: skip
  assert reasons(report) == {
      ('3.jpg', 'rows disagree about its label: 0, 1'),
      ('4.jpg', "unknown label '9'"),
      ('gone.jpg', 'file is missing'),
      ('unlisted.jpg', 'no row in Train_labels.txt'),
      ('Train_labels.txt:12', 'row without Img_name, Labels'),
  }
  notes = remarks(report)
  assert notes['label file has Windows line ends'] == ['Train_labels.txt']
  assert notes['label file starts with a byte order mark'] == [
      'Train_labels.txt'
  ]
  assert notes['row is repeated in the label file'] == ['2.jpg']
  assert report['facts']['label order'].startswith('0 = negative')


def test_gaf3_label_order(tmp_path):
  order = ('positive', 'neutral', 'negative')
  report = run('gaf3', tmp_path, layouts.gaf3_flat, label_order=order)
  labels = {k: r['label'] for k, r in records(tmp_path).items()}
  assert labels['0.jpg'] == 2
  assert labels['2.jpg'] == 0
  assert report['facts']['label order'].startswith('0 = positive')


# --- videos -----------------------------------------------------------------


def test_vgaf(tmp_path):
  report = run('vgaf', tmp_path, audio=True)
  found = records(tmp_path)
  assert {k: r['label'] for k, r in found.items()} == {
      '10_1.mp4': 0, '10_2.mp4': 2, '11_1.mp4': 1, 'Fête 12_1.mp4': 0,
  }  # fmt: skip
  assert reasons(report) == {
      ('13_1.mp4', 'damaged video (InvalidDataError)'),
      ('14_1.mp4', 'file is empty (0 bytes)'),
      ('15_1', "unknown label '8'"),
      ('16_1', 'file is missing'),
  }
  # The middles of five equal parts of twelve frames.
  for name, expected in (
      ('10_1.mp4', [1, 3, 6, 8, 10]), ('11_1.mp4', [0, 0, 1, 2, 2]),
  ):  # fmt: skip
    levels = [pixels(f)[36:, 8:-8].mean() for f in found[name]['frames']]
    np.testing.assert_allclose(
        levels, 20 + 15 * np.array(expected), atol=6, err_msg=name
    )
  assert 'fewer than 5 frames: some are repeated' in remarks(report)
  # Rotated by 90 degrees clockwise: left is now the top, the grey half left.
  upright = pixels(found['Fête 12_1.mp4']['frames'][0])
  assert upright.shape == (64, 48, 3)
  assert near(upright[:8, 30:44], [[[220, 30, 30]]], 25)
  assert near(upright[-8:, 30:44], [[[30, 30, 220]]], 25)
  assert found['10_1.mp4']['audio'].shape[1] == 64
  assert found['10_1.mp4']['audio'].dtype == np.float32
  assert len(found['10_1.mp4']['audio']) > 100
  assert 'audio' not in found['10_2.mp4']
  test = records(tmp_path, 'test')
  assert [r['label'] for r in test.values()] == [-1]
  assert report['splits']['test']['classes']['no single label'] == 1


def test_vgaf_holdout_keeps_videos_together(tmp_path):
  run('vgaf', tmp_path)
  parts = {
      s: set(records(tmp_path, s, holdout=0.6)) for s in ('train', 'holdout')
  }
  assert parts['train'] | parts['holdout'] == set(records(tmp_path))
  assert not parts['train'] & parts['holdout']
  for part in parts.values():
    assert ('10_1.mp4' in part) == ('10_2.mp4' in part)


def test_samsemo(tmp_path):
  report = run('samsemo', tmp_path)
  found = {
      s: {k: r['label'] for k, r in records(tmp_path, s).items()}
      for s in ('train', 'val', 'test')
  }
  assert found == {
      'train': {'EN_a_1.mp4': 0, 'PL_a_1.mp4': 2},
      'val': {'EN_a_2.mp4': 3},
      'test': {'EN_c_2.mp4': 1, 'PL_a_2.mp4': 4},
  }
  assert reasons(report) == {
      ('EN_b_1', 'label fear is not used'),
      ('EN_b_2', 'several labels'),
      ('EN_c_3', 'several labels'),
      ('EN_b_3', 'label is empty'),
      ('EN_c_1', "unknown label 'boredom'"),
      ('EN_zz_9', 'no usable row in samsemo.tsv'),
      ('PL_a_3', 'file is missing'),
  }
  assert report['left_out_reasons']['several labels'] == 2
  record = records(tmp_path)['EN_a_1.mp4']
  assert record['transcript'] == 'It\'s "EN_a_1", ja?'
  assert len(record['frames']) == 10


def test_samsemo_multi_label(tmp_path):
  report = run('samsemo', tmp_path, multi_label=True)
  train, test = records(tmp_path), records(tmp_path, 'test')
  assert train['EN_b_2.mp4']['label'] == -1
  assert train['EN_b_2.mp4']['label_multi_hot'].tolist() == [0, 0, 0, 1, 1]
  assert test['EN_c_3.mp4']['label_multi_hot'].tolist() == [0, 0, 1, 0, 0]
  assert train['EN_a_1.mp4']['label_multi_hot'].tolist() == [1, 0, 0, 0, 0]
  assert ('EN_b_1', 'label fear is not used') in reasons(report)


def test_mer2023(tmp_path):
  report = run('mer2023', tmp_path)
  train = records(tmp_path)
  assert {k: r['label'] for k, r in train.items()} == {
      's1.mp4': 2, 's2.mp4': 4, 's3.mp4': 0,
  }  # fmt: skip
  assert train['s1.mp4']['transcript'] == '你好，世界'
  assert records(tmp_path, 'test3')['u2.mp4']['label'] == 5
  assert reasons(report) == {('s4', "unknown label 'proud'")}
  assert report['facts']['unlabelled clips in test3'].startswith('2 ')


def test_mer2023_semi(tmp_path):
  run('mer2023_semi', tmp_path)
  found = records(tmp_path)
  assert set(found) == {'u1.mp4', 'u3.mp4'}
  assert found['u1.mp4']['label'] == -1
  assert len(found['u1.mp4']['frames']) == 5


def test_engagenet(tmp_path):
  report = run('engagenet', tmp_path)
  found = {
      s: {k: r['label'] for k, r in records(tmp_path, s).items()}
      for s in ('train', 'val', 'test')
  }
  assert found == {
      'train': {'subject_1_Vid_1_0.mp4': 3, 'subject_2_Vid_1_0.mp4': 1},
      'val': {'subject_3_Vid_1_0.mp4': 0, 'subject_3_Vid_1_1.mp4': 0},
      'test': {'subject_4_Vid_1_0.mp4': 2, 'subject_2_Vid_1_1.mp4': 2},
  }
  assert reasons(report) == {
      ('subject_1_Vid_1_1.mp4', 'SNP: subject not present'),
      ('subject_2_Vid_1_1.mp4', 'also in split test'),
  }


# --- DFEW -------------------------------------------------------------------


def test_dfew_folds(tmp_path):
  report = run('dfew', tmp_path)
  assert reasons(report) == {
      ('00010', 'file is missing'),
      ('00011', "rows disagree about its label: ['3', '4']"),
  }
  tested = []
  for fold in range(1, 6):
    test = records(tmp_path, 'test', fold=fold)
    train = records(tmp_path, 'train', fold=fold)
    assert set(test) == {
        f'{k:05}' for k in range(1, 10) if k % 5 == fold - 1
    }
    assert set(train) | set(test) == {f'{k:05}' for k in range(1, 10)}
    assert not set(train) & set(test)
    assert report['folds'][fold - 1] == {
        'train': len(train), 'test': len(test),
    }  # fmt: skip
    tested += test
  assert len(tested) == len(set(tested)) == 9
  clip = records(tmp_path, 'train', fold=1)['00001']
  assert clip['label'] == 0
  levels = [pixels(f).mean() for f in clip['frames']]
  np.testing.assert_allclose(levels, 5 * np.arange(1, 17), atol=1.5)
  # Frame 3 of clip 2 is empty and replaced by frame 2.
  torn = records(tmp_path, 'train', fold=1)['00002']['frames']
  assert torn[2] == torn[1]
  assert remarks(report)[
      'unreadable frames replaced by the nearest readable one'
  ] == ['00002']
  # One copy of the frames is used by all folds.
  lines = (tmp_path / 'out/index.jsonl').read_text().strip().split('\n')
  assert len(lines) == 9


def test_dfew_needs_a_fold(tmp_path):
  run('dfew', tmp_path)
  with pytest.raises(ValueError, match=r'fold=0: DFEW has folds 1 \.\. 5'):
    prepared.PreparedSource(tmp_path / 'out', split='test')
  with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
    prepared.PreparedSource(tmp_path / 'out', split='val', fold=1)


def test_fewer_frames_than_stored(tmp_path):
  run('dfew', tmp_path)
  clip = records(tmp_path, 'train', fold=1, frames=4)['00001']
  levels = [pixels(f).mean() for f in clip['frames']]
  # The middles of four parts of 16 frames, which are numbered from 1.
  np.testing.assert_allclose(levels, 5 * np.array([3, 7, 11, 15]), atol=1.5)


# --- COCO -------------------------------------------------------------------


def test_coco(tmp_path):
  expected = layouts.coco(tmp_path / 'source')
  report = run('coco', tmp_path)
  found = records(tmp_path, 'val')
  one, two, three = (found[f'00000000000{i}.jpg'] for i in (1, 2, 3))
  body = np.array(expected['body'], np.float32).reshape(17, 3)
  body[:, 2] /= 2  # visibility 0, 1, 2 -> score 0, 0.5, 1
  np.testing.assert_array_equal(one['bodies'][0], body[None])
  face = np.array(expected['face'], np.float32).reshape(68, 3)
  face[0] = 0
  np.testing.assert_array_equal(one['faces'][0], face[None])
  np.testing.assert_array_equal(one['ignore'], [[[[1, 2, 1], [11, 22, 1]]]])
  np.testing.assert_array_equal(two['ignore'], [[[[0, 0, 1], [48, 9, 1]]]])
  # Only a crowd: unknown, rather than nobody.
  assert two['bodies'] == two['faces'] == [None]
  assert three['bodies'][0].shape == (0, 17, 3)
  assert three['faces'][0].shape == (0, 68, 3)
  assert 'ignore' not in three
  assert one['label'] == -1
  # Without a WholeBody file the faces are not annotated, rather than absent.
  assert records(tmp_path)['000000000001.jpg']['faces'] == [None]
  assert reasons(report) == {('000000000004.jpg', 'file is missing')}


def test_coco_options(tmp_path):
  expected = layouts.coco(tmp_path / 'source')
  report = run('coco', tmp_path, drop_empty=True, longer_side=32)
  found = records(tmp_path, 'val')
  assert set(found) == {'000000000001.jpg'}
  assert report['left_out_reasons'][
      'no person with labelled joints or face'
  ] == 4
  # 48 x 36 became 32 x 24. Where a pixel goes that cv2.resize shrinks:
  image = np.zeros((36, 48), np.float32)
  column, row = expected['body'][3 * 16], expected['body'][3 * 16 + 1]
  image[row, column] = 1
  small = cv2.resize(image, (32, 24), interpolation=cv2.INTER_AREA)
  mass = small / small.sum()
  x, y, score = found['000000000001.jpg']['bodies'][0][0, 16]
  assert score == 0.5
  assert (mass * np.arange(32)[None]).sum() == pytest.approx(x, abs=0.35)
  assert (mass * np.arange(24)[:, None]).sum() == pytest.approx(y, abs=0.35)
  joints = np.array(expected['body'], float).reshape(17, 3)
  seen = joints[:, 2] > 0
  stored = found['000000000001.jpg']['bodies'][0][0]
  np.testing.assert_allclose(
      stored[seen, 0], (joints[seen, 0] + 0.5) * 32 / 48 - 0.5, atol=1e-5
  )
  assert not stored[~seen].any()


# --- resumption, changes, names ---------------------------------------------


def snapshot(out):
  """The complete result of a preparation: records in order, report, index."""
  made = json.loads((out / 'prepared.json').read_text())
  items = {}
  for split in made['splits']:
    source = prepared.PreparedSource(out, split=split)
    items[split] = [source[i] for i in range(len(source))]
  texts = {
      name: (out / name).read_text()
      for name in ('report.json', 'index.jsonl', 'prepared.json')
  }
  return pickle.dumps(items), texts


# Child processes find the package regardless of the working directory.
_ENVIRONMENT = {
    **os.environ, 'PYTHONPATH': str(Path(prepare.__file__).parents[2]),
}  # fmt: skip

_KILLED = """
import os, signal, sys
from vemd_jax.prepare import chunks, encode
from vemd_jax.prepare import dataset as prepare
calls = 0
def killed(f, after):
  def g(*args):
    global calls
    calls += 1
    if calls > after:
      os.kill(os.getpid(), signal.SIGKILL)
    return f(*args)
  return g
where, after = sys.argv[1], int(sys.argv[2])
if where == 'encoding':
  encode.encode_sample = killed(encode.encode_sample, after)
elif where == 'writing':
  prepare.write_bytes = chunks.write_bytes = killed(chunks.write_bytes, after)
chunks._CHUNK = {'image': 5}
sys.exit(prepare.main(sys.argv[3:]))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, '_CHUNK', {'image': 5})
  source = tmp_path / 'source'
  layouts.gaf3_folders(source)
  options = index.Options(frames=1)
  quiet = {'workers': 1, 'log': lambda _: None}
  straight = tmp_path / 'straight'
  prepare.prepare('gaf3', source, straight, options, **quiet)
  # 23 samples in 5 chunks. Written are: the manifest, the chunks, then index,
  # report, manifest again, and prepared.json.
  for where, after, done in (
      ('encoding', 12, 2), ('writing', 4, 3), ('writing', 9, 5),
  ):  # fmt: skip
    out = tmp_path / f'{where}{after}'
    killed = subprocess.run(
        [sys.executable, '-c', _KILLED, where, str(after), 'gaf3',
         f'--source={source}', f'--out={out}', '--workers=1'],
        capture_output=True, text=True, env=_ENVIRONMENT,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert not (out / 'prepared.json').exists()
    with pytest.raises(FileNotFoundError, match='no complete preparation'):
      prepared.PreparedSource(out)
    assert len(list((out / 'work').glob('*.msgpack'))) == done
    encoded = []
    original = encode.encode_sample

    def counted(sample, *args, _encoded=encoded, _original=original):
      _encoded.append(sample.file)
      return _original(sample, *args)

    with monkeypatch.context() as patch:
      patch.setattr(encode, 'encode_sample', counted)
      prepare.prepare('gaf3', source, out, options, **quiet)
    # Existing work files are not encoded again.
    assert len(encoded) == {2: 13, 3: 8, 5: 0}[done]
    assert snapshot(out) == snapshot(straight)
    assert not (out / 'work').exists()


def test_workers_do_not_change_the_result(tmp_path):
  source = tmp_path / 'source'
  layouts.gaf3_folders(source)
  options = index.Options(frames=1)
  for workers in (1, 2):
    prepare.prepare(
        'gaf3', source, tmp_path / str(workers), options, workers,
        log=lambda _: None,
    )  # fmt: skip
  assert snapshot(tmp_path / '1') == snapshot(tmp_path / '2')


_CRASHING = """
import os, sys
from vemd_jax.prepare import dataset as prepare
from vemd_jax.prepare import encode
original = encode.encode_image
def crash(path, *args):
  if path.name == 'film.gif':
    os._exit(139)
  return original(path, *args)
encode.encode_image = crash
from vemd_jax.prepare import chunks
chunks._CHUNK = {'image': 12}
if __name__ == '__main__':
  sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_one_sample(tmp_path):
  layouts.gaf3_folders(tmp_path / 'source')
  script = tmp_path / 'crashing.py'
  script.write_text(_CRASHING)
  done = subprocess.run(
      [sys.executable, str(script), 'gaf3', f'--source={tmp_path / "source"}',
       f'--out={tmp_path / "out"}', '--workers=2'],
      capture_output=True, text=True, env=_ENVIRONMENT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'out/report.json').read_text())
  assert ('film.gif', 'the decoder crashed') in reasons(report)
  assert report['splits']['train']['samples'] == 16


def prepare_again(tmp_path, **kwargs):
  lines = []
  options = index.Options(frames=1, **kwargs.pop('options', {}))
  report = prepare.prepare(
      'gaf3', tmp_path / 'source', tmp_path / 'out', options, 1,
      log=lines.append, **kwargs,
  )  # fmt: skip
  return report, '\n'.join(lines)


def test_second_run_does_nothing(tmp_path, monkeypatch):
  first = run('gaf3', tmp_path)
  before = {
      p: p.stat().st_mtime_ns for p in (tmp_path / 'out').rglob('*.*')
      if p.is_file() and p.name != '.lock'
  }  # fmt: skip
  monkeypatch.setattr(encode, 'encode_sample', None)
  report, said = prepare_again(tmp_path)
  assert report == first
  assert 'complete; nothing to do' in said
  assert 'positive' in said
  assert before == {p: p.stat().st_mtime_ns for p in before}


def test_changed_source_is_named(tmp_path):
  run('gaf3', tmp_path)
  folder = tmp_path / 'source/GAF3.0_Original/Train/Neutral'
  layouts.write_image(folder / 'Neutral1.jpg', layouts.picture(30, 50))
  (folder / 'Neutral2.jpg').unlink()
  layouts.write_image(folder / 'newcomer.jpg')
  with pytest.raises(prepare.SourceChanged) as error:
    prepare_again(tmp_path)
  for line in (
      'new: GAF3.0_Original/Train/Neutral/newcomer.jpg',
      'gone: GAF3.0_Original/Train/Neutral/Neutral2.jpg',
      'changed: GAF3.0_Original/Train/Neutral/Neutral1.jpg',
  ):
    assert line in str(error.value)
  assert 'Neutral3' not in str(error.value)
  assert 'Neutral2.jpg' in records(tmp_path)
  prepare_again(tmp_path, update=True)
  found = records(tmp_path)
  assert 'Neutral2.jpg' not in found
  assert pixels(found['Neutral1.jpg']['frames'][0]).shape == (30, 50, 3)


def test_changed_options_are_named(tmp_path):
  run('gaf3', tmp_path)
  with pytest.raises(prepare.SourceChanged, match='longer_side: 640 -> 320'):
    prepare_again(tmp_path, options={'longer_side': 320})
  with pytest.raises(ValueError, match='contains gaf3'):
    layouts.vgaf(tmp_path / 'other')
    prepare.prepare('vgaf', tmp_path / 'other', tmp_path / 'out', workers=1)


def test_hashed_names(tmp_path):
  report = run('gaf3', tmp_path, hash_names=True)
  written = b''.join(
      p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()
  )
  for name in ('Neutral1', 'marked', 'torn', 'film.gif', 'Gr\\u00fc', 'Grü'):
    assert name.encode() not in written, name
  found = records(tmp_path)
  assert all(len(f) == 16 and int(f, 16) >= 0 for f in found)
  assert all(len(x['file']) == 16 for x in report['left_out'])
  name = 'GAF3.0_Original/Train/Neutral/Neutral1.jpg'
  assert found[prepare.hash_name('gaf3', name)]['label'] == 1
  # A held-out part is the same with and without hashing.
  plain = tmp_path / 'plain'
  plain.mkdir()
  (plain / 'source').symlink_to(tmp_path / 'source')
  run('gaf3', plain)
  names = set(records(plain, 'holdout', holdout=0.5))
  assert len(names) == len(records(tmp_path, 'holdout', holdout=0.5))


def test_two_at_once(tmp_path):
  layouts.gaf3_folders(tmp_path / 'source')
  out = tmp_path / 'out'
  out.mkdir()
  with prepare._lock(out), pytest.raises(RuntimeError, match='another'):
    prepare_again(tmp_path)


# --- reading ----------------------------------------------------------------


def annotation(file, frame=None, people=1, value=1.0, **more):
  line = {
      'file': file, 'width': 64, 'height': 48,
      'bodies': [[[value, 2.0, 1.0]] * 17] * people, 'faces': [], **more,
  }  # fmt: skip
  return json.dumps(line if frame is None else {**line, 'frame': frame})


def test_annotations_beside_the_data(tmp_path):
  run('vgaf', tmp_path)
  lines = [
      annotation('Train/10_1.mp4', frame=1, value=3.0),
      annotation('Train/10_1.mp4', frame=4, people=2),
      annotation('Train/Fête 12_1.mp4', frame=0, faces=None),
      annotation('Val/20_1.mp4', frame=0),
      annotation('Train/11_1.mp4', frame=0)[:-40],
  ]
  path = tmp_path / 'out/annotations.jsonl'
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  source = prepared.PreparedSource(tmp_path / 'out', max_unreadable=0.5)
  found = {Path(f).name: source[i] for i, f in enumerate(source.files)}
  clip = found['10_1.mp4']
  assert [b is not None for b in clip['bodies']] == [0, 1, 0, 0, 1]
  assert clip['bodies'][1][0, 0].tolist() == [3, 2, 1]
  assert clip['bodies'][4].shape == (2, 17, 3)
  assert clip['faces'][1].shape == (0, 68, 3)
  assert clip['annotation_size'][1] == (64, 48)
  assert found['Fête 12_1.mp4']['faces'] == [None] * 5
  assert found['11_1.mp4']['bodies'] == [None] * 5
  assert source.report.invalid_lines == 1
  assert source.report.annotated == 2
  assert ':5: not a complete JSON object' in str(source.report)
  assert 'does not list' not in str(source.report)
  with pytest.raises(ValueError, match='1 of 5 lines'):
    prepared.PreparedSource(tmp_path / 'out')


def test_annotations_do_not_replace_given_ones(tmp_path):
  run('coco', tmp_path)
  name = 'train2017/000000000001.jpg'
  (tmp_path / 'out/annotations.jsonl').write_text(
      annotation(name, faces=[[[1.0, 2.0, 0.5]] * 68]) + '\n'
  )
  record = records(tmp_path)['000000000001.jpg']
  assert record['bodies'][0][0, 1].tolist() == [2, 1, 0.5]
  assert record['faces'][0][0, 0].tolist() == [1, 2, 0.5]


def test_source_can_be_sent_to_a_worker(tmp_path):
  run('gaf3', tmp_path)
  source = prepared.PreparedSource(tmp_path / 'out')
  first = source[0]
  other = pickle.loads(pickle.dumps(source))
  assert other[0]['frames'] == first['frames']
  assert other.classes == ('negative', 'neutral', 'positive')


def test_threads_open_the_data_once(tmp_path, monkeypatch):
  """TFDS deadlocks if several threads import its modules at once."""
  run('gaf3', tmp_path)
  opened, opening = [], prepared._open

  def slow(*arguments):
    opened.append(threading.get_ident())
    time.sleep(0.1)
    return opening(*arguments)

  monkeypatch.setattr(prepared, '_open', slow)
  source = prepared.PreparedSource(tmp_path / 'out')
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    assert len(list(threads.map(source.__getitem__, [0] * 8))) == 8
  assert len(opened) == 1


def test_given_features_are_looked_up(tmp_path):
  run('vgaf', tmp_path)
  source = prepared.PreparedSource(
      tmp_path / 'out', audio=lambda f: np.full((2, 3), len(f)),
      text=lambda f: None,
  )  # fmt: skip
  record = source[0]
  assert record['audio'][0, 0] == len(record['file'])
  assert record['text_embedding'] is None


def test_through_the_transform(tmp_path):

  run('coco', tmp_path)
  record = records(tmp_path, 'val')['000000000001.jpg']
  decoded = decoding.decode(record, 1)
  assert decoded['frames'][0].shape == (36, 48, 3)
  np.testing.assert_array_equal(decoded['bodies'][0], record['bodies'][0])


# --- errors are one clear line ----------------------------------------------


@pytest.mark.parametrize('name', layouts.MAKERS)
def test_a_folder_of_something_else(name, tmp_path, capsys):
  layouts.write_image(tmp_path / 'source' / 'holiday.jpg')
  status = prepare.main(
      [name, f'--source={tmp_path / "source"}', f'--out={tmp_path / "out"}']
  )
  assert status == 1
  error = capsys.readouterr().err.strip().split('\n')
  assert len(error) == 1
  assert error[0].startswith('error: ')
  assert ' has no ' in error[0]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['vgaf', '--label_order=1,2'], '--label_order is for gaf3'),
        (['gaf3', '--label_order=a,b,c'], 'expected negative,neutral,posit'),
        (['gaf3', '--multi_label'], 'is for samsemo'),
        (['vgaf', '--drop_empty'], 'is for coco'),
        (['gaf3', '--audio'], 'has no sound tracks'),
        (['gaf3', '--frames=3'], 'has image'),
        (['gaf3', '--longer_side=3'], 'at least 32'),
        (['gaf3'], 'is not a folder'),
    ],
)
def test_options_are_checked(argv, message, tmp_path, capsys):
  paths = [f'--source={tmp_path / "none"}', f'--out={tmp_path / "out"}']
  assert prepare.main(argv + paths) == 1
  assert message in capsys.readouterr().err


def test_label_file_without_its_column(tmp_path):
  layouts.vgaf(tmp_path / 'source')
  layouts.write_text(tmp_path / 'source/Val_labels.txt', 'clip emotion\na 1\n')
  with pytest.raises(ValueError, match=r"Val_labels.txt has no column 'Vid_n"):
    run('vgaf', tmp_path)


def test_wrong_questions_to_prepared_data(tmp_path):
  run('gaf3', tmp_path)
  out = tmp_path / 'out'
  for kwargs, message in (
      ({'split': 'test'}, "no split 'test'; it has train, val"),
      ({'name': 'vgaf'}, 'contains gaf3, not vgaf'),
      ({'fold': 1}, 'has no folds'),
      ({'split': 'holdout'}, 'needs a share'),
      ({'holdout': 1.5}, '0 <= share < 1'),
      ({'split': 'holdout', 'holdout': 1e-9}, 'is empty'),
  ):
    with pytest.raises(ValueError, match=message):
      prepared.PreparedSource(out, **kwargs)


def test_no_tensorflow():
  assert 'tensorflow' not in sys.modules


def test_source_videos_of_several_splits_are_reported(tmp_path):
  def make(root):
    for split, names in (('Train', ('7_1', '8_1')), ('Val', ('7_2', '9_1'))):
      for name in names:
        layouts.write_video(root / split / f'{name}.mp4', frames=3)
      rows = '\n'.join(['Vid_name Label', *(f'{n} 1' for n in names)])
      layouts.write_text(root / f'{split}_labels.txt', rows + '\n')

  found = run('vgaf', tmp_path, make, frames=1)['overlaps']
  # All clips have the same frames, which is reported, too.
  assert found[0] == (
      '1 subjects or source videos are in more than one split: 7 (train) = '
      '7 (val)'
  )
  assert found[1].startswith('1 identical samples are in more than one split:')
  report = run('vgaf', tmp_path / 'hashed', make, frames=1, hash_names=True)
  assert report['overlaps'][0] == (
      '1 subjects or source videos are in more than one split'
  )


def test_shards_on_a_file_system_that_fails(tmp_path, monkeypatch):
  """Retried for some seconds; what stays unreadable does not count."""
  run('gaf3', tmp_path)
  source = prepared.PreparedSource(tmp_path / 'out', split='train')
  expected = source[1]
  waited, failures = [], []
  monkeypatch.setattr(files.retry, '__kwdefaults__', {'sleep': waited.append})
  opened = prepared._open

  class Failing:

    def __init__(self, data):
      self.data = data

    def __getitem__(self, position):
      if failures:
        raise RuntimeError(failures.pop())
      return self.data[position]

  monkeypatch.setattr(prepared, '_open', lambda *a: Failing(opened(*a)))
  source = prepared.PreparedSource(tmp_path / 'out', split='train')
  # The text that array_record gave with a pread() that fails.
  failed = 'pread() failed: Input/output error; reading x; at byte 7'
  failures += [failed] * 2
  found = source[1]
  assert waited == list(files.DELAYS[:2])
  assert found['frames'] == expected['frames']
  waited.clear()
  failures += [failed] * 99
  found = source[1]
  assert found['frames'] == [b''] and found['label'] == expected['label']
  assert found['bodies'] == [None] and len(waited) == len(files.DELAYS)


def test_a_damaged_shard_does_not_end_the_run(tmp_path, caplog):
  run('gaf3', tmp_path)
  # The tiny datasets of these tests have one block: all of it is unreadable.
  (shard,) = (tmp_path / 'out/data').glob('*-train.array_record*')
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 255
  shard.write_bytes(data)
  source = prepared.PreparedSource(tmp_path / 'out', split='train')
  frames = [source[i]['frames'] for i in range(len(source))]
  assert [b''] in frames
  assert 'is left out: ' in caplog.text and 'data: ' in caplog.text
