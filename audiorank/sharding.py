"""The device mesh, and where every array of a run lives on it.

Axes: 'data' holds different clips and a full copy of the parameters, 'fsdp'
holds different clips and a slice of the block kernels and of their moments.
"""

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np


def mesh(data, fsdp, devices=None):
  """Returns a mesh of data x fsdp devices; data = -1 takes all there are.

  Args:
    data, fsdp: sides of the mesh.
    devices: which; None for this run's own.

  Raises:
    ValueError: the axes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  n = len(devices)
  if data == -1 and fsdp > 0 and n % fsdp == 0:
    data = n // fsdp
  if data < 1 or fsdp < 1 or data * fsdp > n:
    raise ValueError(f'mesh.data {data} x mesh.fsdp {fsdp}: expected a '
                     f'product of at most {n} devices')
  sides, names, kinds = (data, fsdp), ('data', 'fsdp'), (AxisType.Auto,) * 2
  devices = devices[:data * fsdp]
  try:
    return jax.make_mesh(sides, names, axis_types=kinds, devices=devices)
  except NotImplementedError:
    # A torus with no side to match, as 8x8x16 has none for fsdp 4: one is cut.
    return jax.sharding.Mesh(
        mesh_utils.create_device_mesh(sides, devices,
                                      allow_split_physical_axes=True),
        names, axis_types=kinds)


def place(tree, on):
  """Returns the sharding of every leaf of a tree (parameters, moments, ...).

  Block kernels are cut over 'fsdp' along their first divisible dimension;
  all else is replicated: cutting embeddings and positions made XLA
  rematerialise them on mixed meshes.
  """
  def sharding(path, x):
    return NamedSharding(on, cuts(path, x.shape, on.shape['fsdp'], 1))

  return jax.tree.map_with_path(sharding, tree)


def cuts(path, shape, fsdp, first):
  """Returns the PartitionSpec of one leaf, whose blocks' axes begin at
  `first`."""
  names = [getattr(key, 'key', None) for key in path]
  if fsdp > 1 and 'blocks' in names and names[-1] == 'kernel':
    # The first side that divides, a kernel's inputs: what is gathered lies in
    # one piece, and a TPU sums and cuts in one go. Along the outputs of a qkv
    # kernel, which are no power of two, it sums first and sends twice as much.
    for i in range(first, len(shape)):
      if shape[i] % fsdp == 0:
        return P(*['fsdp' if j == i else None for j in range(len(shape))])
  return P()


def cut():
  """Returns whether the mesh that is set cuts kernels over devices."""
  on = jax.sharding.get_abstract_mesh()
  return not on.empty and on.shape.get('fsdp', 1) > 1


def whole(tree, dtype='float32'):
  """Returns one block's variables, held whole by every device in a program.

  Their gradients are cut again as they are summed. The tree itself where the
  mesh that is set cuts nothing.

  Args:
    tree: of one block.
    dtype: what the block computes in. Kernels are cast before they are
      gathered, and their gradients after they are summed, so that bfloat16
      sends half of what float32 does.
  """
  if not cut():
    return tree
  fsdp = jax.sharding.get_abstract_mesh().shape['fsdp']
  constrain = jax.lax.with_sharding_constraint

  def gather(path, x):
    spec = cuts((jax.tree_util.DictKey('blocks'), *path), x.shape, fsdp, 0)
    if spec == P():
      return x
    gathered = jax.custom_vjp(lambda x: constrain(x.astype(dtype), P()))
    gathered.defvjp(lambda x: (gathered(x), None),
                    lambda _, g: (constrain(g, spec).astype(x.dtype),))
    return gathered(x)

  return jax.tree.map_with_path(gather, tree)


def keeps(primitive, *_, **__):
  """Policy of jax.checkpoint: keep all but what `whole` has gathered."""
  return primitive.name != 'sharding_constraint'


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': where what is traced now will run.

  The devices of the mesh that is set, which need not be this machine's (plans
  are compiled for chips that are elsewhere), or the default device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.abstract_device is not None:
    kind = mesh.abstract_device.device_kind
    for name in ('tpu', 'cpu'):
      if kind.lower().startswith(name):
        return name
    return 'gpu'
  device = jax.config.jax_default_device
  name = getattr(device, 'platform', device) or jax.default_backend()
  return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)


def over_rows(function):
  """Returns a function of arrays of rows, run by each device on its own rows.

  For what the partitioner cannot cut by itself, such as a kernel or a loop
  over rows. Rows lie over every axis of the mesh that is set; where they do
  not divide, and within a device's own part of a program, the function itself
  is called.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
    return function
  spec = P(mesh.axis_names)
  mapped = jax.shard_map(function, in_specs=spec, out_specs=spec,
                         check_vma=False)

  def run(*arrays):
    divides = all(x.shape[0] % mesh.size == 0 for x in arrays)
    return (mapped if divides else function)(*arrays)

  return run


def over_runs(step, spread, shared):
  """Returns a packed step whose runs lie over devices, each with its own.

  Args:
    step: (states, batches, hparams) -> (states, metrics) of K runs.
    spread: the sharding of the runs' axis, of a mesh of that axis alone.
    shared: whether all runs have the same batch.
  """
  if spread.mesh.size == 1:
    return step
  return jax.shard_map(
      step, mesh=spread.mesh,
      in_specs=(spread.spec, P() if shared else spread.spec, spread.spec),
      out_specs=spread.spec, check_vma=False)


def rows(on):
  """Returns the sharding of a batch: rows over every axis of the mesh."""
  return NamedSharding(on, P(on.axis_names))


def replicated(on):
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(on, P())


def to_global(local, on, axis=0):
  """Makes one global array of the rows that each process holds.

  Args:
    local: this process's rows, a numpy array.
    on: the mesh.
    axis: where its rows lie.
  """
  spec = P(*[None] * axis, on.axis_names)
  return jax.make_array_from_process_local_data(
      NamedSharding(on, spec), np.asarray(local))


def indivisible(field, batch, count, what='devices'):
  """Returns why so many rows cannot lie over so many devices, or ''."""
  if batch < 1 or batch % count:
    return f'{field} {batch} is not a multiple of {count} {what}'
  return ''


def check_batch(batch, mesh, field='train.batch'):
  """Raises ValueError unless `batch` rows divide over the mesh's devices."""
  reason = indivisible(field, batch, mesh.size)
  if reason:
    raise ValueError(reason)
