"""The plain folder format, with the faults of real folders."""

import json
import unicodedata

import cv2
import numpy as np
import pytest

from vemd_jax.data.folder import Folder


def _image(path, value=100, size=(32, 48)):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = cv2.imencode(path.suffix, np.full((*size, 3), value, np.uint8))[1]
  path.write_bytes(data.tobytes())


def _make(root, rows, header='file,split,label', annotations=(), images=True):
  """Writes a folder; rows are lines, annotations objects or lines."""
  root.mkdir(exist_ok=True)
  (root / 'labels.csv').write_text(
      '\n'.join([header, *rows]) + '\n', encoding='utf-8'
  )
  if images:
    for row in rows:
      name = row.split(',')[0]
      if name.endswith(('.jpg', '.png')):
        _image(root / name)
  lines = [a if isinstance(a, str) else json.dumps(a) for a in annotations]
  if lines:
    (root / 'annotations.jsonl').write_text('\n'.join(lines) + '\n')
  return root


def _people(count, points, value=5.0):
  return [[[value + i, value, 1.0]] * points for i in range(count)]


def _annotation(file, bodies=1, faces=1, **more):
  return {
      'file': file,
      'width': 48,
      'height': 32,
      'bodies': _people(bodies, 17),
      'faces': _people(faces, 68),
      **more,
  }


_ROWS = ['a.jpg,train,sad', 'b.jpg,train,happy', 'c.jpg,val,sad',
         'd.jpg,train,']  # fmt: skip


def test_reads_records(tmp_path):
  root = _make(tmp_path, _ROWS, annotations=[
      _annotation('b.jpg', 2, 1), _annotation('c.jpg'),
      {'file': 'a.jpg', 'faces': []},
  ])  # fmt: skip
  source = Folder(root, 'train')
  assert len(source) == 3 and source.classes == ('happy', 'sad')
  assert source.labels.dtype == np.int32
  np.testing.assert_array_equal(source.labels, [1, 0, -1])
  assert source.files == ['a.jpg', 'b.jpg', 'd.jpg']
  record = source[1]
  assert record['frames'] == [(root / 'b.jpg').read_bytes()]
  assert record['label'] == 0 and record['file'] == 'b.jpg'
  (bodies,), (faces,) = record['bodies'], record['faces']
  assert bodies.shape == (2, 17, 3) and bodies.dtype == np.float32
  assert faces.shape == (1, 68, 3)
  np.testing.assert_array_equal(bodies[1, 0], [6, 5, 1])
  assert record['annotation_size'] == [(48, 32)]
  # A missing key means not annotated, unlike an empty list.
  assert source[0]['bodies'] == [None]
  assert source[0]['faces'][0].shape == (0, 68, 3)
  assert source[2]['bodies'] == [None] and source[2]['label'] == -1
  assert source.report.samples == 3 and source.report.annotated == 2
  assert source.report.classes == {'happy': 1, 'sad': 1}
  assert source.report.unlabelled == 1 and not source.report.problems
  assert 'train: 3 samples (happy 1, sad 1), 1 without' in str(source.report)
  assert Folder(root, 'train', bodies=False)[1]['bodies'] == [None]


def test_classes_given_in_order(tmp_path):
  root = _make(tmp_path, _ROWS)
  source = Folder(root, 'train', classes=('sad', 'angry', 'Happy'))
  np.testing.assert_array_equal(source.labels, [0, 2, -1])
  assert source.classes == ('sad', 'angry', 'Happy')
  with pytest.raises(ValueError, match=r"labels.csv:3: label 'happy' is not "
                     'one of the classes sad, angry'):  # fmt: skip
    Folder(root, 'train', classes=('sad', 'angry'))


def test_classes_come_from_all_splits(tmp_path):
  root = _make(tmp_path, [*_ROWS, 'e.jpg,val,angry', 'f.jpg,test,10',
                          'g.jpg,test,9'])  # fmt: skip
  train, val = Folder(root, 'train'), Folder(root, 'val')
  assert train.classes == val.classes == ('9', '10', 'angry', 'happy', 'sad')


def test_windows_file_with_strange_names(tmp_path):
  names = ['my photo.jpg', 'füß é.jpg', '"x, y.jpg"', 'sub dir\\z.jpg']
  text = '\ufeffFile, Split ,label,more\r\n' + ''.join(
      f'{name},train,{label},1\r\n'
      for name, label in zip(names, ('Happy', 'happy', 'happy', ' sad '))
  )
  tmp_path.joinpath('labels.csv').write_bytes(text.encode())
  _image(tmp_path / 'my photo.jpg')
  _image(tmp_path / unicodedata.normalize('NFD', 'füß é.jpg'))
  _image(tmp_path / 'x, y.jpg')
  _image(tmp_path / 'sub dir' / 'z.jpg')
  lines = [_annotation(unicodedata.normalize('NFD', 'füß é.jpg')),
           _annotation('sub dir/z.jpg')]  # fmt: skip
  tmp_path.joinpath('annotations.jsonl').write_bytes(
      b'\xef\xbb\xbf' + '\r\n'.join(map(json.dumps, lines)).encode()
  )
  source = Folder(tmp_path, 'train')
  assert len(source) == 4 and source.classes == ('happy', 'sad')
  np.testing.assert_array_equal(source.labels, [0, 0, 0, 1])
  assert all(source[i]['frames'][0] for i in range(4))
  assert source[1]['bodies'][0] is not None
  assert source[3]['bodies'][0] is not None
  assert 'Happy (1), happy (2)' in source.report.remarks[0]


def test_missing_folder_and_columns(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere/labels.csv: no such'):
    Folder(tmp_path / 'nowhere', 'train')
  with pytest.raises(FileNotFoundError, match=r'no such labels.csv'):
    Folder(tmp_path, 'train')
  _make(tmp_path, ['a.jpg,train'], header='file,set')
  with pytest.raises(ValueError, match=r'labels.csv:1: no column label; '
                     'the header has file, set; expected .* file,split,label'):
    Folder(tmp_path, 'train')
  _make(tmp_path, ['a.jpg,train,x', 'b.jpg,train'])
  with pytest.raises(ValueError, match=r'labels.csv:3: 2 values for 3 columns'):
    Folder(tmp_path, 'train')
  (tmp_path / 'labels.csv').write_text(
      'file,split,label\nпривет.jpg,a,b\n', encoding='koi8-r'
  )
  with pytest.raises(ValueError, match=r'labels.csv: not UTF-8 .* save it as'):
    Folder(tmp_path, 'train')
  (tmp_path / 'labels.csv').write_bytes(b'')
  with pytest.raises(ValueError, match=r'the header has nothing'):
    Folder(tmp_path, 'train')


def test_empty_split_names_those_there_are(tmp_path):
  root = _make(tmp_path, _ROWS)
  with pytest.raises(ValueError, match=r"no rows of split 'test'; there are "
                     r"'train' \(3\), 'val' \(1\)"):  # fmt: skip
    Folder(root, 'test')


def test_duplicates(tmp_path):
  root = _make(tmp_path, [*_ROWS, 'a.jpg,train,sad'])
  source = Folder(root, 'train')
  assert len(source) == 3
  assert f'{root}/labels.csv:6: a.jpg is listed twice' in source.report.remarks
  _make(tmp_path, [*_ROWS, './a.jpg,val,sad'])
  with pytest.raises(ValueError, match=r'labels.csv:6: a.jpg is listed in line '
                     '2 with train, sad and here with val, sad'):  # fmt: skip
    Folder(root, 'val')


def test_files_that_cannot_be_used(tmp_path):
  rows = [f'{i}.jpg,train,x' for i in range(20)]
  root = _make(tmp_path, [*rows, 'notes.txt,train,x', 'empty dir,train,x'])
  (root / '3.jpg').unlink()
  (root / '5.jpg').write_bytes(b'')
  (root / 'notes.txt').write_text('hello')
  (root / 'empty dir').mkdir()
  source = Folder(root, 'train', max_unreadable=0.2)
  assert len(source) == 18 and source.report.left_out == 4
  assert '3.jpg' not in source.files and '5.jpg' not in source.files
  assert source.report.problems == [
      f'{root}/labels.csv:5: 3.jpg does not exist',
      f'{root}/labels.csv:7: 5.jpg is empty',
      f'{root}/labels.csv:22: notes.txt has no suffix of an image or video',
      f'{root}/labels.csv:23: empty dir contains no images',
  ]
  message = (
      r"4 of 22 files of split 'train' .* more than data.max_unreadable=0.1; "
      r'the first: .*:5: 3.jpg'
  )
  with pytest.raises(ValueError, match=message):
    Folder(root, 'train', max_unreadable=0.1)


def test_image_that_goes_missing_later(tmp_path):
  source = Folder(_make(tmp_path, _ROWS), 'train')
  (tmp_path / 'a.jpg').unlink()
  assert source[0]['frames'] == [b'']


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"file": "a.jpg", "bodies": [[[1, 2', 'not a complete JSON object'),
        ('[]', 'no "file"'),
        ('{"bodies": []}', 'no "file"'),
        (_annotation('a.jpg', bodies=0, faces=0) | {'faces': _people(1, 67)},
         r'faces\[0\] of a.jpg has 67 points, expected 68'),
        (_annotation('a.jpg') | {'bodies': [[[1, 2]] * 17]},
         'points that are not x, y, score'),
        (_annotation('a.jpg') | {'bodies': [[[1, 2, 'x']] * 17]}, 'convert'),
        (_annotation('a.jpg') | {'bodies': 3}, 'bodies is int, expected a li'),
        (_annotation('a.jpg') | {'width': 0}, 'width and height are 0 and 32'),
    ],
)  # fmt: skip
def test_bad_annotation_lines(tmp_path, line, message):
  rows = [f'{name}.jpg,train,x' for name in 'abcdefghij']
  good = [_annotation(f'{name}.jpg') for name in 'bcdefghij']
  root = _make(tmp_path, rows, annotations=[*good, '', line])
  source = Folder(root, 'train', max_unreadable=0.1)
  assert len(source) == 10 and source.report.invalid_lines == 1
  assert source.report.annotated == 9
  assert source[0]['bodies'] == [None]
  (problem,) = source.report.problems
  assert problem.startswith(f'{root}/annotations.jsonl:11: ')
  message = f'1 of 10 lines .*jsonl:11: .*{message}'
  with pytest.raises(ValueError, match=message):
    Folder(root, 'train', max_unreadable=0.05)


def test_annotations_of_unknown_files_are_reported(tmp_path):
  root = _make(tmp_path, _ROWS, annotations=[
      _annotation('images/a.jpg'), _annotation('c.jpg'), _annotation('a.jpg')])
  source = Folder(root, 'train')
  assert source.report.annotated == 1
  (problem,) = source.report.problems
  assert "1 lines name files that labels.csv does not list" in problem
  assert "'images/a.jpg'" in problem


def test_later_line_of_a_file_wins(tmp_path):
  root = _make(tmp_path, _ROWS, annotations=[
      _annotation('a.jpg', bodies=3), _annotation('a.jpg', bodies=1)])
  assert len(Folder(root, 'train')[0]['bodies'][0]) == 1


def test_folder_of_frames(tmp_path):
  root = _make(
      tmp_path,
      ['clips/one/,train,x', 'clips/two,val,x'],
      annotations=[
          _annotation('clips/one/10.jpg', bodies=2),
          _annotation('clips/one', bodies=3, frame=0),
          _annotation('clips/two/1.jpg'),
          _annotation('clips/one'),
      ],
  )
  for i in (1, 2, 10):
    _image(root / 'clips' / 'one' / f'{i}.jpg', value=i)
  (root / 'clips' / 'one' / 'notes.txt').write_text('not a frame')
  (root / 'clips' / 'one' / '._1.jpg').write_text('not a frame either')
  _image(root / 'clips' / 'two' / '1.jpg')
  source = Folder(root, 'train', max_unreadable=0.3)
  record = source[0]
  assert record['file'] == 'clips/one'
  assert record['frames'] == [
      (root / 'clips' / 'one' / f'{i}.jpg').read_bytes() for i in (1, 2, 10)
  ]
  counts = [None if b is None else len(b) for b in record['bodies']]
  assert counts == [3, None, 2]
  (problem,) = source.report.problems
  assert ':4: clips/one is a clip: expected "frame" from 0' in problem
  assert source.report.annotated == 1
  # Only the selected frames are read.
  record = Folder(root, 'train', frames=1, max_unreadable=0.3)[0]
  assert record['frames'] == [(root / 'clips/one/2.jpg').read_bytes()]
  assert record['bodies'] == [None]


def test_video_and_other_columns(tmp_path):
  root = _make(
      tmp_path,
      ['a.MP4,train,x,a.wav,"hello, you"', 'b.mp4,train,,,'],
      header='file,split,label,audio,transcript',
      annotations=[_annotation('a.MP4', frame=i) for i in (4, 9)],
  )
  for name in ('a.MP4', 'b.mp4', 'a.wav'):
    (root / name).write_bytes(b'something')
  source = Folder(
      root,
      'train',
      audio=lambda file: np.ones((2, 3)) if file == 'a.MP4' else None,
  )
  record = source[0]
  assert record['video'] == str(root / 'a.MP4') and 'frames' not in record
  assert sorted(record['bodies']) == [4, 9]
  assert record['annotation_size'] == {4: (48, 32), 9: (48, 32)}
  assert record['audio_path'] == str(root / 'a.wav')
  assert record['transcript'] == 'hello, you'
  assert record['audio'].shape == (2, 3)
  assert source[1]['audio'] is None and 'audio_path' not in source[1]
  assert source[1]['bodies'] == {}


def test_holdout_is_a_part_that_stays(tmp_path):
  rows = [f'{i}.jpg,train,x' for i in range(200)]
  root = _make(tmp_path, rows, images=False)
  for i in range(200):
    (root / f'{i}.jpg').write_bytes(b'1')
  rest = Folder(root, 'train', holdout=0.25).files
  held = Folder(root, 'train', holdout=0.25, held_out=True).files
  assert 30 < len(held) < 70
  assert sorted(rest + held) == sorted(Folder(root, 'train').files)
  # Further files, or another order, do not move a file to the other part.
  _make(tmp_path, [*rows[::-1], 'new.jpg,train,x'], images=False)
  (root / 'new.jpg').write_bytes(b'1')
  again = set(Folder(root, 'train', holdout=0.25, held_out=True).files)
  assert again - {'new.jpg'} == set(held)
  # A larger share contains the smaller one.
  larger = Folder(root, 'train', holdout=0.5, held_out=True).files
  assert set(held) <= set(larger)
  with pytest.raises(ValueError, match=r'holdout of 1.0 leaves nothing'):
    Folder(root, 'train', holdout=1.0)
