"""Reads a run for its report: files of the workdir, neither model nor data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vemd_jax import gallery, predictions
from vemd_jax import writer as writer_lib
from vemd_jax.audit import measure
from vemd_jax.workdir import read_json


@dataclasses.dataclass
class Scores:
  """The predictions of a run for the labelled samples of a split.

  Attributes:
    classes: names of the C classes.
    files: [n] names.
    sources: [n] origins, '' if unknown.
    labels: [n] int.
    probabilities: [n, C].
    unreadable: names of samples that could not be read.
  """

  classes: tuple[str, ...]
  files: list[str]
  sources: list[str]
  labels: np.ndarray
  probabilities: np.ndarray
  unreadable: list[str]

  @property
  def predicted(self) -> np.ndarray:
    """[n] int, the most probable classes."""
    return self.probabilities.argmax(1)

  def confusion(self, among: np.ndarray | slice = slice(None)) -> np.ndarray:
    """[C, C] counts of the selected samples, true classes as rows."""
    count = len(self.classes)
    result = np.zeros((count, count), np.int64)
    np.add.at(result, (self.labels[among], self.predicted[among]), 1)
    return result


@dataclasses.dataclass
class Report:
  """The contents of a workdir.

  Attributes:
    name: name of the run.
    config: config as nested plain values.
    recipe: `recipe` and `changes`; {} if unknown.
    versions: versions of libraries, and devices.
    data: dataset -> split -> counts.
    lines: lines of metrics.jsonl.
    results: contents of results.json; {} if the run is not finished.
    scores: (split, dataset) -> predictions.
    gallery: entries from `gallery.read`.
    audit: from `audit.measure.read`.
  """

  name: str
  config: dict[str, Any]
  recipe: dict[str, Any]
  versions: dict[str, Any]
  data: dict[str, Any]
  lines: list[dict[str, Any]]
  results: dict[str, Any]
  scores: dict[tuple[str, str], Scores]
  gallery: list[dict[str, Any]]
  audit: dict[str, Any]

  @property
  def step(self) -> int | None:
    """Step of the checkpoint that was evaluated."""
    return self.results.get('step')

  def metrics(self, split: str, dataset: str) -> Mapping[str, Any]:
    """The metrics of a dataset on a split."""
    found = self.results.get(split, {})
    inner = found.get(dataset)
    return inner if isinstance(inner, Mapping) else found


def read(workdir: epath.PathLike) -> Report:
  """Reads a run, finished or not.

  Args:
    workdir: output folder of the run.

  Returns:
    The run; parts that do not exist yet are empty.

  Raises:
    FileNotFoundError: if the folder is not the workdir of a run.
    ValueError: if a file is damaged; names the file.
  """
  workdir = epath.Path(workdir)
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(
        f"no config at {workdir / 'config.json'}; expected a run's workdir"
    )
  classes = read_json(workdir / 'classes.json')
  return Report(
      name=workdir.name or str(workdir),
      config=read_json(workdir / 'config.json'),
      recipe=read_json(workdir / 'recipe.json'),
      versions=read_json(workdir / 'versions.json'),
      data=read_json(workdir / 'data.json'),
      lines=writer_lib.read_lines(workdir / 'metrics.jsonl'),
      results=read_json(workdir / 'results.json'),
      scores=_scores(predictions.read(workdir), classes),
      gallery=gallery.read(workdir),
      audit=measure.read(workdir),
  )


def _scores(
    lines: list[dict[str, Any]], classes: Mapping[str, list[str]]
) -> dict[tuple[str, str], Scores]:
  grouped: dict[tuple[str, str], list[dict]] = {}
  for line in lines:
    grouped.setdefault((line['split'], line['dataset']), []).append(line)
  result = {}
  for (split, dataset), rows in grouped.items():
    names = tuple(classes[dataset])
    number = {name: i for i, name in enumerate(names)}
    used = [r for r in rows if r['label'] and 'probabilities' in r]
    if used:
      result[split, dataset] = Scores(
          classes=names,
          files=[r['file'] for r in used],
          sources=[r.get('source', '') for r in used],
          labels=np.array([number[r['label']] for r in used]),
          probabilities=np.array([r['probabilities'] for r in used]),
          unreadable=[r['file'] for r in rows if r.get('unreadable')],
      )
  return result


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ''
) -> dict[str, tuple[Any, Any]]:
  """Config keys whose values differ.

  Args:
    one: nested values.
    other: nested values.
    prefix: prefix of the keys.

  Returns:
    Key such as `optim.learning_rate` -> (value in `one`, value in `other`);
    None if the key is missing.
  """
  result = {}
  for key in sorted({*one, *other}):
    a, b = one.get(key), other.get(key)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      result |= differences(a, b, f'{prefix}{key}.')
    elif a != b:
      result[prefix + key] = a, b
  return result
