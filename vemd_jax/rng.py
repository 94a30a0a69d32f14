"""Random keys by name and step; none is ever stored."""

import zlib

import jax

# The streams a training step uses.
STREAMS = ('latent', 'dropout', 'modality', 'loss')


def named(seed: int, name: str) -> jax.Array:
  """The key of a name: root(seed), then folded with the name.

  Args:
    seed: of the run.
    name: any text.

  Returns:
    A typed key, the same on every machine.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(seed: int, step: jax.Array) -> dict[str, jax.Array]:
  """The keys of one training step.

  Args:
    seed: of the run.
    step: scalar integer, may be traced.

  Returns:
    Stream name -> key.
  """
  return {s: jax.random.fold_in(named(seed, s), step) for s in STREAMS}
