"""Bodies by MoveNet MultiPose Lightning, through ONNX Runtime.

Up to six people per image. The user provides the model file; it must have the
input and output of Google's model: int32 RGB [1, 256, 256, 3] to [1, 6, 56].
"""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from vemd_jax.prepare import annotators

_SIDE = 256
# Score of a person. On photographs, small but correct detections score 0.17;
# duplicates of parts of an already detected person score 0.05.
MIN_SCORE = 0.15


def load(
    model: str | pathlib.Path, device: str = 'cpu', min_score: float = MIN_SCORE
) -> Callable:
  """Loads the model.

  Args:
    model: the .onnx file.
    device: 'cpu' or 'cuda'.
    min_score: people with a lower score are left out, 0..1.

  Returns:
    An annotator of bodies only.

  Raises:
    ValueError: the file contains another model.
  """
  session = annotators.onnx_session(model, device)
  inputs, outputs = session.get_inputs(), session.get_outputs()
  if (
      len(inputs) != 1
      or inputs[0].type != 'tensor(int32)'
      or outputs[0].shape != [1, 6, 56]
  ):
    raise ValueError(
        f'{model}: expected MoveNet MultiPose (int32 [1, 256, 256, 3] to '
        f'[1, 6, 56]), found {inputs[0].type} {inputs[0].shape} to '
        f'{outputs[0].shape}'
    )

  def annotate(image: np.ndarray) -> tuple[np.ndarray, None]:
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = _SIDE / longer
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    # Area averaging is only meaningful when the image shrinks.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    padded = np.zeros((1, _SIDE, _SIDE, 3), np.int32)
    padded[0, : size[1], : size[0]] = cv2.resize(
        image, size, interpolation=how
    )
    people = session.run([outputs[0].name], {inputs[0].name: padded})[0][0]
    people = people[people[:, 55] > min_score]  # [n, 56]
    points = people[:, :51].reshape(-1, 17, 3)  # (y, x, score)
    bodies = points[..., [1, 0, 2]].astype(np.float32)
    bodies[..., :2] *= longer
    return bodies, None

  return annotate
