"""Outlines of limbs, trunks and heads, for all people of a scene at once."""

from typing import NamedTuple

import numpy as np

from vemd_jax.scenes import figures as looks
from vemd_jax.scenes.figures import Figures, People

# Ratio of the canvas side to the image side.
SUPERSAMPLE = 2
# Fractional bits of coordinates passed to OpenCV.
SHIFT = 4
MAX_PEOPLE = 14
# Owner codes: 16 * (person + 1) + part; 0 is the background.
HEAD, TRUNK, _LEFT_ARM, _RIGHT_ARM, _LEFT_LEG, _RIGHT_LEG = range(1, 7)
# Knees under a skirt count as visible, like those in trousers.
_SKIRT = 7
# Brightness of the far arm or leg.
_FAR = 0.86
# Outline points of a face are filled if their facing exceeds this.
MIN_FILLED = -0.12
# Landmarks are visible if their facing exceeds this.
MIN_FACING = 0.08
_HALF_TURN = np.linspace(-np.pi / 2, np.pi / 2, 6, dtype=np.float32)
_CIRCLE = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)
_CIRCLE = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], -1)


def _limb_table() -> np.ndarray:
  """Rows (start, end, start radius, end radius, part) of arms, then legs."""
  rows = []
  for side, part in ((0, _LEFT_ARM), (1, _RIGHT_ARM)):
    shoulder, elbow, wrist, hand, sleeve = (
        joint[side]
        for joint in (looks.SHOULDER, looks.ELBOW, looks.WRIST, looks.HAND,
                      looks.SLEEVE)
    )  # fmt: skip
    rows += [
        (shoulder, elbow, 0.0385, 0.0325, part),  # outline
        (elbow, hand, 0.0325, 0.0275, part),
        (shoulder, elbow, 0.034, 0.028, part),
        (elbow, wrist, 0.027, 0.0205, part),
        (wrist, hand, 0.023, 0.025, part),
        (shoulder, sleeve, 0.0365, 0.031, part),
    ]
  for side, part in ((0, _LEFT_LEG), (1, _RIGHT_LEG)):
    hip, knee, ankle, toe, hem = (
        joint[side]
        for joint in (looks.HIP, looks.KNEE, looks.ANKLE, looks.TOE, looks.HEM)
    )
    rows += [
        (knee, ankle, 0.036, 0.024, part),
        (hip, knee, 0.050, 0.037, part),
        (hip, hem, 0.053, 0.043, part),
        (ankle, toe, 0.026, 0.018, part),
    ]
  return np.array(rows, np.float32)


_LIMB_TABLE = _limb_table()
# Trunk from the pelvis (0) to the neck (1): position, half width, half depth.
_TRUNK_LEVELS = np.array([
    (-0.17, 0.096, 0.066), (-0.03, 0.092, 0.068), (0.14, 0.085, 0.064),
    (0.36, 0.083, 0.060), (0.62, 0.098, 0.068), (0.84, 0.110, 0.066),
    (0.96, 0.092, 0.052), (1.06, 0.048, 0.040),
], np.float32)  # fmt: skip
# Bands across it: three stripes, a block, trousers, a belt.
_BANDS = np.array([
    (0.10, 0.20), (0.36, 0.46), (0.62, 0.72), (0.58, 1.0), (-0.17, 0.02),
    (-0.02, 0.03),
], np.float32)  # fmt: skip
TUCKED_IN = (looks.BUTTONS, looks.TIE, looks.BLOCK, looks.STRIPES)
# Skulls with hair by style: half width, half height, rise, in head radii.
_SKULLS = np.array([
    (0.90, 0.96, 0.16), (0.96, 1.02, 0.16), (0.91, 0.97, 0.16),
    (0.91, 0.97, 0.16), (1.20, 1.22, 0.26), (0.80, 0.86, 0.14),
    (0.90, 0.95, 0.14), (0.89, 0.93, 0.14), (0.99, 1.06, 0.12),
], np.float32)  # fmt: skip
_BLUSH = np.array([232, 84, 88], np.float32)
_GLOOM = np.array([116, 132, 190], np.float32)
BEARD_MARKS = np.array([*range(2, 15), 35, 33, 31])
NOSE_MARKS = np.array([27, 30, 31, 33, 35])


# ------------------------------------------------------------------- shapes


def _fixed(points: np.ndarray, side: int) -> np.ndarray:
  """Converts relative coordinates to OpenCV's fixed-point canvas pixels."""
  factor = side * (1 << SHIFT)
  offset = (SUPERSAMPLE - 1) / 2 * (1 << SHIFT)
  return np.rint(points * factor + offset).astype(np.int32, order='C')


def _fixed_length(lengths: np.ndarray, side: int) -> list:
  return np.rint(lengths * side * (1 << SHIFT)).astype(int).tolist()


def _paint(colors: list, part, people: int) -> list:
  """Appends the owner code of each person to colours, for OpenCV.

  Args:
    colors: N arrays [P, 3].
    part: index of the part, or one for each colour.
    people: P.

  Returns:
    [P][N] lists of (r, g, b, owner).
  """
  colors = np.stack(colors, 1)
  code = 16 * np.arange(1, people + 1)[:, None, None]
  code = code + np.reshape(part, (1, -1, 1))
  code = np.broadcast_to(code, (*colors.shape[:2], 1))
  return np.concatenate([np.clip(colors, 0, 255), code], -1).tolist()


def _tapered(start, end, start_radius, end_radius) -> np.ndarray:
  """Outlines limbs as tapered capsules.

  Args:
    start, end: [..., 2].
    start_radius, end_radius: [...].

  Returns:
    [..., 12, 2] convex polygons.
  """
  delta = end - start
  angle = np.arctan2(delta[..., 1], delta[..., 0])[..., None] + _HALF_TURN
  cap = np.stack([np.cos(angle), np.sin(angle)], -1)
  return np.concatenate(
      [
          end[..., None, :] + cap * end_radius[..., None, None],
          start[..., None, :] - cap * start_radius[..., None, None],
      ],
      -2,
  )


class _Limbs(NamedTuple):
  """Arms and legs of all people, ready to draw."""

  shapes: np.ndarray  # [P, 20, 12, 2], rows as in _LIMB_TABLE
  colors: list  # [P][20]
  arms_behind: list  # [P][2] the arm is behind the trunk
  left_leg_first: list  # [P] the left leg is further away


def limb_shapes(people: People, figures: Figures, side: int) -> _Limbs:
  points, height = figures.points, people.height
  radii = _LIMB_TABLE[:, 2:4] * height[:, None, None]
  radii = radii * (0.5 + 0.5 * people.build)[:, None, None]
  start, end, part = _LIMB_TABLE[:, [0, 1, 4]].astype(int).T
  shapes = _tapered(
      points[:, start], points[:, end], radii[..., 0], radii[..., 1]
  )

  skin, shirt = people.skin, people.shirt
  long = (people.sleeve > 0.5)[:, None]
  block = (people.pattern == looks.BLOCK)[:, None]
  sleeve = np.where((people.sleeve > 0.05)[:, None], shirt, skin)
  sleeve = np.where(block, people.accent, sleeve)
  forearm = np.where(long, sleeve, skin)
  upper = np.where(long, sleeve, skin)
  arm = [0.62 * upper, 0.62 * forearm, upper, forearm, skin, sleeve]
  leg = np.where(
      (people.legwear >= looks.SHORTS)[:, None], skin, people.bottom
  )
  hem = np.where((people.legwear >= looks.SKIRT)[:, None], leg, people.bottom)
  leg = [0.94 * leg, 0.97 * leg, hem, people.shoes]
  colors = np.stack(2 * arm + 2 * leg, 1)
  # The far arm and leg are darker.
  arm_depth = figures.depth[:, 4:10].reshape(-1, 3, 2).mean(1)
  leg_depth = figures.depth[:, looks.KNEE]
  light = []
  for depth, rows in ((arm_depth, len(arm)), (leg_depth, len(leg))):
    behind = depth.max(1, keepdims=True) - depth > 0.04 * height[:, None]
    light.append(np.repeat(np.where(behind, _FAR, 1.0), rows, axis=1))
  colors = colors * np.concatenate(light, 1)[..., None]
  return _Limbs(
      _fixed(shapes, side),
      _paint(list(colors.swapaxes(0, 1)), part, len(height)),
      (arm_depth < -0.035 * height[:, None]).tolist(),
      (leg_depth[:, 0] < leg_depth[:, 1]).tolist(),
  )


class Trunks(NamedTuple):
  """Trunks of all people, ready to draw."""

  outline: np.ndarray  # [P, 16, 2]
  shade: np.ndarray  # [P, 16, 2] the side away from the light
  bands: np.ndarray  # [P, 6, 4, 2] rows as in _BANDS
  strip: np.ndarray  # [P, 12, 2] opening of a jacket
  tie: np.ndarray  # [P, 5, 2]
  buttons: list  # [P][4] points
  chest: list  # [P] point
  skirt: np.ndarray  # [P, 4, 2]
  neck: np.ndarray  # [P, 12, 2]
  button_radius: list  # [P]
  print_radius: list  # [P]
  colors: list  # [P][6]: shirt, its shade, accent, trousers, belt, skirt
  neck_color: list  # [P][1]
  front: list  # [P] the chest can be seen


def trunk_shapes(people: People, figures: Figures, side: int) -> Trunks:
  points, height = figures.points, people.height
  low, high = points[:, [looks.PELVIS]], points[:, [looks.NECK]]
  axis = high - low
  normal = np.stack([-axis[..., 1], axis[..., 0]], -1)
  normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
  cos, sin = np.cos(people.heading)[:, None], np.sin(people.heading)[:, None]
  place, width, depth = _TRUNK_LEVELS.T
  width = width * people.build[:, None]
  # Each level is an ellipse, projected to the image.
  extent = np.sqrt((width * cos) ** 2 + (depth * sin) ** 2) * height[:, None]
  middle = low + axis * place[None, :, None]
  edge = normal * extent[..., None]
  left = middle + edge
  outline = np.concatenate([left, (middle - edge)[:, ::-1]], 1)
  # Light comes from one side.
  shade = np.concatenate([left, (middle + 0.45 * edge)[:, ::-1]], 1)

  reach = np.stack([np.interp(_BANDS.ravel(), place, row) for row in extent])
  across = low + axis * _BANDS.reshape(1, -1, 1)
  reach = normal * reach[..., None]
  bands = np.stack([across + reach, across - reach], 2)
  bands = bands.reshape(len(height), -1, 4, 2)[:, :, [0, 1, 3, 2]]

  front = middle.copy()
  front[..., 0] += depth * sin * height[:, None]
  half = 0.020 * height * np.abs(cos[:, 0])
  half = np.stack([half, np.zeros_like(half)], -1)[:, None]
  strip = np.concatenate(
      [front[:, 1:7] - half, (front[:, 1:7] + half)[:, ::-1]], 1
  )
  half = half[:, 0]
  tie = np.stack(
      [
          front[:, 7] - 0.4 * half,
          front[:, 7] + 0.4 * half,
          front[:, 3] + 0.9 * half,
          front[:, 2],
          front[:, 3] - 0.9 * half,
      ],
      1,
  )

  knees = points[:, looks.KNEE, 0]
  waist = points[:, looks.PELVIS]
  top, hem = waist[:, 1] - 0.06 * height, points[:, looks.KNEE, 1].max(1)
  skirt = np.stack(
      [
          np.stack([waist[:, 0] - extent[:, 2], top], -1),
          np.stack([waist[:, 0] + extent[:, 2], top], -1),
          np.stack([knees.max(1) + 0.062 * height, hem], -1),
          np.stack([knees.min(1) - 0.062 * height, hem], -1),
      ],
      1,
  )
  nape = points[:, looks.NECK]
  neck = _tapered(
      nape + (figures.head - nape) * 0.55,
      front[:, 7],
      0.040 * height,
      0.042 * height,
  )
  dress = (people.legwear == looks.DRESS)[:, None]
  colors = [
      people.shirt, 0.86 * people.shirt, people.accent, people.bottom,
      0.6 * people.bottom, np.where(dress, people.shirt, people.bottom),
  ]  # fmt: skip
  return Trunks(
      _fixed(outline, side),
      _fixed(shade, side),
      _fixed(bands, side),
      _fixed(strip, side),
      _fixed(tie, side),
      _fixed(front[:, 2:6], side).tolist(),
      _fixed(front[:, 4], side).tolist(),
      _fixed(skirt, side),
      _fixed(neck, side),
      _fixed_length(0.007 * height, side),
      _fixed_length(0.030 * height, side),
      _paint(colors, [TRUNK] * 5 + [_SKIRT], len(height)),
      _paint([0.84 * people.skin], HEAD, len(height)),
      (cos[:, 0] > 0.25).tolist(),
  )


class Heads(NamedTuple):
  """Heads of all people, ready to draw."""

  marks: np.ndarray  # [P, 68, 2]
  facing: np.ndarray  # [P, 68]
  extras: np.ndarray  # [P, X, 2]
  extras_facing: np.ndarray  # [P, X]
  skull: np.ndarray  # [P, 24, 2]
  dome: np.ndarray  # [P, 12, 2] a hat
  brim: np.ndarray  # [P, 12, 2]
  mane: np.ndarray  # [P, 12, 2] long hair
  tail: np.ndarray  # [P, 12, 2]
  mane_first: list  # [P] hair hangs behind the body
  irises: list  # [P][2] points, right and left
  iris_radius: list  # [P][2]
  eyes_open: list  # [P][2]
  eyes_seen: list  # [P][2]
  teeth: np.ndarray  # [P, 8, 2]
  gape: list  # [P] how far the mouth is open, in head radii
  radius: list  # [P] in OpenCV's fixed point
  line: list  # [P] thickness of brows
  thin: list  # [P] thickness of lids
  colors: list  # [P][14]


def head_shapes(people: People, figures: Figures, side: int) -> Heads:
  marks, extras, radius = figures.landmarks, figures.extras, figures.radius
  style = people.style
  column = radius[:, None]

  size = _SKULLS[style]
  skull = extras[:, looks.SKULL]
  # In profile the skull is slightly longer.
  wide = size[:, 0] + 0.06 * np.abs(np.sin(people.head_yaw))
  axes = (np.stack([wide, size[:, 1]], -1) * column)[:, None]
  rise = skull - np.stack([np.zeros_like(radius), size[:, 2] * radius], -1)
  ring = rise[:, None] + _CIRCLE * axes
  dome = rise[:, None] + _CIRCLE[12:] * axes * 1.05
  dome[:, :, 1] -= 0.22 * column
  drop = np.where(style == looks.SCARF, 0.75, 0.95) * radius
  mane = extras[:, looks.MANE] + np.stack([np.zeros_like(drop), drop], -1)
  root, tip = looks.TAIL_ENDS
  inner, outer = looks.BRIM_ENDS

  eyes = np.stack([marks[:, 36:42], marks[:, 42:48]], 1)
  eyes_facing = figures.landmark_facing[:, 36:48].reshape(-1, 2, 6).mean(2)
  lids = marks[:, [40, 41, 46, 47]] - marks[:, [38, 37, 44, 43]]
  lids = np.linalg.norm(lids, axis=-1).reshape(-1, 2, 2).mean(2)
  iris = np.clip(0.55 * lids, 0.03 * column, 0.105 * column)
  gape = np.linalg.norm(marks[:, 66] - marks[:, 62], axis=-1)
  # Teeth fill the upper part of the open mouth.
  below = 0.45 * marks[:, [63, 62, 61]] + 0.55 * marks[:, [65, 66, 67]]
  teeth = np.concatenate([marks[:, 60:65], below], 1)

  skin, hair = people.skin, people.hair
  cover = np.where((style == looks.SCARF)[:, None], people.accent, hair)
  cover = np.where((style == looks.BALD)[:, None], 0.97 * skin, cover)
  plain = np.ones_like(skin)
  # Positive valence reddens the cheeks, negative valence darkens the face.
  blush = 0.55 * np.maximum(people.valence, 0)[:, None]
  gloom = 0.36 * np.maximum(-people.valence, 0)[:, None]
  face = skin + gloom * (_GLOOM - skin)
  colors = [
      face, 0.86 * face, cover, 0.85 * cover, people.accent,
      0.8 * people.accent, skin * np.array([0.84, 0.56, 0.55]),
      np.minimum(0.75 * hair, 0.45 * skin), 250 * plain, 30 * plain,
      plain * np.array([96, 22, 30]), np.minimum(0.6 * hair, 70),
      0.5 * skin + 0.45 * hair, skin + blush * (_BLUSH - skin),
  ]  # fmt: skip
  return Heads(
      _fixed(marks, side),
      figures.landmark_facing,
      _fixed(extras, side),
      figures.extras_facing,
      _fixed(ring, side),
      _fixed(dome, side),
      _fixed(
          _tapered(
              extras[:, inner], extras[:, outer], 0.34 * radius, 0.26 * radius
          ),
          side,
      ),
      _fixed(_tapered(skull, mane, 0.93 * radius, 0.80 * radius), side),
      _fixed(
          _tapered(
              extras[:, root], extras[:, tip], 0.30 * radius, 0.14 * radius
          ),
          side,
      ),
      (np.cos(people.head_yaw) > -0.15).tolist(),
      _fixed(eyes.mean(2) + (people.gaze * column)[:, None], side).tolist(),
      _fixed_length(iris, side),
      (lids > 0.06 * column).tolist(),
      (eyes_facing > 0.25).tolist(),
      _fixed(teeth, side),
      (gape / radius).tolist(),
      _fixed_length(radius, side),
      np.maximum(np.rint(0.13 * radius * side), 1).astype(int).tolist(),
      np.maximum(np.rint(0.05 * radius * side), 1).astype(int).tolist(),
      _paint(colors, HEAD, len(radius)),
  )
