"""`vemd new` and `vemd check`: from class folders to the command to train."""

import csv
import json

import cv2
import numpy as np
import pytest

from tests.data.test_class_folders import make, write
from tests.data.test_near_duplicates import picture
from vemd_jax.prepare import check, new


def labels(root):
  with (root / 'labels.csv').open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def test_new_writes_labels_and_the_command_to_train(tmp_path, capsys):
  root = make(tmp_path / 'my faces', 20)
  assert new.main([str(root), '--test=0.1']) == 0
  out = capsys.readouterr().out
  rows = labels(root)
  assert len(rows) == 40
  assert all(row['file'].split('/')[0] == row['label'] for row in rows)
  counts = {
      (label, split): sum((r['label'], r['split']) == (label, split)
                          for r in rows)
      for label in ('glad', 'sad')
      for split in ('train', 'val', 'test')
  }  # fmt: skip
  assert counts == {
      (label, split): n
      for label in ('glad', 'sad')
      for split, n in (('train', 14), ('val', 4), ('test', 2))
  }
  table = [line.split() for line in out.splitlines()]
  assert ['glad', '14', '4', '2'] in [
      [row[0], *(row[table[1].index(s)] for s in ('train', 'val', 'test'))]
      for row in table[2:5]
  ]
  assert 'size: 160 x 120 to 160 x 120' in out
  command = f"--config.data.root='{root}' --workdir='runs/my faces'"
  assert command in out.splitlines()[-1]
  assert (root / 'contact_sheet.jpg').stat().st_size > 1000
  # It is there now.
  assert new.main([str(root)]) == 2
  assert 'labels.csv exists' in capsys.readouterr().err
  assert new.main([str(root), '--overwrite', '--sheet=']) == 0
  assert {r['split'] for r in labels(root)} == {'train', 'val'}


def test_new_keeps_subjects_together(tmp_path, capsys):
  for i in range(60):
    path = tmp_path / ('glad', 'sad')[i % 2] / f's{i % 7}_{i}.png'
    write(path, picture(i))
  assert new.main([str(tmp_path), r'--subject=(s\d+)_', '--sheet=']) == 0
  splits = {}
  for row in labels(tmp_path):
    assert row['subject'] == row['file'].split('/')[1].split('_')[0]
    splits.setdefault(row['subject'], set()).add(row['split'])
  assert all(len(s) == 1 for s in splits.values()) and len(splits) == 7
  for wrong in 's', '(', '(none)':
    capsys.readouterr()
    argv = [str(tmp_path), '--overwrite', f'--subject={wrong}']
    assert new.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --subject={wrong}: ')
    assert error.count('\n') == 1


def test_new_refuses_what_makes_no_sense(tmp_path, capsys):
  make(tmp_path, 2)
  for argv in ['--val=0'], ['--val=0.7', '--test=0.4'], ['--sheet=a.txt']:
    assert new.main([str(tmp_path), *argv]) == 2
    assert capsys.readouterr().err.startswith(f'error: {argv[0]}')
  assert not (tmp_path / 'labels.csv').exists()
  assert new.main([str(tmp_path / 'nowhere')]) == 2


@pytest.fixture
def faulty(tmp_path):
  """A folder with one of everything that can be wrong."""
  rows = []

  def add(name, split, label, image):
    write(tmp_path / name, image)
    rows.append(f'{name},{split},{label}')

  for i in range(12):
    add(f'{i}.png', 'train' if i < 8 else 'val', ('a', 'b')[i % 2], picture(i))
  add('copy.jpg', 'val', 'b', cv2.resize(picture(0), (90, 70)))
  add('again.png', 'train', 'a', picture(2))
  add('small.png', 'train', 'a', picture(77, (40, 50)))
  add('rare.png', 'train', 'c', picture(78))
  (tmp_path / 'broken.jpg').write_text('no picture')
  rows.append('broken.jpg,train,a')
  rows.append('missing.jpg,train,a')
  text = '\n'.join(['file,split,label', *rows]) + '\n'
  (tmp_path / 'labels.csv').write_text(text)
  line = {'file': '0.png', 'width': 160, 'height': 120, 'faces': [
      [[40 + i, 50 + i % 9, 1] for i in range(68)]
  ] * 3}  # fmt: skip
  lines = [line, {'file': '8.png', 'faces': [], 'bodies': []}]
  (tmp_path / 'annotations.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
  )
  return tmp_path


def test_check_finds_what_is_wrong(faulty, capsys):
  found = check.check(faulty)
  problems, remarks = '\n'.join(found.problems), '\n'.join(found.remarks)
  assert 'broken.jpg (not a readable image)' in problems
  assert 'missing.jpg' in problems
  assert '0.png (train) = copy.jpg (val)' in problems
  assert [(a.file, b.file) for a, b in found.across] == [('0.png', 'copy.jpg')]
  assert 'val has no samples of c' in problems
  assert '0.png (a) = copy.jpg (b)' in remarks
  assert '1 pairs of near duplicates within a split' in remarks
  assert '2 of 17 have a side of less than 112 pixels' in remarks
  assert 'val, b, is 0.600 of it' in remarks
  assert 'c (1)' in remarks
  assert 'annotated: 1 of 12 of train, 1 with people (up to 3); 1 of 5 of' in (
      str(found)
  )
  assert check.main([str(faulty), '--sheet=']) == 1
  out = capsys.readouterr().out
  assert '0.png (train) = copy.jpg (val)' in out


def test_the_sheet_shows_annotations_and_copies(faulty):
  found = check.check(faulty)
  sheet = check.contact_sheet(found, cell=96)
  # Rows of a, b, c and of the copies.
  assert sheet.shape[0] > 4 * 96 and sheet.shape[1] > 8 * 96
  (first,) = [s for s in found.samples if s.file == '0.png']
  drawn = check._draw(first, 160)
  plain = cv2.imread(str(faulty / '0.png'))[..., ::-1]
  changed = np.abs(drawn.astype(int) - plain).max(-1) > 60
  assert changed[50:59, 40:108].mean() > 0.2 and changed[80:].mean() < 0.01
  (other,) = [s for s in found.samples if s.file == '8.png']
  plain = cv2.imread(str(faulty / '8.png'))[..., ::-1]
  np.testing.assert_array_equal(check._draw(other, 160), plain)


def test_check_of_class_folders_and_of_nothing(tmp_path, capsys):
  make(tmp_path / 'a', 10)
  assert check.main([str(tmp_path / 'a'), f'--sheet={tmp_path / "s.png"}']) == 0
  assert cv2.imread(str(tmp_path / 's.png')).shape[1] > 1000
  assert not (tmp_path / 'a' / 'labels.csv').exists()
  capsys.readouterr()
  (tmp_path / 'b').mkdir()
  assert check.main([str(tmp_path / 'b')]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
