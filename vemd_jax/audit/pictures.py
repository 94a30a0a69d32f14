"""Charts of an audit, and reconstructed pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vemd_jax import canvas, plots, surfaces
from vemd_jax.audit import measure
from vemd_jax.audit.measure import Measure

_WIDTH, _ROW = 460, 22


def groups(
    measures: Sequence[Measure],
) -> dict[tuple[str, str, str], list[Measure]]:
  """Measures by (attack, target, metric), in order of appearance."""
  result: dict[tuple[str, str, str], list[Measure]] = {}
  for one in measures:
    key = one.attack, one.target, one.metric
    result.setdefault(key, []).append(one)
  return result


def title(key: tuple[str, str, str]) -> str:
  """A group's title, such as `identity, closed set: rank-1 accuracy`."""
  return f'{key[0]}, {key[1]}: {key[2]}'


def chart(
    make: type[surfaces.Svg] | type[surfaces.Raster],
    measures: Sequence[Measure],
) -> surfaces.Svg | surfaces.Raster:
  """Draws one group: a tap per row, its interval, and chance as a dashed line.

  Args:
    make: type of the surface.
    measures: measures of one group.

  Returns:
    The surface.
  """
  first = measures[0]
  surface = make(_WIDTH, 66 + _ROW * len(measures))
  plots.intervals(
      surface,
      title((first.attack, first.target, first.metric)),
      [plots.Interval(m.tap, m.value, m.low, m.high) for m in measures],
      first.chance,
  )
  return surface


def roc(
    make: type[surfaces.Svg] | type[surfaces.Raster],
    curves: Mapping[str, Any],
) -> surfaces.Svg | surfaces.Raster:
  """Draws the verification curves of all taps, the pixels' in grey.

  Args:
    make: type of the surface.
    curves: tap -> (rates of false positives, rates of true positives).

  Returns:
    The surface.
  """
  surface = make(_WIDTH, 340)
  drawn = []
  for i, (tap, (false, true)) in enumerate(curves.items()):
    colour = plots.COLOURS[i % len(plots.COLOURS)]
    if tap == measure.PIXELS:
      colour = plots.TRAIN
    drawn.append(plots.Curve(tap, false, true, colour, False))
    y = 300 - 16 * (len(curves) - i)
    surface.box(300, y - 8, 10, 10, colour)
    surface.label(316, y, tap)
  plots.line_chart(
      surface, 'Verification: true positives over false positives', drawn,
      x_name='false positive rate',
  )  # fmt: skip
  return surface


def sheet(
    true: np.ndarray, found: Mapping[str, np.ndarray], count: int = 6
) -> np.ndarray:
  """Reconstructions beside the pictures, which show people.

  Args:
    true: [n, h, w, 3], 0..1.
    found: tap -> reconstructions of the same pictures.
    count: number of rows.

  Returns:
    uint8 [H, W, 3].
  """
  columns = {'picture': true, **found}
  chosen = np.linspace(0, len(true) - 1, count).astype(int)
  rows = [
      ([np.clip(255 * c[i], 0, 255).astype(np.uint8)
        for c in columns.values()], '')
      for i in chosen
  ]  # fmt: skip
  return canvas.contact_sheet(rows, list(columns), cell=96)
