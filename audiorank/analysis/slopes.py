"""What a doubling of RankMe is worth, by what was varied.

A family is what changes between configurations that are equal in all else:
the masking rate, say. Within each group of such configurations the score is a
line in log2 RankMe with a level of its own; the slope is common to a family.

Scores and ranks are both measured with the noise of seeds, and the two errors
of a run may be correlated. With x and y about their group's mean, weighted by
runs n, and d degrees of freedom, the moment
  T(b) = sum n x y - d c - b (sum n x^2 - d t^2)
has mean 0 at the true slope b, where t^2 is the variance of a run's log2
RankMe between seeds and c its covariance with the score (Fuller, Measurement
Error Models, 1987, section 2.2). The slope is where T is 0; its interval holds
every b at which T lies within its own noise (Fieller 1954), so it is unbounded
where RankMe moves no more than seeds move it.

Configurations are shared by families, so the T of several families are
correlated: each is a linear function of the same mean scores, which gives the
covariances exactly. One slope for all is tested by Cochran's Q of the T at the
slope that fits all best.

Shapes: N runs, K configurations, C of them in a family, G groups, F families.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import special

SIZE = 'size'
CROP = 'crop length at equal audio'
# What a family's configurations differ in; all else is equal. A field that
# varies and is named nowhere here is a family of its own.
FAMILIES = {
    SIZE: ('width', 'depth', 'heads'),
    'hours of audio': ('hours_asked',),
    'learning rate': ('lr',),
    'masking rate': ('mask_ratio',),
    'decoder': ('decoder', 'decoder_heads'),
    CROP: ('crop_seconds', 'batch'),
    'batch size': ('batch',),
    'training steps': ('steps',),
    'sounds trained on': ('category',),
    'initial scale': ('train.init_scale',)}
SHAPE = 'shape at equal size'
EQUAL = 1.2  # Encoders whose sizes differ by less have equal compute.
LEAST_FREE = 3.  # Degrees of freedom below which a noise is not known.
REACH = 50.  # Standard errors within which the common slope is searched.


class Noise(NamedTuple):
  """How runs of one configuration differ by seed and by order of clips.

  score, log2_rank: standard deviations of a run.  covariance: of the two.
  free: degrees of freedom; 0 where no configuration was repeated, and then
  nothing of it is known.  runs: how many were repeated.
  """
  score: float
  log2_rank: float
  covariance: float
  free: int
  runs: int


class Comparison(NamedTuple):
  """Configurations that differ in some fields alone, in groups.

  at_C: their places in the table of configurations.  group_C: which are
  compared.
  """
  at_C: np.ndarray
  group_C: np.ndarray

  @property
  def free(self) -> int:
    return len(self.at_C) - len(np.unique(self.group_C))


class Slope(NamedTuple):
  """Score per doubling of RankMe; infinite ends where nothing bounds it.

  p: two-sided, of no slope.  configurations, groups, runs: how many.
  spread: standard deviation of log2 RankMe about its groups' means.
  reliability: share of its variance that is not the noise of seeds.
  """
  value: float
  low: float
  high: float
  p: float
  configurations: int
  groups: int
  runs: int
  spread: float
  reliability: float


class OneSlope(NamedTuple):
  """The test of one slope for several families.

  q, free: Cochran's Q and its degrees of freedom.  p: its chance.  common:
  the slope that fits all best.  between: standard deviation of the slopes
  between families, with its 95 % interval.
  """
  q: float
  free: int
  p: float
  common: float
  between: float
  between_low: float
  between_high: float


def noise(trained: pd.DataFrame) -> Noise:
  """Returns the Noise of runs that differ in seed or order of clips alone."""
  x_N, y_N = _values(trained)
  # Sums of squares and of products about the means of each configuration.
  total, free, runs = np.zeros(3), 0, 0
  for rows in trained.groupby('configuration').indices.values():
    if len(rows) > 1:
      x, y = x_N[rows] - x_N[rows].mean(), y_N[rows] - y_N[rows].mean()
      # Variances of score and log2 RankMe, and their covariance.
      total += [np.sum(y * y), np.sum(x * x), np.sum(x * y)]
      free += len(rows) - 1
      runs += len(rows)
  if not free:
    return Noise(math.nan, math.nan, math.nan, 0, 0)
  return Noise(math.sqrt(total[0] / free), math.sqrt(total[1] / free),
               float(total[2] / free), free, runs)


def _values(trained: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
  """Returns log2 RankMe and the score of every run, (N,)."""
  return (np.log2(trained['rank'].to_numpy(float)),
          trained['score'].to_numpy(float))


def configurations(trained: pd.DataFrame,
                   fields: tuple[str, ...]) -> pd.DataFrame:
  """Returns a row a configuration: fields, and means over its seeds.

  Columns: `fields`, params, x (log2 RankMe), y (score), n (runs), and
  valid_loss where every run has one.
  """
  x_N, y_N = _values(trained)
  rows = trained.assign(x=x_N, y=y_N)
  first = [name for name in (*fields, 'params') if name in rows]
  means = {'x': ('x', 'mean'), 'y': ('y', 'mean'), 'n': ('x', 'size')}
  if 'valid_loss' in rows and rows['valid_loss'].notna().all():
    means['valid_loss'] = ('valid_loss', 'mean')
  return rows.groupby('configuration').agg(
      **{name: (name, 'first') for name in first}, **means
  ).reset_index(drop=True)


def compare(table: pd.DataFrame, fields: tuple[str, ...],
            vary: tuple[str, ...]) -> Comparison:
  """Returns the Comparison of configurations that differ in `vary` alone."""
  same = [name for name in fields if name not in vary]
  if not len(table):
    return Comparison(np.zeros(0, int), np.zeros(0, int))
  group_K = np.zeros(len(table), int)
  if same:
    group_K = table.groupby(same, dropna=False,
                            observed=True).ngroup().to_numpy()
  size_K = np.bincount(group_K)[group_K]
  at_C = np.flatnonzero(size_K > 1)
  return Comparison(at_C, group_K[at_C])


def at_equal(table: pd.DataFrame, label_K: np.ndarray) -> Comparison:
  """Returns the Comparison of all configurations that share a label."""
  label_K = pd.factorize(label_K)[0]
  at_C = np.flatnonzero(np.bincount(label_K)[label_K] > 1)
  return Comparison(at_C, label_K[at_C])


def families(table: pd.DataFrame,
             fields: tuple[str, ...]) -> dict[str, Comparison]:
  """Returns {family: Comparison} of everything that varies.

  A family that varies and has no two comparable configurations is there with
  an empty Comparison.
  """
  varied = [name for name in fields if table[name].nunique(dropna=False) > 1]
  out: dict[str, Comparison] = {}
  # Objectives have claims of their own.
  named = {'objective'}
  for family, vary in FAMILIES.items():
    mine = [name for name in vary if name in varied]
    # A batch that varies without the crop is a family of its own.
    if named.issuperset(mine) or (family == CROP and vary[0] not in mine):
      continue
    named.update(mine)
    out[family] = compare(table, fields, tuple(mine))
  for name in varied:
    if name not in named:
      out[name] = compare(table, fields, (name,))
  return out


def vary_of(family: str) -> tuple[str, ...]:
  """Returns the fields that a family's configurations differ in."""
  return FAMILIES.get(family, (family,))


def equal_size(table: pd.DataFrame, fields: tuple[str, ...]) -> Comparison:
  """Returns the Comparison of shapes of one size: width paid for by depth.

  Of all sizes of the reference configuration the one with most shapes.
  """
  shape = [name for name in FAMILIES[SIZE] if name in fields]
  here = compare(table, fields, tuple(shape))
  best = Comparison(np.zeros(0, int), np.zeros(0, int))
  if 'params' not in table:
    return best
  size_K = table['params'].to_numpy(float)
  for group in np.unique(here.group_C):
    at_C = here.at_C[here.group_C == group]
    for center in at_C:
      # Sizes within a factor of EQUAL of this one.
      near_C = at_C[np.abs(np.log(size_K[at_C] / size_K[center]))
                    < math.log(EQUAL)]
      if len(near_C) > max(len(best.at_C), 2):
        best = Comparison(near_C, np.zeros(len(near_C), int))
  return best


def apart_from(table: pd.DataFrame, fields: tuple[str, ...],
               vary: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the fewest other fields that differ wherever `vary` does."""
  others = [name for name in fields
            if name not in vary and table[name].nunique(dropna=False) > 1]
  # Values as numbers, so that a comparison is one array operation.
  code_KM = np.stack([pd.factorize(table[name])[0] for name in others], 1)
  code_KV = np.stack([pd.factorize(table[name])[0] for name in vary
                      if name in table], 1)
  fewest = tuple(others)
  for k in range(len(table)):
    # Every pair in which the family differs also differs in something else.
    differs_K = (code_KV != code_KV[k]).any(1)
    for row in code_KM[differs_K] != code_KM[k]:
      if row.sum() < len(fewest):
        fewest = tuple(name for name, off in zip(others, row) if off)
  return fewest


class Moments(NamedTuple):
  """The moments T(b) = a - b m of F comparisons, and their noise.

  u_FK: how each depends on the configurations' mean scores.
  a_F, m_F: T's intercept and slope.  free_F: its degrees of freedom d.
  x2_F: sum n x^2.  left_F: residual sums of squares about the own line.
  per_between_F: what a unit of variance between configurations adds to it.
  n_K: runs.  noise: of seeds.  run: variance of one run's score about its
  line.  between: variance of configurations about it beyond seeds.
  scale_F: factor on the noise of families that leave more over than others.
  t_free_F: degrees of freedom of the noise.
  """
  u_FK: np.ndarray
  a_F: np.ndarray
  m_F: np.ndarray
  free_F: np.ndarray
  x2_F: np.ndarray
  n_K: np.ndarray
  noise: Noise
  run: float
  between: float
  scale_F: np.ndarray
  t_free_F: np.ndarray

  def t(self, slope: float) -> np.ndarray:
    return self.a_F - slope * self.m_F

  def covariance(self, slope: float) -> np.ndarray:
    """Returns the covariance of T at a slope, (F, F)."""
    own, cross, rank = self.run, 0., 0.
    if self.noise.free:
      cross, rank = self.noise.covariance, self.noise.log2_rank ** 2
    # About a line of that slope the noise of rank is noise of the score.
    run = max(own - 2 * slope * cross + slope ** 2 * rank, 0.)
    shared = cross - slope * rank
    v_K = self.between + run / self.n_K
    out_FF = (self.u_FK * v_K) @ self.u_FK.T
    if self.noise.free:
      # The correction for noise in rank is itself estimated from seeds.
      sure = (run * rank + shared ** 2) / self.noise.free
      out_FF += np.outer(self.free_F, self.free_F) * sure
      out_FF += np.diag(self.free_F * shared ** 2)
    return out_FF * np.sqrt(np.outer(self.scale_F, self.scale_F))


def centered(table: pd.DataFrame, compared: Comparison):
  """Returns n, x and y of a comparison, x and y about their group's mean."""
  n_C, x_C, y_C = (table[name].to_numpy(float)[compared.at_C] for name in 'nxy')
  for group in np.unique(compared.group_C):
    here = compared.group_C == group
    x_C[here] -= np.average(x_C[here], weights=n_C[here])
    y_C[here] -= np.average(y_C[here], weights=n_C[here])
  return n_C, x_C, y_C


def _leftover(table: pd.DataFrame, compared: Comparison) -> np.ndarray:
  """Returns the matrix of the residual sum of squares about a line, (K, K).

  y'Ly is the sum of n r^2, r the residuals about the group's level and the
  common slope.
  """
  n_C, x_C, _ = centered(table, compared)
  C, K = len(n_C), len(table)
  hat_CC = np.zeros((C, C))
  for group in np.unique(compared.group_C):
    here = compared.group_C == group
    hat_CC[np.ix_(here, here)] = n_C[here] / n_C[here].sum()
  if np.sum(n_C * x_C ** 2):
    hat_CC += np.outer(x_C, n_C * x_C) / np.sum(n_C * x_C ** 2)
  # Levels and slope are projected out; what is left over is noise.
  rest_CC = np.eye(C) - hat_CC
  out_KK = np.zeros((K, K))
  at_C = compared.at_C
  out_KK[np.ix_(at_C, at_C)] = rest_CC.T @ np.diag(n_C) @ rest_CC
  return out_KK


def measure(table: pd.DataFrame, several: list[Comparison], floor: Noise,
            pool: list[Comparison] | None = None) -> Moments | None:
  """Returns the Moments of comparisons, or None where the noise is not known:
  no seeds, and next to nothing left over about the lines.

  The noise about the lines is what all controlled comparisons leave over,
  pooled with seeds where it is no more than theirs. A comparison that leaves
  over more than the others (F test, 5 %) takes its own.

  Args:
    table: of `configurations`.
    several: comparisons in which RankMe differs.
    floor: the Noise of seeds.
    pool: what the noise is taken from; None for `several`.
  """
  n_K, y_K = table['n'].to_numpy(float), table['y'].to_numpy(float)
  if pool is None:
    pool = several
  run, between, t_free = _pooled(table, pool, floor)
  if t_free < LEAST_FREE:
    return None
  rank, cross = 0., 0.
  if floor.free:
    rank, cross = floor.log2_rank ** 2, floor.covariance
  u_FK = np.zeros((len(several), len(table)))
  rows = []
  scale_F, t_free_F = np.ones(len(several)), np.full(len(several), t_free)
  for f, compared in enumerate(several):
    n_C, x_C, y_C = centered(table, compared)
    # T is linear in the mean scores, with these weights.
    u_FK[f, compared.at_C] = n_C * x_C
    x2 = np.sum(n_C * x_C ** 2)
    # Sums of products and of squares, each less what the noise of seeds alone
    # adds: the correction for errors in the predictor.
    rows.append((np.sum(n_C * x_C * y_C) - compared.free * cross,
                 x2 - compared.free * rank, compared.free, x2))
    # What is left over, and what the pooled noise would leave.
    left_KK = _leftover(table, compared)
    left, expected = y_K @ left_KK @ y_K, np.trace(
        left_KK @ np.diag(between + run / n_K))
    free = compared.free - 1
    if free > 0 and expected > 0:
      ratio = left / expected
      if special.fdtrc(free, t_free, ratio) < .05:
        scale_F[f], t_free_F[f] = ratio, free
  a_F, m_F, free_F, x2_F = np.array(rows, float).T
  return Moments(u_FK, a_F, m_F, free_F, x2_F, n_K, floor, run, between,
                 scale_F, t_free_F)


def _pooled(table: pd.DataFrame, pool: list[Comparison],
            floor: Noise) -> tuple[float, float, float]:
  """Returns the variance of a run, that between configurations, and their
  degrees of freedom; 0 of these where nothing is known."""
  n_K, y_K = table['n'].to_numpy(float), table['y'].to_numpy(float)
  left_KK = sum((_leftover(table, compared) for compared in pool),
                np.zeros((len(table), len(table))))
  left = float(y_K @ left_KK @ y_K)
  # About a line of slope b a run's variance is v - 2 b c + b^2 t^2: back to v.
  for compared in pool:
    if not floor.free:
      break
    n_C, x_C, y_C = centered(table, compared)
    b = np.sum(n_C * x_C * y_C) / np.sum(n_C * x_C ** 2)
    left += max(compared.free - 1, 0) * b * (
        2 * floor.covariance - b * floor.log2_rank ** 2)
  left = max(left, 0.)
  # Families overlap: their residuals count as many as their sum of squares
  # varies like (Satterthwaite 1946).
  per_KK = left_KK / n_K
  mean, square = np.trace(per_KK), np.trace(per_KK @ per_KK)
  free = 0.
  if square > 1e-12:
    free = mean ** 2 / square
  # No seeds: the lines' residuals are all that is known of noise.
  if free and not floor.free:
    return left / mean, 0., free
  if not free:
    return floor.score ** 2, 0., float(floor.free)
  if left / mean <= floor.score ** 2:
    # Both estimate the same noise: pooled by their degrees of freedom.
    own = floor.free * floor.score ** 2 + free * left / mean
    return own / (floor.free + free), 0., floor.free + free
  # More than seeds explain: the rest is between configurations.
  extra = (left - mean * floor.score ** 2) / np.trace(left_KK)
  return floor.score ** 2, float(extra), free


def slope(moments: Moments, f: int, table: pd.DataFrame,
          compared: Comparison) -> Slope:
  """Returns the Slope of one of the comparisons of Moments."""
  a, m, free = moments.a_F[f], moments.m_F[f], moments.t_free_F[f]
  reach = special.stdtrit(free, .975)
  # The variance of T is quadratic in the slope: three points give it. All
  # slopes b with T(b)^2 <= reach^2 var T(b) solve A b^2 + B b + C <= 0.
  v0, v1, v2 = (moments.covariance(b)[f, f] for b in (-1., 0., 1.))
  p2, p1, p0 = (v0 + v2) / 2 - v1, (v2 - v0) / 2, v1
  p = 0.
  if p0:
    p = 2 * special.stdtr(free, -abs(a) / math.sqrt(p0))
  A = m ** 2 - reach ** 2 * p2
  B = -2 * a * m - reach ** 2 * p1
  C = a ** 2 - reach ** 2 * p0
  # Fieller's theorem: the interval of a ratio of two estimates.
  root = B ** 2 - 4 * A * C
  # Where A <= 0 no slope is far enough off to be excluded.
  low, high = -math.inf, math.inf
  if A > 0 and m > 0 and root >= 0:
    low, high = ((-B + sign * math.sqrt(root)) / (2 * A) for sign in (-1, 1))
  n_C = table['n'].to_numpy(float)[compared.at_C]
  x2 = moments.x2_F[f]
  return Slope(
      float(a / m) if m > 0 else math.nan, float(low), float(high), float(p),
      len(compared.at_C), len(np.unique(compared.group_C)), int(n_C.sum()),
      math.sqrt(x2 / n_C.sum()), max(float(m / x2), 0.) if x2 else 0.)


def one_slope(moments: Moments, which: list[int]) -> OneSlope:
  """Returns the test of one slope for some of the comparisons."""
  pick = np.array(which)
  free = float(np.min(moments.t_free_F[pick]))

  def q(b):
    cov_FF = moments.covariance(b)[np.ix_(pick, pick)]
    t_F = moments.t(b)[pick]
    return float(t_F @ np.linalg.solve(cov_FF, t_F))

  se_F = np.sqrt(np.diag(moments.covariance(0.))[pick]) / np.maximum(
      np.abs(moments.m_F[pick]), 1e-12)
  # The mean of the slopes, weighted by their precision, is near the minimum of
  # Q.
  start = float(np.average(moments.a_F[pick] / np.where(
      moments.m_F[pick] == 0, np.inf, moments.m_F[pick]), weights=se_F ** -2.))
  span = REACH * float(se_F.min())
  # Q may have several minima; the best of a grid is refined.
  grid = np.linspace(start - span, start + span, 201)
  best = grid[int(np.argmin([q(b) for b in grid]))]
  near = optimize.minimize_scalar(
      q, bounds=(best - span / 50, best + span / 50), method='bounded')
  value, k = float(near.fun), len(pick)
  p = math.nan
  if k > 1:
    p = special.fdtrc(k - 1, free, value / (k - 1))
  return OneSlope(value, k - 1, float(p), float(near.x),
                  *_between(moments, pick, float(near.x)))


def _between(moments: Moments, pick: np.ndarray, common: float):
  """Returns the standard deviation of slopes between families and its 95 %
  interval, by the profile of Q (Viechtbauer 2007)."""
  m_F = moments.m_F[pick]
  cov_FF = moments.covariance(common)[np.ix_(pick, pick)]
  free = float(np.min(moments.t_free_F[pick]))
  k = len(pick)
  if k < 2:
    return math.nan, math.nan, math.nan

  def q(tau):
    # A slope of its own for each family adds tau^2 m^2 to T's variance.
    inverse = np.linalg.inv(cov_FF + np.diag(tau ** 2 * m_F ** 2))
    a_F = moments.a_F[pick]
    b = (m_F @ inverse @ a_F) / (m_F @ inverse @ m_F)
    t_F = a_F - b * m_F
    return float(t_F @ inverse @ t_F)

  def where(limit):
    if q(0.) <= limit:
      return 0.
    high = 1e-3
    # Q falls as tau grows: double until it is below.
    while q(high) > limit and high < 1e6:
      high *= 2
    return float(optimize.brentq(lambda tau: q(tau) - limit, 0., high))

  # Q of k families is F distributed where the noise is estimated.
  crit = lambda share: (k - 1) * special.fdtri(k - 1, free, share)
  return where(k - 1.), where(crit(.975)), where(crit(.025))


def permuted(table: pd.DataFrame, compared: Comparison, draws: int = 2000,
             seed: int = 0) -> float:
  """Returns the two-sided p of no relation, scores permuted within groups."""
  n_C, x_C, y_C = centered(table, compared)
  w_C = n_C * x_C
  rng = np.random.default_rng(seed)
  place_SC = np.tile(np.arange(len(y_C)), (draws, 1))
  for group in np.unique(compared.group_C):
    here = np.flatnonzero(compared.group_C == group)
    # Random numbers sorted are a random order, for all draws at once.
    order_SC = np.argsort(rng.random((draws, len(here))), axis=1)
    place_SC[:, here] = here[order_SC]
  # Raw scores: x is centred, so levels do not matter.
  y_C = table['y'].to_numpy(float)[compared.at_C]
  own = abs(w_C @ y_C)
  each_S = np.abs(y_C[place_SC] @ w_C)
  # The observed order is one of the possible ones, so p is never 0.
  return float((1 + np.sum(each_S >= own * (1 - 1e-9))) / (1 + draws))


def difference(moments: Moments, f: int, g: int, share: float = 1.
               ) -> tuple[float, float, float, float]:
  """Returns (slope f less a share of slope g, low, high, p) with their
  covariance."""
  b_f, b_g = (moments.a_F[i] / moments.m_F[i] for i in (f, g))
  # The delta method for a difference of two ratios.
  var = (moments.covariance(b_f)[f, f] / moments.m_F[f] ** 2
         + share ** 2 * moments.covariance(b_g)[g, g] / moments.m_F[g] ** 2
         - 2 * share * moments.covariance((b_f + b_g) / 2)[f, g]
         / (moments.m_F[f] * moments.m_F[g]))
  free = min(moments.t_free_F[f], moments.t_free_F[g])
  se = math.sqrt(max(var, 0.))
  reach = special.stdtrit(free, .975) * se
  gap = float(b_f - share * b_g)
  p = math.nan
  if se:
    p = float(2 * special.stdtr(free, -abs(gap) / se))
  return gap, gap - reach, gap + reach, p
