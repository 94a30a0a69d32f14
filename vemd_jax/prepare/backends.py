"""The available annotators and their settings."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vemd_jax.prepare.annotators import dlib_faces, movenet, rtmlib_wholebody

BACKENDS = ('rtmlib', 'movenet', 'dlib')
# Image uint8 RGB [H, W, 3] -> bodies [n, 17, 3] and faces [m, 68, 3], or None.
Annotator = Callable[
    [np.ndarray], tuple[np.ndarray | None, np.ndarray | None]
]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings that determine the annotations.

  Attributes:
    backend: one of `BACKENDS`.
    model: .onnx file of the backend, '' for its default.
    detector: .onnx file of rtmlib's person detector, '' for its default.
    face_model: .dat file of dlib's predictor, '' for none.
    min_score: score threshold, 0 for the backend's default.
    device: 'cpu' or 'cuda'.
  """

  backend: str = 'rtmlib'
  model: str = ''
  detector: str = ''
  face_model: str = ''
  min_score: float = 0.0
  device: str = 'cpu'


# --- backends ---------------------------------------------------------------


def check(settings: Settings) -> None:
  """Rejects settings that are inconsistent.

  Args:
    settings: settings of this run.

  Raises:
    ValueError: an option is wrong; the message names it.
    FileNotFoundError: a model file does not exist.
  """
  backend = settings.backend
  if backend not in BACKENDS:
    raise ValueError(
        f'--backend={backend}: expected one of {", ".join(BACKENDS)}'
    )
  if backend == 'movenet' and not settings.model:
    raise ValueError('--backend=movenet needs --model=FILE.onnx')
  if backend == 'dlib' and not settings.face_model:
    raise ValueError('--backend=dlib needs --face_model=FILE.dat')
  if backend == 'dlib' and settings.model:
    raise ValueError('--model is for rtmlib and movenet; dlib: --face_model')
  if backend != 'rtmlib' and settings.detector:
    raise ValueError('--detector is for --backend=rtmlib')
  if not 0 <= settings.min_score < 1:
    raise ValueError(f'--min_score={settings.min_score}: expected 0 to 1')
  for file in (settings.model, settings.detector, settings.face_model):
    if file and not pathlib.Path(file).is_file():
      raise FileNotFoundError(f'{file} does not exist')


def load(settings: Settings) -> Annotator:
  """Loads the models.

  Args:
    settings: see `check`.

  Returns:
    The annotator.

  Raises:
    ImportError: an optional package is missing; the message says how to install
      it.
    ValueError: a file contains another model.
  """
  check(settings)
  parts = []
  if settings.backend == 'rtmlib':
    parts.append(
        rtmlib_wholebody.load(
            settings.model or None,
            settings.detector or None,
            settings.device,
            _min_score(settings),
        )
    )
  elif settings.backend == 'movenet':
    parts.append(
        movenet.load(settings.model, settings.device, _min_score(settings))
    )
  if settings.face_model:
    parts.append(dlib_faces.load(settings.face_model))

  def annotate(image: np.ndarray):
    bodies = faces = None
    for part in parts:
      found = part(image)
      bodies = bodies if found[0] is None else found[0]
      faces = faces if found[1] is None else found[1]
    return bodies, faces

  return annotate


def made_with(settings: Settings) -> dict[str, Any]:
  """Settings stored beside the annotations; equal if results are equal."""
  return {
      'backend': settings.backend,
      'model': _digest(settings.model),
      'detector': _digest(settings.detector),
      'face_model': _digest(settings.face_model),
      'min_score': _min_score(settings),
  }


def _min_score(settings: Settings) -> float:
  own = {
      'rtmlib': rtmlib_wholebody.MIN_SCORE,
      'movenet': movenet.MIN_SCORE,
      'dlib': 0.0,
  }
  return settings.min_score or own[settings.backend]


def _digest(file: str) -> str:
  """Hash of a file's content, so that a model may be moved."""
  if not file:
    return ''
  with open(file, 'rb') as content:
    return hashlib.file_digest(content, 'sha256').hexdigest()[:16]
