"""The console program: every program of the package, under one name."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from vemd_jax import cli

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments, cwd=ROOT):
  return subprocess.run(
      [sys.executable, '-m', 'vemd_jax', *arguments],
      cwd=cwd, capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_the_table_has_every_program_of_the_package():
  programs = set()
  for path in (ROOT / 'vemd_jax').rglob('*.py'):
    if "if __name__ == '__main__':" in path.read_text():
      parts = path.relative_to(ROOT).with_suffix('').parts
      programs.add('.'.join(parts).removesuffix('.__main__'))
  programs -= {'vemd_jax.cli', 'vemd_jax'}
  table = {module for module, _, _ in cli.COMMANDS.values()}
  for module in table:
    assert importlib.util.find_spec(module), module
  # A program may have a second module form, at its former path.
  assert table <= programs
  for other in programs - table:
    text = (ROOT / (other.replace('.', '/') + '.py')).read_text()
    assert 'def main(' in text
    assert any(
        f'from {other} import main'
        in pathlib.Path(importlib.util.find_spec(module).origin).read_text()
        for module in table
    ), other


def test_help_names_every_command(capsys):
  assert cli.main([]) == 0
  text = capsys.readouterr().out
  for name, (_, what, example) in cli.COMMANDS.items():
    assert f'  {name} ' in text and what in text and example in text
  assert cli.main(['trian']) == 2
  assert "no command 'trian', expected one of train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        ('train', ('--config', '--workdir', 'resumes')),
        ('sweep', ('--seeds', 'configs/claim.py')),
        ('table', ('workdirs', 'interval')),
        ('prepare', ('--source', 'gaf3')),
    ],
)
def test_help_of_a_command(command, words):
  process = run(command, '--help')
  text = process.stdout + process.stderr
  assert 'Traceback' not in text
  for word in words:
    assert word in text


def test_a_command_runs_where_it_is_given(tmp_path):
  for fold, accuracy in (1, 0.5), (2, 0.7):
    folder = tmp_path / f'fold_{fold}'
    folder.mkdir()
    results = {'val': {'accuracy': accuracy, 'uar': accuracy}}
    config = {'seed': 0, 'data': {'fold': fold}}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'results.json').write_text(json.dumps(results))
  environment_root = str(ROOT)
  process = subprocess.run(
      [
          sys.executable, '-c',
          f'import sys; sys.path.insert(0, {environment_root!r}); '
          "from vemd_jax import cli; cli.main(['table', 'fold_1', 'fold_2'])",
      ],
      cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert '60.00' in process.stdout
  assert (tmp_path / 'table.json').exists()


def test_errors_of_a_command_end_in_one_line():
  process = run('train', '--config=configs/group_scenes.py:tinny')
  assert process.returncode == 1
  assert process.stderr.strip().splitlines()[-1].startswith('error: ')
