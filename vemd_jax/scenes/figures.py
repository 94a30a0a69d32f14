"""Geometry of the bodies and faces of the embedded dataset.

Lengths are relative to the frame's side, angles are in radians. A body faces +Z
with its own left at +X and its head at +Y. A heading of 0 faces the camera and
pi / 2 faces the image's right. All functions are vectorised over people.
"""

from typing import NamedTuple

import numpy as np

SKIN = np.array([
    (255, 224, 196), (246, 205, 172), (236, 188, 148), (222, 168, 122),
    (198, 140, 98), (164, 110, 74), (126, 82, 56), (96, 62, 44),
], np.float32)  # fmt: skip
HAIR = np.array([
    (34, 28, 30), (58, 40, 32), (92, 58, 36), (132, 84, 44), (186, 132, 70),
    (222, 182, 112), (166, 66, 36), (170, 168, 170), (226, 224, 220),
    (70, 60, 90),
], np.float32)  # fmt: skip
CLOTH = np.array([
    (214, 69, 65), (235, 130, 72), (244, 193, 84), (122, 178, 98),
    (54, 140, 120), (70, 160, 200), (58, 98, 172), (104, 84, 160),
    (186, 98, 150), (240, 236, 226), (150, 156, 166), (70, 76, 92),
    (44, 48, 62), (166, 124, 92), (240, 170, 170), (168, 206, 214),
], np.float32)  # fmt: skip
TROUSERS = np.array([
    (52, 70, 108), (84, 112, 156), (50, 52, 60), (112, 96, 82),
    (190, 172, 140), (92, 96, 104), (70, 84, 70), (130, 60, 64),
], np.float32)  # fmt: skip
SHOES = np.array([
    (42, 40, 44), (236, 234, 230), (120, 76, 50), (190, 60, 56), (70, 90, 130),
], np.float32)  # fmt: skip

# Hair styles.
SHORT, LONG, BUN, TAIL, AFRO, BALD, BEANIE, CAP, SCARF = range(9)
# Clothing patterns.
PLAIN, STRIPES, OPEN_JACKET, BUTTONS, PRINT, BLOCK, TIE = range(7)
# Legwear.
LONG_TROUSERS, SHORTS, SKIRT, DRESS = range(4)


class People(NamedTuple):
  """Parameters of P people, each field [P] or [P, ...].

  Lengths are relative to the frame's side, angles in radians, colours RGB in
  0..255.

  Attributes:
    x: horizontal position, 0 the left and 1 the right edge of the frame.
    y: vertical position of the feet, 0 the top and 1 the bottom of the frame.
    height: standing height.
    head: size of the head relative to the average.
    heading: direction of the body, 0 the camera, pi / 2 the image's right.
    head_yaw: direction of the head, as for `heading`.
    head_pitch: up is positive.
    roll: tilt of the head in the image plane.
    lean: sideways tilt of the body.
    stoop: forward tilt of the body.
    gesture: index of the gesture.
    arms: [P, 2, 4] left and right; polar angle and azimuth of the upper arm,
      then of the forearm. Polar angle 0 points down, azimuth 0 outwards, pi / 2
      forwards.
    arm_swing: [P, 2, 4] amplitudes of the arm angles over time.
    legs: [P, 2, 3] left and right; outward angle, forward swing, knee bend.
    stride: amplitude of the leg swing over time.
    speed: drift along x per second.
    phase: phase of the motion.
    rate: angular speed of the motion per second.
    valence: expression, -1 sad or angry, 1 smiling.
    anger: share of anger in a negative expression, the rest is sadness.
    opening: opening of the mouth, 0..1.
    blink: closing of the eyes, 0..1.
    brows: raise of the brows.
    gaze: [P, 2] shift of the irises.
    skin, hair, shirt, accent, bottom, shoes: [P, 3] colours.
    style: hair style.
    pattern: clothing pattern.
    sleeve: covered share of the arm, 0..1.
    legwear: type of trousers, skirt or dress.
    glasses, beard: whether the person has them.
    build: body width relative to the average.
    fringe: downward shift of the hairline, in head radii.
  """

  x: np.ndarray
  y: np.ndarray
  height: np.ndarray
  head: np.ndarray
  heading: np.ndarray
  head_yaw: np.ndarray
  head_pitch: np.ndarray
  roll: np.ndarray
  lean: np.ndarray
  stoop: np.ndarray
  gesture: np.ndarray
  arms: np.ndarray
  arm_swing: np.ndarray
  legs: np.ndarray
  stride: np.ndarray
  speed: np.ndarray
  phase: np.ndarray
  rate: np.ndarray
  valence: np.ndarray
  anger: np.ndarray
  opening: np.ndarray
  blink: np.ndarray
  brows: np.ndarray
  gaze: np.ndarray
  skin: np.ndarray
  hair: np.ndarray
  shirt: np.ndarray
  accent: np.ndarray
  bottom: np.ndarray
  shoes: np.ndarray
  style: np.ndarray
  pattern: np.ndarray
  sleeve: np.ndarray
  legwear: np.ndarray
  glasses: np.ndarray
  beard: np.ndarray
  build: np.ndarray
  fringe: np.ndarray


# ----------------------------------------------------------------- the body

# Points of a figure. The last six are not joints: hands, toes, sleeve ends.
NECK, PELVIS = 0, 1
SHOULDER, ELBOW, WRIST, HAND = (2, 3), (4, 5), (6, 7), (8, 9)
HIP, KNEE, ANKLE, TOE = (10, 11), (12, 13), (14, 15), (16, 17)
SLEEVE, HEM = (18, 19), (20, 21)
_NUM_POINTS = 22

class Figures(NamedTuple):
  """Positions at one point in time.

  Attributes:
    points: [P, 22, 2] relative to the frame's side.
    depth: [P, 22] towards the camera, relative to the pelvis.
    head: [P, 2] centre of the head.
    radius: [P] radius of the head.
    landmarks: [P, 68, 2].
    landmark_facing: [P, 68] cosine of the angle to the camera.
    extras: [P, X, 2] hairline, ears and other points of the head.
    extras_facing: [P, X] cosine of the angle to the camera.
  """

  points: np.ndarray
  depth: np.ndarray
  head: np.ndarray
  radius: np.ndarray
  landmarks: np.ndarray
  landmark_facing: np.ndarray
  extras: np.ndarray
  extras_facing: np.ndarray


def _direction(polar, azimuth, side):
  """Unit vectors [..., 3] of arms: polar from down, azimuth from outwards."""
  sin = np.sin(polar)
  return np.stack(
      [sin * np.cos(azimuth) * side, -np.cos(polar), sin * np.sin(azimuth)], -1
  )


_SIDE = np.array([1.0, -1.0], np.float32)


def _skeleton(people: People, time: float):
  """Body points relative to the frame's side, and their depth.

  Args:
    people: P people.
    time: seconds since the start of the clip.

  Returns:
    points [P, 22, 2], depth [P, 22], both relative to the frame's side.
  """
  p = len(people.x)
  wave = np.sin(people.rate * time + people.phase)
  body = np.zeros((p, _NUM_POINTS, 3), np.float32)
  # Legs first, since the lower foot determines the height of the pelvis.
  out, swing, bend = np.moveaxis(people.legs, -1, 0)
  step = (people.stride * wave)[:, None] * _SIDE
  swing, bend = swing + step, bend + np.abs(step) * 0.5
  thigh = np.stack([np.sin(out) * _SIDE, -np.cos(swing), np.sin(swing)], -1)
  shin = np.stack([
      np.sin(out) * _SIDE * 0.5, -np.cos(swing - bend), np.sin(swing - bend)
  ], -1)  # fmt: skip
  thigh *= 0.215
  shin *= 0.205
  reach = (thigh + shin)[..., 1].min(1)
  pelvis = np.zeros((p, 3), np.float32)
  pelvis[:, 1] = 0.025 - reach
  lean = people.lean + 0.02 * wave
  axis = np.stack(
      [np.sin(lean), np.cos(lean) * np.cos(people.stoop), np.sin(people.stoop)],
      -1,
  )
  neck = pelvis + 0.325 * axis
  across = np.stack([np.cos(lean), -np.sin(lean), np.zeros_like(lean)], -1)
  body[:, PELVIS], body[:, NECK] = pelvis, neck
  width = people.build[:, None, None] * _SIDE[None, :, None]
  shoulder = (neck - 0.028 * axis)[:, None] + 0.094 * width * across[:, None]
  hip = pelvis[:, None] + 0.050 * width * across[:, None]
  arms = people.arms + people.arm_swing * wave[:, None, None]
  upper = _direction(arms[..., 0], arms[..., 1], _SIDE)
  fore = _direction(arms[..., 2], arms[..., 3], _SIDE)
  elbow = shoulder + 0.150 * upper
  wrist = elbow + 0.135 * fore
  knee = hip + thigh
  ankle = knee + shin
  forward = np.array([0.0, -0.012, 0.055], np.float32)
  toe = ankle + forward
  toe[..., 0] += 0.02 * _SIDE
  sleeve = people.sleeve[:, None, None]
  for index, value in (
      (SHOULDER, shoulder), (ELBOW, elbow), (WRIST, wrist),
      (HAND, wrist + 0.030 * fore), (HIP, hip), (KNEE, knee),
      (ANKLE, ankle), (TOE, toe),
      (SLEEVE, shoulder + np.minimum(sleeve * 2, 1) * 0.150 * upper),
      (HEM, hip + 0.8 * thigh),
  ):  # fmt: skip
    body[:, index[0] : index[1] + 1] = value
  cos, sin = np.cos(people.heading)[:, None], np.sin(people.heading)[:, None]
  height = people.height[:, None]
  x = people.x + people.speed * time
  points = np.empty((p, _NUM_POINTS, 2), np.float32)
  points[..., 0] = (body[..., 0] * cos + body[..., 2] * sin) * height
  points[..., 0] += x[:, None]
  points[..., 1] = people.y[:, None] - body[..., 1] * height
  depth = (body[..., 2] * cos - body[..., 0] * sin) * height
  return points, depth


# ----------------------------------------------------------------- the face


def _mean_face() -> np.ndarray:
  """68 landmarks [68, 3] in head radii: x image right, y down, z forward."""
  turn = np.linspace(0, np.pi, 17)
  jaw = np.stack([-0.78 * np.cos(turn), 0.06 + 0.94 * np.sin(turn)], -1)
  # Make the jaw rounder than an ellipse.
  jaw[:, 0] *= 1 + 0.10 * np.sin(2 * np.minimum(turn, np.pi - turn))
  brow = np.array([
      (-0.60, -0.24), (-0.50, -0.33), (-0.38, -0.36), (-0.26, -0.34),
      (-0.15, -0.29),
  ])  # fmt: skip
  bridge = [(0, 0.02), (0, 0.14), (0, 0.26), (0, 0.36)]
  nostrils = [(-0.15, 0.43), (-0.08, 0.455), (0, 0.47), (0.08, 0.455)]
  nostrils += [(0.15, 0.43)]
  eye = np.array([
      (-0.50, 0.03), (-0.41, -0.10), (-0.27, -0.10), (-0.17, 0.04),
      (-0.27, 0.12), (-0.41, 0.12),
  ])  # fmt: skip
  mirror = np.array([-1.0, 1.0])
  other_eye = (eye * mirror)[[3, 2, 1, 0, 5, 4]]
  outer = [(-0.34, 0.65), (-0.22, 0.60), (-0.09, 0.575), (0, 0.59)]
  outer += [(0.09, 0.575), (0.22, 0.60), (0.34, 0.65), (0.22, 0.73)]
  outer += [(0.09, 0.77), (0, 0.78), (-0.09, 0.77), (-0.22, 0.73)]
  inner = [(-0.28, 0.65), (-0.11, 0.635), (0, 0.64), (0.11, 0.635)]
  inner += [(0.28, 0.65), (0.11, 0.685), (0, 0.69), (-0.11, 0.685)]
  # Enlarge the mouth, so that it can be recognised in a small face.
  outer, inner = (
      (np.array(lips) - [0, 0.66]) * [1.15, 1.1] + [0, 0.66]
      for lips in (outer, inner)
  )
  points = np.concatenate([
      jaw, brow, (brow * mirror)[::-1], bridge, nostrils, eye, other_eye,
      outer, inner,
  ])  # fmt: skip
  x, y = points.T
  z = 0.86 * np.sqrt(np.clip(1 - (x / 0.92) ** 2 - (y / 1.3) ** 2, 0.02, 1))
  z[:17] = 0.05 + 0.50 * np.sin(turn)
  z[27:31] += [0.02, 0.10, 0.18, 0.26]
  z[31:36] += [0.06, 0.12, 0.16, 0.12, 0.06]
  return np.concatenate([points, z[:, None]], 1).astype(np.float32)


def _face_actions() -> np.ndarray:
  """Displacements [6, 68, 3] of smile, sad, angry, open, blink, raise."""
  actions = np.zeros((6, 68, 3))
  smile, sad, angry, opening, blink, raised = actions

  def both(action, point, x, y):
    # The point on the person's right and its mirror image.
    twin = {48: 54, 60: 64, 49: 53, 59: 55, 61: 63, 67: 65, 50: 52, 58: 56}
    twin |= {17: 26, 18: 25, 19: 24, 20: 23, 21: 22, 37: 44, 38: 43, 40: 47}
    twin |= {41: 46, 36: 45, 39: 42}
    action[point, :2] += x, y
    action[twin[point], :2] += -x, y

  for point, x, y in (
      (48, -0.14, -0.18), (60, -0.14, -0.17), (49, -0.07, -0.06),
      (59, -0.07, 0.05), (61, -0.04, -0.01), (67, -0.05, 0.16),
      (58, -0.03, 0.17), (40, 0, -0.04), (41, 0, -0.04), (19, 0, -0.05),
      (20, 0, -0.04), (18, 0, -0.05),
  ):  # fmt: skip
    both(smile, point, x, y)
  smile[[57, 66], 1] += 0.18
  for point, x, y in (
      (48, 0.02, 0.24), (60, 0.02, 0.23), (49, 0.00, 0.03), (59, 0.00, 0.11),
      (50, 0, -0.05), (58, 0, -0.02), (61, 0, -0.04), (67, 0, -0.05),
      (17, 0, 0.12), (18, 0, 0.06), (20, 0, -0.14), (21, 0, -0.24),
      (37, 0, 0.05), (36, 0, 0.03),
  ):  # fmt: skip
    both(sad, point, x, y)
  sad[[51, 62], 1] -= 0.05
  sad[[57, 66], 1] -= 0.04
  for point, x, y in (
      (48, 0.03, 0.21), (60, 0.03, 0.20), (49, 0.01, 0.03), (59, 0.01, 0.14),
      (58, 0, 0.10), (67, 0, 0.12), (61, 0, -0.03), (17, 0, -0.10),
      (18, 0.01, -0.05), (19, 0.02, 0.02), (20, 0.03, 0.12), (21, 0.05, 0.22),
      (37, 0, 0.04), (38, 0, 0.09), (40, 0, -0.03), (41, 0, -0.03),
  ):  # fmt: skip
    both(angry, point, x, y)
  angry[[57, 66], 1] += 0.10
  angry[[51, 62], 1] -= 0.02
  # The lower jaw drops.
  turn = np.linspace(0, np.pi, 17)
  opening[:17, 1] += 0.16 * np.sin(turn) ** 3
  opening[55:60, 1] += 0.24, 0.25, 0.26, 0.25, 0.24
  opening[65:68, 1] += 0.24
  opening[[48, 54, 60, 64], 1] += 0.07
  opening[[48, 60], 0] += 0.05
  opening[[54, 64], 0] -= 0.05
  for point, x, y in ((37, 0, 0.19), (38, 0, 0.19), (40, 0, -0.02)):
    both(blink, point, x, y)
  both(blink, 41, 0, -0.02)
  for point in (17, 18, 19, 20, 21):
    both(raised, point, 0, -0.10)
  both(raised, 37, 0, -0.03)
  both(raised, 38, 0, -0.03)
  return actions.astype(np.float32)


_FACE = _mean_face()
_ACTIONS = _face_actions().reshape(6, -1)


def _extra_points() -> np.ndarray:
  """Points [X, 3] of the head that are not landmarks, in head radii."""
  hairline = np.array([
      (-0.78, 0.02), (-0.76, -0.25), (-0.60, -0.50), (-0.32, -0.60),
      (0, -0.62), (0.32, -0.60), (0.60, -0.50), (0.76, -0.25), (0.78, 0.02),
  ])  # fmt: skip
  z = 0.9 * np.sqrt(
      np.clip(1 - (hairline[:, 0] / 0.85) ** 2 - hairline[:, 1] ** 2, 0, 1)
  )
  hairline = np.concatenate([hairline, z[:, None]], 1)
  others = [
      (-0.83, 0.06, -0.08), (0.83, 0.06, -0.08),  # ears: right, left
      (0, 0, -0.15),  # middle of the skull
      (0, -0.55, -0.85), (0, 0.75, -1.05),  # tail: root, tip
      (0, -1.06, -0.30),  # bun
      (0, -0.42, 0.80), (0, -0.30, 1.35),  # brim of a cap
      (0, 0.55, -0.40),  # middle of long hair
      (-0.46, 0.40, 0.66), (0.46, 0.40, 0.66),  # cheeks: right, left
  ]  # fmt: skip
  return np.concatenate([hairline, others]).astype(np.float32)


_EXTRAS = _extra_points()
HAIRLINE = slice(0, 9)
EARS = (10, 9)  # left, right
SKULL, TAIL_ENDS, BUN_POINT, BRIM_ENDS, MANE = 11, (12, 13), 14, (15, 16), 17
CHEEKS = (18, 19)


def _normals(points: np.ndarray) -> np.ndarray:
  """Outward normals [..., 3] of an ellipsoid through the head."""
  normals = points / np.array([0.80, 1.15, 0.95], np.float32) ** 2
  return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def _landmark_normals() -> np.ndarray:
  normals = _FACE.copy()
  normals[31:36, 0] *= 0.6
  return _normals(normals)


# Normals of the mean face are used for every expression.
_ALL_NORMALS = np.concatenate([_landmark_normals(), _normals(_EXTRAS)])


def expression(people: People, time: float = 0.0) -> np.ndarray:
  """Landmarks of the faces with their expressions, in frontal view.

  Args:
    people: P people.
    time: seconds since the start of the clip.

  Returns:
    [P, 68, 3] landmarks in head radii: x image right, y down, z forward.
  """
  swell = 0.9 + 0.1 * np.sin(people.rate * 0.7 * time + people.phase)
  valence = people.valence * swell
  down = np.maximum(-valence, 0)
  # The mouth opens and closes periodically, as in talking.
  opening = people.opening * (
      1 + 0.3 * np.sin(people.rate * 1.3 * time + 2 * people.phase)
  )
  weights = np.stack(
      [
          np.maximum(valence, 0),
          down * (1 - people.anger),
          down * people.anger,
          np.clip(opening, 0, 1.2),
          people.blink,
          people.brows,
      ],
      -1,
  )
  return _FACE + (weights @ _ACTIONS).reshape(-1, 68, 3)


def pose(people: People, time: float = 0.0) -> Figures:
  """Computes the positions of all points of all people at one time.

  Args:
    people: P people.
    time: seconds since the start of the clip.

  Returns:
    Figures, relative to the frame's side.
  """
  points, depth = _skeleton(people, time)
  radius = 0.112 * people.height * people.head
  axis = points[:, NECK] - points[:, PELVIS]
  tilt = np.arctan2(axis[:, 0], -axis[:, 1]) * 0.6 + people.roll
  up = np.stack([np.sin(tilt), -np.cos(tilt)], -1)
  # The chin is one radius below the centre and just above the collar.
  head = points[:, NECK] + up * (radius * 1.0 + 0.012 * people.height)[:, None]
  sway = np.sin(people.rate * 0.5 * time + 1.7 * people.phase)
  yaw, pitch = people.head_yaw + 0.06 * sway, people.head_pitch + 0.03 * sway
  # The face is in front of the neck, so a turn shifts it sideways.
  head[:, 0] += 0.12 * radius * np.sin(yaw)
  face = expression(people, time)
  extras = np.broadcast_to(_EXTRAS, (len(yaw), *_EXTRAS.shape)).copy()
  extras[:, 1:8, 1] += people.fringe[:, None]
  solid = np.concatenate([face, extras], 1)
  solid[..., 1] -= 0.02
  zero, one = np.zeros_like(yaw), np.ones_like(yaw)
  cos, sin = np.cos(pitch), np.sin(pitch)
  nod = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1)
  cos, sin = np.cos(yaw), np.sin(yaw)
  turn = np.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1)
  rotation = turn.reshape(-1, 3, 3) @ nod.reshape(-1, 3, 3)
  solid = solid @ rotation.transpose(0, 2, 1)
  facing = np.einsum('pi,ki->pk', rotation[:, 2], _ALL_NORMALS)
  flat = solid[..., :2] * (1 + 0.10 * solid[..., 2:])
  cos, sin = np.cos(tilt), np.sin(tilt)
  spin = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
  flat = flat @ spin.transpose(0, 2, 1)
  flat = flat * radius[:, None, None] + head[:, None]
  return Figures(
      points, depth, head, radius, flat[:, :68], facing[:, :68], flat[:, 68:],
      facing[:, 68:],
  )  # fmt: skip


