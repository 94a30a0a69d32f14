"""The latent: a Gaussian at each position of the encoder's grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models.outputs import Latent

# Standard deviations of 0.007 to 7.4, for which exp neither over- nor
# underflows.
LOG_VARIANCE_RANGE = (-10.0, 4.0)


class GaussianLatent(nn.Module):
  """Mean and log-variance of the latent, and a sample (arXiv 1312.6114).

  The mean is the encoder's output, which is itself a linear map of its
  features; the log-variance is a linear map of the mean. So weights of a
  deterministic encoder can be loaded into the variational one.

  Attributes:
    deterministic: use the encoder's output as the latent, as in the reference;
      the module then has no parameters.
    dtype: dtype of the linear map; the result is float32.
  """

  deterministic: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> Latent:
    """Computes the latent of encoded frames.

    Args:
      features: [..., h, w, D], the encoder's output.
      train: sample with the rng stream 'latent'; otherwise the sample is the
        mean.

    Returns:
      The latent, float32, with the axes of `features`.
    """
    mean = features.astype(jnp.float32)
    if self.deterministic:
      return Latent(mean=mean, log_variance=None, sample=mean)
    # The initial standard deviation is about 0.22, small compared with means of
    # about 1, so that noise does not dominate the decoders' input early on.
    log_variance = nn.Dense(
        mean.shape[-1], dtype=self.dtype, name='log_variance',
        kernel_init=nn.initializers.normal(1e-2),
        bias_init=nn.initializers.constant(-3.0),
    )(features).astype(jnp.float32)  # fmt: skip
    log_variance = jnp.clip(log_variance, *LOG_VARIANCE_RANGE)
    sample = mean
    if train:
      # Sampled as one axis, since normal() over many axes compiles slowly on
      # the CPU.
      noise = jax.random.normal(self.make_rng('latent'), (mean.size,))
      noise = noise.reshape(mean.shape)
      sample = mean + jnp.exp(0.5 * log_variance) * noise
    return Latent(mean=mean, log_variance=log_variance, sample=sample)
