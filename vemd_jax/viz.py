"""Visualization: heatmap and limb overlays, contact sheets, confusion matrices.

Uses NumPy and OpenCV only; every picture is uint8 [H, W, 3] RGB. Heatmap pixel
i corresponds to image pixel i * W / w, as in the target heatmaps.
"""

import colorsys
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vemd_jax import skeletons

_PAPER = (250, 250, 248)
_INK = (38, 42, 51)
_GREY = (122, 128, 138)
_GAP = 8

# Colour ramps from low to high: green for bodies, orange for faces.
_RAMPS = {
    'body': ((6, 60, 92), (0, 150, 160), (70, 225, 190), (225, 255, 245)),
    'face': ((120, 20, 60), (235, 70, 40), (255, 170, 50), (255, 245, 205)),
}


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


def text(
    line: str, size: int = 14, colour: Sequence[int] = _INK
) -> np.ndarray:
  """Renders a line of text in OpenCV's built-in font.

  Args:
    line: the text, in any script that the font supports.
    size: font size in pixels.
    colour: RGB.

  Returns:
    uint8 [h, w, 3] on the background colour; h depends only on the size.
  """
  shape = _line_height(size), _width(line, size), 3
  canvas = np.full(shape, _PAPER, np.uint8)
  _write(canvas, line, (0, size + 1), size, colour)
  return canvas


@functools.cache
def _font() -> cv2.FontFace:
  return cv2.FontFace('sans')


def _line_height(size: int) -> int:
  return round(1.4 * size)


def _width(line: str, size: int) -> int:
  # putText returns the end position; cv2.getTextSize is a few pixels smaller.
  nowhere = np.zeros((1, 1, 3), np.uint8)
  (x, _), _ = cv2.putText(nowhere, line, (0, 0), _INK, _font(), size, 400)
  return x + 1


def _write(
    canvas: np.ndarray,
    line: str,
    origin: tuple[int, int],
    size: int,
    colour: Sequence[int],
) -> None:
  """Draws text on the canvas; `origin` is the start of the baseline."""
  cv2.putText(canvas, line, origin, tuple(colour), _font(), size, 400)


def _fit(line: str, width: int, size: int) -> str:
  """Truncates text to a width in pixels."""
  if _width(line, size) <= width:
    return line
  while line and _width(line + '…', size) > width:
    line = line[:-1]
  return line + '…'


def _put(canvas: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
  """Copies a picture onto the canvas, clipped at its edges."""
  x, y = max(x, 0), max(y, 0)
  h = min(picture.shape[0], canvas.shape[0] - y)
  w = min(picture.shape[1], canvas.shape[1] - x)
  if h > 0 and w > 0:
    canvas[y : y + h, x : x + w] = picture[:h, :w]


def contact_sheet(
    rows: Sequence[tuple[Sequence[np.ndarray], str]],
    header: Sequence[str] = (),
    cell: int = 224,
) -> np.ndarray:
  """A grid of pictures with a caption below each row.

  Args:
    rows: (pictures uint8 [H, W, 3] of any size, caption) for each row.
    header: title of each column; empty for no header.
    cell: side in pixels of the square cell that each picture is resized to.

  Returns:
    uint8 [H, W, 3].
  """
  columns = max((len(pictures) for pictures, _ in rows), default=0)
  columns = max(columns, len(header), 1)
  size = max(11, round(cell / 15))
  line = _line_height(size)
  captions = any(caption for _, caption in rows)
  row_height = cell + (line + 6 if captions else 0) + _GAP
  top = _GAP + (line + 6 if header else 0)
  height = top + len(rows) * row_height
  width = _GAP + columns * (cell + _GAP)
  sheet = np.full((height, width, 3), _PAPER, np.uint8)
  for column, title in enumerate(header):
    picture = text(_fit(title, cell, size), size, _GREY)
    _put(sheet, picture, _GAP + column * (cell + _GAP), _GAP)
  for row, (pictures, caption) in enumerate(rows):
    y = top + row * row_height
    for column, picture in enumerate(pictures):
      fitted = _fit_picture(picture, cell)
      x = _GAP + column * (cell + _GAP) + (cell - fitted.shape[1]) // 2
      _put(sheet, fitted, x, y + (cell - fitted.shape[0]) // 2)
    if caption:
      caption = _fit(caption, width - 2 * _GAP, size)
      _put(sheet, text(caption, size), _GAP, y + cell + 4)
  return sheet


def _fit_picture(picture: np.ndarray, cell: int) -> np.ndarray:
  height, width = picture.shape[:2]
  scale = cell / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  if size == (width, height):
    return picture
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  return cv2.resize(picture, size, interpolation=method)


def confusion_matrix_picture(
    matrix: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
  """Draws a confusion matrix: counts, shaded by the share of the true class.

  Args:
    matrix: [C, C] counts, true classes as rows.
    classes: C names.

  Returns:
    uint8 [H, W, 3].
  """
  matrix = np.asarray(matrix, np.float64)
  count = len(classes)
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  cell, size, label_width = 84, 15, 150
  names = [_fit(name, label_width, size) for name in classes]
  left = max(_width(name, size) for name in names) + 3 * _GAP
  top = 3 * _GAP + 2 * _line_height(size)
  height, width = top + count * cell + 2 * _GAP, left + count * cell + 2 * _GAP
  canvas = np.full((height, width, 3), _PAPER, np.uint8)
  title = _fit('rows: true, columns: predicted', width - 2 * _GAP, size)
  _put(canvas, text(title, size, _GREY), _GAP, _GAP)
  weak, strong = np.array((241, 241, 239)), np.array((14, 92, 112))
  for row in range(count):
    for column in range(count):
      x, y = left + column * cell, top + row * cell
      share = shares[row, column]
      box = canvas[y + 1 : y + cell - 1, x + 1 : x + cell - 1]
      box[:] = (weak + (strong - weak) * share**0.8).round()
      ink = (255, 255, 255) if share > 0.45 else _INK
      percent = f'{100 * share:.0f} %' if matrix[row].sum() else '-'
      _centre(box, percent, 18, ink, -1)
      _centre(box, f'{matrix[row, column]:.0f}', 12, ink, 19)
    name = text(names[row], size)
    y = top + row * cell + (cell - name.shape[0]) // 2
    _put(canvas, name, left - _GAP - name.shape[1], y)
    head = text(_fit(classes[row], cell - 4, size), size)
    x = left + row * cell + (cell - head.shape[1]) // 2
    _put(canvas, head, x, top - head.shape[0] - 4)
  return canvas


def _centre(
    box: np.ndarray, line: str, size: int, colour: Sequence[int], dy: int
) -> None:
  """Draws centred text, with the baseline `dy` pixels below the middle."""
  height, width = box.shape[:2]
  picture = np.ascontiguousarray(box)
  origin = (width - _width(line, size)) // 2, height // 2 + dy
  _write(picture, line, origin, size, colour)
  box[:] = picture


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


def structure_sheet(
    batch: Mapping[str, Any],
    outputs,
    classes: Sequence[str] = (),
    rows: int = 8,
) -> np.ndarray:
  """Input, target and prediction side by side, for some clips of a batch.

  Args:
    batch: a batch of `vemd_jax.data.pipeline`, with its target heatmaps.
    outputs: the model's `Outputs` for it.
    classes: class names, for captions with true and predicted class.
    rows: maximum number of clips; padding is skipped.

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
  return contact_sheet(sheet, header)


def evaluation_pictures(
    outputs,
    batch: Mapping[str, Any],
    metrics: Mapping[str, Any],
    classes: Sequence[str],
    rows: int,
) -> dict[str, np.ndarray]:
  """The pictures of an evaluation.

  Args:
    outputs: the model's `Outputs` for one batch of the split.
    batch: that batch, with its target heatmaps.
    metrics: metrics of the split, with `confusion` [C, C] if it has labels.
    classes: C names.
    rows: maximum number of clips on the sheet.

  Returns:
    Name -> uint8 [H, W, 3]: `structure` (see `structure_sheet`) and, if there
    are labels, `confusion` (see `confusion_matrix_picture`).
  """
  pictures = {'structure': structure_sheet(batch, outputs, classes, rows)}
  if metrics.get('confusion') is not None:
    pictures['confusion'] = confusion_matrix_picture(
        metrics['confusion'], classes
    )
  return pictures


def _sigmoid(logits: Any) -> np.ndarray:
  logits = np.asarray(logits, np.float32)
  return 0.5 * (1 + np.tanh(0.5 * logits))
