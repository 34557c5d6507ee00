"""Does RankMe add anything to what is cheaper to know?

Every predictor of the score gets the same treatment on the same folds, and
the differences come with paired intervals over groups.

Shape suffixes: N rows, S resamples, G groups, P predictors in a regression.
"""

import math

import numpy as np
import pandas as pd

from audiorank.laws import early
from audiorank.laws import table


def _design(data, names):
  """Columns of a regression: logarithms where positive, standardised."""
  cols = []
  for name in names:
    col = table.column(data, name)
    col = np.log(col) if (col > 0).all() else col
    spread = col.std()
    if spread > 0:
      cols.append((col - col.mean()) / spread)
  return np.stack([np.ones(len(cols[0]) if cols else len(
      table.column(data, names[0]))), *cols], 1) if names else None


def _loo(design_NP, y_N, group_N):
  """Errors of a linear regression with each group left out."""
  e_N = np.empty(len(y_N))
  for group in np.unique(group_N):
    out = group_N == group
    coefficients = np.linalg.lstsq(design_NP[~out], y_N[~out], rcond=1e-10)[0]
    e_N[out] = y_N[out] - design_NP[out] @ coefficients
  return e_N


def partial(z_N, y_N, given_NP, w_SN=None):
  """Correlation of the parts of z and y that `given` does not explain.

  Args:
    z_N: the predictor.
    y_N: the score.
    given_NP: what both are freed from; a column of ones included.
    w_SN: weights of S resamples; None for the data themselves.

  Returns:
    S correlations, or one number where there are no weights; NaN where
    nothing of z or y is left.
  """
  weights = np.ones((1, len(z_N))) if w_SN is None else w_SN
  both_N2 = np.stack([z_N, y_N], 1)
  cross = lambda a, b: np.einsum('sn,np,nq->spq', weights, a, b,
                                 optimize=True)
  gram, side, own = (cross(given_NP, given_NP), cross(given_NP, both_N2),
                     cross(both_N2, both_N2))
  inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
  left = own - np.swapaxes(side, 1, 2) @ inverse @ side
  size = np.diagonal(left, axis1=1, axis2=2)
  whole = np.diagonal(own, axis1=1, axis2=2)
  with np.errstate(all='ignore'):
    out = np.where((size > 1e-9 * whole).all(1),
                   left[:, 0, 1] / np.sqrt(size[:, 0] * size[:, 1]), np.nan)
  return float(out[0]) if w_SN is None else out


def rivals(data, predictors, score='score', given=('params', 'width'),
           groups=None, subject='rank', confidence=.95, draws=1000, seed=0):
  """Does RankMe predict the score better than what is cheaper to know?

  Every predictor gets the same treatment on the same folds: a line in its
  logarithm (plain where not positive), alone and on top of `given`, each
  group left out in turn.

  Args:
    data: columns by name.
    predictors: names of columns.
    score: what is predicted.
    given: columns that are known beforehand: size and width.
    groups: what is left out together: the configuration, not the seed.
    subject: the predictor against which all are held.
    confidence: of the bootstrap intervals over groups.
    draws: resamples.
    seed: of the bootstrap.

  Returns:
    A DataFrame with a row per predictor, the best alone first, and rows
    '(mean)' and '(given alone)': predictor, loo (root mean square error
    alone), loo_given (with `given`), spearman, partial (correlation with
    the score given `given`), partial_low, partial_high, worse, worse_low,
    worse_high (mean squared error less the subject's, paired over groups:
    above 0, the subject is better).

  Raises:
    ValueError: a missing or constant column, or fewer than four groups.
  """
  y_N = table.column(data, score)
  labels = np.arange(len(y_N)) if groups is None else np.asarray(
      table.raw(data, groups) if isinstance(groups, str) else groups)
  group_N = pd.factorize(labels)[0]
  count = group_N.max() + 1
  if count < 4:
    raise ValueError(f'rivals need at least 4 groups to leave out, found '
                     f'{count}')
  predictors = list(dict.fromkeys([subject, *predictors]))
  for name in predictors:
    if np.ptp(table.column(data, name)) == 0:
      raise ValueError(f'column {name!r} is constant: it predicts nothing')
  given = [name for name in given if np.ptp(table.column(data, name)) > 0]
  ones = np.ones((len(y_N), 1))
  base = _design(data, given) if given else ones
  rng = np.random.default_rng(seed)
  times_SG = rng.multinomial(count, np.full(count, 1 / count), draws)
  per_group = lambda v: np.bincount(group_N, v, count)
  size_G = per_group(np.ones(len(y_N)))

  def paired(e_N, ref_N):
    gap_G = per_group(e_N ** 2 - ref_N ** 2)
    each = times_SG @ gap_G / np.maximum(times_SG @ size_G, 1)
    return gap_G.sum() / len(y_N), *np.quantile(each, tails)

  tails = [(1 - confidence) / 2, (1 + confidence) / 2]
  ref_N = _loo(_design(data, [subject]), y_N, group_N)
  rows = []
  for name in predictors:
    z = _design(data, [name])
    e_N = _loo(z, y_N, group_N)
    free = [g for g in given if g != name]
    around = _design(data, free) if free else ones
    both = _loo(np.hstack([around, z[:, 1:]]), y_N, group_N)
    draws_S = partial(z[:, 1], y_N, around, times_SG[:, group_N] * 1.)
    draws_S = draws_S[np.isfinite(draws_S)]
    bounds = (np.quantile(draws_S, tails) if len(draws_S) > 20 else
              (np.nan, np.nan))
    worse = paired(e_N, ref_N)
    rows.append({
        'predictor': name, 'loo': _rms(e_N), 'loo_given': _rms(both),
        'spearman': early.spearman(z[:, 1], y_N),
        'partial': partial(z[:, 1], y_N, around),
        'partial_low': bounds[0], 'partial_high': bounds[1],
        'worse': worse[0], 'worse_low': worse[1], 'worse_high': worse[2]})
  for name, design in (('(mean)', ones), ('(given alone)', base)):
    e_N = _loo(design, y_N, group_N)
    worse = paired(e_N, ref_N)
    rows.append({'predictor': name, 'loo': _rms(e_N), 'loo_given': np.nan,
                 'spearman': np.nan, 'partial': np.nan,
                 'partial_low': np.nan, 'partial_high': np.nan,
                 'worse': worse[0], 'worse_low': worse[1],
                 'worse_high': worse[2]})
  return pd.DataFrame(rows).sort_values('loo', ignore_index=True)


def _rms(e_N):
  return float(np.sqrt(np.mean(e_N ** 2)))


def verdict(found, subject='rank'):
  """The answer of `rivals` in one or two sentences."""
  rows = found.set_index('predictor')
  own = rows.loc[subject]
  words = []
  mean = rows.loc['(mean)', 'loo']
  if own['loo'] >= mean:
    words.append(f'{subject} predicts the score of configurations left out '
                 f'no better than their mean ({own["loo"]:.3g} against '
                 f'{mean:.3g}).')
  better = [name for name in rows.index if not name.startswith('(') and
            rows.loc[name, 'loo'] < own['loo']]
  if better:
    sure = [name for name in better if rows.loc[name, 'worse_high'] < 0]
    words.append(f'Left out, {", ".join(better)} predict'
                 f'{"s" if len(better) == 1 else ""} better than {subject}'
                 + (f' (beyond chance: {", ".join(sure)}).' if sure else
                    ', though not beyond chance.'))
  else:
    words.append(f'Left out, no rival predicts better than {subject} '
                 f'(error {own["loo"]:.3g}).')
  base = rows.loc['(given alone)', 'loo']
  if math.isfinite(own['partial']):
    adds = own['loo_given'] < base
    sure = own['partial_low'] > 0 or own['partial_high'] < 0
    words.append(
        f'Given size and width it {"adds" if adds else "adds nothing"}: '
        f'error {own["loo_given"]:.3g} with it, {base:.3g} without; partial '
        f'correlation {own["partial"]:.2f} ({own["partial_low"]:.2f} to '
        f'{own["partial_high"]:.2f}{"" if sure else ", not beyond chance"}).')
  return ' '.join(words)
