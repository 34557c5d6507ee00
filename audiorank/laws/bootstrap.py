"""Cluster bootstrap: fits of groups drawn anew, and the bands they give.

Shape suffixes: N points, S solves (resamples), Q linear and P packed
parameters, M points of a prediction.
"""

import functools
import math

import numpy as np

from audiorank.laws import optimum
from audiorank.laws import solve


@functools.lru_cache(maxsize=16)
def resample(fit, count, seed):
  """The optima of `count` cluster-bootstrap resamples.

  Groups are drawn with replacement, as multinomial weights on all rows, so
  nothing changes shape. Resamples with fewer groups than parameters are
  drawn again.
  """
  rng = np.random.default_rng(seed)
  live = np.unique(fit.group_N[fit.problem.w_N > 0])
  drawn = []
  for _ in range(200):
    part = rng.multinomial(len(live), np.full(len(live), 1 / len(live)),
                           count)
    drawn.extend(part[(part > 0).sum(1) > min(fit.size, len(live) - 2)])
    if len(drawn) >= count:
      break
  times = np.zeros((count, fit.group_N.max() + 1))
  times[:, live] = drawn[:count]
  w_SN = times[:, fit.group_N] * fit.problem.w_N
  return optimum.again(fit.problem, fit.best, w_SN)


def band(fit, there, kind, confidence, draws, seed):
  """Low and high of the law ('mean') or of a further run ('new'), (M,)."""
  found = resample(fit, draws, seed)
  name = fit.problem.loss.link
  with np.errstate(all='ignore'):
    f_SM = solve.values(there, found.c_SQ, found.t_SP)
    if kind == 'new':
      rng = np.random.default_rng([seed, 1])
      w_N = fit.problem.w_N
      swell = math.sqrt(fit.n / max(fit.n - fit.size, 1))
      noise = rng.choice(fit.residuals, f_SM.shape, p=w_N / w_N.sum())
      f_SM = solve.unlink(name, solve.link(np, name, f_SM) + swell * noise)
  tail = (1 - confidence) / 2
  f_SM = np.where(np.isfinite(f_SM), f_SM, np.nan)
  return np.nanquantile(f_SM, [tail, 1 - tail], axis=0)
