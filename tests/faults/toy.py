"""Real runs around a model and pictures so small that a run takes a second.

All is as in any run but the model: dense layers on the mean colour, which
makes a loss that is not finite of a white picture, and a spike of a bright one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import group_scenes
from vemd_jax import run as run_lib
from vemd_jax import sharding
from vemd_jax.models.outputs import Outputs


class Toy(nn.Module):
  classes: tuple

  @nn.compact
  def __call__(self, batch, *, dataset, train):
    x = batch['image'].astype(jnp.float32).mean((1, 2, 3)) / 255
    x = jnp.where(x > 0.99, jnp.nan, jnp.where(x > 0.9, 1e3 * x, x))
    # Two layers, so that there is a matrix which 2, 4 and 8 devices can share.
    return Outputs(logits=nn.Dense(3)(nn.Dense(16)(x)), latents=())


class Pictures:
  """Picture i of 24; white and bright ones as `source_kwargs` says."""

  classes = ('a', 'b', 'c')

  def __init__(self, count, white, bright):
    self.files = [f'picture_{i}.png' for i in range(count)]
    self.labels = np.arange(count, dtype=np.int32) % 3
    self._white, self._bright = white, bright

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    level = 10 + 5 * index
    level = 255 if index in self._white else level
    level = 240 if index in self._bright else level
    return {
        'file': self.files[index],
        'frames': [np.full((8, 8, 3), level, np.uint8)],
        'label': int(self.labels[index]),
    }


def pictures(data, split):
  if split != 'train':
    return Pictures(10, (), ())
  kwargs = data.source_kwargs
  return Pictures(24, tuple(kwargs.white), tuple(kwargs.bright))


def config(**changes):
  result = group_scenes.get_config('tiny,ve_sd')
  with result.unlocked():
    result.mode = 'train'
    result.steps = 12
    result.batch_size = 4
    result.data.update(
        name='toy', source='tests.faults.toy:pictures', image_size=8,
        targets='device', cache=False, test_split='',
    )  # fmt: skip
    result.data.source_kwargs.update(white=(), bright=())
    result.data.augment.update(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, brightness=0.0,
        contrast=0.0, saturation=0.0, hue=0.0,
    )  # fmt: skip
    result.model.latent.deterministic = True
    result.optim.update(ema_decay=0.9, learning_rate=1e-2, warmup_steps=0)
    result.eval.update(every=4, pictures=0)
    result.checkpoint.every = 3
    result.log_every = 2
  result.update_from_flattened_dict(changes)
  return result


def get_config(options=''):
  """Makes this file a recipe."""
  del options
  return config()


def make_model(config, opened):
  """Takes the place of `run._make_model`."""
  return Toy(tuple((name, len(s.classes)) for name, s in opened.items()))


def patch(monkeypatch) -> None:
  """Runs are around the toy from now on, on one device."""
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  monkeypatch.setattr(run_lib, '_make_model', make_model)
  monkeypatch.setattr(run_lib.sharding, 'make_mesh', lambda *args: mesh)
