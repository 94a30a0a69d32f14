"""The device mesh (data, fsdp) and the shardings of batches and parameters.

The dimensions of a parameter have names, which follow from its path. The names
determine the dimension along which a large parameter is split over `fsdp`, and
the moments of the optimizer over `data`, too (ZeRO-1).
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vemd_jax.models import axes
from vemd_jax.state import TrainState

AXES = ('data', 'fsdp')

# Pattern of the end of a parameter's path, name by name -> names of its
# dimensions. The first pattern that matches and has this number of dimensions
# counts. `wide` is the dimension of flattened latents and raw structure.
DIMENSIONS = (
    ('head_*/reduction/kernel', ('wide', 'out')),
    ('head_*/hidden/kernel', ('wide', 'out')),
    ('head_*/*_projection/kernel', ('wide', 'out')),
    ('head_*/transformer/mlp/linear1/kernel', ('wide', 'out')),
    ('head_*/transformer/mlp/linear2/kernel', ('in', 'wide')),
    ('head_*/transformer/self_attention/*/kernel', ('wide', 'out')),
    ('vit_projection_*/kernel', ('in', 'wide')),
    # Transposed convolutions, see layers.ConvTranspose.
    ('up*/conv2/kernel', ('in', 'height', 'width', 'out')),
    ('up*/skip/kernel', ('in', 'height', 'width', 'out')),
    ('up*/kernel', ('in', 'height', 'width', 'out')),
    ('kernel', ('height', 'width', 'in', 'out')),
    ('kernel', ('in', 'heads', 'out')),
    ('kernel', ('in', 'out')),
)
# The dimension that is split: the first of these that divides. The wide one is
# contracted in most products, so that a device multiplies its part of the wide
# vectors with its rows, and no device needs the whole matrix. Split outputs
# need no sums; kernel positions are never split.
SPLIT = ('wide', 'out', 'in')
# Name of a dimension of an activation -> mesh axes, see `models.axes`.
ACTIVATIONS = {'batch': AXES, 'rows': ('data',), 'wide': ('fsdp',)}


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
  """The device mesh.

  Args:
    data: size of the axis `data`; -1 uses the remaining devices.
    fsdp: size of the axis `fsdp`; -1 uses the remaining devices.
    devices: devices of the mesh; by default all.

  Returns:
    A mesh with axes (data, fsdp).

  Raises:
    ValueError: if the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  sizes = [data, fsdp]
  if sizes.count(-1) == 1:
    known = max(sizes[0] * sizes[1] * -1, 1)
    sizes[sizes.index(-1)] = max(count // known, 1)
  if sizes[0] * sizes[1] != count:
    raise ValueError(
        f'config.mesh has data={data}, fsdp={fsdp}, expected sizes that '
        f'multiply to the {count} devices'
    )
  return jax.make_mesh(
      tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of batches: their first dimension, over both mesh axes."""
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, P())


def dimensions(path: str, shape: Sequence[int]) -> tuple[str, tuple[str, ...]]:
  """The names of a parameter's dimensions.

  Args:
    path: path of the parameter, such as 'head_x/hidden/kernel'.
    shape: its shape.

  Returns:
    (pattern of `DIMENSIONS`, names); ('', ()) for a parameter that is never
    split, such as a bias.
  """
  parts = path.split('/')
  for pattern, names in DIMENSIONS:
    wanted = pattern.split('/')
    end = parts[-len(wanted) :]
    if (len(names), len(end)) == (len(shape), len(wanted)) and all(
        map(fnmatch.fnmatchcase, end, wanted)
    ):
      return pattern, names
  return '', ()


def state_shardings(
    mesh: Mesh, shapes: TrainState, min_size: int, shard_moments: bool = False
) -> TrainState:
  """Sharding of each array of a state, by the names of its dimensions.

  A parameter with at least `min_size` elements is sharded over `fsdp`, see
  `DIMENSIONS` and `SPLIT`; its moving average has the same sharding. All other
  arrays are replicated.

  Args:
    mesh: mesh from `make_mesh`.
    shapes: state of arrays or ShapeDtypeStructs.
    min_size: minimum number of elements of a sharded array.
    shard_moments: whether the optimizer's moments, which have the path and
      shape of a parameter, are sharded over `data`, too. Each device then
      updates only its part of a parameter, and receives the others.

  Returns:
    The state, with a NamedSharding for each array.
  """
  known = _shapes(shapes.params)

  def place(path, leaf) -> NamedSharding:
    return _sharding(mesh, _name(path), leaf.shape, min_size, False)

  def place_moment(path, leaf) -> NamedSharding:
    name = _parameter(_name(path), leaf.shape, known)
    return _sharding(mesh, name, leaf.shape, min_size, shard_moments)

  each = jax.tree_util.tree_map_with_path
  rest = jax.tree.map(lambda _: replicated(mesh), shapes)
  return rest.replace(
      params=each(place, shapes.params),
      frozen=each(place, shapes.frozen),
      ema=each(place, shapes.ema),
      opt_state=each(place_moment, shapes.opt_state),
  )


def gradient_shardings(
    mesh: Mesh, params: Any, min_size: int, shard_moments: bool = False
) -> Any:
  """Sharding of the gradients: that of the moments, see `state_shardings`.

  Args:
    mesh: mesh from `make_mesh`.
    params: tree of arrays or ShapeDtypeStructs.
    min_size: minimum number of elements of a sharded array.
    shard_moments: whether the moments are sharded over `data`, too.

  Returns:
    Tree of NamedShardings.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _sharding(
          mesh, _name(path), leaf.shape, min_size, shard_moments
      ),
      params,
  )


def constraint(mesh: Mesh) -> axes.Constraint | None:
  """What the names of the dimensions of activations mean on a mesh.

  Args:
    mesh: mesh from `make_mesh`.

  Returns:
    The constraint, for `models.axes.constrained`; None without fsdp, where the
    compiler splits every activation along the batch.
  """
  if mesh.shape['fsdp'] == 1:
    return None

  def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    spec = [ACTIVATIONS[name] if name else None for name in names]
    if any(
        size % math.prod(mesh.shape[axis] for axis in split or ())
        for size, split in zip(x.shape, spec)
    ):
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

  return constrain


def local(mesh: Mesh) -> axes.Local | None:
  """How a function that treats each row on its own runs on a mesh.

  Args:
    mesh: mesh from `make_mesh`.

  Returns:
    For `models.axes.constrained`: applies a function without communication
    between devices, if their number divides that of the rows; None with one
    device.
  """
  if mesh.size == 1:
    return None
  spec = batch_sharding(mesh).spec

  def apply(
      function: Callable[[jax.Array], jax.Array], x: jax.Array
  ) -> jax.Array:
    if x.shape[0] % mesh.size:
      return function(x)
    return jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )(x)

  return apply


def constrained(mesh: Mesh, step: Callable) -> Callable:
  """A step whose activations are constrained, with the same signature.

  Args:
    mesh: mesh from `make_mesh`.
    step: function that applies a model.

  Returns:
    The function, to be jitted.
  """

  @functools.wraps(step)
  def call(*args, **kwargs):
    with axes.constrained(constraint(mesh), local(mesh)):
      return step(*args, **kwargs)

  return call


def _sharding(
    mesh: Mesh, name: str, shape: Sequence[int], min_size: int, over_data: bool
) -> NamedSharding:
  """Splits an array over fsdp and data, or over fsdp, or not at all."""
  _, names = dimensions(name, shape)
  # fsdp first, so that the moments of a device belong to its parameters.
  for over in (('fsdp', 'data'), ('fsdp',)) if over_data else (('fsdp',),):
    over = tuple(axis for axis in over if mesh.shape[axis] > 1)
    parts = math.prod(mesh.shape[axis] for axis in over)
    for dim in (names.index(n) for n in SPLIT if n in names):
      if parts > 1 and math.prod(shape) >= min_size and not shape[dim] % parts:
        spec: list[Any] = [None] * len(shape)
        spec[dim] = over if len(over) > 1 else over[0]
        return NamedSharding(mesh, P(*spec))
  return replicated(mesh)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {_name(path): leaf.shape for path, leaf in leaves}


def _parameter(path: str, shape: Sequence[int], known: dict[str, Any]) -> str:
  """The parameter that a path of the optimizer's state ends with, or ''."""
  parts = path.split('/')
  ends = ('/'.join(parts[i:]) for i in range(len(parts)))
  return next((name for name in ends if known.get(name) == shape), '')


def describe(target: TrainState, mesh: Mesh) -> list[str]:
  """Describes the shardings of a state for the log, as a table.

  Args:
    target: ShapeDtypeStructs with shardings, from `run.set_up`.
    mesh: mesh from `make_mesh`.

  Returns:
    Lines: for each pattern of `DIMENSIONS` with split arrays, the names of the
    dimensions and how they are split, the number of arrays, and their megabytes
    on each device; parameters (with their moving average) and moments apart.
    The last line stands for all arrays that each device has whole.
  """
  known = _shapes(target.params)
  rows: dict[tuple[str, ...], list[float]] = {}
  whole = [0, 0.0]
  leaves = [
      (what, path, leaf)
      for what, trees in (
          ('parameters', (target.params, target.frozen, target.ema)),
          ('moments', target.opt_state),
      )
      for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
  ]
  for what, path, leaf in leaves:
    name = _name(path)
    if what == 'moments':
      name = _parameter(name, leaf.shape, known)
    pattern, names = dimensions(name, leaf.shape)
    row = whole
    if any(leaf.sharding.spec):
      over = [
          '+'.join([x] if isinstance(x, str) else x or ())
          for x in leaf.sharding.spec
      ]
      split = ', '.join(f'{n}/{a}' if a else n for n, a in zip(names, over))
      row = rows.setdefault((what, pattern, split), [0, 0.0])
    size = math.prod(leaf.sharding.shard_shape(leaf.shape))
    row[0] += 1
    row[1] += size * leaf.dtype.itemsize / 1e6
  table = [
      *((*key, *row) for key, row in sorted(rows.items(), reverse=True)),
      ('all others' if rows else 'all arrays', '', 'whole', *whole),
  ]
  widths = [max(len(row[i]) for row in table) for i in range(3)]
  sizes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
  return [f'Mesh {sizes}; dimension/axis, arrays, MB on each device:'] + [
      '  '.join(cell.ljust(width) for cell, width in zip(row, widths))
      + f'  {row[3]:5d}  {row[4]:10,.1f}'
      for row in table
  ]


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Rows of a global batch that the devices of this process hold.

  Args:
    mesh: mesh from `make_mesh`.
    batch_size: global batch size, a multiple of the number of devices.

  Returns:
    int64 [rows], ascending. They are not contiguous if the order of the devices
    in the mesh alternates between processes, as it may on a TPU slice, where
    neighbours in the mesh are neighbours in the network.
  """
  sharding = batch_sharding(mesh)
  parts = sharding.addressable_devices_indices_map((batch_size,))
  every = np.arange(batch_size)
  return np.sort(np.concatenate([every[part] for part in parts.values()]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes global arrays from this process's rows of a batch.

  Args:
    batch: arrays whose first axis is the rows that `local_rows` names, in that
      order.
    mesh: mesh from `make_mesh`.

  Returns:
    The same keys, with arrays of the global batch sharded over the mesh.
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  count = len(next(iter(batch.values())))
  size = count * mesh.size // len(sharding.addressable_devices)
  rows = local_rows(mesh, size)

  def put(value: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(rows, start))
      return value[first : first + stop - start]

    shape = (size, *value.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return {key: put(value) for key, value in batch.items()}


def check_batch_size(batch_size: int, mesh: Mesh, what: str) -> None:
  """Checks that a global batch can be split over the devices.

  Args:
    batch_size: global batch size.
    mesh: mesh from `make_mesh`.
    what: config key, for the error message.

  Raises:
    ValueError: if the batch size is not a multiple of the number of devices.
  """
  if batch_size % mesh.size:
    raise ValueError(
        f'config.{what} is {batch_size}, expected a multiple of the '
        f'{mesh.size} devices'
    )
