"""The roofline by hand."""

import math

import pytest

from vemd_jax.ahead import chips


def test_roofline_by_hand():
  chip = chips.Chip(
      flops=100e12, memory=16e9, bandwidth=1e12, link=50e9, wraps=16
  )
  roof = chips.roofline(chip, 10e12, 50e9, 2e9, 100e9)
  assert roof.compute == pytest.approx(0.1)
  assert roof.memory == pytest.approx(0.05)
  assert roof.network == pytest.approx(0.02)
  assert (roof.step, roof.bound) == (roof.compute, 'compute')
  assert chips.roofline(chip, 1e12, 50e9, 2e9, 100e9).bound == 'memory'
  assert chips.roofline(chip, 1e12, 1e9, 20e9, 100e9).bound == 'network'
  # A single chip sends nothing and has no network.
  assert chips.roofline(chip, 1e12, 1e9, 0.0, 0.0).network == 0


@pytest.mark.parametrize(
    'topology, count, rate',
    [
        ('v5e:1x1', 1, 0),
        ('v5e:2x4', 8, 100e9),  # Two lines: one direction along each.
        ('v5e:16x16', 256, 200e9),  # The published 400 GB/s, one way.
        ('v5p:4x4x4', 64, 600e9),  # 1,200 GB/s, one way.
        ('v4:2x2x1', 4, 100e9),
        ('v6e:8x16', 128, 300e9),
    ],
)
def test_rate_of_a_slice(topology, count, rate):
  name, slice_ = chips.parse(topology)
  assert math.prod(slice_) == count
  assert chips.network(chips.CHIPS[name], slice_) == rate


@pytest.mark.parametrize('text', ['v5e', 'v5e:', 'v9:2x2', 'v5e:2xx', 'tpu'])
def test_unknown_slices(text):
  with pytest.raises(ValueError, match=r'expected cpu, gpu, or a chip \(v4, '):
    chips.parse(text)
