"""Which solver finds the optimum: for first fits, resamples and profiles.

Least squares on y with at most one nonlinear parameter is solved by variable
projection alone; everything else starts there and is polished by Newton.

Shapes: N points, S solves, P nonlinear (or packed) parameters, Q linear
coefficients.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.laws import forms
from audiorank.laws import newton
from audiorank.laws import problem as problem_lib
from audiorank.laws import varpro

Fixed = tuple[str, Any] | None  # A reported parameter and its values v_S.


class Optimum(NamedTuple):
  """Optima of S problems: coefficients, parameters, objectives, and how well.

  Attributes:
    c_SQ, theta_SP: linear coefficients and nonlinear parameters.
    value_S: the objectives.
    slope_S: the largest slope of a parameter inside its bounds.
    converged_S: whether no step promises more than newton.ACCURACY of the
      objective.
  """
  c_SQ: np.ndarray
  theta_SP: np.ndarray
  value_S: np.ndarray
  slope_S: np.ndarray
  converged_S: np.ndarray


def projected(problem: problem_lib.Problem) -> bool:
  """Returns whether variable projection alone solves this problem."""
  # Elsewhere squares on y are not what is minimised, or a one-dimensional
  # search is not enough.
  return (problem.loss == problem_lib.LOSSES['ls']
          and len(problem.form.nonlinear) < 2
          and len(problem.form.linear) in (1, 2))


def _project(problem, w_SN, fixed=None):
  c_SQ, theta_SP, sse_S = varpro.project(problem, w_SN, fixed)
  zero_S = np.zeros(len(sse_S))
  return Optimum(c_SQ, theta_SP, sse_S, zero_S, np.isfinite(sse_S))


def _polish(problem, p_SP, w_SN, fixed=None, stages=None):
  if problem.loss.kind == 'lad':
    p_SP, f_S, slope_S, converged_S, _ = newton.absolute(
        problem, p_SP, w_SN, fixed, stages)
  else:
    p_SP, f_S, slope_S, converged_S, _ = newton.polish(
        problem, p_SP, w_SN, fixed)
  if problem.loss.kind == 'ls':  # Newton works on half the squares.
    f_S, slope_S = 2 * f_S, 2 * slope_S
  c_SQ, theta_SP = newton.unpack(problem.form, p_SP)
  return Optimum(c_SQ, theta_SP, f_S, slope_S, converged_S)


def _in_units(problem, optimum):
  """An optimum of the normalized problem in the units of the problem."""
  size, loss = problem_lib.unit(problem), problem.loss
  factor = 1.
  if loss.link == 'identity':
    # Absolute errors scale with y, squared ones with its square.
    factor = size ** 2
    if loss.kind == 'lad':
      factor = size
  return optimum._replace(c_SQ=optimum.c_SQ * size,
                          value_S=optimum.value_S * factor,
                          slope_S=optimum.slope_S * factor)


def solve(problem: problem_lib.Problem) -> tuple[Optimum, float, int]:
  """Returns the optimum, without a known start.

  Returns:
    the Optimum, the fraction of starts that end in it, their number.
  """
  # Absolute tolerances of the searches presuppose a y of range 1.
  normalized = problem_lib.normalized(problem)
  # The projected search is global in its bounds: no starts to compare.
  if projected(problem):
    optimum = _project(normalized, problem.w_N[None])
    return _in_units(problem, optimum), 1., 1
  c_SQ, theta_SP, _ = varpro.candidates(normalized, newton.BLOCK)
  p_SP = newton.pack(problem.form, c_SQ, theta_SP)
  optima = _polish(normalized, p_SP,
                   np.repeat(problem.w_N[None], len(p_SP), 0))
  value = optima.value_S.min()
  # Of starts that end in one valley, one that came to its end.
  ended_S = optima.converged_S & (optima.value_S <= value * (1 + 1e-10))
  best = int(np.argmin(np.where(ended_S, -1., optima.value_S)))
  # How many of the starts agree says how rugged the objective is.
  agree = optima.value_S <= value * (1 + 1e-6) + 1e-18
  one = Optimum(*(part[best:best + 1] for part in optima))
  return _in_units(problem, one), float(agree.mean()), len(p_SP)


def refit(problem: problem_lib.Problem, start: Optimum, w_SN: np.ndarray,
          fixed: Fixed = None) -> Optimum:
  """Returns the optima with other weights, or with a fixed parameter.

  Args:
    problem: the Problem.
    start: an Optimum of one problem, or of as many as there are weights.
    w_SN: the weights of S problems.
    fixed: None, or (name, v_S).
  """
  size = problem_lib.unit(problem)
  # Linear coefficients carry the unit of y; nonlinear ones do not.
  if fixed is not None and fixed[0] in problem.form.linear:
    fixed = fixed[0], np.asarray(fixed[1]) / size
  start = start._replace(c_SQ=start.c_SQ / size)
  optima = _refit(problem_lib.normalized(problem), start, w_SN, fixed)
  return _in_units(problem, optima)


def _refit(problem, start, w_SN, fixed):
  if projected(problem):
    return _project(problem, w_SN, fixed)
  if fixed is not None and _depends(problem, fixed[0]):
    # A Newton search holds fitted numbers. If the reported one depends on
    # others, the problem is solved in the units of the data, where both are the
    # same.
    problem, start = _unscaled(problem, start)
  # A resample's optimum is near: one start is enough.
  p_SP = newton.pack(problem.form, start.c_SQ, start.theta_SP)
  p_SP = np.broadcast_to(p_SP, (len(w_SN), p_SP.shape[1]))
  # Resamples need the kink of |r| only to a hundredth of its noise.
  return _polish(problem, p_SP, w_SN, fixed, stages=(1., .1, .01))


def _depends(problem, name):
  """Whether a reported amplitude is the fitted one times a function of theta.
  """
  form = problem.form
  if form.report is not None or name not in form.linear:
    return False
  # At two values of theta: a factor that depends on it differs from 1 at one.
  for factor in (.9, 1.):
    theta = {key: np.float64(factor * np.clip(1., param.low, param.high))
             for key, param in form.nonlinear.items()}
    ones = tuple(np.ones(len(form.linear)))
    gain = forms.reported(form, np, ones, theta, problem.centre)[name]
    if abs(gain - 1) > 1e-9:
      return True
  return False


def _unscaled(problem, start):
  """The same problem in the units of the data: what is fitted is reported."""
  form = problem.form
  values = params(problem, start)
  raw = problem._replace(
      cols=[col * c for col, c in zip(problem.cols, problem.centre)],
      centre=[1.] * len(problem.cols))
  stack = lambda names: np.stack([values[name] for name in names], 1)
  return raw, start._replace(c_SQ=stack(form.linear),
                             theta_SP=stack(form.nonlinear))


def params(problem: problem_lib.Problem,
           optimum: Optimum) -> dict[str, np.ndarray]:
  """Returns the reported parameters of an Optimum, {name: (S,)}."""
  form = problem.form
  with np.errstate(all='ignore'):
    values = forms.reported(form, np, tuple(optimum.c_SQ.T),
                            problem_lib.by_name(form, optimum.theta_SP),
                            problem.centre)
    if form.derived:
      values = {**values, **form.derived(values)}
  size = optimum.value_S.shape
  return {name: np.broadcast_to(value, size)
          for name, value in values.items()}
