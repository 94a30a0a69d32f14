"""Model fields for the tests: small ones, and those of the golden files."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

DEFAULTS = {
    'variant': 've_md_sr',
    'decoder': 'heatmap',
    'parts': ('body', 'face'),
    'num_encoders': 1,
    'dtype': 'float32',
    'encoder': {
        'name': 'residual',
        'width': 4,
        'blocks': 3,
        'stem_stride': 1,
        'normalization': 'imagenet',
    },
    'latent': {'dim': 8, 'deterministic': False},
    'vit': {'name': 'none', 'normalization': 'imagenet'},
    'heatmap': {
        'stages': 2,
        'bottleneck': 16,
        'widths': (8, 8, 8),
        'features': 8,
        'stage_width': 8,
        'stage_convs': 1,
    },
    'person_query': {
        'queries': 3,
        'layers': 1,
        'heads': 2,
        'mlp_dim': 16,
        'dropout': 0.1,
        'positions': 'sinusoidal',
        'presence': True,
        'st_gcn': 'none',
    },
    'head': {
        'positions': 'sinusoidal',
        'mlp_dim': 16,
        'width': 16,
        'dropout': 0.1,
        'classifier_dropout': 0.1,
        'sr_input': 'projected',
        'proj_dim': 8,
        'attend': 'frames',
    },
    'fusion': {
        'method': 'concat',
        'audio': 'none',
        'text': False,
        'dim': 8,
        'modality_dropout': 0.0,
    },
    'classes': (('first', 3),),
}


def fields(**changes) -> dict:
  """Fields of the small model with changes; dicts are merged."""
  result = copy.deepcopy(DEFAULTS)
  for key, value in changes.items():
    if isinstance(value, dict):
      optional = {
          'token_order', 'skips', 'initial', 'structure_gradient',
          'relation_features', 'teacher_forcing',
      }  # fmt: skip
      unknown = value.keys() - result[key].keys() - optional
      assert not unknown, unknown
      result[key].update(value)
    else:
      assert key in result, key
      result[key] = value
  return result


def batch(samples=2, frames=2, side=32, seed=0) -> dict:
  """Random images."""
  shape = (samples, frames, side, side, 3)
  image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  return {'image': jnp.asarray(image)}


def rngs(seed=0) -> dict:
  """Keys for a training call."""
  keys = jax.random.split(jax.random.key(seed), 3)
  return dict(zip(('latent', 'dropout', 'modality'), keys))


def reference(args: dict, variant: str, **changes) -> dict:
  """Our fields for the arguments of the authors' VE_MultiDecoder.

  Args:
    args: constructor arguments, as in the golden files.
    variant: 'detr' or 'heatmap'.
    **changes: as of `fields`.

  Returns:
    Fields that compute the same numbers, every dropout at 0.
  """
  parts = tuple(
      part
      for part, key in (('body', 'use_person_pose'), ('face', 'use_face_pose'))
      if args[key]
  )
  projected = args['classif_projection']
  result = fields(
      variant='ve_md_sr' if args['add_keypoints'] else 've_md',
      decoder='person_query' if variant == 'detr' else 'heatmap',
      parts=parts,
      num_encoders=2 if args['two_encoders'] else 1,
      encoder={
          'name': args['encoder_name'],
          'width': args['channel_factor'],
          'blocks': args['blocks_res'],
          'normalization': 'none',
      },
      latent={'dim': args['latent_dim'], 'deterministic': True},
      vit={'name': 'clip_vit_l_14', 'normalization': 'none'},
      heatmap={
          'stages': 6,
          'bottleneck': 2048,
          'widths': (512, 256, 128),
          'features': 256,
          'stage_width': 256,
          'stage_convs': 4,
      },
      person_query={
          'queries': args.get('num_queries', 100),
          'layers': args.get('num_encoder_layers_petr', 3),
          'heads': args.get('nun_heads_petr', 8),
          'mlp_dim': 2048,
          'dropout': 0.0,
          'presence': False,
          'st_gcn': 'reference' if args.get('stgcn_active') else 'none',
      },
      head={
          'positions': args.get('pos_enc_type', 'sinusoidal') or 'none',
          'mlp_dim': 2048,
          'width': 512,
          'dropout': 0.0,
          'classifier_dropout': 0.0,
          'sr_input': 'projected' if projected else 'raw',
          'proj_dim': args.get('proj_dim', 512),
          'attend': (
              'batch' if variant == 'heatmap' and not projected else 'frames'
          ),
      },
      classes=tuple(args['cls_counts'].items()),
  )
  for key, value in changes.items():
    result[key] = result[key] | value if isinstance(value, dict) else value
  return result


def fill(shapes, seed=0) -> dict:
  """Random variables of the given shapes, without compiling an `init`.

  Args:
    shapes: result of `jax.eval_shape` of an `init`.
    seed: seed of the values.

  Returns:
    Kernels of unit gain, statistics and scales near 1, the rest near 0.
  """
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    name = path[-1].key
    x = rng.standard_normal(leaf.shape)
    if name in ('scale', 'var'):
      x = 1 + 0.1 * np.abs(x)
    elif leaf.ndim > 1:
      x = x / np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      x = 0.1 * x
    return jnp.asarray(x, leaf.dtype)

  return jax.tree_util.tree_map_with_path(value, dict(shapes))


def make(model, batch, dataset='first', seed=0) -> dict:
  """Random variables of a model."""
  shapes = jax.eval_shape(
      lambda key: model.init(key, batch, dataset=dataset, train=False),
      jax.random.key(0),
  )
  return fill(shapes, seed)
