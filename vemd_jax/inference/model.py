"""A trained model as a function from images to class probabilities."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vemd_jax import viz
from vemd_jax.data import transforms
from vemd_jax.inference.clips import Clip


class Model(NamedTuple):
  """A trained model for inference.

  Attributes:
    config: config of the run; None for an exported model.
    classes: names of the C classes.
    frames: number of images per clip, T.
    prepare: T uint8 [H, W, 3] images of any size -> uint8 [T, S, S, 3].
    probabilities: jitted pure function, uint8 [B, T, S, S, 3] -> [B, C], class
      probabilities of the group emotion; NaN where an exported model abstains.
    outputs: jitted pure function, uint8 [B, T, S, S, 3] -> (probabilities,
      `Outputs` without latents); None for an exported model.
    decodes: whether the outputs include decoded structure.
    step: training step of the checkpoint.
  """

  config: ConfigDict | None
  classes: tuple[str, ...]
  frames: int
  prepare: Callable[[Sequence[np.ndarray]], np.ndarray]
  probabilities: Callable[[jax.Array], jax.Array]
  outputs: Callable[[jax.Array], tuple[jax.Array, Any]] | None
  decodes: bool
  step: int = 0


class Prediction(NamedTuple):
  """The prediction for one clip.

  Attributes:
    clip: the clip.
    probabilities: [C] class probabilities, NaN if the model abstains.
    structure: decoded structure of the middle image, see
      `viz.overlay_structure`; empty if the model decodes none.
    input_size: (H, W) of the model input.
  """

  clip: Clip
  probabilities: np.ndarray
  structure: dict[str, Any]
  input_size: tuple[int, int]


def load(workdir: epath.PathLike, dataset: str = '') -> Model:
  """Loads the best checkpoint of a run.

  Args:
    workdir: workdir of the run.
    dataset: dataset whose emotion head is used; required if the model has
      several heads.

  Returns:
    The model.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint.
    ValueError: if `dataset` does not identify a single emotion head.
  """
  # Imported here, so that exported models do not load the model's code.
  from vemd_jax.inference import trained as trained_lib

  trained = trained_lib.load(workdir, dataset)
  prepare = transforms.images_only(trained.data)

  @jax.jit
  def apply(variables, image):
    outputs = trained.apply(variables, image)
    return jax.nn.softmax(outputs.logits), outputs.replace(
        latents=(), vit_latent=None
    )

  @jax.jit
  def probabilities(variables, image):
    return apply(variables, image)[0]

  return Model(
      config=trained.config,
      classes=trained.classes,
      frames=trained.data.frames,
      prepare=lambda images: prepare({'frames': images})['image'],
      # The variables are arguments, so that they are not compiled in as
      # constants.
      probabilities=functools.partial(probabilities, trained.variables),
      outputs=functools.partial(apply, trained.variables),
      decodes=trained.config.model.variant in ('ve_md', 've_md_sr'),
      step=trained.step,
  )


def hides_people(model: Model) -> bool:
  """Whether pictures that a program writes must hide people.

  Args:
    model: the model.

  Returns:
    Whether config.pictures.people is blur.

  Raises:
    ValueError: if it is off, so that no pictures may be written.
  """
  people = model.config.get('pictures', {}).get('people', 'show')
  if people == 'off':
    raise ValueError(
        'config.pictures.people of this run is off, so that no pictures of '
        'people are written'
    )
  return people == 'blur'


def predict_clips(
    model: Model, clips: Iterable[Clip], batch_size: int
) -> Iterator[Prediction]:
  """Runs the model over clips, in batches of one size.

  Args:
    model: the model.
    clips: any number of clips.
    batch_size: number of clips per batch; the last batch is padded, so that the
      model is compiled once.

  Yields:
    A prediction for each clip, in order.
  """
  return predict_prepared(
      model, ((c, model.prepare(c.images)) for c in clips), batch_size
  )


def predict_prepared(
    model: Model,
    items: Iterable[tuple[Clip, np.ndarray]],
    batch_size: int,
    structure: bool = True,
) -> Iterator[Prediction]:
  """Like `predict_clips`, for clips whose images are prepared already.

  Args:
    model: the model.
    items: (clip, uint8 [T, S, S, 3]); the clip's own images may be dropped.
    batch_size: number of clips per batch; the last batch is padded.
    structure: whether the structure is decoded; otherwise the decoders that the
      probabilities do not need are not computed.

  Yields:
    A prediction for each clip, in order.
  """
  waiting = []
  for item in items:
    waiting.append(item)
    if len(waiting) == batch_size:
      yield from _predict_batch(model, waiting, batch_size, structure)
      waiting = []
  if waiting:
    yield from _predict_batch(model, waiting, batch_size, structure)


def _predict_batch(
    model: Model,
    waiting: list[tuple[Clip, np.ndarray]],
    batch_size: int,
    structure: bool,
) -> Iterator[Prediction]:
  images = np.stack([image for _, image in waiting])
  missing = batch_size - len(images)
  padding = np.zeros((missing, *images.shape[1:]), np.uint8)
  images = np.concatenate([images, padding])
  outputs = None
  if structure and model.decodes:
    probabilities, outputs = jax.device_get(model.outputs(images))
  else:
    probabilities = jax.device_get(model.probabilities(images))
  for i, (clip, image) in enumerate(waiting):
    decoded = {}
    if outputs is not None:
      decoded = viz.decoded_structure(outputs, i, len(image) // 2)
    yield Prediction(clip, probabilities[i], decoded, image.shape[1:3])
