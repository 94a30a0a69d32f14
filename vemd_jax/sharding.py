"""The device mesh (data, fsdp) and the shardings of batches and parameters."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp')


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


def state_shardings(mesh: Mesh, shapes: Any, min_size: int) -> Any:
  """Sharding of each array of a state, derived from its shape.

  An array with at least `min_size` elements is sharded over `fsdp` along its
  largest dimension that is divisible by the size of the axis; all others are
  replicated. Optimizer moments and moving averages have the shape of their
  parameter and therefore the same sharding.

  Args:
    mesh: mesh from `make_mesh`.
    shapes: tree of arrays or ShapeDtypeStructs.
    min_size: minimum number of elements of a sharded array.

  Returns:
    Tree of NamedShardings.
  """
  fsdp = mesh.shape['fsdp']

  def place(leaf) -> NamedSharding:
    if fsdp > 1 and leaf.size >= min_size:
      for dim in np.argsort(leaf.shape)[::-1]:
        if leaf.shape[dim] % fsdp == 0:
          spec = [None] * leaf.ndim
          spec[dim] = 'fsdp'
          return NamedSharding(mesh, P(*spec))
    return replicated(mesh)

  return jax.tree.map(place, shapes)


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
