"""Evaluation of a split, and the final report of a run."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vemd_jax import gallery, predictions, progress, sharding, viz, weights
from vemd_jax import report as report_lib
from vemd_jax import workdir as workdir_lib
from vemd_jax import writer as writer_lib
from vemd_jax.data import pipeline, sources
from vemd_jax.metrics import Metrics
from vemd_jax.predictions import Predictions
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
) -> tuple[Metrics, tuple[Any, Any], Predictions | None]:
  """Accumulates the metrics of a split and keeps its first batch for pictures.

  Args:
    eval_step: jitted function from `step.make_eval_step`.
    variables: variables for `model.apply`.
    batches: this process's rows of the batches of the split.
    mesh: device mesh that the batches are sharded over.
    dataset: dataset whose emotion head is used.
    step: number of training steps done, for the schedules of the loss terms.
    stop: called before each batch; interrupts the evaluation if it returns
      True.

  Returns:
    (metrics of the whole split, (outputs, batch) of the first batch,
    predictions or None without an emotion head).

  Raises:
    Stopped: if `stop` returned True.
  """
  metrics, first, kept = None, None, []
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
    kept.append(predictions.keep(outputs, batch))
  return metrics, first, predictions.gather(kept)


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
  size = config.eval.batch_size
  sharding.check_batch_size(size, run.mesh, 'eval.batch_size')
  rows = sharding.local_rows(run.mesh, size)
  results, said = {}, {}
  for name, data in run.datasets.items():
    batches = pipeline.eval_batches(data, split, size, rows)
    count = -(-len(sources.make_source(data, split)) // size)
    shown = jax.process_index() == 0
    with progress.bar(
        count, 'batch', f'{name} {split}', brief=True, shown=shown
    ) as bar:
      metrics, (outputs, batch), said[name] = evaluate(
          run.eval_step,
          variables,
          _counted(batches, bar),
          mesh=run.mesh,
          dataset=name,
          step=step,
          stop=run.stop.given,
      )
    results[name] = metrics.compute(run.classes[name])
    pictures = config.pictures
    if (
        pictures.samples
        and pictures.people != 'off'
        and jax.process_count() == 1
    ):
      sheet = viz.structure_sheet(
          jax.device_get(batch),
          jax.device_get(outputs),
          run.classes[name],
          pictures.samples,
          blur=pictures.people == 'blur',
      )
      prefix = split if len(run.datasets) == 1 else f'{split}_{name}'
      writer.pictures(step, {f'{prefix}/structure': sheet})
  joined = join(results)
  writer.scalars(step, split, joined)
  writer.confusion(
      step,
      split,
      {
          name: (metrics['confusion'], run.classes[name])
          for name, metrics in results.items()
          if metrics.get('confusion')
      },
      # confusion.png shows the split that selects the checkpoint.
      to_file=split == run.selection_split,
  )
  if split == run.selection_split:
    writer.curves()
  writer.message(
      f'{split} at step {step}: '
      + '  '.join(
          f'{key} {joined[key]:.4f}'
          for key in ('loss', 'accuracy', 'macro_f1')
          if key in joined
      )
  )
  run.last_evaluation = (step, split, joined, said)
  return joined


def _counted(batches: Iterator, bar: Any) -> Iterator:
  for batch in batches:
    yield batch
    bar.update()


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
  """Evaluates the best checkpoint on all held-out splits and reports on it.

  Prints tables and writes results.json, predictions.jsonl, data.json, the
  gallery and report.html.

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
  with writer_lib.Writer(
      run.workdir, resume_step=None, loggers=run.config.loggers
  ) as writer:
    results, said = _results(run, variables, step, writer)
    pictures = gallery.pictures(run, variables, step, said)
    if run.accountant:
      # The checkpoint was selected among all, so all their steps count.
      last = run.checkpoints.latest_step() or step
      results['privacy'] = run.accountant.spent(last)
    if jax.process_index() == 0:
      _store(run, {'step': step, **results}, said)
      gallery.store(run.workdir, pictures)
      writer.curves(step)
      report_lib.write(run.workdir / report_lib.NAME, [run.workdir])
    writer.message(writer.places())


def _results(
    run: Run, variables: Any, step: int, writer: writer_lib.Writer
) -> tuple[dict[str, Any], dict[str, dict[str, Predictions | None]]]:
  """Evaluates val and test and prints their tables."""
  chosen_on = run.selection_split
  results: dict[str, Any] = {'chosen_on': chosen_on}
  said = {}
  for split in ('val', 'test'):
    if split == 'test' and not run.config.data.test_split:
      continue
    if run.last_evaluation and run.last_evaluation[:2] == (step, split):
      # The best checkpoint is the last one, which training has just evaluated.
      results[split] = run.last_evaluation[2]
    else:
      results[split] = evaluate_split(run, variables, step, split, writer)
    said[split] = run.last_evaluation[3]
    writer.message(f'\nResults on {split}, checkpoint of step {step}')
    if split == chosen_on:
      writer.message(
          'The checkpoint was selected on this split; set config.data.holdout '
          'to select it on a held-out part of train.'
      )
    for name in run.datasets:
      table = results[split] if len(run.datasets) == 1 else results[split][name]
      writer.message(writer_lib.results_table(table, run.classes[name]))
  return results, said


def _store(
    run: Run,
    results: dict[str, Any],
    said: dict[str, dict[str, Predictions | None]],
) -> None:
  """Writes results.json, predictions.jsonl and data.json."""
  text = json.dumps(results, indent=2) + '\n'
  workdir_lib.write(run.workdir / 'results.json', text)
  lines = [
      json.dumps(line) + '\n'
      for split, by_dataset in said.items()
      for name, found in by_dataset.items()
      if found is not None
      for line in predictions.lines(
          found,
          split=split,
          dataset=name,
          classes=run.classes[name],
          source=sources.make_source(run.datasets[name], split),
      )
  ]
  workdir_lib.write(run.workdir / predictions.NAME, ''.join(lines))
  counts = {name: _counts(data) for name, data in run.datasets.items()}
  text = json.dumps(counts, indent=2) + '\n'
  workdir_lib.write(run.workdir / 'data.json', text)


def _counts(data: ConfigDict) -> dict[str, Any]:
  """Sample counts of a dataset's splits, and the samples left out."""
  splits = ['train', 'val']
  splits += ['holdout'] * bool(data.holdout) + ['test'] * bool(data.test_split)
  result = {}
  for split in splits:
    source = sources.make_source(data, split)
    labels = np.asarray(source.labels)
    result[split] = {
        'samples': len(source),
        'classes': {
            name: int((labels == i).sum())
            for i, name in enumerate(source.classes)
        },
        'unlabelled': int((labels < 0).sum()),
    }
    found = getattr(source, 'report', None)
    if found is not None:
      result[split] |= {
          key: getattr(found, key)
          for key in ('annotated', 'left_out', 'invalid_lines', 'problems')
      }
  return result
