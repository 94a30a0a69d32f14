r"""Program: draws scenes of the embedded dataset by class.

  python -m vemd_jax.data.group_scenes --out=group_scenes.jpg
"""

import argparse

import cv2
import numpy as np

from vemd_jax.scenes import group_scenes


def contact_sheet(
    cue: str = 'both', columns: int = 5, side: int = 180, seed: int = 0
) -> np.ndarray:
  """Draws a row of scenes for each class, the positive one on top.

  Args:
    cue: see GroupScenes.
    columns: number of scenes per class.
    side: side of a scene in pixels.
    seed: see GroupScenes.

  Returns:
    uint8 [H, W, 3] RGB.
  """
  source = group_scenes.GroupScenes('sheet', 60 * columns, cue, seed=seed)
  rows, gap = [], 4
  for label in (2, 1, 0):
    # From few people to many.
    found = np.flatnonzero(source.labels == label)
    counts = np.array([len(source.describe(i).pair) for i in found])
    wanted = np.linspace(1 + (cue == 'interaction'), 9, columns).round()
    row = [np.full((side, 26, 3), 255, np.uint8)]
    name = np.full((26, side, 3), 255, np.uint8)
    title = group_scenes.CLASSES[label]
    width = cv2.getTextSize(title, 0, 0.6, 1)[0][0]
    cv2.putText(name, title, ((side - width) // 2, 18), 0, 0.6,
                (60, 60, 60), 1, cv2.LINE_AA)  # fmt: skip
    row[0] = np.ascontiguousarray(np.rot90(name))
    for count in wanted:
      index = found[np.argmin(np.abs(counts - count))]
      counts[found == index] = -100
      image = source[int(index)]['frames'][0]
      image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
      row.append(np.pad(image, [(0, 0), (gap, 0), (0, 0)], constant_values=255))
    rows.append(np.pad(np.concatenate(row, 1), [(0, gap), (0, 0), (0, 0)],
                       constant_values=255))  # fmt: skip
  return np.concatenate(rows)


def main() -> None:
  parser = argparse.ArgumentParser(description='Draws a contact sheet.')
  parser.add_argument('--out', required=True, help='image file to write')
  parser.add_argument('--cue', choices=group_scenes.CUES, default='both')
  parser.add_argument('--columns', type=int, default=5)
  parser.add_argument('--side', type=int, default=180)
  parser.add_argument('--seed', type=int, default=5)
  flags = parser.parse_args()
  sheet = contact_sheet(flags.cue, flags.columns, flags.side, flags.seed)
  sheet = cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)
  if not cv2.imwrite(flags.out, sheet, [cv2.IMWRITE_JPEG_QUALITY, 84]):
    raise OSError(f'{flags.out}: could not be written')


if __name__ == '__main__':
  main()
