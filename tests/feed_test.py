"""Batches from disk and from the device are the same, and so are the runs."""

import itertools

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import data
from audiorank import feed
from audiorank import prepare
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import train
from audiorank.data import resident
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')

SAMPLES = 8000


def write(folder, seed, lengths):
  """Prepares recordings of noise in two categories; returns the folder."""
  rng = np.random.default_rng(seed)
  clips = [(f'{kind}/{i}.wav', f'recording {i}', kind,
            rng.integers(-9000, 9000, length).astype(np.int16))
           for (i, length), kind in zip(enumerate(lengths),
                                        itertools.cycle(('low', 'high')))]
  prepare.write(folder, clips, {'made by': 'a test'})
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two corpora of records shorter and longer than a clip, and just as long."""
  lengths = [300, 7999, 8000, 8001, 20000, 31000, 1024, 2048, 16384, 12345]
  out = tmp_path_factory.mktemp('corpora')
  return (write(out / 'a', 0, 3 * lengths), write(out / 'b', 1, lengths))


def config(folders, **changes):
  return tiny.config(folders[0], **{
      'data.valid_fraction': .3, 'monitor.clips': 16, **changes})


def batches(configs, count=2, calls=9, first_step=0):
  """Returns the waves of some runs' batches, gathered where they must be."""
  configs = [records.frozen(c) for c in configs]
  samples = [sampling.samples(c) for c in configs]
  whole = sharding.replicated(sharding.mesh(1, 1))
  source = feed.Feed(configs, samples, first_step,
                     lambda rows, axis: jax.device_put(rows, whole), whole)
  out = [source.next(count) for _ in range(calls)]
  if source.audio_RW is not None:
    out = [gather(source.audio_RW, batch) for batch in out]
  source.close()
  return np.stack(out)


def gather(audio_RW, batch):
  """Returns the waves of a batch with any axes before its own."""
  *axes, B, three = batch.shape
  wave_BS = resident.gather(audio_RW, batch.reshape(-1, three), SAMPLES)
  return np.asarray(wave_BS).reshape(*axes, B, SAMPLES)


@pytest.mark.parametrize('changes', [
    [{}], [{'data.hours': 10 / 3600}], [{'data.category': ('high',)}],
    [{'mixture': True}], [{'mixture': True, 'data.category': ('low',)}],
    [{}, {'seed': 1}], [{}, {'data.seed': 1}, {}, {'data.hours': 7 / 3600},
                        {'data.category': ('low',)}]],
    ids=['alone', 'hours', 'category', 'mixture', 'category of a mixture',
         'packed, shared', 'packed, own'])
def test_batches_on_the_device_are_those_of_the_stream(folders, changes):
  mixture = (f'{folders[1]}=.7',)
  changes = [{'data.mixture' if name == 'mixture' else name:
              mixture if name == 'mixture' else value
              for name, value in run.items()} for run in changes]
  from_disk, on_device = (batches([
      config(folders, **{'data.in_memory': wanted}, **run) for run in changes])
                          for wanted in (False, True))
  assert from_disk.any() and from_disk.dtype == np.int16
  np.testing.assert_array_equal(from_disk, on_device)


def test_a_resumed_run_has_the_batches_that_follow(folders):
  c = config(folders, **{'data.in_memory': True})
  whole = batches([c], count=1)
  np.testing.assert_array_equal(whole[4:],
                                batches([c], count=1, calls=5, first_step=4))


def test_processes_have_their_rows(folders, monkeypatch):
  c = records.frozen(config(folders))
  corpus = sampling.parts(c).subset
  whole = sharding.replicated(sharding.mesh(1, 1))
  on_device = resident.load(corpus, whole)
  parts = [resident.stream(on_device, corpus, 8, SAMPLES, 0, 3,
                           slice(first, first + 2)) for first in (0, 2, 4, 6)]
  ours = np.concatenate([np.asarray(resident.gather(
      on_device.audio_RW, next(part), SAMPLES)) for part in parts])
  theirs = next(data.stream(corpus, 8, SAMPLES, 0, first_step=3))
  np.testing.assert_array_equal(ours, theirs)


def test_a_corpus_is_sent_once_and_goes_when_another_comes(folders):
  whole = sharding.replicated(sharding.mesh(1, 1))
  ours, theirs = (data.load(folder) for folder in folders)
  first = resident.load(ours, whole).audio_RW
  assert resident.load(ours, whole).audio_RW is first
  assert resident.load(theirs, whole).audio_RW is not first
  assert resident.load(ours, whole).audio_RW is not first


def test_a_device_that_is_too_small_leaves_it_to_the_host(
    folders, monkeypatch):
  """Then the runs' own part is tried, if they have the same."""
  c = records.frozen(config(folders, **{'data.hours': 7 / 3600}))
  samples = [sampling.samples(c)]
  usable, subset = (resident.size(corpus) for corpus in
                    (samples[0].usable, samples[0].subset))
  assert subset < usable
  for limit, shared, corpus in (
      (usable + 1, True, samples[0].usable), (usable, True, samples[0].subset),
      (usable, False, None), (subset, True, None)):
    monkeypatch.setattr(feed, 'fits', lambda wanted, size: size < limit)
    assert feed.resident_corpus(c, samples, shared) is corpus


def test_processes_keep_the_corpus_on_all_devices_or_on_none(monkeypatch):
  """Also where the memory of only one machine is too small."""
  assert feed.everywhere(True) and not feed.everywhere(False)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  for other in (True, False):
    monkeypatch.setattr(feed.multihost_utils, 'process_allgather',
                        lambda x, other=other: np.array([x, other]))
    assert feed.everywhere(True) == other and not feed.everywhere(False)


def test_packed_runs_share_one_corpus(folders):
  """Of other hours, categories and orders, and the run that comes next."""
  whole = sharding.replicated(sharding.mesh(1, 1))
  audio = []
  for changes in ([{}, {'data.hours': 7 / 3600}], [{'data.category': ('low',)}],
                  [{'data.seed': 1}, {'seed': 1}]):
    configs = [records.frozen(config(folders, **{'data.in_memory': True, **c}))
               for c in changes]
    audio.append(feed.Feed(configs, [sampling.samples(c) for c in configs], 0,
                           lambda rows, axis: rows, whole).audio_RW)
  assert audio[0] is audio[1] is audio[2] is not None


def test_on_a_cpu_it_is_asked_for():
  assert not feed.fits(False, 1)
  assert feed.fits(True, 1) and not feed.fits(True, 2**60)


def test_on_an_accelerator_it_is_a_quarter_of_the_memory(monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 1000}

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
  for wanted in (False, True):
    assert feed.fits(wanted, 249) and not feed.fits(wanted, 250)


def trained(folder, folders, points, **changes):
  """Trains runs in one program; returns the parameters and moments.

  Those that have the corpus on the devices are stopped at step 2 and resumed.
  """
  workdirs, configs = [], []
  for name, point in points.items():
    workdirs.append(folder / name)
    records.open_run(workdirs[-1], config(folders, **{
        'train.steps_per_call': 2, 'data.gain_low': -3., 'data.gain_high': 3.,
        'train.steps': 4, 'checkpoint.save_every': 4, 'train.log_every': 2,
        'train.calibrate_batch_norm': False, 'monitor.num_evals': 2,
        'monitor.valid_clips': 0, **point, **changes}))
    configs.append(records.load_config(workdirs[-1]))
  if changes['data.in_memory']:
    with pytest.raises(train.Preempted):
      train.fit(workdirs, configs, stop=lambda step: step == 2)
  assert not train.fit(workdirs, configs)
  return [leaf for workdir in workdirs for leaf in jax.tree.leaves(
      checkpoint.load(workdir)[1])]


@pytest.mark.parametrize('points, devices', [
    pytest.param({'a': {}}, 2, marks=pytest.mark.slow, id='over a mesh'),
    pytest.param({'a': {'data.hours': 7 / 3600},
                  'b': {'data.seed': 1, 'data.category': ('low',)}}, 1,
                 id='packed')])
def test_runs_on_the_device_are_those_of_the_stream(
    folders, tmp_path, points, devices):
  """Resumed on the way and with several steps a call.

  The batches are the same bits, by the tests above. They enter two programs,
  of which the compiler may group a sum otherwise: float32 rounding, which Adam
  scales up where it is all the gradient, as in the biases of attention's keys.
  """
  runs = [trained(tmp_path / str(wanted), folders, points, **{
      'data.in_memory': wanted, 'mesh.data': devices})
          for wanted in (False, True)]
  assert config_lib.run_id(config(folders)) == config_lib.run_id(
      config(folders, **{'data.in_memory': True}))
  for a, b in zip(*runs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
