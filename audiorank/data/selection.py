"""Selects recordings: nested subsets by hours, a validation part, categories.

Every choice follows a seeded order of the recordings' names (index.keys), so
that it does not depend on what else is in the corpus. Columns are read block
by block. So memory does not grow with the records, except for a few bytes per
recording.

Shapes: N records of a selection, G recordings, C candidates.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import hashlib
import math

import numpy as np

from audiorank.data import folder
from audiorank.data import index as index_lib
from audiorank.data.folder import Corpus

SHIFT = 48  # Keys of 64 bits are put into buckets by their first 16 bits.
MOST = 2**20  # Recordings that are sorted at a time.


def subset(corpus: Corpus, hours: float, seed: int) -> Corpus:
  """Returns the first `hours` of a corpus in a seeded order of its recordings.

  The order depends only on the seed and the recordings' names, and records of
  one recording follow each other. So smaller subsets are part of larger ones.
  The cut lies between records: the subset is longer by less than one record.

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
  index = corpus.index
  keys_G = index_lib.keys(index, 'subset', seed)
  # In samples. Half a sample less absorbs rounding; half a sample at least
  # gives one record, however few hours are asked for.
  wanted = max(hours * 3600 * corpus.rate - .5, .5)
  # Sorting all recordings would need too much memory. So their lengths are
  # summed by bucket, and only the bucket with the cut is sorted.
  samples_K = np.zeros(2**(64 - SHIFT))
  for _, samples_N, source_N in corpus.columns('samples_R', 'source_R'):
    bucket_N = (keys_G[source_N] >> np.uint64(SHIFT)).astype(int)
    samples_K += np.bincount(bucket_N, samples_N, len(samples_K))
  ends_K = np.cumsum(samples_K)
  # The bucket in which the sum reaches what is wanted.
  last = int(np.searchsorted(ends_K, wanted))
  if last:
    wanted -= ends_K[last - 1]
  edge = _split_bucket(corpus, keys_G, last, wanted, f'subset:{seed}:')

  def keep(row_N: np.ndarray, source_N: np.ndarray) -> np.ndarray:
    # Whole buckets below the cut, and part of the one with it.
    keep_N = (keys_G[source_N] >> np.uint64(SHIFT)) < last
    # The records of the edge that are in this block; both ascend.
    place_N = np.searchsorted(row_N, edge)
    place_N = place_N[place_N < len(row_N)]
    keep_N[place_N[np.isin(row_N[place_N], edge)]] = True
    return keep_N
  chosen = folder.select(corpus, keep, 'source_R')
  index_lib.release(keys_G)
  return chosen


def _split_bucket(corpus: Corpus, keys_G: np.ndarray, bucket: int,
                  wanted: float, prefix: str) -> np.ndarray:
  """Returns the records of one bucket of keys that belong to a subset.

  Args:
    corpus: a Corpus.
    keys_G: the recordings' keys.
    bucket: which one.
    wanted: samples to take from it.
    prefix: what the keys' hashes begin with.
  """
  index = corpus.index
  # Its records, in the order of their recordings and then of the corpus.
  row_C = np.concatenate([
      row_N[(keys_G[source_N] >> np.uint64(SHIFT)) == bucket]
      for row_N, source_N in corpus.columns('source_R')])
  if not len(row_C):
    return row_C
  code_C = index.source_R[row_C]
  sources = np.unique(code_C)
  rank_G = dict(zip(in_order(index, sources, keys_G, prefix).tolist(),
                    range(len(sources))))
  rank_C = np.array([rank_G[c] for c in code_C.tolist()])
  row_C = row_C[np.argsort(rank_C, kind='stable')]
  # Up to the record that reaches the wanted length.
  ends_C = np.cumsum(index.samples_R[row_C], dtype=np.int64)
  return np.sort(row_C[:int(np.searchsorted(ends_C, wanted)) + 1])


def in_order(index: index_lib.Index, code_C: np.ndarray, keys_G: np.ndarray,
             prefix: str) -> np.ndarray:
  """Returns recordings in the order of the hashes of their names.

  Args:
    index: of the corpus.
    code_C: numbers of recordings.
    keys_G: the first 8 bytes of the hashes of all recordings.
    prefix: what the hashed texts begin with.
  """
  key_C = np.asarray(keys_G[code_C])
  order_C = np.argsort(key_C, kind='stable')
  key_C, code_C = key_C[order_C], code_C[order_C]
  # Where the first 8 bytes are equal, the rest of the hash decides.
  for i in np.flatnonzero(key_C[1:] == key_C[:-1]).tolist():
    same = np.flatnonzero(key_C == key_C[i])
    code_C[same] = sorted(code_C[same].tolist(), key=lambda code: digest(
        prefix + index.sources[code]))
  return code_C


def split(corpus: Corpus, valid_fraction: float, seed: int) -> tuple[
    Corpus, Corpus]:
  """Splits a corpus by recording into (train, valid).

  In a seeded order, each recording goes to valid if it still fits into
  `valid_fraction` of the samples. If none fits, the shortest one goes.

  Args:
    corpus: a Corpus.
    valid_fraction: share of the samples, between 0 and 1.
    seed: of the order.

  Raises:
    ValueError: a fraction outside (0, 1), or a corpus of one recording.
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'valid_fraction is {valid_fraction}: expected a number '
                     'between 0 and 1')
  index = corpus.index
  length_G = recording_lengths(corpus)
  count = int(np.count_nonzero(length_G))
  if count < 2:
    raise ValueError(f'{corpus.root} has {count} source recording: at '
                     'least 2 are needed to split off a validation part')
  valid_G = _fitting(index, length_G, valid_fraction * float(length_G.sum()),
                     seed)
  if not valid_G.any():
    # The first of the shortest ones: runs of earlier versions rely on it.
    valid_G[np.argmin(np.where(length_G > 0, length_G, np.inf))] = True
  return (
      folder.select(corpus, lambda _, source_N: ~valid_G[source_N], 'source_R'),
      folder.select(corpus, lambda _, source_N: valid_G[source_N], 'source_R'))


def recording_lengths(corpus: Corpus) -> np.ndarray:
  """Returns length_G int64: the selected samples of each recording."""
  length_G = np.zeros(len(corpus.index.sources), np.int64)
  for _, samples_N, source_N in corpus.columns('samples_R', 'source_R'):
    np.add.at(length_G, source_N, samples_N.astype(np.int64))
  return length_G


def _fitting(index: index_lib.Index, length_G: np.ndarray, room: float,
             seed: int) -> np.ndarray:
  """Chooses recordings in a seeded order, each if it fits in what is left.

  Args:
    index: of the corpus.
    length_G: samples of the recordings; those of 0 are not candidates.
    room: samples to fill.
    seed: of the order.

  Returns:
    which recordings are chosen, bool_G.
  """
  keys_G = index_lib.keys(index, 'split', seed)
  chosen_G = np.zeros(len(length_G), bool)
  # In rounds of at most 2 * MOST candidates: a recording that does not fit now
  # never fits later, because the room only shrinks.
  shortest = int(length_G[length_G > 0].min())
  done = -1  # The last key that has been considered.
  while room >= shortest:
    code_C = _next_fitting(keys_G, length_G, done, room)
    if not len(code_C):
      break
    done = int(keys_G[code_C].max())
    code_C = in_order(index, code_C, keys_G, f'split:{seed}:')
    room = _take(code_C, length_G, room, chosen_G)
  index_lib.release(keys_G)
  return chosen_G


def _next_fitting(keys_G: np.ndarray, length_G: np.ndarray, done: int,
                  room: float) -> np.ndarray:
  """Returns the recordings that would fit, of the next keys.

  Args:
    keys_G, length_G: of the recordings.
    done: the last key considered before; -1 for none.
    room: samples that are left.

  Returns:
    numbers of recordings, at most 2 * MOST and those of the smallest keys.
  """
  fitting, limit = np.zeros(0, np.int64), None
  for begin in range(0, len(keys_G), index_lib.ROWS):
    key_C = keys_G[begin:begin + index_lib.ROWS]
    length_C = length_G[begin:begin + index_lib.ROWS]
    fits = (length_C > 0) & (length_C <= room)
    if done >= 0:
      fits &= key_C > np.uint64(done)
    if limit is not None:
      fits &= key_C <= limit
    fitting = np.concatenate([fitting, np.flatnonzero(fits) + begin])
    # Those of the largest keys are dropped, so that memory stays bounded. The
    # next call finds them.
    if len(fitting) > 2 * MOST:
      key_C = keys_G[fitting]
      limit = np.partition(key_C, MOST)[MOST]
      fitting = fitting[key_C <= limit]
  return fitting


def _take(code_C: np.ndarray, length_G: np.ndarray, room: float,
          chosen_G: np.ndarray) -> float:
  """Chooses recordings in this order where they fit; returns the room left.

  Args:
    code_C: numbers of recordings, in order.
    length_G: samples of all recordings.
    room: samples to fill. Arithmetic is exact: samples are far below 2^53.
    chosen_G: set to True where chosen.
  """
  length_C, at = length_G[code_C], 0
  while at < len(code_C):
    # As many as fit one after the other, found at once.
    ends = np.cumsum(length_C[at:at + 4096])
    fit = int(np.searchsorted(ends, room, 'right'))
    chosen_G[code_C[at:at + fit]] = True
    if fit:
      room -= float(ends[fit - 1])
    at += fit
    if fit < len(ends):
      # One does not fit: skip to the next one that is short enough.
      later = np.flatnonzero(length_C[at:] <= room)
      if not len(later):
        break
      at += int(later[0])
  return room


def categories(corpus: Corpus, names: Sequence[str],
               field: str) -> list[str]:
  """Returns some categories, each once; raises if one is not there.

  Args:
    corpus: a Corpus.
    names: categories of its manifest.
    field: the config field that they are from, for the message.

  Raises:
    ValueError: a category that the corpus does not have; names those it has.
  """
  if not names:
    return []
  have = sorted(present(corpus) - {''})  # '' is a record without a category.
  for name in names:
    if name not in have:
      expected = 'it has none'
      if have:
        expected = f'there are {", ".join(have[:20])}'
      if len(have) > 20:
        expected += ', ...'
      raise ValueError(
          f'{field}: no category {name!r} in {corpus.root}: {expected}')
  return list(dict.fromkeys(names))


def present(corpus: Corpus) -> set[str]:
  """Returns the categories of the selected records."""
  count = np.zeros(len(corpus.index.categories), np.int64)
  for _, category_N in corpus.columns('category_R'):
    count += np.bincount(category_N, minlength=len(count))
  return {c for c, n in zip(corpus.index.categories, count) if n}


def has_categories(corpus: Corpus, names: Iterable[str]) -> bool:
  """Returns whether any selected record is of one of the categories."""
  return not present(corpus).isdisjoint(names)


def of_categories(corpus: Corpus, names: Iterable[str]) -> Corpus:
  """Returns the records of a corpus that are of one of the categories.

  Raises:
    ValueError: there are none.
  """
  names, index = list(names), corpus.index
  codes = [i for i, c in enumerate(index.categories) if c in names]
  chosen = folder.select(corpus, lambda _, category_N: np.isin(
      category_N, codes), 'category_R')
  if not len(chosen):
    raise ValueError(f'{corpus.root}: no record of {", ".join(names)} here')
  return chosen


def digest(text: str) -> str:
  """Returns the SHA-256 of a text, in hex."""
  return hashlib.sha256(text.encode()).hexdigest()
