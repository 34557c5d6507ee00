"""The laws that can be fitted, each a few lines.

A form is a sum of linear coefficients times a basis that depends on a few
shape parameters,  y = sum_q c_q phi_q(x; t).  The columns reach the basis
divided by their geometric mean, so powers stay of order one; `report` turns
what was fitted back into the parameters of the formula in the units of the
data. To add a form, declare a `Form` and hand it to `laws.fit`.
"""

from collections.abc import Callable
import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
  """A parameter that enters nonlinearly: its bounds and where to start.

  `start` is a tuple of values, or a function of the (scaled) columns that
  returns one. `log=True` searches in the logarithm. `scale` says how the
  fitted value becomes the reported one: None (as it is), the name of the
  column in whose units it is measured, or a function (t, centre) -> factor.
  """
  low: float
  high: float
  start: tuple | Callable
  log: bool = False
  scale: str | Callable | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
  """A law: y = sum_q c_q phi_q(x; t).

  Attributes:
    name: how `laws.fit` knows it.
    formula: in words of the reported parameters.
    x: default names of the input columns.
    y: default name of the output column.
    linear: coefficient name -> 'free' or 'positive'.
    shape: nonlinear parameter name -> `Shape`.
    basis: (xp, t, *columns) -> tuple of terms; `xp` is numpy or jax.numpy,
      `t` the shape parameters by name, the columns are scaled. With no linear
      parameters the single term is the law itself.
    report: (xp, c, t, centre) -> parameters in the units of the data, linear
      in the tuple `c` for the names of `linear`; None where amplitudes times
      powers make it automatic.
    derived: (params) -> further reported parameters, or None.
  """
  name: str
  formula: str
  x: tuple
  y: str
  linear: dict
  shape: dict
  basis: Callable
  report: Callable | None = None
  derived: Callable | None = None


def reported(form, xp, c, t, centre):
  """The parameters of the formula in the units of the data, by name.

  Args:
    form: a Form.
    xp: numpy or jax.numpy.
    c: the fitted linear coefficients, one per name of `form.linear`.
    t: the fitted shape parameters by name.
    centre: the geometric means of the columns.
  """
  if form.report is not None:
    return form.report(xp, c, t, centre)
  units = dict(zip(form.x, centre))
  raw = {}
  for name, shape in form.shape.items():
    factor = (1. if shape.scale is None else units[shape.scale]
              if isinstance(shape.scale, str) else shape.scale(t, centre))
    raw[name] = t[name] * factor
  # The same function in both units: each term's ratio is a constant.
  ones = [xp.ones_like(value) for value in centre]
  fitted, wanted = form.basis(xp, t, *ones), form.basis(xp, raw, *centre)
  amplitudes = {name: c_q * one / other for name, c_q, one, other in
                zip(form.linear, c, fitted, wanted)}
  return {**amplitudes, **raw}


def power(xp, x, k):
  """x^k for positive x; a compiled `**` costs three times as much."""
  return xp.exp(k * xp.log(x))


def _spread(*quantiles):
  """Starts at these quantiles of the first column."""
  return lambda *columns: tuple(np.quantile(columns[0], quantiles))


def _saturating(xp, t, r):
  # (1 - r^-b) / b, which tends to log r as b tends to 0: the law stays well
  # conditioned all the way to its log-linear limit.
  return xp.ones_like(r), -xp.expm1(-t['b'] * xp.log(r)) / t['b']


def _saturating_report(xp, c, t, centre):
  slope = c[1] / t['b']
  return {'Q_inf': c[0] + slope, 'a': slope * centre[0] ** t['b'],
          'b': t['b']}


def _logistic(xp, t, r):
  return 1 / (1 + xp.exp(-t['h'] * xp.log(r / t['R_0'])))


def _m4(xp, t, x):
  """z in (0, 1) with z / (1 - z)^alpha = beta x^-c, by Newton on its logit."""
  level = xp.log(t['beta']) - t['c'] * xp.log(x)
  softplus = lambda v: xp.logaddexp(v, xp.zeros_like(v))
  logistic = lambda v: xp.exp(-softplus(-v))

  def step(w, level, alpha):
    gap = -softplus(-w) + alpha * softplus(w) - level
    return w - gap / (logistic(-w) + alpha * logistic(w))

  # The slope lies between 1 and alpha and is monotone: eight steps arrive.
  w = xp.where(level < 0, level, level / t['alpha'])
  if xp is np:
    for _ in range(8):
      w = step(w, level, t['alpha'])
  else:
    still = jax.lax.stop_gradient((w, level, t['alpha']))
    w = jax.lax.fori_loop(0, 8, lambda _, w: step(w, *still[1:]), still[0])
  # Of two Newton steps at a root the first two derivatives are the root's.
  for _ in range(2):
    w = step(w, level, t['alpha'])
  z = logistic(w)
  return 1 - z, z


def _broken(xp, t, x):
  bend = xp.logaddexp(xp.log(x / t['d']) / t['f'], xp.zeros_like(x))
  return (xp.ones_like(x),
          xp.exp(-t['c_0'] * xp.log(x) - t['c_1'] * t['f'] * bend))


def _kaplan(xp, t, n, d):
  ratio = t['alpha'] / t['beta']
  return (xp.ones_like(n),
          power(xp, power(xp, n, -ratio) + t['rho'] / d, t['beta']))


def _coupled(xp, t, n, d):
  inner = (power(xp, n, -t['alpha']) +
           t['rho'] * power(xp, d, -t['beta']))
  return xp.ones_like(n), power(xp, inner, t['k'])


def _smooth_min(xp, t, n, d):
  low = xp.logaddexp(-t['k'] * t['g'] * xp.log(n),
                     -t['k'] * (t['d'] * xp.log(d) + xp.log(t['rho'])))
  return (xp.exp(-low / t['k']),)


_EXPONENT = Shape(1e-3, 4., (.05, .1, .2, .3, .4, .5, .6, .7, .85, 1., 1.3,
                             2.))
_FEW = Shape(1e-3, 6., (.1, .2, .35, .6, 1.))
_B = Shape(1e-6, 10., (1e-6, *np.geomspace(1e-3, 10, 96)))

FORMS = {form.name: form for form in (
    # Rank to score.
    Form('saturating', 'Q = Q_inf - a R^-b', ('rank',), 'score',
         {'Q_inf': 'free', 'a': 'positive'}, {'b': _B}, _saturating,
         _saturating_report),
    Form('log_linear', 'Q = c + d ln R', ('rank',), 'score',
         {'c': 'free', 'd': 'free'}, {},
         lambda xp, t, r: (xp.ones_like(r), xp.log(r)),
         lambda xp, c, t, centre: {'c': c[0] - c[1] * xp.log(centre[0]),
                                   'd': c[1]}),
    Form('exponential', 'Q = Q_inf - a exp(-R / R_0)', ('rank',), 'score',
         {'Q_inf': 'free', 'a': 'positive'},
         {'R_0': Shape(1e-2, 1e3, tuple(np.geomspace(1e-2, 1e3, 97)),
                       log=True, scale='rank')},
         lambda xp, t, r: (xp.ones_like(r), -xp.exp(-r / t['R_0']))),
    Form('sigmoid', 'Q = Q_low + (Q_inf - Q_low) / (1 + (R / R_0)^-h)',
         ('rank',), 'score', {'Q_low': 'free', 'Q_inf': 'free'},
         {'h': Shape(1e-2, 30., (.3, .6, 1., 1.5, 2.5, 4., 7.), log=True),
          'R_0': Shape(1e-3, 1e3, _spread(0, .15, .3, .5, .7, .85, 1.),
                       log=True, scale='rank')},
         lambda xp, t, r: (1 - _logistic(xp, t, r), _logistic(xp, t, r))),
    Form('logit_linear', 'logit Q = h ln(R / R_0)', ('rank',), 'score', {},
         {'h': Shape(-30., 30., (-1., .1, .3, .6, 1., 1.5, 2.5, 5.)),
          'R_0': Shape(1e-9, 1e9, (1e-3, .03, .1, .3, 1., 3., 10., 30.),
                       log=True, scale='rank')},
         lambda xp, t, r: (_logistic(xp, t, r),)),
    # One resource to a loss.
    Form('power', 'y = A x^-alpha', ('x',), 'y', {'A': 'positive'},
         {'alpha': Shape(-8., 8., (-2., -1., -.5, -.2, .1, .3, .6, 1., 2.))},
         lambda xp, t, x: (power(xp, x, -t['alpha']),)),
    Form('power_floor', 'y = E + A x^-alpha', ('x',), 'y',
         {'E': 'positive', 'A': 'positive'}, {'alpha': _EXPONENT},
         lambda xp, t, x: (xp.ones_like(x), power(xp, x, -t['alpha']))),
    Form('shifted', 'y = E + A (x + s)^-alpha', ('x',), 'y',
         {'E': 'positive', 'A': 'positive'},
         {'alpha': _EXPONENT,
          's': Shape(1e-9, 1e6, lambda x: tuple(
              np.concatenate([[1e-6], np.geomspace(min(x) / 3, max(x), 8)])),
                     log=True, scale='x')},
         lambda xp, t, x: (xp.ones_like(x),
                          power(xp, x + t['s'], -t['alpha']))),
    Form('m4', '(y - E) / (E_0 - y)^alpha = const x^-c', ('x',), 'y',
         {'E': 'positive', 'E_0': 'positive'},
         {'alpha': Shape(.05, 20., (.3, 1., 2., 4.), log=True),
          'c': Shape(1e-3, 6., (.15, .3, .5, .8, 1.2)),
          'beta': Shape(1e-12, 1e12, (.03, .1, .3, 1., 3., 10., 100.),
                        log=True, scale=lambda t, centre:
                        centre[0] ** t['c'])},
         lambda xp, t, x: _m4(xp, t, x)),
    Form('broken', 'y = E + A x^-c_0 (1 + (x / d)^(1 / f))^(-c_1 f)', ('x',),
         'y', {'E': 'positive', 'A': 'positive'},
         {'c_0': Shape(-1., 4., (0., .1, .25, .5)),
          'c_1': Shape(-3., 6., (-.2, .1, .3, .6, 1.)),
          'd': Shape(1e-6, 1e6, _spread(.1, .3, .5, .7, .9), log=True,
                     scale='x'),
          'f': Shape(.02, 8., (.1, .4, 1.2), log=True)}, _broken),
    # Two resources.
    Form('separable', 'y = E + A N^-alpha + B D^-beta', ('N', 'D'), 'loss',
         {'E': 'positive', 'A': 'positive', 'B': 'positive'},
         {'alpha': _EXPONENT, 'beta': _EXPONENT},
         lambda xp, t, n, d: (xp.ones_like(n), power(xp, n, -t['alpha']),
                              power(xp, d, -t['beta']))),
    Form('separable_rising', 'Q = Q_inf - A N^-alpha - B D^-beta', ('N', 'D'),
         'score', {'Q_inf': 'free', 'A': 'positive', 'B': 'positive'},
         {'alpha': _EXPONENT, 'beta': _EXPONENT},
         lambda xp, t, n, d: (xp.ones_like(n), -power(xp, n, -t['alpha']),
                              -power(xp, d, -t['beta']))),
    Form('multiplicative', 'y = E + A N^-alpha D^-beta', ('N', 'D'), 'loss',
         {'E': 'positive', 'A': 'positive'},
         {'alpha': Shape(-4., 4., _EXPONENT.start),
          'beta': Shape(-4., 4., _EXPONENT.start)},
         lambda xp, t, n, d: (xp.ones_like(n),
                              power(xp, n, -t['alpha']) *
                              power(xp, d, -t['beta']))),
    Form('kaplan', 'y = E + A (N^-(alpha / beta) + rho / D)^beta', ('N', 'D'),
         'loss', {'E': 'positive', 'A': 'positive'},
         {'alpha': Shape(1e-3, 4., _FEW.start),
          'beta': Shape(1e-3, 6., _FEW.start),
          'rho': Shape(1e-12, 1e12, (.03, .3, 1., 3., 30.), log=True,
                       scale=lambda t, centre: centre[1] * centre[0] **
                       (-t['alpha'] / t['beta']))}, _kaplan),
    Form('coupled', 'y = E + A (N^-alpha + rho D^-beta)^k', ('N', 'D'),
         'loss', {'E': 'positive', 'A': 'positive'},
         {'alpha': Shape(1e-3, 6., _FEW.start),
          'beta': Shape(1e-3, 6., _FEW.start),
          'rho': Shape(1e-12, 1e12, (.1, .5, 2., 10.), log=True,
                       scale=lambda t, centre: centre[0] ** -t['alpha'] *
                       centre[1] ** t['beta']),
          'k': Shape(.02, 10., (.3, .6, 1., 2.), log=True)}, _coupled),
    Form('smooth_min',
         'y = [(c_N N^g)^-k + (c_D D^d)^-k]^(-1 / k)', ('N', 'D'),
         'rank', {'c_N': 'positive'},
         {'g': Shape(-1., 6., _FEW.start), 'd': Shape(-1., 6., _FEW.start),
          'k': Shape(.1, 60., (.5, 1., 2., 5., 15.), log=True),
          'rho': Shape(1e-9, 1e9, (.2, .6, 1., 1.7, 5.), log=True,
                       scale=lambda t, centre: centre[0] ** t['g'] *
                       centre[1] ** -t['d'])}, _smooth_min,
         derived=lambda p: {'c_D': p['c_N'] * p['rho']}),
)}


def get(form):
  """The Form of that name, or the Form itself; ValueError for no such name."""
  if isinstance(form, Form):
    return form
  if form not in FORMS:
    raise ValueError(f'no law named {form!r}: one of {", ".join(FORMS)}')
  return FORMS[form]
