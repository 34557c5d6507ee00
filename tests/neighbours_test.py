"""Dimensions and clusters, against scikit-learn, scikit-dimension and scipy."""

import numpy as np
import pytest
from scipy import sparse
from scipy import spatial

from audiorank import rankme
from audiorank.rankme import neighbours


def plane(clips=600, dimensions=3, width=40, noise=0., seed=0):
  """Uniform points in a cube of few dimensions, turned within many."""
  rng = np.random.default_rng(seed)
  turn_DD = np.linalg.qr(rng.standard_normal((width, width)))[0]
  x_ND = np.zeros((clips, width))
  x_ND[:, :dimensions] = rng.uniform(-1, 1, (clips, dimensions))
  x_ND += noise * rng.standard_normal(x_ND.shape)
  return (x_ND @ turn_DD + 3).astype(np.float32)


@pytest.fixture(scope='module')
def pairs():
  return neighbours.distances(plane())


def test_distances_to_neighbours_are_exact(pairs):
  want_NN = np.sort(spatial.distance.cdist(pairs.z_ND, pairs.z_ND))[:, 1:21]
  # The differences of float32 embeddings are rounded to float32.
  np.testing.assert_allclose(neighbours.nearest(pairs, 20), want_NN, rtol=2e-7)
  exact = neighbours.distances(pairs.z_ND)
  np.testing.assert_allclose(neighbours.nearest(exact, 20), want_NN, rtol=1e-9)


def test_the_tree_is_scipys(pairs):
  d_NN = spatial.distance.cdist(pairs.z_ND, pairs.z_ND)
  want = sparse.csgraph.minimum_spanning_tree(d_NN).sum()
  # Edges are chosen in float32: equal ones may be exchanged.
  assert neighbours.tree_length(pairs) == pytest.approx(want, rel=1e-6)
  rows = np.arange(0, 600, 7)
  want = sparse.csgraph.minimum_spanning_tree(d_NN[np.ix_(rows, rows)]).sum()
  assert neighbours.tree_length(pairs, rows) == pytest.approx(want, rel=1e-6)


def test_dimensions_are_those_of_scikit_dimension(pairs):
  skdim = pytest.importorskip('skdim')
  near_NJ = neighbours.nearest(pairs, 20)
  want = skdim.id.TwoNN(method='linear').fit_transform(pairs.z_ND)
  assert neighbours.twonn(near_NJ) == pytest.approx(want, rel=1e-6)
  want = skdim.id.MLE().fit(pairs.z_ND, n_neighbors=20, comb='mle').dimension_
  assert neighbours.mle_dimension(near_NJ) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('dimensions', [2, 6])
def test_dimensions_of_a_cube_are_found(dimensions):
  pairs = neighbours.distances(plane(1500, dimensions))
  near_NJ = neighbours.nearest(pairs, 20)
  # Points near faces have fewer neighbours: the more so in more dimensions.
  slack = .1 * dimensions
  assert abs(neighbours.twonn(near_NJ) - dimensions) < slack + .2
  assert abs(neighbours.mle_dimension(near_NJ) - dimensions) < slack + .4
  assert abs(neighbours.mst_dimension(pairs) - dimensions) < slack + .4


def test_clusters_are_those_of_scikit_learn(pairs):
  cluster = pytest.importorskip('sklearn.cluster')
  metrics = pytest.importorskip('sklearn.metrics')
  first_CD = pairs.z_ND[:12]
  label_N, inertia = neighbours.kmeans(pairs.z_ND, 12, first_CD)
  model = cluster.KMeans(12, init=first_CD, n_init=1, max_iter=100).fit(
      pairs.z_ND)
  assert inertia == pytest.approx(model.inertia_, rel=1e-6)
  assert neighbours.davies_bouldin(pairs.z_ND, label_N) == pytest.approx(
      metrics.davies_bouldin_score(pairs.z_ND, label_N), rel=1e-6)


def test_learnability_is_that_of_a_loop(pairs):
  label_N, _ = neighbours.kmeans(pairs.z_ND, 20)
  right = 0
  for i in range(1, len(label_N)):
    gap_N = ((pairs.z_ND[:i] - pairs.z_ND[i]) ** 2).sum(1)
    right += label_N[gap_N.argmin()] == label_N[i]
  assert neighbours.learnability(pairs, label_N) == pytest.approx(
      right / (len(label_N) - 1))


def test_all_measures_and_their_limits():
  z_ND = plane(400)
  out = rankme.neighbourhood(z_ND)
  assert set(out) == {'twonn', 'mle_dimension', 'mst_dimension',
                      'kmeans_inertia', 'davies_bouldin',
                      'cluster_learnability'}
  assert 2 < out['twonn'] < 4 and 0 < out['kmeans_inertia'] < 1
  # Neither a shift nor a scale changes any of them.
  moved = rankme.neighbourhood(5 * z_ND + 1)
  assert moved == pytest.approx(out, rel=1e-3)
  assert rankme.neighbourhood(z_ND, limit=100)['twonn'] > 1
  # Copies of clips, and one vector alone, are no error.
  assert np.isfinite(rankme.neighbourhood(np.r_[z_ND, z_ND])['mst_dimension'])
  with np.errstate(all='ignore'):
    assert np.isnan(rankme.neighbourhood(np.ones((64, 4)))['twonn'])
  z_ND[3, 2] = np.nan
  with pytest.raises(ValueError, match='3'):
    rankme.neighbourhood(z_ND)
  with pytest.raises(ValueError, match='at least 32'):
    rankme.neighbourhood(z_ND[:8])
