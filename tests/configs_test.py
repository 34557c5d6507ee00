"""Every file of configs/ builds, at every point, without allocating."""

import importlib
import inspect
import pathlib
import re

import jax
import pytest

from audiorank import evals
from audiorank import flops
from audiorank import records
from audiorank import train_state
from audiorank import validate
from configs import scales

NAMES = sorted(p.stem for p in pathlib.Path(__file__).parents[1].glob(
    'configs/*.py') if p.stem != '__init__')


def every_point():
  for name in NAMES:
    module = importlib.import_module(f'configs.{name}')
    for point in named(module):
      yield pytest.param(module, point, id=f'{name}:{point}')


def named(module):
  """Returns the names of all points, at every scale where there are some."""
  if not inspect.signature(module.points).parameters:
    return module.points()
  return [p for scale in scales.SCALES for p in module.points(scale)]


SIZES = {}


def encoder_size(shape, config):
  """Returns the parameters of an encoder; each shape is built once."""
  if shape not in SIZES:
    shapes = jax.eval_shape(
        lambda key: train_state.init(config, key), jax.random.key(0))
    SIZES[shape] = flops.parameters(shapes.params['encoder'])
  return SIZES[shape]


@pytest.mark.parametrize('module, point', list(every_point()))
def test_point_builds_and_fits_its_mesh(module, point):
  config = records.frozen(records.plain(module.get_config(point)))
  validate.fields(config)
  assert encoder_size(config.model, config) > 0
  steps = evals.eval_steps(config)
  assert steps[0] == 0 and steps[-1] == config.train.steps


@pytest.mark.parametrize('name', NAMES)
def test_points_differ_and_say_what_they_are(name):
  module = importlib.import_module(f'configs.{name}')
  assert 'python -m launch.' in module.__doc__
  ids = {records.run_id(module.get_config(p)) for p in named(module)}
  assert len(ids) == len(named(module))


EXPERIMENTS = [n for n in NAMES if 'Cost: ' in importlib.import_module(
    f'configs.{n}').__doc__]


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_costs_what_it_says(name):
  module = importlib.import_module(f'configs.{name}')
  text = ' '.join(module.__doc__.split())
  assert 'Question: ' in text and 'It fails if ' in text
  for scale in ('paper', 'small'):
    runs, flops = re.search(rf'{scale} (\d+) runs?, (\S+) FLOPs', text).groups()
    configs = [module.get_config(p) for p in module.points(scale)]
    total = 0.
    for c in configs:
      total += train_state.flops(c)['total'] * c.train.batch * c.train.steps
    assert int(runs) == len(configs)
    assert float(flops) == pytest.approx(total, rel=.05)


def test_the_budgets_are_of_the_librarys_own_count():
  from configs import compute_optimal
  for scale, counts in compute_optimal.FLOPS.items():
    for size, count in counts.items():
      config = scales.recipe(scale, size)
      assert train_state.flops(config)['total'] == count
  with pytest.raises(ValueError, match='expected a size of en16-1, en32-1'):
    compute_optimal.get_config('smoke/size=en64-1,flops=3e9')


def test_the_study_trains_no_run_twice():
  from configs import small_study
  ids = [records.run_id(small_study.get_config(p))
         for p in small_study.points('small')]
  every = {records.run_id(small_study.module(name).get_config(point))
           for name in small_study.EXPERIMENTS
           for point in small_study.module(name).points('small')}
  assert len(ids) == len(set(ids)) and set(ids) == every


def test_shapes_of_equal_compute_are_that():
  from configs import architecture
  for scale in ('paper', 'small'):
    flops = []
    for point in architecture.points(scale):
      c = architecture.get_config(point)
      flops.append(train_state.flops(c)['encoder'])
    assert max(flops) < 1.15 * min(flops)


@pytest.mark.parametrize('point, words', [
    ('huge/mask=.5', "'huge/mask=.5': expected one of paper/"),
    ('small/mask', "'small/mask': expected field=value")])
def test_a_point_that_is_none_is_named(point, words):
  from configs import masking as experiment
  with pytest.raises(ValueError, match=words):
    experiment.get_config(point)


def test_every_field_of_the_base_is_commented():
  source = (pathlib.Path(__file__).parents[1] / 'configs/base.py').read_text()
  fields = [line.strip() for line in source.splitlines()
            if re.match(r'  [a-z]+\.\w+ = ', line)
            and not line.endswith('()') and 'config_dict' not in line]
  assert len(fields) > 50
  assert [line for line in fields if '  # ' not in line] == []


def test_a_bad_size_is_named():
  from configs import base
  with pytest.raises(ValueError, match="'large': expected en<width>-<depth>"):
    base.get_config('large')
