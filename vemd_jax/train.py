"""The training program: set up, initialize or resume, train, evaluate.

Exact resumption depends on the order within the training loop:

  evaluate -> save(state, position in the data) -> next batch -> step -> log

so that a checkpoint stores the position of the batch that its state consumes
next.
"""

import collections
import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import config as config_lib
from vemd_jax import dp, evaluate, guard, optim, phases, sharding, weights
from vemd_jax import workdir as workdir_lib
from vemd_jax import writer as writer_lib
from vemd_jax.data import pipeline
from vemd_jax.progress import Clock
from vemd_jax.run import Run, set_up
from vemd_jax.state import TrainState
from vemd_jax.stopping import Stop, Stopped
from vemd_jax.window import Window


def train_and_evaluate(
    config: ConfigDict,
    workdir: epath.PathLike,
    recipe: Mapping[str, Any] | None = None,
) -> None:
  """Trains and evaluates a model, depending on `config.mode`.

  Args:
    config: config of a recipe; see `vemd_jax.config`.
    workdir: output folder of the run. Calling this again with the same
      arguments resumes an interrupted run.
    recipe: origin of the config, for the report; see `Writer.setup`.

  Raises:
    ValueError: if the config, the data or a checkpoint is invalid; names the
      key, the file or the array.
    FloatingPointError: if `config.faults` stops the run; names the step.
    Stopped: if a signal has stopped the run; a checkpoint has been saved.
  """
  workdir = epath.Path(workdir)
  with _locked(workdir), Stop() as stop:
    run = set_up(config, workdir)
    run.stop = stop
    if run.checkpoints.latest_step() is not None:
      config_lib.check_same(config, workdir)
    if config.mode != 'evaluate':
      train(run, recipe)
    if config.mode != 'train':
      evaluate.report(run)
    run.checkpoints.close()


def _locked(workdir: epath.Path) -> contextlib.AbstractContextManager:
  if jax.process_index() == 0:
    return workdir_lib.lock(workdir)
  return contextlib.nullcontext()


def train(run: Run, recipe: Mapping[str, Any] | None = None) -> None:
  """Trains to the last step.

  Args:
    run: the run, from `set_up`.
    recipe: see `train_and_evaluate`.

  Raises:
    FloatingPointError: if `config.faults` stops the run; names the step.
    Stopped: if a signal has stopped the run; a checkpoint has been saved.
  """
  limit = run.config.faults.limit
  ahead, returns = None, collections.Counter()
  while True:
    try:
      return _resume(run, ahead, recipe)
    except FloatingPointError:
      run.checkpoints.wait()
      raise
    except guard.Rewind as fault:
      run.checkpoints.wait()
      start = run.checkpoints.latest_step() or 0
      returns[start] += 1
      if returns[start] > limit:
        raise FloatingPointError(
            f'the run has returned to step {start} {limit} times, the most '
            f'that config.faults.limit allows; the last fault was at step '
            f'{fault.step}'
        ) from fault
      ahead = fault.batch + 1 - start
      logging.warning(
          'Returning to step %d, and to the data after batch %d',
          start, fault.batch,
      )  # fmt: skip


def _resume(
    run: Run, ahead: int | None, recipe: Mapping[str, Any] | None
) -> None:
  """Trains from the last checkpoint, or from step 0 if there is none.

  Args:
    run: the run.
    ahead: number of batches that the data are ahead of the step; None takes it
      from the checkpoint.
    recipe: see `train_and_evaluate`.
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
  stored = {'ahead': 0, 'evaluated': True, **(position or {})}
  if ahead is not None:
    stored['ahead'] = ahead
  if start >= run.steps and stored['evaluated']:
    logging.info('Training is complete: step %d of %d', start, run.steps)
    return

  data = _train_batches(run, start + stored['ahead'])
  with (
      writer_lib.Writer(
          run.workdir, start, stored['evaluated'], config.loggers
      ) as writer,
      contextlib.closing(data),
  ):
    if jax.process_index() == 0:
      config_lib.save(config, run.workdir / 'config.json')
      text = json.dumps(run.classes) + '\n'
      workdir_lib.write(run.workdir / 'classes.json', text)
    writer.setup(config.to_dict(), writer_lib.versions(), recipe)
    _describe_parameters(run, state)
    if len(run.phases) > 1:
      for line in phases.describe(run.phases):
        logging.info('%s', line)
    _loop(run, state, data, stored, writer)


def _loop(
    run: Run,
    state: TrainState,
    data: Iterator,
    stored: dict[str, Any],
    writer: writer_lib.Writer,
) -> None:
  """The training loop; see the module docstring for the order of its steps."""
  config, start = run.config, int(state.step)
  clock = Clock(run.steps, config.batch_size, start)
  learning_rate = optim.make_learning_rate(config.optim, run.phases)
  names = functools.partial(
      pipeline.sample_names, **_data_order(run), sampling=dp.sampling(config)
  )
  window = Window(config, run.datasets, run.classes, stored, names)

  for step in range(start, run.steps + 1):
    stopping = run.stop.at_step(step)
    every = config.eval.every
    due = step == run.steps or (every > 0 and step % every == 0)
    repeated = step == start and not stored['evaluated']
    saving = due or stopping or step % config.checkpoint.every == 0
    if saving and (step > start or repeated):
      with clock.pause():
        window.check()
        metrics = None
        if due and not stopping:
          try:
            metrics = evaluate.validate(run, state, writer)
          except Stopped:
            stopping = True
        progress = {
            **window.plain(),
            'ahead': stored['ahead'],
            # An interrupted evaluation is repeated when the run is resumed.
            'evaluated': metrics is not None or not due,
        }
        _save(run, state, progress, metrics, repeated)
    if stopping:
      run.checkpoints.wait()
      raise Stopped(f'at step {step} of {run.steps}')
    if step == run.steps:
      break

    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      with clock.waiting():
        name, batch = next(data)
      batch.pop('unreadable', None)  # The step counts them by their mask.
      batch = sharding.put_batch(batch, run.mesh)
      with jax.transfer_guard('disallow'):
        state, metrics, scalars = run.train_step(state, batch, dataset=name)
    window.add(step, name, metrics, scalars)
    _profile(run, step)

    done = step + 1
    if done % config.log_every == 0 or done == run.steps:
      run.checkpoints.check()
      scalars = window.compute()
      if run.accountant:
        scalars['epsilon'] = run.accountant.epsilon(done)
      rates = clock.report(done)
      writer.scalars(
          done,
          'train',
          {
              **scalars,
              'learning_rate': learning_rate(step),
              **rates,
              **writer_lib.memory(),
          },
      )
      writer.progress(done, run.steps, scalars, rates)
  run.checkpoints.wait()


def _save(
    run: Run,
    state: TrainState,
    progress: dict[str, Any],
    metrics: dict[str, Any] | None,
    repeated: bool,
) -> None:
  # The best checkpoint is selected within the last phase: earlier phases have
  # other loss weights, so their loss is not comparable, and their metrics do
  # not describe the final objective.
  if int(state.step) <= run.phases[-1].start:
    metrics = None
  run.checkpoints.save(
      state, {**_position(run), **progress}, metrics, replace=repeated
  )


def _describe_parameters(run: Run, state: TrainState) -> None:
  """Logs the size of each module and writes the full table to a file."""
  params = {**state.params, **state.frozen}
  for name, part in params.items():
    count = sum(x.size for x in jax.tree.leaves(part))
    frozen = ' (frozen)' if name in state.frozen else ''
    logging.info('%15s parameters in %s%s', f'{count:,}', name, frozen)
  if run.mesh.size > 1:
    for line in sharding.describe(run.target, run.mesh):
      logging.info('%s', line)
  table = parameter_overview.get_parameter_overview(
      params, include_stats='sharding'
  )
  if jax.process_index() == 0:
    (run.workdir / 'parameters.txt').write_text(table + '\n')


def _train_batches(run: Run, start: int) -> Iterator:
  sampling = dp.sampling(run.config)
  count = sampling.rows if sampling else run.config.batch_size
  rows = sharding.local_rows(run.mesh, count)
  return pipeline.train_batches(
      **_data_order(run), start_step=start, rows=rows, sampling=sampling
  )


def _data_order(run: Run) -> dict[str, Any]:
  """The arguments that determine which samples a batch has."""
  return {
      'datasets': run.datasets,
      'batch_size': run.config.batch_size,
      'seed': run.config.seed,
  }


def _position(run: Run) -> dict[str, Any]:
  """The settings besides the step that determine the order of the data."""
  return {**_data_order(run), 'datasets': list(run.datasets)}


def _check_position(run: Run, position: dict[str, Any] | None) -> None:
  if position is None:
    return
  for key, now in _position(run).items():
    if position[key] != now:
      raise ValueError(
          f'the run was started with {key} {position[key]}, now it is {now}; '
          'it cannot be resumed with the same order of the data'
      )
  processes = position.get('processes', 1)
  if processes != 1:
    # Stored by earlier versions, in which each process had its own shard.
    raise ValueError(
        f'the run was started with {processes} processes by an earlier version '
        'of vemd_jax, with another order of the data; expected a run of this '
        'version, or config.checkpoint.init_from with its workdir'
    )


def _profile(run: Run, step: int) -> None:
  first, count = run.config.profile.start, run.config.profile.steps
  if count and step == first:
    jax.profiler.start_trace(str(run.workdir / 'profile'))
  if count and step == first + count:
    jax.profiler.stop_trace()
