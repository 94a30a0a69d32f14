"""Reads the optimized HLO of a compiled step: collectives, dtypes, bytes.

The text is XLA's own; see https://openxla.org/xla/operation_semantics. The body
of a loop is counted once, since the text does not say how often it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
# Instructions that move no data themselves; the bodies of loops and branches
# are computations of their own.
_FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
    'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
    'opt-barrier',
)  # fmt: skip

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+)[^=]*\{\s*$')
_INSTRUCTION = re.compile(
    r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$'
)
_ARRAY = re.compile(r'\b([a-z]\w*?)\[([\d,]*)\](\{[^}]*\})?')
_BITS = re.compile(r'^(?:bf|[fsuc])(\d+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: its name within the module.
    op: its operation, such as 'fusion'.
    type: type of the result, such as 'bf16[8,128]{1,0}'.
    operands: names of the operands.
    rest: the attributes.
    computation: name of the computation that it is in.
  """

  name: str
  op: str
  type: str
  operands: tuple[str, ...]
  rest: str
  computation: str

  @property
  def scope(self) -> str:
    """Where the program computes it, such as 'jit(f)/decoder/conv_1/add'."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found.group(1) if found else ''


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation.

  Attributes:
    kind: one of `COLLECTIVES`.
    size: bytes of its result on one device.
    devices: number of devices that take part in one group.
  """

  kind: str
  size: int
  devices: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends, with the algorithms that send fewest."""
    n = max(self.devices, 1)
    return self.size * {
        'all-reduce': 2 * (n - 1) / n,
        'all-gather': (n - 1) / n,
        'reduce-scatter': n - 1,
        'all-to-all': (n - 1) / n,
        'collective-permute': 1,
    }[self.kind]


class Module:
  """The instructions of a compiled program."""

  def __init__(self, text: str, devices: int = 1):
    """Parses a program.

    Args:
      text: from `Compiled.as_text`.
      devices: number of devices of the program.
    """
    self._devices = devices
    self._instructions = list(_parse(text))
    self._types = {
        (i.computation, i.name): i.type for i in self._instructions
    }
    # Computations that run by themselves: not those inside of a fusion or of a
    # reduction.
    inside = set()
    for i in self._instructions:
      if i.op not in ('while', 'conditional', 'call'):
        inside |= set(re.findall(r'(?:calls|to_apply)=%?([\w.\-]+)', i.rest))
    self._running = [
        i for i in self._instructions if i.computation not in inside
    ]

  def collectives(self) -> list[Collective]:
    """All collectives; an asynchronous one counts once, where it starts."""
    found = []
    for i in self._instructions:
      kind = i.op.removesuffix('-start')
      if kind not in COLLECTIVES:
        continue
      arrays = list(_arrays(i.type))
      if i.op.endswith('-start') and kind in (
          'all-gather', 'collective-permute'
      ):  # fmt: skip
        # (operands, results, and for a permutation two flags).
        arrays = [a for a in arrays if a[1] or kind == 'all-gather']
        arrays = arrays[len(arrays) // 2 :]
      size = sum(size for size, _, _ in arrays)
      found.append(Collective(kind, size, self._group(i.rest)))
    return found

  def float32(self) -> list[Instruction]:
    """Convolutions and matrix products that read a float32 operand."""
    return [
        i
        for i in self._instructions
        if i.op in ('convolution', 'dot')
        and any(
            self._types.get((i.computation, o), '').startswith('f32')
            for o in i.operands[:2]
        )
    ]

  def products(self) -> int:
    """Number of convolutions and matrix products."""
    return sum(i.op in ('convolution', 'dot') for i in self._instructions)

  def accessed(self, depth: int = 2) -> dict[str, int]:
    """Bytes that instructions read and write in device memory, by module.

    Args:
      depth: number of names of the module's path that are kept.

    Returns:
      Path -> bytes, the largest first. The path is that of Flax, such as
      'body_decoder/stage_0'; what lies outside of the model is 'other'.
    """
    total = collections.Counter()
    for i in self._running:
      if i.op in _FREE or i.op.endswith('-done'):
        continue
      total[_module(i.scope, depth)] += self._traffic(i)
    return dict(total.most_common())

  def _traffic(self, i: Instruction) -> int:
    """Bytes that an instruction reads and writes in device memory."""
    arrays = list(_arrays(i.type))
    if i.op in ('slice', 'dynamic-slice'):
      return 2 * _in_memory(arrays)
    if i.op == 'slice-start':
      # ((source), slice, context): only the slice of the source is read.
      piece = arrays[1]
      return piece[0] + _in_memory([piece])
    if i.op == 'copy-start':
      arrays = arrays[:1]  # (destination, source, context)
    return _in_memory(arrays) + sum(
        _in_memory(_arrays(self._types.get((i.computation, operand), '')))
        for operand in i.operands
    )

  def modules(self, depth: int = 2) -> dict[str, str]:
    """The module of each instruction, by name; see `accessed`."""
    return {i.name: _module(i.scope, depth) for i in self._instructions}

  def _group(self, rest: str) -> int:
    """Number of devices of a collective's groups."""
    found = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest)
    if found:
      return int(found.group(2))
    found = re.search(r'replica_groups=\{\{([\d,]*)\}', rest)
    if found:
      return len(found.group(1).split(','))
    return self._devices


def _parse(text: str) -> Iterator[Instruction]:
  computation = ''
  for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
    if found := _INSTRUCTION.match(line):
      name, type_, op, rest = found.groups()
      inner, rest = _split(rest)
      # Operands may be printed with their type: f32[2]{0} %name.
      operands = [o.rsplit(' ', 1)[-1] for o in _commas(inner)]
      operands = tuple(o.lstrip('%') for o in operands if o)
      yield Instruction(name, op, type_, operands, rest, computation)
    elif found := _COMPUTATION.match(line):
      computation = found.group(2)


def _split(rest: str) -> tuple[str, str]:
  """Splits 'operands), attributes' at the closing parenthesis."""
  depth = 1
  for at, letter in enumerate(rest):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return rest[:at], rest[at + 1 :]
  return rest, ''


def _commas(text: str) -> list[str]:
  """Splits at the commas outside of all brackets."""
  parts, depth, start = [], 0, 0
  for at, letter in enumerate(text):
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append(text[start:at].strip())
      start = at + 1
  return [*parts, text[start:].strip()]


def _arrays(type_: str) -> Iterator[tuple[int, str, str]]:
  """(bytes, dimensions, layout) of each array of a type."""
  for dtype, dims, layout in _ARRAY.findall(type_):
    bits = _BITS.match(dtype)
    size = 1 if dtype == 'pred' else int(bits.group(1)) / 8 if bits else 0
    count = math.prod(int(d) for d in dims.split(',') if d)
    yield int(count * size), dims, layout


def _in_memory(arrays: Iterable[tuple[int, str, str]]) -> int:
  """Bytes of arrays in device memory; TPU layouts mark other memories S(n)."""
  return sum(size for size, _, layout in arrays if 'S(' not in layout)


def _module(scope: str, depth: int) -> str:
  """The Flax module of 'jit(f)/jvp(VEMD)/VEMD._encode/encoder_0/conv/add'."""
  parts = scope.split('/')
  inside = [at for at, part in enumerate(parts) if 'VEMD' in part]
  if not inside:
    return 'other'
  # The last name is the operation; jit(…) is a function within the module.
  names = [p for p in parts[inside[-1] + 1 : -1] if '(' not in p]
  return '/'.join(names[:depth]) or 'other'
