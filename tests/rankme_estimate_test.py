"""Streaming states; the jackknife against theory; intervals on any mesh."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from audiorank import rankme
from audiorank.rankme import interval
from audiorank.rankme import spectrum
from audiorank.rankme import summaries


def decaying(n=960, d=24, power=-0.7, mean=1.0, seed=0):
  rng = np.random.default_rng(seed)
  z_ND = rng.normal(size=(n, d)) * np.arange(1, d + 1.0)**power + mean
  return z_ND.astype(np.float32)


def clustered(clusters=120, size=8, d=16, seed=0):
  """Clips that resemble the others of their recording, and the recordings."""
  rng = np.random.default_rng(seed)
  scale_D = np.arange(1, d + 1.0)**-0.7
  shared_J1D = rng.normal(size=(clusters, 1, d))
  z_JND = (shared_J1D + 0.3 * rng.normal(size=(clusters, size, d))) * scale_D
  groups_N = np.repeat(np.arange(clusters), size)
  order = rng.permutation(clusters * size)
  return z_JND.reshape(-1, d)[order].astype(np.float32), groups_N[order]


def assert_close(got, want, rtol=1e-9):
  for field in rankme.Estimate._fields:
    if field not in ('blocks', 'method'):
      assert getattr(got, field) == pytest.approx(
          getattr(want, field), rel=rtol, abs=1e-12), field


@pytest.mark.parametrize('center', [False, True])
def test_streaming_equals_batch(center):
  z_ND = decaying()
  state = rankme.init(24, blocks=4)
  for batch in np.split(z_ND, [100, 101, 500, 500]):
    state = rankme.update(state, jnp.asarray(batch))
  assert state.n_B.sum() == 960
  np.testing.assert_allclose(rankme.singular_values(state, center=center),
                             rankme.singular_values(z_ND, center=center),
                             rtol=1e-10)
  assert rankme.rankme(state, center=center) == pytest.approx(
      rankme.rankme(z_ND, center=center), rel=1e-10)


def test_streaming_estimate_equals_batch_of_the_same_blocks():
  z_ND = decaying()
  state = rankme.init(24, blocks=16)
  for batch in np.split(z_ND, 16):
    state = rankme.update(state, batch)
  assert_close(rankme.estimate(state), rankme.estimate(z_ND, blocks=16))


def test_merge_is_seeing_both_and_keeps_recordings_whole(tmp_path):
  z_ND, groups = clustered()
  one = rankme.update(rankme.init(16), z_ND, groups)
  parts = [rankme.update(rankme.init(16), z, g) for z, g in
           ((z_ND[:300], groups[:300]), (z_ND[300:], groups[300:]))]
  rankme.save(parts[0], tmp_path / 'state.npz')
  restored = rankme.restore(tmp_path / 'state.npz')
  for got, want in zip(restored, parts[0]):
    np.testing.assert_array_equal(got, want)
  both = rankme.merge(restored, parts[1])
  np.testing.assert_array_equal(both.n_B, one.n_B)
  assert (both.n_B % 8 == 0).all()  # Recordings have 8 clips each.
  assert_close(rankme.estimate(both), rankme.estimate(one))


def test_states_refuse_what_does_not_fit(tmp_path):
  state = rankme.init(8)
  with pytest.raises(ValueError, match=r'shape \(4, 9\) for .* width 8'):
    rankme.update(state, np.ones((4, 9), np.float32))
  with pytest.raises(ValueError, match='3 groups for 4 embeddings'):
    rankme.update(state, np.ones((4, 8), np.float32), groups=[1, 2, 3])
  with pytest.raises(ValueError, match='at least 2 clips, found 0'):
    rankme.rankme(state)
  with pytest.raises(ValueError, match='different shapes'):
    rankme.merge(state, rankme.init(9))
  with pytest.raises(FileNotFoundError):
    rankme.restore(tmp_path / 'none.npz')
  np.savez(tmp_path / 'other.npz', a=np.ones(3))
  with pytest.raises(ValueError, match='expected arrays'):
    rankme.restore(tmp_path / 'other.npz')


def test_state_is_a_pytree_of_float64():
  state = rankme.update(rankme.init(24), decaying())
  assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [
      np.int64, np.float64, np.float64]


def test_jackknife_of_a_mean_is_its_standard_error():
  rng = np.random.default_rng(1)
  x_N = rng.normal(size=50)
  without_N = (x_N.sum() - x_N) / 49
  se, free = interval.jackknife(x_N.mean(), without_N, np.ones(50))
  assert se == pytest.approx(x_N.std(ddof=1) / np.sqrt(50))
  assert free == pytest.approx(x_N.mean())


def test_jackknife_removes_the_bias_of_a_variance():
  rng = np.random.default_rng(2)
  x_N = rng.normal(size=40)
  without_N = np.array([np.delete(x_N, i).var() for i in range(40)])
  _, free = interval.jackknife(x_N.var(), without_N, np.ones(40))
  assert free == pytest.approx(x_N.var(ddof=1))


def test_jackknife_of_unequal_blocks_is_unbiased_for_a_mean():
  """The variance of a weighted mean of independent blocks is known."""
  rng = np.random.default_rng(3)
  n_B = np.array([5, 10, 20, 10, 15, 5, 25, 10])
  result, means = [], []
  for _ in range(4000):
    mean_B = rng.normal(size=8) / np.sqrt(n_B)
    total = (n_B * mean_B).sum()
    without_B = (total - n_B * mean_B) / (n_B.sum() - n_B)
    se, free = interval.jackknife(total / n_B.sum(), without_B, n_B)
    result.append(se**2)
    means.append(free)
  # 4000 draws of a chi-square of about 7 degrees: 1 % of noise.
  assert np.mean(result) == pytest.approx(1 / n_B.sum(), rel=0.06)
  assert np.mean(means) == pytest.approx(0, abs=0.01)


def test_slope_is_the_derivative():
  s_K = np.array([3.0, 1.0, 0.4, 1e-3])
  slope_K = summaries.log_rank_slope(s_K)
  for k in range(4):
    step = 1e-6 * s_K[k]
    up, down = s_K.copy(), s_K.copy()
    up[k] += step
    down[k] -= step
    numeric = (np.log(rankme.effective_rank(up)) -
               np.log(rankme.effective_rank(down))) / (2 * step)
    assert slope_K[k] == pytest.approx(numeric, rel=1e-4)


@pytest.mark.parametrize('center', [False, True])
def test_mesh_equals_host(mesh, center):
  z_ND = decaying()
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('data')))
  blocks = 8 if mesh.size == 8 else 16
  got = rankme.estimate(sharded_ND, center=center)
  assert got.blocks == blocks
  assert_close(got, rankme.estimate(z_ND, center=center, blocks=blocks))


def test_mesh_with_uneven_blocks():
  """Rows that divide over one axis only are padded; counts stay true."""
  mesh = jax.make_mesh((2, 4), ('a', 'b'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  z_ND = decaying(958)
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('a')))
  got = rankme.estimate(sharded_ND)
  size = -(-958 // 8)
  state = rankme.init(24, blocks=8)
  for start in range(0, 958, size):
    state = rankme.update(state, z_ND[start:start + size])
  assert_close(got, rankme.estimate(state))


def test_groups_on_a_mesh_equal_groups_on_the_host(mesh):
  z_ND, groups = clustered()
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('data')))
  assert_close(rankme.estimate(sharded_ND, groups=groups),
               rankme.estimate(z_ND, groups=groups))


def test_blocks_never_split_a_recording():
  groups = np.repeat([f'file{i}' for i in range(50)], np.arange(50) + 1)
  block_N = rankme.assign_blocks(len(groups), 16, groups)
  owners = {}
  for group, block in zip(groups, block_N):
    assert owners.setdefault(group, block) == block
  count_B = np.bincount(block_N, minlength=16)
  assert count_B.max() <= 1.2 * count_B.mean()
  np.testing.assert_array_equal(np.bincount(rankme.assign_blocks(100, 8)),
                                [13, 12, 13, 12, 13, 12, 13, 12])


def test_clusters_widen_the_interval():
  z_ND, groups = clustered()
  naive, honest = rankme.estimate(z_ND), rankme.estimate(z_ND, groups=groups)
  assert naive.value == pytest.approx(honest.value)
  assert honest.se > 1.7 * naive.se


def test_bias_is_removed():
  """Mean over samples of value_inf is nearer the population's rank."""
  power, d = -0.7, 24
  truth = rankme.effective_rank(np.arange(1, d + 1.0)**power)
  values, corrected = np.array([
      (e.value, e.value_inf) for e in (
          rankme.estimate(decaying(240, d, power, mean=0, seed=seed))
          for seed in range(60))]).mean(axis=0)
  assert values < 0.99 * truth
  assert abs(corrected / truth - 1) < 0.2 * abs(values / truth - 1)


@pytest.mark.parametrize('center', [False, True])
def test_infinitesimal_is_near_the_jackknife(center):
  z_ND, groups = clustered(clusters=400)
  one, other = (rankme.estimate(z_ND, groups=groups, center=center, method=m)
                for m in ('jackknife', 'infinitesimal'))
  assert one.value == pytest.approx(other.value)
  assert one.se == pytest.approx(other.se, rel=0.1)
  assert one.bias == pytest.approx(other.bias, rel=0.3)


def test_fields_are_plain_and_ordered():
  got = rankme.estimate(jnp.asarray(decaying()), confidence=0.9, eps=1e-6)
  record = json.loads(json.dumps(got._asdict()))
  assert rankme.Estimate(**record) == got
  assert got.low < got.value < got.high
  assert got.low_inf < got.value_inf < got.high_inf
  assert got.value < got.value_inf and got.bias < 0
  assert (got.n, got.width, got.eps, got.center, got.confidence) == (
      960, 24, 1e-6, False, 0.9)
  wide = rankme.estimate(decaying(), confidence=0.99)
  assert wide.low < got.low


def test_small_samples_are_warned_of():
  with pytest.warns(rankme.SmallSample, match='90 clips at width 24'):
    rankme.estimate(decaying(90))


def test_bad_arguments():
  z_ND = decaying()
  with pytest.raises(ValueError, match='at least 2 recordings'):
    rankme.estimate(z_ND, groups=np.zeros(960, int))
  with pytest.raises(ValueError, match=r'shape \(3,\) for 960'):
    rankme.estimate(z_ND, groups=[1, 2, 3])
  with pytest.raises(ValueError, match='confidence 95'):
    rankme.estimate(z_ND, confidence=95)
  with pytest.raises(ValueError, match="'bootstrap'"):
    rankme.estimate(z_ND, method='bootstrap')


def test_centred_moments_are_exactly_zero_for_one_vector():
  z_ND = np.repeat(decaying(1), 50, axis=0)
  gram_DD = z_ND.T.astype(np.float64) @ z_ND
  assert not spectrum.centered(50, z_ND.sum(0, np.float64), gram_DD).any()


@pytest.mark.parametrize('center', [False, True])
@pytest.mark.parametrize('method', ['jackknife', 'infinitesimal'])
def test_lower_triangles_are_enough(center, method):
  """`estimate` keeps one triangle of its own blocks; a State has both."""
  rng = np.random.default_rng(3)
  z_ND = (rng.standard_normal((600, 40)) / np.arange(1, 41)
          + 1).astype(np.float32)
  state = rankme.state_of(z_ND)
  np.testing.assert_array_equal(
      state.gram_BDD, state.gram_BDD.transpose(0, 2, 1))
  own, whole = (rankme.estimate(x, center=center, method=method)
                for x in (z_ND, state))
  for name in ('value', 'se', 'bias'):
    np.testing.assert_allclose(getattr(own, name), getattr(whole, name),
                               rtol=1e-9)


def test_an_embedding_that_is_not_finite_shows_on_the_diagonal():
  for bad in (np.nan, np.inf, -np.inf):
    z_ND = np.ones((64, 8), np.float32)
    z_ND[5, 3] = bad
    for of in (rankme.state_of, rankme.rankme, rankme.estimate):
      with pytest.raises(ValueError, match='1 of 64 .* the first in row 5'):
        of(z_ND)


@pytest.mark.filterwarnings('ignore::audiorank.rankme.SmallSample')
@pytest.mark.parametrize('method', ['jackknife', 'infinitesimal'])
@pytest.mark.parametrize('center', [False, True])
@pytest.mark.parametrize('n', [2, 3, 5])
def test_the_smallest_samples(n, center, method):
  """Two clips: one left out has no centred spectrum, so nothing is known."""
  got = rankme.estimate(decaying(n, d=8), center=center, method=method)
  json.dumps(got._asdict(), allow_nan=False)
  assert 1 - 1e-6 <= got.low <= got.value <= got.high
  assert got.high <= max(min(n, 8) + 1e-3, got.value)
  assert got.value_inf is None and got.bias is None
  assert got.low <= got.low_inf <= got.high_inf <= 8.001
  if n == 2 and center:
    assert got.se is None and got.high_inf > 8 and got.low <= 1


def test_a_recording_without_any_spread_bounds_nothing():
  """Left with one constant recording, the centred spectrum is zero."""
  z_ND = np.concatenate([np.ones((100, 8)), decaying(100, 8)])
  groups = np.repeat([0, 1], 100)
  got = rankme.estimate(z_ND, groups=groups, center=True)
  assert got.se is None and got.value_inf is None
  assert got.low <= 1 and got.high > 8
