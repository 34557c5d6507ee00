"""Least squares with the linear coefficients in closed form.

Variable projection: for given nonlinear parameters the best linear
coefficients are a small least-squares problem. A law with one nonlinear
parameter is then a one-dimensional search, and a scan over a grid starts all
others. Every function solves S problems at once.

Shapes: N points, S solves (starts or resamples), G grid points, P nonlinear
parameters, Q linear coefficients.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from audiorank.laws import forms
from audiorank.laws import problem as problem_lib

_GOLDEN = (5 ** .5 - 1) / 2
# Points times solves in one piece of a scan: what fits a processor's cache.
_PIECE = 100_000


def _normal(phi_SNQ, y_SN, w_SN, refine=1):
  """Weighted least squares by normal equations, refined: c_SQ, sse_S."""
  # Q is 1 to 3: normal equations, refined once, are as accurate as QR here
  # and ten times as fast for many small problems.
  weighted_SQN = np.swapaxes(phi_SNQ * w_SN[..., None], 1, 2)
  gram_SQQ = weighted_SQN @ phi_SNQ
  size_SQ = np.einsum('sqq->sq', gram_SQQ)
  # A collinear or absent term gets a coefficient near 0, not an error.
  ridge_SQ = 1e-13 * size_SQ + 1e-250
  gram_SQQ = gram_SQQ + ridge_SQ[..., None] * np.eye(gram_SQQ.shape[1])
  if gram_SQQ.shape[1] == 1:
    # One coefficient, the common case of a profile: a division instead of a
    # call of LAPACK for thousands of 1 x 1 matrices.
    inverse_SQQ = 1 / gram_SQQ
  else:
    inverse_SQQ = np.linalg.inv(gram_SQQ)
  c_SQ = np.zeros(size_SQ.shape)
  r_SN = np.broadcast_to(y_SN, w_SN.shape)
  # Iterative refinement: normal equations square the condition number, and a
  # second solve for the residual wins back what that costs.
  for _ in range(1 + refine):
    step_SQ1 = inverse_SQQ @ (weighted_SQN @ r_SN[..., None])
    c_SQ = c_SQ + step_SQ1[..., 0]
    r_SN = y_SN - (phi_SNQ @ c_SQ[..., None])[..., 0]
  return c_SQ, np.einsum('sn,sn->s', w_SN, r_SN ** 2)


def _with_zeros(phi_SNQ, y_SN, w_SN, positive):
  """`linear` where it gives negative coefficients: tries all sets of zeros."""
  S, _, Q = phi_SNQ.shape
  # At most three signed coefficients: seven sets of zeros to try, where an
  # active-set method would loop.
  best_S, best_SQ = np.full(S, np.inf), np.zeros((S, Q))
  signed = np.flatnonzero(positive)
  for mask in range(1, 2 ** len(signed)):
    zero = [q for i, q in enumerate(signed) if mask >> i & 1]
    # The bits of `mask` say which signed coefficients are 0; mask 0 is the
    # plain solution, which the caller has tried.
    rest_Q = np.ones(Q, bool)
    rest_Q[zero] = False
    c_SQ = np.zeros((S, Q))
    if rest_Q.any():
      c_SQ[:, rest_Q], sse_S = _normal(phi_SNQ[..., rest_Q], y_SN, w_SN)
    else:
      sse_S = np.einsum('sn,sn->s', w_SN, y_SN ** 2)
    # A set counts only if its other coefficients keep their signs.
    better_S = (sse_S < best_S) & ~np.any((c_SQ < 0) & positive, 1)
    best_S = np.where(better_S, sse_S, best_S)
    best_SQ = np.where(better_S[:, None], c_SQ, best_SQ)
  return best_SQ, best_S


def linear(phi_SNQ: np.ndarray, y_SN: np.ndarray, w_SN: np.ndarray,
           positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns least squares with some coefficients not negative.

  Args:
    phi_SNQ: the terms; a problem with a non-finite one is given up.
    y_SN: the outputs.
    w_SN: the weights.
    positive: Q booleans.

  Returns:
    c_SQ and the sum of squares sse_S, inf where given up.
  """
  S, N, Q = phi_SNQ.shape
  w_SN, y_SN = np.broadcast_to(w_SN, (S, N)), np.broadcast_to(y_SN, (S, N))
  # One non-finite term (a power that overflows) would turn the whole solve into
  # NaN.
  bad_S = ~np.isfinite(phi_SNQ).all((1, 2))
  if bad_S.any():
    phi_SNQ = np.where(bad_S[:, None, None], 0., phi_SNQ)
  if not Q:
    return np.zeros((S, 0)), np.einsum('sn,sn->s', w_SN, y_SN ** 2)
  c_SQ, sse_S = _normal(phi_SNQ, y_SN, w_SN)
  wrong_S = np.any((c_SQ < 0) & positive, 1)
  if wrong_S.any():
    c_SQ[wrong_S], sse_S[wrong_S] = _with_zeros(
        phi_SNQ[wrong_S], y_SN[wrong_S], w_SN[wrong_S], positive)
  return c_SQ, np.where(bad_S, np.inf, sse_S)


def golden(f: Callable[[np.ndarray], np.ndarray], low_S: np.ndarray,
           high_S: np.ndarray, steps: int = 40) -> np.ndarray:
  """Returns the minimum of each of S functions between its two ends."""
  # Forty steps shrink the bracket by 4e-9: the objective, flat at its
  # minimum, is then exact to rounding.
  # a < b < c < d: each step drops one end and keeps an inner point, so it costs
  # a single evaluation of f.
  a, d = low_S.copy(), high_S.copy()
  b, c = d - _GOLDEN * (d - a), a + _GOLDEN * (d - a)
  f_b, f_c = f(b), f(c)
  for _ in range(steps):
    left = f_b < f_c
    a, d = np.where(left, a, b), np.where(left, c, d)
    new = np.where(left, d - _GOLDEN * (d - a), a + _GOLDEN * (d - a))
    f_new = f(new)
    b, c, f_b, f_c = (np.where(left, new, c), np.where(left, b, new),
                      np.where(left, f_new, f_c), np.where(left, f_b, f_new))
  return np.where(f_b < f_c, b, c)


def _starts(param, cols):
  """The starts of a nonlinear parameter, within its bounds."""
  starts = param.start
  if callable(starts):
    starts = starts(*cols)
  return np.clip(np.asarray(starts, float), param.low, param.high)


def _scan(phi_GNQ, y_N, w_SN, positive):
  """Sums of squares sse_SG on a grid, from moments: for bracketing only.

  None where they would be differences of large numbers: under an offset of y
  that the law includes, the moments keep no digit of what is left.
  """
  G, N, Q = phi_GNQ.shape
  # Matrix products over all solves and grid points at once.
  first = (w_SN @ (phi_GNQ * y_N[:, None]).transpose(1, 0, 2)
           .reshape(N, G * Q)).reshape(-1, G, Q)
  gram = (w_SN @ np.einsum('gnq,gnr->ngqr', phi_GNQ, phi_GNQ)
          .reshape(N, -1)).reshape(-1, G, Q, Q)
  # What a single term explains of the sum of squares: (w phi y)^2 / (w phi^2).
  total_S1 = (w_SN @ y_N ** 2)[:, None]
  single = [first[..., q] ** 2 / np.maximum(gram[..., q, q], 1e-250)
            for q in range(Q)]
  explained = single[0]
  if Q == 2:
    # Two terms: Cramer's rule for the 2 x 2 normal equations of every solve and
    # grid point.
    det = np.maximum(gram[..., 0, 0] * gram[..., 1, 1] -
                     gram[..., 0, 1] ** 2, 1e-250)
    c_0 = gram[..., 1, 1] * first[..., 0] - gram[..., 0, 1] * first[..., 1]
    c_1 = gram[..., 0, 0] * first[..., 1] - gram[..., 0, 1] * first[..., 0]
    both = (c_0 * first[..., 0] + c_1 * first[..., 1]) / det
    # Where a sign is wrong, the first term alone: near enough to bracket.
    wrong = ((c_0 < 0) & positive[0]) | ((c_1 < 0) & positive[1])
    explained = np.where(wrong, single[0], both)
  sse_SG = total_S1 - explained
  # A difference below 1e-8 of the total has lost half of float64's digits.
  if (sse_SG.min(1) > 1e-8 * total_S1[:, 0]).all():
    return sse_SG
  return None


def project(problem: problem_lib.Problem, w_SN: np.ndarray,
            fixed: tuple[str, Any] | None = None
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the least squares on y of a form with one nonlinear parameter.

  Args:
    problem: its loss must be 'ls' on the identity link.
    w_SN: the weights of S problems.
    fixed: None, or (name, v_S): a reported parameter and the value at which
      each problem holds it.

  Returns:
    c_SQ, theta_SP (P is 0 or 1) and the sums of squares sse_S.
  """
  form, S = problem.form, len(w_SN)
  # With its only nonlinear parameter fixed, the law is linear: no search.
  if fixed is not None and fixed[0] in form.nonlinear:
    (name, param), = form.nonlinear.items()
    units: dict[Any, float] = dict(zip(form.x, problem.centre))
    theta_S = np.asarray(fixed[1]) / units.get(param.scale, 1.)
    phi_SNQ = problem_lib.basis(form, {name: theta_S}, problem.cols)
    c_SQ, sse_S = linear(phi_SNQ, problem.y_N, w_SN, problem.positive)
    return c_SQ, theta_S[:, None], sse_S

  def best_linear(theta: dict[str, np.ndarray], rows: np.ndarray
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns c_SQ and sse_S of some problems at nonlinear parameters."""
    phi_SNQ = problem_lib.basis(form, theta, problem.cols)
    # Terms without a nonlinear parameter are equal for all problems.
    if phi_SNQ.shape[0] == 1:
      phi_SNQ = np.broadcast_to(phi_SNQ, (len(rows), *phi_SNQ.shape[1:]))
    if fixed is None:
      return linear(phi_SNQ, problem.y_N, w_SN[rows], problem.positive)
    return _with_fixed(problem, theta, phi_SNQ, w_SN[rows], fixed[0],
                       fixed[1][rows])

  if not form.nonlinear:
    c_SQ, sse_S = best_linear({}, np.arange(S))
    return c_SQ, np.zeros((S, 0)), sse_S
  (name, param), = form.nonlinear.items()
  grid = _starts(param, problem.cols)
  pieces = max(1, w_SN.size // _PIECE)
  parts = []
  for rows in np.array_split(np.arange(S), pieces):
    sse_SG = None
    if fixed is None:
      sse_SG = _scan(problem_lib.basis(form, {name: grid}, problem.cols),
                     problem.y_N, w_SN[rows], problem.positive)
    # With a fixed coefficient, or where moments are too coarse, every grid
    # point is solved in full.
    if sse_SG is None:
      every = np.tile(grid, len(rows))
      sse_SG = best_linear({name: every}, np.repeat(rows, len(grid)))[1]
      sse_SG = sse_SG.reshape(len(rows), -1)
    # The grid brackets the minimum, golden section finds it.
    at = np.argmin(sse_SG, 1)
    theta_S = golden(lambda theta: best_linear({name: theta}, rows)[1],
                     grid[np.maximum(at - 1, 0)],
                     grid[np.minimum(at + 1, len(grid) - 1)])
    parts.append((*best_linear({name: theta_S}, rows), theta_S))
  c_SQ, sse_S, theta_S = (np.concatenate(part) for part in zip(*parts))
  return c_SQ, theta_S[:, None], sse_S


def _with_fixed(problem, theta, phi_SNQ, w_SN, name, v_S):
  """`linear` with one reported coefficient held: it is linear in c."""
  form, Q = problem.form, phi_SNQ.shape[2]
  at = list(form.linear).index(name)
  with np.errstate(all='ignore'):  # Of the other parameters.
    gain_SQ = np.stack([np.broadcast_to(
        forms.reported(form, np, tuple(one), theta, problem.centre)[name],
        len(v_S)) for one in np.eye(Q)], 1)
  others = [q for q in range(Q) if q != at]
  # The held coefficient is a fixed offset of the others: solve for these.
  lead_SN = phi_SNQ[..., at] / gain_SQ[:, at, None]
  rest_SNQ = (phi_SNQ[..., others] -
              lead_SN[..., None] * gain_SQ[:, None, others])
  part_SQ, sse_S = linear(rest_SNQ, problem.y_N - v_S[:, None] * lead_SN,
                          w_SN, problem.positive[others])
  c_SQ = np.zeros((len(v_S), Q))
  # Back to Q coefficients: the fixed one is what the others leave of v.
  c_SQ[:, others] = part_SQ
  explained_S = np.einsum('sq,sq->s', gain_SQ[:, others], part_SQ)
  c_SQ[:, at] = (v_S - explained_S) / gain_SQ[:, at]
  return c_SQ, sse_S


def candidates(problem: problem_lib.Problem, count: int = 16
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the best grid points of variable projection, to be polished.

  Returns:
    c_SQ, theta_SP and objectives, the best first.
  """
  form = problem.form
  axes = [_starts(param, problem.cols) for param in form.nonlinear.values()]
  theta_GP = np.zeros((1, 0))
  # All combinations of the starts; np.unique drops those that clipping to the
  # bounds has made equal.
  if axes:
    mesh = np.meshgrid(*axes, indexing='ij')
    theta_GP = np.unique(np.stack([m.ravel() for m in mesh], 1), axis=0)
  # Squares relative to y are what the logarithm sees to first order.
  scale_N = {'identity': np.ones_like(problem.y_N), 'log': problem.y_N,
             'logit': problem.y_N * (1 - problem.y_N)}[problem.loss.link]
  w_N = problem.w_N / scale_N ** 2
  pieces = -(-len(theta_GP) * len(w_N) // _PIECE)
  parts = []
  for theta_SP in np.array_split(theta_GP, pieces):
    phi_SNQ = problem_lib.basis(
        form, problem_lib.by_name(form, theta_SP), problem.cols)
    c_SQ = np.zeros((len(theta_SP), 0))
    if form.linear:
      c_SQ, _ = linear(phi_SNQ, problem.y_N, w_N, problem.positive)
    f_SN = problem_lib.combine(c_SQ, phi_SNQ)
    parts.append((c_SQ, problem_lib.objective(problem, f_SN,
                                              problem.w_N[None])))
  c_GQ, value_G = (np.concatenate(part) for part in zip(*parts))
  # Stable, so that equal objectives are polished in the order of the grid.
  best = np.argsort(value_G, kind='stable')[:count]
  return c_GQ[best], theta_GP[best], value_G[best]
