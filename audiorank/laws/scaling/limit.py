"""The size that an amount of data can feed.

Shape suffixes: S resamples, M points.
"""

import math
from typing import NamedTuple

import numpy as np

from audiorank.laws import optimum
from audiorank.laws.scaling import bundle

STEP = 1e-3  # In log N, of a difference: its error is of the order of 1e-6.


class Bound(NamedTuple):
  """The size beyond which more parameters stop helping, at some data.

  `refused` says why there is none, and the numbers are then NaN.
  """
  size: float
  low: float
  high: float
  refused: str = ''


def data_bound(fit, data, eps=.02, confidence=.95, draws=400, seed=0):
  """The size above which, with this much data, growing stops helping.

  For the smooth minimum the crossing of its two branches,
  N*(D) = ((c_D / c_N) D^d)^(1 / g); for any other law of two inputs the size
  at which d log y / d log N falls to `eps` in absolute value.

  Args:
    fit: a Fit of two inputs, the size first.
    data: the amount of data.
    eps: the slope that counts as no help.
    confidence: of the bootstrap interval.
    draws: its resamples.
    seed: of the bootstrap.

  Returns:
    A Bound; refused where the size lies outside the sizes observed, or the
    amount of data outside the amounts observed.
  """
  bundle.pair(fit)
  found = bundle.resampled(fit, draws, seed)
  seen = [np.asarray(fit.data[name], float) for name in fit.x]
  none = lambda why: Bound(math.nan, math.nan, math.nan, why)
  if not seen[1].min() <= data <= seen[1].max():
    return none(f'{data:g} lies outside the {fit.x[1]} observed '
                f'({seen[1].min():g} to {seen[1].max():g})')
  if fit.form.name == 'smooth_min':
    p = optimum.params(fit.problem, found)
    with np.errstate(all='ignore'):
      size_S = (p['c_D'] / p['c_N'] * data ** p['d']) ** (1 / p['g'])
  else:
    size_S = _stall(fit, found, data, eps)
  if not seen[0].min() <= size_S[0] <= seen[0].max():
    where = (f'at {size_S[0]:.3g}' if math.isfinite(size_S[0]) else
             'nowhere near')
    return none(f'the bound lies {where}, outside the {fit.x[0]} observed '
                f'({seen[0].min():g} to {seen[0].max():g})')
  size_S = np.where(np.isnan(size_S), np.inf, size_S)
  tail = (1 - confidence) / 2
  ordered = np.sort(size_S[1:])
  last = len(ordered) - 1
  return Bound(float(size_S[0]), float(ordered[math.floor(tail * last)]),
               float(ordered[math.ceil((1 - tail) * last)]))


def _stall(fit, found, data, eps):
  """Where |d log y / d log N| falls to eps, for each set of parameters."""
  seen = np.asarray(fit.data[fit.x[0]], float)
  S = len(found.value_S)

  def slope(u_SM):
    """|d log y / d log N| at log sizes, by a central difference."""
    n_SM = np.exp(np.stack([u_SM - STEP, u_SM + STEP], -1)).reshape(S, -1)
    y_SM = bundle.values(fit, found, n_SM, np.full(n_SM.shape, float(data)))
    low, high = np.moveaxis(np.log(np.abs(y_SM)).reshape(*u_SM.shape, 2), -1,
                            0)
    return np.abs(high - low) / (2 * STEP)

  grid = np.log(np.geomspace(seen.min() / 100, seen.max() * 100, 201))
  low_SM = slope(np.broadcast_to(grid, (S, len(grid)))) <= eps
  at = np.argmax(low_SM, 1)
  low_S, high_S = grid[np.maximum(at - 1, 0)], grid[at]
  for _ in range(40):
    middle_S = (low_S + high_S) / 2
    below_S = slope(middle_S[:, None])[:, 0] <= eps
    low_S = np.where(below_S, low_S, middle_S)
    high_S = np.where(below_S, middle_S, high_S)
  return np.where(low_SM.any(1), np.exp(high_S), np.nan)
