"""Set loss of PersonQuery: the vectorised version against a loop over pairs.

Measures loss and gradient for 32 frames x 100 queries x 10 people (18 limbs).
The loop computes the costs pair by pair and assigns with SciPy, like the
reference. It uses PyTorch with autograd, as the reference does, if that is
installed; otherwise NumPy with a hand-written gradient of the matched pairs,
which is far less work.

  python benchmarks/matching.py [--runs=5] [--loop=numpy]
"""

import argparse
import importlib.util
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from vemd_jax import matching, skeletons

FRAMES, QUERIES, PEOPLE = 32, 100, 10
LIMBS = len(skeletons.BODY_LIMBS)


def inputs(seed: int = 0):
  """Random predictions, and people with a tenth of their limb ends missing."""
  rng = np.random.default_rng(seed)
  limbs = rng.random((FRAMES, QUERIES, LIMBS, 4), np.float32)
  logits = rng.standard_normal((FRAMES, QUERIES, LIMBS, LIMBS), np.float32)
  target = rng.random((FRAMES, PEOPLE, LIMBS, 4), np.float32)
  exists = rng.random((FRAMES, PEOPLE, LIMBS, 2)) > 0.1
  shared = skeletons.shared_joint(skeletons.BODY_LIMBS)
  adjacency = np.broadcast_to(shared, (FRAMES, PEOPLE, LIMBS, LIMBS))
  return limbs, logits, matching.People(
      target,
      exists.repeat(2, -1),
      adjacency.astype(np.float32),
      np.ones((FRAMES, PEOPLE), bool),
  )


@jax.jit
@jax.value_and_grad
def ours(predictions, people):
  limbs, logits = predictions
  return matching.set_loss(limbs, logits, people)[0].mean()


def torch_loop(limbs, logits, people):
  """The loop in PyTorch: one small graph per pair."""
  import torch
  from torch.nn import functional

  limbs = torch.tensor(limbs).flatten(2).requires_grad_()
  logits = torch.tensor(logits).flatten(2).requires_grad_()
  target = torch.tensor(people.limbs).flatten(2)
  exists = torch.tensor(people.exists).flatten(2)
  adjacency = torch.tensor(people.adjacency).flatten(2)
  losses = []
  # Unbind once: the gradient of indexing would fill a whole array per pair.
  frames = zip(limbs.unbind(), torch.sigmoid(logits).unbind())
  for n, (frame_limbs, frame_adjacency) in enumerate(frames):
    cost = torch.zeros(QUERIES, PEOPLE)
    pairs = zip(frame_limbs.unbind(), frame_adjacency.unbind())
    for q, (query, probability) in enumerate(pairs):
      for p in range(PEOPLE):
        there = exists[n, p]
        l1 = functional.smooth_l1_loss(query, target[n, p], reduction='none')
        l1 = (l1 * there).sum() / there.sum().clamp(min=1)
        bce = functional.binary_cross_entropy(probability, adjacency[n, p])
        cost[q, p] = l1 + 0.5 * bce
    row, column = linear_sum_assignment(cost.detach().numpy())
    losses.append(cost[row, column].mean())
  loss = torch.stack(losses).mean()
  loss.backward()
  shape = (FRAMES, QUERIES, LIMBS)
  return loss.item(), (
      limbs.grad.numpy().reshape(*shape, 4),
      logits.grad.numpy().reshape(*shape, LIMBS),
  )


def numpy_loop(limbs, logits, people):
  """The loop in NumPy, with a hand-written gradient of the matched pairs."""
  loss, grads = 0.0, (np.zeros_like(limbs), np.zeros_like(logits))
  for n in range(FRAMES):
    cost = np.zeros((QUERIES, PEOPLE))
    for q in range(QUERIES):
      for p in range(PEOPLE):
        there = people.exists[n, p]
        d = np.abs(limbs[n, q][there] - people.limbs[n, p][there])
        l1 = np.where(d < 1, 0.5 * d * d, d - 0.5).mean()
        x, t = logits[n, q], people.adjacency[n, p]
        probability = 1 / (1 + np.exp(-x))
        bce = -np.mean(
            t * np.log(probability) + (1 - t) * np.log(1 - probability)
        )
        cost[q, p] = l1 + 0.5 * bce
    share = 1 / (FRAMES * PEOPLE)
    for q, p in zip(*linear_sum_assignment(cost)):
      loss += cost[q, p] * share
      there = people.exists[n, p]
      d = np.clip(limbs[n, q] - people.limbs[n, p], -1, 1)
      grads[0][n, q] = np.where(there, d, 0) / there.sum() * share
      x, t = logits[n, q], people.adjacency[n, p]
      grads[1][n, q] = 0.5 * (1 / (1 + np.exp(-x)) - t) / t.size * share
  return loss, grads


def median_seconds(fn, runs: int) -> float:
  times = []
  for _ in range(runs):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', type=int, default=5, help='runs of the loop')
  torch = importlib.util.find_spec('torch') is not None
  parser.add_argument(
      '--loop',
      choices=('torch', 'numpy'),
      default='torch' if torch else 'numpy',
  )
  args = parser.parse_args()
  runs = args.runs

  limbs, logits, people = inputs()
  predictions = (jnp.asarray(limbs), jnp.asarray(logits))
  on_device = jax.tree.map(jnp.asarray, people)

  def fast():
    return jax.block_until_ready(ours(predictions, on_device))

  loop = torch_loop if args.loop == 'torch' else numpy_loop

  def slow():
    return loop(limbs, logits, people)

  value, gradient = fast()
  loop_value, loop_gradient = slow()
  np.testing.assert_allclose(value, loop_value, rtol=1e-5)
  for ours_, theirs in zip(gradient, loop_gradient):
    np.testing.assert_allclose(ours_, theirs, rtol=1e-3, atol=1e-8)

  seconds = median_seconds(fast, 20 * runs)
  loop_seconds = median_seconds(slow, runs)
  print(f'{FRAMES} frames x {QUERIES} queries x {PEOPLE} people, medians:')
  print(f'  loop over pairs ({args.loop}, {runs} runs): {loop_seconds:.3f} s')
  print(f'  vectorised ({20 * runs} runs): {1e3 * seconds:.2f} ms')
  print(f'  ratio: {loop_seconds / seconds:.0f}')


if __name__ == '__main__':
  main()
