"""Names of the dimensions of activations, by which a run constrains shardings.

A model names dimensions where a compiler would split an activation badly, and
functions that treat each row of the batch on its own. It knows neither mesh nor
rules: `constrained` sets what these mean, and outside of it they mean nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax

Constraint = Callable[[jax.Array, Sequence[str | None]], jax.Array]
Local = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]

_current: contextvars.ContextVar[tuple[Constraint | None, Local | None]] = (
    contextvars.ContextVar('constraint', default=(None, None))
)


@contextlib.contextmanager
def constrained(
    constraint: Constraint | None, local: Local | None = None
) -> Iterator[None]:
  """Sets what `constrain` and `locally` do.

  Args:
    constraint: (activation, names) -> activation, see `sharding.constraint`;
      None for none.
    local: (function, array) -> result, see `sharding.local`; None calls the
      function.
  """
  token = _current.set((constraint, local))
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
  constraint, _ = _current.get()
  return x if constraint is None else constraint(x, names)


def locally(
    function: Callable[[jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
  """Applies a function on each device to its own rows of the batch.

  A loop whose number of iterations depends on the data would otherwise wait in
  each iteration until all devices know whether another one is needed.

  Args:
    function: of `x`; treats each row on its own.
    x: [B, ...].

  Returns:
    The function's result, [B, ...].
  """
  _, local = _current.get()
  return function(x) if local is None else local(function, x)
