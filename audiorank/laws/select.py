"""Which law: errors on data that were not fitted.

In-sample r2 never chooses. Within one loss AICc ranks the forms; across
everything it is the error on configurations left out and on the largest
runs, held out together.

Shapes: N rows, F folds, S solves.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import pandas as pd

from audiorank.laws import diagnostics
from audiorank.laws import forms
from audiorank.laws import problem as problem_lib
from audiorank.laws import solvers
from audiorank.laws import table
from audiorank.laws.fit import Data
from audiorank.laws.fit import Fit
from audiorank.laws.fit import fit as fit_law


def aicc(fit: Fit) -> float:
  """Returns Akaike's criterion, corrected for few points.

  Comparable between forms fitted to the same data under the same loss. The
  likelihood is Gaussian for squares and Laplace for absolute deviations;
  Huber's lies between, by the power of the scale at which its loss grows.
  The scale counts as a parameter. Infinite where there are too few points.
  """
  n, k = fit.n, fit.size + 1
  # The denominator of the correction: with fewer points it changes sign.
  if n - k - 1 <= 0:
    return math.inf
  r_N, loss = np.abs(fit.residuals), fit.problem.loss
  mean = fit.problem.w_N.mean()
  size = max(fit.objective / mean, 1e-300) / n
  # The exponent at which the loss grows with the scale.
  power = {'ls': 1., 'lad': 2.}.get(loss.kind)
  if power is None:
    power = 2. - np.average(r_N <= fit.problem.delta,
                            weights=fit.problem.w_N)
  return power * n * math.log(size) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def leave_one_out(fit: Fit) -> np.ndarray:
  """Returns errors with each group predicted by the other groups.

  Returns:
    Errors of shape (N,), observed minus predicted; NaN for rows of no
    weight.
  """
  live = np.unique(fit.group_N[fit.problem.w_N > 0])
  # One fold per group; each row is left out exactly once, so the sum over folds
  # below picks its own error.
  out_FN = fit.group_N[None] == live[:, None]
  r_FN = residuals_without(fit, out_FN)
  return np.where(out_FN.any(0) & (fit.problem.w_N > 0),
                  np.where(out_FN, r_FN, 0.).sum(0), np.nan)


def residuals_without(fit: Fit, out_FN: np.ndarray) -> np.ndarray:
  """Residuals r_FN at all rows of the law fitted without some of them.

  Args:
    fit: a Fit.
    out_FN: which rows each fold leaves out.
  """
  # Weight 0 leaves rows out without a change of shape, so that all folds are
  # one batch.
  w_SN = np.where(out_FN, 0., fit.problem.w_N)
  optima = solvers.refit(fit.problem, fit.best, w_SN)
  f_SN = problem_lib.values(fit.problem, optima.c_SQ, optima.theta_SP)
  link = fit.problem.loss.link
  with np.errstate(all='ignore'):
    return (problem_lib.link(np, link, fit.problem.y_N) -
            problem_lib.link(np, link, f_SN))


def largest(data: Data, by: str, fraction: float = .2) -> np.ndarray:
  """Returns the rows to hold out: the largest values of a column.

  Args:
    data: columns by name.
    by: the column, for instance the compute.
    fraction: of the rows, at most, rounded to whole values of the column;
      at least the single largest value.

  Returns:
    N booleans.
  """
  col = table.column(data, by)
  # Ascending, so the first that is small enough holds out the most.
  # The smallest value that leaves at most the fraction above it.
  for value in np.unique(col):
    out = col >= value
    if out.mean() <= fraction:
      return out
  return col == col.max()


def held_out(form: str | forms.Form, data: Data, out: np.ndarray,
             loss: str = 'ls', groups: Any = None,
             x: str | Sequence[str] | None = None, y: str | None = None,
             delta: float = 1e-3, weights: Any = None) -> float:
  """Returns the root mean square error on rows left out of the fit.

  Args:
    form: a name or a Form.
    data: columns by name.
    out: N booleans, see `largest`.
    loss, groups, x, y, delta: see `fit.fit`.
    weights: see `fit.fit`; they weigh the error too.

  Returns:
    The error on the scale of the loss.

  Raises:
    ValueError: as `fit.fit`, of the rows that are left.
  """
  w_N = table.weights(data, weights, len(out))
  rest = fit_law(form, data, loss, groups, np.where(out, 0., w_N), x, y,
                     delta)
  return _rms(rest.residuals[out], w_N[out])


def _rms(e_N, w_N):
  """Root mean square; inf where an error of any weight is not finite."""
  used_N = w_N > 0
  size = float(np.sqrt(np.average(e_N[used_N] ** 2, weights=w_N[used_N])))
  if math.isfinite(size):
    return size
  return math.inf


def compare(names: Sequence[str | forms.Form], data: Data,
            loss: str = 'ls', groups: Any = None,
            x: str | Sequence[str] | None = None, y: str | None = None,
            by: str | None = None, fraction: float = .2, delta: float = 1e-3,
            weights: Any = None) -> pd.DataFrame:
  """Compares several laws, the best on left-out groups first.

  Args:
    names: names of forms, or Forms, of the same inputs.
    data: columns by name.
    loss: see `fit.fit`; the same for all.
    groups: what is left out together, see `fit.fit`.
    x, y, delta: see `fit.fit`.
    by: the column whose largest values are held out; None to skip that.
    fraction: see `largest`.
    weights: see `fit.fit`; they weigh the errors too.

  Returns:
    A DataFrame with a row per law: law, formula, parameters, aicc (less
    that of the best), loo (root mean square error of groups left out),
    held_out, sd, at_bound, problem (why a law could not be fitted, or that
    its search has not converged).

  Raises:
    ValueError: no law could be fitted.
  """
  rows = []
  out = None
  if by is not None:
    out = largest(data, by, fraction)
  for name in names:
    form = forms.get(name)
    row = {'law': form.name, 'formula': form.formula,
           'parameters': len(form.names), 'aicc': np.nan, 'loo': np.nan,
           'held_out': np.nan, 'sd': np.nan, 'at_bound': '', 'problem': ''}
    try:
      one = fit_law(form, data, loss, groups, weights, x, y, delta)
      row.update(aicc=aicc(one), sd=one.sd,
                 loo=_rms(leave_one_out(one), one.problem.w_N),
                 # A parameter at its bound means that the form wants to be
                 # another one.
                 at_bound=', '.join(diagnostics.at_bound(one)))
      if not one.converged:
        row['problem'] = 'the search has not converged'
      if out is not None:
        row['held_out'] = held_out(form, data, out, loss, groups, x, y, delta,
                                   weights)
    # A law that cannot be fitted stays in the table with its reason.
    except ValueError as error:
      row['problem'] = str(error)
    rows.append(row)
  result = pd.DataFrame(rows)
  # All NaN: sorting would pretend that there is a best law.
  if result['loo'].isna().all():
    raise ValueError(f'no law could be fitted: {rows[0]["problem"]}')
  # Only differences of AICc mean something.
  result['aicc'] -= result['aicc'].min()
  return result.sort_values('loo', ignore_index=True)
