"""The losses against numpy, and what must not enter them."""

import jax
import numpy as np
import pytest

from audiorank import audio
from audiorank import masking
from audiorank import model
from audiorank import objectives
from audiorank import records
from configs import base

B, S, L = 3, 7520, 12


@pytest.fixture(scope='module')
def config():
  c = base.get_config('en32-1')
  c.model.target_frames = 4 * L
  c.model.decoder.update(width=16, depth=1, heads=2)
  return records.frozen(c)


@pytest.fixture(scope='module')
def variables(config):
  keep_BK, drop_BR = masking.random_mask(jax.random.key(0), 1, L, .75, 2)
  shapes = jax.eval_shape(lambda: model.MAE(config.model).init(
      jax.random.key(0), np.zeros((1, 64, 4 * L)), keep_BK, drop_BR))
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: rng.uniform(.05, .2, x.shape).astype(np.float32), shapes)


def waves(seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-.5, .5, (B, S)).astype(np.float32)


def patches(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(-30, 15, (B, L, 256)).astype(np.float32)


def test_targets_are_normalised_as_said():
  raw_BLP = patches()
  each_BLP = objectives.normalise(raw_BLP)
  np.testing.assert_allclose(each_BLP.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(each_BLP.var(-1, ddof=1), 1, rtol=1e-5)
  all_BLP = objectives.normalise(raw_BLP, 'batch')
  np.testing.assert_allclose(
      all_BLP, (raw_BLP - raw_BLP.mean()) / raw_BLP.std(ddof=1), atol=1e-5)
  assert objectives.normalise(raw_BLP, 'none') is raw_BLP


def test_silence_has_a_target():
  np.testing.assert_array_equal(
      objectives.normalise(np.full((1, 1, 256), -100, np.float32)), 0)


def test_predicting_nothing_costs_one():
  """The loss's unit: normalised patches have 255 / 256 of unit power."""
  loss = objectives.reconstruction(0., objectives.normalise(patches()))
  np.testing.assert_allclose(loss, 255 / 256, rtol=1e-5)


def test_kept_patches_do_not_enter():
  keep_BK, drop_BR = masking.random_mask(jax.random.key(0), B, L, .75, 2)
  grad_BLP = jax.grad(lambda raw_BLP: objectives.reconstruction(
      0., model.take(objectives.normalise(raw_BLP), drop_BR) - 1.))(patches())
  assert not np.any(model.take(grad_BLP, keep_BK))
  assert np.all(np.any(model.take(grad_BLP, drop_BR), axis=2))


@pytest.mark.parametrize('name,by', [
    ('mae', 'patch'), ('mae_batch', 'batch'), ('mae_raw', 'none')])
def test_objectives_equal_their_parts(config, variables, name, by):
  key, wave_BS = jax.random.key(5), waves()
  objective = jax.jit(objectives.named(name), static_argnums=(0, 4))
  loss, (stats, metrics) = objective(config, variables, wave_BS, key, False)
  assert not metrics
  # Out of training the front BatchNorm's statistics stay.
  jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
  mel_BMT = np.asarray(audio.log_mel(wave_BS))
  keep_BK, drop_BR = masking.random_mask(key, B, L, .75, 2)
  assert drop_BR.shape == (B, L - 3)
  pred_BRP = jax.jit(model.MAE(config.model).apply)(
      variables, mel_BMT, keep_BK, drop_BR)
  # The official formula: every patch, then a mask over the removed ones.
  raw_BLP = np.asarray(model.patchify(mel_BMT, 4), np.float64)
  mean, var = {
      'patch': (raw_BLP.mean(-1, keepdims=True),
                raw_BLP.var(-1, ddof=1, keepdims=True)),
      'batch': (raw_BLP.mean(), raw_BLP.var(ddof=1)), 'none': (0, 1)}[by]
  target_BLP = (raw_BLP - mean) / np.sqrt(var + 1e-6)
  mask_BL, pred_BLP = np.zeros((B, L)), np.zeros((B, L, 256))
  for i in range(B):
    mask_BL[i, drop_BR[i]], pred_BLP[i, drop_BR[i]] = 1, pred_BRP[i]
  error_BL = np.square(pred_BLP - target_BLP).mean(-1)
  want = (error_BL * mask_BL).sum() / mask_BL.sum()
  np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_training_uses_and_moves_batch_statistics(config, variables):
  run = jax.jit(jax.value_and_grad(
      lambda params, wave_BS: objectives.masked_autoencoding(
          config, {**variables, 'params': params}, wave_BS,
          jax.random.key(0)), has_aux=True))
  (_, (stats, _)), _ = run(variables['params'], waves())
  mel_BMT = np.asarray(audio.log_mel(waves()))
  old = variables['batch_stats']['encoder']['norm_mel']
  new = stats['encoder']['norm_mel']
  np.testing.assert_allclose(
      new['mean'], .99 * old['mean'] + .01 * mel_BMT.mean((0, 2)), rtol=1e-4)
  np.testing.assert_allclose(
      new['var'], .99 * old['var'] + .01 * mel_BMT.var((0, 2), ddof=1),
      rtol=1e-4)
  # Digital silence, which has no variance anywhere.
  (loss, _), grads = run(variables['params'], 0 * waves())
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_unknown_objective():
  with pytest.raises(ValueError, match="objective 'mse': expected one of mae"):
    objectives.named('mse')
