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
from scipy import sparse

from audiorank.rankme import gram
from audiorank.rankme import layout

LIMIT = 10_000  # 400 MB of distances.
LEAST = 32  # Fewer clips have no neighbourhoods.
NEIGHBOURS = 20  # Of the maximum-likelihood dimension, as in scikit-dimension.
CLOSE = .02  # Share of a squared length below which float32 cancels.
SLACK = 4e-4  # Of squares, beyond which rounding confuses no neighbours.
ROUNDING = 4e-6  # Of products in float32, as a share of both lengths.
MOST = 8  # Times as many candidates as neighbours are too many.
FOLD = 16  # Columns whose least value stands for all.
BLOCK = 128  # Rows searched at once: 5 MB at most.
TILE = 64  # Columns mirrored at once.
PAIRS = 256  # Distances at once.
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
  # Times a power of two; infinite on the diagonal.
  square_NN: npt.NDArray[np.float32]


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
  return Distances(own_ND, raw_ND, squares(own_ND))


def squares(z_ND: Array) -> npt.NDArray[np.float32]:
  """Returns square_NN of `Distances`, right to about 1e-4 of each value.

  Args:
    z_ND: centred embeddings.
  """
  N, D = z_ND.shape
  length_N = np.einsum('nd,nd->n', z_ND, z_ND)
  # A power of two, so that float32 neither overflows nor loses digits.
  largest = max(float(length_N.max()), np.finfo(float).tiny)
  unit = 2. ** -round(np.log2(largest) / 2)
  # |x - y|^2 = [-2 x, |x|^2, 1] . [y, 1, |y|^2]: one matrix product and no
  # further pass over N x N.
  left_NE, right_NE = np.empty((2, N, D + 2), np.float32)
  np.multiply(z_ND, -2 * unit, out=left_NE[:, :D], casting='same_kind')
  np.multiply(z_ND, unit, out=right_NE[:, :D], casting='same_kind')
  left_NE[:, D] = right_NE[:, D + 1] = unit ** 2 * length_N
  left_NE[:, D + 1] = right_NE[:, D] = 1
  square_NN = np.empty((N, N), np.float32)
  for start in range(0, N, gram.HOST_ROWS):
    stop = min(start + gram.HOST_ROWS, N)
    # Right of the diagonal only: the other half is a copy.
    square_BN = square_NN[start:stop, start:]
    np.matmul(left_NE[start:stop], right_NE[start:].T, out=square_BN)
    # Rounding can make the square of a small distance negative.
    np.maximum(square_BN, 0, out=square_BN)
    # By small tiles: whole columns would miss the cache at every value.
    for tile in range(stop, N, TILE):
      square_NN[tile:tile + TILE, start:stop] = (
          square_NN[start:stop, tile:tile + TILE].T)
  np.fill_diagonal(square_NN, np.inf)
  for start in range(0, N, gram.HOST_ROWS):
    rows_B = np.arange(start, min(start + gram.HOST_ROWS, N))
    # Where a clip is near another one compared with its length, the product
    # cancels: float64 has the digits for these rows.
    close_B = (square_NN[rows_B[0]:rows_B[-1] + 1].min(1)
               < CLOSE * unit ** 2 * length_N[rows_B])
    rows_B = rows_B[close_B]
    if len(rows_B):
      square_BN = length_N[rows_B, None] + length_N - 2 * z_ND[rows_B] @ z_ND.T
      square_NN[rows_B] = unit ** 2 * np.maximum(square_BN, 0)
      square_NN[rows_B, rows_B] = np.inf
  return square_NN


def between(raw_ND: npt.NDArray[np.floating], from_P: np.ndarray,
            to_P: np.ndarray) -> Array:
  """Returns distance_P of pairs of rows, without cancelling.

  Differences are rounded as the embeddings are, and summed in float64.
  """
  out_P = np.empty(len(from_P))
  # Few pairs at once stay in the cache.
  for start in range(0, len(from_P), PAIRS):
    some = slice(start, start + PAIRS)
    gap_PD = raw_ND[from_P[some]]
    gap_PD -= raw_ND[to_P[some]]
    out_P[some] = np.einsum('pd,pd->p', gap_PD, gap_PD, dtype=np.float64)
  return np.sqrt(out_P)


def candidates(square_BN: npt.NDArray[np.float32],
               count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (row_P, column_P) of the smallest values of each row.

  They are the `count` smallest and all that rounding might confuse with them,
  row by row.
  """
  B, N = square_BN.shape
  folded_BG = square_BN
  columns = N // FOLD
  if columns > 2 * count:
    # The least of every FOLD columns: `count` of these minima bound `count`
    # values of the row, so that a small array is partitioned.
    folded_BG = square_BN[:, :FOLD * columns].reshape(
        B, FOLD, columns).min(1)
  bound_B = np.partition(folded_BG, count - 1, axis=1)[:, count - 1]
  bound_B *= np.float32(1 + SLACK)
  row_P, column_P = np.divmod(
      np.flatnonzero(square_BN <= bound_B[:, None]), N)
  # Copies of a clip are all equally near: as many as needed do.
  crowded = np.flatnonzero(np.bincount(row_P) > MOST * (count + 1))
  if len(crowded):
    few_P = ~np.isin(row_P, crowded)
    order = np.argpartition(square_BN[crowded], count - 1)[:, :count]
    row_P = np.r_[row_P[few_P], np.repeat(crowded, count)]
    column_P = np.r_[column_P[few_P], order.ravel()]
    order = np.argsort(row_P, kind='stable')
    row_P, column_P = row_P[order], column_P[order]
  return row_P, column_P


def nearest(pairs: Distances, count: int) -> Array:
  """Returns distance_NJ of the nearest other clips, ascending."""
  N = len(pairs.z_ND)
  out_NJ = np.empty((N, count))
  for start in range(0, N, BLOCK):
    square_BN = pairs.square_NN[start:start + BLOCK]
    # The candidates by float32, then their order by exact distances.
    row_P, column_P = candidates(square_BN, count)
    size_B = np.bincount(row_P, minlength=len(square_BN))
    # The place of each candidate among those of its row.
    place_P = np.arange(len(row_P)) - np.repeat(
        np.cumsum(size_B) - size_B, size_B)
    far_BJ = np.full((len(square_BN), size_B.max()), np.inf)
    far_BJ[row_P, place_P] = between(pairs.raw_ND, start + row_P, column_P)
    far_BJ.sort(axis=1)
    out_NJ[start:start + BLOCK] = far_BJ[:, :count]
  return out_NJ


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


def tree(square_NN: npt.NDArray[np.float32], rows_N: np.ndarray | None = None
         ) -> tuple[np.ndarray, np.ndarray]:
  """Returns (from_E, to_E), the edges of the minimum spanning tree.

  By Prim, whose N steps are each one pass over a row of the distances.

  Args:
    square_NN: squares of distances.
    rows_N: of the clips that it spans, which the edges then name; None for all.
  """
  N = len(square_NN)
  if rows_N is not None:
    N = len(rows_N)
  # The distance of each clip from the tree so far, and the clip of the tree
  # that it is to. Clips within the tree are infinitely far, so that argmin
  # never takes them again; `bound_N` has them at -1, so that nothing is nearer.
  best_N = np.full(N, np.inf, np.float32)
  bound_N = best_N.copy()
  parent_N = np.zeros(N, np.int64)
  from_E, to_E = np.empty(N - 1, np.int64), np.empty(N - 1, np.int64)
  i, row_N = 0, np.empty(N, np.float32)
  for e in range(N - 1):
    best_N[i], bound_N[i] = np.inf, -1
    if rows_N is None:
      row_N = square_NN[i]
    else:
      np.take(square_NN[rows_N[i]], rows_N, out=row_N, mode='clip')
    nearer = np.flatnonzero(row_N < bound_N)
    best_N[nearer] = bound_N[nearer] = row_N[nearer]
    parent_N[nearer] = i
    i = int(best_N.argmin())
    from_E[e], to_E[e] = parent_N[i], i
  if rows_N is not None:
    return rows_N[from_E], rows_N[to_E]
  return from_E, to_E


def tree_length(pairs: Distances, rows_N: np.ndarray | None = None) -> float:
  """Returns the sum of the edges of the minimum spanning tree.

  Args:
    pairs: from `distances`.
    rows_N: of the clips that it spans; None for all.
  """
  return float(between(pairs.raw_ND, *tree(pairs.square_NN, rows_N)).sum())


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
  """Returns (label_N, inertia) of k-means by Lloyd's steps, as scikit-learn's.

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
  length_N = np.sqrt(np.einsum('nd,nd->n', z_ND, z_ND))
  # scikit-learn's rule: the centres moved by less than a share of the variance.
  small = SETTLED * float(z_ND.var(0).mean())
  score_NC = np.empty((len(z_ND), len(centres_CD)), np.float32)
  label_N = np.full(len(z_ND), -1)
  moved_C: np.ndarray = np.ones(len(centres_CD), bool)
  for step in range(ITERATIONS + 1):
    before_N = label_N
    label_N = assigned(z_ND, x_ND, length_N, centres_CD, moved_C, score_NC)
    if step == ITERATIONS:
      break
    before_CD = centres_CD
    centres_CD = relocated(z_ND, label_N, centres_CD)
    # scikit-learn updates the centres once more where no label changed.
    if (label_N == before_N).all():
      break
    gap_CD = centres_CD - before_CD
    # Only centres that moved have new distances.
    moved_C = (gap_CD != 0).any(1)
    if float((gap_CD ** 2).sum()) <= small:
      # The labels of the last centres.
      label_N = assigned(z_ND, x_ND, length_N, centres_CD, moved_C, score_NC)
      break
  return label_N, float(gaps(z_ND, label_N, centres_CD).sum())


def assigned(z_ND: Array, x_ND: npt.NDArray[np.float32], length_N: Array,
             centres_CD: Array, moved_C: np.ndarray,
             score_NC: npt.NDArray[np.float32]) -> np.ndarray:
  """Returns label_N, the nearest centre of each clip.

  Args:
    z_ND, x_ND: the clips in float64 and float32.
    length_N: their lengths.
    centres_CD: the centres.
    moved_C: which of them moved since the last call.
    score_NC: of the last call; those of centres that moved are written anew.
  """
  # The nearest centre has the largest x.c - |c|^2 / 2; |x|^2 is the same for
  # all centres.
  half_C = .5 * (centres_CD ** 2).sum(1)
  c_CD = centres_CD.astype(np.float32)
  if moved_C.all():
    np.matmul(x_ND, c_CD.T, out=score_NC)
    score_NC -= half_C.astype(np.float32)
  else:
    score_NC[:, moved_C] = (x_ND @ c_CD[moved_C].T
                            - half_C[moved_C].astype(np.float32))
  label_N = score_NC.argmax(1)
  best_N = score_NC[np.arange(len(label_N)), label_N]
  # Centres that are equally near but for the rounding of float32 are compared
  # in float64.
  slack_N = ROUNDING * (length_N + np.sqrt(2 * half_C.max())) * np.sqrt(
      2 * half_C.max())
  tie_NC = score_NC >= (best_N - slack_N).astype(np.float32)[:, None]
  rows = np.flatnonzero(tie_NC.sum(1) > 1)
  for row in rows:
    tied = np.flatnonzero(tie_NC[row])
    score = centres_CD[tied] @ z_ND[row] - half_C[tied]
    label_N[row] = tied[score.argmax()]
  return label_N


def relocated(z_ND: Array, label_N: np.ndarray, before_CD: Array) -> Array:
  """Returns the mean of each cluster, and for empty ones the farthest clips.

  As scikit-learn: the clips farthest from their centres become the centres of
  the empty clusters and leave their own.

  Args:
    z_ND: the clips.
    label_N: their clusters.
    before_CD: the centres that gave the labels.
  """
  sum_CD, count_C = sums(z_ND, label_N, len(before_CD))
  empty = np.flatnonzero(count_C == 0)
  if len(empty):
    far_N = gaps(z_ND, label_N, before_CD)
    rows = np.argpartition(far_N, -len(empty))[:-len(empty) - 1:-1]
    # Clips that are all their own centres have nothing to give.
    if not far_N.any():
      rows = rows[:0]
    for cluster, row in zip(empty, rows):
      sum_CD[label_N[row]] -= z_ND[row]
      count_C[label_N[row]] -= 1
      sum_CD[cluster], count_C[cluster] = z_ND[row], 1
  out_CD = sum_CD / np.maximum(count_C, 1)[:, None]
  # What is still empty stands where the largest cluster is.
  out_CD[count_C == 0] = out_CD[count_C.argmax()]
  return out_CD


def sums(z_ND: Array, label_N: np.ndarray, count: int
         ) -> tuple[Array, np.ndarray]:
  """Returns (sum_CD, count_C) of the clips of each cluster."""
  count_C = np.bincount(label_N, minlength=count)
  # A sparse matrix of ones, whose rows name the clips of a cluster.
  members_CN = sparse.csr_array(
      (np.ones(len(z_ND)), np.argsort(label_N, kind='stable'),
       np.r_[0, np.cumsum(count_C)]), shape=(count, len(z_ND)))
  return members_CN @ z_ND, count_C


def gaps(z_ND: Array, label_N: np.ndarray, centres_CD: Array) -> Array:
  """Returns the squared distance of each clip from its own centre."""
  out_N = np.empty(len(z_ND))
  # Few clips at once stay in the cache.
  for start in range(0, len(z_ND), PAIRS):
    some = slice(start, start + PAIRS)
    gap_PD = centres_CD[label_N[some]]
    gap_PD -= z_ND[some]
    out_N[some] = np.einsum('pd,pd->p', gap_PD, gap_PD)
  return out_N


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
  sum_CD, count_C = sums(z_ND, label_N, C)
  centre_CD = sum_CD / count_C[:, None]
  gap_N = np.sqrt(gaps(z_ND, label_N, centre_CD))
  spread_C = np.bincount(label_N, gap_N) / count_C
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
  for start in range(0, N, BLOCK):
    rows_B = np.arange(start, min(start + BLOCK, N))
    square_BN = pairs.square_NN[start:rows_B[-1] + 1, :rows_B[-1] + 1].copy()
    # Only clips before it may predict a clip, and the first has none.
    square_BN[:, start:][np.triu_indices(len(rows_B))] = np.inf
    if start == 0:
      square_BN[0, 0] = 0
    row_P, column_P = candidates(square_BN, 1)
    # Of several candidates the nearest by exact distances.
    far_P = between(pairs.raw_ND, start + row_P, column_P)
    order_P = np.lexsort((far_P, row_P))
    _, first_B = np.unique(row_P[order_P], return_index=True)
    near_B = column_P[order_P[first_B]]
    right += int((label_N[near_B] == label_N[rows_B])[int(start == 0):].sum())
  return right / (N - 1)
