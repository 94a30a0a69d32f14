"""Time is a fake clock, the terminal a pseudo-terminal."""

import io
import os
import pathlib
import pty
import re
import subprocess
import sys
import termios

import jax.numpy as jnp
import pytest

from vemd_jax import progress

ROOT = pathlib.Path(__file__).parents[1]


class FakeTime:

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def test_clock_leaves_pauses_out_of_speed_but_not_of_time_left():
  time = FakeTime()
  clock = progress.Clock(100, 8, step=20, now=time)
  time.seconds += 5
  rates = clock.report(30)  # 10 steps in 5 s, 70 to go.
  assert rates['steps_per_second'] == pytest.approx(2)
  assert rates['examples_per_second'] == pytest.approx(16)
  assert rates['seconds_left'] == pytest.approx(35)

  time.seconds += 4
  with clock.pause():
    time.seconds += 6
  rates = clock.report(50)  # 20 steps in 4 s of training and 10 s in all.
  assert rates['steps_per_second'] == pytest.approx(5)
  assert rates['seconds_left'] == pytest.approx(50 * 10 / 20)

  time.seconds += 10
  rates = clock.report(60)
  assert rates['examples_per_second'] == pytest.approx(8)
  assert rates['seconds_left'] == pytest.approx(40 * 20 / 30)

  time.seconds += 1
  assert clock.report(100)['seconds_left'] == 0


def test_clock_counts_a_pause_that_raises():
  time = FakeTime()
  clock = progress.Clock(10, 1, now=time)
  with pytest.raises(KeyError), clock.pause():
    time.seconds += 3
    raise KeyError
  time.seconds += 1
  assert clock.report(1)['steps_per_second'] == pytest.approx(1)


def test_clock_tells_how_long_training_waits_for_input():
  time = FakeTime()
  clock = progress.Clock(100, 8, now=time)
  for _ in range(10):
    with clock.waiting():
      time.seconds += 1
    time.seconds += 3
  with clock.pause():
    time.seconds += 60
  rates = clock.report(10)
  assert rates['input_wait'] == pytest.approx(10 / 40)
  assert rates['seconds'] == pytest.approx(100)
  time.seconds += 5
  assert clock.report(20)['input_wait'] == 0


def test_progress_line():
  rates = {
      'examples_per_second': 1234.567, 'seconds_left': 200.4,
      'input_wait': 0.043,
  }  # fmt: skip
  metrics = {'loss': jnp.float32(0.931443), 'accuracy': 0.5519}
  first = progress.progress_line(120, 1000, metrics, rates)
  second = progress.progress_line(1000, 1000, {'loss': 1e-7}, rates)
  assert ' '.join(first.split()) == (
      'step 120/1000 loss 0.93144 accuracy 0.552 1235 ex/s wait 4% 3m20s left'
  )
  assert 'accuracy' not in second
  assert first.index('loss') == second.index('loss')
  assert max(len(first), len(second)) < 80


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0s'), (59.4, '59s'), (59.6, '1m00s'), (200, '3m20s'),
        (3599.7, '1h00m'), (18431, '5h07m'),
    ],
)  # fmt: skip
def test_duration(seconds, text):
  assert progress.duration(seconds) == text


def test_a_bar_writes_whole_lines_into_a_pipe(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', stream)
  with progress.bar(5, 'row', 'reading', done=2) as bar:
    for _ in range(3):
      bar.update()
  with progress.bar(3, 'row', done=3):
    pass
  # What ends before a line is due leaves no trace.
  with progress.bar(3, 'row', brief=True) as bar:
    bar.update(3)
  text = stream.getvalue()
  assert '\r' not in text and text.endswith('\n')
  lines = text.splitlines()
  assert lines[-1].startswith('reading: 100%') and '5/5' in lines[-1]
  assert all(line.startswith('reading: ') for line in lines)


PROGRAM = """
from absl import flags, logging
from vemd_jax import progress
flags.FLAGS.mark_as_parsed()  # As absl's app.run does.
logging.use_absl_handler()
line = progress.Line()
line.message('before')
line.show('step 1')
line.show('step 22')
line.message('evaluated')
logging.warning('warned')
line.show('x' * 500)
line.close()
print('after')
"""


def run_in_terminal():
  """What the program writes to a terminal 80 columns wide."""
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  process = subprocess.Popen(
      [sys.executable, '-c', PROGRAM], cwd=ROOT, stdin=theirs, stdout=theirs,
      stderr=theirs,
  )  # fmt: skip
  os.close(theirs)
  data = b''
  while True:
    try:
      part = os.read(ours, 4096)
    except OSError:  # The other end is closed.
      break
    if not part:
      break
    data += part
  os.close(ours)
  assert process.wait() == 0, data
  return data.decode()


def test_a_line_updates_in_place_in_a_terminal():
  lines = [
      # What stands after the last carriage return is what one sees.
      re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', line).split('\r')[-1].strip()
      for line in run_in_terminal().replace('\r\n', '\n').split('\n')
  ]
  lines = [line for line in lines if line]
  assert lines[0] == 'before' and lines[1] == 'evaluated'
  assert lines[2].endswith('warned') and 'step' not in lines[2]
  assert lines[3] == 'x' * 79 and lines[4] == 'after'
  assert len(lines) == 5


def test_a_line_is_printed_below_the_last_in_a_pipe():
  process = subprocess.run(
      [sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True,
      text=True, check=True,
  )  # fmt: skip
  assert process.stdout.splitlines() == [
      'before', 'step 1', 'step 22', 'evaluated', 'x' * 500, 'after'
  ]  # fmt: skip
