"""Matching against SciPy, costs against NumPy, both against golden files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import load_golden
from scipy.optimize import linear_sum_assignment

from vemd_jax import matching, skeletons

WEIGHTS = ('l1_weight', 'adjacency_weight', 'beta')
pair_costs = jax.jit(matching.pair_costs, static_argnames=WEIGHTS)
set_loss = jax.jit(matching.set_loss, static_argnames=WEIGHTS)
assign = jax.jit(matching.assign)


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def mean_loss(queries, target):
  loss, match = matching.set_loss(*queries, target)
  return loss.mean(), (loss, match)


def random_people(rng, *shape, limbs=5, missing=0.2):
  exists = rng.random((*shape, limbs, 4)) > missing
  return matching.People(
      rng.random((*shape, limbs, 4), np.float32),
      exists,
      (rng.random((*shape, limbs, limbs)) < 0.3).astype(np.float32),
      np.ones(shape, bool),
  )


def random_queries(rng, *shape, limbs=5):
  return (
      rng.random((*shape, limbs, 4), np.float32),
      rng.standard_normal((*shape, limbs, limbs), np.float32),
  )


def numpy_cost(limbs, logits, target, l1=1.0, adjacency=0.5, beta=1.0):
  """The cost of one frame, pair by pair, in float64."""
  cost = np.zeros((len(limbs), len(target.limbs)))
  for q in range(len(limbs)):
    for p in range(len(target.limbs)):
      there = target.exists[p]
      d = np.abs(limbs[q].astype(float) - target.limbs[p])[there]
      d = np.where(d < beta, d * d / (2 * beta), d - beta / 2)
      probability = 1 / (1 + np.exp(-logits[q].astype(float)))
      t = target.adjacency[p]
      bce = -(t * np.log(probability) + (1 - t) * np.log(1 - probability))
      cost[q, p] = l1 * (d.mean() if d.size else 0) + adjacency * bce.mean()
  return cost


# --- Targets ---


def test_people_are_the_reference_limb_tensor():
  # Stored in the (x, y) order; -1 marks missing joints.
  golden = load_golden('c08_skeleton_tensor').arrays
  yx = golden['keypoints_yx']
  score = (yx[:, :1] >= 0).astype(np.float64)
  keypoints = np.concatenate([yx[:, ::-1] * score, score], 1)
  people = matching.people(
      jnp.asarray(keypoints[None], jnp.float32),
      jnp.ones(1, bool),
      skeletons.BODY_LIMBS,
      (224, 224),
  )
  wanted = golden['vgaf_limb_tensor'].reshape(18, 4)
  ours = np.where(people.exists[0], np.asarray(people.limbs[0]) * 224, -1)
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)
  # Unlike the authors', adjacency is by limb, and only of visible limbs.
  assert not np.array_equal(people.adjacency[0], golden['vgaf_adjacency'])
  shared = skeletons.shared_joint(skeletons.BODY_LIMBS)
  visible = (wanted != -1).all(1)
  np.testing.assert_array_equal(
      people.adjacency[0], shared & visible[:, None] & visible[None]
  )


def test_people_scale_x_by_width_and_y_by_height():
  keypoints = np.zeros((1, 17, 3), np.float32)
  keypoints[0, [0, 5]] = [[30, 5, 1], [60, 20, 1]]  # nose, left shoulder
  people = matching.people(
      jnp.asarray(keypoints),
      jnp.ones(1, bool),
      skeletons.BODY_LIMBS,
      (40, 120),
  )
  np.testing.assert_allclose(people.limbs[0, 0], [0.25, 0.125, 0.5, 0.5])
  # The limb to the right shoulder keeps its one end.
  np.testing.assert_array_equal(people.exists[0, 1], [True, True, False, False])
  assert people.adjacency.sum() == 0
  assert bool(people.mask[0])


def test_people_without_joints_are_not_to_be_found():
  keypoints = np.zeros((3, 17, 3), np.float32)
  keypoints[0, :, 2] = 1.0
  keypoints[1, :] = [500, 10, 1]  # outside
  people = matching.people(
      jnp.asarray(keypoints),
      jnp.ones(3, bool),
      skeletons.BODY_LIMBS,
      (40, 40),
  )
  np.testing.assert_array_equal(people.mask, [True, False, False])


def test_joints_are_means_of_limb_ends():
  rng = np.random.default_rng(0)
  points = rng.random((4, 17, 2), np.float32)
  limbs = points[:, skeletons.BODY_LIMBS].reshape(4, 18, 4)
  np.testing.assert_allclose(
      matching.joints(jnp.asarray(limbs), skeletons.BODY_LIMBS, 17),
      points,
      rtol=1e-6,
  )
  # Joint 15 has one limb, joint 13 two: a shift of one end moves it by half.
  limbs[:, 14, 2] += 1
  moved = matching.joints(jnp.asarray(limbs), skeletons.BODY_LIMBS, 17)
  np.testing.assert_allclose(moved[:, 13, 0], points[:, 13, 0] + 0.5, rtol=1e-5)


# --- Costs ---


@pytest.mark.parametrize('weights', [(1.0, 0.5, 1.0), (5.0, 0.2, 0.1)])
def test_pair_costs(weights):
  rng = np.random.default_rng(1)
  target = random_people(rng, 2, 3)
  target.exists[0, 1] = False
  limbs, logits = random_queries(rng, 2, 7)
  l1, adjacency, beta = weights
  options = dict(l1_weight=l1, adjacency_weight=adjacency, beta=beta)
  ours = pair_costs(limbs, logits, target, **options)
  wanted = [
      numpy_cost(limbs[n], logits[n], jax.tree.map(lambda x: x[n], target),  # noqa: B023
                 l1, adjacency, beta)
      for n in range(2)
  ]  # fmt: skip
  np.testing.assert_allclose(ours, wanted, rtol=1e-5)
  # One frame without leading axes, not jitted.
  first = jax.tree.map(lambda x: x[0], (limbs, logits, target))
  np.testing.assert_allclose(
      matching.pair_costs(*first, **options), ours[0], rtol=1e-6
  )
  # The matched form is the same cost.
  match = assign(ours, target.mask)
  np.testing.assert_allclose(
      matching.matched_costs(limbs, logits, target, match, **options),
      np.take_along_axis(np.asarray(ours), match.query[:, None], 1)[:, 0],
      rtol=1e-5,
  )


def test_missing_coordinates_may_hold_anything():
  rng = np.random.default_rng(2)
  target = random_people(rng, 2, 3, missing=0.4)
  limbs, logits = map(jnp.asarray, random_queries(rng, 2, 7))
  holes = np.where(target.exists, target.limbs, np.nan)
  poisoned = target._replace(limbs=holes)
  np.testing.assert_array_equal(
      pair_costs(limbs, logits, target),
      pair_costs(limbs, logits, poisoned),
  )
  grads, _ = mean_loss((limbs, logits), poisoned)
  assert all(np.isfinite(g).all() for g in grads)


def test_no_array_over_pairs_and_adjacency():
  rng = np.random.default_rng(8)
  target, queries = random_people(rng, 2, 7), random_queries(rng, 2, 9)
  jaxpr = jax.make_jaxpr(matching.pair_costs)(*queries, target)
  largest = max(v.aval.size for e in jaxpr.eqns for v in e.outvars)
  assert largest == 2 * 9 * 7 * 5 * 4


def test_wrong_shapes_raise():
  rng = np.random.default_rng(3)
  target = random_people(rng, 2, 3)
  limbs, logits = random_queries(rng, 2, 4)
  with pytest.raises(ValueError, match='adjacency logits'):
    pair_costs(limbs, logits[..., :4], target)
  with pytest.raises(ValueError, match='target limbs'):
    pair_costs(limbs[:1], logits[:1], target)
  with pytest.raises(ValueError, match='mask'):
    assign(jnp.zeros((2, 4, 3)), jnp.ones((2, 4), bool))


# --- Assignment ---


@pytest.mark.parametrize(
    ('queries', 'persons'),
    [(1, 1), (1, 8), (8, 1), (8, 3), (3, 8), (8, 8), (30, 10)],
)
def test_optimal(queries, persons):
  rng = np.random.default_rng(100 * queries + persons)
  cost = rng.standard_normal((6, queries, persons)).astype(np.float32)
  present = rng.random((6, persons)) < 0.7
  present[0], present[1] = True, False
  match = assign(cost, present)
  assert match.query.shape == match.matched.shape == present.shape
  for n in range(6):
    matched, query = np.asarray(match.matched[n]), np.asarray(match.query[n])
    assert not matched[~present[n]].any()
    assert len(set(query[matched])) == matched.sum()  # a query is assigned once
    assert matched.sum() == min(queries, present[n].sum())
    real = cost[n][:, present[n]]
    best = real[linear_sum_assignment(real)].sum()
    got = cost[n][query[matched], np.flatnonzero(matched)].sum()
    np.testing.assert_allclose(got, best, rtol=1e-5, atol=1e-5)


def test_frames_spread_over_devices():
  mesh = jax.make_mesh(
      (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rng = np.random.default_rng(9)
  cost = rng.random((8, 8, 3)).astype(np.float32)
  present = rng.random((8, 3)) < 0.8
  alone = assign(cost, present)
  spread = assign(
      *jax.device_put((cost, present), jax.NamedSharding(mesh, jax.P('data')))
  )
  np.testing.assert_array_equal(spread.query, alone.query)
  np.testing.assert_array_equal(spread.matched, alone.matched)


def test_padding_changes_nothing():
  rng = np.random.default_rng(4)
  cost = rng.random((6, 8, 3)).astype(np.float32)
  padding = -100 * rng.random((6, 8, 5)).astype(np.float32)
  padded = np.concatenate([cost, padding], -1)
  present = np.repeat([[True] * 3 + [False] * 5], 6, 0)
  alone = assign(cost, np.ones((6, 3), bool))
  with_padding = assign(padded, present)
  np.testing.assert_array_equal(alone.query, with_padding.query[:, :3])
  assert not with_padding.matched[:, 3:].any()


def test_costs_that_are_not_finite_come_last():
  cost = np.array([[np.nan, 1.0], [5.0, 3.0], [np.inf, 2.0]], np.float32)
  match = assign(cost, np.ones(2, bool))
  np.testing.assert_array_equal(match.query, [1, 0])
  hopeless = assign(np.full((3, 2), np.nan), np.ones(2, bool))
  assert hopeless.matched.all()
  assert len(set(hopeless.query.tolist())) == 2


def test_take_and_taken():
  values = jnp.arange(24.0).reshape(2, 4, 3)
  match = matching.Match(
      jnp.array([[3, 1], [2, 0]]), jnp.array([[True, True], [True, False]])
  )
  np.testing.assert_array_equal(
      matching.take(values, match), [values[0, [3, 1]], values[1, [2, 0]]]
  )
  np.testing.assert_array_equal(
      matching.taken(match, 4),
      [[False, True, False, True], [False, False, True, False]],
  )
  np.testing.assert_allclose(
      matching.matched_mean(jnp.array([[1.0, 3.0], [5.0, np.nan]]),
                            match.matched),
      [2.0, 5.0],
  )  # fmt: skip


# --- The set loss ---


def test_annotated_people_replace_decoded_ones():
  rng = np.random.default_rng(5)
  limbs, _ = random_queries(rng, 4, 6)
  target = random_people(rng, 4, 3)
  target = target._replace(mask=rng.random((4, 3)) < 0.8)
  logits = rng.standard_normal((4, 6), np.float32)
  frames = np.array([True, True, False, True])
  target = target._replace(mask=target.mask & frames[:, None])
  wanted, presence = limbs.copy(), logits.copy()
  for n in np.flatnonzero(frames):
    people = np.flatnonzero(target.mask[n])
    cost = numpy_cost(
        limbs[n], np.zeros((6, 5, 5)),
        matching.People(*(x[n] for x in target)), adjacency=0.0,
    )  # fmt: skip
    presence[n] = -20
    for q, p in zip(*linear_sum_assignment(cost[:, people])):
      exists = target.exists[n, people[p]]
      wanted[n, q][exists] = target.limbs[n, people[p]][exists]
      presence[n, q] = 10
  replaced, found = jax.jit(matching.replace)(limbs, logits, target, frames)
  np.testing.assert_allclose(replaced, wanted, rtol=1e-6)
  np.testing.assert_array_equal(found, presence)
  assert matching.replace(limbs, None, target, frames)[1] is None


def golden_frames():
  golden = load_golden('c07_skeleton_loss_b2').arrays
  n, q, _ = golden['pred_coords'].shape
  p, coords = golden['gt_coords'].shape[2], golden['gt_coords'][0]
  exists = coords != -1
  target = matching.People(
      (coords / 224).reshape(n, p, 18, 4),
      exists.reshape(n, p, 18, 4),
      golden['gt_adj'][0].reshape(n, p, 18, 18),
      np.ones((n, p), bool),
  )
  limbs = golden['pred_coords'].reshape(n, q, 18, 4)
  probability = golden['pred_adj'].astype(np.float64)
  logits = np.log(probability) - np.log1p(-probability)
  logits = logits.astype(np.float32).reshape(n, q, 18, 18)
  return golden, jnp.asarray(limbs), jnp.asarray(logits), target


def test_loss_of_the_authors():
  golden, limbs, logits, target = golden_frames()
  loss, match = set_loss(limbs, logits, target)
  np.testing.assert_allclose(loss.mean(), golden['loss'], rtol=1e-6)
  strong, _ = set_loss(limbs, logits, target, adjacency_weight=1.0)
  np.testing.assert_allclose(
      strong.mean(), golden['loss_lambda_adj_1'], rtol=1e-6
  )
  for n in range(2):
    ours = set(zip(match.query[n].tolist(), range(3)))
    theirs = set(zip(*(golden[k][n] for k in ('pred_indices', 'gt_indices'))))
    assert ours == theirs


def test_gradient_of_the_authors():
  golden, limbs, logits, target = golden_frames()
  (of_limbs, of_logits), _ = mean_loss((limbs, logits), target)
  np.testing.assert_allclose(
      of_limbs.reshape(2, 6, 72), golden['grad_pred_coords'], atol=1e-8
  )
  # Theirs is by probability: dL/dx = dL/dp p (1 - p).
  p = golden['pred_adj']
  np.testing.assert_allclose(
      of_logits.reshape(2, 6, 324),
      golden['grad_pred_adj'] * p * (1 - p),
      atol=1e-8,
  )


def test_gradient_reaches_matched_queries_alone():
  rng = np.random.default_rng(5)
  target = random_people(rng, 2, 3)
  queries = jax.tree.map(jnp.asarray, random_queries(rng, 2, 7))
  grads, (_, match) = mean_loss(queries, target)
  for grad in grads:
    moved = np.abs(grad).reshape(2, 7, -1).sum(-1) > 0
    np.testing.assert_array_equal(moved, matching.taken(match, 7))


@pytest.mark.parametrize('case', ['nobody', 'crowd', 'unseen', 'no_slots'])
def test_edge_cases_are_finite(case):
  rng = np.random.default_rng(6)
  persons = {'crowd': 9, 'no_slots': 0}.get(case, 3)
  target = random_people(rng, 2, persons)
  limbs, logits = map(jnp.asarray, random_queries(rng, 2, 7))
  if case == 'nobody':
    target.mask[0] = False
  if case == 'unseen':
    target.exists[0] = False

  grads, (loss, match) = mean_loss((limbs, logits), target)
  assert all(np.isfinite(g).all() for g in (*grads, loss))
  served = {'nobody': [0, 3], 'crowd': [7, 7], 'no_slots': [0, 0]}
  np.testing.assert_array_equal(match.matched.sum(1), served.get(case, [3, 3]))
  if case == 'nobody':
    assert loss[0] == 0 and loss[1] > 0
    assert not np.asarray(grads[0])[0].any()
  if case == 'unseen':
    # Coordinates cost nothing then; adjacency still counts.
    assert not np.asarray(grads[0])[0].any()
    assert np.asarray(grads[1])[0].any()
  if case == 'crowd':
    # The cheapest subset, and the mean over the matched people.
    for n in range(2):
      frame = jax.tree.map(lambda x: x[n], target)  # noqa: B023
      cost = numpy_cost(np.asarray(limbs[n]), np.asarray(logits[n]), frame)
      best = cost[linear_sum_assignment(cost)].mean()
      np.testing.assert_allclose(loss[n], best, rtol=1e-5)


def test_people_in_any_order():
  rng = np.random.default_rng(7)
  target = random_people(rng, 2, 3)
  queries = jax.tree.map(jnp.asarray, random_queries(rng, 2, 7))
  order = np.array([2, 0, 1])
  shuffled = jax.tree.map(lambda x: x[:, order], target)
  _, (loss, match) = mean_loss(queries, target)
  _, (again, other) = mean_loss(queries, shuffled)
  np.testing.assert_allclose(loss, again, rtol=1e-6)
  np.testing.assert_array_equal(match.query[:, order], other.query)
