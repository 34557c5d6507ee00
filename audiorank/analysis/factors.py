"""Claims from configurations that differ in one thing: slopes, noise, bound.

Shapes: K configurations, C of them compared, G groups.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank.analysis import claims
from audiorank.analysis import slopes
from audiorank.analysis import study
from audiorank.laws import failures

PER_DOUBLING = 'score per doubling of RankMe'
WITHIN = 'at equal width'
# What may explain the score within a family, beside RankMe.
EXPLAIN = {'RankMe': 'x', 'width': 'width', 'validation loss': 'valid_loss'}
TINY = 1e-12  # The least weight of a family.
EVEN = .5  # Slopes count as one if they vary by less than this of the mean.
# A slope at equal width that is certainly less than this share of the slope
# across sizes is no support for RankMe: what it tells is mostly the size.
WORTH = .5


class Factors(NamedTuple):
  """The comparisons of a study.

  rows: the Study.  table: of configurations.  noise: of seeds.
  families: {name: Comparison} of what was varied.  live: these, shapes of one
    size, and all configurations at equal width.
  absent: names of families with no two comparable configurations.
  flat: names of those in which RankMe moves no more than between seeds.
  moments: slopes.Moments of `live`, or None where no noise is known.
  """
  rows: study.Study
  table: pd.DataFrame
  noise: slopes.Noise
  families: dict[str, slopes.Comparison]
  live: dict[str, slopes.Comparison]
  absent: list[str]
  flat: list[str]
  moments: slopes.Moments | None

  def place(self, name: str) -> int:
    """Returns the row of a comparison in `moments`."""
    return list(self.live).index(name)

  def slope(self, name: str) -> slopes.Slope:
    """Returns the Slope of a comparison; `moments` must be known."""
    assert self.moments is not None
    return slopes.slope(self.moments, self.place(name), self.table,
                        self.live[name])


def compare(rows: study.Study) -> Factors:
  """Returns the comparisons that a study allows."""
  noise = slopes.noise(rows.trained)
  table = slopes.configurations(rows.trained, rows.fields)
  # A family counts where RankMe differs within its groups at all.
  every = slopes.families(table, rows.fields)
  families = differing(table, every)
  live = dict(families)
  live[slopes.SHAPE] = slopes.equal_size(table, rows.fields)
  if 'width' in table:
    live[WITHIN] = slopes.at_equal(table, table['width'].to_numpy())
  live = differing(table, live)
  moments = None
  if live:
    # The noise is pooled over controlled families alone: at equal width many
    # fields vary at once.
    moments = slopes.measure(table, list(live.values()), noise,
                             list(families.values()))
  return Factors(
      rows, table, noise, families, live,
      [name for name in every if name not in families],
      [name for name, compared in live.items()
       if not moves(table, compared, noise)], moments)


def differing(table: pd.DataFrame, several: dict[str, slopes.Comparison]
              ) -> dict[str, slopes.Comparison]:
  """Returns the comparisons in which RankMe differs at all."""
  return {name: compared for name, compared in several.items()
          if spread(table, compared)}


def spread(table: pd.DataFrame, compared: slopes.Comparison) -> float:
  """Returns the sum of squares of log2 RankMe within groups."""
  n_C, x_C, _ = slopes.centered(table, compared)
  # The mean of n runs counts n times.
  return float(np.sum(n_C * x_C ** 2))


def moves(table: pd.DataFrame, compared: slopes.Comparison,
          noise: slopes.Noise) -> bool:
  """Returns whether RankMe differs by more than between seeds (F, 5 %).

  It looks at RankMe alone, so that it does not choose among the slopes.
  """
  # Nothing is known of the noise between seeds, or there is none.
  if not noise.free or not noise.log2_rank:
    return True
  # Variance of means of n runs times n is that of a run.
  ratio = spread(table, compared) / compared.free / noise.log2_rank ** 2
  # The upper tail of the F distribution.
  return bool(special.fdtrc(compared.free, noise.free, ratio) < claims.LEVEL)


def of_slopes(factors: Factors) -> list[claims.Claim]:
  """Returns a claim a family: the score follows RankMe when it varies.

  The verdicts hold for all families together, by `adjusted`. A family in
  which RankMe moves no more than between seeds is not tested; one that finds
  nothing to compare says with which other fields it always varies.
  """
  names = [name for name in factors.live if name != WITHIN]
  if factors.moments is None:
    out = [claims.claim(
        'slope', PER_DOUBLING, family=name,
        counts=counted(factors, factors.live[name]),
        needed=claims.Needed('seeds'),
        groups=len(set(factors.live[name].group_C))) for name in names]
  else:
    known = {name: factors.slope(name) for name in names}
    p_of = adjusted(factors, known)
    out = [of_slope(factors, name, known[name], p_of.get(name, math.nan))
           for name in names]
  return out + [of_absent(factors, name) for name in factors.absent]


def adjusted(factors: Factors,
             known: dict[str, slopes.Slope]) -> dict[str, float]:
  """Returns the p of the families in which RankMe moves, for their number.

  By Holm's method, each family by the precision of its slope that RankMe
  alone promises: the root of how far it moves beyond the noise of seeds.
  Shapes of one size are a closer look at size: they count where size does.
  """
  assert factors.moments is not None  # They are what slopes are known by.
  tested = [name for name in known
            if name in factors.families and name not in factors.flat]
  moved_F = np.array([factors.moments.m_F[factors.place(name)]
                      for name in tested])
  p_F = failures.holm(np.array([known[name].p for name in tested]),
                      np.sqrt(np.maximum(moved_F, TINY)))
  out = dict(zip(tested, map(float, p_F)))
  # A closed test: the part is significant only if the whole is.
  if slopes.SHAPE in known and slopes.SHAPE not in factors.flat:
    out[slopes.SHAPE] = max(known[slopes.SHAPE].p,
                            out.get(slopes.SIZE, 0.))
  return out


def of_slope(factors: Factors, name: str, one: slopes.Slope,
             p: float) -> claims.Claim:
  """Returns the claim of one family.

  Args:
    factors: the comparisons.
    name: of the family.
    one: its Slope.
    p: of no slope, adjusted for the number of families.
  """
  compared = factors.live[name]
  counts = counted(factors, compared)
  raw, raw_low, raw_high = raw_slope(factors, name)
  details: dict[str, Any] = dict(
      groups=one.groups, spread=one.spread, reliability=one.reliability,
      raw=raw, raw_low=raw_low, raw_high=raw_high,
      permuted=slopes.permuted(factors.table, compared),
      explained={text: explained(factors.table, compared, column)
                 for text, column in EXPLAIN.items()})
  if name in factors.flat:
    return claims.claim(
        'slope', PER_DOUBLING, one.value, one.low, one.high, one.p,
        needed=claims.Needed('moves', one.spread), family=name,
        counts=counts, seeds=factors.noise.log2_rank, **details)
  verdict = claims.INCONCLUSIVE
  if p < claims.LEVEL:
    verdict = claims.HOLDS if one.value > 0 else claims.FAILS
  return claims.claim(
      'slope', PER_DOUBLING, one.value, one.low, one.high, one.p, verdict,
      claims.more_runs(one.value, one.low, one.high), name, counts,
      adjusted=p, **details)


def of_absent(factors: Factors, name: str) -> claims.Claim:
  """Returns the claim of a family that has nothing to compare."""
  others = slopes.apart_from(factors.table, factors.rows.fields,
                             slopes.vary_of(name))
  return claims.claim('slope', PER_DOUBLING, family=name,
                      needed=claims.Needed('alone', names=others),
                      values=values(factors.table, name))


def values(table: pd.DataFrame, family: str) -> int:
  """Returns how many values the fields of a family have."""
  names = [name for name in slopes.vary_of(family) if name in table]
  return len(table[names].drop_duplicates())


def raw_slope(factors: Factors,
              name: str) -> tuple[float, float, float]:
  """Returns (slope, low, high) as measured: no correction for noise in rank.

  It is pulled towards 0, and it is what a plain regression says.
  """
  moments, f = factors.moments, factors.place(name)
  assert moments is not None  # Without them there is no slope to correct.
  value = float(np.sum(moments.u_FK[f] * factors.table['y']) / moments.x2_F[f])
  se = math.sqrt(max(moments.covariance(0.)[f, f], 0.)) / moments.x2_F[f]
  reach = float(special.stdtrit(moments.t_free_F[f], .975)) * se
  return value, value - reach, value + reach


def explained(table: pd.DataFrame, compared: slopes.Comparison,
              name: str) -> float:
  """Returns the share of the score's variance within groups that a line in a
  column explains; NaN where either is constant or missing."""
  if name not in table:
    return math.nan
  n_C, _, y_C = slopes.centered(table, compared)
  # The same centring within groups, of another column.
  n_C, v_C, _ = slopes.centered(table.assign(x=table[name]), compared)
  below = np.sum(n_C * v_C ** 2) * np.sum(n_C * y_C ** 2)
  if below <= 0:
    return math.nan
  return float(np.sum(n_C * v_C * y_C) ** 2 / below)


def counted(factors: Factors,
            compared: slopes.Comparison) -> tuple[int, int, int]:
  """Returns (rows, configurations, trainings) of a comparison."""
  runs = int(factors.table['n'].to_numpy()[compared.at_C].sum())
  return runs, len(compared.at_C), runs


def of_one_slope(factors: Factors) -> claims.Claim:
  """Returns the claim that a doubling of RankMe is worth the same whatever
  is varied: slopes by family and Cochran's Q of them.

  It fails where Q says so. It holds where the slopes are above 0 together and
  the upper end of their standard deviation is below EVEN of the mean. Without
  seeds it is inconclusive: slopes are then not corrected for noise in RankMe,
  which flattens most where RankMe moves least, so equal slopes look unequal.
  """
  names = list(factors.families)
  counts = total(factors)
  none = claims.claim('one_slope', PER_DOUBLING, counts=counts,
                      names=tuple(names))
  if len(names) < 2:
    return none._replace(needed=claims.Needed('families'))
  if factors.moments is None:
    return none._replace(needed=claims.Needed('seeds'))
  which = [factors.place(name) for name in names]
  test = slopes.one_slope(factors.moments, which)
  rest = [f for f, name in zip(which, names) if name != slopes.SIZE]
  # Sizes usually carry the slope, so the test is repeated without them.
  without, size = None, math.nan
  if slopes.SIZE in names:
    size = factors.slope(slopes.SIZE).value
    if len(rest) > 1:
      without = slopes.one_slope(factors.moments, rest)
  verdict, needed = claims.INCONCLUSIVE, claims.Needed('slopes', EVEN)
  if not factors.noise.free:
    needed = claims.Needed('seeds')
  elif test.p < claims.LEVEL:
    verdict = claims.FAILS
  elif test.common > 0 and test.between_high < EVEN * test.common:
    verdict = claims.HOLDS
  return claims.claim(
      'one_slope', PER_DOUBLING, test.between, test.between_low,
      test.between_high, test.p, verdict, needed, counts=counts, q=test.q,
      free=test.free,
      common=test.common, names=tuple(names), without=without,
      size=size)


def total(factors: Factors) -> tuple[int, int, int]:
  """Returns (rows, configurations, trainings) of the main objective."""
  n = len(factors.rows.trained)
  return n, len(factors.table), n


def of_width(factors: Factors) -> claims.Claim:
  """Returns the claim that RankMe goes with the score at equal width.

  The t test and a permutation within widths must agree. Its rival is the
  slope across sizes, all else equal: the paired difference says how much of
  RankMe's worth is the width's. Where that slope is certainly above 0, and the
  one at equal width certainly less than WORTH of it, the claim fails.
  """
  none = claims.claim('within_width', PER_DOUBLING, counts=total(factors))
  if WITHIN not in factors.live:
    return none._replace(needed=claims.Needed('width'))
  if factors.moments is None:
    return none._replace(needed=claims.Needed('seeds'))
  compared, one = factors.live[WITHIN], factors.slope(WITHIN)
  rivals: tuple[claims.Rival, ...] = ()
  across_p, less = math.nan, False
  if slopes.SIZE in factors.families:
    across = factors.slope(slopes.SIZE)
    gap, low, high, _ = slopes.difference(
        factors.moments, factors.place(WITHIN), factors.place(slopes.SIZE))
    # A single rival: no correction for their number.
    decided = int(low > 0) - int(high < 0)
    rivals = (claims.Rival(slopes.SIZE, across.value, gap, low, high,
                           decided),)
    across_p = slopes.permuted(factors.table, factors.families[slopes.SIZE])
    _, _, most, _ = slopes.difference(
        factors.moments, factors.place(WITHIN), factors.place(slopes.SIZE),
        WORTH)
    less = bool(across.low > 0 and most < 0)
  permuted = slopes.permuted(factors.table, compared)
  # Configurations of one width differ in many things, so the t test alone,
  # whose noise is that of controlled comparisons, could be too sure.
  verdict = claims.INCONCLUSIVE
  if permuted < claims.LEVEL:
    verdict = claims.sign(one.low, one.high)
  if verdict == claims.INCONCLUSIVE and less:
    verdict = claims.FAILS
  return claims.claim(
      'within_width', PER_DOUBLING, one.value, one.low, one.high, one.p,
      verdict, claims.more_runs(one.value, one.low, one.high), '',
      counted(factors, compared), rivals, permuted=permuted,
      across_permuted=across_p, less=less,
      groups=one.groups, spread=one.spread, reliability=one.reliability)


def of_noise(factors: Factors) -> claims.Claim:
  """Returns the claim that configurations differ by more than seeds do."""
  floor, table = factors.noise, factors.table
  counts = total(factors)
  if not floor.free or len(table) < 2:
    return claims.claim('noise', 'score', counts=counts,
                        needed=claims.Needed('seeds'))
  n_K, y_K = table['n'].to_numpy(float), table['y'].to_numpy(float)
  # An F test: variance between configurations over that between seeds.
  around = np.sum(n_K * (y_K - np.average(y_K, weights=n_K)) ** 2)
  free = len(table) - 1
  ratio = math.inf  # Seeds that give one score to the last digit.
  if floor.score:
    ratio = around / free / floor.score ** 2
  p = float(special.fdtrc(free, floor.free, ratio))
  verdict = claims.INCONCLUSIVE
  if p < claims.LEVEL / 2:  # One-sided, as each end of an interval is.
    verdict = claims.HOLDS
  # The noise's own interval, from its chi-squared.
  low, high = (floor.score * math.sqrt(floor.free / special.chdtri(
      floor.free, tail)) for tail in (.025, .975))
  return claims.claim(
      'noise', 'score', floor.score, low, high, p, verdict,
      claims.Needed('seeds'), counts=counts, repeats=floor.runs,
      rank=2 ** floor.log2_rank - 1, between=float(y_K.std(ddof=1)),
      correlation=correlation(floor))


def correlation(floor: slopes.Noise) -> float:
  """Returns the correlation of score and log RankMe between seeds."""
  below = floor.score * floor.log2_rank
  if not below:
    return math.nan
  return floor.covariance / below


def of_bound(factors: Factors) -> claims.Claim:
  """Returns the claim that little data stops larger models.

  Score per doubling of parameters at the most data less that at the least,
  all else equal; sizes of at least three at each amount.
  """
  unit = 'score per doubling of parameters'
  table, fields = factors.table, factors.rows.fields
  none = claims.claim('bound', unit, counts=total(factors),
                      needed=claims.Needed('grid'))
  if 'params' not in table or 'hours_asked' not in table or (
      factors.moments is None or slopes.SIZE not in factors.families):
    return none
  grid = size_grid(table, fields)
  if len(grid) < 2:
    return none
  # Variance of a configuration's mean score: its own, and its runs'.
  v_K = factors.moments.between + factors.moments.run / factors.moments.n_K
  hours, slope_G, var_G, left, expected, free = [], [], [], 0., 0., 0
  for amount, at_C in sorted(grid.items()):
    x_C = np.log2(table['params'].to_numpy(float)[at_C])
    y_C = table['y'].to_numpy(float)[at_C]
    x_C = x_C - x_C.mean()
    # The slope as a linear function of the scores, so that its variance follows
    # from theirs.
    w_C = x_C / np.sum(x_C ** 2)
    rest_C = y_C - y_C.mean() - (w_C @ y_C) * x_C
    hours.append(amount)
    slope_G.append(float(w_C @ y_C))
    var_G.append(float(np.sum(w_C ** 2 * v_K[at_C])))
    left += float(rest_C @ rest_C)
    # A line takes two degrees of freedom.
    expected += float(v_K[at_C].mean()) * (len(at_C) - 2)
    free += len(at_C) - 2
  t_free = float(factors.moments.t_free_F.max())
  scale = 1.
  # Scores that bend more than seeds tell widen the interval.
  if special.fdtrc(free, t_free, left / expected) < claims.LEVEL:
    scale, t_free = left / expected, free
  # The amounts are sorted: the last is the most data.
  gap = slope_G[-1] - slope_G[0]
  reach = float(special.stdtrit(t_free, .975)) * math.sqrt(
      scale * (var_G[-1] + var_G[0]))
  used = np.concatenate(list(grid.values()))
  runs = int(table['n'].to_numpy()[used].sum())
  # Two-sided: `reach` over its quantile is the standard error.
  p = 2 * special.stdtr(t_free, -abs(gap) / (
      reach / special.stdtrit(t_free, .975)))
  return claims.claim(
      'bound', unit, gap, gap - reach, gap + reach, p,
      claims.sign(gap - reach, gap + reach),
      claims.more_runs(gap, gap - reach, gap + reach),
      counts=(runs, len(used), runs), hours=tuple(hours),
      slopes=tuple(slope_G))


def size_grid(table: pd.DataFrame,
              fields: tuple[str, ...]) -> dict[float, np.ndarray]:
  """Returns {hours: configurations} of at least three sizes at each amount,
  all else equal; of several such grids the largest."""
  vary = (*slopes.FAMILIES[slopes.SIZE], 'hours_asked')
  same = [name for name in fields if name not in vary]
  groups = [np.arange(len(table))]
  if same:
    groups = table.groupby(same, dropna=False, observed=True).indices.values()
  best: dict[float, np.ndarray] = {}
  for at_C in groups:
    rows = table.iloc[at_C]
    grid = {}
    for amount, part in rows.groupby('hours_asked'):
      # Two sizes make a line through anything.
      if part['params'].nunique() > 2:
        grid[float(amount)] = part.index.to_numpy()
    if len(grid) > len(best):
      best = grid
  return best
