"""TPU slices, and a lower bound of the time of a training step.

A chip can multiply, read its memory and send over its links at the same time,
so a step takes at least the longest of the three. The bound does not include
vector units, sorting, launches and waiting for hosts.
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
  """A TPU slice: chips that are rented together."""
  name: str  # Such as v5e:16x16.
  chip: flops.Chip
  sides: tuple[int, ...]

  @property
  def chips(self) -> int:
    return math.prod(self.sides)

  @property
  def links(self) -> float:
    """Bytes per second that one chip can send over all its links."""
    # An axis that is closed to a ring has two links per chip. Otherwise the
    # chips at its ends have only one, and they determine the time.
    chip = self.chip
    closed = [n % chip.ring == 0 for n in self.sides]
    if chip.dims == 3:  # Cubes are wired as a whole or not at all.
      closed = [all(closed)] * 3
    axes = [1 + ring for n, ring in zip(self.sides, closed) if n > 1]
    return chip.link * sum(axes)


class Bound(NamedTuple):
  """Lower bounds of a step in seconds, and its MFU."""
  matrix: float  # Of the matrix units.
  hbm: float  # Of the memory.
  links: float
  mfu: float  # At most this share of the matrix units' peak.

  @property
  def seconds(self) -> float:
    return max(self.matrix, self.hbm, self.links)

  @property
  def by(self) -> str:
    """The name of the largest bound."""
    times = {'matrix': self.matrix, 'HBM': self.hbm, 'links': self.links}
    return max(times, key=lambda name: times[name])


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
  """Returns the slices that a slice can be divided into, smallest first.

  They have one chip, four chips (a host), and then twice as many each time.
  """
  kind = whole.name.split(':')[0]
  sides, parts = [1] * len(whole.sides), []
  while True:
    # There is no slice of two chips. Names begin with the shortest side, except
    # for the host of a torus with three sides, 2x2x1.
    chips = math.prod(sides)
    if chips != 2:
      name = sides
      if chips > 4:
        name = sorted(sides)
      parts.append(parse(f'{kind}:{"x".join(map(str, name))}'))
    longer = [i for i, n in enumerate(sides) if whole.sides[i] % (2 * n) == 0]
    if not longer:
      return parts
    # The shortest side that can grow, so that parts stay compact.
    sides[min(longer, key=lambda i: sides[i])] *= 2


def description(piece: Slice) -> dict[str, Any]:
  """Returns the arguments of jax's get_topology_desc for a slice."""
  keywords: dict[str, Any] = {
      'platform': 'tpu', 'topology_name': piece.name}
  # By default libtpu has both cores of a v4 chip as separate devices, unlike
  # real v4 hosts, and a host of four chips for a single chip.
  if piece.name.startswith('v4:'):
    keywords['chip_config_name'] = 'megacore'
  if piece.chips == 1:
    keywords['chips_per_host_bounds'] = (1, 1, 1)
  return keywords


def matrix_flops(config: Any, tile: int) -> float:
  """Returns the FLOPs of a clip on matrix units; see flops.unit_flops.

  Args:
    config: of a run.
    tile: side of a matrix unit.

  Raises:
    ValueError: the objective is not that of an MAE.
  """
  if config.objective in objectives.PARTS:
    raise ValueError(f'objective {config.objective!r}: the bound exists for '
                     'masked autoencoders only')
  L = config_lib.patches(config)
  return flops.unit_flops(
      config.model, L, config_lib.visible(config),
      L * config.model.patch_frames,
      model.rematerialisation(config.model, 'tpu'), tile)


def bound(config: Any, piece: Slice, wire: float, traffic: float) -> Bound:
  """Returns the Bound of a step.

  Args:
    config: a run's config.
    piece: its slice.
    wire: bytes that a chip sends.
    traffic: bytes that a chip reads from and writes to its memory.
  """
  clips, chip = config.train.batch / piece.chips, piece.chip
  matrix = clips * matrix_flops(config, chip.tile) / chip.flops
  hbm = traffic / chip.hbm
  links = 0.
  if piece.links:  # A single chip has none.
    links = wire / piece.links
  seconds = max(matrix, hbm, links)
  # MFU counts the FLOPs of the model; those of recomputation are in `matrix`
  # alone.
  useful = clips * train_state.flops(config)['total'] / chip.flops
  return Bound(matrix, hbm, links, useful / seconds)
