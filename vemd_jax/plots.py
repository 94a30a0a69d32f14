"""Plots of a run, on the surfaces of `vemd_jax.surfaces`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vemd_jax import canvas
from vemd_jax.surfaces import FAINT, GREY, INK, Raster, Svg

# Colours of runs side by side, from the palette of Okabe and Ito, which is
# distinguishable with colour vision deficiency.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
TRAIN, EVALUATION, PUBLISHED = '#8a94a6', COLOURS[0], COLOURS[1]
# Longer curves are averaged over this number of intervals.
_MOST_POINTS = 300


class Curve(NamedTuple):
  """A line of a chart.

  Attributes:
    name: name of the line.
    x: [n] steps.
    y: [n] values.
    colour: as '#rrggbb'.
    strong: whether it is thick, with markers at its points.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  colour: str
  strong: bool


class Bin(NamedTuple):
  """Predictions of similar confidence.

  Attributes:
    confidence: their mean confidence.
    accuracy: their accuracy.
    low: lower end of the 95 % interval of the accuracy.
    high: its upper end.
    count: number of predictions.
  """

  confidence: float
  accuracy: float
  low: float
  high: float
  count: int


class Interval(NamedTuple):
  """A row of a plot of intervals; what is None or not finite is not drawn.

  Attributes:
    name: label of the row.
    value: the value, such as a mean.
    low: lower end of its interval.
    high: upper end of its interval.
    published: number for reference.
  """

  name: str
  value: float | None
  low: float | None
  high: float | None
  published: float | None = None


class _Axes:
  """Maps values to pixels and draws the frame of a plot."""

  def __init__(self, surface, box, x_range, y_range, log=False):
    self._surface, self._log = surface, log
    self.left, self.top, self.right, self.bottom = box
    self._x, self._y = x_range, tuple(map(self._scale, y_range))

  def _scale(self, value):
    return np.log10(value) if self._log else value

  def at(self, x, y) -> tuple:
    """Pixel coordinates of values, clipped to the range."""
    u = (np.asarray(x) - self._x[0]) / (self._x[1] - self._x[0])
    v = (self._scale(np.asarray(y)) - self._y[0]) / (self._y[1] - self._y[0])
    u, v = np.clip(u, 0, 1), np.clip(v, 0, 1)
    return (
        self.left + u * (self.right - self.left),
        self.bottom - v * (self.bottom - self.top),
    )

  def frame(self, x_ticks, y_ticks, x_name: str) -> None:
    for value in y_ticks:
      _, y = self.at(self._x[0], value)
      ends = (self.left, y), (self.right, y)
      self._surface.line(ends, FAINT)
      text = _number(value)
      self._surface.label(self.left - 5, y + 4, text, anchor='end')
    for value in x_ticks:
      x, _ = self.at(value, 10 ** self._y[0] if self._log else self._y[0])
      ends = (x, self.bottom), (x, self.bottom + 3)
      self._surface.line(ends, GREY)
      self._surface.label(
          x, self.bottom + 15, _number(value), anchor='middle'
      )
    ends = (self.left, self.bottom), (self.right, self.bottom)
    self._surface.line(ends, GREY)
    self._surface.label(self.right, self.bottom + 28, x_name, anchor='end')


def line_chart(
    surface: Svg | Raster,
    title: str,
    curves: Sequence[Curve],
    marks: Mapping[float, str] | None = None,
    x_name: str = 'step',
    origin: tuple[int, int] = (0, 0),
    size: tuple[int, int] | None = None,
) -> None:
  """Draws curves over the training steps.

  Args:
    surface: surface to draw on.
    title: title of the plot.
    curves: the curves; values that are not finite are skipped.
    marks: step -> colour of a vertical dashed line.
    x_name: name of the x axis.
    origin: (x, y) of the upper left corner of the plot on the surface.
    size: (width, height) of the plot; the whole surface by default.
  """
  (x0, y0), (w, h) = origin, size or (surface.width, surface.height)
  surface.label(x0 + 8, y0 + 18, title, 13, INK)
  curves = [c._replace(**_points(c)) for c in curves]
  curves = [c for c in curves if len(c.x)]
  if not curves:
    return
  marks = marks or {}
  y = np.concatenate([c.y for c in curves])
  x = np.concatenate([c.x for c in curves] + [list(marks)])
  # A linear axis hides the end of a decrease by orders of magnitude; a
  # logarithmic one would hide the end of a rise, such as that of PCK.
  falls = any(c.y[-1] < c.y[0] for c in curves)
  log = bool(falls and y.min() > 0 and y.max() > 30 * y.min())
  box = x0 + 52, y0 + 30, x0 + w - 20, y0 + h - 34
  x_range = _widened(0.0 if x.min() >= 0 else x.min(), x.max())
  y_range = (y.min() * 0.9, y.max() * 1.1) if log else _margin(y)
  axes = _Axes(surface, box, x_range, y_range, log)
  y_ticks = _powers(*y_range) if log else ticks(*y_range)
  axes.frame(ticks(*x_range, most=5), y_ticks, x_name)
  for step, colour in marks.items():
    across, _ = axes.at(step, y_range[0])
    ends = (across, box[1]), (across, box[3])
    surface.line(ends, colour, 1.2, dashed=True, name=f'step {step:.0f}')
  for curve in curves:
    across, down = axes.at(curve.x, curve.y)
    width = 1.8 if curve.strong else 1.1
    points = list(zip(across, down))
    if len(points) > 1:
      surface.line(points, curve.colour, width, name=curve.name)
    few = curve.strong and len(points) <= 40
    if few or len(points) == 1:
      for (px, py), sx, sy in zip(points, curve.x, curve.y):
        name = f'{curve.name}, step {sx:.0f}: {sy:.5g}'
        surface.dot(px, py, 2.2, curve.colour, name)


def reliability(
    surface: Svg | Raster, title: str, bins: Sequence[Bin]
) -> None:
  """Draws a reliability diagram: accuracy over confidence, and counts.

  Args:
    surface: surface to draw on.
    title: title of the plot.
    bins: bins that are not empty.
  """
  w, h = surface.width, surface.height
  surface.label(8, 18, title, 13, INK)
  box = 52, 30, w - 20, h - 34
  axes = _Axes(surface, box, (0.0, 1.0), (0.0, 1.0))
  quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
  axes.frame(quarters, quarters, 'confidence')
  most = max((b.count for b in bins), default=1)
  for one in bins:
    x, y = axes.at(one.confidence, 0.18 * one.count / most)
    surface.box(x - 5, y, 10, box[3] - y, '#cfd8e3')
  surface.line(list(zip(*axes.at([0, 1], [0, 1]))), GREY, dashed=True)
  for one in bins:
    x, low = axes.at(one.confidence, one.low)
    _, high = axes.at(one.confidence, one.high)
    surface.line(((x, low), (x, high)), EVALUATION, 1.4)
    x, y = axes.at(one.confidence, one.accuracy)
    name = (
        f'{one.count} predictions, confidence {one.confidence:.2f}, '
        f'accuracy {one.accuracy:.2f}'
    )
    surface.dot(x, y, 3.5, EVALUATION, name)


def intervals(
    surface: Svg | Raster,
    title: str,
    rows: Sequence[Interval],
    chance: float | None = None,
    names: int = 110,
) -> None:
  """Draws a value and its interval in each row.

  Args:
    surface: surface to draw on.
    title: title of the plot.
    rows: rows from top to bottom.
    chance: value without any information, drawn as a dashed line.
    names: width of the column of names, in pixels.
  """
  w, h = surface.width, surface.height
  surface.label(8, 18, title, 13, INK)
  values = [chance, *(v for row in rows for v in row[1:])]
  x_range = _margin(np.array([v for v in values if _is_number(v)] or [0.0]))
  box = names, 30, w - 20, h - 34
  axes = _Axes(surface, box, x_range, (0.0, 1.0))
  axes.frame(ticks(*x_range, most=5), [], '')
  if chance is not None:
    x, _ = axes.at(chance, 0.0)
    surface.line(((x, box[1]), (x, box[3])), GREY, dashed=True, name='chance')
  for i, row in enumerate(rows):
    y = box[1] + (i + 0.5) * (box[3] - box[1]) / len(rows)
    surface.label(box[0] - 8, y + 4, row.name, anchor='end')
    if _is_number(row.low) and _is_number(row.high):
      (left, right), _ = axes.at([row.low, row.high], 0.0)
      surface.line(((left, y), (right, y)), EVALUATION, 1.4)
    if _is_number(row.value):
      x, _ = axes.at(row.value, 0.0)
      surface.dot(x, y, 3.5, EVALUATION, f'{row.name}: {row.value:.4g}')
    if _is_number(row.published):
      x, _ = axes.at(row.published, 0.0)
      name = f'{row.name}, published: {row.published:.4g}'
      surface.line(((x, y - 6), (x, y + 6)), PUBLISHED, 3.0, name=name)


def _is_number(value: float | None) -> bool:
  return value is not None and bool(np.isfinite(value))


def _points(curve: Curve) -> dict[str, np.ndarray]:
  """The finite points, averaged over intervals if there are many."""
  x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
  kept = np.isfinite(x) & np.isfinite(y)
  x, y = x[kept], y[kept]
  if len(x) > _MOST_POINTS:
    parts = min(_MOST_POINTS, len(x))
    x, y = (
        np.array([part.mean() for part in np.array_split(v, parts)])
        for v in (x, y)
    )
  return {'x': x, 'y': y}


def _widened(low: float, high: float) -> tuple[float, float]:
  return (low, high) if high > low else (low - 0.5, high + 0.5)


def _margin(values: np.ndarray) -> tuple[float, float]:
  low, high = float(values.min()), float(values.max())
  room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
  return low - (room if low else 0.0), high + room


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Positions of ticks on an axis.

  Args:
    low: lower end of the range.
    high: upper end of the range, larger than `low`.
    most: maximum number of ticks, at least 2.

  Returns:
    Multiples of 1, 2 or 5 times a power of ten within the range.
  """
  power = 10.0 ** math.floor(math.log10((high - low) / most))
  for factor in (1, 2, 5, 10, 20):
    step = factor * power
    first, last = math.ceil(low / step), math.floor(high / step + 1e-9)
    if last - first < most:
      break
  return [number * step for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
  first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
  thin = max(1, -(-(last - first + 1) // 6))
  return [10.0**power for power in range(first, last + 1, thin)]


def _number(value: float) -> str:
  if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
    digits = f'{value:.2g}' if abs(value) < 1 else f'{value:.3g}'
    return digits.replace('e-0', 'e-').replace('e+0', 'e')
  return f'{value:.4g}'


# ------------------------------------------------------------------ curves


def history(
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, tuple[list, list]]]:
  """The curves of a run.

  Args:
    lines: lines of metrics.jsonl.

  Returns:
    Metric -> split -> (steps, values), in order of appearance; nested metrics
    are named `dataset/metric`.
  """
  result: dict[str, dict[str, tuple[list, list]]] = {}

  def add(prefix, line, values):
    for name, value in values.items():
      if isinstance(value, Mapping):
        add(f'{prefix}{name}/', line, value)
      elif isinstance(value, int | float) and not isinstance(value, bool):
        splits = result.setdefault(prefix + name, {})
        steps, numbers = splits.setdefault(line['split'], ([], []))
        steps.append(line['step'])
        numbers.append(value)

  for line in lines:
    values = {k: v for k, v in line.items() if k not in ('step', 'split')}
    add('', line, values)
  return result


# Metrics of speed and memory, and constants.
_NOT_LEARNED = (
    'examples', 'steps_per_second', 'examples_per_second', 'seconds_left',
    'seconds', 'input_wait', 'host_memory', 'device_memory',
)  # fmt: skip
_FIRST = ('loss', 'accuracy', 'macro_f1', 'uar')


def learned(names: Sequence[str]) -> list[str]:
  """The metrics that describe learning, main ones first."""
  names = [n for n in names if n not in _NOT_LEARNED]
  names = [n for n in names if not n.endswith('/examples')]
  return sorted(
      names,
      key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST),
  )


def curves_picture(
    lines: Sequence[Mapping[str, Any]], best: int | None = None
) -> np.ndarray:
  """Draws a panel for each metric, training in grey and evaluation in blue.

  Args:
    lines: lines of metrics.jsonl.
    best: step of the best checkpoint, to be marked.

  Returns:
    uint8 [H, W, 3].
  """
  curves = history(lines)
  names = [n for n in learned(list(curves)) if 'recall_' not in n]
  columns = 3
  width, height, top = 400, 250, 30
  rows = max(1, -(-len(names) // columns))
  surface = Raster(columns * width, top + rows * height)
  splits = {split for splits in curves.values() for split in splits}
  evaluated = sorted(splits & {'holdout', 'val'})
  text = f'grey: train   blue: {", ".join(evaluated) or "no evaluation yet"}'
  if best is not None:
    text += f'   dashed: best checkpoint, step {best}'
  surface.label(10, 20, text, 13, GREY)
  for number, name in enumerate(names):
    row, column = divmod(number, columns)
    line_chart(
        surface,
        name,
        [
            Curve(split, *points, EVALUATION if split != 'train' else TRAIN,
                  split != 'train')
            for split, points in curves[name].items()
            if split != 'test'
        ],
        {} if best is None else {best: COLOURS[1]},
        origin=(column * width, top + row * height),
        size=(width, height),
    )  # fmt: skip
  return surface.picture


# ---------------------------------------------------------------- confusion


def confusion(
    make: type[Svg] | type[Raster],
    matrix: np.ndarray,
    classes: Sequence[str],
    title: str = '',
) -> Svg | Raster:
  """Draws a confusion matrix: counts, shaded by the share of the true class.

  Args:
    make: type of the surface.
    matrix: [C, C] counts, true classes as rows.
    classes: C names.
    title: title of the plot.

  Returns:
    The surface.
  """
  matrix = np.asarray(matrix, np.float64)
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  cell, size, widest = 76, 14, 150
  names = [canvas.fit(name, widest, size) for name in classes]
  left = max(canvas.width_of(name, size) for name in names) + 24
  top = 66
  side = len(classes) * cell
  what = 'rows: true, columns: predicted'
  width = max(left + side + 12, canvas.width_of(what, 12) + 20)
  surface = make(width, top + side + 12)
  surface.label(8, 18, title, 13, INK)
  surface.label(8, 36, what, 12)
  weak, strong = np.array((241, 241, 239)), np.array((14, 92, 112))
  for row, name in enumerate(names):
    y = top + row * cell
    surface.label(left - 8, y + cell / 2 + 5, name, size, INK, 'end')
    head = canvas.fit(classes[row], cell - 4, size)
    surface.label(left + (row + 0.5) * cell, top - 6, head, size, INK, 'middle')
    for column in range(len(names)):
      x, share = left + column * cell, shares[row, column]
      shade = (weak + (strong - weak) * share**0.8).round().astype(int)
      colour = '#{:02x}{:02x}{:02x}'.format(*shade)
      surface.box(x + 1, y + 1, cell - 2, cell - 2, colour)
      ink = '#ffffff' if share > 0.45 else INK
      percent = f'{100 * share:.0f} %' if matrix[row].sum() else '-'
      middle = x + cell / 2
      surface.label(middle, y + cell / 2, percent, 17, ink, 'middle')
      number = f'{matrix[row, column]:.0f}'
      surface.label(middle, y + cell / 2 + 19, number, 12, ink, 'middle')
  return surface


def confusion_picture(
    matrices: Mapping[str, tuple[np.ndarray, Sequence[str]]],
) -> np.ndarray:
  """Draws confusion matrices below one another.

  Args:
    matrices: title -> (counts [C, C], names of the C classes).

  Returns:
    uint8 [H, W, 3].
  """
  pictures = [
      confusion(Raster, matrix, classes, title).picture
      for title, (matrix, classes) in matrices.items()
  ]
  height = sum(p.shape[0] for p in pictures)
  sheet = np.full(
      (height, max(p.shape[1] for p in pictures), 3), canvas.PAPER, np.uint8
  )
  y = 0
  for picture in pictures:
    canvas.put(sheet, picture, 0, y)
    y += picture.shape[0]
  return sheet
