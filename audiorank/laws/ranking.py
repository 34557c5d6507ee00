"""Can an early number choose the run? Agreement, decisions, what they save.

Runs i, an early number s_i, a final quality q_i, both large where good
(negate a loss). Families differ in level, so agreement is reported within
strata too. Fewer than 24 runs are exploratory: at a true correlation of .7,
twelve runs give a tau anywhere between .1 and .8.

Shapes: N runs, S resamples, G groups, T rungs.
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.laws import table

# Runs below which agreement is exploratory.
ENOUGH = 24
# Groups below which a bootstrap over groups says nothing.
LEAST_GROUPS = 4
# Runs up to which all orders are tried: 9! = 362,880.
_EXACT = 9


class Agreement(NamedTuple):
  """How well an early number orders the final ones.

  `pairs` is the fraction of pairs decided rightly, (tau + 1) / 2 without
  ties; `p` tests tau, between the means of the groups, against no
  association, by all permutations below ten of them; `within` is tau of
  pairs of the same stratum only. tau_low and tau_high are NaN below
  LEAST_GROUPS groups.
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
  """What is lost by taking the run that looks best early.

  Attributes:
    hit: whether the best run is among the k chosen.
    regret: best quality less the best among the chosen.
    random: the same, expected, for k runs drawn at random.
  """
  hit: bool
  regret: float
  random: float


class Halving(NamedTuple):
  """Successive halving: what it saves and what it costs.

  Attributes:
    saved: fraction of the compute of training all runs to the end.
    regret: best quality less the best among the runs trained to the end.
    random: the same for as many runs drawn at random.
    finished: indices of the runs trained to the end.
  """
  saved: float
  regret: float
  random: float
  finished: tuple[int, ...]

  @property
  def kept(self):
    """`finished` under its former name."""
    return self.finished


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


def _tau(s_NN, q_NN, w_NN):
  """Returns Kendall's tau-b over weighted pairs."""
  # tau-b: pairs tied on one side count neither in the numerator nor in the norm
  # of that side.
  size = math.sqrt(np.sum(w_NN * s_NN ** 2) * np.sum(w_NN * q_NN ** 2))
  if not size:
    return math.nan
  return float(np.sum(w_NN * s_NN * q_NN) / size)


def _labels(n, groups):
  """Returns the group number of each run."""
  if groups is None:
    return np.arange(n)
  return pd.factorize(np.asarray(groups))[0]


def _multiplicities(label_N, draws, seed):
  """How often each run occurs in each resample of groups, times_SN."""
  count = label_N.max() + 1
  rng = np.random.default_rng(seed)
  # Whole groups: a configuration's seeds are drawn together.
  times_SG = rng.multinomial(count, np.full(count, 1 / count), draws)
  return times_SG[:, label_N].astype(float)


def _taus(s_N, q_N, times_SN):
  """Returns tau-b of every resample, from weights of pairs."""
  s_NN, q_NN = _signs(s_N), _signs(q_N)
  # A pair counts as often as both its runs were drawn.
  over = lambda m_NN: np.einsum('si,ij,sj->s', times_SN, m_NN, times_SN,
                                optimize=True)
  with np.errstate(all='ignore'):
    return over(s_NN * q_NN) / np.sqrt(over(s_NN ** 2) * over(q_NN ** 2))


def _interval(each_S, label_N, confidence):
  """Returns quantiles of a bootstrap; NaN if there are too few groups."""
  each_S = each_S[np.isfinite(each_S)]
  if label_N.max() + 1 < LEAST_GROUPS or not len(each_S):
    return math.nan, math.nan
  # Percentiles of tau: its distribution is skewed near -1 and 1, where a
  # standard error would leave the range.
  tail = (1 - confidence) / 2
  low, high = np.quantile(each_S, [tail, 1 - tail])
  return float(low), float(high)


def agreement(early: Any, final: Any, strata: Any = None, groups: Any = None,
              confidence: float = .95, draws: int = 2000,
              seed: int = 0) -> Agreement:
  """Returns how well an early number orders the final quality.

  Args:
    early: N numbers, large where the run is thought good.
    final: N qualities.
    strata: a family per run: `within` counts pairs of one family only.
    groups: what is resampled together: a configuration and its seeds.
    confidence: of the interval of tau.
    draws: bootstrap resamples.
    seed: of the bootstrap.

  Raises:
    ValueError: fewer than three runs, or numbers that are not finite.
  """
  s_N, q_N = _pair(early, final)
  n, label_N = len(s_N), _labels(len(s_N), groups)
  s_NN, q_NN = _signs(s_N), _signs(q_N)
  within = math.nan
  if strata is not None:
    # Pairs of different families have no weight in `within`.
    family_N = pd.factorize(np.asarray(strata))[0]
    within = _tau(s_NN, q_NN, 1. * (family_N[:, None] == family_N[None]))
  low, high = _interval(
      _taus(s_N, q_N, _multiplicities(label_N, draws, seed)), label_N,
      confidence)
  rho = math.nan
  if np.ptp(s_N) and np.ptp(q_N):
    # Constant on either side: no order, and no correlation of ranks.
    rho = spearman(s_N, q_N)
  # Pairs with equal final quality have no right order; a tie in the early
  # number is a coin toss.
  decided = q_NN != 0
  right = np.where(s_NN == 0, .5, s_NN == q_NN)
  pairs = math.nan
  if decided.any():
    pairs = float(right[decided].mean())
  return Agreement(n, rho, _tau(s_NN, q_NN, np.ones((n, n))), low, high,
                   _p(s_N, q_N, label_N), pairs, within, n < ENOUGH)


def spearman(a_N: Any, b_N: Any) -> float:
  """Returns the correlation of ranks, ties at their mean rank."""
  ranks = [pd.Series(v).rank().to_numpy() for v in (a_N, b_N)]
  return float(np.corrcoef(*ranks)[0, 1])


def _p(s_N, q_N, label_N):
  """Returns p of no association between the means of the groups.

  Seeds of one configuration are no independent evidence.
  """
  size_G = np.bincount(label_N)
  s_G, q_G = (np.bincount(label_N, v_N) / size_G for v_N in (s_N, q_N))
  # Below three means, or without any spread, every order is as good.
  if len(size_G) < 3 or not np.ptp(s_G) or not np.ptp(q_G):
    return math.nan
  if len(size_G) <= _EXACT:
    return _exact(_signs(s_G), _signs(q_G))
  # Imported here, because it takes longer to load than 4,000 fits take.
  from scipy import stats
  return float(stats.kendalltau(s_G, q_G).pvalue)


def _exact(s_NN, q_NN):
  """Two-sided p of the concordance over all orders (at most 9 runs)."""
  # All orders of one side, the other fixed: 362,880 rows at most.
  n = len(s_NN)
  orders = np.array(list(itertools.permutations(range(n))))
  rows, cols = np.triu_indices(n, 1)
  observed = abs(np.sum(s_NN[rows, cols] * q_NN[rows, cols]))
  total = np.zeros(len(orders))
  for i, j in zip(rows, cols):
    total += s_NN[i, j] * q_NN[orders[:, i], orders[:, j]]
  # As extreme in either direction; the slack is for rounding of sums.
  return float(np.mean(np.abs(total) >= observed - 1e-9))


def difference(early: Any, other: Any, final: Any, groups: Any = None,
               confidence: float = .95, draws: int = 2000,
               seed: int = 0) -> tuple[float, float, float]:
  """Returns tau of one early number less tau of another, paired.

  Args:
    early: N numbers.
    other: N numbers: width, early loss, an early labelled probe.
    final: N qualities.
    groups: what is resampled together.
    confidence: of the interval.
    draws: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    (difference, low, high): the early number is better where low > 0. The
    interval is NaN below LEAST_GROUPS groups.
  """
  s_N, q_N = _pair(early, final)
  r_N, _ = _pair(other, final)
  label_N = _labels(len(s_N), groups)
  gap = lambda times_SN: (_taus(s_N, q_N, times_SN) -
                          _taus(r_N, q_N, times_SN))
  # Weights of one are the data themselves.
  value = float(gap(np.ones((1, len(s_N))))[0])
  # The same resamples for both predictors: their common noise cancels.
  each_S = gap(_multiplicities(label_N, draws, seed))
  return value, *_interval(each_S, label_N, confidence)


def top(early: Any, final: Any, k: int = 1) -> Choice:
  """Returns the loss of training only the k runs that look best early.

  Ties in the early number are broken against the chooser.
  """
  s_N, q_N = _pair(early, final)
  if not 1 <= k <= len(s_N):
    raise ValueError(f'k is {k}: expected 1 to {len(s_N)}')
  # The last key of lexsort is the first to sort by: the early number,
  # descending; among equals the worse run comes first.
  chosen = np.lexsort((q_N, -s_N))[:k]
  return Choice(bool(q_N[chosen].max() == q_N.max()),
                float(q_N.max() - q_N[chosen].max()),
                _random_regret(q_N, k))


def _random_regret(q_N, k):
  """Returns the expected regret of k runs drawn without replacement."""
  # Qualities below the best, the best run first.
  gap_N = q_N.max() - np.sort(q_N)[::-1]
  n = len(q_N)
  # The best of the k is the i-th best of all.
  chance_N = np.array([math.comb(n - 1 - i, k - 1) for i in range(n)])
  return float(np.sum(gap_N * chance_N) / math.comb(n, k))


def halving(scores_TN: Any, steps: Sequence[float], total: float, final: Any,
            keep: float = .5, cost: Any = None) -> Halving:
  """Simulates successive halving by an early number.

  Args:
    scores_TN: the early number of every run at every rung; NaN for a run
      that has failed, which is dropped first.
    steps: the T steps of the rungs, ascending.
    total: the step at which a run is finished.
    final: N qualities.
    keep: the fraction kept at each rung, at least one run.
    cost: the cost of a step of each run; None for equal costs.

  Raises:
    ValueError: shapes that do not match, or rungs that do not ascend.
  """
  scores_TN, q_N = np.asarray(scores_TN, float), table.numbers('final', final)
  at_T = np.asarray(steps, float)
  T, n = scores_TN.shape
  if len(at_T) != T or n != len(q_N):
    raise ValueError(f'scores of shape {scores_TN.shape} for {len(at_T)} '
                     f'rungs and {len(q_N)} runs')
  if not 0 < keep <= 1 or (np.diff(at_T) <= 0).any() or at_T[-1] > total:
    raise ValueError('expected keep in (0, 1] and ascending rungs up to '
                     f'{total:g}, found keep {keep:g} and {at_T.tolist()}')
  cost_N = np.ones(n)
  if cost is not None:
    cost_N = table.numbers('cost', cost)
  alive, spent, before = np.arange(n), 0., 0.
  for score_N, step in zip(scores_TN, at_T):
    spent += cost_N[alive].sum() * (step - before)
    before = step
    # A run that has failed by this rung sorts last.
    value = np.where(np.isnan(score_N), -np.inf, score_N)[alive]
    # Ties are broken against the chooser, as in `top`.
    order = np.lexsort((q_N[alive], -value))
    alive = alive[order[:max(1, math.ceil(len(alive) * keep))]]
  # The survivors run from the last rung to the end.
  spent += cost_N[alive].sum() * (total - before)
  return Halving(float(1 - spent / (cost_N.sum() * total)),
                 float(q_N.max() - q_N[alive].max()),
                 _random_regret(q_N, len(alive)), tuple(alive.tolist()))


def predict(runs: Any, early: str, final: str = 'score',
            strata: str | None = None, groups: str | None = None,
            baselines: Sequence[str] = (), **keywords: Any) -> pd.DataFrame:
  """Returns a table of every early number compared with the final one.

  Args:
    runs: one row per run.
    early: the column of the early number.
    final: the column of the final quality.
    strata: see `agreement`; a column.
    groups: see `agreement`; a column.
    baselines: further columns that might predict as well: width, parameters,
      early losses (negated).
    **keywords: confidence, draws, seed.

  Returns:
    A DataFrame with a row per early column: the fields of Agreement, regret
    and random_regret of the top one, and difference, difference_low,
    difference_high: tau of `early` less tau of the row.

  Raises:
    ValueError: both sides are divided by the width. That alone makes two
      independent ranks agree.
  """
  # R / D of two runs shares the factor 1 / D, whatever R is.
  divided = lambda name: '_over_width' in name or '_per_width' in name
  pick = lambda key: None if key is None else table.raw(runs, key)
  rows = []
  for name in dict.fromkeys([early, *baselines]):
    if divided(name) and divided(final):
      raise ValueError(f'{name!r} and {final!r} are both divided by the '
                       'width, which makes independent numbers agree: use '
                       'the ratio as a predictor only')
    s, q = table.column(runs, name), table.column(runs, final)
    agree = agreement(s, q, pick(strata), pick(groups), **keywords)
    best = top(s, q)
    gap, low, high = difference(table.column(runs, early), s, q,
                                pick(groups), **keywords)
    rows.append({'early': name, **agree._asdict(), 'regret': best.regret,
                 'random_regret': best.random, 'difference': gap,
                 'difference_low': low, 'difference_high': high})
  return pd.DataFrame(rows)
