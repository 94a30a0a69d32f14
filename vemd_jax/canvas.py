"""Text and contact sheets, in NumPy and OpenCV.

Every picture is uint8 [H, W, 3] RGB.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

PAPER = (250, 250, 248)
INK = (38, 42, 51)
GREY = (122, 128, 138)
GAP = 8


def text(
    line: str, size: int = 14, colour: Sequence[int] = INK
) -> np.ndarray:
  """Renders a line of text in OpenCV's built-in font.

  Args:
    line: the text, in any script that the font supports.
    size: font size in pixels.
    colour: RGB.

  Returns:
    uint8 [h, w, 3] on the background colour; h depends only on the size.
  """
  shape = line_height(size), width_of(line, size), 3
  canvas = np.full(shape, PAPER, np.uint8)
  write(canvas, line, (0, size + 1), size, colour)
  return canvas


@functools.cache
def _font() -> cv2.FontFace:
  return cv2.FontFace('sans')


def line_height(size: int) -> int:
  """Distance between lines of text, in pixels."""
  return round(1.4 * size)


@functools.lru_cache(4096)
def width_of(line: str, size: int) -> int:
  """Width of a line of text, in pixels."""
  # putText returns the end position; cv2.getTextSize is a few pixels smaller.
  nowhere = np.zeros((1, 1, 3), np.uint8)
  (x, _), _ = cv2.putText(nowhere, line, (0, 0), INK, _font(), size, 400)
  return x + 1


def write(
    canvas: np.ndarray,
    line: str,
    origin: tuple[int, int],
    size: int,
    colour: Sequence[int],
) -> None:
  """Draws text on the canvas; `origin` is the start of the baseline."""
  cv2.putText(canvas, line, origin, tuple(colour), _font(), size, 400)


def fit(line: str, width: int, size: int) -> str:
  """Truncates text to a width in pixels."""
  if width_of(line, size) <= width:
    return line
  while line and width_of(line + '…', size) > width:
    line = line[:-1]
  return line + '…'


def put(canvas: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
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
  line = line_height(size)
  captions = any(caption for _, caption in rows)
  row_height = cell + (line + 6 if captions else 0) + GAP
  top = GAP + (line + 6 if header else 0)
  height = top + len(rows) * row_height
  width = GAP + columns * (cell + GAP)
  sheet = np.full((height, width, 3), PAPER, np.uint8)
  for column, title in enumerate(header):
    picture = text(fit(title, cell, size), size, GREY)
    put(sheet, picture, GAP + column * (cell + GAP), GAP)
  for row, (pictures, caption) in enumerate(rows):
    y = top + row * row_height
    for column, picture in enumerate(pictures):
      fitted = _fit_picture(picture, cell)
      x = GAP + column * (cell + GAP) + (cell - fitted.shape[1]) // 2
      put(sheet, fitted, x, y + (cell - fitted.shape[0]) // 2)
    if caption:
      caption = fit(caption, width - 2 * GAP, size)
      put(sheet, text(caption, size), GAP, y + cell + 4)
  return sheet


def _fit_picture(picture: np.ndarray, cell: int) -> np.ndarray:
  height, width = picture.shape[:2]
  scale = cell / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  if size == (width, height):
    return picture
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  return cv2.resize(picture, size, interpolation=method)
