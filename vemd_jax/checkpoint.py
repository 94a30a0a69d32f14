"""Checkpoints: training state and position in the data, saved together.

Each saved step holds the items `model` (parameters, batch statistics, moving
average, step), `optimizer`, `data` (the position in the data, as JSON) and, if
the state has one, `guard`. It also holds checksums of their files, so that a
damaged checkpoint is detected when it is read.
"""

import asyncio
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import path as ocp_path
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from vemd_jax import checksums
from vemd_jax.state import TrainState

_MODEL = ('step', 'params', 'frozen', 'batch_stats', 'ema')
# Files of a step that Orbax writes after all others.
_LATE = ('_CHECKPOINT_METADATA', 'commit_success.txt')


class Checkpoints:
  """The checkpoints of one workdir; saving is asynchronous.

  Attributes:
    directory: folder of the checkpoints, one subfolder per step.
  """

  def __init__(
      self,
      workdir: epath.PathLike,
      settings: ConfigDict,
      read_only: bool = False,
  ):
    """Opens or creates `workdir/checkpoints`.

    Args:
      workdir: workdir of the run.
      settings: `config.checkpoint`.
      read_only: whether to leave the folder untouched; for checkpoints of
        another run, which may be saving concurrently.
    """
    self.directory = epath.Path(workdir) / 'checkpoints'
    self._whole: set[int] = set()  # Steps whose checksums were verified.
    metric = settings.best_metric
    mode = settings.get('best_mode', 'auto')
    if mode == 'auto':
      lower = metric == 'loss' or metric.endswith('_mse')
      mode = 'min' if lower else 'max'
    sign = -1.0 if mode == 'min' else 1.0
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
        # Explicit, since a manager that has not saved anything yet cannot
        # infer the handlers that it needs to read metadata.
        item_handlers={
            'model': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'guard': ocp.StandardCheckpointHandler(),
            'data': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            best_fn=self._score,
            best_mode='max',
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            temporary_path_class=_with_checksums(
                ocp_path.atomicity_defaults.get_default_temporary_path_class(
                    self.directory
                ),
                self.directory,
            ),
        ),
    )

  def latest_step(self) -> int | None:
    """The last step saved; None if there is none."""
    return self._manager.latest_step()

  def last_good_step(self, set_aside: bool = False) -> int | None:
    """The last step whose files match their checksums.

    Args:
      set_aside: whether to move later, damaged steps to the folder
        `damaged_checkpoints` of the workdir, so that they can be saved again.

    Returns:
      The step; None if there are no steps.

    Raises:
      ValueError: if all existing steps are damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    problems: dict[int, str] = {}
    for step in steps if jax.process_index() == 0 else ():
      problem = self._problem(step)
      if not problem:
        break
      problems[step] = problem
    # Only process 0 reads the files.
    damaged = steps[: _from_first(len(problems))]
    for step in damaged:
      logging.warning(
          'Checkpoint %s is damaged: %s',
          self.directory / str(step),
          problems.get(step, 'see the log of process 0'),
      )
    if damaged and len(damaged) == len(steps):
      raise ValueError(
          f'all checkpoints in {self.directory} are damaged ('
          + '; '.join(f'{step}: {what}' for step, what in problems.items())
          + '); expected an empty workdir to start a new run'
      )
    good = steps[len(damaged)] if steps else None
    self._whole.add(good)
    if damaged:
      logging.warning('Falling back to the checkpoint of step %d', good)
    if damaged and set_aside:
      aside = self.directory.parent / 'damaged_checkpoints'
      for step in damaged if jax.process_index() == 0 else ():
        if (aside / str(step)).exists():
          (aside / str(step)).rmtree()
        aside.mkdir(exist_ok=True)
        (self.directory / str(step)).rename(aside / str(step))
      _from_first(0)  # Waits for process 0.
      self._manager.reload()
    return good

  def _problem(self, step: int, items: tuple[str, ...] = ()) -> str:
    """Describes what is wrong with the files of a step; '' if nothing is."""
    folder = self.directory / str(step)
    for item in items or ('model', 'optimizer', 'data'):
      if not (folder / item).exists():
        return f'{item} is missing'
    return checksums.problem(folder, items)

  def _check(self, step: int, items: tuple[str, ...] = ()) -> None:
    if step in self._whole:
      return
    problem = ''
    if jax.process_index() == 0:
      problem = self._problem(step, items)
    if _from_first(int(bool(problem))):
      raise ValueError(
          f'checkpoint {self.directory / str(step)} is damaged: {problem}; '
          'delete this folder to use the next best checkpoint'
      )

  def best_step(self) -> int | None:
    """The step with the best metric; the last step if none was evaluated."""
    best = self._manager.best_step()
    return self.latest_step() if best is None else best

  def save(
      self,
      state: TrainState,
      data: dict,
      metrics: dict | None = None,
      replace: bool = False,
  ) -> None:
    """Saves a step asynchronously; does nothing if the step exists already.

    Args:
      state: the run's state.
      data: the position in the data.
      metrics: evaluation metrics of this state, if it was evaluated.
      replace: whether to save a step that exists already again, for a step
        whose evaluation was interrupted.

    Raises:
      ValueError: if the metrics do not contain `best_metric`.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      if not replace:
        return
      self._manager.delete(step)
    if metrics is not None:
      value = metrics.get(self._metric)
      if value is None:
        raise ValueError(
            f'config.checkpoint.best_metric is {self._metric!r}, expected one '
            f'of {", ".join(k for k, v in metrics.items() if _number(v))}'
        )
      metrics = {self._metric: float(value)}
    trees = {'model': _model_item(state), 'optimizer': state.opt_state}
    if state.guard:
      trees['guard'] = state.guard
    trees = _on_host(trees)
    self._reporting(
        self._manager.save,
        step,
        args=ocp.args.Composite(
            **{k: ocp.args.StandardSave(tree) for k, tree in trees.items()},
            data=ocp.args.JsonSave(data),
        ),
        metrics=metrics,
    )

  def restore(
      self, target: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict]:
    """Restores a step with the shardings of `target`.

    Args:
      target: tree of ShapeDtypeStructs with shardings.
      step: step to restore; by default the last one.

    Returns:
      (state, position in the data).

    Raises:
      ValueError: if the checkpoint is damaged or does not match the model;
        names the file or lists the differences.
    """
    step = self.latest_step() if step is None else step
    self._check(step)
    stored = self._manager.item_metadata(step)
    where = f'checkpoint {self.directory / str(step)}'
    item = _model_item(target)
    check_fit(stored['model'], item, where)
    trees = {'model': item, 'optimizer': target.opt_state}
    if target.guard and (self.directory / str(step) / 'guard').exists():
      trees['guard'] = target.guard
    items = {k: ocp.args.StandardRestore(tree) for k, tree in trees.items()}
    try:
      restored = self._manager.restore(
          step,
          args=ocp.args.Composite(**items, data=ocp.args.JsonRestore()),
      )
    except ValueError as error:
      raise ValueError(
          f'{where} has another optimizer state than config.optim and '
          'config.phases describe; expected those that the run was started with'
      ) from error
    # `config.faults` may have changed since the checkpoint was saved.
    guard = jax.tree.map(
        lambda s: jax.device_put(np.zeros(s.shape, s.dtype), s.sharding),
        target.guard,
    )
    state = target.replace(
        **{key: restored['model'].get(key, {}) for key in _MODEL},
        opt_state=restored['optimizer'],
        guard=restored['guard'] if 'guard' in trees else guard,
    )
    return state, restored['data']

  def restore_model(self, step: int, target: Any = None) -> dict[str, Any]:
    """Restores the `model` item only, without the optimizer state.

    Args:
      step: step to restore.
      target: tree of ShapeDtypeStructs of the item; None restores all that is
        stored onto the first device.

    Returns:
      Dict with step, params, frozen, batch_stats, ema.

    Raises:
      ValueError: if the checkpoint is damaged; names the file.
    """
    self._check(step, ('model',))
    if target is None:
      stored = self._manager.item_metadata(step)['model']
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      target = jax.tree.map(
          lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
          plain_tree(stored),
      )
    model = self._manager.restore(
        step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target))
    )['model']
    return {key: model.get(key, {}) for key in _MODEL}

  def check(self) -> None:
    """Raises the error of an asynchronous save, if one has failed."""
    self._reporting(self._manager.check_for_errors)

  def wait(self) -> None:
    """Blocks until all pending saves are on disk."""
    self._reporting(self._manager.wait_until_finished)

  def close(self) -> None:
    """Blocks until all pending saves are on disk, then closes the manager."""
    self.wait()
    self._manager.close()

  def _reporting(self, function, *args, **kwargs) -> None:
    """Calls Orbax; converts its errors about a save to OSError."""
    try:
      function(*args, **kwargs)
    except jax.errors.JaxRuntimeError:  # Another process has ended.
      raise
    except Exception as error:
      raise OSError(
          f'cannot write a checkpoint to {self.directory}: {error}; the same '
          'command resumes the run from the previous checkpoint'
      ) from error


def _with_checksums(base: type, directory: epath.Path) -> type:
  """Subclass of Orbax's temporary path that writes checksums on finalizing."""

  class Checked(base):

    async def finalize(self) -> None:
      if self.get_final().parent == directory:  # A step; items are deeper.
        await asyncio.to_thread(checksums.write, self.get(), _LATE)
      await super().finalize()

  return Checked


def _from_first(number: int) -> int:
  """Broadcasts a number from process 0 to all processes."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _model_item(state: TrainState) -> dict[str, Any]:
  # Orbax refuses empty subtrees.
  item = {key: getattr(state, key) for key in _MODEL}
  return {key: value for key, value in item.items() if jax.tree.leaves(value)}


def _on_host(tree: Any) -> Any:
  """Copies all arrays to the host in one call, in single-process runs.

  Orbax copies each array separately and replicated arrays slice by slice, which
  for a small model takes several times as long as the rest of a save.
  """
  if jax.process_count() > 1:
    return tree
  # On the CPU device_get returns views of buffers that the next step donates.
  return jax.tree.map(np.array, jax.device_get(tree))


def _number(value: Any) -> bool:
  return isinstance(value, (int, float))


def plain_tree(stored: Any) -> Any:
  """Unwraps Orbax's metadata object to a plain tree of array metadata."""
  return getattr(stored, 'tree', stored)


def check_fit(stored: Any, wanted: Any, where: str) -> None:
  """Checks that two trees have the same names, shapes and dtypes.

  Args:
    stored: tree of arrays or their metadata.
    wanted: tree of arrays or ShapeDtypeStructs.
    where: description of the stored tree, for the error message.

  Raises:
    ValueError: if they differ; lists the first few differences of each kind.
  """
  have = traverse_util.flatten_dict(dict(plain_tree(stored)), sep='/')
  want = traverse_util.flatten_dict(wanted, sep='/')
  problems = []

  # Differences in the moving averages repeat those of the parameters, so they
  # are listed last.
  def order(key: str):
    return key.startswith('ema/'), not key.startswith('params/'), key

  missing = sorted(want.keys() - have.keys(), key=order)
  unexpected = sorted(have.keys() - want.keys(), key=order)
  if missing:
    problems.append(f'{len(missing)} missing ({few(missing)})')
  if unexpected:
    problems.append(f'{len(unexpected)} unexpected ({few(unexpected)})')
  other = []
  for key in sorted(have.keys() & want.keys(), key=order):
    a, b = have[key], want[key]
    # Frozen matrices are stored in the compute dtype, which may differ between
    # machines (`auto`); they are cast when they are restored.
    same_type = np.dtype(a.dtype) == np.dtype(b.dtype) or key.startswith(
        'frozen/'
    )
    if tuple(a.shape) != tuple(b.shape) or not same_type:
      other.append(
          f'{key} is {np.dtype(a.dtype)}{list(a.shape)}, the model has '
          f'{np.dtype(b.dtype)}{list(b.shape)}'
      )
  if other:
    problems.append(f'{len(other)} of another shape or dtype ({few(other)})')
  if problems:
    raise ValueError(
        f'{where} does not match the model of this config: '
        + '; '.join(problems)
    )


def few(names: list[str], count: int = 3) -> str:
  """The first names, comma-separated, and how many more there are."""
  more = f', and {len(names) - count} more' if len(names) > count else ''
  return ', '.join(names[:count]) + more


def open_run(
    workdir: epath.PathLike, which: str = 'best'
) -> tuple[Checkpoints, int]:
  """Opens the checkpoints of a run.

  Args:
    workdir: workdir of the run.
    which: 'best' or 'latest'.

  Returns:
    (the run's checkpoints, the chosen step).

  Raises:
    FileNotFoundError: if there is no config or no checkpoint.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f"no config at {path}; expected a run's workdir")
  settings = ConfigDict(json.loads(path.read_text())['checkpoint'])
  checkpoints = Checkpoints(workdir, settings, read_only=True)
  step = (
      checkpoints.best_step() if which == 'best' else checkpoints.latest_step()
  )
  if step is None:
    checkpoints.close()
    raise FileNotFoundError(f'no checkpoint in {checkpoints.directory}')
  return checkpoints, step
