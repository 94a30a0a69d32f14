"""Conversion of PyTorch weights: the authors' VE-MD, torchvision ResNets, ViTs.

A table of `layout.Row`s maps tensors to leaves of the model. If a file does not
match, the error lists all missing, unexpected and misshapen tensors.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from vemd_jax.models import encoders, vit
from vemd_jax.models.torch import layout
from vemd_jax.models.torch import read as read_lib
from vemd_jax.models.torch.layout import Row, nested
from vemd_jax.models.torch.vemd_layout import PROJECTIONS, vemd_rows
from vemd_jax.models.vemd import PARTS, VEMD

StateDict = Mapping[str, np.ndarray]
Variables = dict[str, dict]


def import_vemd(
    state_dict: StateDict,
    model_config: Mapping[str, Any],
    image_size: int = 224,
) -> Variables:
  """Converts the authors' VE-MD weights, with either decoder.

  Leaves that the reference does not have (log-variance of the latent, presence
  logits, fusion) are missing in the result. If the file has no frozen ViT (the
  variant that reads stored ViT features), the result has none either, and the
  model needs `vit_features` in its batches.

  Args:
    state_dict: name -> array; a prefix `module.` is removed.
    model_config: the fields of `VEMD`, such as `config.model`. Without
      `classes`, the heads of the file are used.
    image_size: side of the images in pixels, which determines the widths of the
      heads.

  Returns:
    {'params': …, 'batch_stats': …} of float32 arrays.

  Raises:
    ValueError: lists all tensors that are missing, unexpected or misshapen.
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
  """Converts a torchvision ResNet to the trunk of every encoder.

  Args:
    state_dict: state dict of resnet50, resnet101 or resnet152; the classifier
      is ignored.
    model_config: the fields of `VEMD`; its encoder must be that ResNet.

  Returns:
    {'params': {'encoder_0': {'trunk': …}, …}, 'batch_stats': …}.

  Raises:
    ValueError: for another encoder; lists all tensors that do not match.
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
  """Converts a ViT to the frozen branch, or to the trunk of ViT encoders.

  Supports the names of timm, of Hugging Face's CLIP (`vision_model.…`) and
  ViTModel, and of the authors' stage 1 (`vit.…`). CLIP weights must be those of
  a model with exact GELU, such as LAION's; OpenAI's use QuickGELU.

  Args:
    state_dict: name -> array.
    model_config: the fields of `VEMD`. The weights are for the frozen branch if
      `vit.name` is not 'none', else for the encoders.
    image_size: side of the images in pixels; must result in as many patches as
      the weights have positions.

  Returns:
    {'params': {'vit': …} or {'encoder_0': {'trunk': …}, …}, 'batch_stats': {}}.

  Raises:
    ValueError: if the config has no ViT; lists all tensors that do not match.
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
        f'the weights are of a ViT, but config.model has neither a frozen ViT '
        f'(vit.name is {config["vit"]["name"]!r}) nor a ViT encoder '
        f'(encoder.name is {config["encoder"]["name"]!r})'
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
  # The text encoder of CLIP, classifiers, and the pooling of stage 1.
  unused = [
      layout.IGNORED.pattern, rf'{re.escape(prefix)}(head|pooler)\..*',
      r'text_model\..*', r'logit_scale', r'(visual|text)_projection\..*',
      r'classifier\..*', r'(vit_model\.)?(att_pooling|linear_out)\..*',
  ]  # fmt: skip
  return _import_trunk(
      nested(rows, prefix), paths, state_dict, config, image_size, unused
  )


def _import_trunk(rows, paths, state_dict, config, image_size, unused):
  """Converts one trunk to each of the given module paths."""
  config['classes'] = (('any', 1),)
  shapes, _ = model_shapes(config, image_size, None)
  rows = [row for path in paths for row in nested(rows, path=path)]
  return convert(rows, state_dict, shapes, unused)


def _encoder_paths(config) -> list[tuple[str, str]]:
  return [(f'encoder_{i}', 'trunk') for i in range(config['num_encoders'])]


def _classes(state_dict, config) -> tuple[tuple[str, int], ...]:
  """(dataset, number of classes) of each head in a file; 0 if it is unused."""
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
  """Patterns of tensors that do not affect the reference's outputs."""
  names = [
      layout.IGNORED.pattern, r'vit_model\.(att_pooling|linear_out)\..*',
  ]  # fmt: skip
  # Projections of ViT features if the model has no ViT, or for a dataset
  # without labels, for which only the regularizer uses them.
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
  # Projections of parts that are not decoded.
  for part in PARTS:
    if config['decoder'] == 'person_query' and part not in config['parts']:
      names.append(rf'decoder_emotions\.[^.]+\.{PROJECTIONS[part]}\..*')
  # Only the emotion head uses the output of the ST-GCN.
  if config['variant'] != 've_md_sr':
    names.append(r'stgcn_(person|face)\..*')
  return names


# Shapes and conversion.


def model_shapes(
    config: Mapping[str, Any], image_size: int, feature_dim: int | None
) -> tuple[dict[str, tuple[int, ...]], tuple[int, int, int]]:
  """Shapes of the model's leaves by 'collection/path', and its latent grid.

  Args:
    config: the fields of `VEMD`.
    image_size: side of the images in pixels.
    feature_dim: width of precomputed ViT features; None if the ViT is run.

  Returns:
    (shapes, (h, w, D)).
  """
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
  """Converts a state dict by a table.

  Args:
    rows: the table.
    state_dict: name -> array.
    shapes: shapes of the model's leaves by 'collection/path'.
    unused: patterns of tensor names that may be ignored.

  Returns:
    {'params': …, 'batch_stats': …}.

  Raises:
    ValueError: lists all tensors that are missing, unexpected or misshapen.
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
        'the weights do not match the model of the config; '
        + '; '.join(problems)
    )
  if left:
    logging.info('Unused tensors: %s', ', '.join(left))
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return {'params': {}, 'batch_stats': {}, **variables}


def _plain_names(state_dict: StateDict) -> dict[str, np.ndarray]:
  """Removes the `module.` that torch's DataParallel inserts into names."""
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
  """Reads a file and converts it; its tensor names determine the kind.

  Args:
    path: see `read`.
    model_config: the fields of `VEMD`.
    image_size: side of the images in pixels.

  Returns:
    {'params': …, 'batch_stats': …}.

  Raises:
    ValueError: if it cannot be converted; names the file and the problem.
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
