"""Preparing sound: what is kept, what is refused, and nothing stops it."""

import contextlib
import csv
import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiorank import audio
from audiorank import data
from audiorank import prepare
from audiorank import synth
from audiorank.prepare import listing
from audiorank.prepare import shards
from audiorank.prepare import summary

ROOT = pathlib.Path(__file__).resolve().parents[1]


def noise(seconds, rate=16000, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return 0.2 * rng.standard_normal((round(seconds * rate), channels))


def sound(path, seconds=1.0, rate=16000, channels=1, seed=0, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, noise(seconds, rate, channels, seed), rate, **how)


def contents(out):
  """Every file of a folder by its hash, the lock aside."""
  return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(out.rglob('*')) if p.is_file() and p.name != '.lock'}


def refusals(out):
  lines = (out / 'quarantine.jsonl').read_text().splitlines()
  return {r['file']: r for r in map(json.loads, lines)}


def command(*args, largest=None, **env):
  """Runs the command; `largest`: bytes to which any file may grow."""
  line = [sys.executable, '-m', 'launch.prepare', *map(str, args)]
  if largest is not None:
    # By another process: a fork of one that holds JAX may hang.
    line = [sys.executable, '-c', 'import os, resource, sys; '
            'resource.setrlimit(resource.RLIMIT_FSIZE, '
            f'({largest}, {largest})); os.execv(sys.argv[1], sys.argv[1:])',
            *line]
  return subprocess.run(line, cwd=ROOT, capture_output=True, text=True,
                        check=False, env={**os.environ, **env})


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A folder of good and bad sound, and what it becomes."""
  folder = tmp_path_factory.mktemp('world')
  sound(folder / 'music' / 'deep' / 'a.wav', 2.5, 44100, 2)
  sound(folder / 'music' / 'b.flac', 7, 8000, seed=1)
  sound(folder / 'speech' / 'c.ogg', 1, 48000, seed=2)
  sound(folder / 'speech' / 'd.opus', 1, 48000, format='OGG', subtype='OPUS')
  sound(folder / 'e.MP3', 1, 22050, 2, seed=3, format='MP3')
  sound(folder / 'tiny.wav', 0.05, seed=5)
  sound(folder / 'short.wav', 0.01, seed=5)
  sound(folder / 'tail' / '1.wav', 0.5, seed=6)
  sound(folder / 'tail' / '2.wav', 0.5, seed=7)
  bad = folder / 'bad'
  bad.mkdir()
  (bad / 'garbage.flac').write_bytes(random.Random(0).randbytes(5000))
  (bad / 'nothing.wav').write_bytes(b'')
  (bad / 'movie.m4a').write_bytes(b'\0\0\0\x20ftypM4A ' + bytes(100))
  soundfile.write(bad / 'empty.wav', np.zeros(0), 16000)
  soundfile.write(bad / 'silent.wav', np.zeros(9000), 16000)
  soundfile.write(bad / 'faint.wav', noise(1) * 1e-8, 16000, subtype='FLOAT')
  soundfile.write(bad / 'opposed.wav', noise(1) * [[1, -1]], 16000)
  wave_S = noise(1)
  wave_S[7000] = np.nan
  soundfile.write(bad / 'nan.wav', wave_S, 16000, subtype='FLOAT')
  soundfile.write(bad / 'loud.wav', noise(1) * 3e4, 16000, subtype='FLOAT')
  sound(bad / 'long.flac', 45)
  (bad / 'broken.wav').symlink_to(folder / 'nowhere.wav')
  os.mkfifo(bad / 'pipe.wav')
  (folder / 'notes.txt').write_text('not sound')
  (folder / '.hidden.wav').write_text('not sound')
  (folder / 'loop').symlink_to(folder)
  with open(folder / 'manifest.csv', 'w', encoding='utf-8') as file:
    file.write('file,source\ntail/1.wav,disc.ogg + 1\ntail/2.wav,disc.ogg + 2\n'
               'music/b.flac,"b, the file"\n')
  out = tmp_path_factory.mktemp('made') / 'out'
  made = prepare.run(folder, out, workers=2, piece_seconds=3.0,
                     max_hours=40 / 3600)
  return folder, out, made


def test_what_can_be_read_is_kept_exactly(world):
  folder, out, made = world
  table = pd.read_csv(out / 'manifest.csv')
  assert tuple(table) == shards.COLUMNS
  assert sorted(set(table['file'])) == [
      'e.MP3', 'music/b.flac', 'music/deep/a.wav', 'speech/c.ogg',
      'speech/d.opus', 'tail/1.wav', 'tail/2.wav', 'tiny.wav']
  corpus = data.load(out)
  assert data.verify(corpus) == []
  read = data.folder.reader(corpus, resident=False)
  for file, rows in corpus.records.groupby('file'):
    want_S = audio.to_int16(audio.read(folder / file))
    got_S = np.concatenate([read(i, 0, 10**9) for i in rows.index])
    np.testing.assert_array_equal(got_S, want_S)
    ends = (rows['start'] + rows['samples']).tolist()
    assert rows['start'].tolist() == [0] + ends[:-1]
    # Parts are as equal as can be: a short tail is of little use.
    assert len(rows) == math.ceil(len(want_S) / 48000)
    assert np.ptp(rows['samples']) <= 1
  assert made['hours'] == table['samples'].sum() / 16000 / 3600
  counts = made['records'], made['files'], made['ignored']
  assert counts == (len(table), 8, 2)
  assert made['formats']['wav']['files'] == 4
  assert list(made['suspects']) == []
  assert made == json.loads((out / 'corpus.json').read_text())


def test_sources_and_categories(world):
  table = data.load(world[1]).records.set_index('file')
  assert set(table.loc[['tail/1.wav', 'tail/2.wav'], 'source']) == {'disc.ogg'}
  assert set(table.loc['music/b.flac', 'source']) == {'b, the file'}
  assert table.loc['tiny.wav', 'source'] == 'tiny.wav'
  assert table.loc['music/deep/a.wav', 'category'] == 'music'
  assert table.loc['e.MP3', 'category'] == ''
  assert world[2]['sources'] == 7


def test_what_cannot_is_quarantined_with_its_reason(world):
  folder, out, made = world
  found = refusals(out)
  assert {f.removeprefix('bad/'): r['reason'] for f, r in found.items()} == {
      'garbage.flac': 'undecodable', 'nothing.wav': 'undecodable',
      'movie.m4a': 'undecodable', 'empty.wav': 'empty',
      'silent.wav': 'constant', 'faint.wav': 'constant',
      'opposed.wav': 'constant', 'nan.wav': 'non-finite',
      'loud.wav': 'wrong magnitude', 'long.flac': 'too long',
      'broken.wav': 'unreadable', 'pipe.wav': 'not a regular file',
      'short.wav': 'too short'}
  for file, refusal in found.items():
    if refusal['reason'] not in ('unreadable', 'not a regular file'):
      want = hashlib.sha256((folder / file).read_bytes()).hexdigest()
      assert refusal['sha256'] == want
  assert sum(made['refused'].values()) == len(found)


def test_the_same_whatever_the_workers_and_once_is_enough(world, tmp_path):
  folder, out, made = world
  again = prepare.run(folder, tmp_path / 'o', workers=1, piece_seconds=3.0,
                      max_hours=40 / 3600)
  assert again == made
  want = contents(out)
  assert contents(tmp_path / 'o') == want
  before = {p: p.stat().st_mtime_ns for p in (out / 'shards').iterdir()}
  assert prepare.run(folder, out, piece_seconds=3.0,
                     max_hours=40 / 3600) == made
  assert {p: p.stat().st_mtime_ns
          for p in (out / 'shards').iterdir()} == before
  assert contents(out) == want


@pytest.mark.parametrize('harm', ['cut', 'flip', 'lose', 'note'])
def test_a_damaged_shard_is_made_anew(world, tmp_path, harm):
  folder, out, _ = world
  other = tmp_path / 'o'
  subprocess.run(['cp', '-r', out, other], check=True)
  path = sorted((other / 'shards').glob('*.array_record'))[0]
  raw = bytearray(path.read_bytes())
  if harm == 'cut':
    path.write_bytes(raw[:-9])
  elif harm == 'flip':
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    (other / 'corpus.json').unlink()
  elif harm == 'lose':
    path.unlink()
  else:
    path.with_name(path.name + '.json').write_text('{"records"')
  prepare.run(folder, other, workers=1, piece_seconds=3.0,
              max_hours=40 / 3600)
  assert contents(other) == contents(out)


def test_a_folder_that_belongs_to_something_else_is_left_alone(
    world, tmp_path):
  folder, out, _ = world
  want = contents(out)
  with pytest.raises(ValueError, match='made with piece_seconds 3.0, now 30.0'):
    prepare.run(folder, out, max_hours=40 / 3600)
  sound(tmp_path / 'other' / 'x.wav')
  with pytest.raises(ValueError, match='another input .21 files then, 1 in'):
    prepare.run(tmp_path / 'other', out, piece_seconds=3.0,
                max_hours=40 / 3600)
  assert contents(out) == want
  full = tmp_path / 'full'
  full.mkdir()
  (full / 'thesis.tex').write_text('precious')
  with pytest.raises(ValueError, match=r'full: not empty \(thesis.tex'):
    prepare.run(tmp_path / 'other', full)
  assert contents(full).keys() == {'thesis.tex'}
  with pytest.raises(ValueError, match='is a file, expected a folder'):
    prepare.run(tmp_path / 'other', full / 'thesis.tex')
  with pytest.raises(ValueError, match='the output cannot be the input'):
    prepare.run(tmp_path / 'other', tmp_path / 'other')
  with open(tmp_path / 'other' / 'x.wav', 'rb'):
    inside = tmp_path / 'other' / 'out'
    assert prepare.run(tmp_path / 'other', inside)['files'] == 1
    assert prepare.run(tmp_path / 'other', inside)['files'] == 1
  with open(out / '.lock', 'w', encoding='utf-8') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match='another prepare is writing it'):
      prepare.run(folder, out, piece_seconds=3.0, max_hours=40 / 3600)


def test_what_this_call_did_not_make_is_never_deleted(tmp_path):
  source = tmp_path / 'set' / 'unpacked'
  for name in ('a.wav', 'b.wav'):
    sound(source / name)
  for out in (tmp_path / 'set', tmp_path):
    with pytest.raises(ValueError, match='the output contains the input'):
      prepare.run(source, out)
  # Folders named as ours are, with files of others in them.
  out = tmp_path / 'out'
  archive(tmp_path / 'in.tar.gz', [('a.flac', flac(0))], 'w:gz')
  (out / 'unpacked').mkdir(parents=True)
  (out / 'unpacked' / 'mine.wav').write_text('x')
  with pytest.raises(ValueError, match='not empty .unpacked'):
    prepare.run(tmp_path / 'in.tar.gz', out)
  for lock in ('', 'of another program'):
    (tmp_path / 'other').mkdir(exist_ok=True)
    (tmp_path / 'other' / '.lock').write_text(lock)
    with pytest.raises(ValueError, match='not begun by prepare'):
      prepare.run(source, tmp_path / 'other')
    assert (tmp_path / 'other' / '.lock').read_text() == lock
  good = tmp_path / 'good'
  prepare.run(tmp_path / 'in.tar.gz', good, workers=1)
  kept = ['unpacked/mine.tar', 'unpacked/00001.tar', 'shards/mine.part',
          'shards/shard-00000.mine.part', 'mine.part']
  (good / 'unpacked').mkdir()
  for name in kept:
    (good / name).write_text('x')
  (good / 'corpus.json').unlink()
  (good / 'shards' / 'shard-00000.array_record').unlink()
  prepare.run(tmp_path / 'in.tar.gz', good, workers=1)
  assert all((good / name).read_text() == 'x' for name in kept)
  assert sorted(p.name for p in source.iterdir()) == ['a.wav', 'b.wav']


def test_what_may_hold_sound_and_was_passed_over_is_named(tmp_path):
  folder = tmp_path / 'in'
  sound(folder / 'good.wav')
  raw = (folder / 'good.wav').read_bytes()
  for name in ('copy.wav.bak', 'take 1', '.hidden.wav', 'x.zip', 'y.h5',
               'film.mkv'):
    (folder / name).write_bytes(raw)
  (folder / 'notes.txt').write_bytes(raw)  # Of a name that says enough.
  (folder / '._good.wav').write_bytes(b'\0\5\x16\7' + bytes(99))
  # Archives by their first bytes, such as downloads with a strange ending.
  (folder / 'set.zip?download=1').write_bytes(b'PK\3\4' + bytes(99))
  archive(folder / 'shard', [('b.flac', flac(0))])
  (folder / 'table.docx').write_bytes(b'PK\3\4' + bytes(99))
  for name in ('set.tar.001', 'set.zip.002', 'set.part1.rar', 'set.tar.gz.aa'):
    (folder / name).write_bytes(raw)
  archive(folder / 'a.tar', [('b.flac', flac(0)), ('no ending', raw),
                             ('b.json', b'{}')])
  os.mkfifo(folder / 'fifo')
  os.mkfifo(folder / 'fifo.tar')
  os.mkfifo(folder / 'fifo.tar.gz')
  about = prepare.run(folder, tmp_path / 'out', workers=1)
  assert set(about['suspects']) == {
      'copy.wav.bak', 'take 1', '.hidden.wav', 'x.zip', 'y.h5', 'film.mkv',
      'a.tar/no ending', 'set.zip?download=1', 'shard'}
  assert about['refused'] == {'several parts': 4, 'not a regular file': 2}
  text = ' '.join(summary.lines(about))
  assert 'x.zip: an archive: unpack it' in text
  assert '2 not a regular file' in text and 'flac' in text
  assert 'x.zip' in summary.attention(about)
  (folder / 'good.wav').unlink()
  only = tmp_path / 'only'
  only.mkdir()
  (only / 'all.zip').write_bytes(raw)
  with pytest.raises(ValueError, match='no sound files in it .1 other files.; '
                                       'all.zip: an archive: unpack it'):
    prepare.run(only, tmp_path / 'o')


def test_joined_and_cut_tars(tmp_path):
  a, b = ([(f'{k}{i}.flac', flac(i + 3 * (k == 'b'))) for i in range(2)]
          for k in 'ab')
  for name, members in (('a', a), ('b', b), ('c', a + [('a0.flac', flac(7))])):
    archive(tmp_path / f'{name}.tar', members)
  one, two, three = ((tmp_path / f'{n}.tar').read_bytes() for n in 'abc')
  folder = tmp_path / 'in'
  folder.mkdir()
  (folder / 'joined.tar').write_bytes(one + two)
  (folder / 'packed.tar.gz').write_bytes(gzip.compress(one)
                                         + gzip.compress(two))
  (folder / 'junk.tar').write_bytes(one + b'junk' * 500)
  (folder / 'endless.tar').write_bytes(one[:-10240].rstrip(b'\0') + bytes(
      -len(one[:-10240].rstrip(b'\0')) % 512))
  (folder / 'updated.tar').write_bytes(three)
  prepare.run(folder, tmp_path / 'out', workers=1)
  files = list(data.load(tmp_path / 'out').records['file'])
  assert [f for f in files if f.startswith(('joined', 'packed'))] == [
      f'{t}/{n}.flac' for t in ('joined.tar', 'packed.tar.gz')
      for n in ('a0', 'a1', 'b0', 'b1')]
  found = refusals(tmp_path / 'out')
  assert 'no tar follow its end mark' in found['junk.tar']['detail']
  assert found['updated.tar/a0.flac']['reason'] == 'replaced'
  assert files.count('updated.tar/a0.flac') == 1
  assert 'no mark of its end' in found['endless.tar']['detail']


def test_sources_of_a_table_reach_the_corpus(tmp_path):
  folder = tmp_path / 'in'
  for i in range(4):
    sound(folder / 'clips' / f'c{i}.wav', seed=i)
  table = tmp_path / 'table.tsv'
  table.write_text('path\tspeaker\nc0.wav\tA\nc1.wav\tA\nc9.wav\tB\n')
  about = prepare.run(folder, tmp_path / 'out', workers=1, manifest=table,
                      source_column='speaker')
  assert about['sources'] == 3 and about['sources_from']['unmatched'] == 1
  assert '2 of 3 rows name a file' in summary.attention(about)
  about = prepare.run(folder, tmp_path / 'o', workers=1,
                      source_pattern=r'c([0-2])')
  assert about['sources'] == 4 and 'pattern' in about['sources_from']
  text = "3 files by the pattern 'c([0-2])', 1 do not fit it; every other file"
  assert text in summary.lines(about)[-1] and text in summary.attention(about)


@pytest.mark.parametrize('text, note', [
    ('', 'expected columns file and source or category, found none'),
    ('file,category\n', 'no row names a file')])
def test_an_empty_table_is_pointed_at(tmp_path, text, note):
  sound(tmp_path / 'in' / 'c.wav', seed=0)
  (tmp_path / 'in' / 'manifest.csv').write_text(text)
  about = prepare.run(tmp_path / 'in', tmp_path / 'out', workers=1)
  assert f'{note}: not used; every file counts' in summary.attention(about)


@pytest.mark.parametrize('columns, pattern, sources, text', [
    ('file,category', '', 4, 'for its category only; every file counts'),
    ('file,category', r'c(\d)\d', 2, '4 files by the pattern'),
    ('file,source,category', r'c(\d)\d', 2, 'for its category only; every '
     'other file')])
def test_a_table_may_only_have_categories(tmp_path, columns, pattern, sources,
                                          text):
  folder = tmp_path / 'in'
  rows = [columns]
  for i, name in enumerate(('c00', 'c01', 'c10', 'c11')):
    sound(folder / f'{name}.wav', seed=i)
    # The recording of the table is not that of the pattern.
    rows.append(','.join({'file': f'{name}.wav', 'source': 'same',
                          'category': f'kind {i % 2}'}[column]
                         for column in columns.split(',')))
  (folder / 'manifest.csv').write_text('\n'.join(rows))
  about = prepare.run(folder, tmp_path / 'out', workers=1,
                      source_pattern=pattern)
  assert about['sources'] == sources
  assert text in summary._sources(about['sources_from'])
  corpus = data.load(tmp_path / 'out')
  assert data.categories(corpus, ('kind 0', 'kind 1'), 'x') == [
      'kind 0', 'kind 1']


def test_commands_end_in_one_line(tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'refused').mkdir()
  (tmp_path / 'refused' / 'a.wav').write_text('x')
  out = tmp_path / 'out'
  for source, why in [
      ('missing', 'missing: no such folder or archive'),
      ('empty', r'empty: no sound files in it (0 other files)'),
      ('refused', 'no usable sound: all 1 files refused (1 undecodable)')]:
    done = command('--audio', tmp_path / source, '--out', out)
    assert done.returncode == 1 and done.stdout == ''
    assert len(done.stderr.splitlines()) == 1 and why in done.stderr
    assert out.exists() == (source == 'refused')
    assert not (out / 'corpus.json').exists()
  assert refusals(out)['a.wav']['reason'] == 'undecodable'
  sound(tmp_path / 'good' / 'a.wav')
  done = command('--audio', tmp_path / 'good', '--out', tmp_path / 'o',
                 '--workers', 0)
  assert done.returncode == 1 and 'workers is 0: expected' in done.stderr
  done = command('--audio', tmp_path / 'good', '--out', tmp_path / 'o')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('0.00 h in 1 records of 1 files from 1 sources')
  assert (f'next: python -m launch.sweep --config=configs/quickstart.py '
          f'--config.data.root={tmp_path}/o --config.eval.tasks=TASKS '
          '--root=SWEEP') in done.stdout
  assert data.load(tmp_path / 'o').hours == 1 / 3600


@pytest.mark.slow
def test_the_next_command_is_one_that_runs(tmp_path):
  (tmp_path / 'audio').mkdir()
  for i in range(90):
    wave_S = .1 * np.random.default_rng(i).standard_normal(30 * 16000)
    soundfile.write(tmp_path / 'audio' / f'{i}.wav', wave_S, 16000)
  synth.write_tasks(tmp_path, 0, clips_per_task=(12, 6, 6), names=['timbre'],
                    workers=1, progress=False)
  done = command('--audio', tmp_path / 'audio', '--out', tmp_path / 'o')
  words = done.stdout.partition('next: python -m ')[2].partition(' (')[0]
  words = words.replace('TASKS', f'{tmp_path}/tasks').replace(
      'SWEEP', f'{tmp_path}/sweep').split()
  # Its runs are written, not trained.
  done = subprocess.run([sys.executable, '-m', words[0], 'write', *words[1:]],
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'sweep' / 'sweep.json').is_file()


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(tmp_path):
  for i in range(3):
    sound(tmp_path / 'in' / f'{i}.flac', 40, seed=i)
  limit = 600_000  # each shard wants 1.28 MB
  out = tmp_path / 'out'
  done = command('--audio', tmp_path / 'in', '--out', out, largest=limit)
  assert done.returncode == 1
  said = [line for line in done.stderr.splitlines()
          if not line.startswith('prepare: ')]
  assert len(said) == 1 and said[0].startswith('error: ')
  assert 'cannot write shard-' in said[0] and 'too large' in said[0]
  assert not (out / 'corpus.json').exists()
  assert list(out.rglob('*.part')) == []
  made = prepare.run(tmp_path / 'in', out, workers=1)
  assert made['files'] == 3 and data.verify(data.load(out)) == []


def test_any_file_name_is_carried(tmp_path):
  names = [b'na\xffme.wav', b'new\nline, "so".wav', b'cr\r.wav',
           b'a\tb.wav', '\u97f3: x.wav'.encode(), b'-o.wav',
           b'bad: one.wav']
  for i, name in enumerate(names):
    sound(tmp_path / 'plain.wav', seed=i)
    (tmp_path / 'in').mkdir(exist_ok=True)
    os.rename(os.fsencode(tmp_path / 'plain.wav'),
              os.fsencode(tmp_path / 'in') + b'/' + name)
  (tmp_path / 'in' / 'bad: one.wav').write_text('x')
  prepare.run(tmp_path / 'in', tmp_path / 'out', workers=1)
  assert sorted(data.load(tmp_path / 'out').records['file']) == sorted([
      'na\\udcffme.wav', 'new\nline, "so".wav', '\u97f3: x.wav', '-o.wav',
      'cr\r.wav', 'a\tb.wav'])
  # By the manifest, as of a corpus without an index, and by other readers.
  want = list(data.load(tmp_path / 'out').records['file'])
  with open(tmp_path / 'out' / 'manifest.csv', newline='') as file:
    assert [row['file'] for row in csv.DictReader(file)] == want
  (tmp_path / 'out' / 'index' / 'index.json').unlink()
  assert list(data.load(tmp_path / 'out').records['file']) == want
  assert refusals(tmp_path / 'out')['bad: one.wav']['reason'] == 'undecodable'


def archive(path, members, mode='w'):
  with tarfile.open(path, mode) as tar:
    for name, content in members:
      if isinstance(name, tarfile.TarInfo):
        tar.addfile(name)
        continue
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def flac(seed, seconds=1.0):
  file = io.BytesIO()
  soundfile.write(file, noise(seconds, seed=seed), 16000, format='FLAC')
  return file.getvalue()


def test_tars_give_what_their_files_give(tmp_path):
  members = [(f'speech/{i:03d}.flac', flac(i)) for i in range(3)]
  folder = tmp_path / 'in'
  folder.mkdir()
  for kind in ('', ':gz', ':xz', ':bz2'):
    archive(folder / f'x.tar{kind.replace(":", ".")}',
            members + [('speech/000.json', b'{}')], f'w{kind}')
  made = prepare.run(folder, tmp_path / 'o', workers=1)
  assert made['ignored'] == 4 and made['refused'] == {}
  records = data.load(tmp_path / 'o').records
  assert set(records['category']) == {'speech'}
  for kind in ('', '.gz', '.xz', '.bz2'):
    rows = records[records['file'].str.startswith(f'x.tar{kind}/speech')]
    assert list(rows['file']) == [f'x.tar{kind}/{name}' for name, _ in members]
    assert list(rows['sha256']) == [
        hashlib.sha256(audio.to_int16(audio.read(content)).tobytes())
        .hexdigest() for _, content in members]
  assert not (tmp_path / 'o' / 'unpacked').exists()
  assert prepare.run(folder, tmp_path / 'o') == made


def test_a_tar_itself_is_an_input(tmp_path):
  archive(tmp_path / 'set.tar', [('a.flac', flac(0)), ('./b/c.flac', flac(1))])
  prepare.run(tmp_path / 'set.tar', tmp_path / 'o', workers=1)
  records = data.load(tmp_path / 'o').records
  assert list(records['file']) == ['set.tar/a.flac', 'set.tar/b/c.flac']
  assert list(records['category']) == ['', 'b']


def hostile(tmp_path):
  """A tar that tries to reach out, with one honest member."""
  def special(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None
  victim = tmp_path / 'victim.wav'
  sound(victim)
  return [
      ('good.flac', flac(0)), ('../escaped.flac', flac(1)),
      (f'{tmp_path}/absolute.flac', flac(2)), ('a/../../b.flac', flac(3)),
      special('link.wav', tarfile.SYMTYPE, str(victim)),
      special('hard.wav', tarfile.LNKTYPE, str(victim)),
      special('null.wav', tarfile.CHRTYPE),
      special('fifo.wav', tarfile.FIFOTYPE),
      special('folder.wav', tarfile.DIRTYPE)]


def test_archives_cannot_reach_outside(tmp_path):
  (tmp_path / 'in').mkdir()
  archive(tmp_path / 'in' / 'x.tar', hostile(tmp_path))
  before = set(tmp_path.rglob('*'))
  made = prepare.run(tmp_path / 'in', tmp_path / 'out', workers=1)
  assert all((tmp_path / 'out') in [p, *p.parents]
             for p in set(tmp_path.rglob('*')) - before)
  records = data.load(tmp_path / 'out').records
  assert list(records['file']) == ['x.tar/good.flac']
  assert made['refused'] == {'unsafe path': 3, 'not a regular file': 4}


def test_damaged_archives_cost_only_what_is_damaged(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  members = [(f'{i}.flac', flac(i)) for i in range(3)]
  archive(folder / 'whole.tar', members)
  raw = (folder / 'whole.tar').read_bytes()
  with tarfile.open(folder / 'whole.tar') as tar:
    last = tar.getmembers()[2]
  (folder / 'cut.tar').write_bytes(raw[:last.offset_data + 100])
  (folder / 'broken.tar').write_bytes(
      raw[:last.offset] + bytes(range(256)) * 2 + raw[last.offset + 512:])
  (folder / 'garbage.tar').write_bytes(random.Random(1).randbytes(9999))
  (folder / 'empty.tar.gz').write_bytes(b'')
  archive(folder / 'packed.tar.gz', members, 'w:gz')
  packed = (folder / 'packed.tar.gz').read_bytes()
  (folder / 'packed.tar.gz').write_bytes(packed[:len(packed) // 2])
  # A header that claims a name of megabytes.
  long = tarfile.TarInfo('././@LongLink')
  long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**22
  with open(folder / 'name.tar', 'wb') as file:
    file.write(long.tobuf())
    file.truncate(2**22 + 10240)
  archive(folder / 'many.tar', [(f'{i}.flac', b'') for i in range(21)])
  made = prepare.run(folder, tmp_path / 'out', workers=1, max_members=20)
  assert sorted(data.load(tmp_path / 'out').records['file']) == [
      f'{tar}.tar/{i}.flac' for tar in ('broken', 'cut', 'whole')
      for i in range(3 if tar == 'whole' else 2)]
  found = refusals(tmp_path / 'out')
  assert {r['reason'] for r in found.values()} == {'damaged archive'}
  assert set(found) == {
      'broken.tar', 'cut.tar', 'cut.tar/2.flac', 'garbage.tar', 'many.tar',
      'name.tar', 'packed.tar.gz', 'empty.tar.gz'}
  assert made['files'] == 7


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  archive(folder / 'bomb.tar.xz', [('zeros.wav', bytes(5 * 10**6))], 'w:xz')
  assert (folder / 'bomb.tar.xz').stat().st_size < 10**4
  archive(folder / 'good.tar.gz', [('a.flac', flac(0))], 'w:gz')
  made = prepare.run(folder, tmp_path / 'out', workers=1,
                     max_unpacked_gb=0.004)
  assert made['files'] == 1 and made['refused'] == {'damaged archive': 1}
  detail = refusals(tmp_path / 'out')['bomb.tar.xz']['detail']
  assert detail == 'compressed archives unpack to more than 0.004 GB'


# Stands in for the decoder, and does what a hostile file may make one do.
DECODER = '''
import importlib.machinery, importlib.util, os, sys, time
here = os.path.dirname(__file__)
real = importlib.machinery.PathFinder.find_spec(
    'soundfile', [p for p in sys.path if os.path.abspath(p or '.') != here])
sys.modules[__name__] = module = importlib.util.module_from_spec(real)
real.loader.exec_module(module)
class SoundFile(module.SoundFile):
  def __init__(self, file, *args, **kwargs):
    super().__init__(file, *args, **kwargs)
    self.label = file.name
  def read(self, *args, **kwargs):
    if 'crash' in self.label: os.abort()
    if 'hang' in self.label: time.sleep(1000)
    if 'greedy' in self.label: bytearray(2**36)
    return super().read(*args, **kwargs)
module.SoundFile = SoundFile
'''


def test_a_decoder_that_crashes_hangs_or_grabs_memory(tmp_path):
  (tmp_path / 'path').mkdir()
  (tmp_path / 'path' / 'soundfile.py').write_text(DECODER)
  for i, name in enumerate(['a', 'crash', 'b', 'hang', 'greedy', 'z']):
    sound(tmp_path / 'in' / f'{name}.wav', seed=i)
  done = command('--audio', tmp_path / 'in', '--out', tmp_path / 'out',
                 '--timeout', 1.5, '--workers', 2,
                 PYTHONPATH=str(tmp_path / 'path'))
  assert done.returncode == 0, done.stderr
  records = data.load(tmp_path / 'out').records
  assert list(records['file']) == ['a.wav', 'b.wav', 'z.wav']
  found = refusals(tmp_path / 'out')
  assert {f: (r['reason'], r['detail']) for f, r in found.items()} == {
      'crash.wav': ('crashed the decoder', 'SIGABRT'),
      'hang.wav': ('timed out', 'nothing decoded for 1.5 s'),
      'greedy.wav': ('undecodable', 'asks for too much memory')}
  assert all(r['sha256'] for r in found.values())


def children(pid):
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in path.read_text().split()]


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  folder = tmp_path_factory.mktemp('many')
  for i in range(16):
    sound(folder / f'{i}.flac', 60, 44100, seed=i)
  (folder / '7.flac').write_bytes(b'fLaC')
  out = tmp_path_factory.mktemp('straight') / 'out'
  prepare.run(folder, out, workers=2)
  return folder, contents(out)


def start(folder, out):
  return subprocess.Popen(
      [sys.executable, '-m', 'launch.prepare', '--audio', str(folder),
       '--out', str(out), '--workers', '2'], cwd=ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sizes(folder):
  """Every file below a folder that is being written, with its size."""
  sizes = {}
  for path in folder.rglob('*'):
    with contextlib.suppress(FileNotFoundError):
      sizes[path] = path.stat().st_size
  return sizes


def test_killed_at_any_moment_it_goes_on_to_the_same_end(many, tmp_path):
  folder, want = many
  out = tmp_path / 'out'
  rng = random.Random(0)
  kills = 0
  while True:
    before = sizes(out)
    job = start(folder, out)
    # Killed soon after it has written something new, wherever that is.
    while kills < 3 and job.poll() is None and sizes(out) == before:
      time.sleep(.005)
    try:
      job.communicate(timeout=rng.uniform(0., .1) if kills < 3 else 300)
      break
    except subprocess.TimeoutExpired:
      workers = children(job.pid)
      job.kill()
      job.communicate()
      kills += 1
      # No worker outlives its parent by much.
      deadline = time.monotonic() + 10
      while any(pathlib.Path(f'/proc/{w}').exists() for w in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
  assert job.returncode == 0 and kills >= 2
  assert contents(tmp_path / 'out') == want


def test_killed_workers_are_replaced_and_no_file_is_blamed(many, tmp_path):
  folder, want = many
  rng = random.Random(1)
  job = start(folder, tmp_path / 'out')
  kills = 0
  while job.poll() is None:
    time.sleep(0.3)
    workers = children(job.pid) if job.poll() is None else []
    if workers and kills < 4:
      os.kill(rng.choice(workers), signal.SIGKILL)
      kills += 1
  job.communicate()
  assert job.returncode == 0 and kills >= 2
  assert contents(tmp_path / 'out') == want


def mutated(raw, rng):
  """One of the accidents that happen to files."""
  raw = bytearray(raw)
  kind = rng.randrange(5)
  for _ in range(rng.choice([1, 3, 30])):
    at = rng.randrange(len(raw))
    if kind == 0:
      raw[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
      raw[at:at + 8] = rng.randbytes(8)
    elif kind == 2:
      raw[at % 64] = rng.randrange(256)
    elif kind == 3:
      del raw[at:at + rng.randrange(1, 200)]
    else:
      raw[at:at] = raw[:rng.randrange(1, 200)]
    if len(raw) < 64:
      break
  return bytes(raw)


@pytest.mark.parametrize('count', [
    80, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_files_never_stop_it(tmp_path, count):
  rng = random.Random(count)
  ways = [('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('FLAC', None),
          ('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', None), ('AIFF', None),
          ('CAF', 'ALAC_16'), ('W64', None), ('WAV', 'MS_ADPCM')]
  for i in range(count):
    form, subtype = ways[i % len(ways)]
    file = io.BytesIO()
    soundfile.write(file, noise(0.5, seed=i), 16000, format=form,
                    subtype=subtype)
    path = tmp_path / 'in' / f'{i:03d}.{form.lower()}'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(mutated(file.getvalue(), rng))
  made = prepare.run(tmp_path / 'in', tmp_path / 'out', timeout=20)
  corpus = data.load(tmp_path / 'out')
  assert data.verify(corpus) == []
  kept, refused = set(corpus.records['file']), set(refusals(tmp_path / 'out'))
  assert not kept & refused and len(kept | refused) == count
  assert len(kept) == made['files'] and refused


def test_waves_made_by_a_program(tmp_path):
  clips = [(f'{i}.wav', f's{i // 2}', 'tone', noise(2, seed=i)[:, 0].astype(
      np.float32)) for i in range(5)]
  about = {'seed': 3, 'hours': 0.5}
  made = prepare.write(tmp_path / 'o', clips, about, piece_seconds=1.5,
                       clips_per_shard=2)
  assert (made['records'], made['sources'], made['shards']) == (10, 3, 3)
  corpus = data.load(tmp_path / 'o')
  wave_NS, _ = data.sample(corpus, 10, 16000, 0)
  assert wave_NS.shape == (10, 16000)
  read = data.folder.reader(corpus, resident=True)
  np.testing.assert_array_equal(
      np.concatenate([read(2, 0, 10**6), read(3, 0, 10**6)]),
      audio.to_int16(clips[1][3]))
  assert prepare.write(tmp_path / 'o', iter(()), about,
                       piece_seconds=1.5) == made
  with pytest.raises(ValueError, match='made with about'):
    prepare.write(tmp_path / 'o', clips, {'seed': 4}, piece_seconds=1.5)
  with pytest.raises(ValueError, match='no usable sound'):
    prepare.write(tmp_path / 'p', [], about)


def test_shares_depend_on_the_listing_alone():
  entries = [listing.Entry(f'{i}', '', 0, size, '', '', '') for i, size in
             enumerate([10, 0, 300, 5, 5, 5, 90, 90, 1])]
  runs = listing.shares(entries, target=3, smallest=50, largest=200, most=3)
  assert sum(runs, []) == entries and all(runs)
  assert max(map(len, runs)) <= 3
  assert all(len(run) == 1 or sum(e.size for e in run) <= 506 // 3
             for run in runs)


def test_cuts_cover_without_overlap():
  for samples in (1, 99, 100, 101, 250, 1000, 1001):
    parts = shards.cuts(samples, 100)
    assert [p[0] for p in parts[1:]] == [p[1] for p in parts[:-1]]
    assert parts[0][0] == 0 and parts[-1][1] == samples
    sizes = [stop - start for start, stop in parts]
    assert max(sizes) <= 100 and max(sizes) - min(sizes) <= 1
