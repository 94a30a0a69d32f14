"""The predictions of a run for each sample of a split: predictions.jsonl.

One object per line: `split`, `dataset`, `file` (dataset/split/number if the
samples have no files), `label` and `probabilities` of the classes in the order
of classes.json; `source` if the data have one; `unreadable` instead of the
probabilities of a sample that could not be read. The report compares runs by
these lines, sample by sample.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

NAME = 'predictions.jsonl'
_KEPT = ('index', 'mask', 'label', 'label_mask')


class Predictions(NamedTuple):
  """The predictions for a split, sorted by index.

  Attributes:
    index: [n] int, positions in the source.
    label: [n] int, -1 without label.
    probabilities: [n, C] float32, NaN for a sample that could not be read.
  """

  index: np.ndarray
  label: np.ndarray
  probabilities: np.ndarray

  def ranked(self) -> dict[str, np.ndarray]:
    """Ranks the labelled samples by confidence.

    Returns:
      Positions in the arrays: `right` and `wrong`, most confident first, and
      `unsure`, all of them, least confident first.
    """
    known = np.flatnonzero(
        (self.label >= 0) & np.isfinite(self.probabilities).all(1)
    )
    probabilities = self.probabilities[known]
    order = np.argsort(-probabilities.max(1), kind='stable')
    known, best = known[order], probabilities.argmax(1)[order]
    right = self.label[known] == best
    return {
        'right': known[right], 'wrong': known[~right], 'unsure': known[::-1]
    }  # fmt: skip


def keep(outputs: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
  """The arrays that `gather` needs; {} without an emotion head."""
  if outputs.logits is None:
    return {}
  return {'logits': outputs.logits, **{key: batch[key] for key in _KEPT}}


def gather(kept: Sequence[dict[str, Any]]) -> Predictions | None:
  """Gathers the predictions for a split from all processes.

  Args:
    kept: results of `keep`, one per batch.

  Returns:
    The predictions; None without an emotion head.
  """
  if not kept or not kept[0]:
    return None
  if jax.process_count() > 1:
    kept = multihost_utils.process_allgather(kept, tiled=True)
  kept = jax.device_get(kept)
  rows = {k: np.concatenate([part[k] for part in kept]) for k in kept[0]}
  # Drops padding.
  order = np.argsort(rows['index'], kind='stable')
  order = order[rows['index'][order] >= 0]
  rows = {key: value[order] for key, value in rows.items()}
  logits = rows['logits'].astype(np.float32)
  exponential = np.exp(logits - logits.max(1, keepdims=True))
  probabilities = exponential / exponential.sum(1, keepdims=True)
  return Predictions(
      index=rows['index'],
      label=np.where(rows['label_mask'], rows['label'], -1),
      probabilities=np.where(rows['mask'][:, None], probabilities, np.nan),
  )


def lines(
    predictions: Predictions,
    *,
    split: str,
    dataset: str,
    classes: Sequence[str],
    source: Any,
) -> Iterator[dict[str, Any]]:
  """The lines of predictions.jsonl.

  Args:
    predictions: predictions for a split.
    split: name of the split.
    dataset: dataset whose emotion head was used.
    classes: names of the C classes.
    source: source of the split; optional attributes `files` and `sources` give
      the name and the origin of each sample.

  Yields:
    One plain object per sample.
  """
  files = getattr(source, 'files', None)
  sources = getattr(source, 'sources', None)
  for index, label, probabilities in zip(*predictions):
    line: dict[str, Any] = {
        'split': split,
        'dataset': dataset,
        'file': f'{dataset}/{split}/{index:06d}' if files is None
        else files[index],
        'label': classes[label] if label >= 0 else None,
    }
    if sources is not None and sources[index]:
      line['source'] = sources[index]
    if np.isnan(probabilities).any():
      line['unreadable'] = True
    else:
      line['probabilities'] = [round(float(p), 6) for p in probabilities]
    yield line


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads predictions.jsonl; [] if there is none."""
  path = epath.Path(workdir) / NAME
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]
