"""Builds the parts of a run: data, model, jitted steps, state shardings."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vemd_jax import checkpoint, dp, guard, losses, optim, sharding, stopping
from vemd_jax import config as config_lib
from vemd_jax import phases as phases_lib
from vemd_jax import rng as rng_lib
from vemd_jax import state as state_lib
from vemd_jax import step as step_lib
from vemd_jax.data import pipeline, poisson, sources, vit_features
from vemd_jax.models import layers, vit
from vemd_jax.models.vemd import VEMD
from vemd_jax.state import TrainState


@dataclasses.dataclass
class Run:
  """The parts of a run, built by `set_up`.

  Attributes:
    config: the whole config.
    workdir: output folder of the run.
    mesh: device mesh, see `sharding.make_mesh`.
    datasets: data settings by dataset name.
    classes: class names by dataset name.
    model: VEMD.
    steps: number of training steps of the whole run.
    phases: phases of the training.
    train_step: jitted function from `step.make_train_step`.
    eval_step: jitted function from `step.make_eval_step`.
    create: creates an initial state, sharded over the mesh.
    target: shapes, dtypes and shardings of the state.
    checkpoints: checkpoints of the workdir.
    accountant: of differentially private training, else None.
    stop: tells whether the run was asked to stop.
    last_evaluation: (step, split, metrics, predictions by dataset) of the last
      split evaluated.
  """

  config: ConfigDict
  workdir: epath.Path
  mesh: Mesh
  datasets: dict[str, ConfigDict]
  classes: dict[str, tuple[str, ...]]
  model: nn.Module
  steps: int
  phases: tuple[phases_lib.Phase, ...]
  train_step: Callable
  eval_step: Callable
  create: Callable[[], TrainState]
  target: TrainState
  checkpoints: checkpoint.Checkpoints
  accountant: dp.Accountant | None = None
  stop: stopping.Stop = dataclasses.field(default_factory=stopping.Stop)
  last_evaluation: tuple[int, str, dict, dict] | None = None

  @property
  def selection_split(self) -> str:
    """The split that is used for checkpoint selection."""
    return 'holdout' if self.config.data.holdout else 'val'

  def check_cached_features(self, state: TrainState) -> None:
    """Checks that cached ViT features were computed with the state's ViT.

    Args:
      state: state of this run.

    Raises:
      ValueError: if they were not; names the setting that differs.
    """
    cached = [data for data in self.datasets.values() if data.vit_dim]
    if not cached:
      return
    params = {**state.params, **state.frozen}.get('vit')
    wanted = vit.description(self.config.model, params)
    for data in cached:
      vit_features.features(data.root, **wanted)


class Experiment(NamedTuple):
  """Model, data and loss as pure functions and arrays, for experiments.

  Attributes:
    model: VEMD, a Linen module.
    variables: initial variables for `model.apply`.
    batch: the first training batch, with labels and keypoints.
    loss: `(variables, batch, rng) -> scalar`, the weighted sum of the config's
      loss terms in training mode at step 0; differentiable in `variables`.
  """

  model: nn.Module
  variables: dict[str, Any]
  batch: dict[str, jax.Array]
  loss: Callable[..., jax.Array]


def build(config: ConfigDict) -> Experiment:
  """Builds the model, initial variables, a batch and the loss of a config.

  Args:
    config: config of a recipe.

  Returns:
    The parts. In a mixture, batch and loss belong to the dataset that is
    sampled first.

  Raises:
    ValueError: if the config or the data are invalid.
    FileNotFoundError: if the data are missing.
  """
  config_lib.check(config)
  config = config.copy_and_resolve_references()
  datasets = config_lib.datasets(config)
  opened = {n: sources.make_source(d, 'train') for n, d in datasets.items()}
  model = _make_model(config, opened)
  example = step_lib.example_batch(next(iter(datasets.values())))
  keys = {'params': rng_lib.named(config.seed, 'params')}
  variables = jax.jit(
      functools.partial(model.init, dataset=model.classes[0][0], train=False)
  )(keys, example)
  _set_heatmap_size(model, variables, datasets, example)
  batches = pipeline.train_batches(
      datasets, config.batch_size, seed=config.seed
  )
  name, batch = next(iter(batches))
  batch = {k: jnp.asarray(v) for k, v in batch.items() if k != 'unreadable'}
  terms = losses.prepare(_with_class_weights(config, opened[name]))

  def loss(variables, batch, rng):
    outputs, _ = model.apply(
        variables,
        batch,
        dataset=name,
        train=True,
        rngs={s: jax.random.fold_in(rng, i) for i, s in enumerate(streams)},
        mutable=['batch_stats'],
    )
    batch = step_lib.add_targets(batch, outputs, config.data.sigma)
    return losses.total(outputs, batch, rng, terms, 0)[0]

  streams = rng_lib.STREAMS
  return Experiment(model, variables, batch, loss)


def _make_model(config: ConfigDict, opened: dict[str, Any]) -> VEMD:
  return VEMD(
      **config.model.to_dict(),
      classes=tuple((n, len(s.classes)) for n, s in opened.items()),
  )


def training_steps(config: ConfigDict, epoch: int) -> int:
  """Length of training in steps.

  Args:
    config: the whole config.
    epoch: number of steps per epoch.

  Returns:
    The number of steps.
  """
  return config.steps or max(
      math.ceil(config.epochs * epoch), config.min_steps
  )


def set_up(config: ConfigDict, workdir: epath.Path) -> Run:
  """Opens the data, builds the model and the steps, computes shardings.

  Args:
    config: the whole config.
    workdir: output folder of the run.

  Returns:
    The run; its state is neither created nor restored yet.

  Raises:
    ValueError: if the config or the data are invalid.
    FileNotFoundError: if the data are missing.
  """
  config_lib.check(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  datasets = config_lib.datasets(config)
  opened = {n: sources.make_source(d, 'train') for n, d in datasets.items()}
  for data in datasets.values():
    # Opened now, so that errors in the other splits are found before training.
    for split in ('holdout' if config.data.holdout else 'val', 'val', 'test'):
      if split != 'test' or config.data.test_split:
        sources.make_source(data, split)
  classes = {n: tuple(s.classes) for n, s in opened.items()}
  for name, names in classes.items():
    logging.info('%s: classes in order: %s', name, ', '.join(names) or 'none')

  sharding.check_batch_size(config.batch_size, mesh, 'batch_size')
  epoch = pipeline.steps_per_epoch(datasets, config.batch_size)
  steps = training_steps(config, epoch)

  return Run(
      config=config,
      workdir=workdir,
      mesh=mesh,
      datasets=datasets,
      classes=classes,
      steps=steps,
      checkpoints=checkpoint.Checkpoints(workdir, config.checkpoint),
      accountant=_accountant(config, opened),
      **make_parts(config, mesh, datasets, opened, steps)._asdict(),
  )


class Parts(NamedTuple):
  """What a run computes; the fields are those of `Run`."""

  model: nn.Module
  phases: tuple[phases_lib.Phase, ...]
  train_step: Callable
  eval_step: Callable
  create: Callable[[], TrainState]
  target: TrainState


def make_parts(
    config: ConfigDict,
    mesh: Mesh,
    datasets: dict[str, ConfigDict],
    opened: dict[str, Any],
    steps: int,
) -> Parts:
  """Builds the model and the steps, and computes shardings, without data.

  Args:
    config: the whole config, checked.
    mesh: mesh of the run; its devices need not exist (`vemd_jax.aot`).
    datasets: data settings by dataset name; their heatmap size is set here.
    opened: training split by dataset name, of which only `classes` and `labels`
      are read.
    steps: number of training steps of the whole run.

  Returns:
    The parts.

  Raises:
    ValueError: if the config is invalid.
  """
  model = _make_model(config, opened)
  phases = phases_lib.parse(config.phases, steps)
  optimizer = optim.make_phased_optimizer(config.optim, phases)
  terms = {
      name: losses.prepare(_with_class_weights(config, source))
      for name, source in opened.items()
  }
  make_state = functools.partial(
      state_lib.create,
      model,
      optimizer,
      seed=config.seed,
      frozen=config.optim.frozen,
      ema=config.optim.ema_decay > 0,
      groups=tuple(datasets) if config.optim.per_dataset else ('all',),
      frozen_dtype=layers.compute_dtype(config.model.dtype),
      guard=guard.initial(config.faults, datasets),
  )
  # A batch of any dataset works: initialization creates the heads of all.
  example = step_lib.example_batch(next(iter(datasets.values())))
  shapes = jax.eval_shape(make_state, example)
  phases_lib.check_modules(phases, tuple(shapes.params))
  rule = config.mesh.min_shard_size, config.mesh.shard_moments
  shardings = sharding.state_shardings(mesh, shapes, *rule)
  place = sharding.gradient_shardings(mesh, shapes.params, *rule)
  target = jax.tree.map(
      lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
      shapes,
      shardings,
  )
  _set_heatmap_size(model, shapes.variables(), datasets, example)

  train_step = step_lib.make_train_step(
      model,
      optimizer,
      terms,
      phases,
      seed=config.seed,
      sigma=config.data.sigma,
      accumulation=config.optim.accumulation,
      ema_decay=config.optim.ema_decay,
      faults=config.faults,
      place=lambda grads: jax.lax.with_sharding_constraint(grads, place),
      private=dp.settings(config),
  )
  return Parts(
      model=model,
      phases=phases,
      train_step=jax.jit(
          sharding.constrained(mesh, train_step),
          static_argnames='dataset',
          donate_argnames='state',
          out_shardings=(shardings, None, None),
      ),
      eval_step=jax.jit(
          sharding.constrained(
              mesh,
              step_lib.make_eval_step(model, terms, sigma=config.data.sigma),
          ),
          static_argnames='dataset',
      ),
      # Initialized directly with the shardings of the run.
      create=functools.partial(_create, make_state, shardings, example),
      target=target,
  )


def _accountant(config: ConfigDict, opened: dict) -> dp.Accountant | None:
  if dp.settings(config) is None:
    return None
  (source,) = opened.values()
  return dp.Accountant(config, len(poisson.units(source, config.dp.unit)))


def _create(make_state, shardings, example) -> TrainState:
  # Initialization runs once, and on the CPU its cost is mostly compilation.
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
  """The active loss terms, with class weights resolved to numbers."""
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
            f'{count} numbers, one each for {", ".join(source.classes)}'
        )
    term['kwargs']['class_weights'] = tuple(float(w) for w in weights) or None
  return terms


def _set_heatmap_size(model, variables, datasets, example) -> None:
  """Sets the size of the target heatmaps to that of the model's decoders."""
  outputs = jax.eval_shape(
      lambda v, b: model.apply(
          v, b, dataset=model.classes[0][0], train=False
      ),
      variables,
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
        data.targets = 'device'  # The model decodes no heatmaps.
        continue
      (side,) = sides
      if data.heatmap_size not in (0, side):
        raise ValueError(
            f'config.data.heatmap_size is {data.heatmap_size}, but the model '
            f'decodes {side} (0 uses the size of the model)'
        )
      data.heatmap_size = side
