"""Decoding of videos that the tests encode."""

import av
import numpy as np
import pytest

from vemd_jax.data import transforms, video


def _write(path, count, size=(48, 64), rate=10):
  """A video whose frame i has the grey value 10 + 8 i, left half darker."""
  height, width = size
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    stream.bit_rate = 4_000_000
    for i in range(count):
      image = np.full((height, width, 3), 10 + 8 * i, np.uint8)
      image[:, : width // 2] //= 2
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return str(path)


def _values(clip):
  """The number of each frame, recovered from its grey value."""
  return [round((float(f[:, -8:].mean()) - 10) / 8) for f in clip.frames]


def test_spread_takes_middles():
  np.testing.assert_array_equal(video.spread(5, 1), [2])
  np.testing.assert_array_equal(video.spread(10, 5), [1, 3, 5, 7, 9])
  np.testing.assert_array_equal(video.spread(7, 7), np.arange(7))
  np.testing.assert_array_equal(video.spread(2, 5), [0, 0, 1, 1, 1])
  for total in range(1, 40):
    for count in range(1, 20):
      chosen = video.spread(total, count)
      assert chosen[0] >= 0 and chosen[-1] < total
      assert (np.diff(chosen) >= 0).all()
      # Symmetric under time reversal, up to rounding.
      mirrored = total - 1 - chosen[::-1]
      assert np.abs(chosen - mirrored).max() <= 1


def test_reads_evenly_spread_frames(tmp_path):
  path = _write(tmp_path / 'a b ü.mp4', 20)
  clip = video.read_frames(path, 4)
  np.testing.assert_array_equal(clip.indices, [2, 7, 12, 17])
  assert _values(clip) == [2, 7, 12, 17]
  np.testing.assert_allclose(clip.seconds, clip.indices / 10, atol=1e-3)
  for frame in clip.frames:
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8


def test_short_video_repeats_frames(tmp_path):
  path = _write(tmp_path / 'short.mp4', 3)
  clip = video.read_frames(path, 8)
  assert len(clip.frames) == 8
  assert _values(clip) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_longer_side_is_bounded(tmp_path):
  path = _write(tmp_path / 'a.mp4', 4, size=(96, 128))
  clip = video.read_frames(path, 2, max_side=64)
  assert clip.frames[0].shape == (48, 64, 3)
  clip = video.read_frames(path, 2, max_side=500)
  assert clip.frames[0].shape == (96, 128, 3)


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_flag(tmp_path, degrees):
  path = tmp_path / 'phone.mp4'
  _write(path, 4)
  # The track header's matrix [a b; c d] takes (x, y) to (a x + c y, b x + d y);
  # y counts downwards, so this turns clockwise.
  a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
  matrix = np.array([[a, b, 0], [-b, a, 0], [0, 0, 1]])
  fixed = np.where([[1, 1, 0]] * 3, matrix * 65536, matrix * 2**30)
  data = path.read_bytes()
  at = data.index(b'tkhd') + 4 + 40
  path.write_bytes(data[:at] + fixed.astype('>i4').tobytes() + data[at + 36 :])
  clip = video.read_frames(str(path), 1)
  upright = np.full((48, 64, 3), 10 + 8 * 2, np.uint8)
  upright[:, :32] //= 2
  expected = np.rot90(upright, -degrees // 90)
  assert clip.frames[0].shape == expected.shape
  assert np.abs(clip.frames[0].astype(int) - expected).mean() < 3


def test_not_a_video(tmp_path):
  path = tmp_path / 'broken.mp4'
  path.write_bytes(b'nothing of the kind')
  with pytest.raises(ValueError, match=r'broken\.mp4: cannot be read'):
    video.read_frames(str(path), 2)
  with pytest.raises(ValueError, match=r'missing\.mp4'):
    video.read_frames(str(tmp_path / 'missing.mp4'), 2)
  (tmp_path / 'empty.mp4').write_bytes(b'')
  with pytest.raises(ValueError, match=r'empty\.mp4'):
    video.read_frames(str(tmp_path / 'empty.mp4'), 2)


def test_damaged_end_gives_what_there_is(tmp_path):
  path = tmp_path / 'cut.ts'
  _write(path, 20)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  clip = video.read_frames(str(path), 4)
  assert len(clip.frames) == 4
  assert _values(clip) == clip.indices.tolist()


def test_record_with_a_video(tmp_path):
  path = _write(tmp_path / 'a.mp4', 10)
  bodies = {
      7: np.full((1, 17, 3), 16, np.float32),
      3: np.full((2, 17, 3), 16, np.float32),
      2: np.full((3, 17, 3), 16, np.float32),
  }
  record = {'video': path, 'label': 1, 'bodies': bodies, 'file': 'a.mp4'}
  transform = transforms.Transform(image_size=64, frames=4)
  sample = transform(record)  # Frames 1, 3, 6, 8.
  np.testing.assert_array_equal(sample['body_annotated'], [0, 1, 0, 0])
  np.testing.assert_array_equal(sample['body_mask'].sum(1), [0, 2, 0, 0])
  assert sample['label_mask'] and not sample['face_annotated'].any()
  (tmp_path / 'a.mp4').write_bytes(b'gone')
  assert transform(record)['unreadable'] == 1
