"""Reads an exported model; does not depend on the model's code."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vemd_jax.data import transforms
from vemd_jax.inference.model import Model

# Version of the file's layout.
FORMAT = 'vemd_jax artifact 1'


def checksum(
    manifest: Mapping[str, Any], parts: Mapping[str, bytes]
) -> str:
  """SHA-256 of the manifest (without its checksum) and all other parts.

  Args:
    manifest: content of manifest.json.
    parts: name -> content of every other file of the archive.

  Returns:
    Hexadecimal digits.
  """
  known = {k: v for k, v in manifest.items() if k != 'checksum'}
  digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
  for name in sorted(parts):
    digest.update(f'\n{name} {len(parts[name])}\n'.encode())
    digest.update(parts[name])
  return digest.hexdigest()


def read(
    path: epath.PathLike,
) -> tuple[dict[str, Any], jax.export.Exported, dict[str, np.ndarray]]:
  """Reads and verifies an exported model.

  Args:
    path: a file written by `vemd export`.

  Returns:
    Manifest, exported function of weights and images, and weights.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not an exported model, is damaged, or has an
      unsupported version.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no file {path}; vemd export writes one')
  try:
    with path.open('rb') as file, zipfile.ZipFile(file) as archive:
      parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts.pop('manifest.json'))
    layout = manifest['format']
  except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
    raise ValueError(
        f'{path} is damaged or no output of vemd export: {error}'
    ) from error
  if layout != FORMAT:
    raise ValueError(
        f'{path} has the format {layout!r}, this version of vemd_jax reads '
        f'{FORMAT!r}: export the run again'
    )
  if checksum(manifest, parts) != manifest.get('checksum'):
    raise ValueError(f'{path} is damaged: its content and checksum differ')
  try:
    exported = jax.export.deserialize(bytearray(parts['model.stablehlo']))
  except Exception as error:  # Incompatible versions of JAX raise many kinds.
    versions = manifest['versions']
    raise ValueError(
        f'{path} was exported with JAX {versions["jax"]}, which JAX '
        f'{jax.__version__} does not read: {error}'
    ) from error
  with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
    weights = {
        name.removeprefix('weights/'): archive[name]
        for name in archive.files
        if name.startswith('weights/')
    }
  return manifest, exported, weights


def load(path: epath.PathLike) -> Model:
  """Loads an exported model for prediction.

  Args:
    path: a file written by `vemd export`.

  Returns:
    The model. It returns only probabilities, no `outputs`; they are NaN where
    the model abstains.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not an exported model, is damaged, has an
      unsupported version, or was lowered for other platforms.
  """
  manifest, exported, weights = read(path)
  here = jax.default_backend().replace('gpu', 'cuda')
  if here not in exported.platforms:
    raise ValueError(
        f'{path} was exported for {", ".join(exported.platforms)}, not for '
        f'{here}'
    )
  weights = jax.device_put(weights)

  @jax.jit
  def call(weights, image):
    outputs = exported.call(weights, image)
    return jnp.where(
        outputs['abstain'][:, None], jnp.nan, outputs['probabilities']
    )

  side = manifest['preprocessing']['resized_to'][0]
  frames = manifest['input']['images']
  # Images are resized on the host, to the same pixels as in the model, so that
  # the model is compiled for a single size.
  transform = transforms.Transform(
      image_size=side, frames=frames, labels=False, bodies=False, faces=False
  )
  return Model(
      config=None,
      classes=tuple(manifest['classes']),
      frames=frames,
      prepare=lambda images: transform({'frames': images})['image'],
      probabilities=lambda image: call(weights, image),
      outputs=None,
      decodes=False,
      step=manifest['model']['step'],
  )
