"""Small datasets in their official layouts, valid and suitable for training.

Each layout has some samples of every class in each split. Faulty layouts are
tested in tests/prepare.
"""

import json
from pathlib import Path

import numpy as np

from tests.prepare.official_layouts import picture, write_image, write_text
from tests.prepare.official_layouts import write_video as video


def gaf3(root: Path) -> None:
  for split, count in ('Train', 10), ('Validation', 3):
    for name in ('Positive', 'Neutral', 'Negative'):
      for i in range(count):
        path = root / 'GAF3.0_Original' / split / name / f'{name}_{i}.jpg'
        write_image(path, picture(seed=i))


def vgaf(root: Path) -> None:
  for split, count in ('Train', 12), ('Val', 6):
    rows = ['Vid_name Label']
    for i in range(count):
      video(root / split / f'{split}{i}_1.mp4', frames=6)
      rows.append(f'{split}{i}_1 {1 + i % 3}')
    write_text(root / f'{split}_labels.txt', '\n'.join(rows) + '\n')


def samsemo(root: Path) -> None:
  rows = ['utterance_id\tlanguage\taggregated_emotions\ttranscript']
  labels = ('happiness', 'neutral', 'sadness', 'anger', 'surprise')
  for split, count in ('train', 12), ('valid', 6), ('test', 6):
    names = [f'{split}_{i}' for i in range(count)]
    for i, name in enumerate(names):
      video(root / 'data' / 'EN' / f'{name}.mp4', frames=6)
      rows.append(f'{name}\tEN\t{labels[i % 5]}\thello')
    write_text(root / 'splits' / f'{split}_split_EN.txt', '\n'.join(names))
  write_text(root / 'samsemo.tsv', '\n'.join(rows) + '\n')


def dfew(root: Path) -> None:
  clips = range(1, 41)
  for k in clips:
    for t in (1, 2, 3):
      write_image(
          root / 'Clip' / 'clip_224x224_16f' / f'{k:05}' / f'{t}.jpg',
          picture(24, 24, seed=k),
      )
  for fold in range(5):
    for part in ('train', 'test'):
      rows = [
          f'{k:05},{1 + k % 7}'
          for k in clips
          if (k % 5 == fold) == (part == 'test')
      ]
      write_text(
          root / 'EmoLabel_DataSplit' / f'{part}(single-labeled)'
          / f'set_{fold + 1}.csv',
          '\n'.join(['video_name,label', *rows]) + '\n',
      )  # fmt: skip


def mer2023(root: Path) -> None:
  labels = ('neutral', 'angry', 'happy', 'sad', 'worried', 'surprise')
  sizes = {'train': 24, 'test1': 4, 'test2': 4, 'test3': 4}
  for split, count in sizes.items():
    rows = ['name,discrete']
    for i in range(count):
      video(root / split / f'{split}_{i}.mp4', frames=6)
      rows.append(f'{split}_{i},{labels[i % 6]}')
    write_text(root / f'{split}-label.csv', '\n'.join(rows) + '\n')
  for i in range(24):  # SEMI: without labels.
    video(root / 'test3' / f'semi_{i}.mp4', frames=6)


def engagenet(root: Path) -> None:
  rows = ['chunk,label']
  for name, count in ('train', 12), ('valid', 6), ('test', 6):
    chunks = [f'subject_{name}{i}_0.mp4' for i in range(count)]
    for i, chunk in enumerate(chunks):
      video(root / 'chunks' / chunk, frames=6)
      rows.append(f'{chunk},{i % 4}')
    write_text(root / f'{name}.txt', '\n'.join(chunks) + '\n')
  write_text(root / 'final_labels.csv', '\n'.join(rows) + '\n')


def coco(root: Path) -> None:
  rng = np.random.default_rng(0)
  for split, count in ('train', 12), ('val', 6):
    images, annotations = [], []
    for i in range(1, count + 1):
      name = f'{i:012}.jpg'
      write_image(root / f'{split}2017' / name, picture(seed=i))
      images.append({'id': i, 'file_name': name, 'height': 36, 'width': 48})
      points = np.concatenate(
          [rng.uniform(4, 32, (17, 2)), np.full((17, 1), 2.0)], 1
      )
      annotations.append({
          'id': i, 'image_id': i, 'category_id': 1, 'iscrowd': 0,
          'bbox': [4, 4, 28, 28], 'area': 784, 'num_keypoints': 17,
          'keypoints': points.ravel().tolist(),
      })  # fmt: skip
    text = json.dumps({'images': images, 'annotations': annotations})
    write_text(
        root / 'annotations' / f'person_keypoints_{split}2017.json', text
    )


def folder(root: Path) -> None:
  rows = ['file,split,label']
  for split, count in ('train', 12), ('val', 6):
    for i in range(count):
      name = f'{split}_{i}.jpg'
      write_image(root / name, picture(seed=i))
      rows.append(f'{name},{split},{("glad", "sad")[i % 2]}')
  write_text(root / 'labels.csv', '\n'.join(rows) + '\n')


MAKERS = {
    'gaf3': gaf3,
    'vgaf': vgaf,
    'samsemo': samsemo,
    'dfew': dfew,
    'mer2023': mer2023,
    'mer2023_semi': mer2023,
    'engagenet': engagenet,
    'coco': coco,
}
