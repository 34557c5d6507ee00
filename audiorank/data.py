"""The clip stream: a pure function of (seed, step, process).

A corpus is what `prepare` wrote: records of at most some 30 s of int16 sound,
each with the recording it was cut from. Every choice made here (which
recordings, in which order, where to crop) is taken from hashes or from raw
bits of a counter-based generator, whose streams numpy guarantees to keep;
`Generator.permutation` and its kin may change between releases.

Shapes: B clips of a batch, N clips, R records, S samples, U units (crops that
an epoch takes).
"""

import functools
import hashlib
import json
import math
import os
import threading
from typing import NamedTuple

from array_record.python import array_record_module
from etils import epath
import grain
import numpy as np
import pandas as pd


class Corpus(NamedTuple):
  """A selection of records of a prepared folder.

  records has one row per record, in the folder's order, with the columns
  record, shard, position, source, file, start, samples, sha256, category.
  """
  root: str
  records: pd.DataFrame
  hours: float
  rate: int
  sha256: str


def load(root):
  """Opens the folder that `prepare` wrote.

  Raises:
    FileNotFoundError: no folder, no complete corpus in it, or a shard missing.
    ValueError: a manifest or a format that is not what corpus.json says.
  """
  root = epath.Path(root)
  described = root / 'corpus.json'
  if not described.exists():
    state = 'is not complete: run prepare again' if (
        root / 'plan.json').exists() else 'is not a prepared corpus'
    raise FileNotFoundError(f'{root} {state} (no corpus.json)'
                            if root.exists() else f'{root}: no such folder')
  about = json.loads(described.read_text())
  if about.get('format') != 1:
    raise ValueError(f'{described}: format {about.get("format")!r}, expected 1')
  manifest = (root / 'manifest.csv').read_bytes()
  found = hashlib.sha256(manifest).hexdigest()
  if found != about['sha256']:
    raise ValueError(f'{root / "manifest.csv"}: sha256 {found[:12]}..., '
                     f'corpus.json says {about["sha256"][:12]}...')
  with (root / 'manifest.csv').open('rb') as file:
    records = pd.read_csv(file, dtype={
        'record': np.int64, 'shard': 'category', 'position': np.int64,
        'source': str, 'file': str, 'start': np.int64, 'samples': np.int64,
        'sha256': str, 'category': str}, keep_default_na=False)
  for shard in records['shard'].cat.categories:
    if not (root / 'shards' / shard).exists():
      raise FileNotFoundError(f'{root / "shards" / shard}: no such shard, '
                              'though the manifest names it')
  return _corpus(os.fspath(root), records, about['rate'], about['sha256'])


def subset(corpus, hours, seed):
  """The first `hours` of the corpus in one seeded order of its recordings.

  The order depends on the seed and the recordings' names alone, and records of
  one recording follow each other; so smaller subsets lie inside larger ones.
  The cut falls between records: at most one record more than asked.

  Args:
    corpus: a Corpus.
    hours: a positive number, or math.inf for all.
    seed: of the order.

  Raises:
    ValueError: hours is not a positive number, or more than there are.
  """
  if not isinstance(hours, (int, float)) or not hours > 0:
    raise ValueError(f'hours is {hours!r}: expected a positive number, or '
                     'math.inf for all')
  if hours == math.inf:
    return corpus
  if hours > corpus.hours + 1e-6:
    raise ValueError(f'{hours:g} hours asked for, the corpus {corpus.root} has '
                     f'{corpus.hours:.4g}')
  order_R = _by_source(corpus, 'subset', seed)
  ends_R = np.cumsum(corpus.records['samples'].to_numpy()[order_R])
  wanted = hours * 3600 * corpus.rate
  keep = min(int(np.searchsorted(ends_R, wanted - 0.5)) + 1, len(order_R))
  return _select(corpus, np.sort(order_R[:keep]))


def split(corpus, valid_fraction, seed):
  """Parts the corpus by recording into (train, valid).

  Recordings are taken for valid in a seeded order, each as long as it still
  fits into `valid_fraction` of the samples; at least the shortest one goes.

  Raises:
    ValueError: a fraction outside (0, 1), or a corpus of one recording.
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'valid_fraction is {valid_fraction}: expected a number '
                     'between 0 and 1')
  samples_R = corpus.records['samples'].to_numpy()
  code_R, sources = _sources(corpus)
  if len(sources) < 2:
    raise ValueError(f'{corpus.root} has {len(sources)} source recording: at '
                     'least 2 are needed to split off a validation part')
  length = np.bincount(code_R, samples_R)
  room = valid_fraction * samples_R.sum()
  valid = np.zeros(len(sources), bool)
  for source in np.argsort(_ranks(sources, 'split', seed), kind='stable'):
    if length[source] <= room:
      valid[source] = True
      room -= length[source]
  if not valid.any():
    valid[np.argmin(length)] = True
  return (_select(corpus, np.flatnonzero(~valid[code_R])),
          _select(corpus, np.flatnonzero(valid[code_R])))


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
  batches = _Batches(_order(corpus, batch, samples, seed),
                     _reader(corpus, resident), samples,
                     slice(process_index * rows, (process_index + 1) * rows))
  ahead = grain.MapDataset.source(batches)[first_step:].to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  return iter(ahead)


def clip_names(corpus, batch, samples, seed, step):
  """Names the clips of global batch `step` as 'file@first sample/rate'."""
  record_B, start_B = _order(corpus, batch, samples, seed)(step)
  rows = corpus.records.iloc[record_B]
  return [f'{file}@{(begin + start) / corpus.rate:.2f}s' for file, begin, start
          in zip(rows['file'], rows['start'], start_B)]


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
  count_R = np.maximum(length_R // samples, 1)
  if not 0 < clips <= count_R.sum():
    raise ValueError(f'{clips} clips of {samples} samples asked for, the '
                     f'corpus {corpus.root} has {count_R.sum()}')
  record_U = np.repeat(np.arange(len(length_R)), count_R)
  slot_U = np.arange(len(record_U)) - np.repeat(
      np.cumsum(count_R) - count_R, count_R)
  code_R, sources = _sources(corpus)
  bits_U = _bits(f'sample:{seed}', len(record_U))
  # Shuffled within each recording, then the first of each, the second, ...
  by_source_U = np.lexsort((bits_U, code_R[record_U]))
  code_U = code_R[record_U][by_source_U]
  turn_U = np.arange(len(code_U)) - np.searchsorted(code_U, code_U)
  rank_U = _ranks(sources, 'sample', seed)[code_U]
  chosen_N = by_source_U[np.lexsort((rank_U, turn_U))[:clips]]
  record_N = record_U[chosen_N]
  spare_N = np.maximum(length_R - count_R * samples, 0)[record_N]
  start_N = slot_U[chosen_N] * samples + _below(
      _bits(f'shift:{seed}', clips), spare_N + 1)
  read = _reader(corpus, resident=False)
  wave_NS = np.zeros((clips, samples), np.int16)
  # In the order of the shards, so that a record is read from disk once.
  for n in np.argsort(record_N, kind='stable'):
    wave_S = read(record_N[n], start_N[n], samples)
    wave_NS[n, :len(wave_S)] = wave_S
  number = np.array([int(_digest(f'source:{s}')[:16], 16) >> 1
                     for s in sources], np.int64)
  return wave_NS, number[code_R[record_N]]


def verify(corpus):
  """Reads every record; returns the names of those not as first written."""
  read = _reader(corpus, resident=False)
  bad = []
  for i, (file, sha256, samples) in enumerate(zip(
      corpus.records['file'], corpus.records['sha256'],
      corpus.records['samples'])):
    try:
      wave_S = read(i, 0, samples)
    except ValueError:
      bad.append(file)
      continue
    if hashlib.sha256(wave_S.astype('<i2').tobytes()).hexdigest() != sha256:
      bad.append(file)
  return bad


class _Batches:
  """Grain's random access to the host rows of batch t."""

  def __init__(self, order, read, samples, rows):
    self._order, self._read = order, read
    self._samples, self._rows = samples, rows

  def __len__(self):
    return 2**40

  def __getitem__(self, step):
    record_B, start_B = (a[self._rows] for a in self._order(int(step)))
    wave_BS = np.zeros((len(record_B), self._samples), np.int16)
    for row, record, start in zip(wave_BS, record_B, start_B):
      wave_S = self._read(record, start, self._samples)
      row[:len(wave_S)] = wave_S
    return wave_BS


def _order(corpus, batch, samples, seed):
  """A function step -> (record_B, start_B) of the global batch."""
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


def _reader(corpus, resident):
  """A function (record, start, samples) -> wave_S of int16."""
  records = corpus.records
  shard_R = records['shard'].cat.codes.to_numpy()
  position_R = records['position'].to_numpy()
  length_R = records['samples'].to_numpy()
  folder = epath.Path(corpus.root) / 'shards'

  @functools.lru_cache(maxsize=None)
  def shard(code):
    path = folder / records['shard'].cat.categories[code]
    return array_record_module.ArrayRecordReader(
        os.fspath(path), 'readahead_buffer_size:0')
  lock = threading.Lock()

  def read(record, start, samples):
    with lock:
      reader = shard(shard_R[record])
    try:
      [data] = reader.read([int(position_R[record])])
    except (RuntimeError, IndexError) as error:
      raise ValueError(f'{_where(corpus, record)}: {error}') from error
    if len(data) != 2 * length_R[record]:
      raise ValueError(f'{_where(corpus, record)}: {len(data)} bytes, expected '
                       f'{2 * length_R[record]}')
    return np.frombuffer(data, '<i2')[start:start + samples]
  if not resident:
    return read

  begin_R = np.cumsum(length_R) - length_R
  all_S = np.empty(length_R.sum(), np.int16)
  for record in range(len(length_R)):
    all_S[begin_R[record]:][:length_R[record]] = read(
        record, 0, length_R[record])

  def slice_of(record, start, samples):
    end = min(start + samples, length_R[record])
    return all_S[begin_R[record] + start:begin_R[record] + end]
  return slice_of


def _where(corpus, record):
  row = corpus.records.iloc[record]
  return (f'{corpus.root}/shards/{row["shard"]} record {row["position"]} '
          f'({row["file"]})')


def _corpus(root, records, rate, sha256):
  hours = float(records['samples'].sum() / rate / 3600)
  return Corpus(root, records, hours, rate, sha256)


def _select(corpus, row_R):
  records = corpus.records.iloc[row_R].reset_index(drop=True)
  chosen = hashlib.sha256(
      corpus.sha256.encode() + records['record'].to_numpy('<i8').tobytes())
  return _corpus(corpus.root, records, corpus.rate, chosen.hexdigest())


def _sources(corpus):
  """Each record's place in the list of recordings, and that list."""
  code_R, sources = pd.factorize(corpus.records['source'], sort=True)
  return code_R, list(sources)


def _by_source(corpus, purpose, seed):
  code_R, sources = _sources(corpus)
  return np.argsort(_ranks(sources, purpose, seed)[code_R], kind='stable')


def _ranks(sources, purpose, seed):
  """Each recording's place in a seeded order of their names."""
  key = [_digest(f'{purpose}:{seed}:{source}') for source in sources]
  rank = np.empty(len(key), np.int64)
  rank[np.argsort(key, kind='stable')] = np.arange(len(key))
  return rank


def _digest(text):
  return hashlib.sha256(text.encode()).hexdigest()


def _bits(name, count):
  key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], '<u8')
  return np.random.Philox(key=key).random_raw(count)


def _below(bits_B, limit_B):
  """Maps raw bits to integers in [0, limit)."""
  unit_B = (bits_B >> np.uint64(11)) * 2.0**-53
  return (unit_B * limit_B).astype(np.int64)
