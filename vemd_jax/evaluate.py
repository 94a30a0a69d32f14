"""Evaluation of a split, and the final report of a run."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import sharding, viz, weights
from vemd_jax import workdir as workdir_lib
from vemd_jax import writer as writer_lib
from vemd_jax.data import pipeline
from vemd_jax.metrics import Metrics
from vemd_jax.run import Run
from vemd_jax.state import TrainState
from vemd_jax.stopping import Stopped


def evaluate(
    eval_step: Callable,
    variables: Any,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    mesh: jax.sharding.Mesh,
    dataset: str,
    step: int,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Metrics, tuple[Any, Any]]:
  """Accumulates the metrics of a split and keeps its first batch for pictures.

  Args:
    eval_step: jitted function from `step.make_eval_step`.
    variables: variables for `model.apply`.
    batches: this process's share of the split, with the same number of batches
      on each process.
    mesh: device mesh that the batches are sharded over.
    dataset: dataset whose emotion head is used.
    step: number of training steps done, for the schedules of the loss terms.
    stop: called before each batch; True interrupts the evaluation.

  Returns:
    (metrics of the whole split, (outputs, batch) of the first batch).

  Raises:
    Stopped: if `stop` says so.
  """
  metrics, first = None, None
  step_array = jax.device_put(
      jnp.asarray(step, jnp.int32), sharding.replicated(mesh)
  )
  for batch in batches:
    if stop():
      raise Stopped(f'in an evaluation at step {step}')
    new, outputs, batch = eval_step(
        variables, sharding.put_batch(batch, mesh), step_array, dataset
    )
    metrics = new if metrics is None else metrics.merge(new)
    first = first or (outputs, batch)
  return metrics, first


def validate(
    run: Run, state: TrainState, writer: writer_lib.Writer
) -> dict[str, Any]:
  """Evaluates the split that is used for checkpoint selection.

  Args:
    run: the run, from `run.set_up`.
    state: training state; its moving average is evaluated if there is one.
    writer: writer for scalars and pictures.

  Returns:
    Metrics by name.
  """
  variables = state.variables(averaged=True)
  return evaluate_split(
      run, variables, int(state.step), run.selection_split, writer
  )


def evaluate_split(
    run: Run, variables: Any, step: int, split: str, writer: writer_lib.Writer
) -> dict[str, Any]:
  """Evaluates a split of all datasets; writes scalars and pictures.

  Args:
    run: the run, from `run.set_up`.
    variables: variables for `model.apply`.
    step: number of training steps done.
    split: 'val', 'test' or 'holdout'.
    writer: writer for scalars and pictures.

  Returns:
    Metrics by name, see `join`.
  """
  config = run.config
  local = sharding.local_batch_size(
      config.eval.batch_size, run.mesh, 'eval.batch_size'
  )
  results = {}
  for name, data in run.datasets.items():
    batches = pipeline.eval_batches(
        data, split, local, jax.process_index(), jax.process_count()
    )
    metrics, (outputs, batch) = evaluate(
        run.eval_step,
        variables,
        batches,
        mesh=run.mesh,
        dataset=name,
        step=step,
        stop=run.stop.given,
    )
    results[name] = metrics.compute(run.classes[name])
    if config.eval.pictures and jax.process_count() == 1:
      prefix = split if len(run.datasets) == 1 else f'{split}_{name}'
      writer.pictures(
          step,
          {
              f'{prefix}/{what}': picture
              for what, picture in viz.evaluation_pictures(
                  jax.device_get(outputs),
                  jax.device_get(batch),
                  results[name],
                  run.classes[name],
                  config.eval.pictures,
              ).items()
          },
      )
  joined = join(results)
  writer.scalars(step, split, joined)
  writer.message(
      f'{split} at step {step}: '
      + '  '.join(
          f'{key} {joined[key]:.4f}'
          for key in ('loss', 'accuracy', 'macro_f1')
          if key in joined
      )
  )
  run.last_evaluation = (step, split, joined)
  return joined


def join(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Joins metrics by dataset: those of a single one, or all and their means."""
  if len(results) == 1:
    return next(iter(results.values()))
  joined: dict[str, Any] = dict(results)
  for metrics in results.values():
    for key, value in metrics.items():
      if isinstance(value, float) and key not in joined:
        values = [m[key] for m in results.values() if key in m]
        joined[key] = float(np.mean(values))
  return joined


def report(run: Run) -> None:
  """Evaluates the best checkpoint on all held-out splits and prints a table.

  Args:
    run: the run, from `run.set_up`.

  Raises:
    FileNotFoundError: if the run has no checkpoint.
    ValueError: if it is damaged, or for other classes than the data have.
    Stopped: if the run was asked to stop.
  """
  step = run.checkpoints.best_step()
  if step is None:
    raise FileNotFoundError(f'no checkpoint in {run.checkpoints.directory}')
  weights.check_classes(run.workdir, run.classes)
  state, _ = run.checkpoints.restore(run.target, step)
  run.check_cached_features(state)
  variables = state.variables(averaged=True)
  with writer_lib.Writer(run.workdir, resume_step=None) as writer:
    results = _report(run, variables, step, writer)
  if jax.process_index() == 0:
    text = json.dumps({'step': step, **results}, indent=2) + '\n'
    workdir_lib.write(run.workdir / 'results.json', text)


def _report(
    run: Run, variables: Any, step: int, writer: writer_lib.Writer
) -> dict[str, Any]:
  """Evaluates val and test and prints their tables."""
  chosen_on = run.selection_split
  results: dict[str, Any] = {'chosen_on': chosen_on}
  for split in ('val', 'test'):
    if split == 'test' and not run.config.data.test_split:
      continue
    if run.last_evaluation and run.last_evaluation[:2] == (step, split):
      # The best checkpoint is the last one, which training has just evaluated.
      results[split] = run.last_evaluation[2]
    else:
      results[split] = evaluate_split(run, variables, step, split, writer)
    writer.message(f'\nResults on {split}, checkpoint of step {step}')
    if split == chosen_on:
      writer.message(
          'The checkpoint was selected on this split; set config.data.holdout '
          'to select it on a held-out part of train.'
      )
    for name in run.datasets:
      table = results[split] if len(run.datasets) == 1 else results[split][name]
      writer.message(writer_lib.results_table(table, run.classes[name]))
  writer.message(writer.places())
  return results
