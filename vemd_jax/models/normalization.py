"""Normalization of images as pretrained weights expect it."""

import jax
import jax.numpy as jnp
import numpy as np

# Mean and standard deviation of RGB in 0..1 that weights were trained with.
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalize(image: jax.Array, name: str) -> jax.Array:
  """Normalizes images as the weights expect.

  Args:
    image: [..., 3] RGB 0..255; with 'none', floating point images are not
      changed.
    name: key of `NORMALIZATIONS`.

  Returns:
    [..., 3] float32.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in NORMALIZATIONS:
    raise ValueError(
        f'normalization is {name!r}, expected one of '
        f'{", ".join(NORMALIZATIONS)}'
    )
  if name == 'none' and jnp.issubdtype(image.dtype, jnp.floating):
    return image.astype(jnp.float32)
  mean, std = (
      np.array(values, np.float32).reshape((1,) * (image.ndim - 1) + (3,))
      for values in NORMALIZATIONS[name]
  )
  return (image.astype(jnp.float32) / 255 - mean) / std
