"""Metrics of a split, accumulated as sums over batches and processes.

`Metrics.from_outputs` runs inside the jitted step on global arrays and returns
sums; `merge` adds up batches, and `compute` divides once at the end, on the
host, so results do not depend on the batch size. (The exception is an MMD term,
which compares the samples of a batch with each other.)
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import losses, skeletons
from vemd_jax.losses import matching
from vemd_jax.models.outputs import Outputs, Structure

# PCK threshold, relative to the longer side of the person's bounding box.
PCK_SHARE = 0.1

# Average precision depends only on the order of the presence logits, so they
# are binned over [-_RANGE, _RANGE]: histograms can be summed over batches and
# processes.
_BINS, _RANGE = 2048, 16.0

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
class Queries:
  """Sums over the matched people of one part.

  Attributes:
    people: number of annotated people.
    joints: number of visible joints of the matched people.
    error: sum over those joints of the distance in pixels.
    right: number of joints within `PCK_SHARE` of the person's size.
    found: [bins] matched queries by presence logit; None without presence.
    empty: [bins] unmatched queries by presence logit.
  """

  people: jax.Array
  joints: jax.Array
  error: jax.Array
  right: jax.Array
  found: jax.Array | None
  empty: jax.Array | None


@flax.struct.dataclass
class Metrics:
  """Sums over examples; None where the model lacks an output.

  Attributes:
    terms: loss terms by name, (total, count, weight x total).
    examples: number of real examples.
    confusion: [C, C] examples by label (row) and prediction (column).
    multi_label: [3, C] true positives, predicted, labelled.
    heatmaps: part -> (sum of the frames' mean squared errors, frames).
    queries: part -> sums of its PersonQuery decoder.
  """

  terms: dict[str, tuple[jax.Array, jax.Array, jax.Array]]
  examples: jax.Array
  confusion: jax.Array | None
  multi_label: jax.Array | None
  heatmaps: dict[str, tuple[jax.Array, jax.Array]]
  queries: dict[str, Queries]

  @classmethod
  def from_outputs(
      cls,
      outputs: Outputs,
      batch: Mapping[str, jax.Array],
      sums: Mapping[str, losses.Sums],
      *,
      threshold: float = 0.25,
  ) -> 'Metrics':
    """Sums of one batch.

    Args:
      outputs: outputs of the model.
      batch: batch with targets, as the losses received it.
      sums: sums of the loss terms, from `losses.total`.
      threshold: class probability at which a label counts as predicted; below
        1/3, so that three labels can be predicted. Used if the batch has
        `label_multi_hot` [B, C].

    Returns:
      The batch's metrics.
    """
    heatmaps, queries = {}, {}
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
        queries[part] = _queries(structure, batch, part, frames)
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
        queries=queries,
    )

  def merge(self, other: 'Metrics') -> 'Metrics':
    """Adds the sums of two sets of batches."""
    return jax.tree.map(operator.add, self, other)

  def plain(self) -> dict[str, Any]:
    """The sums as JSON; `from_plain` restores the same bits."""
    return jax.tree.map(
        lambda x: np.asarray(x).tolist(), dataclasses.asdict(self)
    )

  @classmethod
  def from_plain(cls, plain: Mapping[str, Any]) -> 'Metrics':
    """Restores the metrics from `plain`, as float32 NumPy arrays."""

    def array(x):
      return None if x is None else np.asarray(x, np.float32)

    def arrays(named):
      return {k: tuple(map(array, v)) for k, v in named.items()}

    return cls(
        terms=arrays(plain['terms']),
        examples=array(plain['examples']),
        confusion=array(plain['confusion']),
        multi_label=array(plain['multi_label']),
        heatmaps=arrays(plain['heatmaps']),
        queries={
            part: Queries(**{k: array(v) for k, v in sums.items()})
            for part, sums in plain['queries'].items()
        },
    )

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
      `<part>_presence_ap`.
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
    for part, queries in sums.queries.items():
      if queries.joints:
        error = float(queries.error / queries.joints)
        results[f'{part}_keypoint_error'] = error
        results[f'{part}_pck'] = float(queries.right / queries.joints)
      if queries.found is not None and queries.people:
        results[f'{part}_presence_ap'] = average_precision(
            queries.found, queries.empty, queries.people
        )
    return results


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


def _queries(structure: Structure, batch, part, frames) -> Queries:
  height, width = batch['image'].shape[2:4]
  topology = skeletons.QUERY_LIMBS[part]
  keypoints = batch[f'{part}_keypoints']
  target = matching.people(
      keypoints,
      batch[f'{part}_mask'].astype(bool) & frames[..., None],
      topology,
      (height, width),
  )
  limbs = structure.limbs.astype(jnp.float32)
  adjacency = structure.adjacency_logits
  cost = matching.pair_costs(limbs, adjacency, target)
  match = matching.assign(cost, target.mask)
  size = jnp.array([width, height], jnp.float32)
  count = skeletons.NUM_POINTS[part]
  found = matching.joints(matching.take(limbs, match), topology, count)
  found = found * jnp.broadcast_to(size, found.shape)
  true = keypoints[..., :2].astype(jnp.float32)
  # A joint exists where a limb end does; landmarks that belong to no limb are
  # not evaluated.
  exists = matching.joints(target.exists.astype(jnp.float32), topology, count)
  present = (exists[..., 0] > 0) & match.matched[..., None]
  distance = jnp.sqrt(jnp.sum((found - true) ** 2, -1))
  low = jnp.where(present[..., None], true, jnp.inf).min(-2)
  high = jnp.where(present[..., None], true, -jnp.inf).max(-2)
  longer = jnp.max(high - low, -1, keepdims=True)
  right = present & (distance <= PCK_SHARE * longer)
  hit = miss = None
  if structure.presence_logits is not None:
    scores = structure.presence_logits.astype(jnp.float32)
    taken = matching.taken(match, scores.shape[-1])
    counted = jnp.broadcast_to(frames[..., None], scores.shape)
    hit = _histogram(scores, taken & counted)
    miss = _histogram(scores, ~taken & counted)
  return Queries(
      people=target.mask.astype(jnp.float32).sum(),
      joints=present.astype(jnp.float32).sum(),
      error=jnp.where(present, distance, 0.0).sum(),
      right=right.astype(jnp.float32).sum(),
      found=hit,
      empty=miss,
  )


def _histogram(scores, counts):
  bins = (jnp.clip(scores / _RANGE, -1, 1) + 1) * (0.5 * (_BINS - 1))
  bins = jnp.round(bins).astype(jnp.int32).reshape(-1)
  counts = counts.astype(jnp.float32).reshape(-1)
  return jnp.zeros(_BINS, jnp.float32).at[bins].add(counts)


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


def average_precision(
    found: np.ndarray, empty: np.ndarray, people: float
) -> float:
  """Area under the precision-recall curve, from histograms over the score.

  Args:
    found: [bins] number of matched queries, by ascending score.
    empty: [bins] number of unmatched queries.
    people: number of people; people without a matched query count as misses.

  Returns:
    0..1: sum over bins of the increase in recall times the precision.
  """
  found = np.asarray(found, np.float64)[::-1]
  hits, all_ = found.cumsum(), (found + np.asarray(empty)[::-1]).cumsum()
  return float((found * _ratio(hits, all_)).sum() / people)
