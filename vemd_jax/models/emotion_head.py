"""Emotion of a clip from latents and decoded structure (arXiv 2604.02397, 3.4).

Per frame: a linear map of the latents, concatenated with the structure, plus
position encoding; then a post-norm transformer layer over the frames, late
fusion, attention pooling over frames, and an MLP.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models import axes, fusion, layers, transformer

# Maximum number of frames of the learned position tables.
MAX_FRAMES = 500


class EmotionHead(nn.Module):
  """The emotion head of one dataset.

  Attributes:
    num_classes: C.
    positions: 'sinusoidal', 'learnable', 'relative' or 'none', over frames.
    mlp_dim: feed-forward width of the transformer layer.
    width: hidden width of the classifier.
    dropout: dropout rate of the transformer layer.
    classifier_dropout: dropout rate of the classifier.
    latent_input: 'flat' flattens the grid, as in the paper; 'pooled' uses mean
      and maximum over positions, which has far fewer parameters, discards
      positions, and learns faster from a few thousand images.
    sr_input: 'raw'; 'projected' (LayerNorm, Linear, ReLU for each part); or
      'relations': `structure` holds relation vectors, whose linear map is added
      to the logits instead of joining them with the latents.
    proj_dim: channels of a projected part.
    idle: parts whose projection has parameters but is not used; the reference's
      projected heatmap head always has both projections.
    attend: 'frames', or 'batch', a bug of the reference: attention mixes the
      samples of a batch. Its plain heatmap head needs it for parity.
    modalities: names of the modalities that are fused with the frames, in
      order.
    fusion_method: see `Fusion`.
    fusion_dim: see `Fusion`.
    dtype: dtype of the computation.
  """

  num_classes: int
  positions: str = 'sinusoidal'
  mlp_dim: int = 2048
  width: int = 512
  dropout: float = 0.1
  classifier_dropout: float = 0.1
  latent_input: str = 'flat'
  sr_input: str = 'raw'
  proj_dim: int = 512
  idle: tuple[str, ...] = ()
  attend: str = 'frames'
  modalities: tuple[str, ...] = ()
  fusion_method: str = 'concat'
  fusion_dim: int = 256
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
      self,
      latents: tuple[jax.Array, ...],
      structure: Mapping[str, jax.Array],
      modalities: fusion.Modalities,
      *,
      train: bool,
      teacher: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, ...]:
    """Classifies clips.

    Args:
      latents: each [B, T, h, w, D], concatenated in this order.
      structure: part -> [B, T, F], concatenated in this order; may be empty.
      modalities: see `Fusion`.
      train: whether dropout is active.
      teacher: part -> [B, T, F], relations of the annotated people, for
        sr_input='relations'.

    Returns:
      Logits [B, C] and the weight of each frame [B, T], float32. With
      sr_input='relations' also their summands [B, 1 + parts, C]: those of the
      latents, and of the relations of each part; then, with `teacher`, its
      parts' summands, part -> [B, C].

    Raises:
      ValueError: for an unknown option.
    """
    for key, allowed in (
        ('latent_input', ('flat', 'pooled')),
        ('sr_input', ('raw', 'projected', 'relations')),
        ('attend', ('frames', 'batch')),
    ):
      if getattr(self, key) not in allowed:
        raise ValueError(
            f'head.{key} is {getattr(self, key)!r}, expected one of {allowed}'
        )
    dim = latents[0].shape[-1]
    x = jnp.concatenate(
        [self._read(z.astype(self.dtype)) for z in latents], -1
    )
    # Split like the rows of the matrix: the vectors are shorter than it is.
    x = axes.constrain(x, 'rows', None, 'wide')
    x = nn.Dense(dim, dtype=self.dtype, name='reduction')(x)
    joined = [axes.constrain(x, 'batch', None, None)]
    relations = {}
    if self.sr_input == 'relations':
      relations, structure = structure, {}
    for part, values in structure.items():
      values = values.astype(self.dtype)
      if self.sr_input == 'projected':
        if self.is_initializing():
          for other in self.idle:
            self._project(other, values)
        values = self._project(part, values)
      joined.append(values)
    x = jnp.concatenate(joined, -1)  # [B, T, E]

    x = FramePositions(self.positions, self.dtype, name='positions')(x)
    layer = transformer.EncoderLayer(
        heads=1,
        mlp_dim=self.mlp_dim,
        dropout=self.dropout,
        dtype=self.dtype,
        name='transformer',
    )
    if self.attend == 'batch':
      x = layer(x.swapaxes(0, 1), train=train).swapaxes(0, 1)
    else:
      x = layer(x, train=train)

    if self.modalities:
      x = fusion.Fusion(
          self.modalities,
          self.fusion_method,
          self.fusion_dim,
          self.dtype,
          name='fusion',
      )(x, modalities)
    x, weight = transformer.AttentionPooling(self.dtype, name='pooling')(x)
    x = nn.relu(nn.Dense(self.width, dtype=self.dtype, name='hidden')(x))
    x = nn.Dropout(self.classifier_dropout)(x, deterministic=not train)
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='logits')(x)
    if not relations:
      return logits.astype(jnp.float32), weight
    dense = {
        part: nn.Dense(
            self.num_classes, dtype=self.dtype, name=f'{part}_relations'
        )
        for part in relations
    }

    def source(part, values):
      x = jnp.einsum('bt,btf->bf', weight, values.astype(jnp.float32))
      x = nn.Dropout(self.classifier_dropout)(x, deterministic=not train)
      return dense[part](x)

    sources = [logits, *(source(p, values) for p, values in relations.items())]
    sources = jnp.stack(sources, 1).astype(jnp.float32)
    results = sources.sum(1), weight, sources
    if not teacher:
      return results
    return *results, {
        part: source(part, values).astype(jnp.float32)
        for part, values in teacher.items()
    }

  def _read(self, z: jax.Array) -> jax.Array:
    """A latent grid as one vector per frame: [B, T, h, w, D] -> [B, T, F]."""
    if self.latent_input == 'flat':
      return z.reshape(*z.shape[:2], -1)
    return jnp.concatenate([z.mean((2, 3)), z.max((2, 3))], -1)

  def _project(self, part: str, x: jax.Array) -> jax.Array:
    """LayerNorm, Linear, ReLU."""
    x = layers.LayerNorm(dtype=self.dtype, name=f'{part}_norm')(x)
    x = axes.constrain(x, 'rows', None, 'wide')
    x = nn.Dense(self.proj_dim, dtype=self.dtype, name=f'{part}_projection')(x)
    return nn.relu(axes.constrain(x, 'batch', None, None))


class FrameClassifier(nn.Module):
  """Attention pooling and a linear classifier, for stage 1 of the ViT.

  Attributes:
    num_classes: C.
    dtype: dtype of the computation.
  """

  num_classes: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Classifies clips.

    Args:
      features: [B, T, E].

    Returns:
      Logits [B, C] and the weight of each frame [B, T], float32.
    """
    pooling = transformer.AttentionPooling(self.dtype, name='pooling')
    x, weight = pooling(features)
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='logits')(x)
    return logits.astype(jnp.float32), weight


class FramePositions(nn.Module):
  """Position encoding over frames.

  'relative' replaces its input instead of adding to it: frame s becomes the sum
  over frames t of x[t] * table[t - s], per channel, as in the reference.

  Attributes:
    kind: 'sinusoidal', 'learnable', 'relative' or 'none'.
    dtype: dtype of the computation.
  """

  kind: str
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Adds (or applies) the position encoding.

    Args:
      x: [B, T, E].

    Returns:
      [B, T, E].

    Raises:
      ValueError: for an unknown kind, or a clip longer than a learned table.
    """
    frames, dim = x.shape[1:]
    if self.kind == 'none':
      return x
    if self.kind == 'sinusoidal':
      table = transformer.sinusoidal_table(frames, dim)
      return x + jnp.asarray(table, self.dtype)[None]
    if self.kind not in ('learnable', 'relative'):
      raise ValueError(
          f'head.positions is {self.kind!r}, expected sinusoidal, learnable, '
          'relative or none'
      )
    if frames > MAX_FRAMES:
      raise ValueError(
          f'head.positions={self.kind!r} supports {MAX_FRAMES} frames, but the '
          f'clip has {frames}'
      )
    if self.kind == 'learnable':
      rows, init = MAX_FRAMES, nn.initializers.truncated_normal(0.02)
    else:
      # Larger initial values, since the table is multiplied with the input.
      rows, init = 2 * MAX_FRAMES - 1, nn.initializers.normal(1.0)
    table = self.param('table', init, (rows, dim)).astype(self.dtype)
    if self.kind == 'learnable':
      return x + table[:frames][None]
    steps = jnp.arange(frames)
    offset = steps[:, None] - steps[None, :] + MAX_FRAMES - 1  # [T, S]
    return jnp.einsum('bte,tse->bse', x, table[offset])
