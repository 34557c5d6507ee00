"""Sound on gs:// as an input of prepare and of training, on a fake server."""

import gzip
import io
import json
import queue
import tarfile
import types

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import soundfile

from audiorank import bucket as bucket_lib
from audiorank import data
from audiorank import files
from audiorank import prepare
from audiorank.data import stored
from audiorank.prepare import listing
from audiorank.prepare import worker

RATE = 16000


def sound(seed, form='FLAC', subtype=None, rate=RATE, seconds=1.5):
  rng = np.random.default_rng(seed)
  file = io.BytesIO()
  soundfile.write(file, .1 * rng.standard_normal((round(seconds * rate), 1)),
                  rate, format=form, subtype=subtype)
  return file.getvalue()


def tar_of(items):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as tar:
    for name, content in items:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return file.getvalue()


@pytest.fixture(scope='module')
def audio(bucket_server, tmp_path_factory):
  """A folder of sound files, a tar, a parquet file and damaged ones; it lies
  on the bucket too, as gs://bucket/audio."""
  root = tmp_path_factory.mktemp('audio')
  whole = sound(0)
  contents = {
      'a/one.flac': whole, 'a/other rate.wav': sound(1, 'WAV', rate=22050),
      'a/lossy.ogg': sound(2, 'OGG', 'VORBIS', seconds=2.5),
      'a/cut.flac': whole[:len(whole) // 2], 'notes.txt': b'none',
      'film.mkv': b'xx', 'hidden': whole,
      'set_0.tar': tar_of([('0.flac', sound(3)), ('0.json', b'{}'),
                           ('1.opus', sound(4, 'OGG', 'OPUS'))]),
      'cut.tar': tar_of([('0.flac', sound(5)), ('1.flac', whole)])[:-12000],
      'manifest.csv': b'file,source\na/one.flac,r\nset_0.tar/0.flac,r\n'}
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  table = io.BytesIO()
  parquet.write_table(pa.table({'audio': pa.array(
      [{'bytes': sound(6 + i), 'path': f'{i}.flac'} for i in range(3)], kind)}),
                      table)
  contents['train.parquet'] = table.getvalue()
  contents['cut.parquet'] = table.getvalue()[:-3000]
  for name, content in contents.items():
    files.write_bytes(root / name, content, sync=False)
  files.send(root, 'gs://bucket/audio')
  return root


def prepared(audio, out):
  about = prepare.run(audio, out, workers=1, piece_seconds=1., store='none')
  text = (files.path(out) / 'quarantine.jsonl').read_text()
  return about, [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def there(audio):
  """The corpus of the bucket's sound, on the bucket: gs://bucket/corpus."""
  del audio
  return prepared('gs://bucket/audio', 'gs://bucket/corpus')


def test_sound_on_a_bucket_is_read_in_place_as_on_a_disk(
    audio, there, tmp_path):
  here, refused = prepared(audio, tmp_path / 'corpus')
  there, refused_there = there
  # The corpus beside its input on the bucket names it relative to itself.
  assert there.pop('audio') == '../audio'
  here.pop('audio')
  for about in (here, there):  # The table's path is another.
    about['sources_from'].pop('table')
  assert there == here and refused_there == refused
  assert {row['file']: row['reason'] for row in refused} == {
      'a/cut.flac': 'cut off', 'cut.parquet': 'damaged archive',
      'cut.tar': 'damaged archive', 'cut.tar/1.flac': 'damaged archive'}
  assert set(here['suspects']) == {'film.mkv', 'hidden'}
  one, two = data.load(tmp_path / 'corpus'), data.load('gs://bucket/corpus')
  for step in range(3):
    np.testing.assert_array_equal(*(next(data.stream(
        corpus, 8, 9000, 0, step, threads=1)) for corpus in (one, two)))
  assert data.verify(two) == []
  # The same again is done at once, and nothing else is written there.
  assert prepared('gs://bucket/audio', 'gs://bucket/corpus')[0][
      'sha256'] == here['sha256']
  with pytest.raises(ValueError, match='contains the input'):
    prepare.run('gs://bucket/audio/a', 'gs://bucket/audio')


@pytest.fixture
def outage(audio, monkeypatch):
  """Nobody answers at the store's address any more."""
  async def no_wait(seconds):
    del seconds
  retry = pytest.importorskip('gcsfs.retry')
  monkeypatch.setattr(retry, 'asyncio', types.SimpleNamespace(sleep=no_wait))
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
  bucket_lib._client_of.cache_clear()
  yield audio
  bucket_lib._client_of.cache_clear()


@pytest.mark.parametrize('name', ['a/one.flac', 'train.parquet'])
def test_an_outage_refuses_no_file(outage, name, tmp_path):
  del outage
  entry = listing.Entry(name, f'gs://bucket/audio/{name}', 0, 90, name, '', '')
  if name.endswith('.parquet'):
    entry = entry._replace(inner='99:0:SNAPPY:2:0:0')
  jobs, messages = queue.SimpleQueue(), []
  settings = {'rate': RATE, 'store': 'int16', 'max_hours': 1.,
              'piece_seconds': 1., 'min_seconds': .04}
  jobs.put({'folder': str(tmp_path), 'shard': 'shard-00000.array_record',
            'settings': settings, 'entries': [entry._asdict()], 'skipped': {}})
  jobs.put(None)
  worker.serve(jobs, messages.append)
  assert messages[-1]['fatal'].startswith(
      f'gs://bucket/audio/{name}: the store cannot be reached')
  assert '\n' not in messages[-1]['fatal'] and not list(tmp_path.iterdir())


@pytest.mark.parametrize('where', ['', '/set_1.tar.gz'])
def test_compressed_tars_of_a_bucket_are_not_read_in_place(
    bucket_server, where, tmp_path):
  root = files.path('gs://bucket/packed')
  (root / 'one.flac').write_bytes(sound(0))
  (root / 'set_1.tar.gz').write_bytes(gzip.compress(
      tar_of([('0.flac', sound(1))])))
  with pytest.raises(ValueError) as caught:
    prepare.run(f'{root}{where}', tmp_path / 'out', store='none')
  assert str(caught.value) == (
      f'{root}/set_1.tar.gz: cannot be read in place while it is compressed; '
      'unpack it, or choose another store than none')
  assert not (tmp_path / 'out').exists()


def test_an_outage_ends_the_listing_and_the_training(outage, tmp_path):
  del outage
  for name in ('gs://bucket/audio/set_0.tar', 'gs://bucket/audio'):
    with pytest.raises(OSError, match=f'{name}: the store cannot be reached'):
      prepare.run(name, tmp_path / 'corpus')
  for suffix in ('tar', 'parquet'):
    path = files.path(f'gs://bucket/audio/train.{suffix}')
    with pytest.raises(files.StoreError):
      listing._of_file(listing.File(path.name, path, 9), 9, {})
  region = stored.Region(stored.Handle('gs://bucket/audio/a/one.flac'), 'one',
                         0, 2**24)
  with pytest.raises(files.StoreError):
    stored.piece(stored.buffered(region, 10), 0, 100, 0, 10, RATE, 0)


def test_a_sound_of_a_bucket_is_one_request(there, monkeypatch):
  del there
  requests = []
  read_part = files.read_part
  monkeypatch.setattr(files, 'read_part', lambda *args: (
      requests.append(args), read_part(*args))[1])
  corpus = data.load('gs://bucket/corpus')
  row = [i for i, name in enumerate(corpus.records['file'])
         if name in ('a/one.flac', 'set_0.tar/0.flac')]
  read = data.folder.reader(corpus, resident=False)
  for record in row:
    requests.clear()
    read(record, 100, 500)
    assert len(requests) == 1
  # A tar or a table is walked by few, whatever the number of its members.
  requests.clear()
  with stored.open_file('gs://bucket/audio/set_0.tar') as file:
    while file.read(512):
      pass
  assert len(requests) == 1
