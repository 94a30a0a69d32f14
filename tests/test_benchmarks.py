"""The benchmark programs, at the size `tiny`."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def load(name):
  spec = importlib.util.spec_from_file_location(
      f'benchmarks_{name}', ROOT / 'benchmarks' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def execute(*arguments):
  result = subprocess.run(
      [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr[-2000:]
  return result.stdout


@pytest.mark.parametrize('accelerator', [False, True])
@pytest.mark.parametrize('torch', [False, True])
def test_all_programs_are_run_and_every_recipe_exists(accelerator, torch):
  commands = load('run').commands(accelerator, torch)
  assert len(set(commands)) == len(commands)
  programs = {command.split()[0] for command in commands}
  there = {
      f'benchmarks/{path.name}' for path in (ROOT / 'benchmarks').glob('*.py')
  } - {'benchmarks/run.py', 'benchmarks/torch_model.py'}
  if not torch:
    there.remove('benchmarks/torch_baseline.py')
  assert programs == there
  for command in commands:
    for recipe in re.findall(r'--config=([^\s:]+)', command):
      assert (ROOT / recipe).is_file()


def test_a_command_that_fails_is_reported_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
  run = load('run')
  monkeypatch.setattr(
      run, 'facts', lambda: {'backend': 'cpu', 'device_kind': 'toy',
                             'devices': 3, 'python': '9'},
  )  # fmt: skip
  monkeypatch.setattr(
      run, 'commands', lambda *_: ['-c "exit(3)"', '-c "print(6*7)"']
  )
  out = tmp_path / 'RESULTS.md'
  out.write_text('# Before\n')
  monkeypatch.setattr(sys, 'argv', ['run.py', f'--out={out}'])
  assert run.main() == 1
  text = out.read_text()
  assert text.startswith('# Before\n') and '3 x toy' in text
  assert '\n42\n' in text and 'exit(3)' not in text
  assert 'exit(3)' in capsys.readouterr().err


@pytest.mark.slow
def test_a_train_step_is_timed_and_its_time_is_attributed():
  text = execute(
      'benchmarks/train_step.py', '--config=configs/group_scenes.py:tiny',
      '--steps=2', '--modules=99',
  )  # fmt: skip
  step = float(re.search(r'step +([\d.]+) ms, [\d.]+ images/s', text)[1])
  assert step > 0 and 'matrix product' in text and 'waiting' in text
  modules = dict(re.findall(r'^ {4}(\S+) +([\d.]+) ms', text, re.M))
  assert any(name.startswith('encoder_0') for name in modules)


@pytest.mark.slow
def test_prediction_without_decoders_needs_fewer_operations():
  text = execute(
      'benchmarks/inference.py', '--config=configs/group_scenes.py:tiny,ve_md',
      '--batch=2', '--rounds=1',
  )  # fmt: skip
  emotion, structure = (
      float(re.search(rf'^{name} +([\d.]+)', text, re.M)[1])
      for name in ('emotion', 'with structure')
  )
  assert 0 < emotion < structure


@pytest.mark.slow
def test_the_start_is_timed_cold_and_warm():
  text = execute(
      'benchmarks/start.py', '--config=configs/group_scenes.py:tiny'
  )
  cold, warm = (float(s) for s in re.findall(r'([\d.]+) s to the', text))
  assert 0 < warm < cold
