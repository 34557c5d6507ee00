"""A fitted law: its optimum, and everything that can be asked of it.

Shapes: N points, S resamples, M points of a prediction, P packed parameters,
Q linear coefficients, X input columns.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import overload

import numpy as np
import pandas as pd

from audiorank.laws import diagnostics as diagnostics_lib
from audiorank.laws import forms
from audiorank.laws import intervals
from audiorank.laws import problem as problem_lib
from audiorank.laws import solvers
from audiorank.laws import table

Data = Mapping[str, Any] | Any  # Columns by name; a DataFrame.


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
    data: the columns used, as passed.
    group_N: group number of each row, counting from 0.
    repeats: rows that are equal to an earlier one and, for want of groups,
      count with it as one.
    problem: the scaled problem behind it.
    best: its optimum.
    starts: how many starts were polished.
    agreeing: the fraction of them that ended in the optimum.
  """
  params: dict[str, float]
  objective: float
  form: forms.Form
  x: tuple[str, ...]
  y: str
  data: dict[str, Any]
  group_N: np.ndarray
  repeats: int
  problem: problem_lib.Problem
  best: solvers.Optimum
  starts: int
  agreeing: float

  @property
  def n(self) -> int:
    """Rows of positive weight."""
    return int((self.problem.w_N > 0).sum())

  @property
  def size(self) -> int:
    """Number of parameters."""
    return len(self.form.names)

  @property
  def units(self) -> int:
    """Independent units: groups with any weight."""
    return len(np.unique(self.group_N[self.problem.w_N > 0]))

  @property
  def converged(self) -> bool:
    """Whether the objective is within 1e-9, relative, of a minimum."""
    return bool(self.best.converged_S[0])

  @functools.cached_property
  def fitted(self) -> np.ndarray:
    """The law at the data, of shape (N,)."""
    # Values have an axis of resamples; the fit itself is its only one.
    return problem_lib.values(self.problem, self.best.c_SQ,
                              self.best.theta_SP)[0]

  @functools.cached_property
  def residuals(self) -> np.ndarray:
    """Residuals on the scale of the loss (log, logit or plain), (N,)."""
    name = self.problem.loss.link
    return (problem_lib.link(np, name, self.problem.y_N) -
            problem_lib.link(np, name, self.fitted))

  @functools.cached_property
  def sd(self) -> float:
    """Residual standard deviation there, for the degrees of freedom left."""
    # Weights of mean 1: the deviation then does not depend on their scale.
    w_N = self.problem.w_N / self.problem.w_N.mean()
    free = max(self.n - self.size, 1)
    return float(np.sqrt(np.sum(w_N * self.residuals ** 2) / free))

  @functools.cached_property
  def normalized(self) -> 'Fit':
    """The same fit with a y of range 1: what intervals are searched on."""
    problem = problem_lib.normalized(self.problem)
    best = self.best._replace(
        # The law is linear in its coefficients, so dividing y by its unit
        # divides these alone; nonlinear parameters stay.
        c_SQ=self.best.c_SQ / problem_lib.unit(self.problem))
    value = float(problem_lib.objective(
        problem, problem_lib.values(problem, best.c_SQ, best.theta_SP),
        problem.w_N[None])[0])
    params = {name: float(v[0])
              for name, v in solvers.params(problem, best).items()}
    return dataclasses.replace(self, params=params, objective=value,
                               problem=problem, best=best)

  def ci(self, name: str, method: str = 'profile', confidence: float = .95,
         draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Returns an interval of one parameter, (low, high); inf if unbounded.

    Args:
      name: a key of `params`.
      method: 'profile' (likelihood, by root finding), 'bootstrap'
        (percentiles of a cluster bootstrap) or 'wald' (cluster-robust).
      confidence: its nominal coverage.
      draws: resamples of the bootstrap.
      seed: of the bootstrap.

    Returns:
      (low, high); low may be -inf, high may be inf. Bootstrap and
      cluster-robust intervals need more groups than parameters and are
      unbounded otherwise.

    Raises:
      ValueError: no such parameter or method, or no profile for it.
    """
    if name not in self.params:
      raise ValueError(f'{self.form.name} has no parameter {name!r}: one of '
                       f'{", ".join(self.params)}')
    return intervals.interval(self, name, method, confidence, draws, seed)

  def draws(self, count: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns cluster-bootstrap resamples, one row of parameters each.

    Raises:
      ValueError: no more groups than parameters.
    """
    resamples = intervals.resample(self, count, seed)
    return pd.DataFrame(solvers.params(self.problem, resamples))

  @overload
  def predict(self, x: Any, band: None = None) -> np.ndarray: ...

  @overload
  def predict(self, x: Any, band: Literal['mean', 'new'],
              confidence: float = .95, draws: int = 1000,
              seed: int = 0) -> Band: ...

  def predict(self, x: Any, band: str | None = None, confidence: float = .95,
              draws: int = 1000, seed: int = 0) -> np.ndarray | Band:
    """Returns the law's values at other points.

    Args:
      x: columns by name, or one array for a law of one input.
      band: None; 'mean' for the interval of the law; 'new' for that of a
        further run.
      confidence: nominal coverage of the band.
      draws: bootstrap resamples behind the band.
      seed: of the bootstrap.

    Returns:
      y of shape (M,), or a `Band` of three such arrays where a band is asked
      for: NaN where there are no more groups than parameters.

    Raises:
      ValueError: a missing column or a value that is not positive.
    """
    # The fit was made in columns divided by their geometric mean.
    cols = self.columns(x)
    scaled = [col / c for col, c in zip(cols, self.problem.centre)]
    there = self.problem._replace(cols=scaled)
    y_M = problem_lib.values(there, self.best.c_SQ, self.best.theta_SP)[0]
    if band is None:
      return y_M
    if band not in ('mean', 'new'):
      raise ValueError(f"band is {band!r}: expected None, 'mean' or 'new'")
    return Band(y_M, *intervals.band(self, there, band, confidence, draws,
                                     seed))

  def columns(self, x: Any) -> list[np.ndarray]:
    """Returns the inputs as checked float arrays, in the form's order."""
    # A Series has keys too (its index), but it is one column.
    if isinstance(x, pd.Series) or not hasattr(x, 'keys'):
      if len(self.x) > 1:
        raise ValueError(f'{self.form.name} needs the columns '
                         f'{", ".join(self.x)} by name')
      x = {self.x[0]: x}
    return [table.positive(name, table.column(x, name)) for name in self.x]

  def distance(self, x: Any) -> np.ndarray:
    """How far each point lies outside the data, in decades: (M,), 0 inside."""
    far = np.zeros(1)
    for name, col in zip(self.x, self.columns(x)):
      inside, at = np.log10(np.asarray(self.data[name], float)), np.log10(col)
      # Positive on either side of the data, negative within.
      far = np.maximum(far, np.maximum(inside.min() - at, at - inside.max()))
    return np.maximum(far, 0.)

  @functools.cached_property
  def diagnostics(self) -> dict[str, Any]:
    """Returns what to know before believing the fit, as a dictionary.

    n, groups, parameters, repeats (rows equal to another); rms (of the
    residuals, on the scale of the loss), sd, delta_over_sd (Huber); r2
    (in-sample, on the scale of the loss); gradient, converged, starts,
    starts_agreeing, condition (of the scaled normal matrix); at_bound
    (names); identifiable (name -> bool: a finite interval on both sides, by
    profile at 95 %); span (decades of each input).
    """
    return diagnostics_lib.diagnose(self)

  def report(self) -> str:
    """Returns the fit as text: formula, parameters, intervals, warnings."""
    return diagnostics_lib.report(self)


def _columns(form, data, x, y, link):
  """Returns the input columns and the output, checked."""
  for name in (*x, y):
    if (*x, y).count(name) > 1:
      raise ValueError(f'column {name!r} is used twice')
  cols = [table.positive(name, table.column(data, name)) for name in x]
  y_N = table.column(data, y)
  for name, col in zip(x, cols):
    if len(col) != len(y_N):
      raise ValueError(f'column {name!r} has {len(col)} rows, {y!r} has '
                       f'{len(y_N)}')
  table.in_domain(y, y_N, link)
  return cols, y_N


def _groups(data, groups, cols, y_N):
  """Returns each row's group, and how many rows repeat an earlier one.

  Without groups every row is one, but rows that are equal in every column of
  the law are one row written twice, and no new evidence.
  """
  if groups is None:
    rows = np.stack([*cols, y_N], 1)
    _, first, group_N = np.unique(rows, axis=0, return_index=True,
                                  return_inverse=True)
    # Numbered in the order of the table.
    # The argsort of an argsort is the rank.
    rank = np.argsort(np.argsort(first))
    # NumPy 2.0 returns this inverse as a column.
    return rank[group_N.reshape(-1)], len(y_N) - len(first)
  # A name of a column, or the labels themselves.
  if isinstance(groups, str):
    groups = table.raw(data, groups)
  label_N = np.asarray(groups)
  if len(label_N) != len(y_N):
    raise ValueError(f'groups: {len(label_N)} labels for {len(y_N)} rows')
  missing_N = pd.isna(label_N)
  if missing_N.any():
    raise ValueError(f'groups: row {int(missing_N.argmax())} has no label '
                     f'({int(missing_N.sum())} in all): expected one a row')
  # Labels become numbers in the order in which they first occur.
  return pd.factorize(label_N)[0], 0


def _check_points(form, x, y, cols, y_N, used_N):
  """Raises ValueError for a constant column or too few different points."""
  for name, col in zip((*x, y), (*cols, y_N)):
    # A constant column cannot tell its exponent from its amplitude.
    if used_N.sum() > 1 and np.ptp(col[used_N]) == 0:
      raise ValueError(f'column {name!r} is constant ({col[used_N][0]:g}): '
                       'nothing to fit')
  size = len(form.names)
  # Rows at the same inputs measure noise, they do not tell parameters apart.
  points = np.unique(np.stack([col[used_N] for col in cols]), axis=1)
  # As many points as parameters leave nothing to measure the noise by.
  if points.shape[1] <= size:
    raise ValueError(f'{form.name} has {size} parameters and needs at least '
                     f'{size + 1} different points, found {points.shape[1]}')


def fit(form: str | forms.Form, data: Data, loss: str = 'ls',
        groups: str | Sequence[Any] | np.ndarray | None = None,
        weights: str | Sequence[float] | np.ndarray | None = None,
        x: str | Sequence[str] | None = None, y: str | None = None,
        delta: float = 1e-3) -> Fit:
  """Returns the law of a form that fits the data best.

  Columns are scaled by their geometric mean, linear coefficients are solved
  in closed form (variable projection), and what is left is a one-dimensional
  search or a damped Newton from the best sixteen points of a grid. A search
  that does not reach a minimum says so: `Fit.converged`.

  Args:
    form: a name in `forms.FORMS`, or a Form.
    data: named columns: a dictionary or a DataFrame.
    loss: 'ls', 'huber', 'lad' on y; 'log_ls', 'log_huber', 'log_lad' on its
      logarithm; 'logit_ls' on its logit. Huber losses are summed.
    groups: what is independent: the name of a column or one label per row.
      Rows of one group are resampled and left out together. Without groups
      only rows that are equal form one.
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
  if loss not in problem_lib.LOSSES:
    raise ValueError(f'no loss named {loss!r}: one of '
                     f'{", ".join(problem_lib.LOSSES)}')
  if x is None:
    x = form.x
  if isinstance(x, str):
    x = [x]
  x = tuple(x)
  if y is None:
    y = form.y
  if len(x) != len(form.x):
    raise ValueError(f'{form.name} takes {len(form.x)} input column(s) '
                     f'({", ".join(form.x)}), got {len(x)}')
  cols, y_N = _columns(form, data, x, y, problem_lib.LOSSES[loss].link)
  w_N = table.weights(data, weights, len(y_N))
  group_N, repeats = _groups(data, groups, cols, y_N)
  _check_points(form, x, y, cols, y_N, w_N > 0)
  # Columns of geometric mean 1: powers stay of order one, and amplitudes are
  # the values of their terms at the centre of the data.
  centre = [float(np.exp(np.average(np.log(col), weights=w_N)))
            for col in cols]
  problem = problem_lib.Problem(
      form, problem_lib.LOSSES[loss], float(delta),
      [col / c for col, c in zip(cols, centre)], centre, y_N, w_N)
  # Starts, search and units are the business of `solvers`; what is left here is
  # to name the result.
  best, agreeing, starts = solvers.solve(problem)
  if not math.isfinite(best.value_S[0]):
    raise ValueError(f'{form.name} finds no admissible fit to {y!r}')
  params = {name: float(value[0])
            for name, value in solvers.params(problem, best).items()}
  return Fit(params, float(best.value_S[0]), form, x, y,
             {name: table.raw(data, name) for name in (*x, y)}, group_N,
             repeats, problem, best, starts, agreeing)
