"""The frozen ViT's features, computed once for all of a run's data.

Stage 2 holds the ViT frozen (arXiv 2604.02397, section 4), so that its features
of an image are the same at every epoch. `fill` caches them beside the data and
`check` makes sure that a run reads those of its own weights.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vemd_jax import checkpoint, rng
from vemd_jax.data import feature_cache, transforms, vit_features
from vemd_jax.models import vit
from vemd_jax.models.vemd import VEMD


def settings(config: ConfigDict, data: ConfigDict, params: Any) -> dict:
  """What the features depend on besides the images.

  Args:
    config: the whole config.
    data: of one dataset.
    params: of the ViT.

  Returns:
    Plain JSON, see `vit_features.cache`.
  """
  return {
      **_model_settings(config, params),
      'image_size': data.image_size,
      'frames': data.frames,
      'grayscale': data.grayscale,
  }


def _model_settings(config: ConfigDict, params: Any) -> dict:
  name = config.model.vit.name
  return {
      'vit': name,
      'width': vit.VITS[name]['dim'],
      'normalization': config.model.vit.normalization,
      'dtype': config.model.dtype,
      'weights': fingerprint(params),
  }


def fingerprint(params: Any) -> str:
  """A hash of weights, the same however they lie on the devices.

  Args:
    params: tree of float arrays.

  Returns:
    16 hexadecimal digits.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  sums = jax.jit(lambda arrays: jax.tree.map(_mixed_sum, arrays))(flat)
  content = [(k, flat[k].shape, int(sums[k])) for k in sorted(flat)]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _mixed_sum(x: jax.Array) -> jax.Array:
  """Sum of well mixed bits and places: whole numbers add in any order."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  bits = bits.reshape(-1)
  bits ^= jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1)
  # The finalizer of MurmurHash3.
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return (bits ^ (bits >> 16)).sum(dtype=jnp.uint32)


def load(config: ConfigDict) -> Any:
  """The ViT's parameters as a run of this config would start with them.

  Args:
    config: the whole config.

  Returns:
    The tree below `params/vit`.

  Raises:
    FileNotFoundError: `config.checkpoint.init_from` names no weights.
    ValueError: they do not fit, or none of them has a ViT.
  """
  model = _model(config)
  image = jnp.zeros(
      (1, 1, config.data.image_size, config.data.image_size, 3), jnp.uint8
  )

  def init():
    key = rng.named(config.seed, 'params')
    variables = model.init({'params': key}, image, method='vit_features')
    return variables['params']['vit']

  found = None
  for path in config.checkpoint.init_from:
    params = checkpoint.load_variables(path)['params'].get('vit')
    if params is not None:
      found = params
      checkpoint.check_fit(found, jax.eval_shape(init), f'the ViT of {path}')
  if found is None and config.checkpoint.init_from:
    raise ValueError(
        f'config.checkpoint.init_from is {config.checkpoint.init_from}, and '
        'none of them has a ViT'
    )
  return jax.jit(init)() if found is None else found


def _model(config: ConfigDict) -> VEMD:
  # The ViT has no part that depends on the datasets.
  return VEMD(**config.model.to_dict(), classes=(('none', 0),))


def fill(
    config: ConfigDict,
    data: ConfigDict,
    params: Any,
    overwrite: bool = False,
    workers: int = 1,
) -> feature_cache.Counts:
  """Caches the features of a dataset's every row.

  Args:
    config: the whole config.
    data: of the dataset.
    params: of the ViT.
    overwrite: starts anew where the cache has other settings.
    workers: threads that decode.

  Returns:
    What was done.

  Raises:
    ValueError: the cache has other settings.
  """
  model = _model(config)
  features = jax.jit(
      lambda params, image: model.apply(
          {'params': {'vit': params}}, image, method='vit_features'
      )
  )
  transform = transforms.images_only(data)

  def compute(record: vit_features.Record) -> np.ndarray:
    sample = transform(record)
    if sample['unreadable']:
      raise ValueError('is unreadable')
    return np.asarray(features(params, sample['image'][None])[0], np.float32)

  return vit_features.cache(
      data.root, settings(config, data, params), compute, overwrite, workers
  )


def check(
    config: ConfigDict, datasets: Mapping[str, ConfigDict], params: Any
) -> None:
  """Makes sure that cached features are those of a run's ViT.

  Args:
    config: the whole config.
    datasets: the run's, by name.
    params: of the ViT.

  Raises:
    ValueError: names what differs.
  """
  cached = [data for data in datasets.values() if data.vit_dim]
  if not cached:
    return
  wanted = _model_settings(config, params)
  for data in cached:
    vit_features.features(data.root, **wanted)
