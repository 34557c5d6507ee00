"""Programs kept on disk: the same bits, never a wrong one, never a crash."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import compiled
from audiorank import objectives
from audiorank import program
from audiorank import records
from audiorank import sharding
from audiorank import train
from configs import base


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """The folder that programs are kept in, empty at first."""
  monkeypatch.setattr(compiled, 'folder', lambda: tmp_path / 'programs')
  return tmp_path / 'programs'


@pytest.fixture
def tiny():
  c = base.get_config('en16-2')
  c.data.crop_seconds, c.train.batch = 2., 8
  c.model.decoder.width, c.model.decoder.heads = 16, 2
  c.model.decoder.depth = 1
  return c


def untraced(*_):
  raise AssertionError('traced, though it is kept')


def steps_of(config, on, count=3):
  """Trains from a fresh state; returns (state, metrics) on the host."""
  wave_BS = np.random.default_rng(0).integers(
      -9000, 9000, (config.train.batch, 32000), np.int16)
  with jax.set_mesh(on):
    shapes, placed, fresh = train.start(config, on)
    state, (step, _) = fresh(), train.advances(config, placed)
    for _ in range(count):
      state, got = step(state, sharding.to_global(wave_BS, on),
                        program.hyper(config))
  assert jax.tree.structure(state) == jax.tree.structure(shapes)
  return jax.device_get((state, got))


@pytest.mark.parametrize('sides', [(1, 1), (4, 2)])
def test_a_second_process_traces_nothing_and_gets_the_bits_of_plain_jit(
    kept, tiny, sides, monkeypatch):
  config, on = records.frozen(tiny), sharding.mesh(*sides)
  with monkeypatch.context() as without:
    without.setattr(compiled, 'folder', lambda: None)
    plain = steps_of(config, on)
  first = steps_of(config, on)
  assert sorted(p.name.rsplit('-', 1)[0] for p in kept.iterdir()) == [
      'init', 'init-shapes', 'step']
  monkeypatch.setattr(program, 'init', untraced)
  monkeypatch.setattr(program, 'one_step', lambda config: untraced)
  again = steps_of(config, on)
  for found in (first, again):
    jax.tree.map(np.testing.assert_array_equal, plain, found)
  # Another run of this shape needs nothing else.
  tiny.opt.lr, tiny.seed, tiny.train.steps = 1e-2, 7, 12
  tiny.monitor.clips, tiny.data.root = 64, 'elsewhere'
  other, _ = steps_of(records.frozen(tiny), on)
  assert not np.array_equal(jax.tree.leaves(other.params)[0],
                            jax.tree.leaves(again[0].params)[0])


@pytest.mark.parametrize('field, value', [
    ('mask.ratio', .5), ('opt.b2', .9), ('train.init_scale', 2.),
    ('train.skip', 1), ('data.crop_seconds', 4.), ('model.depth', 3),
    ('model.remat', True), ('objective', 'latent')])
def test_what_is_compiled_in_makes_another_program(tiny, field, value):
  before = program.made_of(tiny)
  tiny.update_from_flattened_dict({field: value})
  assert program.made_of(tiny) != before


@pytest.mark.parametrize('objective', sorted(objectives.OBJECTIVES))
def test_programs_are_made_of_nothing_but_what_they_are_found_by(
    tiny, objective):
  """A field that is read, but is not in `core`, would raise here."""
  tiny.objective = objective
  config = records.frozen(tiny)
  core, key = program.core(config), jax.random.key(0)
  shapes = jax.eval_shape(lambda k: program.init(core, k), key)
  assert jax.eval_shape(
      program.one_step(core), shapes, jnp.zeros((8, 32000), jnp.int16),
      program.hyper(config))[0].params.keys() == shapes.params.keys()
  assert 'monitor' not in core and 'lr' not in core.opt


def test_the_first_argument_is_donated_as_by_jit(kept):
  for _ in range(2):
    f = compiled.Program('f', {}, jax.jit(lambda x, y: x + y,
                                             donate_argnums=0))
    x = jnp.arange(4.)
    np.testing.assert_array_equal(f(x, np.float32(1)), [1, 2, 3, 4])
    assert x.is_deleted()


def test_each_shape_has_its_own(kept):
  f = compiled.Program('f', {}, jax.jit(lambda x, y: x + y.sum()))
  for n in (1, 2, 1):
    assert f(jnp.float32(1), np.ones(n, np.float32)) == 1 + n
  assert len(list(kept.iterdir())) == 2
  jitted = jax.jit(untraced)
  g = compiled.Program('f', {}, jitted)
  for n in (1, 2):
    assert g(jnp.float32(1), np.ones(n, np.float32)) == 1 + n


@pytest.mark.parametrize('changed', [
    'made_of', 'software', 'sources', 'machine', 'flags', 'settings', 'mesh'])
def test_anything_it_hangs_on_makes_another(kept, changed, monkeypatch):
  run = lambda made_of: compiled.Program(
      'f', made_of, jax.jit(lambda x: x + 1))(jnp.float32(1))
  run({'a': 1})
  if changed in ('software', 'machine'):
    monkeypatch.setattr(compiled, f'_{changed}', lambda: 'other')
  if changed == 'sources':
    monkeypatch.setattr(compiled, '_IMPORTED', 'other')
    monkeypatch.setattr(compiled, '_sources', lambda: 'other')
  if changed == 'flags':
    monkeypatch.setenv('XLA_FLAGS', '--other')
  if changed == 'settings':
    with jax.default_matmul_precision('highest'):
      run({'a': 1})
  elif changed == 'mesh':
    with jax.set_mesh(sharding.mesh(8, 1)):
      run({'a': 1})
  else:
    run({'a': 2 if changed == 'made_of' else 1})
  assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty', 'other'])
def test_what_is_damaged_is_made_again(kept, damage, caplog):
  run = lambda: compiled.Program(
      'f', {}, jax.jit(lambda x: jnp.cumsum(x)))(jnp.arange(5.))
  first, (path,) = run(), kept.iterdir()
  body = bytearray(path.read_bytes())
  if damage == 'flipped':
    body[len(body) // 2] ^= 1
  elif damage == 'other':
    # Whole, but not what this XLA can load.
    compiled._write(path, (b'no executable', 0, [0]))
    body = path.read_bytes()
  path.write_bytes({'cut': body[:-7], 'empty': b''}.get(damage, bytes(body)))
  np.testing.assert_array_equal(run(), first)
  assert 'made again' in caplog.text
  caplog.clear()
  np.testing.assert_array_equal(run(), first)
  assert not caplog.text


def test_where_nothing_can_be_written_it_goes_on(kept, caplog):
  kept.write_text('a file where the folder should be')
  f = compiled.Program('f', {}, jax.jit(lambda x: x + 1))
  assert f(jnp.float32(1)) == 2
  assert 'not kept' in caplog.text or 'not read' in caplog.text


@pytest.mark.parametrize('how', ['partial', 'wraps', 'replaced', 'parts'])
def test_an_objective_of_somebody_else_is_not_kept(
    kept, tiny, how, monkeypatch):
  mae, tiny.objective = objectives.masked_autoencoding, 'odd'
  odd = {'partial': functools.partial(mae, by='none'),
         'wraps': functools.wraps(mae)(lambda *a, **k: mae(*a, **k))}
  if how == 'parts':
    monkeypatch.setitem(objectives.PARTS, 'mae', objectives.Parts())
    tiny.objective = 'mae'
  elif how == 'replaced':
    monkeypatch.setitem(objectives.OBJECTIVES, 'mae', odd['partial'])
    tiny.objective = 'mae'
  else:
    monkeypatch.setitem(objectives.OBJECTIVES, 'odd', odd[how])
  assert program.made_of(tiny) is None
  assert program.core(tiny).seed == tiny.seed  # It may read anything.
  f = compiled.Program('f', program.made_of(tiny), jax.jit(lambda x: x + 1))
  assert f(jnp.float32(1)) == 2
  assert not kept.exists()


def test_code_edited_since_the_start_is_not_kept(kept, monkeypatch):
  monkeypatch.setattr(compiled, '_sources', lambda: 'edited')
  f = compiled.Program('f', {}, jax.jit(lambda x: x + 1))
  assert f(jnp.float32(1)) == 2
  assert not kept.exists()


def test_arguments_that_lie_elsewhere_are_taken_as_by_jit(kept):
  f = compiled.Program('f', {}, jax.jit(lambda x: x + 1))
  first, other = jax.devices()[:2]
  for x in (np.float32(1), jax.device_put(np.float32(1), other),
            np.int32(1), jax.device_put(np.float32(1), first)):
    assert f(x) == 2


def test_a_bucket_is_left_to_jax(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', 'gs://bucket/cache')
  try:
    assert compiled.folder() is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_the_compile_cache_is_on_again_after_it_was_passed_by(kept):
  before = jax.config.jax_enable_compilation_cache
  compiled.Program('f', {}, jax.jit(lambda x: x - 1))(jnp.float32(1))
  assert jax.config.jax_enable_compilation_cache == before


def test_shapes_are_remembered(kept):
  found = compiled.shapes('f', {}, lambda x: {'a': x[:2]}, jnp.arange(4))
  assert found == {'a': jax.ShapeDtypeStruct((2,), jnp.int32)}
  assert compiled.shapes('f', {}, untraced, jnp.arange(4)) == found


def test_what_nobody_loads_is_deleted_after_a_month(kept):
  run = lambda made_of: compiled.Program(
      'f', {'a': made_of}, jax.jit(lambda x: x + 1))(jnp.float32(1))
  run(1)
  run(2)
  for path in kept.iterdir():
    os.utime(path, (0, 0))
  run(2)  # Loaded, and so in use.
  run(3)
  assert len(list(kept.iterdir())) == 2
