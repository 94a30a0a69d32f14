"""Files are read back with independent readers."""

import glob
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from vemd_jax import writer as writer_lib


def read_lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  # parse_constant: NaN and Infinity are not JSON.
  return [json.loads(x, parse_constant=pytest.fail) for x in text.splitlines()]


def read_events(workdir):
  """Records of the event files: length, its checksum, data, its checksum."""
  events = []
  for name in sorted(glob.glob(str(workdir / 'tensorboard' / '*tfevents*'))):
    with open(name, 'rb') as f:
      data = f.read()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return events


def scalar_values(workdir):
  return {
      (value.tag, event.step): value.simple_value
      for event in read_events(workdir)
      for value in event.summary.value
      if value.WhichOneof('value') == 'simple_value'
  }


def test_scalars_reach_json_lines_and_tensorboard(tmp_path):
  with writer_lib.Writer(tmp_path) as writer:
    writer.scalars(20, 'train', {'loss': jnp.float32(0.5), 'count': 3})
    writer.scalars(
        np.int64(40),
        'val',
        {
            'loss': float('nan'),
            'accuracy': np.float32(0.25),
            'recall': {'calm': 0.5, 'glad': float('-inf')},
            'confusion': np.array([[1, 2], [3, 4]]),
        },
    )
    # Before closing: a killed run keeps what it has logged.
    lines, scalars = read_lines(tmp_path), scalar_values(tmp_path)
  assert lines == [
      {'step': 20, 'split': 'train', 'loss': 0.5, 'count': 3},
      {
          'step': 40,
          'split': 'val',
          'loss': None,
          'accuracy': 0.25,
          'recall': {'calm': 0.5, 'glad': None},
          'confusion': [[1, 2], [3, 4]],
      },
  ]
  assert scalars == {
      ('train/loss', 20): 0.5,
      ('train/count', 20): 3.0,
      ('val/accuracy', 40): 0.25,
      ('val/recall/calm', 40): 0.5,
  }


def test_reserved_names_are_refused(tmp_path):
  with (
      writer_lib.Writer(tmp_path) as writer,
      pytest.raises(ValueError, match="'split'"),
  ):
    writer.scalars(1, 'train', {'split': 1.0})


def test_resume_drops_what_will_be_written_again(tmp_path):
  with writer_lib.Writer(tmp_path) as writer:
    for step in (10, 20, 30):
      writer.scalars(step, 'train', {'loss': step})
    writer.scalars(20, 'val', {'loss': 0})
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 15, "split": "tra')  # Killed while writing.

  with writer_lib.Writer(tmp_path, resume_step=20) as writer:
    writer.scalars(30, 'train', {'loss': 31})
  steps = [(x['step'], x['split'], x['loss']) for x in read_lines(tmp_path)]
  assert steps == [
      (10, 'train', 10), (20, 'train', 20), (20, 'val', 0), (30, 'train', 31)
  ]  # fmt: skip

  # TensorBoard is told to forget events from step 21 on.
  starts = [
      event.step
      for event in read_events(tmp_path)
      if event.session_log.status == event.session_log.START
  ]
  assert 21 in starts
  assert len(glob.glob(str(tmp_path / 'tensorboard' / '*tfevents*'))) == 2


def test_a_run_from_scratch_keeps_nothing(tmp_path):
  with writer_lib.Writer(tmp_path) as writer:
    writer.scalars(0, 'val', {'loss': 1})
  with writer_lib.Writer(tmp_path, resume_step=0) as writer:
    writer.scalars(0, 'val', {'loss': 2})
  assert [x['loss'] for x in read_lines(tmp_path)] == [2]


def test_an_evaluation_takes_the_place_of_an_earlier_one(tmp_path):
  with writer_lib.Writer(tmp_path) as writer:
    writer.scalars(10, 'val', {'loss': 1})
    writer.scalars(20, 'train', {'loss': 2})
  for loss in (3, 4):
    with writer_lib.Writer(tmp_path, resume_step=None) as writer:
      writer.scalars(10, 'val', {'loss': loss})
      writer.scalars(10, 'test', {'loss': loss})
  lines = [(x['step'], x['split'], x['loss']) for x in read_lines(tmp_path)]
  assert lines == [(20, 'train', 2), (10, 'val', 4), (10, 'test', 4)]


def test_pictures_in_files_and_tensorboard(tmp_path):
  picture = np.zeros((4, 6, 3), np.uint8)
  picture[0, 5] = 250, 10, 20
  with writer_lib.Writer(tmp_path) as writer:
    writer.pictures(5, {'val/structure': np.zeros((2, 2, 3), np.uint8)})
    writer.pictures(7, {'val/structure': picture})
  with Image.open(tmp_path / 'pictures' / 'val_structure.png') as stored:
    np.testing.assert_array_equal(np.array(stored), picture)
  images = [
      (event.step, value.image.height, value.image.width)
      for event in read_events(tmp_path)
      for value in event.summary.value
      if value.tag == 'val/structure'
  ]
  assert images == [(5, 2, 2), (7, 4, 6)]
  assert [p.name for p in (tmp_path / 'pictures').iterdir()] == [
      'val_structure.png'
  ]


def test_curves_and_confusion_are_kept_up_to_date(tmp_path):
  matrix = np.array([[3, 1], [0, 2]]), ('a', 'b')
  sizes = []
  with writer_lib.Writer(tmp_path) as writer:
    for step in (10, 20):
      writer.scalars(step, 'val', {'loss': 1 / step, f'term_{step}': 1.0})
      writer.confusion(step, 'val', {'mine': matrix}, to_file=step == 20)
      assert (tmp_path / 'confusion.png').exists() == (step == 20)
      writer.curves()
      with Image.open(tmp_path / 'curves.png') as picture:
        sizes.append(picture.size[1])
    writer.scalars(20, 'val', {'a': 1, 'b': 1})
    writer.curves(best=10)
  with Image.open(tmp_path / 'curves.png') as picture:
    assert picture.size[1] > sizes[0]  # Another row of panels.
  tags = [
      (value.tag, event.step)
      for event in read_events(tmp_path)
      for value in event.summary.value
      if value.WhichOneof('value') == 'image'
  ]
  assert tags == [('val/confusion', 10), ('val/confusion', 20)]


def test_places_are_those_that_there_are(tmp_path):
  with writer_lib.Writer(tmp_path) as writer:
    writer.scalars(1, 'val', {'loss': 1.0})
    assert 'report' not in writer.places()
    (tmp_path / 'report.html').write_text('')
    last = writer.places().splitlines()[-1]
  assert last.split() == ['report', str(tmp_path / 'report.html')]


def test_memory_is_counted():
  memory = writer_lib.memory()
  # More than JAX alone, less than any machine has.
  assert 5e7 < memory['host_memory'] < 1e13


def test_config_and_versions(tmp_path):
  config = {'seed': 3, 'model': {'widths': (4, 2)}}
  recipe = {'recipe': 'configs/folder.py:tiny', 'changes': {'seed': 3}}
  for _ in range(2):  # A resumed run writes them again.
    with writer_lib.Writer(tmp_path) as writer:
      writer.setup(config, writer_lib.versions(), recipe)
  assert json.loads((tmp_path / 'recipe.json').read_text()) == recipe
  versions = json.loads((tmp_path / 'versions.json').read_text())
  assert versions['jax'] == jax.__version__
  assert versions['numpy'] == np.__version__
  assert versions['devices'] == jax.device_count()
  assert versions['device_kind'] == jax.devices()[0].device_kind


def test_only_process_zero_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  workdir = tmp_path / 'run'
  with writer_lib.Writer(workdir) as writer:
    writer.setup({'seed': 0}, {})
    writer.scalars(1, 'train', {'loss': 1.0})
    writer.pictures(1, {'a': np.zeros((2, 2, 3), np.uint8)})
    writer.message('hello')
  assert not workdir.exists()
  assert capsys.readouterr().out == ''


def test_results_table():
  table = writer_lib.results_table(
      {
          'accuracy': np.float32(0.625),
          'macro_f1': 0.5,
          'examples': 8.0,
          'recall_bad': 0.75,
          'nested': {'bad': 1.0},
          'confusion': np.array([[3.0, 1, 0], [2, 2, 0], [0, 0, 0]]),
      },
      ('bad', 'so-so', 'good'),
  )
  rows = [line.split() for line in table.splitlines()]
  assert rows == [
      ['accuracy', '0.6250'],
      ['macro_f1', '0.5000'],
      ['examples', '8'],
      [],
      ['true', '\\', 'predicted', 'bad', 'so-so', 'good', 'recall', 'examples'],
      ['bad', '3', '1', '0', '0.750', '4'],
      ['so-so', '2', '2', '0', '0.500', '4'],
      ['good', '0', '0', '0', '-', '0'],
  ]
  assert len({len(line) for line in table.splitlines()[4:]}) == 1
  assert writer_lib.results_table({'loss': 1.0}, ()) == 'loss  1.0000'
  with pytest.raises(ValueError, match=r'\(2, 2\)'):
    writer_lib.results_table({'confusion': np.eye(2)}, ('a', 'b', 'c'))
