"""Visualization of structure: overlays of heatmaps and limbs, and sheets.

Uses NumPy and OpenCV only; every picture is uint8 [H, W, 3] RGB. Heatmap pixel
i corresponds to image pixel i * W / w, as in the target heatmaps.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vemd_jax import canvas, skeletons

# Values of config.pictures.people.
PEOPLE = ('show', 'blur', 'off')

# Colour ramps from low to high: green for bodies, orange for faces.
_RAMPS = {
    'body': ((6, 60, 92), (0, 150, 160), (70, 225, 190), (225, 255, 245)),
    'face': ((120, 20, 60), (235, 70, 40), (255, 170, 50), (255, 245, 205)),
}


def hide_people(
    image: np.ndarray,
    bodies: np.ndarray | None = None,
    faces: np.ndarray | None = None,
) -> np.ndarray:
  """Pixelates the heads of people.

  People who are not annotated stay visible; if no head is annotated, the whole
  picture is pixelated.

  Args:
    image: uint8 [H, W, 3].
    bodies: [P, 17, 3] (x, y, score) in pixels; None if not annotated.
    faces: [P, 68, 3] (x, y, score) in pixels; None if not annotated.

  Returns:
    uint8 [H, W, 3].
  """
  heads = []
  for people, points in ((bodies, slice(0, 7)), (faces, slice(None))):
    for person in () if people is None else people:
      head = _head(np.asarray(person, np.float32)[points])
      if head is not None:
        heads.append(head)
  height, width = image.shape[:2]
  # Coarse enough that a face that fills the image is unrecognizable.
  coarse = _squares(image, max(height, width) / 8)
  if not heads:
    return coarse
  mask = np.zeros((height, width), np.uint8)
  for x, y, radius in heads:
    cv2.circle(mask, (round(x), round(y)), math.ceil(radius), 255, -1)
  largest = max(radius for _, _, radius in heads)
  coarse = _squares(image, max(largest / 1.5, max(height, width) / 40))
  return np.where(mask[..., None] > 0, coarse, image)


def _head(points: np.ndarray) -> tuple[float, float, float] | None:
  """(x, y, radius) of a circle around a head; None if no point is visible.

  Args:
    points: [68, 3] of a face, or [7, 3] of a body: nose, eyes, ears and
      shoulders.
  """
  seen = (points[:, 2] >= skeletons.MIN_SCORE) & np.isfinite(points).all(1)
  face = points[seen, :2] if len(points) > 7 else points[:5][seen[:5], :2]
  if not len(face):
    return None
  centre = (face.min(0) + face.max(0)) / 2
  # Landmarks cover brow to chin; eyes and ears lie within the head.
  share = 0.75 if len(points) > 7 else 0.9
  radius = share * float(np.ptp(face, axis=0).max())
  if len(points) == 7 and seen[5:].all():
    # In profile the points are close together, which underestimates the radius.
    radius = max(radius, 0.6 * float(np.hypot(*(points[5] - points[6])[:2])))
  return *map(float, centre), max(radius, 6.0)


def _squares(image: np.ndarray, side: float) -> np.ndarray:
  """Pixelates an image; `side` is the side of a block in pixels."""
  height, width = image.shape[:2]
  small = max(1, round(width / side)), max(1, round(height / side))
  few = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
  return cv2.resize(few, (width, height), interpolation=cv2.INTER_NEAREST)


def colour_map(values: np.ndarray, part: str) -> np.ndarray:
  """Maps heatmap values to colours.

  Args:
    values: [...] in 0..1; other values are clipped.
    part: 'body' or 'face', selects the colour ramp.

  Returns:
    [..., 3] float32 RGB, 0..255.
  """
  values = np.clip(values, 0, 1)
  ramp = np.array(_RAMPS[part], np.float32)
  knots = np.linspace(0, 1, len(ramp))
  channels = [np.interp(values, knots, ramp[:, c]) for c in range(3)]
  return np.stack(channels, -1).astype(np.float32)


def overlay_heatmap(
    image: np.ndarray,
    heatmap: np.ndarray,
    part: str = 'body',
    input_size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Overlays a heatmap on an image.

  Args:
    image: uint8 [H, W, 3].
    heatmap: [h, w, L] or [h, w], 0..1; the maximum over limbs is shown.
    part: 'body' or 'face', selects the colour ramp.
    input_size: (H, W) to which the image was resized for the model, if it was.

  Returns:
    uint8 [H, W, 3].
  """
  heat = np.asarray(heatmap, np.float32)
  if heat.ndim == 3:
    heat = heat.max(-1)
  height, width = image.shape[:2]
  h, w = heat.shape
  # Image pixel -> heatmap pixel. cv2.resize would align the outer edges of the
  # pixels instead of their indices, a shift by half a heatmap pixel.
  (sy, oy), (sx, ox) = _to_input((height, width), input_size)
  in_height, in_width = input_size or (height, width)
  fy, fx = h / in_height, w / in_width
  matrix = np.array([[sx * fx, 0, ox * fx], [0, sy * fy, oy * fy]])
  heat = cv2.warpAffine(
      heat,
      matrix,
      (width, height),
      flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
      borderMode=cv2.BORDER_REPLICATE,
  )
  # Cuts off very small values, and keeps even the maximum transparent.
  heat = np.clip((heat - 0.03) / 0.97, 0, 1)
  alpha = 0.9 * heat[..., None] ** 0.7
  mixed = image * (1 - alpha) + colour_map(heat, part) * alpha
  return mixed.round().astype(np.uint8)


def _to_input(
    size: tuple[int, int], input_size: tuple[int, int] | None
) -> list[tuple[float, float]]:
  """(scale, offset) along y and x from image pixels to model input pixels.

  Resizing aligns the outer edges of the pixels, not their indices.
  """
  scales = [b / a for a, b in zip(size, input_size or size)]
  return [(scale, 0.5 * scale - 0.5) for scale in scales]


def draw_limbs(
    image: np.ndarray,
    limbs: np.ndarray,
    presence: np.ndarray,
    input_size: tuple[int, int] | None = None,
    threshold: float = 0.5,
) -> np.ndarray:
  """Draws people as limbs, one colour per person.

  Args:
    image: uint8 [H, W, 3].
    limbs: [Q, L, 4] (x1, y1, x2, y2) in 0..1 of the image; NaN where a limb
      does not exist.
    presence: [Q] probability that there is a person.
    input_size: (H, W) to which the image was resized for the model, if it was.
    threshold: people below it are left out.

  Returns:
    uint8 [H, W, 3].
  """
  height, width = image.shape[:2]
  thick = max(1, round(min(height, width) / 110))
  result = np.ascontiguousarray(image)
  if result is image:
    result = image.copy()
  people = np.asarray(limbs)[np.asarray(presence) >= threshold]
  bits = 4  # Fractional bits of a coordinate.
  (sy, oy), (sx, ox) = _to_input((height, width), input_size)
  in_height, in_width = input_size or (height, width)
  scale = np.array([in_width / sx, in_height / sy] * 2)
  offset = np.array([ox / sx, oy / sy] * 2)
  for number, person in enumerate(people):
    person = person[np.isfinite(person).all(-1)]
    points = (person * scale - offset) * 2**bits
    points = np.round(points).astype(int).tolist()
    # A dark outline keeps the lines visible on any background.
    passes = (((20, 20, 24), thick + 2), (person_colour(number), thick))
    for colour, thickness in passes:
      for x1, y1, x2, y2 in points:
        cv2.line(
            result, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA, bits
        )
  return result


def person_colour(number: int) -> tuple[int, int, int]:
  """RGB of the n-th person; hues are a golden angle apart, so all differ."""
  hue = (0.55 + number * 0.618034) % 1.0
  value = 1.0 if number % 2 == 0 else 0.85
  return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.62, value))


def keypoint_limbs(
    keypoints: np.ndarray,
    mask: np.ndarray,
    limbs: np.ndarray,
    image_size: tuple[int, int],
) -> np.ndarray:
  """Converts keypoints to limb vectors for `draw_limbs`.

  Args:
    keypoints: [P, K, 3] (x, y, score) in pixels.
    mask: [P] bool, slots that hold a person.
    limbs: [L, 2] joint numbers.
    image_size: (H, W).

  Returns:
    [P, L, 4] in 0..1, NaN where the limb is not visible.
  """
  height, width = image_size
  ends = keypoints[:, limbs][..., :2] / np.array([width, height])
  vectors = ends.reshape(len(keypoints), len(limbs), 4)
  seen = skeletons.limb_visible(keypoints, limbs, height, width)
  return np.where((seen & mask[:, None])[..., None], vectors, np.nan)


def overlay_structure(
    image: np.ndarray,
    structure: Mapping[str, Any],
    input_size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Overlays decoded or ground truth structure on an image.

  Args:
    image: uint8 [H, W, 3].
    structure: part -> heatmap [h, w, L] in 0..1, or (limbs [Q, L, 4] in 0..1,
      presence [Q]). Missing parts are not drawn.
    input_size: (H, W) to which the image was resized for the model, if it was.

  Returns:
    uint8 [H, W, 3].
  """
  for part in skeletons.NUM_POINTS:
    if part not in structure:
      continue
    if isinstance(structure[part], tuple):
      image = draw_limbs(image, *structure[part], input_size)
    else:
      image = overlay_heatmap(image, structure[part], part, input_size)
  return image


def decoded_structure(outputs, example: int, frame: int) -> dict[str, Any]:
  """The decoded structure of one frame, in the form of `overlay_structure`.

  Args:
    outputs: `vemd_jax.models.outputs.Outputs` of a batch.
    example: index of the clip in the batch.
    frame: index of the frame in the clip.

  Returns:
    part -> structure, see `overlay_structure`; empty without decoders.
  """
  structure = {}
  for part in skeletons.NUM_POINTS:
    decoded = getattr(outputs, part)
    if decoded is None:
      continue
    if decoded.heatmap_logits is not None:
      structure[part] = _sigmoid(decoded.heatmap_logits[-1, example, frame])
    else:
      limbs = np.array(decoded.limbs[example, frame], np.float32)
      if decoded.adjacency_logits is not None:
        # Invisible limbs are adjacent to no other limb in the targets.
        logits = np.asarray(decoded.adjacency_logits[example, frame])
        limbs[logits.max(-1) < 0] = np.nan
      presence = np.ones(len(limbs), np.float32)
      if decoded.presence_logits is not None:
        presence = _sigmoid(decoded.presence_logits[example, frame])
      structure[part] = limbs, presence
  return structure


def _target_structure(
    batch: Mapping[str, Any], outputs, example: int, frame: int
) -> dict[str, Any]:
  """The ground truth of one frame, in the form of `overlay_structure`."""
  structure = {}
  for part in skeletons.NUM_POINTS:
    decoded = getattr(outputs, part)
    if decoded is None or not batch[f'{part}_annotated'][example, frame]:
      continue
    if decoded.heatmap_logits is not None:
      heat = batch[f'{part}_heatmap'][example, frame]
      structure[part] = np.asarray(heat, np.float32)
    else:
      keypoints = np.asarray(batch[f'{part}_keypoints'][example, frame])
      mask = np.asarray(batch[f'{part}_mask'][example, frame], bool)
      size = batch['image'].shape[2:4]
      limbs = skeletons.QUERY_LIMBS[part]
      vectors = keypoint_limbs(keypoints, mask, limbs, size)
      structure[part] = vectors, mask.astype(np.float32)
  return structure


def _annotated_people(
    batch: Mapping[str, Any], example: int, frame: int
) -> list[np.ndarray | None]:
  """Bodies and faces of a frame, None where it is not annotated."""
  people = []
  for part in skeletons.NUM_POINTS:
    people.append(None)
    if batch[f'{part}_annotated'][example, frame]:
      mask = np.asarray(batch[f'{part}_mask'][example, frame], bool)
      people[-1] = np.asarray(batch[f'{part}_keypoints'][example, frame])[mask]
  return people


def structure_sheet(
    batch: Mapping[str, Any],
    outputs,
    classes: Sequence[str] = (),
    rows: int = 8,
    blur: bool = False,
) -> np.ndarray:
  """Input, target and prediction side by side, for some clips of a batch.

  Args:
    batch: a batch of `vemd_jax.data.pipeline`, with its target heatmaps.
    outputs: the model's `Outputs` for it.
    classes: class names, for captions with true and predicted class.
    rows: maximum number of clips; padding is skipped.
    blur: whether people are hidden, see `hide_people`.

  Returns:
    uint8 [H, W, 3]: the middle frame of a clip in each row; only the input if
    the model has no decoders.
  """
  shown = np.flatnonzero(np.asarray(batch['mask']))[:rows]
  frame = batch['image'].shape[1] // 2
  has_structure = outputs.body is not None or outputs.face is not None
  header = ('input', 'target', 'prediction') if has_structure else ('input',)
  sheet = []
  for example in shown:
    image = np.asarray(batch['image'][example, frame])
    if blur:
      image = hide_people(image, *_annotated_people(batch, example, frame))
    pictures = [image]
    if has_structure:
      # A darkened greyscale background makes the structure stand out.
      grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
      ground = np.repeat((grey * 0.7).astype(np.uint8)[..., None], 3, -1)
      target = _target_structure(batch, outputs, example, frame)
      predicted = decoded_structure(outputs, example, frame)
      pictures.append(overlay_structure(ground, target))
      pictures.append(overlay_structure(ground, predicted))
    caption = ''
    if classes and outputs.logits is not None:
      logits = np.asarray(outputs.logits[example], np.float32)
      probabilities = np.exp(logits - logits.max())
      probabilities /= probabilities.sum()
      best = int(probabilities.argmax())
      caption = f'predicted {classes[best]} {probabilities[best]:.2f}'
      if batch['label_mask'][example]:
        caption = f'true {classes[int(batch["label"][example])]},  {caption}'
    sheet.append((pictures, caption))
  return canvas.contact_sheet(sheet, header)


def _sigmoid(logits: Any) -> np.ndarray:
  logits = np.asarray(logits, np.float32)
  return 0.5 * (1 + np.tanh(0.5 * logits))
