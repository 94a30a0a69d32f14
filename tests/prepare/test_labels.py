"""Every label reader against irregular labels and variants of spelling."""

import numpy as np
import pytest

from vemd_jax.data import datasets, folder
from vemd_jax.prepare import index as ix
from vemd_jax.prepare.layouts import (
    dfew,
    engagenet,
    gaf3,
    mer2023,
    samsemo,
    vgaf,
)


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, 'utf-8')


def medium(path):
  write(path, 'a file; readers of layouts do not decode')


def quoted(text):
  """A value of a table that may contain quotes."""
  return '"' + text.replace('"', '""') + '"'


def read(module, source, **options):
  index = ix.Index()
  module.read(source, ix.Options(frames=1, **options), index)
  ix.finish(index)
  return index


def gaf3_labels(root, rows):
  for name, _ in rows:
    medium(root / 'Train' / f'{name}.jpg')
  medium(root / 'Val' / 'v.jpg')
  lines = ''.join(f'{n}.jpg,{quoted(x)}\n' for n, x in rows)
  write(root / 'Train_labels.txt', f'Img_name,Labels\n{lines}')
  write(root / 'Val_labels.txt', 'Img_name,Labels\nv.jpg,0\n')
  return read(gaf3, root, label_order=('negative', 'neutral', 'positive'))


def vgaf_labels(root, rows):
  for name, _ in rows:
    medium(root / 'Train' / f'{name}.mp4')
  medium(root / 'Val' / 'v.mp4')
  lines = ''.join(f'{n} {quoted(x)}\n' for n, x in rows)
  write(root / 'Train_labels.txt', f'Vid_name Label\n{lines}')
  write(root / 'Val_labels.txt', 'Vid_name Label\nv 1\n')
  return read(vgaf, root)


def dfew_labels(root, rows):
  where = root / 'EmoLabel_DataSplit'
  for name, _ in rows:
    medium(root / 'Clip' / 'clip_224x224_16f' / name.zfill(5) / '1.jpg')
  lines = ''.join(f'{n},{quoted(x)}\n' for n, x in rows)
  for fold in range(1, 6):
    write(where / 'train(single-labeled)' / f'set_{fold}.csv',
          f'video_name,label\n{lines}')  # fmt: skip
    write(where / 'test(single-labeled)' / f'set_{fold}.csv',
          'video_name,label\n')  # fmt: skip
  return read(dfew, root)


def mer2023_labels(root, rows):
  for name, _ in rows:
    medium(root / 'train' / f'{name}.mp4')
  lines = ''.join(f'{n},{quoted(x)}\n' for n, x in rows)
  write(root / 'train-label.csv', f'name,discrete\n{lines}')
  return read(mer2023, root)


def engagenet_labels(root, rows):
  for name, _ in rows:
    medium(root / 'chunks' / f'{name}.mp4')
  lines = ''.join(f'{n}.mp4,{quoted(x)}\n' for n, x in rows)
  write(root / 'final_labels.csv', f'chunk,label\n{lines}')
  write(root / 'train.txt', ''.join(f'{n}.mp4\n' for n, _ in rows))
  write(root / 'valid.txt', '')
  write(root / 'test.txt', '')
  return read(engagenet, root)


def samsemo_labels(root, rows):
  for name, _ in rows:
    medium(root / 'data' / 'EN' / f'{name}.mp4')
  lines = ''.join(f'{n}\tEN\t{quoted(x)}\n' for n, x in rows)
  write(root / 'samsemo.tsv',
        f'utterance_id\tlanguage\taggregated_emotions\n{lines}')  # fmt: skip
  write(root / 'splits' / 'train_split_EN.txt',
        ''.join(f'{n}\n' for n, _ in rows))  # fmt: skip
  return read(samsemo, root)


READERS = {
    'gaf3': (gaf3_labels, '1', 1),
    'vgaf': (vgaf_labels, '1', 0),
    'dfew': (dfew_labels, '1', 0),
    'mer2023': (mer2023_labels, 'happy', None),
    'engagenet': (engagenet_labels, '1', 1),
    'samsemo': (samsemo_labels, 'anger', 3),
}


@pytest.mark.parametrize('name', READERS)
def test_no_odd_label_becomes_a_class(tmp_path, name):
  reader, valid, _ = READERS[name]
  odd = ['-1', '-1.0', '\u22121', '\u20131', '1.5', '0.9', '99', '1e0', '1,0',
         '', ' ', '\u00a0', '?', 'nan', 'none', '\u00b2', '1 2',
         f'-{valid}', f'{valid}x']  # fmt: skip
  rows = [('100', valid), *((str(101 + i), x) for i, x in enumerate(odd))]
  index = reader(tmp_path, rows)
  samples = [s for s in index.samples if s.split in ('train', 'folds')]
  assert len(samples) == 1, [(s.file, s.label) for s in samples]
  assert '100' in samples[0].file
  # All others are reported with a reason.
  assert len(index.left_out) >= len(odd)


@pytest.mark.parametrize('name', READERS)
def test_a_valid_label_in_every_spelling(tmp_path, name):
  reader, valid, _ = READERS[name]
  spellings = [valid, f' {valid}', f'{valid}\t ', f'\u00a0{valid}\u00a0',
               f"'{valid}'", f'{valid}\u200b', valid.upper()]  # fmt: skip
  if valid.isdigit():
    spellings += [f'{valid}.0', f'{valid}.', f'0{valid}', f'+{valid}']
  if name == 'vgaf':  # Its columns are separated by blanks.
    spellings = [x for x in spellings if x.strip() == x]
  rows = [(str(200 + i), x) for i, x in enumerate(spellings)]
  index = reader(tmp_path, rows)
  labels = [s.label for s in index.samples if s.split in ('train', 'folds')]
  facts = datasets.get(name)
  order = ('negative', 'neutral', 'positive') if name == 'gaf3' else ()
  assert labels == [datasets.class_of(facts, valid, order)] * len(spellings)


def test_two_spellings_of_a_file_with_two_labels_disagree(tmp_path):
  medium(tmp_path / 'Val' / 'v.jpg')
  write(tmp_path / 'Val_labels.txt', 'Img_name,Labels\nv.jpg,0\n')
  for name in ('a', 'b', 'c'):
    medium(tmp_path / 'Train' / 'sub' / f'{name}.jpg')
  write(tmp_path / 'Train_labels.txt', (
      'Img_name,Labels\na.jpg,0\nA,1\nsub/b.jpg,1\nsub\\b,1.0\n./c.JPG,2\n'
      'sub/c,0\n'
  ))  # fmt: skip
  index = read(gaf3, tmp_path)
  assert [(s.file, s.label) for s in index.samples if s.split == 'train'] == [
      ('Train/sub/b.jpg', 1)
  ]
  reasons = dict((file, reason) for file, _, reason in index.left_out)
  assert reasons == {
      'a.jpg': 'rows disagree about its label: 0, 1',
      './c.JPG': 'rows disagree about its label: 0, 2',
  }


def test_two_spellings_of_a_clip_with_two_labels_disagree(tmp_path):
  for name in ('1_1', '1_2'):
    medium(tmp_path / 'Train' / f'{name}.mp4')
  medium(tmp_path / 'Val' / 'v.mp4')
  write(tmp_path / 'Val_labels.txt', 'Vid_name Label\nv 1\n')
  write(tmp_path / 'Train_labels.txt',
        'Vid_name Label\n1_1 1\n1_1.mp4 2\n1_2 3\nTrain/1_2.mp4 3\n',
        )  # fmt: skip
  index = read(vgaf, tmp_path)
  train = [s for s in index.samples if s.split == 'train']
  assert [(s.file, s.label) for s in train] == [('Train/1_2.mp4', 2)]
  assert [r for _, _, r in index.left_out] == [
      'rows disagree about its label: 1, 2'
  ]


def test_one_name_in_two_languages_is_two_clips(tmp_path):
  for language in ('EN', 'PL'):
    medium(tmp_path / 'data' / language / 'clip_1.mp4')
    write(tmp_path / 'splits' / f'train_split_{language}.txt', 'clip_1\n')
  write(tmp_path / 'samsemo.tsv', (
      'utterance_id\tlanguage\taggregated_emotions\n'
      'clip_1\tEN\tanger\nclip_1\tPL\tsadness\n'
  ))  # fmt: skip
  index = read(samsemo, tmp_path)
  classes = datasets.get('samsemo').classes
  assert [(s.media[0], classes[s.label]) for s in index.samples] == [
      ('data/EN/clip_1.mp4', 'anger'),
      ('data/PL/clip_1.mp4', 'sadness'),
  ]
  assert not index.left_out


def test_folder_labels(tmp_path):
  for i in range(8):
    medium(tmp_path / f'{i}.jpg')
  write(tmp_path / 'labels.csv', (
      'file,split,label\n0.jpg,train,1\n1.jpg,train,1.0\n2.jpg,train,"01"\n'
      '3.jpg,train,-1\n4.jpg,train,\n5.jpg,train, 2 \n6.jpg,train,"\'2\'"\n'
      '7.jpg,train,\u00a02.0\n./7.jpg,train,2\n'
  ))  # fmt: skip
  source = folder.Folder(tmp_path, 'train')
  assert len(source.classes) == 2
  np.testing.assert_array_equal(source.labels, [0, 0, 0, -1, -1, 1, 1, 1])
  text = ' '.join(source.report.remarks)
  assert 'label -1 is treated as missing' in text and 'is listed twice' in text

  with (tmp_path / 'labels.csv').open('a') as file:
    file.write('sub/../0.jpg,train,2\n')
  message = r'labels\.csv:11: .* is listed in line 2'
  with pytest.raises(ValueError, match=message):
    folder.Folder(tmp_path, 'train')
