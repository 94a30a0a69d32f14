"""Sweeps: which runs there are, that each runs once, and failures.

A small program takes the place of vemd_jax.main, except in the last test.
"""

import fcntl
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest

from vemd_jax import sweep, sweep_plan, table

ROOT = pathlib.Path(__file__).parents[1]

# Writes what a run writes, and a line to CALLS.
PROGRAM = """
import json, os, pathlib, sys, time
arguments = dict(a.lstrip('-').split('=', 1) for a in sys.argv[1:])
workdir = pathlib.Path(arguments['workdir'])
with open(os.environ['CALLS'], 'a') as calls:
  calls.write(f'{workdir.parent.name} {workdir.name}\\n')
behaviour = arguments.get('config.note', '')
if behaviour == 'fail' and not (workdir / 'mended').exists():
  sys.exit('error: the loss is not finite')
if behaviour == 'die':
  os.kill(os.getpid(), 9)
if behaviour == 'wait':
  (workdir / 'waits').touch()
  time.sleep(60)
seed = int(arguments['config.seed'])
fold = int(arguments.get('config.data.fold', 0))
config = {'seed': seed, 'data': {'fold': fold}}
(workdir / 'config.json').write_text(json.dumps(config))
start = arguments.get('config.checkpoint.init_from')
if start:
  for path in eval(start):
    assert (pathlib.Path(path) / 'results.json').exists(), path
value = float(arguments.get('config.value', 0.5)) + 0.01 * seed
results = {'val': {'accuracy': value, 'classes': 'x'}}
(workdir / 'results.json').write_text(json.dumps(results))
"""

SWEEP = """
from vemd_jax.sweep_plan import Row, Sweep
SWEEP = Sweep(rows=(
    Row('g', 'second', 'recipe.py:b', {'checkpoint.init_from': ('{first}',)}),
    Row('g', 'first', 'recipe.py:a', {'value': 0.7}),
    Row('h', 'other', 'recipe.py', {'data.root': '{faces}/x',
                                    'checkpoint.init_from': ('{g/first}',)}),
    Row('h', 'folded', 'recipe.py', {'widths': (32,)}, folds=2),
), seeds=2)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder with a sweep; the calls of the program in order."""
  (tmp_path / 'program.py').write_text(PROGRAM)
  (tmp_path / 'recipe.py').write_text('')
  (tmp_path / 'sweep.py').write_text(SWEEP)
  monkeypatch.setattr(sweep, 'PROGRAM', (str(tmp_path / 'program.py'),))
  monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
  return tmp_path


def run(place, *arguments):
  return sweep.main(
      [f'{place / "sweep.py"}', f'--workdir={place / "W"}', *arguments]
  )


def calls(place):
  path = place / 'calls'
  return path.read_text().splitlines() if path.exists() else []


def with_rows(place, rows):
  (place / 'sweep.py').write_text(
      'from vemd_jax.sweep_plan import Row, Sweep\n'
      f'SWEEP = Sweep(rows=({rows}), seeds=1)\n'
  )


def test_every_run_runs_once_and_needs_run_before(place, capsys):
  assert run(place) == 0
  done = calls(place)
  assert len(done) == len(set(done)) == 2 * (2 + 2)
  assert done.index('first seed_0') < done.index('second seed_0')
  # All rows of the first seed come before the second.
  assert {line.split()[1][:6] for line in done[:4]} == {'seed_0'}
  assert {line for line in done if 'folded' in line} == {
      f'folded seed_{s}_fold_{f}' for s in (0, 1) for f in (1, 2)
  }
  out = capsys.readouterr().out
  assert 'h: no --paths faces; left out: other\n' in out
  assert '8 of 8 runs are done' in out
  # Called again there is nothing to do; with a third seed only that runs.
  assert run(place) == 0 and calls(place) == done
  assert run(place, '--seeds=3', '--paths', 'faces=F', '--jobs=3') == 0
  new = calls(place)[8:]
  assert sorted(new) == sorted([
      *(f'{row} seed_2' for row in ('first', 'second')),
      *(f'folded seed_2_fold_{f}' for f in (1, 2)),
      *(f'other seed_{s}' for s in range(3)),
  ])
  arguments = json.loads(
      (place / 'W' / 'h' / 'other' / 'seed_1' / 'arguments.json').read_text()
  )
  first = place / 'W' / 'g' / 'first' / 'seed_1'
  assert arguments == [
      f'--config={place / "recipe.py"}',
      f'--config.data.root={os.path.abspath("F")}/x',
      f"--config.checkpoint.init_from=('{first}',)",
      '--config.seed=1',
  ]


def test_a_failed_run_is_reported_and_tried_again(place, capsys):
  with_rows(place, """
      Row('g', 'bad', 'recipe.py', {'note': 'fail'}),
      Row('g', 'after', 'recipe.py', {'checkpoint.init_from': ('{bad}',)}),
      Row('g', 'dies', 'recipe.py', {'note': 'die'}),
      Row('g', 'good', 'recipe.py'),
  """)
  assert run(place) == 1
  out, err = capsys.readouterr()
  assert '1 of 4 runs are done' in out
  assert 'g/bad, seed 0: error: the loss is not finite (' in err
  assert 'g/after, seed 0: needs g/bad, seed 0, which failed' in err
  assert 'g/dies, seed 0: ended by signal 9' in err
  assert 'good seed_0' in calls(place) and 'after seed_0' not in calls(place)

  assert table.main([str(place / 'W')]) == 0
  text = (place / 'W' / 'table.md').read_text()
  assert '| good | 1 | 50.00 |' in text and '| bad | 0 |' in text
  assert '- g/bad/seed_0: error: the loss is not finite' in text

  (place / 'W' / 'g' / 'bad' / 'seed_0' / 'mended').touch()
  assert run(place) == 1  # `dies` still does.
  assert calls(place).count('good seed_0') == 1
  assert calls(place).count('after seed_0') == 1
  assert not (place / 'W' / 'g' / 'bad' / 'seed_0' / 'failed.txt').exists()


def test_two_sweeps_at_once_do_not_run_the_same(place, capsys):
  folder = place / 'W' / 'g' / 'first' / 'seed_0'
  folder.mkdir(parents=True)
  with open(folder / 'sweep.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run(place, '--only=g/first', '--seeds=1') == 0
  assert 'executed by another process: g/first, seed 0' in (
      capsys.readouterr().out
  )
  assert not calls(place)


def test_a_job_array_runs_one_each_and_what_it_needs(place, capsys):
  assert run(place, '--list', '--only=g/*') == 0
  lines = capsys.readouterr().out.splitlines()
  lines = [line for line in lines if line.startswith('   ')]
  assert [line.split(':')[0].split(None, 1) for line in lines] == [
      ['0', 'g/second, seed 0'], ['1', 'g/first, seed 0'],
      ['2', 'g/second, seed 1'], ['3', 'g/first, seed 1'],
  ]  # fmt: skip
  assert not (place / 'W').exists()
  for index in (2, 3, 0, 1):
    assert run(place, f'--index={index}', '--only=g/*') == 0
  assert calls(place) == [
      'first seed_1', 'second seed_1', 'first seed_0', 'second seed_0',
  ]  # fmt: skip
  assert run(place, '--index=4', '--only=g/*') == 1
  assert '--index is 4, expected 0 to 3' in capsys.readouterr().err


def test_stopped_it_ends_its_runs_and_goes_on(place):
  with_rows(place, "Row('g', 'slow', 'recipe.py', {'note': 'wait'}),")
  code = (
      'import sys; from vemd_jax import sweep; '
      f'sweep.PROGRAM = ({str(place / "program.py")!r},); '
      'sys.exit(sweep.main(sys.argv[1:]))'
  )
  process = subprocess.Popen(
      [sys.executable, '-c', code, str(place / 'sweep.py'),
       f'--workdir={place / "W"}'],
      cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
  )  # fmt: skip
  folder = place / 'W' / 'g' / 'slow' / 'seed_0'
  while not (folder / 'waits').exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == 75 and 'the same command resumes' in errors
  assert not (folder / 'failed.txt').exists()
  with open(folder / 'sweep.lock') as lock:  # The run has ended: nobody has it.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_results_of_other_settings_do_not_count(place, capsys):
  assert run(place, '--only=g/first') == 0
  assert run(place, '--only=g/first', '--config.steps=7') == 1
  assert 'other arguments (--config.steps=7)' in capsys.readouterr().err
  assert len(calls(place)) == 2


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ("Row('g', 'a b', 'recipe.py'), Row('g', 'a_b', 'recipe.py')",
         "two rows are called 'g/a_b'"),
        ("Row('g', 'a', 'none.py'),", "row 'g/a' has no recipe at"),
        ("Row('g'),", 'TypeError'),
        ("Row('g', 'a', 'recipe.py', {'x': '{data}'}),", 'no row is left'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_is_named(place, capsys, rows, message):
  with_rows(place, rows)
  assert run(place) == 1
  err = capsys.readouterr().err
  assert message in err and err.count('\n') == 1


def test_wrong_arguments_end_in_one_line(place, capsys):
  for argument, message in (
      ('--seed=3', '--seed=3: expected an argument'),
      ('--config.steps', 'or --config.KEY=VALUE'),
      ('--seeds=0', 'expected 1 or more'),
      ('--workdir=gs://bucket/x', 'expected a folder of a file system'),
  ):
    assert run(place, argument) == 1
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1
  assert sweep.main([str(place / 'none.py'), '--workdir=W']) == 1
  assert 'no sweep at' in capsys.readouterr().err


def test_places():
  (only,) = sweep.make_places(1, ())
  assert only == sweep.Place({}, None)
  places = sweep.make_places(1, ('0', '3'))
  assert [p.environment['CUDA_VISIBLE_DEVICES'] for p in places] == ['0', '3']
  assert [p.environment['TPU_VISIBLE_CHIPS'] for p in places] == ['0', '3']
  cores = [p.cores for p in sweep.make_places(2, ())]
  if len(os.sched_getaffinity(0)) > 1:
    assert not cores[0] & cores[1]
    assert cores[0] | cores[1] == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    'path', ['configs/ablations.py', 'configs/claim.py', 'configs/privacy.py',
             *sorted(str(p.relative_to(ROOT))
                     for p in (ROOT / 'configs/paper').glob('*.py'))]
)  # fmt: skip
def test_the_sweeps_of_the_project_fit_the_recipes(path, tmp_path):
  """Every recipe takes its options and every key of the overrides exists."""
  plan, base, _ = sweep_plan.load(str(ROOT / path))
  names = set.union(*map(sweep_plan.names_in, plan.rows))
  commands = sweep_plan.Commands(
      plan, base, 'tiny', tmp_path, {name: 'P' for name in names if '/' not in
                                     name and name != 'vit'}
  )  # fmt: skip
  runs = sweep_plan.planned(plan, 1)
  assert len({r.folder for r in runs}) == len(runs)
  for run in runs:
    assert not commands.missing(run.row)
    config, *changes = commands.arguments(run)
    file, _, options = config.removeprefix('--config=').partition(':')
    assert options.endswith('tiny')
    config = runpy.run_path(file)['get_config'](options)
    for change in changes:
      key, _, value = change.removeprefix('--config.').partition('=')
      target = config
      for part in key.split('.'):
        target = target[part]
      assert value
  if 'paper' in path:
    facts = plan.rows[0].group
    published = [p for row in plan.rows for p in row.published]
    published += plan.references[facts]
    assert published, 'a table of the paper has a number to compare with'


@pytest.mark.slow
def test_a_real_sweep(tmp_path):
  arguments = [
      'configs/claim.py:tiny', '--seeds=2', f'--workdir={tmp_path}',
      '--only=drawn*/ve_*d', '--jobs=2', '--config.steps=4',
  ]  # fmt: skip
  process = subprocess.run(
      [sys.executable, '-m', 'vemd_jax.sweep', *arguments],
      cwd=ROOT, capture_output=True, text=True, check=False,
      env={**os.environ, 'XLA_FLAGS': os.environ['VEMD_TEST_FLAG']},
  )  # fmt: skip
  assert process.returncode == 0, process.stdout + process.stderr
  assert '12 of 12 runs are done' in process.stdout
  assert table.main([str(tmp_path)]) == 0
