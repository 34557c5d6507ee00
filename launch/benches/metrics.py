"""Measures of distances against scikit-dimension, scikit-learn and scipy.

N = 10,000 clips, D = 768, on one core, by CPU time: dimensions, spanning tree,
clusters.
"""

from collections.abc import Callable
from collections.abc import Iterator
import time
from typing import Any

import numpy as np

from launch.benches import spectra
from launch.benches import timing

PINNED = True
CLIPS, WIDTH = 10_000, 768
CLUSTERS = 1000
GOAL = 1.  # None is slower; 5 in the geometric mean.


def skdim(name: str, **arguments: Any) -> Callable[[np.ndarray], Any]:
  """Returns z_ND -> a dimension by scikit-dimension.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  import importlib
  estimators = importlib.import_module('skdim.id')

  def run(z_ND: np.ndarray) -> Any:
    return getattr(estimators, name)().fit(z_ND, **arguments)

  return run


def spanning_tree(z_ND: np.ndarray) -> float:
  """Returns the length of the minimum spanning tree by scipy."""
  from scipy import sparse
  from scipy import spatial
  return sparse.csgraph.minimum_spanning_tree(
      spatial.distance.cdist(z_ND, z_ND)).sum()


def clusters(z_ND: np.ndarray) -> Any:
  """Returns k-means and its Davies-Bouldin index by scikit-learn."""
  from sklearn import cluster
  from sklearn import metrics
  # One start from the first clips, as ours.
  model = cluster.KMeans(CLUSTERS, init=z_ND[:CLUSTERS], n_init=1,
                         max_iter=100).fit(z_ND)
  return metrics.davies_bouldin_score(z_ND, model.labels_)


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from audiorank.rankme import neighbours
  clips = timing.sized(quick, 1_500, CLIPS)
  z_ND = spectra.embeddings('trained', clips, timing.sized(quick, 64, WIDTH))
  wide_ND = z_ND.astype(np.float64)

  def near() -> np.ndarray:
    return neighbours.nearest(neighbours.distances(z_ND), 20)

  def tree() -> float:
    return neighbours.tree_length(neighbours.distances(z_ND))

  def grouped() -> float:
    count = min(CLUSTERS, clips // 10)
    label_N, _ = neighbours.kmeans(wide_ND, count, wide_ND[:count])
    return neighbours.davies_bouldin(wide_ND, label_N)

  # rival() imports its peer, so that one that is missing costs a row only.
  for what, ours, peer, rival in (
      ('TwoNN dimension', lambda: neighbours.twonn(near()), 'scikit-dimension',
       lambda: skdim('TwoNN')),
      ('maximum-likelihood dimension', lambda: neighbours.mle_dimension(near()),
       'scikit-dimension', lambda: skdim('MLE', n_neighbors=20)),
      ('minimum spanning tree', tree, 'scipy', lambda: spanning_tree),
      ('k-means and Davies-Bouldin', grouped, 'scikit-learn',
       lambda: clusters)):
    if only not in what:
      continue
    try:
      theirs = rival()
    except ModuleNotFoundError:
      yield timing.absent(what, peer)
      continue
    # run=theirs is bound now: the loop goes on to other rivals.
    yield timing.turns(
        f'{what}, N = {clips:,}', ours, lambda run=theirs: run(wide_ND),
        timing.sized(quick, 1, 3), time.process_time, GOAL,
        ('audiorank', peer))
