"""Saving and loading of weights, and the initialization of a run.

`initialise` decides, in a fixed order, which weights a run starts from.
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
  """Saves weights without optimizer state, for `config.checkpoint.init_from`.

  Args:
    path: a new folder.
    variables: collections of arrays: `params` and optionally `batch_stats`.
  """
  checkpointer = ocp.StandardCheckpointer()
  full = {k: v for k, v in variables.items() if jax.tree.leaves(v)}
  checkpointer.save(epath.Path(path).absolute(), full)
  checkpointer.wait_until_finished()
  checkpointer.close()


def load_variables(path: epath.PathLike) -> dict[str, Any]:
  """Loads weights saved by `save_variables`, or a run's best checkpoint.

  Args:
    path: a folder written by `save_variables`, or a workdir.

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
  """Restores the variables of a run, with the moving average if there is one.

  Args:
    workdir: workdir of the run.
    which: 'best' or 'latest'.

  Returns:
    {'params': …, 'batch_stats': …}, on the first device.

  Raises:
    FileNotFoundError: if there is no config or no checkpoint.
  """
  return restore_step(workdir, which)[0]


def restore_step(
    workdir: epath.PathLike, which: str = 'best'
) -> tuple[dict[str, Any], int]:
  """Like `restore_variables`, with the step of the checkpoint."""
  checkpoints, step = open_run(workdir, which)
  model = checkpoints.restore_model(step)
  checkpoints.close()
  state = TrainState(**model, opt_state={}, guard={})
  return state.variables(averaged=True), step


def load_weights(
    state: TrainState,
    path: epath.PathLike,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> TrainState:
  """Loads weights into an initial state.

  Every array of the file must match an array of the model, with two exceptions,
  which are logged: dataset modules (`DATASET_MODULES`) that the model lacks or
  has in another size or for other classes, and decoders that it lacks. Arrays
  that the file lacks keep their initial values.

  Args:
    state: initial state, on its devices.
    path: see `load_variables`.
    classes: class names of this run, by dataset name.

  Returns:
    The state with the weights, at step 0.

  Raises:
    ValueError: if the weights do not match the model; lists the differences.
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
        'Weights from %s: %s have another size or other classes in this model '
        'and keep their initial values', path, ', '.join(sorted(fresh)),
    )  # fmt: skip
  problems, used, new = [], 0, {}
  for collection, arrays in have.items():
    places = dict(want[collection])
    for key, value in sorted(arrays.items()):
      if key.split('/')[0] in left_out:
        continue
      place = places.get(key)
      if place is None:
        problems.append(f'{key} does not exist in the model')
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
        f'weights {path} do not match the model of this config: '
        f'{len(problems)} problems ({few(problems)})'
    )
  if not used:
    raise ValueError(
        f'weights {path} have no array in common with the model of this config'
    )
  logging.info(
      'Weights from %s: %d of %d arrays loaded; modules skipped: %s',
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
  """Modules of the file that may be skipped, see `load_weights`."""

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
      # No array in common: a decoder of another kind, or none.
      result.add(name)
  return result


def _other_classes(path: epath.PathLike, classes: Mapping) -> dict[str, list]:
  """The stored class names of datasets whose names or order have changed."""
  file = epath.Path(path) / 'classes.json'
  if not file.exists():
    return {}
  stored = json.loads(file.read_text())
  return {
      name: stored[name]
      for name, names in classes.items()
      if name in stored and list(stored[name]) != list(names)
  }


def check_classes(
    workdir: epath.PathLike, classes: Mapping[str, Sequence[str]]
) -> None:
  """Compares the classes of a run, and their order, with those of the data.

  Args:
    workdir: output folder of the run.
    classes: class names of the data, by dataset name.

  Raises:
    ValueError: if they differ; names the dataset and both lists.
  """
  for name, stored in _other_classes(workdir, classes).items():
    found = 'have no labels; expected labelled data'
    if classes[name]:
      found = (
          f'{", ".join(classes[name])}; expected config.data.classes='
          f'{tuple(stored)}'
      )
    raise ValueError(
        f'{name}: the checkpoints of {workdir} have the classes '
        f'{", ".join(stored)}, in this order, and the data {found}'
    )


def _of_other_classes(
    path: epath.PathLike, have: Mapping[str, Any], classes: Mapping
) -> set[str]:
  """Heads of a run whose datasets had other classes or another class order."""
  other = _other_classes(path, classes)
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
  """Restores or initializes the state, from the first of these that applies.

  1. the last undamaged checkpoint in the run's own workdir;
  2. `config.checkpoint.resume`: the last checkpoint of another run, with
     optimizer state and step;
  3. `config.checkpoint.init_from`: weights, loaded path by path;
  4. random initialization.

  Args:
    create: creates the initial state, on its devices.
    target: shapes, dtypes and shardings of the state.
    checkpoints: checkpoints of the run's own workdir.
    settings: `config.checkpoint`.
    classes: class names of this run, by dataset name.

  Returns:
    (state, position in the data; None at step 0).

  Raises:
    FileNotFoundError: if `resume` or `init_from` names a missing path.
    ValueError: if weights do not match the model, `init_from` has no weights
      for frozen arrays, or all checkpoints of the workdir are damaged.
  """
  step = checkpoints.last_good_step(set_aside=True)
  if step is not None:
    check_classes(checkpoints.directory.parent, classes)
    state, data = checkpoints.restore(target, step)
    logging.info('Resuming from step %d', int(state.step))
    return state, data
  if settings.resume:
    other = Checkpoints(
        epath.Path(settings.resume).absolute(), settings, read_only=True
    )
    step = other.last_good_step()
    if step is None:
      raise FileNotFoundError(
          f'config.checkpoint.resume: no checkpoint in {other.directory}'
      )
    check_classes(settings.resume, classes)
    state, data = other.restore(target, step)
    other.close()
    logging.info('Resuming from %s', settings.resume)
    return state, data
  logging.info('No checkpoint in %s: starting anew', checkpoints.directory)
  state = fresh = create()
  for path in settings.init_from:
    state = load_weights(state, path, classes)
  if settings.init_from:
    _check_frozen(fresh.frozen, state.frozen, settings.init_from)
  return state, None


def _check_frozen(fresh: Any, loaded: Any, paths) -> None:
  """Checks that all frozen arrays were loaded, since they are not trained."""
  fresh = traverse_util.flatten_dict(fresh, sep='/')
  loaded = traverse_util.flatten_dict(loaded, sep='/')
  missing = sorted(key for key in fresh if loaded[key] is fresh[key])
  if missing:
    raise ValueError(
        f'config.checkpoint.init_from is {tuple(paths)} and has no weights '
        f'for {len(missing)} frozen arrays ({few(missing)}), which would keep '
        'their random initialization'
    )
