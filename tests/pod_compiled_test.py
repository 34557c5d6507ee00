"""The smallest and largest models, compiled by the TPU compiler itself.

Nothing runs: what is looked at is what the chips would be given.
"""

import json
import math
import subprocess
import sys

import pytest

from audiorank import compute
from audiorank import records
from configs import base
from launch.pod import chips
from launch.pod import choice
from launch.pod import programs
from launch.pod import store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not store.available(),
    reason="no TPU compiler: pip install 'audiorank[tpu-plan]'")]
TOPOLOGIES = ('v5e:4x4', 'v4:4x4x4', 'v5p:4x4x4', 'v6e:4x4')
LAYOUTS = {'en128-12': choice.Layout(1, False, 256),
           'en768-12': choice.Layout(1, False, 256),
           'en1536-40': choice.Layout(4, True, 256)}
# The compiler's process with a program that cuts one array in two ways, which
# agree or do not.
ONE_ARRAY = """
import os
from launch.pod import compiler
os.environ.update(compiler.ENVIRONMENT)
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from launch.pod import programs

def lowered(spec, devices):
  mesh = jax.make_mesh((4, 4), ('a', 'b'), devices=devices,
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  before = NamedSharding(mesh, P('b', None, 'a'))
  after = NamedSharding(mesh, P(None, ('a', 'b'), None))
  x = jax.ShapeDtypeStruct((16, 16, 16), 'float32', sharding=before)
  place = after if spec['program'] == 'torn' else before
  return jax.jit(lambda x: 2 * jax.lax.with_sharding_constraint(
      x + x, place)).lower(x)

programs.lowered = lowered
compiler.main()
"""
# The norm of the gradient, the loss and the mel's mean and variance.
SCALARS = 10_000


@pytest.fixture(scope='module')
def ask(tmp_path_factory):
  """(name, config, layout, topology) -> the compiler's answer."""
  patch = pytest.MonkeyPatch()
  patch.setenv('AUDIORANK_CACHE', str(tmp_path_factory.mktemp('cache')))

  def answer(name, config, layout, topology):
    piece = chips.parse(topology)
    spec = choice.spec(name, config, layout, piece.chips)
    return store.answers([spec], piece, 'quick')[store.text(spec)]

  yield answer
  patch.undo()


def paper(size):
  return records.frozen(records.plain(base.get_config(size)))


@pytest.mark.parametrize('topology', TOPOLOGIES)
@pytest.mark.parametrize('size', LAYOUTS)
def test_a_step_fits_and_sends_what_the_design_says(ask, size, topology):
  config, layout = paper(size), LAYOUTS[size]
  got = ask('step', config, layout, topology)
  assert got['fits'] and got['peak'] < chips.parse(topology).chip.memory
  assert not got['rematerialised'] and not got['double']
  sent = got['collectives']
  gradient = programs.gradient_bytes(config)
  summed = sent['all-reduce']['bytes']
  # The patches' bias and the frequencies' position are added to the same
  # tokens: one gradient, which the compiler sums once.
  shared = 4 * config.model.width
  if layout.fsdp == 1:
    # The whole gradient once, and nothing that grows with clips or tokens.
    assert set(sent) == {'all-reduce'}
    assert gradient - shared <= summed < gradient + SCALARS
    return
  # Kernels are gathered for the forward pass and again for the backward one;
  # their gradients are summed and cut, then summed over the cuts' copies.
  assert set(sent) == {'all-reduce', 'all-gather', 'reduce-scatter'}
  kernels = 4 * sum(
      math.prod(x.shape) for x in cut_kernels(config, layout.fsdp))
  assert sent['all-gather']['bytes'] == 2 * kernels
  assert sent['reduce-scatter']['bytes'] == kernels
  rest = gradient - kernels + kernels / layout.fsdp
  assert rest - shared <= summed < rest + SCALARS


def cut_kernels(config, fsdp):
  """The kernels that are cut, as shapes."""
  import jax

  from audiorank import program
  from audiorank import sharding
  shapes = jax.eval_shape(lambda k: program.init(config, k), jax.random.key(0))
  assert compute.parameters(shapes.params) > 0
  return [x for path, x in jax.tree.leaves_with_path(shapes.params)
          if 'fsdp' in sharding.cuts(path, x.shape, fsdp, 1)]


@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_the_default_rank_gathers_no_embeddings(ask, topology):
  config = paper('en768-12')
  got = ask('rankme', config, LAYOUTS['en768-12'], topology)
  whole = config.monitor.clips * config.model.width * 4
  assert got['fits'] and not got['double']
  # Integer sums of seven orders in two halves, whatever the clips.
  assert set(got['collectives']) == {'all-reduce'}
  assert got['collectives']['all-reduce']['bytes'] < whole
  assert got['largest_gather'] == 0


def test_the_gathered_svd_moves_all_embeddings(ask):
  config = paper('en128-12')
  got = ask('svd', config, LAYOUTS['en128-12'], 'v5e:4x4')
  whole = config.monitor.clips * config.model.width * 4
  assert got['fits'] and not got['double']
  assert sum(c['bytes'] for c in got['collectives'].values()) >= .9 * whole


def test_what_is_rematerialised_is_seen():
  jobs = [json.dumps({'spec': {'program': name}, 'effort': 'quick',
                      'described': chips.described(chips.parse('v5e:4x4'))})
          for name in ('whole', 'torn', 'whole')]
  done = subprocess.run(
      [sys.executable, '-c', ONE_ARRAY], input='\n'.join(jobs), text=True,
      capture_output=True, cwd=store.ROOT)
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert [a['rematerialised'] for a in answers] == [False, True, False]
  gathers = [a['collectives'].get('all-gather') for a in answers]
  assert gathers[1] and not gathers[0]
