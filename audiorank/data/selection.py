"""Which recordings: nested subsets by hours, a validation part, categories.

Every choice follows a seeded order of the recordings' names (index.keys), so
that it does not depend on what else is in the corpus. Columns are passed over
in blocks: the memory needed does not grow with the records, but for a few
bytes a recording.

Shapes: N records of a selection, G recordings, C candidates.
"""

from collections.abc import Iterable
import hashlib
import math

import numpy as np

from audiorank.data import folder
from audiorank.data import index as index_lib
from audiorank.data.folder import Corpus

SHIFT = 48  # Keys of 64 bits are counted by their first 16.
MOST = 2**20  # Recordings that are sorted at a time.


def subset(corpus: Corpus, hours: float, seed: int) -> Corpus:
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
  index = corpus.index
  keys_G = index_lib.keys(index, 'subset', seed)
  # At least one record, however few are asked for.
  wanted = max(hours * 3600 * corpus.rate - .5, .5)
  # Whole recordings by the first bits of their keys, then one by one.
  samples_K = np.zeros(2**(64 - SHIFT))
  for _, samples_N, source_N in corpus.columns('samples_R', 'source_R'):
    bucket_N = (keys_G[source_N] >> np.uint64(SHIFT)).astype(int)
    samples_K += np.bincount(bucket_N, samples_N, len(samples_K))
  ends_K = np.cumsum(samples_K)
  last = int(np.searchsorted(ends_K, wanted))
  edge = _split_bucket(corpus, keys_G, last, wanted - (
      ends_K[last - 1] if last else 0), f'subset:{seed}:')

  def keep(row_N, source_N):
    keep_N = (keys_G[source_N] >> np.uint64(SHIFT)) < last
    # Both ascend, and every record of the edge is one of these rows.
    first, last_row = np.searchsorted(row_N, edge), len(row_N)
    first = first[first < last_row]
    keep_N[first[np.isin(row_N[first], edge)]] = True
    return keep_N
  chosen = folder.select(corpus, keep, 'source_R')
  index_lib.release(keys_G)
  return chosen


def _split_bucket(corpus: Corpus, keys_G: np.ndarray, bucket: int,
                  wanted: float, prefix: str) -> np.ndarray:
  """Returns the records of one bucket of keys that belong to a subset."""
  index = corpus.index
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
  ends_C = np.cumsum(index.samples_R[row_C], dtype=np.int64)
  return np.sort(row_C[:int(np.searchsorted(ends_C, wanted)) + 1])


def in_order(index: index_lib.Index, code_C: np.ndarray, keys_G: np.ndarray,
              prefix: str) -> np.ndarray:
  """Returns recordings in the order of the hashes of their names."""
  key_C = np.asarray(keys_G[code_C])
  order_C = np.argsort(key_C, kind='stable')
  key_C, code_C = key_C[order_C], code_C[order_C]
  # Of two hashes with the same beginning the rest decides.
  for i in np.flatnonzero(key_C[1:] == key_C[:-1]).tolist():
    same = np.flatnonzero(key_C == key_C[i])
    code_C[same] = sorted(code_C[same].tolist(), key=lambda code: digest(
        prefix + index.sources[code]))
  return code_C


def split(corpus: Corpus, valid_fraction: float, seed: int) -> tuple[
    Corpus, Corpus]:
  """Parts the corpus by recording into (train, valid).

  Recordings are taken for valid in a seeded order, each as long as it still
  fits into `valid_fraction` of the samples; at least the shortest one goes.

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
    # The first of the shortest ones, as it always was.
    valid_G[np.argmin(np.where(length_G > 0, length_G, np.inf))] = True
  return (
      folder.select(corpus, lambda _, source_N: ~valid_G[source_N], 'source_R'),
      folder.select(corpus, lambda _, source_N: valid_G[source_N], 'source_R'))


def recording_lengths(corpus: Corpus) -> np.ndarray:
  """Returns length_G int64: samples of each recording; 0 of those not meant."""
  length_G = np.zeros(len(corpus.index.sources), np.int64)
  for _, samples_N, source_N in corpus.columns('samples_R', 'source_R'):
    np.add.at(length_G, source_N, samples_N.astype(np.int64))
  return length_G


def _fitting(index: index_lib.Index, length_G: np.ndarray, room: float,
             seed: int) -> np.ndarray:
  """Returns which recordings are taken until no more fits in the room."""
  keys_G = index_lib.keys(index, 'split', seed)
  taken_G = np.zeros(len(length_G), bool)
  shortest = int(length_G[length_G > 0].min())
  done = -1  # The last key that has been considered.
  while room >= shortest:
    code_C = _next_fitting(keys_G, length_G, done, room)
    if not len(code_C):
      break
    done = int(keys_G[code_C].max())
    code_C = in_order(index, code_C, keys_G, f'split:{seed}:')
    room = _take(code_C, length_G, room, taken_G)
  index_lib.release(keys_G)
  return taken_G


def _next_fitting(keys_G: np.ndarray, length_G: np.ndarray, done: int,
                  room: float) -> np.ndarray:
  """Returns the recordings of the next keys that would fit, at most MOST."""
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
    if len(fitting) > 2 * MOST:
      key_C = keys_G[fitting]
      limit = np.partition(key_C, MOST)[MOST]
      fitting = fitting[key_C <= limit]
  return fitting


def _take(code_C: np.ndarray, length_G: np.ndarray, room: float,
          taken_G: np.ndarray) -> float:
  """Takes recordings in this order where they fit; returns the room left.

  Exact: samples are whole numbers, far below 2^53.
  """
  length_C, at = length_G[code_C], 0
  while at < len(code_C):
    ends = np.cumsum(length_C[at:at + 4096])
    fit = int(np.searchsorted(ends, room, 'right'))
    taken_G[code_C[at:at + fit]] = True
    if fit:
      room -= float(ends[fit - 1])
    at += fit
    if fit < len(ends):
      # On to the next one that is short enough.
      later = np.flatnonzero(length_C[at:] <= room)
      if not len(later):
        break
      at += int(later[0])
  return room


def categories(corpus: Corpus, text: str, field: str) -> list[str]:
  """Returns the categories named between commas.

  Args:
    corpus: a Corpus.
    text: comma-separated categories of its manifest.
    field: whose text it is, for the message.

  Raises:
    ValueError: a category that the corpus does not have; names those it has.
  """
  names = [part.strip() for part in text.split(',') if part.strip()]
  if not names:
    return []
  have = sorted(present(corpus) - {''})
  for name in names:
    if name not in have:
      listed = ', '.join(have[:20]) + (', ...' if len(have) > 20 else '')
      raise ValueError(f'{field}: no category {name!r} in {corpus.root}: '
                       + (f'there are {listed}' if have else 'it has none'))
  return list(dict.fromkeys(names))


def present(corpus: Corpus) -> set[str]:
  """Returns the categories of the records meant."""
  count = np.zeros(len(corpus.index.categories), np.int64)
  for _, category_N in corpus.columns('category_R'):
    count += np.bincount(category_N, minlength=len(count))
  return {c for c, n in zip(corpus.index.categories, count) if n}


def has_categories(corpus: Corpus, names: Iterable[str]) -> bool:
  """Whether a record is of one of the categories."""
  return not present(corpus).isdisjoint(names)


def of_categories(corpus: Corpus, names: Iterable[str]) -> Corpus:
  """The records of the corpus that are of one of the categories.

  Raises:
    ValueError: there is none.
  """
  names, index = list(names), corpus.index
  codes = [i for i, c in enumerate(index.categories) if c in names]
  chosen = folder.select(corpus, lambda _, category_N: np.isin(
      category_N, codes), 'category_R')
  if not len(chosen):
    raise ValueError(f'{corpus.root}: no record of {", ".join(names)} here')
  return chosen


def digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
