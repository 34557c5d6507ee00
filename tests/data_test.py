"""The clip stream: which recordings, which clips, in which order."""

import collections
import hashlib
import itertools
import json
import math
import shutil

import numpy as np
import pytest

from audiorank import data
from audiorank import prepare

CROP = 1600


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Recordings whose samples tell where they are from.

  Sample i of recording r is 300 r + i // 100 + 1, never 0: padding is seen.
  """
  rng = np.random.default_rng(0)
  clips = []
  for r, length in enumerate(100 * rng.integers(5, 46, 60)):
    # Longer ones are cut in two, between samples that differ.
    length *= 2 if length > 2500 and r % 2 else 1
    wave_S = (300 * r + np.arange(length) // 100 + 1).astype(np.int16)
    clips.append((f'c{r % 3}/{r}.wav', f'recording {r // 2}', f'c{r % 3}',
                  wave_S))
  out = tmp_path_factory.mktemp('corpus') / 'out'
  # Parts of at most 0.3 s, several shards.
  prepare.write(out, clips, {'made by': 'a test'}, piece_seconds=0.3,
                clips_per_shard=16)
  return data.load(out)


def take(stream, count):
  return list(itertools.islice(stream, count))


def units(corpus, samples=CROP):
  return int(np.ceil(corpus.records['samples'] / samples).sum())


def test_hours_and_records_agree(corpus):
  table = corpus.records
  assert corpus.hours == table['samples'].sum() / 16000 / 3600
  assert list(table['record']) == list(range(len(table)))
  assert table['shard'].nunique() == 4
  assert table['samples'].max() <= 4800
  assert data.verify(corpus) == []


def test_smaller_subsets_lie_inside_larger_ones(corpus):
  before, longest = set(), corpus.records['samples'].max() / 16000 / 3600
  for part in np.linspace(0.01, 0.99, 23):
    hours = float(part * corpus.hours)
    chosen = data.subset(corpus, hours, seed=5)
    assert hours - 1e-9 <= chosen.hours < hours + longest + 1e-9
    now = set(chosen.records['record'])
    assert before <= now
    before = now
    # Whole recordings but for the last one.
    counts = chosen.records['source'].value_counts()
    all_counts = corpus.records['source'].value_counts()
    assert (counts < all_counts[counts.index]).sum() <= 1
  assert data.subset(corpus, math.inf, 5) == corpus
  whole = data.subset(corpus, corpus.hours, 5)
  assert whole.hours == corpus.hours


def test_subsets_depend_on_the_seed_and_say_so(corpus):
  hours = corpus.hours / 3
  one, same, other = (data.subset(corpus, hours, seed) for seed in (1, 1, 2))
  assert one.sha256 == same.sha256 and one.records.equals(same.records)
  assert len({one.sha256, other.sha256, corpus.sha256}) == 3
  assert set(one.records['source']) != set(other.records['source'])


@pytest.mark.parametrize('hours', [None, 0, 0.0, -1, math.nan, '3'])
def test_hours_have_to_be_said(corpus, hours):
  with pytest.raises(ValueError, match='a positive number, or math.inf'):
    data.subset(corpus, hours, 0)


def test_more_hours_than_there_are(corpus):
  with pytest.raises(ValueError, match='500 hours asked for, .* has 0.00'):
    data.subset(corpus, 500, 0)


@pytest.mark.parametrize('fraction', [1e-6, 0.05, 0.3, 0.9])
def test_split_parts_by_recording(corpus, fraction):
  train, valid = data.split(corpus, fraction, seed=1)
  a, b = (set(part.records['source']) for part in (train, valid))
  assert a and b and not a & b
  assert sorted([*train.records['record'], *valid.records['record']]) == list(
      corpus.records['record'])
  if fraction > 0.01:
    longest = corpus.records.groupby('source')['samples'].sum().max()
    share = valid.records['samples'].sum() / corpus.records['samples'].sum()
    assert fraction - longest / 16000 / 3600 / corpus.hours < share <= fraction


def test_split_refuses_what_cannot_be_split(corpus):
  for fraction in (0, 1, -0.1, math.nan):
    with pytest.raises(ValueError, match='between 0 and 1'):
      data.split(corpus, fraction, 0)
  single = data.folder.select(corpus, lambda row_N: row_N == 0)
  with pytest.raises(ValueError, match='has 1 source recording: at least 2'):
    data.split(single, 0.5, 0)


def test_each_epoch_takes_every_unit_once(corpus):
  table, size = corpus.records, units(corpus)
  want = collections.Counter({
      (300 * int(f.split('/')[1][:-4]) + s // 100 + 1, n): math.ceil(n / CROP)
      for f, s, n in zip(table['file'], table['start'], table['samples'])})
  # The first sample and the length tell the record, wherever its crop begins.
  first = sorted(want)
  batches = np.concatenate(take(data.stream(corpus, 7, CROP, seed=3), size))
  order = []
  for epoch in range(3):
    seen = collections.Counter()
    for wave_S in batches[epoch * size:(epoch + 1) * size]:
      value = wave_S[0]
      key = next((f, n) for f, n in first if f <= value <= f + (n - 1) // 100)
      seen[key] += 1
      order.append(key)
    assert seen == want
  assert order[:size] != order[size:2 * size]


def test_crops_are_where_they_may_be_and_short_records_are_padded(corpus):
  seen = set()
  for wave_S in np.concatenate(take(data.stream(corpus, 50, CROP, 0), 40)):
    length = np.count_nonzero(wave_S)
    assert (wave_S[:length] > 0).all() and not wave_S[length:].any()
    steps = np.diff(wave_S[:length])
    assert set(steps) <= {0, 1}
    seen.add((int(wave_S[0]), length == CROP))
  assert {full for _, full in seen} == {True, False}
  assert len(seen) > 300


@pytest.mark.parametrize('resident', [False, True])
def test_batches_do_not_depend_on_the_processes(corpus, resident):
  want = take(data.stream(corpus, 12, CROP, seed=9), 9)
  for count in (2, 3, 4):
    hosts = [take(data.stream(corpus, 12, CROP, seed=9, process_index=i,
                              process_count=count, resident=resident), 9)
             for i in range(count)]
    for t in range(9):
      rows_BS = np.concatenate([host[t] for host in hosts])
      assert rows_BS.dtype == np.int16
      np.testing.assert_array_equal(rows_BS, want[t])


@pytest.mark.parametrize('resident,threads', [(False, 1), (True, 1), (True, 5)])
def test_batches_do_not_depend_on_how_they_are_read(corpus, resident, threads):
  want = take(data.stream(corpus, 5, CROP, seed=9, threads=3), 12)
  got = take(data.stream(corpus, 5, CROP, seed=9, threads=threads,
                         resident=resident), 12)
  np.testing.assert_array_equal(got, want)


def test_resuming_is_exact(corpus):
  size = units(corpus)
  want = take(data.stream(corpus, 8, CROP, seed=2), size)
  for step in (1, 3, size // 8, size - 1):
    got = take(data.stream(corpus, 8, CROP, seed=2, first_step=step), 1)
    np.testing.assert_array_equal(got[0], want[step])
  far = take(data.stream(corpus, 8, CROP, seed=2, first_step=10**9), 2)
  assert far[0].any() and (far[0] != far[1]).any()


def test_seeds_differ(corpus):
  one, two = (take(data.stream(corpus, 16, CROP, seed), 1)[0]
              for seed in (0, 1))
  assert (one != two).any(1).mean() > 0.9


def test_a_batch_may_hold_many_epochs_of_a_tiny_corpus(corpus):
  tiny = data.subset(corpus, 1e-9, seed=0)
  assert len(tiny.records) == 1
  [wave_BS] = take(data.stream(tiny, 64, CROP, seed=0), 1)
  assert wave_BS.shape == (64, CROP) and wave_BS.any(1).all()


@pytest.mark.parametrize('wrong,why', [
    (dict(batch=10, process_count=4), 'batch 10 is not a multiple of 4 proc'),
    (dict(batch=0), 'batch 0'), (dict(samples=0), 'samples 0'),
    (dict(first_step=-1), 'first_step -1'), (dict(threads=0), 'threads 0'),
    (dict(process_index=2, process_count=2), 'process_index 2 of 2')])
def test_impossible_streams(corpus, wrong, why):
  with pytest.raises(ValueError, match=why):
    data.stream(corpus, **{**dict(batch=8, samples=CROP, seed=0), **wrong})


def test_an_empty_selection_cannot_be_streamed(corpus):
  empty = data.folder.select(corpus, lambda row_N: row_N < 0)
  with pytest.raises(ValueError, match='has no records to stream'):
    data.stream(empty, 4, CROP, 0)


def test_clip_names_tell_what_the_batch_holds(corpus):
  [wave_BS] = take(data.stream(corpus, 20, CROP, 4, first_step=6), 1)
  names = data.clip_names(corpus, 20, CROP, 4, step=6)
  for wave_S, name in zip(wave_BS, names, strict=True):
    file, _, second = name.partition('@')
    recording = int(file.split('/')[1].removesuffix('.wav'))
    at = (int(wave_S[0]) - 300 * recording - 1) * 100
    assert abs(float(second.removesuffix('s')) - at / 16000) < 0.012


def test_the_schedule_says_which_clips_the_stream_reads(corpus):
  at = data.schedule(corpus, 20, CROP, seed=4)
  read = data.folder.reader(corpus, resident=False)
  for step, wave_BS in enumerate(take(data.stream(corpus, 20, CROP, 4), 9)):
    for wave_S, record, start in zip(wave_BS, *at(step), strict=True):
      clip_S = read(record, start, CROP)
      np.testing.assert_array_equal(wave_S[:len(clip_S)], clip_S)
      assert not wave_S[len(clip_S):].any()


def test_the_sample_is_spread_and_does_not_overlap(corpus):
  recordings = corpus.records['source'].nunique()
  room = int(np.maximum(corpus.records['samples'] // CROP, 1).sum())
  wave_NS, source_N = data.sample(corpus, recordings, CROP, seed=0)
  assert wave_NS.dtype == np.int16 and source_N.dtype == np.int64
  assert len(set(source_N)) == recordings
  wave_NS, source_N = data.sample(corpus, room, CROP, seed=0)
  count = collections.Counter(source_N)
  assert len(count) == recordings
  # No clip begins within another: the samples tell their place to 100.
  ranges = sorted((int(w[0]), int(w[np.count_nonzero(w) - 1]))
                  for w in wave_NS)
  assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
  fewer_NS, _ = data.sample(corpus, room // 2, CROP, seed=0)
  np.testing.assert_array_equal(fewer_NS, wave_NS[:room // 2])
  other_NS, _ = data.sample(corpus, room // 2, CROP, seed=1)
  assert (other_NS != fewer_NS).any()
  with pytest.raises(ValueError, match=f'{room + 1} clips .* has {room}'):
    data.sample(corpus, room + 1, CROP, seed=0)


def test_a_recording_keeps_its_number_in_every_subset(corpus):
  train, valid = data.split(corpus, 0.4, 0)
  whole = set(data.sample(corpus, 30, CROP, 0)[1].tolist())
  parts = [set(data.sample(part, part.records['source'].nunique(), CROP,
                           0)[1].tolist()) for part in (train, valid)]
  assert not parts[0] & parts[1] and parts[0] | parts[1] == whole


def ordered(names, purpose, seed):
  """Recordings in the order of their hashes, as it has always been."""
  return sorted(names, key=lambda name: hashlib.sha256(
      f'{purpose}:{seed}:{name}'.encode()).hexdigest())


def bits(name, count):
  key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], '<u8')
  return np.random.Philox(key=key).random_raw(count)


@pytest.fixture(params=['as it is', 'in small blocks', 'without an index'])
def blockwise(request, corpus, monkeypatch, tmp_path):
  """The corpus, as a large one or one of old would be read."""
  if request.param == 'in small blocks':
    monkeypatch.setattr(data.index, 'ROWS', 32)
    monkeypatch.setattr(data.index, 'KEPT_KEYS', 2)
    monkeypatch.setattr(data.folder, 'FINE', 8)
    monkeypatch.setattr(data.selection, 'MOST', 3)
    monkeypatch.setattr(data.selection, 'SHIFT', 60)
    monkeypatch.setattr(data.clips, 'WINDOW', 20)
    monkeypatch.setattr(data.clips, 'CHUNK', 16)
    return data.load(corpus.root)
  if request.param == 'without an index':
    shutil.copytree(corpus.root, tmp_path / 'old')
    shutil.rmtree(tmp_path / 'old' / 'index')
    return data.load(tmp_path / 'old')
  return corpus


def test_the_choices_are_those_that_a_full_sort_makes(blockwise):
  """Against every order written out, as it was when corpora were small."""
  table = blockwise.records
  lengths = table.groupby('source')['samples'].sum()
  for fraction, seed in ((.05, 0), (.3, 4), (.9, 1), (1e-6, 2)):
    room, taken = fraction * table['samples'].sum(), []
    for source in ordered(lengths.index, 'split', seed):
      if lengths[source] <= room:
        taken.append(source)
        room -= lengths[source]
    taken = taken or [lengths.sort_index().idxmin()]
    train, valid = data.split(blockwise, fraction, seed)
    assert set(valid.records['source']) == set(taken)
    rows_N = table.index[table['source'].isin(taken)]
    assert list(valid.rows()) == list(rows_N)
    assert valid.sha256 == hashlib.sha256(
        blockwise.sha256.encode()
        + rows_N.to_numpy('<i8').tobytes()).hexdigest()
    part = train.records
    place = {s: i for i, s in enumerate(ordered(
        set(part['source']), 'subset', seed))}
    order = np.argsort(part['source'].map(place).to_numpy(), kind='stable')
    ends = np.cumsum(part['samples'].to_numpy()[order])
    for share in (.01, .4, .97):
      hours = float(share * train.hours)
      count = np.searchsorted(ends, hours * 3600 * 16000 - .5) + 1
      got = data.subset(train, hours, seed)
      assert list(got.records['record']) == sorted(
          part['record'].to_numpy()[order[:count]])
      at = data.schedule(got, 7, CROP, seed)
      lengths_N = got.records['samples'].to_numpy()
      unit_U = np.repeat(np.arange(len(got)), -(-lengths_N // CROP))
      want = np.concatenate([unit_U[np.argsort(
          bits(f'epoch:{seed}:{e}', len(unit_U)), kind='stable')]
                             for e in range(3)])
      for step in (s for s in (0, 2, 1, len(want) // 7 - 1)
                   if 0 <= 7 * s <= len(want) - 7):
        record_B, start_B = at(step)
        np.testing.assert_array_equal(record_B, want[7 * step:][:7])
        spare_B = np.maximum(lengths_N[record_B] - CROP, 0)
        unit_B = (bits(f'crop:{seed}:{step}', 7) >> np.uint64(11)) * 2.**-53
        np.testing.assert_array_equal(start_B, unit_B * (spare_B + 1) // 1)


def test_the_sample_is_the_one_that_a_full_sort_takes(blockwise):
  _, part = data.split(blockwise, .8, 3)
  table = part.records
  sources, count_R = table['source'].tolist(), np.maximum(
      table['samples'].to_numpy() // CROP, 1)
  place = {s: i for i, s in enumerate(ordered(set(sources), 'sample', 5))}
  units = [(r, slot) for r, n in enumerate(count_R) for slot in range(n)]
  order = sorted(range(len(units)), key=lambda u: (
      sources[units[u][0]], bits('sample:5', len(units))[u]))
  turns = {}
  ranked = []
  for unit in order:
    source = sources[units[unit][0]]
    turns[source] = turns.get(source, -1) + 1
    ranked.append((turns[source], place[source], units[unit]))
  shifts = (bits('shift:5', len(table)) >> np.uint64(11)) * 2.**-53
  for clips in (1, 5, len(place), len(units) - 1):
    row_N, start_N, _ = data.clips._spread(part, clips, CROP, 5)
    for (_, _, (record, slot)), row, start in zip(
        sorted(ranked)[:clips], row_N, start_N, strict=True):
      assert table['record'][record] == row
      spare = max(table['samples'][record] - count_R[record] * CROP, 0)
      assert start == slot * CROP + int(shifts[record] * (spare + 1))


def test_an_index_that_is_damaged_or_of_another_corpus(corpus, tmp_path):
  root = tmp_path / 'c'
  shutil.copytree(corpus.root, root)
  about = json.loads((root / 'index' / 'index.json').read_text())
  (root / 'index' / 'start.bin').write_bytes(b'')
  with pytest.raises(ValueError, match='start.bin: not the .* bytes'):
    data.load(root)
  for text in ('{"version": 1', '[]', '{"version": 1, "sha256": "'
               + about['sha256'] + '", "sizes": 3, "records": 1}'):
    (root / 'index' / 'index.json').write_text(text)
    with pytest.raises(ValueError, match='index.json: not an index'):
      data.load(root)
  about['sha256'] = 'of another'
  (root / 'index' / 'index.json').write_text(json.dumps(about))
  assert data.load(root).records.equals(corpus.records)


def test_what_is_not_a_corpus(tmp_path, corpus):
  with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
    data.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='was not made by prepare'):
    data.load(tmp_path)
  (tmp_path / 'plan.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match='not complete, run prep'):
    data.load(tmp_path)
  (tmp_path / 'corpus.json').write_text('{"format": 1')
  with pytest.raises(ValueError, match='corpus.json: not a corpus description'):
    data.load(tmp_path)
  (tmp_path / 'corpus.json').write_text(
      '{"format": 4, "rate": 16000, "sha256": ""}')
  with pytest.raises(ValueError, match='format 4, expected 1, 2 or 3'):
    data.load(tmp_path)
  (tmp_path / 'corpus.json').write_text(
      '{"format": 1, "rate": 16000, "sha256": "00"}')
  (tmp_path / 'manifest.csv').write_text('record\n')
  with pytest.raises(ValueError, match='manifest.csv: sha256 .* says 00'):
    data.load(tmp_path)


def test_damaged_shards_are_named(tmp_path):
  rng = np.random.default_rng(0)
  clips = [(f'{i}.wav', f'{i}', '', rng.integers(-99, 99, 50_000, np.int16))
           for i in range(4)]
  prepare.write(tmp_path / 'o', clips, {}, clips_per_shard=2)
  corpus = data.load(tmp_path / 'o')
  path = tmp_path / 'o' / 'shards' / corpus.records['shard'][2]
  raw = bytearray(path.read_bytes())
  raw[120_000] ^= 4
  path.write_bytes(raw)
  bad = data.verify(corpus)
  assert len(bad) == 1 and bad[0] in ('2.wav', '3.wav')
  with pytest.raises(ValueError, match='shard-00001.array_record record .*wav'):
    take(data.stream(corpus, 4, CROP, 0), 3)
  path.unlink()
  with pytest.raises(FileNotFoundError, match='shard-00001.*: no such shard'):
    data.load(tmp_path / 'o')
