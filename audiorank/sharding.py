"""The device mesh, and how every array of a run is sharded over it.

Both axes of the mesh split the clips of a batch. Along 'data' every device
holds all parameters (data parallelism). Along 'fsdp' each holds a slice of the
block kernels and of their moments (fully sharded data parallelism).
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np


def mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None
         ) -> jax.sharding.Mesh:
  """Returns a mesh of data x fsdp devices.

  Args:
    data, fsdp: sides of the mesh. data = -1 takes all devices.
    devices: which ones; None for all devices of this run.

  Raises:
    ValueError: the axes do not fit the number of devices.
  """
  if devices is None:
    devices = jax.devices()
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
    # No side of a TPU's torus matches an axis of the mesh: 8x8x16 has none for
    # fsdp 4. Then a side of the torus is split, which costs some bandwidth.
    return jax.sharding.Mesh(
        mesh_utils.create_device_mesh(sides, devices,
                                      allow_split_physical_axes=True),
        names, axis_types=kinds)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the sharding of every leaf of a tree (parameters, moments, ...).

  One rule for all: block kernels are split over 'fsdp' along their first
  dimension that divides; everything else is replicated.
  """
  # Embeddings and positions are small, and splitting them made XLA
  # rematerialise them whole on meshes with both axes.
  def sharding(path: Any, x: Any) -> NamedSharding:
    return NamedSharding(mesh, cuts(path, x.shape, mesh.shape['fsdp'], 1))

  return jax.tree.map_with_path(sharding, tree)


def cuts(path: Sequence[Any], shape: tuple[int, ...], fsdp: int, first: int
         ) -> P:
  """Returns the PartitionSpec of one leaf.

  Args:
    path: of the leaf, as jax.tree.map_with_path gives it.
    shape: of the leaf.
    fsdp: size of that axis of the mesh.
    first: the first dimension that may be split; 1 skips the axis over which
      the blocks are stacked.
  """
  names = [getattr(key, 'key', None) for key in path]
  if fsdp > 1 and 'blocks' in names and names[-1] == 'kernel':
    # The first dimension that divides, usually a kernel's inputs: the gathered
    # slices are contiguous, and a TPU sums and scatters gradients in one
    # operation. Along the outputs of a qkv kernel, which are no power of two,
    # it sums first, and so sends twice as much.
    for i in range(first, len(shape)):
      if shape[i] % fsdp == 0:
        return P(*[None] * i, 'fsdp', *[None] * (len(shape) - i - 1))
  return P()


def cut() -> bool:
  """Returns whether the current mesh (jax.set_mesh) splits kernels."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.shape.get('fsdp', 1) > 1


def whole(tree: Any, dtype: str = 'float32') -> Any:
  """Gathers one block's variables, so that every device holds all of them.

  Their gradients are reduced and scattered. Where the current mesh splits
  nothing, the tree itself is returned.

  Args:
    tree: the variables of one block.
    dtype: what the block computes in. Kernels are cast before they are
      gathered, and their gradients after they are summed, so that bfloat16
      sends half as many bytes as float32.
  """
  if not cut():
    return tree
  fsdp = jax.sharding.get_abstract_mesh().shape['fsdp']
  constrain = jax.lax.with_sharding_constraint

  def gather(path: Any, x: jax.Array) -> jax.Array:
    spec = cuts((jax.tree_util.DictKey('blocks'), *path), x.shape, fsdp, 0)
    if spec == P():
      return x
    # A custom gradient, because the derived one would cast before it sums.
    gathered = jax.custom_vjp(lambda x: constrain(x.astype(dtype), P()))
    gathered.defvjp(lambda x: (gathered(x), None),
                    lambda _, g: (constrain(g, spec).astype(x.dtype),))
    return gathered(x)

  return jax.tree.map_with_path(gather, tree)


def keeps(primitive: Any, *_, **__) -> bool:
  """Policy of jax.checkpoint: save all but what `whole` has gathered."""
  return primitive.name != 'sharding_constraint'


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': where the traced program will run.

  That is the platform of the current mesh, or of the default device if no
  mesh is set.
  """
  # The mesh's devices need not be this machine's: launch/tpu compiles for
  # chips that are elsewhere, and sets an abstract mesh of them.
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.abstract_device is not None:
    kind = mesh.abstract_device.device_kind
    for name in ('tpu', 'cpu'):
      if kind.lower().startswith(name):
        return name
    return 'gpu'
  device = jax.config.jax_default_device  # type: ignore[attr-defined]
  name = getattr(device, 'platform', device) or jax.default_backend()
  return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)


def over_rows(function: Callable) -> Callable:
  """Returns a function of arrays of rows that each device runs on its own rows.

  It is for what XLA's partitioner cannot split, such as a kernel or a loop
  over rows. Rows are split over every axis of the current mesh. Where their
  number does not divide, `function` is called on the whole arrays.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # Manual: inside a shard_map, where arrays are a device's own already.
  if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
    return function
  spec = P(mesh.axis_names)
  mapped = jax.shard_map(function, in_specs=spec, out_specs=spec,
                         check_vma=False)

  def run(*arrays: jax.Array) -> Any:
    if all(x.shape[0] % mesh.size == 0 for x in arrays):
      return mapped(*arrays)
    return function(*arrays)

  return run


def over_runs(step: Callable, spread: NamedSharding, shared: bool) -> Callable:
  """Returns a packed step in which each device computes its own runs.

  Args:
    step: (states, batches, hparams, *whole) -> (states, metrics) of K runs.
      What is whole, every run uses: the devices have a copy each.
    spread: the sharding of the runs' axis, on a mesh of that axis alone.
    shared: whether all runs have the same batch.
  """
  if spread.mesh.size == 1:
    return step
  batch_spec = P() if shared else spread.spec

  def run(states, batches, hparams, *whole):
    in_specs = spread.spec, batch_spec, spread.spec, *[P()] * len(whole)
    return jax.shard_map(
        step, mesh=spread.mesh, in_specs=in_specs, out_specs=spread.spec,
        check_vma=False)(states, batches, hparams, *whole)

  return run


def rows(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over every axis of the mesh."""
  return NamedSharding(mesh, P(mesh.axis_names))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def to_global(local: Any, mesh: jax.sharding.Mesh, axis: int = 0) -> jax.Array:
  """Returns one global array of the rows of all processes.

  Args:
    local: this process's rows, a numpy array.
    mesh: the mesh of all processes.
    axis: the axis of the rows.
  """
  spec = P(*[None] * axis, mesh.axis_names)
  return jax.make_array_from_process_local_data(
      NamedSharding(mesh, spec), np.asarray(local))


def indivisible(field: str, batch: int, count: int, what: str = 'devices'
                ) -> str:
  """Returns why a batch cannot be split over `count` devices, or ''."""
  if batch < 1 or batch % count:
    return f'{field} {batch} is not a multiple of {count} {what}'
  return ''


def check_batch(batch: int, mesh: jax.sharding.Mesh,
                field: str = 'train.batch') -> None:
  """Raises ValueError unless `batch` rows divide over the mesh's devices."""
  reason = indivisible(field, batch, mesh.size)
  if reason:
    raise ValueError(reason)
