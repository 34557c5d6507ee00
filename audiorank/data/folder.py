"""A prepared corpus, opened: its records and how to read them.

Shapes: R records of the corpus, N of a selection, S samples.
"""

from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import threading
from typing import TYPE_CHECKING

import numpy as np

from audiorank import files
from audiorank.data import index as index_lib
from audiorank.data import stored

if TYPE_CHECKING:
  import pandas as pd

FORMATS = (1, 2)
# Files held open: the usual limit of open files is 1024.
OPEN = 512
# Rows of a block in which single records are looked up.
FINE = 1024
# A manifest beside an index is compared with its checksum up to this size.
CHECKED = 2**26

Reader = Callable[[int, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """A corpus, or a selection of its records, in the corpus's order.

  root: the folder.
  index: of all its records.
  bits: which of them are meant, a bit each (np.packbits, little); None: all.
  count: how many.
  hours: how long.
  rate: samples per second.
  sha256: of the manifest and the selection.
  store: how records are stored, see prepare.shards.STORES.
  audio: where files lie that are read in place, or ''.
  mixed, weights: the corpora of a mixture, and their shares of the clips.
  """
  root: str
  index: index_lib.Index
  bits: np.ndarray | None
  count: int
  hours: float
  rate: int
  sha256: str
  store: str
  audio: str
  mixed: tuple['Corpus', ...] = ()
  weights: tuple[float, ...] = ()

  def __len__(self) -> int:
    return self.count

  @functools.cached_property
  def records(self) -> 'pd.DataFrame':
    """A row per record: record, shard, position, source, file, start, samples,
    sha256, category. It is built here: of millions of records use the index.
    """
    import pandas as pd
    index, row_N = self.index, self.rows()
    texts = lambda column, code_N: pd.Categorical.from_codes(
        code_N, pd.Index(list(column), dtype=str))
    return pd.DataFrame({
        'record': row_N,
        'shard': (texts(index.shards, index.shard_R[row_N])
                  if len(set(index.shards)) == len(index.shards) else
                  [index.shards[i] for i in index.shard_R[row_N]]),
        'position': np.asarray(index.position_R[row_N], np.int64),
        'source': pd.array([index.sources[i] for i in index.source_R[row_N]],
                           dtype=str),
        'file': pd.array([index.file[i] for i in row_N], dtype=str),
        'start': np.asarray(index.start_R[row_N], np.int64),
        'samples': np.asarray(index.samples_R[row_N], np.int64),
        'sha256': pd.array([bytes(index.sha256_RB[i]).hex() for i in row_N],
                           dtype=str),
        'category': pd.array([index.categories[i] for i in
                              index.category_R[row_N]], dtype=str)})

  def mask(self, begin: int, end: int) -> np.ndarray:
    """Returns which of the corpus's records begin to end - 1 are meant.

    `begin` is a multiple of 8.
    """
    if self.bits is None:
      return np.ones(end - begin, bool)
    packed = self.bits[begin // 8:-(-end // 8)]
    return np.unpackbits(packed, count=end - begin,
                         bitorder='little').view(bool)

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields the numbers of the records meant, row_N, some at a time."""
    total, rows = len(self.index.samples_R), index_lib.ROWS
    for begin in range(0, total, rows):
      row_N = np.flatnonzero(self.mask(begin, min(begin + rows, total)))
      yield row_N + begin

  def columns(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields (row_N, a column of the index_N ...) of the records meant, some at
    a time: no more of a column is in memory.

    Args:
      *names: of fields of Index.
    """
    arrays = [getattr(self.index, name) for name in names]
    for row_N in self.blocks():
      yield row_N, *(array[row_N] for array in arrays)
      index_lib.release(*arrays)

  def rows(self) -> np.ndarray:
    """Returns the numbers of all records meant, row_N int64."""
    return np.concatenate([np.zeros(0, np.int64), *self.blocks()])

  def lengths(self) -> np.ndarray:
    """Returns the samples of all records meant, length_N int64."""
    return np.concatenate([np.zeros(0, np.int64), *(
        samples_N for _, samples_N in self.columns('samples_R'))])


def load_one(root: str | os.PathLike) -> Corpus:
  """Opens the folder that `prepare` wrote.

  Raises:
    FileNotFoundError: no folder, no complete corpus in it, or a shard missing.
    ValueError: a manifest or a format that is not what corpus.json says.
  """
  root = files.path(root)
  about = _described(root)
  index = index_lib.load(root / 'index', about['sha256'])
  if index is None and about['format'] > 1:
    raise ValueError(f'{root / "index"}: no index of this corpus; run prepare '
                     'again')
  manifest = root / 'manifest.csv'
  if index is None or manifest.stat().st_size <= CHECKED:
    _check_manifest(manifest, about['sha256'])
  if index is None:
    index = _of_manifest(manifest)
  store = about.get('store', 'int16')
  if store != 'none':
    for shard in index.shards:
      if not (root / 'shards' / shard).exists():
        raise FileNotFoundError(f'{root / "shards" / shard}: no such shard, '
                                'though the manifest names it')
  audio = _audio(root, about, index) if store == 'none' else ''
  whole = Corpus(os.fspath(root), index, None, len(index.samples_R), 0.,
                 about['rate'], about['sha256'], store, audio)
  return dataclasses.replace(whole, hours=hours(whole))


def _described(root: pathlib.Path) -> dict:
  """Returns corpus.json, checked."""
  path = root / 'corpus.json'
  if not path.exists():
    if not root.exists():
      raise FileNotFoundError(f'{root}: no such folder')
    raise FileNotFoundError(
        f'{path}: no such file; ' + (
            'the corpus is not complete, run prepare again'
            if (root / 'plan.json').exists() else
            f'{root} was not made by prepare'))
  try:
    about = json.loads(path.read_text(encoding='utf-8'))
    form, rate, sha256 = about['format'], about['rate'], about['sha256']
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(f'{path}: not a corpus description: '
                     f'{type(error).__name__} {error}') from error
  if form not in FORMATS:
    raise ValueError(f'{path}: format {form!r}, expected 1 or 2')
  if not isinstance(rate, int) or not isinstance(sha256, str) or rate < 1:
    raise ValueError(f'{path}: rate {rate!r}, sha256 {sha256!r}: expected a '
                     'positive number and a text')
  return about


def _audio(root: pathlib.Path, about: dict, index: index_lib.Index) -> str:
  """Returns the folder that records are read from in place."""
  audio = os.path.normpath(root / str(about.get('audio', '')))
  first = _path(audio, index.shards[0])
  if not os.path.exists(first):
    raise FileNotFoundError(
        f'{first}: no such file, though {root} was made of it; put the '
        f"folder where its files lie as 'audio' into {root / 'corpus.json'}")
  return audio


def _check_manifest(path: pathlib.Path, expected: str) -> None:
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while data := file.read(2**20):
      digest.update(data)
  if digest.hexdigest() != expected:
    raise ValueError(f'{path}: sha256 {digest.hexdigest()[:12]}..., '
                     f'corpus.json says {expected[:12]}...')


def _of_manifest(path: pathlib.Path) -> index_lib.Index:
  """Returns the index of a corpus written before there was one on disk."""
  import pandas as pd
  # Names may hold a carriage return, which is not the end of a line.
  table = pd.read_csv(io.BytesIO(path.read_bytes()), dtype={
      'record': np.int64, 'shard': 'category', 'position': np.int64,
      'source': str, 'file': str, 'start': np.int64, 'samples': np.int64,
      'sha256': str, 'category': str}, keep_default_na=False,
                      lineterminator='\n')
  code_R, sources = pd.factorize(table['source'], sort=True)
  kind_R, kinds = pd.factorize(table['category'])
  hashes = bytes.fromhex(''.join(table['sha256']))
  return index_lib.Index(
      table['samples'].to_numpy(), table['start'].to_numpy(),
      table['shard'].cat.codes.to_numpy(), table['position'].to_numpy(), None,
      code_R, kind_R, np.frombuffer(hashes, np.uint8).reshape(-1, 32),
      index_lib.Listed(table['file']), None,
      index_lib.Listed(table['shard'].cat.categories),
      index_lib.Listed(sources), index_lib.Listed(kinds), None)


def hours(corpus: Corpus) -> float:
  """Returns how long the records meant are."""
  samples = sum(int(samples_N.sum(dtype=np.int64))
                for _, samples_N in corpus.columns('samples_R'))
  return samples / corpus.rate / 3600


def select(corpus: Corpus, mask_of: Callable[..., np.ndarray],
           *names: str) -> Corpus:
  """Returns a selection of a corpus.

  Args:
    corpus: a Corpus.
    mask_of: called with row_N, numbers of records meant, in ascending blocks,
      and the columns asked for; returns which of them to keep.
    *names: of columns, fields of Index.
  """
  total = len(corpus.index.samples_R)
  bits, count, samples = np.zeros(-(-total // 8), np.uint8), 0, 0
  digest = hashlib.sha256(corpus.sha256.encode())
  for block, (row_N, samples_N, *more) in enumerate(
      corpus.columns('samples_R', *names)):
    keep_N = mask_of(row_N, *more)
    kept_N = row_N[keep_N]
    begin = block * index_lib.ROWS
    mask = np.zeros(min(index_lib.ROWS, total - begin), bool)
    mask[kept_N - begin] = True
    packed = np.packbits(mask, bitorder='little')
    bits[begin // 8:begin // 8 + len(packed)] = packed
    digest.update(kept_N.astype('<i8').tobytes())
    count += len(kept_N)
    samples += int(samples_N[keep_N].sum(dtype=np.int64))
  return dataclasses.replace(
      corpus, bits=bits, count=count, hours=samples / corpus.rate / 3600,
      sha256=digest.hexdigest())


def verify(corpus: Corpus) -> list[str]:
  """Reads every record; returns the names of those not as first written."""
  read, index, bad = row_reader(corpus), corpus.index, []
  for row_N in corpus.blocks():
    for row in row_N.tolist():
      try:
        wave_S = read(row, 0, int(index.samples_R[row]))
      except ValueError:
        bad.append(index.file[row])
        continue
      digest = hashlib.sha256(wave_S.astype('<i2').tobytes()).digest()
      if digest != bytes(index.sha256_RB[row]):
        bad.append(index.file[row])
  return bad


def reader(corpus: Corpus, resident: bool) -> Reader:
  """A function (record, start, samples) -> wave_S of int16.

  `record` is a row of corpus.records. It may be called from several threads.
  A damaged shard raises ValueError.

  Args:
    corpus: a Corpus.
    resident: keep all samples in memory.
  """
  read, row_N = row_reader(corpus), corpus.rows()
  if not resident:
    return lambda record, start, samples: read(row_N[record], start, samples)
  length_N = corpus.lengths()
  begin_N = np.cumsum(length_N) - length_N
  all_S = np.empty(length_N.sum(), np.int16)

  def fetch(record):
    all_S[begin_N[record]:][:length_N[record]] = read(
        row_N[record], 0, length_N[record])
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for _ in pool.map(fetch, range(len(length_N))):
      pass

  def from_memory(record, start, samples):
    end = min(start + samples, length_N[record])
    return all_S[begin_N[record] + start:begin_N[record] + end]
  return from_memory


def row_reader(corpus: Corpus) -> Reader:
  """As `reader`, by the number of a record in the whole corpus."""
  if corpus.mixed:
    return _from_mixed(corpus)
  if corpus.store == 'int16':
    return _from_array_records(corpus)
  return _from_sound_files(corpus)


def _from_mixed(corpus: Corpus) -> Reader:
  readers = [row_reader(part) for part in corpus.mixed]
  ends = np.cumsum([len(part.index.samples_R) for part in corpus.mixed])

  def read(row, start, samples):
    part = int(np.searchsorted(ends, row, 'right'))
    return readers[part](int(row) - int(ends[part - 1] if part else 0), start,
                         samples)
  return read


def _from_array_records(corpus: Corpus) -> Reader:
  from array_record.python import array_record_module
  index, folder = corpus.index, pathlib.Path(corpus.root) / 'shards'
  lock = threading.Lock()

  @functools.lru_cache(OPEN)
  def opened(code):
    return array_record_module.ArrayRecordReader(
        os.fspath(folder / index.shards[code]), 'readahead_buffer_size:0')

  def read(row, start, samples):
    length = int(index.samples_R[row])
    try:
      with lock:
        shard = opened(int(index.shard_R[row]))
      [data] = shard.read([int(index.position_R[row])])
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(f'{where(corpus, row)}: {error}') from error
    if len(data) != 2 * length:
      raise ValueError(f'{where(corpus, row)}: {len(data)} bytes, expected '
                       f'{2 * length}')
    return np.frombuffer(data, '<i2')[start:start + samples]
  return read


def _from_sound_files(corpus: Corpus) -> Reader:
  """Reads FLAC or Opus records of tars, and files where they lie."""
  index = corpus.index
  folder = (corpus.audio if corpus.store == 'none' else
            os.path.join(corpus.root, 'shards'))
  opened = functools.lru_cache(OPEN)(
      lambda code: stored.Handle(_path(folder, index.shards[code])))

  def read(row, start, samples):
    length, inner = int(index.samples_R[row]), index.inner[row]
    begin = int(index.start_R[row]) if corpus.store == 'none' else 0
    try:
      address = stored.Address(
          index.file[row], int(index.position_R[row]),
          int(index.bytes_R[row]), inner.removeprefix(stored.MEND))
      source = stored.opened(opened(int(index.shard_R[row])), address, {})
      if inner.startswith(stored.MEND):
        source = stored.mended(source)
      return stored.piece(stored.buffered(source, samples), begin, length,
                          start, samples, corpus.rate)
    except (ValueError, OSError) as error:
      raise ValueError(f'{where(corpus, row)}: {error}') from error
  return read


def _path(folder: str, shard: str) -> str:
  # Of a corpus of one archive or file, '' is that file itself.
  return os.path.join(folder, shard) if shard else folder


def where(corpus: Corpus, row: int) -> str:
  """Returns what to call a record in a message."""
  index, row = corpus.index, int(row)
  shard = index.shards[int(index.shard_R[row])]
  folder = corpus.audio or f'{corpus.root}/shards'
  return (f'{folder}/{shard} record {int(index.position_R[row])} '
          f'({index.file[row]})')
