"""RankMe of gathered embeddings against the singular values of others.

N = 30,000 clips. On a CPU one core, where the machine lets a process be
pinned. On a GPU a process for each side, each bounded in time: the rivals may
take minutes.
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import sys
import time
from typing import Any

import jax
import numpy as np

from launch import devices
from launch.benches import spectra
from launch.benches import timing

DEVICES = devices.find()
ON_GPU = DEVICES.kind == 'gpu'
PINNED = not ON_GPU
ENV = {}
if ON_GPU:
  # This process must not open the device, because its children need all of
  # the memory.
  ENV = {'JAX_PLATFORMS': 'cpu'}
CLIPS = 30_000
# Ratios to reach: against jnp.linalg.svd in JAX and by the host, against
# torch.linalg.svdvals in JAX and by the host.
GOALS = {128: (4., 1.75, 1.05, 1.4), 384: (1.9, 1.75, 1.05, 1.4),
         768: (1.3, 1.75, 1.05, 1.4), 1536: (1.3, 1.75, 1.05, 1.4)}
# On a GPU: widths, the least ratio against torch.linalg.svdvals, seconds for
# all of it and for one process.
GPU_WIDTHS, GPU_GOAL, GPU_SECONDS, JOB_SECONDS = (768, 1536), 10., 50., 25.
EXACT = 1e-6  # Error wanted, against a float64 SVD.


def torch_rival(z_ND: np.ndarray) -> Callable[[], Any] | None:
  """Returns a function that runs torch.linalg.svdvals, or None."""
  try:
    import torch
  except ModuleNotFoundError:
    return None
  device = 'cpu'
  if torch.cuda.is_available():
    device = 'cuda'
  else:
    torch.set_num_threads(1)
  z = torch.from_numpy(z_ND).to(device)
  return lambda: torch.linalg.svdvals(z).cpu()


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  if ON_GPU:
    small = quick or DEVICES.pretended
    yield from card(timing.sized(small, (32, 64), GPU_WIDTHS),
                    timing.sized(small, 400, CLIPS), only)
    return
  from audiorank import rankme
  clips = timing.sized(quick, 4_000, CLIPS)
  # The gathered path of the paper; full_matrices=True, the default, would
  # allocate N x N beside it and take as long.
  svd = jax.jit(lambda z_ND: jax.numpy.linalg.svd(
      z_ND, full_matrices=False, compute_uv=False))
  for width in timing.sized(quick, (128, 384), GOALS):
    z_ND = spectra.embeddings('trained', clips, width)
    placed_ND = jax.device_put(z_ND)
    goal = timing.sized(quick, {}, GOALS).get(width, (None,) * 4)
    ours = lambda: rankme.singular_values(placed_ND)
    host = lambda: rankme.singular_values(z_ND)
    # XLA alone: moments, eigenvalues and all in one compiled program.
    program = jax.jit(rankme.singular_values)
    traced = lambda: program(placed_ND).block_until_ready()
    gathered = lambda: svd(placed_ND).block_until_ready()
    torch = torch_rival(z_ND)
    for name, mine, rival, whose, least in (
        ('jax array', ours, gathered, 'jnp.linalg.svd', goal[0]),
        ('jax array inside jit', traced, gathered, 'jnp.linalg.svd', goal[0]),
        ('numpy', host, gathered, 'jnp.linalg.svd', goal[1]),
        ('jax array', ours, torch, 'torch.linalg.svdvals', goal[2]),
        ('numpy', host, torch, 'torch.linalg.svdvals', goal[3])):
      what = f'singular values of {name}, D = {width}, against {whose}'
      if only not in what:
        continue
      if rival is None:
        yield timing.absent(what, 'torch')
        continue
      # On one core CPU time is what a quiet core would take.
      yield timing.turns(what, mine, rival, timing.sized(quick, 3, 5),
                         time.process_time, least, ('gram', whose),
                         f'N = {clips}')
  yield from accuracy(rankme, quick, only)


def card(widths: tuple[int, ...], clips: int, only: str
         ) -> Iterator[timing.Row]:
  """Yields the Rows of a GPU, each as soon as both of its sides are known."""
  sides = ('ours', 'torch.linalg.svdvals', 'jnp.linalg.svd')
  platforms = 'cuda,cpu'
  if DEVICES.pretended:
    platforms = 'cpu'
  jobs = []
  for side in sides:
    for width in widths:
      if side == 'ours' or only in _what(width, side):
        arguments = json.dumps({'side': side, 'width': width, 'clips': clips})
        jobs.append(timing.Job(
            f'{side} {width}',
            [sys.executable, '-m', 'launch.benches.rankme', arguments],
            JOB_SECONDS, {'JAX_PLATFORMS': platforms,
                          'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}))
  done = {}
  # One at a time, because jobs at the same time would slow each other down.
  for job, result in timing.children(jobs, 1, GPU_SECONDS):
    side, width = job.name.rsplit(' ', 1)
    done[job.name] = result
    if side == 'ours':
      yield _error_row(int(width), clips, result)
    else:
      yield _card_row(int(width), clips, side, done[f'ours {width}'], result)


def _what(width, side):
  return f'singular values on the card, D = {width}, against {side}'


def _error_row(width, clips, result):
  what = f'error of RankMe on the card, D = {width}'
  if 'error' in result:
    return timing.alone(what, float('nan'), '', note=result['error'])
  return timing.alone(
      what, result['off'], '', note=f'N = {clips}, against a float64 SVD of '
      f'{4 * width} of them; at most {EXACT:g} wanted')


def _card_row(width, clips, side, mine, theirs):
  what, goal = _what(width, side), None
  if side.startswith('torch'):
    goal = GPU_GOAL
  for whose, result in (('ours', mine), (side, theirs)):
    if 'error' in result:
      return timing.alone(what, float('nan'), 's', goal,
                          f"{whose}: {result['error']}", 'gram', side)
  return timing.alone(what, mine['seconds'], 's', goal, f'N = {clips}', 'gram',
                      side, theirs['seconds'])


def child(side: str, width: int, clips: int) -> dict[str, float]:
  """Returns the seconds of one side on this process's device.

  Of our side also the error of RankMe.
  """
  from audiorank import rankme
  z_ND = spectra.embeddings('trained', clips, width)
  if side == 'torch.linalg.svdvals':
    run = torch_rival(z_ND)
    if run is None:
      raise ImportError('torch is not installed')
    return {'seconds': _once(run)}
  placed_ND = jax.device_put(z_ND)
  if side == 'jnp.linalg.svd':
    svd = jax.jit(lambda z_ND: jax.numpy.linalg.svd(
        z_ND, full_matrices=False, compute_uv=False))
    return {'seconds': _once(lambda: svd(placed_ND).block_until_ready())}
  seconds = _once(lambda: rankme.singular_values(placed_ND))
  # A part of the clips: a float64 SVD of all of them takes long.
  part_ND = z_ND[:4 * width]
  exact = rankme.effective_rank(
      np.linalg.svd(part_ND.astype(np.float64), compute_uv=False))
  value = rankme.effective_rank(
      rankme.singular_values(jax.device_put(part_ND)))
  return {'seconds': seconds, 'off': abs(float(value / exact) - 1)}


def _once(run):
  """Returns the seconds of one call after the first."""
  run()
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def accuracy(rankme: Any, quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the largest relative error of RankMe over all spectra."""
  for width in timing.sized(quick, (64,), (128, 384, 768)):
    what = f'largest error of RankMe over {len(spectra.KINDS)} spectra, '
    what += f'D = {width}'
    if only not in what:
      continue
    worst, worst_svd = 0., 0.
    for kind in spectra.KINDS:
      z_ND = spectra.embeddings(kind, 4 * width, width, seed=1)
      for center in (False, True):
        exact_ND = z_ND.astype(np.float64)
        if center:
          exact_ND = exact_ND - exact_ND.mean(0)
        exact = rankme.effective_rank(
            np.linalg.svd(exact_ND, compute_uv=False))
        error = lambda method: abs(rankme.effective_rank(
            rankme.singular_values(jax.device_put(z_ND), method, center))
                                   / exact - 1)
        worst = max(worst, error('gram'))
        worst_svd = max(worst_svd, error('svd'))
    yield timing.alone(what, worst, '', rival='float32 SVD',
                       rival_value=worst_svd,
                       note=f'against a float64 SVD; at most {EXACT:g} wanted')


if __name__ == '__main__':
  print(json.dumps(child(**json.loads(sys.argv[1]))))
