"""Steps compiled ahead of time, on the CPU."""

import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import folder, gaf3, group_scenes
from vemd_jax import aot, run
from vemd_jax.ahead import chips, compile, hlo

FIELDS = ('memory', 'operations', 'accessed', 'collectives', 'float32')


@pytest.fixture(scope='module')
def program():
  # Without decoders, which take most of the time to compile.
  config = group_scenes.get_config('tiny,ve_sd')
  return compile.Program(config, jax.devices()[:2])


def test_the_train_step_of_the_run(program, tmp_path, standard_promotion):
  compiled = program.compile('train', 8)
  # The step that a run with data would train with.
  made = run.set_up(program.config, tmp_path)
  jax.tree.map(
      lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(),
      program.parts.target,
      made.target,
  )
  count = sum(x.size for x in jax.tree.leaves(made.target.params))
  held = compiled.arguments
  assert held['parameters'] == 4 * count
  # Both moments of Adam, and counters.
  assert 8 * count <= held['optimizer'] <= 8 * count + 64
  assert held['moving average'] == 4 * count
  # Half of the images are on each of the two devices.
  data = program.config.data
  assert held['batch'] > 4 * data.frames * data.image_size**2 * 3
  assert compiled.peak > sum(held.values()) / 2
  assert compiled.flops > 0 and compiled.accessed > 0

  lines = aot.describe(compiled, 'cpu', 2, modules=3)
  heads = [line.split()[0] for line in lines]
  assert [h for h in heads if h in FIELDS] == list(FIELDS)
  # The gradients of the two devices' samples are summed.
  assert any(h == 'all-reduce' for h in heads)
  assert 'only for TPUs' in lines[-1]

  # The same program, as if it were for a TPU: each time by hand.
  last = aot.describe(compiled, 'v5e:1x2', 2, modules=3)[-1]
  ms = 1e3 * compiled.flops / chips.CHIPS['v5e'].flops
  assert f'compute {ms:.1f} ms' in last
  moved = sum(hlo.Module(compiled.text, 2).accessed().values())
  ms = 1e3 * moved / chips.CHIPS['v5e'].bandwidth
  assert f'memory {ms:.1f} ms' in last


def test_batch_has_the_shapes_of_the_pipeline(program):
  from vemd_jax.data import pipeline

  for step, train in (('train', True), ('evaluate', False)):
    ((name, data),) = program.datasets.items()
    if train:
      batches = pipeline.train_batches(program.datasets, 8, seed=0)
      _, batch = next(batches)
    else:
      batches = pipeline.eval_batches(data, 'val', 8)
      batch = next(batches)
    batches.close()
    wanted = {k: (v.shape, v.dtype) for k, v in batch.items()}
    found = program._batch(data, 8, step)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == wanted, name


@pytest.mark.parametrize('largest', [0, 1, 5, 24, 100])
@pytest.mark.parametrize('start', [1, 16, 40])
def test_search_finds_the_largest_batch(largest, start):
  tried = []

  def fits(size):
    tried.append(size)
    return size <= largest

  found = compile.search(fits, start)
  assert found <= largest <= found + max(1, found // 16)
  assert len(tried) == len(set(tried))
  assert len(tried) <= 14


def test_largest_batch_compiles_whole_slices(program, monkeypatch, capsys):
  sizes = []

  def fake(self, step, size):
    sizes.append((step, size))
    if size > 2 * 5:
      raise compile.DoesNotFit(': 20.0GB of 15.8GB')

  monkeypatch.setattr(compile.Program, 'compile', fake)
  assert compile.largest_batch(program, 'train', 4) == 5
  assert sizes == [('train', n) for n in (8, 16, 12, 10)]
  assert '8 a chip: does not fit: 20.0GB of 15.8GB' in capsys.readouterr().out


def test_memory_in_the_message_of_the_compiler():
  text = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used '
  found = compile._needed(f'{text}16.90G of 15.75G hbm. Exceeded by 1.15G')
  assert found == ': 16.90GB of 15.75GB'
  assert compile._needed('RESOURCE_EXHAUSTED') == ''


def test_errors(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(ValueError, match=r'v5e:2x4 needs libtpu.*\[aot\]'):
    compile.devices('v5e:2x4')
  with pytest.raises(ValueError, match='compiles on the GPU itself'):
    compile.devices('gpu')
  config = folder.get_config('tiny')
  with pytest.raises(ValueError, match=r'set config\.data\.root, or name them'):
    compile.Program(config, jax.devices()[:1])


def test_program_of_a_dataset_that_is_not_there():
  config = gaf3.get_config('person_query,tiny')
  program = compile.Program(config, jax.devices()[:1])
  assert program.parts.model.classes == (('gaf3', 3),)


def main(*arguments, **environment):
  return subprocess.run(
      [sys.executable, '-m', 'vemd_jax.aot', *arguments],
      capture_output=True,
      text=True,
      env={**os.environ, **environment},
  )


def test_command():
  found = main(
      '--config=configs/group_scenes.py:tiny,ve_sd', '--topology=cpu',
      '--step=evaluate',
  )  # fmt: skip
  assert found.returncode == 0, found.stderr
  assert found.stdout.startswith('evaluate step, cpu: ')
  for field in FIELDS:
    assert f'\n  {field} ' in found.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs libtpu'
)
def test_tpu():
  found = main('--config=configs/group_scenes.py:tiny', '--topology=v5e:2x2')
  assert found.returncode == 0, found.stderr
  assert 'bound by' in found.stdout
  assert 'all-reduce' in found.stdout
  found = main(
      '--config=configs/group_scenes.py:tiny', '--topology=v5e:1000x2'
  )
  assert found.returncode == 1
  assert 'is no TPU slice that libtpu knows' in found.stderr
  assert np.size(found.stderr.splitlines()) == 1
