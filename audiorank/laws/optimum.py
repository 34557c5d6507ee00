"""Which road leads to the optimum, for first fits, resamples and profiles.

Least squares on y with at most one shape parameter is solved by variable
projection alone; everything else starts there and is polished by Newton.

Shape suffixes: N points, S solves, P shape parameters (or packed
parameters), Q linear coefficients.
"""

from typing import NamedTuple

import numpy as np

from audiorank.laws import forms
from audiorank.laws import newton
from audiorank.laws import project
from audiorank.laws import solve


class Optimum(NamedTuple):
  """Optima of S problems: coefficients, shapes, objectives, and how well."""
  c_SQ: np.ndarray
  t_SP: np.ndarray
  value_S: np.ndarray
  slope_S: np.ndarray
  converged_S: np.ndarray


def projected(problem):
  """Whether variable projection alone finds the optimum of this problem."""
  return (problem.loss == solve.LOSSES['ls'] and len(problem.form.shape) < 2
          and len(problem.form.linear) in (1, 2))


def _projected(problem, w_SN, pin=None):
  c_SQ, t_SP, sse_S = project.project(problem, w_SN, pin)
  zero_S = np.zeros(len(sse_S))
  return Optimum(c_SQ, t_SP, sse_S, zero_S, np.isfinite(sse_S))


def _polished(problem, p_SP, w_SN, pin=None, stages=None):
  if problem.loss.kind == 'lad':
    p_SP, f_S, slope_S, done_S = newton.absolute(problem, p_SP, w_SN, pin,
                                                 stages)
  else:
    p_SP, f_S, slope_S, done_S = newton.polish(problem, p_SP, w_SN, pin)
  if problem.loss.kind == 'ls':
    f_S, slope_S = 2 * f_S, 2 * slope_S
  c_SQ, t_SP = newton.unpack(problem.form, p_SP)
  return Optimum(c_SQ, t_SP, f_S, slope_S, done_S)


def unit(problem):
  """The range of y where a law's coefficients carry its unit, else 1."""
  if not problem.form.linear or problem.loss.link == 'logit':
    return 1.
  return float(np.ptp(problem.y_N[problem.w_N > 0]))


def small(problem):
  """The same problem with y's range one: searches stop at absolute steps."""
  size = unit(problem)
  plain = problem.loss.link == 'identity'
  return problem._replace(y_N=problem.y_N / size,
                          delta=problem.delta / (size if plain else 1.))


def _large(problem, found):
  """An optimum of `small` in the units of the problem."""
  size, loss = unit(problem), problem.loss
  factor = (1. if loss.link != 'identity' else
            size if loss.kind == 'lad' else size ** 2)
  return found._replace(c_SQ=found.c_SQ * size,
                        value_S=found.value_S * factor,
                        slope_S=found.slope_S * factor)


def first(problem):
  """The optimum from scratch, the fraction of starts that agree, their number.
  """
  found, agreeing, starts = _first(small(problem))
  return _large(problem, found), agreeing, starts


def _first(problem):
  if projected(problem):
    return _projected(problem, problem.w_N[None]), 1., 1
  c_SQ, t_SP, _ = project.candidates(problem, newton.BLOCK)
  p_SP = newton.pack(problem.form, c_SQ, t_SP)
  found = _polished(problem, p_SP, np.repeat(problem.w_N[None], len(p_SP), 0))
  at = int(np.argmin(found.value_S))
  value = found.value_S[at]
  agree = found.value_S <= value * (1 + 1e-6) + 1e-18
  one = Optimum(*(part[at:at + 1] for part in found))
  return one, float(agree.mean()), len(p_SP)


def again(problem, start, w_SN, pin=None):
  """The optima under other weights, or with a parameter held.

  Args:
    problem: the Problem.
    start: an Optimum of one problem, or of as many as there are weights.
    w_SN: the weights of S problems.
    pin: None, or (name, v_S).
  """
  size = unit(problem)
  if pin is not None and pin[0] in problem.form.linear:
    pin = pin[0], np.asarray(pin[1]) / size
  start = start._replace(c_SQ=start.c_SQ / size)
  return _large(problem, _again(small(problem), start, w_SN, pin))


def _again(problem, start, w_SN, pin):
  if projected(problem):
    return _projected(problem, w_SN, pin)
  if pin is not None and _moves(problem, pin[0]):
    problem, start = _unscaled(problem, start)
  p_SP = newton.pack(problem.form, start.c_SQ, start.t_SP)
  p_SP = np.broadcast_to(p_SP, (len(w_SN), p_SP.shape[1]))
  # Resamples need the kink of |r| only to a hundredth of its noise.
  return _polished(problem, p_SP, w_SN, pin, stages=(1., .1, .01))


def _moves(problem, name):
  """Whether a fitted amplitude and the reported one differ by the shapes."""
  form = problem.form
  if form.report is not None or name not in form.linear:
    return False
  for factor in (.9, 1.):
    t = {key: np.float64(factor * np.clip(1., shape.low, shape.high))
         for key, shape in form.shape.items()}
    ones = tuple(np.ones(len(form.linear)))
    gain = forms.reported(form, np, ones, t, problem.centre)[name]
    if abs(gain - 1) > 1e-9:
      return True
  return False


def _unscaled(problem, start):
  """The same problem in the units of the data: what is fitted is reported."""
  form = problem.form
  found = params(problem, start)
  raw = problem._replace(
      cols=[col * c for col, c in zip(problem.cols, problem.centre)],
      centre=[1.] * len(problem.cols))
  stack = lambda names: np.stack([found[name] for name in names], 1)
  return raw, start._replace(c_SQ=stack(form.linear),
                             t_SP=stack(form.shape))


def params(problem, found):
  """The reported parameters of an Optimum: name -> array of shape (S,)."""
  form = problem.form
  with np.errstate(all='ignore'):
    out = forms.reported(form, np, tuple(found.c_SQ.T),
                         solve.named(form, found.t_SP), problem.centre)
    if form.derived:
      out = {**out, **form.derived(out)}
  size = found.value_S.shape
  return {name: np.broadcast_to(value, size) for name, value in out.items()}
