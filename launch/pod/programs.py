"""What a run has compiled on a slice, as programs with shapes and places.

A program is made of a `spec`, JSON material that holds what its shape hangs
on and nothing else, so that points of a grid that share it share one
compilation.

Shapes: N clips, B batch, S samples, D width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from audiorank import compute
from audiorank import embed
from audiorank import objectives
from audiorank import program
from audiorank import rankme
from audiorank import records
from audiorank import sharding

PROGRAMS = ('init', 'step', 'embed', 'rankme', 'svd', 'pack')


def spec(name, config, data, fsdp):
  """Returns the spec of a config's program on a mesh of data x fsdp.

  Args:
    name: of PROGRAMS.
    config: of a run.
    data, fsdp: sides of the mesh.
  """
  m = records.plain(config.model)
  out = {'program': name, 'data': data, 'fsdp': fsdp}
  if name in ('rankme', 'svd'):
    rows = math.ceil(config.monitor.clips / config.monitor.batch)
    return {**out, 'clips': rows * config.monitor.batch, 'width': m['width']}
  out['model'] = m
  if name == 'embed':
    return {**out, 'batch': config.monitor.batch,
            'seconds': config.monitor.crop_seconds}
  # The ratio of masking changes no parameter.
  ratio = config.mask.ratio if name != 'init' else .5
  out['mask'] = {'ratio': ratio, 'group': config.mask.group}
  out['seconds'] = config.data.crop_seconds
  if config.objective in objectives.PARTS:  # Variables of its own.
    out['objective'] = config.objective
    if config.objective in config:  # Its settings.
      out[config.objective] = records.plain(config[config.objective])
  if name != 'init':
    out.update(batch=config.train.batch, objective=config.objective)
  else:
    # Activations do not exist yet.
    m['remat'], m['unroll'], m['dtype'] = False, 1, 'float32'
  return out


def config_of(spec):
  """Returns the frozen config that the library's functions see."""
  own = {name: spec[name] for name in objectives.OBJECTIVES if name in spec}
  return records.frozen({
      **own, 'seed': 0, 'model': spec['model'], 'mask': spec['mask'],
      'data': {'crop_seconds': spec['seconds']},
      'objective': spec.get('objective', 'mae'), 'opt': {'b1': .9, 'b2': .999},
      'train': {'init_scale': 1., 'skip': 0}})


def state_bytes(config, fsdp):
  """Returns the bytes of a chip's share of parameters and moments."""
  shapes = jax.eval_shape(lambda k: program.init(config, k), jax.random.key(0))

  def share(path, x):
    spec = sharding.cuts(path, x.shape, fsdp, 1)
    return x.size * x.dtype.itemsize / (fsdp if 'fsdp' in spec else 1)

  return sum(jax.tree.leaves(jax.tree.map_with_path(share, shapes)))


def gradient_bytes(config):
  """Returns the bytes of a whole gradient, float32."""
  shapes = jax.eval_shape(lambda k: program.init(config, k), jax.random.key(0))
  return 4 * compute.parameters(shapes.params)


def lowered(spec, devices):
  """Returns a jax Lowered of a spec's program for a list of devices."""
  if spec['program'] == 'pack':
    return _packed(spec, devices)
  on = sharding.mesh(spec['data'], spec['fsdp'], devices)
  # Nothing may be computed while these devices are set: they do not exist.
  made, arguments = _call(spec, on)
  with jax.set_mesh(on):
    return made.lower(*arguments)


def _call(spec, on):
  """Returns a spec's jitted function and the shapes of its arguments."""
  whole, rows = sharding.replicated(on), sharding.rows(on)
  if spec['program'] in ('rankme', 'svd'):
    z_ND = jax.ShapeDtypeStruct((spec['clips'], spec['width']), jnp.float32,
                                sharding=rows)
    method = 'sliced' if spec['program'] == 'rankme' else 'svd'
    return rankme.device_program(method), (z_ND,)
  config = config_of({'mask': {'ratio': .5, 'group': 1}, **spec})
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(lambda k: program.init(config, k), key)
  placed = sharding.place(shapes, on)
  if spec['program'] == 'init':
    made = jax.jit(lambda k: program.init(config, k), out_shardings=placed)
    return made, (_at(key, whole),)
  wave_BS = jax.ShapeDtypeStruct(
      (spec['batch'], program.crop_samples(spec['seconds'])), jnp.int16,
      sharding=rows)
  if spec['program'] == 'embed':
    state = _at(shapes, placed)
    return embed.encoder(config.model, 'scene', 'final', 'clip'), (
        {'params': state.params, 'batch_stats': state.batch_stats}, wave_BS)
  h = jax.eval_shape(_hyper)
  return program.make_step(config, placed), (
      _at(shapes, placed), wave_BS, _at(h, jax.tree.map(lambda _: whole, h)))


def _packed(spec, devices):
  """As many points of a grid as devices, each with all of one shared batch."""
  on = jax.make_mesh((len(devices),), ('sweep',), devices=devices,
                     axis_types=(AxisType.Auto,))
  config = config_of(spec)
  shapes = jax.eval_shape(lambda k: program.init(config, k), jax.random.key(0))
  cut, whole = NamedSharding(on, P('sweep')), sharding.replicated(on)

  def each(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (len(devices), *x.shape), x.dtype, sharding=cut), tree)

  wave_BS = jax.ShapeDtypeStruct(
      (spec['batch'], program.crop_samples(spec['seconds'])), jnp.int16,
      sharding=whole)
  step = jax.vmap(program.one_step(config), (0, None, 0))
  packed = jax.jit(step, donate_argnums=0, out_shardings=(cut, cut))
  with jax.set_mesh(on):
    return packed.lower(each(shapes), wave_BS, each(jax.eval_shape(_hyper)))


def _hyper():
  """Returns hyper-parameters of the right types."""
  numbers = [jnp.float32(0)] * (len(dataclasses.fields(program.Hyper)) - 1)
  return program.Hyper(jnp.uint32(0), *numbers)


def _at(shapes, placed):
  def at(x, place):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  return jax.tree.map(at, shapes, placed)
