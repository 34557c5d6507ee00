"""Chooses clips: batch t of the endless stream, or a fixed sample.

A record consists of as many units as clips are needed to cover it, and an
epoch takes every unit of a corpus once. Each unit gets a random number from a
counter-based generator, and units are taken in the order of these numbers.

A large corpus has too many units to sort them all. The units of the next ranks
are those whose numbers lie in a narrow range, which one pass over the numbers
finds (`_Epoch`). The order is the same, bit for bit, as if all were sorted.

Shapes: B clips of a batch, N clips, R records, S samples, U units.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import hashlib
import threading
from typing import Any

from absl import logging
import numpy as np

from audiorank.data import folder
from audiorank.data import index as index_lib
from audiorank.data import mixture
from audiorank.data import selection
from audiorank.data.folder import Corpus

# Units of an epoch that are sorted at a time.
WINDOW = 2**19
CHUNK = 2**20  # Random numbers drawn at a time.

# step -> (record_B, start_B); see `schedule`.
Schedule = Callable[[int], tuple[np.ndarray, np.ndarray]]


def stream(corpus: Corpus, batch: int, samples: int, seed: int,
           first_step: int = 0, process_index: int = 0,
           process_count: int = 1, threads: int = 4,
           resident: bool = False) -> Iterator[np.ndarray]:
  """Returns an endless iterator of this process's rows of each global batch.

  Batch t has the same clips, crops and order for any number of processes.
  Process i gets rows i * batch / process_count onwards.

  A record gives ceil(length / samples) clips per epoch, each with its own
  random crop. Every epoch has its own order. Records shorter than a clip are
  padded with zeros at the end.

  Args:
    corpus: a Corpus. In a mixture, each corpus has its share of the clips.
    batch: clips of the global batch.
    samples: of a clip.
    seed: of the order and the crops.
    first_step: the batch to begin with.
    process_index, process_count: this process, and the number of processes.
    threads: batches that are read at the same time and kept in memory.
    resident: keep all samples in memory, two bytes each. The batches are the
      same, bit for bit.

  Returns:
    iterator of wave_BS, int16, B = batch / process_count.

  Raises:
    ValueError: a batch that is not a multiple of process_count, a corpus
      without records, sizes that are not positive; while iterating, a damaged
      shard.
  """
  if batch < 1 or samples < 1 or first_step < 0 or threads < 1:
    raise ValueError(f'batch {batch}, samples {samples}, threads {threads}, '
                     f'first_step {first_step}: expected at least 1, 1, 1, 0')
  if batch % process_count:
    raise ValueError(f'batch {batch} is not a multiple of {process_count} '
                     'processes')
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index {process_index} of {process_count}')
  # Consecutive rows for each process, so that shards of the global batch lie
  # where they are used.
  rows = batch // process_count
  batches = Batches(corpus, batch, samples, seed, slice(
      process_index * rows, (process_index + 1) * rows), resident)
  # Random access by step makes resuming exact without a saved iterator: a run
  # that continues at step t begins with batch t.
  grain = _grain()
  ahead = grain.MapDataset.source(batches)[first_step:].to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  return iter(ahead)


def _grain() -> Any:
  """Returns the package grain, imported without its warning."""
  # Below jaxlib 0.11 it warns that worker processes lack a profiler. Only
  # threads are used here.
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    import grain
  finally:
    logging.set_verbosity(before)
  return grain


class Batches:
  """Random access by step to a process's rows of every global batch."""

  def __init__(self, corpus: Corpus, batch: int, samples: int, seed: int,
               rows: slice, resident: bool):
    """Args: as of `stream`; rows: those of the batch that this process has."""
    self._samples, self._rows = samples, rows
    # Records are addressed by their number in the whole corpus, which needs no
    # list of the selected records. Only resident samples are stored densely.
    self._clips = _schedule(corpus, batch, samples, seed, dense=resident)
    if resident:
      self._read = folder.reader(corpus, resident)
    else:
      self._read = folder.row_reader(corpus)

  def __len__(self) -> int:
    return 2**40  # Grain wants a length; the stream is endless.

  def __getitem__(self, step: int) -> np.ndarray:
    record_B, start_B = (a[self._rows] for a in self._clips(int(step)))
    wave_BS = np.empty((len(record_B), self._samples), np.int16)
    # Into one array: no list of clips, no copy to stack them.
    for row, record, start in zip(wave_BS, record_B, start_B):
      wave_S = self._read(record, start, self._samples)
      row[:len(wave_S)] = wave_S
      row[len(wave_S):] = 0
    return wave_BS


def schedule(corpus: Corpus, batch: int, samples: int, seed: int) -> Schedule:
  """Returns which clips every global batch contains, without reading any.

  Args:
    corpus, batch, samples, seed: as for `stream`.

  Returns:
    a function step -> (record_B, start_B), both int64. Clip b of that step is
    samples start_B[b] to start_B[b] + samples of record record_B[b], a row of
    corpus.records. A record that ends before is padded with zeros. Several
    threads may call it.

  Raises:
    ValueError: a corpus without records.
  """
  return _schedule(corpus, batch, samples, seed, dense=True)


def _schedule(corpus: Corpus, batch: int, samples: int, seed: int,
              dense: bool) -> Schedule:
  """Returns `schedule`.

  Args:
    corpus, batch, samples, seed: as for `schedule`.
    dense: whether records are numbered within the selection, as the rows of
      corpus.records, or else within the whole corpus.
  """
  if not len(corpus):
    raise ValueError(f'the corpus {corpus.root} has no records to stream')
  if corpus.mixed:
    at = _mixed_order(corpus, samples, seed)
  else:
    at = _Order(corpus, samples, f'epoch:{seed}').at

  def clips(step: int) -> tuple[np.ndarray, np.ndarray]:
    record_B, row_B = at(step * batch + np.arange(batch))
    length_B = np.asarray(corpus.index.samples_R[row_B], np.int64)
    # Where a crop may begin; a record shorter than a clip begins at 0.
    spare_B = np.maximum(length_B - samples, 0)
    # Named by the step: crops need no state, and resuming draws the same.
    start_B = _below(_bits(f'crop:{seed}:{step}', batch), spare_B + 1)
    if dense:
      return record_B, start_B
    return row_B, start_B
  return clips


def _mixed_order(corpus: Corpus, samples: int, seed: int) -> Callable:
  """Returns a function clip_B -> (record_B, row_B) of a mixture."""
  parts = mixture.parts(corpus)
  # Records are numbered through all corpora of the mixture.
  before = np.cumsum([0] + [len(part) for part in parts])
  # If nothing of a corpus is selected, the others get its share.
  weights = np.array(corpus.weights) * [len(part) > 0 for part in parts]
  places = mixture.places(tuple(weights / weights.sum()), seed)
  # Each corpus has its own order, which the others' shares do not change.
  orders = {k: _Order(part, samples, f'epoch:{seed}:{k}')
            for k, part in enumerate(parts) if len(part)}

  def at(clip_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    which_B, index_B = places(clip_B)
    record_B, row_B = np.empty((2, len(clip_B)), np.int64)
    for k, order in orders.items():
      here_B = which_B == k
      if here_B.any():
        record_B[here_B], row_B[here_B] = order.at(index_B[here_B])
        record_B[here_B] += before[k]
    return record_B, row_B
  return at


class _Order:
  """The endless stream of one corpus: epoch after epoch of its units."""

  def __init__(self, corpus: Corpus, samples: int, name: str):
    units = self._units = Units(corpus, samples)
    # Two, because a batch may end one epoch and begin the next.
    self._epoch = functools.lru_cache(maxsize=2)(
        lambda number: _Epoch(f'{name}:{number}', units.count))
    # One thread computes an epoch; others that ask for it wait.
    self._lock = threading.Lock()

  def at(self, place_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the records of some places in the stream, int64.

    Args:
      place_B: ascending numbers of clips, from 0.

    Returns:
      their rows of corpus.records, and their numbers in the whole corpus.
    """
    # A batch may extend over several epochs of a small corpus.
    count = self._units.count
    unit_B = np.empty(len(place_B), np.int64)
    for number in range(place_B[0] // count, place_B[-1] // count + 1):
      here_B = place_B // count == number
      if here_B.any():
        with self._lock:
          unit_B[here_B] = self._epoch(number).at(place_B[here_B] % count)
    return self._units.records(unit_B)


class Units:
  """The units of a corpus: their number `count`, and the record of each."""

  def __init__(self, corpus: Corpus, samples: int):
    self._corpus, self._samples = corpus, samples
    self._block = functools.lru_cache(maxsize=4096)(self._read_block)
    units: list[np.ndarray] = []
    records: list[np.ndarray] = []
    # Only sums over blocks of FINE records are kept in memory. Inside a block
    # units are counted again when they are looked up.
    for row_N, samples_N in corpus.columns('samples_R'):
      total = len(corpus.index.samples_R)
      begin = len(units) * index_lib.ROWS
      # Ceiling divisions: the last block of a corpus is shorter.
      blocks = -(-min(index_lib.ROWS, total - begin) // folder.FINE)
      block_N = (row_N - begin) // folder.FINE
      units.append(np.bincount(block_N, self._units(samples_N), blocks))
      records.append(np.bincount(block_N, minlength=blocks))
    # Ends of the blocks: a unit's block is a binary search.
    self._unit_ends = np.cumsum(np.concatenate(units)).astype(np.int64)
    self._record_ends = np.cumsum(np.concatenate(records))
    self.count = int(self._unit_ends[-1])

  def _units(self, samples_N: np.ndarray) -> np.ndarray:
    """Returns the units of records: lengths over clips, rounded up."""
    return -(-samples_N.astype(np.int64) // self._samples)

  def records(self, unit_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row of corpus.records, number in the whole corpus), int64."""
    record_B, row_B = np.empty((2, len(unit_B)), np.int64)
    # Units are grouped by block, so that each block is read once.
    block_B = np.searchsorted(self._unit_ends, unit_B, 'right')
    order = np.argsort(block_B, kind='stable')
    edges = np.flatnonzero(np.diff(block_B[order])) + 1
    for group in np.split(order, edges):
      block = int(block_B[group[0]])
      row_N, ends_N = self._block(block)
      first_unit = first_record = 0
      if block:
        first_unit = self._unit_ends[block - 1]
        first_record = self._record_ends[block - 1]
      place = np.searchsorted(ends_N, unit_B[group] - first_unit, 'right')
      row_B[group] = row_N[place]
      record_B[group] = place + first_record
    return record_B, row_B

  def _read_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the selected records of a block, and where their units end."""
    begin = block * folder.FINE
    end = min(begin + folder.FINE, len(self._corpus.index.samples_R))
    row_N = np.flatnonzero(self._corpus.mask(begin, end)) + begin
    return row_N, np.cumsum(self._units(self._corpus.index.samples_R[row_N]))


class _Epoch:
  """The units of an epoch in the order of their random numbers.

  One window of ranks is sorted at a time and kept.
  """

  def __init__(self, name: str, count: int):
    self._name, self._count = name, count
    self._begin, self._order = 0, np.zeros(0, np.int64)

  def at(self, rank_B: np.ndarray) -> np.ndarray:
    """Returns the units of some ranks, which must ascend."""
    unit_B, done = np.empty(len(rank_B), np.int64), 0
    while done < len(rank_B):
      if not self._begin <= rank_B[done] < self._begin + len(self._order):
        self._sort(int(rank_B[done]))
      last = np.searchsorted(rank_B, self._begin + len(self._order))
      unit_B[done:last] = self._order[rank_B[done:last] - self._begin]
      done = int(last)
    return unit_B

  def _sort(self, rank: int) -> None:
    """Sorts a window of ranks that contains `rank`."""
    # Small enough to sort all at once.
    if self._count <= 2 * WINDOW:
      self._order = np.argsort(_bits(self._name, self._count), kind='stable')
      self._begin = 0
      return
    # The range of numbers in which the ranks lie. Of n uniform numbers, n q are
    # below the quantile q, with a standard deviation of at most sqrt(n) / 2. So
    # 8 sqrt(n) is a margin of 16 standard deviations.
    spread = 8 * np.sqrt(self._count)
    low = max(0., (rank - spread) / self._count)
    high = min(1., (rank + WINDOW + spread) / self._count)
    # One pass over all numbers, which are drawn again: they take less time than
    # memory. `below` becomes the rank of the first number inside the range.
    below, units, numbers = 0, [], []
    # The range in terms of the raw 64-bit numbers.
    first = np.uint64(int(low * 2.**64))
    last = np.uint64(min(int(high * 2.**64), 2**64 - 1))
    for begin in range(0, self._count, CHUNK):
      bits_U = _bits(self._name, min(CHUNK, self._count - begin), begin)
      below += int(np.count_nonzero(bits_U < first))
      inside = np.flatnonzero((bits_U >= first) & (bits_U <= last))
      units.append(inside + begin)
      numbers.append(bits_U[inside])
    # Stable, as in the branch above: equal numbers keep their order.
    order = np.argsort(np.concatenate(numbers), kind='stable')
    if not below <= rank < below + len(order):
      raise RuntimeError(f'rank {rank} of {self._count} is not in its window')
    self._begin, self._order = below, np.concatenate(units)[order]


# --- Fixed samples ---


def clip_names(corpus: Corpus, batch: int, samples: int, seed: int,
               step: int) -> list[str]:
  """Returns the names of the clips of a global batch: 'file@first second'."""
  row_B, start_B = _schedule(corpus, batch, samples, seed, dense=False)(step)
  index = corpus.index
  return [f'{index.file[row]}@{(index.start_R[row] + start) / corpus.rate:.2f}s'
          for row, start in zip(row_B.tolist(), start_B.tolist())]


def clips_in(corpus: Corpus, samples: int) -> int:
  """Returns how many clips of a length `sample` can take from a corpus."""
  return sum(int(_slots(samples_N, samples).sum())
             for _, samples_N in corpus.columns('samples_R'))


def _slots(samples_N: np.ndarray, samples: int) -> np.ndarray:
  """Returns how many clips without overlap each record has, at least one."""
  return np.maximum(samples_N.astype(np.int64) // samples, 1)


def sample(corpus: Corpus, clips: int, samples: int,
           seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns a fixed sample of clips without overlap.

  Every recording gives one clip before any gives a second.

  Args:
    corpus: a Corpus.
    clips: N, the number of clips.
    samples: of a clip.
    seed: of the choice.

  Returns:
    wave_NS: int16. Shorter records are padded with zeros at the end.
    source_N: int64, a number per recording from a hash of its name, so that it
      is the same in every subset of the corpus.

  Raises:
    ValueError: more clips than the corpus has.
  """
  total = clips_in(corpus, samples)
  if not 0 < clips <= total:
    raise ValueError(f'{clips} clips of {samples} samples asked for, the '
                     f'corpus {corpus.root} has {total}')
  index = corpus.index
  row_N, start_N, code_N = _spread(corpus, clips, samples, seed)
  read = folder.row_reader(corpus)
  wave_NS = np.zeros((clips, samples), np.int16)
  # In the order of the shards, so that each record is read from disk once.
  for n in np.argsort(row_N, kind='stable'):
    wave_S = read(row_N[n], start_N[n], samples)
    wave_NS[n, :len(wave_S)] = wave_S
  # 63 bits of a hash: positive as int64.
  number = {code: int(selection.digest(f'source:{index.sources[code]}')[:16],
                      16) >> 1 for code in np.unique(code_N).tolist()}
  return wave_NS, np.array([number[c] for c in code_N.tolist()], np.int64)


def _spread(corpus: Corpus, clips: int, samples: int, seed: int) -> tuple[
    np.ndarray, np.ndarray, np.ndarray]:
  """Returns (row_N, start_N, code_N) of the clips of `sample`."""
  index = corpus.index
  chosen_G = _recordings(corpus, clips, samples, seed)
  # All slots (possible clips) of the recordings that take part, each with a
  # random number.
  rows, slots, bits, records = [], [], [], []
  unit = record = 0
  for row_N, samples_N, source_N in corpus.columns('samples_R', 'source_R'):
    count_N = _slots(samples_N, samples)
    # All slots draw their number, also of recordings left out: so the numbers
    # of the others do not depend on the choice.
    mine_N = chosen_G[source_N]
    bits_U = _bits(f'sample:{seed}', int(count_N.sum()), unit)
    mine_U = np.repeat(mine_N, count_N)
    # Numbers each record's slots from 0, without a loop.
    begin_N = np.cumsum(count_N) - count_N
    slot_U = np.arange(len(mine_U)) - np.repeat(begin_N, count_N)
    rows.append(np.repeat(row_N, count_N)[mine_U])
    records.append(np.repeat(np.arange(len(row_N)), count_N)[mine_U] + record)
    slots.append(slot_U[mine_U])
    bits.append(bits_U[mine_U])
    unit, record = unit + len(mine_U), record + len(row_N)
  row_U, slot_U, bits_U, record_U = map(np.concatenate,
                                        (rows, slots, bits, records))
  # Slots are shuffled within each recording. Then the first slot of every
  # recording is taken, then the second of every one, and so on.
  code_U = np.asarray(index.source_R[row_U], np.int64)
  by_source_U = np.lexsort((bits_U, code_U))
  code_V = code_U[by_source_U]
  # A slot's turn is its place among those of its recording.
  turn_V = np.arange(len(code_V)) - np.searchsorted(code_V, code_V)
  rank_V = _ranks(corpus, code_V, seed)
  chosen_N = by_source_U[np.lexsort((rank_V, turn_V))[:clips]]
  row_N = row_U[chosen_N]
  # A random shift, so that clips do not always begin where the record does.
  # One per record: with one per clip, clips would overlap.
  length_N = np.asarray(index.samples_R[row_N], np.int64)
  spare_N = np.maximum(length_N - _slots(length_N, samples) * samples, 0)
  shift_N = _below(_bits_at(f'shift:{seed}', record_U[chosen_N]), spare_N + 1)
  return row_N, slot_U[chosen_N] * samples + shift_N, code_U[chosen_N]


def _recordings(corpus: Corpus, clips: int, samples: int,
                seed: int) -> np.ndarray:
  """Returns which recordings can be in a sample, bool_G.

  If there are more recordings than clips, these are the first ones by key, and
  each gives one clip. Otherwise all recordings can be.
  """
  index = corpus.index
  present_G = np.zeros(len(index.sources), bool)
  for _, source_N in corpus.columns('source_R'):
    present_G[source_N] = True
  if int(present_G.sum()) <= clips:
    return present_G
  keys_G = index_lib.keys(index, 'sample', seed)
  code_G = np.flatnonzero(present_G)
  key_G = keys_G[code_G]
  # Keys may be equal, so that some more recordings than clips are chosen;
  # `_ranks` orders them by the whole hash.
  limit = np.partition(key_G, clips - 1)[clips - 1]
  chosen_G = np.zeros(len(present_G), bool)
  chosen_G[code_G[key_G <= limit]] = True
  return chosen_G


def _ranks(corpus: Corpus, code_V: np.ndarray, seed: int) -> np.ndarray:
  """Returns each recording's rank in the seeded order of recordings."""
  codes = np.unique(code_V)
  keys_G = index_lib.keys(corpus.index, 'sample', seed)
  ordered = selection.in_order(corpus.index, codes, keys_G, f'sample:{seed}:')
  rank = np.empty(len(codes), np.int64)
  rank[np.searchsorted(codes, ordered)] = np.arange(len(codes))
  return rank[np.searchsorted(codes, code_V)]


# --- Random numbers ---


def _bits(name: str, count: int, begin: int = 0) -> np.ndarray:
  """Returns `count` uint64 numbers of a named random stream from `begin` on."""
  key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], '<u8')
  # Philox makes four numbers per value of its counter, so that advancing to
  # any place is immediate.
  generator = np.random.Philox(key=key).advance(begin // 4)
  skip = begin % 4
  return generator.random_raw(count + skip)[skip:]


def _bits_at(name: str, place_N: np.ndarray) -> np.ndarray:
  """Returns single numbers of `_bits`, for places in any order."""
  bits_N = np.empty(len(place_N), np.uint64)
  for chunk in np.unique(place_N // CHUNK).tolist():
    here_N = place_N // CHUNK == chunk
    inner_N = place_N[here_N] - chunk * CHUNK
    bits_N[here_N] = _bits(name, int(inner_N.max()) + 1,
                           chunk * CHUNK)[inner_N]
  return bits_N


def _below(bits_B: np.ndarray, limit_B: np.ndarray) -> np.ndarray:
  """Maps raw bits to integers in [0, limit)."""
  # The upper 53 bits, a float64's precision, as numpy's random() does it.
  unit_B = (bits_B >> np.uint64(11)) * 2.0**-53
  return (unit_B * limit_B).astype(np.int64)
