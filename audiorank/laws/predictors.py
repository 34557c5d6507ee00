"""Does RankMe add anything to what is cheaper to know?

Every predictor of the score gets the same treatment on the same folds, and
the differences come with paired intervals over groups.

Shapes: N rows, S resamples, G groups, P columns of a regression.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import pandas as pd

from audiorank.laws import ranking
from audiorank.laws import table

# Groups below which a correlation with an interval says nothing.
LEAST_GROUPS = 4


def _levels(levels, group_N):
  """Returns a column for every label: ones where a row has it, (N, L).

  Raises:
    ValueError: a label of a single group, which leaves no mean behind.
  """
  if levels is None:
    return np.ones((len(group_N), 1))
  label_N, labels = pd.factorize(np.asarray(levels))
  each = pd.Series(group_N).groupby(label_N).nunique()
  if each.min() < 2:
    raise ValueError(f'levels: {labels[each.idxmin()]!r} has a single group: '
                     'expected at least 2 of each')
  return np.eye(len(labels))[label_N]


def _design(data, names, levels_NL):
  """Returns the columns of levels and those of a regression.

  Logarithms where all values are positive, standardised; a constant one is
  left out.
  """
  cols = list(levels_NL.T)
  for name in names:
    col = table.column(data, name)
    # Sizes and ranks act by their ratios; standardised columns make the cut-off
    # of lstsq mean the same for each.
    if (col > 0).all():
      col = np.log(col)
    spread = col.std()
    if spread > 0:
      cols.append((col - col.mean()) / spread)
  return np.stack(cols, 1)


def _loo(design_NP, y_N, group_N, levels_NL):
  """Returns errors of a linear regression with each group left out.

  Args:
    design_NP: columns of the regression, those of levels first.
    y_N: the score.
    group_N: what is left out together.
    levels_NL: the columns of levels.
  """
  e_N, L = np.empty(len(y_N)), levels_NL.shape[1]
  for group in np.unique(group_N):
    out = group_N == group
    # A predictor that only the group left out varies has no slope. About the
    # levels' means of the others it is 0, and then predicts nothing.
    mean_LP = np.linalg.lstsq(levels_NL[~out], design_NP[~out, L:],
                              rcond=None)[0]
    z_NP = design_NP[:, L:] - levels_NL @ mean_LP
    z_NP = np.hstack([levels_NL, np.where(
        np.abs(z_NP[~out]).max(0, initial=0.) > 1e-9, z_NP, 0.)])
    coefficients = np.linalg.lstsq(z_NP[~out], y_N[~out], rcond=1e-10)[0]
    e_N[out] = y_N[out] - z_NP[out] @ coefficients
  return e_N


def _rms(e_N):
  return float(np.sqrt(np.mean(e_N ** 2)))


def partial(z_N: np.ndarray, y_N: np.ndarray, known_NP: np.ndarray,
            w_SN: np.ndarray | None = None) -> float | np.ndarray:
  """Returns a partial correlation, given known columns.

  Args:
    z_N: the predictor.
    y_N: the score.
    known_NP: what both are freed from; a column of ones included.
    w_SN: weights of S resamples; None for the data themselves.

  Returns:
    S correlations, or one number where there are no weights; NaN where
    nothing of z or y is left, or no degree of freedom.
  """
  weights = np.ones((1, len(z_N)))
  if w_SN is not None:
    weights = w_SN
  both_N2 = np.stack([z_N, y_N], 1)
  cross = lambda a, b: np.einsum('sn,np,nq->spq', weights, a, b,
                                 optimize=True)
  # Weighted moments of all resamples at once, then what a regression on the
  # known columns leaves (a Schur complement).
  gram, side, own = (cross(known_NP, known_NP), cross(known_NP, both_N2),
                     cross(both_N2, both_N2))
  inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
  left = own - np.swapaxes(side, 1, 2) @ inverse @ side
  size = np.diagonal(left, axis1=1, axis2=2)
  whole = np.diagonal(own, axis1=1, axis2=2)
  # With as many rows as known columns and one more it is 1 or -1 by algebra.
  rows_S = (weights > 0).sum(1)
  with np.errstate(all='ignore'):
    correlation_S = np.where(
        (size > 1e-9 * whole).all(1) & (rows_S > known_NP.shape[1] + 1),
        left[:, 0, 1] / np.sqrt(size[:, 0] * size[:, 1]), np.nan)
  if w_SN is None:
    return float(correlation_S[0])
  return correlation_S


class _Folds:
  """Leave-group-out errors and paired bootstrap over the same groups."""

  def __init__(self, y_N, labels, confidence, draws, seed, levels):
    self.y_N = y_N
    self.group_N = pd.factorize(labels)[0]
    self.groups = int(self.group_N.max()) + 1
    rng = np.random.default_rng(seed)
    # One set of resamples for all predictors, which makes differences paired.
    self.times_SG = rng.multinomial(
        self.groups, np.full(self.groups, 1 / self.groups), draws)
    self.tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    self.size_G = np.bincount(self.group_N, minlength=self.groups)
    self.levels_NL = _levels(levels, self.group_N)

  def errors(self, design_NP: np.ndarray) -> np.ndarray:
    return _loo(design_NP, self.y_N, self.group_N, self.levels_NL)

  def worse(self, e_N: np.ndarray, reference_N: np.ndarray
            ) -> tuple[float, float, float]:
    """Returns mean squared error less the reference's: value, low, high."""
    # Squared errors by group: a resample of groups is then a product.
    gap_G = np.bincount(self.group_N, e_N ** 2 - reference_N ** 2,
                        self.groups)
    each_S = self.times_SG @ gap_G / np.maximum(
        self.times_SG @ self.size_G, 1)
    return gap_G.sum() / len(self.y_N), *np.quantile(each_S, self.tails)

  def partial(self, z_N: np.ndarray, known_NP: np.ndarray
              ) -> tuple[float, float, float]:
    """Returns a partial correlation, given known columns."""
    value = float(partial(z_N, self.y_N, known_NP))
    each_S: Any = partial(
        z_N, self.y_N, known_NP, self.times_SG[:, self.group_N] * 1.)
    each_S = each_S[np.isfinite(each_S)]
    # If half of the resamples leave nothing to correlate, an interval of the
    # other half would be one of chosen samples.
    if not math.isfinite(value) or len(each_S) < len(self.times_SG) / 2:
      return value, math.nan, math.nan
    return value, *np.quantile(each_S, self.tails)


def compare_predictors(
    data: Any, predictors: Sequence[str], score: str = 'score',
    known: Sequence[str] = ('params', 'width'), groups: Any = None,
    subject: str = 'rank', confidence: float = .95, draws: int = 1000,
    seed: int = 0, levels: Any = None) -> pd.DataFrame:
  """Compares RankMe with predictors that are cheaper to know.

  Every predictor gets the same treatment on the same folds: a line in its
  logarithm (plain where not positive), alone and on top of `known`, each
  group left out in turn.

  Args:
    data: columns by name.
    predictors: names of columns.
    score: what is predicted.
    known: columns that are known beforehand: size and width.
    groups: what is left out together: the configuration, not the seed.
    subject: the predictor with which all are compared.
    confidence: of the bootstrap intervals over groups.
    draws: resamples.
    seed: of the bootstrap.
    levels: a label for every row, such as its width: the rows of each label
      have a mean of their own, so that a predictor must tell them apart within
      a label. None for one mean. Of each label at least two groups.

  Returns:
    A DataFrame with a row per predictor, the best alone first, and rows
    '(mean)' and '(known alone)': predictor, loo (root mean square error
    alone), loo_known (with `known`), spearman, partial (correlation with the
    score given `known`), partial_low, partial_high, worse, worse_low,
    worse_high (mean squared error less the subject's, paired over groups:
    above 0, the subject is better). NaN where the rows do not allow it.

  Raises:
    ValueError: a missing or constant column, fewer than LEAST_GROUPS groups,
      or a label of a single group.
  """
  y_N = table.column(data, score)
  if groups is None:
    groups = np.arange(len(y_N))
  elif isinstance(groups, str):
    groups = table.raw(data, groups)
  folds = _Folds(y_N, np.asarray(groups), confidence, draws, seed, levels)
  if folds.groups < LEAST_GROUPS:
    raise ValueError(f'a comparison of predictors needs at least '
                     f'{LEAST_GROUPS} groups to leave out, found '
                     f'{folds.groups}')
  predictors = list(dict.fromkeys([subject, *predictors]))
  for name in predictors:
    if np.ptp(table.column(data, name)) == 0:
      raise ValueError(f'column {name!r} is constant: it predicts nothing')
  # A sweep of one size has nothing to hold constant there.
  known = [name for name in known if np.ptp(table.column(data, name)) > 0]
  ones_NL = folds.levels_NL
  reference_N = folds.errors(_design(data, [subject], ones_NL))
  L = ones_NL.shape[1]
  rows = []
  for name in predictors:
    z_NP = _design(data, [name], ones_NL)
    e_N = folds.errors(z_NP)
    # Known columns other than itself: width given width would be nothing.
    others = [column for column in known if column != name]
    known_NP = _design(data, others, ones_NL)
    both_N = folds.errors(np.hstack([known_NP, z_NP[:, L:]]))
    rows.append((name, _rms(e_N), _rms(both_N),
                 ranking.spearman(z_NP[:, L], y_N),
                 *folds.partial(z_NP[:, L], known_NP),
                 *folds.worse(e_N, reference_N)))
  # What the known columns alone achieve: the mark for all others.
  base_NP = _design(data, known, ones_NL)
  for name, design_NP in (('(mean)', ones_NL), ('(known alone)', base_NP)):
    e_N = folds.errors(design_NP)
    rows.append((name, _rms(e_N), *[math.nan] * 5,
                 *folds.worse(e_N, reference_N)))
  result = pd.DataFrame(rows, columns=[
      'predictor', 'loo', 'loo_known', 'spearman', 'partial', 'partial_low',
      'partial_high', 'worse', 'worse_low', 'worse_high'])
  return result.sort_values('loo', ignore_index=True)


def rivals(data: Any, predictors: Sequence[str], score: str = 'score',
           given: Sequence[str] = ('params', 'width'), groups: Any = None,
           subject: str = 'rank', confidence: float = .95, draws: int = 1000,
           seed: int = 0, levels: Any = None) -> pd.DataFrame:
  """Returns `compare_predictors`, under its former names."""
  table = compare_predictors(data, predictors, score, given, groups, subject,
                             confidence, draws, seed, levels)
  table['predictor'] = table['predictor'].replace(
      '(known alone)', '(given alone)')
  return table.rename(columns={'loo_known': 'loo_given'})
