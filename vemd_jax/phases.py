"""Training phases within one run, such as structure first, then emotion.

A phase sets the weights of the loss terms, which modules are frozen, and the
learning rate. All of these are functions of the step inside a single jitted
step, so a run can be resumed at any step and is compiled only once.

The moments of the optimizer, the schedule of the learning rate and the moving
average restart with each phase. Otherwise Adam's second moments would belong to
other loss weights, or be zero for a module that has not been trained before,
and its first updates would be several times the learning rate.

A frozen module stays bit-identical: it receives neither updates nor weight
decay, and the running statistics of its batch normalization are kept (in
training it still normalizes with batch statistics). Its gradient does not
contribute to the norm used for clipping. Its moving average still approaches
its parameters. The time per step does not depend on the phase.
"""

import fnmatch
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Keys of config.optim that a phase can override.
OPTIM = ('learning_rate', 'schedule', 'warmup_steps')
KEYS = ('steps', 'losses', 'frozen', *OPTIM)


class Phase(NamedTuple):
  """A training phase.

  Attributes:
    start: first step of the phase.
    steps: number of steps.
    losses: name of a loss term -> weight that overrides the term's default.
    frozen: patterns of top-level modules that are not trained, such as
      `head_*` (`fnmatch` syntax).
    optim: overrides of `config.optim`.
  """

  start: int
  steps: int
  losses: Mapping[str, float]
  frozen: tuple[str, ...]
  optim: Mapping[str, Any]


def parse(
    entries: Sequence[Mapping[str, Any]], steps: int
) -> tuple[Phase, ...]:
  """Reads `config.phases`.

  Args:
    entries: dicts with any of `KEYS`; empty for a single phase.
    steps: number of steps of the run.

  Returns:
    The phases in order, which cover all steps of the run.

  Raises:
    ValueError: if an entry is invalid; names the entry and the key.
  """
  phases, start = [], 0
  for i, entry in enumerate(entries or ({},)):
    _check(i, entry, last=i == max(len(entries), 1) - 1)
    length = entry.get('steps') or steps - start
    phases.append(
        Phase(
            start=start,
            steps=length,
            losses=dict(entry.get('losses', {})),
            frozen=tuple(entry.get('frozen', ())),
            optim={key: entry[key] for key in OPTIM if key in entry},
        )
    )
    start += length
  if phases[-1].steps < 1:
    raise ValueError(
        f'config.phases: the last one would start at step {phases[-1].start}, '
        f'the run has {steps} steps'
    )
  return tuple(phases)


def _check(i: int, entry: Any, last: bool) -> None:
  where = f'config.phases[{i}]'
  if not isinstance(entry, Mapping):
    raise ValueError(f'{where} is {entry!r}, expected a dict')
  for key in entry:
    if key not in KEYS:
      raise ValueError(f'{where}.{key}: expected one of {", ".join(KEYS)}')
  steps = entry.get('steps', 0)
  if last and steps:
    raise ValueError(
        f'{where}.steps is {steps}; the last phase lasts to the end of the run '
        '(config.steps), expected none'
    )
  if not last and (not _number(steps, int) or steps < 1):
    raise ValueError(f'{where}.steps is {steps!r}, expected 1 or more')
  for key, kind in ('learning_rate', numbers.Real), ('warmup_steps', int):
    value = entry.get(key, 0)
    if not _number(value, kind) or value < 0:
      raise ValueError(f'{where}.{key} is {value!r}, expected 0 or more')
  frozen = entry.get('frozen', ())
  if isinstance(frozen, str) or not all(isinstance(f, str) for f in frozen):
    raise ValueError(f'{where}.frozen is {frozen!r}, expected names')
  losses = entry.get('losses', {})
  if not isinstance(losses, Mapping):
    raise ValueError(f'{where}.losses is {losses!r}, expected a dict')
  for name, weight in losses.items():
    if not _number(weight, numbers.Real):
      raise ValueError(
          f'{where}.losses.{name} is {weight!r}, expected a weight'
      )


def _number(value: Any, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def weights(
    phases: Sequence[Phase], name: str, weight: float
) -> tuple[tuple[int, float], ...]:
  """Weights of a loss term by phase.

  Args:
    phases: phases from `parse`.
    name: name of the loss term.
    weight: default weight of the term, used unless a phase overrides it.

  Returns:
    (first step, weight) for each phase.
  """
  return tuple((p.start, float(p.losses.get(name, weight))) for p in phases)


def index_at(phases: Sequence[Phase], step: jax.Array) -> jax.Array:
  """Index of the phase that contains a step; int32, from 0."""
  index = jnp.zeros((), jnp.int32)
  for phase in phases[1:]:
    index += (step >= phase.start).astype(jnp.int32)
  return index


def since_start(phases: Sequence[Phase], step: jax.Array) -> jax.Array:
  """Number of steps since the start of the current phase."""
  start = jnp.zeros((), jnp.int32)
  for phase in phases[1:]:
    start = jnp.where(step >= phase.start, phase.start, start)
  return step - start


def is_frozen(phase: Phase, name: str) -> bool:
  """Whether a top-level module is frozen in a phase."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in phase.frozen)


def unless_frozen(
    phases: Sequence[Phase],
    index: jax.Array,
    new: Mapping[str, Any],
    old: Mapping[str, Any],
) -> dict[str, Any]:
  """Replaces the values of frozen modules by their old values.

  Args:
    phases: phases from `parse`.
    index: index of the current phase.
    new: new arrays by top-level module.
    old: old arrays, with the structure and shapes of `new`.

  Returns:
    `new`, with the modules that are frozen in the current phase taken from
    `old`.
  """
  result = dict(new)
  for name in new:
    frozen = [is_frozen(phase, name) for phase in phases]
    if any(frozen):
      now = jnp.asarray(frozen)[index]
      result[name] = jax.tree.map(
          lambda n, o, now=now: jnp.where(now, o, n), new[name], old[name]
      )
  return result


def check_modules(phases: Sequence[Phase], names: Sequence[str]) -> None:
  """Checks that every pattern in `frozen` matches a trained module.

  Args:
    phases: phases from `parse`.
    names: names of the top-level modules with trained parameters.

  Raises:
    ValueError: if a pattern matches no module; names the pattern.
  """
  for i, phase in enumerate(phases):
    for pattern in phase.frozen:
      if not fnmatch.filter(names, pattern):
        raise ValueError(
            f'config.phases[{i}].frozen: no module {pattern!r} is trained; '
            f'expected some of {", ".join(sorted(names))}'
        )


def describe(phases: Sequence[Phase]) -> list[str]:
  """Describes the phases for the log, one line per phase."""
  lines = []
  for i, phase in enumerate(phases):
    parts = [f'{key} {value}' for key, value in phase.optim.items()]
    parts += [f'weight of {k} {v:g}' for k, v in phase.losses.items()]
    if phase.frozen:
      parts.append(f'frozen {", ".join(phase.frozen)}')
    lines.append(
        f'Phase {i + 1}, steps {phase.start} to {phase.start + phase.steps}: '
        f'{"; ".join(parts) or "as the config says"}'
    )
  return lines
