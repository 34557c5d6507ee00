"""Figures of a study's verdicts: slopes by family, runs off the curve."""

import numpy as np

from audiorank.figures import style

COLORS = {'holds': style.PALETTE[2], 'fails': style.PALETTE[1],
          'cannot be told': style.GREY}


def slopes(families, ax=None):
  """What RankMe says within each family: score per doubling, with interval.

  Intervals that leave the axis end in an arrow.

  Args:
    families: of findings.within.families (family, value, low, high, verdict,
      configurations).
    ax: Axes to draw in, or None.
  """
  style.need(families, 'family', 'value', 'low', 'high', 'verdict')
  ax = ax or style.axes((6.4, .5 * len(families) + 1.2))
  inside = 3 * np.median(families['high'] - families['low'])
  reach = max(np.abs(families['value']).max(), inside) * 1.15
  for place, row in enumerate(families.itertuples()):
    color = COLORS[row.verdict]
    low, high = max(row.low, -reach), min(row.high, reach)
    ax.plot([low, high], [place, place], color=color, lw=2)
    for end, limit, sign in ((row.low, -reach, '<'), (row.high, reach, '>')):
      if abs(end) > reach:
        ax.plot(limit, place, sign, color=color, ms=7)
    ax.plot(row.value, place, 'o', color=color, ms=6)
  ax.axvline(0, color='black', lw=.8)
  ax.set_yticks(range(len(families)), [
      f'{row.family} ({row.configurations})'
      for row in families.itertuples()])
  ax.invert_yaxis()
  ax.set_xlim(-1.06 * reach, 1.06 * reach)
  ax.set_xlabel('score per doubling of RankMe, all else equal, 95 %')
  found = [v for v in COLORS if (families['verdict'] == v).any()]
  style.above(ax, [style.marker('o', v, color=COLORS[v]) for v in found])
  return ax
