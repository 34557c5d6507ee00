"""Embeddings depend on their clip alone."""

import jax
import numpy as np
import pytest

from audiorank import audio
from audiorank import embed
from audiorank import model
from audiorank import records
from audiorank import sharding
from configs import base

S, L = 7520, 12
TIGHT = 2e-6  # Tokens are of order one; rows of a product may be regrouped.


@pytest.fixture(scope='module')
def config():
  c = base.get_config('en32-2')
  c.model.target_frames = 4 * 10  # Shorter than the clips: two chunks.
  c.model.decoder.update(width=16, depth=1, heads=2)
  return records.frozen(c)


@pytest.fixture(scope='module')
def params(config):
  net = model.Encoder(config.model)
  patches_BLP = np.zeros((1, 10, 256), np.float32)
  shapes = jax.eval_shape(lambda: (
      net.init(jax.random.key(0), patches_BLP),
      net.init(jax.random.key(0), np.zeros((1, 64, 40)), method='patches')))
  rng = np.random.default_rng(0)

  def fill(path, x):
    kernel = path[-1].key == 'kernel'
    y = rng.normal(0, x.shape[-2] ** -.5 if kernel else .1, x.shape)
    return (y + {'scale': 1, 'mean': -10, 'var': 100}.get(
        path[-1].key, 0)).astype(np.float32)

  tokens, front = jax.tree.map_with_path(fill, shapes)
  return {'params': {**tokens['params'], **front['params']},
          'batch_stats': front['batch_stats']}


def clips(N=6, seed=0):
  """int16 clips whose loudness differs by 90 dB."""
  rng = np.random.default_rng(seed)
  gain_N = 10 ** rng.uniform(-4.5, 0, N)
  return np.round(gain_N[:, None] * rng.uniform(
      -32767, 32767, (N, S))).astype(np.int16)


def test_scenes_are_means_of_timestamps(config, params):
  wave_NS = clips()
  z_ND = embed.scene(config, params, wave_NS)
  z_BLD, ms_BL = embed.timestamps(config, params, wave_NS)
  assert z_ND.shape == (6, 32) and z_ND.dtype == np.float32
  assert z_BLD.shape == (6, L, 32) and z_BLD.dtype == np.float32
  np.testing.assert_allclose(z_ND, z_BLD.mean(1), atol=TIGHT)
  np.testing.assert_array_equal(ms_BL, [40. * np.arange(L) + 20] * 6)
  # The model part of a config serves as well as the whole.
  np.testing.assert_array_equal(
      embed.scene(config.model, params, wave_NS), z_ND)


def test_any_layer(config, params):
  wave_NS = clips()
  mel_BMT = audio.log_mel(wave_NS.astype(np.float32) / 32768)
  z_BLD, layers_NBLD = model.encode(
      config.model, params, mel_BMT, layers=True)
  for layer, want_BLD in (('final', z_BLD), (0, layers_NBLD[0]),
                          (1, layers_NBLD[1])):
    np.testing.assert_allclose(
        embed.scene(config, params, wave_NS, layer=layer), want_BLD.mean(1),
        atol=1e-5)


def test_all_layers_come_from_one_pass(config, params):
  wave_NS = clips()
  each = [embed.scene(config, params, wave_NS, layer=layer)
          for layer in (0, 1, 'final')]
  np.testing.assert_allclose(
      embed.scene(config, params, wave_NS, layer='all'), each, atol=TIGHT)
  # Of many lengths, which are padded.
  waves = [w[:n] for w, n in zip(wave_NS, (7520, 900, 3000, 5000, 2000, 4000))]
  each = [embed.scene(config, params, waves, layer=layer)
          for layer in (0, 1, 'final')]
  np.testing.assert_allclose(
      embed.scene(config, params, waves, layer='all'), each, atol=TIGHT)
  z_KBLD, ms_BL = embed.timestamps(config, params, wave_NS, 'all', fill=True)
  z_BLD, want_BL = embed.timestamps(config, params, wave_NS, 1)
  np.testing.assert_allclose(z_KBLD[1], z_BLD, atol=TIGHT)
  np.testing.assert_array_equal(ms_BL, want_BL)


def test_tokens_come_from_the_same_pass(config, params):
  mesh, wave_NS = sharding.mesh(4, 2), clips(N=11)
  placed = jax.device_put(params, sharding.place(params, mesh))
  at_N = np.linspace(0, .999, 11).astype(np.float32)
  with jax.set_mesh(mesh):
    z_2KND = embed.sharded(config.model, placed, wave_NS, mesh, 8, 'all',
                           at_N=at_N)
  z_KNLD, _ = embed.timestamps(config, params, wave_NS, 'all')
  # Tokens of a block are of order ten: float32 rounds them at 1e-6.
  np.testing.assert_allclose(z_2KND[0], z_KNLD.mean(2), atol=1e-5, rtol=1e-5)
  want = z_KNLD[:, np.arange(11), (at_N * z_KNLD.shape[2]).astype(int)]
  np.testing.assert_allclose(z_2KND[1], want, atol=1e-5, rtol=1e-5)


def test_neither_batch_mates_nor_padding_matter(config, params):
  wave_NS = clips()
  want_ND = embed.scene(config, params, wave_NS, batch=4)
  np.testing.assert_allclose(
      embed.scene(config, params, wave_NS[::-1], batch=4)[::-1], want_ND,
      atol=TIGHT)
  np.testing.assert_allclose(
      embed.scene(config, params, wave_NS, batch=64), want_ND, atol=TIGHT)
  np.testing.assert_allclose(
      embed.scene(config, params, wave_NS[3:4], batch=4), want_ND[3:4],
      atol=TIGHT)


def test_the_official_clamp_does_depend_on_batch_mates(config, params):
  quiet = clips()[np.abs(clips()).max(1).argsort()]
  alone_ND = embed.scene(config, params, quiet[:1] // 8, clamp='batch')
  loud = np.stack([quiet[0] // 8, 32767 * np.sign(quiet[-1])])
  together_ND = embed.scene(config, params, loud, clamp='batch')
  assert np.abs(together_ND[:1] - alone_ND).max() > 1e-3


def test_integers_and_floats_agree(config, params):
  wave_NS = clips()
  np.testing.assert_array_equal(
      embed.scene(config, params, wave_NS.astype(np.float32) / 32768),
      embed.scene(config, params, wave_NS))


def test_any_lengths_in_their_order(config, params):
  wave_NS = clips()
  waves = [wave_NS[i, :n] for i, n in enumerate([S, 900, S, 100, 900, S])]
  z_ND = embed.scene(config, params, waves, batch=2)
  for i in (0, 1, 4, 5):
    alone_ND = embed.scene(config, params, [waves[i]], batch=2)
    np.testing.assert_allclose(z_ND[i:i + 1], alone_ND, atol=TIGHT)
  # A clip shorter than a token is one token of clip and silence.
  padded_BS = np.pad(waves[3], (0, 540))[None]
  np.testing.assert_allclose(
      z_ND[3:4], embed.timestamps(config, params, padded_BS)[0][:, 0],
      atol=TIGHT)
  assert embed.timestamps(config, params, wave_NS[:1, :9])[1].tolist() == [[20]]


@pytest.mark.parametrize('data,fsdp', [(1, 1), (4, 2)])
def test_a_mesh_changes_nothing(config, params, data, fsdp):
  on = sharding.mesh(data, fsdp)
  wave_NS = clips(N=11)
  placed = jax.device_put(params, sharding.place(params, on))
  z_ND = embed.sharded(config.model, placed, wave_NS, on, batch=8)
  np.testing.assert_allclose(
      z_ND, embed.scene(config, params, wave_NS, batch=8), atol=TIGHT)


@pytest.mark.parametrize('lengths', [(7520,), (7520, 900, 3000, 5000, 2000)])
def test_scenes_over_a_mesh_are_those_of_one_device(config, params, lengths):
  mesh = sharding.mesh(4, 2)
  placed = jax.device_put(params, sharding.place(params, mesh))
  waves = [w[:lengths[i % len(lengths)]] for i, w in enumerate(clips(N=11))]
  np.testing.assert_allclose(
      embed.scene(config, placed, waves, batch=8, mesh=mesh),
      embed.scene(config, params, waves, batch=8), atol=TIGHT)


def test_views_over_a_mesh_are_those_of_one_device(config, params):
  mesh, wave_NS = sharding.mesh(4, 2), clips(N=11)
  length = embed.view_samples(config, wave_NS.shape[1])
  one = sharding.mesh(1, 1)
  views = [embed.views(config, jax.device_put(params, sharding.place(
      params, on)), wave_NS, 2, length, batch=8, mesh=on)
           for on in (one, mesh)]
  np.testing.assert_allclose(*views, atol=TIGHT)
  assert np.abs(views[0][:, 0] - views[0][:, 1]).max() > 1e-3


def test_evaluation_and_scoring_share_a_compiled_program(config, params):
  """An evaluation has its parameters on a mesh, scoring has read them."""
  on, wave_NS = sharding.mesh(1, 1), clips()
  placed = jax.device_put(params, sharding.place(params, on))
  run = embed.encoder(config.model, 'scene', 'final', 'clip')
  run.clear_cache()
  z_ND = embed.sharded(config.model, placed, wave_NS, on, batch=2)
  device, = on.devices.flat
  np.testing.assert_array_equal(z_ND, embed.scene(
      config, jax.device_put(params, device), wave_NS, batch=2))
  assert run._cache_size() == 1


def test_refusals(config, params):
  with pytest.raises(ValueError, match='no clips to embed'):
    embed.scene(config, params, [])
  for layer in (2, -1, 'last', 1.):
    with pytest.raises(ValueError, match=f"layer {layer!r}: expected 'final'"):
      embed.scene(config, params, clips(), layer=layer)


def test_many_lengths_need_few_programs_and_change_no_number(config, params):
  rng = np.random.default_rng(3)
  lengths = [100, 640, 799, 1000, 2559, 2560, 2561, 7000, 7519, 9000, 30_001]
  # The loudest part of a clip is its end: what is filled up repeats it.
  waves = [(rng.normal(0, .1, n) * np.geomspace(1e-4, 1, n)).astype(np.float32)
           for n in lengths]
  embed.filled_encoder.cache_clear()
  z_ND = embed.scene(config, params, waves, batch=3)
  run = embed.filled_encoder(config.model, 'scene', 'final', 'clip')
  assert run._cache_size() <= 4
  # Below a patch's clip, at and beside a size, and cut in chunks.
  for i in (0, 5, 6, 10):
    wave_S = waves[i]
    alone_ND = embed.scene(config, params, wave_S[None])
    np.testing.assert_allclose(z_ND[i:i + 1], alone_ND, atol=5e-6)
  for i, clamp, layer in ((0, 'clip', 'final'), (10, 'clip', 'final'),
                          (10, 'batch', 0)):
    pair_BS = np.stack([waves[i], 1e-3 * waves[i][::-1]])
    exact, ms_BL = embed.timestamps(config, params, pair_BS, layer, clamp)
    z_BLD, same_BL = embed.timestamps(
        config, params, pair_BS, layer, clamp, fill=True)
    assert z_BLD.dtype == np.float32
    np.testing.assert_allclose(z_BLD, exact, atol=5e-6)
    np.testing.assert_array_equal(same_BL, ms_BL)


def test_sizes_are_few_and_little_is_wasted():
  sizes = [embed.size(n) for n in range(1, 16_000 * 60, 77)]
  assert len(set(sizes)) < 90 and sizes == sorted(sizes)
  for n, filled in zip(range(1, 16_000 * 60, 77), sizes):
    assert filled >= max(n, 640) + 256
    assert n < 16_000 or filled < 1.17 * n
