"""Draws annotations over their images for visual inspection."""

import pathlib
from typing import Any

import cv2
import numpy as np

from vemd_jax import canvas, skeletons, viz
from vemd_jax.data import jsonl, video
from vemd_jax.prepare import rows
from vemd_jax.prepare.items import make_item, read_images

# --- preview ----------------------------------------------------------------


def preview(
    data: str | pathlib.Path,
    annotations: str | pathlib.Path,
    out: str | pathlib.Path,
    pictures: int = 24,
    cell: int = 320,
    outside_root: bool = False,
) -> pathlib.Path:
  """Draws a contact sheet of annotated images.

  It contains the images and needs the same protection as they do.

  Args:
    data: folder of the dataset.
    annotations: `annotations.jsonl`.
    out: folder to write to.
    pictures: number of images, evenly spaced over the lines.
    cell: side of an image on the sheet, in pixels.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    Path of the file, `annotations.png`.

  Raises:
    ValueError: there is no annotation.
  """
  data, out = pathlib.Path(data), pathlib.Path(out)
  source = rows.Rows(data, outside_root)
  places = {file: i for i, file in enumerate(source.files)}
  lines = jsonl.read(pathlib.Path(annotations))
  lines = [line for line in lines if line['file'] in places]
  if not lines:
    raise ValueError(f'{annotations}: no annotation to draw')
  chosen = [lines[i] for i in np.unique(video.spread(len(lines), pictures))]
  drawn = []
  for line in chosen:
    item = make_item(source, data, 0, places[line['file']])
    number = line.get('frame')
    image = next((i for n, i in read_images(item) if n == number), None)
    if isinstance(image, np.ndarray):
      drawn.append(draw(image, line, cell))
  columns = max(1, round(len(drawn) ** 0.5 * 1.25))
  sheet = canvas.contact_sheet(
      [
          (drawn[i : i + columns], '')
          for i in range(0, len(drawn), columns)
      ],
      cell=cell,
  )
  out.mkdir(parents=True, exist_ok=True)
  path = out / 'annotations.png'
  encoded = cv2.imencode('.png', sheet[..., ::-1])[1]
  path.write_bytes(encoded.tobytes())
  return path


def draw(
    image: np.ndarray, line: dict[str, Any], side: int = 320
) -> np.ndarray:
  """Draws a line of annotations.jsonl onto its image.

  Args:
    image: uint8 [H, W, 3] RGB.
    line: with `width`, `height`, `bodies` and `faces`.
    side: longer side of the result in pixels.

  Returns:
    uint8 [H', W', 3].
  """
  height, width = image.shape[:2]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  image = cv2.resize(image, size, interpolation=how)
  factor = np.array([size[0] / line['width'], size[1] / line['height'], 1])
  for key, part in (('bodies', 'body'), ('faces', 'face')):
    if not line.get(key):
      continue
    people = np.array(line[key], np.float32) * factor.astype(np.float32)
    everybody = np.ones(len(people), bool)
    limbs = viz.keypoint_limbs(
        people, everybody, skeletons.HEATMAP_LIMBS[part], image.shape[:2]
    )
    image = viz.draw_limbs(image, limbs, everybody)
  return image
