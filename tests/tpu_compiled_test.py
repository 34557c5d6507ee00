"""Programs as the TPU compiler itself makes them.

Nothing runs: what is looked at is what the chips would be given. A small model
for every kind of chip; the sizes of the paper, and the figures that they are
to reach, are slow.
"""

import json
import math
import os
import subprocess
import sys

import jax
import pytest

from audiorank import records
from audiorank import sharding
from audiorank import train_state
from configs import base
from launch.tpu import compiler
from launch.tpu import layouts
from launch.tpu import programs
from launch.tpu import slices

pytestmark = pytest.mark.skipif(
    not compiler.available(),
    reason="no TPU compiler: pip install 'audiorank[tpu-plan]'")
TOPOLOGIES = ('v5e:4x4', 'v4:2x2x4', 'v5p:2x2x4', 'v6e:4x4')
# The compiler's process with a program that cuts one array in two ways, which
# agree or do not.
ONE_ARRAY = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from launch.tpu import compiler
from launch.tpu import programs

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
    piece = slices.parse(topology)
    spec = layouts.spec(name, config, layout, piece.chips)
    return compiler.answers([spec], piece, 'quick', workers=1)[
        compiler.text(spec)]

  yield answer
  patch.undo()


def paper(size, **fields):
  """A size with the paper's decoder and crops, in bfloat16."""
  config = base.get_config(size)
  config.model.dtype = 'bfloat16'
  config.update_from_flattened_dict(fields)
  return records.frozen(records.plain(config))


def small():
  """A model that compiles in seconds and has every part of a large one."""
  return paper('en128-2', **{
      'model.decoder.width': 128, 'model.decoder.depth': 1,
      'model.decoder.heads': 4, 'model.target_frames': 104,
      'data.crop_seconds': 1.03, 'train.batch': 32, 'monitor.batch': 32})


def cut_kernels(config, fsdp):
  """The kernels that are cut, as shapes."""
  shapes = train_state.state_shapes(config)
  return [x for path, x in jax.tree.leaves_with_path(shapes.params)
          if 'fsdp' in sharding.cuts(path, x.shape, fsdp, 1)]


def check_collectives(answer, config, fsdp):
  """Asserts that a step sends what the design says."""
  assert not answer['rematerialised'] and not answer['double']
  sent = answer['collectives']
  gradient = programs.gradient_bytes(config)
  summed = sent['all-reduce']['bytes']
  # The patches' bias and the frequencies' position are added to the same
  # tokens: one gradient, which the compiler sums once.
  shared = 4 * config.model.width
  if fsdp == 1:
    # The whole gradient once, and nothing that grows with clips or tokens.
    assert set(sent) == {'all-reduce'}
    assert gradient / 2 - shared <= summed < gradient + SCALARS
    return
  # Kernels are gathered for the forward pass and again for the backward one,
  # in bfloat16; their gradients are summed and cut, then summed over the cuts'
  # copies.
  assert set(sent) == {'all-reduce', 'all-gather', 'reduce-scatter'}
  kernels = 2 * sum(math.prod(x.shape) for x in cut_kernels(config, fsdp))
  assert sent['all-gather']['bytes'] == 2 * kernels
  assert sent['reduce-scatter']['bytes'] == kernels
  rest = gradient - 2 * kernels + 2 * kernels / fsdp
  assert rest / 2 - shared <= summed < rest + SCALARS


@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_a_step_sends_what_the_design_says(ask, topology):
  config = small()
  layout = layouts.Layout(4, 'dots', 32)
  answer = ask('step', config, layout, topology)
  assert answer['fits']
  check_collectives(answer, config, 4)


def test_packed_runs_send_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path))
  piece = slices.parse('v5e:2x2')
  spec = {**programs.spec('step', small(), 4, 1), 'program': 'pack'}
  answer = compiler.answers([spec], piece, 'quick', workers=1)[
      compiler.text(spec)]
  assert answer['fits'] and answer['collectives'] == {}


@pytest.mark.slow
@pytest.mark.parametrize('topology', TOPOLOGIES)
@pytest.mark.parametrize('size, fsdp', [
    ('en128-12', 1), ('en768-12', 1), ('en1536-40', 4)])
def test_the_sizes_of_the_paper_fit(ask, size, fsdp, topology):
  config = paper(size)
  answer = ask('step', config, layouts.Layout(fsdp, 'dots', 256), topology)
  assert answer['fits']
  assert answer['peak'] < slices.parse(topology).chip.memory
  check_collectives(answer, config, fsdp)


@pytest.mark.slow
@pytest.mark.parametrize('size, topology, fsdp, clips, mfu', [
    ('en128-12', 'v5e:1x1', 1, 16, .50), ('en768-12', 'v5e:1x1', 1, 16, .38),
    ('en768-12', 'v5e:1x1', 1, 64, .50), ('en1536-40', 'v5e:4x4', 4, 16, .58)])
def test_the_bound_on_mfu(ask, size, topology, fsdp, clips, mfu):
  """What keeps a step from it again: another copy of what is wide."""
  piece = slices.parse(topology)
  config = paper(size, **{'train.batch': clips * piece.chips})
  layout = layouts.Layout(fsdp, 'dots', config.train.batch)
  result = layouts.evaluate(
      config, layout, piece, ask('step', config, layout, topology))
  assert result.bound.mfu >= mfu


@pytest.mark.slow
@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_the_default_rank_gathers_no_embeddings(ask, topology):
  config = paper('en768-12')
  answer = ask('rankme', config, layouts.own(config), topology)
  whole = config.monitor.clips * config.model.width * 4
  assert answer['fits'] and not answer['double']
  # Integer sums of seven orders in two halves, whatever the clips.
  assert set(answer['collectives']) == {'all-reduce'}
  assert answer['collectives']['all-reduce']['bytes'] < whole
  assert answer['largest_gather'] == 0


@pytest.mark.slow
def test_the_gathered_svd_moves_all_embeddings(ask):
  config = paper('en128-12')
  answer = ask('svd', config, layouts.own(config), 'v5e:4x4')
  whole = config.monitor.clips * config.model.width * 4
  assert answer['fits'] and not answer['double']
  moved = sum(c['bytes'] for c in answer['collectives'].values())
  assert moved >= .9 * whole


def test_a_full_rematerialization_is_reported():
  description = slices.description(slices.parse('v5e:4x4'))
  jobs = [json.dumps({'spec': {'program': name}, 'effort': 'quick',
                      'described': description})
          for name in ('whole', 'torn', 'whole')]
  done = subprocess.run(
      [sys.executable, '-c', ONE_ARRAY], input='\n'.join(jobs), text=True,
      capture_output=True, cwd=compiler.ROOT,
      env={**os.environ, **compiler.ENVIRONMENT})
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert [a['rematerialised'] for a in answers] == [False, True, False]
  gathers = [a['collectives'].get('all-gather') for a in answers]
  assert gathers[1] and not gathers[0]
