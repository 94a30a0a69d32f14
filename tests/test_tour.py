"""The cells of docs/tour.ipynb run in order, as a script of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'docs' / 'tour.ipynb'

CHECKS = """
last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
assert -1.1 <= last['confidence'] <= 0, last
assert overlay.shape == clip.images[0].shape
assert (overlay != clip.images[0]).any()
print('checked', config.steps)
"""


def script() -> str:
  cells = json.loads(NOTEBOOK.read_text())['cells']
  code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
  assert len(code) >= 7
  return '\n\n'.join(['import json', *code, CHECKS])


def run(code: str, folder: pathlib.Path) -> str:
  (folder / 'tour.py').write_text(code)
  environment = {
      **os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(folder)
  }  # fmt: skip
  # As many devices as in a notebook, not the eight of the tests.
  environment['XLA_FLAGS'] = environment['VEMD_TEST_FLAG']
  process = subprocess.run(
      [sys.executable, folder / 'tour.py'], cwd=ROOT, env=environment,
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  return process.stdout


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
  code = script()
  for full, small in (
      ('get_config()', "get_config('tiny')"),
      ('config.steps = 300', 'config.steps = 2'),
  ):
    assert code.count(full) == 1
    code = code.replace(full, small)
  assert 'checked 2' in run(code, tmp_path)


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(tmp_path):
  assert 'checked 300' in run(script(), tmp_path)


def test_outputs_are_small_and_without_errors():
  assert NOTEBOOK.stat().st_size < 400_000
  for cell in json.loads(NOTEBOOK.read_text())['cells']:
    for output in cell.get('outputs', ()):
      assert output['output_type'] != 'error'
