"""What RankMe tells among configurations that differ in one thing.

Within groups of configurations equal in all but, say, the masking rate the
score is regressed on log2 of RankMe, every group with a level of its own, so
that what is told is what RankMe says beyond what is held equal. The noise is
that of runs that differ in nothing but their seed or the order of clips.

Shapes: N runs, C configurations, G groups of them.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank import laws
from audiorank.findings import score

HOLDS, FAILS, OPEN = 'holds', 'fails', 'cannot be told'
# What a family's configurations differ in; all else is equal.
FAMILIES = {
    'masking rate': ('mask_ratio',),
    'hours of audio': ('hours',),
    'size': ('size', 'heads'),
    'learning rate': ('lr',),
    'decoder': ('decoder',),
    'crop length at equal audio': ('crop_seconds', 'batch'),
    'sounds trained on': ('category',)}
SHAPE = 'shape at equal size'
EQUAL = 1.2  # Encoders whose sizes differ by less are of equal compute.


class Noise(NamedTuple):
  """Standard deviations between runs of one configuration.

  score, log2_rank: of a run.  free: degrees of freedom.  runs: how many.
  """
  score: float
  log2_rank: float
  free: int
  runs: int


def once(trained):
  """Returns the runs without those that only repeat another to the bit: the
  same configuration, seed and order, read at other steps."""
  same = [c for c in (*score.CONFIGURATION, 'seed', 'order') if c in trained]
  return trained.drop_duplicates(same, ignore_index=True)


def noise(trained):
  """Returns the Noise of runs that differ in seed or order alone."""
  trained = once(trained)
  label_N = score.configurations(trained)
  rank_N = np.log2(trained['rank'].to_numpy(float))
  score_N = trained['score'].to_numpy(float)
  squares, free, runs = np.zeros(2), 0, 0
  for label in np.unique(label_N):
    here = label_N == label
    if here.sum() > 1:
      squares += [np.sum((v[here] - v[here].mean()) ** 2)
                  for v in (score_N, rank_N)]
      free += here.sum() - 1
      runs += here.sum()
  sd = np.sqrt(squares / free) if free else np.full(2, np.nan)
  return Noise(float(sd[0]), float(sd[1]), int(free), int(runs))


def groups(trained, vary):
  """Returns the configurations that differ in `vary` alone, a row each.

  Columns: group, rank (log2), share (log2 of RankMe over width), score, loss,
  runs; and those of `vary`. Groups of one configuration are left out.
  """
  vary = [name for name in vary if name in trained]
  same = [name for name in score.CONFIGURATION
          if name in trained and name not in vary]
  rank_N = np.log2(trained['rank'].astype(float))
  rows = once(trained.assign(
      rank=rank_N, share=rank_N - np.log2(trained['width'].astype(float)),
      score=trained['score'].astype(float),
      loss=trained['valid_loss'].astype(float)))
  found = rows.groupby([*same, *vary], dropna=False, observed=True).agg(
      rank=('rank', 'mean'), share=('share', 'mean'), score=('score', 'mean'),
      loss=('loss', 'mean'), runs=('score', 'size')).reset_index()
  found['group'] = found.groupby(same, dropna=False, observed=True).ngroup()
  return found[found.groupby('group')['group'].transform('size') > 1]


class Lines(NamedTuple):
  """Lines through groups of points, a slope and a level each.

  slope_G, width_G: slopes and the weighted sums of squares of x about its
    mean: a slope's variance is `variance` over its width.
  variance: of one run's score.  free: its degrees of freedom.
  """
  slope_G: np.ndarray
  width_G: np.ndarray
  variance: float
  free: int


def lines(x_C, y_C, n_C, level_C, slope_C, floor):
  """Returns the Lines by least squares, or None without x's spread or noise.

  The error of a configuration's mean is the noise between seeds, or the
  residual's where that is larger: then something else moves the score too.

  Args:
    x_C, y_C: of configurations.
    n_C: runs of each.
    level_C, slope_C: which share a level, and which a slope.
    floor: the Noise.
  """
  x_C, y_C = (about_means(v, n_C, level_C) for v in (x_C, y_C))
  labels = np.unique(slope_C)
  total = lambda v_C: np.array([np.sum((n_C * v_C)[slope_C == g])
                                for g in labels])
  width_G = total(x_C ** 2)
  if not width_G.all():
    return None
  slope_G = total(x_C * y_C) / width_G
  left_C = y_C - slope_G[np.searchsorted(labels, slope_C)] * x_C
  free = len(x_C) - len(np.unique(level_C)) - len(labels)
  variance, own = floor.score ** 2, floor.free
  residual = np.sum(n_C * left_C ** 2) / free if free > 0 else math.nan
  if free > 0 and (not floor.free or residual > variance):
    variance, own = residual, free
  return Lines(slope_G, width_G, float(variance), own) if own else None


class Slope(NamedTuple):
  """Score per doubling of RankMe within groups.

  value, low, high: with its 95 % interval.  p: two-sided, of no slope.
  by_rank, by_share, by_loss: shares of the score's variance within groups that
  a line in RankMe, in RankMe over width, or in the validation loss explains.
  configurations, groups: how many.
  """
  value: float
  low: float
  high: float
  p: float
  by_rank: float
  by_share: float
  by_loss: float
  configurations: int
  groups: int


def slope(found, floor):
  """Returns the Slope of a table of `groups`, or None where none is to be had.

  Args:
    found: a table of `groups`.
    floor: the Noise.
  """
  if not len(found):
    return None
  n_C, group_C = found['runs'].to_numpy(float), found['group'].to_numpy()
  of = lambda name: found[name].to_numpy(float)
  made = lines(of('rank'), of('score'), n_C, group_C, np.zeros(len(found)),
               floor)
  y_C = about_means(of('score'), n_C, group_C)
  total = np.sum(n_C * y_C ** 2)
  if made is None or not total:
    return None

  def explained(name):
    v_C = about_means(of(name), n_C, group_C)
    power = np.sum(n_C * v_C ** 2)
    return (float(np.sum(n_C * v_C * y_C) ** 2 / power / total)
            if np.isfinite(power) and power > 0 else math.nan)

  value, se = made.slope_G[0], math.sqrt(made.variance / made.width_G[0])
  reach = special.stdtrit(made.free, .975) * se
  p = 2 * special.stdtr(made.free, -abs(value) / se) if se else 0.
  return Slope(float(value), float(value - reach), float(value + reach),
               float(p), explained('rank'), explained('share'),
               explained('loss'), len(found), int(found['group'].nunique()))


def off_line(x_N, y_N, x_M, y_M):
  """Returns (mean distance of M points from the line through N, its reach).

  The reach is that of a 95 % interval: the noise of the M, taken to be that
  of the N about their line, and the line's own where the M lie.
  """
  line = np.polyfit(x_N, y_N, 1)
  free = len(x_N) - 2
  sd = math.sqrt(np.sum((y_N - np.polyval(line, x_N)) ** 2) / free)
  about_N = x_N - x_N.mean()
  share = 1 / len(x_M) + 1 / len(x_N) + (
      (x_M.mean() - x_N.mean()) ** 2 / np.sum(about_N ** 2))
  return (float((y_M - np.polyval(line, x_M)).mean()),
          float(special.stdtrit(free, .975) * sd * math.sqrt(share)))


def about_means(v_C, n_C, group_C):
  """Returns values less their group's mean, weighted by runs."""
  out_C = np.empty(len(v_C))
  for group in np.unique(group_C):
    here = group_C == group
    out_C[here] = v_C[here] - np.average(v_C[here], weights=n_C[here])
  return out_C


def sign(low, high):
  """Returns the verdict on a positive effect from its interval."""
  return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def needed(found):
  """Returns what would decide a Slope whose interval holds 0, as text."""
  times = ((found.high - found.value) / found.value) ** 2
  if times > 100:
    return 'a wider range: no number of runs within reason'
  return (f'{math.ceil(times)} times as many runs, if the slope is what it '
          'looks like')


def families(trained):
  """Returns a row a family: its Slope and the verdict.

  Columns: family, those of Slope, p_holm (p among all the families here, by
  Holm's method), verdict (told from p_holm). Families without two comparable
  configurations are left out.
  """
  floor = noise(trained)
  found = {name: slope(groups(trained, vary), floor)
           for name, vary in FAMILIES.items()}
  found[SHAPE] = slope(groups(of_one_size(trained), ('size', 'heads')), floor)
  found = {name: own for name, own in found.items() if own}
  p_N = laws.failures.holm(np.array([own.p for own in found.values()]))
  return pd.DataFrame([
      {'family': name, **own._asdict(), 'p_holm': float(p),
       'verdict': sign(own.low, own.high) if p < .05 else OPEN}
      for (name, own), p in zip(found.items(), p_N)])


def of_one_size(trained):
  """Returns the reference's runs at the size that most shapes share: width is
  paid for by depth."""
  rows = trained[_at_reference(trained, ('size', 'heads'))]
  size_N = rows['params'].to_numpy(float)
  near_NN = np.abs(np.log(size_N[:, None] / size_N[None])) < math.log(EQUAL)
  shapes = rows[['size', 'heads']].apply(tuple, axis=1)
  most = max(range(len(rows)), key=lambda i: shapes[near_NN[i]].nunique())
  return rows[near_NN[most]]


def _at_reference(trained, vary):
  """Which rows equal the commonest value in all but `vary`."""
  keep = np.ones(len(trained), bool)
  for name in score.CONFIGURATION:
    if name in trained and name not in vary:
      keep &= (trained[name] == trained[name].mode().iloc[0]).to_numpy()
  return keep
