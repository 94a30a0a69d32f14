"""Faces by dlib: the HOG detector, then a 68-point shape predictor.

The predictor file is given by the user. The usual one,
`shape_predictor_68_face_landmarks.dat`, was trained on iBUG 300-W, which is for
research use.
"""

import pathlib
from collections.abc import Callable

import numpy as np

from vemd_jax.prepare import annotators


def load(model: str | pathlib.Path) -> Callable:
  """Loads the detector and the predictor.

  Args:
    model: the .dat file of the predictor.

  Returns:
    An annotator of faces only. dlib returns integer coordinates and no
    confidence, so every score is 1, even for points outside the image.

  Raises:
    ValueError: the predictor has another number of points.
  """
  dlib = annotators.require('dlib', 'dlib-bin')
  detector = dlib.get_frontal_face_detector()
  predictor = dlib.shape_predictor(str(model))

  def annotate(image: np.ndarray) -> tuple[None, np.ndarray]:
    image = np.ascontiguousarray(image)
    # Upsampling finds smaller faces, but costs four times as much and adds
    # false positives, so it is done only if there are no faces without it.
    boxes = detector(image, 0) or detector(image, 1)
    faces = []
    for box in boxes:
      points = [(p.x, p.y, 1.0) for p in predictor(image, box).parts()]
      if len(points) != 68:
        raise ValueError(f'{model}: {len(points)} points, expected 68')
      faces.append(points)
    return None, np.array(faces, np.float32).reshape(-1, 68, 3)

  return annotate
