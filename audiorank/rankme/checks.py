"""What embeddings must be before anything is made of them.

Shapes: N clips, D width.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.rankme import gram


class LowPrecision(UserWarning):
  """The embeddings were stored in a type too coarse for their spectrum."""


def checked(z_ND, least=2):
  """z_ND as a numpy or jax array of real numbers, or an error saying why not.

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
    warnings.warn(
        f'embeddings are {z_ND.dtype}: its rounding adds a noise floor to the '
        'spectrum, which moves RankMe by up to 3 % (float16) or 35 % '
        '(bfloat16) where the spectrum decays fast; pool and store them as '
        'float32', LowPrecision, stacklevel=3)
    z_ND = z_ND.astype(np.float32)
  return z_ND


@jax.jit
def _bad_rows(z_ND):
  bad_N = ~jnp.isfinite(z_ND).all(axis=1)
  return bad_N.sum(), bad_N.argmax()


def refuse_nonfinite(z_ND):
  """Raises the ValueError that names the rows which are not finite."""
  if isinstance(z_ND, jax.Array):
    count, first = (int(x) for x in jax.device_get(_bad_rows(z_ND)))
  else:
    count, first = 0, None
    for start in range(0, len(z_ND), gram.HOST_ROWS):
      block = z_ND[start:start + gram.HOST_ROWS]
      bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
      if first is None and len(bad):
        first = start + int(bad[0])
      count += len(bad)
  if not count:
    raise ValueError('the products of the embeddings overflow float64: '
                     'rescale them')
  raise ValueError(f'{count} of {z_ND.shape[0]} embeddings hold NaN or '
                   f'infinity, the first in row {first}')
