"""The plan of a TPU slice, all of it that needs no TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest

from audiorank import flops
from audiorank import records
from audiorank import sharding
from audiorank import train_state
from configs import base
from launch.tpu import compiler
from launch.tpu import hlo
from launch.tpu import layouts
from launch.tpu import plan
from launch.tpu import programs
from launch.tpu import slices

# Twelve rounds of a loop that reads one [128,256] of a stack of twelve and
# sums a [256] over 16 devices; then a gather over 4, a sum over 8 that is cut
# at once, a copy out of the cores' own memory and a kernel that stays there.
PROGRAM = '''HloModule jit_step, is_scheduled=true

%sliced (param_0: f32[12,128,256], param_1: s32[]) -> f32[128,256] {
  %param_0 = f32[12,128,256]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %cut = f32[1,128,256]{2,1,0:T(8,128)S(1)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,128,256}
}

%all-reduce-scatter.1 (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %sum.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  %at = s32[]{:T(128)} constant(0)
  ROOT %share = f32[8,128]{1,0:T(8,128)} dynamic-slice(%sum.1, %at, %at), dynamic_slice_sizes={8,128}
}

%condition (state: (s32[], f32[12,128,256])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[12,128,256]{2,1,0:T(8,128)}) parameter(0)
  %last = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %go = pred[]{:T(512)} compare(%i, %last), direction=LT
}

%body (state.1: (s32[], f32[12,128,256])) -> (s32[], f32[12,128,256]) {
  %state.1 = (s32[]{:T(128)}, f32[12,128,256]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)S(1)} get-tuple-element(%state.1), index=0
  %stack = f32[12,128,256]{2,1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %layer = f32[1,128,256]{2,1,0:T(8,128)S(1)} fusion(%stack, %i.1), kind=kLoop, calls=%sliced
  %bias = f32[256]{0:T(256)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %all-reduce.1 = f32[256]{0:T(256)S(1)} all-reduce(%bias), replica_groups=mesh['a'=4,'b'=4] {'a','b'}, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, f32[12,128,256]{2,1,0:T(8,128)}) tuple(%i.1, %stack)
}

ENTRY %main (p: f32[12,128,256], q: f32[62,1]) -> f32[64,128] {
  %p = f32[12,128,256]{2,1,0:T(8,128)} parameter(0)
  %q = f32[62,1]{1,0:T(8,128)} parameter(1)
  %first = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[12,128,256]{2,1,0:T(8,128)}) tuple(%first, %p)
  %while.1 = (s32[]{:T(128)}, f32[12,128,256]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %inside = f32[16,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %gather.1 = f32[64,128]{1,0:T(8,128)S(1)} all-gather(%inside), replica_groups=[4,4]<=[16], dimensions={0}
  %copy.1 = f32[64,128]{1,0:T(8,128)} copy(%gather.1)
  %scattered = f32[8,128]{1,0:T(8,128)S(1)} fusion(%copy.1), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = f32[62,1]{1,0:T(8,128)} negate(%q)
}
'''


def frozen(point, **changes):
  c = base.get_config(point)
  c.update_from_flattened_dict(changes)
  return records.frozen(records.plain(c))


def test_collectives_are_counted_as_often_as_loops_run():
  found = {c.kind: c for c in hlo.collectives(PROGRAM)}
  assert set(found) == {'all-reduce', 'all-gather', 'reduce-scatter'}
  reduce, gather = found['all-reduce'], found['all-gather']
  assert (reduce.times, reduce.bytes, reduce.group) == (12, 1024, 16)
  assert (gather.times, gather.bytes, gather.group) == (1, 64 * 128 * 4, 4)
  assert found['reduce-scatter'].group == 8
  # Hand in hand round a ring: everything twice, less what is one's own.
  assert hlo.wire(reduce) == 12 * 2 * 1024 * 15 / 16
  assert hlo.wire(gather) == 64 * 128 * 4 * 3 / 4


def test_traffic_counts_slices_padding_and_memory_alone():
  layer = 12 * 128 * 256 * 4  # Read once a round, one layer of the stack.
  copy = scatter = 64 * 128 * 4  # Written; read again.
  padded = 2 * 64 * 128 * 4  # f32[62,1] in tiles of 8 x 128, read and written.
  assert hlo.traffic(PROGRAM) == layer + copy + scatter + padded
  assert not hlo.double(PROGRAM)
  assert hlo.double(PROGRAM.replace('f32[62,1]', 'f64[62,1]'))


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule x\n')


@pytest.mark.parametrize('point', ['en128-12', 'en768-12', 'en1536-40'])
def test_tiles_passes_and_recomputation_only_add(point):
  m = frozen(point, **{'model.dtype': 'float32'}).model
  L, K = 250, 62
  exact = flops.step_flops(m, L, K)['total']
  wide = [flops.step_flops(m, L, K, tile=tile)['total']
          for tile in (1, 128, 256)]
  assert wide == sorted(wide) and wide[0] == exact
  # The scores once more, an eighth of attention, and the front end.
  half = frozen(point, **{'model.dtype': 'bfloat16'}).model
  unit = functools.partial(flops.unit_flops, L=L, K=K, frames=1000, tile=128)
  dots = unit(half, remat='dots')
  assert wide[1] < dots < 1.35 * wide[1]
  # A forward pass of the blocks, at most a third of all.
  assert .2 * wide[1] < unit(half, remat='full') - dots <= wide[1] / 3
  # Six bfloat16 products make one of float32.
  front = dots - (unit(m, remat='dots') - dots) / 5
  assert front == pytest.approx(12 * 1000 * (512 ** 2 + 256 * 128))


def test_the_bound_is_the_longest_of_three():
  config = frozen('en768-12', **{'model.dtype': 'float32'})
  piece = slices.parse('v5e:16x16')
  slow = slices.bound(config, piece, wire=200e9, traffic=819e6)
  # A full v5e pod closes both axes: four links of 50 GB/s.
  assert slow.links == pytest.approx(1.) and slow.hbm == pytest.approx(1e-3)
  assert slow.by == 'links' and slow.seconds == slow.links
  busy = slices.bound(config, piece, 0., 0.)
  # In float32, whose products take six of bfloat16.
  assert busy.by == 'matrix' and .5 / 6 < busy.mfu < 1 / 6
  clip = train_state.flops(config)['total']
  assert slow.mfu == pytest.approx(clip / 197e12)


@pytest.mark.parametrize('name, count, links', [
    ('v5e:16x16', 256, 200e9), ('v5e:4x4', 16, 100e9), ('v4:4x4x4', 64, 300e9),
    ('v4:2x2x4', 16, 150e9), ('v5e:1x1', 1, 0)])
def test_slices(name, count, links):
  piece = slices.parse(name)
  assert piece.chips == count and piece.links == pytest.approx(links)


@pytest.mark.parametrize('name', ['v9:4x4', 'v5e', 'v5e:4x', 'v5e:4x4x4',
                                  'v4:4x4', 'v5e:0x4', ''])
def test_unknown_topologies_are_one_line(name):
  with pytest.raises(ValueError, match='topology') as error:
    slices.parse(name)
  assert '\n' not in str(error.value)


@pytest.fixture
def no_compiler(monkeypatch):
  monkeypatch.setattr(compiler, 'available', lambda: False)


def test_without_libtpu_the_plan_says_what_needs_none(no_compiler):
  configs = {'small': base.get_config('en128-12'),
             'odd': base.get_config('en128-12')}
  configs['odd'].train.batch = 100
  made = plan.plan(configs, 'v5e:4x4', price=2.)
  small = made['points']['small']
  shapes = jax.eval_shape(lambda k: train_state.init(
      frozen('en128-12'), k), jax.random.key(0))
  # Parameters and both moments, float32, and next to nothing beside them.
  n = flops.parameters(shapes.params)
  assert 12 * n <= small['arguments'] < 12 * n + 2000
  assert small['gradient'] == 4 * n
  assert small['cost'] == 2 * small['chip_hours'] > 0
  assert made['points']['odd']['why'] == (
      'train.batch 100 is not a multiple of 16 chips')
  text = plan.table(made)
  assert plan.MISSING in text and 'does not divide' in text
  assert 'at 2 per chip-hour' in text


class Scripted:
  """Stands in for the compiler's process; answers and remembers."""
  asked = []
  answer = {'fits': True, 'arguments': 1, 'temporaries': 2, 'peak': 3,
            'collectives': {}, 'largest_gather': 0, 'traffic': 1e9,
            'double': False, 'rematerialised': False}

  def ask(self, job):
    type(self).asked.append(job)
    if job['spec'].get('model', {}).get('remat') == 'full':
      return {**self.answer, 'fits': True, 'peak': 5}
    return self.answer

  def close(self):
    pass


@pytest.fixture
def scripted(monkeypatch, tmp_path):
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path))
  monkeypatch.setattr(compiler, 'available', lambda: True)
  monkeypatch.setattr(compiler, 'ingredients', lambda: {'sources': 'x'})
  monkeypatch.setattr(compiler, 'Compiler', Scripted)
  monkeypatch.setattr(Scripted, 'asked', [])
  return Scripted


def test_points_of_one_shape_are_compiled_once_and_kept(scripted):
  configs = {f'h{h}': base.get_config('en128-12') for h in range(5)}
  for hours, c in enumerate(configs.values()):
    c.data.hours = hours + 1.
  first = plan.plan(configs, 'v5e:4x4')
  # The step, its initialisation, embedding, RankMe and the gathered SVD.
  assert len(scripted.asked) == 5
  assert plan.plan(configs, 'v5e:4x4') == first
  assert len(scripted.asked) == 5
  configs['h0'].mask.ratio = .5
  plan.plan(configs, 'v5e:4x4')
  assert [j['spec']['program'] for j in scripted.asked[5:]] == ['step']


def test_what_does_not_fit_says_what_would(scripted, monkeypatch):
  monkeypatch.setattr(scripted, 'answer', {
      **scripted.answer, 'fits': False, 'needed': 40e9})
  made = plan.plan({'large': base.get_config('en1536-40')}, 'v5e:4x4')
  got = made['points']['large']
  assert not got['fits'] and 'seconds' not in got
  fit = {r['layout'] for r in got['remedies'] if r['fits']}
  assert 'fsdp 1, remat full, batch 256' in fit
  assert 'fsdp 4, remat dots, batch 256' not in fit
  assert 'fits with fsdp 1, remat full' in plan.table(made)


def test_the_part_of_a_slice_with_the_least_chip_hours(scripted):
  """Traffic is the same whatever the clips here: the fewer chips the better."""
  made = plan.plan({'p': base.get_config('en128-12')}, 'v5e:4x4', mesh='auto')
  part = made['points']['p']['part']
  assert (part['slice'], part['clips'], part['side_by_side']) == (
      'v5e:2x2', 64, 4)
  text = plan.table(made)
  assert 'p: fewest chip-hours on v5e:2x2 (64 clips per chip): ' in text
  assert '4 runs at the same time' in text


@pytest.mark.parametrize('name, parts', [
    ('v5e:4x4', ['1x1', '2x2', '2x4', '4x4']),
    ('v4:2x2x4', ['1x1x1', '2x2x1', '2x2x2', '2x2x4'])])
def test_parts_of_a_slice(name, parts):
  chip = name.split(':')[0]
  assert [p.name for p in slices.parts_of(slices.parse(name))] == [
      f'{chip}:{sides}' for sides in parts]


def test_what_is_rematerialised_is_said(scripted, monkeypatch):
  configs = {'p': base.get_config('en128-12')}
  assert plan.TORN not in plan.table(plan.plan(configs, 'v5e:4x4'))
  monkeypatch.setattr(scripted, 'answer', {
      **scripted.answer, 'rematerialised': True})
  text = plan.table(plan.plan(configs, 'v5e:2x4'))
  assert f'\np: {plan.TORN}\n' in text


def test_the_compilers_refusal_is_one_line(scripted, monkeypatch):
  monkeypatch.setattr(scripted, 'answer', {'error': 'INVALID: no such layout'})
  with pytest.raises(ValueError, match='v5e:5x7, .*no such layout') as error:
    config = base.get_config('en128-12')
    config.train.batch = config.monitor.batch = 35
    plan.plan({'p': config}, 'v5e:5x7')
  assert '\n' not in str(error.value)


def test_cut_kernels_are_gathered_and_activations_stay():
  config = frozen('en32-2', **{
      'model.target_frames': 48, 'model.decoder.width': 16,
      'model.decoder.depth': 1, 'model.decoder.heads': 2,
      'data.crop_seconds': .47, 'train.batch': 8, 'monitor.batch': 8})
  layout = layouts.own(config)._replace(fsdp=2)
  spec = layouts.spec('step', config, layout, 8)
  made = programs.lowered(spec, jax.devices()).compile().as_text()
  found = hlo.collectives(made)
  # XLA for CPUs does not cut an FFT over devices; the TPU's does.
  gathers = [c for c in found if c.kind == 'all-gather'
             and '/fft' not in c.text]
  assert gathers and not [c for c in found if c.kind == 'all-to-all']
  shapes = jax.eval_shape(lambda k: train_state.init(config, k), jax.random.key(0))
  kernels = {
      x.shape[1:] for path, x in jax.tree.leaves_with_path(shapes.params)
      if 'fsdp' in sharding.cuts(path, x.shape, 2, 1)}
  for c in gathers:
    for shape in c.shapes:
      assert tuple(d for d in shape if d != 1) in kernels


def test_the_default_rank_gathers_no_embeddings():
  spec = programs.spec('rankme', frozen('en128-12', **{
      'monitor.clips': 4000, 'monitor.batch': 8}), 8, 1)
  assert spec == {'program': 'rankme', 'data': 8, 'fsdp': 1, 'clips': 4000,
                  'width': 128}
  text = programs.lowered(spec, jax.devices()).compile().as_text()
  whole = 4000 * 128 * jnp.dtype('float32').itemsize
  found = hlo.collectives(text)
  assert found and not [c for c in found if c.kind == 'all-gather']
  assert max(c.bytes for c in found) < whole
