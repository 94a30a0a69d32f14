"""PyTorch weights to ours: the authors' VE-MD, torchvision ResNets, ViTs.

One table (`layout.Row`s) says which tensor becomes which leaf and how; a
file that does not fit is refused with all its missing, unexpected and misshapen
names at once.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from vemd_jax.models import emotion_head, encoders, vit
from vemd_jax.models.torch import layout
from vemd_jax.models.torch import read as read_lib
from vemd_jax.models.torch.layout import Row, linear_rows, nested
from vemd_jax.models.vemd import PARTS, VEMD

StateDict = Mapping[str, np.ndarray]
Variables = dict[str, dict]

_DECODERS = {'body': 'decoder_skeleton', 'face': 'decoder_landmark'}
_ST_GCNS = {'body': 'stgcn_person', 'face': 'stgcn_face'}
_PROJECTIONS = {'body': 'kp_pose_proj', 'face': 'kp_face_proj'}


def import_vemd(
    state_dict: StateDict,
    model_config: Mapping[str, Any],
    image_size: int = 224,
) -> Variables:
  """The authors' VE-MD weights, of either variant, as ours.

  Leaves that the reference does not have (log-variance of the latent, presence
  logits, fusion) are not in the result. Where the file has no frozen ViT (the
  variant that reads stored ViT features), neither has the result; the model
  then needs `vit_features` in its batches.

  Args:
    state_dict: name -> array; a prefix `module.` is dropped.
    model_config: the fields of `VEMD`, such as `config.model`. `classes` may be
      left out: the heads are then those of the file.
    image_size: side of the images in pixels; the widths of heads follow from
      it.

  Returns:
    {'params': …, 'batch_stats': …} of float32 arrays.

  Raises:
    ValueError: names all tensors that are missing, unexpected or misshapen.
  """
  state_dict = _plain_names(state_dict)
  config = _as_dict(model_config)
  if config['decoder'] not in ('heatmap', 'person_query'):
    raise ValueError(
        f'config.model.decoder is {config["decoder"]!r}; the reference has '
        'heatmap and person_query'
    )
  config.setdefault('classes', _classes(state_dict, config))
  emotions = [name for name, count in config['classes'] if count]
  has_trunk = any(name.startswith('vit_model.') for name in state_dict)
  feature_dim = vit.VITS.get(config['vit']['name'], {}).get('dim', 1)
  for name in emotions:
    kernel = state_dict.get(f'vit_heads.{name}.weight')
    if kernel is not None and kernel.ndim == 2 and not has_trunk:
      feature_dim = kernel.shape[1]

  shapes, grid = model_shapes(
      config, image_size, None if has_trunk else feature_dim
  )
  rows = vemd_rows(config, emotions, grid, has_trunk)
  return convert(rows, state_dict, shapes, _never_run(config, state_dict))


def import_resnet(
    state_dict: StateDict, model_config: Mapping[str, Any]
) -> Variables:
  """A torchvision ResNet as the trunk of every encoder.

  Args:
    state_dict: of resnet50, resnet101 or resnet152; the classifier is not used.
    model_config: the fields of `VEMD`; its encoder must be that ResNet.

  Returns:
    {'params': {'encoder_0': {'trunk': …}, …}, 'batch_stats': …}.

  Raises:
    ValueError: for another encoder; names all tensors that do not fit.
  """
  config = _as_dict(model_config)
  name = config['encoder']['name']
  if name not in encoders.RESNETS:
    raise ValueError(
        f'config.model.encoder.name is {name!r}, expected one of '
        f'{", ".join(encoders.RESNETS)} for the weights of a ResNet'
    )
  rows = layout.resnet_rows(encoders.RESNETS[name])
  return _import_trunk(
      rows,
      _encoder_paths(config),
      _plain_names(state_dict),
      config,
      224,
      [layout.IGNORED.pattern, r'fc\..*'],
  )


def import_vit(
    state_dict: StateDict,
    model_config: Mapping[str, Any],
    image_size: int = 224,
) -> Variables:
  """A ViT as the frozen branch, or as the trunk of ViT encoders.

  Takes the names of timm, of Hugging Face's CLIP (`vision_model.…`) and of its
  ViTModel, and the authors' stage 1 (`vit.…`). CLIP weights must be of a model
  with exact GELU, as LAION's are; OpenAI's have another.

  Args:
    state_dict: name -> array.
    model_config: the fields of `VEMD`. The weights go to the frozen branch if
      `vit.name` is not 'none', else to the encoders.
    image_size: side of the images in pixels; must give as many patches as the
      weights have positions.

  Returns:
    {'params': {'vit': …} or {'encoder_0': {'trunk': …}, …}, 'batch_stats': {}}.

  Raises:
    ValueError: if the config has no ViT; names all tensors that do not fit.
  """
  config = _as_dict(model_config)
  state_dict = _plain_names(state_dict)
  if config['vit']['name'] != 'none':
    trunk, paths = vit.VITS[config['vit']['name']], [('vit',)]
  elif config['encoder']['name'] in encoders.VIT_ENCODERS:
    trunk, _ = encoders.VIT_ENCODERS[config['encoder']['name']]
    paths = _encoder_paths(config)
  else:
    raise ValueError(
        f'config.model has neither a frozen ViT (vit.name is '
        f'{config["vit"]["name"]!r}) nor a ViT encoder (encoder.name is '
        f'{config["encoder"]["name"]!r}) to put the weights of a ViT in'
    )
  depth, pre_norm = trunk['depth'], trunk.get('pre_norm', True)
  prefixes = ('vision_model.', 'vit_model.vit.', 'vit.', '')
  prefix = next(
      (p for p in prefixes if any(k.startswith(p) for k in state_dict)), ''
  )
  if f'{prefix}cls_token' in state_dict:
    rows = layout.timm_vit_rows(depth, pre_norm)
  elif pre_norm:
    rows = layout.clip_vit_rows(depth)
  else:
    rows = layout.hugging_face_vit_rows(depth)
  # The other half of a CLIP, classifiers, and the pooling of stage 1.
  unused = [
      layout.IGNORED.pattern, rf'{re.escape(prefix)}(head|pooler)\..*',
      r'text_model\..*', r'logit_scale', r'(visual|text)_projection\..*',
      r'classifier\..*', r'(vit_model\.)?(att_pooling|linear_out)\..*',
  ]  # fmt: skip
  return _import_trunk(
      nested(rows, prefix), paths, state_dict, config, image_size, unused
  )


def _import_trunk(rows, paths, state_dict, config, image_size, unused):
  """One trunk, to each of the places that the config has for it."""
  config['classes'] = (('any', 1),)
  shapes, _ = model_shapes(config, image_size, None)
  rows = [row for path in paths for row in nested(rows, path=path)]
  return convert(rows, state_dict, shapes, unused)


def _encoder_paths(config) -> list[tuple[str, str]]:
  return [(f'encoder_{i}', 'trunk') for i in range(config['num_encoders'])]


# The table of the whole model.


def vemd_rows(
    config: Mapping[str, Any],
    emotions: Iterable[str],
    grid: tuple[int, int, int],
    has_trunk: bool,
) -> list[Row]:
  """Every leaf of a VE-MD that the reference has, too.

  Args:
    config: the fields of `VEMD`.
    emotions: datasets with a head.
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
    # The latents one after the other, each channels first.
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
      # Distances -(n - 1) .. n - 1, of which we keep the shorter ones.
      center = len(w) // 2
      return w[center - frames + 1 : center + frames]

    rows.append(
        Row('pos_enc.rel_pos.weight', 'params', ('positions', 'table'), middle)
    )
  if config['variant'] == 've_md_sr' and config['head']['sr_input'] != 'raw':
    # Both, one of them idle, in the reference's heatmap heads.
    both = config['decoder'] == 'heatmap'
    for part in PARTS if both else _decoded(config):
      torch = _PROJECTIONS[part]
      rows += layout.layer_norm_rows(f'{torch}.0', f'{part}_norm')
      rows += linear_rows(f'{torch}.1', f'{part}_projection')
  return rows


def _classes(state_dict, config) -> tuple[tuple[str, int], ...]:
  """(dataset, number of classes) of the heads of a file, 0 for unused ones."""
  counts = {}
  for name, tensor in state_dict.items():
    match = re.fullmatch(
        r'decoder_emotions\.([^.]+)\.classifier\.3\.bias', name
    )
    if match:
      has_vit = f'vit_heads.{match[1]}.weight' in state_dict
      used = has_vit or config['vit']['name'] == 'none'
      counts[match[1]] = len(tensor) if used else 0
  return tuple(counts.items())


def _never_run(config, state_dict) -> list[str]:
  """Modules of the reference that exist without changing its outputs."""
  names = [
      layout.IGNORED.pattern, r'vit_model\.(att_pooling|linear_out)\..*',
  ]  # fmt: skip
  # Linears of ViT features that the model does not have, or of a dataset
  # without labels, where they enter the regulariser only.
  if config['vit']['name'] == 'none':
    names.append(r'vit_heads\..*')
  heads = {n.split('.')[1] for n in state_dict if n.startswith('decoder_em')}
  linears = {n.split('.')[1] for n in state_dict if n.startswith('vit_heads')}
  counts = dict(config['classes'])
  for name in sorted(heads | linears):
    if counts.get(name) == 0 or name not in heads | counts.keys():
      names.append(
          rf'(vit_heads|decoder_emotions)\.{re.escape(name)}\..*'
      )
  # A projection of the part that is not decoded.
  for part in PARTS:
    if config['decoder'] == 'person_query' and part not in config['parts']:
      names.append(rf'decoder_emotions\.[^.]+\.{_PROJECTIONS[part]}\..*')
  # It feeds the emotion head only.
  if config['variant'] != 've_md_sr':
    names.append(r'stgcn_(person|face)\..*')
  return names


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
  """First axis from (D, h, w) order to (h, w, D) order."""
  h, w, d = grid
  x = x.reshape(d, h, w, *x.shape[1:])
  return np.moveaxis(x, 0, 2).reshape(d * h * w, *x.shape[3:])


# Shapes and conversion.


def model_shapes(
    config: Mapping[str, Any], image_size: int, feature_dim: int | None
) -> tuple[dict[str, tuple[int, ...]], tuple[int, int, int]]:
  """Shapes of the model's leaves by 'collection/path', and its latent grid."""
  config = {**config, 'classes': config['classes'] or (('none', 0),)}
  model = VEMD(**config)
  batch = {
      'image': jnp.zeros((1, 1, image_size, image_size, 3), jnp.uint8),
      'audio': jnp.zeros((1, 8, 8)),
      'text_embedding': jnp.zeros((1, 1, 8)),
  }
  if feature_dim:
    batch['vit_features'] = jnp.zeros((1, 1, feature_dim))
  dataset = max(config['classes'], key=lambda pair: pair[1])[0]
  outputs, variables = jax.eval_shape(
      lambda key: model.init_with_output(
          key, batch, dataset=dataset, train=False
      ),
      jax.random.key(0),
  )
  leaves = traverse_util.flatten_dict(dict(variables), sep='/')
  grid = outputs.latents[0].mean.shape[2:] if outputs.latents else (0, 0, 0)
  return {name: leaf.shape for name, leaf in leaves.items()}, grid


def convert(
    rows: list[Row],
    state_dict: StateDict,
    shapes: Mapping[str, tuple[int, ...]],
    unused: Iterable[str],
) -> Variables:
  """Fills a table; collects everything that does not fit, then raises.

  Args:
    rows: the table.
    state_dict: name -> array.
    shapes: shapes of the model's leaves by 'collection/path'.
    unused: patterns of names that may be left over.

  Returns:
    {'params': …, 'batch_stats': …}.

  Raises:
    ValueError: names all tensors that are missing, unexpected or misshapen.
  """
  names = {row.torch for row in rows}
  ignored = re.compile('|'.join(f'(?:{u})' for u in unused))
  missing = sorted(names - set(state_dict))
  left = sorted(set(state_dict) - names)
  unexpected = [name for name in left if not ignored.fullmatch(name)]
  misshapen = []
  flat = {}
  for row in rows:
    if row.torch not in state_dict:
      continue
    tensor = np.asarray(state_dict[row.torch])
    key = '/'.join((row.collection, *row.path))
    try:
      value = np.ascontiguousarray(row.transform(tensor), np.float32)
    except (ValueError, IndexError):
      value = None
    shape = shapes.get(key)
    if value is None or value.shape != shape:
      place = f'{key} {list(shape)}' if shape else f'{key}, which is not there'
      misshapen.append(f'{row.torch} {list(tensor.shape)} for {place}')
    flat[key] = value
  problems = [
      f'{len(names)} {what}: {", ".join(names)}'
      for what, names in (
          ('missing', missing),
          ('unexpected', unexpected),
          ('misshapen', misshapen),
      )
      if names
  ]
  if problems:
    raise ValueError(
        'the weights do not fit the model of the config; ' + '; '.join(problems)
    )
  if left:
    logging.info('Not used of the weights: %s', ', '.join(left))
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return {'params': {}, 'batch_stats': {}, **variables}


def _plain_names(state_dict: StateDict) -> dict[str, np.ndarray]:
  """Drops the `module.` that torch's DataParallel puts into names."""
  return {
      re.sub(r'(^|\.)module\.', r'\1', name): tensor
      for name, tensor in state_dict.items()
  }


def _as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """A plain, mutable copy of a (Config)dict."""
  return dict(config.to_dict() if hasattr(config, 'to_dict') else config)


def convert_file(
    path: str | pathlib.Path, model_config: Mapping[str, Any], image_size: int
) -> Variables:
  """Reads a file and converts it by what its names are.

  Args:
    path: see `read`.
    model_config: the fields of `VEMD`.
    image_size: side of the images in pixels.

  Returns:
    {'params': …, 'batch_stats': …}.

  Raises:
    ValueError: names the file and what is wrong with it.
  """
  state_dict = _plain_names(read_lib.read(path))
  try:
    if any(name.startswith('encoders.0.') for name in state_dict):
      return import_vemd(state_dict, model_config, image_size)
    if 'layer1.0.conv1.weight' in state_dict:
      return import_resnet(state_dict, model_config)
    return import_vit(state_dict, model_config, image_size)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
