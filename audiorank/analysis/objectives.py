"""Do encoders trained by another objective lie on the same line?

Shapes: N configurations of the main objective, M of the other.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank.analysis import claims
from audiorank.analysis import slopes
from audiorank.analysis import study

LINE = 4  # Configurations without which no line is drawn.
NEAR = .02  # Of score: distances within which runs lie on a line.


class Offset(NamedTuple):
  """How far some runs lie from a line, on average.

  value, low, high, p: with its 95 % interval, NaN where a single run leaves
  its noise unknown.  spread: standard deviation between the runs.
  """
  value: float
  low: float
  high: float
  p: float
  spread: float


def offset(x_N: np.ndarray, y_N: np.ndarray, x_M: np.ndarray,
           y_M: np.ndarray, noise: slopes.Noise) -> Offset:
  """Returns the mean distance of M points from the line through N others.

  Its noise is that of the M themselves, or that of seeds where that is
  larger, and the line's own where the M lie. The N say nothing about how far
  the M scatter: theirs is the noise of the line alone.

  Args:
    x_N, y_N: log2 RankMe and score that the line goes through.
    x_M, y_M: of the points.
    noise: of seeds.
  """
  slope, level = np.polyfit(x_N, y_N, 1)
  away_M = y_M - (slope * x_M + level)
  N, M = len(x_N), len(x_M)
  value = float(away_M.mean())
  if M < 2:
    # How far one run scatters cannot be seen.
    return Offset(value, math.nan, math.nan, math.nan, math.nan)
  left = float(np.sum((y_N - slope * x_N - level) ** 2)) / (N - 2)
  about = float(np.sum((x_N - x_N.mean()) ** 2))
  # The variance of a fitted line at the mean of the points.
  of_line = left * (1 / N + (x_M.mean() - x_N.mean()) ** 2 / about)
  spread = float(away_M.std(ddof=1))
  own, free = spread ** 2, M - 1
  # Few runs may lie close together by luck; seeds say how close is luck.
  if noise.free and noise.score ** 2 > own:
    own = noise.score ** 2
  variance = own / M + of_line
  # Welch and Satterthwaite: two variances, each with its degrees of freedom.
  whole = variance ** 2 / ((own / M) ** 2 / free + of_line ** 2 / (N - 2))
  reach = float(special.stdtrit(whole, .975)) * math.sqrt(variance)
  p = 2 * special.stdtr(whole, -abs(value) / math.sqrt(variance))
  return Offset(value, value - reach, value + reach, float(p), spread)


def means(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
  """Returns log2 RankMe and score of every configuration."""
  values = rows.assign(x=np.log2(rows['rank'].astype(float)),
                       y=rows['score'].astype(float))
  table = values.groupby('configuration')[['x', 'y']].mean()
  return table['x'].to_numpy(), table['y'].to_numpy()


def of_objectives(rows: study.Study,
                  noise: slopes.Noise) -> list[claims.Claim]:
  """Returns a claim an objective: its runs lie on the main one's line.

  The line goes through the main objective's configurations of the same sizes.
  It fails where the interval of the mean distance excludes 0, and holds where
  it contains 0 and lies within NEAR of it; a wider one shows no difference, not
  that there is none.
  """
  out = []
  for name, others in rows.others.groupby('objective'):
    # Of these sizes alone: elsewhere the line is another one.
    near = rows.trained[rows.trained['size'].isin(set(others['size']))]
    counts = (len(others), int(others['configuration'].nunique()),
              len(others))
    x_M, y_M = means(others)
    x_N, y_N = means(near)
    details: dict[str, Any] = dict(
        rank_low=float(others['rank'].min()),
        rank_high=float(others['rank'].max()),
        sizes=int(others['size'].nunique()), line=len(x_N))
    if len(x_N) < LINE or not np.ptp(x_N):
      out.append(claims.claim('objective', 'score', family=str(name),
                              counts=counts,
                              needed=claims.Needed('line', LINE), **details))
      continue
    away = offset(x_N, y_N, x_M, y_M, noise)
    verdict = claims.INCONCLUSIVE
    if away.low > 0 or away.high < 0:
      verdict = claims.FAILS
    elif -NEAR < away.low and away.high < NEAR:
      verdict = claims.HOLDS
    needed = claims.Needed('repeats', counts[1])
    if others['configuration'].value_counts().min() > 1:
      needed = claims.Needed('more_sizes')
    out.append(claims.claim(
        'objective', 'score', away.value, away.low, away.high, away.p,
        verdict, needed, str(name), counts,
        spread=away.spread,
        best=float(others['score'].max() - rows.trained['score'].max()),
        **details))
  return out
