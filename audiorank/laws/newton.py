"""A damped Newton that polishes any form under any loss, compiled once.

Exact Hessians by automatic differentiation, in float64 on the CPU whatever
the training program runs on. Amplitudes and scales are searched as
logarithms, columns are scaled, bounds are a projection. Problems are solved
in blocks of fixed size, points are padded to a size class with weight 0: one
compilation per form, loss and size class serves starts, resamples, folds and
profiles alike.

Shapes: N points, S solves, P packed parameters, Q linear coefficients,
T nonlinear parameters, X input columns.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.laws import forms
from audiorank.laws import problem as problem_lib

BLOCK = 16
# Steps of a plain search, and of one along a narrow valley after it.
PLAIN_STEPS, VALLEY_STEPS = 100, 2000
# The longest turn of a step along a valley, in units of the step.
MOST_TURN = 1.5
# Logarithms of the range of an amplitude, beside the largest |y|: e^-36 is
# zero to float64.
SMALLEST, LARGEST = -36., 150.
# An amplitude whose term is this small beside the law counts as vanishing.
VANISHING = 1e-4
# Converged: no step promises more than this share of the objective.
ACCURACY = 1e-10
# Below this share of sum w y^2 an objective is rounding error.
ROUNDING = 1e-26
# The context manager has this name from jax 0.8 on; before, it was in
# jax.experimental. A global flag would change the training program.
if hasattr(jax, 'enable_x64'):
  _x64 = jax.enable_x64
else:
  _x64 = jax.experimental.enable_x64  # type: ignore[attr-defined]


Array = np.ndarray | jax.Array


class Spec(NamedTuple):
  """What a compiled program depends on, beside shapes.

  Attributes:
    form, loss: what is fitted.
    fixes: whether it can hold a reported coefficient: the reported ones are
      linear in the fitted ones, so the one held replaces a fitted one, and
      the law stays linear in its coefficients.
    valley: whether it is for narrow valleys: each step costs more.
  """
  form: forms.Form
  loss: problem_lib.Loss
  fixes: bool
  valley: bool = False


class Inputs(NamedTuple):
  """What all solves of a call share."""
  cols_XN: Array
  target_N: Array  # link(y)
  centre_X: Array
  fixed_Q: Array   # The one coefficient that is held, if any.
  free_P: Array    # 1, or 0 for a parameter that is held.
  low_P: Array
  high_P: Array
  delta: Array


class Local(NamedTuple):
  """The objective at one point: value, gradient and two curvatures.

  exact_PP is the Hessian; irls_PP the Gauss-Newton matrix (of the reweighted
  squares, for Huber), which is never negative.
  """
  value: jax.Array
  grad_P: jax.Array
  exact_PP: jax.Array
  irls_PP: jax.Array
  vanishing_P: jax.Array


class State(NamedTuple):
  """Where one solve stands."""
  p_P: jax.Array
  local: Local
  trial_P: jax.Array
  promised: jax.Array  # The decrease that the model promises at the trial.
  last: jax.Array      # Whether the trial hardly differs from p.
  damping: jax.Array
  steps: jax.Array
  done: jax.Array


def logged(form: forms.Form) -> np.ndarray:
  """Returns which packed parameters are logarithms, P booleans."""
  return np.array(
      [kind == 'positive' for kind in form.linear.values()] +
      [param.log for param in form.nonlinear.values()], bool)


def pack(form: forms.Form, c_SQ: np.ndarray,
         theta_SP: np.ndarray) -> np.ndarray:
  """Returns the packed vectors: amplitudes and scales as logarithms."""
  p_SP = np.concatenate([c_SQ, theta_SP], 1)
  logged_P = logged(form)
  # An amplitude that variable projection sets to 0 is tiny instead.
  p_SP[:, logged_P] = np.log(np.maximum(p_SP[:, logged_P], 1e-300))
  return p_SP


def unpack(form: forms.Form,
           p_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns c_SQ, theta_SP: the inverse of `pack`."""
  values_SP, logged_P = np.array(p_SP, float), logged(form)
  values_SP[:, logged_P] = np.exp(values_SP[:, logged_P])
  Q = len(form.linear)
  return values_SP[:, :Q], values_SP[:, Q:]


def bounds(problem: problem_lib.Problem) -> tuple[np.ndarray, np.ndarray]:
  """Returns the least and greatest value of each packed parameter."""
  # Amplitudes are of the size of y, since columns are of order one.
  scale = np.log(np.max(np.abs(problem.y_N)))
  # In the units of the data an amplitude can have any size.
  unscaled = np.allclose(problem.centre, 1.)
  low, high = [], []
  for kind in problem.form.linear.values():
    if kind != 'positive':
      low.append(-np.inf)
      high.append(np.inf)
    elif unscaled:
      low.append(np.log(1e-300))
      high.append(np.log(1e300))
    else:
      low.append(scale + SMALLEST)
      high.append(scale + LARGEST)
  cols = dict(zip(problem.form.x, problem.cols))
  for param in problem.form.nonlinear.values():
    ends = np.array([param.low, param.high])
    # Bounds of a parameter with a unit hold for columns of order one.
    if unscaled and isinstance(param.scale, str):
      ends = ends * np.exp(np.mean(np.log(cols[param.scale])))
    elif unscaled and param.scale:
      ends = np.array([-1e300, 1e300])
      if param.log:
        ends[0] = 1e-300
    if param.log:
      ends = np.log(ends)
    low.append(ends[0])
    high.append(ends[1])
  return np.array(low), np.array(high)


def _terms(spec, inputs, s_T):
  """Returns the terms phi_QN; a fixed one is the first."""
  theta = {}
  for (name, param), s in zip(spec.form.nonlinear.items(), s_T):
    theta[name] = s
    if param.log:
      theta[name] = jnp.exp(s)
  phi_QN = jnp.stack(spec.form.basis(jnp, theta, *inputs.cols_XN))
  if not spec.fixes:
    return phi_QN
  # The gain of a fitted coefficient: how much of the reported one it makes.
  names, rows = tuple(spec.form.linear), []
  for one in np.eye(len(names)):
    values = forms.reported(spec.form, jnp, tuple(one), theta,
                            list(inputs.centre_X))
    rows.append(jnp.stack([values[name] + 0. * inputs.centre_X[0]
                           for name in names]))
  # With the reported coefficient v = gain . c held, the fitted one in its
  # place is (v - the others' share) / its gain: put that into the law and
  # sort by coefficients.
  lead_Q = jnp.where(inputs.fixed_Q, 1., 0.)
  gain_Q = lead_Q @ jnp.stack(rows, 1)
  lead_N = (lead_Q @ phi_QN) / jnp.vdot(lead_Q, gain_Q)
  return jnp.where(inputs.fixed_Q[:, None], lead_N[None],
                   phi_QN - gain_Q[:, None] * lead_N[None])


def _coefficients(spec, inputs, p_P, fixed):
  """c_Q of packed parameters; a one where the law is its single term."""
  Q = len(spec.form.linear)
  if not Q:
    return jnp.ones(1)
  c_Q = jnp.where(logged(spec.form)[:Q], jnp.exp(p_P[:Q]), p_P[:Q])
  if spec.fixes:
    c_Q = jnp.where(inputs.fixed_Q, fixed, c_Q)
  return c_Q


def _link(loss, f_N):
  """Returns the link and its first two derivatives."""
  ones = jnp.ones_like(f_N)
  first = lambda f: problem_lib.link(jnp, loss.link, f)
  second = lambda f: jax.jvp(first, (f,), (ones,))[1]
  return first(f_N), *jax.jvp(second, (f_N,), (ones,))


def _weigh(loss, r_N, w_N, delta):
  """Returns the objective, and weights of gradient and two curvatures."""
  if loss.kind == 'ls':
    return jnp.vdot(w_N, r_N ** 2) / 2, w_N * r_N, w_N, w_N
  size_N = jnp.abs(r_N)
  inside_N = size_N <= delta
  value_N = jnp.where(inside_N, r_N ** 2 / 2, delta * (size_N - delta / 2))
  irls_N = jnp.where(inside_N, 1., delta / jnp.maximum(size_N, delta))
  return (jnp.vdot(w_N, value_N), w_N * jnp.clip(r_N, -delta, delta),
          w_N * inside_N, w_N * irls_N)


def _expand(spec, inputs, p_P, w_N, fixed):
  """Returns the objective near p, a Local.

  The law is linear in c, so only the nonlinear parameters are differentiated
  by machine: half the work and half the program of a Hessian in all.
  """
  Q = len(spec.form.linear)
  used_N = w_N > 0
  # A point of no weight must not poison the sums with a NaN.
  clean = lambda v_N: jnp.where(used_N, v_N, 0.)
  # First derivatives: of the terms by forward mode, T is 1 to 4.
  s_T, phi = p_P[Q:], lambda s: _terms(spec, inputs, s)
  phi_QN, slopes_QNT = phi(s_T), jax.jacfwd(phi)(s_T)
  logged_Q, c_Q = logged(spec.form)[:Q], _coefficients(spec, inputs, p_P, fixed)
  # d c / d p, and again: c for a logarithm.
  unit_Q = jnp.where(logged_Q, c_Q[:Q], 1.)
  f_N = c_Q @ phi_QN
  own_NQ = (unit_Q[:, None] * phi_QN[:Q]).T
  grad_NP = jnp.concatenate(
      [own_NQ, jnp.einsum('q,qnt->nt', c_Q, slopes_QNT)], 1)
  # Residuals on the scale of the loss, and their Jacobian.
  v_N, v1_N, v2_N = _link(spec.loss, f_N)
  r_N = clean(inputs.target_N - v_N)
  value, slope_N, curve_N, irls_N = _weigh(spec.loss, r_N, w_N, inputs.delta)
  jac_NP = jnp.where(used_N[:, None], -v1_N[:, None] * grad_NP, 0.)
  pull_N = clean(slope_N * v1_N)
  # Second derivatives of the law, weighted by the pull of each residual: by
  # machine among the nonlinear parameters, by hand across and among the
  # linear ones.
  corner_TT = jax.hessian(lambda s: c_Q @ (phi(s) @ pull_N))(s_T)
  side_QT = unit_Q[:, None] * jnp.einsum('n,qnt->qt', pull_N,
                                         slopes_QNT[:Q])
  # The logarithm of an amplitude on its way to 0 would get there in steps of
  # one; without its second derivative it is there at once.
  vanishing_Q = logged_Q & (
      jnp.max(jnp.abs(clean(own_NQ.T)), 1, initial=0.) <
      VANISHING * jnp.max(jnp.abs(clean(f_N))))
  top_QQ = jnp.diag(jnp.where(logged_Q & ~vanishing_Q, pull_N @ own_NQ, 0.))
  bend_PP = jnp.block([[top_QQ, side_QT], [side_QT.T, corner_TT]])
  # -slope v'' grad grad' in terms of the Jacobian -v' grad.
  turn_N = clean(slope_N * v2_N / v1_N ** 2)
  exact_PP = (jac_NP.T * (curve_N - turn_N)[None]) @ jac_NP - bend_PP
  return Local(jnp.where(jnp.isfinite(value), value, jnp.inf),
               slope_N @ jac_NP, exact_PP,
               (jac_NP.T * irls_N[None]) @ jac_NP,
               jnp.pad(vanishing_Q, (0, len(p_P) - Q)))


def _solve(grad_P, h_PP, scale_P, active_P, damping):
  """Returns the step of a damped curvature over the active parameters.

  Returns:
    step_P, and whether the curvature is positive definite.
  """
  # Damping in proportion to each parameter's own scale: units do not matter.
  damp_P = damping * scale_P + 1e-280
  h_PP = (h_PP * active_P[:, None] * active_P[None, :] +
          jnp.diag(damp_P * active_P + 1. - active_P))
  # A Cholesky factor exists only of a positive definite matrix: it is NaN
  # otherwise, and that is the test.
  factor_PP = jnp.linalg.cholesky(h_PP)
  step_P = -jax.scipy.linalg.cho_solve((factor_PP, True), grad_P * active_P)
  good = jnp.isfinite(step_P).all()
  return jnp.where(good, step_P, 0.), good


def _active(inputs, p_P, grad_P):
  """Returns 1 for parameters that can move, 0 if fixed or at a bound."""
  blocked_P = (((p_P <= inputs.low_P) & (grad_P > 0)) |
               ((p_P >= inputs.high_P) & (grad_P < 0)))
  return jnp.where(blocked_P, 0., inputs.free_P)


def _bend(spec, inputs, w_N, fixed, p_P, step_P):
  """J^T W v'': the law's second derivative along a step, as a gradient."""
  law = lambda p_P: problem_lib.link(
      jnp, spec.loss.link,
      _coefficients(spec, inputs, p_P, fixed) @ _terms(
          spec, inputs, p_P[len(spec.form.linear):]))
  v_N, pull = jax.vjp(law, p_P)
  # Forward over forward along one direction, then one pull back: three
  # evaluations of the law, whatever P.
  slope = lambda t: jax.jvp(law, (p_P + t * step_P,), (step_P,))[1]
  _, second_N = jax.jvp(slope, (0.,), (1.,))
  used_N = w_N > 0
  r_N = jnp.where(used_N, inputs.target_N - v_N, 0.)
  *_, irls_N = _weigh(spec.loss, r_N, w_N, inputs.delta)
  return pull(jnp.where(used_N, irls_N * second_N, 0.))[0]


def _propose(spec, inputs, w_N, fixed, p_P, local, damping, floor):
  """The next trial, the decrease it promises, and whether it is the last."""
  active_P = _active(inputs, p_P, local.grad_P)
  solve = lambda grad_P, h_PP: _solve(
      grad_P, h_PP, jnp.diagonal(local.irls_PP), active_P, damping + 1e-14)
  # Far from the optimum the exact Hessian need not be positive definite.
  h_PP = jnp.where(damping > 1e-2, local.irls_PP, local.exact_PP)
  step_P, good = solve(local.grad_P, h_PP)
  step_P, h_PP = jax.lax.cond(
      good, lambda: (step_P, h_PP),
      lambda: (solve(local.grad_P, local.irls_PP)[0], local.irls_PP))
  promised = (-jnp.vdot(local.grad_P * active_P, step_P) -
              step_P @ h_PP @ step_P / 2)
  if spec.valley:
    bend_P = _bend(spec, inputs, w_N, fixed, p_P, step_P)
    step_P = _turned(step_P, solve(bend_P, h_PP), local)
  # A vanishing amplitude grows by the step on itself, not on its logarithm,
  # which would overshoot by orders of magnitude.
  step_P = jnp.where(local.vanishing_P & (step_P > 0),
                     jnp.log1p(jnp.maximum(step_P, 0.)), step_P)
  # Bounds by projection: a parameter at its bound is not active in the next
  # step if it would leave.
  trial_P = jnp.clip(p_P + step_P, inputs.low_P, inputs.high_P)
  step_P = trial_P - p_P
  gain = jnp.abs(jnp.vdot(local.grad_P * active_P, step_P))
  # Quadratic convergence: the step after the last one is not needed.
  tiny = jnp.max(jnp.abs(step_P) / (1. + jnp.abs(p_P))) < 1e-12
  small = (gain <= 1e-14 * local.value + floor) | tiny
  last = small & (damping <= 1e-2) & jnp.isfinite(local.value)
  return trial_P, promised, last


def _turned(step_P, turn, local):
  """Returns a step with its geodesic acceleration.

  Where parameters nearly make up for one another the minimum lies in a narrow
  curved valley, and straight steps along it are short. See Transtrum and
  Sethna, arXiv 1201.5885.
  """
  turn_P, good = turn
  length = lambda v_P: v_P @ (jnp.diagonal(local.irls_PP) * v_P)
  good = good & (length(turn_P) < MOST_TURN ** 2 * length(step_P))
  return jnp.where(good, step_P + turn_P / 2, step_P)


def _step(spec, inputs, w_N, fixed, floor, state):
  """Returns the state after one iteration: evaluate, accept, propose."""
  # One evaluation an iteration serves the test of this step and the making
  # of the next.
  trial = _expand(spec, inputs, state.trial_P, w_N, fixed)
  better = trial.value < state.local.value
  keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(better, a, b), new, old)
  p_P, local = keep((state.trial_P, trial), (state.p_P, state.local))
  # A model that keeps its promise is trusted farther, a poor one less.
  ratio = (state.local.value - trial.value) / state.promised
  factor = jnp.where(ratio > .75, .1, jnp.where(ratio > .25, 1., 2.))
  damping = jnp.where(better, jnp.maximum(state.damping * factor, 1e-10),
                      jnp.maximum(state.damping * 5, 1e-4))
  trial_P, promised, last = _propose(spec, inputs, w_N, fixed, p_P, local,
                                     damping, floor)
  return State(p_P, local, trial_P, promised, last, damping, state.steps + 1,
               state.last | (damping > 1e8))


def _search(spec, inputs, p_P, w_N, fixed):
  """Runs Newton's method from one start; returns p_P, its Local, steps."""
  p_P = jnp.clip(p_P, inputs.low_P, inputs.high_P)
  P, no = len(p_P), jnp.asarray(False)
  # Points without noise have an objective of 0: what is left is rounding.
  floor = ROUNDING * jnp.vdot(w_N, inputs.target_N ** 2)
  worst = Local(jnp.asarray(jnp.inf), jnp.zeros(P), jnp.eye(P), jnp.eye(P),
                jnp.zeros(P, bool))
  state = State(p_P, worst, p_P, jnp.asarray(1.), no, jnp.asarray(1e-6),
                jnp.asarray(0), no)
  most = PLAIN_STEPS
  if spec.valley:
    most = VALLEY_STEPS
  state = jax.lax.while_loop(
      lambda state: (state.steps < most) & ~state.done,
      functools.partial(_step, spec, inputs, w_N, fixed, floor), state)
  return state.p_P, state.local, state.steps


@functools.cache
def _compiler_options():
  """Options under which XLA compiles in half the time, where it has them.

  Its emitters of fusions make these programs, of hundreds of tiny fusions, no
  faster. To be called with a CPU as the default device.
  """
  options = {'xla_cpu_use_fusion_emitters': False}
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.).compile()
  except jax.errors.JaxRuntimeError:  # Another version of XLA.
    return None
  return options


@functools.cache
def _compiled(spec):
  """The jitted search of one block: (p_SP, w_SN, fixed_S, *inputs)."""
  def run(p_SP: Array, w_SN: Array, fixed_S: Array, *inputs: Array) -> Any:
    # One by one: each stops when it is done and stays in the cache, which
    # beats any batch on a CPU.
    return jax.lax.map(
        lambda one: _search(spec, Inputs(*inputs), *one),
        (p_SP, w_SN, fixed_S))

  return jax.jit(run, compiler_options=_compiler_options())


def _converged(inputs, p_SP, local, w_SN):
  """Whether neither curvature promises more than ACCURACY of the objective.

  That a search has ended does not say so: one that makes no progress at the
  largest damping ends as well.

  Returns:
    converged_S, and the largest slope of a parameter inside its bounds.
  """
  blocked_SP = (((p_SP <= inputs.low_P) & (local.grad_P > 0)) |
                ((p_SP >= inputs.high_P) & (local.grad_P < 0)))
  active_SP = np.where(blocked_SP, 0., inputs.free_P)
  g_SP = local.grad_P * active_SP
  scale_SP = np.maximum(np.einsum('spp->sp', local.irls_PP), 1e-280)
  # In units of each parameter's own scale, where 1e-9 is flat.
  size_SP = np.sqrt(scale_SP)
  both_SPP = active_SP[:, :, None] * active_SP[:, None] / (
      size_SP[:, :, None] * size_SP[:, None])
  P = p_SP.shape[1]
  promised_S = np.zeros(len(p_SP))
  for h_SPP in (local.irls_PP, local.exact_PP):
    # Of a parameter without any effect the scaled curvature overflows.
    with np.errstate(all='ignore'):
      h_SPP = np.clip(np.nan_to_num(h_SPP * both_SPP), -1e12, 1e12)
    lam_SP, v_SPP = np.linalg.eigh(h_SPP + (1. - active_SP)[:, None] *
                                   np.eye(P))
    with np.errstate(all='ignore'):
      along_SP = np.einsum('sp,spq->sq', g_SP / size_SP, v_SPP)
      # Downhill along a negative curvature the promise has no end.
      each_SP = np.where(lam_SP > -1e-9,
                         along_SP ** 2 / (2 * np.maximum(lam_SP, 1e-9)),
                         np.inf)
      promised_S = np.maximum(promised_S, each_SP.sum(1))
  # As in `_search`.
  floor_S = ROUNDING * (w_SN * inputs.target_N ** 2).sum(1)
  inside_SP = (p_SP > inputs.low_P) & (p_SP < inputs.high_P)
  slope_S = np.max(np.abs(local.grad_P * inputs.free_P * inside_SP), 1)
  return ((promised_S <= ACCURACY * local.value + floor_S) &
          np.isfinite(local.value)), slope_S


def _pad(a, size, value):
  width = [(0, 0)] * (a.ndim - 1) + [(0, size - a.shape[-1])]
  return np.pad(a, width, constant_values=value)


def _size_class(n):
  """Returns points after padding: powers of two, later eighths of them."""
  # Each size is one compilation; padding costs time in every step.
  size = max(16, 1 << (n - 1).bit_length())
  if size > 256:
    size = -(-n // (size // 8)) * (size // 8)
  return size


def _hold(problem, p_SP, name, v_S):
  """Holds a reported parameter at v_S.

  Returns:
    p_SP with the parameter at its value, free_P, fixed_Q and fixed_S.
  """
  form = problem.form
  # Reported by a formula of the form's own: held through `_terms`. Else it
  # is the fitted number itself, up to a unit, and is simply not moved.
  at = form.names.index(name)
  free_P, fixed_Q = np.ones(p_SP.shape[1]), np.zeros(len(form.linear), bool)
  free_P[at] = 0.
  param = form.nonlinear.get(name)
  if param is None and form.report is not None:
    fixed_Q[at] = True
    return p_SP, free_P, fixed_Q, v_S
  if param is None:
    value, logged = v_S, form.linear[name] == 'positive'
  else:
    units = dict(zip(form.x, problem.centre))
    value, logged = v_S / units.get(param.scale, 1.), param.log
  p_SP = p_SP.copy()
  if logged:
    value = np.log(value)
  p_SP[:, at] = value
  return p_SP, free_P, fixed_Q, np.zeros(len(p_SP))


def _solve_all(spec, inputs, p_SP, w_SN, fixed_S):
  """All solves, a block at a time: p_SP, objective, slope, converged, steps.
  """
  S, out = len(p_SP), []
  for i in range(0, S, BLOCK):
    rows = np.minimum(np.arange(i, i + BLOCK), S - 1)
    # The rows that fill the last block have no weight: they stop at once.
    w = np.where((np.arange(i, i + BLOCK) < S)[:, None], w_SN[rows], 0.)
    out.append(_compiled(spec)(p_SP[rows], w, fixed_S[rows], *inputs))
  p_SP, local, steps_S = jax.tree.map(
      lambda *parts: np.concatenate(parts)[:S], *map(jax.device_get, out))
  converged_S, slope_S = _converged(jax.device_get(inputs), p_SP, local,
                                    w_SN)
  return [p_SP, local.value, slope_S, converged_S, steps_S]


def polish(problem: problem_lib.Problem, p_SP: np.ndarray, w_SN: np.ndarray,
           fixed: tuple[str, Any] | None = None,
           delta: float | None = None) -> list[np.ndarray]:
  """Runs Newton's method from each start.

  Args:
    problem: the Problem.
    p_SP: packed starts (see `pack`).
    w_SN: the weights of each solve.
    fixed: None, or (name, v_S): a reported parameter and the value at which
      each solve holds it. A coefficient must be reported as it is fitted,
      or by a `report` of the form's own.
    delta: Huber's delta; None for the problem's own.

  Returns:
    p_SP, the objective f_S, the largest slope of a free parameter slope_S,
    converged_S and steps_S.
  """
  low_P, high_P = bounds(problem)
  S, N = w_SN.shape
  free_P = np.ones(p_SP.shape[1])
  fixed_Q, fixed_S = np.zeros(len(problem.form.linear), bool), np.zeros(S)
  if fixed is not None:
    p_SP, free_P, fixed_Q, fixed_S = _hold(problem, p_SP, *fixed)
  loss = problem.loss
  if loss.kind == 'lad':
    loss = loss._replace(kind='huber')
  if delta is None:
    delta = problem.delta
  size = _size_class(N)
  w_SN = np.ascontiguousarray(_pad(w_SN, size, 0.))
  target_N = _pad(problem_lib.link(np, loss.link, problem.y_N), size, 0.)
  cols_XN = _pad(np.stack(problem.cols), size, 1.)
  cpu = jax.local_devices(backend='cpu')[0]
  spec = Spec(problem.form, loss, bool(fixed_Q.any()))
  with _x64(True), jax.default_device(cpu):
    inputs = jax.device_put(Inputs(
        cols_XN, target_N, np.array(problem.centre), fixed_Q, free_P, low_P,
        high_P, np.array(float(delta))), cpu)
    out = _solve_all(spec, inputs, p_SP, w_SN, fixed_S)
    # Nearly all searches end within a dozen steps. The others are in a narrow
    # valley, for which steps that cost more pay.
    rest = np.flatnonzero(~out[3] & (w_SN > 0).any(1))
    if len(rest):
      more = _solve_all(spec._replace(valley=True), inputs, out[0][rest],
                        w_SN[rest], fixed_S[rest])
      for part, new in zip(out[:-1], more):
        part[rest] = new
      out[-1][rest] += more[-1]
  return out


def absolute(problem: problem_lib.Problem, p_SP: np.ndarray, w_SN: np.ndarray,
             fixed: tuple[str, Any] | None = None,
             stages: tuple[float, ...] | None = None) -> list[np.ndarray]:
  """Minimises absolute deviations, by Huber losses of decreasing delta.

  Arguments and results are those of `polish`; `stages` are the multiples of
  the problem's delta on the way.
  """
  scale = max(problem.delta, 1e-12)
  for shrink in stages or 10. ** -np.arange(8):
    p_SP, f_S, slope_S, done_S, steps_S = polish(
        problem, p_SP, w_SN, fixed, scale * shrink)
  return [p_SP, f_S / (scale * shrink), slope_S, done_S, steps_S]
