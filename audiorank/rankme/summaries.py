"""Everything one spectrum says beside RankMe, each under its owner's formula.

Shapes: K = min(N, D) singular values. Most owners centre the embeddings
first: see the table of conventions in audiorank/README.md, and call
`singular_values(z_ND, center=True)` for theirs.
"""

import numpy as np
from numpy import typing as npt

from audiorank.rankme import layout
from audiorank.rankme import spectrum

EPS64 = float(np.finfo(np.float64).eps)
# Eigenvalues 11 to 100, weighted by 1/index: Stringer et al. 2019's recipe,
# which the alpha-ReQ code (Agrawal et al., NeurIPS 2022) took over.
ALPHA_FIRST, ALPHA_LAST = 11, 100


def _alpha_req(lam_K):
  """Returns (decay exponent of lam_j ~ j^-alpha, first, last index)."""
  first, last = ALPHA_FIRST, min(ALPHA_LAST, len(lam_K))
  # Fewer than 22 eigenvalues: from the first one on.
  if last < 2 * ALPHA_FIRST:
    first = 1
  j = np.arange(first, last + 1)
  # Below rounding there is no decay to fit.
  keep = lam_K[j - 1] > EPS64 * lam_K[0]
  x, y, w = np.log(j[keep]), np.log(lam_K[j[keep] - 1]), 1 / j[keep]
  if len(x) < 2:
    return float('nan'), first, last
  # A weighted line through the logarithms; its slope is -alpha.
  x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
  return float(-(w * x * y).sum() / (w * x * x).sum()), first, last


def certificate(s_K: npt.ArrayLike, eps: float = 1e-7,
                energy: float | None = None) -> float:
  """Returns a bound of the relative rounding error of RankMe.

  Weyl: each eigenvalue moves by at most 4 u ||Z||_F^2, u = 2^-53; carried to
  first order through d log R / d s. Cost O(K). For a centred spectrum pass
  as energy the ||Z||_F^2 of the raw embeddings: the mean cancels from those.
  """
  s_K = np.asarray(s_K, np.float64)
  if energy is None:
    energy = (s_K**2).sum()
  # EPS64 is 2 u, so this is 4 u ||Z||^2, the most an eigenvalue can move.
  move = 2 * EPS64 * energy
  # s moves by about move / s; where s^2 is below the bound itself, it may move
  # by its root.
  shift_K = move / np.maximum(s_K, np.sqrt(move))
  return float(np.abs(log_rank_slope(s_K, eps)) @ shift_K)


def log_rank_slope(s_K: layout.Floats, eps: float = 1e-7) -> layout.Floats:
  """Returns d log RankMe / d s_k, the weights of first-order errors."""
  total = s_K.sum()
  # With eps=0 a share of 0 has no logarithm; its weight is 0 as well.
  log_p_K = np.log(np.maximum(s_K / total + eps, np.finfo(np.float64).tiny))
  return -(log_p_K - s_K @ log_p_K / total) / total


def metrics(s_K: npt.ArrayLike, n: int,
            eps: float = 1e-7) -> dict[str, float]:
  """Returns all summaries of one spectrum.

  Args:
    s_K: singular values, descending, of raw or of centred embeddings.
    n: clips they come from.
    eps: of RankMe.

  Returns:
    A dictionary of floats. With p = s / sum(s), lam = s^2 / n:
    rankme: exp(-sum q log q), q = p + eps (arXiv 2210.02885 eq. 1).
    rankme_no_eps: the same with eps = 0: Roy and Vetterli's effective rank.
    rankme_normalised: rankme / K (RankMe*, Tsitsulin et al., arXiv
      2305.16562).
    rankme_certificate: bound on the relative rounding error of rankme, for a
      raw spectrum; see `certificate` for a centred one.
    von_neumann: exp(-sum q log q), q = lam / sum(lam): what reptrix and the
      matrix-entropy papers call effective rank; not RankMe.
    participation_ratio: sum(lam)^2 / sum(lam^2).
    stable_rank: ||Z||_F^2 / s_1^2 (Tsitsulin: raw); nesum: the same formula,
      sum(lam) / lam_1 (He and Ozay, ICML 2022, Def. 4.1: centred).
    nuclear_ratio: sum(s) / s_1; renyi2: sum(s)^2 / sum(s^2).
    alpha_req, alpha_req_first, alpha_req_last: exponent of lam_j ~ j^-alpha
      by least squares weighted 1/j over the indices first..last: 11..100, or
      from 1 where K < 22 (NaN where fewer than two are above rounding).
    numerical_rank: s_k > max(n, K) u s_1, LAPACK's rule with float32's u;
      numerical_rank_1e3, numerical_rank_1e2: above that share of s_1.
    condition_number: s_1 / s_K, at most 1 / float64's u.
    top1_energy: lam_1 / sum(lam); dims90, dims99: how many leading directions
      hold that share of the energy.
    log_det: mean of log lam, lam floored at u^2 lam_1.

  Raises:
    ValueError: every value is zero.
  """
  s_K = np.asarray(s_K, np.float64)
  rank = spectrum.effective_rank(s_K, eps)
  lam_K = s_K**2 / n
  energy = lam_K.sum()
  # Energies are squares of singular values; RankMe's shares are not.
  share_K = np.cumsum(lam_K) / energy
  alpha, first, last = _alpha_req(lam_K)
  # Embeddings are float32, whatever the spectrum was computed in.
  single = float(np.finfo(np.float32).eps)
  out = {
      'rankme': rank,
      'rankme_no_eps': spectrum.effective_rank(s_K, 0.0),
      'rankme_normalised': rank / len(s_K),
      'rankme_certificate': certificate(s_K, eps),
      'von_neumann': spectrum.effective_rank(lam_K, 0.0),
      'participation_ratio': energy**2 / (lam_K**2).sum(),
      'stable_rank': energy / lam_K[0],
      'nesum': energy / lam_K[0],
      'nuclear_ratio': s_K.sum() / s_K[0],
      'renyi2': s_K.sum()**2 / (s_K**2).sum(),
      'alpha_req': alpha,
      'alpha_req_first': first,
      'alpha_req_last': last,
      'numerical_rank': (s_K > max(n, len(s_K)) * single * s_K[0]).sum(),
      'numerical_rank_1e3': (s_K > 1e-3 * s_K[0]).sum(),
      'numerical_rank_1e2': (s_K > 1e-2 * s_K[0]).sum(),
      'condition_number': s_K[0] / max(s_K[-1], EPS64 * s_K[0]),
      'top1_energy': lam_K[0] / energy,
      'dims90': np.searchsorted(share_K, 0.9) + 1,
      'dims99': np.searchsorted(share_K, 0.99) + 1,
      'log_det': np.log(np.maximum(lam_K, EPS64**2 * lam_K[0])).mean(),
  }
  return {name: float(value) for name, value in out.items()}
