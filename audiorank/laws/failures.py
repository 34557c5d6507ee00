"""Where a law fails: outliers, wrong shape, collapsed and unstable runs.

Shape suffixes: N points, P packed parameters.
"""

import math

import numpy as np
import pandas as pd
from scipy import special

from audiorank.laws import choose
from audiorank.laws import intervals

ONE = 1.5  # A rank below it is that of one vector and noise.
SLIGHT = .05  # A rise of the loss below this share of it is noise.


def studentised(fit):
  """Residuals over their standard error, each judged by the other points.

  Externally studentised with the leverage of the linearised law; where a
  group has several rows they still are judged one by one.

  Returns:
    t_N and leverage_N.
  """
  jac_NP, _ = intervals.jacobian(fit)
  w_N = fit.problem.w_N / fit.problem.w_N.mean()
  jac_NP = np.where(np.isfinite(jac_NP), jac_NP, 0.) * np.sqrt(w_N)[:, None]
  r_N = fit.residuals * np.sqrt(w_N)
  left_NP, size, _ = np.linalg.svd(jac_NP, full_matrices=False)
  left_NP = left_NP[:, size > 1e-12 * size[0]]
  leverage_N = np.clip((left_NP ** 2).sum(1), 0., 1 - 1e-9)
  free = max(fit.n - fit.size, 2)
  share_N = r_N ** 2 / (1 - leverage_N)
  # What the variance would be without the point itself.
  rest_N = np.maximum(np.sum(r_N ** 2) - share_N, 1e-300) / (free - 1)
  return r_N / np.sqrt(rest_N * (1 - leverage_N)), leverage_N


def holm(p_N):
  """p values adjusted for their number by Holm's method, (N,)."""
  order = np.argsort(p_N)
  stair = np.maximum.accumulate(p_N[order] * np.arange(len(p_N), 0, -1))
  adjusted = np.empty(len(p_N))
  adjusted[order] = np.minimum(stair, 1.)
  return adjusted


def outliers(fit, labels=None, families=None, level=.05):
  """The points that the law does not explain.

  Args:
    fit: a Fit.
    labels: a name per row; None for its number.
    families: a family per row, or None.
    level: family-wise error, by Holm's method over all rows.

  Returns:
    A DataFrame of the rows beyond the level, the worst first: row, label,
    family, observed, expected, studentised, p (adjusted).
  """
  t_N, _ = studentised(fit)
  free = max(fit.n - fit.size - 1, 1)
  p_N = 2 * special.stdtr(free, -np.abs(t_N))
  rows = np.arange(len(p_N))
  result = pd.DataFrame({
      'row': rows, 'label': rows if labels is None else np.asarray(labels),
      'family': '' if families is None else np.asarray(families),
      'observed': fit.problem.y_N, 'expected': fit.fitted,
      'studentised': t_N, 'p': holm(p_N)})
  return result[result['p'] < level].sort_values('p', ignore_index=True)


def families(fit, labels):
  """Mean residual of each family, and whether it stands apart.

  Args:
    fit: a Fit.
    labels: a family per row.

  Returns:
    A DataFrame of family, n, mean (residual), p (adjusted by Holm; t test of
    the family's mean against 0 with the fit's residual sd), worst first.
  """
  labels = np.asarray(labels)
  rows = []
  for family in pd.unique(pd.Series(labels)):
    r = fit.residuals[labels == family]
    t = r.mean() / (fit.sd / math.sqrt(len(r)) + 1e-300)
    rows.append({'family': family, 'n': len(r), 'mean': r.mean(),
                 'p': 2 * special.stdtr(max(fit.n - fit.size, 1), -abs(t))})
  result = pd.DataFrame(rows)
  return result.assign(p=holm(result['p'].to_numpy())).sort_values(
      'p', ignore_index=True)


def runs_test(fit, x=None):
  """Wald and Wolfowitz: do residuals change sign as often as chance would?

  Args:
    fit: a Fit.
    x: the input along which they are ordered; None for the first.

  Returns:
    (runs, expected, p), p one-sided: small where there are too few runs,
    that is, where the law bends otherwise than the data.
  """
  order = np.argsort(np.asarray(fit.data[x or fit.x[0]], float),
                     kind='stable')
  sign = fit.residuals[order] > 0
  plus, minus = int(sign.sum()), int((~sign).sum())
  runs = 1 + int((sign[1:] != sign[:-1]).sum())
  if not plus or not minus:
    return runs, math.nan, math.nan
  ways = lambda n, k: math.comb(n - 1, k - 1)
  chance = 0.
  for count in range(2, runs + 1):
    half = count // 2
    chance += (2 * ways(plus, half) * ways(minus, half) if count % 2 == 0 else
               ways(plus, half + 1) * ways(minus, half) +
               ways(plus, half) * ways(minus, half + 1))
  expected = 1 + 2 * plus * minus / (plus + minus)
  return runs, expected, min(chance / math.comb(plus + minus, plus), 1.)


def bends(data, x, y, loss='log_ls', groups=None):
  """Whether a broken power law is preferred to a straight one.

  Args:
    data: columns by name.
    x: the input column.
    y: the output column, positive and falling.
    loss: see `fit.fit`.
    groups: see `fit.fit`.

  Returns:
    The table of `choose.compare` for 'power', 'power_floor', 'broken', with
    attrs['broken']: True where the broken form wins both on left-out groups
    and by AICc.
  """
  found = choose.compare(['power', 'power_floor', 'broken'], data, loss,
                         groups, x, y)
  broken = found['law'] == 'broken'
  best = found.loc[found['loo'].idxmin(), 'law'] == 'broken'
  found.attrs['broken'] = bool(best and (found['aicc'][broken] == 0).all())
  return found


def unstable(history, drop=.5, jump=.5):
  """Runs that collapsed, dipped, jumped or diverged, from their curves.

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
  note = lambda run, kind, step, value, before: rows.append(
      {'run_id': run, 'kind': kind, 'step': step, 'value': value,
       'before': before})
  for run, curve in history.groupby('run_id', sort=False):
    curve = curve.sort_values('step')
    if 'rank' in curve:
      part = curve[['step', 'rank']].dropna()
      rank, step = part['rank'].to_numpy(float), part['step'].to_numpy()
      # The untrained network's rank is no maximum to fall from: every run
      # first falls below it.
      rank, step = rank[step > 0], step[step > 0]
      if len(rank) > 1:
        most = np.maximum.accumulate(rank)
        low = np.flatnonzero(rank < drop * most)
        if len(low):
          kind = 'collapse' if rank[-1] < drop * most[-1] else 'dip'
          note(run, kind, step[low[0]], rank[low[0]], most[low[0]])
      if len(rank) and rank[-1] < ONE and not any(
          r['run_id'] == run for r in rows):
        # It fell before the first reading, so there is no height to fall from.
        note(run, 'collapse', step[-1], rank[-1], np.nan)
    for name in ('train_loss', 'valid_loss'):
      if name not in curve:
        continue
      loss, step = curve[name].to_numpy(float), curve['step'].to_numpy()
      # Tables hold NaN for 'not measured' and for 'not a number'. A loss that
      # was there at every reading and then never again is the second.
      known = np.flatnonzero(~np.isnan(loss))
      gone = np.isinf(loss)
      if len(known) > 1 and np.ptp(known) == len(known) - 1:
        gone[known[-1] + 1:] = True
      if gone.any():
        at = int(np.flatnonzero(gone)[0])
        note(run, 'diverged', step[at], loss[at], np.nan)
      kept = np.isfinite(loss)
      loss, step = loss[kept], step[kept]
      if len(loss) < 3:
        continue
      least = np.minimum.accumulate(loss)[:-1]
      # Of the range of all, not so far: a flat start has next to none.
      high = loss[1:] - least
      rise = np.flatnonzero((high > jump * np.ptp(loss)) &
                            (high > SLIGHT * np.abs(least)))
      if len(rise):
        at = int(rise[0])
        note(run, 'spike', step[at + 1], loss[at + 1], least[at])
  return pd.DataFrame(rows, columns=['run_id', 'kind', 'step', 'value',
                                     'before'])
