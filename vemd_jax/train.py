"""The story of a run: set up, begin or go on, train, report.

The order within the loop is fixed, since exact resumption rests on it:

  evaluate -> save(state, position in the data) -> next batch -> step -> log

so a checkpoint points at the batch that its state will consume.
"""

import contextlib
import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vemd_jax import (
  checkpoint,
  evaluate,
  frozen_vit,
  losses,
  optim,
  sharding,
  viz,
)
from vemd_jax import (
  config as config_lib,
)
from vemd_jax import (
  state as state_lib,
)
from vemd_jax import (
  step as step_lib,
)
from vemd_jax import (
  writer as writer_lib,
)
from vemd_jax.data import pipeline
from vemd_jax.models.vemd import VEMD
from vemd_jax.state import TrainState


@dataclasses.dataclass
class Run:
  """What `set_up` has made of the config."""

  config: ConfigDict
  workdir: epath.Path
  mesh: Mesh
  datasets: dict[str, ConfigDict]
  classes: dict[str, tuple[str, ...]]
  model: nn.Module
  steps: int
  train_step: Callable
  eval_step: Callable
  create: Callable[[], TrainState]
  target: TrainState
  checkpoints: checkpoint.Checkpoints


def train_and_evaluate(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Trains a model and reports on it, as `config.mode` says.

  Args:
    config: a recipe; see `vemd_jax.config`.
    workdir: where the run keeps what it makes. A run that was stopped goes on
      when it is called again with the same arguments.

  Raises:
    ValueError: for a config, data or a checkpoint that cannot be used; the
      message names the key, the file or the array.
    FloatingPointError: if the loss is not finite; names the step.
  """
  run = set_up(config, epath.Path(workdir))
  finished = True
  if config.mode != 'evaluate':
    finished = train(run)
  if config.mode != 'train' and finished:
    report(run)
  run.checkpoints.close()


# ------------------------------------------------------------------ set up


def set_up(config: ConfigDict, workdir: epath.Path) -> Run:
  """Opens the data, builds the model and the steps, computes shardings."""
  config_lib.check(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  datasets = config_lib.datasets(config)
  sources = {n: pipeline.make_source(d, 'train') for n, d in datasets.items()}
  classes = {n: tuple(s.classes) for n, s in sources.items()}
  for name, names in classes.items():
    logging.info('%s: classes in order: %s', name, ', '.join(names) or 'none')

  local = sharding.local_batch_size(config.batch_size, mesh, 'batch_size')
  epoch = pipeline.steps_per_epoch(datasets, local, jax.process_count())
  steps = config.steps or math.ceil(config.epochs * epoch)

  model = VEMD(
      **config.model.to_dict(),
      classes=tuple((n, len(c)) for n, c in classes.items()),
  )
  optimizer = optim.make_optimizer(config.optim, steps)
  terms = {
      name: losses.prepare(_with_class_weights(config, source))
      for name, source in sources.items()
  }
  make_state = functools.partial(
      state_lib.create,
      model,
      optimizer,
      seed=config.seed,
      frozen=config.optim.frozen,
      ema=config.optim.ema_decay > 0,
      groups=tuple(datasets) if config.optim.per_dataset else ('all',),
  )
  # Any dataset's batch will do: the model makes the heads of all of them.
  example = step_lib.example_batch(next(iter(datasets.values())))
  shapes = jax.eval_shape(make_state, example)
  shardings = sharding.state_shardings(
      mesh, shapes, config.mesh.min_shard_size
  )
  target = jax.tree.map(
      lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
      shapes,
      shardings,
  )
  _set_heatmap_size(model, shapes, datasets, example)

  train_step = step_lib.make_train_step(
      model,
      optimizer,
      terms,
      seed=config.seed,
      sigma=config.data.sigma,
      accumulation=config.optim.accumulation,
      ema_decay=config.optim.ema_decay,
  )
  return Run(
      config=config,
      workdir=workdir,
      mesh=mesh,
      datasets=datasets,
      classes=classes,
      model=model,
      steps=steps,
      train_step=jax.jit(
          train_step,
          static_argnames='dataset',
          donate_argnames='state',
          out_shardings=(shardings, None, None),
      ),
      eval_step=jax.jit(
          step_lib.make_eval_step(model, terms, sigma=config.data.sigma),
          static_argnames='dataset',
      ),
      # The parameters are born where they belong.
      create=functools.partial(_create, make_state, shardings, example),
      target=target,
      checkpoints=checkpoint.Checkpoints(workdir, config.checkpoint),
  )


def _create(make_state, shardings, example) -> TrainState:
  # Run once, and on the CPU compiling is all that it costs.
  options = None
  if jax.default_backend() == 'cpu':
    options = {
        'xla_backend_optimization_level': 0,
        'xla_llvm_disable_expensive_passes': True,
    }
  return jax.jit(
      make_state, out_shardings=shardings, compiler_options=options
  )(example)


def _with_class_weights(config: ConfigDict, source: Any) -> dict[str, dict]:
  """The active terms, class weights written out as numbers."""
  terms = config_lib.active_losses(config)
  for name, term in terms.items():
    given = term['kwargs'].get('class_weights')
    if not isinstance(given, str):
      continue
    count = len(source.classes)
    if given == 'balanced':
      counts = np.bincount(source.labels[source.labels >= 0], minlength=count)
      weights = counts.sum() / (count * np.maximum(counts, 1))
    else:
      weights = [float(w) for w in given.split(',') if w]
      if weights and len(weights) != count:
        raise ValueError(
            f'config.losses.{name}.kwargs.class_weights is {given!r}, expected '
            f'{count} numbers, for {", ".join(source.classes)}'
        )
    term['kwargs']['class_weights'] = tuple(float(w) for w in weights) or None
  return terms


def _set_heatmap_size(model, shapes, datasets, example) -> None:
  """Tells the data which size of heatmaps the model decodes."""
  outputs = jax.eval_shape(
      lambda v, b: model.apply(
          v, b, dataset=model.classes[0][0], train=False
      ),
      shapes.variables(),
      example,
  )
  sides = {
      part.heatmap_logits.shape[-2]
      for part in (outputs.body, outputs.face)
      if part is not None and part.heatmap_logits is not None
  }
  for data in datasets.values():
    with data.unlocked():
      if not sides:
        data.targets = 'device'  # Nothing for the host to render.
        continue
      (side,) = sides
      if data.heatmap_size not in (0, side):
        raise ValueError(
            f'config.data.heatmap_size is {data.heatmap_size}, the model '
            f'decodes {side} (0 takes it from the model)'
        )
      data.heatmap_size = side


# ------------------------------------------------------------------- train


def train(run: Run) -> bool:
  """Trains to the last step, or until the machine is taken away.

  Args:
    run: of `set_up`.

  Returns:
    Whether the last step was reached.
  """
  config = run.config
  state, position = checkpoint.initialise(
      run.create, run.target, run.checkpoints, config
  )
  _check_cached_features(run, state)
  start = int(state.step)
  _check_position(run, position)
  if start >= run.steps:
    logging.info('Training is complete: step %d of %d', start, run.steps)
    return True

  with writer_lib.Writer(run.workdir, resume_step=start) as writer:
    writer.write_config(config, writer_lib.versions())
    if jax.process_index() == 0:
      text = json.dumps(run.classes) + '\n'
      (run.workdir / 'classes.json').write_text(text)
    _describe_parameters(run, state)
    return _loop(run, state, start, writer)


def _loop(
    run: Run, state: TrainState, start: int, writer: writer_lib.Writer
) -> bool:
  """The steps, in the order that the top of this file gives."""
  config = run.config
  batches = _train_batches(run, start)
  clock = writer_lib.Clock(run.steps, config.batch_size, start)
  schedule = optim.make_schedule(config.optim, run.steps)
  window = _Window()
  stop = _StopSignal()

  for step in range(start, run.steps):
    if step > start:
      preempted = stop.given or run.checkpoints.reached_preemption(step)
      due = config.eval.every and step % config.eval.every == 0
      if due or preempted or step % config.checkpoint.every == 0:
        with clock.pause():
          window.check()
          metrics = _validate(run, state, writer) if due else None
          run.checkpoints.save(state, _position(run), metrics)
      if preempted:
        logging.warning('Asked to stop: saved step %d', step)
        run.checkpoints.wait()
        return False

    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      name, batch = next(batches)
      _check_readable(window, batch, run.datasets[name])
      batch = sharding.put_batch(batch, run.mesh)
      with jax.transfer_guard('disallow'):
        state, metrics, scalars = run.train_step(state, batch, dataset=name)
    window.add(step, name, metrics, scalars)
    _profile(run, step)

    done = step + 1
    if done % config.log_every == 0 or done == run.steps:
      scalars = window.compute(run)
      rates = clock.report(done)
      writer.scalars(
          done,
          'train',
          {**scalars, 'learning_rate': float(schedule(step)), **rates},
      )
      writer.progress(done, run.steps, scalars, rates)

  metrics = _validate(run, state, writer)
  run.checkpoints.save(state, _position(run), metrics)
  run.checkpoints.wait()
  return True


def _check_cached_features(run: Run, state: TrainState) -> None:
  params = {**state.params, **state.frozen}.get('vit')
  frozen_vit.check(run.config, run.datasets, params)


def _describe_parameters(run: Run, state: TrainState) -> None:
  """Logs the size of each part; the table of all arrays goes to a file."""
  params = {**state.params, **state.frozen}
  for name, part in params.items():
    count = sum(x.size for x in jax.tree.leaves(part))
    frozen = ' (frozen)' if name in state.frozen else ''
    logging.info('%15s parameters in %s%s', f'{count:,}', name, frozen)
  table = parameter_overview.get_parameter_overview(
      params, include_stats='sharding'
  )
  if jax.process_index() == 0:
    (run.workdir / 'parameters.txt').write_text(table + '\n')


def _train_batches(run: Run, start: int) -> Iterator:
  return pipeline.train_batches(
      run.datasets,
      run.config.batch_size // jax.process_count(),
      seed=run.config.seed,
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
  )


def _position(run: Run) -> dict[str, Any]:
  """What the order of the data depends on, besides the step."""
  return {
      'seed': run.config.seed,
      'batch_size': run.config.batch_size,
      'processes': jax.process_count(),
      'datasets': list(run.datasets),
  }


def _check_position(run: Run, position: dict[str, Any] | None) -> None:
  if position is None:
    return
  for key, now in _position(run).items():
    if position[key] != now:
      raise ValueError(
          f'the run was started with {key} {position[key]}, now it is {now}; '
          'it cannot go on in the same order of the data'
      )


class _Window:
  """What has been measured since the last progress line."""

  def __init__(self):
    self._metrics, self._steps = {}, []
    self.unreadable, self.read = 0, 0

  def add(self, step: int, name: str, metrics, scalars) -> None:
    self._metrics.setdefault(name, []).append(metrics)
    self._steps.append((step, name, scalars))

  def check(self) -> None:
    """Stops the run if a loss since the last line was not finite."""
    for step, name, scalars in jax.device_get(self._steps):
      if not all(np.isfinite(value) for value in scalars.values()):
        values = ', '.join(f'{k} {v}' for k, v in scalars.items())
        raise FloatingPointError(
            f'not finite at step {step}, dataset {name}: {values}; the last '
            'checkpoint is from before it'
        )

  def compute(self, run: Run) -> dict[str, Any]:
    """The window's metrics; begins a new one."""
    self.check()
    # Added up here: so many small sums would keep the device waiting.
    result = _join({
        name: functools.reduce(
            lambda a, b: a.merge(b), jax.device_get(metrics)
        ).compute(run.classes[name])
        for name, metrics in self._metrics.items()
    })
    last = jax.device_get(self._steps[-1][2])
    result.update({k: float(v) for k, v in last.items() if k != 'loss'})
    self._metrics, self._steps = {}, []
    return result


def _check_readable(window: _Window, batch: dict, data: ConfigDict) -> None:
  """Counts unreadable samples; too large a share of them stops the run."""
  unreadable = batch.pop('unreadable', None)
  if unreadable is None:
    return
  window.unreadable += int(unreadable.sum())
  window.read += len(unreadable)
  # A few at the very beginning say little about the share.
  if window.unreadable > data.max_unreadable * max(window.read, 100):
    raise ValueError(
        f'{window.unreadable} of {window.read} samples of {data.name} could '
        f'not be read, more than config.data.max_unreadable = '
        f'{data.max_unreadable} allows; the log names them'
    )


class _StopSignal:
  """Turns SIGTERM into a saved checkpoint instead of a lost run."""

  def __init__(self):
    self.given = False
    # With jax.distributed, its own service handles the signal and all
    # processes agree on the step.
    if jax.process_count() == 1:
      with contextlib.suppress(ValueError):  # Not in the main thread.
        signal.signal(signal.SIGTERM, self._note)

  def _note(self, *_) -> None:
    self.given = True


def _profile(run: Run, step: int) -> None:
  first, count = run.config.profile.start, run.config.profile.steps
  if count and step == first:
    jax.profiler.start_trace(str(run.workdir / 'profile'))
  if count and step == first + count:
    jax.profiler.stop_trace()


# ------------------------------------------------------- evaluate and report


def _validate(run: Run, state: TrainState, writer) -> dict[str, Any]:
  """Evaluates the split that chooses the checkpoint."""
  variables = state.variables(averaged=True)
  split = 'holdout' if run.config.data.holdout else 'val'
  return _evaluate(run, variables, int(state.step), split, writer)


def _evaluate(
    run: Run, variables, step: int, split: str, writer
) -> dict[str, Any]:
  """Evaluates a split of all datasets, writes scalars and pictures."""
  config = run.config
  local = sharding.local_batch_size(
      config.eval.batch_size, run.mesh, 'eval.batch_size'
  )
  results = {}
  for name, data in run.datasets.items():
    batches = pipeline.eval_batches(
        data, split, local, jax.process_index(), jax.process_count()
    )
    metrics, (outputs, batch) = evaluate.evaluate(
        run.eval_step,
        variables,
        batches,
        mesh=run.mesh,
        dataset=name,
        step=step,
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
  joined = _join(results)
  writer.scalars(step, split, joined)
  writer.message(
      f'{split} at step {step}: '
      + '  '.join(
          f'{key} {joined[key]:.4f}'
          for key in ('loss', 'accuracy', 'macro_f1')
          if key in joined
      )
  )
  return joined


def _join(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """One dataset's metrics as they are; of several, also their means."""
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
  """Evaluates the best checkpoint on all held-out splits, prints a table."""
  step = run.checkpoints.best_step()
  if step is None:
    raise FileNotFoundError(f'no checkpoint in {run.checkpoints.directory}')
  state, _ = run.checkpoints.restore(run.target, step)
  _check_cached_features(run, state)
  variables = state.variables(averaged=True)
  with writer_lib.Writer(run.workdir, resume_step=None) as writer:
    results = _report(run, variables, step, writer)
  if jax.process_index() == 0:
    (run.workdir / 'results.json').write_text(
        json.dumps({'step': step, **results}, indent=2)
        + '\n'
    )


def _report(run: Run, variables, step: int, writer) -> dict[str, Any]:
  """Evaluates val and test and prints their tables."""
  chosen_on = 'holdout' if run.config.data.holdout else 'val'
  results = {'chosen_on': chosen_on}
  for split in ('val', 'test'):
    if split == 'test' and not run.config.data.test_split:
      continue
    results[split] = _evaluate(run, variables, step, split, writer)
    writer.message(f'\nResults on {split}, checkpoint of step {step}')
    if split == chosen_on:
      writer.message(
          'The checkpoint was chosen on this very split; set '
          'config.data.holdout to choose it on a part of train.'
      )
    for name in run.datasets:
      table = results[split] if len(run.datasets) == 1 else results[split][name]
      writer.message(writer_lib.results_table(table, run.classes[name]))
  writer.message(writer.places())
  return results
