r"""Tells what a recipe needs on a TPU slice, by compiling it without one.

  python -m vemd_jax.aot --config=configs/gaf3.py --topology=v5e:16x16
  python -m vemd_jax.aot --config=configs/gaf3.py --topology=v5e:2x4 --max_batch
  python -m vemd_jax.aot --config=configs/gaf3.py:tiny --topology=cpu

Compiles the train and evaluation step of the run for the slice and prints, for
each chip, memory, operations, bytes, collectives, products left in float32, and
a roofline estimate. It needs no data: the shapes follow from the config. For a
TPU it needs libtpu (pip install -e ".[aot]"); for `cpu` and `gpu` it compiles
for the devices of this machine. docs/scaling.md explains the output.

Exit status: 0; 1 if the arguments are invalid, or a step does not fit.
"""

import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from vemd_jax import config as config_lib
from vemd_jax import devices as devices_lib
from vemd_jax.ahead import chips, hlo
from vemd_jax.ahead import compile as compile_lib

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A recipe, such as configs/gaf3.py.'
)
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    'cpu, gpu, or a TPU slice: v4, v5e, v5p or v6e and its shape, as v5e:2x4.',
)
_BATCH = flags.DEFINE_integer(
    'per_chip',
    0,
    'Samples a chip; by default config.batch_size and config.eval.batch_size '
    'over all chips.',
)
_MAX_BATCH = flags.DEFINE_bool(
    'max_batch', False, 'Find the largest batch a chip that fits.'
)
_STEP = flags.DEFINE_enum(
    'step', 'both', ('both', *compile_lib.STEPS), 'Step to compile.'
)
_MODULES = flags.DEFINE_integer(
    'modules', 12, 'Number of modules to list by the bytes they access.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  config, topology = _CONFIG.value, _TOPOLOGY.value
  fits = True
  try:
    if topology not in ('cpu', 'gpu'):
      chips.parse(topology)
      # Programs for chips that are not here can be stored, but not read back.
      jax.config.update('jax_enable_compilation_cache', False)
    if topology != 'gpu':
      # The slice's chips are no backend of this machine.
      jax.config.update('jax_platforms', 'cpu')
    devices_lib.set_up(
        (config.batch_size, config.eval.batch_size), config.mesh.fsdp, False
    )
    devices = compile_lib.devices(topology)
    program = compile_lib.Program(config, devices)
    steps = compile_lib.STEPS if _STEP.value == 'both' else (_STEP.value,)
    for step in steps:
      fits &= _report(program, topology, step)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  if not fits:
    sys.exit(1)


def _report(
    program: compile_lib.Program, topology: str, step: str
) -> bool:
  """Compiles a step and prints what it needs; whether it fits."""
  config, count = program.config, program.mesh.size
  whole = config.batch_size if step == 'train' else config.eval.batch_size
  if _BATCH.value:
    whole = _BATCH.value * count
  elif _MAX_BATCH.value:
    print(f'Largest batch of the {step} step:')
    best = compile_lib.largest_batch(program, step, max(whole // count, 1))
    if not best:
      return False
    whole = best * count
  shape = ', '.join(f'{k}={v}' for k, v in program.mesh.shape.items())
  print(
      f'{step} step, {topology}: {count} x '
      f'{program.mesh.devices.flat[0].device_kind}, mesh {shape}, '
      f'{whole // count} samples a chip'
  )
  try:
    compiled = program.compile(step, whole)
  except compile_lib.DoesNotFit as error:
    print(f'  does not fit{error}')
    return False
  print('\n'.join(describe(compiled, topology, count, _MODULES.value)))
  return True


def describe(
    compiled: compile_lib.Compiled, topology: str, devices: int, modules: int
) -> list[str]:
  """What a compiled step needs on one device, as lines of text.

  Args:
    compiled: the step.
    topology: 'cpu', 'gpu', or a TPU slice.
    devices: number of devices.
    modules: number of modules to list by bytes.

  Returns:
    The lines.
  """
  module = hlo.Module(compiled.text, devices)
  chip = None
  if topology not in ('cpu', 'gpu'):
    name, slice_ = chips.parse(topology)
    chip = chips.CHIPS[name]
  of = f' of {_gib(chip.memory)}' if chip else ''
  accessed = module.accessed()
  total = sum(accessed.values())
  lines = [f'  memory       {_gib(compiled.peak)}{of}']
  held = {**compiled.arguments, 'temporaries': compiled.temporaries}
  lines += [f'    {name:18} {_gib(size)}' for name, size in held.items()]
  lines += [
      f'  operations   {compiled.flops / 1e12:.4g} TFLOP',
      f'  accessed     {_amount(total)}',
      f"    by XLA's analysis  {_amount(compiled.accessed)}",
  ]
  lines += [
      f'    {path:34} {_amount(size)} {size / (total or 1):5.0%}'
      for path, size in list(accessed.items())[:modules]
  ]
  collectives = module.collectives()
  sent = sum(c.sent for c in collectives)
  lines.append(f'  collectives  {len(collectives)}, {_amount(sent)} sent')
  for kind in hlo.COLLECTIVES:
    some = [c for c in collectives if c.kind == kind]
    if some:
      size = sum(c.size for c in some)
      lines.append(f'    {kind:18} {len(some):5} {_amount(size)}')
  left = module.float32()
  lines.append(
      f'  float32      {len(left)} of {module.products()} convolutions and '
      'matrix products'
  )
  lines += [f'    {name}' for name in sorted({i.scope or i.name for i in left})]
  if chip is None:
    lines.append('  roofline     only for TPUs, whose peaks are known')
    return lines
  roof = chips.roofline(
      chip,
      compiled.flops,
      total,
      sent,
      chips.network(chip, slice_),
  )
  lines.append(
      f'  roofline     {roof.step * 1e3:.1f} ms a step, bound by {roof.bound}: '
      f'compute {roof.compute * 1e3:.1f} ms ({roof.compute / roof.step:.0%}), '
      f'memory {roof.memory * 1e3:.1f} ms, '
      f'network {roof.network * 1e3:.1f} ms'
  )
  return lines


def _amount(size: float) -> str:
  unit, name = (1e9, 'GB') if size >= 1e8 else (1e6, 'MB')
  return f'{size / unit:8.2f} {name}'


def _gib(size: float) -> str:
  return f'{size / 2**30:7.2f} GiB'


if __name__ == '__main__':
  app.run(
      main,
      flags_parser=lambda argv: config_lib.parse_flags(
          argv, 'config', 'topology'
      ),
  )
