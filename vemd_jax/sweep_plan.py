"""Sweeps: the rows of a table, and the runs that fill it.

A sweep is a Python file that defines `SWEEP`, a `Sweep`. Each row is a recipe
with changes, which is run with several seeds and on each fold.
"""

import dataclasses
import json
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vemd_jax import metrics
from vemd_jax import workdir as workdir_lib
from vemd_jax.data import datasets
from vemd_jax.data.datasets import Published

_PLACEHOLDER = re.compile(r'\{([^{}]+)\}')


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One row of the table.

  Attributes:
    group: rows of a group are compared with one another.
    name: of the row, unique in its group.
    recipe: file of the recipe, relative to the file of the sweep, and options:
      `folder.py:ve_md`.
    overrides: key of the config -> value. In strings, `{name}` stands for a
      path given by --paths, and `{row}` (of the same group) or `{group/row}`
      for the workdir of another row's run with the same seed, which is executed
      first.
    folds: of cross-validation, 0 without.
    published: numbers to be reached by this row.
  """

  group: str
  name: str
  recipe: str
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  folds: int = 0
  published: tuple[Published, ...] = ()

  @property
  def key(self) -> str:
    return f'{self.group}/{self.name}'

  @property
  def folder(self) -> str:
    """Where its runs lie in the sweep's workdir."""
    return '/'.join(
        re.sub(r'[^\w.+=-]+', '_', part) for part in (self.group, self.name)
    )


class Sweep(NamedTuple):
  """A table and how it is filled.

  Attributes:
    rows: in the order of the table. The rows of a group are compared with its
      first one.
    metrics: of `results.json`, the columns of the table.
    split: val or test.
    seeds: default number of seeds.
    references: group -> published numbers of other methods.
  """

  rows: tuple[Row, ...]
  metrics: tuple[str, ...] = ('accuracy',)
  split: str = 'val'
  seeds: int = 5
  references: Mapping[str, tuple[Published, ...]] = {}


class Planned(NamedTuple):
  """One run of a sweep.

  Attributes:
    row: of the table.
    seed: of the run.
    fold: from 1, or 0 without folds.
  """

  row: Row
  seed: int
  fold: int

  @property
  def folder(self) -> str:
    """Where it lies in the sweep's workdir; its identity."""
    fold = f'_fold_{self.fold}' if self.fold else ''
    return f'{self.row.folder}/seed_{self.seed}{fold}'

  def __str__(self) -> str:
    fold = f', fold {self.fold}' if self.fold else ''
    return f'{self.row.key}, seed {self.seed}{fold}'


def load(argument: str) -> tuple[Sweep, pathlib.Path, str]:
  """Reads a sweep.

  Args:
    argument: its file; options after a colon are given to every recipe.

  Returns:
    (the sweep, the folder of its file, the options).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: if the file is no sweep; says why.
  """
  name, _, options = argument.partition(':')
  path = pathlib.Path(name)
  if not path.is_file():
    raise FileNotFoundError(f'no sweep at {path}')
  try:
    sweep = runpy.run_path(str(path)).get('SWEEP')
  except Exception as error:  # A file may raise whatever it likes.
    raise ValueError(f'{path}: {type(error).__name__}: {error}') from error
  if not isinstance(sweep, Sweep):
    raise ValueError(f'{path} is no sweep: SWEEP is {sweep!r}')
  if sweep.split not in ('val', 'test'):
    raise ValueError(f'{path}: split is {sweep.split!r}, expected val or test')
  folders: dict[str, Row] = {}
  for row in sweep.rows:
    if row.folder in folders:
      raise ValueError(f'{path}: two rows are called {row.key!r}')
    file = path.parent / row.recipe.partition(':')[0]
    if not file.is_file():
      raise ValueError(f'{path}: row {row.key!r} has no recipe at {file}')
    folders[row.folder] = row
  return sweep, path.parent, options


def planned(sweep: Sweep, seeds: int) -> list[Planned]:
  """All runs of a sweep, seed by seed, so that the table soon has all rows.

  Args:
    sweep: of `load`.
    seeds: how many.

  Returns:
    The runs, each once.
  """
  return [
      Planned(row, seed, fold)
      for seed in range(seeds)
      for row in sweep.rows
      for fold in (range(1, row.folds + 1) if row.folds else (0,))
  ]


def names_in(row: Row) -> set[str]:
  """The placeholders of a row."""
  return {name for value in row.overrides.values() for name in _names(value)}


def _names(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield from _PLACEHOLDER.findall(value)
  elif isinstance(value, tuple | list):
    for part in value:
      yield from _names(part)


class Commands:
  """The command line of each run, and the runs that it depends on."""

  def __init__(
      self,
      sweep: Sweep,
      base: pathlib.Path,
      options: str,
      workdir: pathlib.Path,
      paths: Mapping[str, str],
      more: Sequence[str] = (),
  ):
    """Keeps what all runs have in common.

    Args:
      sweep: of `load`.
      base: folder of its file.
      options: for every recipe.
      workdir: of the sweep.
      paths: name -> path, for placeholders.
      more: arguments for every run, `--config.KEY=VALUE`.
    """
    self._base, self._options = base, options
    self._workdir, self._paths, self._more = workdir, paths, list(more)
    self._rows = {row.key: row for row in sweep.rows}

  def missing(self, row: Row) -> set[str]:
    """Names of the paths that the row needs and that were not given."""
    result = set()
    for name in names_in(row):
      needed = self._row(row, name)
      if needed is not None:
        result |= self.missing(needed)
      elif name not in self._paths:
        result.add(name)
    return result

  def needs(self, run: Planned) -> list[Planned]:
    """The runs that have to be executed before."""
    rows = (self._row(run.row, name) for name in sorted(names_in(run.row)))
    return [self._same(run, row) for row in rows if row is not None]

  def arguments(self, run: Planned) -> list[str]:
    """Arguments of `vemd_jax.main`, all but the workdir."""
    file, _, options = run.row.recipe.partition(':')
    options = ','.join(o for o in (options, self._options) if o)
    recipe = str((self._base / file).resolve())
    arguments = [f'--config={recipe}:{options}' if options else
                 f'--config={recipe}']  # fmt: skip
    for key, value in run.row.overrides.items():
      arguments.append(f'--config.{key}={self._fill(run, value)}')
    arguments += [*self._more, f'--config.seed={run.seed}']
    if run.fold:
      arguments.append(f'--config.data.fold={run.fold}')
    return arguments

  def _row(self, row: Row, name: str) -> Row | None:
    if name in self._paths:
      return None
    return self._rows.get(name) or self._rows.get(f'{row.group}/{name}')

  def _same(self, run: Planned, row: Row) -> Planned:
    return Planned(row, run.seed, run.fold if row.folds else 0)

  def _fill(self, run: Planned, value: Any) -> Any:
    if isinstance(value, tuple | list):
      return tuple(self._fill(run, part) for part in value)
    if not isinstance(value, str):
      return value

    def path(match):
      row = self._row(run.row, match[1])
      if row is None:
        return self._paths[match[1]]
      return str(self._workdir / self._same(run, row).folder)

    return _PLACEHOLDER.sub(path, value)


def save(sweep: Sweep, workdir: pathlib.Path) -> None:
  """Writes sweep.json, which `vemd_jax.table` reads."""
  text = json.dumps({
      'rows': [
          {
              'group': row.group,
              'name': row.name,
              'folder': row.folder,
              'published': row.published,
          }
          for row in sweep.rows
      ],
      'metrics': sweep.metrics,
      'split': sweep.split,
      'references': dict(sweep.references),
  }, indent=2)  # fmt: skip
  workdir.mkdir(parents=True, exist_ok=True)
  workdir_lib.write(workdir / 'sweep.json', text + '\n')


def two_stages(
    name: str,
    variants: Sequence[tuple[str, str, Mapping[str, Any]]],
    published: str,
    columns: Sequence[str] = (),
    seeds: int = 5,
) -> Sweep:
  """The table of one of the paper's datasets.

  Its first row is the ViT of stage 1, which starts from --paths clip=CLIP;
  the others are recipes of the dataset that start from that row's run. The data
  are --paths NAME=DATA.

  Args:
    name: of the dataset, in `vemd_jax.data.datasets`.
    variants: (name of the row, options of the recipe, changes).
    published: name of the row that the paper's own number belongs to.
    columns: keys of metrics; default the official ones.
    seeds: how many.

  Returns:
    The sweep; its recipes lie in the folder above.
  """
  facts = datasets.get(name)
  own = tuple(p for p in facts.published if p.source.startswith('VE-MD'))
  reported = facts.report_splits[0]
  rows = [
      Row(
          facts.title, 'vit', f'../stage1.py:{name}',
          {'data.root': f'{{{name}}}', 'checkpoint.init_from': ('{clip}',)},
          facts.folds,
      )
  ]  # fmt: skip
  start = {'data.root': f'{{{name}}}', 'checkpoint.init_from': ('{vit}',)}
  for row, options, changes in variants:
    rows.append(
        Row(
            facts.title, row, f'../{name}.py:{options}', {**start, **changes},
            facts.folds, own if row == published else (),
        )
    )  # fmt: skip
  return Sweep(
      rows=tuple(rows),
      metrics=tuple(columns or map(metrics.metric, facts.metrics)),
      # `for_dataset` reports on val what did not choose the checkpoint.
      split='val' if facts.choose_split in ('holdout', reported) else 'test',
      seeds=seeds,
      references={
          facts.title: tuple(p for p in facts.published if p not in own)
      },
  )
