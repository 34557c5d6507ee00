"""A law, its data and its loss, for S sets of parameters at once.

Shapes: N points, S solves (starts or resamples), P nonlinear parameters,
Q linear coefficients.
"""

from types import ModuleType
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.laws import forms

Array = Any  # numpy or jax, according to the module that a function is given.


class Loss(NamedTuple):
  """What is minimised: `kind` of rho, on the scale of `link`."""
  link: str
  kind: str


LOSSES = {
    'ls': Loss('identity', 'ls'), 'huber': Loss('identity', 'huber'),
    'lad': Loss('identity', 'lad'), 'log_ls': Loss('log', 'ls'),
    'log_huber': Loss('log', 'huber'), 'log_lad': Loss('log', 'lad'),
    'logit_ls': Loss('logit', 'ls'),
}


class Problem(NamedTuple):
  """A form, its data in scaled columns, and what to minimise."""
  form: forms.Form
  loss: Loss
  delta: float
  cols: list[np.ndarray]  # N values each, divided by their geometric mean.
  centre: list[float]     # The geometric means.
  y_N: np.ndarray
  w_N: np.ndarray

  @property
  def positive(self) -> np.ndarray:
    """Returns which linear coefficients cannot be negative, Q booleans."""
    return np.array([kind == 'positive' for kind in
                     self.form.linear.values()], bool)


def link(xp: ModuleType, name: str, y: Array) -> Array:
  """Returns y on the scale on which residuals are computed."""
  if name == 'log':
    return xp.log(y)
  if name == 'logit':
    # log1p keeps the digits of 1 - y near y = 1.
    return xp.log(y) - xp.log1p(-y)
  return y


def unlink(name: str, v: np.ndarray) -> np.ndarray:
  """Returns the inverse of `link`."""
  if name == 'log':
    return np.exp(v)
  if name == 'logit':
    return 1 / (1 + np.exp(-v))
  return v


def rho(kind: str, r: np.ndarray, delta: float) -> np.ndarray:
  """The loss of residuals r: r^2, Huber's (r^2 / 2 inside delta), or |r|."""
  if kind == 'ls':
    return r ** 2
  size = np.abs(r)
  if kind == 'lad':
    return size
  return np.where(size <= delta, r ** 2 / 2, delta * (size - delta / 2))


def basis(form: forms.Form, theta: dict[str, np.ndarray],
          cols: list[np.ndarray]) -> np.ndarray:
  """Returns the terms phi_SNQ, for nonlinear parameters (S,) by name."""
  # A column per point, a row per solve: [S, 1] against [1, N] below.
  theta = {name: value[:, None] for name, value in theta.items()}
  with np.errstate(all='ignore'):
    terms = form.basis(np, theta, *(col[None] for col in cols))
  # A form without nonlinear parameters has one row, for all solves.
  size = (max([1, *(len(value) for value in theta.values())]), len(cols[0]))
  return np.stack([np.broadcast_to(term, size) for term in terms], -1)


def combine(c_SQ: np.ndarray, phi_SNQ: np.ndarray) -> np.ndarray:
  """The law f_SN of its coefficients and terms; its one term where Q = 0."""
  if not c_SQ.shape[1]:
    return phi_SNQ[..., 0]
  return np.einsum('snq,sq->sn', phi_SNQ, c_SQ)


def by_name(form: forms.Form, theta_SP: np.ndarray) -> dict[str, np.ndarray]:
  """Returns nonlinear parameters by name, from the columns of an array."""
  return dict(zip(form.nonlinear, theta_SP.T))


def values(problem: Problem, c_SQ: np.ndarray,
           theta_SP: np.ndarray) -> np.ndarray:
  """Returns the law at the points of the problem, f_SN."""
  phi_SNQ = basis(problem.form, by_name(problem.form, theta_SP), problem.cols)
  return combine(c_SQ, phi_SNQ)


def objective(problem: Problem, f_SN: np.ndarray,
              w_SN: np.ndarray) -> np.ndarray:
  """Returns sum_n w rho(link y - link f) of each of S predictions."""
  with np.errstate(all='ignore'):
    r_SN = (link(np, problem.loss.link, problem.y_N)[None] -
            link(np, problem.loss.link, f_SN))
    # A point of no weight may be anything; a law outside the link's domain
    # anywhere else is infinitely bad.
    each_SN = np.where(w_SN > 0, w_SN * rho(problem.loss.kind, r_SN,
                                            problem.delta), 0.)
    total_S = each_SN.sum(1)
  return np.where(np.isfinite(total_S), total_S, np.inf)


def unit(problem: Problem) -> float:
  """Returns the range of y if a law's coefficients have its unit, else 1."""
  # logit needs y between 0 and 1, and a form without coefficients has nothing
  # to absorb a unit: both stay as they are.
  if not problem.form.linear or problem.loss.link == 'logit':
    return 1.
  return float(np.ptp(problem.y_N[problem.w_N > 0]))


def normalized(problem: Problem) -> Problem:
  """The same problem with a y of range 1: searches stop at absolute steps."""
  size = unit(problem)
  delta = problem.delta
  # On a logarithm the unit of y is an offset, which no residual sees.
  if problem.loss.link == 'identity':
    delta = delta / size
  return problem._replace(y_N=problem.y_N / size, delta=delta)
