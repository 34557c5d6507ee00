"""The device mesh, and where every array of a run lives on it.

Axes: 'data' holds different clips and a full copy of the parameters, 'fsdp'
holds different clips and a slice of the block kernels and of their moments.
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np


def mesh(data, fsdp):
  """Returns a mesh of data x fsdp devices; data = -1 takes all there are.

  Raises:
    ValueError: the axes do not fit the number of devices.
  """
  n = jax.device_count()
  if data == -1 and fsdp > 0 and n % fsdp == 0:
    data = n // fsdp
  if data < 1 or fsdp < 1 or data * fsdp > n:
    raise ValueError(f'mesh.data {data} x mesh.fsdp {fsdp}: expected a '
                     f'product of at most {n} devices')
  return jax.make_mesh((data, fsdp), ('data', 'fsdp'),
                       axis_types=(AxisType.Auto,) * 2,
                       devices=jax.devices()[:data * fsdp])


def place(tree, on):
  """Returns the sharding of every leaf of a tree (parameters, moments, ...).

  Block kernels are cut over 'fsdp' along their largest divisible dimension;
  all else is replicated: cutting embeddings and positions made XLA
  rematerialise them on mixed meshes.
  """
  fsdp = on.shape['fsdp']

  def sharding(path, x):
    names = [getattr(key, 'key', None) for key in path]
    if fsdp > 1 and 'blocks' in names and names[-1] == 'kernel':
      cut = [i for i in range(1, x.ndim) if x.shape[i] % fsdp == 0]
      if cut:
        best = max(cut, key=lambda i: x.shape[i])
        return NamedSharding(
            on, P(*['fsdp' if i == best else None for i in range(x.ndim)]))
    return NamedSharding(on, P())

  return jax.tree.map_with_path(sharding, tree)


def rows(on):
  """Returns the sharding of a batch: rows over every axis of the mesh."""
  return NamedSharding(on, P(on.axis_names))


def replicated(on):
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(on, P())


def to_global(local, on):
  """Makes one global array of the rows that each process holds.

  Args:
    local: this process's rows, a numpy array.
    on: the mesh.
  """
  return jax.make_array_from_process_local_data(rows(on), np.asarray(local))


def check_batch(batch, on, field='train.batch'):
  """Raises ValueError unless `batch` rows divide over the mesh's devices."""
  if batch < 1 or batch % on.size:
    raise ValueError(f'{field} {batch} is not a multiple of {on.size} devices')
