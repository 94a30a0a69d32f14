"""Compiles the steps of a run for devices that need not exist."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vemd_jax import config as config_lib
from vemd_jax import run, sharding
from vemd_jax.data import pipeline, sources

STEPS = ('train', 'evaluate')


class DoesNotFit(Exception):
  """The compiler found that a step needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step; all figures are those of one device.

  Attributes:
    text: the optimized HLO.
    flops: floating point operations; the body of a loop counts once.
    accessed: bytes read and written by XLA's analysis, which counts the whole
      array for each slice of it; see `hlo.Module.accessed`.
    arguments: bytes of each kind of argument, by name.
    temporaries: bytes of intermediate results at their peak.
    peak: bytes of everything at its peak.
  """

  text: str
  flops: float
  accessed: float
  arguments: dict[str, int]
  temporaries: int
  peak: int


class _Labels:
  """In place of a training split: its classes, and one sample of each."""

  def __init__(self, classes: Sequence[str]):
    self.classes = tuple(classes)
    self.labels = np.arange(len(self.classes), dtype=np.int32)


def devices(topology: str) -> list[jax.Device]:
  """The devices of a topology.

  Args:
    topology: 'cpu', 'gpu', or a TPU slice such as 'v5e:16x16'.

  Returns:
    The devices; those of a TPU slice can only be compiled for.

  Raises:
    ValueError: if the topology is unknown, or its compiler is missing.
  """
  if topology == 'cpu':
    return jax.devices('cpu')
  if topology == 'gpu':
    try:
      return jax.devices('gpu')
    except RuntimeError as error:
      raise ValueError(
          '--topology=gpu compiles on the GPU itself, and JAX finds none here; '
          'run it on a machine with a GPU and VEMD_ACCELERATOR=cuda12, or use '
          '--topology=cpu or a TPU slice such as v5e:2x4'
      ) from error
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
        f'--topology={topology} needs libtpu, the compiler for TPUs, which is '
        'not installed: pip install -e ".[aot]"'
    )
  # Otherwise libtpu asks the metadata server of a TPU machine.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  # It keeps a second process from the chips, which are not used here.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  from jax.experimental import topologies

  try:
    return list(
        topologies.get_topology_desc(
            platform='tpu', topology_name=topology
        ).devices
    )
  except Exception as error:  # libtpu raises RuntimeError, and others.
    first = next(iter(str(error).splitlines()), repr(error))
    raise ValueError(
        f'--topology={topology} is no TPU slice that libtpu knows, expected '
        f'for example v5e:2x4, v5e:16x16, v6e:16x16 or v5p:4x4x4: {first}'
    ) from error


class Program:
  """The parts of a run on a mesh of given devices, without its data."""

  def __init__(self, config: ConfigDict, devices: Sequence[jax.Device]):
    """Builds the parts as `run.set_up` does.

    Args:
      config: config of a recipe.
      devices: from `devices`.

    Raises:
      ValueError: if the config is invalid.
      FileNotFoundError: if the config names no classes and the data that have
        their names are missing.
    """
    config = config.copy_and_resolve_references()
    if config.model.dtype == 'auto' and devices[0].platform != 'cpu':
      # The default backend is that of this machine, not that of the topology.
      config.model.dtype = 'bfloat16'
    if not config.checkpoint.init_from:
      # Required with a frozen ViT, but no weights are read here.
      config.checkpoint.init_from = ('weights',)
    config_lib.check(config)
    self.config = config
    self.mesh = sharding.make_mesh(
        config.mesh.data, config.mesh.fsdp, devices
    )
    self.datasets = config_lib.datasets(config)
    opened = {
        name: _Labels(data.classes or _classes(name, data))
        for name, data in self.datasets.items()
    }
    # Without the data the length of an epoch is unknown; only the learning rate
    # depends on it.
    steps = config.steps or max(1000, config.min_steps)
    self.parts = run.make_parts(
        config, self.mesh, self.datasets, opened, steps
    )

  def compile(self, step: str, batch_size: int) -> Compiled:
    """Compiles a step for the first dataset of the run.

    Args:
      step: one of `STEPS`.
      batch_size: global batch size.

    Returns:
      The compiled step.

    Raises:
      ValueError: if the batch size is not a multiple of the devices.
      DoesNotFit: if a device's memory does not suffice.
    """
    key = 'batch_size' if step == 'train' else 'eval.batch_size'
    sharding.check_batch_size(batch_size, self.mesh, key)
    name = next(iter(self.datasets))
    batch = self._batch(self.datasets[name], batch_size, step)
    target = self.parts.target
    if step == 'train':
      lowered = self.parts.train_step.lower(target, batch, dataset=name)
      used = {
          'parameters': target.params,
          'frozen parameters': target.frozen,
          'optimizer': target.opt_state,
          'moving average': target.ema,
          'statistics': (target.batch_stats, target.guard, target.step),
          'batch': batch,
      }
    else:
      number = jax.ShapeDtypeStruct(
          (), jnp.int32, sharding=sharding.replicated(self.mesh)
      )
      variables = target.variables(averaged=True)
      lowered = self.parts.eval_step.lower(variables, batch, number, name)
      used = {'parameters': variables, 'batch': batch}
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise DoesNotFit(_needed(str(error))) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        text=compiled.as_text(),
        flops=cost.get('flops', 0.0),
        accessed=cost.get('bytes accessed', 0.0),
        arguments={k: _bytes(v) for k, v in used.items() if _bytes(v)},
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
    )

  def _batch(self, data: ConfigDict, size: int, step: str) -> dict[str, Any]:
    """Shapes of a batch of the pipeline."""
    sample = pipeline.make_transform(data, train=step == 'train').blank()
    if step == 'evaluate':
      sample['index'] = np.int32(0)
    place = sharding.batch_sharding(self.mesh)
    return {
        key: jax.ShapeDtypeStruct(
            (size, *np.shape(value)), value.dtype, sharding=place
        )
        for key, value in sample.items()
    }


def largest_batch(program: Program, step: str, start: int) -> int:
  """The largest batch per device that fits, to about 6 %.

  Doubles or halves the batch until it is between two sizes of which one fits,
  then bisects.

  Args:
    program: the program.
    step: one of `STEPS`.
    start: samples per device to try first.

  Returns:
    Samples per device; 0 if not even one fits.
  """
  count = program.mesh.size
  accumulation = program.config.optim.accumulation if step == 'train' else 1

  def fits(size: int) -> bool:
    try:
      program.compile(step, size * count)
    except DoesNotFit as error:
      print(f'  {size} a chip: does not fit{error}', flush=True)
      return False
    print(f'  {size} a chip: fits', flush=True)
    return True

  return accumulation * search(
      lambda size: fits(size * accumulation), max(start // accumulation, 1)
  )


def search(fits, start: int) -> int:
  """The largest number for which `fits` is true, to about 6 %; or 0."""
  low, high = 0, None
  size = start
  while high is None or high - low > max(1, low // 16):
    if fits(size):
      low = size
    else:
      high = size
    size = 2 * low if high is None else (low + high) // 2
    if low == 0 and high is not None:
      size = high // 2
    if size == 0:
      break
  return low


def _classes(name: str, data: ConfigDict) -> Sequence[str]:
  if data.source == 'group_scenes' or data.root:
    return sources.make_source(data, 'train').classes
  if not data.labels:
    return ()
  raise ValueError(
      f'the classes of {name} are read from its data: set config.data.root, or '
      "name them, --config.data.classes=\"('a','b')\""
  )


def _bytes(tree: Any) -> int:
  """Bytes of arrays on one device."""
  return sum(
      int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )


def _needed(message: str) -> str:
  found = re.search(r'Used ([\d.]+\w) of ([\d.]+\w)', message)
  return f': {found.group(1)}B of {found.group(2)}B' if found else ''
