"""The table of the authors' whole VE-MD, composed of the tables of its blocks.

It has a row for every leaf of `VEMD` that the reference also has.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vemd_jax.models import emotion_head, encoders, vit
from vemd_jax.models.torch import layout
from vemd_jax.models.torch.layout import Row, linear_rows, nested
from vemd_jax.models.vemd import PARTS

# Names of the reference's modules.
_DECODERS = {'body': 'decoder_skeleton', 'face': 'decoder_landmark'}
_ST_GCNS = {'body': 'stgcn_person', 'face': 'stgcn_face'}
PROJECTIONS = {'body': 'kp_pose_proj', 'face': 'kp_face_proj'}


def vemd_rows(
    config: Mapping[str, Any],
    emotions: Iterable[str],
    grid: tuple[int, int, int],
    has_trunk: bool,
) -> list[Row]:
  """The table of a whole VE-MD.

  Args:
    config: the fields of `VEMD`.
    emotions: names of the datasets with an emotion head.
    grid: (h, w, D) of the latent.
    has_trunk: whether the frozen ViT is in the file.

  Returns:
    The table.
  """
  rows = []
  encoder = config['encoder']
  for i in range(config['num_encoders']):
    if encoder['name'] == 'residual':
      block = layout.residual_encoder_rows(encoder['blocks'])
    elif encoder['name'] in encoders.RESNETS:
      depths = encoders.RESNETS[encoder['name']]
      block = layout.resnet_encoder_rows(depths)
    else:
      trunk, _ = encoders.VIT_ENCODERS[encoder['name']]
      block = layout.vit_encoder_rows(encoder['name'], trunk['depth'])
    rows += nested(block, f'encoders.{i}.', (f'encoder_{i}',))

  for part in _decoded(config):
    if config['decoder'] == 'heatmap':
      fields = config['heatmap']
      block = layout.heatmap_decoder_rows(
          fields['stages'], fields['stage_convs']
      )
    else:
      fields = config['person_query']
      block = layout.person_query_decoder_rows(
          fields['layers'], fields['positions']
      )
    rows += nested(block, f'{_DECODERS[part]}.', (f'{part}_decoder',))
    if _runs_st_gcn(config):
      block = layout.st_gcn_rows()
      rows += nested(block, f'{_ST_GCNS[part]}.', (f'{part}_st_gcn',))

  has_vit = config['vit']['name'] != 'none'
  if has_vit and has_trunk:
    block = layout.timm_vit_rows(vit.VITS[config['vit']['name']]['depth'])
    rows += nested(block, 'vit_model.vit.', ('vit',))
  for name in emotions:
    block = head_rows(config, grid)
    rows += nested(block, f'decoder_emotions.{name}.', (f'head_{name}',))
    if has_vit:
      path = (f'vit_projection_{name}',)
      rows += [
          Row(f'vit_heads.{name}.{torch}', 'params', (*path, leaf), transform)
          for torch, leaf, transform in (
              ('weight', 'kernel', lambda w: _to_grid(w, grid).T),
              ('bias', 'bias', lambda b: _to_grid(b, grid)),
          )
      ]
  return rows


def head_rows(
    config: Mapping[str, Any], grid: tuple[int, int, int]
) -> list[Row]:
  """Classification, Classification_proj -> emotion_head.EmotionHead.

  Args:
    config: the fields of `VEMD`.
    grid: (h, w, D) of the latent.

  Returns:
    The table.
  """

  def reduction(w):
    # The latents are concatenated, each in channels-first order.
    count = w.shape[1] // math.prod(grid)
    joined = [_to_grid(z, grid) for z in np.split(w.T, count)]
    return np.concatenate(joined)

  rows = [
      Row(
          'linear_reduction.weight', 'params', ('reduction', 'kernel'),
          reduction,
      ),
      Row('linear_reduction.bias', 'params', ('reduction', 'bias')),
      *nested(
          layout.encoder_layer_rows(),
          'transformer.layers.0.',
          ('transformer',),
      ),
      *nested(
          layout.attention_pooling_rows(), 'att_pool.', ('pooling',)
      ),
      *linear_rows('classifier.0', 'hidden'),
      *linear_rows('classifier.3', 'logits'),
  ]  # fmt: skip
  frames = emotion_head.MAX_FRAMES
  if config['head']['positions'] == 'learnable':
    rows.append(
        Row(
            'pos_enc.pos_embed', 'params', ('positions', 'table'),
            lambda w: w[:frames],
        )
    )  # fmt: skip
  elif config['head']['positions'] == 'relative':

    def middle(w):
      # Keeps the offsets up to `frames - 1` of -(n - 1) .. n - 1.
      center = len(w) // 2
      return w[center - frames + 1 : center + frames]

    rows.append(
        Row('pos_enc.rel_pos.weight', 'params', ('positions', 'table'), middle)
    )
  if config['variant'] == 've_md_sr' and config['head']['sr_input'] != 'raw':
    # The reference's heatmap heads have both, even if one is unused.
    both = config['decoder'] == 'heatmap'
    for part in PARTS if both else _decoded(config):
      torch = PROJECTIONS[part]
      rows += layout.layer_norm_rows(f'{torch}.0', f'{part}_norm')
      rows += linear_rows(f'{torch}.1', f'{part}_projection')
  return rows


def _decoded(config) -> tuple[str, ...]:
  if config['variant'] == 've_sd':
    return ()
  return tuple(p for p in PARTS if p in config['parts'])


def _runs_st_gcn(config) -> bool:
  return (
      config['variant'] == 've_md_sr'
      and config['decoder'] == 'person_query'
      and config['person_query']['st_gcn'] != 'none'
  )


def _to_grid(x: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
  """Permutes the first axis from (D, h, w) order to (h, w, D) order."""
  h, w, d = grid
  x = x.reshape(d, h, w, *x.shape[1:])
  return np.moveaxis(x, 0, 2).reshape(d * h * w, *x.shape[3:])
