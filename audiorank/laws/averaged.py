"""A law of several inputs, averaged over the forms that the data allow.

A score y of inputs x_a (size, hours, steps) is
  y = level of its group + sum_a b_a u(x_a) [+ c u(x_a) u(x_b)] + deviation,
  u(x) = (1 - (x / middle)^-e) / e, the logarithm at e = 0,
so that every input has an exponent e of its own. A sweep of 20 runs does not
identify exponents; what lies beyond the runs depends on them all the same.
Every combination of EXPONENTS, with and without the product of two inputs, is
a model. No such law is exact: what it leaves is a smooth deviation (a Gaussian
process in the logarithms of the inputs, of every DEVIATIONS), or one of each
configuration by itself, so that many seeds of few configurations do not narrow
an interval. Models are weighted by how well they describe the data (restricted
likelihood, and BIC for a product); intervals are of draws from all of them.

Groups are runs of equal settings (masking rate, learning rate, ...): each has
a level and a deviation of its own, and the law in common.

Shapes: N runs, K configurations, G groups, A inputs, H deviations, M models of
each, P coefficients (A slopes and the product), C columns, S draws, Q points.
"""

from collections.abc import Mapping
import itertools
import math
from typing import Any
from typing import NamedTuple

import numpy as np

# Of u: from a score that rises faster and faster to one that soon saturates.
EXPONENTS = (-.2, 0., .2, .5, 1., 2.)
# (variance over that of a run, length over the range of an input; 0: each
# configuration by itself).
DEVIATIONS = ((0., 0.), (.5, 0.), (2., 0.),
              *itertools.product((2., 16., 128., 1024.), (.3, .6, 1.2)))
LEAST_FREE = 2  # Degrees of freedom below which nothing is fitted.
CONFOUNDED = .98  # Share of an input's variance that the others explain.
JITTER = 1e-10  # Of matrices that are inverted, beside a diagonal of 1.
SMOOTH = 1e-6  # Share of a deviation that is of each point by itself.
LEAST_WEIGHT = 1e-4  # Of a deviation that is asked for values.


class Data(NamedTuple):
  """The data of a fit: configurations.

  names: of the inputs.  middle_A: of the inputs, geometric.  x_KA: inputs over
  their middle.  y_K: mean scores.  n_K: runs.  group_K: from 0 up.
  error: sum of squares between runs of one configuration.  free: its degrees
  of freedom.
  """
  names: tuple[str, ...]
  middle_A: np.ndarray
  x_KA: np.ndarray
  y_K: np.ndarray
  n_K: np.ndarray
  group_K: np.ndarray
  error: float
  free: int


class Posterior(NamedTuple):
  """The models of one deviation.

  log_weight_M: with a constant that is common to all.  beta_MP: coefficients.
  root_MPP: times sd and a standard normal vector, their deviation.
  sd_M: of a run.  free_M: degrees of freedom.  root_KK: of the covariance of
  mean scores over the variance of a run.  level_GK: times scores, the levels.
  """
  log_weight_M: np.ndarray
  beta_MP: np.ndarray
  root_MPP: np.ndarray
  sd_M: np.ndarray
  free_M: np.ndarray
  root_KK: np.ndarray
  level_GK: np.ndarray


class Averaged(NamedTuple):
  """All models of all deviations.

  data: see Data.  pairs: inputs of each product.  column_MP: columns of each
  model, see `columns`.  parts: H Posteriors.  weight_HM: add up to 1.
  """
  data: Data
  pairs: tuple[tuple[int, int], ...]
  column_MP: np.ndarray
  parts: tuple[Posterior, ...]
  weight_HM: np.ndarray

  @property
  def sd(self) -> float:
    """Standard deviation of a run by its seed."""
    # The variance of a mixture of equal means is the mean of the variances.
    each_HM = np.stack([part.sd_M ** 2 for part in self.parts])
    return math.sqrt(float(np.sum(self.weight_HM * each_HM)))


def confounded(x_NA: np.ndarray, group_N: np.ndarray) -> list[int]:
  """Returns the inputs that do not vary by themselves within groups.

  Args:
    x_NA: inputs, positive.
    group_N: from 0 up.
  """
  # In logarithms, as ratios of inputs matter to a power law.
  u_NA = _centered(np.log(x_NA), group_N)
  out: list[int] = []
  for a in range(u_NA.shape[1]):
    # Compared with inputs that are not in `out` already: of two that go
    # together, one is named and the other stays.
    if _explained(u_NA[:, a], np.delete(u_NA, [a, *out], 1)):
      out.append(a)
  return out


def _centered(v_NP, group_N):
  """Returns values less the mean of their group."""
  size_G = np.bincount(group_N)
  mean_GP = np.zeros((len(size_G), v_NP.shape[1]))
  # Not +=, which adds only one of several rows with the same index.
  np.add.at(mean_GP, group_N, v_NP)
  return v_NP - (mean_GP / size_G[:, None])[group_N]


def _explained(v_N, others_NP):
  """Returns whether a column is constant or a combination of others."""
  left_N = v_N - others_NP @ np.linalg.lstsq(others_NP, v_N, rcond=1e-10)[0]
  return bool(np.sum(left_N ** 2) <= (1 - CONFOUNDED) * np.sum(v_N ** 2)
              or np.sum(v_N ** 2) < 1e-12)


def fit(inputs: Mapping[str, Any], score: Any, groups: Any) -> Averaged:
  """Returns the Averaged law of some runs.

  Args:
    inputs: {name: N positive values}. Runs with equal inputs and group are one
      configuration, repeated.
    score: N scores.
    groups: N labels; runs of a group have equal settings. Points are asked for
      in a group by its place among the sorted labels.

  Raises:
    ValueError: an input that does not vary by itself, or too few
      configurations; says how many would be enough.
  """
  names = tuple(inputs)
  x_NA = np.stack([np.asarray(inputs[name], float) for name in names], 1)
  group_N = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
  if not (np.isfinite(x_NA).all() and (x_NA > 0).all()):
    raise ValueError(f'inputs {", ".join(names)}: expected positive numbers')
  alone = confounded(x_NA, group_N)
  if alone:
    raise ValueError(f'{names[alone[0]]} does not vary by itself: expected '
                     'runs that differ in it alone')
  data = _configurations(names, x_NA, np.asarray(score, float), group_N)
  # Of the means about the law, and of the runs about their mean.
  free = len(data.y_K) - len(np.unique(data.group_K)) - len(names) + data.free
  if free < LEAST_FREE:
    raise ValueError(f'{len(data.y_K)} comparable configurations: expected at '
                     f'least {len(data.y_K) + LEAST_FREE - free}')
  return _averaged(data)


def _configurations(names, x_NA, y_N, group_N):
  """Returns the Data of runs, those of equal inputs and group together."""
  key_NB = np.column_stack([group_N, x_NA])
  _, first, label_N = np.unique(key_NB, axis=0, return_index=True,
                                return_inverse=True)
  # numpy 2.0 gives the inverse one axis more than other versions do.
  label_N = label_N.ravel()
  n_K = np.bincount(label_N).astype(float)
  y_K = np.bincount(label_N, y_N) / n_K
  # At the geometric mean, u is 0 and its slope in log x is 1 for every
  # exponent: so coefficients of different exponents can be compared.
  middle_A = np.exp(np.log(x_NA).mean(0))
  return Data(names, middle_A, x_NA[first] / middle_A, y_K, n_K,
              group_N[first], float(np.sum((y_N - y_K[label_N]) ** 2)),
              len(y_N) - len(n_K))


def _averaged(data):
  """Returns the models of every deviation."""
  # Of configurations alone: repeated seeds say nothing about a product.
  own = len(data.y_K) - len(np.unique(data.group_K)) - len(data.names)
  pairs = ()
  if own > 1:
    pairs = _pairs(data)
  column_MP = _models(len(data.names), pairs)
  parts = tuple(_posterior(data, pairs, column_MP, *deviation)
                for deviation in DEVIATIONS)
  log_HM = np.stack([part.log_weight_M for part in parts])
  # Divided by the largest, as the likelihoods themselves underflow.
  weight_HM = np.exp(log_HM - log_HM.max())
  return Averaged(data, pairs, column_MP, parts, weight_HM / weight_HM.sum())


def _pairs(data):
  """Returns the pairs of inputs whose product varies by itself."""
  u_KA = np.log(data.x_KA)
  out = []
  for a, b in itertools.combinations(range(len(data.names)), 2):
    u_KP = _centered(np.column_stack([u_KA, u_KA[:, a] * u_KA[:, b]]),
                     data.group_K)
    if not _explained(u_KP[:, -1], u_KP[:, :-1]):
      out.append((a, b))
  return tuple(out)


def columns(x_QA: np.ndarray,
            pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
  """Returns every column that a model may have at some points, (Q, C).

  The E exponents of each input, the E x E products of each pair, and zeros.

  Args:
    x_QA: inputs over their middle.
    pairs: the inputs of each product.
  """
  log_QA1 = np.log(x_QA)[..., None]
  e_E = np.array(EXPONENTS)
  # expm1, as 1 - x^-e loses all digits for small e. np.where computes both
  # branches everywhere, hence errstate.
  with np.errstate(all='ignore'):
    u_QAE = np.where(e_E == 0, log_QA1, -np.expm1(-log_QA1 * e_E) / e_E)
  out = [u_QAE.reshape(len(x_QA), -1)]
  out += [(u_QAE[:, a, :, None] * u_QAE[:, b, None, :]).reshape(len(x_QA), -1)
          for a, b in pairs]
  return np.concatenate([*out, np.zeros((len(x_QA), 1))], 1)


def _models(A, pairs):
  """Returns the columns of every model, (M, A + 1): inputs, then a product."""
  E = len(EXPONENTS)
  e_MA = np.array(list(itertools.product(range(E), repeat=A)))
  # The column of exponent e of input a is a E + e.
  main_MA = e_MA + E * np.arange(A)
  # Models without a product first: they point at the column of zeros.
  products = [np.full(len(e_MA), A * E + len(pairs) * E * E)]
  products += [A * E + i * E * E + e_MA[:, a] * E + e_MA[:, b]
               for i, (a, b) in enumerate(pairs)]
  return np.concatenate([np.column_stack([main_MA, one_M])
                         for one_M in products])


def _likeness(data, x_RA, x_QA, length):
  """Returns the correlations of deviations of points of one group, (R, Q).

  Distances are in the range of each input, of all configurations.
  """
  span_A = np.ptp(np.log(data.x_KA), 0)
  apart_RQA = (np.log(x_RA)[:, None] - np.log(x_QA)) / span_A
  if not length:
    return (np.abs(apart_RQA).max(2) < 1e-9) * 1.
  # The squared exponential covariance.
  return np.exp(-.5 * np.sum(apart_RQA ** 2, 2) / length ** 2)


def _posterior(data, pairs, column_MP, variance, length):
  """Returns the Posterior of a deviation."""
  A, G = len(data.names), int(data.group_K.max()) + 1
  has_product_M = np.zeros(len(column_MP), bool)
  if pairs:
    has_product_M = column_MP[:, A] < column_MP.max()
  same_KK = data.group_K[:, None] == data.group_K
  # Covariance of mean scores over the variance of a run: 1 / n by the seeds,
  # and the deviation, which groups do not share.
  root_KK = np.linalg.cholesky(np.diag(1 / data.n_K) + (
      variance * same_KK * _likeness(data, data.x_KA, data.x_KA, length)))
  # Generalised least squares: this makes the errors independent.
  white_KK = np.linalg.inv(root_KK)
  # The levels are projected out of what has independent errors of one size.
  level_KG = white_KK @ (data.group_K[:, None] == np.arange(G))
  q_KG, r_GG = np.linalg.qr(level_KG)
  both = white_KK @ np.column_stack([columns(data.x_KA, pairs), data.y_K])
  both -= q_KG @ (q_KG.T @ both)
  u_KC, y_K = both[:, :-1], both[:, -1]
  # Inner products of all columns once; models only choose among them.
  # Columns of length 1, so that JITTER is relative to all of them.
  norm_C = np.linalg.norm(u_KC, axis=0)
  norm_C[norm_C < 1e-12] = 1.
  u_KC = u_KC / norm_C
  gram_MPP = (u_KC.T @ u_KC)[column_MP[:, :, None], column_MP[:, None, :]]
  # A product that a model does not have gets the coefficient 0.
  gram_MPP[~has_product_M, A, A] = 1.
  side_MP = (u_KC.T @ y_K)[column_MP]
  inverse_MPP = np.linalg.inv(gram_MPP + JITTER * np.eye(A + 1))
  beta_MP = np.einsum('mpq,mq->mp', inverse_MPP, side_MP)
  # |y|^2 - beta X'y is the residual sum of squares of the means; that between
  # runs of a configuration is added.
  rest_M = y_K @ y_K - np.sum(beta_MP * side_MP, 1) + data.error
  # By rounding, an exact fit could leave less than 0.
  rest_M = np.maximum(rest_M, 1e-12 * (y_K @ y_K + 1e-12))
  count, P_M = len(y_K) - G + data.free, A + has_product_M
  free_M = np.maximum(count - P_M, 1)
  # Half of the prior is that no product is needed, and a third that nothing
  # deviates from the law.
  prior_M = np.where(has_product_M, 1. / max(len(pairs), 1), 1.)
  if variance:
    prior_M = 2 * prior_M / (len(DEVIATIONS) - 1)
  # The restricted likelihood at its best sd, BIC's penalty for the
  # coefficients, and the determinants of the covariance and of the levels.
  log_M = (np.log(prior_M) - free_M / 2 * np.log(rest_M)
           - P_M / 2 * math.log(count) - np.log(np.diag(root_KK)).sum()
           - np.log(np.abs(np.diag(r_GG))).sum())
  scale_MP = 1 / norm_C[column_MP]
  return Posterior(
      log_M, beta_MP * scale_MP,
      scale_MP[..., None] * np.linalg.cholesky(inverse_MPP),
      np.sqrt(rest_M / free_M), free_M, root_KK,
      np.linalg.solve(r_GG, q_KG.T @ white_KK))


def values(law: Averaged, points: Mapping[str, Any], group: int = 0,
           draws: int = 2000, seed: int = 0,
           noise: bool = False) -> np.ndarray:
  """Returns expected scores at some points by laws drawn at random, (S, Q).

  Args:
    law: of `fit`.
    points: {name: Q values} of every input.
    group: whose level and deviation they have, by its place.
    draws: S.
    seed: of the draws.
    noise: whether to return the score of one run, with its seed's noise.
  """
  data, rng = law.data, np.random.default_rng(seed)
  x_QA = np.stack([np.asarray(points[name], float) for name in data.names],
                  1) / data.middle_A
  weight_H = law.weight_HM.sum(1)
  # Each deviation costs a factorisation at the points.
  weight_H = np.where(weight_H < LEAST_WEIGHT, 0., weight_H)
  count_H = rng.multinomial(draws, weight_H / weight_H.sum())
  out = [_drawn(law, h, x_QA, group, count_H[h], rng, noise)
         for h in np.flatnonzero(count_H)]
  return np.concatenate(out)


def _drawn(law, h, x_QA, group, draws, rng, noise):
  """Returns `draws` laws with the deviation h at some points, (draws, Q)."""
  data, part, (variance, length) = law.data, law.parts[h], DEVIATIONS[h]
  weight_M = law.weight_HM[h] / law.weight_HM[h].sum()
  # First a model by its weight, then its sd, then its coefficients.
  model_S = rng.choice(len(weight_M), draws, p=weight_M)
  free_S = part.free_M[model_S]
  # sd^2 is a scaled inverse chi-square, so coefficients follow Student's t.
  sd_S = part.sd_M[model_S] * np.sqrt(free_S / rng.chisquare(free_S))
  normal_SP = rng.standard_normal((draws, part.beta_MP.shape[1]))
  beta_SP = part.beta_MP[model_S] + sd_S[:, None] * np.einsum(
      'spq,sq->sp', part.root_MPP[model_S], normal_SP)
  # Each draw by its own columns, as one product of all columns.
  beta_SC = np.zeros((draws, law.column_MP.max() + 1))
  np.put_along_axis(beta_SC, law.column_MP[model_S], beta_SP, 1)
  # The column of zeros needs no coefficient.
  beta_SC[:, -1] = 0.
  left_SK = data.y_K - beta_SC @ columns(data.x_KA, law.pairs).T
  spread_GK = part.level_GK @ part.root_KK
  # Levels given the coefficients: the rest, averaged, with its error.
  level_SG = left_SK @ part.level_GK.T + sd_S[:, None] * (
      rng.standard_normal((draws, len(data.y_K))) @ spread_GK.T)
  v_SQ = beta_SC @ columns(x_QA, law.pairs).T + level_SG[:, group, None]
  if noise:
    v_SQ += sd_S[:, None] * rng.standard_normal(v_SQ.shape)
  if not variance:
    return v_SQ
  # The deviation, given what the law leaves of the scores.
  same_K1 = data.group_K[:, None] == group
  k_KQ = variance * same_K1 * _likeness(data, data.x_KA, x_QA, length)
  white_KQ = np.linalg.solve(part.root_KK, k_KQ)
  left_SK = np.linalg.solve(
      part.root_KK, (left_SK - level_SG[:, data.group_K]).T).T
  v_SQ += left_SK @ white_KQ
  # Covariance of a Gaussian process given the data.
  own_QQ = variance * (_likeness(data, x_QA, x_QA, length)
                       + SMOOTH * np.eye(len(x_QA))) - white_KQ.T @ white_KQ
  return v_SQ + sd_S[:, None] * (
      rng.standard_normal(v_SQ.shape) @ np.linalg.cholesky(own_QQ).T)


def with_points(law: Averaged, points: Mapping[str, Any], scores: Any,
                group: int = 0) -> Averaged:
  """Returns the law after one more run at each of some points.

  Args:
    law: as it is.
    points: {name: Q values} of every input.
    scores: Q scores.
    group: of the points, by its place.
  """
  data = law.data
  x_QA = np.stack([np.asarray(points[name], float) for name in data.names],
                  1) / data.middle_A
  x_KA, y_K, n_K = data.x_KA, data.y_K.copy(), data.n_K.copy()
  group_K, error, free = data.group_K, data.error, data.free
  for x_A, y in zip(x_QA, np.asarray(scores, float)):
    same = np.flatnonzero((group_K == group)
                          & (np.abs(np.log(x_KA / x_A)) < 1e-9).all(1))
    if len(same):
      # A run more of a configuration: mean and sum of squares move with it.
      k = same[0]
      # Welford's update of a sum of squares (1962).
      error += n_K[k] / (n_K[k] + 1) * (y - y_K[k]) ** 2
      y_K[k] += (y - y_K[k]) / (n_K[k] + 1)
      n_K[k] += 1
      free += 1
      continue
    x_KA, y_K = np.vstack([x_KA, x_A]), np.append(y_K, y)
    n_K, group_K = np.append(n_K, 1.), np.append(group_K, group)
  return _averaged(data._replace(x_KA=x_KA, y_K=y_K, n_K=n_K, group_K=group_K,
                                 error=error, free=free))


def interval(values_S: np.ndarray,
             confidence: float = .95) -> tuple[float, float]:
  """Returns the interval of draws."""
  tail = (1 - confidence) / 2
  low, high = np.quantile(values_S, [tail, 1 - tail])
  return float(low), float(high)
