"""What to scale next: compute-optimal frontier, isoFLOP valleys, data bound.

Sizes N, amounts of data D, budgets C in any units, as long as the cost law
`data_at(C, N) -> D` says how much data a budget buys at a size. Dasheng's
fixed decoder is most of the compute of small encoders, so every table says
in `attrs['compute']` what its compute counts.

Shapes: S resamples (the fit itself first), B budgets, M points, F budgets of
all resamples, K coefficients of a polynomial.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.laws import intervals
from audiorank.laws import problem as problem_lib
from audiorank.laws import solvers
from audiorank.laws import table
from audiorank.laws import varpro
from audiorank.laws.fit import Fit

# In log N, of a difference: its error is of the order of 1e-6.
STEP = 1e-3
# Budgets within this factor are one: steps and batches are whole numbers.
SAME_BUDGET = 1.1

CostLaw = Callable[[Any, Any], Any]


def six(C: Any, N: Any) -> Any:
  """Returns the data for a budget of 6 FLOP per parameter and unit of data."""
  return C / (6. * N)


# A law of two inputs with all its resamples, asked at many points at once.


def _check_pair(fit):
  """Raises ValueError for a law that has not two inputs."""
  if len(fit.x) != 2:
    raise ValueError(f'{fit.form.name} has the input(s) {", ".join(fit.x)}: '
                     'a frontier needs a size and an amount of data')


def _with_resamples(fit, draws, seed):
  """Returns the fit itself, then its resamples, as one Optimum."""
  # The fit first: row 0 of everything below is the estimate, the rest are its
  # resamples.
  resamples = intervals.resample(fit, draws, seed)
  return solvers.Optimum(*(np.concatenate([a, b]) for a, b in
                           zip(fit.best, resamples)))


def _values(fit, optima, n_SM, d_SM):
  """Returns the law of every set of parameters at its own points."""
  # One set of parameters at a time: each has its own points, at which the
  # others need not be evaluated.
  out = []
  for i in range(len(n_SM)):
    there = fit.problem._replace(cols=[n_SM[i] / fit.problem.centre[0],
                                       d_SM[i] / fit.problem.centre[1]])
    out.append(problem_lib.values(there, optima.c_SQ[i:i + 1],
                                  optima.theta_SP[i:i + 1])[0])
  return np.stack(out)


def _quantiles(values_S, confidence):
  """Returns the interval of the finite values; NaN if there are none."""
  tail = (1 - confidence) / 2
  finite_S = values_S[np.isfinite(values_S)]
  if not len(finite_S):
    return math.nan, math.nan
  low, high = np.quantile(finite_S, [tail, 1 - tail])
  return float(low), float(high)


def _rises(fit):
  """Returns whether the output grows with both inputs, across the data."""
  # From the low corner of the data to the high one, by deciles so that no
  # single outlier decides.
  corner = {name: np.quantile(np.asarray(fit.data[name], float), [.1, .9])
            for name in fit.x}
  low, high = fit.predict(corner)
  return bool(high > low)


# Frontier.


def _best_sizes(fit, optima, C_B, data_at, sign):
  """The best size of each set of parameters and budget, n_SB; NaN at an edge.
  """
  S, sizes = len(optima.value_S), np.asarray(fit.data[fit.x[0]], float)
  # Four decades to either side of the data: farther, no law is worth asking.
  grid = np.geomspace(sizes.min() / 1e4, sizes.max() * 1e4, 161)
  C_SBM = np.broadcast_to(C_B[:, None], (S, len(C_B), len(grid)))
  flat = lambda a: a.reshape(S, -1)
  # A grid brackets the best size of every resample, golden section finds it.
  value_SBM = sign * _values(
      fit, optima, flat(np.broadcast_to(grid, C_SBM.shape)),
      flat(data_at(C_SBM, grid))).reshape(C_SBM.shape)
  at = np.argmin(np.where(np.isnan(value_SBM), np.inf, value_SBM), 2)
  # A minimum on the edge of the grid is no optimum: the law is monotone in size
  # at that budget.
  edge = (at == 0) | (at == len(grid) - 1)
  low = np.log(grid[np.maximum(at - 1, 0)]).ravel()
  high = np.log(grid[np.minimum(at + 1, len(grid) - 1)]).ravel()
  C_F = np.tile(C_B, S)

  def objective(log_n_F: np.ndarray) -> np.ndarray:
    n_F = np.exp(log_n_F)
    return sign * _values(fit, optima, n_F.reshape(S, -1),
                          data_at(C_F, n_F).reshape(S, -1)).ravel()

  n_SB = np.exp(varpro.golden(objective, low, high)).reshape(S, -1)
  return np.where(edge, np.nan, n_SB)


def frontier(fit: Fit, budgets: Sequence[float] | np.ndarray,
             data_at: CostLaw = six, compute: str = 'encoder only',
             rising: bool | None = None, confidence: float = .95,
             draws: int = 200, seed: int = 0) -> pd.DataFrame:
  """Returns the best size and amount of data for each budget.

  Args:
    fit: a Fit of two inputs, the size first.
    budgets: values of C, of shape (B,).
    data_at: (C, N) -> D.
    compute: what the budgets count, copied into the result.
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
  _check_pair(fit)
  C_B = table.positive('budgets', table.numbers('budgets', budgets))
  optima = _with_resamples(fit, draws, seed)
  if rising is None:
    rising = _rises(fit)
  sign = 1.
  if rising:
    sign = -1.  # _best_sizes minimises.
  n_SB = _best_sizes(fit, optima, C_B, data_at, sign)
  d_SB = data_at(C_B[None], n_SB)
  v_SB = _values(fit, optima, n_SB, d_SB)
  out = {'flops': C_B}
  for name, v in (('size', n_SB), ('data', d_SB), ('value', v_SB)):
    # Row 0 is the estimate; the interval comes from the resamples alone.
    out[name] = v[0]
    out[f'{name}_low'], out[f'{name}_high'] = np.transpose(
        [_quantiles(col, confidence) for col in v[1:].T])
  inside = np.isfinite(n_SB[0])
  out['distance'] = np.full(len(C_B), np.nan)
  if inside.any():
    out['distance'][inside] = fit.distance(
        {fit.x[0]: n_SB[0][inside], fit.x[1]: d_SB[0][inside]})
  result = pd.DataFrame(out)
  result.attrs = {'compute': compute}
  # The exponent a in N* ~ C^a, as a straight line through the logarithms.
  if len(C_B) > 1 and np.ptp(C_B) > 0:
    for name, v in (('size', n_SB), ('data', d_SB)):
      slope_S = np.polyfit(np.log(C_B), np.log(v).T, 1)[0]
      result.attrs[f'{name}_exponent'] = (
          float(slope_S[0]), *_quantiles(slope_S[1:], confidence))
  return result


def longer_or_larger(fit: Fit, size: float, data: float,
                     factor: float = 2., data_at: CostLaw = six,
                     confidence: float = .95, draws: int = 400,
                     seed: int = 0) -> pd.DataFrame:
  """Compares uses of `factor` times the compute of a run.

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
  _check_pair(fit)
  # The cost law is proportional to C, so one unit of budget prices the run.
  budget = data / data_at(1., size)
  larger = _larger(data_at, budget * factor, size, data)
  # Two draws: only the estimate of the best split is used, its interval comes
  # from the resamples below.
  best = frontier(fit, [budget * factor], data_at, draws=2, seed=seed)
  points = [('as it is', size, data),
            ('longer', size, data_at(budget * factor, size)),
            ('larger', larger, data),
            ('best split', best['size'][0], best['data'][0])]
  # The best split is NaN where the optimum lies at the edge of the grid.
  points = [p for p in points if np.isfinite(p[1])]
  optima = _with_resamples(fit, draws, seed)
  S = len(optima.value_S)
  n_M, d_M = (np.array([p[i] for p in points], float) for i in (1, 2))
  v_SM = _values(fit, optima, np.tile(n_M, (S, 1)), np.tile(d_M, (S, 1)))
  bands = np.array([_quantiles(col, confidence) for col in v_SM[1:].T])
  result = pd.DataFrame({
      'choice': [p[0] for p in points], 'size': n_M, 'data': d_M,
      'value': v_SM[0], 'value_low': bands[:, 0], 'value_high': bands[:, 1],
      'distance': fit.distance({fit.x[0]: n_M, fit.x[1]: d_M})})
  # Losses fall: longer wins where its value is lower.
  sign = -1.
  if _rises(fit):
    sign = 1.
  result.attrs = {'longer_wins': float(np.mean(
      sign * (v_SM[1:, 1] - v_SM[1:, 2]) > 0))}
  return result


def _larger(data_at, budget, start, data):
  """The size that spends the budget on this much data, by bisection."""
  # Bisection in log size: data falls with size at a fixed budget.
  low, high = start / 1e6, start * 1e6
  for _ in range(200):
    middle = math.sqrt(low * high)
    if data_at(budget, middle) > data:
      low = middle
    else:
      high = middle
  return math.sqrt(low * high)


# The size that an amount of data can feed.


class Bound(NamedTuple):
  """The size beyond which more parameters stop helping, at some data.

  `refused` says why there is none, and the numbers are then NaN.
  """
  size: float
  low: float
  high: float
  refused: str = ''


def data_bound(fit: Fit, data: float, eps: float = .02,
               confidence: float = .95, draws: int = 400,
               seed: int = 0) -> Bound:
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
  _check_pair(fit)
  optima = _with_resamples(fit, draws, seed)
  sizes, amounts = (np.asarray(fit.data[name], float) for name in fit.x)
  refuse = lambda why: Bound(math.nan, math.nan, math.nan, why)
  # Outside the data a law still has a crossing, but nothing supports it.
  if not amounts.min() <= data <= amounts.max():
    return refuse(f'{data:g} lies outside the {fit.x[1]} observed '
                  f'({amounts.min():g} to {amounts.max():g})')
  # The smooth minimum of two branches: where both give the same rank.
  if fit.form.name == 'smooth_min':
    p = solvers.params(fit.problem, optima)
    with np.errstate(all='ignore'):
      size_S = (p['c_D'] / p['c_N'] * data ** p['d']) ** (1 / p['g'])
  else:
    size_S = _stall(fit, optima, data, eps)
  if not sizes.min() <= size_S[0] <= sizes.max():
    where = 'nowhere near'
    if math.isfinite(size_S[0]):
      where = f'at {size_S[0]:.3g}'
    return refuse(f'the bound lies {where}, outside the {fit.x[0]} observed '
                  f'({sizes.min():g} to {sizes.max():g})')
  # A resample that never stalls has its bound beyond all sizes.
  size_S = np.where(np.isnan(size_S), np.inf, size_S)
  tail = (1 - confidence) / 2
  # Order statistics, because an interpolation between infinities is NaN.
  ordered = np.sort(size_S[1:])
  last = len(ordered) - 1
  return Bound(float(size_S[0]), float(ordered[math.floor(tail * last)]),
               float(ordered[math.ceil((1 - tail) * last)]))


def _stall(fit, optima, data, eps):
  """Where |d log y / d log N| falls to eps, for each set of parameters."""
  sizes, S = np.asarray(fit.data[fit.x[0]], float), len(optima.value_S)

  def slope(u_SM: np.ndarray) -> np.ndarray:
    """|d log y / d log N| at log sizes, by a central difference."""
    n_SM = np.exp(np.stack([u_SM - STEP, u_SM + STEP], -1)).reshape(S, -1)
    y_SM = _values(fit, optima, n_SM, np.full(n_SM.shape, float(data)))
    low, high = np.moveaxis(
        np.log(np.abs(y_SM)).reshape(*u_SM.shape, 2), -1, 0)
    return np.abs(high - low) / (2 * STEP)

  # A grid for the first size at which the slope is small enough, then bisection
  # within that cell.
  grid = np.log(np.geomspace(sizes.min() / 100, sizes.max() * 100, 201))
  below_SM = slope(np.broadcast_to(grid, (S, len(grid)))) <= eps
  at = np.argmax(below_SM, 1)
  low_S, high_S = grid[np.maximum(at - 1, 0)], grid[at]
  for _ in range(40):
    middle_S = (low_S + high_S) / 2
    below_S = slope(middle_S[:, None])[:, 0] <= eps
    low_S = np.where(below_S, low_S, middle_S)
    high_S = np.where(below_S, middle_S, high_S)
  return np.where(below_SM.any(1), np.exp(high_S), np.nan)


# IsoFLOP valleys: the best size at each budget, without a law of both.


def valleys(data: Any, flops: str = 'flops', size: str = 'params',
            loss: str = 'valid_loss', degree: int = 3,
            compute: str = 'encoder only', confidence: float = .95,
            draws: int = 400, seed: int = 0) -> pd.DataFrame:
  """Returns the size of least loss at each budget (isoFLOP valleys).

  A polynomial of log loss in log size per budget. The cubic is the default:
  a parabola's minimum is biased as soon as the two exponents differ or the
  sizes are not centred on it (arXiv 2603.22339).

  Args:
    data: columns by name.
    flops: name of the column that groups the runs: budgets within a tenth
      of one another are one, at their geometric mean.
    size: name of the column of sizes.
    loss: name of the column that is smallest at the optimum; positive.
    degree: of the polynomial; a budget needs degree + 2 sizes.
    compute: what `flops` counts, copied into the result.
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
  c_N, n_N, y_N = (table.positive(name, table.column(data, name))
                   for name in (flops, size, loss))
  rng = np.random.default_rng(seed)
  rows, curves, budget_N = [], {}, np.full(len(c_N), np.nan)
  label_N = _budgets(c_N)
  for k in range(label_N.max() + 1):
    here = label_N == k
    if len(np.unique(n_N[here])) < degree + 2:
      continue
    budget_N[here] = budget = float(np.exp(np.log(c_N[here]).mean()))
    row, curves[budget] = _valley(
        np.log10(n_N[here]), np.log(y_N[here]), degree, confidence, draws,
        rng)
    rows.append({'flops': budget, **row})
  if not rows:
    raise ValueError(f'no value of {flops!r} has the {degree + 2} different '
                     f'{size!r} that a valley of degree {degree} needs')
  result, used = pd.DataFrame(rows), np.isfinite(budget_N)
  result.attrs = {
      'compute': compute, 'curves': curves, 'columns': (flops, size, loss),
      'points': {flops: budget_N[used], size: n_N[used], loss: y_N[used]}}
  return result


def _valley(u, v, degree, confidence, draws, rng):
  """Returns the minimum of a budget: its row, and (centre, coefficients)."""
  centre = u.mean()
  # Centred: powers of a raw log size are nearly collinear.
  design = np.vander(u - centre, degree + 1)
  hat = np.linalg.pinv(design)
  curve_K = hat @ v
  r = v - design @ curve_K
  # Residuals of n points and K coefficients are too small by this factor.
  inflation = math.sqrt(len(u) / max(len(u) - degree - 1, 1))
  noise = rng.choice(r, (draws, len(r))) * inflation
  # A residual bootstrap: the sizes are a design, not a sample, so they stay and
  # only the noise is drawn again.
  every_SK = np.concatenate([curve_K[None], (v - r + noise) @ hat.T])
  at_S = np.array([_minimum(k, u - centre) for k in every_SK]) + centre
  low, high = _quantiles(10 ** at_S[1:], confidence)
  # A resample whose valley left the window says it may lie outside.
  if np.isnan(at_S[1:]).mean() > (1 - confidence) / 2:
    low, high = math.nan, math.nan
  row = {'size': 10 ** at_S[0], 'size_low': low, 'size_high': high,
         'loss': float(np.exp(np.polyval(curve_K, at_S[0] - centre))),
         'points': len(u), 'inside': bool(np.isfinite(at_S[0]))}
  return row, (centre, curve_K)


def _budgets(c_N):
  """Number of the budget of each run, counting up from 0 at the least."""
  # Sorted budgets are cut wherever the next is more than SAME_BUDGET away.
  order = np.argsort(c_N)
  far = np.diff(np.log(c_N[order])) > math.log(SAME_BUDGET)
  label_N = np.empty(len(c_N), int)
  label_N[order] = np.concatenate([[0], np.cumsum(far)])
  return label_N


def _minimum(curve_K, u):
  """The lowest interior minimum of a polynomial over the window of u."""
  # Where the slope is 0, inside the window, and the curve bends upwards.
  roots = np.roots(np.polyder(curve_K))
  # Roots come as complex numbers; real ones carry an imaginary rounding.
  roots = roots[np.abs(roots.imag) < 1e-9].real
  roots = roots[(roots > u.min()) & (roots < u.max())]
  bend = np.polyval(np.polyder(curve_K, 2), roots)
  roots = roots[bend > 0]
  if not len(roots):
    return math.nan
  return roots[np.argmin(np.polyval(curve_K, roots))]
