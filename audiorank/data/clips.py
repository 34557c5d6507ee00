"""Which clips: batch t of the endless stream, or a fixed sample.

Shapes: B clips of a batch, N clips, R records, S samples, U units (crops that
an epoch takes).
"""

import functools
import hashlib
import threading

from absl import logging
import numpy as np

from audiorank.data import folder
from audiorank.data import selection


def stream(corpus, batch, samples, seed, first_step=0, process_index=0,
           process_count=1, threads=4, resident=False):
  """An endless iterator of this host's rows of each global batch.

  Batch t holds the same clips with the same crops in the same order whatever
  the number of processes: process i has rows i*batch/process_count onwards. A
  record counts as many clips as it needs to be covered, ceil(length/samples),
  each with a crop of its own at random; each epoch takes every such unit once,
  in an order of its own; shorter records are padded with zeros at their end.

  Args:
    corpus: a Corpus.
    batch: clips of the global batch.
    samples: of a clip.
    seed: of the order and the crops.
    first_step: the batch to begin with.
    process_index, process_count: which host of how many.
    threads: batches read at the same time, and held in memory.
    resident: keep all samples in memory, two bytes each; the batches are the
      same bit for bit.

  Returns:
    iterator of wave_BS, int16, B = batch / process_count.

  Raises:
    ValueError: a batch that the processes do not divide, a corpus without
      records, sizes that are not positive; while iterating, a damaged shard.
  """
  if batch < 1 or samples < 1 or first_step < 0 or threads < 1:
    raise ValueError(f'batch {batch}, samples {samples}, threads {threads}, '
                     f'first_step {first_step}: expected at least 1, 1, 1, 0')
  if batch % process_count:
    raise ValueError(f'batch {batch} is not a multiple of {process_count} '
                     'processes')
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index {process_index} of {process_count}')
  rows = batch // process_count
  batches = _Batches(schedule(corpus, batch, samples, seed),
                     folder.reader(corpus, resident), samples,
                     slice(process_index * rows, (process_index + 1) * rows))
  grain = _grain()
  ahead = grain.MapDataset.source(batches)[first_step:].to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  return iter(ahead)


def _grain():
  """Returns the package, imported without its word on jaxlib's profiler: a
  warning at every start below jaxlib 0.11, on worker processes not used here.
  """
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    import grain
  finally:
    logging.set_verbosity(before)
  return grain


def clip_names(corpus, batch, samples, seed, step):
  """Names the clips of global batch `step` as 'file@first sample/rate'."""
  record_B, start_B = schedule(corpus, batch, samples, seed)(step)
  rows = corpus.records.iloc[record_B]
  return [f'{file}@{(begin + start) / corpus.rate:.2f}s' for file, begin, start
          in zip(rows['file'], rows['start'], start_B)]


def clips_in(corpus, samples):
  """How many clips of so many samples `sample` can take from a corpus."""
  return int(_slots(corpus, samples).sum())


def _slots(corpus, samples):
  """Clips of each record that do not overlap: a short one is padded."""
  return np.maximum(corpus.records['samples'].to_numpy() // samples, 1)


def sample(corpus, clips, samples, seed):
  """A fixed sample of clips that do not overlap, spread over the recordings.

  Every recording gives one clip before any gives a second.

  Returns:
    wave_NS: int16; shorter records are padded with zeros at their end.
    source_N: int64 number of the recording, from a hash of its name: the same
      in every subset of the corpus.

  Raises:
    ValueError: more clips than the corpus has.
  """
  length_R = corpus.records['samples'].to_numpy()
  count_R = _slots(corpus, samples)
  if not 0 < clips <= count_R.sum():
    raise ValueError(f'{clips} clips of {samples} samples asked for, the '
                     f'corpus {corpus.root} has {count_R.sum()}')
  record_U = np.repeat(np.arange(len(length_R)), count_R)
  slot_U = np.arange(len(record_U)) - np.repeat(
      np.cumsum(count_R) - count_R, count_R)
  code_R, sources = selection.sources_of(corpus)
  bits_U = _bits(f'sample:{seed}', len(record_U))
  # Shuffled within each recording, then the first of each, the second, ...
  by_source_U = np.lexsort((bits_U, code_R[record_U]))
  code_U = code_R[record_U][by_source_U]
  turn_U = np.arange(len(code_U)) - np.searchsorted(code_U, code_U)
  rank_U = selection.ranks(sources, 'sample', seed)[code_U]
  chosen_N = by_source_U[np.lexsort((rank_U, turn_U))[:clips]]
  record_N = record_U[chosen_N]
  # One shift per record, or its clips would overlap.
  spare_R = np.maximum(length_R - count_R * samples, 0)
  shift_R = _below(_bits(f'shift:{seed}', len(length_R)), spare_R + 1)
  start_N = slot_U[chosen_N] * samples + shift_R[record_N]
  read = folder.reader(corpus, resident=False)
  wave_NS = np.zeros((clips, samples), np.int16)
  # In the order of the shards, so that a record is read from disk once.
  for n in np.argsort(record_N, kind='stable'):
    wave_S = read(record_N[n], start_N[n], samples)
    wave_NS[n, :len(wave_S)] = wave_S
  number = np.array([int(selection.digest(f'source:{s}')[:16], 16) >> 1
                     for s in sources], np.int64)
  return wave_NS, number[code_R[record_N]]


class _Batches:
  """Grain's random access to the host rows of batch t."""

  def __init__(self, order, read, samples, rows):
    self._order, self._read = order, read
    self._samples, self._rows = samples, rows

  def __len__(self):
    return 2**40

  def __getitem__(self, step):
    record_B, start_B = (a[self._rows] for a in self._order(int(step)))
    wave_BS = np.empty((len(record_B), self._samples), np.int16)
    for row, record, start in zip(wave_BS, record_B, start_B):
      wave_S = self._read(record, start, self._samples)
      row[:len(wave_S)] = wave_S
      row[len(wave_S):] = 0
    return wave_BS


def schedule(corpus, batch, samples, seed):
  """Returns which clips every global batch holds, without reading any.

  Args:
    corpus, batch, samples, seed: as for `stream`.

  Returns:
    a function step -> (record_B, start_B), both int64: clip b of that step is
    samples start_B[b] to start_B[b] + samples of record record_B[b], a row of
    corpus.records; a record that ends before is padded with zeros. It may be
    called from several threads.

  Raises:
    ValueError: a corpus without records.
  """
  length_R = corpus.records['samples'].to_numpy()
  if not len(length_R):
    raise ValueError(f'the corpus {corpus.root} has no records to stream')
  record_U = np.repeat(np.arange(len(length_R)), -(-length_R // samples))
  units = len(record_U)

  @functools.lru_cache(maxsize=2)
  def epoch(number):
    return record_U[np.argsort(_bits(f'epoch:{seed}:{number}', units),
                               kind='stable')]
  # Threads that ask for the same epoch wait for one of them to make it.
  lock = threading.Lock()

  def at(step):
    place_B = step * batch + np.arange(batch)
    record_B = np.empty(batch, np.int64)
    for number in range(place_B[0] // units, place_B[-1] // units + 1):
      here_B = place_B // units == number
      with lock:
        order_U = epoch(number)
      record_B[here_B] = order_U[place_B[here_B] % units]
    spare_B = np.maximum(length_R[record_B] - samples, 0)
    return record_B, _below(_bits(f'crop:{seed}:{step}', batch), spare_B + 1)
  return at


def _bits(name, count):
  key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], '<u8')
  return np.random.Philox(key=key).random_raw(count)


def _below(bits_B, limit_B):
  """Maps raw bits to integers in [0, limit)."""
  unit_B = (bits_B >> np.uint64(11)) * 2.0**-53
  return (unit_B * limit_B).astype(np.int64)
