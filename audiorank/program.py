"""The state of a run and the one program that advances it.

Everything here is a function of config and arrays: no file, no clock. What
runs of one shape may differ in (`Hyper`) is traced, not baked in, so that
they share one compilation.

Shapes: B batch, C steps of a call, S samples, N clips, L patches, M mels,
T frames.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiorank import audio
from audiorank import embed
from audiorank import objectives
from audiorank import records

RATE = 16_000


def crop_samples(seconds):
  """Returns the samples of a crop."""
  return int(round(seconds * RATE))


def patches(config):
  """Returns the patches of a training crop."""
  frames = 1 + crop_samples(config.data.crop_seconds) // audio.HOP
  return frames // config.model.patch_frames


def flops(config):
  """Returns FLOPs of a training step on one clip, by our own count.

  {'encoder': of what is kept, 'total': of all, ...}: the other parts are the
  objective's; see its `cost` in objectives.py.
  """
  return objectives.parts(config).cost(config, patches(config))


@flax.struct.dataclass
class TrainState:
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any


@flax.struct.dataclass
class Hyper:
  """What may differ between runs that share one compiled program."""
  seed: Any
  lr: Any
  warmup: Any
  steps: Any
  final: Any
  weight_decay: Any
  clip: Any


def core(config):
  """Returns the frozen config without what no program reads.

  That is traced (`Hyper`), or matters to the loop and to readings alone.
  Programs are built from this part, so that they cannot hang on another: it
  is what they are found by on disk (compiled.py). An objective of somebody
  else may read anything, and gets all.
  """
  if not objectives.is_own(config.objective):
    return config
  tree = records.plain(config)
  for part in ('experiment', 'seed', 'track', 'monitor', 'checkpoint', 'eval',
               'mesh'):
    tree.pop(part, None)
  tree['data'] = {'crop_seconds': tree['data']['crop_seconds']}
  for part, fields in (('train', ('steps', 'calibrate', 'log_every', 'call')),
                       ('opt', ('lr', 'warmup', 'final', 'weight_decay',
                                'clip'))):
    for field in fields:
      tree[part].pop(field, None)
  return records.frozen(tree)


def made_of(config):
  """Returns what decides a program, as JSON material; None for an objective
  of somebody else, of which that is not known."""
  own = objectives.is_own(config.objective)
  return records.plain(core(config)) if own else None


def hyper(config):
  """Returns the hyper-parameters as traced scalars, not constants."""
  o = config.opt
  return Hyper(np.uint32(config.seed), *(np.float32(x) for x in (
      o.lr, o.warmup, config.train.steps, o.final, o.weight_decay, o.clip)))


def learning_rate(step, h):
  """Linear warm-up from 0, then a cosine to `final` times the peak."""
  warm = h.lr * step / jnp.maximum(h.warmup, 1)
  past = (step - h.warmup) / jnp.maximum(h.steps - h.warmup, 1)
  end = h.final * h.lr
  cosine = end + (h.lr - end) * .5 * (1 + jnp.cos(jnp.pi * past))
  return jnp.where(step < h.warmup, warm, cosine)


def adam(config):
  """Returns the gradient transformation; rate and decay are applied apart."""
  return optax.scale_by_adam(b1=config.opt.b1, b2=config.opt.b2)


def init(config, key):
  """Returns a fresh state: float32 parameters, zero moments, step 0."""
  variables = objectives.parts(config).variables(
      config, key, patches(config))
  if config.train.init_scale != 1:
    # A copy of the network among the statistics is scaled with it.
    variables = jax.tree.map_with_path(
        lambda path, x: x * config.train.init_scale
        if path[-1].key == 'kernel' else x, variables)
  params = variables['params']
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params,
      batch_stats=variables['batch_stats'],
      opt_state=adam(config).init(params))


def make_step(config, placed):
  """Returns the jitted (state, wave_BS int16, hyper) -> (state, metrics)."""
  return jax.jit(one_step(core(config)), donate_argnums=0,
                 out_shardings=(placed, None))


def make_steps(config, placed):
  """Returns the jitted (state, wave_CBS int16, hyper) -> (state, metrics_C):
  C steps, one after the other, in one program."""
  step = one_step(core(config))

  def steps(state, wave_CBS, h):
    return jax.lax.scan(lambda s, wave_BS: step(s, wave_BS, h), state,
                        wave_CBS)

  return jax.jit(steps, donate_argnums=0, out_shardings=(placed, None))


def one_step(config):
  """Returns (state, wave_BS int16, hyper) -> (state, metrics), to be jitted."""
  objective = objectives.named(config.objective)
  tx = adam(config)

  def step(state, wave_BS, h):
    mask_key = jax.random.fold_in(jax.random.key(h.seed), 1)
    key = jax.random.fold_in(mask_key, state.step)
    wave_BS = wave_BS.astype(jnp.float32) / 32768

    def loss_of(params):
      return objective(
          config, {'params': params, 'batch_stats': state.batch_stats},
          wave_BS, key, train=True)

    (loss, (stats, extra)), grads = jax.value_and_grad(
        loss_of, has_aux=True)(state.params)
    norm = optax.tree.norm(grads)
    scale = jnp.where((h.clip > 0) & (norm > h.clip), h.clip / norm, 1.)
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    lr = learning_rate(state.step, h)
    params = jax.tree.map(
        lambda p, u: p - lr * (u + h.weight_decay * p), state.params, updates)
    new = TrainState(state.step + 1, params, stats, opt_state)
    if config.train.skip:
      good = jnp.isfinite(loss) & jnp.isfinite(norm)
      new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new,
                         state.replace(step=new.step))
      extra = {**extra, 'skipped': 1. - good}
    return new, {'loss': loss, 'grad_norm': norm, 'lr': lr,
                 'param_norm': optax.tree.norm(new.params), **extra}

  return step


def calibrated(config, state, wave_NS):
  """Returns the state with BatchNorm's statistics set to a sample's.

  Dasheng starts them at 0 and 1 and needs hundreds of steps to find them;
  until then an untrained encoder sees raw decibels.
  """
  @jax.jit
  def moments(wave_BS):
    mel_BMT = audio.front(config.model, wave_BS.astype(jnp.float32) / 32768)
    sums = mel_BMT.sum(2), jnp.square(mel_BMT).sum(2)
    # On a mesh the front end leaves each device its own clips.
    return sums if jax.sharding.get_abstract_mesh().empty else (
        jax.lax.with_sharding_constraint(sums, jax.sharding.PartitionSpec()))

  total_M, square_M, n = 0., 0., 0
  for index, wave_BS in embed.batches(wave_NS[:1024], min(256, len(wave_NS))):
    # The last batch is filled with silence, which must not count.
    sum_M, sq_M = (np.asarray(x, np.float64)[:len(index)].sum(0)
                   for x in moments(wave_BS))
    total_M, square_M = total_M + sum_M, square_M + sq_M
    n += len(index) * (1 + wave_BS.shape[1] // audio.HOP)
  mean_M = total_M / n
  var_M = np.maximum(square_M / n - mean_M ** 2, 1e-3)
  stats = {'norm_mel': {
      'mean': mean_M.astype(np.float32), 'var': var_M.astype(np.float32)}}
  placed = jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding),
      stats, state.batch_stats['encoder'])
  return state.replace(batch_stats={**state.batch_stats, 'encoder': placed})
