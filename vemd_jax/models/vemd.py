"""VE-MD: a variational encoder, structural decoders and an emotion head.

See arXiv 2604.02397, section 3. The structure is decoded from the variational
latent only; the inputs of the emotion head are the latents, the frozen ViT and,
in the variant 've_md_sr', the decoded structure.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax import import_path, matching, skeletons
from vemd_jax.models import (
  axes,
  emotion_head,
  fusion,
  layers,
  normalization,
  relations,
)
from vemd_jax.models.encoders import make_encoder
from vemd_jax.models.heatmap_decoder import HeatmapDecoder
from vemd_jax.models.latent import GaussianLatent
from vemd_jax.models.outputs import Latent, Outputs, Structure
from vemd_jax.models.person_query_decoder import Centers, PersonQueryDecoder
from vemd_jax.models.st_gcn import STGCN
from vemd_jax.models.vit import make_vit

PARTS = ('body', 'face')

# Name prefixes of modules that belong to one dataset: its emotion head, its
# projection of the ViT features, and the classifier of stage 1. When weights of
# another run are loaded, they may be of other datasets or have another size.
DATASET_MODULES = ('head_', 'vit_projection_', 'classifier_')
# Modules that weights may have although this model does not decode the part, or
# decodes it with another decoder.
PART_MODULES = tuple(
    f'{part}_{what}'
    for part in PARTS
    for what in ('decoder', 'st_gcn', 'relations')
)

# Keys of `head` that concern its inputs rather than the module.
_HEAD_OPTIONS = (
    'name', 'structure_gradient', 'relation_features', 'teacher_forcing',
)  # fmt: skip


class VEMD(nn.Module):
  """The whole model; its fields are `config.model` and the datasets.

  Attributes:
    variant: 've_sd' has no structural decoders, 've_md' has them, and in
      've_md_sr' the decoded structure is also an input of the emotion head.
      'vit' is only the ViT with a linear classifier on its pooled frames: stage
      1, which fine-tunes the ViT that is frozen in the other variants.
    decoder: 'heatmap', 'person_query', or `package.module:Class` of a module
      with the fields `part` and `dtype` that decodes a latent [N, h, w, D] to a
      `Structure`.
    parts: parts that are decoded, of 'body' and 'face'.
    num_encoders: 1, or 2 (one encoder for the body, one for the face).
    dtype: dtype of the computation, 'float32', 'bfloat16' or 'auto', see
      `layers.compute_dtype`; trained parameters are float32.
    encoder: name, width, blocks, stem_stride, normalization and, for ViTs,
      token_order; see `make_encoder`.
    latent: dim and deterministic; see `GaussianLatent`.
    vit: name of the frozen ViT ('none' disables the branch), normalization.
    heatmap: fields of `HeatmapDecoder`.
    person_query: fields of `PersonQueryDecoder`, and st_gcn: 'none', or the
      order of the `STGCN` between decoder and emotion head.
    head: fields of `EmotionHead`, and name: 'frame_transformer' (that head), or
      `package.module:Class` of a module with the fields `num_classes` and
      `dtype`. It is called as `(latents, structures, modalities, train=...)`,
      with part -> `Structure` in 've_md_sr', and returns the logits and the
      weight of each frame (or None).
    fusion: method, audio ('none', 'embedding', 'mel'), text (bool), dim,
      modality_dropout; see `Fusion`.
    classes: (dataset, number of classes) pairs; 0 means no emotion head.
    norm: 'batch', or 'group' for layers that do not mix samples; see
      `layers.BatchNorm`.
  """

  variant: str
  decoder: str
  parts: tuple[str, ...]
  num_encoders: int
  dtype: str
  encoder: Mapping
  latent: Mapping
  vit: Mapping
  heatmap: Mapping
  person_query: Mapping
  head: Mapping
  fusion: Mapping
  classes: tuple[tuple[str, int], ...]
  norm: str = 'batch'

  def setup(self):
    self._check()
    dtype = layers.compute_dtype(self.dtype)
    emotions = {name: count for name, count in self.classes if count}
    if self.vit['name'] != 'none' or self.variant == 'vit':
      vit = make_vit(self.vit['name'], dtype)
      # Not named `vit` as an attribute, since the module has a field `vit`.
      self.trunk = vit.clone(parent=self, name='vit')
    if self.variant == 'vit':
      for name, count in emotions.items():
        classifier = emotion_head.FrameClassifier(count, dtype)
        setattr(self, f'classifier_{name}', classifier)
      return

    options = {
        k: v
        for k, v in self.encoder.items()
        if k not in ('normalization', 'skips')
    }
    for i in range(self.num_encoders):
      encoder = make_encoder(
          **options, dim=self.latent['dim'], dtype=dtype
      )
      setattr(self, f'encoder_{i}', encoder)
      latent = GaussianLatent(self.latent['deterministic'], dtype)
      setattr(self, f'latent_{i}', latent)
    for part in self._decoded():
      if import_path.is_path(self.decoder):
        make = import_path.load(self.decoder, 'config.model.decoder')
        decoder = make(part=part, dtype=dtype)
      elif self.decoder == 'heatmap':
        limbs = len(skeletons.HEATMAP_LIMBS[part])
        decoder = HeatmapDecoder(limbs, **self.heatmap, dtype=dtype)
      else:
        limbs = len(skeletons.QUERY_LIMBS[part])
        options = {k: v for k, v in self.person_query.items() if k != 'st_gcn'}
        if options.pop('initial', 'learned') == 'centers':
          decoder = Centers(limbs, options['queries'], dtype)
        else:
          decoder = PersonQueryDecoder(limbs, **options, dtype=dtype)
      setattr(self, f'{part}_decoder', decoder)
      if self._uses_st_gcn():
        st_gcn = STGCN(self.person_query['st_gcn'], dtype)
        setattr(self, f'{part}_st_gcn', st_gcn)
      if self._uses_relations():
        make = relations.PeopleRelations
        if self.decoder == 'heatmap':
          make = relations.MapRelations
        module = make(
            part, self.head['proj_dim'], self.head['dropout'], dtype
        )
        setattr(self, f'{part}_relations', module)

    if self.fusion['audio'] == 'mel':
      self.audio_encoder = fusion.MelEncoder(
          self.fusion['dim'], self.head['dropout'], dtype
      )
    idle = ()
    if self.decoder == 'heatmap':
      idle = tuple(p for p in PARTS if p not in self.parts)
    options = {
        k: v
        for k, v in self.head.items()
        if k not in _HEAD_OPTIONS
    }
    for name, count in emotions.items():
      if self._has_own_head():
        make = import_path.load(self.head['name'], 'config.model.head.name')
        head = make(num_classes=count, dtype=dtype)
      else:
        head = emotion_head.EmotionHead(
            num_classes=count,
            **options,
            idle=idle,
            modalities=self._modality_names(),
            fusion_method=self.fusion['method'],
            fusion_dim=self.fusion['dim'],
            dtype=dtype,
        )
      setattr(self, f'head_{name}', head)
      if self.vit['name'] != 'none':
        setattr(self, f'vit_projection_{name}', _GridProjection(dtype))

  def __call__(
      self, batch: Mapping[str, jax.Array], *, dataset: str, train: bool
  ) -> Outputs:
    """Runs the model on a batch of one dataset.

    Args:
      batch: image [B, T, H, W, 3]; optionally vit_features [B, T, E] (used
        instead of running the ViT), audio [B, Ta, M], audio_mask [B],
        text_embedding [B, Tt, E], text_mask [B]; with teacher forcing, in
        training, also the keypoints, mask and annotated frames of each part.
      dataset: dataset whose emotion head and ViT projection are used.
      train: sample latents, apply dropout, use batch statistics. Uses the rng
        streams 'latent', 'dropout' and 'modality'.

    Returns:
      Outputs; fields of parts that the model does not have are None.

    Raises:
      ValueError: for a dataset that is not in `classes`.
    """
    counts = dict(self.classes)
    if dataset not in counts:
      raise ValueError(
          f'dataset {dataset!r} is not one of the model: {", ".join(counts)}'
      )
    image = batch['image']
    grid = image.shape[:2]
    image = image.reshape(-1, *image.shape[2:])  # [N, H, W, 3]
    # Initialization creates the heads of all datasets; otherwise only the head
    # of the batch's dataset runs.
    names = [dataset] if counts[dataset] else []
    if self.is_initializing():
      names += [n for n, count in self.classes if count and n != dataset]

    if self.variant == 'vit':
      features = self._run_vit(image, grid)
      results = [getattr(self, f'classifier_{n}')(features) for n in names]
      logits, weight = results[0] if counts[dataset] else (None, None)
      return Outputs(logits, (), frame_attention=weight)

    latents, skips = [], []
    pixels = normalization.normalize(image, self.encoder['normalization'])
    for i in range(self.num_encoders):
      z, finer = self._encode(i, pixels, train)
      z = z.reshape(*grid, *z.shape[1:])
      latents.append(getattr(self, f'latent_{i}')(z, train=train))
      skips.append(finer)

    structures = {}
    for part in self._decoded():
      i = -1 if part == 'face' else 0
      structures[part] = self._decode(part, latents[i], skips[i], train)

    results = []
    if names:
      features = None
      if self.vit['name'] != 'none':
        features = batch.get('vit_features')
        if features is None:
          features = self._run_vit(image, grid)
        features = jax.lax.stop_gradient(features)
      sr_inputs, teacher = {}, {}
      if self.variant == 've_md_sr':
        sr_inputs = structures
        if not self._has_own_head():
          sr_inputs = {
              part: self._sr_input(part, structure, train)
              for part, structure in structures.items()
          }
        if train and self._uses_teacher_forcing():
          teacher = {
              part: self._sr_input(part, _annotated(part, s, batch), train)
              for part, s in structures.items()
              if f'{part}_annotated' in batch
          }
      modalities = self._modalities(batch, train)
      results = [
          self._classify(
              n, latents, features, sr_inputs, teacher, modalities, train
          )
          for n in names
      ]
    logits, weight, vit_latent, sources, teacher_sources = (
        results[0] if counts[dataset] else (None,) * 5
    )
    return Outputs(
        logits=logits,
        latents=tuple(latents),
        vit_latent=vit_latent,
        body=structures.get('body'),
        face=structures.get('face'),
        frame_attention=weight,
        sources=sources,
        teacher_sources=teacher_sources,
    )

  def vit_features(self, image: jax.Array) -> jax.Array:
    """Features of the ViT branch, which can be cached as `vit_features`.

    Args:
      image: [B, T, H, W, 3], as in a batch.

    Returns:
      [B, T, E].
    """
    return self._run_vit(image.reshape(-1, *image.shape[2:]), image.shape[:2])

  def _run_vit(self, image: jax.Array, grid: tuple[int, int]) -> jax.Array:
    if not self.is_initializing() and not self.has_variable('params', 'vit'):
      raise ValueError(
          "these weights have no ViT: expected batch['vit_features']"
      )
    pixels = normalization.normalize(image, self.vit['normalization'])
    pooled, _ = self.trunk(pixels)
    return pooled.reshape(*grid, -1)

  def _has_own_head(self) -> bool:
    return import_path.is_path(self.head.get('name', ''))

  def _decoded(self) -> tuple[str, ...]:
    """Parts with a decoder, in the order of concatenation in the head."""
    if self.variant == 've_sd':
      return ()
    return tuple(p for p in PARTS if p in self.parts)

  def _uses_st_gcn(self) -> bool:
    return (
        self.variant == 've_md_sr'
        and not self._has_own_head()
        and self.decoder == 'person_query'
        and self.head['sr_input'] != 'relations'
        and self.person_query['st_gcn'] != 'none'
    )

  def _uses_relations(self) -> bool:
    return (
        self.variant == 've_md_sr'
        and not self._has_own_head()
        and self.head['sr_input'] == 'relations'
    )

  def _uses_teacher_forcing(self) -> bool:
    return (
        self._uses_relations()
        and self.decoder == 'person_query'
        and self.head.get('teacher_forcing', False)
    )

  def _modality_names(self) -> tuple[str, ...]:
    audio = ('audio',) if self.fusion['audio'] != 'none' else ()
    return audio + (('text',) if self.fusion['text'] else ())

  def _encode(self, i: int, pixels: jax.Array, train: bool):
    """The latent grid of images, and the earlier stages' features."""
    encoder = getattr(self, f'encoder_{i}')
    skips = self.encoder.get('skips', 0)
    if not skips or not self._decoded():
      return encoder(pixels, train=train), ()
    return encoder(pixels, train=train, skips=skips)

  def _decode(
      self,
      part: str,
      latent: Latent,
      skips: tuple[jax.Array, ...],
      train: bool,
  ) -> Structure:
    z = latent.sample
    grid = z.shape[:2]
    z = z.reshape(-1, *z.shape[2:])
    decoder = getattr(self, f'{part}_decoder')
    decoded = decoder(z, *([skips] if skips else []), train=train)
    if self.decoder == 'heatmap':
      decoded = Structure(decoded)
    elif isinstance(decoded, tuple):
      decoded = Structure(None, *decoded, features=z)
    maps = decoded.heatmap_logits
    if maps is not None:
      maps = maps.reshape(maps.shape[0], *grid, *maps.shape[2:])
    rest = jax.tree.map(
        lambda x: x.reshape(*grid, *x.shape[1:]),
        decoded.replace(heatmap_logits=None),
    )
    return rest.replace(heatmap_logits=maps)

  def _sr_input(
      self, part: str, structure: Structure, train: bool
  ) -> jax.Array:
    """The decoded structure as the emotion head reads it, [B, T, F]."""
    features = structure.features
    structure = scale_gradient(
        structure, self.head.get('structure_gradient', 1.0)
    ).replace(features=None)
    if part in self.head.get('relation_features', ('face',)):
      # Encoder features, like the latents: their gradient is not scaled.
      structure = structure.replace(features=features)
    if self.head['sr_input'] == 'relations':
      return self._relations(part, structure, train)
    if structure.heatmap_logits is not None:
      x = nn.sigmoid(structure.heatmap_logits[-1]).sum(-1)
    else:
      x = structure.limbs
      if structure.presence_logits is not None:
        # Suppresses queries that do not represent a person.
        x = x * nn.sigmoid(structure.presence_logits)[..., None, None]
      if self._uses_st_gcn():
        x = getattr(self, f'{part}_st_gcn')(
            x, nn.sigmoid(structure.adjacency_logits), train=train
        )
    return x.reshape(*x.shape[:2], -1)

  def _relations(
      self, part: str, structure: Structure, train: bool
  ) -> jax.Array:
    """What lies between the people of each frame, [B, T, F]."""
    module = getattr(self, f'{part}_relations')
    if structure.heatmap_logits is not None:
      maps = nn.sigmoid(structure.heatmap_logits[-1])
      grid = maps.shape[:2]
      x = module(maps.reshape(-1, *maps.shape[2:]), train=train)
    else:
      grid = structure.limbs.shape[:2]
      x = module(*(
          None if x is None else x.reshape(-1, *x.shape[2:])
          for x in (
              structure.limbs, structure.presence_logits, structure.features
          )
      ), train=train)  # fmt: skip
    return x.reshape(*grid, -1)

  def _modalities(
      self, batch: Mapping[str, jax.Array], train: bool
  ) -> fusion.Modalities:
    """Audio and text tokens of the batch; inputs of masked samples are 0."""
    modalities = {}
    for name, key in (('audio', 'audio'), ('text', 'text_embedding')):
      if name not in self._modality_names():
        continue
      if key not in batch:
        if self.is_initializing():
          raise ValueError(
              f'config.model.fusion uses {name}, but the batch has no {key!r}'
          )
        continue
      tokens = batch[key]
      mask = batch.get(f'{name}_mask')
      if mask is None:
        mask = jnp.ones(tokens.shape[0], bool)
      tokens = jnp.where(mask[:, None, None], tokens, 0)
      if name == 'audio' and self.fusion['audio'] == 'mel':
        tokens = self.audio_encoder(tokens, train=train)
      modalities[name] = (tokens, mask)
    rate = self.fusion['modality_dropout']
    if train and rate and modalities:
      modalities = fusion.drop(modalities, rate, self.make_rng('modality'))
    return modalities

  def _classify(
      self, name, latents, features, sr_inputs, teacher, modalities, train
  ):
    """Logits, frame weights, ViT latent and sources of a dataset's head."""
    joined = [latent.sample for latent in latents]
    vit_latent = None
    if features is not None:
      vit_latent = getattr(self, f'vit_projection_{name}')(
          features, joined[0].shape[2:]
      )
      joined.append(vit_latent)
    elif len(joined) == 1:
      # As in the reference, the latent is duplicated to replace the ViT's.
      joined *= 2
    options = {'teacher': teacher} if teacher else {}
    logits, weight, *sources = getattr(self, f'head_{name}')(
        tuple(joined), sr_inputs, modalities, train=train, **options
    )
    sources += [None] * (2 - len(sources))
    return logits, weight, vit_latent, *sources

  def _check(self):
    for key, value, allowed in (
        ('variant', self.variant, ('ve_sd', 've_md', 've_md_sr', 'vit')),
        *(
            ('decoder', name, ('heatmap', 'person_query'))
            for name in (self.decoder,)
            if not import_path.is_path(name)
        ),
        *(
            ('head.name', name, ('frame_transformer',))
            for name in (self.head.get('name', 'frame_transformer'),)
            if not import_path.is_path(name)
        ),
        ('norm', self.norm, ('batch', 'group')),
        ('num_encoders', self.num_encoders, (1, 2)),
        ('fusion.audio', self.fusion['audio'], ('none', 'embedding', 'mel')),
        *(('parts', part, PARTS) for part in self.parts),
    ):
      if value not in allowed:
        raise ValueError(
            f'config.model.{key} is {value!r}, expected one of {allowed}'
        )


def _annotated(
    part: str, structure: Structure, batch: Mapping[str, jax.Array]
) -> Structure:
  """The structure with annotated people in place of the decoded ones."""
  frames = batch[f'{part}_annotated'].astype(bool)
  limbs, presence_logits = matching.replace(
      structure.limbs,
      structure.presence_logits,
      matching.people_of(batch, part, frames),
      frames,
  )
  return structure.replace(limbs=limbs, presence_logits=presence_logits)


def scale_gradient(tree, scale: float):
  """The same values; what flows back through them is multiplied.

  Args:
    tree: of arrays.
    scale: 1 lets the gradient through, 0 stops it.

  Returns:
    The tree.
  """
  if scale == 1.0:
    return tree
  return jax.tree.map(
      lambda x: scale * x + (1 - scale) * jax.lax.stop_gradient(x), tree
  )


class _GridProjection(nn.Module):
  """A linear map of each frame's vector to a grid of latent vectors."""

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
    """[B, T, E] -> [B, T, h, w, D] float32."""
    kernel = self.param(
        'kernel', nn.initializers.lecun_normal(), (x.shape[-1], np.prod(grid))
    )
    bias = self.param('bias', nn.initializers.zeros, (np.prod(grid),))
    dtype = jnp.dtype(self.dtype)
    x = x.astype(dtype) @ kernel.astype(dtype)
    x = axes.constrain(x, 'rows', None, 'wide')
    x = x.astype(jnp.float32) + bias[None, None]
    x = axes.constrain(x, 'batch', None, None)
    return x.reshape(*x.shape[:2], *grid)
