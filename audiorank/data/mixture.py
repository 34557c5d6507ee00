"""Several corpora as one, each with a share of the training clips.

The joint corpus has the records of all, one corpus after the other. Splits,
subsets, categories and samples work as for any corpus. The weights only affect
the stream: they are the shares of the clips that come from each corpus, however
many hours it has.

Shapes: K corpora, L clips of a period, B clips.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import hashlib
import os
from typing import Any

import numpy as np

from audiorank import files
from audiorank.data import folder
from audiorank.data import index as index_lib

PERIOD = 2**16  # Clips of the stream in which each share is exact.
# The smallest share. A period has a whole number of clips of each corpus: here
# 65 or 66, so that rounding changes no share by more than 1.5 %.
LEAST = 1e-3


def parse(parts: Sequence[str]) -> list[tuple[str, float]]:
  """Returns (folder, weight) of each 'FOLDER=WEIGHT'.

  Raises:
    ValueError: a part without a folder or with a weight that is not positive.
  """
  out = []
  for part in parts:
    root, _, weight = part.rpartition('=')
    try:
      value = float(weight)
    except ValueError:
      value = float('nan')
    # NaN fails both comparisons.
    if not root or not 0 < value < float('inf'):
      raise ValueError(f'data.mixture {part!r}: expected FOLDER=WEIGHT, such '
                       'as /data/music=.5')
    out.append((root, value))
  return out


def absolute(parts: Sequence[str]) -> tuple[str, ...]:
  """Returns a mixture with absolute paths, for a run's config.json."""
  return tuple(f'{files.absolute(root, "data.mixture")}={weight:g}'
               for root, weight in parse(parts))


def load(root: str | os.PathLike, mixture: Sequence[str] = ()) -> folder.Corpus:
  """Opens a corpus that `prepare` wrote, or several as one.

  Args:
    root: the folder.
    mixture: further corpora with their weights, such as
      ('/data/music=.5', '/data/birds=2'). The weight of `root` is 1.

  Raises:
    FileNotFoundError: no folder, no complete corpus in it, or a shard missing.
    ValueError: a manifest or a format that contradicts corpus.json; a mixture
      that cannot be read.
  """
  others = parse(mixture)
  first = folder.load_one(root)
  if not others:
    return first
  return join([first, *(folder.load_one(other) for other, _ in others)],
              [1., *(weight for _, weight in others)])


def join(corpora: list[folder.Corpus],
         weights: list[float]) -> folder.Corpus:
  """Returns one Corpus of several.

  Args:
    corpora: of one sample rate.
    weights: a positive number each.

  Raises:
    ValueError: corpora of different rates, or a share below LEAST.
  """
  for corpus, weight in zip(corpora, weights, strict=True):
    if corpus.rate != corpora[0].rate:
      raise ValueError(f'{corpus.root}: {corpus.rate} Hz, but '
                       f'{corpora[0].root} has {corpora[0].rate}')
    if weight < LEAST * sum(weights):
      raise ValueError(f'{corpus.root}: a weight of {weight:g} of '
                       f'{sum(weights):g} in all: expected at least {LEAST:g} '
                       'of it')
  # Shares count, not weights: 1 and 2 are the same mixture as 2 and 4.
  total = sum(weights)
  digest = hashlib.sha256()
  for corpus, weight in zip(corpora, weights):
    digest.update(f'{corpus.sha256} {weight / total:.12g}\n'.encode())
  index = _joined([corpus.index for corpus in corpora])
  ends = np.cumsum([len(c.index.samples_R) for c in corpora])
  return folder.Corpus(
      ','.join(corpus.root for corpus in corpora), index, None, int(ends[-1]),
      sum(corpus.hours for corpus in corpora), corpora[0].rate,
      digest.hexdigest(), 'mixture', '', tuple(corpora),
      tuple(weight / total for weight in weights))


def _joined(parts: list[index_lib.Index]) -> index_lib.Index:
  """Returns the columns of several indexes, one after the other."""
  # Codes of a corpus point into its own texts. Those of shards and recordings
  # are shifted, so that equal names in two corpora stay different recordings.
  # Equal categories become one.
  column = lambda name, **how: Joined([getattr(p, name) for p in parts], **how)
  texts = lambda name: JoinedTexts([getattr(p, name) for p in parts])
  categories = list(dict.fromkeys(c for p in parts for c in p.categories))
  offsets = lambda name: np.cumsum([0] + [
      len(getattr(p, name)) for p in parts[:-1]]).tolist()
  return index_lib.Index(
      samples_R=column('samples_R'), start_R=column('start_R'),
      shard_R=column('shard_R', add=offsets('shards')),
      position_R=column('position_R'), bytes_R=None,
      source_R=column('source_R', add=offsets('sources')),
      category_R=column('category_R', codes=[
          np.array([categories.index(c) for c in p.categories], np.int64)
          for p in parts]),
      sha256_RB=column('sha256_RB'), file=texts('file'), inner=None,
      shards=texts('shards'), sources=texts('sources'),
      categories=index_lib.Listed(categories), folder=None,
      parts=tuple(parts))


class Joined:
  """Columns one after the other, indexed like one array, without a copy."""

  def __init__(self, parts: list, add: list | None = None,
               codes: list | None = None):
    """Args:
      parts: arrays.
      add: a number per part that is added to its values.
      codes: an array per part in which its values are looked up.
    """
    self.parts, self._add, self._codes = parts, add, codes
    self._begins = np.cumsum([0] + [len(p) for p in parts])

  def __len__(self) -> int:
    return int(self._begins[-1])

  def _of(self, part: int, inner: Any) -> np.ndarray:
    """Returns values of one part, translated."""
    values = self.parts[part][inner]
    if self._codes is not None:
      return self._codes[part][values]
    if self._add is not None:
      return values + self._add[part]
    return values

  def __getitem__(self, where: Any) -> Any:
    # A number, a slice or an array of numbers, as for a numpy array.
    if isinstance(where, slice):
      where = np.arange(*where.indices(len(self)))
    where = np.asarray(where)
    if where.ndim == 0:
      part = int(np.searchsorted(self._begins, where, 'right')) - 1
      return self._of(part, int(where) - int(self._begins[part]))
    part_N = np.searchsorted(self._begins, where, 'right') - 1
    out = None
    for part in range(len(self.parts)):
      here_N = part_N == part
      values = self._of(part, where[here_N] - int(self._begins[part]))
      if out is None:
        out = np.empty((len(where), *values.shape[1:]), values.dtype)
      out[here_N] = values
    return out


class JoinedTexts(Sequence):
  """Texts of several corpora, one corpus after the other."""

  def __init__(self, parts: list):
    self._parts = parts
    self._begins = np.cumsum([0] + [len(p) for p in parts])

  def __len__(self) -> int:
    return int(self._begins[-1])

  def __getitem__(self, where: Any) -> Any:
    part = int(np.searchsorted(self._begins, where, 'right')) - 1
    return self._parts[part][int(where) - int(self._begins[part])]

  def blocks(self) -> Iterator[list[bytes]]:
    """Yields the encoded texts, block by block."""
    for part in self._parts:
      yield from part.blocks()


def parts(corpus: folder.Corpus) -> list[folder.Corpus]:
  """Returns the selected records of each corpus of a mixture, as selections."""
  out, begin = [], 0
  for part in corpus.mixed:
    end = begin + len(part.index.samples_R)
    out.append(folder.select(
        corpus, lambda row_N, a=begin, b=end: (row_N >= a) & (row_N < b)))
    begin = end
  return out


def places(weights: tuple[float, ...], seed: int) -> Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Returns a function clip_B -> (number of the corpus_B, clip of it_B).

  Every PERIOD clips of the endless stream contain the exact share of each
  corpus, in their own random order. So the function depends on no earlier clip.

  Args:
    weights: of K corpora, which sum to 1; 0 leaves one out.
    seed: of the order.
  """
  # Whole numbers of clips that sum to PERIOD: rounded down, and the largest
  # remainders get one more.
  exact_K = np.array(weights) * PERIOD
  count_K = np.floor(exact_K).astype(np.int64)
  missing = PERIOD - int(count_K.sum())
  # count - exact is the remainder with a minus: ascending, the largest comes
  # first.
  count_K[np.argsort(count_K - exact_K, kind='stable')[:missing]] += 1
  corpus_L = np.repeat(np.arange(len(weights)), count_K)

  @functools.lru_cache(maxsize=2)
  def period(number: int) -> tuple[np.ndarray, np.ndarray]:
    # A key for every period, so that none depends on those before.
    key = hashlib.sha256(f'mixture:{seed}:{number}'.encode()).digest()[:16]
    bits_L = np.random.Philox(key=np.frombuffer(key, '<u8')).random_raw(PERIOD)
    # A shuffle of the exact counts, so no share drifts within a period.
    which_L = corpus_L[np.argsort(bits_L, kind='stable')]
    # How many clips of the same corpus come before, within the period.
    rank_L = np.empty(PERIOD, np.int64)
    for k, count in enumerate(count_K.tolist()):
      rank_L[which_L == k] = np.arange(count)
    return which_L, rank_L

  def at(clip_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    which_B, index_B = np.empty((2, len(clip_B)), np.int64)
    for number in range(clip_B[0] // PERIOD, clip_B[-1] // PERIOD + 1):
      here_B = clip_B // PERIOD == number
      which_L, rank_L = period(int(number))
      inner_B = clip_B[here_B] % PERIOD
      which_B[here_B] = which_L[inner_B]
      # Earlier periods took exactly count_K clips each.
      index_B[here_B] = rank_L[inner_B] + number * count_K[which_L[inner_B]]
    return which_B, index_B
  return at
