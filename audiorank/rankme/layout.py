"""Where embeddings lie: on the host, a device or a mesh, inside a trace or not.

Shapes: N clips, D width.
"""

import contextlib
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P


def x64():
  """Context in which float64 exists, whatever the global flag says."""
  # jax.enable_x64 is a context manager only from jax 0.8 on.
  if hasattr(jax, 'enable_x64'):
    return jax.enable_x64(True)
  from jax.experimental import enable_x64
  return enable_x64(True)


def is_traced(z_ND):
  return isinstance(z_ND, jax.core.Tracer)


def row_mesh(z_ND):
  """(mesh, axes) over which the rows are to be spread; (None, ()) if alone."""
  if is_traced(z_ND):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
      return None, ()
  elif isinstance(z_ND, jax.Array) and isinstance(z_ND.sharding,
                                                  NamedSharding):
    mesh = z_ND.sharding.mesh
  else:
    return None, ()
  axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind != AxisType.Manual)
  if not axes or mesh.size == 1:
    return None, ()
  return mesh, axes


def platform(z_ND):
  """'cpu', 'gpu' or 'tpu': where the work on z_ND will run."""
  if is_traced(z_ND) or not isinstance(z_ND, jax.Array):
    return jax.default_backend()
  return next(iter(z_ND.sharding.device_set)).platform


def place(z_ND, mesh, spec):
  """z_ND laid out by spec, inside a trace, on either kind of mesh axes."""
  if AxisType.Explicit in mesh.axis_types:
    return jax.sharding.reshard(z_ND, spec)
  return lax.with_sharding_constraint(z_ND, spec)


def mesh_context(mesh):
  """Context in which the mesh of the embeddings at hand is the current one."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def spread_rows(z_ND, mesh, axes):
  """z_ND by rows over the axes, with zero rows up to a multiple of devices.

  Zero rows change neither the sums nor any singular value.
  """
  extra = -z_ND.shape[0] % math.prod(mesh.shape[a] for a in axes)
  if extra:
    if AxisType.Explicit in mesh.axis_types:
      z_ND = place(z_ND, mesh, P())  # Explicit axes refuse an uneven pad.
    z_ND = jnp.pad(z_ND, ((0, extra), (0, 0)))
  return place(z_ND, mesh, P(axes))


def on_host(z_ND):
  """Whether a jax array lies by rows on CPU devices of this process alone:
  in the host's own memory."""
  return (platform(z_ND) == 'cpu' and z_ND.is_fully_addressable
          and all(shard.data.shape[1] == z_ND.shape[1]
                  for shard in z_ND.addressable_shards))


def row_shards(z_ND):
  """Returns the rows that this process's devices hold, none twice."""
  return [shard.data for shard in z_ND.addressable_shards
          if shard.replica_id == 0]
