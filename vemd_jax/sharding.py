"""The mesh (data, fsdp), and where batches and parameters lie on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp')


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
  """The device mesh.

  Args:
    data: devices along `data`; -1 takes what is left.
    fsdp: devices along `fsdp`; -1 takes what is left.
    devices: default all of them.

  Returns:
    A mesh with axes (data, fsdp).

  Raises:
    ValueError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  sizes = [data, fsdp]
  if sizes.count(-1) == 1:
    known = max(sizes[0] * sizes[1] * -1, 1)
    sizes[sizes.index(-1)] = max(count // known, 1)
  if sizes[0] * sizes[1] != count:
    raise ValueError(
        f'config.mesh data={data}, fsdp={fsdp} does not fit {count} devices'
    )
  return jax.make_mesh(
      tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over both axes, along their first dimension."""
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, shapes: Any, min_size: int) -> Any:
  """Where each array of a state lies, from its shape alone.

  An array with at least `min_size` elements is split over `fsdp` along its
  largest dimension that the axis divides; all others are replicated. Moments
  and averages have their parameter's shape, hence its place.

  Args:
    mesh: of `make_mesh`.
    shapes: tree of arrays or ShapeDtypeStructs.
    min_size: elements.

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


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes global arrays from this process's part of a batch.

  Args:
    batch: arrays with the local batch first.
    mesh: of `make_mesh`.

  Returns:
    The same keys, arrays of the global batch on the mesh.
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return {
      key: jax.make_array_from_process_local_data(sharding, value)
      for key, value in batch.items()
  }


def local_batch_size(batch_size: int, mesh: Mesh, what: str) -> int:
  """The part of a global batch that one process loads.

  Args:
    batch_size: of all processes together.
    mesh: of `make_mesh`.
    what: config key, for the message.

  Returns:
    Samples a process.

  Raises:
    ValueError: if the devices do not divide the batch.
  """
  if batch_size % mesh.size:
    raise ValueError(
        f'config.{what} is {batch_size}, expected a multiple of the '
        f'{mesh.size} devices'
    )
  return batch_size // jax.process_count()
