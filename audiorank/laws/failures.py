"""Where a law fails: outliers, wrong shape, collapsed and unstable runs.

Shapes: N points, P packed parameters.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from audiorank.laws import intervals
from audiorank.laws import problem as problem_lib
from audiorank.laws import select
from audiorank.laws.fit import Data
from audiorank.laws.fit import Fit

# A rank below it is that of one vector and noise.
ONE = 1.5
# A rise of the loss below this share of it is noise.
SLIGHT = .05
# A point of higher leverage determines its own prediction: without it the
# law is extrapolated, and says nothing about it.
MOST_LEVERAGE = .9


def leverage(fit: Fit) -> np.ndarray:
  """How far each point determines its own prediction, (N,): 0 not, 1 fully.

  Of the law linearised at the optimum; 0 for rows of no weight.
  """
  # Leverage is the diagonal of the hat matrix, J (J^T J)^-1 J^T: squared rows
  # of the left singular vectors.
  jac_NP, _ = intervals.jacobian(fit)
  w_N = fit.problem.w_N / fit.problem.w_N.mean()
  jac_NP = np.where(np.isfinite(jac_NP), jac_NP, 0.) * np.sqrt(w_N)[:, None]
  left_NP, size_P, _ = np.linalg.svd(jac_NP, full_matrices=False)
  # Directions in which the parameters have no effect carry no leverage.
  left_NP = left_NP[:, size_P > 1e-12 * size_P[0]]
  return np.clip((left_NP ** 2).sum(1), 0., 1.)


def studentised(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
  """Each point's distance from the law of the others, in standard errors.

  Externally studentised: the law is fitted again without the point, which
  gives its error and the noise it is judged by. For a law linear in its
  parameters this is the textbook formula, r / (s sqrt(1 - leverage)) with s
  of the others. Where a group has several rows they are judged one by one.

  Returns:
    t_N, NaN where a point cannot be judged (leverage above MOST_LEVERAGE, no
    degree of freedom left, no weight), and leverage_N.
  """
  leverage_N, N = leverage(fit), len(fit.problem.y_N)
  # Without the point there are n - 1 others and as many parameters.
  free = fit.n - fit.size - 1
  judged_N = (leverage_N <= MOST_LEVERAGE) & (fit.problem.w_N > 0)
  if free < 1 or not judged_N.any():
    return np.full(N, np.nan), leverage_N
  rows = np.flatnonzero(judged_N)
  # One refit per judged row, all in one call.
  r_FN = select.residuals_without(fit, np.arange(N) == rows[:, None])
  w_N = fit.problem.w_N / fit.problem.w_N[fit.problem.w_N > 0].mean()
  own_F = r_FN[np.arange(len(rows)), rows] * np.sqrt(w_N[rows])
  # The noise that judges a point comes from the other points alone.
  r_FN[np.arange(len(rows)), rows] = 0.
  variance_F = np.sum(np.where(w_N > 0, w_N * r_FN ** 2, 0.), 1) / free
  t_N = np.full(N, np.nan)
  # A spread that is rounding error, of points on the law, judges nothing.
  target_N = problem_lib.link(np, fit.problem.loss.link, fit.problem.y_N)
  size = np.average(np.abs(target_N), weights=w_N)
  fine_F = np.sqrt(variance_F) > 1e-12 * size
  with np.errstate(all='ignore'):
    # The error of a prediction is larger than that of a residual, by 1 / sqrt(1
    # - leverage) for a law linear in its parameters.
    t_F = own_F * np.sqrt((1 - leverage_N[rows]) / variance_F)
  t_N[rows] = np.where(fine_F & np.isfinite(t_F), t_F, np.nan)
  return t_N, leverage_N


def holm(p_N: np.ndarray, weight_N: np.ndarray | None = None) -> np.ndarray:
  """Returns p values adjusted for their number by Holm's method, (N,).

  NaN stays NaN and does not count.

  Args:
    p_N: p values.
    weight_N: how much of the level each may use, up to a factor; None for as
      much each. They must not depend on what is tested (Holm 1979, section 4).
  """
  p_N = np.asarray(p_N, float)
  weight_N = np.ones(len(p_N)) if weight_N is None else np.asarray(
      weight_N, float)
  adjusted_N = np.full(len(p_N), np.nan)
  rows = np.flatnonzero(~np.isnan(p_N))
  # Holm: the smallest p is compared with level / all, the next with level /
  # what is left; the running maximum keeps the adjusted p ordered.
  rows = rows[np.argsort(p_N[rows] / weight_N[rows], kind='stable')]
  left = np.cumsum(weight_N[rows][::-1])[::-1]
  stair = np.maximum.accumulate(p_N[rows] * left / weight_N[rows])
  adjusted_N[rows] = np.minimum(stair, 1.)
  return adjusted_N


def outliers(fit: Fit, labels: Sequence[Any] | None = None,
             families: Sequence[Any] | None = None,
             level: float = .05) -> pd.DataFrame:
  """Returns the points that the law does not explain.

  Args:
    fit: a Fit.
    labels: a name per row; None for its number.
    families: a family per row, or None.
    level: family-wise error, by Holm's method over all rows judged.

  Returns:
    A DataFrame of the rows beyond the level, the worst first: row, label,
    family, observed, expected, studentised, p (adjusted). attrs['judged']:
    how many rows could be judged; attrs['not_judged']: the labels of the
    others.
  """
  t_N, _ = studentised(fit)
  free = max(fit.n - fit.size - 1, 1)
  # Student's t, two-sided: externally studentised residuals follow it.
  p_N = 2 * special.stdtr(free, -np.abs(t_N))
  rows = np.arange(len(p_N))
  label_N, family_N = rows, np.full(len(p_N), '')
  if labels is not None:
    label_N = np.asarray(labels)
  if families is not None:
    family_N = np.asarray(families)
  result = pd.DataFrame({
      'row': rows, 'label': label_N, 'family': family_N,
      'observed': fit.problem.y_N, 'expected': fit.fitted,
      'studentised': t_N, 'p': holm(p_N)})
  unknown = result['studentised'].isna()
  beyond = result[result['p'] < level].sort_values('p', ignore_index=True)
  beyond.attrs = {'judged': int((~unknown).sum()),
                  'not_judged': result.loc[unknown, 'label'].tolist()}
  return beyond


def families(fit: Fit, labels: Sequence[Any]) -> pd.DataFrame:
  """Returns the mean residual of each family, with its p value.

  The noise of a family's mean is the spread of that family's own runs: what
  varies between others says nothing of it, and one run says nothing at all.

  Args:
    fit: a Fit.
    labels: a family per row.

  Returns:
    A DataFrame of family, n, mean (residual), low, high (95 %, NaN for one
    run), p (t test of the mean against 0, adjusted by Holm over the families
    of several runs), worst first.
  """
  label_N = np.asarray(labels)
  rows = []
  for family in pd.unique(pd.Series(label_N)):
    r = fit.residuals[label_N == family]
    mean, low, high, p = r.mean(), math.nan, math.nan, math.nan
    if len(r) > 1:
      # The spread within this family only.
      error = r.std(ddof=1) / math.sqrt(len(r))
      half = error * special.stdtrit(len(r) - 1, .975)
      low, high = mean - half, mean + half
      # 1e-300 keeps a family of equal residuals from dividing by 0.
      p = 2 * special.stdtr(len(r) - 1, -abs(mean) / (error + 1e-300))
    rows.append({'family': family, 'n': len(r), 'mean': mean, 'low': low,
                 'high': high, 'p': p})
  result = pd.DataFrame(rows)
  return result.assign(p=holm(result['p'].to_numpy())).sort_values(
      'p', ignore_index=True)


def runs_test(fit: Fit,
              x: str | None = None) -> tuple[int, float, float]:
  """Tests whether residuals change sign as often as by chance.

  Args:
    fit: a Fit.
    x: the input along which they are ordered; None for the first.

  Returns:
    (runs, expected, p), p one-sided: small where there are too few runs,
    that is, where the law bends otherwise than the data.
  """
  # Ordered along the input, a bend leaves long runs of one sign.
  order = np.argsort(np.asarray(fit.data[x or fit.x[0]], float),
                     kind='stable')
  order = order[fit.problem.w_N[order] > 0]
  positive = fit.residuals[order] > 0
  plus, minus = int(positive.sum()), int((~positive).sum())
  runs = 1 + int((positive[1:] != positive[:-1]).sum())
  if not plus or not minus:
    return runs, math.nan, math.nan
  # Ways to cut n signs into k runs; runs of the two signs alternate.
  ways = lambda n, k: math.comb(n - 1, k - 1)
  # Wald and Wolfowitz: P(runs <= observed) is a sum over even counts (as many
  # runs of either sign) and odd ones (one more of either).
  chance = 0.
  for count in range(2, runs + 1):
    half = count // 2
    if count % 2 == 0:
      chance += 2 * ways(plus, half) * ways(minus, half)
    else:
      chance += (ways(plus, half + 1) * ways(minus, half) +
                 ways(plus, half) * ways(minus, half + 1))
  expected = 1 + 2 * plus * minus / (plus + minus)
  return runs, expected, min(chance / math.comb(plus + minus, plus), 1.)


def bends(data: Data, x: str, y: str, loss: str = 'log_ls',
          groups: Any = None) -> pd.DataFrame:
  """Tests whether a broken power law is preferred to a straight one.

  Args:
    data: columns by name.
    x: the input column.
    y: the output column, positive and falling.
    loss: see `fit.fit`.
    groups: see `fit.fit`.

  Returns:
    The table of `select.compare` for 'power', 'power_floor', 'broken', with
    attrs['broken']: True where the broken form wins both on left-out groups
    and by AICc.
  """
  table = select.compare(['power', 'power_floor', 'broken'], data, loss,
                         groups, x, y)
  broken = table['law'] == 'broken'
  # Both criteria have to agree before a break is believed.
  best = table.loc[table['loo'].idxmin(), 'law'] == 'broken'
  table.attrs['broken'] = bool(best and (table['aicc'][broken] == 0).all())
  return table


def unstable(history: pd.DataFrame, drop: float = .5,
             jump: float = .5) -> pd.DataFrame:
  """Returns the runs that collapsed, dipped, jumped or diverged.

  Args:
    history: rows of run_id, step and any of rank, train_loss, valid_loss.
    drop: a rank below this fraction of the run's earlier maximum is a
      collapse, unless it recovers before the end.
    jump: a loss that rises above its least so far by this fraction of the
      run's range, and by a twentieth of itself, is a spike.

  Returns:
    A DataFrame of run_id, kind ('diverged', 'collapse', 'dip', 'spike'),
    step, value, before; empty where all is well.
  """
  rows = []
  for run, curve in history.groupby('run_id', sort=False):
    curve = curve.sort_values('step')
    events = []
    if 'rank' in curve:
      events += _fallen(curve[['step', 'rank']].dropna(), drop)
    for name in ('train_loss', 'valid_loss'):
      if name in curve:
        events += _risen(curve[name].to_numpy(float),
                         curve['step'].to_numpy(), jump)
    rows += [(run, *event) for event in events]
  return pd.DataFrame(rows, columns=['run_id', 'kind', 'step', 'value',
                                     'before'])


def _fallen(curve, drop):
  """Returns (kind, step, value, before) of a collapse or dip of the rank."""
  rank, step = curve['rank'].to_numpy(float), curve['step'].to_numpy()
  # The untrained network's rank is no maximum to fall from: every run first
  # falls below it.
  rank, step = rank[step > 0], step[step > 0]
  if len(rank) > 1:
    most = np.maximum.accumulate(rank)
    # The first evaluation below the threshold is where it began.
    low = np.flatnonzero(rank < drop * most)
    if len(low):
      kind = 'dip'
      if rank[-1] < drop * most[-1]:  # It did not recover.
        kind = 'collapse'
      return [(kind, step[low[0]], rank[low[0]], most[low[0]])]
  if len(rank) and rank[-1] < ONE:
    # It fell before the first evaluation: there is no height to fall from.
    return [('collapse', step[-1], rank[-1], np.nan)]
  return []


def _risen(loss, step, jump):
  """Returns (kind, step, value, before) of a divergence and a spike."""
  events = []
  # Tables hold NaN for 'not measured' and for 'not a number'. A loss that was
  # there at every evaluation and then never again is the second.
  known = np.flatnonzero(~np.isnan(loss))
  gone = np.isinf(loss)
  if len(known) > 1 and np.ptp(known) == len(known) - 1:
    gone[known[-1] + 1:] = True
  if gone.any():
    at = int(np.flatnonzero(gone)[0])
    events.append(('diverged', step[at], loss[at], np.nan))
  finite = np.isfinite(loss)
  loss, step = loss[finite], step[finite]
  if len(loss) < 3:
    return events
  least = np.minimum.accumulate(loss)[:-1]
  # Of the range of all, not so far: a flat start has next to none.
  rise = loss[1:] - least
  high = np.flatnonzero((rise > jump * np.ptp(loss)) &
                        (rise > SLIGHT * np.abs(least)))
  if len(high):
    at = int(high[0])
    events.append(('spike', step[at + 1], loss[at + 1], least[at]))
  return events
