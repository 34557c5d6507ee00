"""TPU slices, and the least time that a training step can take on one.

A chip multiplies, reads memory and sends over its links at once at best, so
the step takes at least the longest of the three. What no bound counts
(vector units, sorting, launches, waiting for hosts) comes on top.
"""

import math
import re
from typing import Any
from typing import NamedTuple

from audiorank import config as config_lib
from audiorank import flops
from audiorank import model
from audiorank import objectives
from audiorank import train_state


class Slice(NamedTuple):
  """Chips that are rented together."""
  name: str  # Such as v5e:16x16.
  chip: flops.Chip
  sides: tuple[int, ...]

  @property
  def chips(self) -> int:
    return math.prod(self.sides)

  @property
  def links(self) -> float:
    """Bytes a second that one chip can send, over all its links.

    Two links an axis where it closes to a ring, one where it does not: the
    chips at its ends have no more.
    """
    chip = self.chip
    closed = [n % chip.ring == 0 for n in self.sides]
    if chip.dims == 3:  # Cubes are wired as a whole or not at all.
      closed = [all(closed)] * 3
    axes = [1 + ring for n, ring in zip(self.sides, closed) if n > 1]
    return chip.link * sum(axes)


class Bound(NamedTuple):
  """The least seconds of a step by each of the three, and its MFU."""
  matrix: float  # Of the matrix units.
  hbm: float  # Of the memory.
  links: float
  mfu: float  # At most this share of the matrix units' peak.

  @property
  def seconds(self) -> float:
    return max(self.matrix, self.hbm, self.links)

  @property
  def by(self) -> str:
    """What the step waits for."""
    times = {'matrix': self.matrix, 'HBM': self.hbm, 'links': self.links}
    return max(times, key=times.get)


def parse(name: str) -> Slice:
  """Returns the Slice of a name such as 'v5e:16x16' or 'v4:4x4x4'.

  Raises:
    ValueError: no such chip, or not its number of sides; one line.
  """
  parts = re.fullmatch(r'(\w+):([1-9]\d*(?:x[1-9]\d*)*)', name)
  if not parts or parts[1] not in flops.TPUS:
    raise ValueError(f'topology {name!r}: expected a chip of '
                     f'{", ".join(flops.TPUS)} and its sides, such as '
                     'v5e:16x16')
  chip = flops.CHIPS[parts[1]]
  sides = tuple(int(n) for n in parts[2].split('x'))
  if len(sides) != chip.dims:
    raise ValueError(f'topology {name!r}: {len(sides)} sides, expected '
                     f'{chip.dims} for {parts[1]}')
  return Slice(name, chip, sides)


def parts_of(whole: Slice) -> list[Slice]:
  """Returns the slices that a slice can be cut into, the smallest first.

  One chip, a host's four, and then twice as many again and again.
  """
  kind = whole.name.split(':')[0]
  sides, parts = [1] * len(whole.sides), []
  while True:
    # Two chips are no slice. The others are named by their short sides first,
    # but for the host of a torus of three sides, 2x2x1.
    chips = math.prod(sides)
    if chips != 2:
      name = sorted(sides) if chips > 4 else sides
      parts.append(parse(f'{kind}:{"x".join(map(str, name))}'))
    longer = [i for i, n in enumerate(sides) if whole.sides[i] % (2 * n) == 0]
    if not longer:
      return parts
    sides[min(longer, key=lambda i: sides[i])] *= 2


def description(piece: Slice) -> dict[str, Any]:
  """Returns what libtpu is to be asked for, as keywords of jax.

  By itself it would show both cores of a v4 chip as devices of their own,
  which programs do not see on v4 hosts, and it takes four chips for the
  smallest host there is.
  """
  keywords = {'platform': 'tpu', 'topology_name': piece.name}
  if piece.name.startswith('v4:'):
    keywords['chip_config_name'] = 'megacore'
  if piece.chips == 1:
    keywords['chips_per_host_bounds'] = (1, 1, 1)
  return keywords


def matrix_flops(config: Any, tile: int) -> float:
  """Returns what a step's clip keeps a matrix unit busy with; see
  flops.unit_flops.

  Raises:
    ValueError: an objective that is no MAE.
  """
  if config.objective in objectives.PARTS:
    raise ValueError(f'objective {config.objective!r}: the bound counts '
                     'masked autoencoders alone')
  L = config_lib.patches(config)
  return flops.unit_flops(
      config.model, L, config_lib.visible(config),
      L * config.model.patch_frames,
      model.rematerialisation(config.model, 'tpu'), tile)


def bound(config: Any, piece: Slice, wire: float, traffic: float) -> Bound:
  """Returns the Bound of a step.

  Args:
    config: a run's config.
    piece: the slice it has.
    wire: bytes a chip sends.
    traffic: bytes a chip reads from and writes to its memory.
  """
  clips, chip = config.train.batch / piece.chips, piece.chip
  matrix = clips * matrix_flops(config, chip.tile) / chip.flops
  hbm = traffic / chip.hbm
  links = wire / piece.links if piece.links else 0.
  seconds = max(matrix, hbm, links)
  useful = clips * train_state.flops(config)['total'] / chip.flops
  return Bound(matrix, hbm, links, useful / seconds)
