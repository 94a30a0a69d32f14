"""Exports a trained run as a single file: StableHLO, weights and a manifest.

The file is a zip archive that `numpy.load` reads:

  manifest.json      classes, input, outputs, gates, sizes, versions, checksum
  model.stablehlo    serialized `jax.export.Exported`
  weights/NAME.npy   the weights that the outputs depend on, float32

The function returns the probabilities of the group emotion and whether it
abstains. The structural decoders are included only if the emotion head or a
gate needs the decoded structure.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from vemd_jax import writer
from vemd_jax.artifact import gates as gates_lib
from vemd_jax.artifact import preprocess
from vemd_jax.artifact.read import FORMAT, checksum
from vemd_jax.inference.results import ABSTAINED
from vemd_jax.inference.trained import Trained
from vemd_jax.models.vemd import VEMD

PLATFORMS = ('cpu', 'cuda', 'tpu')


class Gates(NamedTuple):
  """Restrictions on the outputs of an exported model.

  Attributes:
    min_people: the model abstains if an image shows fewer people; 0 disables
      the gate.
    max_share: the model abstains if one person covers more than this share of
      the area of all people; 1 disables the gate.
    digits: decimal places of the probabilities; None does not round.
    clips: number of clips over which the probabilities are averaged.
  """

  min_people: int = 0
  max_share: float = 1.0
  digits: int | None = None
  clips: int = 1

  @property
  def counts(self) -> bool:
    """Whether people are counted, which needs the decoders."""
    return self.min_people > 0 or self.max_share < 1


class Exportable(NamedTuple):
  """A trained model as a pure function of its weights and images.

  Attributes:
    trained: the run, in float32 and without the parts that the outputs do not
      depend on.
    gates: restrictions on the outputs.
    latent_only: whether the model has no structural decoders.
    weights: name -> float32 array.
    call: `(weights, image) -> {'probabilities', 'abstain'}`, where image is
      uint8 [B, N, H, W, 3], N = clips * frames in temporal order.
  """

  trained: Trained
  gates: Gates
  latent_only: bool
  weights: dict[str, np.ndarray]
  call: Callable[[Mapping[str, Any], jax.Array], dict[str, jax.Array]]


def prepare(trained: Trained, gates: Gates) -> Exportable:
  """Reduces a run to the function to export.

  Args:
    trained: the run.
    gates: restrictions on the outputs.

  Returns:
    The function and the weights that it depends on.

  Raises:
    ValueError: if the gates need structure that the model does not decode, or
      are out of range.
  """
  _check(trained, gates)
  model = trained.config.model
  variant = model.variant
  if variant == 've_md' and not gates.counts:
    # The emotion head of ve_md does not use the structure, so ve_sd with the
    # same weights is the same function of the image.
    variant = 've_sd'
  fields = {**model.to_dict(), 'variant': variant, 'dtype': 'float32'}
  trained = trained._replace(
      model=VEMD(**fields, classes=trained.model.classes)
  )
  flat = traverse_util.flatten_dict(dict(trained.variables), sep='/')
  flat = {
      name: np.asarray(jax.device_get(x)).astype(np.float32)
      for name, x in sorted(flat.items())
  }
  call = _function(trained, gates, _shapes(flat))
  # Drops weights that the outputs do not depend on: other datasets' heads,
  # unused decoders and the log-variance.
  exported = jax.export.export(jax.jit(call))(
      _shapes(flat), _image(trained, gates, 1)
  )
  used = set(exported.module_kept_var_idx)
  weights = {k: x for i, (k, x) in enumerate(flat.items()) if i in used}
  return Exportable(
      trained, gates, variant in ('ve_sd', 'vit'), weights, call
  )


def _check(trained: Trained, gates: Gates) -> None:
  model = trained.config.model
  if ABSTAINED in trained.classes:
    raise ValueError(
        f'a class is named {ABSTAINED!r}, which marks an abstention'
    )
  for name, value, fits, allowed in (
      ('min_people', gates.min_people, gates.min_people >= 0, '0 or more'),
      ('max_share', gates.max_share, 0 < gates.max_share <= 1, '0 < S <= 1'),
      ('average', gates.clips, gates.clips >= 1, '1 or more'),
      ('round', gates.digits, gates.digits in (None, *range(7)), '0 to 6'),
  ):
    if not fits:
      raise ValueError(f'--{name}={value}: expected {allowed}')
  if not gates.counts:
    return
  if model.variant not in ('ve_md', 've_md_sr'):
    raise ValueError(
        '--min_people and --max_share count decoded people, but a model of the '
        f'variant {model.variant} decodes none'
    )
  if model.decoder == 'person_query' and not model.person_query.presence:
    raise ValueError(
        '--min_people and --max_share count people by their presence, which '
        'config.model.person_query.presence=False does not predict'
    )


def _function(trained: Trained, gates: Gates, shapes: Any) -> Callable:
  side, frames = trained.data.image_size, trained.data.frames

  def call(weights, image):
    batch = image.shape[0]
    if image.shape[2:4] != (side, side):
      image = preprocess.resize(image, side)
    if trained.data.grayscale:
      image = preprocess.grayscale(image)
    image = image.reshape(batch * gates.clips, frames, side, side, 3)
    # Flax requires all weights of the module, even those without effect on the
    # outputs.
    others = {
        name: jnp.zeros(x.shape, x.dtype)
        for name, x in shapes.items()
        if name not in weights
    }
    variables = traverse_util.unflatten_dict({**others, **weights}, sep='/')
    outputs = trained.apply(variables, image)
    probabilities = jax.nn.softmax(outputs.logits)
    probabilities = probabilities.reshape(
        batch, gates.clips, len(trained.classes)
    ).mean(1)
    if gates.digits is not None:
      probabilities = jnp.round(probabilities, gates.digits)
    abstain = jnp.zeros(batch, bool)
    if gates.counts:
      count, share = gates_lib.people(outputs)
      alone = (count < gates.min_people) | (share > gates.max_share)
      abstain = alone.reshape(batch, gates.clips * frames).any(1)
      probabilities = jnp.where(abstain[:, None], 0.0, probabilities)
    return {'abstain': abstain, 'probabilities': probabilities}

  return call


def _shapes(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
      k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in weights.items()
  }


def _image(trained: Trained, gates: Gates, batch: Any, size: Any = None):
  """The shape of the images, by default of the model's own input."""
  height, width = size or (trained.data.image_size,) * 2
  shape = batch, gates.clips * trained.data.frames, height, width, 3
  return jax.ShapeDtypeStruct(shape, jnp.uint8)


def export(
    this: Exportable, platforms: tuple[str, ...] = PLATFORMS
) -> jax.export.Exported:
  """Lowers the function for symbolic batch and image sizes.

  Args:
    this: the function.
    platforms: target platforms.

  Returns:
    The exported function.
  """
  batch, height, width = jax.export.symbolic_shape('batch, height, width')
  image = _image(this.trained, this.gates, batch, (height, width))
  # Source locations in the StableHLO would contain paths of this machine.
  setting = 'jax_hlo_source_file_canonicalization_regex'
  before = jax.config.values[setting]
  jax.config.update(setting, '.*')
  try:
    return jax.export.export(jax.jit(this.call), platforms=platforms)(
        _shapes(this.weights), image
    )
  finally:
    jax.config.update(setting, before)


def manifest(this: Exportable) -> dict[str, Any]:
  """Describes an exportable model, without its checksum."""
  trained, gates = this.trained, this.gates
  data, model = trained.data, trained.config.model
  whole = {
      name: np.prod(x.shape, dtype=int)
      for name, x in traverse_util.flatten_dict(
          dict(trained.variables), sep='/'
      ).items()
  }
  versions = writer.versions()
  names = ('vemd_jax', 'jax', 'jaxlib', 'flax')
  return {
      'format': FORMAT,
      'classes': list(trained.classes),
      'input': {
          'dtype': 'uint8',
          'shape': [
              'batch', gates.clips * data.frames, 'height', 'width', 3
          ],
          'images': gates.clips * data.frames,
          'meaning': 'RGB images of one clip in order of time, any size; a '
          'photograph is repeated',
      },
      'preprocessing': {
          'where': 'in the model',
          'resized_to': [data.image_size, data.image_size],
          'grayscale': data.grayscale,
          'normalization': _normalizations(model),
      },
      'outputs': {
          'probabilities': ['batch', len(trained.classes)],
          'abstain': ['batch'],
          'meaning': 'probabilities of the emotion of the group; all 0 where '
          'the model abstains',
      },
      'gates': {
          'min_people': gates.min_people,
          'max_share': gates.max_share,
          'digits': gates.digits,
          'clips': gates.clips,
      },
      'model': {
          'variant': model.variant,
          'decoder': model.decoder,
          'dataset': trained.dataset,
          'step': trained.step,
          'latent_only': this.latent_only,
          'dtype': 'float32',
      },
      'size': {
          'parameters': sum(x.size for x in this.weights.values()),
          'flops': flops(this),
          'parameters_of_full_model': int(sum(whole.values())),
          'flops_of_full_model': flops(_full(this)),
          'meaning': 'floating point operations for one input, counted by XLA '
          'before optimization; the full model has all decoders, and all heads '
          'among its parameters',
      },
      'versions': {name: versions[name] for name in names},
  }


def _normalizations(model: Any) -> dict[str, str]:
  names = {}
  if model.variant != 'vit':
    names['encoder'] = model.encoder.normalization
  if model.variant == 'vit' or model.vit.name != 'none':
    names['vit'] = model.vit.normalization
  return names


def _full(this: Exportable) -> Exportable:
  """The full model of the run, with all decoded structure as outputs."""
  trained = this.trained
  model = VEMD(
      **{**trained.config.model.to_dict(), 'dtype': 'float32'},
      classes=trained.model.classes,
  )
  trained = trained._replace(model=model)
  flat = traverse_util.flatten_dict(dict(trained.variables), sep='/')

  def call(weights, image):
    variables = traverse_util.unflatten_dict(dict(weights), sep='/')
    side = image.shape[2:]
    return trained.apply(
        variables, image.reshape(-1, trained.data.frames, *side)
    )

  return this._replace(trained=trained, weights=flat, call=call)


def flops(this: Exportable) -> int | None:
  """Floating point operations for one input; None if XLA reports none."""
  lowered = jax.jit(this.call).lower(
      _shapes(this.weights), _image(this.trained, this.gates, 1)
  )
  found = (lowered.cost_analysis() or {}).get('flops')
  return None if found is None else round(found)


def write(
    path: epath.PathLike,
    this: Exportable,
    exported: jax.export.Exported,
) -> dict[str, Any]:
  """Writes the file, reproducibly: the same run gives the same bytes.

  Args:
    path: the file.
    this: the function.
    exported: the lowered function, from `export`.

  Returns:
    The manifest.
  """
  parts = {'model.stablehlo': bytes(exported.serialize())}
  for name, array in this.weights.items():
    data = io.BytesIO()
    np.lib.format.write_array(data, np.ascontiguousarray(array))
    parts[f'weights/{name}.npy'] = data.getvalue()
  about = {**manifest(this), 'platforms': list(exported.platforms)}
  about['checksum'] = checksum(about, parts)
  text = json.dumps(about, indent=2) + '\n'
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, data in {'manifest.json': text.encode(), **parts}.items():
      archive.writestr(zipfile.ZipInfo(name), data)
  part.replace(path)
  return about
