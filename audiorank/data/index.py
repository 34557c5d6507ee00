"""The table of a corpus's records: columns on disk, mapped into memory.

A corpus of the paper's size has 33 million records. Because the columns are
mapped, opening one costs nothing, the processes of a machine share what they
read, and a pass over a column needs no more memory than one block of it. For a
corpus without such a folder (format 1), data/folder.py builds the same Index
from manifest.csv.

  index.json       counts, types, the checksum of the manifest
  samples.bin ...  one little-endian column each
  file.bin, file.ends.bin ...   texts, joined, and the end of each
  keys/            hashes of the recordings' names, by purpose and seed

Shapes: R records, G recordings (sources).
"""

import array
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import json
import mmap
import os
import pathlib
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import numpy as np

from audiorank import files

VERSION = 1
COLUMNS = {'samples': '<i4', 'start': '<i8', 'shard': '<i4', 'position': '<i8',
           'source': '<i4', 'category': '<i4'}
TEXTS = ('file', 'inner', 'shards', 'sources', 'categories')
ROWS = 2**20  # Rows of a block in a pass over a column.
# From so many recordings on, hashes of their names are stored on disk:
# computing them takes about a microsecond each.
KEPT_KEYS = 200_000
# What orders are used for; see `keys`.
PURPOSES = ('split', 'subset', 'sample')


# A column: an array, maybe mapped from disk, or a mixture.Joined.
Column: TypeAlias = Any


class Texts(Sequence):
  """A column of texts on disk, decoded one by one."""

  def __init__(self, blob: np.ndarray, ends: np.ndarray):
    self._blob, self._ends = blob, ends

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index: Any) -> Any:
    return bytes(
        self._blob[self._begin(index):int(self._ends[index])]).decode()

  def _begin(self, index: int) -> int:
    """Returns where the bytes of a text begin."""
    if not index:
      return 0
    return int(self._ends[index - 1])

  def blocks(self) -> Iterator[list[bytes]]:
    """Yields the encoded texts, block by block."""
    for begin in range(0, len(self), ROWS):
      ends = self._ends[begin:begin + ROWS].tolist()
      first = self._begin(begin)
      blob = bytes(self._blob[first:ends[-1]])
      yield [blob[a - first:b - first] for a, b in zip([first, *ends], ends)]


class Listed(list):
  """Texts in memory, with the interface of Texts."""

  def blocks(self) -> Iterator[list[bytes]]:
    """Yields the encoded texts, block by block."""
    for begin in range(0, len(self), ROWS):
      yield [text.encode() for text in self[begin:begin + ROWS]]


class Index(NamedTuple):
  """The columns of a corpus."""
  samples_R: Column  # Length of a record.
  start_R: Column  # Its first sample in its sound file.
  shard_R: Column  # Which of `shards` contains it,
  # and its place there: its number in an ArrayRecord file, else its first byte.
  position_R: Column
  bytes_R: Column | None  # Its bytes there; None in ArrayRecord files.
  source_R: Column  # Its recording, a row of `sources`.
  category_R: Column  # Its category, a row of `categories`.
  sha256_RB: Column  # Of its samples, 32 bytes.
  file: Sequence[str]  # Name of its sound file.
  inner: Sequence[str] | None  # See stored.Address; None in ArrayRecord files.
  shards: Sequence[str]
  sources: Sequence[str]  # Sorted.
  categories: Sequence[str]
  folder: pathlib.Path | None  # Of the index on disk.
  parts: tuple = ()  # The indexes that a mixture is joined from.


def load(folder: pathlib.Path, sha256: str) -> Index | None:
  """Returns the index in a folder, or None if it has none of this corpus.

  Args:
    folder: of the index.
    sha256: checksum of the corpus's manifest.

  Raises:
    ValueError: it is of this corpus, but damaged.
  """
  path = folder / 'index.json'
  try:
    about = json.loads(path.read_text(encoding='utf-8'))
    if about['version'] != VERSION or about['sha256'] != sha256:
      return None
    sizes, rows = dict(about['sizes']), int(about['records'])
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError, AttributeError,
          RecursionError) as error:
    raise ValueError(f'{path}: not an index ({type(error).__name__} {error}); '
                     'remove the folder, prepare writes it again') from error
  # A copy that broke off is noticed here; checksums of whole columns would take
  # too long.
  for name, size in sizes.items():
    file = folder / name
    if not file.is_file() or file.stat().st_size != size:
      raise ValueError(f'{file}: not the {size} bytes that {path.name} says; '
                       'remove the folder, prepare writes it again')
  column = lambda name, kind: _mapped(folder / f'{name}.bin', kind)
  texts = lambda name: Texts(column(name, 'u1'), column(f'{name}.ends', '<i8'))
  lengths, inner = None, None
  if 'inner.bin' in sizes:
    lengths, inner = column('bytes', '<i8'), texts('inner')
  columns: dict[str, Any] = {
      f'{n}_R': column(n, kind) for n, kind in COLUMNS.items()}
  index = Index(
      **columns, bytes_R=lengths,
      sha256_RB=column('sha256', 'u1').reshape(-1, 32),
      file=texts('file'), inner=inner,
      shards=texts('shards'), sources=texts('sources'),
      categories=Listed(texts('categories')), folder=folder)
  if len(index.samples_R) != rows:
    raise ValueError(f'{folder}: {len(index.samples_R)} records, {path.name} '
                     f'says {rows}')
  return index


def _mapped(path: pathlib.Path, kind: str) -> np.ndarray:
  """Returns a file of numbers as an array mapped into memory."""
  if not path.stat().st_size:  # An empty file cannot be mapped.
    return np.zeros(0, kind)
  with open(path, 'rb') as file:
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
                         kind)


def release(*columns: np.ndarray) -> None:
  """Frees the memory that a pass over mapped columns has filled.

  What was read stays in the system's file cache, for all processes.
  """
  for column in columns:
    if hasattr(column, 'parts'):  # mixture.Joined.
      release(*column.parts)
      continue
    # np.frombuffer keeps the mapping behind a memoryview.
    owner = column.base
    if isinstance(owner, memoryview):
      owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
      # Pages of a read-only mapping can be dropped: they come again from the
      # file's cache when they are touched.
      owner.madvise(mmap.MADV_DONTNEED)


# --- Writing ---


class Writer:
  """Writes an index record by record; a context manager.

  `load` finds no index before `finish` has been called.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    self.sources = self._count = 0
    # Rows that have not been written yet: numbers and texts by column.
    self._numbers = {n: array.array({'<i4': 'i', '<i8': 'q'}[kind])
                     for n, kind in COLUMNS.items()}
    self._numbers['bytes'] = array.array('q')
    self._texts = {name: bytearray() for name in ('file', 'inner', 'shards')}
    self._ends = {name: array.array('q') for name in self._texts}
    self._sizes = dict.fromkeys(self._texts, 0)
    # Whether records have bytes and a place, as all but ArrayRecord's have.
    self._hashes, self._placed = bytearray(), False
    self._shard: str | None = None
    # Text -> code, in the order of appearance.
    self._shards = 0
    self._codes: dict[str, int] = {}
    self._categories: dict[str, int] = {}
    self._files: dict[str, Any] = {}

  def __enter__(self) -> 'Writer':
    self.folder.mkdir(exist_ok=True)
    # An unfinished index must not look complete.
    (self.folder / 'index.json').unlink(missing_ok=True)
    return self

  def __exit__(self, *error) -> None:
    for file in self._files.values():
      file.close()

  def add(self, record: dict) -> None:
    """Adds a record: a dictionary with the columns of the manifest."""
    if record['shard'] != self._shard:  # Records come shard by shard.
      self._shard = record['shard']
      self._text('shards', record['shard'])
      self._shards += 1
    codes, categories = self._codes, self._categories
    values = self._numbers
    values['samples'].append(record['samples'])
    values['start'].append(record['start'])
    values['shard'].append(self._shards - 1)
    values['position'].append(record['position'])
    values['source'].append(codes.setdefault(record['source'], len(codes)))
    values['category'].append(
        categories.setdefault(record['category'], len(categories)))
    self._hashes += bytes.fromhex(record['sha256'])
    self._text('file', record['file'])
    if 'inner' in record:
      self._placed = True
      values['bytes'].append(record['bytes'])
      self._text('inner', record['inner'])
    self._count += 1
    # Memory stays bounded, whatever the number of records.
    if self._count % 2**16 == 0:
      self._flush()

  def _text(self, name: str, text: str) -> None:
    """Adds a text to a column."""
    data = text.encode()
    self._texts[name] += data
    self._sizes[name] += len(data)
    self._ends[name].append(self._sizes[name])

  def _flush(self) -> None:
    """Writes the rows that are in memory."""
    for name, values in self._numbers.items():
      self._write(name, values)
      del values[:]
    for name, blob in self._texts.items():
      self._write(name, blob)
      self._write(f'{name}.ends', self._ends[name])
      del blob[:], self._ends[name][:]
    self._write('sha256', self._hashes)
    del self._hashes[:]

  def _write(self, name: str, data: Any) -> None:
    """Appends to the file of a column."""
    if name not in self._files:
      self._files[name] = open(self.folder / f'{name}.bin', 'wb')
    self._files[name].write(data)

  def finish(self, sha256: str, rate: int) -> int:
    """Completes the index.

    Args:
      sha256: of the manifest.
      rate: samples per second.

    Returns:
      the number of records whose samples are a copy of another record's.
    """
    self._flush()
    names = sorted(self._codes)
    self.sources = len(names)
    _save_texts(self.folder, 'sources', names)
    _save_texts(self.folder, 'categories', list(self._categories))
    for file in self._files.values():
      file.flush()
      # On disk before index.json says so.
      os.fsync(file.fileno())
      file.close()
    _renumber(self.folder / 'source.bin', self._codes, names)
    # Records of ArrayRecord files have a number there, and no bytes.
    if not self._placed:
      for name in ('bytes', 'inner', 'inner.ends'):
        (self.folder / f'{name}.bin').unlink()
    seal(self.folder, sha256, rate)
    # The first 8 of 32 bytes tell different hashes apart well enough.
    heads_R = _mapped(self.folder / 'sha256.bin', '<u8')[::4]
    return self._count - len(np.unique(heads_R))


def _renumber(path: pathlib.Path, codes: dict, names: list[str]) -> None:
  """Replaces codes in the order of appearance by ranks among sorted names.

  Args:
    path: of the column.
    codes: name -> code in the column.
    names: the sorted names.
  """
  if not codes:
    return
  rank_G = np.empty(len(names), '<i4')
  for rank, name in enumerate(names):
    rank_G[codes[name]] = rank
  code_R = np.memmap(path, '<i4', 'r+')
  for begin in range(0, len(code_R), ROWS):
    code_R[begin:begin + ROWS] = rank_G[code_R[begin:begin + ROWS]]
  code_R.flush()


def _save_texts(folder: pathlib.Path, name: str, texts: list[str]) -> None:
  """Writes a column of texts."""
  data = [text.encode() for text in texts]
  (folder / f'{name}.bin').write_bytes(b''.join(data))
  np.cumsum([len(d) for d in data], dtype='<i8').tofile(
      folder / f'{name}.ends.bin')


def seal(folder: pathlib.Path, sha256: str, rate: int) -> None:
  """Writes index.json for the columns in a folder, and the recordings' keys."""
  # Summed as int64: 2^31 samples are only 37 hours.
  samples_R = _mapped(folder / 'samples.bin', '<i4')
  total = sum(int(samples_R[i:i + ROWS].sum(dtype=np.int64))
              for i in range(0, len(samples_R), ROWS))
  sizes = {p.name: p.stat().st_size for p in sorted(folder.glob('*.bin'))}
  about = {'version': VERSION, 'records': len(samples_R), 'samples': total,
           'rate': rate, 'sha256': sha256, 'sizes': sizes}
  # Last of all files: an index is complete when it has this one.
  files.write_text(folder / 'index.json', json.dumps(about, indent=1))
  index = load(folder, sha256)
  assert index is not None  # It has just been written.
  if len(index.sources) >= KEPT_KEYS:
    for purpose in PURPOSES:
      keys(index, purpose, 0)


# --- Orders of recordings ---


def keys(index: Index, purpose: str, seed: int) -> np.ndarray:
  """Returns keys_G, uint64: the recordings' order is that of their keys.

  A key is the first eight bytes of the SHA-256 of 'purpose:seed:name'. Those
  of many recordings are stored beside the index, or in the user's cache.

  Args:
    index: an Index.
    purpose: one of PURPOSES.
    seed: of the order.
  """
  if index.parts:  # A mixture: the order depends on names, not on the corpus.
    return np.concatenate([keys(p, purpose, seed) for p in index.parts])
  if len(index.sources) < KEPT_KEYS or index.folder is None:
    return _hashed(index.sources, f'{purpose}:{seed}:')
  name = f'{purpose}-{seed}.bin'
  size = 8 * len(index.sources)
  # Read where they are; computed and written once, where that is possible.
  folders = [index.folder / 'keys', _cache(index.folder)]
  for folder in folders:
    path = folder / name
    if path.is_file() and path.stat().st_size == size:
      return _mapped(path, '<u8')
  keys_G = _hashed(index.sources, f'{purpose}:{seed}:')
  for folder in folders:
    try:
      with files.replacing(folder / name, sync=False) as part:
        keys_G.tofile(part)
      break
    except OSError:
      continue  # Only its owner may write into a shared corpus.
  return keys_G


def _cache(folder: pathlib.Path) -> pathlib.Path:
  """Returns the cache's folder for an index, by a digest of its content."""
  about = (folder / 'index.json').read_bytes()
  return (files.cache_folder('index')
          / hashlib.sha256(about).hexdigest()[:16])


def _hashed(texts: Any, prefix: str) -> np.ndarray:
  """Returns the first 8 bytes of the SHA-256 of every text, as numbers."""
  # The state after the prefix is copied for every text.
  begun = hashlib.sha256(prefix.encode())
  parts = [np.zeros(0, np.uint64)]
  for block in texts.blocks():
    digests = []
    for text in block:
      digest = begun.copy()
      digest.update(text)
      digests.append(digest.digest()[:8])
    parts.append(np.frombuffer(b''.join(digests), '>u8').astype(np.uint64))
  return np.concatenate(parts)
