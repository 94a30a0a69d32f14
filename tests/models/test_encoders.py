"""Encoders against the golden files, and their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_rule import (
    channels_first,
    channels_last,
    load_golden,
    random_input,
    random_variables,
)
from vemd_jax.models import encoders
from vemd_jax.models.torch import layout


def count(params) -> int:
  return sum(a.size for a in jax.tree.leaves(params))


def run_golden(golden, module, rows):
  variables = layout.to_variables(rows, golden.state_dict())
  x = jnp.asarray(channels_last(golden.inputs()['x']))
  for train in (False, True):
    forward = jax.jit(
        lambda v, x, train=train: module.apply(
            v, x, train=train, mutable=['batch_stats']
        )
    )
    out, updates = forward(variables, x)
    golden.check('train__out' if train else 'eval__out', channels_first(out))
  return variables, updates['batch_stats']


def test_residual_encoder_is_the_reference():
  golden = load_golden('c01_encoder_residual')
  module = encoders.make_encoder('residual', width=8, blocks=5, dim=16)
  rows = layout.residual_encoder_rows(5)
  variables, stats = run_golden(golden, module, rows)
  assert count(variables['params']) == golden.config['n_params']
  checked = 0
  for row in rows:
    if f'trainstat__{row.torch}' in golden.arrays:
      ours = stats[row.path[0]][row.path[1]][row.path[2]]
      theirs = golden.arrays[f'trainstat__{row.torch}']
      np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
      checked += 1
  assert checked == 20


def test_resnet50_is_the_reference():
  golden = load_golden('c02_encoder_resnet50')
  module = encoders.make_encoder('resnet50', dim=16)
  rows = layout.resnet_encoder_rows(encoders.RESNETS['resnet50'])
  variables, _ = run_golden(golden, module, rows)
  assert count(variables['params']) == golden.config['n_params']


# Parameters of torchvision's networks without their classifier, of timm's
# vit_large_patch14_clip_224 and of the plain ViT-B/16, each without a head.
TRUNKS = {
    'resnet50': 25_557_032 - 2_049_000,
    'resnet101': 44_549_160 - 2_049_000,
    'resnet152': 60_192_808 - 2_049_000,
    'vit_b': 85_798_656,
    'vit_l': 303_179_776,
}


@pytest.mark.parametrize('name', TRUNKS)
def test_full_size(name):
  module = encoders.make_encoder(name, dim=512)
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  out, variables = jax.eval_shape(
      lambda x: module.init_with_output(jax.random.key(0), x, train=False),
      image,
  )
  assert out.shape == (2, 7, 7, 512)
  assert count(variables['params']['trunk']) == TRUNKS[name]


@pytest.mark.parametrize(
    ('options', 'size', 'grid'),
    [
        ({'name': 'residual', 'width': 4, 'blocks': 3}, (37, 50), (5, 7)),
        (
            {'name': 'residual', 'width': 4, 'blocks': 2, 'stem_stride': 2},
            (37, 50),
            (5, 7),
        ),
        ({'name': 'resnet50', 'width': 4}, (65, 97), (3, 4)),
    ],
)
def test_small_and_odd_sizes(options, size, grid):
  module = encoders.make_encoder(**options, dim=6, dtype='bfloat16')
  image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  out, variables = jax.eval_shape(
      lambda x: module.init_with_output(jax.random.key(0), x, train=False),
      image,
  )
  assert out.shape == (2, *grid, 6)
  assert out.dtype == jnp.bfloat16
  dtypes = {a.dtype for a in jax.tree.leaves(variables)}
  assert dtypes == {jnp.dtype('float32')}


def test_fresh_residual_encoder_keeps_the_scale():
  module = encoders.make_encoder('residual', width=8, blocks=3, dim=16)
  x = jnp.asarray(random_input(0, (4, 32, 32, 3)))
  variables = jax.jit(
      lambda: module.init(jax.random.key(1), x, train=False)
  )()
  out, _ = jax.jit(
      lambda v: module.apply(v, x, train=True, mutable=['batch_stats'])
  )(variables)
  assert 0.3 < float(out.std()) < 3


SMALL_VIT = {'patch': 4, 'dim': 8, 'depth': 0, 'heads': 2}


def moved_places(token_order):
  """Grid cells that change with the patch of row 2, column 1."""
  module = encoders.ViTEncoder(SMALL_VIT, 1, 4, token_order)
  x = jnp.asarray(random_input(0, (1, 16, 12, 3)))
  variables = random_variables(module, x, train=False)
  other = x.at[:, 8:12, 4:8].add(1.0)
  forward = jax.jit(lambda x: module.apply(variables, x, train=False))
  before, after = forward(x), forward(other)
  assert before.shape == (1, 4, 3, 4)
  return np.argwhere(np.abs(after - before)[0].max(-1) > 1e-6).tolist()


def test_vit_encoder_keeps_each_patch_at_its_place():
  assert moved_places('grid') == [[2, 1]]
  # The reference's reshape spreads one patch over several cells.
  assert len(moved_places('reference')) > 1


def test_vit_encoder_reads_the_reference_order():
  module = encoders.ViTEncoder(SMALL_VIT, 1, 4, 'reference')
  x = jnp.asarray(random_input(0, (2, 8, 8, 3)))
  variables = random_variables(module, x, train=False)
  out = jax.jit(lambda x: module.apply(variables, x, train=False))(x)

  params = jax.tree.map(np.asarray, variables['params'])
  trunk = encoders.vit.VisionTransformer(**SMALL_VIT)
  _, tokens = jax.jit(trunk.apply)(
      {'params': variables['params']['trunk']}, x
  )
  tokens = np.asarray(tokens) @ params['projection']['kernel']
  tokens += params['projection']['bias']
  grid = tokens[:, :4].reshape(2, 4, 2, 2)  # as torch's view: channels first
  expected = np.einsum('nchw,cd->nhwd', grid, params['reduce']['kernel'][0, 0])
  expected += params['reduce']['bias']
  np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-5)


def test_clear_errors():
  with pytest.raises(ValueError, match=r"encoder\.name 'resnet' is not one of"):
    encoders.make_encoder('resnet')
  with pytest.raises(ValueError, match="token_order 'rows' is neither"):
    encoders.make_encoder('vit_b', token_order='rows')
  module = encoders.make_encoder('vit_b')
  with pytest.raises(ValueError, match='gives 6 x 7 patches'):
    jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False),
        jnp.ones((1, 96, 112, 3)),
    )


@pytest.mark.parametrize(
    'name, channels', [('residual', (16, 8, 4)), ('resnet50', (64, 32, 16, 4))]
)
def test_skips_are_the_earlier_stages(name, channels):
  module = encoders.make_encoder(name, width=4, blocks=3, stem_stride=2, dim=6)
  x = jnp.asarray(random_input(0, (1, 64, 96, 3)))
  variables = random_variables(module, x, train=False)
  z, skips = module.apply(variables, x, train=False, skips=len(channels))
  np.testing.assert_array_equal(z, module.apply(variables, x, train=False))
  sizes = [(z.shape[1] * 2**i, z.shape[2] * 2**i) for i in range(1, 5)]
  assert [s.shape[1:3] for s in skips] == sizes[: len(channels)]
  assert tuple(s.shape[3] for s in skips) == channels
  # The first skip is what the last stage reads: without it no latent.
  with pytest.raises(ValueError, match=f'skips is 9, but only {len(channels)}'):
    module.apply(variables, x, train=False, skips=9)
