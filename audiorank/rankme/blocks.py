"""The blocks that the jackknife leaves out, and the moments of each.

What varies is the sample of recordings, so blocks are made of whole ones.

Shapes: N clips, D width, J recordings, B blocks of the sample.
"""

import jax
from jax.experimental import multihost_utils
import numpy as np

from audiorank.rankme import checks
from audiorank.rankme import gram
from audiorank.rankme import layout
from audiorank.rankme import streaming


def assign_blocks(n, blocks=streaming.BLOCKS, groups=None):
  """Block of every row, [n] int: runs of rows, or whole groups, even in size.

  Without groups the rows are cut into runs: neighbours in a manifest are
  often clips of one recording, and stay together.
  """
  if groups is None:
    return np.arange(n) * min(blocks, n) // n
  groups = np.asarray(groups)
  if groups.shape != (n,):
    raise ValueError(f'groups of shape {groups.shape} for {n} embeddings')
  try:
    _, group_N, size_J = np.unique(groups, return_inverse=True,
                                   return_counts=True)
  except TypeError:
    raise ValueError('groups of several kinds of values, or with missing '
                     'ones: expected one id a clip') from None
  # A manifest sorted by category would deal its categories evenly round the
  # blocks and hide their variance: hence the shuffle, with a fixed seed.
  order = np.random.default_rng(0).permutation(len(size_J))
  order = order[np.argsort(-size_J[order], kind='stable')]
  load_B = np.zeros(min(blocks, len(size_J)), np.int64)
  block_J = np.empty(len(size_J), np.int64)
  for j in order:
    block_J[j] = load_B.argmin()
    load_B[block_J[j]] += size_J[j]
  return block_J[group_N]


def _summed_over_processes(state):
  """The state of all processes, each of which saw rows of its own."""
  if jax.process_count() == 1:
    return state
  # process_allgather would round float64 to float32: send the bits.
  words = [np.ascontiguousarray(a).view(np.uint32) for a in state]
  gathered = multihost_utils.process_allgather(words)
  return streaming.State(*(np.asarray(w).view(a.dtype).sum(axis=0)
                           for w, a in zip(gathered, state)))


def _state_of(z_ND, block_N):
  """Moments by block; every process reads only the rows it holds."""
  state = streaming.init(z_ND.shape[1], int(block_N.max()) + 1)
  buffer_BD = gram.buffer(z_ND.shape[1])
  if not isinstance(z_ND, jax.Array):
    streaming.add_rows(state, z_ND, block_N, buffer_BD)
    return state
  # Shards that lie in the host's memory are read where they lie, below.
  if z_ND.is_fully_addressable and not layout.on_host(z_ND):
    streaming.add_rows(state, np.asarray(z_ND), block_N, buffer_BD)
    return state
  for shard in z_ND.addressable_shards:
    if shard.replica_id == 0:
      streaming.add_rows(state, np.asarray(shard.data),
                         block_N[shard.index[0]], buffer_BD)
  return _summed_over_processes(state)


def state_of(z_ND, groups=None, blocks=streaming.BLOCKS):
  """Moments of embeddings by block: what `estimate` and all else stand on.

  Made once, it serves the raw and the centred spectrum, their intervals and
  the curve over sample sizes.

  Args:
    z_ND, groups, blocks: as in `estimate`.

  Raises:
    ValueError: as `estimate`.
  """
  return streaming.complete(
      lower_state_of(checks.checked(z_ND), groups, blocks))


def lower_state_of(z_ND, groups, blocks):
  """`state_of` with the lower triangles alone, which eigenvalues ask for."""
  state = _state_of(z_ND, assign_blocks(len(z_ND), blocks, groups))
  if not gram.is_finite(state.gram_BDD):
    checks.refuse_nonfinite(z_ND)
  return state
