"""The test world: 8 CPU devices, warnings as errors, rank promotion refused."""

import contextlib
import os
import pathlib

from absl import flags
import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType
import numpy as np
import pytest
import soundfile

from audiorank import synth
from audiorank import train

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
# Modules that spend their time in the compiler. The programs are tiny, so its
# optimisations cost more than they save; what is compiled is kept for all.
QUICK = ('checkpoint', 'divergence', 'evals', 'faults', 'feed', 'laws_fit',
         'laws_scaling', 'metrics', 'model', 'multihost', 'objectives',
         'packed', 'rankme', 'sampling', 'sharding', 'train', 'worker')
STUDY = (pathlib.Path(__file__).resolve().parents[1] / 'notebooks' / 'results'
         / 'small_study')


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true',
                   help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
  # The longest first, so that two workers end together.
  items.sort(key=lambda item: item.path.name != 'sweep_test.py')
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  config.addinivalue_line('markers', 'slow: takes more than about 20 s')


@pytest.fixture(scope='session', autouse=True)
def user_cache(tmp_path_factory):
  """The user's cache is left alone."""
  with pytest.MonkeyPatch.context() as patch:
    if 'AUDIORANK_CACHE' not in os.environ:
      patch.setenv('AUDIORANK_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='session')
def compiled_programs(tmp_path_factory):
  """The folder of what the modules of QUICK compile."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module', autouse=True)
def quick_compiler(request, compiled_programs):
  """Compiles the programs of a module of QUICK quickly, and once a session."""
  if request.path.name.removesuffix('_test.py') not in QUICK:
    yield
    return
  changes = {'jax_disable_most_optimizations': (True, False),
             'jax_compilation_cache_dir': (str(compiled_programs / 'here'),
                                           None),
             'jax_persistent_cache_min_compile_time_secs': (.1, 1.),
             'jax_persistent_cache_min_entry_size_bytes': (-1, 0)}
  with pytest.MonkeyPatch.context() as patch:
    # Processes that a test starts compute with the same bits. They have their
    # own folder: one that is killed may leave half a file.
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    patch.setenv('TESTS_COMPILED', str(compiled_programs / 'by-processes'))
    for index in (0, 1):
      for name, values in changes.items():
        jax.config.update(name, values[index])
      compilation_cache.reset_cache()
      # Programs of another module, compiled the other way, differ in the last
      # bit.
      jax.clear_caches()
      train.mel_statistics.cache_clear()
      if not index:
        yield


@pytest.fixture(params=[1, 8])
def mesh(request):
  """A one-axis data mesh of 1 and of 8 devices, set as the current mesh."""
  devices = jax.devices()[:request.param]
  made = jax.make_mesh((request.param,), ('data',),
                       axis_types=(AxisType.Auto,), devices=devices)
  with jax.set_mesh(made):
    yield made


@pytest.fixture(scope='session')
def shared():
  """The folder of reference numbers and real audio, where there is one."""
  root = os.environ.get('AUDIORANK_SHARED')
  path = (pathlib.Path(root) if root else
          pathlib.Path(__file__).resolve().parents[2] / 'shared')
  if not (path / 'fixtures').is_dir():
    pytest.skip('reference fixtures not present')
  return path


@pytest.fixture(scope='session')
def sample_analysis():
  """What the packaged sample shows: half a minute of compilation, once."""
  from audiorank import analysis
  from audiorank import records
  return analysis.analyze(records.load(records.SAMPLE))


@pytest.fixture(scope='session')
def study_claims():
  """The claims of the shipped study, without the figures' fits."""
  from audiorank import analysis
  from audiorank import records
  from audiorank.analysis import early
  from audiorank.analysis import law
  from audiorank.analysis import study
  rows = study.read(records.load(STUDY))
  fit, lacks = law.fit(rows.trained)
  return analysis.claims_of(rows, fit, lacks, law.predictors(rows.trained),
                            early.predict(rows))


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  """A minute of noise bursts and tones, prepared."""
  folder = tmp_path_factory.mktemp('corpus')
  rng = np.random.default_rng(0)
  (folder / 'audio').mkdir()
  for i in range(12):
    time_S = np.arange(5 * 16000) / 16000
    wave_S = .3 * np.sin(2 * np.pi * 200 * (i + 1) * time_S) * (
        np.sin(2 * np.pi * (1 + i % 4) * time_S) > 0)
    wave_S += .02 * rng.standard_normal(len(wave_S))
    soundfile.write(folder / 'audio' / f'{i}.wav', wave_S, 16000)
  from audiorank import prepare
  prepare.run(folder / 'audio', folder / 'made', workers=1)
  return folder / 'made'


@pytest.fixture(scope='session')
def tasks(tmp_path_factory):
  """Two small labelled tasks of the synthetic dataset."""
  folder = tmp_path_factory.mktemp('tasks')
  synth.write_tasks(folder, 0, clips_per_task=(24, 12, 12),
                    names=['texture', 'timbre'], workers=1, progress=False)
  return folder / 'tasks'


@pytest.fixture(scope='session')
def bucket_server():
  """The URL of a fake Google Cloud Storage with a bucket called `bucket`.

  From here on every gs:// client of this process and its children uses it.
  """
  from launch.benches import fake_gcs
  with contextlib.ExitStack() as stack:
    try:
      url = stack.enter_context(fake_gcs.running())
    except ModuleNotFoundError as error:
      pytest.skip(str(error))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in fake_gcs.environment(url).items():
      patch.setenv(name, value)
    yield url


@pytest.fixture
def bucket(bucket_server, request):
  """The URL of a folder of the fake bucket for one test alone."""
  del bucket_server
  return f'gs://bucket/{request.node.name}'.replace('[', '-').replace(']', '')
