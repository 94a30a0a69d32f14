"""Runs in processes of their own, ways to disturb them, and what must be equal.

`TINY` is a recipe whose steps take milliseconds: what a start costs are the
imports, and its programs come from JAX's cache on disk.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.faults.program import PHASES

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    '--config=configs/group_scenes.py:tiny,ve_sd',
    '--config.data.image_size=64',
    '--config.data.group_scenes.size=64',
    '--config.pictures.samples=0',
    '--config.optim.ema_decay=0.9',
    '--config.log_every=2',
    '--config.eval.every=4',
    '--config.checkpoint.every=3',
    '--config.steps=14',
)
TOY = '--config=tests/faults/toy.py'
# These depend on the clock and the process; the rest of a line must be equal.
RATES = (
    'steps_per_second', 'examples_per_second', 'seconds_left', 'seconds',
    'input_wait', 'host_memory', 'device_memory',
)  # fmt: skip


def environment(cache: pathlib.Path | None = None) -> dict[str, str]:
  """Of a process with one CPU device, whose programs are kept on disk."""
  result = {
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1 '
      + os.environ['VEMD_TEST_FLAG'],
      'PJRT_NPROC': '4',
  }
  if cache is not None:
    result |= {
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
  return result


class Process:
  """One start of the command."""

  def __init__(
      self,
      workdir: pathlib.Path,
      *arguments: str,
      cache: pathlib.Path | None = None,
      more: dict[str, str] | None = None,
      name: str = '',
  ):
    name = name or workdir.name
    self._phases = workdir.with_name(f'{name}.phases')
    self._phases.write_bytes(bytes(len(PHASES)))
    self._log = workdir.with_name(f'{name}.log')
    self._file = self._log.open('w')
    self.popen = subprocess.Popen(
        [
            sys.executable, '-m', 'tests.faults.program', str(self._phases),
            f'--workdir={workdir}', *arguments,
        ],
        cwd=ROOT,
        env={**environment(cache), **(more or {})},
        stdout=self._file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip

  def phases(self) -> tuple[str, ...]:
    """What it is doing now; () before it has begun."""
    return tuple(p for p, on in zip(PHASES, self._phases.read_bytes()) if on)

  def wait_for(self, phase: str) -> bool:
    """Waits until it is in a phase; False if it ended before."""
    while self.popen.poll() is None:
      if phase in self.phases():
        return True
      time.sleep(0.0005)
    return False

  def text(self) -> str:
    return self._log.read_text()

  def end(self, timeout: float = 600) -> int:
    """Waits for the end; returns the exit code."""
    code = self.popen.wait(timeout)
    self._file.close()
    return code

  def left(self) -> list[int]:
    """Processes of its session that are still there."""
    found = []
    for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
      with contextlib.suppress(OSError):
        fields = stat.read_text().rsplit(')', 1)[1].split()
        if int(fields[3]) == self.popen.pid and fields[0] != 'Z':
          found.append(int(stat.parent.name))
    return found

  def all_gone(self, seconds: float = 30) -> bool:
    """Whether nothing of it is left, at the latest after so long."""
    deadline = time.monotonic() + seconds
    while self.left():
      if time.monotonic() > deadline:
        return False
      time.sleep(0.05)
    return True


def run(workdir: pathlib.Path, *arguments: str, **kwargs) -> Process:
  """Runs the command to its end, which has to be a good one."""
  process = Process(workdir, *arguments, **kwargs)
  assert process.end() == 0, process.text()
  return process


def history(workdir: pathlib.Path) -> dict[tuple, dict]:
  """(split, step) -> line of metrics.jsonl; every line only once, and whole."""
  lines = {}
  for text in (workdir / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(text)
    key = line['split'], line['step']
    assert key not in lines, f'{key} twice in {workdir}'
    lines[key] = {k: v for k, v in line.items() if k not in RATES}
  return lines


def checkpoints(workdir: pathlib.Path) -> dict[str, dict]:
  """step/item/array -> value, of all checkpoints of a workdir."""
  result = {}
  for step in sorted((workdir / 'checkpoints').iterdir()):
    for item in ('model', 'optimizer', 'guard'):
      if (step / item).exists():
        checkpointer = ocp.PyTreeCheckpointer()
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            checkpointer.metadata(step / item).item_metadata.tree,
        )
        tree = checkpointer.restore(step / item, restore_args=as_numpy)
        result[f'{step.name}/{item}'] = tree
    for item in ('data/metadata', 'metrics/metrics'):
      if (step / item).exists():
        result[f'{step.name}/{item}'] = json.loads((step / item).read_text())
  return result


def assert_same_run(disturbed: pathlib.Path, straight: pathlib.Path) -> None:
  """Parameters, optimizer, average, history, best checkpoint, results."""
  theirs, ours = checkpoints(straight), checkpoints(disturbed)
  assert theirs.keys() == ours.keys()
  for name, tree in theirs.items():
    assert_same_bits(ours[name], tree, name)
  assert history(disturbed) == history(straight)
  if (straight / 'results.json').exists():
    assert json.loads((disturbed / 'results.json').read_text()) == json.loads(
        (straight / 'results.json').read_text()
    )


def assert_close_run(
    disturbed: pathlib.Path, straight: pathlib.Path, rtol: float = 1e-5
) -> None:
  """The same steps and evaluations, with numbers equal to rounding."""
  ours, theirs = history(disturbed), history(straight)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, value), other in zip(
      jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours)
  ):
    where = jax.tree_util.keystr(path)
    if isinstance(value, int | float):
      np.testing.assert_allclose(other, value, rtol, 1e-6, err_msg=where)
    else:
      assert other == value, where
  ours, theirs = checkpoints(disturbed), checkpoints(straight)
  last = max(int(name.split('/')[0]) for name in theirs)
  for item in 'model', 'optimizer':
    # As a whole: Adam magnifies the rounding of gradients that are almost zero.
    x, y = (
        np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]).astype('f8')
        for t in (ours[f'{last}/{item}'], theirs[f'{last}/{item}'])
    )
    assert np.linalg.norm(x - y) <= 100 * rtol * np.linalg.norm(y), item


def assert_same_bits(a, b, where: str) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b), where
  for (path, x), (_, y) in zip(
      jax.tree_util.tree_leaves_with_path(a),
      jax.tree_util.tree_leaves_with_path(b),
  ):
    x, y = np.asarray(x), np.asarray(y)
    name = where + jax.tree_util.keystr(path)
    assert x.dtype == y.dtype and x.shape == y.shape, name
    assert x.tobytes() == y.tobytes(), name
