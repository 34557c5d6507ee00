"""RankMe with its standard error, interval and finite-sample bias.

Shapes: N clips, D width, J recordings, B blocks of the sample, G of them on
one device, K = min(N, D).

What varies is the sample of recordings, so the blocks that are left out are
made of whole recordings: clips of one recording resemble each other, and
leaving out single clips would give errors several times too small.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
from numpy import typing as npt
from scipy import special
from scipy.linalg import blas

from audiorank.rankme import gram as gram_lib
from audiorank.rankme import layout
from audiorank.rankme import spectrum
from audiorank.rankme import streaming
from audiorank.rankme import summaries

METHODS = ('jackknife', 'infinitesimal')
# What the jackknife leaves of the bias, in squares of the bias it removes: it
# overshoots by some 3.5 of them for independent clips, and falls short by 1.2
# where clips come in recordings. (README.md, The interval.)
OVERSHOOT, SHORTFALL = 5., 2.


def assign_blocks(n: int, blocks: int = streaming.BLOCKS,
                  groups: npt.ArrayLike | None = None
                  ) -> npt.NDArray[np.int64]:
  """Returns the block of every row, [n] int, blocks of similar size.

  Without groups the rows are cut into runs: neighbours in a manifest are
  often clips of one recording, and stay together.
  """
  if groups is None:
    return np.arange(n) * min(blocks, n) // n
  groups = np.asarray(groups)
  if groups.shape != (n,):
    raise ValueError(f'groups of shape {groups.shape} for {n} embeddings')
  try:
    # Recordings as numbers, and how many clips each has.
    _, group_N, size_J = np.unique(groups, return_inverse=True,
                                   return_counts=True)
  except TypeError:
    raise ValueError('groups of several kinds of values, or with missing '
                     'ones: expected one id a clip') from None
  # A manifest sorted by category would deal its categories evenly round the
  # blocks and hide their variance: hence the shuffle, with a fixed seed.
  order = np.random.default_rng(0).permutation(len(size_J))
  # Largest first to the least loaded block (longest processing time first):
  # blocks come out nearly equal. Stable, so the shuffle decides among equals.
  order = order[np.argsort(-size_J[order], kind='stable')]
  load_B = np.zeros(min(blocks, len(size_J)), np.int64)
  block_J = np.empty(len(size_J), np.int64)
  for j in order:
    block_J[j] = load_B.argmin()
    load_B[block_J[j]] += size_J[j]
  return block_J[group_N]


def _summed_over_processes(state):
  """Returns the sum of the states of all processes."""
  if jax.process_count() == 1:
    return state
  # process_allgather would round float64 to float32: send the bits.
  words = [np.ascontiguousarray(a).view(np.uint32) for a in state]
  gathered = multihost_utils.process_allgather(words)
  return streaming.State(*(np.asarray(w).view(a.dtype).sum(axis=0)
                           for w, a in zip(gathered, state)))


def _state_of(z_ND, block_N):
  """Returns moments by block; a process reads only its own rows."""
  state = streaming.init(z_ND.shape[1], int(block_N.max()) + 1)
  # One buffer for all blocks: pages are touched once.
  buffer_BD = gram_lib.buffer(z_ND.shape[1])
  if not isinstance(z_ND, jax.Array):
    streaming.add_rows(state, z_ND, block_N, buffer_BD)
    return state
  # Shards that lie in the host's memory are read where they lie, below.
  if z_ND.is_fully_addressable and not layout.on_host(z_ND):
    streaming.add_rows(state, np.asarray(z_ND), block_N, buffer_BD)
    return state
  # Rows that are replicated count once: only the first replica of each.
  for shard in z_ND.addressable_shards:
    if shard.replica_id == 0:
      streaming.add_rows(state, np.asarray(shard.data),
                         block_N[shard.index[0]], buffer_BD)
  return _summed_over_processes(state)


def state_of(z_ND: layout.Embeddings, groups: npt.ArrayLike | None = None,
             blocks: int = streaming.BLOCKS) -> streaming.State:
  """Returns moments by block, from which everything else is computed.

  One pass over the embeddings serves the raw and the centred spectrum, their
  intervals and the curve over sample sizes.

  Args:
    z_ND, groups, blocks: as in `estimate`.

  Raises:
    ValueError: as `estimate`.
  """
  return streaming.complete(
      lower_state_of(gram_lib.checked(z_ND), groups, blocks))


def lower_state_of(z_ND: layout.Embeddings, groups: npt.ArrayLike | None,
                   blocks: int) -> streaming.State:
  """Returns `state_of` with only the lower triangles."""
  state = _state_of(z_ND, assign_blocks(len(z_ND), blocks, groups))
  if not gram_lib.is_finite(state.gram_BDD):
    gram_lib.refuse_nonfinite(z_ND)
  return state


class Estimate(NamedTuple):
  """RankMe and how well it is known; every field a plain Python value.

  Attributes:
    value: RankMe of the sample.
    low, high: an interval of the mean of RankMe over samples of this n.
    se: standard error of log RankMe; None where the blocks left out leave
      nothing to measure, and low..high is then all that is possible.
    value_inf: what an endless sample would give; None where fewer than four
      clips per dimension cannot tell. Never above what the width allows.
    low_inf, high_inf: its interval.
    bias: of log RankMe; None like value_inf.
    n, width, eps, center: of the sample and the convention.
    confidence: of both intervals.
    blocks, method: how the errors were estimated.
  """
  value: float
  low: float
  high: float
  se: float | None
  value_inf: float | None
  low_inf: float
  high_inf: float
  bias: float | None
  n: int
  width: int
  eps: float
  center: bool
  confidence: float
  blocks: int
  method: str


def _log_rank(n, sum_D, gram_DD, center, eps):
  """Returns log RankMe; NaN if no singular value is above 0."""
  if center:
    gram_DD = spectrum.centered(n, sum_D, gram_DD)
  s_K = spectrum.from_gram(n, gram_DD)
  if not s_K.sum() > 0:
    return math.nan
  return np.log(spectrum.effective_rank(s_K, eps))


def _whole(n, sum_D, gram_DD, center, eps):
  """Returns log RankMe of the whole sample, or raises ValueError."""
  log_rank = _log_rank(n, sum_D, gram_DD, center, eps)
  if math.isnan(log_rank):
    raise ValueError(spectrum.NO_RANK)
  return log_rank


def most(n: int, width: int, eps: float = 1e-7) -> float:
  """Returns the largest RankMe of n clips: with equal singular values."""
  return spectrum.effective_rank(np.ones(min(n, width)), eps)


def jackknife(whole: float, without_B: npt.NDArray[np.float64],
              n_B: npt.NDArray[Any]) -> tuple[float, float]:
  """Returns (se, value without bias) from delete-one-block values.

  The delete-m_j jackknife for blocks of unequal size: Busing, Meijer and van
  der Leeden, Statistics and Computing 9 (1999).
  """
  # Pseudo-values: what each block adds, as if it were a sample of its own.
  share_B = n_B / n_B.sum()
  free = len(n_B) * whole - ((1 - share_B) * without_B).sum()
  pseudo_B = whole / share_B - (1 / share_B - 1) * without_B
  # Blocks weigh by their share of the clips.
  variance = ((pseudo_B - free)**2 / (1 / share_B - 1)).mean()
  return float(np.sqrt(variance)), float(free)


def _infinitesimal(state, center, eps):
  """Returns (log R, se, log R without bias) from one decomposition.

  A half's log RankMe lies off the whole's by a first-order term, which the
  blocks' pulls give, and a second-order one, which is the bias of n and the
  same for either half.
  """
  b = len(state.n_B)
  # Two halves of the blocks, each a sample of half the size.
  halves = [streaming.total(streaming.State(*(a[half] for a in state)))
            for half in (slice(0, b // 2), slice(b // 2, b))]
  n, sum_D, gram_DD = (sum(parts) for parts in zip(*halves))
  mean_D, whole_DD = np.zeros_like(sum_D), gram_DD
  if center:
    mean_D, whole_DD = sum_D / n, spectrum.centered(n, sum_D, gram_DD)
  # d log R / d gram = v diag(slope / 2 s) v^T: with one decomposition every
  # block's pull on log R is a dot product.
  lam_D, v_DD = np.linalg.eigh(whole_DD)
  lam_K, v_DK = (a[..., ::-1][..., :n] for a in (lam_D, v_DD))
  s_K = np.sqrt(np.maximum(lam_K, 0))
  whole = np.log(spectrum.effective_rank(s_K, eps))
  # d s / d lambda = 1 / (2 s); directions at rounding level have no slope.
  slope_K = np.divide(summaries.log_rank_slope(s_K, eps), 2 * s_K,
                      out=np.zeros_like(s_K), where=s_K > 1e-8 * s_K[0])
  weight_DD = _weighted(v_DK, slope_K)
  own_D = weight_DD.diagonal()
  # Of the states' Gram matrices only the lower triangles count.
  # trace(weight gram_B), from lower triangles: the off-diagonal ones count
  # twice, the diagonal once.
  pull_B = (2 * (state.gram_BDD.reshape(b, -1) @ weight_DD.ravel())
            - np.diagonal(state.gram_BDD, axis1=1, axis2=2) @ own_D)
  if center:
    at_mean_D = weight_DD @ mean_D + mean_D @ weight_DD - own_D * mean_D
    # The mean moves with the block too: its part of the centred Gram matrix.
    pull_B += state.n_B * (mean_D @ at_mean_D) - 2 * state.sum_BD @ at_mean_D
  # The infinitesimal jackknife: the standard error is the length of the pulls.
  se = np.sqrt(b / (b - 1) * (pull_B**2).sum())
  first, other = (part[0] for part in halves)
  away = _log_rank(*halves[0], center, eps) - whole
  # The half's deviation less its first-order part is the bias of the smaller
  # sample; biases go as 1 / n, which rescales it to the whole.
  bias = (away - pull_B[:b // 2].sum() * n / first) * first / other
  if math.isnan(bias):  # A half without a spectrum: too little to go by.
    se = math.nan
  return whole, float(se), whole - bias


def _weighted(v_DK, weight_K):
  """Returns v_DK diag(weight_K) v_DK^T, only its lower triangle.

  As differences of squares: BLAS finds a square's triangle in half the time.
  """
  lower_DD = np.zeros((len(v_DK),) * 2)
  # Weights of both signs: a sum of squares for each.
  for sign in (1., -1.):
    some_K = sign * weight_K > 0
    x_KD = (v_DK[:, some_K] * np.sqrt(sign * weight_K[some_K])).T
    if len(x_KD):
      blas.dsyrk(sign, x_KD, trans=1, beta=1., c=lower_DD.T, overwrite_c=1)
  return lower_DD


def _possible(value, low, high, largest):
  """Returns an interval cut to the possible values of RankMe."""
  return max(low, min(1., value)), min(high, max(largest, value))


def _finish(whole, se, free, n, width, confidence, center, eps, blocks,
            method):
  """The Estimate of log RankMe, its standard error and its unbiased value."""
  value = math.exp(whole)
  least, largest = min(1., value), most(n, width, eps)
  endless = most(width, width, eps)
  if math.isfinite(se):
    # On log R, whose errors are nearer to normal and keep R above 0.
    # Blocks are the independent pieces, hence blocks - 1 degrees of freedom.
    reach = se * special.stdtrit(blocks - 1, (1 + confidence) / 2)
    low, high = _possible(value, math.exp(whole - reach),
                          math.exp(min(whole + reach, 100.)), largest)
    # The next order of the bias, which is not removed.
    rest = (whole - free) ** 2
    if method == 'infinitesimal':  # Its bias comes from halves: twice that.
      rest *= 2
    low_inf, high_inf = _possible(
        value, math.exp(free - reach - OVERSHOOT * rest),
        math.exp(min(free + reach + SHORTFALL * rest, 100.)), endless)
    # An endless sample never has less than samples of n have on average.
    low_inf = max(low_inf, low)
  else:
    se, free = None, math.nan
    low, high, low_inf, high_inf = least, largest, least, endless
  # log R(n) = log R - c D / n holds from about four clips per dimension on;
  # below it there is nothing to extrapolate.
  value_inf, bias = None, None
  if n >= spectrum.ENOUGH * width and math.isfinite(free):
    value_inf = min(max(math.exp(free), low_inf), high_inf)
    bias = float(whole - free)
  else:
    # Too few clips to extrapolate from: only the ends are known.
    low_inf, high_inf = low, endless
  if se is not None:
    se = float(se)
  return Estimate(
      float(value), float(low), float(high), se,
      value_inf, float(low_inf), float(high_inf), bias, int(n), int(width),
      float(eps), bool(center), float(confidence), int(blocks), method)


def _of_state(state, confidence, center, eps, method):
  # An empty block leaves out nothing, so it would count as a perfect replicate.
  state = streaming.State(*(a[state.n_B > 0] for a in state))
  if len(state.n_B) < 2:
    raise ValueError('an interval needs at least 2 recordings (or blocks), '
                     f'found {len(state.n_B)}')
  n, width = int(state.n_B.sum()), state.sum_BD.shape[1]
  spectrum.warn_if_small(n, width)
  if method == 'infinitesimal':
    whole, se, free = _infinitesimal(state, center, eps)
  else:
    n, sum_D, gram_DD = streaming.total(state)
    whole = _whole(n, sum_D, gram_DD, center, eps)
    # Sums less the block's own: no second pass over the embeddings.
    without_B = np.array([
        _log_rank(n - m, sum_D - s_D, gram_DD - g_DD, center, eps)
        for m, s_D, g_DD in zip(*state)])
    se, free = jackknife(whole, without_B, state.n_B)
  return _finish(whole, se, free, n, width, confidence, center, eps,
                 len(state.n_B), method)


def _device_jackknife(z_ND, n, axes, blocks, rows, center, eps):
  """Returns log R, and log R without each block, on each device.

  One matrix [D, D] is summed over the mesh; then every device decomposes the
  sum less its own blocks, and only scalars come back.
  """
  local, width = z_ND.shape
  size = -(-local // blocks)
  # Blocks of equal size, since shapes are static; zero rows add nothing.
  z_ND = jnp.pad(z_ND, ((0, size * blocks - local), (0, 0)))
  # Each device leaves out its own blocks: no matrix crosses a wire but the
  # sum.
  z_GND = z_ND.reshape(blocks, size, width)
  sum_GD, parts = lax.map(
      lambda z: gram_lib.block_moments(z, rows), z_GND)
  assemble = functools.partial(gram_lib.assemble, width=width)
  gram_GDD = jax.vmap(assemble)(parts)
  # How many true rows each block has: padding may fill the last ones.
  first = lax.axis_index(axes) * local
  edge_G = jnp.minimum(jnp.arange(blocks + 1) * size, local) + first
  n_G = jnp.diff(jnp.minimum(edge_G, n))
  sum_D, parts = lax.psum(
      jax.tree.map(lambda a: a.sum(axis=0), (sum_GD, parts)), axes)
  gram_DD = assemble(parts)

  def log_rank(m: jax.Array, sum_D: jax.Array, gram_DD: jax.Array
               ) -> jax.Array:
    # The covariance about the mean of the rows that are left.
    if center:
      gram_DD = gram_DD - jnp.outer(sum_D, sum_D) / m
    square_D = gram_lib.traced_eigenvalues(gram_DD)[::-1]
    # The rows left are at least n - size; fewer than D only if n is small.
    alive_D = jnp.arange(width) < m
    s_D = jnp.sqrt(jnp.maximum(square_D, 0)) * alive_D
    # As `spectrum.effective_rank`, which cannot run inside this program.
    p_D = s_D / s_D.sum() + eps
    return (jax.scipy.special.entr(p_D) * alive_D).sum()

  # One decomposition at a time: together they would need a workspace each.
  without_G = lax.map(lambda part: log_rank(n - part[0], sum_D - part[1],
                                            gram_DD - part[2]),
                      (n_G, sum_GD, gram_GDD))
  without_B, n_B = (lax.all_gather(a, axes, tiled=True)
                    for a in (without_G, n_G))
  return sum_D, gram_DD, without_B, n_B


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mesh_program(z_ND, center, eps):
  mesh, axes = layout.row_mesh(z_ND)
  # At least eight blocks in all, and a whole number of them per device.
  blocks = -(-8 // mesh.size)
  rows = gram_lib.block_rows(z_ND)
  local = functools.partial(
      _device_jackknife, n=z_ND.shape[0], axes=axes,
      blocks=blocks, rows=rows, center=center, eps=eps)
  return jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P(),
                       check_vma=False)(
                           layout.spread_rows(z_ND, mesh, axes))


def _of_mesh(z_ND, confidence, center, eps):
  mesh, _ = layout.row_mesh(z_ND)
  with layout.x64(), layout.mesh_context(mesh):
    sum_D, gram_DD, without_B, n_B = (
        np.asarray(a) for a in _mesh_program(z_ND, center, eps))
  if not gram_lib.is_finite(gram_DD):
    gram_lib.refuse_nonfinite(z_ND)
  n, width = z_ND.shape
  whole = _whole(n, sum_D, gram_DD, center, eps)
  # Blocks that are padding alone left out nothing.
  without_B, n_B = without_B[n_B > 0], n_B[n_B > 0]
  se, free = jackknife(whole, without_B, n_B)
  return _finish(whole, se, free, n, width, confidence, center, eps,
                 len(n_B), 'jackknife')


def estimate(z_ND: layout.Embeddings | streaming.State,
             confidence: float = 0.95, groups: npt.ArrayLike | None = None,
             center: bool = False, eps: float = 1e-7,
             method: str = 'jackknife',
             blocks: int = streaming.BLOCKS) -> Estimate:
  """Returns RankMe, its interval, and its value for an infinite sample.

  Args:
    z_ND: embeddings as in `singular_values` (concrete), or a
      `streaming.State`, whose blocks are then used as they are.
    confidence: of the interval.
    groups: N ids of the recordings the clips come from, the same on every
      process; a block then never splits a recording. Without ids the blocks
      are runs of rows; on a mesh, at least 8, whole on their device, and each
      device decomposes its own.
    center, eps: as in `rankme`.
    method: 'jackknife', delete-one-block, on log RankMe with Student's t;
      'infinitesimal', its first-order form: one decomposition instead of one
      a block, the bias from two halves.
    blocks: how many blocks (fewer where there are fewer recordings).

  Returns:
    An `Estimate`.

  Raises:
    ValueError: bad embeddings (see `singular_values`), groups of another
      length, fewer than two recordings, unknown method, confidence outside
      (0, 1).

  Warns:
    SmallSample: fewer than 4 D clips.
  """
  if method not in METHODS:
    raise ValueError(f"method {method!r} is not 'jackknife' or "
                     "'infinitesimal'")
  if not 0 < confidence < 1:
    raise ValueError(f'confidence {confidence} is not between 0 and 1')
  if isinstance(z_ND, streaming.State):
    return _of_state(z_ND, confidence, center, eps, method)
  z_ND: Any = gram_lib.checked(z_ND)  # type: ignore[no-redef]
  n, width = z_ND.shape
  mesh, _ = layout.row_mesh(z_ND)
  # On a mesh without recordings the rows need not leave their devices.
  if (mesh is not None and groups is None and method == 'jackknife' and
      layout.platform(z_ND) != 'tpu'):
    spectrum.warn_if_small(n, width)
    return _of_mesh(z_ND, confidence, center, eps)
  state = lower_state_of(z_ND, groups, blocks)
  return _of_state(state, confidence, center, eps, method)


def curve(state: streaming.State, center: bool = False,
          eps: float = 1e-7) -> list[tuple[int, float]]:
  """Returns RankMe of 1/8, 1/4, 1/2 and all of the blocks of a state.

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
  # Blocks hold whole recordings, so smaller samples hold fewer of them.
  live = np.flatnonzero(state.n_B)
  out: list[tuple[int, float]] = []
  # Nested samples: differences along the curve are not noise between samples.
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
