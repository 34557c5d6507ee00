"""TPU chips and slices of them, as Google's documentation gives them.

Peaks, memory and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read
in November 2026. A link's rate is the chip's bidirectional interconnect rate
over twice its ports.
"""

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
  flops: float  # Of the matrix units in bfloat16, a second.
  memory: float  # Bytes that programs may use, as the compiler says.
  hbm: float  # Bytes a second between memory and cores.
  link: float  # Bytes a second of one link, one way.
  tile: int  # Rows and columns of a matrix unit.
  dims: int  # Of its slices.
  wrap: int  # An axis of a multiple of so many chips closes to a ring.


GIB = 2 ** 30
CHIPS = {
    'v4': Chip(275e12, 30.75 * GIB, 1228e9, 50e9, 128, 3, 4),
    'v5e': Chip(197e12, 15.75 * GIB, 819e9, 50e9, 128, 2, 16),
    'v5p': Chip(459e12, 95.74 * GIB, 2765e9, 100e9, 128, 3, 4),
    'v6e': Chip(918e12, 31.25 * GIB, 1640e9, 100e9, 256, 2, 16)}


class Slice(NamedTuple):
  """Chips that are rented together."""
  name: str  # Such as v5e:16x16.
  chip: Chip
  sides: tuple

  @property
  def chips(self):
    return math.prod(self.sides)

  @property
  def links(self):
    """Bytes a second that one chip can send, over all its links.

    Two links an axis where it closes to a ring, one where it does not: the
    chips at its ends have no more.
    """
    c = self.chip
    ring = [n % c.wrap == 0 for n in self.sides]
    if c.dims == 3:  # Cubes are wired as a whole or not at all.
      ring = [all(ring)] * 3
    return c.link * sum(1 + r for n, r in zip(self.sides, ring) if n > 1)


def parse(name):
  """Returns the Slice of a name such as 'v5e:16x16' or 'v4:4x4x4'.

  Raises:
    ValueError: no such chip, or not its number of sides; one line.
  """
  found = re.fullmatch(r'(\w+):([1-9]\d*(?:x[1-9]\d*)*)', name)
  if not found or found[1] not in CHIPS:
    raise ValueError(f'topology {name!r}: expected a chip of '
                     f'{", ".join(CHIPS)} and its sides, such as v5e:16x16')
  chip = CHIPS[found[1]]
  sides = tuple(int(n) for n in found[2].split('x'))
  if len(sides) != chip.dims:
    raise ValueError(f'topology {name!r}: {len(sides)} sides, expected '
                     f'{chip.dims} for {found[1]}')
  return Slice(name, chip, sides)


def described(piece):
  """Returns what libtpu is to be asked for, as keywords of jax.

  By itself it would show both cores of a v4 chip as devices of their own,
  which programs do not see on v4 hosts, and it takes four chips for the
  smallest host there is.
  """
  out = {'platform': 'tpu', 'topology_name': piece.name}
  if piece.name.startswith('v4:'):
    out['chip_config_name'] = 'megacore'
  if piece.chips == 1:
    out['chips_per_host_bounds'] = (1, 1, 1)
  return out
