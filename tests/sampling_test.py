"""Which clips a run trains on and which it is read on."""

import numpy as np
import pytest

from audiorank import data
from audiorank import evals
from audiorank import prepare
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import train
from audiorank import train_state
from tests import tiny

CATEGORIES = ('bird', 'rain', 'speech')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Recordings of 2 s whose loudest sample tells their category."""
  rng = np.random.default_rng(0)
  clips = []
  for r in range(36):
    kind = r % 3
    wave_S = rng.integers(-900, 900, 32000).astype(np.int16)
    wave_S[::1000] = 1000 * (kind + 1) + r
    clips.append((f'{CATEGORIES[kind]}/{r}.wav', f'recording {r}',
                  CATEGORIES[kind], wave_S))
  out = tmp_path_factory.mktemp('categories') / 'out'
  prepare.write(out, clips, {'made by': 'a test'})
  return out


def config(corpus, **changes):
  return records.frozen(tiny.config(corpus, **{
      'data.valid_fraction': .34, **changes}))


def kinds(wave_NS):
  """Returns the categories of clips, as their loudest sample tells them."""
  return {CATEGORIES[int(peak) // 1000 - 1] for peak in wave_NS.max(1)}


def assert_same(ours, theirs):
  np.testing.assert_array_equal(ours.wave_NS, theirs.wave_NS)
  np.testing.assert_array_equal(ours.source_N, theirs.source_N)


def test_a_subset_by_category_holds_no_other(corpus):
  samples = sampling.samples(config(corpus, **{'data.category': ('speech',)}))
  subset, valid_NS = samples.subset, samples.valid.wave_NS
  assert set(subset.records['category']) == {'speech'}
  assert kinds(valid_NS) == {'speech'}
  stream = data.stream(subset, batch=8, samples=8000, seed=0)
  for _ in range(4):
    assert kinds(next(stream)) == {'speech'}
  both = sampling.parts(config(corpus, **{'data.category': ('speech', 'bird')}))
  assert set(both.subset.records['category']) == {'speech', 'bird'}
  whole = sampling.parts(config(corpus))
  assert set(both.subset.records['file']) == set(
      whole.usable.records['file'][whole.usable.records['category'] != 'rain'])


def test_hours_are_of_the_categories_and_nested(corpus):
  least, more = (sampling.parts(config(corpus, **{
      'data.category': ('rain',), 'data.hours': n * 2 / 3600})).subset
                 for n in (3, 6))
  assert len(least.records) == 3 and len(more.records) == 6
  assert set(least.records['file']) < set(more.records['file'])
  assert set(more.records['category']) == {'rain'}


def test_what_rank_is_read_on_does_not_hang_on_what_is_trained_on(corpus):
  plain = config(corpus)
  for changes in ({'data.category': ('rain',)},
                  {'data.category': ('bird',), 'monitor.samples': ('valid',
                                                                   'rain')}):
    other = config(corpus, **changes)
    assert_same(sampling.samples(plain).monitor,
                sampling.samples(other).monitor)
  both = [dict(sampling.further(config(corpus, **{
      'data.category': category, 'monitor.samples': ('valid', 'rain')})))
          for category in ((), ('bird',))]
  for name in ('valid', 'rain'):
    assert_same(both[0][name], both[1][name])
  assert kinds(both[0]['rain'].wave_NS) == {'rain'}
  main_N = sampling.samples(plain).monitor.source_N
  # Recordings held out are in no other sample.
  assert not set(both[0]['valid'].source_N) & set(main_N)
  assert set(both[0]['rain'].source_N) <= set(main_N)


def test_a_sample_is_read_once_by_a_machine_and_its_processes(
    corpus, tmp_path, monkeypatch):
  """It is mapped from a file: processes share its memory."""
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path))
  usable = sampling.parts(config(corpus)).usable
  first = sampling.read(usable, 20, 8000, 0)
  plain = data.sample(usable, 20, 8000, 0)
  np.testing.assert_array_equal(first.wave_NS, plain[0])
  np.testing.assert_array_equal(first.source_N, plain[1])
  assert isinstance(first.wave_NS, np.memmap)
  with monkeypatch.context() as patch:
    patch.setattr(data, 'sample', None)
    assert_same(sampling.read(usable, 20, 8000, 0), first)
  ours = sampling.samples(config(corpus))
  theirs = sampling.samples(config(corpus, seed=4))
  assert ours.monitor is theirs.monitor and ours.valid is theirs.valid
  assert ours.usable is theirs.usable


@pytest.mark.parametrize('harm', ['cut', 'no sources', 'no room'])
def test_a_damaged_sample_is_read_again(corpus, tmp_path, monkeypatch, harm):
  folder = tmp_path / 'cache'
  monkeypatch.setenv('AUDIORANK_CACHE', str(folder))
  usable = sampling.parts(config(corpus)).usable
  first = data.sample(usable, 20, 8000, 0)
  if harm == 'no room':
    folder.write_text('')  # A file where the cache's folder should be.
  else:
    sampling.read(usable, 20, 8000, 0)
    waves, sources = sorted((folder / 'samples').glob('*'),
                            key=lambda path: '-source' in path.name)
    if harm == 'cut':
      waves.write_bytes(waves.read_bytes()[:-100])
    else:
      sources.unlink()
  again = sampling.read(usable, 20, 8000, 0)
  np.testing.assert_array_equal(again.wave_NS, first[0])
  np.testing.assert_array_equal(again.source_N, first[1])


def test_a_corpus_that_is_written_anew_is_read_anew(tmp_path):
  noise_S = np.random.default_rng(0).integers(-9, 9, 9000).astype(np.int16)
  for count in (3, 4):
    prepare.write(tmp_path / f'{count}', [
        (f'{i}.wav', f'{i}', '', noise_S) for i in range(count)],
                  {'made by': 'a test'})
  root = tmp_path / 'corpus'
  (tmp_path / '3').rename(root)
  changes = {'monitor.clips': 2, 'monitor.valid_clips': 0}
  assert len(sampling.parts(config(root, **changes)).usable) == 2
  root.rename(tmp_path / 'old')
  (tmp_path / '4').rename(root)
  assert len(sampling.parts(config(root, **changes)).usable) == 3


def test_a_sample_takes_what_there_is(corpus):
  (_, sample), = sampling.further(config(
      corpus, **{'monitor.samples': ('speech',), 'monitor.clips': 90}))
  usable = sampling.parts(config(corpus)).usable
  speech = usable.records[usable.records['category'] == 'speech']
  assert len(sample) == 4 * len(speech) < 90
  assert len(set(sample.source_N)) == len(speech)


@pytest.mark.parametrize('changes, text', [
    ({'data.category': ('spech',)},
     "data.category: no category 'spech' in .*: there are bird, rain, speech"),
    ({'monitor.samples': ('valid', 'dog')},
     "monitor.samples: no category 'dog'"),
    ({'monitor.samples': ('low',)},
     "monitor.samples 'low': rank_low is the col"),
    ({'data.category': ('rain',), 'data.valid_fraction': .01},
     'data.category rain: no recording held out'),
    ({'data.category': ('rain',), 'data.hours': .01}, '0.01 hours asked for'),
    ({'monitor.valid_clips': 400, 'train.batch': 8},
     'monitor.valid_clips 400: 48 clips of 0.5 s are held out')])
def test_what_is_not_there_is_named(corpus, tmp_path, changes, text):
  wrong = config(corpus, **changes)
  with pytest.raises(ValueError, match=text):
    records.open_run(tmp_path, wrong)
    train.run(tmp_path, wrong)
  assert not list((tmp_path / 'checkpoints').glob('*'))


@pytest.mark.parametrize('name', [sampling.TRAINED, sampling.HELD_OUT])
def test_a_category_called_like_a_sample_is_refused_as_one(tmp_path, name):
  """Both would be the column rank_train or rank_valid."""
  noise_S = np.random.default_rng(0).integers(-9, 9, 9000).astype(np.int16)
  prepare.write(tmp_path / 'c', [(f'{i}.wav', f'{i}', (name, 'rain')[i % 2],
                                  noise_S) for i in range(24)],
                {'made by': 'a test'})
  small = {'monitor.clips': 4, 'monitor.valid_clips': 0}
  sampling.parts(config(tmp_path / 'c', **{
      **small, 'data.category': (name,)}))
  other, = {sampling.TRAINED, sampling.HELD_OUT} - {name}
  sampling.parts(config(tmp_path / 'c', **{
      **small, 'monitor.samples': (other, 'rain')}))
  with pytest.raises(ValueError, match=f"^monitor.samples '{name}': a category "
                     'of the corpus too: expected categories of other names$'):
    sampling.parts(config(tmp_path / 'c', **{
        **small, 'monitor.samples': ('rain', name)}))


def test_a_corpus_without_categories_says_so(tmp_path):
  noise_S = np.random.default_rng(0).integers(-9, 9, 9000).astype(np.int16)
  prepare.write(tmp_path / 'c', [(f'{i}.wav', f'{i}', '', noise_S)
                                 for i in range(3)], {'made by': 'a test'})
  with pytest.raises(ValueError, match='it has none'):
    sampling.parts(config(tmp_path / 'c', **{'data.category': ('speech',)}))


def test_old_runs_keep_their_names_and_get_the_fields(corpus, tmp_path):
  new = tiny.config(corpus)
  old = records.plain(new)
  del old['data']['category'], old['monitor']['samples']
  assert records.run_id(old) == records.run_id(new)
  records.write_json(tmp_path / 'config.json', old)
  assert records.load_config(tmp_path).monitor.samples == ()
  for field in ('data.category', 'monitor.samples'):
    assert records.run_id(tiny.config(corpus, **{field: ('rain',)})) != (
        records.run_id(new))


@pytest.mark.filterwarnings('ignore::UserWarning:orbax')
@pytest.mark.filterwarnings('ignore')
def test_samples_are_read_first_and_last_and_end_in_the_tables(
    corpus, tmp_path):
  asked = config(corpus, **{'data.category': ('rain',),
                            'monitor.samples': ('valid', 'bird')})
  plain = config(corpus, **{'data.category': ('rain',)})
  for name, c in (('a', asked), ('b', plain)):
    records.open_run(tmp_path / name, c)
    train.run(tmp_path / name, c)
  read, bare = (records.read(tmp_path / n, 'monitor') for n in 'ab')
  names = [[s['sample'] for s in r['samples']] for r in read]
  assert names == [['valid', 'bird'], [], ['valid', 'bird']]
  apart = {*records.TIMES, 'samples'}
  assert [{k: v for k, v in r.items() if k not in apart} for r in read] == [
      {k: v for k, v in r.items() if k not in apart} for r in bare]
  runs = records.collect(tmp_path).runs.set_index('run_id')
  assert records.samples(runs) == ['valid', 'bird']
  last = read[-1]['samples'][1]
  row = runs.loc['a']
  assert row['category'] == 'rain'
  assert row['rank_bird'] == last['rank']['value']
  assert row['rank_bird_low'] == last['rank']['low'] < row['rank_bird_high']
  assert row['clips_bird'] == last['n'] == len(next(iter(sampling.further(
      config(corpus, **{'monitor.samples': ('bird',)}))))[1])
  assert last['rank']['curve'][-1] == [last['n'], pytest.approx(
      last['rank']['value'])]
  assert last['rank_center']['value'] == row['rank_center_bird']


def test_devices_do_not_change_what_is_read(corpus):
  c = config(corpus, **{'monitor.samples': ('valid', 'speech'),
                        'train.steps': 0, 'monitor.layers': ('all',),
                        'monitor.neighbour_clips': 40})
  samples = sampling.samples(c)._replace(valid=sampling.EMPTY)
  found = []
  for n in (1, 8):
    on = sharding.mesh(n, 1)
    fields = evals.evaluate(
        c, train_state.init_state(c, on), samples, on,
        further=sampling.further(c))
    found.append(fields['samples'])
    assert [f['layer'] for f in fields['layers']] == [
        *range(c.model.depth)]
    assert fields['neighbourhood']['twonn'] > 0
    for one in (fields, *fields['layers']):
      tokens = one['tokens']
      assert tokens['low'] < tokens['value'] < tokens['high']
      assert tokens['value'] != one['rank']['value']
  for one, eight in zip(*found, strict=True):
    assert one['sample'] == eight['sample'] and one['n'] == eight['n']
    assert one['rank']['value'] == pytest.approx(
        eight['rank']['value'], rel=1e-4)
