"""Names of the dimensions of activations, by which a run constrains shardings.

A model names dimensions where a compiler would split an activation badly. It
knows neither mesh nor rules: `constrained` sets what the names mean, and
outside of it they mean nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax

Constraint = Callable[[jax.Array, Sequence[str | None]], jax.Array]

_current: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    'constraint', default=None
)


@contextlib.contextmanager
def constrained(constraint: Constraint | None) -> Iterator[None]:
  """Applies a constraint to the activations that `constrain` names.

  Args:
    constraint: (activation, names) -> activation, see `sharding.constraint`;
      None for none.
  """
  token = _current.set(constraint)
  try:
    yield
  finally:
    _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Constrains the sharding of an activation, if a run has set a constraint.

  Args:
    x: the activation.
    names: name of each dimension: 'batch', split over all devices; 'rows', the
      batch where a device holds part of a wide vector; 'wide', that vector;
      None for a dimension that is not split.

  Returns:
    The same values.
  """
  constraint = _current.get()
  return x if constraint is None else constraint(x, names)
