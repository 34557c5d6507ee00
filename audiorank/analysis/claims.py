"""A claim as numbers: what was measured, against what, and the verdict.

No sentence is made here: `audiorank.report.wording` is where they all are.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import special

HOLDS, FAILS, INCONCLUSIVE = 'holds', 'fails', 'inconclusive'
LEVEL = .05  # Of every test.
MOST = 100.  # Times as many runs beyond which more runs are no answer.


class Rival(NamedTuple):
  """Another predictor beside RankMe, on the same runs.

  value: its own figure, in the claim's unit.  difference: how much better
  RankMe is, with its paired 95 % interval.  decided: 1 where RankMe is better
  and -1 where the rival is, at 5 % over all rivals of the claim; else 0.
  """
  name: str
  value: float
  difference: float
  low: float
  high: float
  decided: int


class Needed(NamedTuple):
  """What would decide an inconclusive claim.

  kind: see `report.wording.NEEDED`.  amount: how much of it.  names: of what.
  """
  kind: str
  amount: float = math.nan
  names: tuple[str, ...] = ()


class Claim(NamedTuple):
  """One claim.

  key: which.  family: what was varied, or the objective compared; or ''.
  estimate, low, high, unit: the effect with its 95 % interval; NaN where
  there is none, infinite ends where nothing bounds it.  p: of no effect.
  runs, configurations, trainings: what it rests on; runs counts rows, of
  which several may be one training.
  rivals: see Rival.  verdict: HOLDS, FAILS or INCONCLUSIVE.  needed: what
  would decide it, or None.  details: further numbers by name.
  """
  key: str
  family: str
  estimate: float
  low: float
  high: float
  unit: str
  p: float
  runs: int
  configurations: int
  trainings: int
  rivals: tuple[Rival, ...]
  verdict: str
  needed: Needed | None
  details: dict[str, Any]


def claim(key: str, unit: str = '', estimate: float = math.nan,
          low: float = math.nan, high: float = math.nan, p: float = math.nan,
          verdict: str = INCONCLUSIVE, needed: Needed | None = None,
          family: str = '', counts: tuple[int, int, int] = (0, 0, 0),
          rivals: tuple[Rival, ...] = (), **details: Any) -> Claim:
  """Returns a Claim; what would decide it is only part of an open one.

  Args:
    key: which claim.
    unit: of the estimate.
    estimate: the effect.
    low: of its interval.
    high: of its interval.
    p: of no effect.
    verdict: HOLDS, FAILS or INCONCLUSIVE.
    needed: what would decide it.
    family: what was varied.
    counts: rows, configurations, trainings.
    rivals: other predictors.
    **details: further numbers.
  """
  if verdict != INCONCLUSIVE:
    # Nothing is needed to decide what is decided.
    needed = None
  rows, kinds, trainings = counts
  return Claim(key, family, float(estimate), float(low), float(high), unit,
               float(p), rows, kinds, trainings, tuple(rivals), verdict,
               needed, details)


def sign(low: float, high: float) -> str:
  """Returns the verdict on a positive effect from its interval."""
  if low > 0:
    return HOLDS
  if high < 0:
    return FAILS
  return INCONCLUSIVE


def against(rivals: tuple[Rival, ...]) -> str:
  """Returns the verdict on 'RankMe is better than each rival'.

  It holds where every paired interval says so, each at its own 95 %: a claim
  about all needs no correction. It fails where some rival is better by the
  intervals corrected for their number.
  """
  # Failing first: one better rival is enough.
  if any(rival.decided < 0 for rival in rivals):
    return FAILS
  if rivals and all(rival.low > 0 for rival in rivals):
    return HOLDS
  return INCONCLUSIVE


def share(hit_N: np.ndarray, group_N: np.ndarray
          ) -> tuple[float, float, float]:
  """Returns the share of hits over groups of runs, with its 95 % interval.

  Runs of one group (seeds of a configuration) may agree for a reason of their
  own, so the groups are the trials of Clopper and Pearson's exact interval,
  each with the mean of its runs. A mean varies no more than a single run, so
  the interval covers at least 95 %.

  Args:
    hit_N: whether each of N runs is a hit; a number from 0 to 1.
    group_N: the group of each.
  """
  if not len(hit_N):
    return math.nan, math.nan, math.nan
  place_N = np.unique(group_N, return_inverse=True)[1]
  mean_G = np.bincount(place_N, np.asarray(hit_N, float)) / np.bincount(
      place_N)
  groups, hits = len(mean_G), float(mean_G.sum())
  low, high = 0., 1.
  # betaincinv is not defined where there is no hit, or nothing else.
  if hits > 0:
    low = float(special.betaincinv(hits, groups - hits + 1, LEVEL / 2))
  if hits < groups:
    high = float(special.betaincinv(hits + 1, groups - hits, 1 - LEVEL / 2))
  return hits / groups, low, high


def most(low: float, high: float, chance: float) -> str:
  """Returns the verdict on 'in most runs' from the interval of a share.

  It fails where the share lies below one half and is not above chance. Between
  chance and one half it is inconclusive.
  """
  if low > .5:
    return HOLDS
  if high < .5 and low <= chance:
    return FAILS
  return INCONCLUSIVE


def more_runs(value: float, low: float, high: float) -> Needed:
  """Returns how many times as many runs would bring an interval off 0.

  At least twice as many: an interval off 0 is inconclusive where it is one of
  several that are judged together.
  """
  # Noise falls with the root of the runs, so their number with its square.
  reach = max(high - value, value - low)
  # Where nothing bounds the interval, more of the same runs do not help.
  if not math.isfinite(reach) or not value:
    return Needed('range')
  times = (reach / value) ** 2
  if times > MOST:
    return Needed('range')
  return Needed('runs', max(math.ceil(times), 2))
