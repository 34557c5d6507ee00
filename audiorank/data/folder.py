"""An open corpus: its records, selections of them, and how to read them.

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
import queue
import threading
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from audiorank import files
from audiorank.data import index as index_lib
from audiorank.data import mp3
from audiorank.data import stored

if TYPE_CHECKING:
  import pandas as pd

# 2 has other stores than int16. 3 has chunks; see stored.piece.
FORMATS = (1, 2, 3)
# Most files open at a time; the usual limit of a process is 1024.
OPEN = 512
# Rows of a block in which single records are looked up.
FINE = 1024
# Seconds after which a read from a bucket is given up. ArrayRecord's own client
# would try for a quarter of an hour.
PATIENCE = 60.
# A manifest beside an index is checked against its checksum up to this size.
# Reading a larger one at every start would take seconds to minutes.
CHECKED = 2**26

Reader = Callable[[int, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """A corpus, or a selection of its records, in the corpus's order."""
  root: str  # The folder.
  index: index_lib.Index  # Of all its records.
  # Which of them are selected, one bit each (np.packbits, little); None: all.
  bits: np.ndarray | None
  count: int  # Number of selected records.
  hours: float  # Their length.
  rate: int  # Samples per second.
  sha256: str  # Of the manifest and the selection.
  store: str  # How records are stored; see prepare.shards.STORES.
  audio: str  # Folder of sound files that are read in place, or ''.
  mixed: tuple['Corpus', ...] = ()  # The corpora of a mixture,
  weights: tuple[float, ...] = ()  # and their shares of the clips.
  chunk: int = 0  # Samples of a chunk of a record; see stored.piece.

  def __len__(self) -> int:
    return self.count

  @functools.cached_property
  def records(self) -> 'pd.DataFrame':
    """A DataFrame with one row per selected record.

    Columns: record, shard, position, source, file, start, samples, sha256,
    category. With millions of records use `index` instead: this is a copy.
    """
    import pandas as pd
    index, row_N = self.index, self.rows()
    if len(set(index.shards)) == len(index.shards):
      shards = pd.Categorical.from_codes(
          index.shard_R[row_N], pd.Index(list(index.shards), dtype=str))
    else:
      # Corpora of a mixture may have shards of the same name, which a
      # Categorical does not allow.
      shards = [index.shards[i] for i in index.shard_R[row_N]]
    return pd.DataFrame({
        'record': row_N, 'shard': shards,
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
    """Returns which of the corpus's records begin to end - 1 are selected.

    Args:
      begin: a multiple of 8.
      end: of the range.
    """
    if self.bits is None:
      return np.ones(end - begin, bool)
    # Bits of whole bytes; the last one may have bits beyond the end.
    packed = self.bits[begin // 8:-(-end // 8)]
    return np.unpackbits(packed, count=end - begin,
                         bitorder='little').view(bool)

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields the numbers of the selected records, row_N, block by block."""
    total, rows = len(self.index.samples_R), index_lib.ROWS
    for begin in range(0, total, rows):
      row_N = np.flatnonzero(self.mask(begin, min(begin + rows, total)))
      yield row_N + begin

  def columns(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields (row_N, column_N, ...) of the selected records, block by block.

    Only one block of a column is in memory at a time.

    Args:
      *names: of columns, fields of Index.
    """
    arrays = [getattr(self.index, name) for name in names]
    for row_N in self.blocks():
      yield row_N, *(array[row_N] for array in arrays)
      index_lib.release(*arrays)

  def rows(self) -> np.ndarray:
    """Returns the numbers of all selected records, row_N int64."""
    return np.concatenate([np.zeros(0, np.int64), *self.blocks()])

  def lengths(self) -> np.ndarray:
    """Returns the lengths of all selected records in samples, int64."""
    return np.concatenate([np.zeros(0, np.int64), *(
        samples_N for _, samples_N in self.columns('samples_R'))])


def load_one(root: str | os.PathLike) -> Corpus:
  """Opens the folder that `prepare` wrote.

  Args:
    root: the folder.

  Raises:
    FileNotFoundError: no folder, no complete corpus in it, or a shard missing.
    ValueError: a manifest or a format that contradicts corpus.json.
  """
  root = files.path(root)
  about = _described(root)
  index = index_lib.load(_index_folder(root, about['sha256']),
                         about['sha256'])
  if index is None and about['format'] > 1:
    raise ValueError(f'{root / "index"}: no index of this corpus; run prepare '
                     'again')
  # Format 1 had no index: its manifest is read instead.
  manifest = root / 'manifest.csv'
  # What the index was copied with is checked already.
  if index is None or not files.is_on_bucket(root) and (
      manifest.stat().st_size <= CHECKED):
    _check_manifest(manifest, about['sha256'])
  if index is None:
    index = _of_manifest(manifest)
  # A missing shard is reported now, not in the middle of training.
  store = about.get('store', 'int16')  # The only one of format 1.
  if store != 'none':
    there = files.names(root / 'shards')
    for shard in index.shards:
      if shard not in there:
        raise FileNotFoundError(f'{root / "shards" / shard}: no such shard, '
                                'though the manifest names it')
  audio = ''
  if store == 'none':
    audio = _audio(root, about, index)
  whole = Corpus(os.fspath(root), index, None, len(index.samples_R), 0.,
                 about['rate'], about['sha256'], store, audio,
                 chunk=about.get('chunk', 0))
  return dataclasses.replace(whole, hours=hours(whole))


def _index_folder(root: pathlib.Path, sha256: str) -> pathlib.Path:
  """Returns the folder of a corpus's index on a disk: it is mapped from there.

  That of a corpus on a bucket is copied into the user's cache.
  """
  folder = root / 'index'
  if not files.is_on_bucket(root):
    return folder
  copy = files.local_cache('index') / sha256[:16]
  files.fetch(folder, copy)
  return copy


def _described(root: pathlib.Path) -> dict:
  """Returns the tree of corpus.json, checked."""
  path = root / 'corpus.json'
  if not root.exists():
    raise FileNotFoundError(f'{root}: no such folder')
  if not path.exists():
    # `prepare` writes the plan first and corpus.json last.
    reason = f'{root} was not made by prepare'
    if (root / 'plan.json').exists():
      reason = 'the corpus is not complete, run prepare again'
    raise FileNotFoundError(f'{path}: no such file; {reason}')
  try:
    about = json.loads(path.read_text(encoding='utf-8'))
    form, rate, sha256 = about['format'], about['rate'], about['sha256']
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(f'{path}: not a corpus description: '
                     f'{type(error).__name__} {error}') from error
  if form not in FORMATS:
    raise ValueError(f'{path}: format {form!r}, expected 1, 2 or 3')
  if not isinstance(rate, int) or not isinstance(sha256, str) or rate < 1:
    raise ValueError(f'{path}: rate {rate!r}, sha256 {sha256!r}: expected a '
                     'positive number and a text')
  return about


def _audio(root: pathlib.Path, about: dict, index: index_lib.Index) -> str:
  """Returns the folder of the sound files that are read in place.

  Raises:
    FileNotFoundError: its first file is missing, so the folder was moved.
  """
  audio = str(about.get('audio', ''))
  if not files.is_on_bucket(audio):
    audio = files.absolute(root / audio)
  first = _path(audio, index.shards[0])
  if not files.path(first).exists():
    raise FileNotFoundError(
        f'{first}: no such file, though {root} was made of it; put the '
        f"folder where its files lie as 'audio' into {root / 'corpus.json'}")
  return audio


def _check_manifest(path: pathlib.Path, expected: str) -> None:
  """Raises ValueError unless a manifest has the checksum of corpus.json."""
  digest = files.sha256(path)
  if digest != expected:
    raise ValueError(f'{path}: sha256 {digest[:12]}..., '
                     f'corpus.json says {expected[:12]}...')


def _of_manifest(path: pathlib.Path) -> index_lib.Index:
  """Returns the index of a corpus that was written without one."""
  import pandas as pd
  # File names may contain a carriage return, which does not end a line here.
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
  """Returns the length of the selected records in hours."""
  samples = sum(int(samples_N.sum(dtype=np.int64))
                for _, samples_N in corpus.columns('samples_R'))
  return samples / corpus.rate / 3600


def select(corpus: Corpus, mask_of: Callable[..., np.ndarray],
           *names: str) -> Corpus:
  """Returns a selection of a corpus.

  Args:
    corpus: a Corpus, or itself a selection.
    mask_of: called block by block with the ascending numbers of selected
      records, row_N, and with the columns; returns which of them to keep.
    *names: of columns, fields of Index.
  """
  # A bit per record: a selection of 33 million takes 4 MB.
  total = len(corpus.index.samples_R)
  bits, count, samples = np.zeros(-(-total // 8), np.uint8), 0, 0
  # The checksum of a selection: the corpus's, and which records.
  digest = hashlib.sha256(corpus.sha256.encode())
  for block, (row_N, samples_N, *more) in enumerate(
      corpus.columns('samples_R', *names)):
    keep_N = mask_of(row_N, *more)
    chosen_N = row_N[keep_N]
    begin = block * index_lib.ROWS
    mask = np.zeros(min(index_lib.ROWS, total - begin), bool)
    mask[chosen_N - begin] = True
    # Blocks begin at multiples of 8 records, so bytes never straddle two.
    packed = np.packbits(mask, bitorder='little')
    bits[begin // 8:begin // 8 + len(packed)] = packed
    digest.update(chosen_N.astype('<i8').tobytes())
    count += len(chosen_N)
    samples += int(samples_N[keep_N].sum(dtype=np.int64))
  return dataclasses.replace(
      corpus, bits=bits, count=count, hours=samples / corpus.rate / 3600,
      sha256=digest.hexdigest())


def verify(corpus: Corpus) -> list[str]:
  """Reads every record; returns the names of those that were changed.

  A record that cannot be read counts as changed.
  """
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
  """Returns a function (record, start, samples) -> wave_S int16.

  `record` is a row of corpus.records. Several threads may call the function.
  It raises ValueError for a damaged shard.

  Args:
    corpus: a Corpus.
    resident: read all samples now and keep them in memory.
  """
  read, row_N = row_reader(corpus), corpus.rows()
  if not resident:
    return lambda record, start, samples: read(row_N[record], start, samples)
  # One array for all samples, filled by many threads: reading waits for disks.
  length_N = corpus.lengths()
  begin_N = np.cumsum(length_N) - length_N
  all_S = np.empty(length_N.sum(), np.int16)

  def fetch(record: int) -> None:
    all_S[begin_N[record]:][:length_N[record]] = read(
        row_N[record], 0, length_N[record])
  with concurrent.futures.ThreadPoolExecutor() as pool:
    # The loop raises what a thread has raised.
    for _ in pool.map(fetch, range(len(length_N))):
      pass

  def from_memory(record: int, start: int, samples: int) -> np.ndarray:
    end = min(start + samples, length_N[record])
    return all_S[begin_N[record] + start:begin_N[record] + end]
  return from_memory


def row_reader(corpus: Corpus) -> Reader:
  """Returns `reader` for the numbers of records in the whole corpus."""
  if corpus.mixed:
    return _from_mixed(corpus)
  if corpus.store == 'int16':
    return _from_array_records(corpus)
  return _from_sound_files(corpus)


def _from_mixed(corpus: Corpus) -> Reader:
  """Reads from the corpora of a mixture, whose records follow each other."""
  readers = [row_reader(part) for part in corpus.mixed]
  ends = np.cumsum([0] + [len(part.index.samples_R) for part in corpus.mixed])

  def read(row: int, start: int, samples: int) -> np.ndarray:
    part = int(np.searchsorted(ends, row, 'right')) - 1
    return readers[part](int(row) - int(ends[part]), start, samples)
  return read


def _from_array_records(corpus: Corpus) -> Reader:
  """Reads int16 samples from ArrayRecord shards."""
  from array_record.python import array_record_module
  index, folder = corpus.index, files.path(corpus.root) / 'shards'
  lock = threading.Lock()
  remote = files.is_on_bucket(folder)
  # Set when the store has not answered. Batches that are read ahead then end at
  # once, and with them the process.
  lost = threading.Event()

  @functools.lru_cache(OPEN)
  def opened(code: int) -> Any:
    # No read-ahead: the next record is anywhere.
    return array_record_module.ArrayRecordReader(
        os.fspath(folder / index.shards[code]), 'readahead_buffer_size:0')

  def record(row: int) -> bytes:
    # A cache is not enough: two threads could open one shard twice.
    with lock:
      shard = opened(int(index.shard_R[row]))
    position = int(index.position_R[row])
    # The reader takes a missing file for an empty one.
    if position >= shard.num_records():
      raise ValueError(f'{shard.num_records()} records in the shard')
    [data] = shard.read([position])
    return data

  def read(row: int, start: int, samples: int) -> np.ndarray:
    length = int(index.samples_R[row])
    try:
      if not remote:
        data = record(row)
      elif lost.is_set():
        raise TimeoutError
      else:
        data = _in_time(lambda: record(row), PATIENCE)
    except TimeoutError:
      lost.set()
      raise files.StoreError(f'{where(corpus, row)}: no answer from the store '
                             f'in {PATIENCE:.0f} s') from None
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(f'{where(corpus, row)}: {error}') from error
    if len(data) != 2 * length:
      raise ValueError(f'{where(corpus, row)}: {len(data)} bytes, expected '
                       f'{2 * length}')
    return np.frombuffer(data, '<i2')[start:start + samples]
  return read


def _in_time(function: Callable[[], Any], seconds: float) -> Any:
  """Returns function(), or raises TimeoutError if it takes longer."""
  results: queue.SimpleQueue = queue.SimpleQueue()

  def work() -> None:
    try:
      results.put((function(), None))
    except Exception as error:  # Raised by the caller below.
      results.put((None, error))

  # A daemon: a read that hangs must not keep the process from ending.
  threading.Thread(target=work, daemon=True).start()
  try:
    value, error = results.get(timeout=seconds)
  except queue.Empty:
    raise TimeoutError from None
  if error is not None:
    raise error
  return value


def _from_sound_files(corpus: Corpus) -> Reader:
  """Reads FLAC or Opus records from tars, or sound files in place."""
  index, in_place = corpus.index, corpus.store == 'none'
  inner_R, bytes_R = index.inner, index.bytes_R
  # Only ArrayRecord files have no places of sound files.
  assert inner_R is not None and bytes_R is not None
  folder = os.path.join(corpus.root, 'shards')
  if in_place:
    folder = corpus.audio
  opened = functools.lru_cache(OPEN)(
      lambda code: stored.Handle(_path(folder, index.shards[code])))

  def read(row: int, start: int, samples: int) -> np.ndarray:
    length, inner = int(index.samples_R[row]), inner_R[row]
    # A record in a tar is a sound file of its own. In place, it is a part of a
    # recording.
    begin = 0
    if in_place:
      begin = int(index.start_R[row])
    try:
      address = stored.Address(
          index.file[row], int(index.position_R[row]),
          int(bytes_R[row]), inner.removeprefix(stored.MEND))
      source = stored.opened(opened(int(index.shard_R[row])), address, {})
      if inner.startswith(stored.MEND):
        source = stored.mended(source)
      chunks = mp3.parse(inner)
      if chunks is None:  # Else only the bytes of a chunk are read.
        source = stored.buffered(source, samples)
      return stored.piece(source, begin, length, start, samples, corpus.rate,
                          corpus.chunk, chunks)
    except files.StoreError as error:
      raise files.StoreError(f'{where(corpus, row)}: {error}') from error
    except (ValueError, OSError) as error:
      raise ValueError(f'{where(corpus, row)}: {error}') from error
  return read


def _path(folder: str, shard: str) -> str:
  """Returns the path of a shard of a folder."""
  if not shard:  # The corpus is one archive or file, and `folder` is that.
    return folder
  return os.path.join(folder, shard)


def where(corpus: Corpus, row: int) -> str:
  """Returns how messages name a record, by its number in the whole corpus."""
  index, row = corpus.index, int(row)
  shard = index.shards[int(index.shard_R[row])]
  folder = corpus.audio or f'{corpus.root}/shards'
  return (f'{folder}/{shard} record {int(index.position_R[row])} '
          f'({index.file[row]})')
