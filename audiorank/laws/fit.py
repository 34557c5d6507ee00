"""A fitted law: its optimum, and everything that is asked of it.

Shape suffixes: N points, S resamples, M points of a prediction, P packed
parameters, Q linear coefficients.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.laws import bootstrap
from audiorank.laws import forms
from audiorank.laws import intervals
from audiorank.laws import optimum
from audiorank.laws import report
from audiorank.laws import solve
from audiorank.laws import table


class Band(NamedTuple):
  """A prediction with its interval, each of shape (M,)."""
  y: np.ndarray
  low: np.ndarray
  high: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A law fitted to data.

  Attributes:
    params: the parameters of the formula, in the units of the data.
    objective: the sum minimised, sum_n w_n rho(link y_n - link f(x_n)).
    form: the Form.
    x: names of the input columns.
    y: name of the output column.
    data: the columns used, as given.
    group_N: group number of each row, counting from 0.
    problem: the scaled problem behind it.
    best: its optimum.
    starts: how many starts were polished.
    agreeing: the fraction of them that ended in the optimum.
  """
  params: dict
  objective: float
  form: forms.Form
  x: tuple
  y: str
  data: dict
  group_N: np.ndarray
  problem: solve.Problem
  best: optimum.Optimum
  starts: int
  agreeing: float

  @property
  def n(self):
    """Rows of positive weight."""
    return int((self.problem.w_N > 0).sum())

  @property
  def size(self):
    """Number of parameters."""
    return len(self.form.linear) + len(self.form.shape)

  @property
  def units(self):
    """Independent units: groups with any weight."""
    return len(np.unique(self.group_N[self.problem.w_N > 0]))

  @functools.cached_property
  def fitted(self):
    """The law at the data, of shape (N,)."""
    return solve.values(self.problem, self.best.c_SQ, self.best.t_SP)[0]

  @functools.cached_property
  def residuals(self):
    """Residuals on the scale of the loss (log, logit or plain), (N,)."""
    name = self.problem.loss.link
    return (solve.link(np, name, self.problem.y_N) -
            solve.link(np, name, self.fitted))

  @functools.cached_property
  def sd(self):
    """Residual standard deviation on that scale, degrees of freedom taken."""
    w_N = self.problem.w_N / self.problem.w_N.mean()
    free = max(self.n - self.size, 1)
    return float(np.sqrt(np.sum(w_N * self.residuals ** 2) / free))

  @functools.cached_property
  def small(self):
    """The same fit with y's range one: what intervals are searched on."""
    size = optimum.unit(self.problem)
    problem = optimum.small(self.problem)
    best = self.best._replace(c_SQ=self.best.c_SQ / size)
    value = float(solve.objective(
        problem, solve.values(problem, best.c_SQ, best.t_SP),
        problem.w_N[None])[0])
    params = {name: float(v[0]) for name, v in
              optimum.params(problem, best).items()}
    return dataclasses.replace(self, params=params, objective=value,
                               problem=problem, best=best)

  def ci(self, name, method='profile', confidence=.95, draws=1000, seed=0):
    """An interval for one parameter, (low, high); inf where unbounded.

    Args:
      name: a key of `params`.
      method: 'profile' (likelihood, by root finding), 'bootstrap'
        (percentiles of a cluster bootstrap) or 'wald' (cluster-robust).
      confidence: its nominal coverage.
      draws: resamples of the bootstrap.
      seed: of the bootstrap.

    Returns:
      (low, high); low may be -inf, high may be inf.

    Raises:
      ValueError: no such parameter or method, or no profile for it.
    """
    if name not in self.params:
      raise ValueError(f'{self.form.name} has no parameter {name!r}: one of '
                       f'{", ".join(self.params)}')
    return intervals.interval(self, name, method, confidence, draws, seed)

  def draws(self, count=1000, seed=0):
    """Cluster-bootstrap resamples: a DataFrame of parameters, one row each."""
    found = bootstrap.resample(self, count, seed)
    return pd.DataFrame(optimum.params(self.problem, found))

  def predict(self, x, band=None, confidence=.95, draws=1000, seed=0):
    """The law at other points.

    Args:
      x: columns by name, or one array for a law of one input.
      band: None; 'mean' for the interval of the law; 'new' for that of a
        further run.
      confidence: nominal coverage of the band.
      draws: bootstrap resamples behind the band.
      seed: of the bootstrap.

    Returns:
      y of shape (M,), or a `Band` of three such where a band is asked for.

    Raises:
      ValueError: a missing column or a value that is not positive.
    """
    cols = self.columns(x)
    scaled = [col / c for col, c in zip(cols, self.problem.centre)]
    there = self.problem._replace(cols=scaled)
    y_M = solve.values(there, self.best.c_SQ, self.best.t_SP)[0]
    if band is None:
      return y_M
    if band not in ('mean', 'new'):
      raise ValueError(f"band is {band!r}: expected None, 'mean' or 'new'")
    return Band(y_M, *bootstrap.band(self, there, band, confidence, draws,
                                     seed))

  def columns(self, x):
    """The inputs as checked float arrays, in the order of the form."""
    if isinstance(x, pd.Series) or not hasattr(x, 'keys'):
      if len(self.x) > 1:
        raise ValueError(f'{self.form.name} needs the columns '
                         f'{", ".join(self.x)} by name')
      x = {self.x[0]: x}
    return [table.positive(name, table.column(x, name)) for name in self.x]

  def distance(self, x):
    """How far each point lies outside the data, in decades: (M,), 0 inside."""
    far = 0.
    for name, col in zip(self.x, self.columns(x)):
      seen = np.log10(np.asarray(self.data[name], float))
      at = np.log10(col)
      far = np.maximum(far, np.maximum(seen.min() - at, at - seen.max()))
    return np.maximum(far, 0.)

  @functools.cached_property
  def diagnostics(self):
    """What to know before believing the fit, as a dictionary.

    n, groups, parameters; rms (of the residuals, on the scale of the loss),
    sd, delta_over_sd (Huber); r2 (in-sample, on the scale of the loss);
    gradient, converged, starts, starts_agreeing, condition (of the scaled
    normal matrix); at_bound (names); identifiable (name -> bool: a finite
    interval on both sides, by profile at 95 %); span (decades of each
    input).
    """
    return report.diagnose(self)

  def report(self):
    """The fit in words: formula, parameters with intervals, warnings."""
    return report.words(self)


def fit(form, data, loss='ls', groups=None, weights=None, x=None, y=None,
        delta=1e-3):
  """The law of that form that fits the data best.

  The optimum is exact: columns are scaled by their geometric mean, linear
  coefficients are solved in closed form (variable projection), and what is
  left is a one-dimensional search or a damped Newton from the best sixteen
  points of a grid of shapes.

  Args:
    form: a name in `forms.FORMS`, or a Form.
    data: named columns: a dictionary or a DataFrame.
    loss: 'ls', 'huber', 'lad' on y; 'log_ls', 'log_huber', 'log_lad' on its
      logarithm; 'logit_ls' on its logit. Huber losses are summed.
    groups: what is independent: the name of a column or one label per row.
      Rows of one group are resampled and left out together.
    weights: the name of a column or one weight per row.
    x: names of the input columns, by default those of the form.
    y: name of the output column, by default that of the form.
    delta: where Huber's loss turns linear, on the scale of the loss.

  Returns:
    A Fit.

  Raises:
    ValueError: unknown names, too few points, a constant, non-finite or
      non-positive column.
  """
  form = forms.get(form)
  if loss not in solve.LOSSES:
    raise ValueError(f'no loss named {loss!r}: one of '
                     f'{", ".join(solve.LOSSES)}')
  x = form.x if x is None else (x,) if isinstance(x, str) else tuple(x)
  y = form.y if y is None else y
  if len(x) != len(form.x):
    raise ValueError(f'{form.name} takes {len(form.x)} input column(s) '
                     f'({", ".join(form.x)}), got {len(x)}')
  for name in (*x, y):
    if (*x, y).count(name) > 1:
      raise ValueError(f'column {name!r} is used twice')
  cols = [table.positive(name, table.column(data, name)) for name in x]
  y_N = table.column(data, y)
  N = len(y_N)
  for name, col in zip(x, cols):
    if len(col) != N:
      raise ValueError(f'column {name!r} has {len(col)} rows, {y!r} has {N}')
  table.in_domain(y, y_N, solve.LOSSES[loss].link)
  w_N = table.weights(data, weights, N)
  label_N = np.arange(N) if groups is None else np.asarray(
      table.raw(data, groups) if isinstance(groups, str) else groups)
  if len(label_N) != N:
    raise ValueError(f'groups: {len(label_N)} labels for {N} rows')
  missing_N = pd.isna(label_N)
  if missing_N.any():
    raise ValueError(f'groups: row {int(missing_N.argmax())} has no label '
                     f'({int(missing_N.sum())} in all): expected one a row')
  group_N = pd.factorize(label_N)[0]
  used = w_N > 0
  size = len(form.linear) + len(form.shape)
  for name, col in zip((*x, y), (*cols, y_N)):
    if used.sum() > 1 and np.ptp(col[used]) == 0:
      raise ValueError(f'column {name!r} is constant ({col[used][0]:g}): '
                       'nothing to fit')
  distinct = len(np.unique(np.stack([col[used] for col in cols]), axis=1).T)
  if distinct <= size:
    raise ValueError(f'{form.name} has {size} parameters and needs at least '
                     f'{size + 1} different points, found {distinct}')
  centre = [float(np.exp(np.average(np.log(col), weights=w_N)))
            for col in cols]
  problem = solve.Problem(form, solve.LOSSES[loss], float(delta),
                          [col / c for col, c in zip(cols, centre)], centre,
                          y_N, w_N)
  best, agreeing, starts = optimum.first(problem)
  if not math.isfinite(best.value_S[0]):
    raise ValueError(f'{form.name} finds no admissible fit to {y!r}')
  params = {name: float(value[0]) for name, value in
            optimum.params(problem, best).items()}
  return Fit(params, float(best.value_S[0]),
             form, x, y, {name: table.raw(data, name) for name in (*x, y)},
             group_N, problem, best, starts, agreeing)
