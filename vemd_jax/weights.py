"""Weights alone: written, read, put into a state; and where a run begins.

What starts a run is decided in `initialise`, in a fixed order.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from vemd_jax.checkpoint import Checkpoints, few, open_run, plain_tree
from vemd_jax.models.vemd import DATASET_MODULES, PART_MODULES
from vemd_jax.state import TrainState


def save_variables(path: epath.PathLike, variables: dict[str, Any]) -> None:
  """Writes weights alone, for `config.checkpoint.init_from`.

  Args:
    path: a new folder.
    variables: collections of arrays, `params` and perhaps `batch_stats`.
  """
  checkpointer = ocp.StandardCheckpointer()
  full = {k: v for k, v in variables.items() if jax.tree.leaves(v)}
  checkpointer.save(epath.Path(path).absolute(), full)
  checkpointer.wait_until_finished()
  checkpointer.close()


def load_variables(path: epath.PathLike) -> dict[str, Any]:
  """Reads weights from `save_variables` or from another run's best step.

  Args:
    path: a folder of `save_variables`, or a workdir.

  Returns:
    {'params': …, 'batch_stats': …}, on the first device.

  Raises:
    FileNotFoundError: if there are no weights at the path.
  """
  path = epath.Path(path).absolute()
  if (path / 'checkpoints').exists():
    return restore_variables(path)
  if not (path / '_METADATA').exists():
    raise FileNotFoundError(
        f'no weights at {path}; expected a workdir, or a folder written by '
        'vemd_jax.models.torch_import'
    )
  checkpointer = ocp.StandardCheckpointer()
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
      plain_tree(checkpointer.metadata(path).item_metadata),
  )
  variables = checkpointer.restore(path, target)
  return {'params': {}, 'batch_stats': {}, **variables}


def restore_variables(
    workdir: epath.PathLike, which: str = 'best'
) -> dict[str, Any]:
  """What `model.apply` takes, from a run; the moving average where one is.

  Args:
    workdir: of the run.
    which: 'best' or 'latest'.

  Returns:
    {'params': …, 'batch_stats': …}, on the first device.

  Raises:
    FileNotFoundError: if there is no config or no checkpoint.
  """
  checkpoints, step = open_run(workdir, which)
  model = checkpoints.restore_model(step)
  checkpoints.close()
  return TrainState(**model, opt_state={}).variables(averaged=True)


def load_weights(
    state: TrainState,
    path: epath.PathLike,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> TrainState:
  """Puts weights from a file into a fresh state.

  Every array of the file must find its place, with these exceptions, which are
  logged: modules of a dataset (`DATASET_MODULES`) that this model lacks or has
  in another size or for other classes, and decoders that it lacks.
  What the file lacks stays as it was initialised.

  Args:
    state: fresh, on its devices.
    path: see `load_variables`.
    classes: of this run, by dataset name.

  Returns:
    The state with the weights, at step 0.

  Raises:
    ValueError: names what does not fit.
  """
  loaded = load_variables(path)
  have = {
      collection: traverse_util.flatten_dict(loaded[collection], sep='/')
      for collection in ('params', 'batch_stats')
  }
  want = {
      'params': traverse_util.flatten_dict(
          {**state.params, **state.frozen}, sep='/'
      ),
      'batch_stats': traverse_util.flatten_dict(state.batch_stats, sep='/'),
  }
  left_out = _left_out(have['params'], want['params'])
  left_out |= _of_other_classes(path, have['params'], classes or {})
  fresh = left_out & {key.split('/')[0] for key in want['params']}
  if fresh:
    logging.warning(
        'Weights from %s: %s differ in size or classes from those of this '
        'model, which begin anew', path, ', '.join(sorted(fresh)),
    )  # fmt: skip
  problems, used, new = [], 0, {}
  for collection, arrays in have.items():
    places = dict(want[collection])
    for key, value in sorted(arrays.items()):
      if key.split('/')[0] in left_out:
        continue
      place = places.get(key)
      if place is None:
        problems.append(f'{key} has no place in the model')
      elif place.shape != value.shape:
        problems.append(
            f'{key} is {list(value.shape)}, the model has {list(place.shape)}'
        )
      else:
        value = np.asarray(value, place.dtype)
        places[key] = jax.device_put(value, place.sharding)
        used += 1
    new[collection] = traverse_util.unflatten_dict(places, sep='/')
  if problems:
    raise ValueError(
        f'weights {path} do not fit the model of this config: '
        f'{len(problems)} problems ({few(problems)})'
    )
  if not used:
    raise ValueError(f'weights {path} have nothing that this model has')
  logging.info(
      'Weights from %s: %d of %d arrays; left out: %s',
      path, used, sum(map(len, want.values())),
      ', '.join(sorted(left_out)) or 'none',
  )  # fmt: skip
  params = {name: new['params'][name] for name in state.params}
  ema = jax.tree.map(lambda x: x.copy(), params) if state.ema else state.ema
  return state.replace(
      params=params,
      frozen={name: new['params'][name] for name in state.frozen},
      batch_stats=new['batch_stats'],
      ema=ema,
  )


def _left_out(have: Mapping[str, Any], want: Mapping[str, Any]) -> set[str]:
  """Modules of the file that the model need not have a place for."""

  def by_module(arrays):
    modules: dict[str, dict[str, tuple]] = {}
    for key, value in arrays.items():
      module = modules.setdefault(key.split('/')[0], {})
      module[key] = tuple(value.shape)
    return modules

  stored, wanted = by_module(have), by_module(want)
  result = set()
  for name, arrays in stored.items():
    own = wanted.get(name, {})
    if name.startswith(DATASET_MODULES):
      if arrays != own:
        result.add(name)
    elif name in PART_MODULES and not arrays.keys() & own.keys():
      # A decoder of another kind has no array in common.
      result.add(name)
  return result


def _of_other_classes(
    path: epath.PathLike, have: Mapping[str, Any], classes: Mapping
) -> set[str]:
  """Heads of a run whose dataset had other classes, or another order."""
  file = epath.Path(path) / 'classes.json'
  if not file.exists():
    return set()
  stored = json.loads(file.read_text())
  other = {
      name
      for name, names in classes.items()
      if name in stored and list(stored[name]) != list(names)
  }
  return {
      module
      for module in {key.split('/')[0] for key in have}
      for name in other
      if module in (f'head_{name}', f'classifier_{name}')
  }


def initialise(
    create: Callable[[], TrainState],
    target: TrainState,
    checkpoints: Checkpoints,
    settings: ConfigDict,
    classes: Mapping[str, Sequence[str]],
) -> tuple[TrainState, dict | None]:
  """Where a run begins, in this order.

  1. its own workdir's last checkpoint;
  2. `config.checkpoint.resume`: another run's last checkpoint, all of it;
  3. `config.checkpoint.init_from`: weights, one path after the other;
  4. from scratch.

  Args:
    create: makes the fresh state, on its devices.
    target: its shapes, types and shardings.
    checkpoints: of the own workdir.
    settings: `config.checkpoint`.
    classes: of this run, by dataset name.

  Returns:
    (state, position in the data or None at the beginning).

  Raises:
    FileNotFoundError: if there is nothing at `resume` or `init_from`.
    ValueError: if weights do not fit, or frozen parts got none.
  """
  if checkpoints.latest_step() is not None:
    state, data = checkpoints.restore(target)
    logging.info('Going on from step %d', int(state.step))
    return state, data
  if settings.resume:
    other = Checkpoints(epath.Path(settings.resume).absolute(), settings)
    if other.latest_step() is None:
      raise FileNotFoundError(
          f'config.checkpoint.resume: no checkpoint in {other.directory}'
      )
    state, data = other.restore(target)
    other.close()
    logging.info('Going on from %s', settings.resume)
    return state, data
  state = fresh = create()
  for path in settings.init_from:
    state = load_weights(state, path, classes)
  if settings.init_from:
    _check_frozen(fresh.frozen, state.frozen, settings.init_from)
  return state, None


def _check_frozen(fresh: Any, loaded: Any, paths) -> None:
  """What is never trained must come from somewhere."""
  fresh = traverse_util.flatten_dict(fresh, sep='/')
  loaded = traverse_util.flatten_dict(loaded, sep='/')
  missing = sorted(key for key in fresh if loaded[key] is fresh[key])
  if missing:
    raise ValueError(
        f'config.checkpoint.init_from is {tuple(paths)}, and has no weights '
        f'for {len(missing)} frozen arrays ({few(missing)}); they would stay '
        'random'
    )
