"""The compute-optimal frontier, and what to do with more compute.

Shape suffixes: B budgets, S resamples, M points, F budgets of all resamples.
"""

import math

import numpy as np
import pandas as pd

from audiorank.laws import project
from audiorank.laws import table
from audiorank.laws.scaling import bundle


def six(C, N):
  """Data that a budget buys at 6 FLOP per parameter and unit of data."""
  return C / (6. * N)


def frontier(fit, budgets, data_at=six, compute='encoder only',
             rising=None, confidence=.95, draws=200, seed=0):
  """The best size and amount of data for each budget.

  Args:
    fit: a Fit of two inputs, the size first.
    budgets: values of C, of shape (B,).
    data_at: (C, N) -> D.
    compute: what the budgets count, kept with the result.
    rising: whether the output is to be large; None to ask the fit.
    confidence: of the bootstrap intervals.
    draws: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    A DataFrame of flops, size, data, value, each with _low and _high, and
    distance: decades by which the optimum lies outside the data. attrs:
    'compute', 'size_exponent' and 'data_exponent' as (value, low, high).

  Raises:
    ValueError: a law of one input, or budgets that are not positive.
  """
  bundle.pair(fit)
  C_B = table.positive('budgets', table.numbers('budgets', budgets))
  found = bundle.resampled(fit, draws, seed)
  sign = -1. if (bundle.rises(fit) if rising is None else rising) else 1.
  S, seen = len(found.value_S), np.asarray(fit.data[fit.x[0]], float)
  # Four decades to either side of the data: farther, no law is worth asking.
  grid = np.geomspace(seen.min() / 1e4, seen.max() * 1e4, 161)
  C_SBM = np.broadcast_to(C_B[:, None], (S, len(C_B), len(grid)))
  flat = lambda a: a.reshape(S, -1)
  value = sign * bundle.values(
      fit, found, flat(np.broadcast_to(grid, C_SBM.shape)),
      flat(data_at(C_SBM, grid))).reshape(C_SBM.shape)
  at = np.argmin(np.where(np.isnan(value), np.inf, value), 2)
  edge = (at == 0) | (at == len(grid) - 1)
  low = np.log(grid[np.maximum(at - 1, 0)]).ravel()
  high = np.log(grid[np.minimum(at + 1, len(grid) - 1)]).ravel()
  C_F = np.tile(C_B, S)

  def objective(log_n):
    n = np.exp(log_n)
    return sign * bundle.values(fit, found, n.reshape(S, -1),
                                data_at(C_F, n).reshape(S, -1)).ravel()

  n_SB = np.exp(project.golden(objective, low, high)).reshape(S, -1)
  n_SB = np.where(edge, np.nan, n_SB)
  d_SB = data_at(C_B[None], n_SB)
  v_SB = bundle.values(fit, found, n_SB, d_SB)
  out = {'flops': C_B}
  for name, v in (('size', n_SB), ('data', d_SB), ('value', v_SB)):
    out[name] = v[0]
    out[f'{name}_low'], out[f'{name}_high'] = np.transpose(
        [bundle.interval(col, confidence) for col in v[1:].T])
  inside = np.isfinite(n_SB[0])
  out['distance'] = np.full(len(C_B), np.nan)
  if inside.any():
    out['distance'][inside] = fit.distance(
        {fit.x[0]: n_SB[0][inside], fit.x[1]: d_SB[0][inside]})
  result = pd.DataFrame(out)
  result.attrs = {'compute': compute}
  if len(C_B) > 1 and np.ptp(C_B) > 0:
    slope = lambda v: np.polyfit(np.log(C_B), np.log(v).T, 1)[0]
    for name, v in (('size', n_SB), ('data', d_SB)):
      each = slope(v)
      result.attrs[f'{name}_exponent'] = (
          float(each[0]), *bundle.interval(each[1:], confidence))
  return result


def longer_or_larger(fit, size, data, factor=2., data_at=six,
                     confidence=.95, draws=400, seed=0):
  """What to do with `factor` times the compute of a run.

  Args:
    fit: a Fit of two inputs, the size first.
    size: N of the run.
    data: D of the run.
    factor: how much more compute there is.
    data_at: (C, N) -> D; proportional to C at fixed N.
    confidence: of the bootstrap intervals.
    draws: its resamples.
    seed: of the bootstrap.

  Returns:
    A DataFrame of choice ('as it is', 'longer', 'larger', 'best split'),
    size, data, value, value_low, value_high, distance, and attrs
    'longer_wins': the fraction of resamples in which longer beats larger.
  """
  bundle.pair(fit)
  budget = data / data_at(1., size)
  larger = _larger(data_at, budget * factor, size, data)
  best = frontier(fit, [budget * factor], data_at, draws=2, seed=seed)
  points = [('as it is', size, data),
            ('longer', size, data_at(budget * factor, size)),
            ('larger', larger, data),
            ('best split', best['size'][0], best['data'][0])]
  points = [p for p in points if np.isfinite(p[1])]
  found = bundle.resampled(fit, draws, seed)
  S = len(found.value_S)
  n, d = (np.array([p[i] for p in points], float) for i in (1, 2))
  v_SM = bundle.values(fit, found, np.tile(n, (S, 1)), np.tile(d, (S, 1)))
  bands = np.array([bundle.interval(col, confidence) for col in v_SM[1:].T])
  result = pd.DataFrame({
      'choice': [p[0] for p in points], 'size': n, 'data': d,
      'value': v_SM[0], 'value_low': bands[:, 0], 'value_high': bands[:, 1],
      'distance': fit.distance({fit.x[0]: n, fit.x[1]: d})})
  sign = 1. if bundle.rises(fit) else -1.
  result.attrs = {'longer_wins': float(np.mean(
      sign * (v_SM[1:, 1] - v_SM[1:, 2]) > 0))}
  return result


def _larger(data_at, budget, start, data):
  """The size that spends the budget on this much data, by bisection."""
  low, high = start / 1e6, start * 1e6
  for _ in range(200):
    middle = math.sqrt(low * high)
    if data_at(budget, middle) > data:
      low = middle
    else:
      high = middle
  return math.sqrt(low * high)
