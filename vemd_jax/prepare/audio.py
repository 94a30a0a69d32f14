"""Log-mel spectrograms of clips' sound tracks, cached beside the data.

  python -m vemd_jax.data.audio --data=DIR

writes `DIR/audio_cache/`: one `KEY.npz` per sound track, where KEY is a hash of
the file's content and the settings, and an `index.jsonl` that maps rows to
keys. The same command resumes an interrupted run. A voice can identify a
person: protect the cache like the clips themselves.
"""

import argparse
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import av
import numpy as np
import scipy.fft
import scipy.signal

from vemd_jax.data import feature_cache, files, video
from vemd_jax.prepare import rows

RATE = 16000
WINDOW = RATE * 25 // 1000
HOP = RATE * 10 // 1000
# Longer than the window, so that the narrow low bands hold some bins each.
FFT = 1024
BANDS = 64
LOW, HIGH = 50.0, 7600.0
# Relative to the power of a full-scale sine; anything below is inaudible.
FLOOR_DB = -100.0
# A track whose samples all stay below this is silent (-80 dB).
SILENCE = 1e-4
# Limit of a sound track, whose samples are held in memory.
MAX_SECONDS = 4 * 3600
# Limits of the sample rate: resampling must not multiply the data, and the
# filter for it, which grows with the rate, must not fill the memory.
MIN_RATE, MAX_RATE = 1000, 768_000
# Windows transformed at a time, which bounds the memory.
_BLOCK = 1 << 14


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
  """O'Shaughnessy's mel scale, the one that HTK uses."""
  return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
  """The inverse of `hertz_to_mel`."""
  return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


@functools.cache
def _filters(bands: int) -> np.ndarray:
  """Triangular filters, evenly spaced in mel, peak 1: [FFT // 2 + 1, bands]."""
  ends = hertz_to_mel(np.array([LOW, HIGH]))
  edges = mel_to_hertz(np.linspace(*ends, bands + 2))
  frequency = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
  left, peak, right = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
  rising = (frequency - left) / (peak - left)
  falling = (right - frequency) / (right - peak)
  return np.maximum(np.minimum(rising, falling), 0)


def log_mel(samples: np.ndarray, bands: int = BANDS) -> np.ndarray:
  """Log-mel spectrogram: Hann windows of 25 ms every 10 ms.

  Args:
    samples: [n] mono, 16 kHz, -1..1.
    bands: number of mel bands M between 50 and 7600 Hz.

  Returns:
    float32 [Ta, M], Ta = 1 + (n - 400) // 160 and at least 1. A full-scale sine
    gives about 1 in its band, -100 dB and less give -1, linear in decibels
    between.
  """
  samples = np.asarray(samples, np.float64)
  samples = np.pad(samples, (0, max(WINDOW - len(samples), 0)))
  frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
  window = scipy.signal.get_window('hann', WINDOW)
  result = np.empty((len(frames), bands), np.float32)
  for at in range(0, len(frames), _BLOCK):
    block = frames[at : at + _BLOCK] * window[None]
    spectrum = scipy.fft.rfft(block, FFT, axis=-1)
    # Normalizes by half the window's sum, the peak of a sine of amplitude 1.
    power = np.square(np.abs(spectrum) * (2 / window.sum()))  # [Ta, F]
    decibels = 10 * np.log10(power @ _filters(bands) + 10 ** (FLOOR_DB / 10))
    result[at : at + _BLOCK] = 1 - 2 * decibels / FLOOR_DB
  return result


def read_samples(path: str | pathlib.Path) -> np.ndarray | None:
  """Decodes a sound or video file's first sound track.

  Args:
    path: a file in any format of FFmpeg.

  Returns:
    float32 [n] mono at 16 kHz, -1..1; None if the file has no sound track.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be decoded, or is longer than `MAX_SECONDS`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  blocks = []
  with files.open_binary(path) as file:
    head = file.read(12)
  # FFmpeg's format detection mistakes some WAV files for other formats.
  kind = 'wav' if head[:4] == b'RIFF' and head[8:] == b'WAVE' else None
  try:
    with video.opened(path, kind) as container:
      if not container.streams.audio:
        return None
      # FFmpeg's downmix to float preserves power, so that mono sound stored as
      # stereo would become 3 dB louder. Its downmix to integers averages.
      resampler = av.AudioResampler(format='s16', layout='mono', rate=RATE)
      count = 0
      for frame in container.decode(container.streams.audio[0]):
        if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
          raise ValueError(f'sample rate is {frame.sample_rate} Hz')
        new = [f.to_ndarray()[0] for f in resampler.resample(frame)]
        blocks += new
        count += sum(map(len, new))
        if count > MAX_SECONDS * RATE:
          raise ValueError(f'longer than {MAX_SECONDS} s')
      if blocks:
        blocks += [f.to_ndarray()[0] for f in resampler.resample(None)]
  except (av.error.FFmpegError, ValueError, OSError) as error:
    raise ValueError(f'{path}: sound cannot be decoded ({error})') from error
  if not blocks:
    return np.zeros(0, np.float32)
  return np.concatenate(blocks).astype(np.float32) / 32768


def spectrogram(
    path: str | pathlib.Path, bands: int = BANDS
) -> np.ndarray | None:
  """Log-mel spectrogram of a file's sound track.

  Args:
    path: a sound or video file.
    bands: number of mel bands M.

  Returns:
    float32 [Ta, M] (see `log_mel`); None if there is no track or only silence.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be decoded.
  """
  samples = read_samples(path)
  if samples is None or np.abs(samples).max(initial=0) < SILENCE:
    return None
  return log_mel(samples, bands)


def settings(bands: int = BANDS) -> dict[str, int | float | str]:
  """Settings that a cached spectrogram depends on besides the sound."""
  return {
      'features': 'log_mel',
      'version': 1,
      'rate': RATE,
      'window': WINDOW,
      'hop': HOP,
      'fft': FFT,
      'bands': bands,
      'low': LOW,
      'high': HIGH,
      'floor_db': FLOOR_DB,
  }


def cache(
    data: str | pathlib.Path,
    bands: int = BANDS,
    workers: int = 1,
    overwrite: bool = False,
    outside_root: bool = False,
) -> feature_cache.Counts:
  """Computes the spectrograms that are not cached yet.

  Args:
    data: a folder with `labels.csv`: the sound of a row is its file in the
      column `audio`, else the sound track of its video.
    bands: number of mel bands M.
    workers: number of threads.
    overwrite: starts a new index if the existing one has other settings.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    Numbers of rows processed.

  Raises:
    FileNotFoundError: there is no such dataset.
    ValueError: the cache was made with other settings, or `data` is prepared
      data, which stores its own spectrograms.
  """
  data = pathlib.Path(data)
  source = rows.Rows(data, outside_root)
  if source.is_prepared:
    raise ValueError(
        f'{data} is prepared data: store its spectrograms with '
        'python -m vemd_jax.data.prepare ... --audio'
    )
  made_with = settings(bands)
  suffix = hashlib.sha256(repr(made_with).encode()).hexdigest()[:8]

  def key(path: str) -> str:
    with files.open_binary(path) as file:
      return f'{hashlib.file_digest(file, "sha256").hexdigest()[:32]}-{suffix}'

  jobs = []
  for i in range(len(source)):
    record = source[i]
    path = record.get('audio_path') or record.get('video')
    if path is None:
      jobs.append(feature_cache.nothing(record['file']))
      continue
    jobs.append(
        feature_cache.Job(
            file=record['file'],
            stamp=_stamp(path),
            key=functools.partial(key, path),
            compute=functools.partial(spectrogram, path, bands),
        )
    )
  folder = data / feature_cache.FOLDERS['audio']
  return feature_cache.fill(
      folder, made_with, jobs, overwrite, workers,
      holds='log-mel spectrograms of recordings, in which voices can be '
      'recognized',
  )  # fmt: skip


def _stamp(path: str) -> list[int]:
  try:
    stat = pathlib.Path(path).stat()
  except OSError:
    return []
  return [stat.st_size, stat.st_mtime_ns]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.data.audio',
      description='Computes log-mel spectrograms of sound tracks.',
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--data', required=True, help='folder with labels.csv')
  add('--bands', type=int, default=BANDS,
      help='mel bands, config.data.audio_dim')
  add('--workers', type=int, default=os.cpu_count(), help='threads')
  add('--outside_root', action='store_true', help='accept files outside DATA '
      'in labels.csv')  # fmt: skip
  add('--overwrite', action='store_true', help='replace a cache that has other '
      'settings')  # fmt: skip
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parse(argv)

  def fill() -> feature_cache.Counts:
    if not 8 <= args.bands <= 128:
      raise ValueError(f'--bands={args.bands}: expected 8 to 128')
    return cache(
        args.data,
        args.bands,
        args.workers,
        args.overwrite,
        args.outside_root,
    )

  return rows.fill_command(fill, 'sound')
