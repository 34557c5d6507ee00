"""What the model promises whatever its size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import flops
from audiorank import model
from audiorank import records
from configs import base

encode = jax.jit(model.encode, static_argnames=('config', 'layers'))
B, L = 2, 12


def tiny(**fields):
  """A frozen model config: width 32, two blocks, 12 positions."""
  m = base.get_config('en32-2').model
  m.heads = 2
  m.target_frames = 4 * L
  m.decoder.update(width=16, depth=1, heads=2)
  m.update_from_flattened_dict(fields)
  return records.frozen(m)


def mask(ratio=.5, group=2, seed=0):
  return model.random_mask(jax.random.key(seed), B, L, ratio, group)


def mels(T=4 * L, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(-30, 15, (B, 64, T)).astype(np.float32)


def shapes_of(config):
  return jax.eval_shape(lambda: model.MAE(config).init(
      jax.random.key(0), mels(), *mask()))


def variables(config, seed=0):
  """Random variables, none at 0 or 1, as if trained on `mels`."""
  rng = np.random.default_rng(seed)

  def fill(path, x):
    name = path[-1].key
    if name == 'kernel':
      y = rng.normal(0, x.shape[-2] ** -.5, x.shape)
    else:
      y = rng.uniform(-.1, .1, x.shape) + {
          'scale': 1, 'mean': -30, 'var': 225}.get(name, 0)
    return y.astype(np.float32)

  return jax.tree.map_with_path(fill, shapes_of(config))


@pytest.fixture(scope='module')
def config():
  return tiny()


@pytest.fixture(scope='module')
def params(config):
  return variables(config)


def test_unpatchify_inverts_patchify():
  mel_BMT = mels(T=4 * L + 3)
  patches_BLP = model.patchify(mel_BMT, 4)
  assert patches_BLP.shape == (B, L, 256)
  np.testing.assert_array_equal(
      model.unpatchify(patches_BLP, 4), mel_BMT[:, :, :4 * L])
  # The order of a convolution's weight: mel, then frame.
  assert patches_BLP[1, 2, 5 * 4 + 3] == mel_BMT[1, 5, 2 * 4 + 3]


@pytest.mark.parametrize('ratio,group', [(.75, 2), (.5, 1), (.3, 3), (.9, 4)])
def test_masks_keep_groups_together(ratio, group):
  keep_BK, drop_BR = mask(ratio, group)
  assert keep_BK.shape[1] == int(L * (1 - ratio))
  both_BL = np.concatenate([keep_BK, drop_BR], 1)
  np.testing.assert_array_equal(np.sort(both_BL, 1), [np.arange(L)] * B)
  # Runs of `group` neighbours, from a multiple of it, whole up to the cut.
  starts = both_BL[:, ::group]
  assert not np.any(starts % group)
  np.testing.assert_array_equal(
      both_BL.reshape(B, -1, group),
      starts[:, :, None] + np.arange(group)[None, None])


def test_masks_refuse_a_broken_group():
  with pytest.raises(ValueError, match='12 patches are not a multiple of mask'):
    mask(group=5)


def test_masks_are_uniform():
  keep_BK, _ = model.random_mask(jax.random.key(1), 4000, L, .75, 1)
  share_L = np.bincount(np.asarray(keep_BK).ravel(), minlength=L) / 4000
  # Four standard deviations of a proportion of a quarter.
  np.testing.assert_allclose(share_L, .25, atol=4 * (.25 * .75 / 4000) ** .5)


def test_the_encoder_never_sees_removed_patches(config, params):
  keep_BK, drop_BR = mask()
  encoder = model.encoder_variables(params)
  patches_BLP = model.patchify(mels(), 4)

  @jax.jit
  @jax.grad
  def through(patches_BLP):
    z_BKD = model.Encoder(config).apply(encoder, patches_BLP, keep_BK)
    return jnp.square(z_BKD).sum() + z_BKD[:, 0].sum()

  grad_BLP = through(patches_BLP)
  assert not np.any(model.take(grad_BLP, drop_BR))
  assert np.all(np.any(model.take(grad_BLP, keep_BK), axis=2))


def test_keeping_everything_is_encoding(config, params):
  mel_BMT = mels()
  encoder = model.encoder_variables(params)
  want_BLD = encode(config, params, mel_BMT)
  np.testing.assert_array_equal(want_BLD, encode(config, encoder, mel_BMT))
  patches_BLP = model.Encoder(config).apply(encoder, mel_BMT, method='patches')
  keep_BL, _ = mask(ratio=0.)
  got_BLD = jax.jit(model.Encoder(config).apply)(
      encoder, patches_BLP, keep_BL)
  np.testing.assert_allclose(got_BLD, model.take(want_BLD, keep_BL), atol=1e-5)


def test_predictions_follow_their_positions(config, params):
  """The order in which removed patches are listed changes nothing else."""
  keep_BK, drop_BR = mask()
  run = jax.jit(model.MAE(config).apply)
  pred_BRP = run(params, mels(), keep_BK, drop_BR)
  assert pred_BRP.shape == (*drop_BR.shape, 256)
  back_BRP = run(params, mels(), keep_BK[:, ::-1], drop_BR[:, ::-1])
  np.testing.assert_allclose(back_BRP[:, ::-1], pred_BRP, atol=1e-5)


def test_scanned_unrolled_and_rematerialised_agree(params):
  keep_BK, drop_BR = mask()

  def run(**fields):
    net = model.MAE(tiny(**fields))

    def loss(tree):
      pred_BRP = net.apply({**params, 'params': tree}, mels(), keep_BK,
                           drop_BR)
      return jnp.square(pred_BRP).mean()

    return jax.jit(jax.value_and_grad(loss))(params['params'])

  want = run()
  for fields in ({'unroll': 1, 'remat': 'dots'}, {'remat': 'full'}):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        run(**fields), want)


@pytest.mark.parametrize('fields', [
    {'decoder.width': 32}, {'width': 16, 'heads': 1, 'mlp_ratio': 1},
    {'width': 64, 'depth': 1, 'heads': 8, 'decoder.depth': 2}])
def test_any_widths_work_together(fields):
  c = tiny(**fields)
  keep_BK, drop_BR = mask()
  pred_BRP = jax.eval_shape(
      model.MAE(c).apply, shapes_of(c), mels(), keep_BK, drop_BR)
  assert pred_BRP.shape == (*drop_BR.shape, 256)


@pytest.mark.parametrize('size,encoder,decoder', [
    ('en768-12', 85_447_808, 25_875_200),
    ('en1280-32', 630_333_568, None), ('en1536-40', 1_134_047_360, None),
    ('en128-12', 2_444_928, None)])
def test_sizes_are_the_published_ones(size, encoder, decoder):
  c = records.frozen(base.get_config(size).model)
  shapes = jax.eval_shape(
      lambda: model.MAE(c).init(
          jax.random.key(0), np.zeros((1, 64, 1008), np.float32),
          np.zeros((1, 62), np.int32), np.zeros((1, 190), np.int32)))
  assert flops.parameters(shapes['params']['encoder']) == encoder
  if decoder:
    assert flops.parameters(shapes['params']['decoder']) == decoder
  assert model.name(c) == size


def products(jaxpr):
  """Counts the multiply-adds of every matrix product, loops included."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (inner, _), _ = eqn.params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      total += np.prod(eqn.outvars[0].aval.shape) * np.prod(
          [left[i] for i in inner])
    for sub in eqn.params.values():
      if hasattr(sub, 'eqns'):
        total += eqn.params.get('length', 1) * products(sub)
  return total


def test_flops_are_those_of_the_program():
  c = tiny(**{'width': 768, 'depth': 3, 'decoder.width': 512,
              'target_frames': 4 * 64, 'unroll': 3})
  keep_BK = np.arange(16)[None]
  drop_BR = np.arange(16, 64)[None]
  mel_BMT = np.zeros((1, 64, 256), np.float32)
  made = jax.eval_shape(lambda: model.MAE(c).init(
      jax.random.key(0), mel_BMT, keep_BK, drop_BR))
  forward = lambda v: model.MAE(c).apply(v, mel_BMT, keep_BK, drop_BR)
  ours = flops.step_flops(c, 64, 16)
  assert ours['total'] == ours['encoder'] + ours['decoder']
  # Forward and twice that backward, two operations a multiply-add.
  by_hand = ours['total'] / 3
  assert 2 * products(jax.make_jaxpr(forward)(made).jaxpr) == by_hand
  counted = jax.jit(forward).lower(made).cost_analysis()['flops']
  # XLA adds norms, softmax and GELU.
  assert by_hand < counted < 1.03 * by_hand


def test_flops_by_the_usual_formula():
  c = records.frozen(base.get_config('en768-12').model)
  T, w = 250, 768
  encoder = 3 * 12 * (24 * w ** 2 * T + 4 * T ** 2 * w) + 6 * T * 256 * w
  assert flops.step_flops(c, T, T)['encoder'] == encoder


def test_padding_does_not_reach_sound_tokens(config, params):
  mel_BMT, valid_B = mels(), np.array([5, 9])
  z_BLD = encode(config, params, mel_BMT, valid_L=valid_B)
  for i, n in enumerate(valid_B):
    alone_BLD = encode(config, params, mel_BMT[i:i + 1, :, :4 * n])
    np.testing.assert_allclose(z_BLD[i:i + 1, :n], alone_BLD, atol=1e-5)


def test_long_clips_are_chunks(config, params):
  mel_BMT = mels(T=4 * (2 * L + 5) + 2)
  z_BLD, layers_NBLD = encode(config, params, mel_BMT, layers=True)
  assert z_BLD.shape == (B, 2 * L + 5, 32)
  assert layers_NBLD.shape == (2, B, 2 * L + 5, 32)
  for start in (0, L, 2 * L):
    part = mel_BMT[:, :, 4 * start:4 * min(start + L, 2 * L + 5)]
    np.testing.assert_allclose(
        z_BLD[:, start:start + L], encode(config, params, part), atol=1e-5)
  # A chunk without a single sound token stays finite.
  z_BLD = encode(config, params, mel_BMT, valid_L=np.array([3, 2 * L + 5]))
  assert np.isfinite(z_BLD).all()


def test_the_last_layer_passes_the_final_norm(config, params):
  z_BLD, layers_NBLD = encode(config, params, mels(), layers=True)
  norm = params['params']['encoder']['norm']
  x_BLD = np.asarray(layers_NBLD[-1], np.float64)
  x_BLD -= x_BLD.mean(-1, keepdims=True)
  x_BLD /= np.sqrt(x_BLD.var(-1, keepdims=True) + 1e-6)
  want_BLD = x_BLD * norm['scale'][None, None] + norm['bias'][None, None]
  np.testing.assert_allclose(z_BLD, want_BLD, atol=1e-4)


def test_mel_norm_keeps_torchs_statistics():
  mel_BMT = mels(T=9)
  net = model.MelNorm()
  made = net.init(jax.random.key(0), mel_BMT, False)
  np.testing.assert_allclose(
      net.apply(made, mel_BMT, False), mel_BMT / np.sqrt(1 + 1e-5), rtol=1e-5)
  made = jax.tree.map(lambda x: np.array(x), made)
  out_BMT, new = net.apply(made, mel_BMT, True, mutable=['batch_stats'])
  # The caller's arrays are not written to, not even numpy's.
  assert not np.any(made['batch_stats']['mean'])
  np.testing.assert_allclose(out_BMT.mean((0, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(out_BMT.var((0, 2)), 1, atol=1e-4)
  stats = new['batch_stats']
  np.testing.assert_allclose(
      stats['mean'], .01 * mel_BMT.mean((0, 2)), rtol=1e-4)
  np.testing.assert_allclose(
      stats['var'], .99 + .01 * mel_BMT.var((0, 2), ddof=1), rtol=1e-5)


def test_initial_values_are_the_published_ones():
  c = tiny(width=256, heads=4)
  made = jax.jit(model.MAE(c).init)(jax.random.key(0), mels(), *mask())
  encoder, decoder = made['params']['encoder'], made['params']['decoder']
  bound = {'qkv': 4 * 256, 'proj': 2 * 256, 'fc1': 5 * 256, 'fc2': 5 * 256}
  for name, fans in bound.items():  # Uniform by the sum of both fans.
    kernel = np.abs(encoder['blocks'][name]['kernel'])
    assert .98 < kernel.max() / (6 / fans) ** .5 <= 1
    assert not np.any(encoder['blocks'][name]['bias'])
  for part in ('kernel', 'bias'):
    assert .9 / 16 < np.abs(encoder['patch'][part]).max() <= 1 / 16
  for x in (encoder['time'], encoder['freq'], decoder['project']['kernel'],
            decoder['blocks']['fc1']['kernel'], decoder['out']['kernel']):
    assert abs(x.std() / .02 - 1) < .2
  assert decoder['time'].shape == (L + 1, 16) and not np.any(decoder['time'])


def test_bfloat16_stays_near_float32(config, params):
  half = tiny(dtype='bfloat16')
  z_BLD, want_BLD = (encode(c, params, mels()) for c in (half, config))
  assert z_BLD.dtype == jnp.float32
  # Eight bits of mantissa through two blocks, on tokens of order one.
  np.testing.assert_allclose(z_BLD, want_BLD, atol=.1)
  pred_BRP = jax.jit(model.MAE(half).apply)(params, mels(), *mask())
  assert pred_BRP.dtype == jnp.float32
  made = shapes_of(half)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}


def test_lengths_that_do_not_fit(config, params):
  with pytest.raises(ValueError, match='3 frames are less than one patch of 4'):
    model.encode(config, params, mels(T=3))
  with pytest.raises(ValueError, match='13 patches, but the model has 12'):
    model.Encoder(config).apply(
        model.encoder_variables(params), model.patchify(mels(T=4 * 13), 4))
