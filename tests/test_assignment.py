import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vemd_jax import assignment, matching, sharding

solve = jax.jit(assignment.solve)


@pytest.mark.parametrize(
    ('rows', 'columns'), [(1, 1), (1, 7), (3, 3), (4, 10), (9, 9), (12, 60)]
)
@pytest.mark.parametrize('kind', ['any', 'tied', 'contested'])
def test_least_cost_is_that_of_scipy(rows, columns, kind):
  rng = np.random.default_rng(100 * rows + columns)
  cost = rng.standard_normal((20, rows, columns))
  if kind == 'tied':
    cost = cost.round()
  if kind == 'contested':  # All rows prefer the same columns.
    cost = 0.05 * cost + rng.random((20, 1, columns))
  cost = cost.astype(np.float32)
  found = np.asarray(solve(cost))
  assert found.dtype == np.int32
  for one, column in zip(cost, found):
    assert len(set(column.tolist())) == rows
    best = one[linear_sum_assignment(one)].sum()
    np.testing.assert_allclose(one[np.arange(rows), column].sum(), best, 1e-5)


def test_more_rows_than_columns():
  with pytest.raises(ValueError, match='3 rows for 2 columns'):
    assignment.solve(np.zeros((1, 3, 2), np.float32))


def test_each_device_solves_its_own_problems():
  """Without a collective, which would be one in each iteration of a loop."""
  mesh = sharding.make_mesh()
  rng = np.random.default_rng(9)
  cost = rng.random((16, 1, 8, 3)).astype(np.float32)
  present = rng.random((16, 1, 3)) < 0.8
  alone = jax.jit(matching.assign)(cost, present)
  step = jax.jit(sharding.constrained(mesh, matching.assign))
  spread = jax.device_put((cost, present), sharding.batch_sharding(mesh))
  program = step.lower(*spread).compile().as_text()
  assert 'while' in program
  for collective in ('all-reduce', 'all-gather', 'collective-permute'):
    assert collective not in program
  found = step(*spread)
  np.testing.assert_array_equal(found.query, alone.query)
  np.testing.assert_array_equal(found.matched, alone.matched)
