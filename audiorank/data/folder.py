"""A prepared folder, opened: its records and how to read them.

Shapes: R records, S samples.
"""

import concurrent.futures
import functools
import hashlib
import io
import json
import os
import pathlib
import threading
from typing import NamedTuple

from array_record.python import array_record_module
import numpy as np
import pandas as pd

from audiorank import files

FORMAT = 1
# Shards held open: the usual limit of open files is 1024.
OPEN = 512


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
  root = files.path(root)
  described = root / 'corpus.json'
  if not described.exists():
    if not root.exists():
      raise FileNotFoundError(f'{root}: no such folder')
    raise FileNotFoundError(
        f'{described}: no such file; ' + (
            'the corpus is not complete, run prepare again'
            if (root / 'plan.json').exists() else
            f'{root} was not made by prepare'))
  try:
    about = json.loads(described.read_text(encoding='utf-8'))
    form, rate, expected = about['format'], about['rate'], about['sha256']
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{described}: not a corpus description: '
                     f'{type(error).__name__} {error}') from error
  if form != FORMAT:
    raise ValueError(f'{described}: format {form!r}, expected {FORMAT}')
  manifest = (root / 'manifest.csv').read_bytes()
  found = hashlib.sha256(manifest).hexdigest()
  if found != expected:
    raise ValueError(f'{root / "manifest.csv"}: sha256 {found[:12]}..., '
                     f'corpus.json says {expected[:12]}...')
  records = pd.read_csv(io.BytesIO(manifest), dtype={
      'record': np.int64, 'shard': 'category', 'position': np.int64,
      'source': str, 'file': str, 'start': np.int64, 'samples': np.int64,
      'sha256': str, 'category': str}, keep_default_na=False)
  for shard in records['shard'].cat.categories:
    if not (root / 'shards' / shard).exists():
      raise FileNotFoundError(f'{root / "shards" / shard}: no such shard, '
                              'though the manifest names it')
  return made(os.fspath(root), records, rate, expected)


def verify(corpus):
  """Reads every record; returns the names of those not as first written."""
  read = reader(corpus, resident=False)
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


def reader(corpus, resident):
  """A function (record, start, samples) -> wave_S of int16.

  It may be called from several threads. A damaged shard raises ValueError.
  """
  length_R = corpus.records['samples'].to_numpy()
  read = _from_shards(corpus, length_R)
  if not resident:
    return read
  begin_R = np.cumsum(length_R) - length_R
  all_S = np.empty(length_R.sum(), np.int16)

  def fetch(record):
    all_S[begin_R[record]:][:length_R[record]] = read(
        record, 0, length_R[record])
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for _ in pool.map(fetch, range(len(length_R))):
      pass

  def held(record, start, samples):
    end = min(start + samples, length_R[record])
    return all_S[begin_R[record] + start:begin_R[record] + end]
  return held


def _from_shards(corpus, length_R):
  shard_R = corpus.records['shard'].cat.codes.to_numpy()
  names = corpus.records['shard'].cat.categories
  position_R = corpus.records['position'].to_numpy()
  folder = pathlib.Path(corpus.root) / 'shards'
  lock = threading.Lock()

  @functools.lru_cache(OPEN)
  def opened(code):
    return array_record_module.ArrayRecordReader(
        os.fspath(folder / names[code]), 'readahead_buffer_size:0')

  def read(record, start, samples):
    try:
      with lock:
        shard = opened(shard_R[record])
      [data] = shard.read([int(position_R[record])])
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(f'{_where(corpus, record)}: {error}') from error
    if len(data) != 2 * length_R[record]:
      raise ValueError(f'{_where(corpus, record)}: {len(data)} bytes, expected '
                       f'{2 * length_R[record]}')
    return np.frombuffer(data, '<i2')[start:start + samples]
  return read


def _where(corpus, record):
  row = corpus.records.iloc[record]
  return (f'{corpus.root}/shards/{row["shard"]} record {row["position"]} '
          f'({row["file"]})')


def made(root, records, rate, sha256):
  """A Corpus of these records."""
  hours = float(records['samples'].sum() / rate / 3600)
  return Corpus(root, records, hours, rate, sha256)
