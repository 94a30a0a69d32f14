"""The emotion head against the authors' heads, and its improvements."""


import functools

import golden_rule
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import vemd_cases
from vemd_jax.models import emotion_head
from vemd_jax.models.torch import layout, vemd_layout

GRID = (7, 7, 16)


# Their transformer layers are thousands wide; h8 is the same class.
WIDE = ('c06_hm_cls_kp_p_h56', 'c06_hm_cls_kp_pf_h56')


def golden_names():
  names = sorted(p.stem for p in golden_rule.SMALL.glob('c06_*.npz'))
  return [
      pytest.param(n, marks=pytest.mark.slow) if n in WIDE else n for n in names
  ]


def golden_head(golden, **changes):
  """(head, variables, latents, structure) of a golden file."""
  config = golden.config
  proj = config['class'] == 'Classification_proj'
  fields = vemd_cases.reference(
      {
          **config,
          'encoder_name': 'residual',
          'channel_factor': 8,
          'blocks_res': 5,
          'classif_projection': proj,
          'cls_counts': {'vgaf': 3},
          'nun_heads_petr': 4,
          'proj_dim': config.get('proj_dim', 32),
      },
      config['variant'],
  )
  rows = vemd_layout.head_rows(fields, GRID)
  variables = layout.to_variables(rows, golden.state_dict())
  head = emotion_head.EmotionHead(
      num_classes=3, **{**fields['head'], **changes}
  )
  inputs = golden.inputs()
  latents = tuple(
      jnp.moveaxis(jnp.asarray(z).reshape(3, 4, 16, 7, 7), 2, -1)
      for z in (inputs['z1'], inputs['z2'])
  )
  structure = {
      part: jnp.asarray(inputs[key])
      for part, key in (('body', 'kp_pose'), ('face', 'kp_face'))
      if key in inputs
  }
  return head, variables, latents, structure


@functools.partial(jax.jit, static_argnames='head')
def logits(head, variables, latents, structure):
  return head.apply(
      {'params': variables['params']}, latents, structure, {}, train=False
  )[0]


@pytest.mark.parametrize('name', golden_names())
def test_head_is_the_reference(name):
  golden = golden_rule.load_golden(name)
  golden.check('eval__out', logits(*golden_head(golden)))


@pytest.mark.parametrize(
    'name',
    ['c06_hm_cls_kp_p_h8', 'c06_hm_cls_kp_pf_h8', 'c06_hm_cls_nokp_p_h56'],
)
def test_head_over_frames_is_the_reference_without_its_fault(name):
  golden = golden_rule.load_golden(name)
  ours = logits(*golden_head(golden, attend='frames'))
  key = 'eval_if_batch_first_were_true'
  golden.check(key, ours, golden.tolerance('eval__out'))


def small_head(**changes):
  """(head, variables, latents, structure) with random weights."""
  keys = jax.random.split(jax.random.key(1), 4)
  latents = tuple(jax.random.normal(k, (3, 4, 2, 2, 8)) for k in keys[:2])
  structure = {'body': jax.random.normal(keys[2], (3, 4, 6))}
  options = {'mlp_dim': 16, 'width': 16, 'proj_dim': 4, **changes}
  head = emotion_head.EmotionHead(num_classes=3, **options)
  init = functools.partial(head.init, train=False)
  shapes = jax.eval_shape(init, keys[3], latents, structure, {})
  variables = vemd_cases.fill(shapes)
  return head, variables, latents, structure


@pytest.mark.parametrize('attend', ['frames', 'batch'])
def test_only_the_reference_switch_mixes_samples(attend):
  head, variables, latents, structure = small_head(attend=attend)
  before = logits(head, variables, latents, structure)
  changed = tuple(z.at[2].add(1.0) for z in latents)
  after = logits(head, variables, changed, structure)
  same = np.array_equal(before[:2], after[:2])
  assert same == (attend == 'frames')
  assert not np.array_equal(before[2], after[2])


@pytest.mark.parametrize(
    'positions', ['sinusoidal', 'learnable', 'relative', 'none']
)
def test_only_positions_tell_the_order_of_frames(positions):
  head, variables, latents, structure = small_head(positions=positions)
  before = logits(head, variables, latents, structure)
  turned = tuple(z[:, ::-1] for z in latents)
  after = logits(
      head, variables, turned, {k: v[:, ::-1] for k, v in structure.items()}
  )
  same = np.allclose(before, after, atol=1e-5)
  assert same == (positions == 'none')


def test_relative_positions_by_hand():
  x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
  module = emotion_head.FramePositions('relative')
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = vemd_cases.fill(shapes)
  table = np.asarray(variables['params']['table'])
  middle = emotion_head.MAX_FRAMES - 1
  want = np.zeros_like(x)
  for s in range(3):
    for t in range(3):
      want[:, s] += x[:, t] * table[middle + t - s]
  np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)


def test_frame_weights_sum_to_one():
  head, variables, latents, structure = small_head()
  run = jax.jit(functools.partial(head.apply, train=False))
  _, weight = run(variables, latents, structure, {})
  assert weight.shape == (3, 4)
  np.testing.assert_allclose(weight.sum(1), 1, atol=1e-6)
  assert weight.std() > 0


def test_dropout_only_in_training():
  head, variables, latents, structure = small_head(
      dropout=0.0, classifier_dropout=0.5
  )

  @functools.partial(jax.jit, static_argnums=0)
  def run(train, seed):
    return head.apply(
        variables, latents, structure, {}, train=train,
        rngs={'dropout': jax.random.key(seed)},
    )[0]  # fmt: skip

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  assert not np.array_equal(run(True, 0), run(True, 1))
  assert not np.array_equal(run(True, 0), run(False, 0))


@pytest.mark.parametrize(
    'option', [{'positions': 'cosine'}, {'attend': 'time'}, {'sr_input': 'x'}]
)
def test_unknown_options_are_named(option):
  (key, value), = option.items()
  with pytest.raises(ValueError, match=f'{key}.*{value}'):
    small_head(**option)


def test_clip_longer_than_a_learned_table_is_refused():
  module = emotion_head.FramePositions('learnable')
  x = jnp.zeros((1, emotion_head.MAX_FRAMES + 1, 2))
  with pytest.raises(ValueError, match='500 frames'):
    jax.eval_shape(module.init, jax.random.key(0), x)
