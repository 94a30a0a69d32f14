"""Tables that map tensors of PyTorch blocks to our variables.

A table is a list of `Row`s, one for each leaf of our variables, with the name
of the torch tensor and the transform that converts it. Several rows may read
the same tensor (a joint query-key-value matrix is three leaves here). Tables
compose:

  rows = nested(res_down_rows(), 'res_blocks.0.', ('block_0',))

prefixes the torch names with 'res_blocks.0.' and our paths with ('block_0',),
so a model's table is the concatenation of its parts' tables. From a table:

  names = {row.torch for row in rows}           # required tensors
  variables = to_variables(rows, state_dict)    # {'params', 'batch_stats'}

Torch tensors without a counterpart here (batch counters, computed position
tables, unused heads) match `IGNORED`.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

# Buffers and parameters that do not affect the reference's output.
IGNORED = re.compile(
    r'(.*\.)?num_batches_tracked'
    r'|(.*\.)?(pos_encoder|pos_enc)\.pe'
    r'|(.*\.)?embeddings\.position_ids'
    r'|(.*\.)?vit_backbone\.(head\.(weight|bias)|pooler\..*)'
)


class Row(NamedTuple):
  """One leaf of our variables.

  Attributes:
    torch: name of the tensor in the state dict.
    collection: 'params' or 'batch_stats'.
    path: names of the modules, then of the leaf.
    transform: converts the torch layout to ours.
  """

  torch: str
  collection: str
  path: tuple[str, ...]
  transform: Callable[[np.ndarray], np.ndarray] = np.asarray


def nested(
    rows: list[Row], torch_prefix: str = '', path: tuple[str, ...] = ()
) -> list[Row]:
  """The table of a block inside a larger one, with prefixed names."""
  return [
      row._replace(torch=torch_prefix + row.torch, path=path + row.path)
      for row in rows
  ]


def to_variables(
    rows: list[Row], state_dict: Mapping[str, np.ndarray]
) -> dict[str, dict]:
  """Converts a state dict by a table, without checking shapes.

  Args:
    rows: the table.
    state_dict: torch name -> array.

  Returns:
    {'params': ..., 'batch_stats': ...}, nested dicts of arrays.

  Raises:
    KeyError: if tensors are missing; lists them all.
  """
  missing = sorted({r.torch for r in rows} - set(state_dict))
  if missing:
    raise KeyError(f'missing in the state dict: {", ".join(missing)}')
  variables = {'params': {}, 'batch_stats': {}}
  for row in rows:
    node = variables[row.collection]
    for name in row.path[:-1]:
      node = node.setdefault(name, {})
    node[row.path[-1]] = row.transform(np.asarray(state_dict[row.torch]))
  return variables


# Transforms.


def _linear(w):
  return w.T


def _conv(w):
  """[out, in, *kernel] -> [*kernel, in, out]."""
  return np.moveaxis(w, (1, 0), (-2, -1))


def _turned_conv(w):
  """Transposed convolution of stride 1 -> the equivalent convolution."""
  return np.flip(w, (2, 3)).transpose(2, 3, 0, 1)


def _conv_transpose(w):
  """[in, out, kh, kw] -> [in, kh, kw, out]."""
  return w.transpose(0, 2, 3, 1)


def _third(index: int, transpose: bool):
  """The query (0), key (1) or value (2) part of a joint projection."""

  def transform(w):
    part = np.split(w, 3)[index]
    return part.T if transpose else part

  return transform


# Single layers.


def linear_rows(torch: str, name: str, bias: bool = True) -> list[Row]:
  """torch.nn.Linear -> nn.Dense."""
  rows = [Row(f'{torch}.weight', 'params', (name, 'kernel'), _linear)]
  if bias:
    rows.append(Row(f'{torch}.bias', 'params', (name, 'bias')))
  return rows


def conv_rows(
    torch: str, name: str, bias: bool = True, transform=_conv
) -> list[Row]:
  """torch.nn.Conv1d, 2d, 3d -> nn.Conv."""
  rows = [Row(f'{torch}.weight', 'params', (name, 'kernel'), transform)]
  if bias:
    rows.append(Row(f'{torch}.bias', 'params', (name, 'bias')))
  return rows


def conv_transpose_rows(torch: str, name: str) -> list[Row]:
  """torch.nn.ConvTranspose2d of stride 2 -> ConvTranspose."""
  return conv_rows(torch, name, transform=_conv_transpose)


def layer_norm_rows(torch: str, name: str) -> list[Row]:
  """torch.nn.LayerNorm -> nn.LayerNorm."""
  return [
      Row(f'{torch}.weight', 'params', (name, 'scale')),
      Row(f'{torch}.bias', 'params', (name, 'bias')),
  ]


def batch_norm_rows(torch: str, name: str) -> list[Row]:
  """torch.nn.BatchNorm1d, 2d, 3d -> layers.BatchNorm."""
  return [
      *layer_norm_rows(torch, name),
      Row(f'{torch}.running_mean', 'batch_stats', (name, 'mean')),
      Row(f'{torch}.running_var', 'batch_stats', (name, 'var')),
  ]


def _joined_attention_rows(weight: str, bias: str, out: str) -> list[Row]:
  rows = []
  for i, name in enumerate(('query', 'key', 'value')):
    rows += [
        Row(weight, 'params', (name, 'kernel'), _third(i, True)),
        Row(bias, 'params', (name, 'bias'), _third(i, False)),
    ]
  return rows + linear_rows(out, 'out')


def attention_rows(torch: str, name: str) -> list[Row]:
  """torch.nn.MultiheadAttention -> transformer.Attention."""
  rows = _joined_attention_rows('in_proj_weight', 'in_proj_bias', 'out_proj')
  return nested(rows, f'{torch}.', (name,))


# Blocks; torch names are relative to the block.


def res_down_rows() -> list[Row]:
  """ResDown."""
  return [
      *conv_rows('conv1', 'conv1'),
      *batch_norm_rows('bn1', 'norm1'),
      *conv_rows('conv2', 'conv2'),
      *batch_norm_rows('bn2', 'norm2'),
      *conv_rows('conv3', 'skip'),
  ]


def res_up_rows() -> list[Row]:
  """ResUp."""
  return [
      *conv_rows('dconv1', 'conv1', transform=_turned_conv),
      *batch_norm_rows('bn1', 'norm1'),
      *conv_transpose_rows('dconv2', 'conv2'),
      *batch_norm_rows('bn2', 'norm2'),
      *conv_transpose_rows('dconv3', 'skip'),
  ]


def encoder_layer_rows() -> list[Row]:
  """torch.nn.TransformerEncoderLayer -> transformer.EncoderLayer."""
  return [
      *attention_rows('self_attn', 'self_attention'),
      *layer_norm_rows('norm1', 'norm1'),
      *layer_norm_rows('norm2', 'norm2'),
      *nested(linear_rows('linear1', 'linear1'), path=('mlp',)),
      *nested(linear_rows('linear2', 'linear2'), path=('mlp',)),
  ]


def decoder_layer_rows() -> list[Row]:
  """torch.nn.TransformerDecoderLayer -> transformer.DecoderLayer."""
  return [
      *encoder_layer_rows(),
      *attention_rows('multihead_attn', 'cross_attention'),
      *layer_norm_rows('norm3', 'norm3'),
  ]


def attention_pooling_rows() -> list[Row]:
  """AttentionPooling."""
  return linear_rows('attention.0', 'score')


def residual_encoder_rows(blocks: int = 5) -> list[Row]:
  """EncoderResidual -> encoders.ResidualEncoder."""
  rows = [*conv_rows('conv_in', 'stem'), *conv_rows('latent', 'projection')]
  for i in range(blocks):
    rows += nested(res_down_rows(), f'res_blocks.{i}.', (f'block_{i}',))
  return rows


def resnet_rows(depths: tuple[int, ...], sequential: bool = False) -> list[Row]:
  """torchvision ResNet trunk -> encoders.ResNet.

  Args:
    depths: blocks per stage, `encoders.RESNETS[name]`.
    sequential: use the names of the reference's nn.Sequential ('0', '1',
      '4.0.conv1') instead of torchvision's ('conv1', 'bn1', 'layer1.0.conv1').

  Returns:
    The table.
  """
  stem, norm, first = ('0', '1', '4') if sequential else ('conv1', 'bn1', '')
  rows = [*conv_rows(stem, 'stem', False), *batch_norm_rows(norm, 'norm')]
  for i, depth in enumerate(depths):
    stage = str(int(first) + i) if sequential else f'layer{i + 1}'
    for j in range(depth):
      block = []
      for k in (1, 2, 3):
        block += conv_rows(f'conv{k}', f'conv{k}', False)
        block += batch_norm_rows(f'bn{k}', f'norm{k}')
      if j == 0:
        block += conv_rows('downsample.0', 'skip', False)
        block += batch_norm_rows('downsample.1', 'skip_norm')
      rows += nested(block, f'{stage}.{j}.', (f'stage_{i}_block_{j}',))
  return rows


def resnet_encoder_rows(depths: tuple[int, ...]) -> list[Row]:
  """EncoderResnet -> encoders.ResNetEncoder."""
  return [
      *nested(resnet_rows(depths, sequential=True), 'resnet.', ('trunk',)),
      *conv_rows('latent', 'projection'),
  ]


def timm_vit_rows(depth: int, pre_norm: bool = True) -> list[Row]:
  """timm VisionTransformer -> vit.VisionTransformer.

  Args:
    depth: number of blocks.
    pre_norm: CLIP's variant, see `vit.VisionTransformer`.

  Returns:
    The table.
  """
  rows = [
      Row('cls_token', 'params', ('class_token',), lambda w: w.reshape(-1)),
      Row('pos_embed', 'params', ('positions',), lambda w: w[0]),
      *conv_rows('patch_embed.proj', 'patches', bias=not pre_norm),
      *layer_norm_rows('norm', 'norm'),
  ]
  if pre_norm:
    rows += layer_norm_rows('norm_pre', 'pre_norm')
  for i in range(depth):
    attention = _joined_attention_rows('qkv.weight', 'qkv.bias', 'proj')
    block = [
        *layer_norm_rows('norm1', 'norm1'),
        *nested(attention, 'attn.', ('attention',)),
        *layer_norm_rows('norm2', 'norm2'),
        *linear_rows('mlp.fc1', 'linear1'),
        *linear_rows('mlp.fc2', 'linear2'),
    ]
    rows += nested(block, f'blocks.{i}.', (f'block_{i}',))
  return rows


def clip_vit_rows(depth: int) -> list[Row]:
  """Hugging Face CLIPVisionTransformer -> vit.VisionTransformer."""
  rows = [
      Row('embeddings.class_embedding', 'params', ('class_token',)),
      Row('embeddings.position_embedding.weight', 'params', ('positions',)),
      *conv_rows('embeddings.patch_embedding', 'patches', bias=False),
      # Misspelled in Hugging Face's code.
      *layer_norm_rows('pre_layrnorm', 'pre_norm'),
      *layer_norm_rows('post_layernorm', 'norm'),
  ]
  for i in range(depth):
    block = [
        *layer_norm_rows('layer_norm1', 'norm1'),
        *layer_norm_rows('layer_norm2', 'norm2'),
        *linear_rows('mlp.fc1', 'linear1'),
        *linear_rows('mlp.fc2', 'linear2'),
    ]
    for torch, name in zip(('q', 'k', 'v', 'out'), _ATTENTION_PARTS):
      rows_ = linear_rows(f'self_attn.{torch}_proj', name)
      block += nested(rows_, path=('attention',))
    rows += nested(block, f'encoder.layers.{i}.', (f'block_{i}',))
  return rows


def hugging_face_vit_rows(depth: int) -> list[Row]:
  """Hugging Face ViTModel (no pre-norm) -> vit.VisionTransformer."""
  rows = [
      Row(
          'embeddings.cls_token', 'params', ('class_token',),
          lambda w: w.reshape(-1),
      ),
      Row(
          'embeddings.position_embeddings', 'params', ('positions',),
          lambda w: w[0],
      ),
      *conv_rows('embeddings.patch_embeddings.projection', 'patches'),
      *layer_norm_rows('layernorm', 'norm'),
  ]  # fmt: skip
  parts = ('attention.query', 'attention.key', 'attention.value')
  for i in range(depth):
    block = [
        *layer_norm_rows('layernorm_before', 'norm1'),
        *layer_norm_rows('layernorm_after', 'norm2'),
        *linear_rows('intermediate.dense', 'linear1'),
        *linear_rows('output.dense', 'linear2'),
    ]
    for torch, name in zip((*parts, 'output.dense'), _ATTENTION_PARTS):
      rows_ = linear_rows(f'attention.{torch}', name)
      block += nested(rows_, path=('attention',))
    rows += nested(block, f'encoder.layer.{i}.', (f'block_{i}',))
  return rows


_ATTENTION_PARTS = ('query', 'key', 'value', 'out')


def vit_encoder_rows(name: str, depth: int) -> list[Row]:
  """EncoderViTBase, EncoderViTLarge -> encoders.ViTEncoder.

  Args:
    name: 'vit_b' (Hugging Face trunk) or 'vit_l' (timm CLIP trunk).
    depth: number of transformer blocks.

  Returns:
    The table.
  """
  trunk = hugging_face_vit_rows if name == 'vit_b' else timm_vit_rows
  return [
      *nested(trunk(depth), 'vit_backbone.', ('trunk',)),
      # Misspelled in the reference.
      *linear_rows('lantent', 'projection'),
      *conv_rows('latent_resized', 'reduce'),
  ]


def heatmap_decoder_rows(stages: int = 6, stage_convs: int = 4) -> list[Row]:
  """DecoderOpenPose -> heatmap_decoder.HeatmapDecoder."""
  rows = nested(unet_rows(), 'unet_decoder.', ('trunk',))
  for s in range(stages):
    stage = []
    for i in range(stage_convs):
      stage += conv_rows(f'{2 * i}', f'conv_{i}')
    stage += conv_rows(f'{2 * stage_convs}', 'logits')
    rows += nested(stage, f'limb_branch.{s}.', (f'stage_{s}',))
  return rows


def unet_rows() -> list[Row]:
  """UNetResDecoderFeature -> heatmap_decoder.UpsamplingTrunk."""
  rows = [
      *conv_rows('up5', 'bottleneck'),
      *nested(res_up_rows(), 'up4.', ('up_0',)),
      *conv_transpose_rows('up3', 'up_1'),
      *conv_transpose_rows('up2', 'up_2'),
      *conv_rows('up1', 'up_3', transform=_turned_conv),
      *conv_rows('final_conv', 'features'),
  ]
  for i in range(4):
    for j in range(2):
      rows += conv_rows(f'dec{4 - i}.{3 * j}', f'conv_{i}_{j}', False)
      rows += batch_norm_rows(f'dec{4 - i}.{3 * j + 1}', f'norm_{i}_{j}')
  return rows


def auxiliary_rows() -> list[Row]:
  """AuxiliaryConvolutions -> person_query_decoder.AuxiliaryConvolutions."""
  return [
      *conv_rows('featmap2_1', 'conv'),
      *nested(res_down_rows(), 'featmap2_2.', ('down',)),
  ]


def person_query_decoder_rows(
    layers: int = 3, positions: str = 'sinusoidal', presence: bool = False
) -> list[Row]:
  """SkeletonDETR -> person_query_decoder.PersonQueryDecoder.

  Args:
    layers: number of encoder layers, and of decoder layers.
    positions: 'sinusoidal' or 'learned'.
    presence: must be False, since the reference has no presence logits.

  Returns:
    The table.

  Raises:
    ValueError: for a decoder with presence logits.
  """
  if presence:
    raise ValueError(
        'the reference has no presence logits: import its weights with '
        'person_query.presence=False'
    )
  rows = [
      *nested(auxiliary_rows(), 'multiscalce_feat.', ('auxiliary',)),
      Row('query_embed.weight', 'params', ('queries',)),
      *linear_rows('limb_head.0', 'limbs_hidden'),
      *linear_rows('limb_head.2', 'limbs'),
      *linear_rows('adjacency_head.0', 'adjacency'),
      *layer_norm_rows('transformer.encoder.norm', 'encoder_norm'),
      *layer_norm_rows('transformer.decoder.norm', 'decoder_norm'),
  ]
  if positions == 'learned':
    rows.append(Row('pos_embed', 'params', ('positions',)))
  for i in range(layers):
    rows += nested(
        encoder_layer_rows(),
        f'transformer.encoder.layers.{i}.',
        (f'encoder_{i}',),
    )
    rows += nested(
        decoder_layer_rows(),
        f'transformer.decoder.layers.{i}.',
        (f'decoder_{i}',),
    )
  return rows


def st_gcn_rows() -> list[Row]:
  """STGCN -> st_gcn.STGCN."""
  return nested(
      [
          Row('graph_conv.weight', 'params', ('graph', 'kernel')),
          Row('graph_conv.bias', 'params', ('graph', 'bias')),
          *conv_rows('temporal_conv', 'temporal'),
          *batch_norm_rows('bn', 'norm'),
      ],
      'stgcn.',
  )
