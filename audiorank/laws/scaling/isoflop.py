"""IsoFLOP valleys: the best size at each budget, without a law of both.

Shape suffixes: S resamples, K coefficients.
"""

import math

import numpy as np
import pandas as pd

from audiorank.laws import table
from audiorank.laws.scaling import bundle


def valleys(data, flops='flops', size='params', loss='valid_loss', degree=3,
            compute='encoder only', confidence=.95, draws=400, seed=0):
  """The size of least loss at each budget, from runs of equal compute.

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
  rows, curves, budget_N = [], {}, np.full(len(c), np.nan)
  label = budgets(c)
  for k in range(label.max() + 1):
    here = label == k
    budget = float(np.exp(np.log(c[here]).mean()))
    u, v = np.log10(n[here]), np.log(y[here])
    if len(np.unique(u)) < degree + 2:
      continue
    budget_N[here] = budget
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
    low, high = bundle.interval(10 ** at[1:], confidence)
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
  result, used = pd.DataFrame(rows), np.isfinite(budget_N)
  result.attrs = {
      'compute': compute, 'curves': curves, 'columns': (flops, size, loss),
      'points': {flops: budget_N[used], size: n[used], loss: y[used]}}
  return result


def budgets(c):
  """Number of the budget of each run, counting up from 0 at the least.

  Steps and batches are whole, so runs of one budget differ by some per cent.
  """
  order = np.argsort(c)
  far = np.diff(np.log(c[order])) > math.log(1.1)
  label = np.empty(len(c), int)
  label[order] = np.concatenate([[0], np.cumsum(far)])
  return label


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
