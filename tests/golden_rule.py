"""Golden files: outputs of the authors' code for weights derived from names.

The weights are not stored; `rule` makes each one from its name in the torch
state dict. Small files, or cut-down copies, live in `tests/golden`. The full
set is looked for in the folder that `VEMD_GOLDEN` names, else in
`../shared/golden` beside the repository.

A cut-down copy says what it kept in `config['cut']`: for an array, the step
along each of its axes (`[1, 4]` keeps every fourth channel).
"""

import dataclasses
import json
import os
import pathlib
import zlib

import jax
import numpy as np
import pytest

_REPO = pathlib.Path(__file__).parents[1]
SMALL = _REPO / 'tests' / 'golden'
FULL = pathlib.Path(
    os.environ.get('VEMD_GOLDEN', _REPO.parent / 'shared' / 'golden')
)


def rule(name: str, shape) -> np.ndarray:
  """Value of the torch tensor `name`: float32 of `shape`."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  shape = tuple(shape)
  if name.endswith('running_var'):
    value = 0.5 + rng.random(shape)
  elif name.endswith('running_mean'):
    value = 0.1 * rng.standard_normal(shape)
  elif len(shape) == 1:
    value = 0.1 * rng.standard_normal(shape)
    value += 1.0 if name.endswith('weight') else 0.0
  else:
    value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
  return np.asarray(value, np.float32)


def random_input(seed: int, shape) -> np.ndarray:
  """Input of the golden files: a float32 normal sample."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def channels_last(array: np.ndarray) -> np.ndarray:
  """[N, C, ...] -> [N, ..., C]."""
  return np.moveaxis(array, 1, -1)


def channels_first(array) -> np.ndarray:
  """[N, ..., C] -> [N, C, ...]."""
  return np.moveaxis(np.asarray(array), -1, 1)


def random_variables(module, *inputs, **options) -> dict:
  """Random variables of a Linen module, without compiling its `init`.

  Kernels are scaled by their inputs, scales and variances are about 1.
  """
  shapes = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *inputs, **options)
  )
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    value = rng.standard_normal(leaf.shape)
    if leaf.ndim > 1:
      value /= np.sqrt(np.prod(leaf.shape[:-1]))
    elif path[-1].key in ('scale', 'var'):
      value = 1 + 0.1 * np.abs(value)
    else:
      value *= 0.1
    return np.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


@dataclasses.dataclass(frozen=True)
class Golden:
  """One golden file: `config`, `manifest` and the stored `arrays`."""

  name: str
  config: dict
  manifest: list
  arrays: dict[str, np.ndarray]

  def state_dict(self) -> dict[str, np.ndarray]:
    """The torch state dict by the rule, computed buffers left out."""
    tensors = {}
    for name, shape, how in self.manifest:
      if how == 'rule':
        tensors[name] = rule(name, shape)
      elif how == 'zero':
        tensors[name] = np.zeros(shape, np.int64)
    return tensors

  def inputs(self) -> dict[str, np.ndarray]:
    """The inputs that are generated from a seed, channels first."""
    return {
        key: random_input(entry['seed'], entry['shape'])
        for key, entry in self.config['inputs'].items()
        if isinstance(entry, dict) and 'seed' in entry
    }

  def tolerance(self, key: str) -> float:
    """10 x the file's own float32-float64 difference, and never 0."""
    noise = 10 * self.config['f32_vs_f64_maxabs'][key]
    return max(noise, 1e-6 * self.config['f64_maxabs'][key])

  def error(self, key: str, ours) -> float:
    """Largest difference of `ours` (channels first) from the stored array."""
    steps = self.config.get('cut', {}).get(key, ())
    ours = np.asarray(ours)[tuple(slice(None, None, s) for s in steps)]
    theirs = self.arrays[key]
    assert ours.shape == theirs.shape, (self.name, key, ours.shape)
    return float(np.abs(ours.astype(np.float64) - theirs).max())

  def check(self, key: str, ours, tolerance: float | None = None):
    """Asserts that `ours` (channels first) is the stored array."""
    tolerance = self.tolerance(key) if tolerance is None else tolerance
    error = self.error(key, ours)
    assert error <= tolerance, f'{self.name} {key}: {error} > {tolerance}'


def load_golden(name: str) -> Golden:
  """Loads `name` (without .npz); skips the test if the file is not found."""
  for folder in (FULL, SMALL):
    path = folder / f'{name}.npz'
    if path.exists():
      with np.load(path) as file:
        arrays = dict(file)
      config = json.loads(str(arrays.pop('config', '{}')))
      manifest = json.loads(str(arrays.pop('manifest', '[]')))
      return Golden(name, config, manifest, arrays)
  pytest.skip(f'golden file {name}.npz is neither in {SMALL} nor in {FULL}')
