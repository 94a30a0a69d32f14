"""Renders images of people with exact keypoints.

A person consists of a few dozen filled polygons. They are drawn without
anti-aliasing on a canvas of twice the size, whose fourth channel stores the
owner of each pixel. Halving the canvas yields the anti-aliased image, and the
fourth channel determines which keypoints are visible.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from vemd_jax.scenes import figures as looks
from vemd_jax.scenes.backgrounds import (
  draw_background,
  draw_foreground,
  draw_shadows,
)
from vemd_jax.scenes.figures import Figures, People
from vemd_jax.scenes.shapes import (
  BEARD_MARKS,
  HEAD,
  MAX_PEOPLE,
  MIN_FACING,
  MIN_FILLED,
  NOSE_MARKS,
  SHIFT,
  SUPERSAMPLE,
  TRUNK,
  TUCKED_IN,
  Heads,
  Trunks,
  head_shapes,
  limb_shapes,
  trunk_shapes,
)

# Seconds between consecutive frames of a clip.
FRAME_SECONDS = 0.1
_ARM_ROWS, _LEG_ROWS = 6, 4


class Drawing(NamedTuple):
  """One frame of a scene.

  Attributes:
    image: uint8 [H, W, 3] RGB.
    bodies: float32 [P, 17, 3] (x, y, score), in the order of the people.
    faces: float32 [P, 68, 3], the same.
    owners: uint8 [2 * H, 2 * W], see `owner_at`.
  """

  image: np.ndarray
  bodies: np.ndarray
  faces: np.ndarray
  owners: np.ndarray


# Indices of the colours of a head.
_FACE, _SHADE, _HAIR, _HAIR_SHADE, _HAT, _HAT_SHADE, _LIPS = range(7)
_BROW, _WHITE, _BLACK, _MOUTH, _IRIS, _BEARD, _CHEEK = range(7, 14)


# ------------------------------------------------------------------- drawing


def _fill(canvas, shape, color) -> None:
  cv2.fillConvexPoly(canvas, shape, color, cv2.LINE_8, SHIFT)


def _fill_any(canvas, shape, color) -> None:
  cv2.fillPoly(canvas, [shape], color, cv2.LINE_8, SHIFT)


def _disc(canvas, middle, radius: float, color, width: int = -1) -> None:
  cv2.circle(canvas, middle, int(radius), color, width, cv2.LINE_8, SHIFT)


def _stroke(canvas, points, color, width: int) -> None:
  cv2.polylines(canvas, [points], False, color, width, cv2.LINE_8, SHIFT)


def _draw_hair(canvas, people: People, heads: Heads, k: int) -> None:
  """Hair that hangs down the back."""
  if people.style[k] in (looks.LONG, looks.SCARF):
    shade = _HAIR_SHADE if heads.mane_first[k] else _HAIR
    _fill(canvas, heads.mane[k], heads.colors[k][shade])
  elif people.style[k] == looks.TAIL:
    _fill(canvas, heads.tail[k], heads.colors[k][_HAIR_SHADE])


def _draw_face(canvas, people: People, heads: Heads, k: int) -> None:
  """Beard, nose, eyes, brows and mouth, if they face the camera."""
  marks, facing, ink = heads.marks[k], heads.facing[k], heads.colors[k]
  if people.beard[k]:
    rows = BEARD_MARKS[facing[BEARD_MARKS] > MIN_FILLED]
    if len(rows) >= 3:
      _fill(canvas, cv2.convexHull(marks[rows]), ink[_BEARD])
  if people.valence[k] > 0.25:
    for cheek in looks.CHEEKS:
      if heads.extras_facing[k, cheek] > 0.3:
        middle = heads.extras[k, cheek].tolist()
        _disc(canvas, middle, 0.19 * heads.radius[k], ink[_CHEEK])
  if facing[27] > -0.1:
    _fill(canvas, cv2.convexHull(marks[NOSE_MARKS]), ink[_SHADE])
  for place, eye, brow in ((0, 36, 17), (1, 42, 22)):
    if not heads.eyes_seen[k][place]:
      continue
    middle = heads.irises[k][place]
    if heads.eyes_open[k][place]:
      _fill(canvas, marks[eye : eye + 6], ink[_WHITE])
      _disc(canvas, middle, heads.iris_radius[k][place], ink[_IRIS])
    _stroke(canvas, marks[eye : eye + 4], ink[_BLACK], heads.thin[k])
    arch = marks[brow : brow + 5][facing[brow : brow + 5] > 0.15]
    _stroke(canvas, arch, ink[_BROW], heads.line[k])
    if people.glasses[k]:
      _disc(canvas, middle, 0.25 * heads.radius[k], ink[_BLACK], heads.thin[k])
  if facing[51] > 0.05:
    _fill_any(canvas, marks[48:60], ink[_LIPS])
    if heads.gape[k] > 0.07:
      _fill_any(canvas, marks[60:68], ink[_MOUTH])
      # A smile lifts the upper lip.
      if heads.gape[k] > 0.10 and people.valence[k] > 0.2:
        _fill_any(canvas, heads.teeth[k], ink[_WHITE])
    else:
      _stroke(canvas, marks[60:65], ink[_MOUTH], heads.thin[k])


def _draw_head(canvas, people: People, heads: Heads, k: int) -> None:
  style, ink, radius = people.style[k], heads.colors[k], heads.radius[k]
  extras, extras_facing = heads.extras[k], heads.extras_facing[k]
  if style == looks.BUN:
    middle = extras[looks.BUN_POINT].tolist()
    _disc(canvas, middle, 0.36 * radius, ink[_HAIR_SHADE])
  _fill(canvas, heads.skull[k], ink[_HAIR])
  outline = np.concatenate([heads.marks[k, :17], extras[looks.HAIRLINE]])
  facing = np.concatenate(
      [heads.facing[k, :17], extras_facing[looks.HAIRLINE]]
  )
  outline = outline[facing > MIN_FILLED]
  if len(outline) >= 3:
    _fill(canvas, cv2.convexHull(outline), ink[_FACE])
  if style not in (looks.LONG, looks.SCARF, looks.AFRO):
    for ear in looks.EARS:
      if extras_facing[ear] > -0.25:
        _disc(canvas, extras[ear].tolist(), 0.17 * radius, ink[_SHADE])
  _draw_face(canvas, people, heads, k)
  if style in (looks.BEANIE, looks.CAP):
    _fill(canvas, heads.dome[k], ink[_HAT])
  if style == looks.CAP and extras_facing[looks.BRIM_ENDS[0]] > -0.3:
    _fill(canvas, heads.brim[k], ink[_HAT_SHADE])


def _draw_trunk(canvas, people: People, trunks: Trunks, k: int) -> None:
  pattern, front = people.pattern[k], trunks.front[k]
  shirt, shade, accent, trousers, belt, skirt = trunks.colors[k]
  bands = trunks.bands[k]
  if people.legwear[k] >= looks.SKIRT:
    _fill(canvas, trunks.skirt[k], skirt)
  _fill(canvas, trunks.outline[k], shirt)
  if pattern == looks.STRIPES:
    for band in bands[:3]:
      _fill(canvas, band, accent)
  elif pattern == looks.BLOCK:
    _fill(canvas, bands[3], accent)
  elif pattern == looks.OPEN_JACKET and front:
    _fill(canvas, trunks.strip[k], accent)
  if pattern not in (looks.STRIPES, looks.BLOCK):
    _fill(canvas, trunks.shade[k], shade)
  if pattern == looks.PRINT and front:
    _disc(canvas, trunks.chest[k], trunks.print_radius[k], accent)
  elif pattern == looks.BUTTONS and front:
    for middle in trunks.buttons[k]:
      _disc(canvas, middle, trunks.button_radius[k], accent)
  elif pattern == looks.TIE and front:
    _fill(canvas, trunks.tie[k], accent)
  if people.legwear[k] < looks.SKIRT and pattern in TUCKED_IN:
    _fill(canvas, bands[4], trousers)
    _fill(canvas, bands[5], belt)
  _fill(canvas, trunks.neck[k], trunks.neck_color[k][0])


def _draw_person(canvas, people: People, limbs, trunks, heads, k: int) -> None:
  """Draws a person from back to front."""

  def draw_limb(first: int, rows) -> None:
    for row in rows:
      _fill(canvas, shapes[first + row], colors[first + row])

  shapes, colors = limbs.shapes[k], limbs.colors[k]
  if heads.mane_first[k]:
    _draw_hair(canvas, people, heads, k)
  for arm in (0, 1):
    if limbs.arms_behind[k][arm]:
      draw_limb(_ARM_ROWS * arm, range(_ARM_ROWS))
  for leg in (0, 1) if limbs.left_leg_first[k] else (1, 0):
    draw_limb(2 * _ARM_ROWS + _LEG_ROWS * leg, (0, 3, 1, 2))
  _draw_trunk(canvas, people, trunks, k)
  _draw_head(canvas, people, heads, k)
  if not heads.mane_first[k]:
    _draw_hair(canvas, people, heads, k)
  for arm in (0, 1):
    if not limbs.arms_behind[k][arm]:
      draw_limb(_ARM_ROWS * arm, range(_ARM_ROWS))


# ----------------------------------------------------------------- keypoints

# Body joints: nose, eyes, ears from the head, the others from the skeleton.
_LIMB_JOINTS = np.array([
    *looks.SHOULDER, *looks.ELBOW, *looks.WRIST,
    *looks.HIP, *looks.KNEE, *looks.ANKLE,
])  # fmt: skip


def _head_joints(figures: Figures):
  """Nose, eyes, ears [P, 5, 2] and how far they face the camera [P, 5]."""
  marks, facing = figures.landmarks, figures.landmark_facing
  points = np.stack(
      [
          marks[:, 30],
          marks[:, 42:48].mean(1),
          marks[:, 36:42].mean(1),
          figures.extras[:, looks.EARS[0]],
          figures.extras[:, looks.EARS[1]],
      ],
      1,
  )
  facing = np.stack(
      [
          facing[:, 30],
          facing[:, 42:48].mean(1),
          facing[:, 36:42].mean(1),
          # Ears protrude and are visible up to 100 degrees.
          figures.extras_facing[:, looks.EARS[0]] + 0.25,
          figures.extras_facing[:, looks.EARS[1]] + 0.25,
      ],
      1,
  )
  return points, facing


def owner_at(owners: np.ndarray, points: np.ndarray):
  """Looks up the person and body part visible at image points.

  Args:
    owners: uint8 [2 * H, 2 * W] of a Drawing.
    points: [..., 2] x, y in pixels of the image.

  Returns:
    person int [...] (-1 background, MAX_PEOPLE an object in front), part int
    [...], inside bool [...], whether the point is in the frame.
  """
  height, width = owners.shape
  scaled = points * SUPERSAMPLE
  inside = (points >= 0).all(-1)
  inside &= (scaled[..., 0] < width) & (scaled[..., 1] < height)
  at = np.rint(scaled + (SUPERSAMPLE - 1) / 2).astype(int)
  x = np.clip(at[..., 0], 0, width - 1)
  y = np.clip(at[..., 1], 0, height - 1)
  code = owners[y, x].astype(int)
  return code // 16 - 1, code % 16, inside


def _keypoints(figures: Figures, owners: np.ndarray, size: int):
  """Joints [P, 17, 3] and landmarks [P, 68, 3], with visibility as score.

  A joint is hidden if another person or an object is in front of it, if it is
  on the far side of the head, or if an arm or leg is behind the person's own
  trunk or head.
  """
  person = np.arange(len(figures.points))[:, None]
  head, facing = _head_joints(figures)
  joints = np.concatenate([head, figures.points[:, _LIMB_JOINTS]], 1) * size
  owner, part, inside = owner_at(owners, joints)
  seen = inside & (owner == person)
  seen[:, :5] &= (facing > MIN_FACING) & (part[:, :5] == HEAD)
  # Of these joints only shoulders and hips may lie on the trunk.
  for first, last in ((7, 11), (13, 17)):
    seen[:, first:last] &= part[:, first:last] > TRUNK
  bodies = np.concatenate([joints, seen[..., None]], -1).astype(np.float32)
  marks = figures.landmarks * size
  # Landmarks on the outline are looked up slightly inside the face.
  middle = marks[:, [30]]
  owner, part, _ = owner_at(owners, middle + 0.88 * (marks - middle))
  inside = ((marks >= 0) & (marks < size)).all(-1)
  seen = inside & (owner == person) & (part == HEAD)
  seen &= figures.landmark_facing > MIN_FACING
  faces = np.concatenate([marks, seen[..., None]], -1).astype(np.float32)
  return bodies, faces


# -------------------------------------------------------------------- scenes


@functools.lru_cache(maxsize=4)
def _grain(side: int) -> np.ndarray:
  """Noise [side, side, 3] around 128, of which every image uses a crop."""
  rng = np.random.default_rng(68)
  noise = rng.normal(128, 40, (side, side, 3))
  return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


class _Camera(NamedTuple):
  """Parameters of the camera model."""

  blur: float
  light: np.ndarray  # [2, 2, 3] uint8, interpolated over the image
  curve: np.ndarray  # [1, 256, 3] uint8
  grain: float


def _camera(rng: np.random.Generator) -> _Camera:
  tone = np.linspace(0, 1, 256)[:, None]
  gain = rng.uniform(0.88, 1.16) * rng.uniform(0.92, 1.08, 3)
  tone = np.clip(tone * gain, 0, 1) ** rng.uniform(0.85, 1.15)
  tone = tone * rng.uniform(0.9, 1.0) + rng.uniform(0, 0.04)
  curve = np.clip(np.rint(tone * 255), 0, 255).astype(np.uint8)[None]
  light = rng.uniform(205, 255, (2, 2, 1)).astype(np.uint8)
  return _Camera(
      rng.choice([0.0, 0.0, 0.4, 0.6, 0.8]),
      np.repeat(light, 3, 2),
      curve,
      rng.uniform(0.0, 0.12),
  )


def _expose(canvas, camera: _Camera, rng: np.random.Generator) -> np.ndarray:
  """The image [S / 2, S / 2, 3] that a camera takes of the canvas."""
  size = canvas.shape[0] // SUPERSAMPLE
  image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
  image = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
  if camera.blur:
    image = cv2.GaussianBlur(image, (3, 3), camera.blur)
  light = cv2.resize(camera.light, (size, size))
  image = cv2.multiply(image, light, scale=1 / 235)
  image = cv2.LUT(image, camera.curve)
  table = _grain(size + 64)
  y, x = rng.integers(0, 64, 2).tolist()
  noise = table[y : y + size, x : x + size]
  return cv2.addWeighted(
      image, 1.0, noise, camera.grain, -128.0 * camera.grain
  )


def draw(
    people: People, seed: int, size: int, frames: int = 1
) -> list[Drawing]:
  """Draws a scene; the same arguments give the same images.

  Args:
    people: at most 14 people. They are drawn in order of y, and in the given
      order if y is equal; later ones are in front.
    seed: seed of background, camera and noise.
    size: side of the image in pixels.
    frames: length of the clip.

  Returns:
    One Drawing for each frame.
  """
  if len(people.x) > MAX_PEOPLE:
    raise ValueError(f'{len(people.x)} people: at most {MAX_PEOPLE} fit')
  rng = np.random.default_rng((seed, 1))
  camera = _camera(np.random.default_rng((seed, 2)))
  front_seed = (seed, 3)
  side = size * SUPERSAMPLE
  backdrop = np.empty((side, side, 4), np.uint8)
  ground = draw_background(backdrop, rng)
  order = np.argsort(people.y, kind='stable').tolist()
  drawings = []
  for frame in range(frames):
    time = frame * FRAME_SECONDS
    canvas = backdrop.copy() if frames > 1 else backdrop
    figures = looks.pose(people, time)
    draw_shadows(
        canvas, ground, figures.points[:, looks.PELVIS, 0], people.y,
        0.17 * people.height,
    )  # fmt: skip
    limbs = limb_shapes(people, figures, side)
    trunks = trunk_shapes(people, figures, side)
    heads = head_shapes(people, figures, side)
    for k in order:
      _draw_person(canvas, people, limbs, trunks, heads, k)
    draw_foreground(canvas, np.random.default_rng(front_seed))
    owners = canvas[..., 3]
    bodies, faces = _keypoints(figures, owners, size)
    drawings.append(
        Drawing(_expose(canvas, camera, rng), bodies, faces, owners)
    )
  return drawings
