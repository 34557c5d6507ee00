"""A damped Newton that polishes any form under any loss, compiled once.

Exact Hessians by automatic differentiation, in float64 on the CPU whatever
the training program runs on. Amplitudes and scales are searched as
logarithms, columns are scaled, bounds are a projection. Problems are handed
over in blocks of fixed size, points are padded to a size class with weight
0: one compilation per form, loss and size class serves starts, resamples,
folds and profiles alike.

Shape suffixes: N points, S solves, P packed parameters, Q linear
coefficients, X input columns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.laws import forms
from audiorank.laws import solve

BLOCK = 16
STEPS = 200
# The context manager bears this name from jax 0.8 on; before, it lay in
# jax.experimental. A global flag would change the training program.
_x64 = (jax.enable_x64 if hasattr(jax, 'enable_x64') else
        jax.experimental.enable_x64)


def pack(form, c_SQ, t_SP):
  """The vectors the Newton works on: amplitudes and scales as logarithms."""
  c = [np.log(np.maximum(col, 1e-300)) if kind == 'positive' else col
       for kind, col in zip(form.linear.values(), c_SQ.T)]
  t = [np.log(col) if shape.log else col
       for shape, col in zip(form.shape.values(), t_SP.T)]
  return np.stack(c + t, 1)


def unpack(form, p_SP):
  """The inverse of `pack`: c_SQ, t_SP."""
  Q = len(form.linear)
  c = [np.exp(col) if kind == 'positive' else col
       for kind, col in zip(form.linear.values(), p_SP.T)]
  t = [np.exp(col) if shape.log else col
       for shape, col in zip(form.shape.values(), p_SP.T[Q:])]
  S = len(p_SP)
  return (np.stack(c, 1) if c else np.zeros((S, 0)),
          np.stack(t, 1) if t else np.zeros((S, 0)))


def bounds(problem):
  """Least and greatest value of each packed parameter."""
  scale = np.log(np.max(np.abs(problem.y_N)))
  low, high = [], []
  for kind in problem.form.linear.values():
    # e^-25 of the data's scale is zero to all but the logarithm.
    low.append(scale - 25 if kind == 'positive' else -np.inf)
    high.append(scale + 150 if kind == 'positive' else np.inf)
  for shape in problem.form.shape.values():
    ends = np.array([shape.low, shape.high])
    low_t, high_t = np.log(ends) if shape.log else ends
    # Bounds of a parameter with a unit hold for columns of order one.
    free = np.inf if shape.scale and np.allclose(problem.centre, 1.) else 0.
    low.append(low_t - free)
    high.append(high_t + free)
  return np.array(low), np.array(high)


@functools.cache
def _compiled(form, loss, pinned):
  """The jitted polish of one block.

  `pinned` compiles the variant that can hold a reported coefficient: the
  reported ones are linear in the fitted ones, so the one held takes a
  fitted one's place, and the law stays linear in its coefficients.
  """
  names = tuple(form.linear)
  logged_P = np.array([kind == 'positive' for kind in form.linear.values()] +
                      [shape.log for shape in form.shape.values()], bool)
  Q = len(names)

  def terms(s_T, cols_XN, centre_X, pin_Q):
    """The terms phi_QN for packed shapes; a pinned one leads the others."""
    t = {name: jnp.exp(s) if shape.log else s
         for (name, shape), s in zip(form.shape.items(), s_T)}
    phi_QN = jnp.stack(form.basis(jnp, t, *cols_XN))
    if not pinned:
      return phi_QN
    rows = []
    for unit in np.eye(Q):
      given = forms.reported(form, jnp, tuple(unit), t, list(centre_X))
      rows.append(jnp.stack([given[name] + 0. * centre_X[0]
                             for name in names]))
    gain_Q = jnp.where(pin_Q, 1., 0.) @ jnp.stack(rows, 1)
    lead_N = (jnp.where(pin_Q, 1., 0.) @ phi_QN) / jnp.vdot(
        jnp.where(pin_Q, 1., 0.), gain_Q)
    return jnp.where(pin_Q[:, None], lead_N[None],
                     phi_QN - gain_Q[:, None] * lead_N[None])

  def link(f_N):
    """The link and its first two derivatives."""
    ones = jnp.ones_like(f_N)
    first = lambda f: solve.link(jnp, loss.link, f)
    second = lambda f: jax.jvp(first, (f,), (ones,))[1]
    return first(f_N), *jax.jvp(second, (f_N,), (ones,))

  def weigh(r_N, w_N, delta):
    """The objective, and the weights of its gradient and two curvatures."""
    if loss.kind == 'ls':
      return jnp.vdot(w_N, r_N ** 2) / 2, w_N * r_N, w_N, w_N
    size_N = jnp.abs(r_N)
    inside_N = size_N <= delta
    value_N = jnp.where(inside_N, r_N ** 2 / 2, delta * (size_N - delta / 2))
    irls_N = jnp.where(inside_N, 1., delta / jnp.maximum(size_N, delta))
    return (jnp.vdot(w_N, value_N), w_N * jnp.clip(r_N, -delta, delta),
            w_N * inside_N, w_N * irls_N)

  def polish(p_SP, w_SN, pin_S, cols_XN, target_N, centre_X, pin_Q, free_P,
             low_P, high_P, delta):
    def one(given):
      p_P, w_N, pin = given
      used_N = w_N > 0
      # A point of no weight must not poison the sums with a NaN.
      kept = lambda v_N: jnp.where(used_N, v_N, 0.)

      def expand(p):
        """Objective, gradient, exact Hessian and its positive stand-in.

        The law is linear in c, so only the shapes are differentiated by
        machine: half the work and half the program of a Hessian in all.
        """
        s_T, phi = p[Q:], lambda s: terms(s, cols_XN, centre_X, pin_Q)
        phi_QN, slopes_QNT = phi(s_T), jax.jacfwd(phi)(s_T)
        c_Q = jnp.where(logged_P[:Q], jnp.exp(p[:Q]), p[:Q])
        if pinned:
          c_Q = jnp.where(pin_Q, pin, c_Q)
        # d c / d p, and again: c for a logarithm.
        unit_Q = jnp.where(logged_P[:Q], c_Q, 1.)
        if not Q:
          c_Q = jnp.ones(1)
        f_N = c_Q @ phi_QN
        own_NQ = (unit_Q[:, None] * phi_QN[:Q]).T
        grad_NP = jnp.concatenate([own_NQ, jnp.einsum(
            'q,qnt->nt', c_Q, slopes_QNT)], 1)
        v_N, v1_N, v2_N = link(f_N)
        r_N = kept(target_N - v_N)
        value, slope_N, curve_N, irls_N = weigh(r_N, w_N, delta)
        jac_NP = jnp.where(used_N[:, None], -v1_N[:, None] * grad_NP, 0.)
        pull_N = kept(slope_N * v1_N)
        corner_TT = jax.hessian(lambda s: c_Q @ (phi(s) @ pull_N))(s_T)
        side_QT = unit_Q[:, None] * jnp.einsum('n,qnt->qt', pull_N,
                                               slopes_QNT[:Q])
        top_QQ = jnp.diag(jnp.where(logged_P[:Q], pull_N @ own_NQ, 0.))
        bend_PP = jnp.block([[top_QQ, side_QT], [side_QT.T, corner_TT]])
        # -slope v'' grad grad' in terms of the Jacobian -v' grad.
        turn_N = kept(slope_N * v2_N / v1_N ** 2)
        exact_PP = ((jac_NP.T * (curve_N - turn_N)[None]) @ jac_NP - bend_PP)
        return (jnp.where(jnp.isfinite(value), value, jnp.inf),
                slope_N @ jac_NP, exact_PP,
                (jac_NP.T * irls_N[None]) @ jac_NP)

      def propose(p, f, g_P, exact_PP, irls_PP, lam):
        """The next trial, and whether it hardly differs from p."""
        blocked_P = ((p <= low_P) & (g_P > 0)) | ((p >= high_P) & (g_P < 0))
        active_P = jnp.where(blocked_P, 0., free_P)
        # Far from the optimum the exact Hessian need not be positive.
        h_PP = jnp.where(lam > 1e-2, irls_PP, exact_PP)
        damp_P = lam * jnp.abs(jnp.diagonal(h_PP)) + 1e-14 * (
            jnp.trace(irls_PP) + 1e-280)
        h_PP = (h_PP * active_P[:, None] * active_P[None, :] +
                jnp.diag(damp_P * active_P + 1. - active_P))
        step_P = -jnp.linalg.solve(h_PP, g_P * active_P)
        trial = jnp.clip(p + jnp.where(jnp.isfinite(step_P), step_P, 0.),
                         low_P, high_P)
        step_P = trial - p
        gain = jnp.abs(jnp.vdot(g_P * active_P, step_P))
        tiny = jnp.max(jnp.abs(step_P) / (1. + jnp.abs(p))) < 1e-12
        return trial, (((gain <= 1e-14 * f) | tiny) & (lam <= 1e-2) &
                       jnp.isfinite(f))

      def body(state):
        p, f, g_P, exact_PP, irls_PP, trial, small, lam, count, _ = state
        fresh = expand(trial)
        better = fresh[0] < f
        pick = lambda new, old: jnp.where(better, new, old)
        p, f, g_P, exact_PP, irls_PP = map(
            pick, (trial, *fresh), (p, f, g_P, exact_PP, irls_PP))
        lam = jnp.where(better, jnp.maximum(lam / 10, 1e-10),
                        jnp.maximum(lam * 10, 1e-3))
        done = small | (lam > 1e8)
        trial, small = propose(p, f, g_P, exact_PP, irls_PP, lam)
        return (p, f, g_P, exact_PP, irls_PP, trial, small, lam, count + 1,
                done)

      p_P = jnp.clip(p_P, low_P, high_P)
      P = len(p_P)
      state = (p_P, jnp.asarray(jnp.inf), jnp.zeros(P), jnp.eye(P),
               jnp.eye(P), p_P, jnp.asarray(False), jnp.asarray(1e-6), 0,
               jnp.asarray(False))
      state = jax.lax.while_loop(
          lambda state: (state[-2] < STEPS) & ~state[-1], body, state)
      p_P, f, g_P = state[:3]
      inside_P = (p_P > low_P) & (p_P < high_P)
      slope = jnp.max(jnp.abs(g_P * free_P * inside_P))
      return p_P, f, slope, state[-1] & jnp.isfinite(f)

    # One by one: each stops when it is done and stays in the cache, which
    # beats any batch on a CPU.
    return jax.lax.map(one, (p_SP, w_SN, pin_S))

  return jax.jit(polish)


def _pad(a, size, value):
  width = [(0, 0)] * (a.ndim - 1) + [(0, size - a.shape[-1])]
  return np.pad(a, width, constant_values=value)


def polish(problem, p_SP, w_SN, pin=None, delta=None):
  """Newton from each start.

  Args:
    problem: the Problem.
    p_SP: packed starts (see `pack`).
    w_SN: the weights of each solve.
    pin: None, or (name, v_S): a reported parameter and the value at which
      each solve holds it. A coefficient must be reported as it is fitted,
      or by a `report` of the form's own.
    delta: Huber's delta; None for the problem's own.

  Returns:
    p_SP, the objective f_S, the largest slope of a free parameter slope_S,
    and converged_S.
  """
  form, (low_P, high_P) = problem.form, bounds(problem)
  S, N = w_SN.shape
  # Powers of two, and quarters of them where padding would cost something.
  size = max(16, 1 << (N - 1).bit_length())
  if size > 256:
    size = -(-N // (size // 8)) * (size // 8)
  pin_Q, pin_S = np.zeros(len(form.linear), bool), np.zeros(S)
  free_P = np.ones(p_SP.shape[1])
  if pin is not None:
    name, v_S = pin
    at = [*form.linear, *form.shape].index(name)
    free_P[at] = 0.
    shape = form.shape.get(name)
    if shape is None and form.report is not None:
      pin_Q[at], pin_S = True, v_S
    else:
      unit = dict(zip(form.x, problem.centre))
      logged = shape.log if shape else form.linear[name] == 'positive'
      value = v_S / (unit[shape.scale] if shape and shape.scale else 1.)
      p_SP = p_SP.copy()
      p_SP[:, at] = np.log(value) if logged else value
  loss = problem.loss
  kind = 'ls' if loss.kind == 'ls' else 'huber'
  run = _compiled(form, solve.Loss(loss.link, kind), bool(pin_Q.any()))
  w_SN = np.ascontiguousarray(_pad(w_SN, size, 0.))
  target_N = _pad(solve.link(np, loss.link, problem.y_N), size, 0.)
  cols_XN = _pad(np.stack(problem.cols), size, 1.)
  out = []
  cpu = jax.local_devices(backend='cpu')[0]
  with _x64(True), jax.default_device(cpu):
    fixed = jax.device_put(
        (cols_XN, target_N, np.array(problem.centre), pin_Q, free_P, low_P,
         high_P, np.float64(problem.delta if delta is None else delta)), cpu)
    for i in range(0, S, BLOCK):
      rows = np.minimum(np.arange(i, i + BLOCK), S - 1)
      w = np.where((np.arange(i, i + BLOCK) < S)[:, None], w_SN[rows], 0.)
      out.append(run(p_SP[rows], w, pin_S[rows], *fixed))
    out = [[np.asarray(part) for part in block] for block in out]
  return [np.concatenate(parts)[:S] for parts in zip(*out)]


def absolute(problem, p_SP, w_SN, pin=None, stages=None):
  """Least absolute deviations: Huber's delta walked down, by default to 0.

  Arguments and results are those of `polish`; `stages` are the multiples of
  the problem's delta on the way.
  """
  scale = max(problem.delta, 1e-12)
  for shrink in stages or 10. ** -np.arange(8):
    p_SP, f_S, slope_S, done_S = polish(problem, p_SP, w_SN, pin,
                                        scale * shrink)
  return p_SP, f_S / (scale * shrink), slope_S, done_S
