"""How far a score can be trusted, and whether it beats another one.

A score varies for two reasons. Its test clips are a sample: they are
bootstrapped, by group where the task names groups (recordings, speakers, kits
of drums), and where a task has folds their spread counts if it is larger. And
its predictor is one of several that might have been chosen: by another seed,
or, on other validation clips, with another grid point. The estimate is of the
mean score over test sets of this size and predictors chosen like this one.

All models of a task are scored on the same resamples of its clips, and a
record keeps the score of each: two models are compared clip by clip, without
their predictions (`difference`).

Shapes: N clips of a split, U units (clips or groups), B resamples, P
candidate predictors, F folds.
"""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import special

from audiorank.hear import scores
from audiorank.hear import tasks

CONFIDENCE = .95
RESAMPLES = 500
FOLDS = 3  # Fewer say too little of how folds differ.
# An average over candidates, weighted by how often each would be chosen,
# varies less than one choice: of two equal ones the variance is 1/12 in place
# of 1/4 (Buehlmann and Yu, Annals of Statistics 30, 2002).
AVERAGED = 1 / 3


class Units(NamedTuple):
  """What is resampled.

  kind: 'clip' or 'group'.
  count: how many.
  clips: test clips in all.
  of: split -> unit_N, the unit of every clip; of tested splits alone.
  """
  kind: str
  count: int
  clips: int
  of: dict[str, np.ndarray]


class Source(NamedTuple):
  """One reason why a score varies: its variance, and degrees of freedom."""
  variance: float
  free: float


class Interval(NamedTuple):
  """A confidence interval, its standard error and degrees of freedom."""
  low: float
  high: float
  se: float
  free: float


UNKNOWN = Interval(math.nan, math.nan, math.nan, math.nan)


# --- Resampled test clips ---


def units(task: tasks.Task) -> Units:
  """Returns the units of a task's test clips: its groups, if it names any."""
  tested = [test for _, _, test in tasks.folds(task)]
  clips = sum(len(task.files[split]) for split in tested)
  if task.groups:
    name_of = task.groups
    names = sorted({group for split in tested for group in name_of[split]})
    if len(names) > 1:
      number = {name: i for i, name in enumerate(names)}
      return Units('group', len(names), clips, {
          split: np.array([number[g] for g in name_of[split]])
          for split in tested})
  of, start = {}, 0
  for split in tested:
    of[split] = start + np.arange(len(task.files[split]))
    start += len(task.files[split])
  return Units('clip', clips, clips, of)


@functools.lru_cache(maxsize=32)
def draws(count: int) -> np.ndarray:
  """Returns count_BU: how often each resample draws each of U units.

  The same for every model of a task: what makes comparisons paired.
  """
  return np.random.default_rng(0).multinomial(
      count, np.full(count, 1 / count), size=RESAMPLES)


def combine(q_FB: Sequence[np.ndarray],
            share_FB: Sequence[np.ndarray]) -> np.ndarray:
  """Returns q_B, the mean over folds of every resample.

  Args:
    q_FB: the score of every fold on every resample.
    share_FB: clips drawn over the fold's own number. A fold of one group is
      drawn whole or not at all, and counts as often as it is drawn.
  """
  q_FB, share_FB = np.asarray(q_FB), np.asarray(share_FB)
  share_FB = np.where(np.isnan(q_FB), 0, share_FB)
  total_B = share_FB.sum(0)
  q_B = (share_FB * np.where(np.isnan(q_FB), 0, q_FB)).sum(0)
  return np.where(total_B > 0, q_B / np.maximum(total_B, 1e-9), np.nan)


# --- Sources of variance ---


def of_clips(q_B: np.ndarray, count: int) -> Source | None:
  """Returns the Source of resampled scores of `count` units."""
  q_B = q_B[~np.isnan(q_B)]
  if len(q_B) < RESAMPLES / 2 or count < 2 or not np.isfinite(q_B).all():
    return None
  # The bootstrap's variance divides by U, an unbiased one by U - 1.
  return Source(float(np.var(q_B, ddof=1)) * count / (count - 1), count - 1)


def of_repeats(repeats: Sequence[Sequence[float]],
               averaged: float) -> Source | None:
  """Returns the Source of scores that differ in nothing but chance.

  Args:
    repeats: lists of such scores, each with a mean of its own.
    averaged: how many independent ones the reported score is the mean of.
  """
  squares, free = 0., 0
  for values in repeats:
    defined = [v for v in values if not math.isnan(v)]
    if not np.isfinite(defined).all():
      return None
    if len(defined) > 1:
      squares += float(np.var(defined)) * len(defined)
      free += len(defined) - 1
  if not free:
    return None
  return Source(squares / free / averaged, free)


def of_folds(values: Sequence[float]) -> Source | None:
  """Returns the Source of the scores of F folds, None of too few."""
  defined = [v for v in values if not math.isnan(v)]
  if len(defined) < FOLDS:
    return None
  return of_repeats([defined], len(defined))


def chosen_share(q_PB: np.ndarray) -> np.ndarray:
  """Returns share_P: how often each candidate is the best of a resample.

  Args:
    q_PB: validation scores, larger is better; NaN never wins. Of equals the
      earlier one does.
  """
  q_PB = np.where(np.isnan(q_PB), -np.inf, q_PB)
  return np.bincount(q_PB.argmax(0), minlength=len(q_PB)) / q_PB.shape[1]


def of_choice(value_P: Sequence[float], share_P: np.ndarray) -> Source:
  """Returns the Source of choosing one of P candidates on validation clips.

  Args:
    value_P: the test score of each candidate.
    share_P: how often each would be chosen on other validation clips.
  """
  value_P = np.asarray(value_P, float)
  share_P = np.where(np.isfinite(value_P), share_P, 0)
  if share_P.sum() == 0:
    return Source(0., max(1, len(value_P) - 1))
  value_P = np.where(share_P > 0, value_P, 0)
  mean = np.average(value_P, weights=share_P)
  variance = np.average((value_P - mean) ** 2, weights=share_P)
  return Source(float(variance), max(1, len(value_P) - 1))


def total(sources: Mapping[str, Source | None]) -> Source | None:
  """Returns the Source of all: of 'clips', 'seeds', 'choice' and 'folds'.

  The spread of folds holds that of their clips and of their predictors'
  seeds: the larger of the two counts. Degrees of freedom are Welch's and
  Satterthwaite's. None where the clips' part is not known.
  """
  if not sources.get('clips'):
    return None
  inside = added([sources['clips'], sources.get('seeds')])
  between = sources.get('folds')
  if between and between.variance > inside.variance:
    inside = between
  return added([inside, sources.get('choice')])


def added(sources: Sequence[Source | None]) -> Source:
  """Returns the Source of a sum of independent ones."""
  known = [s for s in sources if s and s.variance > 0]
  if not known:
    return Source(0., max([s.free for s in sources if s], default=1.))
  variance = sum(s.variance for s in known)
  return Source(variance, variance ** 2 / sum(
      s.variance ** 2 / s.free for s in known))


# --- Intervals ---


def interval(value: float, source: Source | None, within: bool,
             count: int) -> Interval:
  """Returns the 95 % interval of a score.

  Args:
    value: the score.
    source: its variance, or None.
    within: whether the score lies between 0 and 1. Then the interval is
      Wilson's, with the number of clips that would give this variance: it
      stays inside, and at 0 or 1 it is that of `count` clips.
    count: of units.
  """
  if source is None or not math.isfinite(value):
    return UNKNOWN
  t = quantile(source.free)
  se = math.sqrt(source.variance)
  if not within:
    return Interval(value - t * se, value + t * se, se, source.free)
  spread = value * (1 - value)
  n = spread / source.variance if source.variance and spread > 0 else count
  middle = (value + t * t / (2 * n)) / (1 + t * t / n)
  half = t * math.sqrt(spread / n + t * t / (4 * n * n)) / (1 + t * t / n)
  return Interval(max(0., middle - half), min(1., middle + half), se,
                  source.free)


def quantile(free: float) -> float:
  """Returns Student's t for a two-sided interval at CONFIDENCE."""
  return float(special.stdtrit(free, (1 + CONFIDENCE) / 2))


def mean_interval(parts: Sequence[Interval], value: float,
                  within: bool) -> Interval:
  """Returns the interval of the mean of scores of different tasks.

  Tasks share no clip, so that their errors are independent.

  Args:
    parts: of the tasks.
    value: the mean.
    within: whether all lie between 0 and 1.
  """
  if not parts or any(math.isnan(p.se) for p in parts):
    return UNKNOWN
  whole = added([Source(p.se ** 2, p.free) for p in parts])
  return interval(value, Source(whole.variance / len(parts) ** 2, whole.free),
                  within, count=len(parts))


# --- Records ---


def fields(task: tasks.Task, result: Mapping[str, Any],
           resampled: Mapping[str, np.ndarray],
           sources: Mapping[str, Mapping[str, Source | None]],
           chance: Mapping[str, float]) -> dict[str, Any]:
  """Returns what a result says of its uncertainty, as plain values.

  low, high, se, free: of the task's own measure, at `confidence`.
  sources: its standard error by reason, with degrees of freedom.
  intervals: low, high and se of every measure.
  clips, units, unit: test clips; what was resampled, and how many.
  chance: what predictions that ignore the clip score, by measure.
  resamples: the score of every resample, for `difference`.

  Args:
    task: that was scored.
    result: with 'scores'.
    resampled: measure -> q_B.
    sources: measure -> its sources.
    chance: of `predictions.chance`.
  """
  own = units(task)
  of = {name: interval(result['scores'][name], total(sources[name]),
                       scores.bounded(name), own.count)
        for name in task.evaluation}
  primary = task.evaluation[0]
  return {
      **plain(of[primary]), 'confidence': CONFIDENCE,
      'sources': {kind: {'se': math.sqrt(s.variance), 'free': s.free}
                  for kind, s in sources[primary].items() if s},
      'intervals': {name: plain(i) for name, i in of.items()},
      'clips': own.clips, 'units': own.count, 'unit': own.kind,
      'chance': dict(chance), 'resamples': encode(resampled[primary])}


def plain(values: Interval) -> dict[str, float | None]:
  """Returns an Interval as JSON: what is not known is None."""
  return {name: None if math.isnan(v) else float(v)
          for name, v in values._asdict().items()}


def encode(q_B: np.ndarray) -> str:
  """Returns float32 numbers as text."""
  return base64.b64encode(np.asarray(q_B, '<f4').tobytes()).decode('ascii')


def decode(text: str) -> np.ndarray:
  """Returns the numbers of `encode`."""
  return np.frombuffer(base64.b64decode(text), '<f4').astype(float)


def difference(ours: Mapping[str, Any],
               theirs: Mapping[str, Any]) -> tuple[float, Interval]:
  """Returns (ours - theirs, its interval) of two results on one task.

  The comparison is paired: what both find easy or hard cancels.

  Args:
    ours, theirs: results with the fields of `fields`, of the same task.
  """
  ours, theirs = dict(ours), dict(theirs)
  if ours['score'] is None or theirs['score'] is None:
    return math.nan, UNKNOWN
  gap = ours['score'] - theirs['score']
  comparable = all(r.get('resamples') for r in (ours, theirs)) and (
      ours['units'] == theirs['units'])
  if not comparable:
    return gap, UNKNOWN
  q_B = decode(ours['resamples']) - decode(theirs['resamples'])
  sources = {
      'clips': of_clips(q_B, ours['units']),
      'folds': of_folds([a - b for a, b in zip(fold_scores(ours),
                                               fold_scores(theirs))])}
  for kind in ('seeds', 'choice'):
    both = [r['sources'].get(kind) for r in (ours, theirs)]
    sources[kind] = added([Source(s['se'] ** 2, s['free'])
                           for s in both if s])
  return gap, interval(gap, total(sources), within=False, count=1)


def fold_scores(result: Mapping[str, Any]) -> list[float]:
  """Returns the score of every fold; NaN where it is undefined."""
  values = [split['score'] for split in result['per_split']]
  return [math.nan if v is None else v for v in values]
