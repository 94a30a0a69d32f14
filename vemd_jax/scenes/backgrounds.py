"""Backgrounds of the scenes: rooms, gardens, streets and stages.

All shapes are filled on the RGB + owner canvas of `drawing`; the owner of a
background pixel is 0. Coordinates are relative to the canvas side.
"""

import cv2
import numpy as np

_FOREGROUND = 255

_WALLS = np.array([
    (236, 224, 208), (214, 228, 226), (228, 216, 232), (244, 232, 196),
    (204, 216, 232), (196, 214, 190), (232, 204, 192), (176, 190, 204),
    (120, 138, 156), (150, 116, 104), (106, 128, 116), (224, 224, 220),
], np.float32)  # fmt: skip
_FLOORS = np.array([
    (186, 142, 100), (158, 112, 78), (206, 176, 138), (150, 150, 154),
    (122, 104, 96), (196, 188, 178), (110, 122, 128),
], np.float32)  # fmt: skip
_SKIES = np.array([
    ((120, 184, 232), (222, 240, 250)), ((84, 150, 214), (190, 224, 244)),
    ((246, 176, 130), (252, 226, 180)), ((150, 140, 196), (248, 200, 180)),
    ((176, 190, 204), (224, 230, 234)), ((40, 48, 92), (120, 100, 150)),
], np.float32)  # fmt: skip
_GREENS = np.array([
    (124, 176, 92), (98, 152, 84), (146, 190, 110), (84, 134, 92),
    (168, 178, 96), (70, 116, 84),
], np.float32)  # fmt: skip
_BRIGHT = np.array([
    (226, 88, 80), (244, 176, 74), (250, 222, 110), (110, 180, 120),
    (84, 160, 210), (150, 110, 190), (236, 140, 170), (246, 242, 232),
], np.float32)  # fmt: skip
_SAND = np.array([
    (226, 200, 150), (190, 188, 184), (170, 160, 150)
], np.float32)  # fmt: skip


class _Brush:
  """Draws on a canvas in relative coordinates with one owner code."""

  def __init__(self, canvas: np.ndarray, owner: int):
    self.canvas, self.owner, self.side = canvas, owner, canvas.shape[0]

  def ink(self, color) -> tuple:
    r, g, b = (min(max(float(c), 0.0), 255.0) for c in color)
    return r, g, b, self.owner

  def box(self, x0, y0, x1, y1, color):
    s = self.side
    cv2.rectangle(
        self.canvas, (int(x0 * s), int(y0 * s)), (int(x1 * s), int(y1 * s)),
        self.ink(color), -1,
    )  # fmt: skip

  def disc(self, x, y, radius, color):
    s = self.side
    cv2.circle(
        self.canvas, (int(x * s), int(y * s)), max(int(radius * s), 1),
        self.ink(color), -1,
    )  # fmt: skip

  def oval(self, x, y, rx, ry, color):
    s = self.side
    cv2.ellipse(
        self.canvas, (int(x * s), int(y * s)), (int(rx * s), int(ry * s)),
        0, 0, 360, self.ink(color), -1,
    )  # fmt: skip

  def shape(self, points, color):
    points = np.asarray(points, np.float32) * self.side
    cv2.fillPoly(self.canvas, [points.astype(np.int32)], self.ink(color))

  def line(self, points, color, width):
    points = np.asarray(points, np.float32) * self.side
    cv2.polylines(
        self.canvas, [points.astype(np.int32)], False, self.ink(color),
        max(int(width * self.side), 1),
    )  # fmt: skip

  def gradient(self, y0, y1, top, bottom, x0=0.0, x1=1.0):
    s = self.side
    y0, y1 = max(int(y0 * s), 0), min(int(y1 * s), s)
    x0, x1 = max(int(x0 * s), 0), min(int(x1 * s), s)
    if y1 <= y0 or x1 <= x0:
      return
    t = np.linspace(0, 1, y1 - y0, dtype=np.float32)[:, None]
    top, bottom = np.asarray(top), np.asarray(bottom)
    rows = np.empty((y1 - y0, 4), np.uint8)
    rows[:, :3] = np.clip(top + (bottom - top) * t, 0, 255)
    rows[:, 3] = self.owner
    # Copying one 32-bit word per pixel is faster than four bytes.
    words = self.canvas.view(np.uint32)[..., 0]
    words[y0:y1, x0:x1] = rows.view(np.uint32)


def _pick(rng, palette, jitter=8.0):
  color = palette[rng.integers(len(palette))]
  return color + rng.uniform(-jitter, jitter, 3)


def _window(brush, rng, x, y, w, h):
  frame = _pick(rng, np.array([(250, 248, 242), (130, 96, 70)], np.float32))
  sky = _SKIES[rng.integers(len(_SKIES))]
  brush.box(x, y, x + w, y + h, frame)
  e = 0.012
  brush.gradient(y + e, y + h - e, sky[0], sky[1], x + e, x + w - e)
  if rng.random() < 0.6:
    brush.gradient(
        y + h * 0.7, y + h - e, _pick(rng, _GREENS), _pick(rng, _GREENS),
        x + e, x + w - e,
    )  # fmt: skip
  brush.box(x + w / 2 - e / 3, y, x + w / 2 + e / 3, y + h, frame)
  brush.box(x, y + h / 2 - e / 3, x + w, y + h / 2 + e / 3, frame)
  if rng.random() < 0.5:
    cloth = _pick(rng, _BRIGHT)
    for side in (x - 0.03, x + w - w * 0.22):
      brush.box(side, y - 0.02, side + w * 0.22 + 0.03, y + h + 0.06, cloth)
      brush.box(
          side + w * 0.1, y - 0.02, side + w * 0.13, y + h + 0.06, cloth * 0.9
      )


def _picture(brush, rng, x, y, w, h):
  brush.box(x, y, x + w, y + h, rng.choice(_FLOORS) * 0.7)
  e = 0.012
  brush.box(x + e, y + e, x + w - e, y + h - e, _pick(rng, _BRIGHT))
  middle = x + w / 2, y + h / 2
  brush.disc(*middle, min(w, h) * 0.22, _pick(rng, _BRIGHT))


def _shelf(brush, rng, x, y, w):
  wood = _pick(rng, _FLOORS)
  at = x + 0.01
  while at < x + w - 0.03:
    wide, tall = rng.uniform(0.012, 0.03), rng.uniform(0.05, 0.09)
    brush.box(at, y - tall, at + wide, y, _pick(rng, _BRIGHT) * 0.9)
    at += wide + 0.004
  brush.box(x, y, x + w, y + 0.014, wood)


def _plant(brush, rng, x, y, size):
  leaf = _pick(rng, _GREENS) * 0.9
  angles = rng.uniform(-1.2, 1.2, 7)
  for n, angle in enumerate(angles):
    tip = x + size * np.sin(angle), y - size * (0.55 + 0.6 * np.cos(angle))
    side = size * 0.13
    middle = (x + tip[0]) / 2, (y + tip[1]) / 2
    brush.shape(
        [(x, y - size * 0.2), (middle[0] - side, middle[1] - side), tip,
         (middle[0] + side, middle[1] + side)],
        leaf * (0.85 + 0.05 * n),
    )  # fmt: skip
  pot = _pick(rng, _BRIGHT)
  w, h = size * 0.3, size * 0.5
  brush.shape(
      [(x - w, y - h * 0.6), (x + w, y - h * 0.6), (x + w * 0.7, y + h * 0.6),
       (x - w * 0.7, y + h * 0.6)],
      pot,
  )  # fmt: skip


def _bunting(brush, rng, y):
  count = int(rng.integers(7, 13))
  at = np.linspace(-0.05, 1.05, count + 1)
  drop = y + rng.uniform(0.03, 0.1) * (1 - (2 * at - 1) ** 2)
  brush.line(np.stack([at, drop], 1), (120, 110, 104), 0.004)
  size = 0.55 / count
  for n in range(count):
    x, top = (at[n] + at[n + 1]) / 2, (drop[n] + drop[n + 1]) / 2
    brush.shape(
        [(x - size, top), (x + size, top), (x, top + 1.9 * size)],
        _BRIGHT[(n * 3) % len(_BRIGHT)],
    )  # fmt: skip


def _sofa(brush, rng, x, y, w):
  color = _pick(rng, _BRIGHT) * 0.85
  brush.box(x, y - 0.2, x + w, y, color)
  brush.box(x - 0.03, y - 0.13, x + 0.04, y + 0.02, color * 0.88)
  brush.box(x + w - 0.04, y - 0.13, x + w + 0.03, y + 0.02, color * 0.88)
  brush.box(x + 0.04, y - 0.09, x + w - 0.04, y - 0.01, color * 1.08)


def _lamp(brush, rng, x, y):
  brush.line([(x, y), (x, y - 0.42)], (90, 84, 80), 0.008)
  brush.shape(
      [(x - 0.04, y - 0.52), (x + 0.04, y - 0.52), (x + 0.07, y - 0.40),
       (x - 0.07, y - 0.40)],
      (252, 232, 170),
  )  # fmt: skip


def _room(brush, rng, horizon):
  wall = _pick(rng, _WALLS)
  brush.gradient(0, horizon, wall * 1.04, wall * 0.94)
  if rng.random() < 0.3:
    stripes = int(rng.integers(6, 14))
    for n in range(stripes):
      x = (n + 0.25) / stripes
      brush.box(x, 0, x + 0.5 / stripes, horizon, wall * 0.95)
  floor = _pick(rng, _FLOORS)
  brush.gradient(horizon, 1, floor * 0.92, floor * 1.06)
  for _ in range(int(rng.integers(0, 6))):
    x = rng.uniform(-0.2, 1.2)
    brush.line(
        [(0.5 + (x - 0.5) * 0.7, horizon), (0.5 + (x - 0.5) * 1.6, 1)],
        floor * 0.86, 0.004,
    )  # fmt: skip
  brush.box(0, horizon - 0.018, 1, horizon, np.minimum(wall * 1.1, 250))
  x = rng.uniform(-0.05, 0.15)
  while x < 0.9:
    kind, w = rng.integers(6), rng.uniform(0.16, 0.3)
    y = rng.uniform(0.03, 0.14)
    if kind <= 1:
      _window(brush, rng, x, y, w, rng.uniform(0.22, 0.34))
    elif kind == 2:
      _picture(brush, rng, x, y, w * 0.7, rng.uniform(0.1, 0.22))
    elif kind == 3:
      _shelf(brush, rng, x, y + 0.12, w)
    elif kind == 4:
      _lamp(brush, rng, x + w / 2, horizon + 0.03)
    x += w + rng.uniform(0.06, 0.2)
  if rng.random() < 0.35:
    x, w = rng.uniform((0, 0.3), (0.6, 0.5))
    _sofa(brush, rng, x, horizon + 0.07, w)
  if rng.random() < 0.5:
    _plant(
        brush, rng, rng.choice([0.06, 0.94]), horizon + 0.05,
        rng.uniform(0.1, 0.2),
    )  # fmt: skip
  if rng.random() < 0.2:
    _bunting(brush, rng, rng.uniform(0.0, 0.1))
  if rng.random() < 0.4:
    brush.oval(
        rng.uniform(0.3, 0.7), rng.uniform(0.85, 1.0), rng.uniform(0.25, 0.5),
        rng.uniform(0.07, 0.12), _pick(rng, _BRIGHT) * 0.5 + floor * 0.5,
    )  # fmt: skip
  return floor


def _cloud(brush, rng):
  x, y, size = rng.uniform((0, 0.03, 0.03), (1, 0.25, 0.07))
  for dx, dy, r in ((-1.3, 0.2, 0.8), (0, 0, 1.1), (1.2, 0.2, 0.85)):
    brush.oval(x + dx * size, y + dy * size, r * size, r * size * 0.7,
               (250, 250, 250))  # fmt: skip


def _tree(brush, rng, x, y, size):
  brush.box(x - size * 0.07, y - size * 0.6, x + size * 0.07, y, (122, 88, 62))
  leaf = _pick(rng, _GREENS) * 0.85
  if rng.random() < 0.4:
    for n in range(3):
      top = y - size * (0.4 + 0.32 * n)
      half = size * (0.38 - 0.08 * n)
      tip = x, top - size * 0.5
      brush.shape([(x - half, top), (x + half, top), tip], leaf)
  else:
    for dx, dy, r in ((-0.22, 0.75, 0.28), (0.22, 0.78, 0.28), (0, 1, 0.33)):
      shade = leaf * (0.85 + r * 0.5)
      brush.disc(x + dx * size, y - dy * size, r * size, shade)


def _garden(brush, rng, horizon):
  sky = _SKIES[rng.integers(len(_SKIES))]
  brush.gradient(0, horizon, sky[0], sky[1])
  if rng.random() < 0.5:
    brush.disc(rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.2), 0.06,
               (255, 240, 190))  # fmt: skip
  for _ in range(int(rng.integers(0, 4))):
    _cloud(brush, rng)
  green = _pick(rng, _GREENS)
  for n in range(int(rng.integers(1, 4))):
    far = 0.6 + 0.1 * n
    x, w, h = rng.uniform((0, 0.3, 0.1), (1, 0.6, 0.25))
    brush.oval(x, horizon + 0.05, w, h, green * far + sky[1] * (1 - far))
  ground = green if rng.random() < 0.8 else _pick(rng, _SAND)
  brush.gradient(horizon, 1, ground * 0.94, ground * 1.06)
  for _ in range(int(rng.integers(0, 6))):
    y = horizon + rng.uniform(0, 0.05)
    _tree(brush, rng, rng.uniform(0, 1), y, rng.uniform(0.15, 0.4))
  if rng.random() < 0.3:
    wood = _pick(rng, _FLOORS)
    for x in np.arange(0, 1.02, 0.06):
      brush.box(x, horizon - 0.1, x + 0.035, horizon + 0.03, wood)
    brush.box(0, horizon - 0.07, 1, horizon - 0.05, wood * 0.9)
  if rng.random() < 0.4:
    for x, y in rng.uniform((0, horizon + 0.05), (1, 1), (14, 2)).tolist():
      brush.disc(x, y, 0.006, _BRIGHT[int(97 * x) % len(_BRIGHT)])
  if rng.random() < 0.2:
    _bunting(brush, rng, rng.uniform(0.02, 0.12))
  return ground


def _street(brush, rng, horizon):
  sky = _SKIES[rng.integers(len(_SKIES))]
  brush.gradient(0, horizon, sky[0], sky[1])
  x = -rng.uniform(0, 0.1)
  while x < 1:
    w, top = rng.uniform(0.12, 0.26), rng.uniform(0.02, horizon * 0.7)
    wall = _pick(rng, _WALLS) * 0.85 + sky[1] * 0.1
    brush.box(x, top, x + w, horizon + 0.02, wall)
    glass = sky[0] * 0.5 + 70 if rng.random() < 0.7 else (250, 226, 150)
    step = rng.uniform(0.045, 0.07)
    for wx in np.arange(x + 0.02, x + w - 0.03, step).tolist():
      for wy in np.arange(top + 0.03, horizon - 0.06, step * 1.4).tolist():
        brush.box(wx, wy, wx + step * 0.5, wy + step * 0.75, glass)
    x += w + rng.uniform(-0.01, 0.03)
  ground = _pick(rng, _SAND)
  brush.gradient(horizon, 1, ground * 0.9, ground * 1.05)
  brush.box(0, horizon, 1, horizon + 0.02, ground * 0.75)
  for _ in range(int(rng.integers(0, 3))):
    _tree(brush, rng, rng.uniform(0, 1), horizon + 0.04, rng.uniform(0.2, 0.35))
  return ground


def _stage(brush, rng, horizon):
  dark = rng.uniform((30, 26, 50), (90, 70, 120))
  brush.gradient(0, horizon, dark * 0.8, dark * 1.3)
  for _ in range(int(rng.integers(0, 4))):
    x = rng.uniform(0.1, 0.9)
    to = x + rng.uniform(-0.3, 0.3)
    brush.shape([(x, 0), (to - 0.12, horizon), (to + 0.12, horizon)],
                dark * 1.3 + 20)  # fmt: skip
  for x, y, r, c in rng.uniform(
      (0, 0, 0.01, 0), (1, horizon, 0.04, 8), (int(rng.integers(6, 22)), 4)
  ).tolist():
    brush.disc(x, y, r, 0.55 * _BRIGHT[int(c)] + 0.45 * dark)
  floor = _pick(rng, _FLOORS) * 0.7
  brush.gradient(horizon, 1, floor * 0.8, floor * 1.1)
  if rng.random() < 0.4:
    _bunting(brush, rng, rng.uniform(0.0, 0.1))
  return floor


def draw_background(canvas: np.ndarray, rng: np.random.Generator):
  """Fills the canvas.

  Args:
    canvas: uint8 [S, S, 4] RGB + owner, changed in place.
    rng: source of randomness.

  Returns:
    Colour of the ground, float [3].
  """
  horizon = rng.uniform(0.42, 0.62)
  kind = (_room, _room, _garden, _garden, _street, _stage)[rng.integers(6)]
  return kind(_Brush(canvas, 0), rng, horizon)


def draw_shadows(canvas, ground, x, y, width) -> None:
  """Draws shadows under the feet; x, y, width [P] are relative to the side."""
  brush = _Brush(canvas, 0)
  for at in zip(x.tolist(), y.tolist(), width.tolist()):
    brush.oval(at[0], at[1], at[2], 0.22 * at[2], ground * 0.72)


def draw_foreground(canvas: np.ndarray, rng: np.random.Generator) -> None:
  """Draws an object in front of the people in 3 of 10 scenes."""
  brush = _Brush(canvas, _FOREGROUND)
  kind = rng.integers(10)
  if kind == 0:
    _plant(brush, rng, rng.choice([0.03, 0.97]), 0.98, rng.uniform(0.15, 0.3))
  elif kind == 1:
    top, cloth = rng.uniform(0.86, 0.94), _pick(rng, _BRIGHT)
    x, w = rng.uniform(-0.1, 0.5), rng.uniform(0.4, 0.8)
    brush.box(x, top, x + w, 1, cloth * 0.9)
    brush.box(x - 0.02, top, x + w + 0.02, top + 0.025, cloth)
    for at in rng.uniform(x + 0.05, x + w - 0.05, 3).tolist():
      brush.box(at - 0.012, top - 0.05, at + 0.012, top, _pick(rng, _BRIGHT))
  elif kind == 2:
    for x, y, r in rng.uniform(
        (-0.05, 0.02, 0.03), (1.05, 0.2, 0.05), (3, 3)
    ).tolist():
      x = 0.08 * x if x < 0.5 else 1 - 0.08 * (1 - x)
      brush.line([(x, y), (x + 0.01, y + 0.35)], (230, 230, 230), 0.003)
      brush.oval(x, y, r, r * 1.2, _pick(rng, _BRIGHT))
