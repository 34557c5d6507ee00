"""How sure a fit is: profile likelihood, cluster bootstrap, Wald.

The profile is the default for limits and exponents: it follows the parameter
as far as the data allow and says `inf` where they allow everything, which a
Wald interval never does. The bootstrap resamples groups by multinomial
weights and gives bands. Wald intervals are one cheap column.

Shape suffixes: N points, S solves, P packed parameters, M points of a
prediction.
"""

import math

import numpy as np
from scipy import special

from audiorank.laws import bootstrap
from audiorank.laws import newton
from audiorank.laws import optimum
from audiorank.laws import solve

_FAR = 1e4  # spans of y beyond which a limit counts as unbounded


def interval(fit, name, method, confidence, draws, seed):
  """(low, high) of one parameter; see `Fit.ci`."""
  if not 0 < confidence < 1:
    raise ValueError(f'confidence is {confidence}: expected between 0 and 1')
  # Coefficients, and what is derived from them, carry the unit of y.
  ratio = fit.params[name] / (fit.small.params[name] or 1.)
  size = optimum.unit(fit.problem) if name in fit.form.linear else ratio
  if method == 'profile':
    low, high = _profile_interval(fit.small, name, confidence)
    return low * size, high * size
  if method == 'bootstrap':
    found = bootstrap.resample(fit, draws, seed)
    values = np.array(optimum.params(fit.problem, found)[name], float)
    if fit.form.linear.get(name) == 'free':
      y = fit.problem.y_N
      far = np.abs(values) > np.abs(y).max() + _FAR * np.ptp(y)
      values[far] = np.sign(values[far]) * np.inf
    tail = (1 - confidence) / 2
    ordered = np.sort(values[~np.isnan(values)])
    last = len(ordered) - 1
    # Order statistics: an interpolation between two infinities is a NaN.
    return (float(ordered[math.floor(tail * last)]),
            float(ordered[math.ceil((1 - tail) * last)]))
  if method == 'wald':
    free = max(fit.units - fit.size, 1)
    half = special.stdtrit(free, (1 + confidence) / 2) * (
        size * wald(fit.small)[name])
    return float(fit.params[name] - half), float(fit.params[name] + half)
  raise ValueError(f'no interval by {method!r}: one of profile, bootstrap, '
                   'wald')


def jacobian(fit):
  """d f / d p at the optimum on the scale of the loss, and d params / d p.

  Returns:
    jac_NP, and a dictionary name -> gradient (P,).
  """
  form, problem = fit.form, fit.problem
  p_P = newton.pack(form, fit.best.c_SQ, fit.best.t_SP)[0]
  P = len(p_P)
  low_P, high_P = newton.bounds(problem)
  step_P = 1e-5 * np.maximum(np.abs(p_P), 1e-2)
  p_SP = np.repeat(p_P[None], 2 * P, 0)
  p_SP[np.arange(P), np.arange(P)] += step_P
  p_SP[P + np.arange(P), np.arange(P)] -= step_P
  p_SP = np.clip(p_SP, low_P, high_P)
  wide_P = np.maximum(p_SP[np.arange(P), np.arange(P)] -
                      p_SP[P + np.arange(P), np.arange(P)], 1e-300)
  c_SQ, t_SP = newton.unpack(form, p_SP)
  with np.errstate(all='ignore'):
    f_SN = solve.link(np, problem.loss.link,
                      solve.values(problem, c_SQ, t_SP))
  there = optimum.Optimum(c_SQ, t_SP, np.zeros(2 * P), None, None)
  slopes = {name: (v[:P] - v[P:]) / wide_P
            for name, v in optimum.params(problem, there).items()}
  return ((f_SN[:P] - f_SN[P:]) / wide_P[:, None]).T, slopes


def influence(fit):
  """psi and its mean slope: what the residuals say under the fit's loss.

  Returns:
    psi_N (d rho / d r), and the average of its derivative (for kinked
    losses, from the density of residuals near 0).
  """
  r_N, w_N = fit.residuals, fit.problem.w_N
  kind, delta = fit.problem.loss.kind, fit.problem.delta
  if kind == 'ls':
    return 2 * r_N, 2.
  mad = 1.4826 * np.median(np.abs(r_N)) + 1e-300
  width = 1.06 * mad * fit.n ** -.2
  if kind == 'huber' and delta > width:
    return np.clip(r_N, -delta, delta), float(np.average(
        np.abs(r_N) <= delta, weights=w_N))
  near = np.average(np.abs(r_N) <= width, weights=w_N) / width
  if kind == 'lad':
    return np.sign(r_N), float(near)
  return np.clip(r_N, -delta, delta), float(near * delta)


def covariances(fit):
  """Naive and cluster-robust covariance of the packed parameters.

  Parameters at a bound are held there: rows and columns of 0.

  Returns:
    naive_PP, robust_PP, and the gradients of the reported parameters.
  """
  jac_NP, slopes = jacobian(fit)
  low_P, high_P = newton.bounds(fit.problem)
  p_P = newton.pack(fit.form, fit.best.c_SQ, fit.best.t_SP)[0]
  free_P = ((p_P > low_P + 1e-9) & (p_P < high_P - 1e-9) &
            np.isfinite(jac_NP).all(0))
  jac_NP = np.where(free_P, jac_NP, 0.)
  w_N = fit.problem.w_N / fit.problem.w_N.mean()
  psi_N, bend = influence(fit)
  bread_PP = np.linalg.pinv((jac_NP.T * w_N) @ jac_NP * bend, rcond=1e-15,
                            hermitian=True)
  spread = np.sum(w_N * psi_N ** 2) / max(fit.n - fit.size, 1)
  naive_PP = bread_PP @ ((jac_NP.T * w_N) @ jac_NP) @ bread_PP * spread
  score = np.zeros((fit.group_N.max() + 1, len(p_P)))
  np.add.at(score, fit.group_N, (w_N * psi_N)[:, None] * jac_NP)
  units, N = fit.units, fit.n
  factor = units / max(units - 1, 1) * (N - 1) / max(N - fit.size, 1)
  robust_PP = bread_PP @ (score.T @ score) @ bread_PP * factor
  return naive_PP, robust_PP, slopes


def wald(fit):
  """Standard error of each reported parameter, by the delta method.

  Cluster-robust where groups have several rows or outliers are expected.
  """
  naive_PP, robust_PP, slopes = covariances(fit)
  plain = fit.units == fit.n and fit.problem.loss.kind == 'ls'
  cov_PP = naive_PP if plain else robust_PP
  return {name: float(np.sqrt(max(g @ cov_PP @ g, 0.)))
          for name, g in slopes.items()}


def profile(fit, name, values):
  """The least objective with one parameter held at each of some values.

  Args:
    fit: a Fit.
    name: a parameter of the form that is linear, or a shape parameter.
    values: where it is held, of shape (S,).

  Returns:
    The objectives, of shape (S,).

  Raises:
    ValueError: the parameter is derived from several others.
  """
  form, values = fit.form, np.asarray(values, float)
  shape = form.shape.get(name)
  if (name not in form.linear and shape is None) or (
      shape is not None and callable(shape.scale)):
    raise ValueError(f'no profile for {name}, which is made of several '
                     "fitted numbers: use method='bootstrap'")
  w_SN = np.repeat(fit.problem.w_N[None], len(values), 0)
  found = optimum.again(fit.problem, fit.best, w_SN, (name, values))
  return found.value_S


def threshold(fit, name, confidence):
  """The objective at which the profile of a parameter leaves its interval.

  min * (1 + F / (n - p)) for least squares (Bates & Watts 1988, section
  6.1); for other losses the same test with the variance and slope of psi.
  Where groups have several rows, and for the losses that expect outliers,
  the rise is multiplied by the ratio of the cluster-robust to the naive
  variance, if that is above 1.
  """
  free = max(fit.units - fit.size, 1)
  psi_N, bend = influence(fit)
  w_N = fit.problem.w_N
  spread = np.sum(w_N * psi_N ** 2) / max(fit.n - fit.size, 1)
  rise = special.fdtri(1, free, confidence) * spread / (2 * bend)
  if fit.units < fit.n or fit.problem.loss.kind != 'ls':
    naive_PP, robust_PP, slopes = covariances(fit)
    g = slopes[name]
    rise *= max(1., (g @ robust_PP @ g) / max(g @ naive_PP @ g, 1e-300))
  size = np.sum(w_N * solve.link(np, fit.problem.loss.link,
                                 fit.problem.y_N) ** 2)
  return fit.objective + rise + 1e-24 * size


def _profile_interval(fit, name, confidence):
  limit = threshold(fit, name, confidence)
  best = fit.params[name]
  error = wald(fit)[name]
  shape = fit.form.shape.get(name)
  kind = fit.form.linear.get(name)
  unit = 1.
  if shape is not None and isinstance(shape.scale, str):
    unit = fit.problem.centre[fit.form.x.index(shape.scale)]
  if kind == 'positive' or (shape is not None and shape.log):
    at, error = math.log(max(best, 1e-290)), error / max(abs(best), 1e-290)
    back, most = np.exp, 1.
    reach = ((math.log(shape.low * unit), math.log(shape.high * unit)) if
             shape else (at - 25., at + 50.))
    ends = 0., math.inf
  elif shape is not None:
    at, back, most = best, lambda v: v, (shape.high - shape.low) / 8
    reach = shape.low, shape.high
    ends = (0. if shape.low >= 0 else -math.inf), math.inf
  else:
    y = fit.problem.y_N
    back, most = lambda v: v, np.ptp(y)
    # The coefficient of a rising logarithm also scales with its input.
    size = max(np.ptp(y), error if math.isfinite(error) and error < _FAR *
               np.ptp(y) else 0.)
    reach = y.min() - _FAR * size, y.max() + _FAR * size
    at, ends = min(max(best, reach[0]), reach[1]), (-math.inf, math.inf)
  if not (math.isfinite(error) and error > 0):
    error = 1e-3 * max(abs(at), 1e-3)
  out = []
  for sign, edge, end in zip((-1, 1), reach, ends):
    crossed = _cross(lambda v: profile(fit, name, back(v)), at,
                     min(error, most), sign, edge, limit)
    out.append(float(back(crossed)) if crossed is not None else end)
  return tuple(out)


def _cross(f, at, step, sign, edge, limit):
  """Where f first rises to the limit between `at` and `edge`; None if never.

  Doubling steps bracket the crossing, refinement by seventeenths finds it.
  """
  room = abs(edge - at)
  if room < 1e-12:
    return None
  steps = min(step / 4, room / 4) * 2. ** np.arange(48)
  v = at + sign * np.append(steps[steps < room], room)
  inner, f_inner, outer, f_outer = at, None, None, None
  for block in np.array_split(v, -(-len(v) // 16)):
    values = f(block)
    above = np.flatnonzero(values > limit)
    if len(above):
      first = above[0]
      outer, f_outer = block[first], values[first]
      if first:
        inner, f_inner = block[first - 1], values[first - 1]
      break
    inner, f_inner = block[-1], values[-1]
  if outer is None:
    return None
  for _ in range(12):
    if abs(outer - inner) < 1e-3 * step:
      break
    v = np.linspace(inner, outer, 18)[1:-1]
    values = f(v)
    above = np.flatnonzero(values > limit)
    first = above[0] if len(above) else len(v)
    if first < len(v):
      outer, f_outer = v[first], values[first]
    if first:
      inner, f_inner = v[first - 1], values[first - 1]
  if f_inner is None or not np.isfinite(f_outer):
    return inner
  part = (limit - f_inner) / max(f_outer - f_inner, 1e-300)
  return inner + np.clip(part, 0., 1.) * (outer - inner)
