"""What to know before believing a fit, as a dictionary and in words.

Shapes: N points, P packed parameters.
"""

import math
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from audiorank.laws import intervals
from audiorank.laws import newton
from audiorank.laws import problem as problem_lib

if TYPE_CHECKING:
  from audiorank.laws.fit import Fit


def diagnose(fit: 'Fit') -> dict[str, Any]:
  """Returns the dictionary of `Fit.diagnostics`."""
  problem = fit.problem
  r_N, w_N = fit.residuals, problem.w_N / problem.w_N.mean()
  target_N = problem_lib.link(np, problem.loss.link, problem.y_N)
  total = np.sum(w_N * (target_N - np.average(target_N, weights=w_N)) ** 2)
  # A constant output has no variance to explain.
  r2 = math.nan
  if total:
    r2 = float(1 - np.sum(w_N * r_N ** 2) / total)
  bounds = at_bound(fit)
  out = {
      'n': fit.n, 'groups': fit.units, 'repeats': fit.repeats,
      'parameters': fit.size,
      'rms': float(np.sqrt(np.average(r_N ** 2, weights=w_N))), 'sd': fit.sd,
      'r2': r2, 'gradient': float(fit.best.slope_S[0]),
      'converged': fit.converged, 'starts': fit.starts,
      'starts_agreeing': fit.agreeing, 'condition': condition(fit),
      'at_bound': bounds, 'identifiable': identifiable(fit, bounds),
      'span': {name: float(np.ptp(np.log10(col)))
               for name, col in zip(fit.x, problem.cols)},
  }
  if problem.loss.kind == 'huber':
    out['delta_over_sd'] = math.inf
    if fit.sd:
      out['delta_over_sd'] = problem.delta / fit.sd
  return out


def condition(fit: 'Fit') -> float:
  """Returns the condition number of the Jacobian with unit columns."""
  jac_NP, _ = intervals.jacobian(fit.normalized)
  with np.errstate(all='ignore'):
    size_P = np.sqrt((jac_NP ** 2).sum(0))
    # Columns of unit length: the condition that remains after scaling.
    singular = np.linalg.svd(jac_NP / np.maximum(size_P, 1e-300),
                             compute_uv=False)
  return float(singular[0] / max(singular[-1], 1e-300))


def at_bound(fit: 'Fit') -> list[str]:
  """Returns the parameters that are at a bound of their search."""
  low_P, high_P = newton.bounds(fit.problem)
  p_P = newton.pack(fit.form, fit.best.c_SQ, fit.best.theta_SP)[0]
  with np.errstate(invalid='ignore'):
    edge_P = 1e-6 * (1 + np.abs(p_P))
  outside_P = (p_P <= low_P + edge_P) | (p_P >= high_P - edge_P)
  return [name for name, outside in zip(fit.form.names, outside_P) if outside]


def identifiable(fit: 'Fit', bounds: list[str]) -> dict[str, bool]:
  """Returns whether the data bound each parameter on both sides, at 95 %."""
  out = {}
  # A profile costs some hundred solves, so parameters at a bound, which are not
  # identified anyway, are spared.
  for name in fit.form.names:
    if name in bounds or not intervals.has_profile(fit, name):
      out[name] = name not in bounds
      continue
    low, high = fit.ci(name)
    param = fit.form.nonlinear.get(name)
    signed = fit.form.linear.get(name) == 'free' or (
        param is not None and param.low < 0)
    # An interval down to 0 bounds nothing where 0 is the end of the range.
    out[name] = (math.isfinite(low) and math.isfinite(high)
                 and (signed or low > 0))
  return out


def limits(low: float, high: float, digits: int = 4) -> str:
  """Returns an interval as text."""
  if low == -math.inf and high == math.inf:
    return 'unbounded on both sides'
  if high == math.inf:
    return f'above {low:.{digits}g}, unbounded above'
  if low == -math.inf:
    return f'below {high:.{digits}g}, unbounded below'
  return f'{low:.{digits}g} to {high:.{digits}g}'


def report(fit: 'Fit') -> str:
  """Returns the text of `Fit.report`."""
  known = fit.diagnostics
  lines = [f'{fit.form.formula}   ({fit.y} from {", ".join(fit.x)}; '
           f'{known["n"]} points, {known["groups"]} independent)']
  if not known['converged']:
    lines.append('  THE SEARCH HAS NOT CONVERGED: the optimum may lie '
                 'elsewhere; do not use these numbers')
  if known['repeats']:
    lines.append(f'  {known["repeats"]} rows are equal to another one and '
                 'count with it as one')
  for name in fit.params:
    # Derived parameters are made of several fitted ones: no profile.
    method = 'bootstrap'
    if intervals.has_profile(fit, name):
      method = 'profile'
    low, high = fit.ci(name, method)
    value = f'{name} = {fit.params[name]:.5g}'
    if not (math.isfinite(high) and math.isfinite(low)):
      value = name  # A limit that the data do not bound is no number.
    lines.append(f'  {value}   95 %: {limits(low, high)} ({method})')
  lines.append(f'  residual sd {known["sd"]:.3g}, span ' + ', '.join(
      f'{span:.2f} decades of {name}'
      for name, span in known['span'].items()))
  if known['at_bound']:
    lines.append('  at a bound: ' + ', '.join(known['at_bound']))
  unidentified = [name for name, good in known['identifiable'].items()
                  if not good]
  if unidentified:
    lines.append('  not identified by these data: ' +
                 ', '.join(unidentified))
  return '\n'.join(lines)
