"""What to know before believing a fit, as a dictionary and in words."""

import math

import numpy as np

from audiorank.laws import intervals
from audiorank.laws import newton
from audiorank.laws import solve


def diagnose(fit):
  """The dictionary of `Fit.diagnostics`."""
  problem = fit.problem
  r_N, w_N = fit.residuals, problem.w_N / problem.w_N.mean()
  target_N = solve.link(np, problem.loss.link, problem.y_N)
  total = np.sum(w_N * (target_N - np.average(target_N, weights=w_N)) ** 2)
  jac_NP, _ = intervals.jacobian(fit.small)
  bounds = at_bound(fit)
  with np.errstate(all='ignore'):
    size_P = np.sqrt((jac_NP ** 2).sum(0))
    # Columns of unit length: the condition that remains after scaling.
    singular = np.linalg.svd(jac_NP / np.maximum(size_P, 1e-300),
                             compute_uv=False)
  out = {
      'n': fit.n, 'groups': fit.units, 'parameters': fit.size,
      'rms': float(np.sqrt(np.average(r_N ** 2, weights=w_N))), 'sd': fit.sd,
      'r2': float(1 - np.sum(w_N * r_N ** 2) / total) if total else math.nan,
      'gradient': float(fit.best.slope_S[0]),
      'converged': bool(fit.best.converged_S[0]),
      'starts': fit.starts, 'starts_agreeing': fit.agreeing,
      'condition': float(singular[0] / max(singular[-1], 1e-300)),
      'at_bound': bounds, 'identifiable': identifiable(fit, bounds),
      'span': {name: float(np.ptp(np.log10(col)))
               for name, col in zip(fit.x, problem.cols)},
  }
  if problem.loss.kind == 'huber':
    out['delta_over_sd'] = problem.delta / fit.sd if fit.sd else math.inf
  return out


def at_bound(fit):
  """Names of the parameters that lie at a bound of their search."""
  low_P, high_P = newton.bounds(fit.problem)
  p_P = newton.pack(fit.form, fit.best.c_SQ, fit.best.t_SP)[0]
  names = [*fit.form.linear, *fit.form.shape]
  with np.errstate(invalid='ignore'):
    edge = 1e-6 * (1 + np.abs(p_P))
  return [name for name, p, low, high, e in
          zip(names, p_P, low_P, high_P, edge)
          if p <= low + e or p >= high - e]


def identifiable(fit, bounds):
  """Whether the data bound each parameter on both sides, at 95 %."""
  out = {}
  for name in [*fit.form.linear, *fit.form.shape]:
    shape = fit.form.shape.get(name)
    if name in bounds or (shape is not None and callable(shape.scale)):
      out[name] = name not in bounds
      continue
    low, high = fit.ci(name)
    kept_off = low > 0 or fit.form.linear.get(name) == 'free' or (
        shape is not None and shape.low < 0)
    out[name] = bool(math.isfinite(low) and math.isfinite(high) and kept_off)
  return out


def limits(low, high, digits=4):
  """An interval in words."""
  if low == -math.inf and high == math.inf:
    return 'unbounded on both sides'
  if high == math.inf:
    return f'above {low:.{digits}g}, unbounded above'
  if low == -math.inf:
    return f'below {high:.{digits}g}, unbounded below'
  return f'{low:.{digits}g} to {high:.{digits}g}'


def words(fit):
  """The fit in a few lines of text."""
  known = fit.diagnostics
  lines = [f'{fit.form.formula}   ({fit.y} from {", ".join(fit.x)}; '
           f'{known["n"]} points, {known["groups"]} independent)']
  for name in fit.params:
    shape = fit.form.shape.get(name)
    method = ('profile' if name in fit.form.linear or (
        shape is not None and not callable(shape.scale)) else 'bootstrap')
    low, high = fit.ci(name, method)
    # A limit that the data do not bound is no number.
    value = (f'{name} = {fit.params[name]:.5g}' if
             math.isfinite(high) and math.isfinite(low) else name)
    lines.append(f'  {value}   95 %: {limits(low, high)} ({method})')
  lines.append(f'  residual sd {known["sd"]:.3g}, span ' + ', '.join(
      f'{span:.2f} decades of {name}' for name, span in
      known['span'].items()))
  if known['at_bound']:
    lines.append('  at a bound: ' + ', '.join(known['at_bound']))
  loose = [name for name, good in known['identifiable'].items() if not good]
  if loose:
    lines.append('  not identified by these data: ' + ', '.join(loose))
  return '\n'.join(lines)
