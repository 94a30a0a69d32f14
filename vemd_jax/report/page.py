"""The report of one run: setup, data, curves, results, gallery and cost."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from vemd_jax import plots, progress, surfaces
from vemd_jax.report import audit, markup, statistics
from vemd_jax.report.runs import Report, Scores

_PARTS = ('body_', 'face_')
_KINDS = {
    'right': 'Right, the most confident first',
    'wrong': 'Wrong, the most confident first',
    'unsure': 'Least confident',
}


def share(value: float, interval: tuple[float, float] | None = None) -> str:
  """`0.873 [0.842, 0.899]`."""
  if interval is None:
    return f'{value:.3f}'
  return f'{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]'


def summary(scores: Scores) -> dict[str, str]:
  """The main metrics of a split, with 95 % intervals."""
  confusion = scores.confusion()
  right, count = int(np.trace(confusion)), int(confusion.sum())
  _, error = statistics.reliability(
      scores.probabilities.max(1), scores.predicted == scores.labels
  )
  return {
      'accuracy': share(right / count, statistics.wilson(right, count)),
      'macro F1': share(
          float(statistics.macro_f1(confusion)),
          statistics.bootstrap(confusion, statistics.macro_f1),
      ),
      'UAR': share(
          float(statistics.uar(confusion)),
          statistics.bootstrap(confusion, statistics.uar),
      ),
      'calibration error': share(error),
      'log loss': share(
          statistics.log_loss(scores.probabilities, scores.labels)
      ),
      'majority class': share(confusion.sum(1).max() / count),
      'examples': str(count),
  }


def run(report: Report) -> str:
  """All sections of one run, as HTML."""
  parts = [
      _headline(report),
      '<h2>Setup and data</h2>',
      _setting(report),
      _data(report),
      '<h2>Learning curves</h2>',
      _curves(report),
      '<h2>Results</h2>',
      _results(report),
      _gallery(report),
      audit.section(report.audit),
      '<h2>Time and memory</h2>',
      markup.facts(cost(report)),
  ]
  return ''.join(parts)


def _headline(report: Report) -> str:
  """The main metrics of the last split that is reported."""
  if not report.results:
    return markup.note(
        'This run has no results yet; they are written after training.'
    )
  found = list(report.scores.items())
  if not found:
    return ''
  (split, dataset), scores = found[-1]
  chosen = report.results.get('chosen_on')
  line = f'{dataset}, {split}, checkpoint of step {report.step}.'
  if split == chosen:
    line += ' The checkpoint was chosen on this split: expect lower results '
    line += 'on new data.'
  return markup.tiles(summary(scores)) + markup.note(
      line + ' In brackets: 95 % intervals.'
  )


def _setting(report: Report) -> str:
  config, recipe = report.config, report.recipe
  model = config.get('model', {})
  values = {
      'recipe': recipe.get('recipe') or 'a config created in Python',
      'variant': f'{model.get("variant")}, decoder {model.get("decoder")}',
      'data': ', '.join(report.data or [config.get('data', {}).get('name')]),
      'steps': max((x['step'] for x in report.lines), default=0),
      'batch size': config.get('batch_size'),
      'seed': config.get('seed'),
  }
  columns = [markup.facts(values)]
  changes = recipe.get('changes')
  if changes:
    columns[0] += '<h3>Changes to the recipe</h3>' + markup.table(
        ('key', 'value'), changes.items()
    )
  elif recipe.get('recipe'):
    columns[0] += markup.note('The recipe is unchanged.')
  if report.versions:
    columns.append(markup.facts(report.versions))
  html = ''.join(f'<div>{column}</div>' for column in columns)
  html = f'<div class="columns">{html}</div>'
  table = markup.table(('key', 'value'), _flat(config).items())
  return html + markup.folded('The whole config', table, 'config')


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  result = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      result |= _flat(value, f'{prefix}{key}.')
    else:
      result[prefix + key] = value
  return result


def _data(report: Report) -> str:
  html = ''
  for dataset, splits in report.data.items():
    classes = list(next(iter(splits.values()))['classes'])
    known = any('annotated' in counts for counts in splits.values())
    header = ['split', 'samples', *classes, 'without label']
    header += ['annotated', 'left out', 'invalid lines'] * known
    rows = []
    for split, counts in splits.items():
      row = [split, counts['samples']]
      row += [counts['classes'].get(name, 0) for name in classes]
      row += [counts['unlabelled']]
      if known:
        keys = ('annotated', 'left_out', 'invalid_lines')
        row += [counts.get(key, '-') for key in keys]
      rows.append(row)
    html += f'<h3>Data: {markup.text(dataset)}</h3>'
    html += markup.table(header, rows)
    problems = [
        line
        for counts in splits.values()
        for line in counts.get('problems', ())
    ]
    if problems:
      lines = ''.join(f'<li>{markup.text(line)}</li>' for line in problems)
      title = f'Problems in the data ({len(problems)})'
      html += markup.folded(title, f'<ul>{lines}</ul>')
    unread = [
        file
        for (_, name), scores in report.scores.items()
        for file in scores.unreadable
        if name == dataset
    ]
    if unread:
      html += markup.note(f'Unreadable: {", ".join(unread)}.')
  return html


def _curves(report: Report) -> str:
  curves = plots.history(report.lines)
  names = plots.learned(list(curves))
  if not names:
    return markup.note('There are no metrics yet.')
  charts: dict[bool, list[str]] = {True: [], False: []}
  for name in names:
    surface = surfaces.Svg(360, 230)
    plots.line_chart(
        surface,
        name,
        [
            plots.Curve(
                split,
                *points,
                plots.TRAIN if split == 'train' else plots.EVALUATION,
                split != 'train',
            )
            for split, points in curves[name].items()
            if split != 'test'
        ],
        {} if report.step is None else {report.step: plots.COLOURS[1]},
    )
    charts[_is_main(name)].append(surface.markup(f'{name} over the steps'))
  text = (
      'Grey: training batches; blue: evaluation on the split that selects '
      'the checkpoint.'
  )
  if report.step is not None:
    text += f' Dashed: the selected checkpoint, step {report.step}.'
  html = markup.note(text) + markup.charts(charts[True])
  if charts[False]:
    html += markup.folded('More curves', markup.charts(charts[False]))
  return html


def _is_main(name: str) -> bool:
  name = name.rpartition('/')[2]
  return not (
      name.startswith('recall_')
      or name.endswith('_norm')
      or name in ('learning_rate', 'weighted_f1')
  )


def _results(report: Report) -> str:
  splits = [s for s in ('val', 'test') if s in report.results]
  if not splits:
    return markup.note('There are no results yet.')
  datasets = list(report.data) or sorted({d for _, d in report.scores})
  html = ''
  for split in splits:
    for dataset in datasets or ['']:
      html += f'<h3>{markup.text(f"{dataset}, {split}")}</h3>'
      if split == report.results.get('chosen_on'):
        html += markup.note('The checkpoint was chosen on this split.')
      scores = report.scores.get((split, dataset))
      if scores is not None:
        html += _scores(scores)
      html += _numbers(
          report.metrics(split, dataset), report.config.get('losses', {})
      )
  return html


def _scores(scores: Scores) -> str:
  confusion = scores.confusion()
  rows = []
  for i, name in enumerate(scores.classes):
    right = int(confusion[i, i])
    true, said = int(confusion[i].sum()), int(confusion[:, i].sum())

    def one(counts, i=i):
      return statistics.f1(counts)[..., i]

    rows.append((
        name,
        true,
        share(right / true, statistics.wilson(right, true)) if true else '-',
        share(right / said, statistics.wilson(right, said)) if said else '-',
        share(float(one(confusion)), statistics.bootstrap(confusion, one)),
    ))
  html = markup.tiles(summary(scores))
  html += markup.table(('class', 'examples', 'recall', 'precision', 'F1'), rows)
  bins, error = statistics.reliability(
      scores.probabilities.max(1), scores.predicted == scores.labels
  )
  matrix = plots.confusion(surfaces.Svg, confusion, scores.classes, 'Confusion')
  diagram = surfaces.Svg(400, 300)
  plots.reliability(
      diagram, f'Reliability, calibration error {error:.3f}', bins
  )
  html += (
      f'<div class="pair">{matrix.markup("confusion matrix")}'
      f'{diagram.markup("accuracy over confidence")}</div>'
  )
  html += markup.note(
      'Reliability: on the diagonal, accuracy equals confidence; below it the '
      'model is overconfident. Lines: 95 % intervals; shaded: number of '
      'predictions.'
  )
  return html + _sources(scores)


def _sources(scores: Scores) -> str:
  """Results by origin of the samples."""
  sources = np.array(scores.sources)
  names, counts = np.unique(sources, return_counts=True)
  if len(names) < 2:
    return ''
  rows = []
  for k in np.argsort(-counts, kind='stable')[:50]:
    confusion = scores.confusion(sources == names[k])
    right, count = int(np.trace(confusion)), int(confusion.sum())
    rows.append((
        names[k] or 'unknown',
        count,
        share(right / count, statistics.wilson(right, count)),
        share(float(statistics.macro_f1(confusion))),
    ))
  html = '<h3>By source</h3>' + markup.table(
      ('source', 'examples', 'accuracy', 'macro F1'), rows
  )
  if len(names) > 50:
    html += markup.note(f'The 50 largest of {len(names)} sources.')
  return html


def _numbers(metrics: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
  """Metrics of the decoded structure, then all others."""
  numbers = {
      k: v
      for k, v in metrics.items()
      if isinstance(v, int | float) and not isinstance(v, bool)
  }
  structure = {
      k: v
      for k, v in numbers.items()
      if k.startswith(_PARTS) and k not in terms
  }
  html = ''
  if structure:
    html += '<h3>Structure</h3>' + markup.table(
        ('metric', 'value'), structure.items()
    )
  rest = {k: v for k, v in numbers.items() if k not in structure}
  if rest:
    table = markup.table(('metric', 'value'), rest.items())
    html += markup.folded('All other metrics', table)
  return html


def _gallery(report: Report) -> str:
  if not report.gallery:
    return ''
  people = report.config.get('pictures', {}).get('people')
  html = '<h2>Gallery</h2>'
  if people == 'show':
    html += markup.note(
        'These pictures show people: share this file only with those who may '
        'see them. config.pictures.people=blur pixelates heads, off omits '
        'pictures.'
    )
  groups: dict[tuple, list] = {}
  for entry in report.gallery:
    key = entry['split'], entry['dataset'], entry['kind']
    groups.setdefault(key, []).append(entry)
  for (split, dataset, kind), entries in groups.items():
    title = f'{_KINDS[kind]} ({dataset}, {split})'
    figures = ''.join(map(_figure, entries))
    html += f'<h3>{markup.text(title)}</h3><div class="gallery">{figures}</div>'
  return html


def _figure(entry: Mapping[str, Any]) -> str:
  data = base64.b64encode(entry['picture']).decode()
  right = entry['label'] == entry['predicted']
  said = f'{entry["predicted"]} {entry["probability"]:.2f}'
  caption = f'{said}, right' if right else f'{said}, true {entry["label"]}'
  return (
      f'<figure class="{"right" if right else "wrong"}">'
      f'<img loading="lazy" alt="{markup.text(caption)}" '
      f'src="data:image/jpeg;base64,{data}">'
      f'<figcaption>{markup.text(caption)}'
      f'<small>{markup.text(entry["file"])}</small></figcaption></figure>'
  )


def cost(report: Report) -> dict[str, str]:
  """Time and memory by description."""
  train = [x for x in report.lines if x['split'] == 'train']

  def of(key):
    return np.array([x[key] for x in train if x.get(key) is not None], float)

  # The first interval includes the compilation.
  rate, wait = of('examples_per_second')[1:], of('input_wait')[1:]
  values = {
      'steps': str(max((x['step'] for x in train), default=0)),
      'training time, with evaluations': (
          progress.duration(of('seconds').sum()) if len(of('seconds')) else '-'
      ),
      'examples per second (median)': (
          f'{np.median(rate):.4g}' if len(rate) else '-'
      ),
      'time waiting for input': (
          f'{100 * wait.mean():.0f} %' if len(wait) else '-'
      ),
  }
  for key, what in (
      ('host_memory', 'peak memory of the process'),
      ('device_memory', 'peak memory of the first device'),
  ):
    if len(of(key)):
      values[what] = f'{of(key).max() / 1e9:.2f} GB'
  return values
