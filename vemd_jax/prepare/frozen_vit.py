"""The frozen ViT's features, computed once for all of a run's data.

Stage 2 holds the ViT frozen (arXiv 2604.02397, section 4), so that its features
of an image are the same at every epoch. `fill` caches them beside the data;
`Run.check_cached_features` makes sure that a run reads those of its own ViT.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vemd_jax import checkpoint, rng, weights
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
      **vit.description(config.model, params),
      'image_size': data.image_size,
      'frames': data.frames,
      'grayscale': data.grayscale,
  }


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
    params = weights.load_variables(path)['params'].get('vit')
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
