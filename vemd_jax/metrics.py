"""Metrics of a split, accumulated as sums over batches and processes.

`Metrics.from_outputs` runs inside the jitted step on global arrays and returns
sums; `merge` accumulates them over batches, and `compute` normalizes once at
the end, on the host, so results do not depend on the batch size. (The exception
is an MMD term, which compares the samples of a batch with each other.)
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import losses, people_metrics
from vemd_jax.models.outputs import Outputs

# Names of official metrics -> keys of `Metrics.compute`.
NAMES = {
    'accuracy': 'accuracy',
    'war': 'accuracy',
    'uar': 'uar',
    'macro_f1': 'macro_f1',
    'weighted_f1': 'weighted_f1',
    'multilabel_f1': 'multilabel_f1',
    'heatmap_error': 'body_heatmap_mse',
    'pck': 'body_pck',
}


def metric(name: str) -> str:
  """The key under which `Metrics.compute` returns an official metric.

  Args:
    name: name in the dataset papers, e.g. `war` (= accuracy), `uar`.

  Returns:
    The key.

  Raises:
    ValueError: if there is no such metric.
  """
  if name not in NAMES:
    raise ValueError(f'metric {name!r}: expected one of {", ".join(NAMES)}')
  return NAMES[name]


@flax.struct.dataclass
class Metrics:
  """Sums over examples; None where the model lacks an output.

  Attributes:
    terms: loss terms by name, (total, count, weight x total).
    examples: number of real examples.
    confusion: [C, C] examples by label (row) and prediction (column).
    multi_label: [3, C] true positives, predicted, labelled.
    heatmaps: part -> (sum of the frames' mean squared errors, frames).
    people: part -> sums of its PersonQuery decoder.
  """

  terms: dict[str, tuple[jax.Array, jax.Array, jax.Array]]
  examples: jax.Array
  confusion: jax.Array | None
  multi_label: jax.Array | None
  heatmaps: dict[str, tuple[jax.Array, jax.Array]]
  people: dict[str, people_metrics.People]

  @classmethod
  def from_outputs(
      cls,
      outputs: Outputs,
      batch: Mapping[str, jax.Array],
      sums: Mapping[str, losses.Sums],
      *,
      threshold: float = 0.25,
      precision: bool = False,
  ) -> 'Metrics':
    """Sums of one batch.

    Args:
      outputs: outputs of the model.
      batch: batch with targets, as the losses received it.
      sums: sums of the loss terms, from `losses.total`.
      threshold: class probability at which a label counts as predicted; below
        1/3, so that three labels can be predicted. Used if the batch has
        `label_multi_hot` [B, C].
      precision: whether to compute the histograms for `body_oks_ap`.

    Returns:
      The batch's metrics.
    """
    heatmaps, people = {}, {}
    for part in ('body', 'face'):
      structure = getattr(outputs, part)
      if structure is None or f'{part}_annotated' not in batch:
        continue
      annotated = batch[f'{part}_annotated'].astype(bool)
      frames = annotated & batch['mask'].astype(bool)[:, None]
      if structure.heatmap_logits is not None and f'{part}_heatmap' in batch:
        heatmaps[part] = _heatmap_error(
            structure.heatmap_logits[-1],
            batch[f'{part}_heatmap'],
            frames,
            losses.counted_pixels(batch, structure.heatmap_logits.shape[-3:-1]),
        )
      if structure.limbs is not None:
        people[part] = people_metrics.measure(
            structure, batch, part, frames, precision=precision
        )
    confusion = multi_label = None
    if outputs.logits is not None and 'label' in batch:
      counts = batch['label_mask'].astype(bool) & batch['mask'].astype(bool)
      logits = outputs.logits.astype(jnp.float32)
      confusion = _confusion(batch['label'], logits.argmax(-1), counts, logits)
      if 'label_multi_hot' in batch:
        # Samples with several labels are masked out of the single-label sums.
        several = batch['label_multi_hot'].any(-1)
        multi_label = _multi_label(
            logits,
            batch['label_multi_hot'],
            counts | (several & batch['mask'].astype(bool)),
            threshold,
        )
    return cls(
        terms={
            name: (total, count, weight * total)
            for name, (total, count, weight) in sums.items()
        },
        examples=batch['mask'].astype(jnp.float32).sum(),
        confusion=confusion,
        multi_label=multi_label,
        heatmaps=heatmaps,
        people=people,
    )

  def merge(self, other: 'Metrics') -> 'Metrics':
    """Adds the sums of two sets of batches."""
    return jax.tree.map(operator.add, self, other)

  def plain(self) -> dict[str, Any]:
    """The sums as JSON; `from_plain` restores them bit for bit."""
    return _plain(self)

  @classmethod
  def from_plain(cls, plain: Mapping[str, Any]) -> 'Metrics':
    """Restores the metrics from `plain`, with NumPy arrays."""
    return _restored(plain)

  def reduce(self) -> 'Metrics':
    """Sums over a leading axis, e.g. of `jax.lax.scan`."""
    return jax.tree.map(lambda x: x.sum(0), self)

  def compute(self, classes: Sequence[str] = ()) -> dict[str, float | list]:
    """Computes the metrics from the sums, on the host.

    Metrics without data (no labels, no annotated frames) have no entry.

    Args:
      classes: class names for the recalls; empty for class indices.

    Returns:
      `loss`, each term by name, `examples`; with labels `accuracy`, `macro_f1`,
      `weighted_f1`, `uar`, `recall_<class>`, `confusion`, with multi-hot labels
      `multilabel_f1`; for each part `<part>_heatmap_mse`, and of a PersonQuery
      decoder `<part>_keypoint_error` (pixels), `<part>_pck`,
      `<part>_presence_ap`, `body_oks_ap` and `face_nme`, see
      `vemd_jax.people_metrics`, by size of the person, too.
    """
    sums = jax.device_get(self)
    results = {'examples': float(sums.examples)}
    if sums.terms:
      results['loss'] = 0.0
    for name, (total, count, weighted) in sums.terms.items():
      if count > 0:
        results[name] = float(total / count)
        results['loss'] += float(weighted / count)
    if sums.confusion is not None and sums.confusion.sum():
      results |= classification(sums.confusion, classes)
    if sums.multi_label is not None and sums.multi_label[2].sum():
      results['multilabel_f1'] = multilabel_f1(sums.multi_label)
    for part, (error, frames) in sums.heatmaps.items():
      if frames:
        results[f'{part}_heatmap_mse'] = float(error / frames)
    for part, people in sums.people.items():
      results |= {f'{part}_{k}': v for k, v in people.compute().items()}
    return results


def _plain(x: Any) -> Any:
  """Encodes dataclasses, dicts, tuples and arrays as JSON with their types."""
  if x is None:
    return None
  if isinstance(x, tuple):
    return [_plain(v) for v in x]
  if isinstance(x, Mapping):
    return {'dict': {k: _plain(v) for k, v in x.items()}}
  if dataclasses.is_dataclass(x):
    fields = {
        f.name: _plain(getattr(x, f.name)) for f in dataclasses.fields(x)
    }
    return {'class': type(x).__name__, 'fields': fields}
  x = np.asarray(x)
  return {'array': x.tolist(), 'dtype': x.dtype.name}


def _restored(plain: Any) -> Any:
  if plain is None:
    return None
  if isinstance(plain, list):
    return tuple(_restored(v) for v in plain)
  if 'array' in plain:
    return np.asarray(plain['array'], plain['dtype'])
  if 'dict' in plain:
    return {k: _restored(v) for k, v in plain['dict'].items()}
  name = plain['class']
  cls = Metrics if name == 'Metrics' else getattr(people_metrics, name)
  return cls(**{k: _restored(v) for k, v in plain['fields'].items()})


def _confusion(labels, predictions, counts, logits):
  classes = logits.shape[-1]
  true = jax.nn.one_hot(labels, classes) * counts[:, None].astype(jnp.float32)
  return jnp.einsum(
      'bi,bj->ij',
      true,
      jax.nn.one_hot(predictions, classes),
      precision=jax.lax.Precision.HIGHEST,
  )


def _multi_label(logits, multi_hot, counts, threshold):
  predicted = jax.nn.softmax(logits) >= threshold
  predicted = predicted & counts[:, None]
  true = (multi_hot > 0) & counts[:, None]
  return jnp.stack([
      x.astype(jnp.float32).sum(0) for x in (predicted & true, predicted, true)
  ])


def _heatmap_error(logits, target, frames, counted):
  error = (jax.nn.sigmoid(logits.astype(jnp.float32)) - target) ** 2
  error = jnp.where(frames, losses.pixel_mean(error, counted), 0.0)
  return error.sum(), frames.astype(jnp.float32).sum()


def _ratio(numerator, denominator):
  """Elementwise quotient, 0 where the denominator is 0."""
  numerator = np.asarray(numerator, np.float64)
  return np.divide(
      numerator,
      denominator,
      out=np.zeros_like(numerator),
      where=np.asarray(denominator) > 0,
  )


def classification(
    confusion: np.ndarray, classes: Sequence[str] = ()
) -> dict[str, float | list]:
  """Metrics of a confusion matrix, as scikit-learn defines them.

  Args:
    confusion: [C, C] counts, rows are labels, columns predictions.
    classes: C names, or empty.

  Returns:
    `accuracy` (WAR); `macro_f1` over the classes that occur as label or
    prediction; `weighted_f1`; `uar`, the mean recall of the classes that occur
    as label (balanced accuracy); `recall_<class>` of those; `confusion`.

  Raises:
    ValueError: if the number of names is not C.
  """
  confusion = np.asarray(confusion, np.float64)
  names = list(classes) or [str(i) for i in range(len(confusion))]
  if len(names) != len(confusion):
    raise ValueError(f'{len(names)} class names for {len(confusion)} classes')
  right = np.diag(confusion)
  labelled, predicted = confusion.sum(1), confusion.sum(0)
  f1 = _ratio(2 * right, labelled + predicted)
  recall = _ratio(right, labelled)
  return {
      'accuracy': float(right.sum() / confusion.sum()),
      'macro_f1': float(f1[labelled + predicted > 0].mean()),
      'weighted_f1': float((f1 * labelled).sum() / labelled.sum()),
      'uar': float(recall[labelled > 0].mean()),
      **{
          f'recall_{name}': float(value)
          for name, value, n in zip(names, recall, labelled)
          if n > 0
      },
      'confusion': confusion.astype(int).tolist(),
  }


def multilabel_f1(counts: np.ndarray) -> float:
  """Mean F1 over the classes of examples that may have several labels.

  Args:
    counts: [3, C] true positives, predicted, labelled.

  Returns:
    0..1; a class without labels and predictions counts as 0.
  """
  right, predicted, labelled = np.asarray(counts, np.float64)
  return float(_ratio(2 * right, predicted + labelled).mean())
