"""Every loss term against NumPy by hand, and the weighted total."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import load_golden
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from vemd_jax import losses, skeletons
from vemd_jax.models.outputs import Latent, Outputs, Structure

B, T, H, W, P, Q, C, D = 3, 2, 40, 60, 4, 6, 3, 8
GRID, SIDE, STAGES = (2, 3), (10, 15), 2
KEY = jax.random.key(0)


def make_batch(seed=0, **changes):
  rng = np.random.default_rng(seed)
  batch = {
      'image': np.zeros((B, T, H, W, 3), np.uint8),
      'label': np.array([0, 2, 1], np.int32),
      'label_mask': np.ones(B, bool),
      'label_multi_hot': np.eye(C, dtype=np.int32)[[0, 2, 1]],
      'mask': np.ones(B, bool),
      'unreadable': np.zeros(B, np.int32),
  }
  for part, points in skeletons.NUM_POINTS.items():
    xy = rng.random((B, T, P, points, 2)) * [W, H]
    score = (rng.random((B, T, P, points, 1)) > 0.2).astype(np.float32)
    batch |= {
        f'{part}_keypoints': np.concatenate(
            [xy * score, score], -1, dtype=np.float32
        ),
        f'{part}_mask': rng.random((B, T, P)) < 0.7,
        f'{part}_annotated': np.ones((B, T), bool),
        f'{part}_heatmap': rng.random(
            (B, T, *SIDE, len(skeletons.HEATMAP_LIMBS[part])), np.float32
        ),
    }
  return {k: jnp.asarray(v) for k, v in (batch | changes).items()}


def make_outputs(seed=1, encoders=1, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

  def part(name):
    limbs = len(skeletons.QUERY_LIMBS[name])
    maps = len(skeletons.HEATMAP_LIMBS[name])
    return Structure(
        heatmap_logits=normal(STAGES, B, T, *SIDE, maps),
        limbs=jax.nn.sigmoid(normal(B, T, Q, limbs, 4)),
        adjacency_logits=normal(B, T, Q, limbs, limbs),
        presence_logits=normal(B, T, Q),
    )

  grid = (B, T, *GRID, D)
  return Outputs(
      logits=normal(B, C),
      latents=tuple(
          Latent(normal(*grid), 0.3 * normal(*grid), normal(*grid))
          for _ in range(encoders)
      ),
      vit_latent=normal(*grid),
      body=part('body'),
      face=part('face'),
  )


@functools.cache
def jitted(name, kwargs):
  return jax.jit(functools.partial(losses.resolve(name), **dict(kwargs)))


def run(name, outputs, batch, **kwargs):
  """The term under jit."""
  return jitted(name, tuple(kwargs.items()))(outputs, batch, KEY)


def softmax(x):
  x = np.exp(np.asarray(x, np.float64))
  return x / x.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


# --- Every term ---

ALL = [
    ('emotion_cross_entropy', {'label_smoothing': 0.1}),
    ('multi_label_emotion', {}),
    ('focal_emotion', {}),
    ('ordinal_emotion', {}),
    ('heatmap_mse', {'part': 'body'}),
    ('heatmap_mse', {'part': 'face'}),
    ('heatmap_weighted_mse', {'part': 'body'}),
    ('heatmap_focal', {'part': 'body'}),
    ('heatmap_awing', {'part': 'body'}),
    ('person_query', {'part': 'body', 'presence_weight': 2.0}),
    ('person_query', {'part': 'face', 'presence_weight': 2.0}),
    ('oks_keypoints', {'part': 'body'}),
    ('oks_keypoints', {'part': 'face'}),
    ('kl', {'free_bits': 0.1}),
    ('mmd', {}),
    ('mmd', {'form': 'rows', 'include_vit': True}),
]
IDS = [f'{name}-{"-".join(map(str, kw.values()))}' for name, kw in ALL]


def test_every_term_is_listed():
  # These need outputs of their own; their tests are below.
  own = {'emotion_sources', 'emotion_teacher_forcing', 'person_centers'}
  assert {name for name, _ in ALL} | own == set(losses.TERMS)


@pytest.mark.parametrize(('name', 'kwargs'), ALL, ids=IDS)
def test_masks_and_gradients(name, kwargs):
  """Finite without valid examples; masked inputs have no effect."""
  terms = losses.prepare({name: {'kwargs': kwargs}})
  outputs = make_outputs()

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def total(outputs, batch):
    loss, sums = losses.total(outputs, batch, KEY, terms, 0)
    return loss, sums[name]

  batch = make_batch()
  (loss, sums), grads = total(outputs, batch)
  assert loss.dtype == jnp.float32
  assert np.isfinite(loss) and loss != 0 and sums.count == B
  flat = jax.tree.leaves(grads)
  assert all(np.isfinite(g).all() for g in flat)
  assert any(np.abs(g).max() > 0 for g in flat)

  # The last example becomes padding, whose content is arbitrary, even NaN.
  spoilt = jax.tree.map(
      lambda x: x.at[:, -1].set(jnp.nan) if x.ndim == 6 and len(x) == STAGES
      else x.at[-1].set(jnp.nan), outputs)  # fmt: skip
  padding = {**batch, 'mask': batch['mask'].at[-1].set(False)}
  (one, sums), grads = total(outputs, padding)
  (two, _), _ = total(spoilt, padding)
  assert sums.count == B - 1
  np.testing.assert_allclose(one, two, rtol=1e-6)
  for grad in jax.tree.leaves(grads):
    rows = grad[:, -1] if grad.shape[0] == STAGES else grad[-1]
    assert not np.abs(rows).any()

  (none, sums), grads = total(
      outputs, {**batch, 'mask': jnp.zeros_like(batch['mask'])}
  )
  assert none == 0 and sums.count == 0
  assert not any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))

  # The black placeholder of an unreadable image must have no effect, either.
  unreadable = {
      **batch,
      'unreadable': jnp.array([0, 0, 1]),
  }
  (again, sums), _ = total(outputs, unreadable)
  assert sums.count == B - 1
  np.testing.assert_allclose(one, again, rtol=1e-6)


@pytest.mark.parametrize(('name', 'kwargs'), dict(ALL).items(), ids=dict(ALL))
def test_bfloat16_outputs(name, kwargs):
  term = run(name, make_outputs(dtype=jnp.bfloat16), make_batch(), **kwargs)
  exact = run(name, make_outputs(), make_batch(), **kwargs)
  assert term.values.dtype == jnp.float32
  np.testing.assert_allclose(term.values, exact.values, rtol=0.1, atol=0.05)


# --- Emotion ---


def test_cross_entropy():
  outputs, batch = make_outputs(), make_batch()
  label = np.asarray(batch['label'])
  log_p = np.log(softmax(outputs.logits))
  term = run('emotion_cross_entropy', outputs, batch)
  np.testing.assert_allclose(
      term.values, -log_p[np.arange(B), label], rtol=1e-5
  )
  smooth = run('emotion_cross_entropy', outputs, batch, label_smoothing=0.3)
  target = 0.7 * np.eye(C)[label] + 0.1
  np.testing.assert_allclose(
      smooth.values, -(target * log_p).sum(-1), rtol=1e-5
  )


def test_class_weights_are_a_weighted_mean():
  outputs, batch = make_outputs(), make_batch()
  weights = (0.2, 0.1, 0.4)
  terms = losses.prepare({
      'emotion': {
          'fn': 'emotion_cross_entropy',
          'kwargs': {'class_weights': list(weights)},
      }
  })
  loss, sums = losses.total(outputs, batch, KEY, terms, 0)
  w = np.array(weights)[batch['label']]
  log_p = np.log(softmax(outputs.logits))[np.arange(B), batch['label']]
  np.testing.assert_allclose(loss, -(w * log_p).sum() / w.sum(), rtol=1e-5)
  np.testing.assert_allclose(sums['emotion'].count, w.sum(), rtol=1e-6)
  with pytest.raises(ValueError, match='3 numbers'):
    run('emotion_cross_entropy', outputs, batch, class_weights=(1.0, 2.0))


def test_focal():
  outputs, batch = make_outputs(), make_batch()
  p = softmax(outputs.logits)[np.arange(B), batch['label']]
  term = run('focal_emotion', outputs, batch, gamma=1.5)
  np.testing.assert_allclose(
      term.values, -((1 - p) ** 1.5) * np.log(p), rtol=1e-5
  )
  plain = run('emotion_cross_entropy', outputs, batch)
  none = run('focal_emotion', outputs, batch, gamma=0.0)
  np.testing.assert_allclose(none.values, plain.values, rtol=1e-5)
  # A confident correct prediction: zero loss, finite gradient for gamma < 1.
  sure = outputs.replace(logits=200 * jax.nn.one_hot(batch['label'], C))
  grad = jax.grad(
      lambda x: losses.focal_emotion(
          sure.replace(logits=x), batch, KEY, gamma=0.5
      ).values.sum()
  )(sure.logits)
  assert np.isfinite(grad).all()


def test_ordinal_costs_more_for_far_classes():
  logits = 50 * jnp.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
  batch = make_batch(label=np.zeros(3, np.int32))
  term = run('ordinal_emotion', make_outputs().replace(logits=logits), batch)
  np.testing.assert_allclose(term.values, [0, 1, 2], atol=1e-5)
  outputs, batch = make_outputs(), make_batch()
  above = np.arange(C) >= np.asarray(batch['label'])[:, None]
  wanted = ((softmax(outputs.logits).cumsum(-1) - above) ** 2).sum(-1)
  np.testing.assert_allclose(
      run('ordinal_emotion', outputs, batch).values, wanted, rtol=1e-5
  )


def test_multi_label():
  outputs, batch = make_outputs(), make_batch()
  several = np.zeros((B, C), np.int32)
  several[0, [0, 2]] = 1
  several[1, 1] = 1
  batch = {**batch, 'label_multi_hot': jnp.asarray(several)}
  term = run('multi_label_emotion', outputs, batch)
  log_p = np.log(softmax(outputs.logits))
  np.testing.assert_allclose(
      term.values[:2], [-(log_p[0, 0] + log_p[0, 2]) / 2, -log_p[1, 1]],
      rtol=1e-5,
  )  # fmt: skip
  np.testing.assert_array_equal(term.mask, [1, 1, 0])
  # With a single label it equals the cross-entropy.
  np.testing.assert_allclose(
      run('multi_label_emotion', outputs, make_batch()).values,
      run('emotion_cross_entropy', outputs, make_batch()).values, rtol=1e-6,
  )  # fmt: skip
  del batch['label_multi_hot']
  with pytest.raises(ValueError, match='label_multi_hot'):
    run('multi_label_emotion', outputs, batch)


def test_without_labels():
  outputs, batch = make_outputs(), make_batch()
  some = {**batch, 'label_mask': jnp.array([True, False, True])}
  np.testing.assert_array_equal(
      run('focal_emotion', outputs, some).mask, [1, 0, 1]
  )
  for name in ('emotion_cross_entropy', 'focal_emotion', 'ordinal_emotion'):
    # A dataset without classes (COCO) has no head.
    term = run(name, outputs.replace(logits=None), batch)
    assert not term.mask.any() and not term.values.any()
  with pytest.raises(ValueError, match='labels'):
    run('focal_emotion', outputs, {**batch, 'label': jnp.zeros(2, jnp.int32)})


# --- Heatmaps ---


def frame_mean(values, frames):
  values, frames = np.asarray(values), np.asarray(frames)
  return (values * frames).sum(1) / np.maximum(frames.sum(1), 1)


def test_heatmap_mse_of_the_authors():
  golden = load_golden('c07_stage_heatmap_mse')
  config = golden.config['inputs']
  stages = np.stack([
      np.random.default_rng(seed)
      .standard_normal(config['preds']['shape'])
      .astype(np.float32)
      for seed in config['preds']['seeds']
  ])
  target = (
      np.random.default_rng(config['gt']['seed'])
      .random(config['gt']['shape'])
      .astype(np.float32)
  )
  target = jnp.asarray(np.moveaxis(target, 2, -1))  # [2, 2, 14, 14, 6]
  logits = np.moveaxis(stages.reshape(3, 2, 2, 6, 14, 14), 3, -1)
  batch = {
      'mask': jnp.ones(2, bool),
      'body_annotated': jnp.ones((2, 2), bool),
      'body_heatmap': target,
  }
  terms = losses.prepare({'heatmap_mse': {'kwargs': {'part': 'body'}}})

  @jax.jit
  @jax.value_and_grad
  def loss(logits):
    outputs = Outputs(None, (), body=Structure(heatmap_logits=logits))
    return losses.total(outputs, batch, KEY, terms, 0)[0]

  value, grad = loss(jnp.asarray(logits))
  np.testing.assert_allclose(value, golden.arrays['f64_loss'], rtol=1e-6)
  ours = np.moveaxis(np.asarray(grad[0]), -1, 2).reshape(4, 6, 14, 14)
  np.testing.assert_allclose(
      ours, golden.arrays['grad_pred0'], rtol=1e-5, atol=1e-10
  )


def test_heatmap_mse_counts_annotated_frames():
  frames = np.array([[True, True], [True, False], [False, False]])
  outputs, batch = make_outputs(), make_batch(body_annotated=frames)
  target = np.asarray(batch['body_heatmap'])
  error = (sigmoid(outputs.body.heatmap_logits) - target) ** 2
  values = error.mean((-3, -2, -1)).sum(0)  # over stages
  term = run('heatmap_mse', outputs, batch, part='body')
  np.testing.assert_allclose(term.values, frame_mean(values, frames), rtol=1e-5)
  np.testing.assert_array_equal(term.mask, [True, True, False])


def test_heatmap_weighted_mse():
  target = np.zeros((B, T, *SIDE, 18), np.float32)
  target[..., 2:5, 3:6, :] = 0.5
  keypoints = np.zeros((B, T, P, 17, 3), np.float32)
  keypoints[..., 0, :] = keypoints[..., 5, :] = [10, 10, 1]  # limb 0 alone
  people = np.zeros((B, T, P), bool)
  people[0, :, 1] = True
  outputs = make_outputs()
  batch = make_batch(
      body_heatmap=target, body_keypoints=keypoints, body_mask=people
  )
  term = run(
      'heatmap_weighted_mse', outputs, batch, part='body', foreground=4.0
  )
  weight = np.where(target > 0, 4.0, 1.0)
  weight[0, ..., 1:] = 0  # limbs that the one person hides
  error = (sigmoid(outputs.body.heatmap_logits) - target) ** 2
  values = (error * weight).sum((-3, -2, -1)) / weight.sum((-3, -2, -1))
  np.testing.assert_allclose(
      term.values, values.sum(0).mean(1), rtol=1e-5
  )  # fmt: skip
  # Without any visible person the weights are 0 and the loss is still finite.
  hidden = {**batch, 'body_keypoints': jnp.zeros_like(batch['body_keypoints'])}
  empty = run('heatmap_weighted_mse', outputs, hidden, part='body')
  assert empty.values[0] == 0 and np.isfinite(empty.values).all()


@pytest.mark.parametrize(
    'name',
    ['heatmap_mse', 'heatmap_weighted_mse', 'heatmap_focal', 'heatmap_awing'],
)
def test_heatmaps_do_not_count_where_people_lack_labels(name):
  outputs = make_outputs()
  boxes = np.zeros((B, T, 2, 4), np.float32)
  boxes[:, :, 0] = (0, 0, W / 2, H)  # The left half; the second box is empty.
  batch = make_batch(ignore_boxes=boxes)
  if name == 'heatmap_awing':  # Its weights extend one pixel further.
    batch['body_heatmap'] = jnp.zeros_like(batch['body_heatmap'])
  plain = run(name, outputs, batch, part='body').values
  maps = np.array(outputs.body.heatmap_logits)
  half = np.arange(SIDE[1]) * W / SIDE[1] <= W / 2
  assert 0 < half.sum() < SIDE[1]
  inside, outside = maps.copy(), maps.copy()
  inside[..., half, :] += 3
  outside[..., ~half, :] += 3

  def changed(maps):
    body = outputs.body.replace(heatmap_logits=jnp.asarray(maps))
    return run(name, outputs.replace(body=body), batch, part='body').values

  np.testing.assert_allclose(changed(inside), plain, rtol=1e-6)
  assert (np.abs(changed(outside) - plain) > 1e-3).all()
  if name == 'heatmap_mse':
    error = (sigmoid(maps) - np.asarray(batch['body_heatmap'])) ** 2
    wanted = error[..., ~half, :].mean((-3, -2, -1)).sum(0).mean(1)
    np.testing.assert_allclose(plain, wanted, rtol=1e-5)


def test_presence_does_not_punish_where_people_lack_labels():
  outputs = make_outputs()
  one = np.zeros((B, T, 1, 4), np.float32)
  none = run('person_query', outputs, make_batch(ignore_boxes=one), part='body')
  plain = run('person_query', outputs, make_batch(), part='body')
  np.testing.assert_allclose(none.values, plain.values, rtol=1e-6)
  one[...] = (0, 0, 5, 5)
  batch = make_batch(ignore_boxes=one)
  gradient = jax.grad(
      lambda x: run(
          'person_query',
          outputs.replace(body=outputs.body.replace(presence_logits=x)),
          batch, part='body',
      ).values.sum()
  )(outputs.body.presence_logits)  # fmt: skip
  # Only matched queries are pushed towards presence.
  assert (np.asarray(gradient) <= 0).all() and np.asarray(gradient).any()


def test_heatmap_focal():
  outputs, batch = make_outputs(), make_batch()
  p, t = sigmoid(outputs.body.heatmap_logits), np.asarray(batch['body_heatmap'])
  bce = -(t * np.log(p) + (1 - t) * np.log(1 - p))
  values = (np.abs(t - p) ** 2 * bce).mean((-3, -2, -1)).sum(0).mean(1)
  term = run('heatmap_focal', outputs, batch, part='body')
  np.testing.assert_allclose(term.values, values, rtol=1e-5)


def test_heatmap_awing():
  rng = np.random.default_rng(3)
  # Sparse targets, so that the weighted map has both kinds of pixels.
  target = np.where(rng.random((B, T, *SIDE, 18)) < 0.01, 0.9, 0.05)
  outputs = make_outputs()
  batch = make_batch(body_heatmap=target.astype(np.float32))
  p = sigmoid(outputs.body.heatmap_logits)
  omega, theta, epsilon, alpha = 14, 0.5, 1, 2.1
  power = alpha - target
  a = (
      omega
      * (1 / (1 + (theta / epsilon) ** power))
      * power
      * (theta / epsilon) ** (power - 1)
      / epsilon
  )
  c = theta * a - omega * np.log(1 + (theta / epsilon) ** power)
  d = np.abs(target - p)
  wing = np.where(
      d < theta, omega * np.log(1 + (d / epsilon) ** power), a * d - c
  )
  near = np.zeros(target.shape)
  padded = np.pad(target, [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)])
  for y in range(SIDE[0]):
    for x in range(SIDE[1]):
      window = padded[:, :, y : y + 3, x : x + 3]
      near[:, :, y, x] = window.max((2, 3)) >= 0.2
  assert 0.02 < near.mean() < 0.5
  values = (wing * (1 + 10 * near)).mean((-3, -2, -1)).sum(0).mean(1)
  term = run('heatmap_awing', outputs, batch, part='body')
  np.testing.assert_allclose(term.values, values, rtol=1e-5)
  # The gradient is finite at the target itself.
  perfect = np.log(target / (1 - target)).astype(np.float32)
  grad = jax.jit(jax.grad(
      lambda x: losses.heatmap_awing(
          outputs.replace(body=Structure(heatmap_logits=x)), batch, KEY,
          part='body').values.sum()
  ))(jnp.asarray(perfect)[None])  # fmt: skip
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    'name', [n for n in losses.TERMS if n.startswith('heatmap')]
)
def test_heatmap_errors(name):
  outputs, batch = make_outputs(), make_batch()
  with pytest.raises(ValueError, match=f'{name}.*decodes no body'):
    run(name, outputs.replace(body=None), batch, part='body')
  with pytest.raises(ValueError, match=f'{name}.*no body heatmaps'):
    run(name, outputs.replace(body=Structure()), batch, part='body')
  with pytest.raises(ValueError, match=f'{name}.*shapes'):
    smaller = {**batch, 'body_heatmap': batch['body_heatmap'][:, :, 1:]}
    run(name, outputs, smaller, part='body')
  with pytest.raises(ValueError, match='body_heatmap'):
    run(name, outputs, {k: v for k, v in batch.items() if k != 'body_heatmap'},
        part='body')  # fmt: skip
  with pytest.raises(ValueError, match="'hand'"):
    run(name, outputs, batch, part='hand')
  # A dataset without bodies.
  bare = {k: v for k, v in batch.items() if not k.startswith('body')}
  assert not run(name, outputs, bare, part='body').mask.any()


# --- PersonQuery ---


def people_by_hand(batch, part, b, t):
  """(limb vectors, which coordinates exist, adjacency) of visible people."""
  limbs = skeletons.QUERY_LIMBS[part]
  keypoints = np.asarray(batch[f'{part}_keypoints'][b, t], np.float64)
  for p in np.flatnonzero(batch[f'{part}_mask'][b, t]):
    there = keypoints[p, :, 2] > 0.1
    if not there.any():
      continue
    ends = keypoints[p, :, :2] / [W, H]
    visible = there[limbs].all(1)
    adjacency = skeletons.shared_joint(limbs)
    adjacency = adjacency & visible[:, None] & visible[None]
    yield (
        ends[limbs].reshape(-1, 4),
        there[limbs].repeat(2, -1).reshape(-1, 4),
        adjacency,
    )


def pair_cost(limbs, logits, person):
  target, exists, adjacency = person
  d = np.abs(np.asarray(limbs, np.float64) - target)[exists]
  p = sigmoid(logits)
  bce = -(adjacency * np.log(p) + ~adjacency * np.log(1 - p))
  return (d * d / 2).mean() + 0.5 * bce.mean()


@pytest.mark.parametrize('part', ['body', 'face'])
def test_person_query(part):
  frames = np.array([[True, True], [True, False], [False, False]])
  nobody = np.ones((B, T, P), bool)
  nobody[1] = False
  nobody[0, 0, 2:] = False
  batch = make_batch(
      **{f'{part}_annotated': frames, f'{part}_mask': nobody}
  )
  outputs = make_outputs()
  structure = getattr(outputs, part)
  pose, presence = np.zeros((B, T)), np.zeros((B, T))
  people = np.zeros((B, T), bool)
  for b, t in zip(*np.nonzero(frames)):
    persons = list(people_by_hand(batch, part, b, t))
    somebody = np.zeros(Q)
    if persons:
      cost = np.array([
          [
              pair_cost(
                  structure.limbs[b, t, q],
                  structure.adjacency_logits[b, t, q],
                  person,
              )
              for person in persons
          ]
          for q in range(Q)
      ])
      row, column = linear_sum_assignment(cost)
      pose[b, t] = cost[row, column].mean()
      people[b, t] = True
      somebody[row] = 1
    p = sigmoid(structure.presence_logits[b, t])
    bce = -(somebody * np.log(p) + (1 - somebody) * np.log(1 - p))
    weight = np.where(somebody > 0, 1, 0.1)
    presence[b, t] = (weight * bce).sum() / weight.sum()
  assert people.tolist() == [[True, True], [False, False], [False, False]]

  term = run('person_query', outputs, batch, part=part, presence_weight=2.0)
  wanted = frame_mean(pose, people) + 2 * frame_mean(presence, frames)
  np.testing.assert_allclose(term.values, wanted, rtol=1e-5)
  np.testing.assert_array_equal(term.mask, [True, True, False])

  # Without presence it is the reference's loss, only on frames with people.
  off = outputs.replace(**{part: structure.replace(presence_logits=None)})
  term = run('person_query', off, batch, part=part)
  np.testing.assert_allclose(term.values, frame_mean(pose, people), rtol=1e-5)
  np.testing.assert_array_equal(term.mask, [True, False, False])


def test_presence_learns_who_is_there():
  """Presence decreases for unmatched queries and increases for matched ones."""
  outputs, batch = make_outputs(), make_batch()

  def loss(logits):
    body = outputs.body.replace(presence_logits=logits)
    term = losses.person_query(
        outputs.replace(body=body), batch, KEY, part='body'
    )
    return term.values.sum()

  grad = np.asarray(jax.jit(jax.grad(loss))(outputs.body.presence_logits))
  assert (grad != 0).all()
  counts = np.array([
      [len(list(people_by_hand(batch, 'body', b, t))) for t in range(T)]
      for b in range(B)
  ])
  np.testing.assert_array_equal((grad < 0).sum(-1), counts)


def test_every_source_answers_on_its_own():
  batch, outputs = make_batch(), make_outputs()
  classes = outputs.logits.shape[1]
  sources = np.random.default_rng(7).normal(size=(B, 3, classes))
  outputs = outputs.replace(sources=jnp.asarray(sources, jnp.float32))
  term = run('emotion_sources', outputs, batch)
  labels = np.asarray(batch['label'])
  p = softmax(sources)[np.arange(B), :, labels]
  np.testing.assert_allclose(term.values, -np.log(p).mean(1), rtol=1e-5)
  np.testing.assert_array_equal(
      term.mask, run('emotion_cross_entropy', outputs, batch).mask
  )
  with pytest.raises(ValueError, match='head.sr_input=relations'):
    run('emotion_sources', outputs.replace(sources=None), batch)


def test_parts_that_are_annotated_teach():
  batch, outputs = make_batch(), make_outputs()
  classes = outputs.logits.shape[1]
  rng = np.random.default_rng(8)
  logits = {
      part: jnp.asarray(rng.normal(size=(B, classes)), jnp.float32)
      for part in ('body', 'face')
  }
  annotated = {
      part: np.asarray(batch[f'{part}_annotated']).astype(bool).copy()
      for part in logits
  }
  annotated['body'][0] = False
  annotated['face'][0] = True
  annotated['face'][1] = annotated['body'][1] = False
  for part in logits:
    batch[f'{part}_annotated'] = jnp.asarray(annotated[part])
  outputs = outputs.replace(teacher_sources=logits)
  term = run('emotion_teacher_forcing', outputs, batch)
  labelled = run('emotion_cross_entropy', outputs, batch).mask
  labels = np.asarray(batch['label'])
  for i in range(B):
    parts = [p for p in logits if annotated[p][i].any()]
    assert term.mask[i] == (labelled[i] if parts else 0)
    if parts:
      wanted = np.mean(
          [-np.log(softmax(np.asarray(logits[p][i]))[labels[i]]) for p in parts]
      )
      np.testing.assert_allclose(term.values[i], wanted, rtol=1e-5)
  # In evaluation there is nothing to teach.
  term = run('emotion_teacher_forcing', make_outputs(), batch)
  assert not term.mask.any()


def test_oks_has_a_size_for_every_point():
  for part, count in skeletons.NUM_POINTS.items():
    assert losses.OKS_SIGMAS[part].shape == (count,)


def test_oks():
  """One query and one person, so that the assignment is trivial."""
  joints = skeletons.BODY_LIMBS
  batch = make_batch()
  keypoints = np.zeros((B, T, P, 17, 3), np.float32)
  keypoints[:, :, 0] = batch['body_keypoints'][:, :, 0]
  mask = np.zeros((B, T, P), bool)
  mask[:, :, 0] = True
  batch |= {
      'body_keypoints': jnp.asarray(keypoints),
      'body_mask': jnp.asarray(mask),
  }
  rng = np.random.default_rng(5)
  found = keypoints[:, :, 0, :, :2] + rng.normal(0, 3, (B, T, 17, 2))
  limbs = (found / [W, H])[:, :, joints].reshape(B, T, 1, 18, 4)
  outputs = make_outputs().replace(
      body=Structure(limbs=jnp.asarray(limbs, jnp.float32))
  )
  values = np.zeros((B, T))
  for b in range(B):
    for t in range(T):
      points, there = keypoints[b, t, 0, :, :2], keypoints[b, t, 0, :, 2] > 0
      size = points[there].max(0) - points[there].min(0)
      d2 = ((found[b, t] - points) ** 2).sum(-1)
      k = 2 * losses.OKS_SIGMAS['body']
      similar = np.exp(-d2 / (2 * 0.53 * size.prod() * k**2))
      ends = joints.reshape(-1)
      values[b, t] = 1 - similar[ends][there[ends]].mean()
  term = run('oks_keypoints', outputs, batch, part='body')
  np.testing.assert_allclose(term.values, values.mean(1), rtol=1e-4)
  assert 0.05 < values.mean() < 0.95
  exact = (keypoints[:, :, 0, :, :2] / [W, H])[:, :, joints]
  perfect = Structure(
      limbs=jnp.asarray(exact.reshape(B, T, 1, 18, 4), jnp.float32)
  )
  term = run('oks_keypoints', outputs.replace(body=perfect), batch, part='body')
  np.testing.assert_allclose(term.values, 0, atol=1e-6)


def test_person_centers():
  """Against plain loops over positions and people."""
  batch = make_batch()
  h, w = 6, 8
  rng = np.random.default_rng(6)
  logits = rng.normal(size=(B, T, h, w))
  limbs = rng.random((B, T, h, w, 18, 4))
  structure = Structure(
      limbs=jnp.zeros((B, T, 1, 18, 4)),
      center_logits=jnp.asarray(logits, jnp.float32),
      center_limbs=jnp.asarray(limbs, jnp.float32),
  )
  outputs = make_outputs().replace(body=structure)

  def smooth(x, beta):
    x = np.abs(x)
    return np.where(x < beta, x * x / 2 / beta, x - beta / 2)

  people = np.float64(batch['body_keypoints'])
  masks = np.asarray(batch['body_mask'])
  values = np.zeros((B, T))
  for b in range(B):
    for t in range(T):
      truth = []
      for person, there in zip(people[b, t], masks[b, t]):
        seen = (
            (person[:, 2] >= 0.1)
            & (person[:, :2] >= 0).all(1)
            & (person[:, :2] < [W, H]).all(1)
        )
        if not there or not seen.any():
          continue
        xy = person[:, :2] / [W, H]
        torso = seen & np.isin(np.arange(17), (5, 6))
        center = xy[torso if torso.any() else seen].mean(0)
        size = max(np.ptp(xy[seen], axis=0).max(), 0.05)
        truth.append((xy, seen, np.floor(center * [w, h]), size))
      focal = error = total = 0.0
      for y in range(h):
        for x in range(w):
          near = [
              np.exp(
                  -((x - cx) ** 2 + (y - cy) ** 2)
                  / (2 * max(0.7, 0.1 * size * w) ** 2)
              )
              for _, _, (cx, cy), size in truth
          ]
          peak = max(near, default=0.0)
          p = 1 / (1 + np.exp(-logits[b, t, y, x]))
          if peak == 1:
            focal -= (1 - p) ** 2 * np.log(p)
          else:
            focal -= (1 - peak) ** 4 * p**2 * np.log(1 - p)
          if peak <= 0.3:
            continue
          xy, seen, _, size = truth[int(np.argmax(near))]
          ends = xy[skeletons.BODY_LIMBS]  # [18, end, 2]
          there = seen[skeletons.BODY_LIMBS]
          d = (limbs[b, t, y, x].reshape(18, 2, 2) - ends) / size
          value = smooth(d, 0.05)[there].mean()
          both = there.all(1)
          if both.any():
            length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / size
            turn = (d[:, 1] - d[:, 0]) / np.maximum(length, 0.04)[:, None]
            value += 0.2 * smooth(turn, 0.5)[both].mean()
          error += peak * value
          total += peak
      values[b, t] = focal / max(len(truth), 1) + 5 * error / max(total, 1e-9)
  frames = np.asarray(batch['body_annotated'])
  term = run('person_centers', outputs, batch, part='body')
  wanted = (values * frames).sum(1) / np.maximum(frames.sum(1), 1)
  counted = np.asarray(term.mask) > 0
  np.testing.assert_allclose(
      np.asarray(term.values)[counted], wanted[counted], rtol=1e-3
  )
  assert counted.any()
  with pytest.raises(ValueError, match='person_query.initial=centers'):
    run('person_centers', make_outputs(), batch, part='body')


@pytest.mark.parametrize('name', ['person_query', 'oks_keypoints'])
def test_query_errors(name):
  outputs, batch = make_outputs(), make_batch()
  with pytest.raises(ValueError, match=f'{name}.*no body queries'):
    run(name, outputs.replace(body=Structure()), batch, part='body')
  with pytest.raises(ValueError, match=f'{name}.*decodes no face'):
    run(name, outputs.replace(face=None), batch, part='face')
  bare = {k: v for k, v in batch.items() if not k.startswith('body')}
  assert not run(name, outputs, bare, part='body').mask.any()


# --- KL ---


def latent(mean, log_variance):
  mean = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (B, T, *GRID, D))
  log_variance = jnp.broadcast_to(
      jnp.asarray(log_variance, jnp.float32), mean.shape
  )
  return Outputs(None, (Latent(mean, log_variance, mean),))


def test_kl_closed_form():
  outputs, batch = make_outputs(encoders=2), make_batch()
  wanted = 0
  for z in outputs.latents:
    m, v = np.float64(z.mean), np.float64(z.log_variance)
    wanted += (m**2 + np.exp(v) - v - 1).sum(-1).mean((1, 2, 3)) / 2
  term = run('kl', outputs, batch)
  np.testing.assert_allclose(term.values, wanted, rtol=1e-5)


def test_kl_is_the_mean_log_ratio():
  """The sign and size, from samples: E_q[log q(z) - log p(z)]."""
  mean, log_variance = 0.7, -1.2
  scale = np.exp(log_variance / 2)
  z = mean + scale * np.random.default_rng(0).standard_normal(400_000)
  log_q = -0.5 * ((z - mean) / scale) ** 2 - np.log(scale)
  ratio = (log_q + 0.5 * z**2).mean()
  term = run('kl', latent(mean, log_variance), make_batch())
  assert ratio > 0
  np.testing.assert_allclose(term.values / D, ratio, rtol=0.01)


def test_kl_is_least_at_the_prior():
  batch = make_batch()
  assert (run('kl', latent(0.0, 0.0), batch).values == 0).all()
  for mean, log_variance in ((1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)):
    values = run('kl', latent(mean, log_variance), batch).values
    np.testing.assert_allclose(
        values, D * (mean**2 + log_variance**2 / 2) / 2, rtol=1e-3
    )
  # Gradient descent moves the mean to 0 and reduces a large variance.
  grad = jax.grad(lambda m, v: run('kl', latent(m, v), batch).values.sum(),
                  (0, 1))(0.5, 0.5)  # fmt: skip
  assert grad[0] > 0 and grad[1] > 0


def test_kl_free_bits():
  outputs, batch = make_outputs(), make_batch()
  z = outputs.latents[0]
  m, v = np.float64(z.mean), np.float64(z.log_variance)
  channels = (m**2 + np.exp(v) - v - 1).mean((1, 2, 3)) / 2
  bits = float(np.median(channels))
  term = run('kl', outputs, batch, free_bits=bits)
  np.testing.assert_allclose(
      term.values, np.maximum(channels, bits).sum(-1), rtol=1e-5
  )
  grad = jax.grad(
      lambda x: run(
          'kl',
          outputs.replace(latents=(z.replace(mean=x),)),
          batch,
          free_bits=bits,
      ).values.sum()
  )(z.mean)
  held = np.abs(grad).sum((1, 2, 3)) > 0
  np.testing.assert_array_equal(held, channels > bits)


def test_kl_needs_a_variance():
  z = make_outputs().latents[0].replace(log_variance=None)
  with pytest.raises(ValueError, match='deterministic'):
    run('kl', Outputs(None, (z,)), make_batch())


# --- MMD ---


def numpy_mmd(x, y, kernel, unbiased=False):
  """Squared MMD of [n, d] points, pair by pair."""
  n = len(x)
  pairs = [(i, j) for i in range(n) for j in range(n) if i != j or not unbiased]
  return np.mean([
      kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j])
      - kernel(x[j], y[i])
      for i, j in pairs
  ])  # fmt: skip


def rbf(s):
  return lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * s * s))


def imq(s):
  return lambda x, y: 2 * s * s / (2 * s * s + ((x - y) ** 2).sum())


def test_mmd_rows_of_the_authors():
  golden = load_golden('c07_mmd')
  z, prior = (golden.inputs()[k] for k in ('z', 'prior'))

  @jax.jit
  @jax.value_and_grad
  def mean(x):
    return losses.mmd_contributions(x, prior).mean()

  # Channels first, so that the last two axes are rows and pixels.
  value, grad = mean(z)
  np.testing.assert_allclose(value, golden.arrays['f64_rbf_4d'], rtol=1e-6)
  np.testing.assert_allclose(
      grad, golden.arrays['rbf_4d_grad_x'], rtol=1e-3, atol=1e-9
  )
  wide = losses.mmd_contributions(z, prior, bandwidths=(2.0,)).mean()
  np.testing.assert_allclose(wide, golden.arrays['rbf_4d_sigma2'], rtol=2e-6)


def test_mmd_of_vectors_of_the_authors():
  golden = load_golden('c07_mmd')
  a, b = (golden.inputs()[k] for k in 'ab')

  def value_and_grad(x, y, kernel):
    def mean(x):
      return losses.mmd_contributions(x, y, kernels=(kernel,)).mean()

    return jax.jit(jax.value_and_grad(mean))(x)

  scale = np.float32(0.2)
  for name, x, y, kernel in (
      ('rbf_2d', a, b, 'rbf'),
      ('rbf_2d_small', scale * a, scale * b, 'rbf'),
      ('linear_2d', a, b, 'linear'),
  ):
    value, grad = value_and_grad(x, y, kernel)
    wanted = golden.arrays.get(f'f64_{name}', golden.arrays[name])
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(
        grad, golden.arrays[f'{name}_grad_x'], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('unbiased', [False, True])
def test_mmd_by_hand(unbiased):
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 7, 3)).astype(np.float32)
  mask = np.array([True, True, False, True, True, True, False])
  x[2] = np.nan  # masked
  ours = jax.jit(
      functools.partial(
          losses.mmd_contributions,
          kernels=('rbf', 'imq'),
          bandwidths=(0.5, 2.0),
          estimator='unbiased' if unbiased else 'biased',
      )
  )(x, y, mask)
  kernels = [k(s) for k in (rbf, imq) for s in (0.5, 2.0)]
  wanted = np.mean([
      numpy_mmd(x[mask], y[mask], kernel, unbiased) for kernel in kernels
  ])
  assert ours.shape == (7,) and not np.asarray(ours)[~mask].any()
  np.testing.assert_allclose(ours[mask].mean(), wanted, rtol=1e-5)


def test_unbiased_mmd_is_zero_for_equal_distributions():
  x, y = np.random.default_rng(1).standard_normal((2, 400, 30, 2))
  biased = losses.mmd_contributions(x, y).mean()
  unbiased = losses.mmd_contributions(x, y, estimator='unbiased')
  error = unbiased.mean(1).std() / np.sqrt(400)
  assert abs(unbiased.mean()) < 4 * error
  assert biased > 20 * error


def test_reference_rows_do_not_reach_zero():
  """Fault 16: the row form stays at about 2/7 even for samples of the prior."""
  rng = np.random.default_rng(2)
  grid = (B, T, 7, 7, 64)
  z = jnp.asarray(rng.standard_normal(grid, np.float32))
  outputs = Outputs(None, (Latent(z, None, z),))
  rows = run('mmd', outputs, make_batch(), form='rows').values
  np.testing.assert_allclose(rows, 2 / 7, atol=0.02)
  assert abs(run('mmd', outputs, make_batch()).values.mean()) < 0.02


def test_mmd_forms_of_a_latent():
  """What forms a point: the same sums, pair by pair in NumPy."""
  outputs, batch = make_outputs(encoders=2), make_batch()
  z = np.concatenate([s.sample for s in outputs.latents], -1)  # [.., 2 D]
  prior = np.asarray(jax.random.normal(KEY, (z.size,))).reshape(z.shape)
  h, w = GRID

  term = run('mmd', outputs, batch, kernels=('imq',), bandwidths=(3.0,))
  wanted = np.mean([
      numpy_mmd(
          z[:, :, i, j].reshape(B * T, -1),
          prior[:, :, i, j].reshape(B * T, -1),
          imq(3.0),
          unbiased=True,
      )
      for i in range(h)
      for j in range(w)
  ])
  np.testing.assert_allclose(term.values.mean(), wanted, rtol=1e-4)

  with_vit = np.concatenate([z, outputs.vit_latent], -1)
  prior = np.asarray(jax.random.normal(KEY, (with_vit.size,)))
  prior = prior.reshape(with_vit.shape)
  term = run('mmd', outputs, batch, form='rows', include_vit=True)
  wanted = [
      np.mean([
          numpy_mmd(
              with_vit[b, t, :, :, d], prior[b, t, :, :, d], rbf(1.0)
          )
          for t in range(T)
          for d in range(3 * D)
      ])
      for b in range(B)
  ]
  np.testing.assert_allclose(term.values, wanted, rtol=1e-5)


def test_mmd_of_a_training_step_of_the_authors():
  golden = load_golden('c11_train_step_detr')
  z = jnp.asarray(golden.arrays['z'])
  prior = golden.inputs()['prior']
  value = losses.mmd_contributions(z, prior).mean()
  np.testing.assert_allclose(value, golden.arrays['loss_mmd'], rtol=2e-6)


def test_mmd_tells_distributions_apart():
  batch = make_batch(label=np.zeros(B, np.int32))
  rng = np.random.default_rng(3)
  noise = rng.standard_normal((B, 8, 3, 3, 16), np.float32)
  values = []
  for shift in (0.0, 0.5, 1.5):
    z = jnp.asarray(noise + np.float32(shift))
    outputs = Outputs(None, (Latent(z, None, z),))
    values.append(float(run('mmd', outputs, batch).values.mean()))
  assert values[0] < values[1] < values[2]


def test_mmd_errors():
  outputs, batch = make_outputs(), make_batch()
  for kwargs, match in (
      ({'form': 'columns'}, 'columns'),
      ({'kernels': ('cubic',)}, 'cubic'),
      ({'kernels': ()}, 'kernels'),
      ({'estimator': 'median'}, 'median'),
  ):
    with pytest.raises(ValueError, match=match):
      run('mmd', outputs, batch, **kwargs)
  with pytest.raises(ValueError, match='no ViT'):
    run('mmd', outputs.replace(vit_latent=None), batch, include_vit=True)
  with pytest.raises(ValueError, match='shapes'):
    losses.mmd_contributions(jnp.zeros((3, 2)), jnp.zeros((4, 2)))


# --- The total ---


def constant(outputs, batch, rng, *, value=2.0):
  """An external term, found by import path."""
  del outputs, batch, rng
  return losses.Term(jnp.full(B, value), jnp.ones(B))


def random_value(outputs, batch, rng):
  del outputs
  return losses.Term(jax.random.uniform(rng, (B,)), batch['mask'])


def scalar(outputs, batch, rng):
  del outputs, rng
  return losses.Term(jnp.zeros(()), batch['mask'])


HERE = f'{__name__}:constant'


def test_total_is_the_weighted_sum_of_masked_means():
  outputs = make_outputs()
  batch = make_batch(label_mask=np.array([True, False, True]))
  terms = losses.prepare(
      ConfigDict({
          'emotion': {'fn': 'emotion_cross_entropy', 'weight': 0.5},
          'maps': {
              'fn': 'heatmap_mse',
              'weight': 2.0,
              'kwargs': {'part': 'body'},
          },
          'mine': {'fn': HERE, 'weight': 3, 'kwargs': {'value': 4.0}},
      })
  )
  loss, sums = jax.jit(losses.total, static_argnums=3)(
      outputs, batch, KEY, terms, 0
  )
  emotion = run('emotion_cross_entropy', outputs, batch).values
  maps = run('heatmap_mse', outputs, batch, part='body').values
  wanted = 0.5 * (emotion[0] + emotion[2]) / 2 + 2 * maps.mean() + 3 * 4
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)
  assert loss.shape == () and loss.dtype == jnp.float32
  assert list(sums) == ['emotion', 'maps', 'mine']
  np.testing.assert_allclose(sums['emotion'].total, emotion[0] + emotion[2],
                             rtol=1e-6)  # fmt: skip
  assert [float(s.count) for s in sums.values()] == [2, 3, 3]
  assert [float(s.weight) for s in sums.values()] == [0.5, 2, 3]


def test_padding_never_counts():
  terms = losses.prepare({'mine': {'fn': HERE}})
  batch = make_batch(mask=np.array([True, True, False]))
  loss, sums = losses.total(make_outputs(), batch, KEY, terms, 0)
  assert loss == 2.0 and sums['mine'].count == 2


def test_each_term_has_its_own_key():
  path = f'{__name__}:random_value'
  terms = losses.prepare({'a': {'fn': path}, 'b': {'fn': path}})
  _, sums = losses.total(make_outputs(), make_batch(), KEY, terms, 0)
  assert sums['a'].total != sums['b'].total
  key = jax.random.fold_in(KEY, zlib.crc32(b'a'))
  np.testing.assert_allclose(
      sums['a'].total, jax.random.uniform(key, (B,)).sum(), rtol=1e-6
  )


@pytest.mark.parametrize(
    ('schedule', 'wanted'),
    [
        ({}, [2, 2, 2, 2, 2, 2, 2]),
        ({'weight': ((0, 0), (2, 2.0))}, [0, 0, 2, 2, 2, 2, 2]),
        ({'weight': ((0, 1), (3, 0), (5, 2))}, [1, 1, 1, 0, 0, 2, 2]),
        ({'warmup_steps': 4}, [0, 0.5, 1, 1.5, 2, 2, 2]),
        (
            {'weight': ((0, 0), (2, 2)), 'warmup_steps': 2},
            [0, 0, 0, 1, 2, 2, 2],
        ),
        ({'schedule': 'cyclic', 'warmup_steps': 2}, [0, 1, 2, 2, 0, 1, 2]),
    ],
)
def test_schedules(schedule, wanted):
  terms = losses.prepare({'mine': {'fn': HERE, 'weight': 2.0, **schedule}})
  total = jax.jit(losses.total, static_argnums=3)
  got = [
      total(make_outputs(), make_batch(), KEY, terms, jnp.int32(step))
      for step in range(7)
  ]
  np.testing.assert_allclose([s['mine'].weight for _, s in got], wanted)
  np.testing.assert_allclose([loss for loss, _ in got], np.array(wanted) * 2)


def test_total_names_the_term_that_does_not_fit():
  outputs, batch = make_outputs().replace(body=None), make_batch()
  terms = losses.prepare({'maps': {'fn': 'heatmap_mse',
                                   'kwargs': {'part': 'body'}}})  # fmt: skip
  with pytest.raises(ValueError, match=r'losses\.maps: .*decodes no body'):
    losses.total(outputs, batch, KEY, terms, 0)
  terms = losses.prepare({'odd': {'fn': f'{__name__}:scalar'}})
  with pytest.raises(ValueError, match=r'losses\.odd: values \(\)'):
    losses.total(outputs, batch, KEY, terms, 0)


def test_resolve():
  assert losses.resolve('kl') is losses.kl
  assert losses.resolve(HERE) is constant
  with pytest.raises(ValueError, match="did you mean 'heatmap_mse'"):
    losses.resolve('heatmap_mes')
  for name in ('no_such_module:fn', 'vemd_jax.losses:no_such', 'total', ':x'):
    with pytest.raises(ValueError, match=name):
      losses.resolve(name)
  with pytest.raises(ValueError, match=r'KERNELS.*function'):
    losses.resolve('vemd_jax.losses:KERNELS')


@pytest.mark.parametrize(
    ('entry', 'match'),
    [
        ({'fn': 'kl', 'kwargs': {'free_bit': 1.0}}, 'kwargs.free_bit: .*free_'),
        ({'fn': 'heatmap_mse'}, 'x.kwargs.part: missing'),
        ({'fn': 'kl', 'wieght': 1.0}, 'x.wieght'),
        ({'fn': 'kl', 'weight': '1'}, 'x.weight'),
        ({'fn': 'kl', 'weight': True}, 'x.weight'),
        ({'fn': 'kl', 'warmup_steps': -1}, 'x.warmup_steps'),
        ({'fn': 'kl', 'warmup_steps': 1.5}, 'x.warmup_steps'),
        ({'fn': 'kl', 'weight': ((0, 1.0), (5, '1'))}, 'x.weight'),
        ({'fn': 'kl', 'schedule': 'cosine'}, 'x.schedule'),
        ({'fn': 'kl', 'schedule': 'cyclic'}, 'x.schedule'),
        ({'fn': 'kll'}, 'kll'),
    ],
)
def test_prepare_names_what_is_wrong(entry, match):
  with pytest.raises(ValueError, match=match):
    losses.prepare({'x': entry})


def test_prepare_needs_a_term():
  with pytest.raises(ValueError, match='no term'):
    losses.prepare({})
  # The function's name is the default for `fn`.
  assert losses.prepare({'kl': {}})[0].fn is losses.kl
