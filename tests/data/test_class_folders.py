"""The layout of class folders, as people have it."""

import cv2
import numpy as np
import pytest

from tests.data.test_near_duplicates import picture
from vemd_jax import config as config_lib
from vemd_jax.data import class_folders, sources
from vemd_jax.data.folder import Folder


def write(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def make(root, per_class=10, prefix='', classes=('glad', 'sad')):
  for number, name in enumerate(classes):
    for i in range(per_class):
      write(root / prefix / name / f'{i}.png', picture(100 * number + i))
  return root


def by_split(table):
  return {
      split: sorted((r.file, r.label) for r in table.split(split))
      for split in table.splits
  }


def test_class_folders_are_read_as_a_folder(tmp_path):
  make(tmp_path)
  (tmp_path / '.cache' / 'x').mkdir(parents=True)
  (tmp_path / '__MACOSX').mkdir()
  (tmp_path / 'glad' / '._1.png').write_bytes(b'of a file manager')
  (tmp_path / 'glad' / 'notes.txt').write_text('no picture')
  (tmp_path / 'readme.txt').write_text('no folder')
  train, val = Folder(tmp_path, 'train'), Folder(tmp_path, 'val')
  assert train.classes == val.classes == ('glad', 'sad')
  assert (len(train), len(val)) == (16, 4)
  assert np.bincount(val.labels).tolist() == [2, 2]
  assert not set(train.files) & set(val.files)
  record = train[0]
  assert record['frames'] == [(tmp_path / record['file']).read_bytes()]
  assert record['file'].split('/')[0] == train.classes[record['label']]


def test_near_duplicates_and_scenes_lie_in_one_split(tmp_path):
  make(tmp_path, 30)
  copies = []
  for i in range(12):  # Of every second one a mirrored copy in JPEG.
    copy = np.ascontiguousarray(picture(2 * i)[:, ::-1])
    write(tmp_path / 'glad' / f'copy {i}.jpg', copy)
    copies.append((f'glad/{2 * i}.png', f'glad/copy {i}.jpg'))
  for i in range(10):
    write(tmp_path / 'sad' / 'scene' / f'{i}.png', picture(1000 + i))
  table = class_folders.table(tmp_path)
  split = {row.file: row.split for row in table.rows}
  assert len(split) == 82 and set(split.values()) == {'train', 'val'}
  for one, other in copies:
    assert split[one] == split[other]
  assert len({split[f'sad/scene/{i}.png'] for i in range(10)}) == 1
  assert 'vemd new' in table.remarks[0]


def test_folders_of_splits_are_kept(tmp_path):
  make(tmp_path, 4, 'Training')
  make(tmp_path, 2, 'valid')
  make(tmp_path, 3, 'test', ('glad', 'sad', 'calm'))
  table = class_folders.table(tmp_path)
  assert {k: len(v) for k, v in by_split(table).items()} == {
      'train': 8, 'val': 4, 'test': 9
  }  # fmt: skip
  assert ('valid/sad/1.png', 'sad') in by_split(table)['val']
  assert table.classes == ('calm', 'glad', 'sad') and not table.remarks


def test_without_val_it_is_taken_from_train(tmp_path):
  make(tmp_path, 10, 'train')
  make(tmp_path, 3, 'test')
  files = by_split(class_folders.table(tmp_path))
  assert {k: len(v) for k, v in files.items()} == {
      'train': 16, 'val': 4, 'test': 6
  }  # fmt: skip
  assert all(file.startswith('train/') for file, _ in files['val'])
  assert all(file.startswith('test/') for file, _ in files['test'])


def test_labels_csv_comes_first(tmp_path):
  make(tmp_path)
  (tmp_path / 'labels.csv').write_text(
      'file,split,label\nglad/1.png,train,x\nsad/1.png,train,y\n'
  )
  assert class_folders.table(tmp_path).classes == ('x', 'y')


def test_other_layouts_are_refused_in_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    class_folders.table(tmp_path / 'nowhere')
  write(tmp_path / 'a' / 'glad' / '1.png', picture(0))
  with pytest.raises(ValueError, match=r"DIR/CLASS/\*.jpg, found only 'a'"):
    class_folders.table(tmp_path / 'a' / '..')
  make(tmp_path / 'b', 1)
  make(tmp_path / 'b', 1, 'train')
  with pytest.raises(ValueError, match='train are folders of splits, glad is'):
    class_folders.table(tmp_path / 'b')
  (tmp_path / 'c').mkdir()
  with pytest.raises(FileNotFoundError, match=r'labels\.csv'):
    class_folders.table(tmp_path / 'c')


def test_a_source_is_opened_again_when_pictures_are_added(tmp_path):
  make(tmp_path)
  config = config_lib.default()
  config.data.update(name='folder', source='folder', root=str(tmp_path))
  first = sources.make_source(config.data, 'train')
  assert sources.make_source(config.data, 'train') is first
  for i in range(5):
    write(tmp_path / 'sad' / f'new {i}.png', picture(500 + i))
  assert len(sources.make_source(config.data, 'train')) == len(first) + 4
