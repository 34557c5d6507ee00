"""What to scale next: compute-optimal frontier, isoFLOP valleys, data bound.

Sizes N, amounts of data D, budgets C in any units, as long as the cost law
`data_at(C, N) -> D` says how much data a budget buys at a size. Dasheng's
fixed decoder is most of the compute of small encoders, so every table says
in `attrs['compute']` what its compute counts.

Shape suffixes: B budgets, S resamples, M points, K coefficients.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.laws import intervals
from audiorank.laws import optimum
from audiorank.laws import solve
from audiorank.laws import table


def six(C, N):
  """Data that a budget buys at 6 FLOP per parameter and unit of data."""
  return C / (6. * N)


class Bound(NamedTuple):
  """The size beyond which more parameters stop helping, at some data.

  `refused` says why there is none, and the numbers are then NaN.
  """
  size: float
  low: float
  high: float
  refused: str = ''


def _pair(fit):
  if len(fit.x) != 2:
    raise ValueError(f'{fit.form.name} has the input(s) {", ".join(fit.x)}: '
                     'a frontier needs a size and an amount of data')


def _all(fit, draws, seed):
  """The fit itself, then its resamples, as one Optimum."""
  found = intervals.resample(fit, draws, seed)
  return optimum.Optimum(*(np.concatenate([a, b]) for a, b in
                           zip(fit.best, found)))


def _law(fit, found, n_SM, d_SM):
  """The law of every set of parameters at points of its own."""
  out = []
  for i in range(len(n_SM)):
    there = fit.problem._replace(cols=[n_SM[i] / fit.problem.centre[0],
                                       d_SM[i] / fit.problem.centre[1]])
    out.append(solve.values(there, found.c_SQ[i:i + 1],
                            found.t_SP[i:i + 1])[0])
  return np.stack(out)


def _interval(values_S, confidence):
  tail = (1 - confidence) / 2
  finite = values_S[np.isfinite(values_S)]
  if not len(finite):
    return math.nan, math.nan
  return tuple(np.quantile(finite, [tail, 1 - tail]))


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
  _pair(fit)
  C_B = table.positive('budgets', table.numbers('budgets', budgets))
  found = _all(fit, draws, seed)
  sign = -1. if (_rises(fit) if rising is None else rising) else 1.
  S, seen = len(found.value_S), np.asarray(fit.data[fit.x[0]], float)
  # Four decades to either side of the data: farther, no law is worth asking.
  grid = np.geomspace(seen.min() / 1e4, seen.max() * 1e4, 161)
  C_SBM = np.broadcast_to(C_B[:, None], (S, len(C_B), len(grid)))
  flat = lambda a: a.reshape(S, -1)
  value = sign * _law(fit, found, flat(np.broadcast_to(grid, C_SBM.shape)),
                      flat(data_at(C_SBM, grid))).reshape(C_SBM.shape)
  at = np.argmin(np.where(np.isnan(value), np.inf, value), 2)
  edge = (at == 0) | (at == len(grid) - 1)
  low = np.log(grid[np.maximum(at - 1, 0)]).ravel()
  high = np.log(grid[np.minimum(at + 1, len(grid) - 1)]).ravel()
  C_F = np.tile(C_B, S)

  def objective(log_n):
    n = np.exp(log_n)
    return sign * _law(fit, found, n.reshape(S, -1),
                       data_at(C_F, n).reshape(S, -1)).ravel()

  n_SB = np.exp(solve.golden(objective, low, high)).reshape(S, -1)
  n_SB = np.where(edge, np.nan, n_SB)
  d_SB = data_at(C_B[None], n_SB)
  v_SB = _law(fit, found, n_SB, d_SB)
  out = {'flops': C_B}
  for name, v in (('size', n_SB), ('data', d_SB), ('value', v_SB)):
    out[name] = v[0]
    out[f'{name}_low'], out[f'{name}_high'] = np.transpose(
        [_interval(col, confidence) for col in v[1:].T])
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
      result.attrs[f'{name}_exponent'] = (float(each[0]),
                                          *_interval(each[1:], confidence))
  return result


def _rises(fit):
  """Whether the output grows with both inputs, across the data."""
  corner = {name: np.quantile(np.asarray(fit.data[name], float), [.1, .9])
            for name in fit.x}
  low, high = fit.predict(corner)
  return bool(high > low)


def valleys(data, flops='flops', size='params', loss='valid_loss', degree=3,
            compute='encoder only', confidence=.95, draws=400, seed=0):
  """The size of least loss at each budget, from runs of equal compute.

  A polynomial of log loss in log size per budget. The cubic is the default:
  a parabola's minimum is biased as soon as the two exponents differ or the
  sizes are not centred on it (arXiv 2603.22339).

  Args:
    data: columns by name.
    flops: name of the column that groups the runs.
    size: name of the column of sizes.
    loss: name of the column that is smallest at the optimum; positive.
    degree: of the polynomial; a budget needs degree + 2 sizes.
    compute: what `flops` counts, kept with the result.
    confidence: of the intervals, from a bootstrap of scaled residuals.
    draws: its resamples.
    seed: of the bootstrap.

  Returns:
    A DataFrame of flops, size, size_low, size_high, loss, points, inside
    (whether the minimum lies within the sizes tried; NaN sizes where not).
    attrs: 'compute', 'points' (the runs used), 'curves' (flops ->
    coefficients in log10 size), 'columns'.

  Raises:
    ValueError: no budget with enough sizes.
  """
  if degree not in (2, 3, 4):
    raise ValueError(f'degree is {degree}: expected 2, 3 or 4')
  c, n, y = (table.positive(name, table.column(data, name))
             for name in (flops, size, loss))
  rng = np.random.default_rng(seed)
  rows, curves = [], {}
  for budget in np.unique(c):
    here = c == budget
    u, v = np.log10(n[here]), np.log(y[here])
    if len(np.unique(u)) < degree + 2:
      continue
    centre = u.mean()
    design = np.vander(u - centre, degree + 1)
    hat = np.linalg.pinv(design)
    curve_K = hat @ v
    curves[float(budget)] = (centre, curve_K)
    r = v - design @ curve_K
    swell = math.sqrt(len(u) / max(len(u) - degree - 1, 1))
    noise = rng.choice(r, (draws, len(r))) * swell
    every_SK = np.concatenate([curve_K[None], (v - r + noise) @ hat.T])
    at = np.array([_minimum(k, u - centre) for k in every_SK]) + centre
    low, high = _interval(10 ** at[1:], confidence)
    # A resample whose valley left the window says it may lie outside.
    lost = np.isnan(at[1:]).mean()
    rows.append({
        'flops': budget, 'size': 10 ** at[0],
        'size_low': low if lost <= (1 - confidence) / 2 else math.nan,
        'size_high': high if lost <= (1 - confidence) / 2 else math.nan,
        'loss': float(np.exp(np.polyval(curve_K, at[0] - centre))),
        'points': int(here.sum()), 'inside': bool(np.isfinite(at[0]))})
  if not rows:
    raise ValueError(f'no value of {flops!r} has the {degree + 2} different '
                     f'{size!r} that a valley of degree {degree} needs')
  result = pd.DataFrame(rows)
  used = np.isin(c, result['flops'])
  result.attrs = {
      'compute': compute, 'curves': curves, 'columns': (flops, size, loss),
      'points': {flops: c[used], size: n[used], loss: y[used]}}
  return result


def _minimum(curve_K, u):
  """The lowest interior minimum of a polynomial over the window of u."""
  roots = np.roots(np.polyder(curve_K))
  roots = roots[np.abs(roots.imag) < 1e-9].real
  roots = roots[(roots > u.min()) & (roots < u.max())]
  bend = np.polyval(np.polyder(curve_K, 2), roots)
  roots = roots[bend > 0]
  if not len(roots):
    return math.nan
  return roots[np.argmin(np.polyval(curve_K, roots))]


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
  _pair(fit)
  found = _all(fit, draws, seed)
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
  grid = np.geomspace(seen.min() / 100, seen.max() * 100, 801)
  n_SM = np.broadcast_to(grid, (len(found.value_S), len(grid)))
  y_SM = _law(fit, found, n_SM, np.full(n_SM.shape, float(data)))
  slope_SM = np.abs(np.gradient(np.log(np.abs(y_SM)), np.log(grid), axis=1))
  low = slope_SM <= eps
  at = np.argmax(low, 1)
  return np.where(low.any(1), grid[at], np.nan)


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
  _pair(fit)
  budget = data / data_at(1., size)
  larger = _larger(data_at, budget * factor, size, data)
  best = frontier(fit, [budget * factor], data_at, draws=2, seed=seed)
  points = [('as it is', size, data),
            ('longer', size, data_at(budget * factor, size)),
            ('larger', larger, data),
            ('best split', best['size'][0], best['data'][0])]
  points = [p for p in points if np.isfinite(p[1])]
  found = _all(fit, draws, seed)
  S = len(found.value_S)
  n, d = (np.array([p[i] for p in points], float) for i in (1, 2))
  v_SM = _law(fit, found, np.tile(n, (S, 1)), np.tile(d, (S, 1)))
  bands = np.array([_interval(col, confidence) for col in v_SM[1:].T])
  result = pd.DataFrame({
      'choice': [p[0] for p in points], 'size': n, 'data': d,
      'value': v_SM[0], 'value_low': bands[:, 0], 'value_high': bands[:, 1],
      'distance': fit.distance({fit.x[0]: n, fit.x[1]: d})})
  sign = 1. if _rises(fit) else -1.
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
