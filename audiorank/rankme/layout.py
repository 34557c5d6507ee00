"""Where embeddings lie: on the host, a device or a mesh, inside a trace or not.

Shapes: N clips, D width.
"""

import contextlib
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from numpy import typing as npt

Embeddings = npt.NDArray[Any] | jax.Array  # A tracer too.
Floats = npt.NDArray[np.float64]
AnyMesh = Mesh | jax.sharding.AbstractMesh


def x64() -> contextlib.AbstractContextManager[Any]:
  """Returns a context in which float64 exists, despite the global flag."""
  # jax.enable_x64 is a context manager only from jax 0.8 on.
  if hasattr(jax, 'enable_x64'):
    return jax.enable_x64(True)
  from jax.experimental import enable_x64  # type: ignore[attr-defined]
  return enable_x64(True)


def is_traced(z_ND: Any) -> bool:
  """Returns whether an array is a tracer inside a jit of the caller."""
  return isinstance(z_ND, jax.core.Tracer)


def row_mesh(z_ND: Embeddings) -> tuple[AnyMesh | None, tuple[str, ...]]:
  """Returns (mesh, axes) to divide rows over; (None, ()) for one device."""
  # Inside a trace the sharding is unknown: the mesh is the current one.
  if is_traced(z_ND):
    mesh: AnyMesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
      return None, ()
  # Of a concrete array its own sharding says where rows lie.
  elif isinstance(z_ND, jax.Array) and isinstance(z_ND.sharding,
                                                  NamedSharding):
    mesh = z_ND.sharding.mesh
  else:
    return None, ()
  # Manual axes belong to a shard_map of the caller: rows are already local.
  axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind != AxisType.Manual)
  if not axes or mesh.size == 1:
    return None, ()
  return mesh, axes


def platform(z_ND: Embeddings) -> str:
  """Returns 'cpu', 'gpu' or 'tpu', where the work on z_ND will run."""
  if is_traced(z_ND) or not isinstance(z_ND, jax.Array):
    return jax.default_backend()
  # All devices of an array are of one kind.
  device: Any = next(iter(z_ND.sharding.device_set))
  return device.platform


def place(z_ND: jax.Array, mesh: AnyMesh, spec: P) -> jax.Array:
  """Returns z_ND with a sharding, inside a trace, for any mesh axes."""
  # Sharding in types: there a constraint is not enough, a reshard is needed.
  if AxisType.Explicit in mesh.axis_types:
    return jax.sharding.reshard(z_ND, spec)
  return lax.with_sharding_constraint(z_ND, spec)


def mesh_context(mesh: Any) -> contextlib.AbstractContextManager[Any]:
  """Returns a context in which a mesh, if not None, is the current one."""
  if mesh is None:
    return contextlib.nullcontext()
  return jax.set_mesh(mesh)


def spread_rows(z_ND: jax.Array, mesh: AnyMesh,
                axes: tuple[str, ...]) -> jax.Array:
  """Returns z_ND divided by rows over the axes, padded with zero rows.

  Zero rows change neither the sums nor any singular value.
  """
  extra = -z_ND.shape[0] % math.prod(mesh.shape[a] for a in axes)
  if extra:
    if AxisType.Explicit in mesh.axis_types:
      z_ND = place(z_ND, mesh, P())  # Explicit axes refuse an uneven pad.
    z_ND = jnp.pad(z_ND, ((0, extra), (0, 0)))
  return place(z_ND, mesh, P(axes))


def on_host(z_ND: jax.Array) -> bool:
  """Returns whether a jax array is in the host's memory, by rows.

  That is, on CPU devices of this process alone.
  """
  # Divided by columns, no shard has whole rows.
  return (platform(z_ND) == 'cpu' and z_ND.is_fully_addressable
          and all(shard.data.shape[1] == z_ND.shape[1]
                  for shard in z_ND.addressable_shards))


def row_shards(z_ND: jax.Array) -> list[jax.Array]:
  """Returns the rows on this process's devices, each once."""
  return [shard.data for shard in z_ND.addressable_shards
          if shard.replica_id == 0]
