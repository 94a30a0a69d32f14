"""The tables name every leaf of our blocks once, with its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_rule import load_golden, rule
from vemd_jax.models import (
    encoders,
    heatmap_decoder,
    layers,
    person_query_decoder,
    st_gcn,
    vit,
)
from vemd_jax.models.torch import layout as table

SMALL_VIT = {'patch': 4, 'dim': 8, 'depth': 2, 'heads': 2}
IMAGE = jnp.ones((1, 32, 32, 3))
GRID = jnp.ones((1, 4, 4, 8))

BLOCKS = {
    'res_down': (layers.ResDown(4), table.res_down_rows(), (GRID,)),
    'res_up': (layers.ResUp(4), table.res_up_rows(), (GRID,)),
    'residual': (
        encoders.make_encoder('residual', 4, 2, dim=6),
        table.residual_encoder_rows(2),
        (IMAGE,),
    ),
    'resnet': (
        encoders.ResNetEncoder((1, 2, 1, 1), 4, 6),
        table.resnet_encoder_rows((1, 2, 1, 1)),
        (IMAGE,),
    ),
    'torchvision': (
        encoders.ResNet((1, 2, 1, 1), 4),
        table.resnet_rows((1, 2, 1, 1)),
        (IMAGE,),
    ),
    'vit_b': (
        encoders.ViTEncoder({**SMALL_VIT, 'pre_norm': False}, 3, 6),
        table.vit_encoder_rows('vit_b', 2),
        (IMAGE,),
    ),
    'vit_l': (
        encoders.ViTEncoder(SMALL_VIT, 3, 6),
        table.vit_encoder_rows('vit_l', 2),
        (IMAGE,),
    ),
    'heatmap': (
        heatmap_decoder.HeatmapDecoder(5, 2, 8, (4, 4, 4), 4, 4, 3),
        table.heatmap_decoder_rows(2, 3),
        (GRID,),
    ),
    'person_query': (
        person_query_decoder.PersonQueryDecoder(
            4, 3, 2, 2, 16, positions='learned', presence=False
        ),
        table.person_query_decoder_rows(2, 'learned'),
        (GRID,),
    ),
    'st_gcn': (
        st_gcn.STGCN(),
        table.st_gcn_rows(),
        (jnp.ones((1, 2, 3, 5, 4)), jnp.ones((1, 2, 3, 5, 5))),
    ),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_tables_name_every_leaf_once(name):
  module, rows, inputs = BLOCKS[name]
  variables = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *inputs, train=False)
  )
  leaves = {
      tuple(key.key for key in path)
      for path, _ in jax.tree_util.tree_leaves_with_path(variables)
  }
  paths = [(row.collection, *row.path) for row in rows]
  assert set(paths) == leaves
  assert len(paths) == len(leaves)


@pytest.mark.parametrize('rows', [table.timm_vit_rows, table.clip_vit_rows])
def test_vit_tables_name_every_leaf_once(rows):
  module = vit.VisionTransformer(**SMALL_VIT)
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGE))
  leaves = {
      tuple(key.key for key in path)
      for path, _ in jax.tree_util.tree_leaves_with_path(variables)
  }
  assert {(row.collection, *row.path) for row in rows(2)} == leaves


def test_clip_and_timm_names_give_the_same_vit():
  golden = load_golden('c10_tiny_vit')
  timm = golden.state_dict()
  clip = {
      'embeddings.class_embedding': timm['cls_token'][0, 0],
      'embeddings.position_embedding.weight': timm['pos_embed'][0],
      'embeddings.patch_embedding.weight': timm['patch_embed.proj.weight'],
  }
  for kind in ('weight', 'bias'):
    clip[f'pre_layrnorm.{kind}'] = timm[f'norm_pre.{kind}']
    clip[f'post_layernorm.{kind}'] = timm[f'norm.{kind}']
    for i in range(2):
      ours, theirs = f'encoder.layers.{i}.', f'blocks.{i}.'
      parts = np.split(timm[f'{theirs}attn.qkv.{kind}'], 3)
      for part, name in zip(parts, 'qkv'):
        clip[f'{ours}self_attn.{name}_proj.{kind}'] = part
      for name, other in (
          ('self_attn.out_proj', 'attn.proj'),
          ('layer_norm1', 'norm1'),
          ('layer_norm2', 'norm2'),
          ('mlp.fc1', 'mlp.fc1'),
          ('mlp.fc2', 'mlp.fc2'),
      ):
        clip[f'{ours}{name}.{kind}'] = timm[f'{theirs}{other}.{kind}']
  jax.tree.map(
      np.testing.assert_array_equal,
      table.to_variables(table.clip_vit_rows(2), clip),
      table.to_variables(table.timm_vit_rows(2), timm),
  )


def test_missing_tensors_are_named_all_at_once():
  state = {'conv1.weight': rule('conv1.weight', (8, 8, 3, 3))}
  with pytest.raises(KeyError, match=r'bn1\.bias, .*conv3\.weight'):
    table.to_variables(table.res_down_rows(), state)


def test_nested_puts_both_prefixes():
  rows = table.nested(table.linear_rows('0', 'a'), 'head.', ('b', 'c'))
  assert [(row.torch, row.path) for row in rows] == [
      ('head.0.weight', ('b', 'c', 'a', 'kernel')),
      ('head.0.bias', ('b', 'c', 'a', 'bias')),
  ]


@pytest.mark.parametrize(
    ('name', 'ignored'),
    [
        ('module.bn1.num_batches_tracked', True),
        ('decoder_skeleton.pos_encoder.pe', True),
        ('decoder_emotions.vgaf.pos_enc.pe', True),
        ('encoders.0.vit_backbone.pooler.dense.weight', True),
        ('decoder_emotions.vgaf.pos_enc.pos_embedding', False),
        ('bn1.running_var', False),
        ('fc.weight', False),
    ],
)
def test_ignored(name, ignored):
  assert bool(table.IGNORED.fullmatch(name)) == ignored
