"""The losses against numpy, and what must not enter them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import audio
from audiorank import model
from audiorank import objectives
from audiorank import records
from audiorank import train_state
from configs import base
from tests import model_test

B, S, L = 3, 7520, 12


@pytest.fixture(scope='module')
def config():
  c = base.get_config('en32-1')
  c.model.target_frames = 4 * L
  c.model.decoder.update(width=16, depth=1, heads=2)
  return records.frozen(c)


@pytest.fixture(scope='module')
def variables(config):
  keep_BK, drop_BR = model.random_mask(jax.random.key(0), 1, L, .75, 2)
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
  keep_BK, drop_BR = model.random_mask(jax.random.key(0), B, L, .75, 2)
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
  keep_BK, drop_BR = model.random_mask(key, B, L, .75, 2)
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


def of(objective, **changes):
  """Returns (config, variables) of an objective, small and of any values."""
  c = base.get_config('en32-1')
  c.model.target_frames = 4 * L
  c.model.decoder.update(width=16, depth=1, heads=2)
  c.data.crop_seconds = S / 16_000
  c.train.batch = B
  c.objective = objective
  c.contrastive.update(hidden=24, width=8)
  c.update_from_flattened_dict(changes)
  config = records.frozen(c)
  shapes = jax.eval_shape(
      lambda: objectives.parts(config).variables(config, jax.random.key(0), L))
  rng = np.random.default_rng(1)
  return config, jax.tree.map(
      lambda x: rng.uniform(-.1, .2, x.shape).astype(np.float32) ** 2,
      shapes)


def nt_xent_by_loops(y_NW, temperature):
  """Equation 1 of arXiv 2002.05709, term by term in float64."""
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  losses = []
  for i, mine_W in enumerate(y_NW.astype(np.float64)):
    e = [np.exp(cosine(mine_W, y_W.astype(np.float64)) / temperature)
         for y_W in y_NW]
    j = i + 1 if i % 2 == 0 else i - 1
    losses.append(-np.log(e[j] / sum(e[k] for k in range(len(e)) if k != i)))
  return np.mean(losses)


@pytest.mark.parametrize('temperature', [.1, 1.])
def test_contrastive_loss_against_its_formula(temperature):
  y_NW = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
  loss, _ = objectives.nt_xent(y_NW, temperature)
  # Ten terms of float32 exponents up to 10.
  np.testing.assert_allclose(loss, nt_xent_by_loops(y_NW, temperature),
                             rtol=1e-5)
  # Only directions count.
  far, _ = objectives.nt_xent(y_NW * np.arange(1, 11)[:, None], temperature)
  np.testing.assert_allclose(far, loss, rtol=1e-5)


def test_contrastive_collapse_is_seen():
  """One vector for all clips costs the logarithm of the choices."""
  for y_W in (np.ones(6, np.float32), np.zeros(6, np.float32)):
    loss, grad_NW = jax.value_and_grad(
        lambda y_NW: objectives.nt_xent(y_NW, .1)[0])(np.tile(y_W, (10, 1)))
    np.testing.assert_allclose(loss, np.log(9), rtol=1e-6)
    assert np.isfinite(grad_NW).all()
  # Pairs apart from each other cost nothing, and each finds its own.
  loss, accuracy = objectives.nt_xent(
      np.repeat(np.eye(5, dtype=np.float32), 2, axis=0), .01)
  assert loss < 1e-6 and accuracy == 1


def test_contrastive_equals_its_parts():
  config, variables = of('contrastive')
  key, wave_BS = jax.random.key(5), waves()
  loss, (stats, _) = jax.jit(objectives.named('contrastive'), static_argnums=(
      0, 4))(config, variables, wave_BS, key, False)
  jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
  mel_BMT = np.asarray(audio.log_mel(wave_BS))
  C = L // 2
  start_BV = np.asarray(jax.random.randint(key, (B, 2), 0, L - C + 1))
  # Each crop is embedded as if it were a clip of its own.
  crops = np.stack([mel_BMT[b, :, 4 * at:4 * (at + C)]
                    for b in range(B) for at in start_BV[b]])
  z_ND = np.asarray(model.encode(config.model, variables, crops)).mean(1)
  p = variables['params']
  hidden = np.maximum(z_ND @ p['hidden']['kernel'] + p['hidden']['bias'], 0)
  y_NW = hidden @ p['out']['kernel'] + p['out']['bias']
  # The cosines of random positive layers lie near 1: their differences, which
  # make the loss, have few digits left.
  np.testing.assert_allclose(loss, nt_xent_by_loops(y_NW, .1), rtol=1e-4)


def test_crops_of_every_place_are_drawn():
  key_N = jax.random.split(jax.random.key(0), 200)
  start_NV = np.asarray(jax.vmap(
      lambda key: jax.random.randint(key, (2,), 0, L - L // 2 + 1))(key_N))
  assert set(start_NV.ravel()) == set(range(L // 2 + 1))
  assert (start_NV[:, 0] != start_NV[:, 1]).any()


def latent(config, params, stats, train=True, seed=0):
  return objectives.latent_prediction(
      config, {'params': params, 'batch_stats': stats}, waves(seed),
      jax.random.key(5), train)


def test_latent_equals_its_parts():
  config, variables = of('latent')
  stats = variables['batch_stats']
  loss, (kept, metrics) = jax.jit(latent, static_argnums=(0, 3))(
      config, variables['params'], stats, False)
  # Out of training neither statistics nor teacher move.
  jax.tree.map(np.testing.assert_array_equal, kept, stats)
  mel_BMT = np.asarray(audio.log_mel(waves()))
  keep_BK, drop_BR = model.random_mask(jax.random.key(5), B, L, .75, 2)
  pred_BRD = jax.jit(model.MAE(config.model, 32).apply)(
      {'params': variables['params'],
       'batch_stats': {'encoder': stats['encoder']}}, mel_BMT, keep_BK, drop_BR)
  # The teacher sees the whole clip, as an embedding does.
  z_BLD = np.asarray(model.encode(config.model, {
      'params': stats['teacher'], 'batch_stats': stats['encoder']}, mel_BMT),
                     np.float64)
  z_BLD = (z_BLD - z_BLD.mean(-1, keepdims=True)) / np.sqrt(
      z_BLD.var(-1, ddof=1, keepdims=True) + 1e-6)
  want = np.mean([(pred_BRD[b] - z_BLD[b, drop_BR[b]]) ** 2 for b in range(B)])
  np.testing.assert_allclose(loss, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['target_std'],
                             z_BLD.std((0, 1)).mean(), rtol=1e-4)


def test_the_teacher_follows_its_average_and_gets_no_gradient():
  config, variables = of('latent')
  params, stats = variables['params'], variables['batch_stats']
  (_, (new, _)), (student, teacher) = jax.jit(jax.value_and_grad(
      lambda p, t: latent(config, p, {**stats, 'teacher': t}), (0, 1),
      has_aux=True))(params, stats['teacher'])
  assert not any(np.any(g) for g in jax.tree.leaves(teacher))
  assert all(np.any(g) for g in jax.tree.leaves(student))
  # Two float32 operations away from the formula in float64.
  jax.tree.map(lambda now, old, theta: np.testing.assert_allclose(
      now, .999 * np.float64(old) + .001 * np.float64(theta), rtol=3e-7),
               new['teacher'], stats['teacher'], params['encoder'])
  assert jax.tree.leaves(new['encoder'])[0].shape == (64,)


@pytest.mark.slow
@pytest.mark.parametrize('decay', [0., 1.])
def test_a_teacher_that_forgets_all_or_nothing(decay):
  config, variables = of('latent', **{'latent.decay': decay})
  params, stats = variables['params'], variables['batch_stats']
  _, (new, _) = jax.jit(latent, static_argnums=0)(config, params, stats)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
      new['teacher'], params['encoder'] if decay == 0 else stats['teacher'])


def test_latent_collapse_is_seen():
  """A teacher with one vector for everything is predicted for nothing."""
  config, variables = of('latent')
  stats = jax.tree.map(np.copy, variables['batch_stats'])
  stats['teacher']['norm']['scale'][:] = 0
  params = jax.tree.map(np.copy, variables['params'])
  bias_D = stats['teacher']['norm']['bias']
  params['decoder']['out']['kernel'][:] = 0
  params['decoder']['out']['bias'][:] = objectives.normalise(bias_D)
  loss, (_, metrics) = jax.jit(latent, static_argnums=(0, 3))(
      config, params, stats, False)
  assert loss < 1e-10 and metrics['target_std'] < 1e-5


def test_objectives_start_from_one_encoder():
  configs = {name: of(name, **{'train.init_scale': .5})[0]
             for name in ('mae', 'contrastive', 'latent')}
  made = {name: jax.jit(lambda key, c=c: train_state.init(c, key))(
      jax.random.key(3)) for name, c in configs.items()}
  for name in ('contrastive', 'latent'):
    jax.tree.map(np.testing.assert_array_equal,
                 made[name].params['encoder'], made['mae'].params['encoder'])
  assert set(made['contrastive'].params) == {'encoder', 'hidden', 'out'}
  # The teacher is the encoder as it starts, scaled and all.
  jax.tree.map(np.testing.assert_array_equal,
               made['latent'].batch_stats['teacher'],
               made['latent'].params['encoder'])


@pytest.mark.parametrize('name', ['contrastive', 'latent'])
def test_costs_are_those_of_the_program(name):
  config, variables = of(name, **{'model.depth': 2, 'model.unroll': 2})
  wave_BS = jnp.zeros((B, S))

  def count(f, *x):
    return model_test.products(jax.make_jaxpr(f)(*x).jaxpr) / B

  forward = count(lambda v: objectives.named(name)(
      config, v, wave_BS, jax.random.key(0), False)[0], variables) - count(
          audio.log_mel, wave_BS)
  cost = train_state.flops(config)
  assert cost['total'] == sum(v for k, v in cost.items() if k != 'total')
  # Two operations a multiply-add; backwards twice that, but for a teacher.
  teacher = cost.get('teacher', 0)
  assert forward == (cost['total'] - teacher) / 6 + teacher / 2


@pytest.mark.parametrize('objective, changes, text', [
    ('contrastive', {'contrastive.share': .01},
     'contrastive.share 0.01 of 12 patches is 0: expected 1 to 12'),
    ('contrastive', {'contrastive.share': 1.2}, 'is 14: expected 1 to 12'),
    ('contrastive', {'contrastive.temperature': 0.},
     'contrastive.temperature 0.0: expected more than 0'),
    ('contrastive', {'contrastive.width': 0},
     'contrastive.width 0: expected at least 1'),
    ('contrastive', {'train.batch': 1}, 'train.batch 1: expected at least 2'),
    ('latent', {'latent.decay': 1.5}, 'latent.decay 1.5: expected 0 to 1')])
def test_settings_that_cannot_train_are_named(objective, changes, text):
  c = base.get_config('en32-1')
  c.update_from_flattened_dict({'objective': objective, **changes})
  with pytest.raises(ValueError, match=text):
    objectives.check(c, L)
  c.objective = 'mae'
  objectives.check(c, L)


def test_settings_of_objectives_leave_older_runs_their_names(tmp_path):
  now = records.plain(base.get_config('en32-1'))
  before = {k: v for k, v in now.items() if k not in objectives.PARTS}
  assert len(before) == len(now) - 2
  assert records.run_id(before) == records.run_id(now)
  records.write_json(tmp_path / 'config.json', before)
  assert records.plain(records.load_config(tmp_path)) == now
  now['latent'] = {'decay': .9}
  assert records.run_id(before) != records.run_id(now)
