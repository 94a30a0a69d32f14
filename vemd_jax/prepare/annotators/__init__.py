"""Detectors of bodies and faces behind one interface.

An annotator is a callable `image uint8 RGB [H, W, 3] -> (bodies, faces)`:
bodies float32 [n, 17, 3] (COCO joints), faces float32 [m, 68, 3] (iBUG
landmarks), each point (x, y, score) in pixels of the image, score 0..1 and 0
where the point is missing. None in place of an array means that the annotator
does not detect that part. None of these packages is needed for training.
"""

import importlib
import pathlib
from types import ModuleType
from typing import Any


def require(module: str, package: str) -> ModuleType:
  """Imports an optional package.

  Args:
    module: name to import.
    package: its name on PyPI.

  Returns:
    The module.

  Raises:
    ImportError: it is not installed; the message says how to install it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
        f'{module} cannot be imported ({error}); install it with '
        f"pip install 'vemd-jax[annotate]' (or pip install {package})"
    ) from error


def onnx_session(model: str | pathlib.Path, device: str = 'cpu') -> Any:
  """Opens a model with ONNX Runtime.

  Args:
    model: the .onnx file.
    device: 'cpu' or 'cuda'.

  Returns:
    An `onnxruntime.InferenceSession`.

  Raises:
    ImportError: ONNX Runtime is not installed.
    ValueError: the file is not a model, or the device is not available.
  """
  onnxruntime = require('onnxruntime', 'onnxruntime')
  providers = execution_providers(device)
  try:
    return onnxruntime.InferenceSession(str(model), providers=providers)
  except Exception as error:  # Its exceptions have no common base class.
    line = ' '.join(str(error).split())
    raise ValueError(f'{model}: not a usable ONNX model ({line})') from error


def execution_providers(device: str) -> list[str]:
  """ONNX Runtime's execution providers for a device.

  Args:
    device: 'cpu' or 'cuda'.

  Returns:
    Names of the providers.

  Raises:
    ValueError: this ONNX Runtime does not support the device.
  """
  onnxruntime = require('onnxruntime', 'onnxruntime')
  name = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}[
      device
  ]
  available = onnxruntime.get_available_providers()
  if name not in available:
    raise ValueError(
        f'device {device!r}: this onnxruntime supports only {available}; '
        'replace it with pip install onnxruntime-gpu'
    )
  return [name]
