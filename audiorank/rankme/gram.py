"""Second moments in float64: the Gram matrix of embeddings, checked, by blocks.

Shapes: N clips, D width, B rows at a time, K = min(N, D), S digits of the
sliced product.

A float32 Gram matrix loses every singular value below about 2e-4 of the
largest, which is where a collapsing encoder lives; hence float64 throughout,
switched on locally (`jax.enable_x64`), never by the global flag. Chips that
have no float64 take `sliced`, whose sums are exact integers.
"""

import functools
from typing import Any
from typing import NoReturn
import warnings

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
from scipy.linalg import blas

from audiorank.rankme import layout

HOST_ROWS = 1024
MIRRORED = 64  # Columns copied at once to the other triangle.
CPU_ROWS = 512
DEVICE_ROWS = 8192
# 64 * 64 * 4 pairs of digits * 65,536 rows = 2^30 still fits an int32.
SLICED_ROWS = 65536
SLICES = 4


class LowPrecision(UserWarning):
  """The embeddings were stored in a type too coarse for their spectrum."""


def checked(z_ND: Any, least: int = 2) -> Any:
  """Returns z_ND as a numpy or jax array of real numbers.

  Args:
    z_ND: embeddings, or what numpy makes an array of.
    least: how many clips there must be.

  Raises:
    ValueError: not two-dimensional, no columns, fewer than two rows, or not
      of a real floating type.
  """
  if not isinstance(z_ND, jax.Array):
    z_ND = np.asarray(z_ND)
  if z_ND.ndim != 2 or not z_ND.shape[1]:
    raise ValueError('embeddings must be [clips, width], found shape '
                     f'{tuple(z_ND.shape)}')
  if z_ND.shape[0] < least:
    raise ValueError(f'a rank needs at least {least} clips, found '
                     f'{z_ND.shape[0]}')
  if not jnp.issubdtype(z_ND.dtype, jnp.floating):
    raise ValueError('embeddings must be float32 or float64, found '
                     f'{z_ND.dtype}')
  if jnp.finfo(z_ND.dtype).bits < 32:
    # A warning, not an error: the numbers may exist in no other type.
    warnings.warn(
        f'embeddings are {z_ND.dtype}: its rounding adds a noise floor to the '
        'spectrum, which moves RankMe by up to 3 % (float16) or 35 % '
        '(bfloat16) where the spectrum decays fast; pool and store them as '
        'float32', LowPrecision, stacklevel=3)
    z_ND = z_ND.astype(np.float32)
  return z_ND


@jax.jit
def _bad_rows(z_ND):
  # On the device, so that only two integers come to the host.
  bad_N = ~jnp.isfinite(z_ND).all(axis=1)
  return bad_N.sum(), bad_N.argmax()


def refuse_nonfinite(z_ND: layout.Embeddings) -> NoReturn:
  """Raises the ValueError that names the rows which are not finite."""
  # Reached only after a Gram matrix was not finite: rows are searched when
  # there is something to report, not before every rank.
  if isinstance(z_ND, jax.Array):
    count, first = (int(x) for x in jax.device_get(_bad_rows(z_ND)))
  else:
    count, first = 0, None
    for start in range(0, len(z_ND), HOST_ROWS):
      block = z_ND[start:start + HOST_ROWS]
      bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
      if first is None and len(bad):
        first = start + int(bad[0])
      count += len(bad)
  if not count:
    raise ValueError('the products of the embeddings overflow float64: '
                     'rescale them')
  raise ValueError(f'{count} of {z_ND.shape[0]} embeddings hold NaN or '
                   f'infinity, the first in row {first}')


def _blocks(low, high, leaf):
  """Returns blocks (rows, columns) that cover the upper triangle.

  Few large products instead of many narrow ones: 14 % less time than panels
  of equal width at D = 1536.
  """
  if high - low <= leaf:
    return [(low, high, low, high)]
  # The square above the diagonal, then the two triangles beside it.
  half = low + (high - low) // 2
  return [(low, half, half, high), *_blocks(low, half, leaf),
          *_blocks(half, high, leaf)]


def _triangle(width):
  return _blocks(0, width, min(96, max(32, -(-width // 8))))


def _over_rows(add, sums, z_ND, rows):
  """Returns sums with all of z_ND added, `rows` rows at a time."""
  # One block at a time, so that what `add` makes of its rows stays small.
  n = len(z_ND)
  rows = min(rows, n)
  sums = lax.fori_loop(
      0, n // rows,
      lambda i, s: add(lax.dynamic_slice_in_dim(z_ND, i * rows, rows), s),
      sums)
  if n % rows:  # The last, smaller block.
    sums = add(z_ND[n - n % rows:], sums)
  return sums


def block_moments(z_ND: jax.Array,
                  rows: int) -> tuple[jax.Array, list[jax.Array]]:
  """Returns (sum_D, the blocks of z^T z of `_triangle`), float64.

  Must be traced inside `layout.x64()`.
  """
  width = z_ND.shape[1]
  blocks = _triangle(width)

  def add(x_BD: jax.Array, sums: Any) -> Any:
    x_BD = x_BD.astype(jnp.float64)
    # Without the barrier XLA folds the transpose back into the product and
    # contracts over the slow dimension, at half the speed on CPU.
    x_DB = lax.optimization_barrier(x_BD.T)
    new = x_BD.sum(axis=0), [x_DB[a:b] @ x_BD[:, c:d] for a, b, c, d in blocks]
    return jax.tree.map(jnp.add, sums, new)

  sums = (jnp.zeros(width, jnp.float64),
          [jnp.zeros((b - a, d - c), jnp.float64) for a, b, c, d in blocks])
  return _over_rows(add, sums, z_ND, rows)


def assemble(parts: list[jax.Array], width: int) -> jax.Array:
  """Returns the symmetric matrix [D, D] of its upper blocks."""
  full_DD = jnp.zeros((width, width), jnp.float64)
  for (a, b, c, d), part in zip(_triangle(width), parts):
    full_DD = full_DD.at[a:b, c:d].set(part)
  # Blocks on the diagonal hold both triangles: keep one.
  upper_DD = jnp.triu(full_DD)
  return upper_DD + jnp.triu(upper_DD, 1).T


def block_rows(z_ND: jax.Array) -> int:
  """Returns the rows of a block of the sums, by the kind of device."""
  if layout.platform(z_ND) == 'cpu':
    return CPU_ROWS
  return DEVICE_ROWS


def _device_moments(z_ND, axes, rows):
  sums = block_moments(z_ND, rows)
  # Sums of rows add up over devices: D x D numbers cross the mesh, no row does.
  if axes:
    sums = lax.psum(sums, axes)
  sum_D, parts = sums
  return sum_D, assemble(parts, z_ND.shape[1])


def traced_eigenvalues(gram_DD: jax.Array) -> jax.Array:
  """Returns eigenvalues of a symmetric float64 matrix, ascending.

  On a CPU by LAPACK without the eigenvectors, which `eigvalsh` has XLA find
  and throw away: half its time. Trace it inside `layout.x64()`.
  """
  lapack = functools.partial(lax.platform_dependent, cpu=_lapack)
  return lapack(gram_DD, default=jnp.linalg.eigvalsh)


def _lapack(gram_DD):
  # The first half of LAPACK's symmetric eigensolver; `_dsyevd` is the second.
  _, diagonal_D, beside_D, _ = lax.linalg.tridiagonal(gram_DD, lower=True)
  return _dsyevd(jnp.diag(diagonal_D) + jnp.diag(beside_D, -1)
                 + jnp.diag(beside_D, 1))


def _dsyevd(tridiagonal_DD):
  # XLA grants dsyevd a workspace so small that LAPACK reduces a full matrix
  # column by column, at half the speed; one that is tridiagonal has no column
  # left to reduce.
  shape = lambda size, dtype: jax.ShapeDtypeStruct(size, dtype)
  width = len(tridiagonal_DD)
  # mode 'N': eigenvalues alone. 'L': they are read from the lower triangle.
  _, square_D, wrong = jax.ffi.ffi_call(
      'lapack_dsyevd_ffi',
      (shape((width, width), jnp.float64), shape((width,), jnp.float64),
       shape((), jnp.int32)))(tridiagonal_DD, mode=np.uint8(ord('N')),
                              uplo=np.uint8(ord('L')))
  return jnp.where(wrong == 0, square_D, jnp.nan)


def traced_moments(z_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sum_D, gram_DD) as float64 jax arrays. Trace it inside `layout.x64()`."""
  mesh, axes = layout.row_mesh(z_ND)
  rows = block_rows(z_ND)
  if mesh is None:
    return _device_moments(z_ND, (), rows)
  local = jax.shard_map(
      functools.partial(_device_moments, axes=axes, rows=rows), mesh=mesh,
      in_specs=P(axes), out_specs=P(), check_vma=False)
  return local(layout.spread_rows(z_ND, mesh, axes))


_moments_program = jax.jit(traced_moments)


def _digits(z_BD, exponent_D):
  """Returns z_BD as SLICES int8 digits, exact to 2^-28 of 2^exponent.

  z = 2^exponent * sum over i of digit_i * 2^-(6 + 7 i).
  """
  # Scaling by a power of two is exact; the first digit is then at most 64.
  x_BD = jnp.ldexp(z_BD, 6 - exponent_D[None])
  digits = []
  for _ in range(SLICES):
    digit_BD = jnp.round(x_BD)
    digits.append(digit_BD.astype(jnp.int8))
    # What rounding left, shifted by the next seven bits.
    x_BD = (x_BD - digit_BD) * 128
  return digits


def _split(total):
  """An int32 as (high, low) int32, so that sums over blocks cannot overflow."""
  return total >> 16, total & 0xFFFF


def _device_sliced(z_ND, axes):
  """Returns integer sums by order of digits; see `sliced_moments`."""
  width = z_ND.shape[1]
  z_ND = z_ND.astype(jnp.float32)
  # A maximum may step over NaN (XLA's does, on CPU): look for it apart.
  peak_D = jnp.where(jnp.isfinite(z_ND).all(axis=0),
                     jnp.max(jnp.abs(z_ND), axis=0), jnp.inf)
  if axes:
    peak_D = lax.pmax(peak_D, axes)
  # The exponents must agree on all devices, or their sums could not be added.
  exponent_D = jnp.frexp(peak_D)[1]
  # Products of digits i and j have the weight 2^-7(i + j): one sum an order.
  orders = 2 * SLICES - 1

  def add(z_BD: jax.Array, sums: Any) -> Any:
    digits = _digits(z_BD, exponent_D)
    products = [jnp.zeros((width, width), jnp.int32) for _ in range(orders)]
    for i, left_BD in enumerate(digits):
      for j in range(i, SLICES):
        product_DD = lax.dot_general(
            left_BD, digits[j], (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.int32)
        # digit_i^T digit_j and its transpose have the same weight: one product
        # serves both orders.
        if i != j:
          product_DD += product_DD.T
        products[i + j] += product_DD
    # Sums of the columns, for the mean, from the same digits.
    columns = jnp.stack([d.astype(jnp.int32).sum(axis=0) for d in digits])
    new = _split(jnp.stack(products)), _split(columns)
    return jax.tree.map(jnp.add, sums, new)

  zero_ODD = jnp.zeros((orders, width, width), jnp.int32)
  zero_SD = jnp.zeros((SLICES, width), jnp.int32)
  sums = (zero_ODD, zero_ODD), (zero_SD, zero_SD)
  sums = _over_rows(add, sums, z_ND, SLICED_ROWS)
  if axes:
    sums = lax.psum(sums, axes)
  return sums, exponent_D, peak_D


@jax.jit
def sliced_program(z_ND: jax.Array) -> Any:
  """Returns integer sums over the mesh for `sliced_moments`."""
  mesh, axes = layout.row_mesh(z_ND)
  if mesh is None:
    return _device_sliced(z_ND, ())
  local = jax.shard_map(functools.partial(_device_sliced, axes=axes),
                        mesh=mesh, in_specs=P(axes), out_specs=P(),
                        check_vma=False)
  return local(layout.spread_rows(z_ND, mesh, axes))


def sliced_moments(
    z_ND: layout.Embeddings) -> tuple[layout.Floats, layout.Floats]:
  """Returns (sum_D, gram_DD) without float64 on the device.

  Columns are scaled by powers of two and cut into four 7-bit digits; the ten
  int8 products of the digits are summed as integers, exactly, on the device
  and over the mesh, and put together in float64 on the host (the scheme of
  Ozaki et al., Numer. Algorithms 59, 2012). What is lost is only what lies
  below 2^-28 of the largest entry of a column.
  """
  z_ND = jnp.asarray(z_ND)
  mesh, _ = layout.row_mesh(z_ND)
  with layout.mesh_context(mesh):
    sums, exponent_D, peak_D = jax.device_get(sliced_program(z_ND))
  # Digits of infinity mean nothing; NaN tells the caller, who names the rows.
  if not np.isfinite(peak_D).all():
    width = len(peak_D)
    return np.full(width, np.nan), np.full((width, width), np.nan)
  # Exact integers come together in float64 on the host only.
  gram_ODD, column_SD = (high * 65536.0 + low for high, low in sums)
  gram_DD = sum(g_DD * 2.0 ** -(12 + 7 * o) for o, g_DD in enumerate(gram_ODD))
  sum_D = sum(c_D * 2.0 ** -(6 + 7 * i) for i, c_D in enumerate(column_SD))
  scale_D = np.ldexp(1.0, exponent_D)
  return sum_D * scale_D, gram_DD * scale_D[:, None] * scale_D


def buffer(width: int) -> layout.Floats:
  """Returns an array for the rows that `add_host_moments` works on."""
  return np.empty((HOST_ROWS, width))


def add_host_moments(z_ND: Any, sum_D: layout.Floats, gram_DD: layout.Floats,
                     buffer_BD: layout.Floats) -> None:
  """Adds the moments of a numpy array or memory map in place, by blocks.

  sum_D and gram_DD: float64; of gram_DD, its rows one after the other, the
  lower triangle alone: `mirror` completes it.
  """
  # BLAS would be handed a copy of anything else, and the sums be lost.
  assert gram_DD.flags.c_contiguous and gram_DD.dtype == np.float64
  for start in range(0, len(z_ND), HOST_ROWS):
    x_BD = buffer_BD[:len(z_ND) - start]
    x_BD[:] = z_ND[start:start + HOST_ROWS]
    with np.errstate(all='ignore'):  # The caller names the rows at fault.
      sum_D += x_BD.sum(axis=0)
      # One triangle alone, added to where it lies: half the work of a
      # product, and no D x D temporary a block. What lies by rows here lies
      # transposed by columns, as BLAS wants it.
      blas.dsyrk(1., x_BD.T, beta=1., c=gram_DD.T, overwrite_c=1)


def mirror(gram_DD: layout.Floats) -> None:
  """Copies the lower triangle to the upper one, in place."""
  width = len(gram_DD)
  for start in range(0, width, MIRRORED):
    end = start + MIRRORED
    # The square on the diagonal has both triangles; the columns beside it take
    # over rows below.
    square_DD = gram_DD[start:end, start:end]
    square_DD[:] = np.tril(square_DD) + np.tril(square_DD, -1).T
    gram_DD[start:end, end:] = gram_DD[end:, start:end].T


def is_finite(gram_DD: layout.Floats) -> bool:
  """Returns whether a Gram matrix, or each of [B, D, D], is finite.

  The diagonal says so: no entry is larger than the largest of it, and none is
  NaN where the diagonal is not.
  """
  return bool(np.isfinite(np.diagonal(gram_DD, axis1=-2, axis2=-1)).all())


def _summed(parts, width):
  """Returns (sum_D, gram_DD) of arrays of rows in the host's memory."""
  sum_D, gram_DD = np.zeros(width), np.zeros((width, width))
  buffer_BD = buffer(width)
  for part_ND in parts:
    add_host_moments(part_ND, sum_D, gram_DD, buffer_BD)
  mirror(gram_DD)
  return sum_D, gram_DD


def host_moments(z_ND: Any) -> tuple[layout.Floats, layout.Floats]:
  """Returns (sum_D, gram_DD) of a numpy array or memory map."""
  return _summed([z_ND], z_ND.shape[1])


def moments(z_ND: layout.Embeddings) -> tuple[layout.Floats, layout.Floats]:
  """Returns the sum and the Gram matrix of concrete embeddings.

  Args:
    z_ND: numpy (worked on by the host, in blocks: may be a memory map) or a
      jax array, on one device or sharded over any mesh. What lies on this
      process's CPU devices is worked on by the host as well, whose BLAS is
      faster than XLA's.

  Returns:
    (sum_D, gram_DD), float64 numpy, equal on every process.
  """
  if not isinstance(z_ND, jax.Array):
    return host_moments(z_ND)
  if layout.on_host(z_ND):
    # numpy reads them without a copy.
    return _summed(map(np.asarray, layout.row_shards(z_ND)), z_ND.shape[1])
  # A TPU has no float64 arithmetic.
  if layout.platform(z_ND) == 'tpu':
    return sliced_moments(z_ND)
  mesh, _ = layout.row_mesh(z_ND)
  with layout.x64(), layout.mesh_context(mesh):
    sum_D, gram_DD = _moments_program(z_ND)
  return np.asarray(sum_D), np.asarray(gram_DD)
