"""Creates tiny datasets in the official layouts, including faults."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

BOM = '\ufeff'


def picture(height=36, width=48, seed=0) -> np.ndarray:
  """Smooth uint8 [H, W, 3] RGB: red left, blue right, to detect rotations."""
  x = np.linspace(0, 1, width)[None, :, None]
  y = np.linspace(0, 1, height)[:, None, None]
  left, right = np.array([[[230, 20, 20]], [[20, 20, 230]]])
  image = left[None] * (1 - x) + right[None] * x
  shade = 0.8 + 0.2 * np.cos(seed + 3 * y)
  return np.clip(image * shade, 0, 255).astype(np.uint8)


def write_image(path: Path, image=None, **kwargs) -> None:
  """Saves with Pillow; kwargs go to `save`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = picture() if image is None else image
  Image.fromarray(image).save(path, **kwargs)


def exif(orientation: int) -> Image.Exif:
  """EXIF with an orientation and a GPS position that must be removed."""
  tags = Image.Exif()
  tags[0x0112] = orientation
  tags[0x010E] = 'taken at SECRET PLACE'
  return tags


def write_video(
    path: Path, frames=12, height=48, width=64, rotate=0, sound=False
) -> None:
  """An mp4 whose frame i has grey level 20 + 15 i in its lower half.

  Args:
    path: file to write.
    frames: number of frames, 10 a second.
    height: of the coded picture, even.
    width: of the coded picture, even.
    rotate: 90 sets the rotation flag of a portrait recording.
    sound: adds a tone.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w', format='mp4') as container:
    stream = container.add_stream('mpeg4', rate=10)
    stream.height, stream.width = height, width
    stream.pix_fmt = 'yuv420p'
    stream.bit_rate = 2_000_000
    tone = container.add_stream('aac', rate=16000) if sound else None
    for i in range(frames):
      image = picture(height, width)
      image[height // 2 :] = 20 + 15 * i
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    if tone is not None:
      time = np.arange(frames * 1600) / 16000
      wave = 0.5 * np.sin(2 * np.pi * 440 * time)
      block = av.AudioFrame.from_ndarray(
          wave[None].astype(np.float32), format='fltp', layout='mono'
      )
      block.sample_rate = 16000
      container.mux(tone.encode(block))
      container.mux(tone.encode(None))
  if rotate:
    _set_rotation(path, height)


def _set_rotation(path: Path, height: int) -> None:
  """Writes the matrix of a 90 degree clockwise turn into the track header."""
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 4 + 40
  one = 1 << 16
  matrix = [0, one, 0, -one, 0, 0, height * one, 0, 1 << 30]
  data[at : at + 36] = b''.join(v.to_bytes(4, 'big', signed=True)
                                for v in matrix)  # fmt: skip
  path.write_bytes(data)


def write_text(path: Path, text: str, ends='\n', bom=False) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = (BOM if bom else '') + text.replace('\n', ends)
  path.write_bytes(text.encode())


def _strange_images(folder: Path) -> None:
  """CMYK, 16-bit, animated, rotated, large, transparent, odd names, damaged."""
  image = picture()
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).convert('CMYK').save(folder / 'cmyk.jpg', quality=95)
  grey = (np.linspace(0, 65535, 48)[None].repeat(36, 0)).astype(np.uint16)
  cv2.imwrite(str(folder / 'grey16.png'), grey)
  deep = (picture().astype(np.uint16) * 257)[..., ::-1]
  cv2.imwrite(str(folder / 'deep16.png'), deep)
  films = [Image.fromarray(picture(seed=s)) for s in range(3)]
  films[0].save(folder / 'film.gif', save_all=True, append_images=films[1:])
  # Stored in landscape; the flag requires rotation to portrait.
  write_image(folder / 'turned.jpg', exif=exif(6), quality=95)
  write_image(folder / 'marked.jpg', exif=exif(1), comment=b'SECRET NOTE')
  write_image(folder / 'large.png', picture(400, 800))
  alpha = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
  Image.fromarray(alpha).save(folder / 'clear.png')
  write_image(folder / 'Grüße an alle.jpg')
  (folder / 'empty.jpg').write_bytes(b'')
  whole = (folder / 'marked.jpg').read_bytes()
  (folder / 'torn.jpg').write_bytes(whole[: len(whole) * 2 // 3])
  (folder / 'page.jpg').write_bytes(b'<html>not found</html>')
  (folder / 'notes.txt').write_text('not a picture')
  (folder / '.DS_Store').write_bytes(b'x')


def gaf3_folders(root: Path) -> None:
  """Layout (a), all unusual images in Train/Positive."""
  base = root / 'GAF3.0_Original'
  _strange_images(base / 'Train' / 'Positive')
  for name in ('Neutral', 'Negative'):
    for i in range(4):
      write_image(base / 'Train' / name / f'{name}{i}.jpg', picture(seed=i))
  for name in ('Positive', 'Neutral', 'Negative'):
    write_image(base / 'Validation' / name / 'v 1.jpg')


def gaf3_flat(root: Path) -> None:
  """Layout (b), with all kinds of faults of a label file."""
  for i in range(6):
    write_image(root / 'Train' / f'{i}.jpg', picture(seed=i))
  write_image(root / 'Train' / 'Größe 7.jpg')
  write_image(root / 'Train' / 'unlisted.jpg')
  rows = [
      'Img_name,Labels', '0.jpg,0', '1.JPG,1', '2.jpg,2', '2.jpg,2', '3.jpg,0',
      '3.jpg,1', '4.jpg,9', 'gone.jpg,1', '5,1', 'Größe 7.jpg,2', 'broken', '',
  ]  # fmt: skip
  write_text(root / 'Train_labels.txt', '\n'.join(rows), '\r\n', bom=True)
  write_image(root / 'Val' / 'a.jpg')
  write_text(root / 'Val_labels.txt', 'img_name,labels\na.jpg,2\n')


def vgaf(root: Path) -> None:
  """Valid, short, rotated, damaged, missing videos; Test has no labels."""
  train = root / 'Train'
  write_video(train / '10_1.mp4', sound=True)
  write_video(train / '10_2.mp4')
  write_video(train / '11_1.mp4', frames=3)
  write_video(train / 'Fête 12_1.mp4', rotate=90)
  (train / '13_1.mp4').write_bytes(bytes(range(256)) * 40)
  (train / '14_1.mp4').write_bytes(b'')
  write_video(train / '15_1.mp4')
  rows = [
      'Vid_name Label', '10_1 1', '10_2 3', '11_1 2', 'Fête 12_1 1', '13_1 1',
      '14_1 1', '15_1 8', '16_1 2', '10_1 1', '',
  ]  # fmt: skip
  write_text(root / 'Train_labels.txt', '\n'.join(rows), '\r\n', bom=True)
  write_video(root / 'Val' / '20_1.mp4')
  write_text(root / 'Val_labels.txt', 'Vid_name Label\n20_1 3\n')
  write_video(root / 'Test' / '30_1.mp4')


def samsemo(root: Path) -> None:
  """Two languages; fear, unknown, empty and several labels."""
  labels = {
      'EN_a_1': 'happiness', 'EN_a_2': 'Disgust', 'EN_b_1': 'fear',
      'EN_b_2': "['anger', 'surprise']", 'EN_b_3': '', 'EN_c_1': 'boredom',
      'EN_c_2': 'NEUTRAL', 'EN_c_3': 'fear, sadness', 'PL_a_1': 'sadness',
      'PL_a_2': 'surprise', 'PL_a_3': 'anger',
  }  # fmt: skip
  rows = ['utterance_id\tlanguage\taggregated_emotions\ttranscript\t'
          'multiple_faces']  # fmt: skip
  for name, label in labels.items():
    rows.append(f'{name}\t{name[:2]}\t{label}\tIt\'s "{name}", ja?\t0')
    if name != 'PL_a_3':
      write_video(root / 'data' / name[:2] / f'{name}.mp4', frames=10)
  write_text(root / 'samsemo.tsv', '\n'.join(rows) + '\n', '\r\n', bom=True)
  splits = root / 'splits'
  write_text(splits / 'train_split_EN.txt', 'EN_a_1\nEN_b_1\nEN_b_2\nEN_b_3\n')
  write_text(splits / 'valid_split_EN.txt', 'EN_a_2\nEN_c_1\nEN_zz_9\n')
  write_text(splits / 'test_split_EN.txt', 'EN_c_2\nEN_c_3\n', '\r\n')
  write_text(splits / 'train_split_PL.txt', 'PL_a_1\nPL_a_3\n')
  write_text(splits / 'test_split_PL.txt', 'PL_a_2\n')


def dfew(root: Path, clips=11, frames=16) -> None:
  """Five folds over clips 1 .. clips; clip k has label 1 + (k - 1) % 7.

  Clip 9 has 5 frames, frame 3 of clip 2 is empty, clip 10 is missing, clip 11
  has two labels.
  """
  folder = root / 'Clip' / 'clip_224x224_16f'
  for k in range(1, clips + 1):
    if k == 10:
      continue
    for t in range(1, (5 if k == 9 else frames) + 1):
      write_image(folder / f'{k:05}' / f'{t}.jpg', _level(5 * t))
  (folder / '00002' / '3.jpg').write_bytes(b'')
  lists = root / 'EmoLabel_DataSplit'
  for fold in range(5):
    parts = {'train': [], 'test': []}
    for k in range(1, clips + 1):
      label = 1 + (k - 1) % 7
      if k == 11 and fold == 4:
        label = 3
      part = 'test' if k % 5 == fold else 'train'
      parts[part].append(f'{k:05},{label}')
    for part, rows in parts.items():
      text = '\n'.join(['video_name,label', *rows]) + '\n'
      write_text(
          lists / f'{part}(single-labeled)' / f'set_{fold + 1}.csv', text,
          '\r\n' if fold == 1 else '\n', bom=fold == 2,
      )  # fmt: skip


def _level(value: int) -> np.ndarray:
  return np.full((24, 24, 3), value, np.uint8)


def mer2023(root: Path) -> None:
  """Labels in any letter case; test3 has unlabelled clips."""
  for split, names in {
      'train': ('s1', 's2', 's3', 's4'),
      'test1': ('t1',),
      'test2': ('n1',),
      'test3': ('u1', 'u2', 'u3'),
  }.items():
    for name in names:
      write_video(root / split / f'{name}.mp4', frames=10)
  write_text(
      root / 'train-label.csv',
      'name,discrete,valence\ns1,Happy,1.0\ns2,WORRIED,-2\ns3,neutral,0\n'
      's4,proud,1\n',
      '\r\n',
  )
  write_text(root / 'test1-label.csv', 'name,discrete,valence\nt1,angry,-1\n')
  write_text(root / 'test2-label.csv', 'name,discrete,valence\nn1,sad,-1\n')
  write_text(root / 'test3-label.csv', 'name,discrete\nu2,surprise\n')
  (root / 'transcription.csv').write_bytes(
      'name,sentence\ns1,你好，世界\ns2,再见\n'.encode('gb18030')
  )


def engagenet(root: Path) -> None:
  """SNP rows, text and integer labels, a chunk in two lists."""
  labels = {
      'subject_1_Vid_1_0.mp4': 'Highly-Engaged',
      'subject_1_Vid_1_1.mp4': 'SNP(Subject Not Present)',
      'subject_2_Vid_1_0.mp4': 'barely-engaged',
      'subject_2_Vid_1_1.mp4': '2',
      'subject_3_Vid_1_0.mp4': 'Not-Engaged',
      'subject_3_Vid_1_1.mp4': 'NOT_ENGAGED',
      'subject_4_Vid_1_0.mp4': 'engaged ',
  }
  for name in labels:
    write_video(root / 'chunks' / name, frames=10)
  rows = ['chunk,label', *(f'chunks/{n},{x}' for n, x in labels.items())]
  write_text(root / 'final_labels.csv', '\n'.join(rows) + '\n', bom=True)
  names = list(labels)
  write_text(root / 'train.txt', '\n'.join(names[:4]) + '\n', '\r\n')
  write_text(root / 'valid.txt', '\n'.join(names[4:6]) + '\n')
  # One is also in train: it is kept in the later split only.
  write_text(root / 'test.txt', '\n'.join([names[6], names[3]]) + '\n')


def coco(root: Path) -> dict[str, list]:
  """Four images; returns the keypoints of the first as in the file."""
  body = []
  for j in range(17):
    body += [2 * j, j, j % 3] if j % 3 else [0, 0, 0]
  face = []
  for j in range(68):
    face += [10 + 0.25 * j, 5.5, 1.0 if j else 0.0]
  person = {'category_id': 1, 'iscrowd': 0, 'bbox': [1, 2, 10, 20], 'area': 9}
  crowd = {**person, 'iscrowd': 1, 'num_keypoints': 0, 'bbox': [0, 0, 48, 9]}
  zeros = [0] * 51
  names = {1: '000000000001.jpg', 2: '000000000002.jpg',
           3: '000000000003.jpg', 4: '000000000004.jpg'}  # fmt: skip
  people = [
      {**person, 'id': 1, 'image_id': 1, 'num_keypoints': 11,
       'keypoints': body},
      {**person, 'id': 2, 'image_id': 1, 'num_keypoints': 0,
       'keypoints': zeros},
      {**crowd, 'id': 3, 'image_id': 2, 'keypoints': zeros,
       'segmentation': {'counts': [1, 2], 'size': [36, 48]}},
  ]  # fmt: skip
  images = [
      {'id': i, 'file_name': n, 'height': 36, 'width': 48}
      for i, n in names.items()
  ]
  for split in ('train', 'val'):
    for i in (1, 2, 3):
      write_image(root / f'{split}2017' / names[i])
    base = {'info': {}, 'licenses': [], 'categories': [], 'images': images}
    path = root / 'annotations' / f'person_keypoints_{split}2017.json'
    write_text(path, json.dumps({**base, 'annotations': people}))
  extra = {'face_valid': True, 'face_kpts': face}
  none = {'face_valid': False, 'face_kpts': [0] * 204}
  whole = [{**people[0], **extra}, {**people[1], **none}]
  write_text(
      root / 'annotations' / 'coco_wholebody_val_v1.0.json',
      json.dumps({**base, 'annotations': whole}),
  )
  return {'body': body, 'face': face}


MAKERS = {
    'gaf3': gaf3_folders,
    'vgaf': vgaf,
    'samsemo': samsemo,
    'dfew': dfew,
    'mer2023': mer2023,
    'mer2023_semi': mer2023,
    'engagenet': engagenet,
    'coco': coco,
}
