"""Files of a dataset that are damaged, huge, strange or gone."""

import fractions
import io
import os
import resource
import struct
import subprocess
import sys
import zlib

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from vemd_jax.data import (
    decoding,
    folder,
    prepared,
    sources,
    transforms,
    video,
)
from vemd_jax.inference import clips
from vemd_jax.prepare import audio, dataset, encode, index

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def encoded(suffix, image=PICTURE):
  return cv2.imencode(suffix, image)[1].tobytes()


def png_header(width, height):
  """A valid PNG of a few bytes that declares a size."""

  def chunk(kind, data):
    code = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', code)

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return (
      b'\x89PNG\r\n\x1a\n'
      + chunk(b'IHDR', header)
      + chunk(b'IDAT', zlib.compress(bytes(1 << 20)))
      + chunk(b'IEND', b'')
  )


def jpeg_header(width, height, before=b''):
  data = bytearray(encoded('.jpg'))
  at = data.index(b'\xff\xc0')
  data[at + 5 : at + 9] = struct.pack('>HH', height, width)
  return bytes(data[:2] + before + data[2:])


def gif_header(width, height):
  buffer = io.BytesIO()
  Image.fromarray(PICTURE).convert('P').save(buffer, 'GIF')
  data = bytearray(buffer.getvalue())
  data[6:10] = struct.pack('<HH', width, height)
  return bytes(data)


def bmp_header(width, height):
  data = bytearray(encoded('.bmp'))
  data[18:26] = struct.pack('<ii', width, height)
  return bytes(data)


JPEG, PNG = encoded('.jpg'), encoded('.png')
UNREADABLE = {
    'truncated.jpg': JPEG[: len(JPEG) // 2],
    'header.jpg': JPEG[:20],
    'truncated.png': PNG[: len(PNG) // 2],
    'truncated.webp': encoded('.webp')[:200],
    'truncated.tif': encoded('.tiff')[:400],
    'truncated.bmp': encoded('.bmp')[:500],
    'page.jpg': b'<!DOCTYPE html><title>404</title>',
    'text.png': b'no image' * 100,
    'noise.jpg': np.random.default_rng(1).bytes(5000),
    'noise behind a header.jpg': b'\xff\xd8\xff\xe0'
    + np.random.default_rng(2).bytes(5000),
    'archive.png': b'PK\x03\x04' + bytes(300),
    # For this format Pillow would run Ghostscript.
    'script.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'noise.mp4': np.random.default_rng(3).bytes(5000),
    'page.mp4': b'<html>' * 100,
    'sound only.mp4': b'RIFF$\0\0\0WAVEfmt ',
}
HUGE = {
    'huge.png': png_header(60_000, 60_000),
    'wide.png': png_header(2**31 - 1, 1000),
    'huge.jpg': jpeg_header(65_000, 65_000),
    # Filled markers and foreign segments before the size.
    'hidden.jpg': jpeg_header(65_000, 65_000, b'\xff\xff\xff\xe1\0\4ab'),
    'huge.gif': gif_header(60_000, 60_000),
    'huge.bmp': bmp_header(60_000, 60_000),
}
STRANGE = {
    '1x1.png': encoded('.png', PICTURE[:1, :1]),
    '1x1.jpg': encoded('.jpg', PICTURE[:1, :1]),
    'tall.png': encoded('.png', np.zeros((9000, 1, 3), np.uint8)),
    'wide.jpg': encoded('.jpg', np.zeros((1, 9000, 3), np.uint8)),
    'grey.png': encoded('.png', PICTURE[..., 0]),
    'deep.png': encoded('.png', PICTURE.astype(np.uint16) * 257),
    # The name's suffix does not matter.
    'png in truth.jpg': PNG,
}


def make(root, contents):
  for name, content in contents.items():
    (root / name).write_bytes(content)
  lines = [f'{name},train,x' for name in contents]
  (root / 'labels.csv').write_text('\n'.join(['file,split,label', *lines]))
  return folder.Folder(root, 'train', max_unreadable=1.0)


def samples(source, train):
  rng = np.random.default_rng(0) if train else None
  augment = transforms.Augment((0.5, 1.0), (0.75, 1.33), 0.5, 0.2, 0.2, 0.2)
  transform = transforms.Transform(image_size=32, augment=augment)
  return [transform(source[i], rng) for i in range(len(source))]


@pytest.mark.parametrize('train', [False, True])
def test_unreadable_files_are_samples_that_do_not_count(tmp_path, train):
  found = samples(make(tmp_path, UNREADABLE), train)
  blank = transforms.Transform(image_size=32).blank()
  for name, sample in zip(UNREADABLE, found):
    assert sample['unreadable'] == 1 and not sample['mask'], name
    assert not sample['label_mask'] and sample.keys() == blank.keys()


@pytest.mark.parametrize('name', HUGE)
def test_the_size_is_checked_before_decoding(tmp_path, monkeypatch, name):
  def never(*args, **kwargs):
    raise AssertionError('was decoded')

  monkeypatch.setattr(cv2, 'imdecode', never)
  monkeypatch.setattr(Image.Image, 'load', never)
  with pytest.raises(ValueError, match='more than 178956970 pixels'):
    decoding.decode_image(HUGE[name])
  (tmp_path / name).write_bytes(HUGE[name])
  with pytest.raises(encode.Unreadable, match='more than 178956970 pixels'):
    encode.encode_image(tmp_path / name, 640, encode.Remarks())


def test_huge_files_take_no_memory(tmp_path):
  source = make(tmp_path, HUGE)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for train in (False, True):
    assert all(s['unreadable'] for s in samples(source, train))
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 200_000  # kB


@pytest.mark.parametrize('train', [False, True])
def test_strange_files_are_read(tmp_path, train):
  for name, sample in zip(STRANGE, samples(make(tmp_path, STRANGE), train)):
    assert sample['mask'] and not sample['unreadable'], name
    assert sample['image'].shape == (1, 32, 32, 3)


def test_other_kinds_of_files_are_left_out_at_the_start(tmp_path):
  contents = {'a.jpg': JPEG, 'empty.png': b'', 'notes.txt': b'text'}
  make(tmp_path, contents)
  (tmp_path / 'folder.jpg').mkdir()
  # Opening it would wait for ever.
  os.mkfifo(tmp_path / 'pipe.jpg')
  (tmp_path / 'broken.jpg').symlink_to(tmp_path / 'nowhere.jpg')
  (tmp_path / 'round.jpg').symlink_to(tmp_path / 'round.jpg')
  with (tmp_path / 'labels.csv').open('a') as file:
    for name in ('folder', 'pipe', 'broken', 'round', 'n' * 300):
      file.write(f'\n{name}.jpg,train,x')
  source = folder.Folder(tmp_path, 'train', max_unreadable=1.0)
  assert source.files == ['a.jpg']
  reasons = ' '.join(source.report.problems)
  for reason in ('empty.png is empty', 'notes.txt has no suffix of an image',
                 'folder.jpg contains no images',
                 'pipe.jpg is not a regular file',
                 'broken.jpg does not exist', 'round.jpg cannot be read',
                 'nnn.jpg cannot be read (File name too long)'):  # fmt: skip
    assert reason in reasons


def test_a_file_that_vanishes_or_changes_in_the_middle_of_a_run(tmp_path):
  contents = {f'{i}.jpg': JPEG for i in range(4)}
  source = make(tmp_path, contents)
  (tmp_path / '1.jpg').unlink()
  (tmp_path / '2.jpg').write_bytes(b'')
  (tmp_path / '3.jpg').unlink()
  (tmp_path / '3.jpg').mkdir()
  found = samples(source, True)
  assert [int(s['unreadable']) for s in found] == [0, 1, 1, 1]
  cached = sources.Cached(source, 1, 64)
  assert [len(cached[i]['frames']) for i in range(4)] == [1, 0, 0, 0]


# --- videos -----------------------------------------------------------------


def write_video(path, size=(64, 48), frames=5):
  code = cv2.VideoWriter_fourcc(*'MJPG')
  out = cv2.VideoWriter(str(path), code, 10, size)
  for i in range(frames):
    out.write(np.full((size[1], size[0], 3), 30 * i, np.uint8))
  out.release()


def test_the_size_of_a_video_is_checked_before_decoding(tmp_path, monkeypatch):
  path = tmp_path / 'a.avi'
  write_video(path)
  monkeypatch.setattr(video, 'MAX_PIXELS', 64 * 48)
  assert len(video.read_frames(str(path), 2).frames) == 2
  monkeypatch.setattr(video, 'MAX_PIXELS', 64 * 48 - 1)
  with pytest.raises(ValueError, match=r'a\.avi: 64 x 48 is more than 3071'):
    video.read_frames(str(path), 2)


def test_later_frames_that_are_larger(tmp_path, monkeypatch):
  path = tmp_path / 'a.avi'
  with av.open(str(path), 'w') as out:
    stream = out.add_stream('mjpeg', rate=10)
    stream.width, stream.height = 16, 16
    stream.pix_fmt = 'yuvj420p'
    for i, side in enumerate((16, 16, 16, 64, 64, 64)):
      packet = av.Packet(encoded('.jpg', np.zeros((side, side, 3), np.uint8)))
      packet.stream, packet.pts, packet.dts = stream, i, i
      packet.time_base = fractions.Fraction(1, 10)
      out.mux(packet)
  sides = {f.shape[0] for f in video.read_frames(str(path), 6).frames}
  assert sides == {16, 64}
  monkeypatch.setattr(video, 'MAX_PIXELS', 64 * 64 - 1)
  # As with any other damage, the frames before it are used.
  sides = {f.shape[0] for f in video.read_frames(str(path), 6).frames}
  assert sides == {16}


@pytest.mark.parametrize('kind', ['m3u8', 'concat', 'sdp'])
def test_a_playlist_opens_no_other_file(tmp_path, kind):
  write_video(tmp_path / 'private.avi')
  target = tmp_path / 'private.avi'
  text = {
      'm3u8': '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n'
      f'file://{target}\n#EXT-X-ENDLIST\n',
      'concat': f"ffconcat version 1.0\nfile '{target.name}'\n",
      'sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\n'
      'm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
  }[kind]
  (tmp_path / 'a.mp4').write_text(text)
  with pytest.raises(ValueError, match=r'a\.mp4'):
    video.read_frames(str(tmp_path / 'a.mp4'), 2)


# --- sound ------------------------------------------------------------------


def wave(rate=16000, channels=1, bits=16, data=bytes(3200), size=None):
  block = channels * bits // 8
  form = struct.pack(
      '<HHIIHH', 1, channels, rate, rate * block & 0xFFFFFFFF,
      block & 0xFFFF, bits,
  )  # fmt: skip
  size = len(data) if size is None else size
  body = b'WAVEfmt ' + struct.pack('<I', 16) + form + b'data'
  body += struct.pack('<I', size) + data
  return b'RIFF' + struct.pack('<I', len(body) & 0xFFFFFFFF) + body


def test_damaged_sound(tmp_path):
  path = tmp_path / 'a.wav'
  cases = {
      'rate of 1 Hz': wave(rate=1),
      'rate of 2 GHz': wave(rate=2 * 10**9),
      'no rate': wave(rate=0),
      'a header alone': wave()[:30],
      'no sound': b'RIFF' + bytes(60),
  }
  for name, data in cases.items():
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'a\.wav'):
      print(name, audio.read_samples(path))
  # More data declared than there are: what is there is read.
  path.write_bytes(wave(size=2**31))
  assert audio.read_samples(path).shape == (1600,)


def test_sound_that_is_too_long(tmp_path, monkeypatch):
  (tmp_path / 'a.wav').write_bytes(wave(data=bytes(2 * 16000 * 3)))
  monkeypatch.setattr(audio, 'MAX_SECONDS', 3)
  assert audio.read_samples(tmp_path / 'a.wav').shape == (48000,)
  monkeypatch.setattr(audio, 'MAX_SECONDS', 2)
  with pytest.raises(ValueError, match=r'a\.wav.*longer than 2 s'):
    audio.read_samples(tmp_path / 'a.wav')


def test_a_long_spectrogram_is_the_same_in_blocks(monkeypatch):
  samples = np.random.default_rng(0).normal(0, 0.1, 16000)
  whole = audio.log_mel(samples)
  monkeypatch.setattr(audio, '_BLOCK', 7)
  np.testing.assert_array_equal(audio.log_mel(samples), whole)


# --- preparation ------------------------------------------------------------


def test_preparation_goes_round_no_link_and_not_outside(tmp_path):
  source, other = tmp_path / 'source', tmp_path / 'other'
  for split in ('Train', 'Validation'):
    for name in ('Positive', 'Neutral', 'Negative'):
      path = source / split / name
      path.mkdir(parents=True)
      (path / f'{name}.jpg').write_bytes(JPEG)
  other.mkdir()
  (other / 'secret.jpg').write_bytes(encoded('.jpg', 255 - PICTURE))
  train = source / 'Train'
  for name in ('up', 'up again'):
    (train / 'Positive' / name).symlink_to(train / 'Positive')
  (train / 'Neutral' / 'away').symlink_to(other)
  (train / 'Negative' / 'secret.jpg').symlink_to(other / 'secret.jpg')

  def run(out, **kwargs):
    return dataset.prepare(
        'gaf3', source, tmp_path / out, index.Options(frames=1), workers=1,
        log=lambda _: None, **kwargs,
    )  # fmt: skip

  report = run('out')
  left_out = {x['file']: x['reason'] for x in report['left_out']}
  assert left_out.pop('Train/Negative/secret.jpg') == index.FOREIGN
  assert left_out.pop('Train/Neutral/away') == index.FOREIGN
  assert not left_out
  counts = {
      k: v['samples'] for k, v in report['splits'].items() if v['samples']
  }
  # The links upwards lead to images that are there already.
  assert counts == {'train': 3, 'val': 3}
  report = run('out 2', outside_root=True)
  assert not [x for x in report['left_out'] if x['reason'] == index.FOREIGN]
  assert report['splits']['train']['samples'] == 5
  # Identical images are in both splits.
  (line,) = report['overlaps']
  assert 'identical samples are in more than one split' in line


def test_prepared_data_name_no_foreign_code(tmp_path):
  """A features.json could have TFDS import any module."""
  source = tmp_path / 'source'
  for split in ('Train', 'Validation'):
    for name in ('Positive', 'Neutral', 'Negative'):
      (source / split / name).mkdir(parents=True)
      (source / split / name / 'a.jpg').write_bytes(JPEG)
  dataset.prepare(
      'gaf3', source, tmp_path / 'out', index.Options(frames=1), workers=1,
      log=lambda _: None,
  )  # fmt: skip
  assert len(prepared.PreparedSource(tmp_path / 'out')[0]['frames']) == 1
  path = tmp_path / 'out' / 'data' / 'features.json'
  text = path.read_text()
  name = 'tensorflow_datasets.core.features.scalar.Scalar'
  for key in ('pythonClassName', 'python_class_name', '\\u0070ythonClassName'):
    path.write_text(
        text.replace('pythonClassName', key).replace(name, 'antigravity.X')
    )
    with pytest.raises(ValueError, match=r"features\.json names 'antigravity"):
      prepared.PreparedSource(tmp_path / 'out')[0]
  assert 'antigravity' not in sys.modules
  # A truncated index would leave samples out silently.
  path.write_text(text)
  lines = (tmp_path / 'out' / 'index.jsonl').read_text()
  (tmp_path / 'out' / 'index.jsonl').write_text(lines[: len(lines) // 2])
  with pytest.raises(ValueError, match=r'index\.jsonl has .* prepared\.json'):
    prepared.PreparedSource(tmp_path / 'out')


def test_predict_names_what_it_cannot_read(tmp_path):
  for name, content in {**UNREADABLE, **HUGE}.items():
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(clips.Unreadable):
      if clips.is_video(name):
        list(clips.read_video(str(path), 2, 1.0, 1.0))
      else:
        clips.read_photo(str(path), 1)


@pytest.mark.slow
def test_memory_of_a_fresh_process(tmp_path):
  """All files above in a process that may have 2 GB of addresses."""
  for name, content in {**UNREADABLE, **HUGE, **STRANGE}.items():
    (tmp_path / name).write_bytes(content)
  code = (
      'import pathlib, resource, sys\n'
      'from vemd_jax.data import decoding, video\n'
      'resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n'
      'for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n'
      '  try:\n'
      '    decoding.decode_image(path.read_bytes())\n'
      '  except ValueError:\n'
      '    pass\n'
  )
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True)
