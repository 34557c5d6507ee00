"""Several corpora as one: shares, purity, and what a mixture is called."""

import collections
import itertools

import jax
import numpy as np
import pytest

from audiorank import config as config_lib
from audiorank import data
from audiorank import prepare
from audiorank import sampling
from audiorank import sharding
from audiorank import train_state
from audiorank.data import mixture
from tests import tiny

CROP = 1600


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
  """Three corpora; the samples of corpus k are 100 k + recording + 1."""
  folder, out = tmp_path_factory.mktemp('mixture'), []
  rng = np.random.default_rng(0)
  for k, count in enumerate((12, 30, 5)):
    clips = [(f'{i}.wav', f'{i // 2}', 'ab'[i % 2] if k else 'only',
              np.full(rng.integers(800, 6000), 100 * k + i + 1, np.int16))
             for i in range(count)]
    prepare.write(folder / f'{k}', clips, {'k': k}, piece_seconds=.2,
                  clips_per_shard=8)
    out.append(str(folder / f'{k}'))
  return out


@pytest.fixture(scope='module')
def mixed(roots):
  return data.load(roots[0], (f'{roots[1]}=.5', f'{roots[2]}=2.5'))


def of(wave_BS):
  """Which corpus each clip is of."""
  return (np.asarray(wave_BS)[:, 0] - 1) // 100


def test_the_joint_corpus_has_the_records_of_all(roots, mixed):
  alone = [data.load(root) for root in roots]
  assert len(mixed) == sum(map(len, alone))
  assert mixed.hours == pytest.approx(sum(c.hours for c in alone))
  for column in ('file', 'start', 'samples', 'sha256', 'category', 'shard'):
    assert mixed.records[column].tolist() == [
        value for c in alone for value in c.records[column]]
  assert data.verify(mixed) == []


def test_every_corpus_has_its_share_of_the_clips(mixed):
  batches = list(itertools.islice(data.stream(mixed, 64, CROP, seed=1), 40))
  count = collections.Counter(of(np.concatenate(batches)).tolist())
  for k, share in enumerate((.25, .125, .625)):
    # A sample without replacement of a period of exact shares.
    sd = np.sqrt(share * (1 - share) / 2560)
    assert abs(count[k] / 2560 - share) < 4 * sd
  places = mixture.places((.25, .125, .625), 3)
  which, index = places(np.arange(2 * mixture.PERIOD))
  assert np.bincount(which).tolist() == [32768, 16384, 81920]
  for k in range(3):
    # Every clip of every corpus comes once, and in its order.
    np.testing.assert_array_equal(np.sort(index[which == k]),
                                  np.arange((which == k).sum()))
  assert (which[:100] != which[mixture.PERIOD:][:100]).any()


def test_a_mixture_is_a_pure_function_of_the_step_too(mixed):
  want = list(itertools.islice(data.stream(mixed, 12, CROP, 5), 9))
  for step in (1, 7):
    got = next(data.stream(mixed, 12, CROP, 5, first_step=step))
    np.testing.assert_array_equal(got, want[step])
  hosts = [list(itertools.islice(data.stream(
      mixed, 12, CROP, 5, process_index=i, process_count=3,
      resident=i == 1), 9)) for i in range(3)]
  for t in range(9):
    np.testing.assert_array_equal(
        np.concatenate([host[t] for host in hosts]), want[t])
  at = data.schedule(mixed, 12, CROP, 5)
  read = data.folder.reader(mixed, resident=False)
  record_B, start_B = at(3)
  for wave_S, record, start in zip(want[3], record_B, start_B):
    clip_S = read(record, start, CROP)
    np.testing.assert_array_equal(wave_S[:len(clip_S)], clip_S)


def test_selections_of_a_mixture(mixed):
  train, valid = data.split(mixed, .3, 0)
  a, b = (set(part.records['record']) for part in (train, valid))
  assert not a & b and len(a | b) == len(mixed)
  half = data.subset(train, train.hours / 2, 0)
  assert set(half.records['record']) <= a
  # Where a corpus is left out the others have all the clips.
  only = data.of_categories(train, ['a', 'b'])
  batch_BS = next(data.stream(only, 64, CROP, 0))
  assert set(of(batch_BS)) == {1, 2}
  wave_NS, _ = data.sample(train, 20, CROP, 0)
  assert wave_NS.shape == (20, CROP)


def test_a_mixture_is_known_by_its_corpora_and_weights(roots):
  load = lambda *parts: data.load(roots[0], parts).sha256
  base = load(f'{roots[1]}=1')
  assert base == load(f'{roots[1]}=1.0')
  assert len({base, load(f'{roots[1]}=2'), load(f'{roots[2]}=1'),
              load()}) == 4
  assert load() == data.load(roots[0]).sha256
  assert data.load(roots[1], (f'{roots[0]}=1',)).sha256 != base


@pytest.mark.parametrize('text,why', [
    ('=1', "'=1': expected FOLDER=WEIGHT"), ('x', "'x': expected FOLDER"),
    ('x=0', 'expected FOLDER=WEIGHT'), ('x=-1', 'expected FOLDER=WEIGHT'),
    ('x=nan', 'expected FOLDER=WEIGHT'), ('x=inf', 'expected FOLDER=WEIGHT')])
def test_what_is_no_mixture(roots, text, why):
  with pytest.raises(ValueError, match=why):
    data.load(roots[0], (text,))


def test_a_run_trains_on_its_mixture_and_keeps_its_name(roots, mixed):
  config = tiny.config(roots[0], **{
      'data.mixture': (f'{roots[1]}=.5', f'{roots[2]}=2.5'),
      'data.crop_seconds': .1,
      'monitor.valid_clips': 0, 'monitor.clips': 8})
  chosen = sampling.parts(config)
  assert chosen.usable.mixed and len(chosen.usable) + len(
      chosen.held_out) == len(mixed)
  plain = tiny.config(roots[0])
  old = config_lib.plain(plain)
  for field in ('mixture', 'gain_low', 'gain_high'):
    old['data'].pop(field)
  # A config of before there were mixtures is the same run; where the corpora
  # of a mixture lie does not matter, what they hold does.
  assert config_lib.run_id(plain) == config_lib.run_id(old)
  bound = config.copy_and_resolve_references()
  bound.data.sha256 = mixed.sha256
  moved = bound.copy_and_resolve_references()
  moved.data.mixture = ()
  assert config_lib.run_id(bound) == config_lib.run_id(moved)
  assert mixture.absolute(('a=1', 'b=.5'))[1].endswith('/b=0.5')


def test_a_gain_is_part_of_the_step_alone():
  wave_BS = np.random.default_rng(0).integers(-8000, 8000, (8, 8000), np.int16)
  config = config_lib.frozen(tiny.config(''))
  state = train_state.init_state(config, sharding.mesh(1, 1))

  def loss(**changes):
    config = config_lib.frozen(tiny.config('', **changes))
    step = train_state.train_step(config)
    # Of the loss alone: the gradient is not compiled.
    return float(jax.jit(lambda *inputs: step(*inputs)[1]['loss'])(
        state, wave_BS, train_state.make_hparams(config)))

  plain = loss()
  gains = {'data.gain_low': -6., 'data.gain_high': 10.}
  assert loss(**gains) == loss(**gains) != plain
  # The same number of decibels for every clip is what BatchNorm and the
  # normalised target take out again.
  assert loss(**{'data.gain_low': 3., 'data.gain_high': 3.}) == pytest.approx(
      plain, abs=2e-3)


def test_weights_that_cannot_be_kept(roots):
  with pytest.raises(ValueError, match='a weight of 0.0001 of 1.0001 in all'):
    data.load(roots[0], (f'{roots[1]}=.0001',))
  with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
    data.load(roots[0], ('nowhere=1',))
