"""Taps of a trained model: the values that an attacker may see."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from flax import linen as nn

from vemd_jax import progress
from vemd_jax.artifact import build
from vemd_jax.audit import measure
from vemd_jax.data import pipeline, sources
from vemd_jax.inference.trained import Trained
from vemd_jax.models.outputs import Outputs
from vemd_jax.models.vemd import PARTS

# Side in pixels of the pictures that are compared and reconstructed.
SIDE = 32
# From the input to the output.
_ORDER = (
    'latent', 'vit_latent', 'heatmaps', 'people', 'relations', 'embedding',
    'logits', 'exported',
)  # fmt: skip
# Grids are averaged to at most this side, which keeps the positions.
_GRID = 14


class Samples(NamedTuple):
  """A split, with what each tap gives for each of its samples.

  Attributes:
    files: [n] names; '' for drawn samples.
    labels: [n] int, -1 without label.
    pictures: [n, SIDE, SIDE, 3] float32 0..1, the middle image.
    truth: name -> [n] float32 from the annotations, NaN where not annotated:
      number of people, center and mean height of the people (0..1).
    taps: name -> [n, d] float32, the mean over the images of a clip.
  """

  files: list[str]
  labels: np.ndarray
  pictures: np.ndarray
  truth: dict[str, np.ndarray]
  taps: dict[str, np.ndarray]


def collect(
    trained: Trained,
    data: Any,
    split: str,
    digits: int | None,
    only: Sequence[str] = _ORDER,
    batch_size: int = 32,
) -> Samples:
  """Runs the model over a split and keeps the values at its taps.

  Args:
    trained: the run.
    data: data settings, `config.data`.
    split: 'train' or 'val'.
    digits: decimal places of the exported output; None does not round it.
    only: names of the taps that are kept, besides the pixels.
    batch_size: number of samples per batch.

  Returns:
    The samples that can be read.

  Raises:
    FileNotFoundError: if the data do not exist.
    ValueError: if they are invalid, or the model reads more than images.
  """
  apply = make_taps(trained, digits, only)
  source = sources.make_source(data, split)
  files = getattr(source, 'files', None) or [''] * len(source)
  kept: dict[str, list] = {}
  batches = pipeline.eval_batches(data, split, batch_size)
  with progress.bar(-(-len(source) // batch_size), 'batch', split) as bar:
    for batch in batches:
      values = {**jax.device_get(apply(batch['image'])), **_truth(batch)}
      values['index'] = batch['index']
      values['label'] = np.where(batch['label_mask'], batch['label'], -1)
      values['picture'] = np.stack([_small(clip) for clip in batch['image']])
      for name, value in values.items():
        kept.setdefault(name, []).append(value[batch['mask']])
      bar.update()
  found = {name: np.concatenate(parts) for name, parts in kept.items()}
  pictures = found.pop('picture')
  names = [name for name in found if name.startswith('truth/')]
  truth = {name.removeprefix('truth/'): found.pop(name) for name in names}
  index, labels = found.pop('index'), found.pop('label')
  return Samples(
      files=[files[i] for i in index],
      labels=labels.astype(np.int64),
      pictures=pictures,
      truth=truth,
      taps={
          measure.PIXELS: pictures.reshape(len(pictures), -1),
          **{name: found[name] for name in _ORDER if name in found},
      },
  )


def make_taps(
    trained: Trained, digits: int | None, only: Sequence[str] = _ORDER
) -> Callable[[jax.Array], dict]:
  """Builds the function that computes the taps of a batch of clips.

  Args:
    trained: the run.
    digits: decimal places of the exported output; None does not round it.
    only: names of the taps to compute.

  Returns:
    Jitted function, uint8 [B, T, S, S, 3] -> name -> float32 [B, d].

  Raises:
    ValueError: if the model cannot be exported.
  """
  exported = build.prepare(trained, build.Gates(digits=digits))
  head = f'head_{trained.dataset}'

  between = [(f'{part}_relations',) for part in PARTS]

  def is_read(module: nn.Module, _) -> bool:
    return module.path == (head, 'hidden') or module.path in between

  def taps(variables, weights, image):
    outputs, state = trained.model.apply(
        variables,
        {'image': image},
        dataset=trained.dataset,
        train=False,
        capture_intermediates=is_read,
        mutable=['intermediates'],
    )
    values = _of_outputs(outputs)
    read = dict(state.get('intermediates', {}))
    for hidden in jax.tree.leaves(read.pop(head, {})):
      values['embedding'] = jax.nn.relu(hidden)
    if read:
      vectors = jax.numpy.concatenate(jax.tree.leaves(read), -1)
      frames = image.shape[:2]
      values['relations'] = vectors.reshape(*frames, -1).mean(1)
    values['logits'] = outputs.logits
    values['exported'] = exported.call(weights, image)['probabilities']
    return {
        name: value.reshape(len(value), -1).astype(np.float32)
        for name, value in values.items()
        if name in only
    }

  jitted = jax.jit(taps)
  return lambda image: jitted(trained.variables, exported.weights, image)


def _of_outputs(outputs: Outputs) -> dict[str, jax.Array]:
  """Latents and structure, [B, ...], the mean over the images of a clip."""
  values = {}
  if outputs.latents:
    grids = [latent.mean for latent in outputs.latents]
    values['latent'] = _grid(jax.numpy.concatenate(grids, -1))
  if outputs.vit_latent is not None:
    values['vit_latent'] = _grid(outputs.vit_latent)
  maps, people = [], []
  for part in (outputs.body, outputs.face):
    if part is None:
      continue
    if part.heatmap_logits is not None:
      maps.append(_grid(jax.nn.sigmoid(part.heatmap_logits[-1])))
    if part.limbs is not None:
      limbs = part.limbs.reshape(*part.limbs.shape[:3], -1)
      if part.presence_logits is not None:
        presence = jax.nn.sigmoid(part.presence_logits)[..., None]
        limbs = jax.numpy.concatenate([limbs * presence, presence], -1)
      people.append(limbs.mean(1))
  if maps:
    values['heatmaps'] = jax.numpy.concatenate(maps, -1)
  if people:
    values['people'] = jax.numpy.concatenate(people, -1)
  return values


def _grid(x: jax.Array) -> jax.Array:
  """[B, T, h, w, D] -> [B, h', w', D], averaged to at most `_GRID`."""
  x = x.mean(1)
  size = -(-max(x.shape[1:3]) // _GRID)
  if size > 1:
    x = nn.avg_pool(x, (size, size), (size, size))
  return x


def _small(clip: np.ndarray) -> np.ndarray:
  """The middle image at the side of the baseline, 0..1."""
  image = cv2.resize(
      clip[len(clip) // 2], (SIDE, SIDE), interpolation=cv2.INTER_AREA
  )
  return image.astype(np.float32) / 255


def _truth(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Number, center and height of the people in the middle image."""
  middle = batch['image'].shape[1] // 2
  side = batch['image'].shape[2]
  rows = []
  for i in range(len(batch['image'])):
    row = [np.nan] * 4
    for part in ('face', 'body'):  # Bodies take precedence.
      people = batch[f'{part}_keypoints'][i, middle]
      people = people[batch[f'{part}_mask'][i, middle]]
      boxes = [p[p[:, 2] > 0, :2] for p in people]
      boxes = [p for p in boxes if len(p) > 1]
      if boxes:
        x, y = np.mean([p.mean(0) for p in boxes], 0) / side
        height = np.mean([np.ptp(p[:, 1]) for p in boxes]) / side
        count = len(people) + batch[f'{part}_dropped'][i, middle]
        row = [count, x, y, height]
    rows.append(row)
  names = ('people', 'center_x', 'center_y', 'height')
  columns = np.array(rows, np.float32).T
  return {f'truth/{name}': c for name, c in zip(names, columns)}
