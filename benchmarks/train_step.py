"""The train step of a recipe on this machine: speed, peak, what costs most.

  python benchmarks/train_step.py --config=configs/gaf3.py --batch=32
  python benchmarks/train_step.py --config=configs/gaf3.py:person_query \
      --batch=32 --config.model.vit.name=none

The step is that of the run (`run.make_parts`), with initial weights, on batches
of drawn scenes in the recipe's size. It prints

  * the time of a step on a batch that is on the device (median), images/s;
  * its operations by XLA's cost analysis, and their share of what a large
    matrix product reaches here in the same precision. Loops, such as the
    matching of queries, count once;
  * the time of a step that reads its batches from the input pipeline;
  * where the time goes by module, from a profile of some steps, forward and
    backward together, summed over the threads or streams of a device.
"""

import collections
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax import devices as devices_lib
from vemd_jax import sharding, writer
from vemd_jax.ahead import compile as compile_lib
from vemd_jax.ahead import hlo
from vemd_jax.data import pipeline
from vemd_jax.models import layers

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A recipe.')
_BATCH = flags.DEFINE_integer('batch', 0, "Global batch size; 0: the recipe's.")
_STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps.')
_MODULES = flags.DEFINE_integer('modules', 12, 'Modules to list.')


def matmul_peak(dtype: str) -> float:
  """Operations per second of a large matrix product on one device."""
  side = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((side, side), dtype)
  product = jax.jit(jnp.matmul)
  times = [seconds(lambda: product(x, x)) for _ in range(12)]
  return 2 * side**3 / min(times)


def seconds(function) -> float:
  """Wall time of a call, its results included."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def seconds_by_module(step, names: dict[str, str], count: int):
  """Seconds a step by module, from a profile.

  Args:
    step: the step, without arguments.
    names: instruction -> module, see `hlo.Module.modules`.
    count: number of steps to profile.

  Returns:
    module -> seconds, the largest first.
  """
  total = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(count):
        jax.block_until_ready(step())
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    profile = jax.profiler.ProfileData.from_file(str(path))
    for plane in profile.planes:
      for line in plane.lines:
        for event in line.events:
          name = dict(event.stats).get('hlo_op')
          if name in names:
            total[names[name]] += event.duration_ns / 1e9 / count
  return dict(total.most_common())


def main(argv: list[str]) -> None:
  del argv
  config = _CONFIG.value
  with config.unlocked():
    config.batch_size = _BATCH.value or config.batch_size
    # Other data would have to be there; the sizes are those of the recipe.
    config.data.update(source='group_scenes', root='', vit_dim=0)
    config.data.group_scenes.train_samples = 8 * config.batch_size
  devices_lib.set_up((config.batch_size,), config.mesh.fsdp, False)
  program = compile_lib.Program(config, jax.devices())
  config, parts = program.config, program.parts
  (name,) = program.datasets
  size = config.batch_size
  images = size * program.datasets[name].frames

  batches = pipeline.train_batches(program.datasets, size, seed=0)

  def read():
    _, batch = next(batches)
    batch.pop('unreadable', None)
    return sharding.put_batch(batch, program.mesh)

  state, batch = parts.create(), read()
  start = time.perf_counter()
  compiled = parts.train_step.lower(state, batch, dataset=name).compile()
  compiling = time.perf_counter() - start

  def step(batch=batch):
    nonlocal state
    state, _, scalars = compiled(state, batch)
    return scalars

  for _ in range(2):
    seconds(step)
  median = statistics.median(seconds(step) for _ in range(_STEPS.value))

  def read_and_step():
    for _ in range(_STEPS.value):
      # As in training, the next batch is read while the device computes.
      result = step(read())
    return result

  seconds(read_and_step)  # Fills the pipeline.
  reading = seconds(read_and_step) / _STEPS.value

  count, dtype = jax.device_count(), layers.compute_dtype(config.model.dtype)
  flops = compiled.cost_analysis().get('flops', 0.0)
  peak = matmul_peak(dtype)
  memory = writer.memory()
  memory = memory.get('device_memory', memory['host_memory'])
  print(f'{count} x {jax.devices()[0].device_kind}, jax {jax.__version__}, '
        f'{dtype}, batch {size}')  # fmt: skip
  rows = {
      'compilation': f'{compiling:.1f} s',
      'step': f'{1e3 * median:.1f} ms, {images / median:.1f} images/s',
      'step with input': f'{1e3 * reading:.1f} ms, '
      f'{max(0.0, 1 - median / reading):.0%} waiting for input',
      'operations': f'{flops / 1e12:.3f} TFLOP a device, '
      f'{flops / median / 1e12:.3f} TFLOP/s',
      'matrix product': f'{peak / 1e12:.3f} TFLOP/s: the step has '
      f'{flops / median / peak:.0%} of it',
      'peak memory': f'{memory / 2**30:.2f} GiB',
  }
  for key, value in rows.items():
    print(f'  {key:18}{value}')
  names = hlo.Module(compiled.as_text(), count).modules()
  spent = seconds_by_module(step, names, 3)
  total = sum(spent.values()) or 1
  for module, value in list(spent.items())[: _MODULES.value]:
    print(f'    {module:34}{1e3 * value:9.1f} ms {value / total:5.0%}')


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(argv, 'config'),
  )
