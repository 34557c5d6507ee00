"""Can an early number choose the run? Agreement, decisions, what they save.

Runs i, an early number s_i, a final quality q_i, both to be large (negate a
loss). Families differ in level, so agreement is reported within strata too.
Fewer than 24 runs are exploratory: at a true correlation of .7, twelve runs
give a tau anywhere between .1 and .8.

Shape suffixes: N runs, S resamples, T rungs.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.laws import table

ENOUGH = 24


class Agreement(NamedTuple):
  """How well an early number orders the final ones.

  `pairs` is the fraction of pairs decided rightly, (tau + 1) / 2 without
  ties; `p` tests tau against no association, by all permutations below ten
  runs; `within` is tau of pairs of the same stratum only.
  """
  n: int
  spearman: float
  tau: float
  tau_low: float
  tau_high: float
  p: float
  pairs: float
  within: float
  exploratory: bool


class Choice(NamedTuple):
  """What is lost by taking the run that looks best early."""
  hit: bool          # the best run is among the k chosen
  regret: float      # best quality less the best among the chosen
  random: float      # the same, expected, for k runs drawn at random


class Halving(NamedTuple):
  """Successive halving: what it saves and what it costs."""
  saved: float       # fraction of the compute of training all to the end
  regret: float
  random: float      # regret of keeping as many runs at random
  kept: tuple        # indices of the runs trained to the end


def _pair(early, final):
  s_N = table.numbers('early', early)
  q_N = table.numbers('final', final)
  if len(s_N) != len(q_N):
    raise ValueError(f'{len(s_N)} early numbers for {len(q_N)} final ones')
  if len(s_N) < 3:
    raise ValueError(f'agreement needs at least 3 runs, found {len(s_N)}')
  return s_N, q_N


def _signs(v_N):
  return np.sign(v_N[:, None] - v_N[None])


def _tau(agree_NN, s_NN, q_NN, w_NN):
  """Kendall's tau-b over weighted pairs."""
  size = math.sqrt(np.sum(w_NN * s_NN ** 2) * np.sum(w_NN * q_NN ** 2))
  return float(np.sum(w_NN * agree_NN) / size) if size else math.nan


def _multiplicities(n, groups, draws, seed):
  """How often each run occurs in each resample of groups, times_SN."""
  label_N = np.arange(n) if groups is None else pd.factorize(
      np.asarray(groups))[0]
  count = label_N.max() + 1
  rng = np.random.default_rng(seed)
  times_SG = rng.multinomial(count, np.full(count, 1 / count), draws)
  return times_SG[:, label_N].astype(float)


def _resampled(s_N, q_N, times_SN):
  """tau-b of every resample, by pair weights."""
  s_NN, q_NN = _signs(s_N), _signs(q_N)
  over = lambda m_NN: np.einsum('si,ij,sj->s', times_SN, m_NN, times_SN,
                                optimize=True)
  with np.errstate(all='ignore'):
    return over(s_NN * q_NN) / np.sqrt(over(s_NN ** 2) * over(q_NN ** 2))


def agreement(early, final, strata=None, groups=None, confidence=.95,
              draws=2000, seed=0):
  """How well an early number orders the final quality.

  Args:
    early: N numbers, large where the run is thought good.
    final: N qualities.
    strata: a family per run: `within` counts pairs of one family only.
    groups: what is resampled together: a configuration and its seeds.
    confidence: of the interval of tau.
    draws: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    An Agreement.

  Raises:
    ValueError: fewer than three runs, or numbers that are not finite.
  """
  s_N, q_N = _pair(early, final)
  n = len(s_N)
  s_NN, q_NN = _signs(s_N), _signs(q_N)
  ones = np.ones((n, n))
  tau = _tau(s_NN * q_NN, s_NN, q_NN, ones)
  within = math.nan
  if strata is not None:
    label = pd.factorize(np.asarray(strata))[0]
    within = _tau(s_NN * q_NN, s_NN, q_NN,
                  (label[:, None] == label[None]).astype(float))
  each = _resampled(s_N, q_N, _multiplicities(n, groups, draws, seed))
  each = each[np.isfinite(each)]
  low, high = (np.quantile(each, [(1 - confidence) / 2, (1 + confidence) / 2])
               if len(each) else (math.nan, math.nan))
  constant = np.ptp(s_N) == 0 or np.ptp(q_N) == 0
  if constant:
    rho, p = math.nan, math.nan
  else:
    rho = spearman(s_N, q_N)
    p = _exact(s_NN, q_NN) if n < 10 else _chance(s_N, q_N)
  decided = q_NN != 0
  right = np.where(s_NN == 0, .5, s_NN == q_NN)
  return Agreement(n, rho, tau, float(low), float(high), p,
                   float(right[decided].mean()) if decided.any() else math.nan,
                   within, n < ENOUGH)


def spearman(a_N, b_N):
  """Correlation of the ranks, ties at their mean rank."""
  ranks = [pd.Series(v).rank().to_numpy() for v in (a_N, b_N)]
  return float(np.corrcoef(*ranks)[0, 1])


def _chance(s_N, q_N):
  # Here alone, because it takes longer to load than 4,000 fits take to run.
  from scipy import stats
  return float(stats.kendalltau(s_N, q_N).pvalue)


def _exact(s_NN, q_NN):
  """Two-sided p of the concordance over all orders (at most 9 runs)."""
  n = len(s_NN)
  orders = np.array(list(itertools.permutations(range(n))))
  rows, cols = np.triu_indices(n, 1)
  seen = abs(np.sum(s_NN[rows, cols] * q_NN[rows, cols]))
  total = np.zeros(len(orders))
  for i, j in zip(rows, cols):
    total += s_NN[i, j] * q_NN[orders[:, i], orders[:, j]]
  return float(np.mean(np.abs(total) >= seen - 1e-9))


def difference(early, rival, final, groups=None, confidence=.95, draws=2000,
               seed=0):
  """tau of one early number less tau of another, on the same resamples.

  Args:
    early: N numbers.
    rival: N numbers: early loss, size, an early labelled probe.
    final: N qualities.
    groups: what is resampled together.
    confidence: of the interval.
    draws: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    (difference, low, high): the early number is better where low > 0.
  """
  s_N, q_N = _pair(early, final)
  r_N, _ = _pair(rival, final)
  times_SN = _multiplicities(len(s_N), groups, draws, seed)
  gap = lambda times: (_resampled(s_N, q_N, times) -
                       _resampled(r_N, q_N, times))
  each = gap(times_SN)
  each = each[np.isfinite(each)]
  if not len(each):
    return math.nan, math.nan, math.nan
  low, high = np.quantile(each, [(1 - confidence) / 2, (1 + confidence) / 2])
  return float(gap(np.ones((1, len(s_N))))[0]), float(low), float(high)


def top(early, final, k=1):
  """What is lost by training on only the k runs that look best early.

  Ties in the early number are broken against the chooser.
  """
  s_N, q_N = _pair(early, final)
  if not 1 <= k <= len(s_N):
    raise ValueError(f'k is {k}: expected 1 to {len(s_N)}')
  chosen = np.lexsort((q_N, -s_N))[:k]
  return Choice(bool(q_N[chosen].max() == q_N.max()),
                float(q_N.max() - q_N[chosen].max()),
                _random_regret(q_N, k))


def _random_regret(q_N, k):
  """The expected regret of k runs drawn without replacement."""
  gap = q_N.max() - np.sort(q_N)[::-1]
  n = len(q_N)
  # The best of the k is the i-th best of all.
  chance = np.array([math.comb(n - 1 - i, k - 1) for i in range(n)])
  return float(np.sum(gap * chance) / math.comb(n, k))


def halving(scores_TN, steps, total, final, keep=.5, cost=None):
  """Successive halving by an early number, read at chosen rungs.

  Args:
    scores_TN: the early number of every run at every rung; NaN for a run
      that has failed, which is dropped first.
    steps: the T steps of the rungs, ascending.
    total: the step at which a run is finished.
    final: N qualities.
    keep: the fraction kept at each rung, at least one run.
    cost: the cost of a step of each run; None for equal costs.

  Returns:
    A Halving.
  """
  scores_TN, q_N = np.asarray(scores_TN, float), table.numbers('final', final)
  steps = np.asarray(steps, float)
  T, n = scores_TN.shape
  if len(steps) != T or n != len(q_N):
    raise ValueError(f'scores of shape {scores_TN.shape} for {len(steps)} '
                     f'rungs and {len(q_N)} runs')
  if not 0 < keep <= 1 or (np.diff(steps) <= 0).any() or steps[-1] > total:
    raise ValueError('expected keep in (0, 1] and ascending rungs up to '
                     f'{total:g}, found keep {keep:g} and {steps.tolist()}')
  cost_N = np.ones(n) if cost is None else table.numbers('cost', cost)
  alive, spent, before = np.arange(n), 0., 0.
  for score_N, step in zip(scores_TN, steps):
    spent += cost_N[alive].sum() * (step - before)
    before = step
    value = np.where(np.isnan(score_N), -np.inf, score_N)[alive]
    # Ties are broken against the chooser, as in `top`.
    alive = alive[np.lexsort((q_N[alive], -value))
                  [:max(1, math.ceil(len(alive) * keep))]]
  spent += cost_N[alive].sum() * (total - before)
  return Halving(float(1 - spent / (cost_N.sum() * total)),
                 float(q_N.max() - q_N[alive].max()),
                 _random_regret(q_N, len(alive)), tuple(alive.tolist()))


def predict(runs, early, final='score', strata=None, groups=None, rivals=(),
            **keywords):
  """The table of early prediction: every early number against the final one.

  Args:
    runs: one row per run.
    early: the column of the early number.
    final: the column of the final quality.
    strata: see `agreement`; a column.
    groups: see `agreement`; a column.
    rivals: further early columns, of which losses are to be negated.
    **keywords: confidence, draws, seed.

  Returns:
    A DataFrame with a row per early column: the fields of Agreement, regret
    and random_regret of the top one, and difference, difference_low,
    difference_high: tau of `early` less tau of the row.

  Raises:
    ValueError: both sides are divided by the width. That alone makes two
      independent ranks agree.
  """
  divided = lambda name: '_over_width' in name or '_per_width' in name
  rows = []
  for name in dict.fromkeys([early, *rivals]):
    if divided(name) and divided(final):
      raise ValueError(f'{name!r} and {final!r} are both divided by the '
                       'width, which makes independent numbers agree: use '
                       'the ratio as a predictor only')
    pick = lambda key: None if key is None else table.raw(runs, key)
    s, q = table.column(runs, name), table.column(runs, final)
    found = agreement(s, q, pick(strata), pick(groups), **keywords)
    best = top(s, q)
    gap = difference(table.column(runs, early), s, q, pick(groups),
                     **keywords)
    rows.append({'early': name, **found._asdict(), 'regret': best.regret,
                 'random_regret': best.random, 'difference': gap[0],
                 'difference_low': gap[1], 'difference_high': gap[2]})
  return pd.DataFrame(rows)
