"""RankMe of embeddings on 8 devices against gathering them on each.

Simulated devices share the machine's cores: what is compared is CPU time
summed over devices (all the work there is), bytes from the compiled program,
and temporary memory a device. Wires cost nothing here.
"""

from collections.abc import Iterator
import time

import jax

from launch import devices
from launch.benches import spectra
from launch.benches import timing
from launch.tpu import hlo

# LAPACK's own threads would only spin: eight devices already share the cores.
ENV = {'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1',
       'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
       'JAX_PLATFORMS': 'cpu'}
CLIPS = 30_000
GOALS = {128: 30., 384: 10., 768: 5.}


def received(text: str) -> float:
  """Returns the bytes that each device receives in a program.

  With ring algorithms an all-gather of n bytes brings n (d - 1) / d to each of
  d devices, and an all-reduce twice that.

  Args:
    text: the compiled program.
  """
  return sum(hlo.wire(c) for c in hlo.collectives(text))


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area; none on a GPU, to save its time."""
  if devices.find().kind == 'gpu':
    return
  from audiorank import rankme
  from audiorank.rankme import gram
  from audiorank.rankme import layout
  mesh = jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.P('data'))
  clips = timing.sized(quick, 4_000, CLIPS)
  for width in timing.sized(quick, (128,), GOALS):
    z_ND = jax.device_put(spectra.embeddings('trained', clips, width), spread)
    # As people write it, with full matrices; only compiled.
    svd = jax.jit(lambda z_ND: jax.numpy.linalg.svd(z_ND, compute_uv=False))
    # What is timed, without them: they would take N x N memory.
    naive = jax.jit(lambda z_ND: jax.numpy.linalg.svd(
        z_ND, full_matrices=False, compute_uv=False))
    where = f'8 devices, D = {width}'
    note = f'N = {clips}'
    what = f'all the work, {where}'
    if only in what:
      yield timing.turns(
          what, lambda: rankme.singular_values(z_ND),
          lambda: naive(z_ND).block_until_ready(), 3, time.process_time,
          timing.sized(quick, {}, GOALS).get(width), ('gram', 'gather, svd'),
          note)
    with layout.x64(), jax.set_mesh(mesh):
      # Compiled, not run: bytes and memory are properties of the program.
      mine = gram._moments_program.lower(z_ND).compile()
    theirs = svd.lower(z_ND).compile()
    what = f'bytes a device receives, {where}'
    if only in what:
      yield timing.alone(
          what, received(mine.as_text()), 'B', 15., note, 'gram',
          'gather, svd', received(theirs.as_text()))
    what = f'temporary memory a device, {where}'
    if only in what:
      yield timing.alone(
          what, mine.memory_analysis().temp_size_in_bytes, 'B', 100.,
          f'{note}; full_matrices=True is what jnp.linalg.svd does unasked',
          'gram', 'gather, svd', theirs.memory_analysis().temp_size_in_bytes)
    for method in ('jackknife', 'infinitesimal'):
      what = f'RankMe alone against RankMe with its interval, {method}, {where}'
      if only in what:
        yield timing.turns(
            what, lambda: rankme.estimate(z_ND, method=method),
            lambda: rankme.rankme(z_ND), 5, time.process_time, .8,
            ('estimate', 'rankme'), note)
