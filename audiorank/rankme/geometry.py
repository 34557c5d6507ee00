"""What the spectrum cannot see: directions, views of one clip, an old network.

Shapes: N clips, D width, B rows of one block, V views of a clip, L tokens.
All of it runs on the host in float64 but `uniformity`, whose N^2 products
are float32.
"""

from typing import Any

import numpy as np
from numpy import typing as npt
import scipy.linalg

from audiorank.rankme import gram
from audiorank.rankme import layout
from audiorank.rankme import spectrum

EPS = 1e-7


def _unit_blocks(z_ND):
  """Yields rows of z_ND scaled to length 1, block by block."""
  for start in range(0, len(z_ND), gram.HOST_ROWS):
    x_BD = np.asarray(z_ND[start:start + gram.HOST_ROWS], np.float64)
    length_B = np.linalg.norm(x_BD, axis=1)
    if not np.isfinite(length_B).all():
      gram.refuse_nonfinite(z_ND)
    # Scaled to length 1, a zero vector would be NaN.
    if not length_B.all():
      raise ValueError(f'embedding {start + int(length_B.argmin())} is zero: '
                       'it has no direction')
    yield x_BD / length_B[:, None]


def _unit_moments(z_ND):
  width = z_ND.shape[1]
  sum_D, gram_DD = np.zeros(width), np.zeros((width, width))
  for u_BD in _unit_blocks(z_ND):
    sum_D += u_BD.sum(axis=0)
    gram_DD += u_BD.T @ u_BD
  return sum_D, gram_DD


def _of_moments(n, sum_D, gram_DD):
  width = len(sum_D)
  # Sum of squared cosines of n isotropic directions: n of 1, and 1 / D of
  # each other pair.
  chance = n + n * (n - 1) / width
  # Unbiased (n - 1), from sums of squares; cancellation may leave -1e-17.
  deviation_D = np.sqrt(np.maximum(np.diag(gram_DD) - sum_D**2 / n, 0)
                        / (n - 1))
  return {
      # Of all pairs (u, v), the n pairs of a clip with itself taken out.
      'mean_cosine': float((sum_D @ sum_D - n) / (n * (n - 1))),
      'self_clustering': float(((gram_DD**2).sum() - chance)
                               / (n**2 - chance)),
      'normalised_std': float(deviation_D.mean()),
  }


def mean_cosine(z_ND: layout.Embeddings) -> float:
  """Returns the mean cosine of two different clips; 1 if collapsed."""
  z_ND = gram.checked(z_ND)
  return _of_moments(len(z_ND), *_unit_moments(z_ND))['mean_cosine']


def normalised_std(z_ND: layout.Embeddings) -> float:
  """Mean deviation of a channel of unit rows: 1/sqrt(D) if isotropic.

  The collapse indicator of SimSiam (arXiv 2011.10566) and lightly.
  """
  z_ND = gram.checked(z_ND)
  return _of_moments(len(z_ND), *_unit_moments(z_ND))['normalised_std']


def self_clustering(z_ND: layout.Embeddings) -> float:
  """Returns squared cosines beyond chance: 0 uniform, 1 collapsed.

  Tsitsulin et al., arXiv 2305.16562, Def. 3.5, by the D x D product.
  """
  z_ND = gram.checked(z_ND)
  return _of_moments(len(z_ND), *_unit_moments(z_ND))['self_clustering']


def uniformity(z_ND: layout.Embeddings, t: float = 2.0,
               limit: int = 8192) -> float:
  """log mean exp(-t |u - v|^2) over pairs of unit rows; lower is more uniform.

  Wang and Isola, arXiv 2005.10242, eq. 2. The cost grows with the square of
  the rows: beyond `limit` as many rows, evenly spaced, stand for all.
  """
  z_ND = gram.checked(z_ND)
  if len(z_ND) > limit:
    # Evenly spaced, not random: the same rows at every evaluation.
    z_ND = z_ND[np.linspace(0, len(z_ND) - 1, limit).astype(int)]
  # float32: N^2 products dominate, and a cosine needs no more digits.
  u_ND = np.concatenate([u.astype(np.float32) for u in _unit_blocks(z_ND)])
  n, total = len(u_ND), 0.0
  # |u - v|^2 = 2 - 2 cos: N^2 products, a block of rows at a time.
  for start in range(0, n, gram.HOST_ROWS):
    cosine_BN = u_ND[start:start + gram.HOST_ROWS] @ u_ND.T
    total += np.exp(2 * t * (cosine_BN - 1)).sum(dtype=np.float64)
  # The n pairs of a row with itself contribute exp(0) = 1 each.
  return float(np.log((total - n) / (n * (n - 1))))


def directions(z_ND: layout.Embeddings) -> dict[str, float]:
  """Returns the four measures of direction of raw embeddings, by name.

  Raises:
    ValueError: as `singular_values`, and for an embedding that is zero.
  """
  z_ND = gram.checked(z_ND)
  out = _of_moments(len(z_ND), *_unit_moments(z_ND))
  return out | {'uniformity': uniformity(z_ND)}


def lidar(z_NVD: npt.ArrayLike, delta: float = 1e-4,
          eps: float = EPS) -> float:
  """Effective rank of what tells clips apart, views of a clip being noise.

  Thilak et al., arXiv 2312.04000: exp of the entropy of the eigenvalues of
  Sw^-1/2 Sb Sw^-1/2, over their sum, plus eps. Sb is the covariance of the
  clips' mean embeddings, Sw the mean covariance within a clip plus delta I,
  both unbiased. For a masked autoencoder the views are other masks or other
  crops of a clip; the paper takes more clips than dimensions and 10 to 50
  views. delta is in the units of the embeddings squared and is not given in
  the paper: 1e-4 is stable-pretraining's, reptrix has 1e-6.

  Args:
    z_NVD: N clips, V views of each.

  Raises:
    ValueError: not three-dimensional, fewer than two clips or views, NaN.
  """
  z_NVD = np.asarray(z_NVD, np.float64)
  if z_NVD.ndim != 3 or min(z_NVD.shape[:2]) < 2:
    raise ValueError('LiDAR needs [clips, views, width] with at least 2 clips '
                     f'and 2 views, found shape {z_NVD.shape}')
  if not np.isfinite(z_NVD).all():
    gram.refuse_nonfinite(z_NVD.reshape(-1, z_NVD.shape[2]))
  n, views, width = z_NVD.shape
  mean_ND = z_NVD.mean(axis=1)
  # Between clips by their means, within a clip by its views.
  about_ND = mean_ND - mean_ND.mean(axis=0)
  between_DD = about_ND.T @ about_ND / (n - 1)
  # The views' deviations from their own clip's mean, all clips pooled.
  noise_RD = (z_NVD - mean_ND[:, None]).reshape(-1, width)
  within_DD = noise_RD.T @ noise_RD / (n * (views - 1))
  # The generalised problem Sb v = lam (Sw + delta I) v has the eigenvalues of
  # Sw^-1/2 Sb Sw^-1/2, without an inverse root.
  lam_D = scipy.linalg.eigh(between_DD, within_DD + delta * np.eye(width),
                            eigvals_only=True)
  return spectrum.effective_rank(np.maximum(lam_D, 0), eps)


def token_rank(tokens_NLD: Any) -> float:
  """Diff-eRank's effective rank of token embeddings, averaged over clips.

  Wei et al., arXiv 2401.17139: the tokens of a clip are centred, scaled to
  unit length, and exp(-sum q log q) taken of the eigenvalues of their second
  moment; entropies are averaged over clips before the exponential.
  """
  entropies: list[float] = []
  for x_LD in tokens_NLD:
    x_LD = np.asarray(x_LD, np.float64)
    x_LD = x_LD - x_LD.mean(axis=0)
    length_L = np.linalg.norm(x_LD, axis=1)
    if not (np.isfinite(length_L).all() and length_L.all()):
      raise ValueError('a token is NaN, infinite, or equal to the mean of its '
                       f'clip (clip {len(entropies)}): it has no direction')
    # Squared singular values are the eigenvalues of the second moment.
    s_K = np.linalg.svd(x_LD / length_L[:, None], compute_uv=False)
    entropies.append(np.log(spectrum.effective_rank(s_K**2, 0.0)))
  return float(np.exp(np.mean(entropies)))


def diff_erank(untrained_NLD: Any, trained_NLD: Any) -> float:
  """Returns token_rank of the untrained network less the trained one's."""
  return token_rank(untrained_NLD) - token_rank(trained_NLD)
