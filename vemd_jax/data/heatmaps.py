"""Limb heatmaps, the targets of the heatmap decoder: in NumPy and in JAX.

The host draws each limb in a small window around it, which NumPy does several
times faster than XLA on a CPU; the device computes all pixels at once. Both
share the geometry of a limb, `_segments`.

One channel per limb. A pixel's value is exp(-d^2 / 2 sigma^2), d the distance
in heatmap pixels from the pixel (index 0 .. w-1 is its centre) to the segment
between the limb's two joints; joints are scaled by w / W and h / H. Limbs of
several people add up and are clipped at 1. A limb with a missing or outside
joint is left out; one shorter than 1e-3 heatmap pixels is a point
(arXiv 2604.02397, section 3; the public implementation's preprocessing).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import skeletons

# Beyond this many sigma a limb is below 1e-6 and is not drawn.
_REACH = 5.3
# Sides of the windows in which limbs are drawn; each limb uses the smallest one
# that contains it, and all limbs of one window size are drawn together.
_WINDOWS = np.array([12, 16, 24, 40, 56, 96, 192, 384, 1024, 1 << 30])
_CACHE = 40_000


@functools.lru_cache(maxsize=256)
def _window(rows: int, columns: int, width: int, channels: int):
  """(x, y, 1) of a window's pixels, and their offsets in a flattened map."""
  y, x = np.divmod(np.arange(rows * columns), columns)
  pixels = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
  return pixels, (y * width + x) * channels


def _segments(xp: Any, start: Any, end: Any, sigma: float):
  """Lines through limb segments, in units of sqrt(2) sigma.

  With p the distance of a pixel from the line and q how far it lies beyond an
  end of the segment, d^2 = p^2 + q^2 and the value is exp(-d^2).

  Args:
    xp: numpy or jax.numpy.
    start: [..., 2] first joints in heatmap pixels.
    end: [..., 2] second joints.
    sigma: in heatmap pixels.

  Returns:
    cosine and sine of the direction and half the length, each [...] times
    1 / (sqrt(2) sigma), and which segments are points.
  """
  along = end - start
  length = xp.sqrt((along * along).sum(-1))
  point = length < 1e-3
  unit = 1.0 / (math.sqrt(2.0) * sigma)
  factor = unit / xp.where(point, 1.0, length)
  cosine = xp.where(point, unit, along[..., 0] * factor)
  sine = xp.where(point, 0.0, along[..., 1] * factor)
  half = xp.where(point, 0.0, length * (0.5 * unit))
  return cosine, sine, half, point


def render(
    keypoints: np.ndarray,
    mask: np.ndarray,
    limbs: np.ndarray,
    *,
    image_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    sigma: float = 1.0,
) -> np.ndarray:
  """Renders limb heatmaps on the host.

  Each limb is drawn only in a window around it; all people and limbs are
  processed together.

  Args:
    keypoints: [..., P, K, 3] (x, y, score), x and y in pixels of the image.
    mask: [..., P] bool, False for slots without a person.
    limbs: [L, 2] joint numbers.
    image_size: (H, W) in pixels.
    heatmap_size: (h, w) in pixels.
    sigma: width of a limb in heatmap pixels.

  Returns:
    [..., h, w, L] float32 in 0..1.
  """
  height, width = heatmap_size
  lead = keypoints.shape[:-3]
  people, joints = keypoints.shape[-3:-1]
  maps, channels = math.prod(lead), len(limbs)
  keypoints = keypoints.reshape(maps, people, joints, 3)

  visible = skeletons.limb_visible(keypoints, limbs, *image_size)
  visible &= mask.reshape(maps, people)[..., None]
  index, person, limb = np.nonzero(visible)
  scale = np.array([width / image_size[1], height / image_size[0]])
  start = keypoints[index, person, limbs[limb, 0], :2] * scale
  end = keypoints[index, person, limbs[limb, 1], :2] * scale
  cosine, sine, half, _ = _segments(np, start, end, sigma)

  # The window of a limb: first pixel and size, [n, 2] as (x, y).
  first = np.ceil(np.minimum(start, end) - _REACH * sigma)
  last = np.floor(np.maximum(start, end) + _REACH * sigma)
  side = np.searchsorted(_WINDOWS, last - first + 1)
  limit = np.array([width, height])
  corner = np.clip(first, 0, np.maximum(limit - _WINDOWS[side], 0))

  # p and q of `_segments` are linear in the pixel up to a maximum; the
  # coordinates count from the window's corner, so that float32 is exact enough.
  offset = corner - start
  across = np.stack(
      [sine, -cosine, offset[:, 0] * sine - offset[:, 1] * cosine], 1
  ).astype(np.float32)
  beyond = np.stack(
      [cosine, sine, offset[:, 0] * cosine + offset[:, 1] * sine - half], 1
  ).astype(np.float32)
  half = half.astype(np.float32)[:, None]
  base = ((index * height + corner[:, 1]) * width + corner[:, 0]) * channels
  base = (base + limb).astype(np.int64)[:, None]

  flat = np.zeros(maps * height * width * channels, np.float32)
  group = side[:, 1] * len(_WINDOWS) + side[:, 0]
  for key in np.unique(group):
    chosen = np.flatnonzero(group == key)
    rows = min(int(_WINDOWS[key // len(_WINDOWS)]), height)
    columns = min(int(_WINDOWS[key % len(_WINDOWS)]), width)
    pixels, step = _window(rows, columns, width, channels)
    # The number of limbs per iteration keeps the arrays in the CPU cache.
    count = max(1, _CACHE // (rows * columns))
    for i in range(0, len(chosen), count):
      some = chosen[i : i + count]
      p = across[some] @ pixels
      q = beyond[some] @ pixels
      np.abs(q, out=q)
      q -= half[some]
      np.maximum(q, 0.0, out=q)
      q *= q
      p *= p
      p += q
      np.negative(p, out=p)
      np.exp(p, out=p)
      np.add.at(flat, (base[some] + step).ravel(), p.ravel())
  np.minimum(flat, 1.0, out=flat)
  return flat.reshape(*lead, height, width, channels)


def render_jax(
    keypoints: jax.Array,
    mask: jax.Array,
    limbs: np.ndarray,
    *,
    image_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    sigma: float = 1.0,
) -> jax.Array:
  """Renders limb heatmaps on the device; can be jitted and vmapped.

  Args:
    keypoints: [..., P, K, 3] (x, y, score), x and y in pixels of the image.
    mask: [..., P] bool, False for slots without a person.
    limbs: [L, 2] joint numbers.
    image_size: (H, W) in pixels.
    heatmap_size: (h, w) in pixels.
    sigma: width of a limb in heatmap pixels.

  Returns:
    [..., h, w, L] float32 in 0..1.
  """
  height, width = heatmap_size
  lead, maps = mask.shape[:-1], math.prod(mask.shape[:-1])
  keypoints = keypoints.astype(jnp.float32).reshape(maps, *keypoints.shape[-3:])
  visible = skeletons.limb_visible(keypoints, limbs, *image_size)
  visible &= mask.reshape(maps, -1)[..., None]  # [N, P, L]
  scale = np.array([width / image_size[1], height / image_size[0]], np.float32)
  points = keypoints[..., :2] * scale[None, None, None]
  # Coordinates of missing points are arbitrary and may be NaN.
  points = jnp.where(jnp.isfinite(points), points, 0.0)
  start, end = points[:, :, limbs[:, 0]], points[:, :, limbs[:, 1]]

  # p across the limb, q along it, here from its middle.
  cosine, sine, half, point = _segments(jnp, start, end, sigma)
  # A half length of -inf makes the value of an invisible limb 0 everywhere.
  half = jnp.where(visible, half, -jnp.inf)
  middle = jnp.where(point[..., None], start, (start + end) / 2)
  x = jnp.arange(width, dtype=jnp.float32)[None, :, None]
  y = jnp.arange(height, dtype=jnp.float32)[None, :, None]

  def add(total, person):
    middle, cosine, sine, half = person  # [N, L, 2], [N, L] ...
    cosine, sine = cosine[:, None], sine[:, None]
    dx = x - middle[:, None, :, 0]  # [N, w, L]
    dy = y - middle[:, None, :, 1]  # [N, h, L]
    p = (dx * sine)[:, None] - (dy * cosine)[:, :, None]  # [N, h, w, L]
    q = (dx * cosine)[:, None] + (dy * sine)[:, :, None]
    q = jnp.maximum(jnp.abs(q) - half[:, None, None], 0.0)
    return total + jnp.exp(-(p * p + q * q)), None

  # The scan bounds memory to [N, h, w, L]; unrolling fuses five people into one
  # loop over the pixels, which is several times as fast as one per iteration.
  people = (middle, cosine, sine, half)
  total, _ = jax.lax.scan(
      add,
      jnp.zeros((maps, height, width, len(limbs)), jnp.float32),
      tuple(jnp.moveaxis(values, 1, 0) for values in people),
      unroll=5,
  )
  return jnp.minimum(total, 1.0).reshape(*lead, height, width, len(limbs))
