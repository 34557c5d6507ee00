"""L2-regularised logistic regression over a path of penalties, in one program.

Minimises, with x the standardised embedding,
  mean_n loss(y_n, W x_n + b) + penalty / 2 ||W||^2
where the loss is multinomial cross-entropy or, for multilabel tasks, the sum
over labels of binary cross-entropies.

The steps are those of Nesterov with restarts, scaled by Boehning's bound of the
curvature (Ann. Inst. Stat. Math. 44, 1992): the Hessian is at most c Cov(x),
with c = 1/2 or 1/4. So in the eigenbasis of Cov(x) the scaling is one number
per coordinate, and no line search is needed.

Shapes: N rows (padded), D width, C labels, P penalties.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.hear import predictor

# Strongest first: each solution is the start of the next.
PENALTIES = (3., 1., .3, .1, .03, .01, .003, .001, 3e-4, 1e-4, 3e-5, 1e-5)
STEPS = 500  # At most, for each penalty.
TOLERANCE = 1e-4  # Of the scaled gradient, in units of logits.
# Float32 throughout: accelerators would round inputs to bfloat16.
_dot = functools.partial(jnp.matmul, precision='highest')


class Path(NamedTuple):
  """The solutions of all penalties, in their order."""
  valid_PNC: np.ndarray  # Predicted probabilities.
  test_PNC: np.ndarray
  gap_P: np.ndarray  # Largest scaled gradient at the end.


def predictions(train_ND: np.ndarray, y_NC: np.ndarray, valid_ND: np.ndarray,
                test_ND: np.ndarray, penalties_P: np.ndarray,
                multiclass: bool, capacity: int | None = None) -> Path:
  """Returns the Path of a training split's solutions.

  Args:
    train_ND, y_NC: embeddings and labels.
    valid_ND, test_ND: embeddings to predict.
    penalties_P: strongest first.
    multiclass: whether a clip has exactly one label.
    capacity: rows that the program is compiled for; None takes those of
      train_ND.
  """
  width, labels = train_ND.shape[1], y_NC.shape[1]
  mean_D, basis_DD, spectrum_D = standardise(train_ND)
  rotated = [rotate(z_ND, mean_D, basis_DD)
             for z_ND in (train_ND, valid_ND, test_ND)]
  rows = predictor.rows(rotated[0], y_NC, capacity)
  # The rows' width is rounded up.
  spectrum_D = np.pad(spectrum_D, (0, rows.z_ABD.shape[-1] - width))
  w_PDC, b_PC, gap_P = jax.device_get(path(
      rows, spectrum_D.astype(np.float32), penalties_P, multiclass=multiclass))
  w_PDC, b_PC = w_PDC[:, :width, :labels], b_PC[:, :labels]
  valid_PNC, test_PNC = (
      np.stack([probabilities(x_ND, w_DC, b_C, multiclass)
                for w_DC, b_C in zip(w_PDC, b_PC)]) for x_ND in rotated[1:])
  return Path(valid_PNC, test_PNC, gap_P)


def standardise(z_ND: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns (mean_D, basis_DD, spectrum_D) of a training split, float64.

  (z - mean) @ basis is the standardised embedding in the eigenbasis of its
  covariance. The variances of its columns are `spectrum`.
  """
  z_ND = np.asarray(z_ND, np.float64)
  mean_D, std_D = z_ND.mean(0), z_ND.std(0)
  # A constant column has no information. Its deviation is a rounding error,
  # by which it must not be divided.
  dead_D = std_D <= 1e-7 * np.abs(mean_D).clip(1e-30)
  scale_D = np.where(dead_D, 0, 1 / np.where(dead_D, 1, std_D))
  x_ND = (z_ND - mean_D[None]) * scale_D[None]
  # In this basis curvatures are bounded column by column, which makes a step
  # size per column possible.
  spectrum_D, basis_DD = np.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
  return mean_D, scale_D[:, None] * basis_DD, spectrum_D.clip(0)


def rotate(z_ND: np.ndarray, mean_D: np.ndarray,
           basis_DD: np.ndarray) -> np.ndarray:
  """Returns x_ND float64, embeddings in the basis of `standardise`."""
  return (np.asarray(z_ND, np.float64) - mean_D[None]) @ basis_DD


@functools.partial(jax.jit, static_argnames='multiclass')
def path(train: predictor.Rows, spectrum_D: jax.Array, penalties_P: jax.Array,
         *, multiclass: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (w_PDC, b_PC, gap_P): the solutions, and their scaled gradients.

  Args:
    train: rotated embeddings and labels.
    spectrum_D: variances of the embeddings.
    penalties_P: strongest first.
    multiclass: whether a clip has exactly one label.
  """
  x_ND = train.z_ABD.reshape(-1, train.z_ABD.shape[-1])
  y_NC = train.y_ABC.reshape(-1, train.y_ABC.shape[-1])
  real_N = (jnp.arange(len(x_ND)) < train.n).astype(jnp.float32)
  # The largest curvature of a softmax is 1/2, that of a sigmoid 1/4.
  curvature = 0.25
  if multiclass:
    curvature = 0.5

  def gradient(w_DC: jax.Array, b_C: jax.Array, penalty: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    logits_NC = _dot(x_ND, w_DC) + b_C[None]
    residual_NC = real_N[:, None] * (
        predictor.probabilities(logits_NC, multiclass) - y_NC) / train.n
    return _dot(x_ND.T, residual_NC) + penalty * w_DC, residual_NC.sum(0)

  def solve(start: Any, penalty: jax.Array) -> tuple[Any, Any]:
    # One over an upper bound of the curvature: every step descends.
    scale_D = 1 / (curvature * spectrum_D + penalty)

    def step(carry: Any) -> Any:
      (w_DC, b_C), (ahead_DC, ahead_C), t, i, _ = carry
      g_DC, g_C = gradient(ahead_DC, ahead_C, penalty)
      move_DC, move_C = scale_D[:, None] * g_DC, g_C / curvature
      new_DC, new_C = ahead_DC - move_DC, ahead_C - move_C
      # Restart the momentum where it points uphill (O'Donoghue, Candes 2015).
      uphill = (g_DC * (new_DC - w_DC)).sum() + (g_C * (new_C - b_C)).sum() > 0
      t = jnp.where(uphill, 1., t)
      # Nesterov's sequence, as in FISTA.
      after = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
      pull = jnp.where(uphill, 0., (t - 1) / after)
      # In units of logits: the change by this step on a typical row.
      gap = jnp.sqrt((spectrum_D[:, None] * move_DC ** 2).sum(0)
                     + move_C ** 2).max()
      ahead = (new_DC + pull * (new_DC - w_DC), new_C + pull * (new_C - b_C))
      return (new_DC, new_C), ahead, after, i + 1, gap

    solution, _, _, _, gap = jax.lax.while_loop(
        lambda carry: (carry[3] < STEPS) & (carry[4] > TOLERANCE), step,
        (start, start, jnp.float32(1), jnp.int32(0), jnp.float32(jnp.inf)))
    return solution, (*solution, gap)

  C = y_NC.shape[1]
  # Labels that are padding are never predicted.
  b_C = jnp.where(jnp.arange(C) < train.c, 0., predictor.NEVER)
  start = jnp.zeros((x_ND.shape[1], C)), b_C
  return jax.lax.scan(solve, start, penalties_P)[1]


def probabilities(x_ND: np.ndarray, w_DC: np.ndarray, b_C: np.ndarray,
                  multiclass: bool) -> np.ndarray:
  """Returns p_NC, float64."""
  # In numpy, because jax has no float64 by default and ties between rounded
  # probabilities would change scores.
  logits_NC = x_ND @ np.asarray(w_DC, np.float64) + np.asarray(b_C)[None]
  if not multiclass:
    return 1 / (1 + np.exp(-logits_NC.clip(-700, 700)))
  p_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
  return p_NC / p_NC.sum(1, keepdims=True)
