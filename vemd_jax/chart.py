"""Forest plots: means with confidence intervals, one row per line."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from vemd_jax import canvas

_PAPER, _INK, _GRID = (250, 250, 248), (38, 42, 51), (222, 222, 218)
_OWN, _PUBLISHED = (0, 110, 130), (235, 110, 40)
_LABELS, _WIDTH, _ROW, _TITLE, _MARGIN = 300, 520, 26, 40, 16


class Mark(NamedTuple):
  """A row of the plot.

  Attributes:
    name: label of the row.
    mean: mean over the runs; None without runs.
    low: lower bound of the confidence interval; None without an interval.
    high: upper bound of the interval; None without an interval.
    published: published number for reference, or None.
  """

  name: str
  mean: float | None
  low: float | None
  high: float | None
  published: float | None


def intervals(
    panels: Sequence[tuple[str, Sequence[Mark]]],
) -> np.ndarray:
  """Draws vertically stacked panels, each with a separate axis.

  Args:
    panels: (title, rows) of each panel.

  Returns:
    uint8 [H, W, 3] RGB: a dot for each mean, a line for its interval, and a
    diamond for each published number.
  """
  drawn = [_panel(title, marks) for title, marks in panels]
  return np.concatenate(drawn)


def _panel(title: str, marks: Sequence[Mark]) -> np.ndarray:
  height = _TITLE + len(marks) * _ROW + _ROW + _MARGIN
  width = _LABELS + _WIDTH + 3 * _MARGIN
  drawing = np.full((height, width, 3), _PAPER, np.uint8)
  _write(drawing, title, _MARGIN, _TITLE // 2)
  values = [v for m in marks for v in m[1:] if v is not None]
  low, high, step = ticks(min(values), max(values))

  def x_of(value: float) -> int:
    return _LABELS + round((value - low) / (high - low) * _WIDTH)

  bottom = _TITLE + len(marks) * _ROW
  for tick in np.arange(low, high + step / 2, step):
    cv2.line(drawing, (x_of(tick), _TITLE), (x_of(tick), bottom), _GRID, 1)
    label = canvas.text(f'{tick:g}' if abs(tick) > step / 2 else '0', 12)
    canvas.put(drawing, label, x_of(tick) - label.shape[1] // 2, bottom + 4)
  for i, mark in enumerate(marks):
    y = _TITLE + i * _ROW + _ROW // 2
    _write(drawing, mark.name, _MARGIN, y)
    if mark.low is not None:
      ends = x_of(mark.low), x_of(mark.high)
      cv2.line(drawing, (ends[0], y), (ends[1], y), _OWN, 2, cv2.LINE_AA)
      for x in ends:
        cv2.line(drawing, (x, y - 4), (x, y + 4), _OWN, 2, cv2.LINE_AA)
    if mark.mean is not None:
      cv2.circle(drawing, (x_of(mark.mean), y), 5, _OWN, -1, cv2.LINE_AA)
    if mark.published is not None:
      cv2.drawMarker(
          drawing, (x_of(mark.published), y), _PUBLISHED, cv2.MARKER_DIAMOND,
          13, 2, cv2.LINE_AA,
      )  # fmt: skip
  return drawing


def ticks(least: float, most: float) -> tuple[float, float, float]:
  """Chooses round ticks that cover a range of values.

  Args:
    least: smallest value.
    most: largest value.

  Returns:
    (first tick, last tick, step): 3 to 12 ticks whose step is 1, 2 or 5 times
    a power of ten.
  """
  span = max(most - least, 1e-3 * max(abs(most), 1e-3))
  power = 10.0 ** np.floor(np.log10(span / 4))
  step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= 8)
  first, last = np.floor(least / step), np.ceil(most / step)
  if first == last:
    last += 1
  return float(first * step), float(last * step), float(step)


def _write(drawing: np.ndarray, text: str, x: int, y: int) -> None:
  label = canvas.text(text, 14, _INK)
  canvas.put(drawing, label, x, y - label.shape[0] // 2)
