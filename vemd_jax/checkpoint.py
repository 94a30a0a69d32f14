"""Checkpoints: training state and position in the data, saved together.

Each saved step holds three items: `model` (parameters, batch statistics, moving
average, step), `optimizer`, and `data` (the position in the data, as JSON).
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from vemd_jax.state import TrainState

_MODEL = ('step', 'params', 'frozen', 'batch_stats', 'ema')


class Checkpoints:
  """The checkpoints of one workdir; saving is asynchronous.

  Attributes:
    directory: folder of the checkpoints, one subfolder per step.
  """

  def __init__(self, workdir: epath.PathLike, settings: ConfigDict):
    """Opens or creates `workdir/checkpoints`.

    Args:
      workdir: workdir of the run.
      settings: `config.checkpoint`.
    """
    self.directory = epath.Path(workdir) / 'checkpoints'
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
    """The last step saved; None if there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best metric; the last step if none was evaluated."""
    best = self._manager.best_step()
    return self.latest_step() if best is None else best

  def save(
      self, state: TrainState, data: dict, metrics: dict | None = None
  ) -> None:
    """Saves a step asynchronously; does nothing if the step exists already.

    Args:
      state: the run's state.
      data: the position in the data.
      metrics: evaluation metrics of this state, if it was evaluated.

    Raises:
      ValueError: if the metrics do not contain `best_metric`.
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
    model, optimizer = _on_host((_model_item(state), state.opt_state))
    self._manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            optimizer=ocp.args.StandardSave(optimizer),
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
      ValueError: if the checkpoint does not match the model; lists the
        differences.
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
    """Restores the `model` item only, without the optimizer state.

    Args:
      step: step to restore.
      target: tree of ShapeDtypeStructs of the item; None restores all that is
        stored onto the first device.

    Returns:
      Dict with step, params, frozen, batch_stats, ema.
    """
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

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster has announced a preemption of this job."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Blocks until all pending saves are on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Blocks until all pending saves are on disk, then closes the manager."""
    self._manager.wait_until_finished()
    self._manager.close()


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
  checkpoints = Checkpoints(workdir, settings)
  step = (
      checkpoints.best_step() if which == 'best' else checkpoints.latest_step()
  )
  if step is None:
    checkpoints.close()
    raise FileNotFoundError(f'no checkpoint in {checkpoints.directory}')
  return checkpoints, step
