"""RankMe with its standard error, interval and finite-sample bias.

Shapes: N clips, D width, B blocks of the sample, G of them on one device,
K = min(N, D).

What varies is the sample of recordings, so the blocks that are left out are
made of whole recordings: clips of one recording resemble each other, and
leaving out single clips would give errors several times too small.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
from scipy import special
from scipy.linalg import blas

from audiorank.rankme import blocks as blocks_lib
from audiorank.rankme import checks
from audiorank.rankme import gram as gram_lib
from audiorank.rankme import layout
from audiorank.rankme import spectrum
from audiorank.rankme import streaming
from audiorank.rankme import summaries


class Estimate(NamedTuple):
  """RankMe and how well it is known; every field a plain Python value.

  low..high covers the mean of RankMe over samples of this n; value_inf is
  what an endless sample would give, low_inf..high_inf its interval. se and
  bias are relative: of log RankMe.
  """
  value: float
  low: float
  high: float
  se: float
  value_inf: float
  low_inf: float
  high_inf: float
  bias: float
  n: int
  width: int
  eps: float
  center: bool
  confidence: float
  blocks: int
  method: str


def _log_rank(n, sum_D, gram_DD, center, eps):
  if center:
    gram_DD = spectrum.centered(n, sum_D, gram_DD)
  s_K = spectrum.from_gram(n, gram_DD)
  return np.log(spectrum.effective_rank(s_K, eps))


def jackknife(whole, without_B, n_B):
  """(se, value without bias) of a statistic from its delete-one-block values.

  The delete-m_j jackknife for blocks of unequal size: Busing, Meijer and van
  der Leeden, Statistics and Computing 9 (1999).
  """
  share_B = n_B / n_B.sum()
  free = len(n_B) * whole - ((1 - share_B) * without_B).sum()
  pseudo_B = whole / share_B - (1 / share_B - 1) * without_B
  variance = ((pseudo_B - free)**2 / (1 / share_B - 1)).mean()
  return float(np.sqrt(variance)), float(free)


def _infinitesimal(state, center, eps):
  """The same two numbers from one eigendecomposition and one half's values.

  A half's log RankMe lies off the whole's by a first-order term, which the
  blocks' pulls give, and a second-order one, which is the bias of n and the
  same for either half.
  """
  b = len(state.n_B)
  halves = [streaming.total(streaming.State(*(a[half] for a in state)))
            for half in (slice(0, b // 2), slice(b // 2, b))]
  n, sum_D, gram_DD = (sum(parts) for parts in zip(*halves))
  mean_D = sum_D / n if center else np.zeros_like(sum_D)
  whole_DD = spectrum.centered(n, sum_D, gram_DD) if center else gram_DD
  lam_D, v_DD = np.linalg.eigh(whole_DD)
  lam_K, v_DK = (a[..., ::-1][..., :n] for a in (lam_D, v_DD))
  s_K = np.sqrt(np.maximum(lam_K, 0))
  whole = np.log(spectrum.effective_rank(s_K, eps))
  slope_K = np.divide(summaries.log_rank_slope(s_K, eps), 2 * s_K,
                      out=np.zeros_like(s_K), where=s_K > 1e-8 * s_K[0])
  weight_DD = _weighted(v_DK, slope_K)
  own_D = weight_DD.diagonal()
  # Of the states' Gram matrices only the lower triangles count.
  pull_B = (2 * (state.gram_BDD.reshape(b, -1) @ weight_DD.ravel())
            - np.diagonal(state.gram_BDD, axis1=1, axis2=2) @ own_D)
  if center:
    at_mean_D = weight_DD @ mean_D + mean_D @ weight_DD - own_D * mean_D
    pull_B += state.n_B * (mean_D @ at_mean_D) - 2 * state.sum_BD @ at_mean_D
  se = np.sqrt(b / (b - 1) * (pull_B**2).sum())
  first, other = (part[0] for part in halves)
  away = _log_rank(*halves[0], center, eps) - whole
  bias = (away - pull_B[:b // 2].sum() * n / first) * first / other
  return whole, float(se), whole - bias


def _weighted(v_DK, weight_K):
  """The lower triangle of v_DK diag(weight_K) v_DK^T, the upper one zero.

  As differences of squares: BLAS finds a square's triangle in half the time.
  """
  lower_DD = np.zeros((len(v_DK),) * 2)
  for sign in (1., -1.):
    some_K = sign * weight_K > 0
    x_KD = (v_DK[:, some_K] * np.sqrt(sign * weight_K[some_K])).T
    if len(x_KD):
      blas.dsyrk(sign, x_KD, trans=1, beta=1., c=lower_DD.T, overwrite_c=1)
  return lower_DD


def _finish(whole, se, free, n, width, confidence, center, eps, blocks,
            method):
  reach = se * special.stdtrit(blocks - 1, (1 + confidence) / 2)
  value, low, high, value_inf, low_inf, high_inf = (
      float(np.exp(x)) for x in (whole, whole - reach, whole + reach,
                                 free, free - reach, free + reach))
  return Estimate(value, low, high, float(se), value_inf, low_inf, high_inf,
                  float(whole - free), int(n), int(width), float(eps),
                  bool(center), float(confidence), int(blocks), method)


def _of_state(state, confidence, center, eps, method):
  seen = state.n_B > 0
  state = streaming.State(*(a[seen] for a in state))
  if len(state.n_B) < 2:
    raise ValueError('an interval needs at least 2 recordings (or blocks), '
                     f'found {len(state.n_B)}')
  n, width = int(state.n_B.sum()), state.sum_BD.shape[1]
  spectrum.warn_if_small(n, width)
  if method == 'infinitesimal':
    whole, se, free = _infinitesimal(state, center, eps)
  else:
    n, sum_D, gram_DD = streaming.total(state)
    whole = _log_rank(n, sum_D, gram_DD, center, eps)
    without_B = np.array([
        _log_rank(n - m, sum_D - s_D, gram_DD - g_DD, center, eps)
        for m, s_D, g_DD in zip(*state)])
    se, free = jackknife(whole, without_B, state.n_B)
  return _finish(whole, se, free, n, width, confidence, center, eps,
                 len(state.n_B), method)


def _device_jackknife(z_ND, n, axes, blocks, rows, center, eps):
  """log R and the log R without each block, found by the device that has it.

  One matrix [D, D] is summed over the mesh; then every device decomposes the
  sum less its own blocks, and only scalars come back.
  """
  local, width = z_ND.shape
  size = -(-local // blocks)
  z_ND = jnp.pad(z_ND, ((0, size * blocks - local), (0, 0)))
  z_GND = z_ND.reshape(blocks, size, width)
  sum_GD, parts = lax.map(
      lambda z: gram_lib.block_moments(z, rows), z_GND)
  assemble = functools.partial(gram_lib.assemble, width=width)
  gram_GDD = jax.vmap(assemble)(parts)
  first = lax.axis_index(axes) * local
  edge_G = jnp.minimum(jnp.arange(blocks + 1) * size, local) + first
  n_G = jnp.diff(jnp.minimum(edge_G, n))
  sum_D, parts = lax.psum(
      jax.tree.map(lambda a: a.sum(axis=0), (sum_GD, parts)), axes)
  gram_DD = assemble(parts)

  def log_rank(m, sum_D, gram_DD):
    if center:
      gram_DD = gram_DD - jnp.outer(sum_D, sum_D) / m
    square_D = gram_lib.traced_eigenvalues(gram_DD)[::-1]
    # The rows left are at least n - size; fewer than D only if n is small.
    alive_D = jnp.arange(width) < m
    s_D = jnp.sqrt(jnp.maximum(square_D, 0)) * alive_D
    p_D = s_D / s_D.sum() + eps
    return (jax.scipy.special.entr(p_D) * alive_D).sum()

  without_G = lax.map(lambda part: log_rank(n - part[0], sum_D - part[1],
                                            gram_DD - part[2]),
                      (n_G, sum_GD, gram_GDD))
  without_B, n_B = (lax.all_gather(a, axes, tiled=True)
                    for a in (without_G, n_G))
  return sum_D, gram_DD, without_B, n_B


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mesh_program(z_ND, center, eps):
  mesh, axes = layout.row_mesh(z_ND)
  blocks = -(-8 // mesh.size)
  rows = (gram_lib.CPU_ROWS if layout.platform(z_ND) == 'cpu' else
          gram_lib.DEVICE_ROWS)
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
    checks.refuse_nonfinite(z_ND)
  n, width = z_ND.shape
  whole = _log_rank(n, sum_D, gram_DD, center, eps)
  without_B, n_B = without_B[n_B > 0], n_B[n_B > 0]
  se, free = jackknife(whole, without_B, n_B)
  return _finish(whole, se, free, n, width, confidence, center, eps,
                 len(n_B), 'jackknife')


def estimate(z_ND, confidence=0.95, groups=None, center=False, eps=1e-7,
             method='jackknife', blocks=streaming.BLOCKS) -> Estimate:
  """RankMe, its interval and its value for an endless sample.

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
  if method not in ('jackknife', 'infinitesimal'):
    raise ValueError(f"method {method!r} is not 'jackknife' or "
                     "'infinitesimal'")
  if not 0 < confidence < 1:
    raise ValueError(f'confidence {confidence} is not between 0 and 1')
  if isinstance(z_ND, streaming.State):
    return _of_state(z_ND, confidence, center, eps, method)
  z_ND = checks.checked(z_ND)
  n, width = z_ND.shape
  mesh, _ = layout.row_mesh(z_ND)
  if (mesh is not None and groups is None and method == 'jackknife' and
      layout.platform(z_ND) != 'tpu'):
    spectrum.warn_if_small(n, width)
    return _of_mesh(z_ND, confidence, center, eps)
  state = blocks_lib.lower_state_of(z_ND, groups, blocks)
  return _of_state(state, confidence, center, eps, method)
