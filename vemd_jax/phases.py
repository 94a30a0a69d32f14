"""Phases of a training run: structure first, then the emotion, in one run.

A phase sets the weights of the loss terms, which modules are frozen, and the
learning rate. All of this is a function of the step inside the one jitted step:
a run can be resumed at any step, and nothing is compiled again.

The moments of the optimizer, the schedule of the learning rate and the moving
average restart with each phase. Otherwise Adam's second moments would belong to
other loss weights, or be zero for a module that has not been trained before,
and its first updates would be several times the learning rate.

A module that is frozen in a phase does not change in any bit: it gets neither
updates nor weight decay, and the running statistics of its batch normalization
are kept (in training it still normalizes by the batch). Its gradient is not
part of the norm that is clipped. Its moving average still approaches its
parameters. The duration of a step does not depend on the phase.
"""

import fnmatch
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Keys of config.optim that a phase can set for itself.
OPTIM = ('learning_rate', 'schedule', 'warmup_steps')
KEYS = ('steps', 'losses', 'frozen', *OPTIM)


class Phase(NamedTuple):
  """One phase.

  Attributes:
    start: its first step.
    steps: how many it has.
    losses: name -> weight, instead of the term's own.
    frozen: top-level modules that are not trained; `head_*` is all of that
      beginning.
    optim: what it sets of `config.optim`.
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
    entries: dicts with any of `KEYS`; empty for a training of one phase.
    steps: of the whole run.

  Returns:
    The phases, one after the other.

  Raises:
    ValueError: names the entry and the key that is wrong.
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
  """The weight of a loss term in each phase.

  Args:
    phases: of `parse`.
    name: of the term.
    weight: of the term, where a phase does not say otherwise.

  Returns:
    (first step, weight) for each phase.
  """
  return tuple((p.start, float(p.losses.get(name, weight))) for p in phases)


def index_at(phases: Sequence[Phase], step: jax.Array) -> jax.Array:
  """The number of the phase that a step belongs to; int32, from 0."""
  index = jnp.zeros((), jnp.int32)
  for phase in phases[1:]:
    index += (step >= phase.start).astype(jnp.int32)
  return index


def since_start(phases: Sequence[Phase], step: jax.Array) -> jax.Array:
  """Steps since the phase of this step began."""
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
  """Takes the old values of modules that are frozen.

  Args:
    phases: of `parse`.
    index: of the present phase.
    new: arrays by top-level module.
    old: the same shapes.

  Returns:
    `new`, with what is frozen in the present phase from `old`.
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
  """Makes sure that what is frozen exists.

  Args:
    phases: of `parse`.
    names: of the top-level modules that are trained.

  Raises:
    ValueError: names what does not.
  """
  for i, phase in enumerate(phases):
    for pattern in phase.frozen:
      if not fnmatch.filter(names, pattern):
        raise ValueError(
            f'config.phases[{i}].frozen: no module {pattern!r} is trained; '
            f'expected some of {", ".join(sorted(names))}'
        )


def describe(phases: Sequence[Phase]) -> list[str]:
  """A line a phase, for the log."""
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
