"""Computes the frozen ViT's features once for all data of a run.

Stage 2 freezes the ViT (arXiv 2604.02397, section 4), so its features of an
image are the same in every epoch. `fill` caches them beside the data;
`Run.check_cached_features` checks that a run reads those of its own ViT.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vemd_jax import checkpoint, rng, weights
from vemd_jax.data import feature_cache, transforms, vit_features
from vemd_jax.models import vit
from vemd_jax.models.vemd import VEMD
from vemd_jax.prepare import rows


def settings(config: ConfigDict, data: ConfigDict, params: Any) -> dict:
  """Settings that the features depend on besides the images.

  Args:
    config: the whole config.
    data: settings of one dataset.
    params: parameters of the ViT.

  Returns:
    Plain JSON, see `cache`.
  """
  return {
      **vit.description(config.model, params),
      'image_size': data.image_size,
      'frames': data.frames,
      'grayscale': data.grayscale,
  }


def load(config: ConfigDict) -> Any:
  """The ViT's parameters at the start of a run of this config.

  Args:
    config: the whole config.

  Returns:
    The tree below `params/vit`.

  Raises:
    FileNotFoundError: weights in `config.checkpoint.init_from` do not exist.
    ValueError: they do not match the model, or none of them has a ViT.
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
  # The ViT does not depend on the datasets.
  return VEMD(**config.model.to_dict(), classes=(('none', 0),))


def fill(
    config: ConfigDict,
    data: ConfigDict,
    params: Any,
    overwrite: bool = False,
    workers: int = 1,
) -> feature_cache.Counts:
  """Caches the features of all rows of a dataset.

  Args:
    config: the whole config.
    data: settings of the dataset.
    params: parameters of the ViT.
    overwrite: replaces a cache that has other settings.
    workers: number of decoding threads.

  Returns:
    Numbers of rows processed.

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

  return cache(
      data.root,
      settings(config, data, params),
      compute,
      overwrite,
      workers,
      data.outside_root,
  )


def cache(
    data: str | pathlib.Path,
    settings: Mapping[str, Any],
    compute: Callable[[vit_features.Record], np.ndarray],
    overwrite: bool = False,
    workers: int = 1,
    outside_root: bool = False,
) -> feature_cache.Counts:
  """Computes the features of the rows of all splits that are not cached yet.

  Args:
    data: a folder with `labels.csv`, or prepared data.
    settings: what the features depend on besides the images, plain JSON:
      `weights`, `width` (E), `image_size`, `frames`, `grayscale`, and others.
    compute: record -> float32 [T, E]; raises ValueError if the record cannot
      be read.
    overwrite: starts a new index if the existing one has other settings.
    workers: number of threads.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    Numbers of rows processed.

  Raises:
    FileNotFoundError: there is no such dataset.
    ValueError: the cache was made with other settings.
  """
  data = pathlib.Path(data)
  source = rows.Rows(data, outside_root)
  stamp = _stamp(data / 'prepared.json') if source.is_prepared else None

  def job(i: int) -> feature_cache.Job:
    def key() -> str:
      return vit_features.content_key(source[i], settings['frames'], settings)

    file = source.files[i]
    return feature_cache.Job(
        file=file,
        # A name whose Unicode form differs from the file's has no stamp.
        stamp=stamp or _stamp(data / file) or key(),
        key=key,
        compute=lambda: compute(source[i]),
    )

  jobs = [job(i) for i in range(len(source))]
  return feature_cache.fill(
      data / vit_features.CACHE, settings, jobs, overwrite, workers, np.float32,
      holds='features of pictures, from a frozen vision transformer',
  )  # fmt: skip


def _stamp(path: pathlib.Path) -> list[int]:
  """Size and modification time of a file, or of each file in a folder."""
  paths = sorted(path.iterdir()) if path.is_dir() else [path]
  stamp = []
  for path in paths:
    try:
      stat = path.stat()
    except OSError:
      continue
    stamp += [stat.st_size, stat.st_mtime_ns]
  return stamp
