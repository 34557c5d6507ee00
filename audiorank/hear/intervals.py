"""Confidence intervals of scores, and paired comparisons of two models.

A score varies for two reasons.
- Its test clips are a sample. They are bootstrapped, by group if the task has
  groups (recordings, speakers, drum kits). If a task has folds, their spread
  counts instead if it is larger.
- Its predictor depends on chance: another seed, or other validation clips,
  which may choose another grid point.
The interval is for the mean score over test sets of this size and predictors
chosen in this way.

All models of a task are scored on the same resamples of its clips, and a record
keeps the score of each resample. So two models can be compared clip by clip
without their predictions (`difference`).

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
FOLDS = 3  # With fewer folds their spread is too uncertain.
# An average over candidates, weighted by how often each would be chosen,
# varies less than one choice: for two equal ones the variance is 1/12 instead
# of 1/4 (Buehlmann and Yu, Annals of Statistics 30, 2002).
AVERAGED = 1 / 3


class Units(NamedTuple):
  """The units that are resampled: clips or groups of clips."""
  kind: str  # 'clip' or 'group'.
  total: int  # Number of units.
  clips: int  # Number of test clips.
  of: dict[str, np.ndarray]  # Test split -> unit_N, the unit of every clip.


class Source(NamedTuple):
  """A source of variation of a score: variance and degrees of freedom."""
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
  """Returns the Units of a task's test clips: its groups, if it has any."""
  tested = [test for _, _, test in tasks.folds(task)]
  clips = sum(len(task.files[split]) for split in tested)
  if task.groups:
    name_of = task.groups
    names = sorted({group for split in tested for group in name_of[split]})
    # A single group cannot be resampled.
    if len(names) > 1:
      # Groups that occur in several folds are drawn together in all of them.
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
  """Returns count_BU: how often each resample draws each of U units."""
  # A fixed seed: every model of a task gets the same resamples, which makes
  # comparisons paired.
  return np.random.default_rng(0).multinomial(
      count, np.full(count, 1 / count), size=RESAMPLES)


def combine(q_FB: Any, share_FB: Any) -> np.ndarray:
  """Returns q_B, the mean over folds of every resample.

  Args:
    q_FB: array, or rows of one: the score of every fold on every resample.
    share_FB: the same, clips that are drawn over the clips of the fold.
  """
  # Weighted by what is drawn: a fold of one group may be drawn several times
  # or not at all.
  q_FB, share_FB = np.asarray(q_FB), np.asarray(share_FB)
  share_FB = np.where(np.isnan(q_FB), 0, share_FB)
  total_B = share_FB.sum(0)
  q_B = (share_FB * np.where(np.isnan(q_FB), 0, q_FB)).sum(0)
  return np.where(total_B > 0, q_B / np.maximum(total_B, 1e-9), np.nan)


# --- Sources of variance ---


def of_clips(q_B: np.ndarray, count: int) -> Source | None:
  """Returns the Source of test clips, or None if it is not known.

  Args:
    q_B: the score of every resample.
    count: number of units.
  """
  q_B = q_B[~np.isnan(q_B)]
  if len(q_B) < RESAMPLES / 2 or count < 2 or not np.isfinite(q_B).all():
    return None
  # The bootstrap's variance divides by U, an unbiased one by U - 1.
  return Source(float(np.var(q_B, ddof=1)) * count / (count - 1), count - 1)


def of_repeats(repeats: Sequence[Sequence[float]],
               averaged: float) -> Source | None:
  """Returns the Source of scores that differ only by chance, or None.

  Args:
    repeats: lists of such scores, each with its own mean.
    averaged: the reported score is the mean of so many independent ones.
  """
  squares, free = 0., 0
  for values in repeats:
    defined = [v for v in values if not math.isnan(v)]
    if not np.isfinite(defined).all():
      return None
    if len(defined) > 1:
      # Pooled within lists: each has its own mean, and gives up one degree of
      # freedom for it.
      squares += float(np.var(defined)) * len(defined)
      free += len(defined) - 1
  if not free:
    return None
  return Source(squares / free / averaged, free)


def of_folds(values: Sequence[float]) -> Source | None:
  """Returns the Source of the scores of F folds, None if they are too few."""
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


def of_choice(values: Sequence[float], share_P: np.ndarray) -> Source:
  """Returns the Source of choosing one of P candidates on validation clips.

  Args:
    values: the test score of each candidate.
    share_P: how often each would be chosen on other validation clips.
  """
  value_P = np.asarray(values, float)
  share_P = np.where(np.isfinite(value_P), share_P, 0)
  if share_P.sum() == 0:
    return Source(0., max(1, len(value_P) - 1))
  value_P = np.where(share_P > 0, value_P, 0)
  mean = np.average(value_P, weights=share_P)
  # The spread of test scores over what would have been chosen.
  variance = np.average((value_P - mean) ** 2, weights=share_P)
  return Source(float(variance), max(1, len(value_P) - 1))


def total(sources: Mapping[str, Source | None]) -> Source | None:
  """Returns the sum of all sources, or None if that of clips is not known.

  Args:
    sources: by name: 'clips', 'seeds', 'choice' and 'folds'.
  """
  if not sources.get('clips'):
    return None
  # Clips and seeds differ between folds, so the spread of folds includes both.
  # The larger of the two estimates counts.
  inside = added([sources['clips'], sources.get('seeds')])
  between = sources.get('folds')
  if between and between.variance > inside.variance:
    inside = between
  return added([inside, sources.get('choice')])


def added(sources: Sequence[Source | None]) -> Source:
  """Returns the Source of a sum of independent sources.

  Degrees of freedom are those of Welch and Satterthwaite.
  """
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
    within: whether the score lies between 0 and 1. Then the interval is that
      of Wilson, which never extends beyond.
    count: of units.
  """
  if source is None or not math.isfinite(value):
    return UNKNOWN
  t = quantile(source.free)
  se = math.sqrt(source.variance)
  if not within:
    return Interval(value - t * se, value + t * se, se, source.free)
  # Wilson's interval for the number of clips that would give this variance. At
  # 0 or 1 the bootstrap has no variance; the number of units is used instead.
  spread = value * (1 - value)
  n: float = count
  if source.variance and spread > 0:
    n = spread / source.variance
  # Wilson 1927, with Student's t for the normal quantile.
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

  Tasks have no clip in common, so their errors are independent.

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
  """Returns the fields of a result that describe its uncertainty, as JSON.

  low, high, se, free: of the task's own measure, at `confidence`.
  sources: its standard error by source, with degrees of freedom.
  intervals: low, high and se of every measure.
  clips, units, unit: number of test clips and of units; kind of unit.
  chance: scores of predictions that ignore the clip, by measure.
  resamples: the score of every resample, for `difference`.

  Args:
    task: that was scored.
    result: with 'scores'.
    resampled: measure -> q_B.
    sources: measure -> its sources.
    chance: from `predictions.chance`.
  """
  own = units(task)
  of = {name: interval(result['scores'][name], total(sources[name]),
                       scores.bounded(name), own.total)
        for name in task.evaluation}
  primary = task.evaluation[0]
  return {
      **plain(of[primary]), 'confidence': CONFIDENCE,
      'sources': {kind: {'se': math.sqrt(s.variance), 'free': s.free}
                  for kind, s in sources[primary].items() if s},
      'intervals': {name: plain(i) for name, i in of.items()},
      'clips': own.clips, 'units': own.total, 'unit': own.kind,
      'chance': dict(chance), 'resamples': encode(resampled[primary])}


def plain(values: Interval) -> dict[str, float | None]:
  """Returns an Interval as JSON, with None for NaN, which JSON lacks."""
  out: dict[str, float | None] = dict.fromkeys(values._fields)
  for name, value in values._asdict().items():
    if not math.isnan(value):
      out[name] = float(value)
  return out


def encode(q_B: np.ndarray) -> str:
  """Returns float32 numbers as text."""
  return base64.b64encode(np.asarray(q_B, '<f4').tobytes()).decode('ascii')


def decode(text: str) -> np.ndarray:
  """Returns the numbers of `encode`."""
  return np.frombuffer(base64.b64decode(text), '<f4').astype(float)


def difference(ours: Mapping[str, Any],
               theirs: Mapping[str, Any]) -> tuple[float, Interval]:
  """Returns (ours - theirs, its interval) of two results on one task.

  The comparison is paired: clips that are easy or hard for both cancel.

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
  # Resample by resample: both were scored on the same draws.
  q_B = decode(ours['resamples']) - decode(theirs['resamples'])
  sources: dict[str, Source | None] = {
      'clips': of_clips(q_B, ours['units']),
      'folds': of_folds([a - b for a, b in zip(fold_scores(ours),
                                               fold_scores(theirs))])}
  # Seeds and choices of the two models are independent, so these add.
  for kind in ('seeds', 'choice'):
    both = [r['sources'].get(kind) for r in (ours, theirs)]
    sources[kind] = added([Source(s['se'] ** 2, s['free'])
                           for s in both if s])
  return gap, interval(gap, total(sources), within=False, count=1)


def fold_scores(result: Mapping[str, Any]) -> list[float]:
  """Returns the score of every fold, NaN if it is undefined."""
  values = [split['score'] for split in result['per_split']]
  return np.array(values, float).tolist()  # None becomes NaN.
