"""The state of a run and the programs that make and advance it.

Everything here is a function of config and arrays: no file, no clock. What
runs of one shape may differ in (`Hyper`) is traced, not baked in, so that
they share one compilation. `programs` keeps what was compiled for as long as
the process lives: a second run of a shape is neither traced nor compiled.

Shapes: B batch, C steps of a call, S samples, N clips, L patches, M mels,
T frames.
"""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import objectives
from audiorank import records
from audiorank import sharding

# Of every run, trained or not: they live in config.py.
crop_samples, patches = config_lib.crop_samples, config_lib.patches
SHAPES = 32  # Shapes whose programs are kept; the oldest go first.


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
  init_scale: Any
  lr: Any
  warmup: Any
  steps: Any
  final: Any
  weight_decay: Any
  clip: Any


# What a program takes as arguments (`Hyper`), or what the loop and the
# evaluation alone read. An objective reads none of it.
NOT_COMPILED = (
    'experiment', 'seed', 'track', 'monitor', 'checkpoint', 'eval', 'mesh',
    'train.steps', 'train.init_scale', 'train.calibrate', 'train.log_every',
    'train.call', 'opt.lr', 'opt.warmup', 'opt.final', 'opt.weight_decay',
    'opt.clip')


def static_config(config):
  """Returns the frozen config of what is compiled in: equal for two runs that
  can share their programs."""
  tree = records.plain(config)
  for name in NOT_COMPILED:
    *parents, last = name.split('.')
    node = tree
    for parent in parents:
      node = node[parent]
    node.pop(last, None)
  tree['data'] = {name: tree['data'][name]
                  for name in ('crop_seconds', 'gain_low', 'gain_high')}
  return records.frozen(tree)


def hyper(config):
  """Returns the hyper-parameters as traced scalars, not constants."""
  o = config.opt
  return Hyper(np.uint32(config.seed), *(np.float32(x) for x in (
      config.train.init_scale, o.lr, o.warmup, config.train.steps, o.final,
      o.weight_decay, o.clip)))


def hyper_shapes():
  """Returns the Hyper of jax.ShapeDtypeStruct."""
  rest = len(dataclasses.fields(Hyper)) - 1
  return Hyper(jax.ShapeDtypeStruct((), jnp.uint32),
               *[jax.ShapeDtypeStruct((), jnp.float32)] * rest)


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
  return scaled_init(config, key, config.train.init_scale)


def scaled_init(config, key, scale):
  """Returns `init`'s state with every weight matrix times a factor."""
  variables = objectives.parts(config).variables(
      config, key, patches(config))
  # A copy of the network among the statistics is scaled with it.
  variables = jax.tree.map_with_path(
      lambda path, x: x * scale if path[-1].key == 'kernel' else x, variables)
  params = variables['params']
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params,
      batch_stats=variables['batch_stats'],
      opt_state=adam(config).init(params))


class Programs(NamedTuple):
  """The compiled programs of a shape on a mesh, and what they work on.

  shapes: TrainState of jax.ShapeDtypeStruct.
  placed: TrainState of the shardings.
  init: (hyper) -> state.
  step: (state, wave_BS int16, hyper) -> (state, metrics).
  steps: (state, wave_CBS int16, hyper) -> (state, metrics_C): C steps, one
    after the other, in one program.
  """
  shapes: TrainState
  placed: TrainState
  init: Any
  step: Any
  steps: Any


def programs(config, mesh):
  """Returns the Programs of a config on a mesh, the same ones every time."""
  return _programs(static_config(config), objectives.named(config.objective),
                   objectives.parts(config), mesh)


def fresh(config, mesh):
  """Returns the initial state of a config on a mesh."""
  return programs(config, mesh).init(hyper(config))


@functools.lru_cache(SHAPES)
def _programs(config, objective, parts, mesh):
  """`programs` of a static config. Objective and parts are read by name; they
  are arguments so that another one of the same name has its own programs."""
  del objective, parts

  def init_state(h):
    return scaled_init(config, jax.random.key(h.seed), h.init_scale)

  shapes = jax.eval_shape(init_state, hyper_shapes())
  placed = sharding.place(shapes, mesh)
  return Programs(shapes, placed, jax.jit(init_state, out_shardings=placed),
                  make_step(config, placed), make_steps(config, placed))


def make_step(config, placed):
  """Returns the jitted step of a config; see `Programs.step`."""
  return jax.jit(one_step(config), donate_argnums=0,
                 out_shardings=(placed, None))


def make_steps(config, placed):
  """Returns the jitted steps of a config; see `Programs.steps`."""
  step = one_step(config)

  def steps(state, wave_CBS, h):
    return jax.lax.scan(lambda s, wave_BS: step(s, wave_BS, h), state,
                        wave_CBS)

  return jax.jit(steps, donate_argnums=0, out_shardings=(placed, None))


@functools.lru_cache(SHAPES)
def packed_step(config, objective, spread):
  """Returns the jitted step of K runs: (states, wave_BS int16, hypers) ->
  (states, metrics_K).

  Args:
    config: the static config that they share.
    objective: its function; see `_programs`.
    spread: the sharding of states and metrics over the runs' axis.
  """
  del objective
  step = sharding.over_runs(jax.vmap(one_step(config), (0, None, 0)), spread)
  return jax.jit(step, donate_argnums=0, out_shardings=(spread, spread))


def one_step(config):
  """Returns (state, wave_BS int16, hyper) -> (state, metrics), to be jitted."""
  objective = objectives.named(config.objective)
  tx = adam(config)

  def step(state, wave_BS, h):
    mask_key = jax.random.fold_in(jax.random.key(h.seed), 1)
    key = jax.random.fold_in(mask_key, state.step)
    wave_BS = wave_BS.astype(jnp.float32) / 32768
    gain = config.data.gain_low, config.data.gain_high
    if any(gain):
      wave_BS = audio.random_gain(jax.random.fold_in(key, 1), wave_BS, *gain)

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
  moments = _moments(records.frozen(config.model))
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


@functools.lru_cache(SHAPES)
def _moments(model_config):
  """Returns the jitted wave_BS int16 -> sums over time (of dB, of dB^2)."""
  @jax.jit
  def moments(wave_BS):
    mel_BMT = audio.front(model_config, wave_BS.astype(jnp.float32) / 32768)
    sums = mel_BMT.sum(2), jnp.square(mel_BMT).sum(2)
    if jax.sharding.get_abstract_mesh().empty:
      return sums
    # On a mesh the front end leaves each device its own clips.
    return jax.lax.with_sharding_constraint(
        sums, jax.sharding.PartitionSpec())

  return moments
