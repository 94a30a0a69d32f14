"""Surfaces that plots are drawn on: SVG markup and pixels.

Both have the methods `line`, `box`, `dot` and `label`, with coordinates in
pixels, y downwards.
"""

import html
import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from vemd_jax import canvas

INK, GREY, FAINT = '#262a33', '#6b7280', '#dfe1e5'


class Svg:
  """A surface that gives SVG markup."""

  def __init__(self, width: int, height: int):
    self.width, self.height = width, height
    self._parts: list[str] = []

  def line(
      self, points: Sequence, colour: str, width: float = 1.0,
      dashed: bool = False, name: str = '',
  ) -> None:  # fmt: skip
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
    dash = ' stroke-dasharray="4 3"' if dashed else ''
    title = f'<title>{html.escape(name)}</title>' if name else ''
    self._parts.append(
        f'<polyline points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="{width}" stroke-linejoin="round"{dash}>{title}'
        '</polyline>'
    )

  def box(self, x: float, y: float, w: float, h: float, colour: str) -> None:
    self._parts.append(
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
        f'fill="{colour}"/>'
    )

  def dot(self, x: float, y: float, r: float, colour: str, name='') -> None:
    title = f'<title>{html.escape(name)}</title>' if name else ''
    self._parts.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}">{title}'
        '</circle>'
    )

  def label(
      self, x: float, y: float, line: str, size: int = 11,
      colour: str = GREY, anchor: str = 'start',
  ) -> None:  # fmt: skip
    self._parts.append(
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}">{html.escape(line)}</text>'
    )

  def markup(self, title: str) -> str:
    """The `<svg>` element; `title` is for screen readers."""
    return (
        f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
        f'height="{self.height}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">'
        f'{"".join(self._parts)}</svg>'
    )


class Raster:
  """A surface of pixels: `picture` is uint8 [H, W, 3] RGB."""

  def __init__(self, width: int, height: int):
    self.width, self.height = width, height
    self.picture = np.full((height, width, 3), canvas.PAPER, np.uint8)

  def line(self, points, colour, width=1.0, dashed=False, name='') -> None:
    del name
    points = np.asarray(points, np.float64)
    parts = _dashes(points) if dashed else [points]
    for part in parts:
      fixed = np.round(part * 16).astype(np.int32)
      cv2.polylines(
          self.picture, [fixed], False, _rgb(colour), max(1, round(width)),
          cv2.LINE_AA, 4,
      )  # fmt: skip

  def box(self, x, y, w, h, colour) -> None:
    left, top, right, bottom = (round(v) for v in (x, y, x + w, y + h))
    self.picture[max(top, 0) : bottom, max(left, 0) : right] = _rgb(colour)

  def dot(self, x, y, r, colour, name='') -> None:
    del name
    centre = round(x * 16), round(y * 16)
    cv2.circle(
        self.picture, centre, round(r * 16), _rgb(colour), -1, cv2.LINE_AA, 4
    )

  def label(self, x, y, line, size=11, colour=GREY, anchor='start') -> None:
    share = {'start': 0.0, 'middle': 0.5, 'end': 1.0}[anchor]
    x -= share * canvas.width_of(line, size)
    canvas.write(self.picture, line, (round(x), round(y)), size, _rgb(colour))


def _rgb(colour: str) -> tuple[int, int, int]:
  return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _dashes(points: np.ndarray) -> list[np.ndarray]:
  """Cuts each segment into dashes of 4 pixels with gaps of 3."""
  parts = []
  for a, b in itertools.pairwise(points):
    length = max(float(np.hypot(*(b - a))), 1e-9)
    for start in np.arange(0, length, 7):
      ends = np.array([start, min(start + 4, length)]) / length
      parts.append(a + ends[:, None] * (b - a))
  return parts
