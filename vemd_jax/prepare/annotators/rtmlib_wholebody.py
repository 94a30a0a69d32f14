"""Bodies and faces by rtmlib's whole-body models (RTMW, DWPose).

One model predicts 133 points per person: 17 body joints, 6 of the feet, 68 of
the face, 42 of the hands.
"""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from vemd_jax.prepare import annotators

_BODY, _FACE = slice(0, 17), slice(23, 91)
# Points with a lower score count as missing; rtmlib's default.
MIN_SCORE = 0.3


def load(
    model: str | pathlib.Path | None = None,
    detector: str | pathlib.Path | None = None,
    device: str = 'cpu',
    min_score: float = MIN_SCORE,
) -> Callable:
  """Loads the person detector and the whole-body model.

  Args:
    model: the whole-body .onnx file (SimCC, 133 points); None lets rtmlib
      download RTMW.
    detector: the .onnx file of a YOLOX person detector; None lets rtmlib
      download one.
    device: 'cpu' or 'cuda'.
    min_score: points with a lower score count as missing, 0..1.

  Returns:
    An annotator of bodies and faces.
  """
  rtmlib = annotators.require('rtmlib', 'rtmlib')
  annotators.execution_providers(device)
  both = rtmlib.Wholebody(
      det=None if detector is None else str(detector),
      pose=None if model is None else str(model),
      backend='onnxruntime',
      device=device,
  )
  # rtmlib expects the input size as an argument; take it from the model file.
  for tool, flip in ((both.det_model, False), (both.pose_model, True)):
    size = tool.session.get_inputs()[0].shape[2:]  # (height, width)
    if all(isinstance(n, int) for n in size):
      tool.model_input_size = tuple(size[::-1] if flip else size)

  def annotate(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # YOLOX was trained on BGR, the pose models on RGB, and rtmlib converts
    # neither (https://github.com/Tau-J/rtmlib/issues/48).
    boxes = both.det_model(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if len(boxes) == 0:  # rtmlib would treat the whole image as a person.
      return np.zeros((0, 17, 3), np.float32), np.zeros((0, 68, 3), np.float32)
    points, scores = both.pose_model(image, boxes)
    if points.shape[1] != 133:
      raise ValueError(f'{model}: {points.shape[1]} points, expected 133')
    # Older models return logits, which can slightly exceed 1.
    scores = np.clip(scores, 0, 1)
    scores = np.where(scores < min_score, 0, scores)
    people = np.concatenate([points, scores[..., None]], -1)
    people = people.astype(np.float32)
    bodies, faces = people[:, _BODY], people[:, _FACE]
    # A single joint forms no limb; heads seen from behind have few confident
    # landmarks.
    bodies = bodies[(bodies[..., 2] > 0).sum(-1) >= 2]
    faces = faces[(faces[..., 2] > 0).mean(-1) >= 0.5]
    return bodies, faces

  return annotate
