"""The optimisers behind a fit: variable projection and a damped Newton.

Two roads to the optimum of  sum_n w_n rho(link y_n - link f(x_n)).
`projected` solves plain least squares with at most one shape parameter: the
linear coefficients in closed form, the shape by one-dimensional search, all
resamples at once in numpy. `newton` polishes every other form and loss, with
the exact Hessian, in float64 on the CPU, one compilation per form, loss and
size class.

Shape suffixes: N points, S solves (starts or resamples), P parameters,
Q linear coefficients, X input columns.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.laws import forms

BLOCK = 16  # solves per call of the compiled program
_GOLDEN = (5 ** .5 - 1) / 2
# A context manager under this name since jax 0.8, and before that in
# jax.experimental: float64 here must not change the training program.
_x64 = (jax.enable_x64 if hasattr(jax, 'enable_x64') else
        jax.experimental.enable_x64)


class Loss(NamedTuple):
  """What is minimised: `kind` of rho on the scale of `link`."""
  link: str
  kind: str


LOSSES = {
    'ls': Loss('identity', 'ls'), 'huber': Loss('identity', 'huber'),
    'lad': Loss('identity', 'lad'), 'log_ls': Loss('log', 'ls'),
    'log_huber': Loss('log', 'huber'), 'log_lad': Loss('log', 'lad'),
    'logit_ls': Loss('logit', 'ls'),
}


def link(xp, name, y):
  """y on the scale on which residuals are taken."""
  if name == 'log':
    return xp.log(y)
  if name == 'logit':
    return xp.log(y) - xp.log1p(-y)
  return y


def rho(xp, kind, r, delta):
  """The loss of residuals r: r^2, Huber's (r^2 / 2 inside delta), or |r|."""
  if kind == 'ls':
    return r ** 2
  size = xp.abs(r)
  if kind == 'lad':
    return size
  return xp.where(size <= delta, r ** 2 / 2, delta * (size - delta / 2))


def evaluate(form, c_SQ, t_SP, cols):
  """The law at scaled columns: f_SN for S sets of parameters."""
  t = {name: t_SP[:, i, None] for i, name in enumerate(form.shape)}
  return combine(c_SQ, basis(form, t, cols))


def basis(form, t, cols):
  """The terms phi_SNQ for shape parameters of shape (S, 1)."""
  with np.errstate(over='ignore', under='ignore', divide='ignore',
                   invalid='ignore'):
    cols = [np.asarray(col)[None] for col in cols]
    terms = form.basis(np, t, *cols)
    shape = np.broadcast_shapes(*(term.shape for term in terms),
                                *(value.shape for value in t.values()))
    return np.stack([np.broadcast_to(term, shape) for term in terms], -1)


def combine(c_SQ, phi_SNQ):
  """The law from its coefficients and terms; the one term where no c."""
  if not c_SQ.shape[1]:
    return phi_SNQ[..., 0]
  return np.einsum('snq,sq->sn', phi_SNQ, c_SQ)


def _normal(phi_SNQ, y_N, w_SN):
  """Weighted least squares by normal equations, twice refined: c_SQ, sse_S."""
  weighted = phi_SNQ * w_SN[..., None]
  gram = np.einsum('snq,snr->sqr', weighted, phi_SNQ)
  diagonal = np.einsum('sqq->sq', gram)
  ridge = 1e-13 * diagonal + 1e-250
  gram = gram + ridge[..., None] * np.eye(gram.shape[1])
  inverse = np.linalg.inv(gram)
  c_SQ = np.einsum('sqr,snr,n->sq', inverse, weighted, y_N, optimize=True)
  for _ in range(2):
    r_SN = y_N[None] - combine(c_SQ, phi_SNQ)
    c_SQ = c_SQ + np.einsum('sqr,snr,sn->sq', inverse, weighted, r_SN,
                            optimize=True)
  r_SN = y_N[None] - combine(c_SQ, phi_SNQ)
  return c_SQ, np.einsum('sn,sn->s', w_SN, r_SN ** 2)


def linear(phi_SNQ, y_N, w_SN, positive):
  """Least squares with some coefficients not negative, by enumeration.

  Args:
    phi_SNQ: the terms.
    y_N: the outputs.
    w_SN: the weights.
    positive: Q booleans.

  Returns:
    c_SQ and the sum of squares sse_S.
  """
  S, N, Q = phi_SNQ.shape
  w_SN = np.broadcast_to(w_SN, (S, N))
  if Q == 0 or not np.all(np.isfinite(phi_SNQ)):
    bad = ~np.all(np.isfinite(phi_SNQ), (1, 2))
    phi_SNQ = np.where(bad[:, None, None], 0., phi_SNQ)
  else:
    bad = np.zeros(S, bool)
  c_SQ, sse_S = _normal(phi_SNQ, y_N, w_SN)
  wrong = np.any((c_SQ < 0) & positive, 1)
  if wrong.any():
    sub, w, best = phi_SNQ[wrong], w_SN[wrong], np.full(wrong.sum(), np.inf)
    best_c = np.zeros((len(best), Q))
    signed = np.flatnonzero(positive)
    for mask in range(1, 2 ** len(signed)):
      drop = signed[[bool(mask >> i & 1) for i in range(len(signed))]]
      keep = np.setdiff1d(np.arange(Q), drop)
      part = np.zeros((len(best), Q))
      if len(keep):
        part[:, keep], sse = _normal(sub[..., keep], y_N, w)
      else:
        sse = w @ y_N ** 2
      good = (sse < best) & ~np.any((part < 0) & positive, 1)
      best = np.where(good, sse, best)
      best_c = np.where(good[:, None], part, best_c)
    c_SQ[wrong], sse_S[wrong] = best_c, best
  return c_SQ, np.where(bad, np.inf, sse_S)


def golden(f, low_S, high_S, steps=48):
  """The minimum of each of S unimodal functions between its two ends."""
  a, d = low_S.copy(), high_S.copy()
  b, c = d - _GOLDEN * (d - a), a + _GOLDEN * (d - a)
  f_b, f_c = f(b), f(c)
  for _ in range(steps):
    left = f_b < f_c
    a, d = np.where(left, a, b), np.where(left, c, d)
    kept, f_kept = np.where(left, b, c), np.where(left, f_b, f_c)
    new = np.where(left, d - _GOLDEN * (d - a), a + _GOLDEN * (d - a))
    f_new = f(new)
    b, c = np.where(left, new, kept), np.where(left, kept, new)
    f_b, f_c = np.where(left, f_new, f_kept), np.where(left, f_kept, f_new)
  return np.where(f_b < f_c, b, c)


def projected(form, cols, y_N, w_SN):
  """Least squares on y of a form with at most one shape parameter.

  Args:
    form: the Form.
    cols: the scaled columns.
    y_N: the outputs.
    w_SN: the weights of S problems.

  Returns:
    c_SQ, t_SP (P is 0 or 1), sse_S.
  """
  positive = np.array([kind == 'positive' for kind in form.linear.values()])
  if not form.shape:
    phi = np.broadcast_to(basis(form, {}, cols),
                          (len(w_SN), len(y_N), len(positive)))
    c_SQ, sse_S = linear(phi, y_N, w_SN, positive)
    return c_SQ, np.zeros((len(w_SN), 0)), sse_S
  (name, shape), = form.shape.items()
  solve = lambda t_S, w: linear(basis(form, {name: t_S[:, None]}, cols), y_N,
                                w, positive)
  parts = []
  for w in np.array_split(w_SN, -(-w_SN.size // 200_000)):
    t_S = search(lambda t, rows: solve(t, w[rows])[1], shape, cols, len(w))
    parts.append((*solve(t_S, w), t_S))
  c_SQ, sse_S, t_S = (np.concatenate(part) for part in zip(*parts))
  return c_SQ, t_S[:, None], sse_S


def search(objective, shape, cols, count):
  """The shape parameter of least objective, for each of `count` problems.

  `objective(t, rows)` gives the objective of problems `rows` at `t`. A scan
  over the starts brackets the minimum, a golden section finds it.
  """
  grid = np.asarray(shape.start(*cols) if callable(shape.start) else
                    shape.start)
  rows = np.arange(count)
  values = np.stack([objective(np.full(count, t), rows) for t in grid], 1)
  at = np.argmin(values, 1)
  low, high = grid[np.maximum(at - 1, 0)], grid[np.minimum(at + 1,
                                                           len(grid) - 1)]
  return golden(lambda t: objective(t, rows), low, high)


def pack(form, c_SQ, t_SP):
  """The vector the Newton works on: amplitudes and scales as logarithms."""
  out = []
  for i, kind in enumerate(form.linear.values()):
    out.append(np.log(np.maximum(c_SQ[:, i], 1e-300)) if kind == 'positive'
               else c_SQ[:, i])
  for i, shape in enumerate(form.shape.values()):
    out.append(np.log(t_SP[:, i]) if shape.log else t_SP[:, i])
  return np.stack(out, 1)


def unpack(form, xp, p):
  """The inverse of `pack` for a vector p_P: (tuple c, dictionary t)."""
  c = tuple(xp.exp(p[i]) if kind == 'positive' else p[i]
            for i, kind in enumerate(form.linear.values()))
  t = {name: xp.exp(v) if shape.log else v for (name, shape), v in
       zip(form.shape.items(), p[len(c):])}
  return c, t


def bounds(form, scale):
  """Least and greatest value of each entry of the packed vector."""
  low, high = [], []
  for kind in form.linear.values():
    # e^-20 of the data's scale is a zero to all eyes but the logarithm's.
    low.append(np.log(scale) - 20 if kind == 'positive' else -np.inf)
    high.append(np.log(scale) + 60 if kind == 'positive' else np.inf)
  for shape in form.shape.values():
    low.append(np.log(shape.low) if shape.log else shape.low)
    high.append(np.log(shape.high) if shape.log else shape.high)
  return np.array(low), np.array(high)


@functools.lru_cache(maxsize=None)
def _compiled(form, link_name, kind):
  """The jitted polish of a block of problems; compiles once per size."""
  names = tuple(form.linear)

  def coefficients(c, t, centre_X, pin_Q, pin):
    """c with one reported coefficient held at `pin` (where pin_Q says so)."""
    if not names:
      return c
    units = np.eye(len(names))
    gain_QQ = jnp.stack([
        jnp.stack([jnp.asarray(forms.reported(
            form, jnp, tuple(unit), t, list(centre_X))[name] + 0. * centre_X[0])
                   for unit in units]) for name in names])
    c_Q = jnp.stack(c)
    own_Q = jnp.diagonal(gain_QQ)
    held_Q = (pin - gain_QQ @ c_Q + own_Q * c_Q) / own_Q
    return jnp.where(pin_Q, held_Q, c_Q)

  def residuals(p, cols_XN, y_N, centre_X, pin_Q, pin):
    c, t = unpack(form, jnp, p)
    c_Q = coefficients(c, t, centre_X, pin_Q, pin)
    terms = form.basis(jnp, t, *cols_XN)
    f_N = (sum(c_Q[i] * term for i, term in enumerate(terms)) if names else
           terms[0])
    return link(jnp, link_name, y_N) - link(jnp, link_name, f_N)

  def polish(p_SP, w_SN, pin_S, cols_XN, y_N, centre_X, pin_Q, free_P, low_P,
             high_P, delta):
    held_P = 1. - free_P

    def weights(r, w):
      """The objective and the weights of gradient, curvature and IRLS."""
      if kind == 'ls':
        return jnp.sum(w * r ** 2) / 2, w * r, w, w
      inside = jnp.abs(r) <= delta
      value = jnp.where(inside, r ** 2 / 2, delta * (jnp.abs(r) - delta / 2))
      slope = jnp.clip(r, -delta, delta)
      irls = jnp.where(inside, 1., delta / jnp.maximum(jnp.abs(r), delta))
      return jnp.sum(w * value), w * slope, w * inside, w * irls

    def one(problem):
      p_P, w_N, pin = problem
      residual = lambda p: residuals(p, cols_XN, y_N, centre_X, pin_Q, pin)

      def value(p):
        r = residual(p)
        return weights(jnp.where(w_N > 0, r, 0.), w_N)[0]

      def expand(p):
        r = residual(p)
        jac = jax.jacfwd(residual)(p)
        # A point of no weight must not poison the sums with its own NaN.
        used = w_N > 0
        r = jnp.where(used, r, 0.)
        jac = jnp.where(used[:, None], jac, 0.)
        f, slope, curve, irls = weights(r, w_N)
        bend = jax.hessian(lambda q: jnp.vdot(
            jax.lax.stop_gradient(slope), jnp.where(used, residual(q), 0.)))(p)
        exact = (jac.T * curve) @ jac + bend
        return f, slope @ jac, exact, (jac.T * irls) @ jac

      def body(state):
        p, f, g, exact, irls, lam, it, _ = state
        blocked = ((p <= low_P) & (g > 0)) | ((p >= high_P) & (g < 0))
        active = free_P * jnp.where(blocked, 0., 1.)
        h = jnp.where(lam > 1e-2, irls, exact)
        damp = lam * (jnp.abs(jnp.diagonal(h)) + 1e-12 * jnp.trace(irls))
        pair = active[:, None] * active[None, :]
        h = h * pair + jnp.diag(damp * active + 1. - active) + 1e-300
        g = g * active
        step = -jnp.linalg.solve(h, g)
        step = jnp.where(jnp.isfinite(step), step, 0.)
        trial = jnp.clip(p + step, low_P, high_P)
        step = trial - p
        gain = -jnp.vdot(g, step)
        f_new = value(trial)
        better = f_new < f
        small = (jnp.abs(gain) <= 1e-14 * f) | (
            jnp.max(jnp.abs(step) / (1. + jnp.abs(p))) < 1e-11)
        done = small & (better | (lam < 1e-1) | (f_new <= f))
        done = done | (lam > 1e9)
        # A rejected step costs no derivatives outside vmap; inside, the
        # select below is what the batch pays anyway.
        p = jnp.where(better, trial, p)
        f, g, exact, irls = jax.lax.cond(
            better, expand, lambda q: (f, g_full(state), exact, irls), p)
        lam = jnp.where(better, jnp.maximum(lam / 10, 1e-12),
                        jnp.maximum(lam * 10, 1e-4))
        return p, f, g, exact, irls, lam, it + 1, done

      g_full = lambda state: state[2]
      p_P = jnp.clip(p_P, low_P, high_P)
      start = (p_P, *expand(p_P), 1e-4, 0, False)
      going = lambda state: (state[6] < 150) & ~state[7]
      p, f, g, exact, _, _, it, done = jax.lax.while_loop(going, body, start)
      inside = (p > low_P) & (p < high_P)
      slope = jnp.max(jnp.abs(g * free_P * inside))
      return p, f, slope, exact, done

    del held_P
    return jax.lax.map(one, (p_SP, w_SN, pin_S), batch_size=8)

  return jax.jit(polish)
