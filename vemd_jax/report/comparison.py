"""Comparison of several runs: joint learning curves and paired tests."""

from collections.abc import Sequence

import numpy as np

from vemd_jax import plots, surfaces
from vemd_jax.report import markup, statistics
from vemd_jax.report.page import cost, summary
from vemd_jax.report.runs import Report, Scores, differences


def compare(reports: Sequence[Report]) -> str:
  """Compares runs with the first one, as HTML."""
  legend = ''.join(
      f'<span class="swatch" style="background:{_colour(i)}"></span>'
      f'{markup.text(r.name)} &nbsp; '
      for i, r in enumerate(reports)
  )
  return ''.join([
      '<h2>Results side by side</h2>',
      _numbers(reports),
      '<h2>Paired tests</h2>',
      _tests(reports),
      '<h2>Learning curves</h2>',
      f'<p>{legend}</p>',
      _curves(reports),
      '<h2>Differences between the configs</h2>',
      _configs(reports),
      '<h2>Time and memory side by side</h2>',
      _costs(reports),
  ])


def _colour(number: int) -> str:
  return plots.COLOURS[number % len(plots.COLOURS)]


def _numbers(reports: Sequence[Report]) -> str:
  html = ''
  keys = [k for k in reports[0].scores if all(k in r.scores for r in reports)]
  for split, dataset in keys:
    columns = [summary(r.scores[split, dataset]) for r in reports]
    html += f'<h3>{markup.text(f"{dataset}, {split}")}</h3>' + markup.table(
        ('metric', *(r.name for r in reports)),
        [(name, *(c[name] for c in columns)) for name in columns[0]],
    )
  return html or markup.note('The runs have no split of a dataset in common.')


def _tests(reports: Sequence[Report]) -> str:
  first, html = reports[0], ''
  for (split, dataset), scores in first.scores.items():
    rows = []
    for other in reports[1:]:
      if (split, dataset) not in other.scores:
        continue
      joint = None
      if _same_scenes(first, other):
        joint = _joint(scores, other.scores[split, dataset])
      if joint is None:
        rows.append((other.name, 0, *['-'] * 5))
        continue
      rows.append((other.name, *_paired(joint)))
    if rows:
      html += f'<h3>{markup.text(f"{dataset}, {split}")}</h3>' + markup.table(
          (
              f'minus {first.name}', 'same samples', 'accuracy', 'macro F1',
              'only this right', f'only {first.name} right', 'McNemar p',
          ),
          rows,
      )  # fmt: skip
  if not html:
    return markup.note('The runs have no split of a dataset in common.')
  return html + markup.note(
      'Differences on the samples that both runs were evaluated on, with 95 % '
      'intervals from a paired bootstrap. p: exact McNemar test of the '
      'accuracies, not corrected for the number of comparisons. Both account '
      'for the choice of test samples, not for the variation between seeds.'
  )


def _same_scenes(one: Report, other: Report) -> bool:
  """Whether drawn samples with equal names are identical in both runs."""
  settings = []
  for report in one, other:
    data = report.config.get('data', {})
    scenes = data.get('group_scenes', {}).items()
    settings.append(
        {k: v for k, v in scenes if not k.endswith('_samples')}
        if data.get('source') == 'group_scenes'
        else None
    )
  return settings[0] == settings[1]


def _joint(one: Scores, other: Scores) -> np.ndarray | None:
  """[C, C, C] counts by true class and both predictions; None without any."""
  if one.classes != other.classes:
    return None
  place = {file: i for i, file in enumerate(other.files)}
  pairs = [
      (i, place[file])
      for i, file in enumerate(one.files)
      if file in place and one.labels[i] == other.labels[place[file]]
  ]
  if not pairs:
    return None
  a, b = np.array(pairs).T
  count = len(one.classes)
  joint = np.zeros((count, count, count), np.int64)
  np.add.at(joint, (one.labels[a], one.predicted[a], other.predicted[b]), 1)
  return joint


def _paired(joint: np.ndarray) -> tuple:
  cells = []
  for metric in statistics.accuracy, statistics.macro_f1:
    value = float(metric(joint.sum(1)) - metric(joint.sum(2)))
    low, high = statistics.paired_bootstrap(joint, metric)
    cells.append(f'{value:+.3f} [{low:+.3f}, {high:+.3f}]')
  classes = np.arange(len(joint))
  both = int(joint[classes, classes, classes].sum())
  first = int(joint.sum(2)[classes, classes].sum()) - both
  second = int(joint.sum(1)[classes, classes].sum()) - both
  p = statistics.mcnemar(first, second)
  p = f'{p:.3f}' if p >= 0.001 else f'{p:.1e}'
  return int(joint.sum()), *cells, second, first, p


def _curves(reports: Sequence[Report]) -> str:
  histories = [plots.history(r.lines) for r in reports]
  names = plots.learned(list(dict.fromkeys(n for h in histories for n in h)))
  charts = []
  for name in names:
    surface = surfaces.Svg(360, 230)
    curves = []
    for i, (report, history) in enumerate(zip(reports, histories)):
      for split, points in history.get(name, {}).items():
        if split != 'test':
          what = f'{report.name}, {split}'
          strong = split != 'train'
          curves.append(plots.Curve(what, *points, _colour(i), strong))
    marks = {r.step: _colour(i) for i, r in enumerate(reports)
             if r.step is not None}  # fmt: skip
    plots.line_chart(surface, name, curves, marks)
    charts.append(surface.markup(f'{name} over the steps'))
  return markup.note(
      'Thick: evaluation on the split that selects the checkpoint; thin: '
      'training batches; dashed: selected checkpoints.'
  ) + markup.charts(charts)


def _configs(reports: Sequence[Report]) -> str:
  keys = sorted({
      key for other in reports[1:]
      for key in differences(reports[0].config, other.config)
  })  # fmt: skip
  if not keys:
    return markup.note('The configs are equal.')

  def value(report, key):
    found = report.config
    for part in key.split('.'):
      found = found.get(part) if isinstance(found, dict) else None
    return found

  return markup.table(
      ('key', *(r.name for r in reports)),
      [(key, *(value(r, key) for r in reports)) for key in keys],
  )


def _costs(reports: Sequence[Report]) -> str:
  columns = [cost(r) for r in reports]
  names = list(dict.fromkeys(name for c in columns for name in c))
  return markup.table(
      ('', *(r.name for r in reports)),
      [(name, *(c.get(name, '-') for c in columns)) for name in names],
  )


