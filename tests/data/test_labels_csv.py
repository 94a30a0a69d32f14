"""labels.csv in the forms that spreadsheet programs save it."""

import codecs
import csv

import pytest
from etils import epath

from vemd_jax import config as config_lib
from vemd_jax import run
from vemd_jax.data import folder, labels_csv, naming, sources

ROWS = [
    ('Größe 1.jpg', 'train', 'fröhlich'),
    ('b.jpg', 'train', 'traurig'),
    ('c, d.jpg', 'val', 'fröhlich'),
    ('e.jpg', 'val', 'traurig'),
]
ENCODINGS = {
    'utf-8': lambda text: text.encode(),
    'utf-8-sig': lambda text: codecs.BOM_UTF8 + text.encode(),
    'utf-16': lambda text: text.encode('utf-16'),
    'utf-16-be': lambda text: codecs.BOM_UTF16_BE + text.encode('utf-16-be'),
    'utf-16-le without mark': lambda text: text.encode('utf-16-le'),
    'latin-1': lambda text: text.encode('latin-1'),
    'cp1252': lambda text: text.encode('cp1252'),
}


def write(root, rows, header='file,split,label', separator=',', end='\n',
          encode=str.encode):  # fmt: skip
  lines = [header]
  for row in rows:
    lines.append(
        separator.join(f'"{v}"' if separator in v else v for v in row)
    )
  (root / 'labels.csv').write_bytes(encode(end.join(lines) + end))
  return root


def plain(table):
  return [(row.file, row.split, row.label) for row in table.rows]


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_form_gives_the_same_rows(tmp_path, encoding, separator, end):
  header = separator.join(('file', 'split', 'label'))
  write(tmp_path, ROWS, header, separator, end, ENCODINGS[encoding])
  table = labels_csv.read(tmp_path)
  assert plain(table) == ROWS and table.classes == ('fröhlich', 'traurig')
  assert [row.line for row in table.rows] == [2, 3, 4, 5]
  documented = separator == ',' and encoding.startswith('utf-8')
  assert len(table.remarks) == (0 if documented else 1)
  if separator == ';':
    assert 'semicolons' in table.remarks[0]
  if encoding.startswith('utf-16'):
    assert 'UTF-16' in table.remarks[0]
  if encoding in ('latin-1', 'cp1252'):
    assert 'Windows-1252' in table.remarks[0]


@pytest.mark.parametrize('header', [
    'FILE,Split,LABEL', 'filename,split,label', 'File Name,set,Emotion',
    'image,subset,class', 'img_name,Split,"emotion"', 'image_path,usage,mood',
    '\ufefffile,split,label',
])  # fmt: skip
def test_synonyms_of_columns(tmp_path, header):
  table = labels_csv.read(write(tmp_path, ROWS, header))
  assert plain(table) == ROWS
  said = [line for line in table.remarks if 'as the column' in line]
  assert len(said) == (0 if header.strip('\ufeff').lower().startswith(
      'file,split,label') else 1)  # fmt: skip


def test_the_documented_name_wins_over_a_synonym(tmp_path):
  rows = [('a.jpg', 'train', 'sad', 'x'), ('b.jpg', 'train', 'glad', 'y')]
  table = labels_csv.read(write(tmp_path, rows, 'file,split,label,emotion'))
  assert table.classes == ('glad', 'sad') and not table.remarks


def test_excel_declares_its_separator(tmp_path):
  text = 'sep=;\r\nfile;split;label\r\na.jpg;train;sad\r\n'
  (tmp_path / 'labels.csv').write_text(text, newline='')
  table = labels_csv.read(tmp_path)
  assert plain(table) == [('a.jpg', 'train', 'sad')]
  assert table.rows[0].line == 3


@pytest.mark.parametrize('header, rows', [
    ('img,klasse,split', [('a.jpg', 'sad', 'train')]),
    ('bild;split;label', [('a.jpg', 'train', 'sad')]),
    ('image,path,split,label', [('x', 'a.jpg', 'train', 'sad')]),
    ('file,split,class,emotion', [('a.jpg', 'train', '1', 'sad')]),
    ('a.jpg,train,sad', [('b.jpg', 'train', 'sad')]),
    ('sad;Validation;a.png', [('sad', 'val', 'b.jpg')]),
    ('a\tb\tc', [('a.jpg', 'train', 'sad')]),
    ('', []), ('file,split,label,label', [('a.jpg', 'train', 'x', 'y')]),
])  # fmt: skip
def test_an_ambiguous_header_is_an_error_with_the_line_to_write(
    tmp_path, header, rows
):
  separator = next((s for s in ';\t' if s in header), ',')
  write(tmp_path, rows, header, separator)
  with pytest.raises(ValueError, match=r'labels\.csv:1: ') as caught:
    labels_csv.read(tmp_path)
  message = str(caught.value)
  assert '\n' not in message
  if 'insert the line' in message:
    line = message.partition('insert the line ')[2].removesuffix(' above it')
    rows = [tuple(header.split(separator)), *rows]
  else:
    line = message.partition('a first line such as ')[2]
  # Following the advice works.
  if rows:
    table = labels_csv.read(write(tmp_path, rows, line, separator))
    assert len(table.rows) == len(rows)
    assert all(r.file.endswith(('.jpg', '.png', 'x')) for r in table.rows)


@pytest.mark.parametrize('name', ['validation', 'Valid', 'DEV', 'development'])
def test_synonyms_of_splits(tmp_path, name):
  rows = [(f, 'Training' if s == 'train' else name, x) for f, s, x in ROWS]
  table = labels_csv.read(write(tmp_path, rows))
  assert [r.file for r in table.split('val')] == ['c, d.jpg', 'e.jpg']
  assert len(table.split('train')) == len(table.split('TRAINING')) == 2
  assert f'{name} as the split val' in table.remarks[0]
  # The value itself is preferred.
  rows.append(('f.jpg', 'val', 'traurig'))
  table = labels_csv.read(write(tmp_path, rows))
  assert [r.file for r in table.split('val')] == ['f.jpg']


def test_two_synonyms_of_a_split_are_ambiguous(tmp_path):
  rows = [*ROWS[:2], ('c.jpg', 'dev', 'x'), ('d.jpg', 'validation', 'x')]
  table = labels_csv.read(write(tmp_path, rows))
  with pytest.raises(ValueError, match=r"'val' may be dev or validation; .* "
                     r'--config\.data\.val_split=dev'):  # fmt: skip
    table.split('val')


def test_no_val_split_names_the_flag(tmp_path):
  table = labels_csv.read(write(tmp_path, ROWS[:2]))
  with pytest.raises(ValueError, match=r"no rows of split 'val'; there are "
                     r"'train' \(2\); --config\.data\.holdout=0\.1 "):
    table.split('val')


def test_one_flag_is_enough_without_a_val_split(tmp_path):
  for i in range(40):
    (tmp_path / f'{i}.jpg').write_bytes(b'1')
  rows = [(f'{i}.jpg', 'train', 'xy'[i % 2]) for i in range(40)]
  write(tmp_path, rows)
  config = config_lib.default()
  config.data.update(name='folder', source='folder', root=str(tmp_path))
  # It is noticed before the model is built.
  with pytest.raises(ValueError, match=r'--config\.data\.holdout=0\.1'):
    run.set_up(config, epath.Path(tmp_path / 'W'))
  config.data.holdout = 0.3
  held_out = sources.make_source(config.data, 'holdout').files
  assert sources.make_source(config.data, 'val').files == held_out
  train = sources.make_source(config.data, 'train').files
  assert 3 < len(held_out) < 25 and not set(held_out) & set(train)
  # A split of another name that is missing is not replaced.
  config.data.val_split = 'vall'
  with pytest.raises(ValueError, match="no rows of split 'vall'"):
    sources.make_source(config.data, 'val')


def test_class_folders_with_a_holdout(tmp_path):
  for split, count in (('train', 30), ('val', 2)):
    for label in ('x', 'y'):
      (tmp_path / split / label).mkdir(parents=True)
      for i in range(count):
        (tmp_path / split / label / f'{i}.jpg').write_bytes(b'1')
  config = config_lib.default()
  config.data.update(
      name='folder', source='folder', root=str(tmp_path), holdout=0.3
  )
  assert len(sources.make_source(config.data, 'val')) == 4
  held_out = len(sources.make_source(config.data, 'holdout'))
  assert 3 < held_out < 40
  assert len(sources.make_source(config.data, 'train')) == 60 - held_out


def test_labels_that_differ_only_in_case_or_spaces(tmp_path):
  rows = [('a.jpg', 'train', 'very happy'), ('b.jpg', 'train', 'very  happy'),
          ('c.jpg', 'train', 'VeryHappy'), ('d.jpg', 'train', 'very happy'),
          ('e.jpg', 'train', 'sad')]  # fmt: skip
  table = labels_csv.read(write(tmp_path, rows))
  assert table.classes == ('sad', 'very happy')
  (remark,) = table.remarks
  assert 'one label: very happy (2), very  happy (1), VeryHappy (1)' in remark
  for i in 'abcde':
    (tmp_path / f'{i}.jpg').write_bytes(b'1')
  source = folder.Folder(tmp_path, 'train')
  assert source.labels.tolist() == [1, 1, 1, 1, 0]
  with pytest.raises(ValueError, match='differ only in case or white space'):
    folder.Folder(tmp_path, 'train', classes=('sad', 'Happy', 'happy'))


def test_labels_and_subjects_of_one_split(tmp_path):
  rows = [('a.jpg', 'train', 'sad', 'Ann'), ('b.jpg', 'train', 'angry', 'Ben'),
          ('c.jpg', 'val', 'sad', 'ann'), ('d.jpg', 'val', 'sad', 'Cid'),
          ('e.jpg', 'val', 'happy', '')]  # fmt: skip
  table = labels_csv.read(write(tmp_path, rows, 'file,split,label,subject'))
  alone, subjects = table.remarks
  assert 'labels in one split only: angry (train), happy (val)' in alone
  assert '1 subjects are in more than one split: ann (train, val)' in subjects


def test_a_holdout_keeps_a_subject_together(tmp_path):
  rows = [(f'{i}.jpg', 'train', 'x', f's{i % 40}') for i in range(200)]
  write(tmp_path, rows, 'file,split,label,subject')
  for i in range(200):
    (tmp_path / f'{i}.jpg').write_bytes(b'1')
  held, rest = (
      {int(f.removesuffix('.jpg')) % 40 for f in folder.Folder(
          tmp_path, 'train', holdout=0.3, held_out=part).files}
      for part in (True, False)
  )  # fmt: skip
  assert held and rest and not held & rest and len(held | rest) == 40


@pytest.mark.parametrize('text, message', [
    ('a.jpg,train,"sad\nb.jpg,train,"sad"\n', r"labels\.csv:\d: .*expected"),
    ('a.jpg,train,"sad\nb.jpg,train,sad\n', 'unexpected end of data'),
    ('x, y.jpg,train,sad\n', r'csv:2: 4 values for 3 columns; quote values'),
    ('a.jpg,train\n', '2 values for 3 columns'),
    ('a\0.jpg,train,sad\n', 'zero bytes'),
    ('"a\n.jpg",train,sad\n', r"'a\\n.jpg' is not a valid file name"),
    ('a\x1b[2J.jpg,train,sad\n', 'is not a valid file name'),
    (',train,sad\n', 'the column file is empty'),
    ('a.jpg,train,' + 200_000 * 'x' + '\n', 'csv:2: field larger than'),
])  # fmt: skip
def test_damaged_rows(tmp_path, text, message):
  (tmp_path / 'labels.csv').write_text('file,split,label\n' + text)
  limit = csv.field_size_limit(1 << 17)
  try:
    with pytest.raises(ValueError, match=message) as caught:
      labels_csv.read(tmp_path)
  finally:
    csv.field_size_limit(limit)
  assert 'labels.csv' in str(caught.value)


def test_an_empty_value_behind_the_last_column_is_accepted(tmp_path):
  (tmp_path / 'labels.csv').write_text(
      'file,split,label,,\na.jpg,train,sad,,\nb.jpg,train,sad,\n'
  )
  assert len(labels_csv.read(tmp_path).rows) == 2


def test_numbers_of_any_length():
  # Python itself converts 4,300 digits at most.
  names = ['a' + '9' * 5000, 'a10', 'a' + '0' * 5000 + '9', 'a2b']
  assert sorted(names, key=naming.natural_key) == [
      names[3], names[2], names[1], names[0]
  ]  # fmt: skip
