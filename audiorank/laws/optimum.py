"""Where a measure has its minimum along a setting that was varied on a grid.

A learning rate, say: the loss of several runs a rate. A parabola through the
points around the lowest, over the logarithm of the setting, has its vertex at
the optimum. Far from it the loss is no parabola (a rate too high diverges), so
that only points near the lowest count. Runs of one block (a seed) share an
offset: a seed that is worse at every rate says nothing about the best rate.

`change` compares the optima of several sizes: a power of size through them.

Shapes: N runs, P values of the setting, K sizes, S draws.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

AROUND = 2  # Values of the grid on either side of the lowest mean that count.
LEAST_FREE = 2  # Degrees of freedom.
DRAWS = 4000


class Optimum(NamedTuple):
  """The setting at which a measure is lowest.

  best: the vertex; `low` and `high` its interval. NaN, 0 and infinity where the
    points do not bend upwards.
  lowest: the measure at the vertex, as a mean over blocks.
  runs: how many count.
  free: degrees of freedom of the interval.
  """
  best: float
  low: float
  high: float
  lowest: float
  runs: int
  free: int


class Change(NamedTuple):
  """How an optimum changes with size.

  exponent: of the power of size that the optimum follows.
  factor: by which the optimum changes from the smallest size to the largest;
    `low` and `high` its interval.
  sizes: how many count.
  """
  exponent: float
  factor: float
  low: float
  high: float
  sizes: int


def near(x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64],
         around: int = AROUND) -> npt.NDArray[np.bool_]:
  """Returns which runs have one of the settings around the lowest mean."""
  grid_P = np.unique(x_N)
  means_P = np.array([y_N[x_N == x].mean() for x in grid_P])
  at = int(np.nanargmin(means_P))
  return np.isin(x_N, grid_P[max(at - around, 0):at + around + 1])


def optimum(values: Sequence[float], measures: Sequence[float],
            blocks: Sequence[Any] | None = None,
            confidence: float = .95) -> Optimum:
  """Returns the Optimum of a measure over the logarithm of a setting.

  The interval contains every vertex that an F-test does not reject: it counts
  the noise between runs and what a parabola does not fit, and is unbounded
  where the curvature is not significant.

  Args:
    values: of the setting, above 0, one a run; several runs may share one.
    measures: of the runs, such as validation losses; NaN counts as diverged.
    blocks: of the runs, such as seeds; those of a block share an offset. None:
      all are one block.
    confidence: of the interval.

  Raises:
    ValueError: fewer than 3 values around the lowest, or too few runs: 5, and
      one more for every further block.
  """
  x_N = np.log(np.asarray(values, float))
  y_N = np.asarray(measures, float)
  y_N = np.where(np.isfinite(y_N), y_N, np.inf)
  used_N = near(x_N, y_N) & np.isfinite(y_N)
  x_N, y_N = x_N[used_N], y_N[used_N]
  block_N = np.zeros(len(x_N), int)
  if blocks is not None and len(x_N):
    _, block_N = np.unique(np.asarray(blocks)[used_N], return_inverse=True)
  count, offsets = len(x_N), len(np.unique(block_N))
  # Offsets, slope and curvature are fitted.
  free = count - offsets - 2
  if free < LEAST_FREE or len(np.unique(x_N)) < 3:
    raise ValueError(
        f'{count} runs at {len(np.unique(x_N))} values around the lowest: '
        f'expected at least {max(offsets, 1) + 2 + LEAST_FREE} runs at 3 '
        'values')
  # Centred, so that squares of small differences keep their digits.
  middle = x_N.mean()
  columns_N3 = _within(np.stack([np.square(x_N - middle), x_N - middle, y_N],
                                1), block_N)
  a, b = np.linalg.lstsq(columns_N3[:, :2], columns_N3[:, 2], rcond=None)[0]
  if a <= 0:
    return Optimum(np.nan, 0., np.inf, float(y_N.min()), count, free)
  vertex = -b / (2 * a)
  products = columns_N3.T @ columns_N3
  limit = _error(products, vertex) * (
      1 + stats.f.ppf(confidence, 1, free) / free)
  far = 20 * np.ptp(x_N)
  low, high = (np.exp(middle + _edge(products, vertex, limit, distance))
               for distance in (-far, far))
  best = middle + vertex
  return Optimum(float(np.exp(best)), float(low), float(high),
                 float((y_N - a * np.square(x_N - best)).mean()), count, free)


def change(sizes: Sequence[float], optima: Sequence[Optimum],
           confidence: float = .95) -> Change:
  """Returns the Change of optima over sizes, by a power of size.

  Optima whose interval is unbounded do not count. The others are drawn from
  their intervals, as t distributed in the logarithm with a spread on either
  side of the vertex, and a line is fitted through the logarithms of each draw.

  Args:
    sizes: such as widths or parameters, one an optimum.
    optima: of the same setting.
    confidence: of the interval, and that of the optima's own.

  Raises:
    ValueError: fewer than two sizes with a bounded interval.
  """
  known = [(size, one) for size, one in zip(sizes, optima)
           if np.isfinite(one.best) and one.low > 0 and np.isfinite(one.high)]
  x_K = np.log([size for size, _ in known])
  if len(np.unique(x_K)) < 2:
    raise ValueError(f'{len(np.unique(x_K))} sizes with a bounded interval of '
                     'the optimum: expected at least 2')
  best_K, low_K, high_K = np.log([(one.best, one.low, one.high)
                                  for _, one in known]).T
  free_K = np.array([one.free for _, one in known])
  t_K = stats.t.ppf((1 + confidence) / 2, free_K)
  draws_SK = np.random.default_rng(0).standard_t(free_K, (DRAWS, len(known)))
  side_SK = np.where(draws_SK < 0, best_K - low_K, high_K - best_K)
  weight_K = 1 / np.square((high_K - low_K) / t_K)
  centred_K = x_K - np.average(x_K, weights=weight_K)
  # The slope of the weighted line is linear in the logarithms of the optima.
  slope_K = weight_K * centred_K / (weight_K * np.square(centred_K)).sum()
  exponents_S = (best_K + draws_SK * side_SK / t_K) @ slope_K
  tail, span = (1 - confidence) / 2, np.ptp(x_K)
  low, high = np.exp(span * np.quantile(exponents_S, [tail, 1 - tail]))
  exponent = best_K @ slope_K
  return Change(float(exponent), float(np.exp(span * exponent)), float(low),
                float(high), len(known))


def _within(z_NC, block_N):
  """Returns columns less their means over each block."""
  out = z_NC.copy()
  for block in np.unique(block_N):
    out[block_N == block] -= out[block_N == block].mean(0)
  return out


def _error(products, vertex):
  """Returns the squared error of the best parabola with a vertex.

  Args:
    products: (3, 3) inner products of x^2, x and y less their block's means.
    vertex: in x.
  """
  # (x - vertex)^2 without its constant, which the offsets contain.
  bend = np.array([1., -2 * vertex])
  bent_y, bent_2 = bend @ products[:2, 2], bend @ products[:2, :2] @ bend
  # A parabola that opens downwards has its maximum there.
  return products[2, 2] - max(bent_y, 0.) ** 2 / bent_2


def _edge(products, vertex, limit, distance):
  """Returns where the error passes the limit within a distance on one side of
  the vertex, or an infinity."""
  if _error(products, vertex + distance) <= limit:
    return np.sign(distance) * np.inf
  inside, outside = vertex, vertex + distance
  for _ in range(60):  # Bisection to the precision of a float.
    middle = (inside + outside) / 2
    if _error(products, middle) <= limit:
      inside = middle
    else:
      outside = middle
  return inside
