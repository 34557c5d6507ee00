"""The first figure of a study: what a doubling of RankMe is worth."""

from collections.abc import Iterable
import math
from typing import Any

import numpy as np

from audiorank.figures import style

COLORS = {'holds': style.PALETTE[2], 'fails': style.PALETTE[1],
          'inconclusive': style.GREY}
SHAPES = {'holds': 'o', 'fails': 's', 'inconclusive': 'D'}
WIDE = 3.  # Median widths of an interval that the axis shows at least.


def slopes(claims: Iterable[Any],
           ax: style.Axes | None = None) -> style.Axes:
  """What a doubling of RankMe is worth, by what was varied.

  A row a family with its 95 % interval, one for all configurations of equal
  width, and the slope that fits all families best as a line. Intervals that
  leave the axis end in an arrow. A family whose slope nothing bounds is an
  arrow both ways.

  Args:
    claims: of analysis.analyze; those with slopes are drawn.
    ax: Axes to draw in, or None.

  Raises:
    ValueError: no slope is known.
  """
  claims = list(claims)
  rows = [one for one in claims
          if one.key in ('slope', 'within_width') and not math.isnan(one.p)]
  if not rows:
    raise ValueError(f'{style.NOTHING}a slope needs configurations that '
                     'differ in one thing alone, and one that was trained '
                     'with several seeds')
  # What pools all the others stands last, under a line.
  rows.sort(key=lambda one: (one.key == 'within_width'))
  ax = ax or style.axes((5., .36 * len(rows) + 1.7))
  reach = _reach(rows)
  for place, one in enumerate(rows):
    color, shape = COLORS[one.verdict], SHAPES[one.verdict]
    # What leaves the axis ends in an arrow.
    low, high = max(one.low, -reach), min(one.high, reach)
    ax.plot([low, high], [place, place], color=color, lw=2)
    for end, limit, arrow in ((one.low, -reach, '<'), (one.high, reach, '>')):
      if abs(end) > reach:
        ax.plot(limit, place, arrow, color=color, ms=7)
    if abs(one.estimate) <= reach and math.isfinite(one.low + one.high):
      ax.plot(one.estimate, place, shape, color=color, ms=6)
  ax.axvline(0, color=style.INK, lw=.8)
  handles = [style.marker(SHAPES[verdict], verdict, color=COLORS[verdict])
             for verdict in COLORS
             if any(one.verdict == verdict for one in rows)]
  if any(not math.isfinite(one.low + one.high) for one in rows):
    handles.append(style.line('nothing bounds it', lw=2))
  common = [one for one in claims
            if one.key == 'one_slope' and 'common' in one.details]
  if common:
    value = common[0].details['common']
    ax.axvline(value, color=style.PALETTE[0], lw=1.2, ls='--')
    handles.append(style.line(f'one slope for all, {chance(common[0].p)}',
                              style.PALETTE[0], ls='--', lw=1.2))
  if rows[-1].key == 'within_width' and len(rows) > 1:
    ax.axhline(len(rows) - 1.5, color=style.GREY, lw=.6)
  ax.set_yticks(range(len(rows)), [
      f'{name(one)} ({one.configurations})' for one in rows])
  # The first row at the top.
  ax.set_ylim(len(rows) - .4, -.6)
  ax.set_xlim(-1.06 * reach, 1.06 * reach)
  ax.set_xlabel('score per doubling of RankMe (95 % interval)')
  style.above(ax, handles, 2)
  return ax


def chance(p: float) -> str:
  """Returns the p value of the common test of all slopes."""
  if p < .001:
    return 'p < .001'
  return f'p = {p:.3f}'


def name(one: Any) -> str:
  """Returns what a row is called."""
  if one.key == 'within_width':
    return 'all, at equal width'
  return one.family.replace(' at equal audio', '').replace('_', ' ')


def _reach(rows: list[Any]) -> float:
  """Returns how far the axis goes: by the estimates and the usual interval,
  not by the widest."""
  known = [one for one in rows if math.isfinite(one.low + one.high)]
  if not known:
    return 1.
  inside = WIDE * float(np.median([one.high - one.low for one in known]))
  return 1.15 * max(*(abs(one.estimate) for one in known),
                    min(inside, max(max(abs(one.low), abs(one.high))
                                    for one in known)))
