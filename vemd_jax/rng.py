"""Random keys derived from seed, name and step, so none need to be stored."""

import zlib

import jax

# Random streams of a training step.
STREAMS = ('latent', 'dropout', 'modality', 'loss')


def named(seed: int, name: str) -> jax.Array:
  """The root key of the seed, folded with a hash of the name.

  Args:
    seed: seed of the run.
    name: any string.

  Returns:
    A typed key, identical on every machine.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(seed: int, step: jax.Array) -> dict[str, jax.Array]:
  """The keys of one training step.

  Args:
    seed: seed of the run.
    step: scalar integer, may be traced.

  Returns:
    Stream name -> key.
  """
  return {s: jax.random.fold_in(named(seed, s), step) for s in STREAMS}
