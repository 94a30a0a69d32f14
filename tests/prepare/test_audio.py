"""Log-mel spectrograms against a slow reference, real files, the cache."""

import av
import numpy as np
import pytest
import scipy.signal

from vemd_jax.data import feature_cache
from vemd_jax.prepare import audio


def _sine(hertz, seconds=0.5, amplitude=1.0, rate=16000):
  time = np.arange(round(seconds * rate)) / rate
  return amplitude * np.sin(2 * np.pi * hertz * time)


def _slow_mel(bands):
  """[513, bands] triangles with explicit loops; the mel scale in its log form
  with another constant, 1127 ln(1 + f / 700)."""

  def mel(hertz):
    return 1127.0 * np.log1p(hertz / 700.0)

  edges = np.linspace(mel(50.0), mel(7600.0), bands + 2)
  edges = 700.0 * np.expm1(edges / 1127.0)
  filters = np.zeros((513, bands))
  for band in range(bands):
    left, peak, right = edges[band : band + 3]
    for i in range(513):
      f = i * 15.625
      if left <= f <= peak:
        filters[i, band] = (f - left) / (peak - left)
      elif peak < f <= right:
        filters[i, band] = (right - f) / (right - peak)
  return filters, edges[1:-1]


def test_equals_scipys_stft_and_explicit_triangles():
  rng = np.random.default_rng(0)
  samples = 0.1 * rng.normal(size=8000) + _sine(440, amplitude=0.3)
  _, _, stft = scipy.signal.stft(
      samples, fs=16000, window='hann', nperseg=400, noverlap=240, nfft=1024,
      boundary=None, padded=False, scaling='spectrum',
  )  # fmt: skip
  filters, _ = _slow_mel(64)
  # 'spectrum' divides by the window's sum; a sine of amplitude 1 then has 1/2.
  power = (2 * np.abs(stft.T)) ** 2 @ filters
  want = 1 + 10 * np.log10(power + 1e-10) / 50
  got = audio.log_mel(samples)
  assert got.shape == (1 + (8000 - 400) // 160, 64)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize('hertz', [120, 440, 1000, 3500, 7000])
def test_a_tone_peaks_in_its_band_and_at_its_level(hertz):
  _, centres = _slow_mel(64)
  mel = audio.log_mel(_sine(hertz))
  band = np.abs(centres - hertz).argmin()
  assert np.abs(mel.argmax(1) - band).max() <= 1
  # Full scale is about 1; 20 dB less is 0.4 less.
  assert 0.9 < mel.max() < 1.2
  quiet = audio.log_mel(_sine(hertz, amplitude=0.1))
  np.testing.assert_allclose(mel.max() - quiet.max(), 0.4, atol=0.01)


def test_every_band_hears_something_and_silence_is_the_floor():
  noise = np.random.default_rng(0).normal(size=16000) * 0.1
  assert (audio.log_mel(noise).min(0) > -0.5).all()
  np.testing.assert_allclose(audio.log_mel(np.zeros(16000)), -1, atol=1e-6)
  assert audio.log_mel(np.zeros(10)).shape == (1, 64)
  assert audio.log_mel(np.zeros(0), bands=80).shape == (1, 80)


def write_clip(path, samples=None, rate=44100, channels=1, frames=4):
  """A small clip: grey pictures and, given samples, a sound track."""
  with av.open(str(path), 'w') as container:
    video = None
    if frames:
      video = container.add_stream('mpeg4', rate=8)
      video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
    sound = None
    if samples is not None:
      codec = 'pcm_s16le' if path.suffix in ('.wav', '.avi') else 'aac'
      layout = 'stereo' if channels == 2 else 'mono'
      sound = container.add_stream(codec, rate=rate, layout=layout)
    if video:
      for i in range(frames):
        picture = np.full((48, 64, 3), 40 * i, np.uint8)
        for packet in video.encode(av.VideoFrame.from_ndarray(picture)):
          container.mux(packet)
      container.mux(video.encode(None))
    if sound:
      data = np.repeat(samples.astype(np.float32)[None], channels, 0)
      frame = av.AudioFrame.from_ndarray(
          np.ascontiguousarray(data), 'fltp', layout
      )
      frame.rate = rate
      resampler = av.AudioResampler(
          sound.codec_context.format, layout, rate,
          frame_size=sound.codec_context.frame_size or None,
      )  # fmt: skip
      for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(sound.encode(part))
      container.mux(sound.encode(None))


def test_sound_of_a_clip_is_decoded_and_resampled(tmp_path):
  path = tmp_path / 'clip.avi'
  write_clip(path, _sine(1000, 1.0, 0.5, 44100), channels=2)
  samples = audio.read_samples(path)
  assert samples.dtype == np.float32
  assert abs(len(samples) - 16000) < 20
  want = _sine(1000, 1.0, 0.5)
  # Same level and no delay: stereo is averaged, the resampler adds no lag.
  np.testing.assert_allclose(samples[200:15800], want[200:15800], atol=0.02)
  mel = audio.spectrogram(path)
  _, centres = _slow_mel(64)
  np.testing.assert_allclose(centres[mel[10].argmax()], 1000, rtol=0.06)
  # 6 dB below full scale.
  tone = audio.log_mel(want)
  np.testing.assert_allclose(mel[10].max(), tone[10].max(), atol=0.01)


def test_aac_in_mp4_is_decoded(tmp_path):
  path = tmp_path / 'clip.mp4'
  write_clip(path, _sine(440, 1.0, 0.5, 48000), rate=48000)
  mel = audio.spectrogram(path)
  _, centres = _slow_mel(64)
  np.testing.assert_allclose(centres[mel[40].argmax()], 440, rtol=0.1)


def test_no_track_silence_and_broken_files(tmp_path):
  mute, silent = tmp_path / 'mute.mp4', tmp_path / 'silent.wav'
  write_clip(mute)
  write_clip(silent, np.zeros(16000), rate=16000, frames=0)
  assert audio.spectrogram(mute) is None
  assert audio.spectrogram(silent) is None
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes(b'not a clip' * 50)
  with pytest.raises(ValueError, match=r'broken.mp4: sound cannot be decoded'):
    audio.spectrogram(broken)
  with pytest.raises(FileNotFoundError, match=r'gone.wav: no such file'):
    audio.spectrogram(tmp_path / 'gone.wav')


# --- the cache --------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
  root = tmp_path / 'data'
  root.mkdir()
  write_clip(root / 'a ü.mp4', _sine(440, 0.5, 0.5, 48000), rate=48000)
  write_clip(root / 'mute.mp4')
  write_clip(root / 'own.mp4', _sine(440, 0.5, 0.5, 48000), rate=48000)
  write_clip(root / 'own.wav', _sine(2000, 0.5), rate=16000, frames=0)
  (root / 'same.mp4').write_bytes((root / 'a ü.mp4').read_bytes())
  write_clip(root / 'bad.mp4')
  (root / 'bad.wav').write_bytes(b'RIFF nothing')
  (root / 'labels.csv').write_text(
      'file,split,label,audio\na ü.mp4,train,x,\nmute.mp4,train,x,\n'
      'own.mp4,val,x,own.wav\nsame.mp4,val,x,\nbad.mp4,val,x,bad.wav\n'
  )
  return root


def test_cache_gives_each_row_its_sound(data):
  counts = audio.cache(data, workers=2)
  assert (counts.done, counts.kept, counts.empty) == (4, 0, 1)
  assert list(counts.unreadable) == ['bad.mp4']
  find = feature_cache.look_up(data, 'audio')
  assert len(find) == 3
  mel = find('a ü.mp4')
  assert mel.dtype == np.float32 and mel.shape[1] == 64
  # Stored in half precision: a twentieth of a decibel.
  np.testing.assert_allclose(
      mel, audio.spectrogram(data / 'a ü.mp4'), atol=1e-3
  )
  np.testing.assert_array_equal(mel, find('same.mp4'))
  _, centres = _slow_mel(64)
  own = find('own.mp4')  # The file in its column, not its own sound track.
  np.testing.assert_allclose(centres[own[20].argmax()], 2000, rtol=0.06)
  assert find('mute.mp4') is None and find('bad.mp4') is None
  # Equal content is stored once.
  assert len(list((data / 'audio_cache').glob('*.npz'))) == 2


def test_cache_goes_on_and_notices_changes(data, monkeypatch):
  audio.cache(data)
  calls = []
  original = audio.spectrogram

  def counting(path, bands):
    calls.append(str(path))
    return original(path, bands)

  monkeypatch.setattr(audio, 'spectrogram', counting)
  counts = audio.cache(data)
  # Only unreadable rows are retried.
  assert [c.rpartition('/')[2] for c in calls] == ['bad.wav']
  assert (counts.done, counts.kept, counts.empty) == (0, 4, 1)
  calls.clear()
  write_clip(data / 'own.wav', _sine(500, 0.6), rate=16000, frames=0)
  # An incomplete line of the index is ignored.
  index = data / 'audio_cache' / 'index.jsonl'
  index.write_bytes(index.read_bytes()[:-5])
  audio.cache(data)
  assert sorted(c.rpartition('/')[2] for c in calls) == ['bad.wav', 'own.wav']
  _, centres = _slow_mel(64)
  own = feature_cache.look_up(data, 'audio')('own.mp4')
  np.testing.assert_allclose(centres[own[20].argmax()], 500, rtol=0.1)
  with pytest.raises(ValueError, match=r'"bands": 64.*not with'):
    audio.cache(data, bands=80)
  audio.cache(data, bands=80, overwrite=True)
  assert feature_cache.look_up(data, 'audio')('own.mp4').shape[1] == 80


def test_command_line(data, capsys):
  assert audio.main([f'--data={data}', '--workers=2']) == 0
  out = capsys.readouterr().out
  assert '4 rows computed' in out and '1 of them without sound' in out
  assert 'bad.wav' in out
  assert audio.main([f'--data={data}/nowhere']) == 1
  error = capsys.readouterr().err.strip()
  assert 'nowhere/labels.csv: no such folder' in error and '\n' not in error


def test_look_up_without_cache_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'-m vemd_jax.data.audio --data'):
    feature_cache.look_up(tmp_path, 'audio')
