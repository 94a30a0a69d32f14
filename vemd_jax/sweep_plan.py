"""Definition of a sweep: the rows of its table and the runs they need.

A sweep is a Python file that defines `SWEEP`, a `Sweep`. Each row is a recipe
with config overrides, trained with several seeds and on each fold.
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
    group: name of the group; rows are compared within a group.
    name: name of the row, unique in its group.
    recipe: recipe file, relative to the sweep file, with its options, such as
      `folder.py:ve_md`.
    overrides: config key -> value. In strings, `{name}` is replaced by a path
      given by --paths, and `{row}` (of the same group) or `{group/row}` by the
      workdir of that row's run with the same seed, which is executed first.
    folds: number of cross-validation folds; 0 without cross-validation.
    published: published numbers that this row is to reproduce.
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
    """Folder of the row's runs, relative to the sweep's workdir."""
    return '/'.join(
        re.sub(r'[^\w.+=-]+', '_', part) for part in (self.group, self.name)
    )


class Sweep(NamedTuple):
  """A sweep and the layout of its table.

  Attributes:
    rows: rows in the order of the table; the first row of a group is the
      baseline of the others.
    metrics: keys of `results.json`, the columns of the table.
    split: split to report, val or test.
    seeds: default number of seeds per row.
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
    row: row of the table that the run belongs to.
    seed: random seed.
    fold: fold, counted from 1; 0 without cross-validation.
  """

  row: Row
  seed: int
  fold: int

  @property
  def folder(self) -> str:
    """Folder relative to the sweep's workdir; identifies the run."""
    fold = f'_fold_{self.fold}' if self.fold else ''
    return f'{self.row.folder}/seed_{self.seed}{fold}'

  def __str__(self) -> str:
    fold = f', fold {self.fold}' if self.fold else ''
    return f'{self.row.key}, seed {self.seed}{fold}'


def load(argument: str) -> tuple[Sweep, pathlib.Path, str]:
  """Reads a sweep.

  Args:
    argument: path of the sweep file; options after a colon are passed to every
      recipe.

  Returns:
    (sweep, folder of its file, options).

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file does not define a valid sweep.
  """
  name, _, options = argument.partition(':')
  path = pathlib.Path(name)
  if not path.is_file():
    raise FileNotFoundError(f'no sweep at {path}')
  try:
    sweep = runpy.run_path(str(path)).get('SWEEP')
  except Exception as error:  # User code may raise any exception.
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
  """Lists all runs of a sweep.

  Seeds form the outer loop, so that every row has a result early.

  Args:
    sweep: the sweep.
    seeds: number of seeds per row.

  Returns:
    The runs, without duplicates.
  """
  return [
      Planned(row, seed, fold)
      for seed in range(seeds)
      for row in sweep.rows
      for fold in (range(1, row.folds + 1) if row.folds else (0,))
  ]


def names_in(row: Row) -> set[str]:
  """Names of the placeholders in a row's overrides."""
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
    """Stores the settings shared by all runs.

    Args:
      sweep: the sweep.
      base: folder of the sweep file.
      options: options passed to every recipe.
      workdir: workdir of the sweep.
      paths: name -> path that replaces the placeholder.
      more: arguments passed to every run, `--config.KEY=VALUE`.
    """
    self._base, self._options = base, options
    self._workdir, self._paths, self._more = workdir, paths, list(more)
    self._rows = {row.key: row for row in sweep.rows}

  def missing(self, row: Row) -> set[str]:
    """Names of the paths that the row requires but were not given."""
    result = set()
    for name in names_in(row):
      needed = self._row(row, name)
      if needed is not None:
        result |= self.missing(needed)
      elif name not in self._paths:
        result.add(name)
    return result

  def needs(self, run: Planned) -> list[Planned]:
    """The runs whose results this run depends on."""
    rows = (self._row(run.row, name) for name in sorted(names_in(run.row)))
    return [self._same(run, row) for row in rows if row is not None]

  def arguments(self, run: Planned) -> list[str]:
    """Arguments of `vemd_jax.main`, without the workdir."""
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
  """Builds the two-stage sweep of one of the paper's datasets.

  The first row is stage 1, the fine-tuning of the ViT from the weights given
  by --paths clip=CLIP. The other rows are stage 2 recipes that use the ViT of
  that run. The data are given by --paths NAME=DATA.

  Args:
    name: key of the dataset in `vemd_jax.data.datasets`.
    variants: (row name, recipe options, config overrides) of each row.
    published: name of the row that corresponds to the paper's own result.
    columns: keys of the metrics; by default the dataset's official metrics.
    seeds: default number of seeds per row.

  Returns:
    The sweep; its recipes are in the parent folder of the sweep file.
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
      # As in `config.for_dataset`: the reported split is the config's val split
      # if a holdout, or that split itself, selects the checkpoint.
      split='val' if facts.choose_split in ('holdout', reported) else 'test',
      seeds=seeds,
      references={
          facts.title: tuple(p for p in facts.published if p not in own)
      },
  )
