"""How sure a fit is: profile likelihood, cluster bootstrap, Wald.

The profile is the default for limits and exponents: it follows the parameter
as far as the data allow and returns `inf` where they allow everything, which
a Wald interval never does. The bootstrap resamples groups by multinomial
weights and gives bands. Wald intervals are one cheap column.

Shapes: N points, S solves (resamples), P packed parameters, Q linear
coefficients, M points of a prediction.
"""

from collections.abc import Callable
import functools
import math
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from audiorank.laws import newton
from audiorank.laws import problem as problem_lib
from audiorank.laws import solvers

if TYPE_CHECKING:
  from audiorank.laws.fit import Fit

METHODS = ('profile', 'bootstrap', 'wald')
# Spans of y beyond which a limit counts as unbounded.
_FAR = 1e4


def interval(fit: 'Fit', name: str, method: str, confidence: float,
             draws: int, seed: int) -> tuple[float, float]:
  """Returns (low, high) of one parameter; see `Fit.ci`."""
  if not 0 < confidence < 1:
    raise ValueError(f'confidence is {confidence}: expected between 0 and 1')
  if method not in METHODS:
    raise ValueError(f'no interval by {method!r}: one of '
                     f'{", ".join(METHODS)}')
  # Coefficients, and what is derived from them, carry the unit of y.
  # Everything below works on the normalized fit; `size` turns its intervals
  # back into the units of the data.
  size = fit.params[name] / (fit.normalized.params[name] or 1.)
  if name in fit.form.linear:
    size = problem_lib.unit(fit.problem)
  if method == 'profile':
    low, high = _profile_interval(fit.normalized, name, confidence)
    return low * size, high * size
  if method == 'bootstrap':
    return _bootstrap_interval(fit, name, confidence, draws, seed)
  # Student's t with one degree of freedom per independent group, not per row:
  # rows of a group share their errors.
  free = max(fit.units - fit.size, 1)
  half = special.stdtrit(free, (1 + confidence) / 2) * (
      size * wald(fit.normalized)[name])
  return float(fit.params[name] - half), float(fit.params[name] + half)


# Bootstrap.


@functools.lru_cache(maxsize=16)
def resample(fit: 'Fit', count: int, seed: int) -> solvers.Optimum:
  """Returns the optima of `count` cluster-bootstrap resamples.

  Groups are drawn with replacement, as multinomial weights on all rows, so
  no shape changes. Resamples with fewer groups than parameters are drawn
  again.

  Raises:
    ValueError: no more groups than parameters.
  """
  if fit.units <= fit.size:
    raise ValueError(f'a bootstrap of {fit.form.name} needs more than '
                     f'{fit.size} independent groups, found {fit.units}')
  # Whole groups are drawn: rows of one group share their errors.
  rng = np.random.default_rng(seed)
  live = np.unique(fit.group_N[fit.problem.w_N > 0])
  enough = min(fit.size, len(live) - 2)
  # Rejection sampling, in batches: nearly all draws of many groups pass.
  parts: list[np.ndarray] = []
  for _ in range(200):
    times = rng.multinomial(len(live), np.full(len(live), 1 / len(live)),
                            count)
    parts.extend(times[(times > 0).sum(1) > enough])
    if len(parts) >= count:
      break
  times_SG = np.zeros((count, fit.group_N.max() + 1))
  times_SG[:, live] = parts[:count]
  # A row drawn twice has twice the weight; one not drawn has none.
  w_SN = times_SG[:, fit.group_N] * fit.problem.w_N
  return solvers.refit(fit.problem, fit.best, w_SN)


def _bootstrap_interval(fit, name, confidence, draws, seed):
  if fit.units <= fit.size:
    return -math.inf, math.inf  # Too few groups to know anything.
  resamples = resample(fit, draws, seed)
  values = np.array(solvers.params(fit.problem, resamples)[name], float)
  # A limit that runs off in a resample is infinite: otherwise the percentile
  # would depend on where its search happened to stop.
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


def band(fit: 'Fit', there: problem_lib.Problem, kind: str, confidence: float,
         draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns limits of the law ('mean') or of another run ('new'), (M,).

  NaN where there are no more groups than parameters.
  """
  if fit.units <= fit.size:
    unknown_M = np.full(len(there.cols[0]), np.nan)
    return unknown_M, unknown_M
  resamples = resample(fit, draws, seed)
  link = fit.problem.loss.link
  with np.errstate(all='ignore'):
    f_SM = problem_lib.values(there, resamples.c_SQ, resamples.theta_SP)
    if kind == 'new':
      rng = np.random.default_rng([seed, 1])
      w_N = fit.problem.w_N
      # A further run is the law plus noise, so residuals are added on the scale
      # of the loss, where they have one spread.
      # Residuals of n points and p parameters are too small by this factor.
      inflation = math.sqrt(fit.n / max(fit.n - fit.size, 1))
      noise = rng.choice(fit.residuals, f_SM.shape, p=w_N / w_N.sum())
      f_SM = problem_lib.unlink(
          link, problem_lib.link(np, link, f_SM) + inflation * noise)
  tail = (1 - confidence) / 2
  # Outside the domain of the link a draw says nothing; quantiles skip it.
  f_SM = np.where(np.isfinite(f_SM), f_SM, np.nan)
  low_M, high_M = np.nanquantile(f_SM, [tail, 1 - tail], axis=0)
  return low_M, high_M


# Wald.


def jacobian(fit: 'Fit') -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """d f / d p at the optimum on the scale of the loss, and d params / d p.

  Returns:
    jac_NP, and a dictionary name -> gradient (P,).
  """
  form, problem = fit.form, fit.problem
  # Central differences of all parameters in one call.
  p_P = newton.pack(form, fit.best.c_SQ, fit.best.theta_SP)[0]
  P = len(p_P)
  low_P, high_P = newton.bounds(problem)
  # Near the cube root of float64's rounding, 6e-6, which balances truncation
  # and rounding of a central difference.
  step_P = 1e-5 * np.maximum(np.abs(p_P), 1e-2)
  p_SP = np.repeat(p_P[None], 2 * P, 0)
  p_SP[np.arange(P), np.arange(P)] += step_P
  p_SP[P + np.arange(P), np.arange(P)] -= step_P
  # At a bound one of the two sides cannot move, so the step that was really
  # taken is what the difference is divided by.
  p_SP = np.clip(p_SP, low_P, high_P)
  wide_P = np.maximum(p_SP[np.arange(P), np.arange(P)] -
                      p_SP[P + np.arange(P), np.arange(P)], 1e-300)
  c_SQ, theta_SP = newton.unpack(form, p_SP)
  with np.errstate(all='ignore'):
    f_SN = problem_lib.link(np, problem.loss.link,
                            problem_lib.values(problem, c_SQ, theta_SP))
  there = solvers.Optimum(c_SQ, theta_SP, np.zeros(2 * P), np.zeros(2 * P),
                          np.zeros(2 * P, bool))
  # The delta method needs the same derivative of the reported parameters.
  slopes = {name: (v[:P] - v[P:]) / wide_P
            for name, v in solvers.params(problem, there).items()}
  return ((f_SN[:P] - f_SN[P:]) / wide_P[:, None]).T, slopes


def influence(fit: 'Fit') -> tuple[np.ndarray, float]:
  """psi and its mean slope: what the residuals say under the fit's loss.

  Returns:
    psi_N (d rho / d r), and the average of its derivative (for kinked
    losses, from the density of residuals near 0).
  """
  r_N, w_N = fit.residuals, fit.problem.w_N
  kind, delta = fit.problem.loss.kind, fit.problem.delta
  if kind == 'ls':
    return 2 * r_N, 2.
  # A kink has no second derivative: its mean slope is the density of the
  # residuals at the kink, by a uniform kernel of Silverman's width.
  mad = 1.4826 * np.median(np.abs(r_N)) + 1e-300
  width = 1.06 * mad * fit.n ** -.2
  if kind == 'huber' and delta > width:
    return np.clip(r_N, -delta, delta), float(np.average(
        np.abs(r_N) <= delta, weights=w_N))
  near = np.average(np.abs(r_N) <= width, weights=w_N) / width
  if kind == 'lad':
    return np.sign(r_N), float(near)
  return np.clip(r_N, -delta, delta), float(near * delta)


class Covariances(NamedTuple):
  """Naive and cluster-robust covariance of the packed parameters.

  Parameters at a bound are held there: rows and columns of 0. gradients:
  name -> d reported parameter / d packed parameters.
  """
  naive_PP: np.ndarray
  robust_PP: np.ndarray
  gradients: dict[str, np.ndarray]


def covariances(fit: 'Fit') -> Covariances:
  """Returns the covariances of a fit's parameters."""
  jac_NP, gradients = jacobian(fit)
  low_P, high_P = newton.bounds(fit.problem)
  p_P = newton.pack(fit.form, fit.best.c_SQ, fit.best.theta_SP)[0]
  # A parameter at its bound has no two-sided slope: it is held there.
  free_P = ((p_P > low_P + 1e-9) & (p_P < high_P - 1e-9) &
            np.isfinite(jac_NP).all(0))
  jac_NP = np.where(free_P, jac_NP, 0.)
  w_N = fit.problem.w_N / fit.problem.w_N.mean()
  psi_N, bend = influence(fit)
  # The sandwich of Huber and White, clustered: bread, filling, bread.
  # bread: the curvature of the objective. filling: the spread of the scores.
  bread_PP = np.linalg.pinv((jac_NP.T * w_N) @ jac_NP * bend, rcond=1e-15,
                            hermitian=True)
  spread = np.sum(w_N * psi_N ** 2) / max(fit.n - fit.size, 1)
  naive_PP = bread_PP @ ((jac_NP.T * w_N) @ jac_NP) @ bread_PP * spread
  # Scores are summed within a group before they are squared: this is what lets
  # rows of one group be correlated.
  score = np.zeros((fit.group_N.max() + 1, len(p_P)))
  np.add.at(score, fit.group_N, (w_N * psi_N)[:, None] * jac_NP)
  units, N = fit.units, fit.n
  # The usual small-sample factor of clustered errors.
  factor = units / max(units - 1, 1) * (N - 1) / max(N - fit.size, 1)
  robust_PP = bread_PP @ (score.T @ score) @ bread_PP * factor
  return Covariances(naive_PP, robust_PP, gradients)


def wald(fit: 'Fit') -> dict[str, float]:
  """Returns the standard errors of the parameters, by the delta method.

  Cluster-robust where groups have several rows or outliers are expected;
  infinite where that needs more groups than there are.
  """
  covariance = covariances(fit)
  cov_PP = covariance.robust_PP
  # With one row per group and squares, both estimates are consistent and the
  # naive one is less noisy in small samples.
  if fit.units == fit.n and fit.problem.loss.kind == 'ls':
    cov_PP = covariance.naive_PP
  elif fit.units <= fit.size:
    return dict.fromkeys(covariance.gradients, math.inf)
  return {name: float(np.sqrt(max(g @ cov_PP @ g, 0.)))
          for name, g in covariance.gradients.items()}


# Profile likelihood.


def profile(fit: 'Fit', name: str, values: Any) -> np.ndarray:
  """Returns the least objective with one parameter fixed at some values.

  Args:
    fit: a Fit.
    name: a linear or nonlinear parameter of the form.
    values: where it is held, of shape (S,).

  Returns:
    The objectives, of shape (S,).

  Raises:
    ValueError: the parameter is derived from several others.
  """
  values = np.asarray(values, float)
  if not has_profile(fit, name):
    raise ValueError(f'no profile for {name}, which is made of several '
                     "fitted numbers: use method='bootstrap'")
  # One solve per value, each with the parameter held there.
  w_SN = np.repeat(fit.problem.w_N[None], len(values), 0)
  return solvers.refit(fit.problem, fit.best, w_SN, (name, values)).value_S


def has_profile(fit: 'Fit', name: str) -> bool:
  """Returns whether a reported parameter is fitted itself, up to a unit."""
  param = fit.form.nonlinear.get(name)
  return name in fit.form.linear or (
      param is not None and not callable(param.scale))


def threshold(fit: 'Fit', name: str, confidence: float) -> float:
  """Returns the objective at which a profile leaves its interval.

  min * (1 + F / (n - p)) for least squares (Bates & Watts 1988, section
  6.1); for other losses the same test with the variance and slope of psi.
  Where groups have several rows, and for the losses that expect outliers,
  the rise is multiplied by the ratio of the cluster-robust to the naive
  variance, if that is above 1. Infinite where that needs more groups than
  there are.
  """
  clustered = fit.units < fit.n
  if clustered and fit.units <= fit.size:
    return math.inf
  free = max(fit.units - fit.size, 1)
  # F with one numerator degree of freedom: a squared t.
  psi_N, bend = influence(fit)
  w_N = fit.problem.w_N
  spread = np.sum(w_N * psi_N ** 2) / max(fit.n - fit.size, 1)
  rise = special.fdtri(1, free, confidence) * spread / (2 * bend)
  if clustered or fit.problem.loss.kind != 'ls':
    covariance = covariances(fit)
    # The delta method: variance of a reported parameter is g C g^T.
    g = covariance.gradients[name]
    rise *= max(1., (g @ covariance.robust_PP @ g) /
                max(g @ covariance.naive_PP @ g, 1e-300))
  size = np.sum(w_N * problem_lib.link(np, fit.problem.loss.link,
                                       fit.problem.y_N) ** 2)
  # The last term is rounding: points exactly on the law have an objective of 0,
  # and no rise above it.
  return fit.objective + rise + 1e-24 * size


class Axis(NamedTuple):
  """The scale on which the profile of one parameter is followed.

  Attributes:
    at: the estimate on that scale.
    back: from that scale to the parameter.
    error: its standard error there.
    most: the longest first step.
    reach: how far to search.
    ends: what is reported where the profile never leaves its interval.
  """
  at: float
  back: Callable[[Any], Any]
  error: float
  most: float
  reach: tuple[float, float]
  ends: tuple[float, float]


def _axis(fit, name):
  """Returns the Axis of a parameter of a normalized fit."""
  best, error = fit.params[name], wald(fit)[name]
  param, kind = fit.form.nonlinear.get(name), fit.form.linear.get(name)
  same = lambda v: v
  if param is not None and not param.log:
    lowest = -math.inf
    if param.low >= 0:
      lowest = 0.
    return Axis(best, same, error, (param.high - param.low) / 8,
                (param.low, param.high), (lowest, math.inf))
  # A logarithm of everything that is positive: a likelihood is more nearly
  # symmetric there, and doubling steps cover decades.
  if param is not None or kind == 'positive':
    at = math.log(max(best, 1e-290))
    reach = at - 25., at + 50.
    if param is not None:
      units = dict(zip(fit.form.x, fit.problem.centre))
      unit = units.get(param.scale, 1.)
      reach = math.log(param.low * unit), math.log(param.high * unit)
    return Axis(at, np.exp, error / max(abs(best), 1e-290), 1., reach,
                (0., math.inf))
  y = fit.problem.y_N
  size = np.ptp(y)
  # The coefficient of a rising logarithm also scales with its input.
  # Where the error is larger than y itself, the search must reach farther.
  if math.isfinite(error) and error < _FAR * size:
    size = max(size, error)
  reach = y.min() - _FAR * size, y.max() + _FAR * size
  return Axis(min(max(best, reach[0]), reach[1]), same, error, np.ptp(y),
              reach, (-math.inf, math.inf))


def _profile_interval(fit, name, confidence):
  limit, axis = threshold(fit, name, confidence), _axis(fit, name)
  if limit == math.inf:
    return axis.ends
  error = axis.error
  # No usable standard error (a flat or kinked objective): start small, since
  # steps double anyway.
  if not (math.isfinite(error) and error > 0):
    error = 1e-3 * max(abs(axis.at), 1e-3)
  ends = []
  for sign, edge, end in zip((-1, 1), axis.reach, axis.ends):
    crossing = _cross(lambda v: profile(fit, name, axis.back(v)), axis.at,
                      min(error, axis.most), sign, edge, limit)
    if crossing is not None:
      end = float(axis.back(crossing))
    ends.append(end)
  return tuple(ends)


def _bracket(f, at, step, sign, edge, limit):
  """Doubles steps from `at` up to `edge`, until f is above the limit.

  Returns:
    (inner, f_inner, outer, f_outer); outer is None where f never is.
  """
  # Sixteen points a call: one block of solves.
  room = abs(edge - at)
  # Doubling from a quarter of the standard error: the first steps resolve a
  # tight interval, the last ones reach any edge.
  steps = min(step / 4, room / 4) * 2. ** np.arange(48)
  v = at + sign * np.append(steps[steps < room], room)
  inner, f_inner = at, None
  for block in np.array_split(v, -(-len(v) // newton.BLOCK)):
    values = f(block)
    above = np.flatnonzero(values > limit)
    if len(above):
      first = above[0]
      if first:
        inner, f_inner = block[first - 1], values[first - 1]
      return inner, f_inner, block[first], values[first]
    inner, f_inner = block[-1], values[-1]
  return inner, f_inner, None, None


def _cross(f, at, step, sign, edge, limit):
  """Returns where f first reaches the limit, or None if it never does.
  """
  if abs(edge - at) < 1e-12:
    return None
  inner, f_inner, outer, f_outer = _bracket(f, at, step, sign, edge, limit)
  if outer is None:
    return None
  # Sixteen points at a time, one block of solves, narrow the bracket.
  # Each round divides the bracket by 17, so a few of them are enough.
  for _ in range(12):
    if abs(outer - inner) < 1e-3 * step:
      break
    v = np.linspace(inner, outer, newton.BLOCK + 2)[1:-1]
    values = f(v)
    above = np.flatnonzero(values > limit)
    first = len(v)
    if len(above):
      first = above[0]
    if first < len(v):
      outer, f_outer = v[first], values[first]
    if first:
      inner, f_inner = v[first - 1], values[first - 1]
  # The first step is already above, or the objective beyond is infinite: no
  # line can be drawn through the ends.
  if f_inner is None or not np.isfinite(f_outer):
    return inner
  # The bracket is narrow: a straight line through its ends is enough.
  part = (limit - f_inner) / max(f_outer - f_inner, 1e-300)
  return inner + np.clip(part, 0., 1.) * (outer - inner)
