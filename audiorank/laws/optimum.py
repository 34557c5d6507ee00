"""Where a measure has its minimum along a setting that was varied on a grid.

A learning rate, say: the loss of several runs a rate. A parabola through the
points around the lowest, over the logarithm of the setting, has its vertex at
the optimum. Far from it the loss is no parabola (a rate too high diverges), so
that only points near the lowest count.

Shapes: N runs, P rates that count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

AROUND = 2  # Values of the grid on either side of the lowest mean that count.


class Optimum(NamedTuple):
  """The setting at which a measure is lowest.

  best: the vertex; `low` and `high` its interval. NaN, 0 and infinity where the
    points do not bend upwards.
  lowest: the measure at the vertex.
  runs: how many count.
  """
  best: float
  low: float
  high: float
  lowest: float
  runs: int


def near(x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64],
         around: int = AROUND) -> npt.NDArray[np.bool_]:
  """Returns which runs have one of the settings around the lowest mean."""
  grid_P = np.unique(x_N)
  means_P = np.array([y_N[x_N == x].mean() for x in grid_P])
  at = int(np.nanargmin(means_P))
  return np.isin(x_N, grid_P[max(at - around, 0):at + around + 1])


def optimum(values: Sequence[float], measures: Sequence[float],
            confidence: float = .95) -> Optimum:
  """Returns the Optimum of a measure over the logarithm of a setting.

  The interval contains every vertex that an F-test does not reject: it counts
  the noise between runs and what a parabola does not fit, and is unbounded
  where the curvature is not significant.

  Args:
    values: of the setting, above 0, one a run; several runs may share one.
    measures: of the runs, such as validation losses; NaN counts as diverged.
    confidence: of the interval.

  Raises:
    ValueError: fewer than 5 runs or 3 values around the lowest.
  """
  x_N = np.log(np.asarray(values, float))
  y_N = np.asarray(measures, float)
  y_N = np.where(np.isfinite(y_N), y_N, np.inf)
  used_N = near(x_N, y_N) & np.isfinite(y_N)
  x_N, y_N = x_N[used_N], y_N[used_N]
  count = len(x_N)
  if count < 5 or len(np.unique(x_N)) < 3:
    raise ValueError(f'{count} runs at {len(np.unique(x_N))} values around the '
                     'lowest: expected at least 5 runs at 3 values')
  a, b, c = np.polyfit(x_N, y_N, 2)
  if a <= 0:
    return Optimum(np.nan, 0., np.inf, float(y_N.min()), count)
  vertex = -b / (2 * a)
  least = np.square(y_N - np.polyval((a, b, c), x_N)).sum()
  limit = least * (1 + stats.f.ppf(confidence, 1, count - 3) / (count - 3))
  low, high = (np.exp(_edge(x_N, y_N, vertex, limit, sign))
               for sign in (-1, 1))
  return Optimum(float(np.exp(vertex)), float(low), float(high),
                 float(np.polyval((a, b, c), vertex)), count)


def _error(x_N, y_N, vertex):
  """Returns the squared error of the best parabola with a vertex."""
  design_N2 = np.stack([np.ones_like(x_N), np.square(x_N - vertex)], 1)
  solution, *_ = np.linalg.lstsq(design_N2, y_N, rcond=None)
  # A parabola that opens downwards has its maximum there.
  if solution[1] <= 0:
    return np.square(y_N - y_N.mean()).sum()
  return np.square(y_N - design_N2 @ solution).sum()


def _edge(x_N, y_N, vertex, limit, sign):
  """Returns where the error passes the limit on one side, or an infinity."""
  span = np.ptp(x_N)
  far = vertex + sign * 20 * span
  if _error(x_N, y_N, far) <= limit:
    return sign * np.inf
  inside, outside = vertex, far
  for _ in range(60):  # Bisection to the precision of a float.
    middle = (inside + outside) / 2
    if _error(x_N, y_N, middle) <= limit:
      inside = middle
    else:
      outside = middle
  return inside
