"""The training program: set up, initialize or resume, train, evaluate.

Exact resumption depends on the order within the training loop:

  evaluate -> save(state, position in the data) -> next batch -> step -> log

so that a checkpoint stores the position of the batch that its state consumes
next.
"""

import contextlib
import functools
import json
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import config as config_lib
from vemd_jax import evaluate, optim, phases, sharding, weights
from vemd_jax import writer as writer_lib
from vemd_jax.data import pipeline
from vemd_jax.run import Run, set_up
from vemd_jax.state import TrainState


def train_and_evaluate(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Trains and evaluates a model, depending on `config.mode`.

  Args:
    config: config of a recipe; see `vemd_jax.config`.
    workdir: output folder of the run. Calling this again with the same
      arguments resumes an interrupted run.

  Raises:
    ValueError: if the config, the data or a checkpoint is invalid; names the
      key, the file or the array.
    FloatingPointError: if the loss is not finite; names the step.
  """
  run = set_up(config, epath.Path(workdir))
  finished = True
  if config.mode != 'evaluate':
    finished = train(run)
  if config.mode != 'train' and finished:
    evaluate.report(run)
  run.checkpoints.close()


def train(run: Run) -> bool:
  """Trains to the last step, or until the run is preempted.

  Args:
    run: the run, from `set_up`.

  Returns:
    Whether the last step was reached.
  """
  config = run.config
  state, position = weights.initialise(
      run.create,
      run.target,
      run.checkpoints,
      config.checkpoint,
      run.classes,
  )
  run.check_cached_features(state)
  start = int(state.step)
  _check_position(run, position)
  if start >= run.steps:
    logging.info('Training is complete: step %d of %d', start, run.steps)
    return True

  with writer_lib.Writer(run.workdir, resume_step=start) as writer:
    if jax.process_index() == 0:
      config_lib.save(config, run.workdir / 'config.json')
      text = json.dumps(run.classes) + '\n'
      (run.workdir / 'classes.json').write_text(text)
    writer.setup(config.to_dict(), writer_lib.versions())
    _describe_parameters(run, state)
    if len(run.phases) > 1:
      for line in phases.describe(run.phases):
        logging.info('%s', line)
    return _loop(run, state, start, writer)


def _loop(
    run: Run, state: TrainState, start: int, writer: writer_lib.Writer
) -> bool:
  """The training loop; see the module docstring for the order of its steps."""
  config = run.config
  batches = _train_batches(run, start)
  clock = writer_lib.Clock(run.steps, config.batch_size, start)
  window = _Window()
  stop = _StopSignal()

  for step in range(start, run.steps):
    if step > start:
      preempted = stop.given or run.checkpoints.reached_preemption(step)
      due = config.eval.every and step % config.eval.every == 0
      if due or preempted or step % config.checkpoint.every == 0:
        with clock.pause():
          window.check()
          metrics = evaluate.validate(run, state, writer) if due else None
          _save(run, state, metrics)
      if preempted:
        logging.warning('Preempted: saved a checkpoint at step %d', step)
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
          {
              **scalars,
              'learning_rate': optim.learning_rate_at(
                  config.optim, run.phases, step
              ),
              **rates,
          },
      )
      writer.progress(done, run.steps, scalars, rates)

  metrics = evaluate.validate(run, state, writer)
  _save(run, state, metrics)
  run.checkpoints.wait()
  return True


def _save(
    run: Run, state: TrainState, metrics: dict[str, Any] | None
) -> None:
  # The best checkpoint is chosen within the last phase: of other phases the
  # loss is another one, and the metrics are not yet those that count.
  if int(state.step) <= run.phases[-1].start:
    metrics = None
  run.checkpoints.save(state, _position(run), metrics)


def _describe_parameters(run: Run, state: TrainState) -> None:
  """Logs the size of each module and writes the full table to a file."""
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
  """The settings besides the step that determine the order of the data."""
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
          'it cannot be resumed with the same order of the data'
      )


class _Window:
  """Metrics accumulated since the last progress line."""

  def __init__(self):
    self._metrics, self._steps = {}, []
    self.unreadable, self.read = 0, 0

  def add(self, step: int, name: str, metrics, scalars) -> None:
    self._metrics.setdefault(name, []).append(metrics)
    self._steps.append((step, name, scalars))

  def check(self) -> None:
    """Raises FloatingPointError if a scalar in the window is not finite."""
    for step, name, scalars in jax.device_get(self._steps):
      if not all(np.isfinite(value) for value in scalars.values()):
        values = ', '.join(f'{k} {v}' for k, v in scalars.items())
        raise FloatingPointError(
            f'not finite at step {step}, dataset {name}: {values}; the last '
            'checkpoint is from an earlier step'
        )

  def compute(self, run: Run) -> dict[str, Any]:
    """Computes the metrics of the window and resets it."""
    self.check()
    # Summed on the host, which avoids dispatching many tiny device operations.
    result = evaluate.join({
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
  """Counts unreadable samples; raises if their share is too large."""
  unreadable = batch.pop('unreadable', None)
  if unreadable is None:
    return
  window.unreadable += int(unreadable.sum())
  window.read += len(unreadable)
  # The share of the first few samples is too noisy to act on.
  if window.unreadable > data.max_unreadable * max(window.read, 100):
    raise ValueError(
        f'{window.unreadable} of {window.read} samples of {data.name} could '
        f'not be read, more than config.data.max_unreadable = '
        f'{data.max_unreadable} allows; the log names them'
    )


class _StopSignal:
  """Records SIGTERM, so that the loop can save a checkpoint and stop."""

  def __init__(self):
    self.given = False
    # With jax.distributed, JAX's preemption service handles the signal and
    # synchronizes the step over processes.
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
