"""Spectra against float64 SVDs, by every road; invariances; bad input."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest
import scipy.linalg

from audiorank import rankme

KINDS = ('gauss', 'k^-0.5', 'k^-1', 'k^-2', 'exp', 'trained', 'trained_hard',
         'collapse_1e-2', 'collapse_1e-4', 'rank1_1e-4', 'dead')


def embeddings(kind, n=800, d=48, seed=0):
  """Float32 embeddings whose spectra are those that break float32 Grams."""
  rng = np.random.default_rng(seed)
  g_ND = rng.normal(size=(n, d))
  turn_DD = np.linalg.qr(rng.normal(size=(d, d)))[0]
  mean_1D = rng.normal(size=(1, d))
  k = np.arange(1, d + 1.0)

  def shaped(weight_D, mean=0):
    z_ND = (g_ND * weight_D) @ turn_DD
    return z_ND + mean * z_ND.std() * mean_1D

  if kind == 'dead':
    z_ND = g_ND * (k > d // 4)
  else:
    z_ND = {
        'gauss': lambda: g_ND,
        'k^-0.5': lambda: shaped(k**-0.5),
        'k^-1': lambda: shaped(k**-1),
        'k^-2': lambda: shaped(k**-2),
        'exp': lambda: shaped(np.exp(-k / 20)),
        'trained': lambda: shaped(k**-0.7, 3),
        'trained_hard': lambda: shaped(k**-1.2, 30),
        'collapse_1e-2': lambda: mean_1D + 1e-2 * g_ND,
        'collapse_1e-4': lambda: mean_1D + 1e-4 * g_ND,
        'rank1_1e-4': lambda: g_ND[:, :1] * mean_1D + 1e-4 * g_ND,
    }[kind]()
  return z_ND.astype(np.float32)


def reference(z_ND, center=False, eps=1e-7):
  """RankMe by a float64 SVD, written out."""
  z_ND = np.asarray(z_ND, np.float64)
  if center:
    z_ND = z_ND - z_ND.mean(axis=0)
  s_K = np.linalg.svd(z_ND, compute_uv=False)
  p_K = s_K / s_K.sum() + eps
  return np.exp(-(p_K * np.log(p_K)).sum())


# 1e-6 is what float64 Grams must hold on every spectrum; the float32 roads
# (svd, tsqr) carry rounding of 6e-8 s_1 times some tens of values.
@pytest.mark.parametrize('center', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_hard_spectra_match_float64_svd(kind, center):
  z_ND = embeddings(kind)
  want = reference(z_ND, center)
  for where in (np.asarray, jnp.asarray):
    got = rankme.rankme(where(z_ND), center=center)
    assert got == pytest.approx(want, rel=1e-6)
  for method, rel in (('sliced', 1e-6), ('svd', 1e-5), ('tsqr', 1e-5)):
    got = rankme.rankme(jnp.asarray(z_ND), method=method, center=center)
    assert got == pytest.approx(want, rel=rel), method


@pytest.mark.parametrize('kind', ['trained_hard', 'collapse_1e-4'])
def test_wide_hard_spectra(kind):
  z_ND = embeddings(kind, n=1300, d=200)
  want = reference(z_ND)
  assert rankme.rankme(z_ND) == pytest.approx(want, rel=1e-6)
  assert rankme.rankme(jnp.asarray(z_ND)) == pytest.approx(want, rel=1e-6)


def test_float32_gram_would_fail():
  """The spectra above are hard enough to tell a float32 Gram apart."""
  z_ND = embeddings('collapse_1e-4')
  square_D = np.linalg.eigvalsh((z_ND.T @ z_ND).astype(np.float64))
  wrong = rankme.effective_rank(np.sqrt(np.maximum(square_D, 0)))
  assert abs(wrong / reference(z_ND) - 1) > 1e-4


@pytest.mark.parametrize('method, center', [
    ('gram', False), ('gram', True), ('svd', False), ('tsqr', True),
    ('sliced', False)])
def test_sharded_equals_host(mesh, method, center):
  z_ND = embeddings('trained')
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('data')))
  got_K = rankme.singular_values(sharded_ND, method, center)
  want_K = rankme.singular_values(z_ND, 'gram', center)
  rtol = {'gram': 1e-10, 'sliced': 1e-6}.get(method, 1e-5)
  assert got_K.dtype == np.float64
  np.testing.assert_allclose(got_K, want_K, rtol=rtol)


@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr'])
def test_inside_jit_on_a_mesh(mesh, method):
  z_ND = embeddings('collapse_1e-4')
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('data')))
  got, s_K = jax.jit(lambda z: (rankme.rankme(2 * z, method=method),
                                rankme.singular_values(z, method)))(sharded_ND)
  assert got.dtype == jnp.float32 and jnp.ones(1).dtype == jnp.float32
  assert float(got) == pytest.approx(reference(z_ND), rel=1e-6)
  assert s_K.dtype == jnp.float32 and s_K.shape == (48,)


def test_inside_jit_uneven_rows():
  z_ND = embeddings('trained')[:795]
  mesh = jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    got = jax.jit(lambda z: rankme.rankme(z, center=True))(z_ND)
  assert float(got) == pytest.approx(reference(z_ND, center=True), rel=1e-6)


@pytest.mark.parametrize('kind, methods', [
    ('Auto', ('gram', 'tsqr')), ('Explicit', ('gram', 'svd'))])
def test_two_axes_of_either_kind(kind, methods):
  z_ND = embeddings('trained')
  kind = getattr(jax.sharding.AxisType, kind)
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(kind,) * 2)
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('a')))
  want = reference(z_ND)
  for method in methods:
    got = rankme.rankme(sharded_ND, method=method)
    assert got == pytest.approx(want, rel=1e-5)
  columns_ND = jax.device_put(z_ND, NamedSharding(mesh, P(None, 'b')))
  assert rankme.rankme(columns_ND) == pytest.approx(want, rel=1e-9)


def test_gram_gathers_no_embeddings():
  mesh = jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  n, d = 4096, 32
  shape = jax.ShapeDtypeStruct((n, d), jnp.float32,
                               sharding=NamedSharding(mesh, P('data')))

  def compiled(method):
    with jax.set_mesh(mesh):
      return jax.jit(lambda z: rankme.singular_values(z, method)).lower(
          shape).compile()

  gram, svd = compiled('gram'), compiled('svd')
  assert 'all-gather' not in gram.as_text()
  assert 'all-gather' in svd.as_text()
  assert svd.memory_analysis().temp_size_in_bytes < 4 * n * n
  # Less than one device's share of the embeddings in float64.
  assert gram.memory_analysis().temp_size_in_bytes < 8 * n * d
  assert f'f32[{n},{d}]' not in gram.as_text()


@pytest.mark.filterwarnings('ignore::audiorank.rankme.SmallSample')
@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr', 'sliced'])
def test_identity_and_rank_one(method):
  eye_ND = jnp.eye(40)
  assert rankme.rankme(eye_ND, eps=0, method=method) == pytest.approx(40)
  rng = np.random.default_rng(1)
  # Small integers: the product is exact, so the rank is one in truth.
  left_N1 = rng.integers(-9, 10, (300, 1)).astype(np.float32)
  right_1D = rng.integers(-9, 10, (1, 24)).astype(np.float32)
  one = rankme.rankme(jnp.asarray(left_N1 * right_1D), eps=0, method=method)
  assert one == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr', 'sliced'])
def test_invariances(method):
  rng = np.random.default_rng(2)
  z_ND = embeddings('k^-1')
  want = rankme.rankme(jnp.asarray(z_ND), method=method)
  changed = {
      'scale': z_ND * np.float32(2.0**-20),
      'rows': rng.permutation(z_ND),
      'columns': z_ND[:, rng.permutation(48)],
      'zero rows': np.concatenate([z_ND, np.zeros((37, 48), np.float32)]),
      'sign': -z_ND,
      'twice': np.concatenate([z_ND, z_ND]),
  }
  for name, changed_ND in changed.items():
    got = rankme.rankme(jnp.asarray(changed_ND), method=method)
    assert got == pytest.approx(want, rel=2e-6), name


@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr', 'sliced'])
def test_fewer_clips_than_width(method):
  z_ND = embeddings('gauss', n=20, d=64)
  s_K = rankme.singular_values(jnp.asarray(z_ND), method)
  assert s_K.shape == (20,) and (np.diff(s_K) <= 0).all()
  np.testing.assert_allclose(s_K, np.linalg.svd(z_ND, compute_uv=False),
                             rtol=1e-4)
  with pytest.warns(rankme.SmallSample, match='20 clips at width 64'):
    assert rankme.rankme(jnp.asarray(z_ND), method=method) <= 20.01


def test_small_sample_states_the_bias():
  z_ND = embeddings('gauss', n=64 * 3, d=64)
  with pytest.warns(rankme.SmallSample, match='2 to 8 % low.* 256 clips'):
    low = rankme.rankme(z_ND)
  assert 1 - 0.08 < low / 64 < 1 - 0.03


def test_memory_map(tmp_path):
  z_ND = embeddings('trained', n=5000)
  np.save(tmp_path / 'z.npy', z_ND)
  mapped_ND = np.load(tmp_path / 'z.npy', mmap_mode='r')
  assert rankme.rankme(mapped_ND) == rankme.rankme(z_ND)


def test_float64_is_kept_on_the_host():
  z_ND = 1 + 1e-9 * embeddings('gauss').astype(np.float64)
  got = rankme.rankme(1e6 * (z_ND - 1))
  assert got == pytest.approx(reference(z_ND - 1), rel=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr', 'sliced'])
def test_nonfinite_rows_are_named(bad, method):
  z_ND = embeddings('gauss', n=400, d=16)
  z_ND[[123, 301], 5] = bad
  match = '2 of 400 .* first in row 123'
  with pytest.raises(ValueError, match=match):
    rankme.rankme(z_ND, method=method)
  mesh = jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  sharded_ND = jax.device_put(z_ND, NamedSharding(mesh, P('data')))
  with pytest.raises(ValueError, match=match):
    rankme.rankme(sharded_ND, method=method)
  with pytest.raises(ValueError, match=match):
    rankme.estimate(sharded_ND)
  with pytest.raises(ValueError, match=match):
    rankme.estimate(z_ND)


@pytest.mark.parametrize('z, match', [
    (np.ones((1, 4), np.float32), 'at least 2 clips, found 1'),
    (np.ones(4, np.float32), r'found shape \(4,\)'),
    (np.ones((4, 0), np.float32), r'found shape \(4, 0\)'),
    (np.ones((4, 2), np.int32), 'found int32'),
    (np.ones((4, 2), np.complex64), 'found complex64'),
    (np.zeros((40, 2), np.float32), 'all zero'),
])
def test_bad_embeddings(z, match):
  with pytest.raises(ValueError, match=match):
    rankme.rankme(z)
  with pytest.raises(ValueError, match=match):
    rankme.estimate(z)


def test_constant_rows_have_no_centred_rank():
  z_ND = np.repeat(embeddings('gauss', n=1), 500, axis=0)
  assert rankme.rankme(z_ND, eps=0) == pytest.approx(1, abs=1e-4)
  for where in (np.asarray, jnp.asarray):
    with pytest.raises(ValueError, match='all one vector'):
      rankme.rankme(where(z_ND), center=True)


def test_unknown_method():
  with pytest.raises(ValueError, match="'qr' is not one of gram, svd"):
    rankme.singular_values(embeddings('gauss'), 'qr')


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
def test_half_precision_is_warned_of(dtype):
  z_ND = embeddings('gauss').astype(dtype)
  with pytest.warns(rankme.LowPrecision, match='float16'):
    got = rankme.rankme(z_ND)
  assert got == pytest.approx(reference(z_ND.astype(np.float32)), rel=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_certificate_bounds_the_error(kind):
  z_ND = embeddings(kind)
  got = rankme.metrics(rankme.singular_values(z_ND), len(z_ND))
  assert got['rankme_certificate'] < 1e-6
  error = abs(got['rankme'] / reference(z_ND) - 1)
  # The reference SVD rounds too: 1e-13 is its own share.
  assert error <= got['rankme_certificate'] + 1e-13
  energy = (rankme.singular_values(z_ND)**2).sum()
  centred_K = rankme.singular_values(z_ND, center=True)
  error = abs(rankme.effective_rank(centred_K) / reference(z_ND, True) - 1)
  assert error <= rankme.certificate(centred_K, energy=energy) + 1e-13


def test_metrics_of_a_flat_spectrum():
  got = rankme.metrics(np.full(50, 3.0), 1000)
  for name in ('rankme_no_eps', 'von_neumann', 'participation_ratio',
               'stable_rank', 'nesum', 'nuclear_ratio', 'renyi2',
               'numerical_rank', 'numerical_rank_1e3', 'dims99'):
    assert got[name] == pytest.approx(50, abs=0.6), name
  assert got['condition_number'] == 1
  assert got['alpha_req'] == pytest.approx(0, abs=1e-12)
  assert got['log_det'] == pytest.approx(np.log(9 / 1000))
  assert got['top1_energy'] == pytest.approx(1 / 50)
  assert all(type(value) is float for value in got.values())


def test_metrics_by_hand():
  got = rankme.metrics(np.array([2.0, 1.0, 1.0]), 4)
  want = {
      'rankme_no_eps': 2**1.5,
      'rankme_normalised': 2**1.5 / 3,
      'von_neumann': np.exp(np.log(1.5) * 2 / 3 + np.log(6) / 3),
      'participation_ratio': 36 / 18,
      'stable_rank': 1.5,
      'nuclear_ratio': 2,
      'renyi2': 16 / 6,
      'condition_number': 2,
      'top1_energy': 4 / 6,
      'dims90': 3,
      'log_det': np.log(1 / 16) / 3,
  }
  for name, value in want.items():
    assert got[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0])
def test_alpha_req_recovers_a_planted_exponent(alpha):
  s_K = np.arange(1, 201.0)**(-alpha / 2)
  got = rankme.metrics(s_K, 1000)
  assert got['alpha_req'] == pytest.approx(alpha)
  assert (got['alpha_req_first'], got['alpha_req_last']) == (11, 100)
  narrow = rankme.metrics(s_K[:16], 1000)
  assert narrow['alpha_req'] == pytest.approx(alpha)
  assert (narrow['alpha_req_first'], narrow['alpha_req_last']) == (1, 16)


def test_metrics_of_a_singular_spectrum_are_finite():
  got = rankme.metrics(np.array([1.0, 0.5, 0.0]), 10)
  assert np.isfinite(list(got.values())).all()
  assert got['numerical_rank'] == 2


def test_published_conventions():
  """The numbers that the table of conventions in audiorank/README.md prints."""
  z_ND = embeddings('trained', n=2000, d=256)
  s_K = rankme.singular_values(z_ND)
  centred_K = rankme.singular_values(z_ND, center=True)
  eigen = centred_K**2 / (centred_K**2).sum()

  def spread(p_K):
    return np.exp(-(p_K * np.log(p_K)).sum())

  got = {
      'ours': rankme.rankme(z_ND),
      'eps-free': rankme.rankme(z_ND, eps=0),
      'stable-pretraining': spread(s_K / s_K.sum() + 1e-5),
      'google-research': spread(s_K / (s_K + 1e-12).sum() + 1e-12),
      'reptrix': spread(eigen / eigen.sum() + 1e-7),
      'centred': rankme.rankme(z_ND, center=True),
      'matrix entropy': rankme.metrics(s_K, 2000)['von_neumann'],
  }
  assert got['ours'] == pytest.approx(reference(z_ND), rel=1e-9)
  want = {
      'ours': 76.660,
      'eps-free': 76.650,
      'stable-pretraining': 77.671,
      'google-research': 76.650,
      'reptrix': 20.177,
      'centred': 153.844,
      'matrix entropy': 1.939,
  }
  for name, value in want.items():
    assert got[name] == pytest.approx(value, abs=1e-3), name


def unit(z_ND):
  z_ND = np.asarray(z_ND, np.float64)
  return z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)


def test_directions_by_brute_force():
  z_ND = embeddings('trained', n=3000, d=16)
  got = rankme.directions(z_ND)
  cosine_NN = unit(z_ND) @ unit(z_ND).T
  n, d = z_ND.shape
  off = ~np.eye(n, dtype=bool)
  assert got['mean_cosine'] == pytest.approx(cosine_NN[off].mean())
  chance = n + n * (n - 1) / d
  assert got['self_clustering'] == pytest.approx(
      ((cosine_NN**2).sum() - chance) / (n * n - chance))
  distance = 2 - 2 * cosine_NN[off]
  assert got['uniformity'] == pytest.approx(
      np.log(np.exp(-2 * distance).mean()), rel=1e-5)
  assert got['normalised_std'] == pytest.approx(
      unit(z_ND).std(axis=0, ddof=1).mean())
  for name, value in got.items():
    assert getattr(rankme, name)(jnp.asarray(z_ND)) == pytest.approx(value)


def test_directions_at_their_ends():
  collapsed_ND = np.repeat(embeddings('gauss', n=1, d=8), 100, axis=0)
  got = rankme.directions(collapsed_ND)
  assert got['mean_cosine'] == pytest.approx(1)
  assert got['self_clustering'] == pytest.approx(1)
  assert got['uniformity'] == pytest.approx(0, abs=1e-5)
  assert got['normalised_std'] == pytest.approx(0, abs=1e-6)
  spread_ND = embeddings('gauss', n=4000, d=32)
  got = rankme.directions(spread_ND)
  assert got['mean_cosine'] == pytest.approx(0, abs=1e-3)
  assert got['self_clustering'] == pytest.approx(0, abs=1e-3)
  assert got['normalised_std'] == pytest.approx(32**-0.5, rel=0.01)


def test_uniformity_of_a_part_is_near_that_of_all():
  z_ND = embeddings('trained', n=4000, d=16)
  whole, part = rankme.uniformity(z_ND), rankme.uniformity(z_ND, limit=1000)
  assert part == pytest.approx(whole, rel=0.05)


def test_a_zero_embedding_has_no_direction():
  z_ND = embeddings('gauss')
  z_ND[7] = 0
  with pytest.raises(ValueError, match='embedding 7 is zero'):
    rankme.mean_cosine(z_ND)


def test_lidar_by_its_definition():
  rng = np.random.default_rng(3)
  n, views, d = 200, 5, 6
  clip_N1D = rng.normal(size=(n, 1, d)) * np.arange(1, d + 1.0)
  z_NVD = clip_N1D + 0.3 * rng.normal(size=(n, views, d))
  between_DD = np.cov(z_NVD.mean(axis=1).T)
  within_DD = np.mean([np.cov(z_VD.T) for z_VD in z_NVD], axis=0)
  root_DD = scipy.linalg.inv(scipy.linalg.sqrtm(
      within_DD + 1e-4 * np.eye(d)))
  lam_D = np.linalg.eigvalsh(root_DD @ between_DD @ root_DD)
  p_D = lam_D / lam_D.sum() + 1e-7
  want = np.exp(-(p_D * np.log(p_D)).sum())
  assert rankme.lidar(z_NVD) == pytest.approx(want, rel=1e-9)


@pytest.mark.slow
def test_lidar_is_reptrixs_rank_of_the_papers_eigenvalues(torch):
  lidar = pytest.importorskip('reptrix.lidar')
  rng = np.random.default_rng(5)
  z_NVD = rng.normal(size=(300, 1, 8)) + .3 * rng.normal(size=(300, 4, 8))
  between_DD = np.cov(z_NVD.mean(axis=1).T)
  within_DD = np.mean([np.cov(z_VD.T) for z_VD in z_NVD], axis=0)
  root_DD = lidar.utils.mat_sqrt_inv(torch.from_numpy(
      within_DD + 1e-4 * np.eye(8))).numpy()
  want = lidar.get_rank(np.linalg.eigvalsh(root_DD @ between_DD @ root_DD))
  assert rankme.lidar(z_NVD) == pytest.approx(want, rel=1e-6)
  # Its get_lidar takes the squares of the centred matrix's singular values for
  # eigenvalues: another quantity.
  other = lidar.get_lidar(torch.from_numpy(z_NVD).float(), 300, 4, 1e-4)
  assert abs(other / want - 1) > 1e-3


def test_lidar_is_blind_to_noisy_dimensions():
  """A dimension that varies as much within a clip as between does not count."""
  rng = np.random.default_rng(4)
  z_NVD = rng.normal(size=(500, 4, 8))
  z_NVD[..., :3] = 30 * rng.normal(size=(500, 1, 3)) + z_NVD[..., :3]
  assert rankme.lidar(z_NVD) == pytest.approx(3, abs=0.1)
  assert rankme.effective_rank(
      rankme.singular_values(rng.normal(size=(2000, 8)))) > 7.9


def test_lidar_wants_views():
  with pytest.raises(ValueError, match='at least 2 clips and 2 views'):
    rankme.lidar(np.ones((5, 1, 3)))


def test_diff_erank():
  rng = np.random.default_rng(5)
  wide_NLD = rng.normal(size=(6, 400, 12)).astype(np.float32)
  narrow_NLD = wide_NLD * np.arange(1, 13)**-2.0
  assert rankme.diff_erank(wide_NLD, wide_NLD) == 0
  assert rankme.diff_erank(wide_NLD, narrow_NLD) > 5
  x_LD = unit(wide_NLD[0] - wide_NLD[0].mean(axis=0))
  lam_D = np.linalg.eigvalsh(x_LD.T @ x_LD / 400)
  want = np.exp(-(lam_D * np.log(lam_D)).sum())
  assert rankme.token_rank(wide_NLD[:1]) == pytest.approx(want, rel=1e-5)


FIRST = """
import jax, numpy as np
from audiorank import rankme
z_ND = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
print(float(jax.jit(rankme.rankme)(z_ND)) / rankme.rankme(z_ND) - 1)
"""


def test_the_first_program_of_a_process_may_be_a_rank():
  """LAPACK is ready without any other decomposition before."""
  done = subprocess.run([sys.executable, '-c', FIRST], capture_output=True,
                        text=True, cwd=pathlib.Path(__file__).parents[1])
  assert done.returncode == 0, done.stderr
  assert abs(float(done.stdout)) < 1e-6
