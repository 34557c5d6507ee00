"""The test world: 8 CPU devices, warnings as errors, rank promotion refused."""

import contextlib
import gc
import mmap
import os
import pathlib
import resource

# One thread of linear algebra a process, before numpy is imported: those of
# two test processes would wait for each other, at many times the CPU time.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

from absl import flags
import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType
import jaxlib
import numpy as np
import pytest
import soundfile

from audiorank import synth
from audiorank import train
from tests import processes


def compiler_has(flag):
  """Returns whether this version of XLA knows a flag: it dies of others."""
  library = max(pathlib.Path(jaxlib.__file__).parent.glob('*.so'),
                key=lambda path: path.stat().st_size)
  with open(library, 'rb') as file, mmap.mmap(
      file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    return content.find(flag.encode()) >= 0


# A third of the time to compile a training step goes into fusing its small
# operations in a second way. Processes that a test starts inherit the flag.
if compiler_has('xla_cpu_use_fusion_emitters'):
  os.environ['XLA_FLAGS'] = ' '.join([
      os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false'])
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
define_flag = flags._defines.DEFINE_flag


def define_flag_of_a_command(flag, flag_values=flags.FLAGS, *args, **kwargs):
  """Defines a flag beside one of its name: a user's process has one command,
  the tests' process has several. processes.flags_of sets either."""
  try:
    return define_flag(flag, flag_values, *args, **kwargs)
  except flags.DuplicateFlagError:
    own = flags.FlagValues()
    own.mark_as_parsed()
    return define_flag(flag, own, *args, **kwargs)


flags.DEFINE_flag = flags._defines.DEFINE_flag = define_flag_of_a_command
flags.disclaim_key_flags()  # A flag is of the module that calls this one.
# Modules whose numbers or times need the compiler's optimisations. The programs
# of all others are tiny: optimising them costs more than it saves.
OPTIMISED = ('hear_probe', 'readme_code', 'tpu_compiled')
# The default set ends within 8 minutes on two idle cores if it takes less than
# this, of which no test takes more than that. Past either, a line says so.
CPU_SECONDS, LONGEST = 900, 15
STUDY = (pathlib.Path(__file__).resolve().parents[1] / 'notebooks' / 'results'
         / 'small_study')


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true',
                   help='also run the tests marked slow')


def module(item):
  return item.path.name.removesuffix('_test.py')


def pytest_collection_modifyitems(config, items):
  # The longest first, so that two workers end together. Next those that clear
  # what is compiled, before the others share it.
  items.sort(key=lambda item: (module(item) != 'sweep',
                               module(item) not in OPTIMISED))
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))


def pytest_collection_finish():
  """Leaves what is imported by now out of the collection of garbage, and has
  it less often: tracing a program creates many objects, and frees few."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


def pytest_terminal_summary(terminalreporter, config):
  """Names the default set's CPU time, and its tests that take long."""
  if config.getoption('--slow'):
    return
  # The workers have ended by now, and what they started.
  usages = map(resource.getrusage, (resource.RUSAGE_SELF,
                                    resource.RUSAGE_CHILDREN))
  seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
  reports = [report for several in terminalreporter.stats.values()
             for report in several]
  over = {f'{report.nodeid} ({report.when})': report.duration
          for report in reports if getattr(report, 'duration', 0) > LONGEST}
  terminalreporter.write_line(
      f'{seconds:.0f} s of CPU, of at most {CPU_SECONDS} for all default tests')
  for name, duration in sorted(over.items(), key=lambda pair: -pair[1]):
    terminalreporter.write_line(
        f'longer than {LONGEST} s on an idle machine? {duration:.0f} s: {name}')


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  # What another process is just writing is compiled again.
  config.addinivalue_line(
      'filterwarnings',
      'ignore:Error reading persistent compilation cache:UserWarning')
  config.addinivalue_line('markers', 'slow: takes more than about 20 s')


@pytest.fixture(scope='session', autouse=True)
def user_cache(tmp_path_factory):
  """The user's cache is left alone."""
  with pytest.MonkeyPatch.context() as patch:
    if 'AUDIORANK_CACHE' not in os.environ:
      patch.setenv('AUDIORANK_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


def folder_of_all(factory, name):
  """Returns a folder that all processes of this test session share."""
  base = factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent
  path = base / name
  path.mkdir(exist_ok=True)
  return path


def set_compiler(quick):
  """Turns the compiler's optimisations off or on, and forgets its programs.

  Programs that were compiled the other way differ in the last bit.
  """
  jax.config.update('jax_disable_most_optimizations', quick)
  jax.clear_caches()
  train.mel_statistics.cache_clear()


@pytest.fixture(scope='session', autouse=True)
def quick_compiler(tmp_path_factory):
  """Compiles quickly, and each program once for all processes and tests."""
  changes = {'jax_compilation_cache_dir':
                 str(folder_of_all(tmp_path_factory, 'compiled')),
             'jax_persistent_cache_min_compile_time_secs': 0.,
             'jax_persistent_cache_min_entry_size_bytes': -1}
  with pytest.MonkeyPatch.context() as patch:
    # Processes that a test starts compute with the same bits. They have their
    # own folder: one that is killed may leave half a file.
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    patch.setenv('TESTS_COMPILED', str(
        folder_of_all(tmp_path_factory, 'compiled_by_processes')))
    for name, value in changes.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    set_compiler(quick=True)
    yield


@pytest.fixture(scope='module', autouse=True)
def optimising_compiler(request, quick_compiler):
  """Compiles with all optimisations in the modules of OPTIMISED."""
  del quick_compiler
  if module(request) not in OPTIMISED:
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_DISABLE_MOST_OPTIMIZATIONS')
    patch.delenv('TESTS_COMPILED')
    set_compiler(quick=False)
    yield
    set_compiler(quick=True)


@pytest.fixture(params=[1, 8])
def mesh(request):
  """A one-axis data mesh of 1 and of 8 devices, set as the current mesh."""
  devices = jax.devices()[:request.param]
  made = jax.make_mesh((request.param,), ('data',),
                       axis_types=(AxisType.Auto,), devices=devices)
  with jax.set_mesh(made):
    yield made


@pytest.fixture(scope='session')
def torch(request):
  """The package, in a test that --slow adds: it takes seconds to import."""
  if not request.config.getoption('--slow'):
    pytest.skip('needs torch: run with --slow')
  return pytest.importorskip('torch')


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
def study_tables():
  """The tables of the shipped study."""
  from audiorank import records
  return records.load(STUDY)


@pytest.fixture(scope='session')
def study_rows(study_tables):
  """The runs of the shipped study, as its analysis reads them."""
  from audiorank.analysis import study
  return study.read(study_tables)


@pytest.fixture(scope='session')
def study_claims(study_rows):
  """The claims of the shipped study, without the figures' fits."""
  from audiorank import analysis
  from audiorank.analysis import early
  from audiorank.analysis import law
  rows = study_rows
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
def env(tmp_path_factory, quick_compiler):
  """The environment of a command: CPU, one compilation cache for all."""
  del quick_compiler
  return processes.environment(tmp_path_factory.mktemp('commands'))


@pytest.fixture(scope='session')
def server(env):
  """Starts commands in a tenth of a second; see processes.Server."""
  process = processes.Server(env)
  yield process
  process.close()


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
