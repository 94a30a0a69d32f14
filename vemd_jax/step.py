"""The training step and the evaluation step, as pure functions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from vemd_jax import dp as dp_lib
from vemd_jax import guard, losses, rng, skeletons
from vemd_jax import phases as phases_lib
from vemd_jax.data import heatmaps
from vemd_jax.metrics import Metrics
from vemd_jax.models.outputs import Outputs
from vemd_jax.state import TrainState

Batch = dict[str, jax.Array]


def example_batch(data: ConfigDict, batch_size: int = 1) -> Batch:
  """A batch of zeros with the shapes of the data.

  Args:
    data: `config.data`.
    batch_size: number of samples.

  Returns:
    The inputs of the model. Cached ViT features are left out, so that the
    parameters of the ViT are created, too: prediction on new images needs them.
  """
  b, t, side = batch_size, data.frames, data.image_size
  batch = {
      'image': jnp.zeros((b, t, side, side, 3), jnp.uint8),
      'mask': jnp.ones((b,), bool),
  }
  if data.audio_frames:
    batch['audio'] = jnp.zeros((b, data.audio_frames, data.audio_dim))
    batch['audio_mask'] = jnp.ones((b,), bool)
  if data.text_tokens:
    batch['text_embedding'] = jnp.zeros((b, data.text_tokens, data.text_dim))
    batch['text_mask'] = jnp.ones((b,), bool)
  return batch


def add_targets(batch: Batch, outputs: Outputs, sigma: float) -> Batch:
  """Renders the target heatmaps that the data pipeline has not rendered.

  Args:
    batch: batch with keypoints in image pixels.
    outputs: model outputs, which determine the parts and the heatmap size.
    sigma: width of a limb in heatmap pixels.

  Returns:
    The batch with `body_heatmap` and `face_heatmap` for the decoded parts.
  """
  batch = dict(batch)
  for part in ('body', 'face'):
    structure = getattr(outputs, part)
    if structure is None or structure.heatmap_logits is None:
      continue
    if f'{part}_heatmap' not in batch and f'{part}_keypoints' in batch:
      batch[f'{part}_heatmap'] = heatmaps.render_jax(
          batch[f'{part}_keypoints'],
          batch[f'{part}_mask'],
          skeletons.HEATMAP_LIMBS[part],
          image_size=batch['image'].shape[2:4],
          heatmap_size=structure.heatmap_logits.shape[-3:-1],
          sigma=sigma,
      )
  return batch


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    terms: Mapping[str, tuple],
    phases: Sequence[phases_lib.Phase],
    *,
    seed: int,
    sigma: float = 1.0,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    faults: ConfigDict | None = None,
    place: Callable[[Any], Any] = lambda grads: grads,
    private: dp_lib.Private | None = None,
) -> Callable[..., tuple[TrainState, Metrics, dict[str, jax.Array]]]:
  """Builds the training step.

  Args:
    model: VEMD, or a module with the same call signature.
    optimizer: optimizer from `vemd_jax.optim`, made for these phases.
    terms: loss terms by dataset, from `losses.prepare`.
    phases: phases of the training, from `phases.parse`.
    seed: seed of the run.
    sigma: width of a limb in the target heatmaps, in heatmap pixels.
    accumulation: number of micro-batches whose gradients are averaged.
    ema_decay: decay of the moving average, warmed up as
      min(ema_decay, (1 + step) / (10 + step)), the step counted from the start
      of the phase; 0 if the state has none.
    faults: `config.faults`, see `guard.judge`; None disables the checks.
    place: constrains the sharding of the gradients. Where the optimizer's
      moments are sharded, a device then receives the sum over the batch only
      for its part of a gradient.
    private: settings of differentially private training, or None.

  Returns:
    `(state, batch, dataset) -> (state, metrics, scalars)`; `dataset` is static.
    The metrics are computed with the parameters before the update; the scalars
    are the loss, the norms of gradients, parameters and updates, and the number
    of samples that could not be read.
  """

  def loss_fn(params, batch_stats, state, batch, dataset, keys):
    outputs, updates = model.apply(
        {'params': {**params, **state.frozen}, 'batch_stats': batch_stats},
        batch,
        dataset=dataset,
        train=True,
        rngs=keys,
        mutable=['batch_stats'],
    )
    batch = add_targets(batch, outputs, sigma)
    loss, sums = losses.total(
        outputs, batch, keys['loss'], terms[dataset], state.step
    )
    metrics = Metrics.from_outputs(outputs, batch, sums)
    return loss, (metrics, updates.get('batch_stats', {}), loss)

  def gradients(state, batch, dataset, keys):
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulation == 1:
      grads, aux = grad_fn(
          state.params, state.batch_stats, state, batch, dataset, keys
      )
      return grads, *aux

    # Micro-batch i consists of the samples i, i + accumulation, …, which keeps
    # every micro-batch spread over all devices without communication.
    micro = jax.tree.map(
        lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1),
        batch,
    )

    def one(carry, inputs):
      grads, stats = carry
      index, part = inputs
      part_keys = {k: jax.random.fold_in(v, index) for k, v in keys.items()}
      new, (metrics, stats, loss) = grad_fn(
          state.params, stats, state, part, dataset, part_keys
      )
      return (jax.tree.map(jnp.add, grads, new), stats), (metrics, loss)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (grads, stats), (metrics, loss) = jax.lax.scan(
        one, (zeros, state.batch_stats), (jnp.arange(accumulation), micro)
    )
    grads = jax.tree.map(lambda g: g / accumulation, grads)
    return grads, metrics.reduce(), stats, loss.mean()

  if private is not None:
    gradients = dp_lib.gradients(loss_fn, private, seed)

  def train_step(state: TrainState, batch: Batch, dataset: str):
    keys = rng.at_step(seed, state.step)
    grads, metrics, stats, loss = gradients(state, batch, dataset, keys)
    phase = phases_lib.index_at(phases, state.step)
    hold = functools.partial(phases_lib.unless_frozen, phases, phase)
    grads = place(grads)
    grads = hold(grads, jax.tree.map(jnp.zeros_like, grads))
    group = dataset if dataset in state.opt_state else 'all'
    updates, opt_state = optimizer.update(
        grads, state.opt_state[group], state.params, phase=phase
    )
    # Masked again, since weight decay gives updates even for zero gradients.
    updates = hold(updates, jax.tree.map(jnp.zeros_like, updates))
    params = optax.apply_updates(state.params, updates)
    stats = hold(stats, state.batch_stats)
    for name in stats.keys() & state.frozen.keys():
      stats[name] = state.batch_stats[name]
    ema = state.ema
    if ema_decay:
      # A smaller decay at first, so that the average forgets the initial
      # parameters.
      step = phases_lib.since_start(phases, state.step).astype(jnp.float32)
      decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
      ema = optax.incremental_update(params, ema, 1 - decay)
    scalars = {
        'loss': loss,
        'grad_norm': optax.tree.norm(grads),
        'param_norm': optax.tree.norm(params),
        'update_norm': optax.tree.norm(updates),
    }
    new = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=stats,
        ema=ema,
        opt_state={**state.opt_state, group: opt_state},
    )
    restart = phases_lib.since_start(phases, state.step) == 0
    state, metrics, scalars = guard.judge(
        faults, state, new, metrics, scalars, dataset, restart
    )
    # A training batch has no padding. Counted here, over all processes.
    mask = batch['mask']
    rows = len(mask) if private is None else dp_lib.drawn_rows(mask)
    unreadable = rows - mask.astype(jnp.int32).sum()
    return state, metrics, {**scalars, 'unreadable': unreadable}

  return train_step


def make_eval_step(
    model: nn.Module, terms: Mapping[str, tuple], *, sigma: float = 1.0
) -> Callable[..., tuple[Metrics, Outputs, Batch]]:
  """Builds the evaluation step.

  Args:
    model: VEMD, or a module with the same call signature.
    terms: loss terms by dataset, from `losses.prepare`.
    sigma: width of a limb in the target heatmaps, in heatmap pixels.

  Returns:
    `(variables, batch, step, dataset) -> (metrics, outputs, batch)`; the
    returned batch includes the target heatmaps. `step` is used by the schedules
    of the loss terms.
  """

  def eval_step(variables: Any, batch: Batch, step: jax.Array, dataset: str):
    outputs = model.apply(variables, batch, dataset=dataset, train=False)
    batch = add_targets(batch, outputs, sigma)
    key = rng.named(0, 'evaluate')
    _, sums = losses.total(outputs, batch, key, terms[dataset], step)
    metrics = Metrics.from_outputs(outputs, batch, sums, precision=True)
    return metrics, outputs, batch

  return eval_step
