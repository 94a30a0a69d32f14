"""The latent: a Gaussian at every place of the encoder's grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vemd_jax.models.outputs import Latent

# Standard deviations of 0.007 to 7.4: exp stays finite and its gradient alive.
LOG_VARIANCE_RANGE = (-10.0, 4.0)


class GaussianLatent(nn.Module):
  """Mean and log-variance of the latent, and a sample (arXiv 1312.6114).

  The encoder's output, itself a linear map of its features, is the mean; a
  second linear map of it gives the log-variance. So the weights of a
  deterministic encoder fit the Gaussian one.

  Attributes:
    deterministic: the encoder's output is the latent, as in the reference;
      there are then no parameters.
    dtype: dtype of the linear map; the result is float32.
  """

  deterministic: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> Latent:
    """Makes the latent of encoded frames.

    Args:
      features: [..., h, w, D] the encoder's output.
      train: draw the sample, with the rng stream 'latent'.

    Returns:
      The latent, float32, with the axes of `features`.
    """
    mean = features.astype(jnp.float32)
    if self.deterministic:
      return Latent(mean=mean, log_variance=None, sample=mean)
    # Begins narrow (deviation about 0.22) beside means of about 1, so that the
    # decoders are not drowned in noise before they have learned anything.
    log_variance = nn.Dense(
        mean.shape[-1], dtype=self.dtype, name='log_variance',
        kernel_init=nn.initializers.normal(1e-2),
        bias_init=nn.initializers.constant(-3.0),
    )(features).astype(jnp.float32)  # fmt: skip
    log_variance = jnp.clip(log_variance, *LOG_VARIANCE_RANGE)
    sample = mean
    if train:
      # Drawn flat: many dimensions take long to compile on the CPU.
      noise = jax.random.normal(self.make_rng('latent'), (mean.size,))
      noise = noise.reshape(mean.shape)
      sample = mean + jnp.exp(0.5 * log_variance) * noise
    return Latent(mean=mean, log_variance=log_variance, sample=sample)
