"""Means, deviations and intervals of scores; what is undefined is left out.

Shapes: R repetitions (seeds).
"""

import math

import numpy as np
from scipy import special

CONFIDENCE = 0.95


def aggregate(task, per_split):
  """Means and deviations over folds, undefined folds left out and noted."""
  names = list(per_split[0]['scores'])
  values = {n: [split['scores'][n] for split in per_split] for n in names}
  several = len(per_split) > 1
  stds = {n: std(values[n]) if several else None for n in names}
  primary = task.evaluation[0]
  notes = []
  for name in names:
    undefined = [split['split'] for split in per_split
                 if math.isnan(split['scores'][name])]
    if undefined:
      notes.append(f'{name} is undefined on {", ".join(undefined)}')
  means = {n: mean(values[n]) for n in names}
  return {'score': means[primary], 'std': stds[primary], 'scores': means,
          'stds': stds, 'valid': mean([s['valid'] for s in per_split]),
          'per_split': per_split, 'notes': notes}


def mean(values):
  defined = [v for v in values if not math.isnan(v)]
  return float(np.mean(defined)) if defined else math.nan


def std(values):
  defined = [v for v in values if not math.isnan(v)]
  if len(defined) < 2 or not np.isfinite(defined).all():
    return math.nan
  return float(np.std(defined, ddof=1))


def interval(score_R):
  """(mean, low, high) by Student's t; NaN bounds for a single value."""
  middle, spread = mean(score_R), std(score_R)
  if math.isnan(spread):
    return middle, math.nan, math.nan
  t = special.stdtrit(len(score_R) - 1, (1 + CONFIDENCE) / 2)
  half = float(t * spread / math.sqrt(len(score_R)))
  return middle, middle - half, middle + half
