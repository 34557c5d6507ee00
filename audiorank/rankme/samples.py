"""RankMe by sample size: is the sample large enough?

Shapes: N clips, B blocks of the sample.
"""

import numpy as np

from audiorank.rankme import spectrum
from audiorank.rankme import streaming


def curve(state, center=False, eps=1e-7):
  """RankMe of 1/8, 1/4, 1/2 and all of the blocks of a state.

  Larger samples hold the smaller ones. A curve that still climbs at its end
  says that the sample is too small; log RankMe(n) = log RankMe_inf - c D / n
  from about n = 4 D on.

  Args:
    state: a `streaming.State` of at least two clips.
    center, eps: as in `rankme`.

  Returns:
    [(n, RankMe)] with n ascending; blocks without clips are passed over, and
    so are sizes below two clips or without a spectrum.
  """
  live = np.flatnonzero(state.n_B)
  out = []
  for share in (8, 4, 2, 1):
    take = live[:max(1, len(live) // share)]
    n, sum_D, gram_DD = streaming.total(
        streaming.State(*(a[take] for a in state)))
    if n < 2 or (out and out[-1][0] == n):
      continue
    if center:
      gram_DD = spectrum.centered(n, sum_D, gram_DD)
    s_K = spectrum.from_gram(n, gram_DD)
    if s_K.sum() > 0:
      out.append((n, spectrum.effective_rank(s_K, eps)))
  return out
