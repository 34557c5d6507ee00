"""Every file of configs/ builds, at every point, without allocating."""

import importlib
import pathlib
import re

import jax
import pytest

from audiorank import compute
from audiorank import monitor
from audiorank import program
from audiorank import records
from audiorank import sharding
from audiorank import train

NAMES = sorted(p.stem for p in pathlib.Path(__file__).parents[1].glob(
    'configs/*.py') if p.stem != '__init__')


def every_point():
  for name in NAMES:
    module = importlib.import_module(f'configs.{name}')
    for point in module.points():
      yield pytest.param(module, point, id=f'{name}:{point}')


@pytest.mark.parametrize('module, point', list(every_point()))
def test_point_builds_and_fits_its_mesh(module, point):
  config = records.frozen(records.plain(module.get_config(point)))
  on = sharding.mesh(1, 1)
  train.check(config, on)
  shapes = jax.eval_shape(
      lambda key: program.init(config, key), jax.random.key(0))
  assert compute.parameters(shapes.params['encoder']) > 0
  steps = monitor.steps(config)
  assert steps[0] == 0 and steps[-1] == config.train.steps


@pytest.mark.parametrize('name', NAMES)
def test_points_differ_and_say_what_they_are(name):
  module = importlib.import_module(f'configs.{name}')
  assert 'python -m launch.' in module.__doc__
  ids = {records.run_id(module.get_config(p)) for p in module.points()}
  assert len(ids) == len(module.points())


def test_every_field_of_the_base_is_commented():
  source = (pathlib.Path(__file__).parents[1] / 'configs/base.py').read_text()
  fields = [line.strip() for line in source.splitlines()
            if re.match(r'  [a-z]\.\w+ = ', line)
            and 'config_dict' not in line]
  assert len(fields) > 50
  assert [line for line in fields if '  # ' not in line] == []


def test_a_bad_size_is_named():
  from configs import base
  with pytest.raises(ValueError, match="'large': expected en<width>-<depth>"):
    base.get_config('large')
