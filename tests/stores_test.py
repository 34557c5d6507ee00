"""Corpora whose records are FLAC, Opus, or the files that people have."""

import functools
import io
import itertools
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import soundfile

from audiorank import audio
from audiorank import data
from audiorank import prepare
from audiorank.containers import mpeg
from audiorank.prepare import listing

RATE = 16000


def encoded(seconds, form, subtype=None, rate=RATE, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  count = round(seconds * rate)
  time_S = np.arange(count) / rate
  wave_SC = .2 * np.sin(2 * np.pi * (150 + 30 * seed) * time_S)[:, None] + (
      .02 * rng.standard_normal((count, channels)))
  file = io.BytesIO()
  soundfile.write(file, wave_SC, rate, format=form, subtype=subtype)
  return file.getvalue()


@pytest.fixture(scope='module')
def sounds():
  """{name: bytes} of short and long sounds in several formats."""
  ways = [('a/one.flac', 3.3, 'FLAC', None, RATE, 1),
          ('a/two.flac', .4, 'FLAC', None, RATE, 1),
          ('a/stereo.flac', 1.7, 'FLAC', 'PCM_24', RATE, 2),
          ('b/three.wav', 2.2, 'WAV', None, RATE, 1),
          ('b/other rate.flac', 2.6, 'FLAC', None, 44100, 2),
          ('b/four.ogg', 2.5, 'OGG', 'VORBIS', RATE, 1),
          ('b/five.opus', 2.4, 'OGG', 'OPUS', 48000, 1),
          ('b/six.mp3', 2.3, 'MP3', None, RATE, 1),
          ('b/seven.mp3', 1.2, 'MP3', None, 22050, 1)]
  return {name: encoded(seconds, form, subtype, rate, channels, i)
          for i, (name, seconds, form, subtype, rate, channels)
          in enumerate(ways)}


@pytest.fixture(scope='module')
def folder(sounds, tmp_path_factory):
  root = tmp_path_factory.mktemp('folder') / 'in'
  for name, content in sounds.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  # Unclosed, so that reading it takes another header.
  raw = bytearray(sounds['b/three.wav'])
  raw[40:44] = bytes(4)
  (root / 'b' / 'unclosed.wav').write_bytes(raw)
  return root


@pytest.fixture(scope='module')
def tars(sounds, tmp_path_factory):
  """Shards as webdataset and Dasheng have them: a sound and its .json."""
  root = tmp_path_factory.mktemp('tars') / 'in'
  root.mkdir()
  items = [(f'{i:04d}.{name.rpartition(".")[2]}', content)
           for i, (name, content) in enumerate(sounds.items())]
  for number in range(2):
    with tarfile.open(root / f'set_{number:07d}.tar', 'w') as tar:
      for name, content in items[number::2]:
        for part, body in ((name, content), (f'{name[:4]}.json', b'{"x": 1}')):
          info = tarfile.TarInfo(part)
          info.size = len(body)
          tar.addfile(info, io.BytesIO(body))
  return root


@pytest.fixture(scope='module')
def table(sounds, tmp_path_factory):
  """A data set as Hugging Face writes it."""
  root = tmp_path_factory.mktemp('table') / 'in'
  root.mkdir()
  rows = [{'bytes': content, 'path': name.rpartition('/')[2]}
          for name, content in sounds.items()]
  rows.insert(3, {'bytes': None, 'path': 'absent.wav'})
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  for number, codec in enumerate(('snappy', 'none', 'zstd')):
    parquet.write_table(
        pa.table({'audio': pa.array(rows[number::3], kind),
                  'label': list(range(len(rows[number::3])))}),
        root / f'train-{number:05d}-of-00003.parquet', compression=codec,
        row_group_size=2)
  return root


def whole(corpus):
  """{last part of a file's name: all its samples}."""
  read, out = data.folder.reader(corpus, resident=False), {}
  for file, rows in corpus.records.groupby('file'):
    out[file.rpartition('/')[2]] = np.concatenate(
        [read(i, 0, 10**9) for i in rows.index])
  return out


@pytest.fixture(scope='module')
def corpora(folder, tars, table, tmp_path_factory):
  """{(input, store): Corpus}, pieces of at most a second."""
  out = tmp_path_factory.mktemp('corpora')
  made = {}
  for source, store in [('folder', 'int16'), ('folder', 'flac'),
                        ('folder', 'opus'), ('folder', 'none'),
                        ('tars', 'int16'), ('tars', 'none'),
                        ('table', 'int16'), ('table', 'none')]:
    root = {'folder': folder, 'tars': tars, 'table': table}[source]
    target = out / f'{source}-{store}'
    prepare.run(root, target, workers=1, piece_seconds=1., store=store)
    made[source, store] = data.load(target)
  return made


@pytest.mark.parametrize('source,store', [
    ('folder', 'flac'), ('folder', 'none'), ('tars', 'none'),
    ('table', 'none')])
def test_the_same_records_however_they_are_stored(corpora, source, store):
  want, got = corpora[source, 'int16'], corpora[source, store]
  columns = ['record', 'file', 'source', 'start', 'samples', 'category']
  assert got.records[columns].equals(want.records[columns])
  assert data.verify(got) == [] and got.hours == want.hours
  before, after = whole(want), whole(got)
  assert before.keys() == after.keys()
  for file, want_S in before.items():
    if store == 'flac' or file.endswith(('.wav', 'one.flac', 'stereo.flac')):
      np.testing.assert_array_equal(after[file], want_S)
      continue
    # A piece decoded or resampled by itself: a lossy decoder that begins in
    # the middle needs a few frames to settle.
    error_S = np.abs(after[file].astype(int) - want_S)
    assert np.median(error_S) <= 1 and error_S.mean() < 40, file


def test_opus_loses_bits_but_no_samples(corpora):
  want, got = corpora['folder', 'int16'], corpora['folder', 'opus']
  assert got.records['samples'].equals(want.records['samples'])
  assert data.verify(got) == []
  for file, want_S in whole(want).items():
    power = np.mean(np.square(want_S, dtype=float))
    assert np.mean(np.square(whole(got)[file] - want_S.astype(
        float))) < .1 * power


@pytest.mark.parametrize('key', [
    ('folder', 'flac'), ('folder', 'opus'), ('folder', 'none'),
    ('tars', 'none'), ('table', 'none')])
def test_a_crop_is_the_same_however_it_is_read(corpora, key):
  corpus = corpora[key]
  read = data.folder.reader(corpus, resident=False)
  rng = np.random.default_rng(0)
  for record, length in enumerate(corpus.lengths()):
    record_S = read(record, 0, length)
    for start in rng.integers(0, length, 3):
      count = int(rng.integers(1, length - start + 1))
      np.testing.assert_array_equal(read(record, int(start), count),
                                    record_S[start:start + count])
  batches = [list(itertools.islice(data.stream(
      corpus, 8, 8000, 1, resident=resident, threads=threads), 4))
             for resident, threads in ((False, 1), (False, 4), (True, 1))]
  np.testing.assert_array_equal(batches[0], batches[1])
  np.testing.assert_array_equal(batches[0], batches[2])


def test_a_crop_of_a_long_record_reads_a_part_of_it(tmp_path, monkeypatch):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'long.flac').write_bytes(encoded(60, 'FLAC'))
  prepare.run(tmp_path / 'in', tmp_path / 'out', workers=1, store='flac',
              piece_seconds=60)
  corpus, counted = data.load(tmp_path / 'out'), []
  plain = data.stored.Region.readinto

  def counting(self, buffer):
    counted.append(plain(self, buffer))
    return counted[-1]
  monkeypatch.setattr(data.stored.Region, 'readinto', counting)
  data.folder.reader(corpus, resident=False)(0, 40 * RATE, 2 * RATE)
  assert sum(counted) < .2 * int(corpus.index.bytes_R[0])


SECONDS = 13  # A chunk of 10 s, and a second one.
# (file, format, subtype, rate)
LOSSY = [('a.mp3', 'MP3', None, RATE), ('b.mp3', 'MP3', None, 44100),
         ('c.ogg', 'OGG', 'VORBIS', RATE), ('d.flac', 'FLAC', None, 22050),
         ('e.opus', 'OGG', 'OPUS', RATE)]


@pytest.fixture(scope='module')
def long_folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('long') / 'in'
  root.mkdir()
  for i, (name, form, subtype, rate) in enumerate(LOSSY):
    (root / name).write_bytes(encoded(SECONDS, form, subtype, rate, 1, i))
  # Zeros between the frames of an MP3, whose index is then not used.
  content = (root / 'a.mp3').read_bytes()
  middle = mpeg.table(io.BytesIO(content)).begins[100]
  (root / 'f.mp3').write_bytes(
      content[:middle] + bytes(3000) + content[middle:])
  return root


@pytest.fixture(scope='module')
def long_corpora(long_folder):
  """Each sound is one record: in place, and as Opus."""
  out = {}
  for store in ('none', 'opus'):
    prepare.run(long_folder, long_folder.parent / store, workers=1,
                piece_seconds=60, store=store)
    out[store] = data.load(long_folder.parent / store)
  return out


@pytest.mark.parametrize('store', ['none', 'opus'])
def test_a_crop_of_a_long_lossy_record_is_the_same(long_corpora, store):
  """Also across the edges of its chunks of 10 s."""
  corpus = long_corpora[store]
  read = data.folder.reader(corpus, resident=False)
  assert data.verify(corpus) == []
  for record in range(len(LOSSY)):
    whole_S = read(record, 0, SECONDS * RATE)
    assert len(whole_S) == SECONDS * RATE
    for begin, count in [(0, 100), (9 * RATE, 2 * RATE), (10 * RATE - 1, 2),
                         (10 * RATE, 3 * RATE), (3, 12 * RATE + 1)]:
      np.testing.assert_array_equal(read(record, begin, count),
                                    whole_S[begin:begin + count])


def test_chunks_in_place_have_the_samples_of_the_whole_file(
    long_corpora, long_folder):
  """To the rounding. An Opus decoder that begins in the middle only converges
  to what it would have decoded: 1 % of the sound is far below the codec's own
  errors."""
  corpus = long_corpora['none']
  read = data.folder.reader(corpus, resident=False)
  assert [corpus.index.inner[i][:4] for i in (0, 1, 5)] == [
      'mp3:', 'mp3:', 'mend']
  for record, name in enumerate([*(row[0] for row in LOSSY), 'f.mp3']):
    want_S = audio.to_int16(audio.read(long_folder / name)).astype(float)
    error_S = np.abs(read(record, 0, SECONDS * RATE) - want_S)
    if name.endswith('.opus'):
      assert np.sqrt(np.mean(error_S ** 2)) < .01 * want_S.std()
    else:
      assert error_S.max() <= 1 and np.mean(error_S > 0) < .01, name


def test_a_crop_of_a_long_lossy_record_decodes_its_chunks_alone(
    long_corpora, monkeypatch):
  decoded, fetched = [], []
  plain, fetch = data.stored.decode.Decoder.read, data.stored.Region.read

  def counting(self, frames, *args, **kwargs):
    decoded.append(frames / self.samplerate)
    return plain(self, frames, *args, **kwargs)

  def counting_bytes(self, size=-1):
    content = fetch(self, size)
    fetched.append(len(content))
    return content
  monkeypatch.setattr(data.stored.decode.Decoder, 'read', counting)
  monkeypatch.setattr(data.stored.Region, 'read', counting_bytes)
  read = data.folder.reader(long_corpora['none'], resident=False)
  for record, (name, *_) in enumerate(LOSSY):
    decoded.clear()
    fetched.clear()
    read(record, 11 * RATE, RATE)
    # The second chunk, and what comes before it (and after).
    assert sum(decoded) < 5, name
    if name.endswith('.mp3'):
      assert sum(fetched) < .4 * int(
          long_corpora['none'].index.bytes_R[record])


def test_records_from_before_there_were_chunks_are_read_as_then(
    long_corpora, tmp_path):
  """Format 2: decoded from their beginning, whatever their length."""
  shutil.copytree(long_corpora['opus'].root, tmp_path / 'old')
  path = tmp_path / 'old' / 'corpus.json'
  about = json.loads(path.read_text())
  assert about.pop('chunk') == 10 * RATE and about['format'] == 3
  path.write_text(json.dumps({**about, 'format': 2}))
  corpus = data.load(tmp_path / 'old')
  with tarfile.open(tmp_path / 'old' / 'shards' / corpus.index.shards[0]) as t:
    content = t.extractfile(t.getmembers()[0]).read()
  want_S, _ = soundfile.read(io.BytesIO(content), dtype='int16')
  read = data.folder.reader(corpus, resident=False)
  np.testing.assert_array_equal(read(0, 5 * RATE, 7 * RATE),
                                want_S[5 * RATE:12 * RATE])


def test_shards_of_flac_are_tars_that_anybody_opens(corpora):
  corpus = corpora['folder', 'flac']
  names = 0
  for shard in corpus.index.shards:
    with tarfile.open(f'{corpus.root}/shards/{shard}') as tar:
      for member in tar:
        names += 1
        wave_S = audio.read(tar.extractfile(member).read())
        assert member.name.endswith('.flac') and len(wave_S)
  assert names == len(corpus)


def test_what_lies_in_place_must_stay_there(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'in')
  prepare.run(tmp_path / 'in', tmp_path / 'in' / 'corpus', workers=1,
              store='none')
  # Both are moved together.
  (tmp_path / 'in').rename(tmp_path / 'moved')
  corpus = data.load(tmp_path / 'moved' / 'corpus')
  assert data.verify(corpus) == []
  (tmp_path / 'moved' / 'a' / 'one.flac').write_bytes(b'other')
  assert data.verify(corpus) == ['a/one.flac']
  read = data.folder.reader(corpus, resident=False)
  with pytest.raises(ValueError, match=r'a/one.flac record 0 .a/one.flac.: '):
    read(0, 0, 100)
  (tmp_path / 'moved' / 'corpus').rename(tmp_path / 'alone')
  with pytest.raises(FileNotFoundError, match="one.flac: no such file, though"):
    data.load(tmp_path / 'alone')
  path = tmp_path / 'alone' / 'corpus.json'
  about = json.loads(path.read_text())
  path.write_text(json.dumps({**about, 'audio': str(tmp_path / 'moved')}))
  assert len(data.load(tmp_path / 'alone')) == len(corpus)


def test_compressed_tars_are_not_read_in_place(tmp_path):
  with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as tar:
    info = tarfile.TarInfo('a.wav')
    info.size = len(content := encoded(1, 'WAV'))
    tar.addfile(info, io.BytesIO(content))
  with pytest.raises(ValueError, match='a.tar.gz: cannot be read in place'):
    prepare.run(tmp_path / 'a.tar.gz', tmp_path / 'out', store='none')


def test_a_single_archive_is_an_input_in_place(tars, table, tmp_path):
  for i, path in enumerate([*tars.iterdir(), *table.iterdir()]):
    prepare.run(path, tmp_path / f'{i}', workers=1, store='none')
    assert data.verify(data.load(tmp_path / f'{i}')) == []


def test_parquet_of_other_things_and_damaged_parquet(table, tmp_path):
  root = tmp_path / 'in'
  root.mkdir()
  (root / 'a.wav').write_bytes(encoded(1, 'WAV'))
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  parquet.write_table(pa.table({'image': pa.array(
      [{'bytes': b'\x89PNG', 'path': 'x.png'}], kind)}), root / 'i.parquet')
  parquet.write_table(pa.table({'x': [1, 2]}), root / 'x.parquet')
  raw = next(table.iterdir()).read_bytes()
  (root / 'cut.parquet').write_bytes(raw[:len(raw) // 2])
  rng = np.random.default_rng(0)
  for i in range(20):
    torn = bytearray(raw)
    for _ in range(20):
      torn[rng.integers(len(torn))] ^= int(rng.integers(1, 256))
    (root / f'torn{i}.parquet').write_bytes(torn)
  about = prepare.run(root, tmp_path / 'out', workers=1)
  assert set(about['suspects']) == {'i.parquet', 'x.parquet'}
  lines = (tmp_path / 'out' / 'quarantine.jsonl').read_text().splitlines()
  refused = [json.loads(line)['file'] for line in lines]
  assert 'cut.parquet' in refused
  files = set(data.load(tmp_path / 'out').records['file'])
  named = {f.partition('/')[0] for f in [*refused, *files]}
  assert named == {p.name for p in root.iterdir()} - set(about['suspects'])


@pytest.mark.parametrize('codec', ['snappy', 'none', 'zstd', 'gzip', 'lz4'])
@pytest.mark.parametrize('dictionary', [True, False])
@pytest.mark.parametrize('version', ['1.0', '2.0'])
def test_a_value_of_parquet_is_read_alone(tmp_path, codec, dictionary, version):
  """Against what was written, for every codec and kind of page."""
  rng, path = np.random.default_rng(0), tmp_path / 'x.parquet'
  values = [bytes(9000) + rng.bytes(int(rng.integers(9, 300_000)))
            + b'abc' * 5000 if i % 7 != 3 else None for i in range(24)]
  values[10] = values[11]
  rows = [{'bytes': v, 'path': f'{i}'} for i, v in enumerate(values)]
  rows[20] = values[20] = None
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  parquet.write_table(pa.table({'audio': pa.array(rows, kind)}), path,
                      compression=codec, use_dictionary=dictionary,
                      data_page_version=version, row_group_size=17)
  page = {}
  with open(path, 'rb') as file:
    for (name, place), row, value in zip(
        data.parquet.sounds(
            functools.partial(open, path, 'rb')), rows, values, strict=True):
      assert name == (row['path'] if row else '')
      assert data.parquet.place(place.offset, place.text()) == place
      assert data.parquet.read(file, place, page) == value
      if value is None:
        continue
      span = data.parquet.locate(file, place, page)
      assert data.parquet.span(span.offset, span.size, span.text()) == span
      assert data.parquet.read_span(file, span) == value
      if codec in ('snappy', 'none'):  # Not its page of some megabytes.
        assert span.size < len(value) + 2 * 2**16


def test_names_of_parquet_rows(tmp_path):
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  content = encoded(.1, 'WAV')
  parquet.write_table(pa.table({'audio': pa.array(
      [{'bytes': content, 'path': p} for p in
       ('../x/a.wav', 'b.wav', 'b.wav', None)], kind)}), tmp_path / 't.parquet')
  found = listing.scan(tmp_path, listing.walk(tmp_path, tmp_path / 'o'), 9, {},
                       set())
  assert [e.file for e in found.entries] == [
      't.parquet/0000001', 't.parquet/0000002', 't.parquet/0000003',
      't.parquet/x/a.wav']
