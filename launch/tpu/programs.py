"""The programs of a run on a slice, with the shapes and shardings of arguments.

A `spec` is JSON with everything that the shape of a program depends on, and
nothing else. Points of a grid with the same spec share one compilation.

Shapes: N clips, B batch, S samples, D width, K runs of a packed program.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from audiorank import config as config_lib
from audiorank import embed
from audiorank import flops
from audiorank import model
from audiorank import objectives
from audiorank import rankme
from audiorank import records
from audiorank import sharding
from audiorank import train_state

PROGRAMS = ('init', 'step', 'embed', 'rankme', 'svd', 'pack')


def spec(name: str, config: Any, data: int, fsdp: int) -> dict[str, Any]:
  """Returns the spec of a config's program on a mesh of data x fsdp.

  Args:
    name: of PROGRAMS.
    config: of a run.
    data, fsdp: sides of the mesh.
  """
  m = records.plain(config.model)
  out = {'program': name, 'data': data, 'fsdp': fsdp}
  if name in ('rankme', 'svd'):
    # Embeddings come in whole batches; the last one is padded.
    rows = math.ceil(config.monitor.clips / config.monitor.batch)
    return {**out, 'clips': rows * config.monitor.batch, 'width': m['width']}
  # 'auto' and the layout that it means are the same program.
  m['remat'] = model.rematerialisation(config.model, 'tpu')
  out['model'] = m
  if name == 'embed':
    return {**out, 'batch': config.monitor.batch,
            'seconds': config.monitor.crop_seconds}
  ratio = config.mask.ratio
  if name == 'init':
    ratio = .5  # Parameters do not depend on it.
  out['mask'] = {'ratio': ratio, 'group_size': config.mask.group_size}
  out['seconds'] = config.data.crop_seconds
  if config.objective in objectives.PARTS:  # It has variables of its own.
    out['objective'] = config.objective
    if config.objective in config:  # Its settings.
      out[config.objective] = records.plain(config[config.objective])
  if name == 'init':
    # Initialisation has no activations, on which these fields act.
    m.update(remat='none', unroll=1, dtype='float32')
  else:
    out.update(batch=config.train.batch, objective=config.objective)
  return out


def config_of(spec: dict[str, Any]) -> Any:
  """Returns a frozen config with the fields that a spec's program reads."""
  own = {name: spec[name] for name in objectives.OBJECTIVES if name in spec}
  return records.frozen({
      **own, 'seed': 0, 'model': spec['model'], 'mask': spec['mask'],
      # These values change numbers, not shapes.
      'data': {'crop_seconds': spec['seconds'], 'gain_low': 0,
               'gain_high': 0},
      'objective': spec.get('objective', 'mae'),
      'opt': {'b1': .9, 'b2': .999, 'transfer': 0},
      'train': {'init_scale': 1., 'max_skipped_steps': 0}})


def state_bytes(config: Any, fsdp: int) -> float:
  """Returns the bytes of a chip's share of parameters and moments."""
  def share(path: Any, x: Any) -> float:
    size = x.size * x.dtype.itemsize
    if 'fsdp' in sharding.cuts(path, x.shape, fsdp, 1):
      return size / fsdp
    return size

  return sum(jax.tree.leaves(
      jax.tree.map_with_path(share, train_state.state_shapes(config))))


def gradient_bytes(config: Any) -> int:
  """Returns the bytes of a whole gradient, float32."""
  return 4 * flops.parameters(train_state.state_shapes(config).params)


def lowered(spec: dict[str, Any], devices: list[Any]) -> jax.stages.Lowered:
  """Returns a spec's program, traced and lowered for a list of devices."""
  if spec['program'] == 'pack':
    return _packed(spec, devices)
  mesh = sharding.mesh(spec['data'], spec['fsdp'], devices)
  # The devices do not exist, so nothing may be computed while they are set.
  function, arguments = _call(spec, mesh)
  with jax.set_mesh(mesh):
    return function.lower(*arguments)


def _call(spec: dict[str, Any], mesh: jax.sharding.Mesh
          ) -> tuple[Any, tuple[Any, ...]]:
  """Returns a spec's jitted function and the shapes of its arguments."""
  whole, rows = sharding.replicated(mesh), sharding.rows(mesh)
  if spec['program'] in ('rankme', 'svd'):
    z_ND = jax.ShapeDtypeStruct((spec['clips'], spec['width']), jnp.float32,
                                sharding=rows)
    # 'sliced' is the method of rankme: exact sums of integers.
    method = 'svd'
    if spec['program'] == 'rankme':
      method = 'sliced'
    return rankme.device_program(method), (z_ND,)
  # Programs without masks do not read these fields.
  config = config_of({'mask': {'ratio': .5, 'group_size': 1}, **spec})
  shapes = train_state.state_shapes(config)
  placed = sharding.place(shapes, mesh)
  if spec['program'] == 'init':
    # The shape of a key alone: nothing is computed.
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = jax.jit(lambda key: train_state.init(config, key),
                   out_shardings=placed)
    return init, (_at(key, whole),)
  wave_BS = _waves(spec, rows)
  if spec['program'] == 'embed':
    state = _at(shapes, placed)
    return embed.encoder(config.model, 'scene', 'final', 'clip'), (
        {'params': state.params, 'batch_stats': state.batch_stats}, wave_BS)
  h = train_state.hparams_shapes()
  return train_state.make_step(config, placed), (
      _at(shapes, placed), wave_BS, _at(h, jax.tree.map(lambda _: whole, h)))


def _packed(spec: dict[str, Any], devices: list[Any]) -> jax.stages.Lowered:
  """Returns a program of one grid point per device, with a shared batch."""
  mesh = jax.make_mesh((len(devices),), ('sweep',), devices=devices,
                       axis_types=(AxisType.Auto,))
  config = config_of(spec)
  spread = NamedSharding(mesh, P('sweep'))

  def each(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (len(devices), *x.shape), x.dtype, sharding=spread), tree)

  # All points read the same batch.
  wave_BS = _waves(spec, sharding.replicated(mesh))
  step = train_state.packed_programs(config, spread, shared=True).step
  arguments = (each(train_state.state_shapes(config)), wave_BS,
               each(train_state.hparams_shapes()))
  with jax.set_mesh(mesh):
    return step.lower(*arguments)


def _waves(spec: dict[str, Any], place: NamedSharding
           ) -> jax.ShapeDtypeStruct:
  """Returns the shape of a batch of clips."""
  samples = config_lib.crop_samples(spec['seconds'])
  return jax.ShapeDtypeStruct((spec['batch'], samples), jnp.int16,
                              sharding=place)


def _at(shapes: Any, placed: Any) -> Any:
  """Returns a tree of shapes with the shardings of another."""
  return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      shapes, placed)
