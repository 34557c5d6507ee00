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

  Block kernels are cut over 'fsdp' along their largest divisible dimension;
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
    fit = [i for i in range(first, len(shape)) if shape[i] % fsdp == 0]
    if fit:
      best = max(fit, key=lambda i: shape[i])
      return P(*['fsdp' if i == best else None for i in range(len(shape))])
  return P()


def cut():
  """Returns whether the mesh that is set cuts kernels over devices."""
  on = jax.sharding.get_abstract_mesh()
  return not on.empty and on.shape.get('fsdp', 1) > 1


def whole(tree):
  """Returns one block's variables, held whole by every device in a program.

  Their gradients are cut again as they are summed. The tree itself where the
  mesh that is set cuts nothing.
  """
  if not cut():
    return tree
  fsdp = jax.sharding.get_abstract_mesh().shape['fsdp']
  constrain = jax.lax.with_sharding_constraint

  def gather(path, x):
    spec = cuts((jax.tree_util.DictKey('blocks'), *path), x.shape, fsdp, 0)
    if spec == P():
      return x
    gathered = jax.custom_vjp(lambda x: constrain(x, P()))
    gathered.defvjp(lambda x: (constrain(x, P()), None),
                    lambda _, g: (constrain(g, spec),))
    return gathered(x)

  return jax.tree.map_with_path(gather, tree)


def keeps(primitive, *_, **__):
  """Policy of jax.checkpoint: keep all but what `whole` has gathered."""
  return primitive.name != 'sharding_constraint'


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


def check_batch(batch, on, field='train.batch'):
  """Raises ValueError unless `batch` rows divide over the mesh's devices."""
  if batch < 1 or batch % on.size:
    raise ValueError(f'{field} {batch} is not a multiple of {on.size} devices')
