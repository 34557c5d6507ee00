"""Shards, one at a time, and the manifest over all of them.

A shard appears under its name only when it is whole, and its .json, which says
so, after it.

Shapes: S samples.
"""

import csv
import hashlib
import io
import json
import os

from array_record.python import array_record_module
import numpy as np

from audiorank import files

FORMAT = 1
COLUMNS = ('record', 'shard', 'position', 'source', 'file', 'start', 'samples',
           'sha256', 'category')


def name(index):
  return f'shard-{index:05d}.array_record'


def make(folder, shard, items):
  """Writes one shard and its description.

  Args:
    folder: of the shards.
    shard: file name.
    items: yields dictionaries: of a refused file, with file, reason, detail,
      sha256; of an accepted one, with file, source, category and `pieces`, an
      iterable of (start, wave_S) in int16.

  Returns:
    the description.

  Raises:
    OSError: the shard cannot be written; nothing is left of it.
  """
  held = os.path.join(folder, f'{shard}.{os.getpid()}.part')
  records, refused, written = [], [], 0
  writer = array_record_module.ArrayRecordWriter(
      held, 'group_size:1,uncompressed')
  try:
    try:
      for item in items:
        if 'reason' in item:
          refused.append(item)
          continue
        for start, wave_S in item['pieces']:
          data = wave_S.astype('<i2').tobytes()
          writer.write(data)
          written += len(data)
          records.append({
              'shard': shard, 'position': len(records),
              'source': item['source'], 'file': item['file'], 'start': start,
              'samples': len(wave_S),
              'sha256': hashlib.sha256(data).hexdigest(),
              'category': item['category']})
    finally:
      writer.close()
    about = {'shard': shard, 'records': records, 'refused': refused,
             'bytes': 0, 'sha256': ''}
    if records:
      about['bytes'] = os.path.getsize(held)
      # The writer does not tell of a full disk.
      if about['bytes'] < written:
        raise OSError(f'{held}: {about["bytes"]} bytes arrived of {written}')
      about['sha256'] = checksum(held)
      _sync(held)
      os.replace(held, os.path.join(folder, shard))
    files.write_text(os.path.join(folder, f'{shard}.json'), json.dumps(about))
    return about
  except RuntimeError as error:
    raise OSError(str(error)) from error
  finally:
    if os.path.exists(held):
      os.remove(held)


def check(folder, shard, whole, tick=lambda place: None):
  """The description of a finished shard, or None when it has to be made.

  whole: compare the checksum, not the size alone.
  """
  try:
    with open(os.path.join(folder, f'{shard}.json'), encoding='utf-8') as file:
      about = json.load(file)
    if not about['records']:
      return about
    path = os.path.join(folder, shard)
    if os.path.getsize(path) != about['bytes'] or (
        whole and checksum(path, tick=tick) != about['sha256']):
      return None
    return about
  except (OSError, ValueError, KeyError, TypeError):
    return None


def finish(out, shards, rate, about):
  """Writes quarantine.jsonl, manifest.csv and corpus.json over all shards.

  Returns:
    the contents of corpus.json.

  Raises:
    ValueError: not one record among them.
  """
  folder = os.path.join(out, 'shards')
  count = samples = starts = 0
  sources, reasons = set(), {}
  digest = hashlib.sha256()
  manifest = os.path.join(out, 'manifest.csv')
  quarantine = os.path.join(out, 'quarantine.jsonl')
  with (open(f'{manifest}.part', 'wb') as rows,
        open(f'{quarantine}.part', 'w', encoding='utf-8') as refusals):
    def row(values):
      line = io.StringIO(newline='')
      csv.writer(line, lineterminator='\n').writerow(values)
      data = line.getvalue().encode('utf-8')
      digest.update(data)
      rows.write(data)
    row(COLUMNS)
    for shard in shards:
      made = check(folder, shard, whole=False)
      if made is None:
        raise OSError(f'{folder}/{shard}: changed while the job ran')
      for record in made['records']:
        row([count] + [record[c] for c in COLUMNS[1:]])
        count += 1
        starts += record['start'] == 0
        samples += record['samples']
        sources.add(record['source'])
      for refusal in made['refused']:
        refusals.write(json.dumps(refusal) + '\n')
        reasons[refusal['reason']] = reasons.get(refusal['reason'], 0) + 1
    for file in (rows, refusals):
      file.flush()
      os.fsync(file.fileno())
  os.replace(f'{quarantine}.part', quarantine)
  if not count:
    os.remove(f'{manifest}.part')
    raise ValueError(f'no usable sound: all {sum(reasons.values())} files '
                     f'refused ({listed(reasons)}), see {quarantine}')
  os.replace(f'{manifest}.part', manifest)
  described = {
      'format': FORMAT, 'rate': rate, 'hours': samples / rate / 3600,
      'records': count, 'sources': len(sources), 'files': starts,
      'refused': reasons, 'shards': len(shards),
      'sha256': digest.hexdigest(), **about}
  files.write_text(os.path.join(out, 'corpus.json'),
                   json.dumps(described, indent=1))
  return described


def listed(reasons):
  return ', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items()))


def cuts(samples, piece):
  """Equal parts of at most `piece` samples, as (start, stop)."""
  ends = np.linspace(0, samples, -(-samples // piece) + 1).astype(int)
  return list(zip(ends[:-1].tolist(), ends[1:].tolist()))


def checksum(path, offset=0, size=None, tick=lambda place: None):
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


def _sync(path):
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
