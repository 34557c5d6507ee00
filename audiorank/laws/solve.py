"""A law, its data and its loss, for S sets of parameters at once.

Shape suffixes: N points, S solves (starts or resamples), P shape parameters,
Q linear coefficients.
"""

from typing import NamedTuple

import numpy as np

from audiorank.laws import forms


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
  cols: list        # N values each, divided by their geometric mean
  centre: list      # the geometric means
  y_N: np.ndarray
  w_N: np.ndarray

  @property
  def positive(self):
    return np.array([kind == 'positive' for kind in
                     self.form.linear.values()], bool)


def link(xp, name, y):
  """y on the scale on which residuals are taken."""
  if name == 'log':
    return xp.log(y)
  if name == 'logit':
    return xp.log(y) - xp.log1p(-y)
  return y


def unlink(name, v):
  """The inverse of `link`."""
  if name == 'log':
    return np.exp(v)
  if name == 'logit':
    return 1 / (1 + np.exp(-v))
  return v


def rho(kind, r, delta):
  """The loss of residuals r: r^2, Huber's (r^2 / 2 inside delta), or |r|."""
  if kind == 'ls':
    return r ** 2
  size = np.abs(r)
  if kind == 'lad':
    return size
  return np.where(size <= delta, r ** 2 / 2, delta * (size - delta / 2))


def basis(form, t, cols):
  """The terms phi_SNQ, for shape parameters t of shape (S,) by name."""
  t = {name: value[:, None] for name, value in t.items()}
  with np.errstate(all='ignore'):
    terms = form.basis(np, t, *(col[None] for col in cols))
  size = (max([1, *(len(value) for value in t.values())]), len(cols[0]))
  return np.stack([np.broadcast_to(term, size) for term in terms], -1)


def combine(c_SQ, phi_SNQ):
  """The law from its coefficients and terms: the one term where no c."""
  if not c_SQ.shape[1]:
    return phi_SNQ[..., 0]
  return np.einsum('snq,sq->sn', phi_SNQ, c_SQ)


def named(form, t_SP):
  """Shape parameters by name from the columns of an array."""
  return dict(zip(form.shape, t_SP.T))


def values(problem, c_SQ, t_SP):
  """The law at the points of the problem, f_SN."""
  phi_SNQ = basis(problem.form, named(problem.form, t_SP), problem.cols)
  return combine(c_SQ, phi_SNQ)


def objective(problem, f_SN, w_SN):
  """sum_n w rho(link y - link f) for each of S predictions."""
  with np.errstate(all='ignore'):
    r_SN = (link(np, problem.loss.link, problem.y_N)[None] -
            link(np, problem.loss.link, f_SN))
    # A point of no weight may be anything; a law outside the link's domain
    # anywhere else is infinitely bad.
    each_SN = np.where(w_SN > 0, w_SN * rho(problem.loss.kind, r_SN,
                                            problem.delta), 0.)
    total_S = each_SN.sum(1)
  return np.where(np.isfinite(total_S), total_S, np.inf)
