"""The section of a report on what the model reveals about people."""

import math
from collections.abc import Mapping
from typing import Any

from vemd_jax import surfaces
from vemd_jax.audit import pictures
from vemd_jax.report import markup

_MEANING = (
    'Attackers fitted on the training split, tested on the split val, for each '
    'tap of the model; pixels: the input of the model, as a baseline. Lines: '
    '95 % bootstrap intervals; dashed: chance. An attack that fails shows that '
    'this attack fails, not that none succeeds.'
)


def section(found: Mapping[str, Any]) -> str:
  """The results of `vemd audit`, as HTML.

  Args:
    found: from `audit.measure.read`.

  Returns:
    HTML; '' if the run was not audited.
  """
  if not found:
    return ''
  charts, rows = [], []
  for key, group in pictures.groups(found['measures']).items():
    surface = pictures.chart(surfaces.Svg, group)
    charts.append(surface.markup(pictures.title(key)))
    rows += [
        (m.attack, m.target, m.metric, m.tap, number(m.value),
         f'{number(m.low)} to {number(m.high)}', number(m.chance), m.count,
         m.unit, m.method)
        for m in group
    ]  # fmt: skip
  if found['curves']:
    surface = pictures.roc(surfaces.Svg, found['curves'])
    charts.append(surface.markup('Verification'))
  counts = ', '.join(f'{k} {v}' for k, v in found['samples'].items())
  header = (
      'attack', 'target', 'metric', 'tap', 'value', 'interval', 'chance',
      'count', 'of', 'method',
  )  # fmt: skip
  notes = [f'Checkpoint of step {found["step"]}; samples: {counts}.']
  return ''.join([
      '<h2>Privacy audit</h2>',
      markup.note(_MEANING),
      *map(markup.note, [*notes, *found['notes']]),
      markup.charts(charts),
      markup.folded('All figures', markup.table(header, rows)),
  ])


def number(value: float) -> str:
  """Three decimal places; '-' for a value that is undefined."""
  return f'{value:.3f}' if math.isfinite(value) else '-'
