"""Two things timed in turns: what every bench is made of."""

import statistics
import time
from typing import NamedTuple


class Row(NamedTuple):
  """One line of a bench's table.

  what: what was measured.  ours, rival: names of the two sides.
  ours_value, rival_value: medians, in `unit`.
  ratio: rival over ours, so that above 1 ours is the better; the median over
    turns, and low, high its least and greatest.  None where there is no rival.
  goal: the ratio to reach, or None.  note: what a reader must know.
  """
  what: str
  ours: str
  rival: str
  ours_value: float
  rival_value: float | None
  unit: str
  ratio: float | None
  low: float | None
  high: float | None
  goal: float | None = None
  note: str = ''


def turns(what, ours, rival, repeats=5, clock=time.perf_counter, goal=None,
          names=('audiorank', 'rival'), note='', per=1, unit='s'):
  """Returns a Row of two functions timed in turns, after one call of each.

  Args:
    what: what is measured.
    ours: a function without arguments; it returns when its work is done.
    rival: likewise.
    repeats: how many turns.
    clock: seconds; time.process_time for CPU time.
    goal: the ratio to reach.
    names: of the two sides.
    note: what a reader must know.
    per: how many things one call does; times are given per thing.
    unit: of the times given.
  """
  ours(), rival()
  spent = []
  for turn in range(repeats):
    pair = []
    # Each goes first in every second turn: what runs second finds warm
    # caches and a hotter chip.
    order = (ours, rival) if turn % 2 == 0 else (rival, ours)
    for function in order:
      began = clock()
      function()
      pair.append((clock() - began) / per)
    spent.append(pair if turn % 2 == 0 else pair[::-1])
  ratios = [theirs / mine for mine, theirs in spent]
  mine, theirs = (statistics.median(side) for side in zip(*spent))
  return Row(what, *names, mine, theirs, unit, statistics.median(ratios),
             min(ratios), max(ratios), goal, note)


def alone(what, value, unit, goal=None, note='', ours='audiorank',
          rival='', rival_value=None):
  """Returns a Row of values that were measured another way.

  The ratio is rival_value over value where there is one.
  """
  ratio = None if rival_value is None else rival_value / value
  return Row(what, ours, rival, value, rival_value, unit, ratio, ratio, ratio,
             goal, note)


def absent(what, peer):
  """Returns the Row that says a peer is not installed."""
  return Row(what, 'audiorank', peer, float('nan'), None, '', None, None, None,
             None, f'{peer} is not installed')
