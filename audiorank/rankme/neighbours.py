"""Measures of distances between embeddings: dimensions, clusters, learnability.

They are rivals of RankMe that a spectrum cannot show. The cost grows with the
square of the clips: of more than `limit`, as many, evenly spaced, stand for
all. Distances are computed in float32 to find who is near, and again in float64
for those that enter a number.

Shapes: N clips, D width, J neighbours, C clusters, B rows of one block.
"""

from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from audiorank.rankme import gram
from audiorank.rankme import layout

LIMIT = 10_000  # 400 MB of distances.
LEAST = 32  # Fewer clips have no neighbourhoods.
NEIGHBOURS = 20  # Of the maximum-likelihood dimension, as in scikit-dimension.
SPARE = 8  # Further candidates, against the rounding of float32.
DISCARDED = .1  # Largest ratios that TwoNN leaves out, as its authors do.
CLUSTERS = 1024  # At most; Whetten et al. take as many.
CLIPS_A_CLUSTER = 10  # At least.
ITERATIONS, SETTLED = 100, 1e-4  # Of k-means, as in scikit-learn.
SIZES, DRAWS = 8, 3  # Of the subsamples of a tree's dimension.
SMALLEST = .1  # Of them, as a share of the clips.

Array = npt.NDArray[np.float64]


class Distances(NamedTuple):
  """Embeddings and the squares of their distances."""
  z_ND: Array  # Centred, float64.
  raw_ND: npt.NDArray[np.floating]  # As they came.
  square_NN: npt.NDArray[np.float32]  # Infinite on the diagonal.


def measures(z_ND: layout.Embeddings, limit: int = LIMIT) -> dict[str, float]:
  """Returns every measure of this module, by name.

  Args:
    z_ND: embeddings.
    limit: most clips that are compared.

  Raises:
    ValueError: as `rankme`, or fewer than 32 clips.
  """
  pairs = distances(z_ND, limit)
  near_NJ = nearest(pairs, min(NEIGHBOURS, len(pairs.z_ND) - 1))
  label_N, inertia = kmeans(pairs.z_ND, clusters(len(pairs.z_ND)))
  total = float((pairs.z_ND ** 2).sum())
  return {
      'twonn': twonn(near_NJ), 'mle_dimension': mle_dimension(near_NJ),
      'mst_dimension': mst_dimension(pairs),
      'kmeans_inertia': inertia / max(total, np.finfo(float).tiny),
      'davies_bouldin': davies_bouldin(pairs.z_ND, label_N),
      'cluster_learnability': learnability(pairs, label_N)}


def distances(z_ND: layout.Embeddings, limit: int = LIMIT) -> Distances:
  """Returns the Distances of embeddings.

  Args:
    z_ND: embeddings.
    limit: most clips that are compared.

  Raises:
    ValueError: as `rankme`, or fewer than 32 clips.
  """
  raw_ND = np.asarray(gram.checked(z_ND, least=LEAST))
  if len(raw_ND) > limit:
    raw_ND = raw_ND[np.linspace(0, len(raw_ND) - 1, limit).astype(int)]
  if not np.isfinite(raw_ND).all():
    gram.refuse_nonfinite(raw_ND)
  # Without their mean, which would cost digits.
  own_ND: Array = raw_ND.astype(np.float64)
  own_ND -= own_ND.mean(0)
  x_ND = own_ND.astype(np.float32)
  length_N = (x_ND ** 2).sum(1)
  square_NN = np.empty((len(x_ND), len(x_ND)), np.float32)
  # |x - y|^2 = |x|^2 - 2 x.y + |y|^2: one matrix product a block of rows,
  # written in place so that nothing else of N x N is allocated. It cancels for
  # near clips, which `between` corrects.
  for start in range(0, len(x_ND), gram.HOST_ROWS):
    rows = slice(start, start + gram.HOST_ROWS)
    square_BN = square_NN[rows]
    np.matmul(x_ND[rows], x_ND.T, out=square_BN)
    square_BN *= -2
    square_BN += length_N[rows, None]
    square_BN += length_N[None]
  # Rounding can make the square of a small distance negative.
  np.maximum(square_NN, 0, out=square_NN)
  np.fill_diagonal(square_NN, np.inf)
  return Distances(own_ND, raw_ND, square_NN)


def between(raw_ND: npt.NDArray[np.floating], from_N: np.ndarray,
            to_NJ: np.ndarray) -> Array:
  """Returns distance_NJ of rows from other rows, without cancelling.

  Differences are rounded as the embeddings are, and summed in float64.
  """
  out, own_ND = np.empty(to_NJ.shape), raw_ND[from_N]
  for j in range(to_NJ.shape[1]):
    gap_ND = own_ND - raw_ND[to_NJ[:, j]]
    out[:, j] = np.sqrt(np.einsum('nd,nd->n', gap_ND, gap_ND,
                                  dtype=np.float64))
  return out


def nearest(pairs: Distances, count: int) -> Array:
  """Returns distance_NJ of the nearest other clips, ascending."""
  N = len(pairs.z_ND)
  J = min(count + SPARE, N - 1)
  out = np.empty((N, count))
  for start in range(0, N, gram.HOST_ROWS):
    square_BN = pairs.square_NN[start:start + gram.HOST_ROWS]
    # The candidates by float32, then their order by exact distances.
    near_BJ = np.argpartition(square_BN, J - 1, axis=1)[:, :J]
    rows_B = np.arange(start, start + len(square_BN))
    out[rows_B] = np.sort(between(pairs.raw_ND, rows_B, near_BJ))[:, :count]
  return out


# --- Dimensions ---


def twonn(near_NJ: Array) -> float:
  """Returns the TwoNN dimension of the two nearest distances.

  Facco et al., Scientific Reports 7 (2017): the slope of -log(1 - F) on log mu,
  mu = r2 / r1 of each clip and F their empirical distribution, through the
  origin, without the largest tenth. Copies of a clip (r1 = 0) are left out.

  Args:
    near_NJ: from `nearest`, at least two.
  """
  # log mu of a copy would be infinite.
  own_N = near_NJ[:, 0] > 0
  mu_N = np.sort(near_NJ[own_N, 1] / near_NJ[own_N, 0])
  N = len(mu_N)
  lower_N = mu_N[:int(N * (1 - DISCARDED))]
  if len(lower_N) < 2:
    return float('nan')
  x_N = np.log(lower_N)
  # F counts all N clips, also those that are left out of the line.
  y_N = -np.log1p(-np.arange(1, len(lower_N) + 1) / N)
  return _ratio(x_N @ y_N, x_N @ x_N)


def mle_dimension(near_NJ: Array) -> float:
  """Returns the maximum-likelihood dimension of Levina and Bickel.

  NeurIPS 2004: 1 / d of a clip is the mean of log(r_J / r_j) over its nearer
  neighbours; clips are averaged by 1 / d, as MacKay and Ghahramani propose.
  Copies of a clip are left out.

  Args:
    near_NJ: from `nearest`.
  """
  near_NJ = near_NJ[near_NJ[:, 0] > 0]
  if not len(near_NJ) or near_NJ.shape[1] < 2:
    return float('nan')
  # A mean of d itself is dominated by clips whose 1 / d is near 0.
  inverse_N = np.log(near_NJ[:, -1:] / near_NJ[:, :-1]).mean(1)
  return _ratio(1., inverse_N.mean())


def _ratio(a: float, b: float) -> float:
  """Returns a / b, NaN if b is 0: all distances are the same."""
  if b == 0:
    return float('nan')
  return float(a / b)


def tree(square_NN: npt.NDArray[np.float32]
         ) -> tuple[np.ndarray, np.ndarray]:
  """Returns (from_E, to_E), the edges of the minimum spanning tree.

  By Prim, whose N steps are each one pass over a row of the distances.
  """
  N = len(square_NN)
  # The distance of each clip from the tree so far, and the clip of the tree
  # that it is to. Clips within the tree are infinitely far, so that argmin
  # never takes them again.
  best_N = square_NN[0].copy()
  parent_N = np.zeros(N, np.int64)
  outside_N = np.ones(N, bool)
  outside_N[0] = False
  best_N[0] = np.inf
  from_E, to_E = np.empty(N - 1, np.int64), np.empty(N - 1, np.int64)
  for e in range(N - 1):
    i = int(best_N.argmin())
    from_E[e], to_E[e] = parent_N[i], i
    outside_N[i] = False
    row_N = square_NN[i]
    nearer_N = (row_N < best_N) & outside_N
    best_N[nearer_N] = row_N[nearer_N]
    parent_N[nearer_N] = i
    best_N[i] = np.inf
  return from_E, to_E


def tree_length(pairs: Distances, rows: np.ndarray | None = None) -> float:
  """Returns the sum of the edges of the minimum spanning tree.

  Args:
    pairs: from `distances`.
    rows: of the clips that it spans; None for all.
  """
  if rows is None:
    rows = np.arange(len(pairs.z_ND))
    square_NN = pairs.square_NN
  else:
    square_NN = pairs.square_NN[np.ix_(rows, rows)]
  from_E, to_E = tree(square_NN)
  return float(between(pairs.raw_ND, rows[from_E], rows[to_E][:, None]).sum())


def mst_dimension(pairs: Distances, seed: int = 0) -> float:
  """Returns the dimension by the growth of the minimum spanning tree.

  Mordacq et al., arXiv 2606.03338 (IdEst), and Birdal et al., arXiv 2111.13171:
  the length of the tree of n clips grows as n^((d - 1) / d), so that
  d = 1 / (1 - slope) of log length on log n. The slope is of 8 sizes at equal
  ratios from a tenth of the clips, mean of 3 draws each. Infinite if the slope
  is 1 or more.

  Args:
    pairs: from `distances`.
    seed: of the draws.
  """
  N, rng = len(pairs.z_ND), np.random.default_rng(seed)
  sizes = np.unique(np.rint(np.geomspace(max(8, SMALLEST * N), N,
                                         SIZES)).astype(int))
  lengths = []
  for n in sizes:
    draws = DRAWS
    # All permutations of all clips have one tree.
    if n == N:
      draws = 1
    lengths.append(np.mean([tree_length(pairs, rng.permutation(N)[:n])
                            for _ in range(draws)]))
  if not min(lengths) > 0:
    return float('nan')
  slope = float(np.polyfit(np.log(sizes), np.log(lengths), 1)[0])
  if slope >= 1:
    return float('inf')
  return 1 / (1 - slope)


# --- Clusters ---


def clusters(clips: int) -> int:
  """Returns the number of clusters of so many clips."""
  return max(2, min(CLUSTERS, clips // CLIPS_A_CLUSTER))


def kmeans(z_ND: Array, count: int, centres_CD: Array | None = None,
           seed: int = 0) -> tuple[np.ndarray, float]:
  """Returns (label_N, inertia) of k-means by Lloyd's steps.

  Args:
    z_ND: embeddings.
    count: of clusters.
    centres_CD: the first centres; None takes clips at random.
    seed: of these.

  Returns:
    label_N: the cluster of each clip.
    inertia: the sum of squared distances from the centres.
  """
  if centres_CD is None:
    rows = np.random.default_rng(seed).permutation(len(z_ND))[:count]
    centres_CD = z_ND[rows]
  x_ND = z_ND.astype(np.float32)
  # scikit-learn's rule: the centres moved by less than a share of the variance.
  small = SETTLED * float(z_ND.var(0).mean())
  label_N = np.full(len(z_ND), -1)
  for _ in range(ITERATIONS):
    c_CD = centres_CD.astype(np.float32)
    # The nearest centre has the largest x.c - |c|^2 / 2; |x|^2 is the same for
    # all centres.
    score_NC = x_ND @ c_CD.T
    score_NC -= .5 * (c_CD ** 2).sum(1)[None]
    before_N, label_N = label_N, score_NC.argmax(1)
    new_CD = means(z_ND, label_N, centres_CD)
    moved = float(((new_CD - centres_CD) ** 2).sum())
    centres_CD = new_CD
    if moved <= small or (label_N == before_N).all():
      break
  gap_ND = z_ND - centres_CD[label_N]
  return label_N, float((gap_ND ** 2).sum())


def means(z_ND: Array, label_N: np.ndarray, empty_CD: Array) -> Array:
  """Returns the mean of each cluster; of an empty one the row of empty_CD."""
  C = len(empty_CD)
  # Clips of a cluster side by side, so that each sum is one reduceat. Empty
  # clusters would take the row of the next one: they are left out.
  order = np.argsort(label_N, kind='stable')
  count_C = np.bincount(label_N, minlength=C)
  present_C = count_C > 0
  starts = np.r_[0, np.cumsum(count_C)[:-1]][present_C]
  out_CD = empty_CD.copy()
  out_CD[present_C] = (np.add.reduceat(z_ND[order], starts)
                       / count_C[present_C, None])
  return out_CD


def davies_bouldin(z_ND: Array, label_N: np.ndarray) -> float:
  """Returns the Davies-Bouldin index of clusters; lower is better separated.

  IEEE PAMI 1 (1979): the mean over clusters of the largest
  (s_i + s_j) / distance of the centres, s the mean distance from the centre.
  """
  # Without the empty clusters, which have no spread.
  _, label_N = np.unique(label_N, return_inverse=True)
  C = int(label_N.max()) + 1
  if C < 2:
    return float('nan')
  centre_CD = means(z_ND, label_N, np.zeros((C, z_ND.shape[1])))
  gap_N = np.linalg.norm(z_ND - centre_CD[label_N], axis=1)
  spread_C = np.bincount(label_N, gap_N) / np.bincount(label_N)
  square_C = (centre_CD ** 2).sum(1)
  apart_CC = np.sqrt(np.maximum(
      square_C[:, None] + square_C[None] - 2 * centre_CD @ centre_CD.T, 0))
  np.fill_diagonal(apart_CC, np.inf)
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio_CC = (spread_C[:, None] + spread_C[None]) / apart_CC
  ratio_CC[~np.isfinite(ratio_CC)] = 0  # Two centres in one place.
  return float(ratio_CC.max(1).mean())


def learnability(pairs: Distances, label_N: np.ndarray) -> float:
  """Returns the cluster learnability of CLID.

  Lu et al., arXiv 2206.01251: the share of clips whose cluster is that of the
  nearest clip before them, one after another. CLID is the sum of it and the
  TwoNN dimension, each standardised over models.

  Args:
    pairs: from `distances`.
    label_N: clusters, from `kmeans`.
  """
  N, right = len(label_N), 0
  for start in range(0, N, gram.HOST_ROWS):
    rows = np.arange(start, min(start + gram.HOST_ROWS, N))
    square_BN = pairs.square_NN[rows, :rows[-1] + 1].copy()
    # Only clips before it may predict a clip, and the first has none.
    square_BN[np.arange(rows[-1] + 1)[None] >= rows[:, None]] = np.inf
    right += int((label_N[square_BN.argmin(1)] == label_N[rows])[
        int(start == 0):].sum())
  return right / (N - 1)
