"""Checkpoints: state and data position in one step, and where weights begin.

A step holds three items: `model` (parameters, statistics, average, step),
`optimizer`, and `data` (the position in the data, as JSON). What starts a run
is decided in `initialise`, in a fixed order.
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from vemd_jax import config as config_lib
from vemd_jax.state import TrainState

# Modules that another model may have more of.
_OPTIONAL = ('head_', 'vit_projection_', 'body_decoder', 'face_decoder')
_MODEL = ('step', 'params', 'frozen', 'batch_stats', 'ema')


class Checkpoints:
  """The checkpoints of one workdir; saves in the background.

  Attributes:
    directory: where the steps lie.
  """

  def __init__(self, workdir: epath.PathLike, settings: ConfigDict):
    """Opens or creates `workdir/checkpoints`.

    Args:
      workdir: of the run.
      settings: `config.checkpoint`.
    """
    self.directory = epath.Path(workdir) / 'checkpoints'
    metric = settings.best_metric
    # Metrics that say "the lower, the better".
    sign = -1.0 if metric == 'loss' or metric.endswith('_mse') else 1.0
    self._score = lambda metrics: sign * metrics[metric]
    self._metric = metric
    policies = [keep.LatestN(settings.keep_latest)]
    if settings.keep_best:
      policies.append(
          keep.BestN(
              get_metric_fn=self._score,
              n=settings.keep_best,
              keep_checkpoints_without_metrics=False,
          )
      )
    self._manager = ocp.CheckpointManager(
        self.directory,
        # Named here, or a manager that has not saved yet cannot read metadata.
        item_handlers={
            'model': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'data': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            best_fn=self._score,
            best_mode='max',
            cleanup_tmp_directories=True,
        ),
    )

  def latest_step(self) -> int | None:
    """The last step saved, None without any."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best metric; the last one where none was measured."""
    best = self._manager.best_step()
    return self.latest_step() if best is None else best

  def save(
      self, state: TrainState, data: dict, metrics: dict | None = None
  ) -> None:
    """Saves a step; returns before it is on disk.

    Args:
      state: the run's state.
      data: the position in the data.
      metrics: of an evaluation of this very state, if there was one.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    if metrics is not None:
      value = metrics.get(self._metric)
      if value is None:
        raise ValueError(
            f'config.checkpoint.best_metric is {self._metric!r}, expected one '
            f'of {", ".join(k for k, v in metrics.items() if _number(v))}'
        )
      metrics = {self._metric: float(value)}
    self._manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(_model_item(state)),
            optimizer=ocp.args.StandardSave(state.opt_state),
            data=ocp.args.JsonSave(data),
        ),
        metrics=metrics,
    )

  def restore(
      self, target: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict]:
    """Reads a step onto the devices that the target names.

    Args:
      target: tree of ShapeDtypeStructs with shardings.
      step: default the last one.

    Returns:
      (state, position in the data).

    Raises:
      ValueError: if the checkpoint does not fit the model; names what differs.
    """
    step = self.latest_step() if step is None else step
    stored = self._manager.item_metadata(step)
    where = f'checkpoint {self.directory / str(step)}'
    item = _model_item(target)
    check_fit(stored['model'], item, where)
    restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardRestore(item),
            optimizer=ocp.args.StandardRestore(target.opt_state),
            data=ocp.args.JsonRestore(),
        ),
    )
    state = target.replace(
        **{key: restored['model'].get(key, {}) for key in _MODEL},
        opt_state=restored['optimizer'],
    )
    return state, restored['data']

  def restore_model(self, step: int, target: Any = None) -> dict[str, Any]:
    """Reads parameters and statistics alone, without the optimiser.

    Args:
      step: to read.
      target: tree of ShapeDtypeStructs for the item; None reads whatever is
        stored, onto the first device.

    Returns:
      Dict with step, params, frozen, batch_stats, ema.
    """
    if target is None:
      stored = self._manager.item_metadata(step)['model']
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      target = jax.tree.map(
          lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
          _plain(stored),
      )
    model = self._manager.restore(
        step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target))
    )['model']
    return {key: model.get(key, {}) for key in _MODEL}

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster is about to take the machines away."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Waits until all is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until all is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _model_item(state: TrainState) -> dict[str, Any]:
  # Orbax has no use for empty subtrees.
  item = {key: getattr(state, key) for key in _MODEL}
  return {key: value for key, value in item.items() if jax.tree.leaves(value)}


def _number(value: Any) -> bool:
  return isinstance(value, (int, float))


def _plain(stored: Any) -> Any:
  """Orbax's metadata as a plain tree of array metadata."""
  return getattr(stored, 'tree', stored)


def check_fit(stored: Any, wanted: Any, where: str) -> None:
  """Compares names, shapes and types of two trees.

  Args:
    stored: tree of arrays or their metadata.
    wanted: tree of arrays or ShapeDtypeStructs.
    where: what is stored, for the message.

  Raises:
    ValueError: with the differences, the first few of each kind.
  """
  have = traverse_util.flatten_dict(dict(_plain(stored)), sep='/')
  want = traverse_util.flatten_dict(wanted, sep='/')
  problems = []

  # Moving averages only repeat what is wrong with the parameters.
  def order(key: str):
    return key.startswith('ema/'), not key.startswith('params/'), key

  missing = sorted(want.keys() - have.keys(), key=order)
  unexpected = sorted(have.keys() - want.keys(), key=order)
  if missing:
    problems.append(f'{len(missing)} missing ({_few(missing)})')
  if unexpected:
    problems.append(f'{len(unexpected)} unexpected ({_few(unexpected)})')
  other = []
  for key in sorted(have.keys() & want.keys(), key=order):
    a, b = have[key], want[key]
    if tuple(a.shape) != tuple(b.shape) or np.dtype(a.dtype) != np.dtype(
        b.dtype
    ):
      other.append(
          f'{key} is {np.dtype(a.dtype)}{list(a.shape)}, the model has '
          f'{np.dtype(b.dtype)}{list(b.shape)}'
      )
  if other:
    problems.append(f'{len(other)} of another shape or type ({_few(other)})')
  if problems:
    raise ValueError(
        f'{where} does not fit the model of this config: '
        + '; '.join(problems)
    )


def _few(names: list[str], count: int = 3) -> str:
  more = f', and {len(names) - count} more' if len(names) > count else ''
  return ', '.join(names[:count]) + more


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
    checkpoints, step = _open(path, 'best')
    model = checkpoints.restore_model(step)
    checkpoints.close()
    return _variables(model)
  if not (path / '_METADATA').exists():
    raise FileNotFoundError(
        f'no weights at {path}; expected a workdir, or a folder written by '
        'vemd_jax.models.torch_import'
    )
  checkpointer = ocp.StandardCheckpointer()
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
      _plain(checkpointer.metadata(path).item_metadata),
  )
  variables = checkpointer.restore(path, target)
  return {'params': {}, 'batch_stats': {}, **variables}


def _variables(model: dict[str, Any]) -> dict[str, Any]:
  """What `model.apply` takes, of a stored item; the average where one is."""
  return TrainState(**model, opt_state={}).variables(averaged=True)


def _open(workdir: epath.Path, which: str) -> tuple[Checkpoints, int]:
  settings = config_lib.load(workdir / 'config.json').checkpoint
  checkpoints = Checkpoints(workdir, settings)
  step = (
      checkpoints.best_step() if which == 'best' else checkpoints.latest_step()
  )
  if step is None:
    raise FileNotFoundError(f'no checkpoint in {checkpoints.directory}')
  return checkpoints, step


def load_for_inference(
    workdir: epath.PathLike, which: str = 'best'
) -> tuple[ConfigDict, dict[str, tuple[str, ...]], dict[str, Any]]:
  """All that a prediction needs of a run.

  Args:
    workdir: of the run.
    which: 'best' or 'latest'.

  Returns:
    (config, classes by dataset name, variables for `model.apply`).

  Raises:
    FileNotFoundError: if the workdir has no config or no checkpoint.
  """
  workdir = epath.Path(workdir).absolute()
  config = config_lib.load(workdir / 'config.json')
  checkpoints, step = _open(workdir, which)
  model = checkpoints.restore_model(step)
  checkpoints.close()
  classes = {
      name: tuple(names)
      for name, names in json.loads(
          (workdir / 'classes.json').read_text()
      ).items()
  }
  return config, classes, _variables(model)


def load_weights(state: TrainState, path: epath.PathLike) -> TrainState:
  """Puts weights from a file into a fresh state.

  Every array of the file must find its place, except heads and projections of
  datasets and decoders that this model does not have. What the file
  lacks stays as it was initialised; both are logged.

  Args:
    state: fresh, on its devices.
    path: see `load_variables`.

  Returns:
    The state with the weights, at step 0.

  Raises:
    ValueError: names what does not fit.
  """
  loaded = load_variables(path)
  skipped, used, total = [], 0, 0
  problems = []
  parts = {'params': (state.params, state.frozen),
           'batch_stats': (state.batch_stats,)}  # fmt: skip
  new = {}
  for collection, trees in parts.items():
    have = traverse_util.flatten_dict(loaded[collection], sep='/')
    places = set()
    for tree in trees:
      flat = traverse_util.flatten_dict(tree, sep='/')
      places |= flat.keys()
      total += len(flat)
      for key in flat.keys() & have.keys():
        if flat[key].shape != have[key].shape:
          problems.append(
              f'{key} is {list(have[key].shape)}, the model has '
              f'{list(flat[key].shape)}'
          )
          continue
        value = np.asarray(have[key], flat[key].dtype)
        flat[key] = jax.device_put(value, flat[key].sharding)
        used += 1
      new.setdefault(collection, []).append(
          traverse_util.unflatten_dict(flat, sep='/')
      )
    shared = {key.split('/')[0] for key in have.keys() & places}
    for key in sorted(have.keys() - places):
      # A decoder of another kind has no array in common.
      if key.startswith(_OPTIONAL) and key.split('/')[0] not in shared:
        skipped.append(key)
      else:
        problems.append(f'{key} has no place in the model')
  if problems:
    raise ValueError(
        f'weights {path} do not fit the model of this config: '
        f'{len(problems)} problems ({_few(problems)})'
    )
  if not used:
    raise ValueError(f'weights {path} have nothing that this model has')
  logging.info(
      'Weights from %s: %d of %d arrays; left out: %s',
      path, used, total, _few(skipped) if skipped else 'none',
  )  # fmt: skip
  params = new['params'][0]
  ema = jax.tree.map(lambda x: x.copy(), params) if state.ema else state.ema
  return state.replace(
      params=params,
      frozen=new['params'][1],
      batch_stats=new['batch_stats'][0],
      ema=ema,
  )


def initialise(
    create, target: TrainState, checkpoints: Checkpoints, config: ConfigDict
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
    config: the whole config.

  Returns:
    (state, position in the data or None at the beginning).

  Raises:
    FileNotFoundError: if there is nothing at `resume` or `init_from`.
    ValueError: if weights do not fit, or frozen parts got none.
  """
  settings = config.checkpoint
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
    state = load_weights(state, path)
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
        f'for {len(missing)} frozen arrays ({_few(missing)}); they would stay '
        'random'
    )
