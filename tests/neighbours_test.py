"""Dimensions and clusters, against scikit-learn, scikit-dimension and scipy."""

import os
import subprocess
import sys

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


DADAPY = """
import sys
import numpy as np
from dadapy import IdEstimation
print(repr(float(IdEstimation(np.load(sys.argv[1])).compute_id_2NN()[0])))
"""


@pytest.mark.slow
def test_twonn_is_that_of_dadapy(pairs, tmp_path):
  # DADApy needs numpy below 2: AUDIORANK_DADAPY is the python of an environment
  # that has it.
  python = os.environ.get('AUDIORANK_DADAPY', sys.executable)
  np.save(tmp_path / 'z.npy', pairs.z_ND)
  done = subprocess.run(
      [python, '-W', 'ignore', '-c', DADAPY, str(tmp_path / 'z.npy')],
      capture_output=True, text=True)
  if done.returncode and 'AUDIORANK_DADAPY' not in os.environ:
    pytest.skip('DADApy is not installed')
  want = float(done.stdout.splitlines()[-1])
  got = neighbours.twonn(neighbours.nearest(pairs, 2))
  assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('spread', [1e-2, 1e6])
def test_near_clips_far_from_the_mean_are_told_apart(spread):
  """Clouds whose own distances a product in float32 would round away."""
  rng = np.random.default_rng(2)
  z_ND = np.repeat(1e3 * rng.standard_normal((4, 30)), 100, axis=0)
  z_ND += spread * rng.standard_normal(z_ND.shape)
  pairs = neighbours.distances(z_ND)
  d_NN = spatial.distance.cdist(z_ND, z_ND)
  np.testing.assert_allclose(neighbours.nearest(pairs, 20),
                             np.sort(d_NN)[:, 1:21], rtol=1e-6)
  want = sparse.csgraph.minimum_spanning_tree(d_NN).sum()
  assert neighbours.tree_length(pairs) == pytest.approx(want, rel=1e-6)


def test_copies_of_clips_are_as_many_as_needed():
  z_ND = np.repeat(plane(40), 20, axis=0)
  near_NJ = neighbours.nearest(neighbours.distances(z_ND), 20)
  assert (near_NJ[:, :19] == 0).all() and (near_NJ[:, 19] > 0).all()


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


@pytest.mark.parametrize('case', ['steps', 'tolerance', 'empty', 'copies'])
def test_k_means_stops_and_fills_clusters_as_scikit_learn(case):
  cluster = pytest.importorskip('sklearn.cluster')
  rng = np.random.default_rng(3)
  z_ND = rng.standard_normal((800, 8))
  first_CD, count = z_ND[:40].copy(), 40
  if case == 'tolerance':  # Thousands of steps until no label changes.
    z_ND = rng.uniform(size=(3000, 2))
    first_CD, count = z_ND[:5].copy(), 5
  elif case == 'empty':
    first_CD[7:10] += 100  # No clip is near.
  elif case == 'copies':
    z_ND[:] = z_ND[np.arange(800) % 60]
    first_CD = z_ND[:count].copy()
  label_N, inertia = neighbours.kmeans(z_ND, count, first_CD)
  model = cluster.KMeans(count, init=first_CD, n_init=1, max_iter=100).fit(
      z_ND)
  np.testing.assert_array_equal(label_N, model.labels_)
  assert inertia == pytest.approx(model.inertia_, rel=1e-9)


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
