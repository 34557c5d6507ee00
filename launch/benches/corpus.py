"""Corpora of 10^4 to 3.3 x 10^7 records: start, memory, clips a second.

The index of a large corpus is made up (30-second records, three of a
recording); a process of its own then opens it, parts and subsets it and reads
which clips the first batch holds. The rival is the same work from manifest.csv
in memory, up to the size at which it is still bearable. Clips are timed on one
core, files in the page cache, against soundfile from memory and webdataset.
"""

from collections.abc import Callable
from collections.abc import Iterator
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np

from launch.benches import timing

PINNED = True
SIZES = (10**4, 10**6, 32_700_000)
QUICK = (10**4, 10**5)
RATE, SECONDS, CLIPS, BATCH = 16_000, 10., 256, 64
PER_SOURCE = 3

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
  shards = -(-count // 4096)
  column = lambda name, kind, values: np.asarray(values, kind).tofile(
      folder / f'{name}.bin')
  record_R = np.arange(count, dtype=np.int64)
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
    for begin in range(0, count, 2**20):
      block = np.arange(begin, min(begin + 2**20, count)) // each
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
  from audiorank import data
  from audiorank import prepare
  clips = timing.sized(quick, 64, CLIPS)
  whats = {store: f'a 10 s clip out of {what}' for store, what in (
      ('int16', 'ArrayRecord, int16'), ('flac', 'shards of FLAC'),
      ('opus', 'shards of Opus'), ('none', 'webdataset tars of FLAC in place'),
      ('parquet', 'parquet of FLAC in place'))}
  if not any(only in what for what in whats.values()):
    return
  _write_inputs(folder, clips)
  for key, what in whats.items():
    if only not in what:
      continue
    store, source = key, folder / 'tars'
    if key == 'parquet':
      store, source = 'none', folder / 'parquet'
    prepare.run(source, folder / f'of-{key}', store=store, workers=1)
    corpus = data.load(folder / f'of-{key}')
    # Batch by batch and not as a stream, which would read ahead during the
    # rival's turn.
    batches = data.clips.Batches(corpus, BATCH, int(SECONDS * RATE), 0,
                                 slice(BATCH), False)
    ours = lambda batches=batches: [
        batches[step] for step in range(clips // BATCH)]
    for name, rival in _rivals(key, folder, clips).items():
      goal = None
      if name.startswith('soundfile'):
        goal = .9
      yield timing.turns(
          f'{what}, against {name}', ours, rival, timing.sized(quick, 4, 6),
          time.process_time, goal, ('stream', name), 'CPU time of one core',
          clips)


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


