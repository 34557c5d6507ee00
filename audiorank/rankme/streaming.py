"""Second moments as they stream by: add batches, merge, save, restore.

Shapes: B blocks of the sample, N clips of one batch, D width.

The blocks are what the jackknife leaves out one at a time; the clips of one
recording always fall into one block.
"""

import functools
import os
from typing import Any
from typing import NamedTuple
import zipfile
import zlib

import numpy as np
from numpy import typing as npt

from audiorank import files
from audiorank.rankme import gram
from audiorank.rankme import layout

# Student's t with 15 degrees of freedom is 9 % wider than the normal law; more
# blocks cost a decomposition each.
BLOCKS = 16


class State(NamedTuple):
  """Counts, sums and Gram matrices by block; a pytree of numpy arrays."""
  n_B: np.ndarray
  sum_BD: np.ndarray
  gram_BDD: np.ndarray


def init(width: int, blocks: int = BLOCKS) -> State:
  """Returns an empty state for embeddings of this width."""
  return State(np.zeros(blocks, np.int64), np.zeros((blocks, width)),
               np.zeros((blocks, width, width)))


def add(state: State, block: int, n: int, sum_D: layout.Floats,
        gram_DD: layout.Floats) -> None:
  """Adds moments to one block, in place."""
  state.n_B[block] += n
  state.sum_BD[block] += sum_D
  state.gram_BDD[block] += gram_DD


def add_rows(state: State, z_ND: Any, block_N: npt.NDArray[np.int64],
             buffer_BD: layout.Floats) -> None:
  """Adds host rows to the blocks named row by row, in place.

  Of the Gram matrices to the lower triangle alone: `complete` does the rest.
  buffer_BD is a `gram.buffer`.
  """
  # Only the blocks that occur in this batch.
  for block in np.flatnonzero(np.bincount(block_N)):
    rows = np.flatnonzero(block_N == block)
    state.n_B[block] += len(rows)
    # Never more than some blocks' worth of rows at once: z_ND may be a
    # memory map larger than memory.
    for start in range(0, len(rows), 8 * gram.HOST_ROWS):
      part = rows[start:start + 8 * gram.HOST_ROWS]
      chosen: Any = part
      if part[-1] - part[0] == len(part) - 1:
        chosen = slice(part[0], part[-1] + 1)  # A view where rows would copy.
      gram.add_host_moments(z_ND[chosen], state.sum_BD[block],
                            state.gram_BDD[block], buffer_BD)


def complete(state: State) -> State:
  """Makes the Gram matrices of a state symmetric, in place; returns it."""
  for gram_DD in state.gram_BDD:
    gram.mirror(gram_DD)
  return state


def update(state: State, z_ND: layout.Embeddings,
           groups: Any = None) -> State:
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
  z_ND = gram.checked(z_ND, least=0)
  if z_ND.shape[1] != state.sum_BD.shape[1]:
    raise ValueError(f'a batch of shape {tuple(z_ND.shape)} for a state of '
                     f'width {state.sum_BD.shape[1]}')
  if not len(z_ND):
    return state
  # Without ids, whole batches go to blocks: neighbours stay together.
  if groups is None:
    sum_D, gram_DD = gram.moments(z_ND)
    if not gram.is_finite(gram_DD):
      gram.refuse_nonfinite(z_ND)
    add(state, int(state.n_B.argmin()), len(z_ND), sum_D, gram_DD)
    return state
  if len(groups) != len(z_ND):
    raise ValueError(f'{len(groups)} groups for {len(z_ND)} embeddings')
  rows_ND = np.asarray(z_ND)
  if not np.isfinite(rows_ND).all():
    gram.refuse_nonfinite(rows_ND)
  # A hash, not a count: every process and every batch agrees on it.
  block_N = np.array([zlib.crc32(str(g).encode()) for g in groups])
  add_rows(state, rows_ND, block_N % len(state.n_B),
           gram.buffer(rows_ND.shape[1]))
  return complete(state)


def merge(*states: State) -> State:
  """Returns one state of the embeddings of all."""
  shapes = {s.gram_BDD.shape for s in states}
  if len(shapes) != 1:
    raise ValueError(f'states of different shapes: {sorted(shapes)}')
  return State(*(functools.reduce(np.add, parts) for parts in zip(*states)))


def total(state: State) -> tuple[int, layout.Floats, layout.Floats]:
  """Returns (n, sum_D, gram_DD) over all blocks."""
  return int(state.n_B.sum()), state.sum_BD.sum(0), state.gram_BDD.sum(0)


def save(state: State, path: str | os.PathLike[str]) -> None:
  """Writes a state as .npz, to a local path or gs://."""
  with files.replacing(path) as part, open(part, 'wb') as file:
    np.savez(file, **state._asdict())


def restore(path: str | os.PathLike[str]) -> State:
  """Reads a state that `save` wrote.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a file of other contents.
  """
  with files.path(path).open('rb') as file:
    try:
      # allow_pickle=False: a pickle runs code of whoever wrote the file.
      archive = np.load(file, allow_pickle=False)
      arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile):
      raise ValueError(f'{path}: not a state that rankme.save wrote') from None
  if set(arrays) != set(State._fields):
    raise ValueError(f'{path}: expected arrays {State._fields}, found '
                     f'{tuple(arrays)}')
  return State(**arrays)
