"""RankMe of gathered embeddings against the singular values of others.

One core where the machine lets a process be pinned; N = 30,000 clips.
"""

import time

import jax
import numpy as np

from launch.benches import spectra
from launch.benches import timing

PINNED = True
CLIPS = 30_000
# Ratios to reach: against jnp.linalg.svd in JAX and by the host, against
# torch.linalg.svdvals in JAX and by the host; on a GPU against the first two.
GOALS = {128: (4., 1.75, 1.05, 1.4), 384: (1.9, 1.75, 1.05, 1.4),
         768: (1.3, 1.75, 1.05, 1.4), 1536: (1.3, 1.75, 1.05, 1.4)}
GPU_GOALS = {768: (5., None, 10., None), 1536: (5., None, 10., None)}


def torch_rival(z_ND):
  """Returns a function that runs torch.linalg.svdvals, or None."""
  try:
    import torch
  except ModuleNotFoundError:
    return None
  torch.set_num_threads(1)
  on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
  z = torch.from_numpy(z_ND).to('cuda' if on_gpu else 'cpu')
  return lambda: torch.linalg.svdvals(z).cpu()


def rows(quick, only):
  """Yields the Rows of this area."""
  from audiorank import rankme
  on_gpu = jax.default_backend() == 'gpu'
  clips = 4_000 if quick else CLIPS
  goals = GPU_GOALS if on_gpu else GOALS
  # The gathered path of the paper; full_matrices=True, the default, would
  # allocate N x N beside it and take as long.
  svd = jax.jit(lambda z_ND: jax.numpy.linalg.svd(
      z_ND, full_matrices=False, compute_uv=False))
  for width in (128, 384) if quick else GOALS:
    z_ND = spectra.embeddings('trained', clips, width)
    placed_ND = jax.device_put(z_ND)
    goal = (None,) * 4 if quick else goals.get(width, (None,) * 4)
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
      clock = time.perf_counter if on_gpu else time.process_time
      yield timing.turns(what, mine, rival, 3 if quick else 5, clock, least,
                         ('gram', whose), f'N = {clips}')
  yield from accuracy(rankme, quick, only)


def accuracy(rankme, quick, only):
  """Yields the largest relative error of RankMe over all spectra."""
  for width in (64,) if quick else (128, 384, 768):
    what = f'largest error of RankMe over {len(spectra.KINDS)} spectra, '
    what += f'D = {width}'
    if only not in what:
      continue
    worst, worst_svd = 0., 0.
    for kind in spectra.KINDS:
      z_ND = spectra.embeddings(kind, 4 * width, width, seed=1)
      for center in (False, True):
        exact_ND = z_ND.astype(np.float64)
        exact_ND = exact_ND - exact_ND.mean(0) if center else exact_ND
        exact = rankme.effective_rank(
            np.linalg.svd(exact_ND, compute_uv=False))
        error = lambda method: abs(rankme.effective_rank(
            rankme.singular_values(jax.device_put(z_ND), method, center))
                                   / exact - 1)
        worst = max(worst, error('gram'))
        worst_svd = max(worst_svd, error('svd'))
    yield timing.alone(what, worst, '', rival='float32 SVD',
                       rival_value=worst_svd,
                       note='against a float64 SVD; at most 1e-6 wanted')
