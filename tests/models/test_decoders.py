"""Structural decoders and ST-GCN against the golden files and NumPy."""

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
  rule,
)
from vemd_jax.models import (
  heatmap_decoder,
  person_query_decoder,
  st_gcn,
  transformer,
)
from vemd_jax.models.torch import layout


def forward(module, variables, *inputs, train=False):
  """Output and new batch statistics, jitted."""
  apply = jax.jit(
      lambda v, *x: module.apply(v, *x, train=train, mutable=['batch_stats'])
  )
  out, updates = apply(variables, *(jnp.asarray(x) for x in inputs))
  return out, updates.get('batch_stats')


def setup(name, rows):
  golden = load_golden(name)
  state = golden.state_dict()
  unread = set(state) - {row.torch for row in rows}
  assert all(layout.IGNORED.fullmatch(name) for name in unread), unread
  inputs = [channels_last(x) for x in golden.inputs().values()]
  return golden, layout.to_variables(rows, state), inputs


def count(params) -> int:
  return sum(np.size(a) for a in jax.tree.leaves(params))


# Heatmap decoder.


def test_upsampling_trunk_is_the_reference():
  golden, variables, (z,) = setup('c03_unet_decoder', layout.unet_rows())
  module = heatmap_decoder.UpsamplingTrunk(features=32)
  out, _ = forward(module, variables, z)
  golden.check('eval__out', channels_first(out))
  out, _ = forward(module, variables, z, train=True)
  golden.check('train__out', channels_first(out))


@pytest.mark.parametrize('stages', [2, 6])
def test_heatmap_decoder_is_the_reference(stages):
  rows = layout.heatmap_decoder_rows(stages)
  golden, variables, (z,) = setup(f'c03_openpose_s{stages}', rows)
  assert count(variables['params']) == golden.config['n_params']
  module = heatmap_decoder.HeatmapDecoder(18, stages)
  logits, _ = forward(module, variables, z)
  golden.check('eval__out', channels_first(jax.nn.sigmoid(logits[-1])))
  logits, _ = forward(module, variables, z, train=True)
  for s in range(stages):
    if f'train__out_{s}' in golden.arrays:
      golden.check(f'train__out_{s}', channels_first(logits[s]))


def test_small_heatmap_decoder_on_an_odd_grid():
  module = heatmap_decoder.HeatmapDecoder(
      limbs=5, stages=3, bottleneck=12, widths=(8, 6, 4), features=8,
      stage_width=4, stage_convs=1, dtype='bfloat16',
  )  # fmt: skip
  z = jnp.asarray(random_input(0, (2, 3, 5, 7)))
  variables = random_variables(module, z, train=False)
  logits, stats = forward(module, variables, z, train=True)
  assert logits.shape == (3, 2, 24, 40, 5)
  assert logits.dtype == jnp.float32
  assert {a.dtype for a in jax.tree.leaves((variables, stats))} == {
      jnp.dtype('float32')
  }


@pytest.mark.parametrize('widths', [(8,), (8, 6), (8, 6, 4, 4)])
def test_each_width_doubles_the_grid(widths):
  module = heatmap_decoder.HeatmapDecoder(5, 1, 8, widths, 4, 4, 1)
  logits, variables = jax.eval_shape(
      lambda: module.init_with_output(
          jax.random.key(0), jnp.ones((1, 3, 2, 4)), train=False
      )
  )
  scale = 2 ** len(widths)
  assert logits.shape == (1, 1, 3 * scale, 2 * scale, 5)
  trunk = variables['params']['trunk']
  assert trunk['features']['kernel'].shape == (1, 1, widths[-1], 4)


# PersonQuery decoder.


def test_auxiliary_convolutions_are_the_reference():
  rows = layout.auxiliary_rows()
  golden, variables, (z,) = setup('c04_aux_convs', rows)
  module = person_query_decoder.AuxiliaryConvolutions()
  for train, mode in ((False, 'eval'), (True, 'train')):
    out, stats = forward(module, variables, z, train=train)
    for i, scale in enumerate(out):
      golden.check(f'{mode}__out_{i}', channels_first(scale))
  for norm in ('bn1', 'bn2'):
    for key in ('mean', 'var'):
      np.testing.assert_allclose(
          stats['down'][norm.replace('bn', 'norm')][key],
          golden.arrays[f'trainstat__featmap2_2.{norm}.running_{key}'],
          rtol=1e-5, atol=1e-6,
      )  # fmt: skip


def test_person_query_decoder_is_the_reference():
  rows = layout.person_query_decoder_rows(2)
  golden, variables, (z,) = setup('c04_skeleton_detr', rows)
  assert count(variables['params']) == golden.config['n_params']
  module = person_query_decoder.PersonQueryDecoder(
      18, queries=5, layers=2, heads=4, dropout=0.0, presence=False
  )
  for train, mode in ((False, 'eval'), (True, 'train')):
    (limbs, adjacency, presence), stats = forward(
        module, variables, z, train=train
    )
    golden.check(f'{mode}__out_0', limbs.reshape(2, 5, 72))
    golden.check(
        f'{mode}__out_1', jax.nn.sigmoid(adjacency).reshape(2, 5, 324)
    )
    assert presence is None
  np.testing.assert_allclose(
      stats['auxiliary']['down']['norm2']['var'],
      golden.arrays['trainstat__multiscalce_feat.featmap2_2.bn2.running_var'],
      rtol=1e-5,
  )


def small_decoder(**options):
  options = {
      'queries': 3, 'layers': 1, 'heads': 2, 'mlp_dim': 16, 'dropout': 0.0,
      **options,
  }  # fmt: skip
  return person_query_decoder.PersonQueryDecoder(4, **options)


def test_learned_positions_are_added_to_the_tokens():
  z = jnp.asarray(random_input(0, (2, 4, 5, 8)))
  fixed, learned = small_decoder(), small_decoder(positions='learned')
  variables = random_variables(learned, z, train=False)
  table = variables['params'].pop('positions')
  assert table.shape == (10_000, 8)
  # With sinusoidal values in the table both are equal.
  table[:100] = transformer.sinusoidal_table(100, 8)
  params = {**variables['params'], 'positions': table}
  (ours, *_), _ = forward(learned, {**variables, 'params': params}, z)
  (theirs, *_), _ = forward(fixed, variables, z)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  rows = layout.person_query_decoder_rows(1, positions='learned')
  assert ('pos_embed', ('positions',)) in {(r.torch, r.path) for r in rows}


def test_person_query_outputs():
  z = jnp.asarray(random_input(0, (2, 3, 6, 8)))
  module = small_decoder(dtype='bfloat16')
  variables = random_variables(module, z, train=False)
  (limbs, adjacency, presence), _ = forward(module, variables, z)
  assert limbs.shape == (2, 3, 4, 4)
  assert adjacency.shape == (2, 3, 4, 4)
  assert presence.shape == (2, 3)
  assert {x.dtype for x in (limbs, adjacency, presence)} == {
      jnp.dtype('float32')
  }
  assert 0 < limbs.min() < limbs.max() < 1
  # Different queries and different frames give different outputs.
  assert limbs.std(0).min() > 0
  assert limbs.std(1).min() > 0


def test_queries_are_a_set():
  z = jnp.asarray(random_input(0, (2, 4, 4, 8)))
  module = small_decoder()
  variables = random_variables(module, z, train=False)
  out, _ = forward(module, variables, z)
  order = jnp.asarray([2, 0, 1])
  params = variables['params']
  params = {**params, 'queries': params['queries'][order]}
  swapped, _ = forward(module, {**variables, 'params': params}, z)
  for ours, theirs in zip(swapped, out):
    np.testing.assert_allclose(ours, theirs[:, order], rtol=1e-4, atol=1e-5)


def test_person_query_errors():
  with pytest.raises(ValueError, match='grid is 2 x 7, .* at least 3 x 3'):
    random_variables(small_decoder(), jnp.ones((1, 2, 7, 8)), train=False)
  with pytest.raises(ValueError, match="positions 'sine' is neither"):
    decoder = small_decoder(positions='sine')
    random_variables(decoder, jnp.ones((1, 4, 4, 8)), train=False)
  with pytest.raises(ValueError, match='presence=False'):
    layout.person_query_decoder_rows(presence=True)


# ST-GCN.


def test_st_gcn_is_the_reference():
  golden, variables, _ = setup('c05_stgcn', layout.st_gcn_rows())
  inputs = golden.inputs()
  # The reference's [4, 18] is a limb vector of [18, 4] numbers.
  limbs = inputs['x'].reshape(2, 3, 5, 18, 4)
  module = st_gcn.STGCN('reference')
  for train, mode in ((False, 'eval'), (True, 'train')):
    out, stats = forward(module, variables, limbs, inputs['A'], train=train)
    golden.check(f'{mode}__out', out.reshape(2, 3, 5, 4, 18))
  for key in ('mean', 'var'):
    np.testing.assert_allclose(
        stats['norm'][key], golden.arrays[f'trainstat__stgcn.bn.running_{key}'],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def graph_variables(w, b):
  """ST-GCN reduced to its graph convolution and ReLU."""
  identity = np.zeros((3, 1, 1, 4, 4), np.float32)
  identity[1, 0, 0] = np.eye(4)
  zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
  return {
      'params': {
          'graph': {'kernel': w, 'bias': b},
          'temporal': {'kernel': identity, 'bias': zeros},
          'norm': {'scale': ones, 'bias': zeros},
      },
      'batch_stats': {'norm': {'mean': zeros, 'var': ones}},
  }


def test_graph_convolution_is_the_reference():
  golden = load_golden('c05_graphconv')
  inputs = golden.inputs()
  variables = graph_variables(rule('weight', (4, 4)), rule('bias', (4,)))
  limbs = inputs['x'].swapaxes(-1, -2)  # [B, T, M, C, V] -> [..., V, C]
  out, _ = forward(st_gcn.STGCN('graph'), variables, limbs, inputs['A'])
  expected = np.maximum(golden.arrays['eval__out'], 0) / np.sqrt(1 + 1e-5)
  np.testing.assert_allclose(
      out.swapaxes(-1, -2), expected, rtol=2e-5, atol=3e-5
  )


def test_graph_order_has_the_right_axes():
  rng = np.random.default_rng(0)
  limbs = rng.random((2, 4, 3, 5, 4)).astype(np.float32)
  adjacency = rng.random((2, 4, 3, 5, 5)).astype(np.float32)
  module = st_gcn.STGCN('graph')
  variables = random_variables(module, limbs, adjacency, train=False)
  params = jax.tree.map(np.asarray, variables['params'])
  out, _ = forward(module, variables, limbs, adjacency)
  assert out.shape == limbs.shape

  x = adjacency @ limbs @ params['graph']['kernel'] + params['graph']['bias']
  kernel = params['temporal']['kernel'][:, 0, 0]
  padded = np.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
  x = sum(padded[:, i : i + 4] @ kernel[i] for i in range(3))
  norm, stats = params['norm'], variables['batch_stats']['norm']
  x = x + params['temporal']['bias'] - stats['mean']
  x = x / np.sqrt(stats['var'] + 1e-5) * norm['scale'] + norm['bias']
  expected = np.maximum(x, 0)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)

  # People do not affect each other; in the reference's order they do.
  def changed(order):
    module = st_gcn.STGCN(order)
    other = limbs.copy()
    other[:, :, 1] += 1.0
    before, _ = forward(module, variables, limbs, adjacency)
    after, _ = forward(module, variables, other, adjacency)
    difference = np.abs(after - before)
    return {q for q in range(3) if difference[:, :, q].max() > 1e-5}

  assert changed('graph') == {1}
  assert changed('reference') > {1}


def test_st_gcn_error():
  x = jnp.ones((1, 1, 1, 2, 4))
  with pytest.raises(ValueError, match="st_gcn 'on' is not one of"):
    adjacency = jnp.ones((1, 1, 1, 2, 2))
    random_variables(st_gcn.STGCN('on'), x, adjacency, train=False)


# Centers.


def centers(**options):
  return person_query_decoder.Centers(**{'limbs': 4, 'queries': 3, **options})


def test_people_are_the_highest_local_maxima():
  logits = np.full((1, 5, 7), -9.0, np.float32)
  logits[0, 1, 1], logits[0, 1, 2] = 3, 2  # Beside a higher one: no maximum.
  logits[0, 4, 6] = 1
  logits[0, 3, 3] = -1
  best, index = person_query_decoder._local_maxima(jnp.asarray(logits), 3)
  np.testing.assert_array_equal(index, [[1 * 7 + 1, 4 * 7 + 6, 3 * 7 + 3]])
  np.testing.assert_array_equal(best, [[3, 1, -1]])
  # Fewer maxima than queries: the rest is nobody.
  one = jnp.asarray([[[5.0, 4.0, 3.0], [3.5, 2.5, 1.5]]])
  best, _ = person_query_decoder._local_maxima(one, 6)
  assert best[0, 0] == 5 and best[0, 1:].max() <= -20
  with pytest.raises(ValueError, match='queries is 7, but the grid has 6'):
    person_query_decoder._local_maxima(one, 7)


def test_people_move_with_their_place():
  z = np.zeros((1, 6, 9, 8), np.float32)
  z[0, 2, 3] = random_input(0, (8,))
  module = centers()
  variables = random_variables(module, jnp.asarray(z), train=False)
  out, _ = forward(module, variables, jnp.asarray(z))
  moved, _ = forward(module, variables, jnp.asarray(np.roll(z, 2, 2)))
  assert out.limbs.shape == (1, 3, 4, 4) and out.adjacency_logits is None
  assert out.center_limbs.shape == (1, 6, 9, 4, 4)
  expected = np.asarray(out.center_limbs)[0, 1:4, 2:5]
  expected = expected + np.float32([2 / 9, 0, 2 / 9, 0])
  np.testing.assert_allclose(
      moved.center_limbs[0, 1:4, 4:7], expected, rtol=1e-4, atol=1e-5
  )


def test_queries_say_what_their_places_say():
  z = jnp.asarray(random_input(0, (2, 5, 6, 8)))
  module = centers()
  out, _ = forward(
      module, random_variables(module, z, train=False), z
  )
  logits = np.asarray(out.center_logits).reshape(2, -1)
  limbs = np.asarray(out.center_limbs).reshape(2, 30, 4, 4)
  for n in range(2):
    # Queries beyond the last local maximum have a very low presence.
    found = np.flatnonzero(np.asarray(out.presence_logits[n]) > -20)
    assert 0 in found
    for q in found:
      place = np.flatnonzero(logits[n] == out.presence_logits[n, q])
      np.testing.assert_array_equal(limbs[n, place[0]], out.limbs[n, q])


@pytest.mark.parametrize(
    'module',
    [
        centers(),
        heatmap_decoder.HeatmapDecoder(4, 1, 8, (8, 8), 8, 8, 1),
    ],
)
def test_decoders_read_the_skips(module):
  z, skip = (
      jnp.asarray(random_input(i, shape))
      for i, shape in enumerate([(2, 4, 5, 8), (2, 8, 10, 3)])
  )
  variables = random_variables(module, z, (skip,), train=False)
  out, _ = forward(module, variables, z, (skip,))
  other, _ = forward(module, variables, z, (skip + 1,))
  a, b = (
      x if isinstance(x, jax.Array) else x.center_logits for x in (out, other)
  )
  assert a.shape[-2:] == (8, 10) or a.shape[-3:-1] == (16, 20)
  assert jnp.abs(a - b).max() > 1e-4
  with pytest.raises(ValueError, match='8 x 10 does not fit the 7 x 10'):
    random_variables(module, z, (skip[:, :7],), train=False)


def test_more_skips_than_doublings():
  module = heatmap_decoder.HeatmapDecoder(4, 1, 8, (8,), 8, 8, 1)
  z = jnp.ones((1, 4, 5, 8))
  with pytest.raises(ValueError, match='skips is 2, but heatmap.widths'):
    random_variables(module, z, (z, z), train=False)
