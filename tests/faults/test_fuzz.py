"""Every parser of files that users bring, against random damage.

Each input is a valid file that was mutated, or text put together from what the
format is made of. A reader may accept it or raise its own error: a ValueError,
or an OSError for missing files, in one line that names a file. Anything else
fails the test: another exception, a hang (a minute for one input), or memory
that grows by more than `_GROWTH`.

The default run takes a few inputs per parser; `-m slow` takes at least 100,000
in all and prints how many.
"""

import collections
import io
import json
import pathlib
import resource
import shutil
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.test_bad_files import wave
from tests.prepare import official_layouts
from vemd_jax.data import feature_cache, folder, labels_csv
from vemd_jax.prepare import audio, text
from vemd_jax.prepare import index as ix
from vemd_jax.prepare.layouts import (
    coco,
    dfew,
    engagenet,
    gaf3,
    mer2023,
    samsemo,
    vgaf,
)

# Inputs per parser of the whole run.
_MANY = 8000
_GROWTH = 400_000  # kB of resident memory.
_DONE = collections.Counter()

# Pieces that mean something to a parser, or used to be mistaken by one.
_PIECES = [
    '"', "'", ',', ';', '\t', '\n', '\r\n', '\0', '{', '}', '[', ']', ':',
    '\\', '\\ud800', '\ufeff', '\u2028', 'NaN', 'Infinity', '-1', '1e999',
    '9' * 5000, '[' * 3000, '{"a":' * 2000, 'null', 'true', '""', '../', '/',
    'a.jpg', 'train', 'val', 'label', 'split', 'file', 'sep=;', 'ä', '你好',
    'x' * 3000, '"""', '=cmd()', '%s%n', '\x1b[2J', '.', '..', '',
]  # fmt: skip


@st.composite
def mutated(draw, valid: bytes):
  """A valid file with some bytes or pieces changed."""
  data = bytearray(valid)
  for _ in range(draw(st.integers(1, 6))):
    at = draw(st.integers(0, max(len(data), 1)))
    end = min(len(data), at + draw(st.integers(0, 40)))
    kind = draw(st.integers(0, 6))
    if kind == 0:
      data[at:end] = b''
    elif kind == 1:
      data[at:at] = draw(st.sampled_from(_PIECES)).encode()
    elif kind == 2:
      data[at:end] = draw(st.binary(max_size=40))
    elif kind == 3 and data:
      at %= len(data)
      data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == 4:
      data[at:at] = data[at:end] * draw(st.integers(1, 20))
    elif kind == 5:
      del data[at:]
    else:
      data[at:end] = draw(st.sampled_from(_PIECES)).encode('utf-16-le')
  return bytes(data)


def assembled():
  """Text of pieces alone."""
  pieces = st.sampled_from(_PIECES) | st.text(max_size=8)
  return st.lists(pieces, max_size=30).map(
      lambda parts: ''.join(parts).encode('utf-8', 'surrogatepass')
  )


def inputs(*valid: bytes):
  return st.one_of(assembled(), st.binary(max_size=200), *map(mutated, valid))


def fuzz(name, read, strategy, count, root, number):
  """Runs a reader on `count` inputs and checks how it ends.

  Args:
    name: of the parser, for the count.
    read: called with an input.
    strategy: gives inputs.
    count: of inputs.
    root: folder whose name has to stand in an error's message.
    number: seed of the run.
  """

  def hang(*_):
    raise AssertionError('a minute for one input')

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  accepted = 0

  @seed(number)
  @settings(
      max_examples=count,
      deadline=None,
      database=None,
      phases=[Phase.generate, Phase.shrink],
      suppress_health_check=list(HealthCheck),
  )
  @given(strategy)
  def run(data):
    nonlocal accepted
    _DONE[name] += 1
    signal.alarm(60)
    try:
      read(data)
      accepted += 1
    except (ValueError, OSError) as error:
      message, shown = str(error), repr(error)[:400]
      assert str(root) in message, shown
      assert '\n' not in message and len(message) < 3000, shown
      # Python's own errors of decoding and parsing say nothing to a user.
      assert type(error) in (ValueError, FileNotFoundError), shown
    finally:
      signal.alarm(0)

  old = signal.signal(signal.SIGALRM, hang)
  try:
    run()
  finally:
    signal.signal(signal.SIGALRM, old)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < _GROWTH
  assert accepted, 'no input was accepted: the strategy tests nothing'
  print(f'\n{name}: {_DONE[name]} inputs, {accepted} accepted')


# --- the parsers ------------------------------------------------------------

PARSERS = {}


def parser(name):
  def add(make):
    PARSERS[name] = make
    return make

  return add


def picture(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b'content')


_TABLE = (
    'file,split,label,audio,transcript,subject\n'
    'a.jpg,train,sad,,"he said ""no""",1\nb.jpg,train,happy,,,2\n'
    'clip,val,sad,,,3\n'
)


@parser('labels.csv')
def labels(root):
  for name in ('a.jpg', 'b.jpg', 'clip/1.jpg'):
    picture(root / name)

  def read(data):
    (root / 'labels.csv').write_bytes(data)
    table = labels_csv.read(root)
    for row in table.rows:
      assert row.file and row.line > 1
    # What can be listed can be opened, and can only be inside.
    for split in table.splits:
      source = folder.Folder(root, split, max_unreadable=1.0)
      for i in range(len(source)):
        assert source[i]['file'] == source.files[i]

  encoded = [_TABLE.encode(), _TABLE.replace(',', ';').encode('utf-16')]
  return read, inputs(*encoded, _TABLE.replace(',', '\t').encode('latin-1'))


@parser('annotations.jsonl')
def annotations(root):
  (root / 'labels.csv').write_text(_TABLE)
  for name in ('a.jpg', 'b.jpg', 'clip/1.jpg', 'clip/2.jpg'):
    picture(root / name)
  lines = [
      {'file': 'a.jpg', 'width': 40, 'height': 30,
       'bodies': [[[1.5, 2, 0.5]] * 17], 'faces': [[[3, 4, 1]] * 68]},
      {'file': 'b.jpg', 'bodies': [], 'faces': None},
      {'file': 'clip', 'frame': 1, 'bodies': [[[1, 2, 1]] * 17]},
  ]  # fmt: skip

  def read(data):
    (root / 'annotations.jsonl').write_bytes(data)
    for split in ('train', 'val'):
      source = folder.Folder(root, split, max_unreadable=0.9)
      str(source.report)
      for i in range(len(source)):
        for key in ('bodies', 'faces'):
          for people in source[i][key]:
            assert people is None or np.isfinite(people).all()

  valid = '\n'.join(map(json.dumps, lines)).encode() + b'\n'
  return read, inputs(valid, valid.replace(b'1.5', b'NaN'))


def layout(module, make, path, **options):
  """The reader of a dataset's official files, one of them mutated."""

  def build(root):
    make(root)

    def read(data):
      (root / path).write_bytes(data)
      index = ix.Index()
      module(root, ix.Options(frames=1, **options), index)
      ix.finish(index)
      for sample in index.samples:
        assert (root / sample.media[0]).resolve().is_relative_to(root)
        for people in (sample.bodies or ()) + (sample.faces or ()):
          assert np.isfinite(people).all()

    return read, inputs((root / path).read_bytes())

  return build


_L = official_layouts
PARSERS |= {
    'gaf3 labels': layout(gaf3.read, _L.gaf3_flat, 'Train_labels.txt'),
    'vgaf labels': layout(vgaf.read, _L.vgaf, 'Train_labels.txt'),
    'dfew folds': layout(
        dfew.read, _L.dfew,
        'EmoLabel_DataSplit/train(single-labeled)/set_1.csv',
    ),
    'mer2023 labels': layout(mer2023.read, _L.mer2023, 'train-label.csv'),
    'mer2023 unlabelled': layout(
        mer2023.read_semi, _L.mer2023, 'test3-label.csv'
    ),
    'transcripts': layout(mer2023.read, _L.mer2023, 'transcription.csv'),
    'engagenet labels': layout(
        engagenet.read, _L.engagenet, 'final_labels.csv'
    ),
    'engagenet lists': layout(engagenet.read, _L.engagenet, 'train.txt'),
    'samsemo labels': layout(
        samsemo.read, _L.samsemo, 'samsemo.tsv',
        multi_label=True,
    ),
    'coco bodies': layout(
        coco.read, _L.coco, 'annotations/person_keypoints_val2017.json'
    ),
    'coco faces': layout(
        coco.read, _L.coco, 'annotations/coco_wholebody_val_v1.0.json'
    ),
}  # fmt: skip


@parser('WAV')
def sound(root):
  path = root / 'a.wav'

  def read(data):
    path.write_bytes(data)
    samples = audio.read_samples(path)
    if samples is not None:
      assert samples.ndim == 1 and np.isfinite(samples).all()
      assert np.abs(samples).max(initial=0) <= 1
      assert len(samples) <= audio.MAX_SECONDS * audio.RATE

  noise = np.random.default_rng(0).bytes(640)
  return read, st.one_of(
      *(mutated(wave(rate, channels, bits, noise))
        for rate, channels, bits in ((16000, 1, 16), (8000, 2, 8),
                                     (44100, 1, 24))),
      st.builds(
          wave, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1),
          st.integers(0, 64), st.binary(max_size=400),
          st.integers(0, 2**32 - 1),
      ),
  )  # fmt: skip


@parser('embeddings')
def embeddings(root):
  path = root / 'embeddings.jsonl'
  lines = [{'file': 'a.jpg', 'embedding': [[0.5, 1.0], [2, 3]]},
           {'file': 'b.jpg', 'embedding': [0.5, 1.0]}]  # fmt: skip

  def read(data):
    path.write_bytes(data)
    for array in text.read_embeddings(path).values():
      assert array.ndim == 2 and np.isfinite(array).all()

  return read, inputs('\n'.join(map(json.dumps, lines)).encode())


def arrays(values) -> bytes:
  file = io.BytesIO()
  np.savez(file, features=values)
  return file.getvalue()


@parser('feature cache, index')
def cache_index(root):
  key = 'ab' * 16
  (root / f'{key}.npz').write_bytes(arrays(np.ones((2, 3), np.float16)))
  lines = [{'file': 'a.jpg', 'key': key, 'stamp': [1, 2]},
           {'file': 'b.jpg', 'key': None, 'stamp': None}]  # fmt: skip

  def read(data):
    (root / 'index.jsonl').write_bytes(data)
    found = feature_cache.Features(root, 'a command')
    for file in ('a.jpg', 'b.jpg'):
      features = found(file)
      assert features is None or features.dtype == np.float32

  return read, inputs(b''.join(json.dumps(x).encode() + b'\n' for x in lines))


@parser('feature cache, settings')
def cache_settings(root):
  (root / 'index.jsonl').write_text('')

  def read(data):
    (root / 'index.meta.json').write_bytes(data)
    feature_cache.Features(root, 'a command')

  return read, inputs(json.dumps({'model': 'x', 'frames': 2}).encode())


@parser('feature cache, arrays')
def cache_arrays(root):
  key = 'ab' * 16
  line = {'file': 'a.jpg', 'key': key, 'stamp': 1}
  (root / 'index.jsonl').write_text(json.dumps(line) + '\n')
  found = feature_cache.Features(root, 'a command')

  def read(data):
    (root / f'{key}.npz').write_bytes(data)
    features = found('a.jpg')
    assert features.ndim == 2 and np.isfinite(features).all()

  return read, st.one_of(
      st.binary(max_size=200),
      *(mutated(arrays(v)) for v in (
          np.ones((2, 3), np.float16), np.ones((2, 3), np.float32),
          np.arange(4), np.array([{}, None], object),
      )),
  )  # fmt: skip


def run(name, count, root, number=0):
  root.mkdir()
  read, strategy = PARSERS[name](root)
  fuzz(name, read, strategy, count, root, number)
  shutil.rmtree(root)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', PARSERS)
def test_a_few_inputs(tmp_path, name):
  run(name, 25, tmp_path / 'data')


@pytest.mark.slow
@pytest.mark.parametrize('name', PARSERS)
def test_many_inputs(name):
  # In memory where there is such a place: a file is written for each input.
  base = pathlib.Path('/dev/shm')
  base = base if base.is_dir() else pathlib.Path('/tmp')
  root = base / f'vemd_jax fuzz {name.replace(",", "")}'
  shutil.rmtree(root, ignore_errors=True)
  for number in range(1, 5):
    run(name, _MANY // 4, root, number)
  assert _DONE[name] >= _MANY


@pytest.mark.slow
def test_inputs_are_many():
  """Runs after the others, in the same process."""
  total = sum(_DONE.values())
  print(f'\n{total} inputs')
  assert total >= 100_000, dict(_DONE)
