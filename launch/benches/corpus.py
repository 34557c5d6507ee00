"""Corpora of 10^4 to 3.3 x 10^7 records: start, memory, clips a second.

The index of a large corpus is made up (30-second records, three of a
recording); a process of its own then opens it, parts and subsets it and reads
which clips the first batch holds. The rival is the same work from manifest.csv
in memory, up to the size at which it is still bearable. Clips are timed on one
core, files in the page cache, against soundfile from memory, webdataset and
the stream of int16 records; then from a fake bucket on loopback, whose server
is not timed, against the disk.
"""

from collections.abc import Callable
from collections.abc import Iterator
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import numpy as np

from launch.benches import fake_gcs
from launch.benches import timing

PINNED = True
# The largest is 272,500 hours in records of 30 s, as many hours as the
# official Dasheng was trained on.
SIZES = (10**4, 10**6, 32_700_000)
QUICK = (10**4, 10**5)
RATE, SECONDS, CLIPS, BATCH = 16_000, 10., 256, 64
PER_SOURCE = 3
# How records lie -> name of the row.
STORES = {'int16': 'a 10 s clip out of ArrayRecord, int16',
          'flac': 'a 10 s clip out of shards of FLAC',
          'opus': 'a 10 s clip out of shards of Opus',
          'none': 'a 10 s clip out of webdataset tars of FLAC in place',
          'parquet': 'a 10 s clip out of parquet of FLAC in place'}
# Format of a long sound -> (name of the row, how its record is stored).
LONG = {'FLAC': ('a 10 s clip out of a record of 600 s of FLAC', 'flac'),
        'OPUS': ('a 10 s clip out of a record of 600 s of Opus', 'none'),
        'VORBIS': ('a 10 s clip out of a record of 600 s of Vorbis', 'none'),
        'MP3': ('a 10 s clip out of a record of 600 s of MP3', 'none')}

# What a training process does before its first batch, and its peak memory.
START = '''
import json, sys, time
began = time.perf_counter()
from audiorank import data
imported = time.perf_counter()
corpus = data.load(sys.argv[1])
train, valid = data.split(corpus, .05, 0)
part = data.subset(train, train.hours * .9, 0)
at = data.schedule(part, 256, 160_000, 0)
record_B, start_B = at(0)
spent = time.perf_counter() - imported
worked = time.process_time()
# Not getrusage: its peak is that of the process before this program as well.
peak, = (int(line.split()[1]) for line in open('/proc/self/status')
         if line.startswith('VmHWM'))
print(json.dumps({'seconds': spent, 'import': imported - began,
                  'cpu': worked, 'peak': peak / 1e6, 'records': len(part)}))
'''


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  for count in timing.sized(quick, QUICK, SIZES):
    what = f'first batch chosen, {count:,} records'
    if only in what:
      yield from starts(what, count)
  with tempfile.TemporaryDirectory() as folder:
    for form, (what, store) in LONG.items():
      if only in what:
        yield long_record(what, pathlib.Path(folder) / f'long-{form}', form,
                          store, timing.sized(quick, 4, 8))
    yield from reading(pathlib.Path(folder), quick, only)


def starts(what: str, count: int) -> Iterator[timing.Row]:
  """Yields the Rows of opening a corpus of so many records, twice."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder) / 'corpus'
    made_up(root, count)
    for again in ('', ', again'):
      took = start(root)
      yield timing.alone(
          f'{what}{again}', took['seconds'], 's', None,
          f'peak {took["peak"]:.2f} GB, {took["cpu"]:.1f} CPU-s with the '
          'imports; 10 s and 1 GB wanted')
    if count <= 10**5:
      # As before there was an index: the manifest is read into memory.
      (root / 'index' / 'index.json').unlink()
      rival = start(root)
      yield timing.alone(
          f'{what}, by manifest.csv', rival['seconds'], 's', None,
          f'peak {rival["peak"]:.2f} GB')


def start(root: pathlib.Path) -> dict:
  """Opens a corpus in a process of its own; returns its measurements."""
  done = subprocess.run([sys.executable, '-c', START, str(root)], check=True,
                        capture_output=True, text=True)
  return json.loads(done.stdout)


def made_up(root: pathlib.Path, count: int) -> None:
  """Writes a corpus without sound: its index, and corpus.json."""
  from audiorank.data import index
  folder = root / 'index'
  folder.mkdir(parents=True)
  (root / 'shards').mkdir()
  # Rounded up: 4,096 records a shard.
  shards = -(-count // 4096)
  column = lambda name, kind, values: np.asarray(values, kind).tofile(
      folder / f'{name}.bin')
  record_R = np.arange(count, dtype=np.int64)
  # Lengths, recordings and categories that repeat: written as arrays, without a
  # loop over records.
  # At 16 kHz 480,000 samples are 30 s; some records are 1 to 6 s shorter.
  column('samples', '<i4', 480_000 - record_R % 7 * 16_000)
  column('start', '<i8', record_R % PER_SOURCE * 480_000)
  column('shard', '<i4', record_R // 4096)
  column('position', '<i8', record_R % 4096)
  column('source', '<i4', record_R // PER_SOURCE)
  column('category', '<i4', record_R * 4 // count)
  column('sha256', 'u1', np.zeros(32 * count, np.uint8))
  sources = -(-count // PER_SOURCE)
  _names(folder, 'sources', sources, 1)
  _names(folder, 'file', count, PER_SOURCE)
  for name, texts in (('categories', ['a', 'b', 'c', 'd']),
                      ('shards', ['all.array_record'] * shards)):
    (folder / f'{name}.bin').write_bytes(''.join(texts).encode())
    column(f'{name}.ends', '<i8', np.cumsum([len(t) for t in texts]))
  (root / 'shards' / 'all.array_record').touch()
  index.seal(folder, 'made up', RATE)
  manifest = root / 'manifest.csv'
  sha256 = 'made up'
  if count <= 10**5:
    sha256 = _manifest(manifest, count)
    index.seal(folder, sha256, RATE)
  else:
    # Larger ones are not read again where there is an index.
    with open(manifest, 'wb') as file:
      file.truncate(2**27)
  (root / 'corpus.json').write_text(json.dumps(
      {'format': 1, 'rate': RATE, 'sha256': sha256}))


def _names(folder: pathlib.Path, name: str, count: int, each: int) -> None:
  """Writes names of 24 letters, every one `each` times."""
  with open(folder / f'{name}.bin', 'wb') as file:
    # A million names at a time, which take 24 MB.
    for begin in range(0, count, 2**20):
      block = np.arange(begin, min(begin + 2**20, count)) // each
      # Decimal digits as ASCII, in which 48 is '0'.
      digits = block[:, None] // 10 ** np.arange(9, -1, -1) % 10 + 48
      text = np.empty((len(block), 24), np.uint8)
      text[:] = np.frombuffer(b'recording-0000000000.wav', np.uint8)
      text[:, 10:20] = digits
      text.tofile(file)
  (np.arange(1, count + 1, dtype='<i8') * 24).tofile(
      folder / f'{name}.ends.bin')


def _manifest(path: pathlib.Path, count: int) -> str:
  """Writes the manifest of a made-up corpus; returns its checksum."""
  import hashlib
  rows = ['record,shard,position,source,file,start,samples,sha256,category']
  for i in range(count):
    name = f'recording-{i // PER_SOURCE:010d}.wav'
    rows.append(f'{i},all.array_record,{i % 4096},{name},{name},'
                f'{i % PER_SOURCE * 480000},{480000 - i % 7 * 16000},'
                f'{"0" * 64},{"abcd"[i * 4 // count]}')
  data = ('\n'.join(rows) + '\n').encode()
  path.write_bytes(data)
  return hashlib.sha256(data).hexdigest()


def reading(folder: pathlib.Path, quick: bool,
            only: str) -> Iterator[timing.Row]:
  """Yields the Rows of reading ten-second clips, store by store."""
  clips, repeats = timing.sized(quick, (64, 4), (CLIPS, 8))
  chosen = [key for key, what in STORES.items()
            if only in what or only in f'{what}, on a bucket']
  if not chosen:
    return
  _write_inputs(folder, clips)
  readers: dict[str, Callable[[], Any]] = {}
  for key, what in STORES.items():
    # int16 also where --only leaves it out: it is a rival of the others.
    if key not in ('int16', *chosen):
      continue
    readers[key] = reader(folder, key, str(folder), clips)
    rivals = _rivals(key, folder, clips)
    if key != 'int16':
      rivals['the stream of int16'] = readers['int16']
    if only not in what:
      continue
    for name, rival in rivals.items():
      goal = None
      if name.startswith('soundfile') and key != 'int16':
        goal = .9
      yield per_core(timing.turns(
          what, readers[key], rival, repeats, time.process_time, goal,
          ('stream', name), '', clips))
  yield from on_bucket(folder, readers, clips, timing.sized(quick, 2, 4), only)


def reader(folder: pathlib.Path, key: str, place: str, clips: int
           ) -> Callable[[], Any]:
  """Returns a function that reads clips of a corpus, written if it is missing.

  Args:
    folder: of the inputs.
    key: of STORES.
    place: the same folder, or its copy on a bucket.
    clips: how many it reads.
  """
  from audiorank import data
  from audiorank import prepare
  store, source = key, folder / 'tars'
  if key == 'parquet':
    store, source = 'none', folder / 'parquet'
  out = folder / f'of-{key}'
  if not out.exists():
    prepare.run(source, out, store=store, workers=1)
  # Batch by batch and not as a stream, which would read ahead during the
  # rival's turn.
  batches = data.clips.Batches(
      data.load(f'{place}/of-{key}'), BATCH, int(SECONDS * RATE), 0,
      slice(BATCH), False)
  return lambda: [batches[step] for step in range(clips // BATCH)]


def per_core(row: timing.Row) -> timing.Row:
  """Returns a Row with the clips a second of one core in its note."""
  return row._replace(note=f'CPU time of one core: {1 / row.ours_value:,.0f} '
                      f'clips/s, rival {1 / row.rival_value:,.0f}')


def long_record(what: str, folder: pathlib.Path, form: str, store: str,
                repeats: int) -> timing.Row:
  """Returns the Row of crops of a record of ten minutes.

  Args:
    what: name of the row.
    folder: a new one.
    form: of the sound: FLAC, OPUS, VORBIS or MP3.
    store: how its record is stored.
    repeats: of the measurement.
  """
  import soundfile

  from audiorank import data
  from audiorank import prepare
  (folder / 'in').mkdir(parents=True)
  file, rng = io.BytesIO(), np.random.default_rng(0)
  # libsndfile's names: Ogg contains either codec.
  container, codec = form, None
  if form in ('OPUS', 'VORBIS'):
    container, codec = 'OGG', form
  with soundfile.SoundFile(file, 'w', RATE, 1, format=container,
                           subtype=codec) as out:
    # White noise, on which FLAC saves least; a second at a time, as libvorbis
    # cannot take it all.
    for _ in range(600):
      out.write(.1 * rng.standard_normal(RATE))
  content = file.getvalue()
  (folder / 'in' / f'one.{container.lower()}').write_bytes(content)
  prepare.run(folder / 'in', folder / 'of', store=store, workers=1,
              piece_seconds=600)
  read = data.folder.reader(data.load(folder / 'of'), resident=False)
  count = 4
  # The latest crop of 10 s ends with the record.
  starts = np.random.default_rng(1).integers(0, 590 * RATE, count)
  # soundfile decodes the whole record for every crop.
  return per_core(timing.turns(
      what, lambda: [read(0, int(s), 10 * RATE) for s in starts],
      lambda: [soundfile.read(io.BytesIO(content), dtype='int16')
               for _ in range(count)], repeats, time.process_time, 10.,
      ('crop', 'soundfile, all of it'), '', count))


def on_bucket(folder: pathlib.Path, readers: dict[str, Callable[[], Any]],
              clips: int, repeats: int, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of the same corpora on a fake bucket, against the disk."""
  chosen = [key for key, what in STORES.items()
            if only in f'{what}, on a bucket']
  if not chosen:
    return
  from audiorank import files
  try:
    with fake_gcs.running() as url:
      # gcsfs finds an emulator by a variable of the environment.
      os.environ.update(fake_gcs.environment(url))
      for name in ('tars', 'parquet', *(f'of-{key}' for key in chosen)):
        files.send(folder / name, f'gs://bucket/{name}')
      for key in chosen:
        there = reader(folder, key, 'gs://bucket', clips)
        yield per_core(timing.turns(
            f'{STORES[key]}, on a bucket', there, readers[key], repeats,
            time.process_time, None, ('fake bucket', 'disk'), '', clips))
  except ModuleNotFoundError as error:
    yield timing.absent('on a bucket', str(error))


def _rivals(key: str, folder: pathlib.Path,
            clips: int) -> dict[str, Callable[[], None]]:
  """Returns {name: a function that reads as many clips}."""
  import soundfile
  with tarfile.open(folder / 'tars' / 'set-000000.tar') as tar:
    items = [tar.extractfile(m).read() for m in tar
             if m.name.endswith('.flac')]
  if key == 'int16':
    return {'soundfile from memory': lambda: _from_memory(items, clips)}
  if key == 'opus':
    waves = [soundfile.read(io.BytesIO(item), dtype='int16')[0]
             for item in items]
    items = []
    for wave_S in waves:
      file = io.BytesIO()
      soundfile.write(file, wave_S, RATE, format='OGG', subtype='OPUS')
      items.append(file.getvalue())

  out = {'soundfile from memory': lambda: _from_memory(items, clips)}
  if key == 'none':
    try:
      import webdataset
    except ModuleNotFoundError:
      return out

    def of_webdataset() -> None:
      data_set = webdataset.WebDataset(
          str(folder / 'tars' / 'set-000000.tar'), shardshuffle=False)
      for sample in data_set:
        soundfile.read(io.BytesIO(sample['flac']), dtype='int16')
    out['webdataset, in the order of the tar'] = of_webdataset
  return out


def _from_memory(items: list[bytes], clips: int) -> None:
  import soundfile
  for i in range(clips):
    soundfile.read(io.BytesIO(items[i % len(items)]), dtype='int16')


def _write_inputs(folder: pathlib.Path, clips: int) -> None:
  """Writes the same ten-second FLAC files as a tar and as parquet."""
  import pyarrow
  from pyarrow import parquet
  import soundfile
  for name in ('tars', 'parquet'):
    (folder / name).mkdir()
  rng, rows_ = np.random.default_rng(0), []
  with tarfile.open(folder / 'tars' / 'set-000000.tar', 'w') as tar:
    for i in range(clips):
      # Of many partials and some noise, so that it packs as music does.
      time_S = np.arange(int(SECONDS * RATE)) / RATE
      wave_S = sum(.05 * np.sin(2 * np.pi * f * time_S)
                   for f in rng.uniform(80, 4000, 8))
      wave_S += .01 * rng.standard_normal(len(time_S))
      file = io.BytesIO()
      soundfile.write(file, wave_S, RATE, format='FLAC')
      info = tarfile.TarInfo(f'{i:06d}.flac')
      info.size = len(file.getvalue())
      tar.addfile(info, io.BytesIO(file.getvalue()))
      rows_.append({'bytes': file.getvalue(), 'path': f'{i:06d}.flac'})
  kind = pyarrow.struct([('bytes', pyarrow.binary()),
                         ('path', pyarrow.string())])
  parquet.write_table(
      pyarrow.table({'audio': pyarrow.array(rows_, kind)}),
      folder / 'parquet' / 'train-00000.parquet', row_group_size=100)


