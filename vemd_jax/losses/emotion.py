"""Loss terms of the group emotion."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vemd_jax.losses.term import (
  Batch,
  Term,
  check_same_shape,
  empty_term,
  f32,
  real,
)
from vemd_jax.models.outputs import Outputs


def _labels(term, outputs, batch, class_weights):
  """Logits [B, C], one-hot labels [B, C], and the mask or weights [B]."""
  logits, labels = f32(outputs.logits), batch['label']
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
        f'{term}: logits {logits.shape} need labels of shape'
        f' {logits.shape[:1]}, not {labels.shape}'
    )
  classes = logits.shape[1]
  mask = f32(batch['label_mask'].astype(bool) & real(batch))
  if class_weights is not None and len(class_weights):
    if isinstance(class_weights, str) or len(class_weights) != classes:
      raise ValueError(
          f'{term}: class_weights {class_weights!r}, expected {classes} numbers'
      )
    mask = mask * f32(class_weights)[labels]
  return logits, jax.nn.one_hot(labels, classes), mask


def _without_labels(outputs: Outputs, batch: Batch) -> bool:
  # A dataset without classes has no emotion head and trains the other modules.
  return outputs.logits is None or 'label' not in batch


def emotion_cross_entropy(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Cross-entropy of the group emotion.

  Args:
    outputs: logits [B, C].
    batch: label, label_mask.
    rng: not used.
    label_smoothing: share of the target spread over all classes, 0..1.
    class_weights: C numbers >= 0. The mean over examples is weighted by the
      weight of the true class, as in torch; empty or None for equal weights.

  Returns:
    Nats per example; examples without a label are masked.
  """
  del rng
  if _without_labels(outputs, batch):
    return empty_term(batch)
  logits, target, mask = _labels(
      'emotion_cross_entropy', outputs, batch, class_weights
  )
  target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
  return Term(-jnp.sum(target * jax.nn.log_softmax(logits), -1), mask)


def emotion_sources(outputs: Outputs, batch: Batch, rng: jax.Array) -> Term:
  """Mean cross-entropy of the individual summands of the logits.

  If one source classifies most training examples, the gradient of the summed
  logits vanishes and the other sources remain untrained; here each source is
  trained to classify alone.

  Args:
    outputs: sources [B, S, C].
    batch: label, label_mask.
    rng: not used.

  Returns:
    Nats per example, averaged over the sources; labelled examples count.

  Raises:
    ValueError: if the head does not read relations.
  """
  if _without_labels(outputs, batch):
    return empty_term(batch)
  if outputs.sources is None:
    raise ValueError(
        'emotion_sources: the emotion head has one source; set'
        ' config.model.head.sr_input=relations'
    )
  terms = [
      emotion_cross_entropy(outputs.replace(logits=logits), batch, rng)
      for logits in jnp.moveaxis(outputs.sources, 1, 0)
  ]
  return Term(sum(t.values for t in terms) / len(terms), terms[0].mask)


def emotion_teacher_forcing(
    outputs: Outputs, batch: Batch, rng: jax.Array
) -> Term:
  """Mean cross-entropy of the relations between annotated people.

  The relation modules learn from correct structure, which the decoders do not
  provide until late in the training; the decoded structure is read by the same
  modules.

  Args:
    outputs: teacher_sources, part -> [B, C]; None in evaluation.
    batch: label, label_mask, and the annotated frames of the parts.
    rng: not used.

  Returns:
    Nats per example, averaged over the parts that are annotated in it; labelled
    examples with such a part count.
  """
  if _without_labels(outputs, batch) or not outputs.teacher_sources:
    return empty_term(batch)
  total, count = 0.0, 0.0
  for part, logits in outputs.teacher_sources.items():
    term = emotion_cross_entropy(outputs.replace(logits=logits), batch, rng)
    annotated = f32(batch[f'{part}_annotated'].astype(bool).any(1))
    total = total + annotated * term.values
    count = count + annotated
  return Term(total / jnp.maximum(count, 1.0), term.mask * f32(count > 0))


def multi_label_emotion(
    outputs: Outputs, batch: Batch, rng: jax.Array
) -> Term:
  """Cross-entropy with a uniform target over all labels of an example.

  The probabilities still sum to 1, so the same head can be used for single and
  multiple labels; for a single label this equals `emotion_cross_entropy`.

  Args:
    outputs: logits [B, C].
    batch: label_multi_hot [B, C], 0 or 1.
    rng: not used.

  Returns:
    Nats per example; examples without a label are masked.

  Raises:
    ValueError: if the batch has no `label_multi_hot` of the logits' shape.
  """
  del rng
  if outputs.logits is None:
    return empty_term(batch)
  if 'label_multi_hot' not in batch:
    raise ValueError(
        'multi_label_emotion: the batch has no label_multi_hot; set'
        ' config.data.multi_label'
    )
  logits, labels = f32(outputs.logits), f32(batch['label_multi_hot'] > 0)
  check_same_shape('multi_label_emotion', logits, labels)
  count = labels.sum(-1)
  target = labels / jnp.maximum(count, 1)[:, None]
  values = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
  return Term(values, (count > 0) & real(batch))


def focal_emotion(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Focal loss `(1 - p)^gamma (-log p)` of the true class (arXiv 1708.02002).

  Args:
    outputs: logits [B, C].
    batch: label, label_mask.
    rng: not used.
    gamma: strength of the down-weighting of easy examples; 0 gives the
      cross-entropy.
    class_weights: as in `emotion_cross_entropy`.

  Returns:
    One value per example; examples without a label are masked.
  """
  del rng
  if _without_labels(outputs, batch):
    return empty_term(batch)
  logits, target, mask = _labels('focal_emotion', outputs, batch, class_weights)
  log_p = jnp.sum(target * jax.nn.log_softmax(logits), -1)
  # The sum over the other classes is accurate where 1 - p would cancel, and its
  # lower bound keeps the derivative of the power finite.
  others = jnp.sum((1 - target) * jax.nn.softmax(logits), -1)
  tiny = jnp.finfo(jnp.float32).tiny
  return Term(-(jnp.maximum(others, tiny) ** gamma) * log_p, mask)


def ordinal_emotion(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    class_weights: Sequence[float] | None = None,
) -> Term:
  """Squared earth mover's distance for ordered classes.

  The sum over c of `(P(class <= c) - [label <= c])^2` (arXiv 1611.05916): an
  error of two classes costs more than an error of one.

  Args:
    outputs: logits [B, C], with classes in the order of the scale.
    batch: label, label_mask.
    rng: not used.
    class_weights: as in `emotion_cross_entropy`.

  Returns:
    0..C-1 per example; examples without a label are masked.
  """
  del rng
  if _without_labels(outputs, batch):
    return empty_term(batch)
  logits, target, mask = _labels(
      'ordinal_emotion', outputs, batch, class_weights
  )
  difference = jnp.cumsum(jax.nn.softmax(logits) - target, -1)
  return Term(jnp.sum(difference**2, -1), mask)
