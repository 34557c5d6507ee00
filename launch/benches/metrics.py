"""Measures of embeddings against the packages that compute them.

N = 10,000 clips, D = 768, on one core with one thread, by CPU time: dimensions
by scikit-dimension and DADApy, the spanning tree by scipy, clusters by
scikit-learn, LiDAR by reptrix. Every row includes what the measure needs:
distances are computed anew. DADApy needs numpy below 2, so an environment of
its own: AUDIORANK_DADAPY names its python.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import importlib
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from launch.benches import spectra
from launch.benches import timing

PINNED = True
CLIPS, WIDTH = 10_000, 768
CLUSTERS = 1000
VIEWS = 10  # Of LiDAR: a tenth as many clips, each with so many views.
GOAL = 1.  # None is slower; the geometric mean is at least 5.
MEAN = 5.
# Reads a line, computes, and prints the CPU time of it and the dimension.
DADAPY = """
import sys, time
import numpy as np
from dadapy import IdEstimation
z_ND = np.load(sys.argv[1])
for _ in sys.stdin:
  start = time.process_time()
  data = IdEstimation(z_ND)
  data.compute_distances(maxk=3)
  print(data.compute_id_2NN()[0], time.process_time() - start, flush=True)
"""


def skdim(name: str, **arguments: Any) -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> a dimension by scikit-dimension.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  estimators = importlib.import_module('skdim.id')

  def run(z_ND: np.ndarray) -> Any:
    return getattr(estimators, name)().fit(z_ND, **arguments)

  return run


def spanning_tree() -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> the length of the minimum spanning tree by scipy."""
  from scipy import sparse
  from scipy import spatial

  def run(z_ND: np.ndarray) -> float:
    return sparse.csgraph.minimum_spanning_tree(
        spatial.distance.cdist(z_ND, z_ND)).sum()

  return run


def clusters() -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> k-means by scikit-learn, from the first clips as ours.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  cluster = importlib.import_module('sklearn.cluster')

  def run(z_ND: np.ndarray) -> Any:
    count = min(CLUSTERS, len(z_ND) // 10)
    return cluster.KMeans(count, init=z_ND[:count], n_init=1,
                          max_iter=100).fit(z_ND)

  return run


def davies_bouldin(label_N: np.ndarray) -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> the Davies-Bouldin index by scikit-learn.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  metrics = importlib.import_module('sklearn.metrics')
  return lambda z_ND: metrics.davies_bouldin_score(z_ND, label_N)


def lidar() -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> LiDAR by reptrix.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  torch = importlib.import_module('torch')
  theirs = importlib.import_module('reptrix.lidar')
  return lambda z_ND: theirs.get_lidar(
      torch.from_numpy(z_ND), len(z_ND) // VIEWS, VIEWS)


def dadapy_row(z_ND: np.ndarray, ours: Callable[[], Any],
               repeats: int) -> timing.Row:
  """Returns the Row of TwoNN by DADApy, which runs in a child process.

  Both are timed in turns, on the same core, each by its own CPU time.
  """
  what, peer = f'TwoNN dimension, N = {len(z_ND):,}', 'DADApy'
  python = os.environ.get('AUDIORANK_DADAPY', '')
  if not python:
    return timing.absent(what, peer)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'z.npy'
    np.save(path, z_ND)
    # It inherits the core and the number of threads.
    with subprocess.Popen([python, '-W', 'ignore', '-c', DADAPY, str(path)],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as child:
      pairs = []
      for _ in range(repeats + 1):
        start = time.process_time()
        ours()
        mine = time.process_time() - start
        assert child.stdin and child.stdout
        child.stdin.write('\n')
        child.stdin.flush()
        pairs.append((mine, float(child.stdout.readline().split()[1])))
  # The first turn warms up.
  ratios = [theirs / mine for mine, theirs in pairs[1:]]
  mine, theirs = (statistics.median(side) for side in zip(*pairs[1:]))
  return timing.Row(what, 'audiorank', peer, mine, theirs, 's',
                    statistics.median(ratios), min(ratios), max(ratios), GOAL,
                    'in a process of its own')


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area, and their geometric mean."""
  from audiorank import rankme
  from audiorank.rankme import neighbours
  clips = timing.sized(quick, 1_500, CLIPS)
  z_ND = spectra.embeddings('trained', clips, timing.sized(quick, 64, WIDTH))
  wide_ND, count = z_ND.astype(np.float64), min(CLUSTERS, clips // 10)
  label_N, _ = neighbours.kmeans(wide_ND, count, wide_ND[:count])

  def near(count: int) -> np.ndarray:
    return neighbours.nearest(neighbours.distances(z_ND), count)

  def two() -> float:
    return neighbours.twonn(near(2))

  repeats = timing.sized(quick, 1, 3)
  ratios: list[float] = []
  # rival() imports its peer, so that one that is missing costs a row only.
  for what, ours, peer, rival in (
      ('TwoNN dimension', two, 'scikit-dimension', lambda: skdim('TwoNN')),
      ('maximum-likelihood dimension',
       lambda: neighbours.mle_dimension(near(20)), 'scikit-dimension',
       lambda: skdim('MLE', n_neighbors=20)),
      ('minimum spanning tree',
       lambda: neighbours.tree_length(neighbours.distances(z_ND)), 'scipy',
       spanning_tree),
      ('k-means', lambda: neighbours.kmeans(wide_ND, count, wide_ND[:count]),
       'scikit-learn', clusters),
      ('Davies-Bouldin index',
       lambda: neighbours.davies_bouldin(wide_ND, label_N), 'scikit-learn',
       lambda: davies_bouldin(label_N)),
      ('LiDAR', lambda: rankme.lidar(z_ND.reshape(-1, VIEWS, z_ND.shape[1])),
       'reptrix', lidar)):
    if only not in what:
      continue
    try:
      theirs = rival()
    except ModuleNotFoundError:
      yield timing.absent(what, peer)
      continue
    given_ND = wide_ND
    if peer == 'reptrix':
      given_ND = z_ND  # Its identity matrix is float32.
    row = timing.turns(
        f'{what}, N = {clips:,}', ours, functools.partial(theirs, given_ND),
        repeats, time.process_time, GOAL, ('audiorank', peer))
    ratios.append(row.ratio or 0.)
    yield row
  if only in 'TwoNN dimension':
    row = dadapy_row(z_ND, two, repeats)
    if row.ratio is not None:
      ratios.append(row.ratio)
    yield row
  if len(ratios) > 1:
    yield timing.Row('geometric mean of the ratios', 'audiorank', '',
                     float('nan'), None, '', statistics.geometric_mean(ratios),
                     min(ratios), max(ratios), MEAN, f'{len(ratios)} rows')
