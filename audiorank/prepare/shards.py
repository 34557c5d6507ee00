"""Writes shards, and the manifest of all of them.

Records are stored as int16 samples in ArrayRecord files, or as FLAC or Opus
files in tars, which also webdataset reads. With the store 'none' there are no
shards: records are read from the original sound files.

Shapes: S samples.
"""

# A shard gets its name only when it is complete, and its .json is written last.
# So a shard with a .json is complete even if the job was killed.

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import csv
import hashlib
import io
import json
import os
import tarfile
from typing import Any

from array_record.python import array_record_module
import numpy as np
import soundfile

from audiorank import config as config_lib
from audiorank import files
from audiorank.data import index as index_lib
from audiorank.data import stored

COLUMNS = ('record', 'shard', 'position', 'source', 'file', 'start', 'samples',
           'sha256', 'category')
# Further columns of all stores but int16.
PLACE = ('bytes', 'inner')
# How records are stored -> (format of corpus.json, ending of a shard).
STORES = {'int16': (1, 'array_record'), 'flac': (2, 'tar'), 'opus': (3, 'tar'),
          'none': (3, 'list')}
ENCODINGS = {'flac': ('FLAC', 'PCM_16'), 'opus': ('OGG', 'OPUS')}
BLOCK = 512  # Of a tar.


def name(index: int, store: str = 'int16') -> str:
  """Returns the file name of a shard."""
  return f'shard-{index:05d}.{STORES[store][1]}'


def chunk(store: str, rate: int) -> int:
  """Returns the samples of a record's chunks, or 0 where it has none."""
  if STORES[store][0] < 3:
    return 0
  return round(stored.CHUNK * rate)


class _ArrayRecords:
  """Writes int16 records."""

  def __init__(self, path: str):
    # Groups of one record, so that reading a record reads no other. Sound
    # hardly gets smaller by general compression.
    self._writer = array_record_module.ArrayRecordWriter(
        path, 'group_size:1,uncompressed')
    self._count = self.written = 0

  def add(self, wave_S: np.ndarray) -> tuple[dict, np.ndarray]:
    """Returns the record's place and the samples that will be read from it."""
    # Little-endian, whatever the machine.
    data = wave_S.astype('<i2').tobytes()
    self._writer.write(data)
    self.written += len(data)
    self._count += 1
    return {'position': self._count - 1}, wave_S

  def close(self) -> None:
    self._writer.close()


class _Tar:
  """Writes records as sound files in a tar."""

  def __init__(self, path: str, shard: str, store: str, rate: int):
    self._file = open(path, 'wb')
    self._stem, self._store, self._rate = shard.partition('.')[0], store, rate
    self._count = self.written = 0

  def add(self, wave_S: np.ndarray) -> tuple[dict, np.ndarray]:
    """Returns the record's place and the samples that will be read from it."""
    form, subtype = ENCODINGS[self._store]
    buffer = io.BytesIO()
    # In memory first: the header of the tar comes before and has the size.
    soundfile.write(buffer, wave_S, self._rate, format=form, subtype=subtype)
    data = buffer.getvalue()
    info = tarfile.TarInfo(f'{self._stem}-{self._count:06d}.{self._store}')
    info.size = len(data)
    self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
    position = self._file.tell()
    # A tar pads every file to whole blocks.
    self._file.write(data + bytes(-len(data) % BLOCK))
    self._count += 1
    self.written = self._file.tell()
    # Opus is lossy; the checksum in the manifest is of what will be read.
    if self._store == 'opus':
      wave_S = stored.piece(io.BytesIO(data), 0, len(wave_S), 0, len(wave_S),
                            self._rate, chunk(self._store, self._rate))
    return {'position': position, 'bytes': len(data), 'inner': ''}, wave_S

  def close(self) -> None:
    self._file.write(bytes(2 * BLOCK))  # The end mark.
    self._file.close()


class _Nothing:
  """Writes nothing: records stay in their original files."""
  written = 0

  def close(self) -> None:
    pass


def _writer(path: str, shard: str, store: str, rate: int) -> Any:
  """Returns an object with `add`, `close` and `written`, the bytes so far."""
  if store == 'int16':
    return _ArrayRecords(path)
  if store == 'none':
    return _Nothing()
  return _Tar(path, shard, store, rate)


def make(folder: str, shard: str, items: Iterable[dict], store: str = 'int16',
         rate: int = config_lib.RATE) -> dict:
  """Writes one shard and its description.

  Args:
    folder: of the shards.
    shard: file name.
    items: yields a dictionary per file. A refused file has file, reason, detail
      and sha256. An accepted one has file, source, category, format and
      `pieces`, an iterable of (start, wave_S) in int16; with the store 'none'
      also `place`, a function of these two. It returns a dictionary of shard,
      position, bytes and inner, and the samples that will be read from there.
    store: one of STORES.
    rate: samples per second.

  Returns:
    the description.

  Raises:
    OSError: the shard cannot be written; the unfinished file is removed.
  """
  # The process's number: a worker that hangs may still write its own file.
  part = os.path.join(folder, f'{shard}.{os.getpid()}.part')
  records: list[dict] = []
  refused: list[dict] = []
  writer = _writer(part, shard, store, rate)
  try:
    try:
      for item in items:
        if 'reason' in item:
          refused.append(item)
          continue
        records += _records(item, shard, writer)
    finally:
      writer.close()
    about = {'shard': shard, 'records': records, 'refused': refused,
             'bytes': 0, 'sha256': ''}
    if records and store != 'none':
      about['bytes'] = os.path.getsize(part)
      # ArrayRecordWriter does not report a full disk.
      if about['bytes'] < writer.written:
        raise OSError(f'{part}: {about["bytes"]} bytes arrived of '
                      f'{writer.written}')
      about['sha256'] = checksum(part)
      _sync(part)
      # First the shard, then its .json, each whole or not at all.
      os.replace(part, os.path.join(folder, shard))
    files.write_text(os.path.join(folder, f'{shard}.json'), json.dumps(about))
    return about
  except RuntimeError as error:  # The errors of ArrayRecordWriter.
    raise OSError(str(error)) from error
  finally:
    if os.path.exists(part):
      os.remove(part)


def _records(item: dict, shard: str, writer: Any) -> Iterator[dict]:
  """Writes the pieces of a file; yields their rows of the manifest."""
  for start, wave_S in item['pieces']:
    if 'place' in item:
      where, wave_S = item['place'](start, wave_S)
    else:
      where, wave_S = writer.add(wave_S)
    yield {
        'shard': shard, 'source': item['source'], 'file': item['file'],
        'start': start, 'samples': len(wave_S),
        'sha256': hashlib.sha256(wave_S.astype('<i2').tobytes()).hexdigest(),
        'category': item['category'], 'format': item.get('format', ''),
        **where}


def check(folder: str, shard: str, whole: bool,
          tick: Callable[[int], None] = lambda place: None) -> dict | None:
  """Returns the description of a complete shard, or None if it has to be made.

  Args:
    folder: of the shards.
    shard: file name.
    whole: compare the checksum, not only the size.
    tick: called with the number of bytes read so far.
  """
  try:
    with open(os.path.join(folder, f'{shard}.json'), encoding='utf-8') as file:
      about = json.load(file)
    # Every file of the shard was refused, or records stay in their files.
    if not about['records']:
      return about
    if not about['bytes']:
      if shard.endswith('.list'):
        return about
      return None
    path = os.path.join(folder, shard)
    if os.path.getsize(path) != about['bytes'] or (
        whole and checksum(path, tick=tick) != about['sha256']):
      return None
    return about
  except (OSError, ValueError, KeyError, TypeError):
    return None


def finish(out: str, names: list[str], rate: int, about: dict,
           store: str = 'int16') -> dict:
  """Writes quarantine.jsonl, manifest.csv, the index and corpus.json.

  Args:
    out: folder of the corpus.
    names: of its shards.
    rate: samples per second.
    about: entries of corpus.json besides those that are counted here.
    store: one of STORES.

  Returns:
    the contents of corpus.json.

  Raises:
    ValueError: the shards have no record at all.
    OSError: a shard changed, or the folder cannot be written.
  """
  folder = os.path.join(out, 'shards')
  form, _ = STORES[store]
  columns: tuple[str, ...] = COLUMNS
  if form > 1:
    columns += PLACE
  tally = Tally()
  manifest = os.path.join(out, 'manifest.csv')
  quarantine = os.path.join(out, 'quarantine.jsonl')
  # One pass over the shards' descriptions writes all three tables.
  with (open(f'{manifest}.part', 'wb') as rows,
        open(f'{quarantine}.part', 'w', encoding='utf-8') as refusals,
        index_lib.Writer(os.path.join(out, 'index')) as index):
    lines = _Manifest(rows, columns)
    for shard in names:
      done = check(folder, shard, whole=False)
      # Checked by size only: the workers have just written or verified it.
      if done is None:
        raise OSError(f'{folder}/{shard}: changed while the job ran')
      for record in done['records']:
        lines.add([tally.records] + [record[c] for c in columns[1:]])
        index.add(record)
        tally.keep(record, rate)
      for refusal in done['refused']:
        refusals.write(json.dumps(refusal) + '\n')
        tally.refuse(refusal)
    # On disk before corpus.json, which says that the corpus is complete.
    for file in (rows, refusals):
      file.flush()
      os.fsync(file.fileno())
    if tally.records:
      copies = index.finish(lines.digest.hexdigest(), rate)
  # Also if nothing is usable: it says why.
  os.replace(f'{quarantine}.part', quarantine)
  if not tally.records:
    os.remove(f'{manifest}.part')
    count = sum(tally.reasons.values())
    raise ValueError(f'no usable sound: all {count} files refused '
                     f'({listed(tally.reasons)}), see {quarantine}')
  os.replace(f'{manifest}.part', manifest)
  described = {
      'format': form, 'rate': rate, 'hours': tally.samples / rate / 3600,
      'records': tally.records, 'sources': index.sources,
      'files': tally.files, 'refused': tally.reasons, 'shards': len(names),
      'sha256': lines.digest.hexdigest(), 'store': store,
      'chunk': chunk(store, rate),
      'formats': tally.formats, 'refused_formats': tally.refused_formats,
      'copies': copies, **about}
  files.write_text(os.path.join(out, 'corpus.json'),
                   json.dumps(described, indent=1))
  return described


class Tally:
  """Counts of records and of refused files.

  reasons: {reason: files}.  formats: {format: {'files', 'hours'}}.
  refused_formats: {reason: {format: {'files', 'hours'}}}, with the hours that
  were decoded before the refusal.
  """

  def __init__(self) -> None:
    self.records = self.samples = self.files = 0
    self.reasons: dict[str, int] = {}
    self.formats: dict[str, dict] = {}
    self.refused_formats: dict[str, dict] = {}

  def keep(self, record: dict, rate: int) -> None:
    """Counts a record."""
    self.records += 1
    self.files += record['start'] == 0  # The first piece of its file.
    self.samples += record['samples']
    _count(self.formats, record.get('format') or 'unknown',
           record['start'] == 0, record['samples'] / rate)

  def refuse(self, refusal: dict) -> None:
    """Counts a refused file."""
    reason = refusal['reason']
    self.reasons[reason] = self.reasons.get(reason, 0) + 1
    _count(self.refused_formats.setdefault(reason, {}),
           refusal.get('format') or 'unknown', 1, refusal.get('seconds', 0))


def _count(table: dict, key: str, files: int, seconds: float) -> None:
  row = table.setdefault(key, {'files': 0, 'hours': 0.})
  row['files'] += int(files)
  row['hours'] += seconds / 3600


class _Manifest:
  """Writes rows of CSV, and computes their checksum."""

  def __init__(self, file: io.BufferedWriter, columns: tuple[str, ...]):
    self._file, self.digest = file, hashlib.sha256()
    self.add(columns)

  def add(self, values: Iterable[Any]) -> None:
    line = io.StringIO(newline='')
    values = list(values)
    # The csv module does not quote a lone carriage return, which many readers
    # take for the end of a line.
    if any(isinstance(v, str) and '\r' in v for v in values):
      line.write(','.join(map(_field, values)) + '\n')
    else:
      csv.writer(line, lineterminator='\n').writerow(values)
    data = line.getvalue().encode('utf-8')
    self.digest.update(data)
    self._file.write(data)


def _field(value: Any) -> str:
  """Returns a field of CSV, in quotes if it needs them."""
  text = str(value)
  if any(c in text for c in '",\r\n'):
    text = text.replace('"', '""')
    return f'"{text}"'
  return text


def listed(reasons: dict) -> str:
  """Returns counts of reasons as text: '2 empty, 1 too short'."""
  return ', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items()))


def cuts(samples: int, piece: int) -> list[tuple[int, int]]:
  """Returns equal parts of at most `piece` samples, as (start, stop)."""
  # Equal, so that no recording ends in a piece of a few samples.
  ends = np.linspace(0, samples, -(-samples // piece) + 1).astype(int)
  return list(zip(ends[:-1].tolist(), ends[1:].tolist()))


def checksum(path: str | os.PathLike, offset: int = 0, size: int | None = None,
             tick: Callable[[int], None] = lambda place: None) -> str:
  """Returns the SHA-256 of a file, in hex.

  Args:
    path: of the file, on a disk or on a bucket.
    offset: first byte.
    size: bytes; None for all up to the end.
    tick: called with the number of bytes read so far.
  """
  digest = hashlib.sha256()
  with stored.open_file(path) as file:
    file.seek(offset)
    left = float('inf')
    if size is not None:
      left = size
    # A mebibyte at a time: a worker that reports nothing for long would count
    # as hung.
    while left and (data := file.read(int(min(left, 2**20)))):
      digest.update(data)
      left -= len(data)
      tick(file.tell() - offset)
  return digest.hexdigest()


def _sync(path: str) -> None:
  """Waits until a file is on disk."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
