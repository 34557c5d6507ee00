"""Singular values of embeddings, three ways, and the rank they give.

Shapes: N clips, D width, K = min(N, D) singular values, R rows of one block.
"""

from collections.abc import Callable
from typing import Any
import warnings

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import scipy.special

from audiorank.rankme import gram as gram_lib
from audiorank.rankme import layout
from audiorank.rankme import streaming

METHODS = ('gram', 'svd', 'tsqr', 'sliced')
# Clips per dimension below which a rank reads low and cannot be extrapolated.
ENOUGH = 4
NO_RANK = ('the embeddings are all zero (or so small that their squares '
           'vanish, or, centred, all one vector): they have no effective rank')
# Below this share of the uncentred energy a centred spectrum is the rounding
# of float32 storage: 2^-24 / sqrt(3) per entry, squared, and a safe factor.
CONSTANT = 1e-14
CONSTANT_32 = 1e-12  # The same where the mean is taken off in float32.


class SmallSample(UserWarning):
  """Fewer than four clips per dimension: the rank reads low."""


def warn_if_small(n: int, width: int) -> None:
  """Warns where n < 4 D, with the bias to expect (README.md, Accuracy)."""
  if n >= ENOUGH * width:
    return
  if n >= 2 * width:
    # log R(n) = log R - c D / n: c from steeply decaying to flatter spectra.
    low, high = (100 * -np.expm1(-c * width / n) for c in (0.05, 0.26))
    bias = f'about {low:.0f} to {high:.0f} % low'
  else:
    bias = 'low, by 6 % or more unless the spectrum decays steeply'
  warnings.warn(
      f'RankMe of {n} clips at width {width} (fewer than 4 per dimension) '
      f'reads {bias}; take at least {ENOUGH * width} clips', SmallSample,
      stacklevel=3)


def centered(n: int, sum_D: layout.Floats,
             gram_DD: layout.Floats) -> layout.Floats:
  """Returns the Gram matrix about the mean."""
  out_DD = gram_DD - np.outer(sum_D, sum_D) / n
  # If all rows are one vector, only rounding errors remain, which would have a
  # high rank. They are set to zero.
  if np.trace(out_DD) <= CONSTANT * np.trace(gram_DD):
    return np.zeros_like(out_DD)
  return out_DD


def from_gram(n: int, gram_DD: layout.Floats) -> layout.Floats:
  """Returns s_K of n rows, descending, from their Gram matrix."""
  # Eigenvalues of the Gram matrix are the squares, ascending.
  square_D = np.linalg.eigvalsh(gram_DD)[::-1]
  return np.sqrt(np.maximum(square_D[:min(n, len(square_D))], 0))


def _traced_gram(z_ND, center):
  """Returns s_K inside a jit of the caller, float32."""
  # Computed in float64; float32 only for the caller, who may not have it.
  n, width = z_ND.shape
  with layout.x64():
    sum_D, gram_DD = gram_lib.traced_moments(z_ND)
    if center:
      about_DD = gram_DD - jnp.outer(sum_D, sum_D) / n
      # As in `centered`: what is left of one repeated vector is rounding.
      gram_DD = jnp.where(
          jnp.trace(about_DD) > CONSTANT * jnp.trace(gram_DD), about_DD, 0.)
    square_D = gram_lib.traced_eigenvalues(gram_DD)[::-1]
    s_K = jnp.sqrt(jnp.maximum(square_D[:min(n, width)], 0))
    return s_K.astype(jnp.float32)


def _minus_mean(z_ND, center):
  if center:
    return z_ND - z_ND.mean(axis=0, keepdims=True)
  return z_ND


def _of_moments(n: Any, sum_D: Any, gram_DD: Any, center: bool) -> Any:
  """Returns singular values from the sums of embeddings and their products."""
  if center:
    gram_DD = centered(n, sum_D, gram_DD)
  return from_gram(n, gram_DD)


def _gathered_svd(z_ND, center):
  mesh, _ = layout.row_mesh(z_ND)
  if mesh is not None:
    z_ND = layout.place(z_ND, mesh, P())
  # full_matrices defaults to True and then an N x N buffer is allocated, even
  # with compute_uv=False: 40 GB at N = 100,000.
  return jnp.linalg.svd(_minus_mean(z_ND, center), full_matrices=False,
                        compute_uv=False)


def _local_qr(z_ND):
  """Returns the upper factor of z_ND."""
  # Blocks of four widths fit the cache; their factors are stacked and
  # factored again.
  n, width = z_ND.shape
  rows = 4 * width
  if n >= 2 * rows:
    z_ND = jnp.pad(z_ND, ((0, -n % rows), (0, 0)))
    r_BDD = jnp.linalg.qr(z_ND.reshape(-1, rows, width), mode='r')
    z_ND = r_BDD.reshape(-1, width)
  return jnp.linalg.qr(z_ND, mode='r')


def _tsqr(z_ND, center):
  n, width = z_ND.shape
  z_ND = _minus_mean(z_ND, center)
  mesh, axes = layout.row_mesh(z_ND)
  if mesh is None:
    r_DD = _local_qr(z_ND)
  else:
    def reduce(z_ND):
      # Factors of D x D are gathered, not rows: R of stacked R's is R of all.
      r_DD = lax.all_gather(_local_qr(z_ND), axes, tiled=True)
      return jnp.linalg.qr(r_DD, mode='r')
    r_DD = jax.shard_map(reduce, mesh=mesh, in_specs=P(axes), out_specs=P(),
                         check_vma=False)(
                             layout.spread_rows(z_ND, mesh, axes))
  # R has the singular values of z: Q is orthogonal.
  s_K = jnp.linalg.svd(r_DD, full_matrices=False, compute_uv=False)
  # Padded rows give more than min(N, D) values; the others are 0.
  return s_K[:min(n, width)]


_svd_program = jax.jit(_gathered_svd, static_argnums=1)
_tsqr_program = jax.jit(_tsqr, static_argnums=1)


def device_program(method: str) -> Callable[..., Any]:
  """Returns the jitted program that a method runs on z_ND, for inspection.

  Args:
    method: 'svd' or 'tsqr', which return s_K; 'sliced', which returns the
      integer sums that `gram.sliced_moments` puts together on the host.
  """
  return {'svd': jax.jit(lambda z_ND: _gathered_svd(z_ND, False)),
          'tsqr': jax.jit(lambda z_ND: _tsqr(z_ND, False)),
          'sliced': gram_lib.sliced_program}[method]


def singular_values(z_ND: layout.Embeddings | streaming.State,
                    method: str = 'gram', center: bool = False) -> Any:
  """Returns the singular values of embeddings.

  Args:
    z_ND: embeddings, N clips of width D: numpy (or a memory map), a jax array
      on one device or sharded over any mesh and any number of processes, a
      tracer inside somebody's jit, or a `streaming.State`.
    method: 'gram', eigenvalues of a float64 Gram matrix: never holds an N x D
      copy, rows cross no device, and more accurate than a float32 SVD.
      'svd', `jnp.linalg.svd` of the gathered embeddings in their own type,
      the literal path of arXiv 2510.10948. 'tsqr', QR of the rows of each
      device, then of the factors, float32. 'sliced', 'gram' with integer
      products for chips without float64; 'gram' itself takes this road on a
      TPU, and TSQR where it is traced there.
    center: subtract the mean embedding first. RankMe (arXiv 2210.02885) does
      not.

  Returns:
    s_K, K = min(N, D), descending: float64 numpy; a float32 jax array (of
    values found in float64 for 'gram') when z_ND is a tracer.

  Raises:
    ValueError: not [clips, width], fewer than two clips, not real floating
      numbers, NaN or infinity in some row, an unknown method.
  """
  if method not in METHODS:
    raise ValueError(f'method {method!r} is not one of {", ".join(METHODS)}')
  if isinstance(z_ND, streaming.State):
    n, sum_D, gram_DD = streaming.total(z_ND)
    if n < 2:
      raise ValueError(f'a rank needs at least 2 clips, found {n}')
    return _of_moments(n, sum_D, gram_DD, center)
  z_ND: Any = gram_lib.checked(z_ND)  # type: ignore[no-redef]
  # Inside a jit of the caller no value is known: nothing can be raised, and
  # results are jax arrays.
  if layout.is_traced(z_ND):
    if method == 'sliced':
      raise ValueError("method 'sliced' ends on the host: call it outside jit")
    if method == 'gram' and layout.platform(z_ND) != 'tpu':
      return _traced_gram(z_ND, center)
    if method == 'svd':
      return _gathered_svd(z_ND, center)
    return _tsqr(z_ND, center)
  if method in ('svd', 'tsqr'):
    z_ND = jnp.asarray(z_ND)
    program = _tsqr_program
    if method == 'svd':
      program = _svd_program
    mesh, _ = layout.row_mesh(z_ND)
    with layout.mesh_context(mesh):
      s_K = np.asarray(program(z_ND, center), np.float64)
      # All rows nearly one vector: what is left is float32 rounding.
      if center and (s_K ** 2).sum() <= CONSTANT_32 * float(
          jnp.vdot(z_ND, z_ND)):
        s_K = np.zeros_like(s_K)
    if not np.isfinite(s_K).all():
      gram_lib.refuse_nonfinite(z_ND)
    return s_K
  if method == 'sliced':
    sum_D, gram_DD = gram_lib.sliced_moments(z_ND)
  else:
    sum_D, gram_DD = gram_lib.moments(z_ND)
  if not gram_lib.is_finite(gram_DD):
    gram_lib.refuse_nonfinite(z_ND)
  return _of_moments(z_ND.shape[0], sum_D, gram_DD, center)


def effective_rank(s_K: Any, eps: float = 1e-7) -> Any:
  """Returns exp(-sum p log p), p = s / sum(s) + eps (Roy and Vetterli).

  eps stands outside the fraction, as in RankMe (arXiv 2210.02885, eq. 1), so
  p sums to 1 + K eps. eps=0 gives the entropy with 0 log 0 = 0.

  Args:
    s_K: singular values (or any non-negative weights), numpy or jax.
    eps: 1e-7 is the papers' value for float32.

  Raises:
    ValueError: every value is zero (only where s_K is concrete).
  """
  if eps < 0:
    raise ValueError(f'eps {eps}: expected at least 0')
  # Inside a jit nothing can be raised: all zero gives NaN.
  if layout.is_traced(s_K):
    with layout.x64():
      s_K = s_K.astype(jnp.float64)
      entropy = jax.scipy.special.entr(s_K / s_K.sum() + eps).sum()
      return jnp.exp(entropy).astype(jnp.float32)
  s_K = np.asarray(s_K, np.float64)
  if not s_K.sum() > 0:
    raise ValueError(NO_RANK)
  return float(np.exp(scipy.special.entr(s_K / s_K.sum() + eps).sum()))


def rankme(z_ND: layout.Embeddings | streaming.State, eps: float = 1e-7,
           method: str = 'gram', center: bool = False) -> Any:
  """Returns RankMe of embeddings, between 1 and min(N, D).

  Args:
    z_ND, method, center: as in `singular_values`.
    eps: added to the normalised singular values, outside the fraction.

  Returns:
    A float; a float32 jax scalar inside jit.

  Warns:
    SmallSample: fewer than 4 D clips, with the bias to expect.

  Source: Garrido et al., arXiv 2210.02885, eq. 1; arXiv 2510.10948, eq. 1-2.
  """
  s_K = singular_values(z_ND, method, center)
  if isinstance(z_ND, streaming.State):
    warn_if_small(streaming.total(z_ND)[0], z_ND.sum_BD.shape[1])
  else:
    warn_if_small(*np.shape(z_ND))
  return effective_rank(s_K, eps)
