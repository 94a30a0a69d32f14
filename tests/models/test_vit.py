"""The frozen ViT against the golden files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_rule import channels_last, load_golden, random_input
from vemd_jax.models import vit
from vemd_jax.models.torch import layout


def test_tiny_vit_is_timm():
  golden = load_golden('c10_tiny_vit')
  variables = layout.to_variables(
      layout.timm_vit_rows(2), golden.state_dict()
  )
  x = jnp.asarray(channels_last(golden.inputs()['x']))
  pooled, tokens = jax.jit(vit.make_vit('tiny').apply)(variables, x)
  golden.check('eval__pooled', pooled)
  golden.check('eval__tokens', tokens)

  half = vit.make_vit('tiny', 'bfloat16')
  pooled, tokens = jax.jit(half.apply)(variables, x)
  assert pooled.dtype == jnp.bfloat16
  assert golden.error('eval__tokens', tokens.astype(jnp.float32)) < 0.1


def test_vit_l_has_the_tensors_of_timm():
  golden = load_golden('c10_vitl_manifest')
  model = vit.make_vit('clip_vit_l_14')
  params = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x), jnp.ones((1, 224, 224, 3))
  )['params']
  sizes = [a.size for a in jax.tree.leaves(params)]
  assert sum(sizes) == int(golden.arrays['n_params'])
  rows = layout.timm_vit_rows(24)
  assert {row.torch for row in rows} == {name for name, *_ in golden.manifest}
  assert len(rows) == len(sizes)


def test_other_image_sizes_than_those_of_the_positions_are_refused():
  model = vit.make_vit('tiny')
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.ones((1, 28, 28, 3)))
  )
  with pytest.raises(Exception, match='positions'):
    jax.eval_shape(model.apply, variables, jnp.ones((1, 28, 42, 3)))


def test_patches_beyond_the_last_whole_one_are_not_read():
  model = vit.make_vit('tiny')
  x = jnp.asarray(random_input(0, (1, 30, 33, 3)))
  (pooled, tokens), variables = jax.jit(model.init_with_output)(
      jax.random.key(0), x
  )
  assert tokens.shape == (1, 5, 32)
  np.testing.assert_array_equal(pooled, tokens[:, 0])
  cropped, _ = jax.jit(model.apply)(variables, x[:, :28, :28])
  np.testing.assert_allclose(cropped, pooled, rtol=1e-5, atol=1e-6)


def test_clear_errors():
  with pytest.raises(ValueError, match=r"vit\.name 'large' is not one of"):
    vit.make_vit('large')
  with pytest.raises(ValueError, match='smaller than a patch of 14'):
    vit.make_vit('tiny').init(jax.random.key(0), jnp.ones((1, 8, 28, 3)))
