"""Published figures of TPU chips, and the time that a step takes at least."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip; figures from https://docs.cloud.google.com/tpu/docs/NAME.

  Attributes:
    flops: peak bfloat16 operations per second.
    memory: bytes of high-bandwidth memory.
    bandwidth: its bytes per second.
    link: bytes per second that one link to a neighbor sends; half of the
      published bidirectional bandwidth, over the number of links. For v4 from
      arXiv 2304.01433, table 4.
    wraps: an axis of the slice is a ring if its length is a multiple of this;
      else it is a line, whose ends are not linked.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  wraps: int


GIB = 2**30
CHIPS = {
    'v4': Chip(275e12, 32 * GIB, 1200e9, 50e9, 4),
    'v5e': Chip(197e12, 16 * GIB, 819e9, 50e9, 16),
    'v5p': Chip(459e12, 95 * GIB, 2765e9, 100e9, 4),
    'v6e': Chip(918e12, 32 * GIB, 1638e9, 100e9, 16),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """The least time that each resource needs for a step, in seconds.

  Attributes:
    compute: the arithmetic, at the peak of bfloat16.
    memory: reading and writing device memory.
    network: the collectives.
  """

  compute: float
  memory: float
  network: float

  @property
  def step(self) -> float:
    """Time of a step if the three overlap perfectly."""
    return max(dataclasses.astuple(self))

  @property
  def bound(self) -> str:
    """The resource that determines the time."""
    times = dataclasses.asdict(self)
    return max(times, key=times.get)


def roofline(
    chip: Chip, flops: float, accessed: float, sent: float, network: float
) -> Roofline:
  """The roofline of a step.

  Args:
    chip: the chip.
    flops: operations of one chip.
    accessed: bytes that one chip reads and writes.
    sent: bytes that one chip sends.
    network: bytes per second that a chip sends, from `network`.

  Returns:
    The times.
  """
  return Roofline(
      flops / chip.flops,
      accessed / chip.bandwidth,
      sent / network if sent else 0.0,
  )


def network(chip: Chip, slice_: tuple[int, ...]) -> float:
  """Bytes per second that each chip of a slice sends in a collective of all.

  Along a ring data flow in both directions; along a line, whose ends have one
  neighbor, at half the rate.

  Args:
    chip: the chip.
    slice_: length of each axis of the slice.

  Returns:
    The rate; 0 for a single chip.
  """
  return sum(
      chip.link * (2 if length % chip.wraps == 0 else 1)
      for length in slice_
      if length > 1
  )


def parse(topology: str) -> tuple[str, tuple[int, ...]]:
  """'v5e:2x4' -> ('v5e', (2, 4)).

  Args:
    topology: a TPU slice.

  Returns:
    Name of the chip, and the length of each axis.

  Raises:
    ValueError: for another text, or a chip that is not in `CHIPS`.
  """
  name, _, shape = topology.partition(':')
  sizes = shape.split('x')
  if name not in CHIPS or not all(s.isdigit() and int(s) for s in sizes):
    raise ValueError(
        f'--topology is {topology!r}, expected cpu, gpu, or a chip '
        f'({", ".join(CHIPS)}) and the shape of its slice, such as v5e:2x4'
    )
  return name, tuple(map(int, sizes))


def chips(topology: str) -> int:
  """Number of chips of a slice."""
  return math.prod(parse(topology)[1])
