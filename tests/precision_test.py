"""What is float32 whatever a model trains in, and what bfloat16 costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import config as config_lib
from audiorank import embed
from audiorank import objectives
from audiorank import rankme
from audiorank import records
from audiorank import train_state
from configs import base
from configs import scales

B, S = 16, 9_600


def config_of(dtype, size='en32-2'):
  c = base.get_config(size)
  c.model.target_frames = 60
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  c.model.dtype = dtype
  c.data.crop_seconds = S / 16_000
  c.mask.group_size = 1
  c.train.update({'steps': 400, 'batch': B})
  c.opt.update({'lr': 3e-3, 'warmup': 10, 'b2': .95, 'clip': 1.})
  c.mesh.data = 1
  return records.frozen(c)


def products(jaxpr):
  """Yields (input dtype, precision) of every matrix product, loops included."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn.invars[0].aval.dtype.name, eqn.params['precision']
    leaves = jax.tree.leaves(
        eqn.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'))
    for part in leaves:
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield from products(part)


HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def test_embeddings_are_float32_whatever_the_model_trained_in():
  config = config_of('bfloat16')
  state = train_state.state_shapes(config)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  wave_BS = jax.ShapeDtypeStruct((B, S), jnp.int16)
  run = embed.encoder(config.model, 'scene', 'final', 'clip')
  jaxpr = jax.make_jaxpr(run)(variables, wave_BS)
  dots = set(products(jaxpr.jaxpr))
  assert dots == {('float32', HIGHEST)}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_step_says_the_precision_of_every_product(dtype):
  """No TF32: of float32 all is float32, of bfloat16 the front end."""
  config = config_of(dtype)
  wave_BS = jax.ShapeDtypeStruct((B, S), jnp.int16)
  step = train_state.train_step(train_state.static_config(config))
  jaxpr = jax.make_jaxpr(step)(
      train_state.state_shapes(config), wave_BS, train_state.hparams_shapes())
  dots = list(products(jaxpr.jaxpr))
  assert {precision for name, precision in dots if name == 'float32'} == {
      HIGHEST}
  blocks = [name for name, _ in dots if name == 'bfloat16']
  assert bool(blocks) == (dtype == 'bfloat16')
  state = train_state.state_shapes(config)
  moments = train_state.adam_state(state.opt_state)
  assert {x.dtype.name for x in jax.tree.leaves(
      (state.params, state.batch_stats, moments.mu, moments.nu))} == {
          'float32'}


def test_configs_for_accelerators_compute_in_bfloat16():
  """In the config: a run's id does not depend on where it lands."""
  assert {base.get_config(p).model.dtype for p in base.points()} == {
      'bfloat16'}
  dtypes = {s: scales.recipe(s).model.dtype for s in scales.SCALES}
  assert dtypes == {
      'paper': 'bfloat16', 'small': 'float32', 'smoke': 'float32'}


def sounds(count, seed):
  """Returns wave_NS int16: chords of random pitch, beat and noise."""
  rng = np.random.default_rng(seed)
  time_S = np.arange(S) / 16_000
  waves = []
  for _ in range(count):
    pitch_3 = 100 * 2 ** rng.uniform(0, 5, 3)
    beat = np.sin(2 * np.pi * rng.uniform(1, 20) * time_S) > 0
    wave_S = np.sin(2 * np.pi * pitch_3[:, None] * time_S[None]).sum(0) * beat
    waves.append(wave_S + rng.uniform(0, .5) * rng.standard_normal(S))
  return (4_000 * np.stack(waves)).astype(np.int16)


def trained(dtype, seeds, steps, size):
  """Returns (loss_SK of every step, RankMe_K at the end) of packed runs."""
  config = config_of(dtype, size)
  one = train_state.train_step(train_state.static_config(config))
  step = jax.jit(jax.vmap(one, (0, None, 0)), donate_argnums=0)
  h = train_state.make_hparams(config)
  h = jax.tree.map(lambda x: np.stack([x] * len(seeds)), h)
  h = h.replace(seed=np.array(seeds, np.uint32))
  init = jax.jit(lambda h: train_state.scaled_init(
      config, jax.random.key(h.seed), h.init_scale))
  states = jax.vmap(init)(h)
  losses = []
  for number in range(steps):
    states, metrics = step(states, sounds(B, number), h)
    losses.append(metrics['loss'])
  ranks = []
  wave_NS = sounds(256, 10 ** 6)
  for k in range(len(seeds)):
    state = jax.tree.map(lambda x: x[k], states)
    z_ND = embed.scene(config, {'params': state.params,
                                'batch_stats': state.batch_stats}, wave_NS)
    ranks.append(float(rankme.rankme(z_ND)))
  return np.asarray(jnp.stack(losses)), np.array(ranks)


def compared(seeds, steps, size):
  """Returns, for each fifth of the curve and for RankMe, bfloat16's mean
  difference from float32 and the standard deviation over float32's seeds."""
  results = [trained(dtype, seeds, steps, size)
             for dtype in ('float32', 'bfloat16')]
  (loss_SK, rank_K), (half_SK, half_K) = results
  fifths = [x.reshape(5, steps // 5, -1).mean(1) for x in (half_SK, loss_SK)]
  return [(abs((half - full).mean()), full.std(ddof=1)) for half, full in (
      *zip(*fifths), (half_K, rank_K))]


def test_a_bfloat16_gradient_points_where_float32s_does():
  key, wave_BS = jax.random.key(0), sounds(4, 0).astype(np.float32) / 32768
  results = []
  config = config_of('float32', 'en16-1')
  variables = jax.jit(lambda key: objectives.mae_variables(
      config, key, config_lib.patches(config)))(key)
  for dtype in ('float32', 'bfloat16'):
    config = config_of(dtype, 'en16-1')

    def loss(params, config=config):
      return objectives.masked_autoencoding(
          config, {**variables, 'params': params}, wave_BS, key)[0]

    results.append(jax.jit(jax.value_and_grad(loss))(variables['params']))
  (full, full_grad), (half, half_grad) = results
  # Eight bits of mantissa, averaged over thousands of predictions.
  assert abs(half / full - 1) < 1e-2
  full_N, half_N = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
                    for g in (full_grad, half_grad))
  cosine = full_N @ half_N / np.linalg.norm(full_N) / np.linalg.norm(half_N)
  assert cosine > .99


@pytest.mark.slow
def test_bfloat16_trains_within_the_spread_of_seeds():
  for difference, spread in compared(range(8), 400, 'en32-2'):
    assert difference < spread
