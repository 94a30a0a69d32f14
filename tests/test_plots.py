"""Both surfaces are read back: SVG as XML, pixels by their colour."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vemd_jax import plots, surfaces

LINES = [
    {'step': 10, 'split': 'train', 'loss': 4.0, 'seconds': 1.0},
    {'step': 10, 'split': 'val', 'loss': 3.0, 'gaf3': {'accuracy': 0.5}},
    {'step': 20, 'split': 'train', 'loss': None, 'seconds': 1.0},
    {'step': 20, 'split': 'val', 'loss': 1.0, 'gaf3': {'accuracy': 0.75},
     'confusion': [[1, 0], [0, 1]]},
]  # fmt: skip


def test_history():
  history = plots.history(LINES)
  assert history['loss'] == {
      'train': ([10], [4.0]), 'val': ([10, 20], [3.0, 1.0])
  }  # fmt: skip
  assert history['gaf3/accuracy'] == {'val': ([10, 20], [0.5, 0.75])}
  assert 'confusion' not in history
  names = ['kl', 'seconds', 'accuracy', 'gaf3/examples', 'loss']
  assert plots.learned(names) == ['loss', 'accuracy', 'kl']


@pytest.mark.parametrize(
    'low, high', [(0, 1), (0.36, 0.44), (-3, 41), (0, 123456), (1e-5, 3e-5)]
)
def test_ticks_are_round_and_inside(low, high):
  ticks = plots.ticks(low, high, 5)
  assert 2 <= len(ticks) <= 5
  assert low <= ticks[0] + 1e-12 and ticks[-1] <= high + 1e-9
  steps = np.diff(ticks)
  np.testing.assert_allclose(steps, steps[0])
  mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
  assert round(mantissa, 6) in (1, 2, 5)


def draw(surface, y, marks=None):
  curve = plots.Curve('a <b>', range(1, len(y) + 1), y, '#ff0000', True)
  plots.line_chart(surface, 'loss & more', [curve], marks)
  return surface


def dots(svg):
  root = ET.fromstring(svg.markup('title'))
  return [
      (float(e.get('cx')), float(e.get('cy')), e[0].text)
      for e in root.iter('circle')
  ]


def test_svg_and_pixels_show_the_same():
  y = [2.0, 4.0, 3.0]
  points = dots(draw(surfaces.Svg(360, 230), y))
  # Even steps go right evenly, values upwards.
  xs, ys, names = zip(*points)
  assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
  assert (ys[0] - ys[1]) == pytest.approx(2 * (ys[0] - ys[2]), abs=0.11)
  assert names[1] == 'a <b>, step 2: 4'
  picture = draw(surfaces.Raster(360, 230), y).picture.astype(int)
  red = (picture[..., 0] > 200) & (picture[..., 1:].max(-1) < 60)
  for px, py, _ in points:
    assert red[round(py), round(px)]
  assert not red[:, : round(xs[0]) - 4].any()


def test_wide_falls_are_drawn_by_powers_of_ten():
  ys = [p[1] for p in dots(draw(surfaces.Svg(360, 230), [100.0, 10.0, 1.0]))]
  assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)
  ys = [p[1] for p in dots(draw(surfaces.Svg(360, 230), [100.0, 10.0, 0.0]))]
  assert ys[1] - ys[0] == pytest.approx(9 * (ys[2] - ys[1]), abs=0.6)


def test_wide_rises_are_linear():
  ys = [p[1] for p in dots(draw(surfaces.Svg(360, 230), [1.0, 50.0, 99.0]))]
  assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def test_a_first_evaluation_does_not_change_the_axis_of_a_fall():
  surface = surfaces.Svg(360, 230)
  fall, first = (
      plots.Curve('x', range(1, len(y) + 1), y, '#ff0000', True)
      for y in ([100.0, 10.0, 1.0], [5.0])
  )
  plots.line_chart(surface, 'loss', [fall, first], None)
  ys = [p[1] for p in dots(surface)]
  assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)


def test_gaps_marks_and_nothing_at_all():
  svg = draw(surfaces.Svg(360, 230), [1.0, float('nan'), 3.0], {3: '#00ff00'})
  points = dots(svg)
  assert len(points) == 2
  dashed = [
      e for e in ET.fromstring(svg.markup('')).iter('polyline')
      if e.get('stroke-dasharray')
  ]  # fmt: skip
  assert dashed[0].get('points').startswith(f'{points[-1][0]:.1f},')
  assert not dots(draw(surfaces.Svg(360, 230), [float('nan')] * 3))
  assert len(dots(draw(surfaces.Svg(360, 230), [0.5]))) == 1


def test_long_curves_keep_their_means():
  y = np.random.default_rng(0).normal(size=3000) + 5
  svg = draw(surfaces.Svg(360, 230), y)
  line = max(
      (e.get('points') for e in ET.fromstring(svg.markup('')).iter('polyline')),
      key=len,
  )
  assert 250 < len(line.split()) <= 300


def test_pictures_of_a_run():
  curves = plots.curves_picture(LINES, best=20)
  assert curves.dtype == np.uint8 and curves.shape[1] == 1200
  assert plots.curves_picture([]).ndim == 3
  one = plots.confusion_picture({'val': (np.eye(2), ('a', 'b'))})
  two = plots.confusion_picture(
      {'val': (np.eye(2), ('a', 'b')), 'more': (np.eye(3), ('a', 'b', 'c'))}
  )
  assert two.shape[0] > 2 * one.shape[0]


def test_confusion_shades_are_shares_of_the_true_class():
  surface = plots.confusion(
      surfaces.Raster, np.array([[90, 10], [0, 0]]), ('überrascht', '高兴')
  )
  picture = surface.picture
  # Dark cells: only the one with 90 % of its row.
  dark = picture.astype(int).sum(-1) < 330
  y, x = np.argwhere(dark).mean(0)
  cell = 76
  left, top = picture.shape[1] - 12 - 2 * cell, picture.shape[0] - 12 - 2 * cell
  assert top < y < top + cell and x < left + cell


def test_reliability_lies_where_it_should():
  svg = surfaces.Svg(400, 300)
  bins = [plots.Bin(0.25, 0.5, 0.3, 0.7, 4), plots.Bin(0.75, 1.0, 0.8, 1.0, 8)]
  plots.reliability(svg, 'title', bins)
  (x1, y1, text), (x2, y2, _) = dots(svg)
  left, right, top, bottom = 52, 380, 30, 266
  assert x1 == pytest.approx(left + (right - left) / 4, abs=0.1)
  assert y1 == pytest.approx((top + bottom) / 2, abs=0.1)
  assert (x2, y2) == pytest.approx((left + (right - left) * 0.75, top), abs=0.1)
  assert text.startswith('4 predictions')
