"""Loss terms of the latent: KL divergence and maximum mean discrepancy."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vemd_jax.losses.term import (
  Batch,
  Term,
  check_same_shape,
  f32,
  real,
)
from vemd_jax.models.outputs import Outputs


def kl(
    outputs: Outputs, batch: Batch, rng: jax.Array, *, free_bits: float = 0.0
) -> Term:
  """KL divergence of the latent Gaussians from the standard normal.

  `KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - log s^2 - 1) / 2` (arXiv 1312.6114,
  app. B). Two encoders are summed. The weight of the term is the beta of a
  beta-VAE, so a schedule of the weight anneals it.

  Args:
    outputs: latents, mean and log_variance [B, T, h, w, D].
    batch: mask.
    rng: not used.
    free_bits: lower bound in nats of each channel's divergence, the mean over
      frames and positions; below it there is no gradient (arXiv 1606.04934).

  Returns:
    Nats per position, summed over channels.
  """
  del rng
  values = jnp.zeros(batch['mask'].shape, jnp.float32)
  for latent in outputs.latents:
    if latent.log_variance is None:
      raise ValueError('kl: the latent is deterministic and has no variance')
    mean, log_variance = f32(latent.mean), f32(latent.log_variance)
    check_same_shape('kl', mean, log_variance)
    # expm1 stays accurate near the prior, where exp(v) - 1 - v cancels.
    nats = 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance)
    channels = nats.mean((1, 2, 3))  # [B, D]
    values = values + jnp.maximum(channels, free_bits).sum(-1)
  return Term(values, real(batch))


KERNELS = ('rbf', 'imq', 'linear')


def _kernel(name, x, y, bandwidth):
  """[..., n, m] kernel between points [..., n, d] and [..., m, d]."""
  product = jnp.einsum(
      '...id,...jd->...ij', x, y, precision=jax.lax.Precision.HIGHEST
  )
  if name == 'linear':
    return product
  squared = jnp.sum(x * x, -1)[..., :, None] + jnp.sum(y * y, -1)[..., None, :]
  squared = jnp.maximum(squared - 2 * product, 0.0)
  if name == 'rbf':
    return jnp.exp(-squared / (2 * bandwidth**2))
  scale = 2 * bandwidth**2
  return scale / (scale + squared)


def mmd_contributions(
    x: jax.Array,
    y: jax.Array,
    mask: jax.Array | None = None,
    *,
    kernels: Sequence[str] = ('rbf',),
    bandwidths: Sequence[float] = (1.0,),
    estimator: str = 'biased',
) -> jax.Array:
  """Contribution of each point to the squared maximum mean discrepancy.

  `MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` (Gretton et al., JMLR
  13, 2012); the estimate is the mean over unmasked points. Kernels:
  'rbf' `exp(-d^2 / 2 s^2)`, 'imq' `2 s^2 / (2 s^2 + d^2)`, 'linear' `x . y`;
  several kernels and bandwidths are averaged.

  Args:
    x: [..., n, d] points.
    y: [..., n, d] points of the other distribution.
    mask: [..., n] bool, indices whose points in `x` and `y` are used; None for
      all.
    kernels: kernel names.
    bandwidths: bandwidths s of rbf and imq.
    estimator: 'biased' (all pairs, >= 0) or 'unbiased' (excludes pairs of equal
      index, within and across samples; requires at least two points).

  Returns:
    [..., n] float32, 0 where masked.

  Raises:
    ValueError: for different shapes, or unknown kernels or estimators.
  """
  x, y = f32(x), f32(y)
  check_same_shape('mmd', x, y)
  unknown = [name for name in kernels if name not in KERNELS]
  if unknown or not kernels or not bandwidths:
    raise ValueError(
        f'mmd: kernels {tuple(kernels)} at bandwidths {tuple(bandwidths)},'
        f' expected some of {KERNELS}'
    )
  if estimator not in ('biased', 'unbiased'):
    raise ValueError(
        f"mmd: estimator {estimator!r}, expected 'biased' or 'unbiased'"
    )
  n = x.shape[-2]
  mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask.astype(bool)
  check_same_shape('mmd mask', mask, x[..., 0])
  x, y = jnp.where(mask[..., None], x, 0.0), jnp.where(mask[..., None], y, 0.0)
  pairs = mask[..., :, None] & mask[..., None, :]
  if estimator == 'unbiased':
    pairs = pairs & jnp.broadcast_to(~np.eye(n, dtype=bool), pairs.shape)
  pairs = f32(pairs)
  shares = []
  for name in kernels:
    for bandwidth in (0.0,) if name == 'linear' else bandwidths:
      within = _kernel(name, x, x, bandwidth) + _kernel(name, y, y, bandwidth)
      across = _kernel(name, x, y, bandwidth)
      # 2 k(x, y) is split into row i and column i: the total is the same, and
      # x_i and y_i both appear in the contribution of point i.
      shares.append(within - across - jnp.swapaxes(across, -1, -2))
  h = sum(shares) / len(shares)
  return (h * pairs).sum(-1) / jnp.maximum(pairs.sum(-1), 1.0)


def mmd(
    outputs: Outputs,
    batch: Batch,
    rng: jax.Array,
    *,
    form: str = 'batch',
    kernels: Sequence[str] = ('rbf',),
    bandwidths: Sequence[float] = (),
    estimator: str = '',
    include_vit: bool = False,
) -> Term:
  """Maximum mean discrepancy of the latent from the standard normal.

  This is InfoVAE's divergence (arXiv 1706.02262). In the batch form the points
  are the latent vectors of the batch's frames at one position of the grid, so
  it compares the aggregate posterior with the prior; positions are averaged.
  The value of an example is its contribution to the estimate. In the
  reference's row form the points are the h rows (w-vectors) of each channel of
  each frame; with `include_vit` it equals the authors' loss.

  Args:
    outputs: latents, with samples [B, T, h, w, D]; those of two encoders are
      concatenated.
    batch: mask.
    rng: key of the sample from the standard normal.
    form: 'batch' or 'rows'.
    kernels: of 'rbf', 'imq', 'linear', averaged.
    bandwidths: bandwidths of rbf and imq; empty for 1 in the row form, and for
      1/2, 1 and 2 times sqrt(d) in the batch form, where d is the vector length
      (the distance of two normal vectors is about 1.4 sqrt(d)).
    estimator: 'biased' or 'unbiased'; empty for unbiased in the batch form and
      biased, as in the reference, in the row form.
    include_vit: concatenate the projected features of the frozen ViT.

  Returns:
    Values whose mean is the estimate over the batch.
  """
  if form not in ('batch', 'rows'):
    raise ValueError(f"mmd: form {form!r}, expected 'batch' or 'rows'")
  parts = [latent.sample for latent in outputs.latents]
  if include_vit:
    if outputs.vit_latent is None:
      raise ValueError('mmd: include_vit is set, but the model has no ViT')
    parts.append(outputs.vit_latent)
  z = jnp.concatenate([f32(part) for part in parts], -1)
  b, t, h, w, d = z.shape
  # Sampling with one axis gives the same numbers and compiles ten times faster.
  prior = jax.random.normal(rng, (z.size,), jnp.float32).reshape(z.shape)
  counts = real(batch)
  if form == 'rows':
    points = mmd_contributions(
        *(jnp.moveaxis(x, -1, 2) for x in (z, prior)),  # [B, T, D, h, w]
        kernels=kernels,
        bandwidths=tuple(bandwidths) or (1.0,),
        estimator=estimator or 'biased',
    )
    return Term(points.mean((1, 2, 3)), counts)
  root = math.sqrt(d)
  points = mmd_contributions(
      *(x.reshape(b * t, h * w, d).swapaxes(0, 1) for x in (z, prior)),
      mask=jnp.broadcast_to(jnp.repeat(counts, t)[None], (h * w, b * t)),
      kernels=kernels,
      bandwidths=tuple(bandwidths) or (root / 2, root, 2 * root),
      estimator=estimator or 'unbiased',
  )  # [h w, B T]
  return Term(points.mean(0).reshape(b, t).mean(1), counts)
