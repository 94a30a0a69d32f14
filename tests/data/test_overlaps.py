"""Images and subjects that are in more than one split."""

import pytest

from vemd_jax.data import overlaps


def _write(root, table, contents):
  for name, content in contents.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  (root / 'labels.csv').write_text(table)


def test_identical_files_and_subjects_are_found(tmp_path):
  _write(
      tmp_path,
      'file,split,label,subject\na.jpg,train,x,1\nb.jpg,val,x,2\n'
      'c.jpg,val,y,3\nd.jpg,train,y,3\nclip,test,x,4\ngone.jpg,test,x,5\n',
      {'a.jpg': b'same', 'b.jpg': b'same', 'c.jpg': b'some', 'd.jpg': b'd',
       'clip/1.jpg': b'new', 'clip/2.jpg': b'same'},
  )  # fmt: skip
  files, subjects = overlaps.find(tmp_path)
  assert files == (
      '1 identical files are in more than one split: a.jpg (train) = b.jpg '
      '(val) = clip/2.jpg (test)'
  )
  assert '1 subjects are in more than one split: 3 (train, val)' in subjects


def test_nothing_is_shared(tmp_path):
  _write(
      tmp_path,
      'file,split,label\na.jpg,train,x\nb.jpg,train,x\nc.jpg,val,x\n',
      # Twice in one split, and as long in the other.
      {'a.jpg': b'same', 'b.jpg': b'same', 'c.jpg': b'some'},
  )
  assert overlaps.find(tmp_path) == []


def test_neither_folder_nor_prepared_data(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'labels\.csv'):
    overlaps.find(tmp_path)
  (tmp_path / 'prepared.json').write_text('{}')
  (tmp_path / 'report.json').write_text('[1]')
  with pytest.raises(ValueError, match=r'report\.json: not a report'):
    overlaps.find(tmp_path)
