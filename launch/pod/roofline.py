"""The least time a step can take on a slice: three rooflines, one bound.

A chip multiplies, reads memory and sends over its links at once at best, so
the step takes at least the longest of the three. What no roofline counts
(the front end's FFT, sorting, launches, waiting for hosts) comes on top.
"""

import math
from typing import NamedTuple

from audiorank import masking
from audiorank import objectives
from audiorank import program


class Bound(NamedTuple):
  matrix: float  # Seconds of the matrix units.
  hbm: float  # Seconds of the memory.
  links: float  # Seconds of the links.
  mfu: float  # At most this share of the matrix units' peak.

  @property
  def seconds(self):
    return max(self.matrix, self.hbm, self.links)

  @property
  def by(self):
    """What the step waits for."""
    times = {'matrix': self.matrix, 'HBM': self.hbm, 'links': self.links}
    return max(times, key=times.get)


def flops(config, tile=1):
  """Returns FLOPs of a training step on one clip as a matrix unit sees them.

  compute.flops_per_clip with every side of a weight rounded up to whole
  tiles: a head 64 wide keeps a unit of 128 half busy. remat runs the blocks'
  forward pass twice.

  Args:
    config: a run's config.
    tile: side of a matrix unit; 1 rounds nothing.

  Raises:
    ValueError: an objective that is no MAE.
  """
  if config.objective in objectives.PARTS:
    raise ValueError(f'objective {config.objective!r}: the roofline counts '
                     'masked autoencoders alone')
  c, d = config.model, config.model.decoder
  L = program.patches(config)
  K, P = masking.kept(L, config.mask.ratio), c.mels * c.patch_frames

  def up(n):
    return math.ceil(n / tile) * tile

  def stack(tokens, width, depth, heads):
    hidden = c.mlp_ratio * width
    dense = (up(width) * up(3 * width) + up(width) ** 2
             + 2 * up(width) * up(hidden))
    attention = 2 * heads * tokens * up(tokens) * up(width // heads)
    return depth * (tokens * dense + attention)

  blocks = (stack(K, c.width, c.depth, c.heads)
            + stack(L, d.width, d.depth, d.heads))
  rest = (K * up(P) * up(c.width) + K * up(c.width) * up(d.width)
          + (L - K) * up(d.width) * up(P))
  return (8 if c.remat and tile > 1 else 6) * blocks + 6 * rest


def bound(config, piece, wire, traffic):
  """Returns the Bound of a step.

  Args:
    config: a run's config.
    piece: a chips.Slice.
    wire: bytes a chip sends.
    traffic: bytes a chip reads from and writes to its memory.
  """
  clips, chip = config.train.batch / piece.chips, piece.chip
  matrix = clips * flops(config, chip.tile) / chip.flops
  hbm = traffic / chip.hbm
  links = wire / piece.links if piece.links else 0.
  seconds = max(matrix, hbm, links)
  return Bound(matrix, hbm, links,
               clips * flops(config) / chip.flops / seconds)
