"""Least squares with the linear coefficients in closed form.

Variable projection: for given shape parameters the best linear coefficients
are a small least-squares problem, so a law with one shape parameter is a
one-dimensional search, and a scan over a grid of shapes starts all others.
Every routine solves S problems at once.

Shape suffixes: N points, S solves (starts or resamples), G grid points,
P shape parameters, Q linear coefficients.
"""

import numpy as np

from audiorank.laws import forms
from audiorank.laws import solve

_GOLDEN = (5 ** .5 - 1) / 2


def _normal(phi_SNQ, y_SN, w_SN, refine=1):
  """Weighted least squares by normal equations, refined: c_SQ, sse_S."""
  weighted_SQN = np.swapaxes(phi_SNQ * w_SN[..., None], 1, 2)
  gram_SQQ = weighted_SQN @ phi_SNQ
  size_SQ = np.einsum('sqq->sq', gram_SQQ)
  # A collinear or absent term gets a coefficient near 0, not an error.
  ridge_SQ = 1e-13 * size_SQ + 1e-250
  gram_SQQ = gram_SQQ + ridge_SQ[..., None] * np.eye(gram_SQQ.shape[1])
  if gram_SQQ.shape[1] == 1:
    inverse_SQQ = 1 / gram_SQQ
  else:
    inverse_SQQ = np.linalg.inv(gram_SQQ)
  c_SQ = np.zeros(size_SQ.shape)
  r_SN = np.broadcast_to(y_SN, w_SN.shape)
  for _ in range(1 + refine):
    step_SQ1 = inverse_SQQ @ (weighted_SQN @ r_SN[..., None])
    c_SQ = c_SQ + step_SQ1[..., 0]
    r_SN = y_SN - (phi_SNQ @ c_SQ[..., None])[..., 0]
  return c_SQ, np.einsum('sn,sn->s', w_SN, r_SN ** 2)


def linear(phi_SNQ, y_SN, w_SN, positive):
  """Least squares with some coefficients not negative, by enumeration.

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
  bad_S = ~np.isfinite(phi_SNQ).all((1, 2))
  if bad_S.any():
    phi_SNQ = np.where(bad_S[:, None, None], 0., phi_SNQ)
  if not Q:
    return np.zeros((S, 0)), np.einsum('sn,sn->s', w_SN, y_SN ** 2)
  c_SQ, sse_S = _normal(phi_SNQ, y_SN, w_SN)
  wrong_S = np.any((c_SQ < 0) & positive, 1)
  if wrong_S.any():
    phi, y, w = phi_SNQ[wrong_S], y_SN[wrong_S], w_SN[wrong_S]
    best, best_c = np.full(len(w), np.inf), np.zeros((len(w), Q))
    signed = np.flatnonzero(positive)
    for mask in range(1, 2 ** len(signed)):
      kept = np.ones(Q, bool)
      kept[[q for i, q in enumerate(signed) if mask >> i & 1]] = False
      part = np.zeros((len(w), Q))
      part[:, kept], sse = (
          _normal(phi[..., kept], y, w) if kept.any() else
          (part[:, kept], np.einsum('sn,sn->s', w, y ** 2)))
      good = (sse < best) & ~np.any((part < 0) & positive, 1)
      best = np.where(good, sse, best)
      best_c = np.where(good[:, None], part, best_c)
    c_SQ[wrong_S], sse_S[wrong_S] = best_c, best
  return c_SQ, np.where(bad_S, np.inf, sse_S)


def golden(f, low_S, high_S, steps=40):
  """The minimum of each of S functions between its two ends."""
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


def _starts(shape, cols):
  found = shape.start(*cols) if callable(shape.start) else shape.start
  return np.clip(np.asarray(found, float), shape.low, shape.high)


def _scan(phi_GNQ, y_N, w_SN, positive):
  """Sums of squares sse_SG on a grid, from moments: for bracketing only.

  None where they would be differences of large numbers: under an offset of y
  that the law takes up, the moments keep no digit of what is left.
  """
  G, N, Q = phi_GNQ.shape
  first = (w_SN @ (phi_GNQ * y_N[:, None]).transpose(1, 0, 2)
           .reshape(N, G * Q)).reshape(-1, G, Q)
  gram = (w_SN @ np.einsum('gnq,gnr->ngqr', phi_GNQ, phi_GNQ)
          .reshape(N, -1)).reshape(-1, G, Q, Q)
  total_S1 = (w_SN @ y_N ** 2)[:, None]
  single = [first[..., q] ** 2 / np.maximum(gram[..., q, q], 1e-250)
            for q in range(Q)]
  if Q == 1:
    return _told(total_S1 - single[0], total_S1)
  det = np.maximum(gram[..., 0, 0] * gram[..., 1, 1] - gram[..., 0, 1] ** 2,
                   1e-250)
  c_0 = (gram[..., 1, 1] * first[..., 0] - gram[..., 0, 1] * first[..., 1])
  c_1 = (gram[..., 0, 0] * first[..., 1] - gram[..., 0, 1] * first[..., 0])
  both = (c_0 * first[..., 0] + c_1 * first[..., 1]) / det
  wrong = ((c_0 < 0) & positive[0]) | ((c_1 < 0) & positive[1])
  return _told(total_S1 - np.where(wrong, single[0], both), total_S1)


def _told(sse_SG, total_S1):
  return sse_SG if (sse_SG.min(1) > 1e-8 * total_S1[:, 0]).all() else None


def project(problem, w_SN, pin=None):
  """Least squares on y of a form with at most one shape parameter.

  Args:
    problem: its loss must be 'ls' on the identity link.
    w_SN: the weights of S problems.
    pin: None, or (name, v_S): a reported parameter and the value at which
      each problem holds it.

  Returns:
    c_SQ, t_SP (P is 0 or 1) and the sums of squares sse_S.
  """
  form, S = problem.form, len(w_SN)
  if pin is not None and pin[0] in form.shape:
    (name, shape), = form.shape.items()
    unit = dict(zip(form.x, problem.centre))
    t_S = np.asarray(pin[1]) / (unit[shape.scale] if shape.scale else 1.)
    c_SQ, sse_S = linear(solve.basis(form, {name: t_S}, problem.cols),
                         problem.y_N, w_SN, problem.positive)
    return c_SQ, t_S[:, None], sse_S

  def at_shape(t, rows):
    phi_SNQ = solve.basis(form, t, problem.cols)
    if phi_SNQ.shape[0] == 1:
      phi_SNQ = np.broadcast_to(phi_SNQ, (len(rows), *phi_SNQ.shape[1:]))
    if pin is None:
      return linear(phi_SNQ, problem.y_N, w_SN[rows], problem.positive)
    return _pinned(problem, t, phi_SNQ, w_SN[rows], pin[0], pin[1][rows])

  if not form.shape:
    c_SQ, sse_S = at_shape({}, np.arange(S))
    return c_SQ, np.zeros((S, 0)), sse_S
  (name, shape), = form.shape.items()
  grid = _starts(shape, problem.cols)
  parts = []
  pieces = max(1, w_SN.size // 100_000)
  for rows in np.array_split(np.arange(S), pieces):
    sse_SG = None
    if pin is None:
      sse_SG = _scan(solve.basis(form, {name: grid}, problem.cols),
                     problem.y_N, w_SN[rows], problem.positive)
    if sse_SG is None:
      every = np.tile(grid, len(rows))
      sse_SG = at_shape({name: every}, np.repeat(rows, len(grid)))[1].reshape(
          len(rows), -1)
    at = np.argmin(sse_SG, 1)
    t_S = golden(lambda t: at_shape({name: t}, rows)[1],
                 grid[np.maximum(at - 1, 0)],
                 grid[np.minimum(at + 1, len(grid) - 1)])
    parts.append((*at_shape({name: t_S}, rows), t_S))
  c_SQ, sse_S, t_S = (np.concatenate(part) for part in zip(*parts))
  return c_SQ, t_S[:, None], sse_S


def _pinned(problem, t, phi_SNQ, w_SN, name, v_S):
  """`linear` with one reported coefficient held: it is linear in c."""
  form, Q = problem.form, phi_SNQ.shape[2]
  at = list(form.linear).index(name)
  with np.errstate(all='ignore'):  # Of the other parameters.
    gain_SQ = np.stack([np.broadcast_to(
        forms.reported(form, np, tuple(unit), t, problem.centre)[name],
        len(v_S)) for unit in np.eye(Q)], 1)
  others = [q for q in range(Q) if q != at]
  lead_SN = phi_SNQ[..., at] / gain_SQ[:, at, None]
  rest_SNQ = (phi_SNQ[..., others] -
              lead_SN[..., None] * gain_SQ[:, None, others])
  part_SQ, sse_S = linear(rest_SNQ, problem.y_N - v_S[:, None] * lead_SN,
                          w_SN, problem.positive[others])
  c_SQ = np.zeros((len(v_S), Q))
  c_SQ[:, others] = part_SQ
  c_SQ[:, at] = (v_S - np.einsum('sq,sq->s', gain_SQ[:, others], part_SQ)
                 ) / gain_SQ[:, at]
  return c_SQ, sse_S


def candidates(problem, count=16):
  """The best grid points of variable projection, c_SQ and t_SP, to polish."""
  form = problem.form
  axes = [_starts(shape, problem.cols) for shape in form.shape.values()]
  mesh = np.meshgrid(*axes, indexing='ij')
  t_GP = np.stack([m.ravel() for m in mesh], 1) if axes else np.zeros((1, 0))
  t_GP = np.unique(t_GP, axis=0)
  # Squares relative to y are what the logarithm sees to first order.
  scale_N = {'identity': np.ones_like(problem.y_N), 'log': problem.y_N,
             'logit': problem.y_N * (1 - problem.y_N)}[problem.loss.link]
  w_N = problem.w_N / scale_N ** 2
  found = []
  for t_SP in np.array_split(t_GP, -(-len(t_GP) * len(w_N) // 100_000)):
    phi_SNQ = solve.basis(form, solve.named(form, t_SP), problem.cols)
    c_SQ = (linear(phi_SNQ, problem.y_N, w_N, problem.positive)[0]
            if form.linear else np.zeros((len(t_SP), 0)))
    f_SN = solve.combine(c_SQ, phi_SNQ)
    found.append((c_SQ, solve.objective(problem, f_SN, problem.w_N[None])))
  c_GQ, value_G = (np.concatenate(part) for part in zip(*found))
  best = np.argsort(value_G, kind='stable')[:count]
  return c_GQ[best], t_GP[best], value_G[best]
