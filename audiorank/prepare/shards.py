"""Shards, one at a time, and the manifest over all of them.

A shard appears under its name only when it is whole, and its .json, which says
so, after it. Its records are int16 samples in ArrayRecord, or FLAC or Opus
files in a tar that any reader of tars or webdataset opens; or there is no
shard, and the records are where the sound files lie.

Shapes: S samples.
"""

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

COLUMNS = ('record', 'shard', 'position', 'source', 'file', 'start', 'samples',
           'sha256', 'category')
# Of records that are not int16 in ArrayRecord, as well.
PLACE = ('bytes', 'inner')
# How records are stored -> (format of corpus.json, ending of a shard).
STORES = {'int16': (1, 'array_record'), 'flac': (2, 'tar'), 'opus': (2, 'tar'),
          'none': (2, 'list')}
ENCODINGS = {'flac': ('FLAC', 'PCM_16'), 'opus': ('OGG', 'OPUS')}
BLOCK = 512  # Of a tar.


def name(index: int, store: str = 'int16') -> str:
  return f'shard-{index:05d}.{STORES[store][1]}'


class _ArrayRecords:
  """Writes int16 records."""

  def __init__(self, path: str):
    self._writer = array_record_module.ArrayRecordWriter(
        path, 'group_size:1,uncompressed')
    self._count = self.written = 0

  def add(self, wave_S: np.ndarray) -> tuple[dict, np.ndarray]:
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
    """Returns where it lies, and what will be read of it: Opus loses some."""
    form, subtype = ENCODINGS[self._store]
    data = io.BytesIO()
    soundfile.write(data, wave_S, self._rate, format=form, subtype=subtype)
    data = data.getvalue()
    info = tarfile.TarInfo(f'{self._stem}-{self._count:06d}.{self._store}')
    info.size = len(data)
    self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
    position = self._file.tell()
    self._file.write(data + bytes(-len(data) % BLOCK))
    self._count += 1
    self.written = self._file.tell()
    if self._store == 'opus':
      wave_S, _ = soundfile.read(io.BytesIO(data), dtype='int16')
    return {'position': position, 'bytes': len(data), 'inner': ''}, wave_S

  def close(self) -> None:
    self._file.write(bytes(2 * BLOCK))
    self._file.close()


class _Nothing:
  """Stands in where records stay in the files that they came in."""
  written = 0

  def close(self) -> None:
    pass


def _writer(path: str, shard: str, store: str, rate: int) -> Any:
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
    items: yields dictionaries: of a refused file, with file, reason, detail,
      sha256; of an accepted one, with file, source, category, format and
      `pieces`, an iterable of (start, wave_S) in int16; where records are not
      stored, `place` as well, a dictionary of shard, position, bytes, inner.
    store: one of STORES.
    rate: samples per second.

  Returns:
    the description.

  Raises:
    OSError: the shard cannot be written; nothing is left of it.
  """
  part = os.path.join(folder, f'{shard}.{os.getpid()}.part')
  records, refused = [], []
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
      # The writer does not tell of a full disk.
      if about['bytes'] < writer.written:
        raise OSError(f'{part}: {about["bytes"]} bytes arrived of '
                      f'{writer.written}')
      about['sha256'] = checksum(part)
      _sync(part)
      os.replace(part, os.path.join(folder, shard))
    files.write_text(os.path.join(folder, f'{shard}.json'), json.dumps(about))
    return about
  except RuntimeError as error:
    raise OSError(str(error)) from error
  finally:
    if os.path.exists(part):
      os.remove(part)


def _records(item: dict, shard: str, writer: Any) -> Iterator[dict]:
  for start, wave_S in item['pieces']:
    if 'place' in item:
      where = item['place']
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
  """The description of a finished shard, or None when it has to be made.

  whole: compare the checksum, not the size alone.
  """
  try:
    with open(os.path.join(folder, f'{shard}.json'), encoding='utf-8') as file:
      about = json.load(file)
    if not about['records'] or not about['bytes']:
      return about if not about['records'] or shard.endswith('.list') else None
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
    out: the corpus.
    names: of its shards.
    rate: samples per second.
    about: what corpus.json says beside what is counted here.
    store: one of STORES.

  Returns:
    the contents of corpus.json.

  Raises:
    ValueError: not one record among the shards.
    OSError: a shard changed, or the folder cannot be written.
  """
  folder = os.path.join(out, 'shards')
  form, _ = STORES[store]
  columns = COLUMNS + (PLACE if form > 1 else ())
  tally = Tally()
  manifest = os.path.join(out, 'manifest.csv')
  quarantine = os.path.join(out, 'quarantine.jsonl')
  with (open(f'{manifest}.part', 'wb') as rows,
        open(f'{quarantine}.part', 'w', encoding='utf-8') as refusals,
        index_lib.Writer(os.path.join(out, 'index')) as index):
    lines = _Manifest(rows, columns)
    for shard in names:
      done = check(folder, shard, whole=False)
      if done is None:
        raise OSError(f'{folder}/{shard}: changed while the job ran')
      for record in done['records']:
        lines.add([tally.records] + [record[c] for c in columns[1:]])
        index.add(record)
        tally.keep(record, rate)
      for refusal in done['refused']:
        refusals.write(json.dumps(refusal) + '\n')
        tally.refuse(refusal)
    for file in (rows, refusals):
      file.flush()
      os.fsync(file.fileno())
    if tally.records:
      copies = index.finish(lines.digest.hexdigest(), rate)
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
      'formats': tally.formats, 'refused_formats': tally.refused_formats,
      'copies': copies, **about}
  files.write_text(os.path.join(out, 'corpus.json'),
                   json.dumps(described, indent=1))
  return described


class Tally:
  """What a corpus holds and what was refused, counted.

  formats: {format: {'files', 'hours'}}.  refused_formats: {reason: {format:
  {'files', 'hours'}}}, the hours that were decoded before the refusal.
  """

  def __init__(self):
    self.records = self.samples = self.files = 0
    self.reasons, self.formats, self.refused_formats = {}, {}, {}

  def keep(self, record: dict, rate: int) -> None:
    self.records += 1
    self.files += record['start'] == 0
    self.samples += record['samples']
    _count(self.formats, record.get('format') or 'unknown',
           record['start'] == 0, record['samples'] / rate)

  def refuse(self, refusal: dict) -> None:
    reason = refusal['reason']
    self.reasons[reason] = self.reasons.get(reason, 0) + 1
    _count(self.refused_formats.setdefault(reason, {}),
           refusal.get('format') or 'unknown', 1, refusal.get('seconds', 0))


def _count(table: dict, key: str, files: int, seconds: float) -> None:
  row = table.setdefault(key, {'files': 0, 'hours': 0.})
  row['files'] += int(files)
  row['hours'] += seconds / 3600


class _Manifest:
  """Writes rows of CSV, and their checksum.

  A field with a carriage return is quoted: half of all readers take it for
  the end of a line.
  """

  def __init__(self, file: io.BufferedWriter, columns: tuple[str, ...]):
    self._file, self.digest = file, hashlib.sha256()
    self.add(columns)

  def add(self, values: Iterable[Any]) -> None:
    line = io.StringIO(newline='')
    values = list(values)
    if any(isinstance(v, str) and '\r' in v for v in values):
      line.write(','.join(map(_field, values)) + '\n')
    else:
      csv.writer(line, lineterminator='\n').writerow(values)
    data = line.getvalue().encode('utf-8')
    self.digest.update(data)
    self._file.write(data)


def _field(value: Any) -> str:
  text = str(value)
  if any(c in text for c in '",\r\n'):
    text = text.replace('"', '""')
    return f'"{text}"'
  return text


def listed(reasons: dict) -> str:
  return ', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items()))


def cuts(samples: int, piece: int) -> list[tuple[int, int]]:
  """Equal parts of at most `piece` samples, as (start, stop)."""
  ends = np.linspace(0, samples, -(-samples // piece) + 1).astype(int)
  return list(zip(ends[:-1].tolist(), ends[1:].tolist()))


def checksum(path: str | os.PathLike, offset: int = 0, size: int | None = None,
             tick: Callable[[int], None] = lambda place: None) -> str:
  """sha256 of a file, or of `size` bytes from `offset`."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    file.seek(offset)
    left = float('inf') if size is None else size
    while left and (data := file.read(int(min(left, 2**20)))):
      digest.update(data)
      left -= len(data)
      tick(file.tell() - offset)
  return digest.hexdigest()


def _sync(path: str) -> None:
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
