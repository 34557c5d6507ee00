"""The laws that can be fitted, each a few lines.

A form is a sum of linear coefficients times a basis that depends on a few
nonlinear parameters theta,  y = sum_q c_q phi_q(x; theta).  The columns reach
the basis divided by their geometric mean, so powers stay of order one;
`reported` turns what was fitted back into the parameters of the formula in
the units of the data. To add a form, declare a `Form` and pass it to
`laws.fit`.

Shapes: N points, Q linear coefficients.
"""

from collections.abc import Callable
import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy or jax, according to the module that a function is given.
Named = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class NonlinearParam:
  """A parameter that enters nonlinearly: its bounds and where to start.

  Attributes:
    low, high: bounds of the search.
    start: values to start from, or a function of the (scaled) columns that
      returns them.
    log: whether to search in its logarithm.
    scale: how the fitted value becomes the reported one. None: as it is; the
      name of the column whose unit it has; or a function (theta, centre) ->
      factor.
  """
  low: float
  high: float
  start: tuple[float, ...] | Callable[..., tuple[float, ...]]
  log: bool = False
  scale: str | Callable[[Named, Array], Array] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
  """A law: y = sum_q c_q phi_q(x; theta).

  Attributes:
    name: how `laws.fit` knows it.
    formula: in words of the reported parameters.
    x: default names of the input columns.
    y: default name of the output column.
    linear: coefficient name -> 'free' or 'positive'.
    nonlinear: parameter name -> NonlinearParam.
    basis: (xp, theta, *columns) -> tuple of terms; `xp` is numpy or
      jax.numpy, `theta` the nonlinear parameters by name, the columns are
      scaled. With no linear parameters the single term is the law itself.
    report: (xp, c, theta, centre) -> parameters in the units of the data,
      linear in the tuple `c` for the names of `linear`; None where amplitudes
      times powers make it automatic.
    derived: (params) -> further reported parameters, or None.
  """
  name: str
  formula: str
  x: tuple[str, ...]
  y: str
  linear: dict[str, str]
  nonlinear: dict[str, NonlinearParam]
  basis: Callable[..., tuple[Array, ...]]
  report: Callable[..., Named] | None = None
  derived: Callable[[Named], Named] | None = None

  @property
  def names(self) -> list[str]:
    """Names of all fitted parameters, the linear ones first."""
    return [*self.linear, *self.nonlinear]


def reported(form: Form, xp: ModuleType, c: tuple[Array, ...], theta: Named,
             centre: list[Array]) -> Named:
  """Returns the parameters of the formula, in the units of the data, by name.

  Args:
    form: a Form.
    xp: numpy or jax.numpy.
    c: the fitted linear coefficients, one per name of `form.linear`.
    theta: the fitted nonlinear parameters by name.
    centre: the geometric means of the columns.
  """
  # Forms whose coefficients mix (an offset and a slope) bring their own report;
  # for amplitudes times powers it follows from the basis.
  if form.report is not None:
    return form.report(xp, c, theta, centre)
  units = dict(zip(form.x, centre))
  nonlinear = {}
  for name, param in form.nonlinear.items():
    if param.scale is None:
      factor = 1.
    elif isinstance(param.scale, str):
      factor = units[param.scale]
    else:
      factor = param.scale(theta, centre)
    nonlinear[name] = theta[name] * factor
  # The law is the same function in both units, so the ratio of a term in the
  # one and in the other is a constant: read it at the centre.
  ones = [xp.ones_like(value) for value in centre]
  scaled = form.basis(xp, theta, *ones)
  unscaled = form.basis(xp, nonlinear, *centre)
  linear = {name: c_q * a / b
            for name, c_q, a, b in zip(form.linear, c, scaled, unscaled)}
  return {**linear, **nonlinear}


def power(xp: ModuleType, x: Array, k: Array) -> Array:
  """Returns x^k for positive x; a compiled `**` costs three times as much."""
  return xp.exp(k * xp.log(x))


def _quantiles(*shares):
  """Returns starts at these quantiles of the first column."""
  return lambda *columns: tuple(np.quantile(columns[0], shares))


def _saturating(xp, theta, r):
  # (1 - r^-b) / b, which tends to log r as b tends to 0: the law stays well
  # conditioned all the way to its log-linear limit.
  return (xp.ones_like(r),
          -xp.expm1(-theta['b'] * xp.log(r)) / theta['b'])


def _saturating_report(xp, c, theta, centre):
  # c[0] + c[1] (1 - r^-b) / b in scaled r: the constant parts of both terms add
  # up to Q_inf, and the power takes up the unit.
  slope = c[1] / theta['b']
  return {'Q_inf': c[0] + slope, 'a': slope * centre[0] ** theta['b'],
          'b': theta['b']}


def _log_linear_report(xp, c, theta, centre):
  # log(R / centre) = log R - log centre: the shift goes to the offset.
  return {'c': c[0] - c[1] * xp.log(centre[0]), 'd': c[1]}


def _logistic(xp, theta, r):
  # As a hyperbolic tangent: exp overflows where the exponent h is large.
  return .5 + .5 * xp.tanh(.5 * theta['h'] * xp.log(r / theta['R_0']))


def _broken(xp, theta, x):
  # (1 + (x / d)^(1 / f)) as logaddexp: the power overflows long before its
  # logarithm, multiplied by f, does.
  bend = xp.logaddexp(xp.log(x / theta['d']) / theta['f'], xp.zeros_like(x))
  return (xp.ones_like(x), xp.exp(
      -theta['c_0'] * xp.log(x) - theta['c_1'] * theta['f'] * bend))


def _smooth_min(xp, theta, n, d):
  # In logarithms: with k up to 60 the powers themselves can leave float64.
  low = xp.logaddexp(
      -theta['k'] * theta['g'] * xp.log(n),
      -theta['k'] * (theta['d'] * xp.log(d) + xp.log(theta['rho'])))
  return (xp.exp(-low / theta['k']),)


# Starts are dense where exponents of published laws lie, .05 to .8.
_EXPONENT = NonlinearParam(1e-3, 4., (.05, .1, .2, .3, .4, .5, .6, .7, .85, 1.,
                                      1.3, 2.))
_FEW = (.1, .2, .35, .6, 1.)

FORMS = {form.name: form for form in (
    # Rank to score.
    Form('saturating', 'Q = Q_inf - a R^-b', ('rank',), 'score',
         {'Q_inf': 'free', 'a': 'positive'},
         {'b': NonlinearParam(1e-6, 10.,
                              (1e-6, *np.geomspace(1e-3, 10, 96)))},
         _saturating, _saturating_report),
    Form('log_linear', 'Q = c + d ln R', ('rank',), 'score',
         {'c': 'free', 'd': 'free'}, {},
         lambda xp, theta, r: (xp.ones_like(r), xp.log(r)),
         _log_linear_report),
    Form('exponential', 'Q = Q_inf - a exp(-R / R_0)', ('rank',), 'score',
         {'Q_inf': 'free', 'a': 'positive'},
         {'R_0': NonlinearParam(1e-2, 1e3, tuple(np.geomspace(1e-2, 1e3, 97)),
                                log=True, scale='rank')},
         lambda xp, theta, r: (xp.ones_like(r), -xp.exp(-r / theta['R_0']))),
    Form('sigmoid', 'Q = Q_low + (Q_inf - Q_low) / (1 + (R / R_0)^-h)',
         ('rank',), 'score', {'Q_low': 'free', 'Q_inf': 'free'},
         {'h': NonlinearParam(1e-2, 30., (.3, .6, 1., 1.5, 2.5, 4., 7.),
                              log=True),
          'R_0': NonlinearParam(1e-3, 1e3,
                                _quantiles(0, .15, .3, .5, .7, .85, 1.),
                                log=True, scale='rank')},
         lambda xp, theta, r: (1 - _logistic(xp, theta, r),
                               _logistic(xp, theta, r))),
    Form('logit_linear', 'logit Q = h ln(R / R_0)', ('rank',), 'score', {},
         {'h': NonlinearParam(-30., 30., (-1., .1, .3, .6, 1., 1.5, 2.5, 5.)),
          'R_0': NonlinearParam(1e-9, 1e9,
                                (1e-3, .03, .1, .3, 1., 3., 10., 30.),
                                log=True, scale='rank')},
         lambda xp, theta, r: (_logistic(xp, theta, r),)),
    # One resource to a loss.
    Form('power', 'y = A x^-alpha', ('x',), 'y', {'A': 'positive'},
         {'alpha': NonlinearParam(-8., 8., (-2., -1., -.5, -.2, .1, .3, .6, 1.,
                                            2.))},
         lambda xp, theta, x: (power(xp, x, -theta['alpha']),)),
    Form('power_floor', 'y = E + A x^-alpha', ('x',), 'y',
         {'E': 'positive', 'A': 'positive'}, {'alpha': _EXPONENT},
         lambda xp, theta, x: (xp.ones_like(x),
                               power(xp, x, -theta['alpha']))),
    Form('broken', 'y = E + A x^-c_0 (1 + (x / d)^(1 / f))^(-c_1 f)', ('x',),
         'y', {'E': 'positive', 'A': 'positive'},
         {'c_0': NonlinearParam(-1., 4., (0., .1, .25, .5)),
          'c_1': NonlinearParam(-3., 6., (-.2, .1, .3, .6, 1.)),
          'd': NonlinearParam(1e-6, 1e6, _quantiles(.1, .3, .5, .7, .9),
                              log=True, scale='x'),
          'f': NonlinearParam(.02, 8., (.1, .4, 1.2), log=True)}, _broken),
    # Two resources.
    Form('separable', 'y = E + A N^-alpha + B D^-beta', ('N', 'D'), 'loss',
         {'E': 'positive', 'A': 'positive', 'B': 'positive'},
         {'alpha': _EXPONENT, 'beta': _EXPONENT},
         lambda xp, theta, n, d: (xp.ones_like(n),
                                  power(xp, n, -theta['alpha']),
                                  power(xp, d, -theta['beta']))),
    Form('smooth_min', 'y = [(c_N N^g)^-k + (c_D D^d)^-k]^(-1 / k)',
         ('N', 'D'), 'rank', {'c_N': 'positive'},
         {'g': NonlinearParam(-1., 6., _FEW),
          'd': NonlinearParam(-1., 6., _FEW),
          'k': NonlinearParam(.1, 60., (.5, 1., 2., 5., 15.), log=True),
          'rho': NonlinearParam(1e-9, 1e9, (.2, .6, 1., 1.7, 5.), log=True,
                                scale=lambda theta, centre:
                                centre[0] ** theta['g'] *
                                centre[1] ** -theta['d'])},
         _smooth_min, derived=lambda p: {'c_D': p['c_N'] * p['rho']}),
)}


def get(form: str | Form) -> Form:
  """Returns the Form of that name, or the Form itself.

  Raises:
    ValueError: there is no form of that name.
  """
  if isinstance(form, Form):
    return form
  if form not in FORMS:
    raise ValueError(f'no law named {form!r}: one of {", ".join(FORMS)}')
  return FORMS[form]
