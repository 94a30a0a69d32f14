r"""Makes the table of a sweep, or of several runs.

  python -m vemd_jax.table SWEEP
  python -m vemd_jax.table RUN_1 RUN_2 RUN_3

The first form reads the runs of vemd_jax.sweep that are done and writes
table.md, table.tex, table.png and table.json there. The second takes workdirs
that differ only in seed or fold, prints their mean, and writes the same files
beside the first of them.

Each row has the mean, the standard deviation between runs and a 95 % interval
of the mean (Student's t); its difference from the first row of its group, or
from --against, on the same seeds, with a paired t-test; and p corrected for the
number of rows in the group (Holm). With folds, the seeds of a fold are averaged
and n counts folds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath

from vemd_jax import metrics, plots, results, surfaces
from vemd_jax.data.datasets import Published

HEADS = (
    'n', '{metric}', 'std', '95 % interval', 'difference', '95 % interval', 'p',
    'p (Holm)', 'published',
)  # fmt: skip


class Line(NamedTuple):
  """A row of a table.

  Attributes:
    name: name of the row, or of the method of a published number.
    summary: statistics of the runs; None for a published number.
    comparison: comparison with the baseline row; None for that row.
    holm: p value corrected by Holm's method.
    published: (value in percent, note) or None.
  """

  name: str
  summary: results.Summary | None
  comparison: results.Comparison | None
  holm: float | None
  published: Published | None


class Table(NamedTuple):
  """The rows of a group for one metric.

  Attributes:
    group: name of the group.
    metric: display name of the metric.
    percent: whether the metric is a share in [0, 1], printed in percent.
    split: val or test.
    against: name of the baseline row.
    lines: rows of the table.
  """

  group: str
  metric: str
  percent: bool
  split: str
  against: str
  lines: tuple[Line, ...]


def tables(sweep: dict[str, Any], workdir: epath.Path,
           against: str = '') -> list[Table]:  # fmt: skip
  """Computes the tables of a sweep from its completed runs.

  Args:
    sweep: content of sweep.json, see `sweep_plan.save`.
    workdir: workdir of the sweep.
    against: name of the baseline row; by default each group's first row.

  Returns:
    One table per group and metric that a run of the group has.

  Raises:
    ValueError: see `results.read`.
  """
  groups: dict[str, list[tuple[dict, results.Runs]]] = {}
  for row in sweep['rows']:
    runs = results.read(
        results.run_folders(workdir / row['folder']), sweep['split']
    )
    groups.setdefault(row['group'], []).append((row, runs))
  made = []
  for group, rows in groups.items():
    if not any(runs for _, runs in rows):
      continue
    names = [row['name'] for row, _ in rows]
    first = against if against in names else names[0]
    known = {key for _, runs in rows for run in runs.values() for key in run}
    for metric in sweep['metrics']:
      if metric not in known:
        continue
      given = [Published(*p) for p in sweep['references'].get(group, ())]
      made.append(
          Table(
              group, title(metric), percent(metric), sweep['split'], first,
              (*_lines(rows, metric, first), *_references(given, metric)),
          )
      )  # fmt: skip
  return made


def _lines(rows, metric: str, first: str) -> list[Line]:
  values = {row['name']: results.units(runs, metric) for row, runs in rows}
  compared = [
      None
      if name == first or not of_row or not values[first]
      else results.compare(of_row, values[first])
      for name, of_row in values.items()
  ]
  corrected = results.holm([c.p if c else None for c in compared])
  return [
      Line(
          row['name'],
          results.summary(list(values[row['name']].values())),
          comparison,
          p,
          next(iter(_of_metric(map(_published, row['published']), metric)),
               None),
      )
      for (row, _), comparison, p in zip(rows, compared, corrected)
  ]  # fmt: skip


def _published(fields: Sequence) -> Published:
  return Published(*fields)


def _of_metric(published, metric: str) -> list[Published]:
  return [p for p in published if metrics.metric(p.metric) == metric]


def _references(given, metric: str) -> list[Line]:
  return [
      Line(f'{p.source} ({p.split})', None, None, None, p)
      for p in _of_metric(given, metric)
  ]


def one_row(workdirs: Sequence[epath.Path], split: str) -> list[Table]:
  """Tables of workdirs that differ only in seed or fold.

  Args:
    workdirs: workdirs of the runs.
    split: val or test.

  Returns:
    One line per metric that all runs have; one table for shares and one for
    other numbers.

  Raises:
    FileNotFoundError: if a run has no results yet; names the run.
    ValueError: see `results.read`.
  """
  for workdir in workdirs:
    if not (workdir / 'results.json').exists():
      raise FileNotFoundError(
          f'{workdir / "results.json"} does not exist: that run is not done'
      )
  runs = results.read(workdirs, split)
  common = set.intersection(*(set(numbers) for numbers in runs.values()))
  # The datasets' official metrics first, in their order.
  order = [m for m in dict.fromkeys(metrics.NAMES.values()) if m in common]
  order += sorted(common - set(order))
  made = []
  for share in (True, False):
    lines = tuple(
        Line(
            title(metric),
            results.summary(list(results.units(runs, metric).values())),
            None, None, None,
        )
        for metric in order
        if percent(metric) == share
    )  # fmt: skip
    if lines:
      name = f'{len(runs)} runs'
      made.append(Table(name, 'mean', share, split, '', lines))
  return made


def percent(metric: str) -> bool:
  """Whether a metric of `results.read` is a share in [0, 1]."""
  return not metric.endswith(('_mse', '_error', 'loss', 'epsilon', '(dB)'))


def title(metric: str) -> str:
  """Display name of a metric."""
  if metric.startswith('audit/'):
    _, tap, target, name = metric.split('/')
    return f'{name} of {target} from {tap}'
  return {
      'accuracy': 'accuracy (WAR)',
      'uar': 'UAR',
      'privacy/epsilon': 'epsilon',
  }.get(metric, metric)


def cells(table: Table, line: Line) -> list[str]:
  """The cells of a line as text, one per column in `HEADS`."""
  scale, digits = (100, 2) if table.percent else (1, 4)

  def number(value, sign=''):
    return '–' if value is None else f'{value * scale:{sign}.{digits}f}'

  def interval(low, high, sign=''):
    if low is None:
      return '–'
    return f'{number(low, sign)} to {number(high, sign)}'

  def p_value(p):
    return '–' if p is None else '< 0.001' if p < 0.001 else f'{p:.3f}'

  published = '–'
  if line.published is not None:
    published = f'{line.published.value:.2f}'
  if line.summary is None:
    return ['–'] * 8 + [published]
  s = line.summary
  c = line.comparison or results.Comparison(0, None, None, None, None)
  return [
      str(s.n), number(s.mean), number(s.std), interval(s.low, s.high),
      number(c.difference, '+'), interval(c.low, c.high, '+'), p_value(c.p),
      p_value(line.holm), published,
  ]  # fmt: skip


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
  """Column titles and rows as text, without empty columns."""
  metric = table.metric + (', %' if table.percent else '')
  heads = ['', *(h.format(metric=metric) for h in HEADS)]
  rows = [[line.name, *cells(table, line)] for line in table.lines]
  filled = [
      i for i in range(len(heads)) if i < 3 or any(r[i] != '–' for r in rows)
  ]
  return [heads[i] for i in filled], [[r[i] for i in filled] for r in rows]


def _notes(table: Table) -> list[str]:
  notes = []
  if any(line.comparison for line in table.lines):
    notes.append(f'Differences are from {table.against}, on the same seeds.')
  for line in table.lines:
    if line.published is not None and line.summary is not None:
      p = line.published
      notes.append(
          f'Published for {line.name}: {p.value:.2f} ({p.source}; split: '
          f'{p.split}).'
      )
  return notes


def heading(table: Table) -> str:
  """Title of a table: group, metric and split."""
  return f'{table.group}: {table.metric} on {table.split}'


def markdown(made: Sequence[Table]) -> str:
  """Formats the tables as Markdown."""
  text = []
  for table in made:
    heads, rows = _grid(table)
    text += [
        f'### {heading(table)}', '',
        '| ' + ' | '.join(heads) + ' |',
        '|' + '---|' * len(heads),
        *('| ' + ' | '.join(row) + ' |' for row in rows), '',
    ]  # fmt: skip
    notes = _notes(table)
    if notes:
      text += [' '.join(notes), '']
  return '\n'.join(text)


def latex(made: Sequence[Table]) -> str:
  """Formats the tables as LaTeX."""
  text = []
  for table in made:
    heads, rows = _grid(table)
    caption = ' '.join([heading(table) + '.', *_notes(table)])
    text += [
        r'\begin{table}', r'\centering', rf'\caption{{{_escape(caption)}}}',
        r'\begin{tabular}{l' + 'r' * (len(heads) - 1) + '}', r'\hline',
        ' & '.join(map(_escape, heads)) + r' \\', r'\hline',
        *(' & '.join(map(_escape, row)) + r' \\' for row in rows),
        r'\hline', r'\end{tabular}', r'\end{table}', '',
    ]  # fmt: skip
  return '\n'.join(text)


def _escape(text: str) -> str:
  for old, new in (
      ('\\', r'\textbackslash '), ('&', r'\&'), ('%', r'\%'), ('_', r'\_'),
      ('#', r'\#'), ('$', r'\$'), ('<', '$<$'), ('–', '--'),
  ):  # fmt: skip
    text = text.replace(old, new)
  return text


def picture(made: Sequence[Table]) -> np.ndarray:
  """Plots means, intervals and published numbers; uint8 [H, W, 3] RGB.

  Args:
    made: tables; each is a panel with an axis of its own.

  Returns:
    A dot for each mean, a line for its interval, and a bar for each published
    number.
  """
  panels = []
  for table in made:
    scale = 100 if table.percent else 1
    rows = []
    for line in table.lines:
      s = line.summary or results.Summary(0, None, None, None, None)
      values = [
          None if v is None else v * scale for v in (s.mean, s.low, s.high)
      ]
      published = line.published and line.published.value
      rows.append(plots.Interval(line.name, *values, published))
    panel = surfaces.Raster(820, 66 + 24 * len(rows))
    plots.intervals(panel, heading(table), rows, names=300)
    panels.append(panel.picture)
  return np.concatenate(panels)


def undone(sweep: dict[str, Any], workdir: epath.Path) -> list[str]:
  """Runs that were started but are not done, each with the reason."""
  lines = []
  for row in sweep['rows']:
    for run in results.run_folders(workdir / row['folder']):
      if (run / 'results.json').exists():
        continue
      failed = run / 'failed.txt'
      why = failed.read_text().strip() if failed.exists() else 'not finished'
      lines.append(f'{run.relative_to(workdir)}: {why}')
  return lines


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.table',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdirs', nargs='+', help='a sweep, or several runs')
  parser.add_argument(
      '--against', default='', help='row that the others are compared with'
  )
  parser.add_argument(
      '--split', default='val', choices=('val', 'test'), help='of several runs'
  )
  arguments = parser.parse_args(argv)
  try:
    return _make(arguments)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 1


def _make(arguments: argparse.Namespace) -> int:
  workdirs = [epath.Path(w).absolute() for w in arguments.workdirs]
  out, left = workdirs[0], []
  if (out / 'sweep.json').exists() and len(workdirs) == 1:
    sweep = json.loads((out / 'sweep.json').read_text())
    names = {row['name'] for row in sweep['rows']}
    if arguments.against and arguments.against not in names:
      raise ValueError(
          f'--against {arguments.against}: expected one of '
          f'{", ".join(sorted(names))}'
      )
    made = tables(sweep, out, arguments.against)
    left = undone(sweep, out)
    if not made:
      raise ValueError(f'no run of {out} is done, {len(left)} were started')
  else:
    made = one_row(workdirs, arguments.split)
    out = out.parent
  text = markdown(made)
  if left:
    text += '\nNot done:\n\n' + ''.join(f'- {line}\n' for line in left)
  print(text)
  (out / 'table.md').write_text(text)
  (out / 'table.tex').write_text(latex(made))
  png = cv2.imencode('.png', picture(made)[..., ::-1])[1]
  (out / 'table.png').write_bytes(png.tobytes())
  (out / 'table.json').write_text(json.dumps(_plain(made), indent=2) + '\n')
  print(f'written to {out / "table"}.md, .tex, .png and .json')
  return 0


def _plain(made: Sequence[Table]) -> list[dict[str, Any]]:
  return [
      {
          **table._asdict(),
          'lines': [
              {
                  key: value._asdict() if hasattr(value, '_asdict') else value
                  for key, value in line._asdict().items()
              }
              for line in table.lines
          ],
      }
      for table in made
  ]


if __name__ == '__main__':
  sys.exit(main())
