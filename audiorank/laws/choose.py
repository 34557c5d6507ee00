"""Which law: errors on data not fitted.

In-sample r2 never chooses. Within one loss AICc ranks the forms; across
everything it is the error on configurations left out and on the largest
runs, held out together.

Shape suffixes: N rows, F folds.
"""

import math

import numpy as np
import pandas as pd

from audiorank.laws import forms
from audiorank.laws import optimum
from audiorank.laws import report
from audiorank.laws import solve
from audiorank.laws import table
from audiorank.laws.fit import fit as fitting


def aicc(fit):
  """Akaike's criterion, corrected for few points, up to a constant.

  Comparable between forms fitted to the same data under the same loss. The
  likelihood is Gaussian for squares and Laplace for absolute deviations;
  Huber's lies between, by the power of the scale at which its loss grows.
  The scale counts as a parameter.
  """
  n, k = fit.n, fit.size + 1
  if n - k - 1 <= 0:
    return math.inf
  r_N, kind = np.abs(fit.residuals), fit.problem.loss.kind
  w_N = fit.problem.w_N / fit.problem.w_N.mean()
  size = max(fit.objective * w_N[0] / fit.problem.w_N[0]
             if fit.problem.w_N[0] else fit.objective, 1e-300) / n
  power = {'ls': 1., 'lad': 2.}.get(kind)
  if power is None:
    inside = np.average(r_N <= fit.problem.delta, weights=w_N)
    power = 2. - inside
  return power * n * math.log(size) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def leave_one_out(fit):
  """Errors on the scale of the loss, each group predicted by the others.

  Returns:
    Errors of shape (N,), observed minus predicted; NaN for rows of no
    weight.
  """
  live = np.unique(fit.group_N[fit.problem.w_N > 0])
  out_FN = fit.group_N[None] == live[:, None]
  w_SN = np.where(out_FN, 0., fit.problem.w_N)
  found = optimum.again(fit.problem, fit.best, w_SN)
  f_SN = solve.values(fit.problem, found.c_SQ, found.t_SP)
  name = fit.problem.loss.link
  with np.errstate(all='ignore'):
    e_SN = (solve.link(np, name, fit.problem.y_N) -
            solve.link(np, name, f_SN))
  return np.where(out_FN.any(0) & (fit.problem.w_N > 0),
                  np.where(out_FN, e_SN, 0.).sum(0), np.nan)


def largest(data, by, fraction=.2):
  """The rows to hold out: those of the largest values of a column.

  Args:
    data: columns by name.
    by: the column, for instance the compute.
    fraction: of the rows, at most, rounded to whole values of the column;
      at least the single largest value.

  Returns:
    N booleans.
  """
  col = table.column(data, by)
  for value in np.unique(col):
    out = col >= value
    if out.mean() <= fraction:
      return out
  return col == col.max()


def held_out(form, data, out, loss='ls', groups=None, x=None, y=None,
             delta=1e-3, weights=None):
  """Root mean square error on rows held out of the fit.

  Args:
    form: a name or a Form.
    data: columns by name.
    out: N booleans, see `largest`.
    loss: see `fit.fit`.
    groups: see `fit.fit`.
    x: see `fit.fit`.
    y: see `fit.fit`.
    delta: see `fit.fit`.
    weights: see `fit.fit`; they weigh the error too.

  Returns:
    The error on the scale of the loss.
  """
  w_N = table.weights(data, weights, len(out))
  made = fitting(form, data, loss, groups, np.where(out, 0., w_N), x, y, delta)
  return _rms(made.residuals[out], w_N[out])


def _rms(e_N, w_N):
  """Root mean square; inf where an error of any weight is not finite."""
  used = w_N > 0
  size = float(np.sqrt(np.average(e_N[used] ** 2, weights=w_N[used])))
  return size if math.isfinite(size) else math.inf


def compare(names, data, loss='ls', groups=None, x=None, y=None, by=None,
            fraction=.2, delta=1e-3, weights=None):
  """Several laws on the same data, the best on left-out groups first.

  Args:
    names: names of forms, or Forms, of the same inputs.
    data: columns by name.
    loss: see `fit.fit`; the same for all.
    groups: what is left out together, see `fit.fit`.
    x: see `fit.fit`.
    y: see `fit.fit`.
    by: the column whose largest values are held out; None to skip that.
    fraction: see `largest`.
    delta: see `fit.fit`.
    weights: see `fit.fit`; they weigh the errors too.

  Returns:
    A DataFrame with a row per law: law, formula, parameters, aicc (less
    that of the best), loo (root mean square error of groups left out),
    held_out, sd, at_bound, problem (why a law could not be fitted).

  Raises:
    ValueError: no law could be fitted.
  """
  rows = []
  out = None if by is None else largest(data, by, fraction)
  for name in names:
    form = forms.get(name)
    row = {'law': form.name, 'formula': form.formula,
           'parameters': len(form.linear) + len(form.shape),
           'aicc': np.nan, 'loo': np.nan, 'held_out': np.nan, 'sd': np.nan,
           'at_bound': '', 'problem': ''}
    try:
      made = fitting(form, data, loss, groups, weights, x, y, delta)
      row.update(aicc=aicc(made), sd=made.sd,
                 loo=_rms(leave_one_out(made), made.problem.w_N),
                 at_bound=', '.join(report.at_bound(made)))
      if out is not None:
        row['held_out'] = held_out(form, data, out, loss, groups, x, y, delta,
                                   weights)
    except ValueError as e:
      row['problem'] = str(e)
    rows.append(row)
  result = pd.DataFrame(rows)
  if result['loo'].isna().all():
    raise ValueError(f'no law could be fitted: {rows[0]["problem"]}')
  result['aicc'] -= result['aicc'].min()
  return result.sort_values('loo', ignore_index=True)
