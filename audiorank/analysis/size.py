"""What size does to RankMe itself: the floor it falls to, the power of width.

Both ask how far configurations lie from a rule beyond the noise of seeds. With
x the mean log2 RankMe of n seeds, F = sum n (x - rule)^2 / d / t^2, where t is
the standard deviation between seeds; its noncentrality is sum n delta^2 / t^2
for true distances delta. So an interval of the noncentrality (Steiger 2004) is
one of the distances' root mean square in units of t.

Shapes: N runs, K configurations, C of them compared, W candidates.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import special

from audiorank.analysis import claims
from audiorank.analysis import law
from audiorank.analysis import slopes
from audiorank.analysis import study

SEEDS = 'standard deviations between seeds'
EXPONENT = 'exponent of width'
EARLY = .5  # Share of training within which a fall is an early one.
LEAST = 3  # Widths without which a power of width is not told from another law.
LARGEST = 1e6  # Noncentrality beyond which nothing is bounded.
SATURATING = 'a law that saturates'
# Widths at which a law may bend, as factors on those of the runs.
BENDS = np.geomspace(.1, 30., 40)


class Floors(NamedTuple):
  """The lowest RankMe of runs after their first step.

  rows: the runs.  floor_N: it.  share_N: the share of training at which it was
  measured.  start_N: RankMe before training.
  """
  rows: pd.DataFrame
  floor_N: np.ndarray
  share_N: np.ndarray
  start_N: np.ndarray


def beyond_seeds(ratio: float, free: int, noise_free: int,
                 runs: int) -> tuple[float, float]:
  """Returns the 95 % interval of a distance in units of seeds' noise.

  Args:
    ratio: F, the mean square distance over the variance between seeds.
    free: its degrees of freedom.
    noise_free: those of the variance between seeds.
    runs: the sum of n.
  """
  def root(share: float) -> float:
    # The noncentrality at which F would be below `ratio` in that share.
    below = lambda nc: special.ncfdtr(free, noise_free, nc, ratio) - share
    if below(0.) <= 0:
      return 0.
    high = 1.
    while below(high) > 0 and high < LARGEST:
      high *= 2
    if high >= LARGEST:
      return math.inf
    return math.sqrt(optimize.brentq(below, 0., high) / runs)

  return root(1 - claims.LEVEL / 2), root(claims.LEVEL / 2)


# --- The floor ---


def floors(rows: study.Study) -> Floors:
  """Returns the Floors of runs that were measured before their first step."""
  low: dict[str, tuple[float, float, float]] = {}
  for run, here in rows.history.groupby('run_id'):
    here = here.sort_values('step')
    rank_E = here['rank'].to_numpy(float)
    if here['step'].iloc[0] or len(here) < 3 or not np.isfinite(rank_E).all():
      continue
    # The first row is the untrained network's.
    at = 1 + int(rank_E[1:].argmin())
    low[str(run)] = (rank_E[at], float(here['step'].iloc[at]
                                       / here['steps'].iloc[at]), rank_E[0])
  mine = rows.trained[rows.trained['run_id'].isin(low)].reset_index(drop=True)
  values_N3 = np.array([low[run] for run in mine['run_id']]).reshape(-1, 3)
  return Floors(mine, *values_N3.T)


def of_floor(rows: study.Study) -> claims.Claim | None:
  """Returns the claim that RankMe falls early to a floor that does not depend
  on size; None without evaluations during training.

  It holds where most runs fall in the first half of training and the floors of
  sizes, all else equal, differ by less than seeds do; it fails where most do
  not fall so, or where sizes differ (F test).
  """
  if not len(rows.history):
    return None
  known = floors(rows)
  if not len(known.rows):
    return None
  counts = law.counted(known.rows)
  early_N = (known.floor_N < known.start_N) & (known.share_N <= EARLY)
  early, least, most = claims.share(
      early_N, known.rows['configuration'].to_numpy())
  # The floor in RankMe's place: noise and configurations are the slopes' own.
  lowest = known.rows.assign(rank=known.floor_N)
  noise = slopes.noise(lowest)
  table = slopes.configurations(lowest, rows.fields)
  shape = [name for name in slopes.FAMILIES[slopes.SIZE] if name in rows.fields]
  compared = slopes.compare(table, rows.fields, tuple(shape))
  details: dict[str, Any] = dict(
      early=early, early_low=least, early_high=most,
      share=float(np.median(known.share_N)),
      fall=float(np.median(np.log2(known.floor_N / known.start_N))),
      floors=by_size(lowest[lowest['configuration'].isin(
          np.unique(lowest['configuration'])[compared.at_C])]))
  needed = claims.Needed('seeds')
  if not compared.free:
    needed = claims.Needed('vary', names=(slopes.SIZE,))
  if not compared.free or not noise.free or not noise.log2_rank:
    verdict = claims.INCONCLUSIVE
    if most < .5:
      verdict = claims.FAILS
    return claims.claim('floor', SEEDS, verdict=verdict, needed=needed,
                        counts=counts, **details)
  # As `factors.moves` does: floors of one group about their mean.
  n_C, x_C, _ = slopes.centered(table, compared)
  ratio = float(np.sum(n_C * x_C ** 2)) / compared.free / noise.log2_rank ** 2
  runs = int(n_C.sum())
  low, high = beyond_seeds(ratio, compared.free, noise.free, runs)
  p = float(special.fdtrc(compared.free, noise.free, ratio))
  verdict = claims.INCONCLUSIVE
  # Sizes that certainly differ, but by less than seeds do, count as equal.
  if most < .5 or (p < claims.LEVEL and high >= 1):
    verdict = claims.FAILS
  elif least > .5 and high < 1:
    verdict = claims.HOLDS
  return claims.claim(
      'floor', SEEDS, distance(ratio, compared.free, runs), low, high, p,
      verdict, claims.Needed('more_sizes'), counts=counts,
      seeds=2 ** noise.log2_rank - 1, sizes=len(compared.at_C), **details)


def distance(ratio: float, free: int, runs: int) -> float:
  """Returns the root mean square distance beyond the noise of seeds."""
  return math.sqrt(max(ratio - 1, 0.) * free / runs)


def by_size(lowest: pd.DataFrame) -> dict[str, float]:
  """Returns {size: median floor} by width."""
  each = lowest.groupby('size', sort=False).agg(
      floor=('rank', 'median'), width=('width', 'first'))
  return dict(each.sort_values('width')['floor'])


# --- The power of width ---


class Widths(NamedTuple):
  """Configurations that differ in width alone, in groups.

  width_C, x_C: width and mean log2 RankMe.  n_C: runs.  group_C: groups.
  noise: standard deviation of log2 RankMe between seeds.  noise_free: its
  degrees of freedom.
  """
  width_C: np.ndarray
  x_C: np.ndarray
  n_C: np.ndarray
  group_C: np.ndarray
  noise: float
  noise_free: int


def widths(rows: pd.DataFrame, fields: tuple[str, ...]) -> Widths:
  """Returns the Widths of runs with their `configuration`."""
  rows = rows[rows['rank'].notna()]
  noise = slopes.noise(rows)
  table = slopes.configurations(rows, fields)
  # Heads follow the width, and so does nothing else.
  compared = slopes.compare(table, fields, tuple(
      name for name in ('width', 'heads') if name in fields))
  here = table.iloc[compared.at_C]
  return Widths(here['width'].to_numpy(float), here['x'].to_numpy(float),
                here['n'].to_numpy(float), compared.group_C, noise.log2_rank,
                noise.free)


def line(known: Widths, z_WC: np.ndarray, left_out: int | None = None
         ) -> tuple[np.ndarray, np.ndarray]:
  """Returns (slopes, residuals) of lines in z with a level for each group.

  Args:
    known: the configurations.
    z_WC: what each of W lines is in.
    left_out: a configuration that is predicted from the others; or None.

  Returns:
    (W,) and (W, C).
  """
  weight_C = known.n_C.copy()
  if left_out is not None:
    weight_C[left_out] = 0.
  # Every value less the weighted mean of its group.
  same_CC = (known.group_C[:, None] == known.group_C[None]) * weight_C[None]
  around_CC = np.eye(len(weight_C)) - same_CC / same_CC.sum(1, keepdims=True)
  z_WC, x_C = z_WC @ around_CC.T, around_CC @ known.x_C
  below_W = (z_WC ** 2) @ weight_C
  slope_W = z_WC @ (weight_C * x_C) / np.where(below_W > 0, below_W, np.inf)
  return slope_W, x_C[None] - slope_W[:, None] * z_WC


def power(known: Widths, left_out: int | None = None) -> np.ndarray:
  """Returns residuals of log2 R = level + b log2 w, (C,); as `saturating`."""
  return line(known, np.log2(known.width_C)[None], left_out)[1][0]


def saturating(known: Widths, left_out: int | None = None) -> np.ndarray:
  """Returns residuals of log2 R = level + b log2(w / (w + w0)), (C,).

  For widths far above w0 it saturates, far below it is a power law.

  Args:
    known: the configurations.
    left_out: as for `line`.
  """
  bend_W = BENDS * known.width_C.max()
  z_WC = np.concatenate([
      -np.log2(1 + bend_W[:, None] / known.width_C[None]),
      np.log2(known.width_C)[None]])  # The power law is its limit.
  _, rest_WC = line(known, z_WC, left_out)
  weight_C = known.n_C.copy()
  if left_out is not None:
    # What is predicted does not choose w0.
    weight_C[left_out] = 0.
  return rest_WC[int(np.argmin((rest_WC ** 2) @ weight_C))]


def of_power(rows: study.Study) -> list[claims.Claim]:
  """Returns the claims that RankMe is a power of width, of trained runs and of
  untrained networks; of those whose width varies alone.

  A claim holds where the exponent is above 0 and the configurations lie off
  the power by less than seeds do; it fails where a law that saturates predicts
  configurations left out better, by a paired interval.
  """
  untrained = study.distinct(rows.untrained)
  untrained = untrained.assign(configuration=study.numbers(
      untrained, rows.fields))
  return [of_widths(family, part, rows.fields) for family, part in (
      ('trained', rows.trained), ('untrained', untrained))
          if len(part) and 'width' in part and part['width'].nunique() > 1]


def of_widths(family: str, rows: pd.DataFrame,
              fields: tuple[str, ...]) -> claims.Claim:
  """Returns the claim of one kind of networks.

  Args:
    family: 'trained' or 'untrained'.
    rows: the networks.
    fields: in which they are compared.
  """
  known = widths(rows, fields)
  n, groups = len(known.x_C), len(np.unique(known.group_C))
  runs = int(known.n_C.sum())
  counts = runs, n, runs
  none = claims.claim('width_power', EXPONENT, family=family, counts=counts,
                      needed=claims.Needed('widths', LEAST))
  # A line takes a slope and a level for each group.
  free = n - groups - 1
  if len(np.unique(known.width_C)) < LEAST or free < 1:
    return none
  z_C, rest_C = np.log2(known.width_C), power(known)
  slope = float(line(known, z_C[None])[0][0])
  about = math.sqrt(spread(known, z_C))
  square = float(np.sum(known.n_C * rest_C ** 2)) / free
  noise, own_free = math.sqrt(square), free
  lack = lack_low = lack_high = math.nan
  if known.noise_free and known.noise:
    ratio = square / known.noise ** 2
    lack = distance(ratio, free, runs)
    lack_low, lack_high = beyond_seeds(ratio, free, known.noise_free, runs)
    # The larger of two noises: few residuals may be small by luck.
    if ratio < 1:
      noise, own_free = known.noise, known.noise_free
  reach = float(special.stdtrit(own_free, .975)) * noise / about
  p = 0.
  if noise:
    p = float(2 * special.stdtr(own_free, -abs(slope) / noise * about))
  # Each configuration predicted from the others, by both laws.
  left_C, bent_C = (np.array([law_of(known, at)[at] for at in range(n)])
                    for law_of in (power, saturating))
  rival = of_saturating(left_C, bent_C)
  verdict, needed = claims.INCONCLUSIVE, claims.Needed('more_sizes')
  if not known.noise_free:
    needed = claims.Needed('seeds')
  if rival.decided < 0:
    verdict = claims.FAILS
  elif slope - reach > 0 and lack_high < 1:
    verdict = claims.HOLDS
  return claims.claim(
      'width_power', EXPONENT, slope, slope - reach, slope + reach, p, verdict,
      needed, family, counts, (rival,), left_out=law.rms(left_C), lack=lack,
      lack_low=lack_low, lack_high=lack_high, groups=groups,
      widths=(int(known.width_C.min()), int(known.width_C.max())))


def spread(known: Widths, z_C: np.ndarray) -> float:
  """Returns the sum of n z^2 about the groups' means."""
  # A line in nothing leaves z itself, about its groups' means.
  around_C = power(known._replace(x_C=z_C, width_C=np.ones_like(z_C)))
  return float(np.sum(known.n_C * around_C ** 2))


def of_saturating(left_C: np.ndarray, bent_C: np.ndarray) -> claims.Rival:
  """Returns the law that saturates as a Rival of the power, by the errors of
  both for configurations left out."""
  places = np.arange(len(left_C))
  gap, low, high = law.paired(bent_C, left_C, places)
  own = law.rms(left_C)
  root = lambda gap: math.sqrt(max(own ** 2 + gap, 0.)) - own
  # One rival: no correction for their number.
  return claims.Rival(SATURATING, law.rms(bent_C), root(gap), root(low),
                      root(high), law.decided(low, high, len(places)))
