"""Second moments as they stream by: add batches, merge, save, restore.

Shapes: B blocks of the sample, N clips of one batch, D width.

The blocks are what the jackknife leaves out one at a time; the clips of one
recording always fall into one block.
"""

from typing import NamedTuple
import zipfile
import zlib

from etils import epath
import numpy as np

from audiorank.rankme import checks
from audiorank.rankme import gram

BLOCKS = 16


class State(NamedTuple):
  """Counts, sums and Gram matrices by block; a pytree of numpy arrays."""
  n_B: np.ndarray
  sum_BD: np.ndarray
  gram_BDD: np.ndarray


def init(width, blocks=BLOCKS):
  """An empty state for embeddings of this width."""
  return State(np.zeros(blocks, np.int64), np.zeros((blocks, width)),
               np.zeros((blocks, width, width)))


def add(state, block, n, sum_D, gram_DD):
  """Adds moments to one block, in place."""
  state.n_B[block] += n
  state.sum_BD[block] += sum_D
  state.gram_BDD[block] += gram_DD


def add_rows(state, z_ND, block_N, buffer_BD):
  """Adds host rows to the blocks named row by row, in place.

  Of the Gram matrices to the lower triangle alone: `complete` does the rest.
  buffer_BD is a `gram.buffer`.
  """
  for block in np.flatnonzero(np.bincount(block_N)):
    rows = np.flatnonzero(block_N == block)
    state.n_B[block] += len(rows)
    # Never more than some blocks' worth of rows at once: z_ND may be a
    # memory map larger than memory.
    for start in range(0, len(rows), 8 * gram.HOST_ROWS):
      part = rows[start:start + 8 * gram.HOST_ROWS]
      if part[-1] - part[0] == len(part) - 1:
        part = slice(part[0], part[-1] + 1)  # A view where rows would copy.
      gram.add_host_moments(z_ND[part], state.sum_BD[block],
                            state.gram_BDD[block], buffer_BD)


def complete(state):
  """Makes the Gram matrices of a state symmetric, in place; returns it."""
  for gram_DD in state.gram_BDD:
    gram.mirror(gram_DD)
  return state


def update(state, z_ND, groups=None):
  """Adds a batch of embeddings.

  Args:
    state: is spent, as a donated buffer is: the arrays are added to in place.
    z_ND: one batch, numpy or a jax array (sharded or not).
    groups: N ids of the recordings the clips come from. The block is a hash
      of the id, so that every process and every batch agree on it; the rows
      must then be addressable. Without ids the whole batch goes to the
      smallest block.

  Returns:
    The state with the batch in it.

  Raises:
    ValueError: another width, a number of ids that is not N, or as
      `rankme.singular_values`; the state is then as it was.
  """
  z_ND = checks.checked(z_ND, least=0)
  if z_ND.shape[1] != state.sum_BD.shape[1]:
    raise ValueError(f'a batch of shape {tuple(z_ND.shape)} for a state of '
                     f'width {state.sum_BD.shape[1]}')
  if not len(z_ND):
    return state
  if groups is None:
    sum_D, gram_DD = gram.moments(z_ND)
    if not gram.is_finite(gram_DD):
      checks.refuse_nonfinite(z_ND)
    add(state, int(state.n_B.argmin()), len(z_ND), sum_D, gram_DD)
    return state
  if len(groups) != len(z_ND):
    raise ValueError(f'{len(groups)} groups for {len(z_ND)} embeddings')
  rows_ND = np.asarray(z_ND)
  if not np.isfinite(rows_ND).all():
    checks.refuse_nonfinite(rows_ND)
  block_N = np.array([zlib.crc32(str(g).encode()) for g in groups])
  add_rows(state, rows_ND, block_N % len(state.n_B),
           gram.buffer(rows_ND.shape[1]))
  return complete(state)


def merge(*states):
  """One state of all that the states have seen."""
  shapes = {s.gram_BDD.shape for s in states}
  if len(shapes) != 1:
    raise ValueError(f'states of different shapes: {sorted(shapes)}')
  return State(*(sum(parts) for parts in zip(*states)))


def total(state):
  """(n, sum_D, gram_DD) over all blocks."""
  return int(state.n_B.sum()), state.sum_BD.sum(0), state.gram_BDD.sum(0)


def save(state, path):
  """Writes a state as .npz; path may be of any kind that etils.epath opens."""
  with epath.Path(path).open('wb') as file:
    np.savez(file, **state._asdict())


def restore(path):
  """Reads a state that `save` wrote.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a file of other contents.
  """
  with epath.Path(path).open('rb') as file:
    try:
      found = np.load(file, allow_pickle=False)
      arrays = {name: found[name] for name in found.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile):
      raise ValueError(f'{path}: not a state that save wrote') from None
  if set(arrays) != set(State._fields):
    raise ValueError(f'{path}: expected arrays {State._fields}, found '
                     f'{tuple(arrays)}')
  return State(**arrays)
