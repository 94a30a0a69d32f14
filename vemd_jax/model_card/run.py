"""Reads the facts about a run from its workdir, without model or data."""

import collections
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vemd_jax.audit import measure
from vemd_jax.data import jsonl
from vemd_jax.report import statistics
from vemd_jax.workdir import read_json


class Facts(NamedTuple):
  """The contents of a workdir.

  Attributes:
    name: name of the folder.
    config: config as nested plain values.
    classes: dataset -> names of its classes.
    results: contents of results.json.
    versions: versions of libraries, and devices.
    data: dataset -> split -> counts; {} if the run did not write them.
    sources: (dataset, split, origin) -> (right, count).
    audit: from `audit.measure.read`; {} if the run was not audited.
  """

  name: str
  config: dict[str, Any]
  classes: dict[str, list[str]]
  results: dict[str, Any]
  versions: dict[str, Any]
  data: dict[str, Any]
  sources: dict[tuple[str, str, str], tuple[int, int]]
  audit: dict[str, Any]

  def evaluations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Split, dataset and metrics of each evaluation."""
    for split in ('val', 'test'):
      found = self.results.get(split)
      if found is None:
        continue
      for dataset in self.classes:
        inner = found if len(self.classes) == 1 else found.get(dataset, {})
        yield split, dataset, inner


def read(workdir: pathlib.Path) -> Facts:
  """Reads a finished run.

  Args:
    workdir: workdir of the run.

  Returns:
    The facts.

  Raises:
    FileNotFoundError: if it is no workdir, or the run has no results yet.
    ValueError: if a file is damaged.
  """
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(
        f"no config at {workdir / 'config.json'}; expected a run's workdir"
    )
  if not (workdir / 'results.json').exists():
    raise FileNotFoundError(
        f'{workdir / "results.json"} does not exist: evaluate the run first, '
        'with --mode=evaluate'
    )
  return Facts(
      name=workdir.resolve().name,
      config=read_json(workdir / 'config.json'),
      classes=read_json(workdir / 'classes.json'),
      results=read_json(workdir / 'results.json'),
      versions=read_json(workdir / 'versions.json'),
      data=read_json(workdir / 'data.json'),
      sources=_sources(workdir / 'predictions.jsonl', workdir),
      audit=measure.read(workdir),
  )


def _sources(path: pathlib.Path, workdir: pathlib.Path):
  """Counts of correct and all predictions by origin, if origins are stored."""
  counts = collections.defaultdict(lambda: [0, 0])
  if not path.exists():
    return {}
  classes = read_json(workdir / 'classes.json')
  for line in jsonl.lines(path):
    if not line.get('source') or not line.get('label'):
      continue
    if 'probabilities' not in line:
      continue
    p = line['probabilities']
    label = classes[line['dataset']][p.index(max(p))]
    entry = counts[line['dataset'], line['split'], line['source']]
    entry[0] += label == line['label']
    entry[1] += 1
  return {key: tuple(value) for key, value in sorted(counts.items())}


def interval(right: int, count: int) -> str:
  """Formats a share with its 95 % Wilson interval; '-' without samples."""
  if not count:
    return '-'
  low, high = statistics.wilson(right, count)
  return f'{right / count:.3f} ({low:.3f} to {high:.3f})'
