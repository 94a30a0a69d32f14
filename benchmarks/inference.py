"""Prediction with a recipe's model: latency, throughput, cost of the decoders.

  python benchmarks/inference.py --config=configs/gaf3.py:ve_md --batch=32
  python benchmarks/inference.py --config=configs/group_scenes.py:ve_md

Initial weights and random images of the recipe's size. `emotion` computes the
group's probabilities alone, which in ve_sd and ve_md needs no decoder;
`with structure` also returns what the decoders decode. Both are timed in turns,
from images in host memory to results in host memory.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax.ahead import compile as compile_lib

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A recipe.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Batch size of the throughput.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds; medians are printed.')


def main(argv: list[str]) -> None:
  del argv
  config = _CONFIG.value
  with config.unlocked():
    # Other data would have to be there; the sizes are those of the recipe.
    config.data.update(source='group_scenes', root='', vit_dim=0)
  # Prediction runs on one device.
  config.mesh.data, config.mesh.fsdp = 1, 1
  program = compile_lib.Program(config, jax.devices()[:1])
  (name,) = program.datasets
  data = program.datasets[name]
  variables = program.parts.create().variables(averaged=True)
  model = program.parts.model

  def whole(variables, image):
    outputs = model.apply(
        variables, {'image': image}, dataset=name, train=False
    )
    probabilities = jax.nn.softmax(outputs.logits)
    return probabilities, (outputs.body, outputs.face)

  ways = {
      'emotion': lambda v, x: whole(v, x)[0],
      'with structure': whole,
  }
  sizes = (1, _BATCH.value)
  rng = np.random.default_rng(0)
  images = {
      size: rng.integers(
          0, 256, (size, data.frames, *[data.image_size] * 2, 3), np.uint8
      )
      for size in sizes
  }
  compiled = {
      (way, size): jax.jit(function).lower(variables, images[size]).compile()
      for way, function in ways.items()
      for size in sizes
  }
  times = {key: [] for key in compiled}
  for _ in range(_ROUNDS.value + 1):
    for (way, size), function in compiled.items():
      start = time.perf_counter()
      jax.device_get(function(variables, images[size]))
      times[way, size].append(time.perf_counter() - start)
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, '
        f'{program.config.model.variant}, {program.config.model.decoder}, '
        f'{data.frames} x {data.image_size} pixels a sample')  # fmt: skip
  print(f'{"":18}{"GFLOP":>9}{"batch 1":>12}{f"batch {sizes[1]}":>12}')
  for way in ways:
    flops = compiled[way, 1].cost_analysis().get('flops', 0.0)
    # The first round warms up.
    one, many = (statistics.median(times[way, size][1:]) for size in sizes)
    print(f'{way:18}{flops / 1e9:9.2f}{1e3 * one:9.1f} ms'
          f'{sizes[1] / many:10.1f}/s')  # fmt: skip


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(argv, 'config'),
  )
