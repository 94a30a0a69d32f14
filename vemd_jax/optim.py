"""From the config to an optax chain."""

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """The learning rate over the steps.

  Args:
    optim: `config.optim`.
    steps: of the whole run.

  Returns:
    step -> learning rate.
  """
  warmup = min(optim.warmup_steps, steps // 2)
  rest = max(steps - warmup, 1)
  peak = optim.learning_rate
  after = {
      'constant': lambda: optax.constant_schedule(peak),
      'cosine': lambda: optax.cosine_decay_schedule(peak, rest),
      'linear': lambda: optax.linear_schedule(peak, 0.0, rest),
  }[optim.schedule]()
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    optim: ConfigDict, steps: int
) -> optax.GradientTransformation:
  """Clipping, then Adam or AdamW with the schedule.

  Weight decay acts on kernels and embeddings, not on norms and biases.

  Args:
    optim: `config.optim`.
    steps: of the whole run.

  Returns:
    The transformation.
  """
  schedule = make_schedule(optim, steps)
  chain = []
  if optim.clip:
    chain.append(optax.clip_by_global_norm(optim.clip))
  chain.append(optax.scale_by_adam(b1=optim.b1, b2=optim.b2))
  if optim.name == 'adamw':
    chain.append(
        optax.add_decayed_weights(
            optim.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    )
  chain.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*chain)
