"""Inversion: a decoder trained from a tap to the picture."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vemd_jax.audit import measure, taps
from vemd_jax.audit.measure import Measure

_BATCH, _HIDDEN = 64, 512
# Constants of SSIM for values 0..1 (Wang et al. 2004, IEEE TIP 13(4)).
_C1, _C2, _SIGMA, _RADIUS = 0.01**2, 0.03**2, 1.5, 5


class Decoder(nn.Module):
  """A linear map to a picture of `taps.SIDE`, and a hidden layer beside it."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[n, k] -> [n, SIDE, SIDE, 3], 0..1."""
    shape = taps.SIDE, taps.SIDE, 3
    size = math.prod(shape)
    hidden = nn.relu(nn.Dense(_HIDDEN)(x))
    small = nn.initializers.variance_scaling(0.1, 'fan_in', 'normal')
    y = nn.Dense(size, kernel_init=small)(x)
    y = y + nn.Dense(size, use_bias=False, kernel_init=small)(hidden)
    return nn.sigmoid(y.reshape(-1, *shape))


def train(
    inputs: np.ndarray, pictures: np.ndarray, steps: int, seed: int = 0
) -> tuple[Decoder, dict]:
  """Trains the decoder by the squared error.

  Args:
    inputs: [n, k] values of the tap.
    pictures: [n, SIDE, SIDE, 3], 0..1.
    steps: number of steps.
    seed: seed.

  Returns:
    (module, variables).
  """
  decoder = Decoder()
  variables = decoder.init(jax.random.key(seed), jnp.asarray(inputs[:1]))
  optimizer = optax.adamw(
      optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-3
  )

  @jax.jit
  def step(variables, state, x, y):
    def loss(variables):
      return jnp.mean((decoder.apply(variables, x) - y) ** 2)

    updates, state = optimizer.update(
        jax.grad(loss)(variables), state, variables
    )
    return optax.apply_updates(variables, updates), state

  state = optimizer.init(variables)
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    chosen = rng.integers(len(inputs), size=_BATCH)
    variables, state = step(
        variables, state, inputs[chosen], pictures[chosen]
    )
  return decoder, variables


def reconstruct(
    decoder: Decoder, variables: dict, inputs: np.ndarray
) -> np.ndarray:
  """Applies the decoder: [n, k] -> [n, SIDE, SIDE, 3], 0..1."""
  apply = jax.jit(decoder.apply)
  return np.concatenate([
      np.asarray(apply(variables, part))
      for part in np.array_split(inputs, -(-len(inputs) // 256))
  ])


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio of pictures [n, ...] 0..1: [n], in dB."""
  error = np.mean((one - other) ** 2, tuple(range(1, one.ndim)))
  return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Mean structural similarity of the grey values.

  Args:
    one: [n, h, w, 3], 0..1.
    other: [n, h, w, 3].

  Returns:
    [n], -1..1, with a Gaussian window of 1.5 pixels, over the positions at
    which the window of 11 x 11 lies inside.
  """
  from scipy import ndimage

  def blur(x):
    x = ndimage.gaussian_filter(
        x, (0, _SIGMA, _SIGMA), truncate=_RADIUS / _SIGMA
    )
    return x[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]

  a, b = (x.astype(np.float64).mean(-1) for x in (one, other))
  mean_a, mean_b = blur(a), blur(b)
  var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
  both = blur(a * b) - mean_a * mean_b
  value = ((2 * mean_a * mean_b + _C1) * (2 * both + _C2)) / (
      (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
  )
  return value.mean((1, 2))


def measures(
    tap: str, true: np.ndarray, found: np.ndarray, mean: np.ndarray
) -> list[Measure]:
  """Compares reconstructions with the pictures.

  Args:
    tap: name of the tap.
    true: [n, SIDE, SIDE, 3].
    found: [n, SIDE, SIDE, 3], the reconstructions.
    mean: [SIDE, SIDE, 3], the mean picture, which needs no tap: chance.

  Returns:
    The measures, means over the pictures.
  """
  result = []
  for metric, function in (('PSNR (dB)', psnr), ('SSIM', ssim)):
    values = function(true, found)
    chance = function(true, np.broadcast_to(mean, true.shape)).mean()
    interval = measure.bootstrap(
        lambda w, v=values: float(np.average(v, weights=w)),
        np.arange(len(values)),
        'samples',
    )
    result.append(
        Measure('inversion', f'{taps.SIDE} × {taps.SIDE} pixels', tap, metric,
                *interval, float(chance), len(values), 'samples',
                'neural network')
    )  # fmt: skip
  return result
