"""The test world: 8 CPU devices, warnings as errors, rank promotion refused."""

import os
import pathlib

from absl import flags
import jax
from jax.sharding import AxisType
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true',
                   help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  config.addinivalue_line('markers', 'slow: takes more than about 20 s')


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
