"""Reads state dicts from safetensors, npz and torch files."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a state dict.

  Args:
    path: `.safetensors`, `.npz`, or `.pt`, `.pth`, `.bin`, `.tar` (which
      require torch). From a training checkpoint only the weights are read.

  Returns:
    Name -> array; half precision is converted to float32.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if it cannot be read.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no weights at {path}')
  readers = {'.safetensors': _read_safetensors, '.npz': _read_npz}
  readers |= dict.fromkeys(('.pt', '.pth', '.bin', '.tar'), _read_torch)
  if path.suffix not in readers:
    raise ValueError(
        f'{path}: cannot read {path.suffix!r}, expected one of '
        f'{", ".join(readers)}'
    )
  return readers[path.suffix](path)


def _read_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except Exception as error:  # NumPy and zipfile raise many kinds.
    raise ValueError(f'{path} is not a .npz file: {error}') from error


def _read_safetensors(path):
  """Reads the length of the header, the JSON header and little-endian data."""
  types = {
      'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
      'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32,
      'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
  }  # fmt: skip
  tensors = {}
  try:
    data = np.memmap(path, np.uint8, mode='r')
    start = 8 + int.from_bytes(data[:8].tobytes(), 'little')
    header = json.loads(data[8:start].tobytes())
    header.pop('__metadata__', None)
    for name, entry in header.items():
      begin, end = (start + offset for offset in entry['data_offsets'])
      tensor = data[begin:end].view(types[entry['dtype']])
      tensor = tensor.reshape(entry['shape'])
      if entry['dtype'] in ('F16', 'BF16'):
        tensor = tensor.astype(np.float32)
      tensors[name] = tensor
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError
  ) as error:  # fmt: skip
    raise ValueError(f'{path} is not a safetensors file: {error}') from error
  return tensors


def _read_torch(path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
        f'reading {path} requires torch (pip install torch); .safetensors and '
        '.npz do not'
    ) from error
  try:
    tensors = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    raise ValueError(
        f'{path}: torch.load(weights_only=True) failed: {error}'
    ) from error
  if not isinstance(tensors, Mapping):
    raise ValueError(
        f'{path} holds {type(tensors).__name__}, expected a state dict'
    )
  for key in ('model_state_dict', 'state_dict', 'model'):
    if key in tensors and isinstance(tensors[key], Mapping):
      tensors = tensors[key]
      break
  return {
      name: (t.float() if t.is_floating_point() else t).numpy()
      for name, t in tensors.items()
      if torch.is_tensor(t)
  }
