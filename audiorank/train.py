"""A run: init, step, loop. Killed anywhere, the same command continues it.

Every number of a run is a function of its config alone: keys are folded with
the step, batches are a function of the step, and what happens at a step
(save, then measure) does not depend on when the process was started.

Shapes: B batch, S samples, N monitor clips, D width, M mels, T frames.
"""

import pathlib
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiorank import audio
from audiorank import checkpoint
from audiorank import data
from audiorank import embed
from audiorank import model
from audiorank import objectives
from audiorank import progress
from audiorank import rankme
from audiorank import records
from audiorank import sharding

RATE = 16_000


class Preempted(Exception):
  """The run was asked to stop; it is saved, and running it again goes on."""


class Diverged(Exception):
  """Loss or parameters are not finite; the message names step and clips."""


@flax.struct.dataclass
class TrainState:
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any


@flax.struct.dataclass
class Hyper:
  """What may differ between runs that share one compiled program."""
  lr: Any
  warmup: Any
  steps: Any
  final: Any
  weight_decay: Any
  clip: Any


def hyper(config):
  """Returns the hyper-parameters as traced scalars, not constants."""
  o = config.opt
  return Hyper(*(np.float32(x) for x in (
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


def crop_samples(seconds):
  """Returns the samples of a crop."""
  return int(round(seconds * RATE))


def check(config, on):
  """Raises ValueError for a config that cannot run, naming the field."""
  m, k = config.model, config.mask
  sharding.check_batch(config.train.batch, on)
  sharding.check_batch(config.monitor.batch, on, 'monitor.batch')
  L = (1 + crop_samples(config.data.crop_seconds) // audio.HOP
       ) // m.patch_frames
  fields = {'model': m, 'model.decoder': m.decoder}
  for field, part in fields.items():
    if part.width % part.heads:
      raise ValueError(f'{field}.width {part.width} is not a multiple of '
                       f'{field}.heads {part.heads}')
  if L > model.positions(m):
    raise ValueError(
        f'data.crop_seconds {config.data.crop_seconds} is {L} patches, but '
        f'model.target_frames {m.target_frames} gives '
        f'{model.positions(m)} positions')
  if L % k.group:
    raise ValueError(f'data.crop_seconds {config.data.crop_seconds} is {L} '
                     f'patches, not a multiple of mask.group {k.group}')
  if not 0 < model.kept(L, k.ratio) < L:
    raise ValueError(f'mask.ratio {k.ratio} keeps {model.kept(L, k.ratio)} '
                     f'of {L} patches: expected some kept and some removed')
  if config.train.steps and config.opt.warmup >= config.train.steps:
    raise ValueError(f'opt.warmup {config.opt.warmup}: expected less than '
                     f'train.steps {config.train.steps}')
  for field, value in (('checkpoint.every', config.checkpoint.every),
                       ('checkpoint.keep', config.checkpoint.keep),
                       ('train.log_every', config.train.log_every),
                       ('monitor.first', config.monitor.first)):
    if value < 1:
      raise ValueError(f'{field} {value}: expected at least 1')
  objectives.named(config.objective)


def init(config, key):
  """Returns a fresh state: float32 parameters, zero moments, step 0."""
  m = config.model
  L = (1 + crop_samples(config.data.crop_seconds) // audio.HOP
       ) // m.patch_frames
  keep_BK, drop_BR = model.mask_from_noise(
      jnp.zeros((1, L // config.mask.group)), L, config.mask.ratio,
      config.mask.group)
  mel_BMT = jnp.zeros((1, m.mels, L * m.patch_frames))
  variables = model.MAE(m).init(key, mel_BMT, keep_BK, drop_BR)
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=adam(config).init(variables['params']))


def make_step(config, placed):
  """Returns the jitted (state, wave_BS int16, hyper) -> (state, metrics)."""
  objective = objectives.named(config.objective)
  tx = adam(config)
  mask_key = jax.random.fold_in(jax.random.key(config.seed), 1)

  def step(state, wave_BS, h):
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
    return new, {'loss': loss, 'grad_norm': norm, 'lr': lr,
                 'param_norm': optax.tree.norm(params), **extra}

  return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))


def make_valid(config):
  """Returns the jitted (variables, wave_BS int16) -> loss, fixed masks."""
  objective = objectives.named(config.objective)

  @jax.jit
  def valid(variables, wave_BS):
    wave_BS = wave_BS.astype(jnp.float32) / 32768
    return objective(config, variables, wave_BS, jax.random.key(0),
                     train=False)[0]

  return valid


def calibrated(state, config, wave_NS):
  """Returns the state with BatchNorm's statistics set to a sample's.

  Dasheng starts them at 0 and 1 and needs hundreds of steps to find them;
  until then an untrained encoder sees raw decibels.
  """
  @jax.jit
  def moments(wave_BS):
    mel_BMT = audio.log_mel(wave_BS.astype(jnp.float32) / 32768)
    return mel_BMT.sum(2), jnp.square(mel_BMT).sum(2)

  total_M, square_M, n = 0., 0., 0
  for index, wave_BS in embed.batches(wave_NS[:1024], min(256, len(wave_NS))):
    # The last batch is filled with silence, which must not count.
    sum_M, sq_M = (np.asarray(x, np.float64)[:len(index)].sum(0)
                   for x in moments(wave_BS))
    total_M, square_M = total_M + sum_M, square_M + sq_M
    n += len(index) * (1 + wave_BS.shape[1] // audio.HOP)
  mean_M = total_M / n
  var_M = np.maximum(square_M / n - mean_M ** 2, 1e-3)
  stats = {'encoder': {'norm_mel': {
      'mean': mean_M.astype(np.float32), 'var': var_M.astype(np.float32)}}}
  placed = jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding),
      stats, state.batch_stats)
  return state.replace(batch_stats=placed)


def monitor_steps(config):
  """Returns the steps at which RankMe is read: 0, log-spaced ones, the last."""
  steps, r = config.train.steps, config.monitor
  if not steps:
    return [0]
  first = min(r.first, steps)
  spaced = np.geomspace(first, steps, max(r.readings - 1, 1))
  return sorted({0, steps, *(int(round(x)) for x in spaced)})


def measure(config, state, sample, on, valid=None):
  """Returns the label-free record of a state: RankMe, siblings, valid loss.

  Args:
    config: the run's config.
    state: a train state.
    sample: (wave_NS int16, source_N) of the fixed monitor clips.
    on: the mesh.
    valid: (function of make_valid, wave_NS) or None.
  """
  wave_NS, source_N = sample
  started = time.monotonic()
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  z_ND = embed.sharded(config.model, variables, wave_NS, on,
                       config.monitor.batch)
  fields = rank_fields(z_ND, source_N)
  if valid:
    loss_of, valid_NS = valid
    B = config.monitor.batch
    losses = []
    for start in range(0, len(valid_NS) // B * B, B):
      losses.append(float(loss_of(variables, local_rows(
          valid_NS[start:start + B], on))))
    fields['valid_loss'] = float(np.mean(losses)) if losses else None
  return {**fields, 'seconds': time.monotonic() - started}


def local_rows(wave_BS, on):
  """Places this process's share of rows that every process holds."""
  share = len(wave_BS) // jax.process_count()
  start = jax.process_index() * share
  return sharding.to_global(wave_BS[start:start + share], on)


def rank_fields(z_ND, source_N, layer='final'):
  """Returns the rank part of a record, conventions and all."""
  N, D = z_ND.shape
  out = {'n': N, 'width': D, 'layer': layer,
         'sources': len(np.unique(source_N))}
  for name, center in (('rank', False), ('rank_center', True)):
    got = rankme.estimate(z_ND, groups=source_N, center=center)
    s_K = rankme.singular_values(z_ND, center=center)
    out[name] = {**got._asdict(), 'siblings': rankme.metrics(s_K, N)}
  return out


def prepare_data(config):
  """Returns (training subset, monitor sample, valid sample) of a config."""
  a, r = config.data, config.monitor
  corpus = data.load(a.root)
  if a.sha256 and corpus.sha256 != a.sha256:
    raise ValueError(f'data.root {a.root}: manifest {corpus.sha256[:12]}, but '
                     f'this run was made for {a.sha256[:12]}')
  train, valid = data.split(corpus, a.valid_fraction, a.subset_seed)
  sample = data.sample(train, r.clips, crop_samples(r.crop_seconds), r.seed)
  valid_NS = np.zeros((0, 1), np.int16)
  if r.valid_clips and len(valid.records):
    valid_NS, _ = data.sample(
        valid, r.valid_clips, crop_samples(a.crop_seconds), r.seed)
  subset = train
  if a.hours and config.train.steps:
    subset = data.subset(train, a.hours, a.subset_seed)
  return subset, sample, valid_NS


def described(config, subset, shapes):
  """Returns what a run is in numbers: sizes, hours, FLOPs by our own count."""
  c = config.model
  L = (1 + crop_samples(config.data.crop_seconds) // audio.HOP
       ) // c.patch_frames
  K = model.kept(L, config.mask.ratio)
  return {
      'size': model.name(c), 'patches': L, 'kept': K,
      'parameters': {part: model.parameters(shapes.params[part])
                     for part in ('encoder', 'decoder')},
      'flops_per_clip': model.flops_per_clip(c, L, K),
      'hours': subset.hours, 'records': len(subset.records),
      'corpus': subset.sha256}


def start(config, on):
  """Returns (shapes, placed, fresh): the abstract state, where it lives, and
  a function that makes it there."""
  key = jax.random.key(config.seed)
  shapes = jax.eval_shape(lambda k: init(config, k), key)
  placed = sharding.place(shapes, on)
  fresh = jax.jit(lambda k: init(config, k), out_shardings=placed)
  return shapes, placed, lambda: fresh(key)


def run(workdir, config, stop=lambda: False, tell=lambda *_: None):
  """Trains (or goes on training) the run in a folder, measuring as it goes.

  Args:
    workdir: the run's folder; its config.json is this config.
    config: frozen config.
    stop: polled at every step; once True, the run is saved and left.
    tell: called with (what is being done, step, steps).

  Returns:
    the final state and the mesh.

  Raises:
    Preempted: stop() was True.
    Diverged: the loss is not finite.
    ValueError, FileNotFoundError: a config or corpus that cannot run.
  """
  workdir = pathlib.Path(workdir)
  on = sharding.mesh(config.mesh.data, config.mesh.fsdp)
  check(config, on)
  subset, sample, valid_NS = prepare_data(config)
  steps, main = config.train.steps, jax.process_index() == 0
  shapes, placed, fresh = start(config, on)
  step_fn = make_step(config, placed)
  h = hyper(config)
  valid = (make_valid(config), valid_NS) if len(valid_NS) else None
  readings = set(monitor_steps(config))
  folder = workdir / 'checkpoints'
  folder.mkdir(parents=True, exist_ok=True)
  with jax.set_mesh(on), checkpoint.manager(
      folder, config.checkpoint.every, config.checkpoint.keep) as m:
    state = checkpoint.restore(m, folder, shapes, placed)
    checkpoint.seal(folder)
    if state is None:
      state = fresh()
      if config.train.calibrate:
        state = calibrated(state, config, sample[0])
    step = int(state.step)
    if main:
      records.cut_metrics(workdir, step)
      records.write(workdir, 'run', 0, described(config, subset, shapes))
    stream = None
    if step < steps:
      stream = data.stream(
          subset, batch=config.train.batch,
          samples=crop_samples(config.data.crop_seconds), seed=config.seed,
          first_step=step, process_index=jax.process_index(),
          process_count=jax.process_count(), threads=config.data.threads,
          resident=config.data.resident)
    bar = progress.Bar(steps, step, f'{workdir.name} {model.name(config.model)}')
    pending, got, waiting, unsealed = None, None, 0., False
    with open(workdir / 'metrics.jsonl', 'a', encoding='utf-8') as metrics:
      while True:
        saving = step == steps or step % config.checkpoint.every == 0
        if got and (saving or step in readings):
          check_finite(got, step, config, subset)
        if saving:
          pending = write_out(metrics, pending, config, subset, bar)
          checkpoint.save(m, state, config, force=step == steps)
          unsealed = True
        elif unsealed and step % config.train.log_every == 0:
          m.wait_until_finished()
          if main:
            checkpoint.seal(folder)
          unsealed = False
        if step in readings and not records.path(
            workdir, 'monitor', step).exists():
          tell('measuring', step, steps)
          fields = measure(config, state, sample, on, valid)
          if main:
            records.write(workdir, 'monitor', step, fields)
          bar.note(f"RankMe {fields['rank']['value']:.2f}")
        if step == steps:
          break
        if stop():
          write_out(metrics, pending, config, subset, bar)
          checkpoint.save(m, state, config, force=True)
          m.wait_until_finished()
          checkpoint.seal(folder)
          raise Preempted(f'saved at step {step}')
        began = time.monotonic()
        wave_BS = sharding.to_global(next(stream), on)
        waiting += time.monotonic() - began
        state, got = step_fn(state, wave_BS, h)
        step += 1
        bar.step()
        tell('training', step, steps)
        write_out(metrics, pending, config, subset, bar)
        due = step % config.train.log_every == 0 or step == steps
        pending = (step, got, waiting) if due else None
        if due:
          waiting = 0.
    m.wait_until_finished()
    checkpoint.seal(folder)
    bar.close()
  return state, on


def write_out(file, pending, config, subset, bar):
  """Writes the row that waits, if there is one; returns None.

  A row waits one step, so that reading it does not hold up the next; it is
  written before its step is saved, or a resumed run would lack it.
  """
  if pending and jax.process_index() == 0:
    append(file, *pending, config, subset, bar)


def append(file, step, got, waiting, config, subset, bar):
  """Appends one row to metrics.jsonl; a loss that is not finite ends it."""
  check_finite(got, step, config, subset)
  row = {k: float(v) for k, v in jax.device_get(got).items()}
  file.write(records.line({'step': step, **row, 'waiting': waiting}))
  file.flush()
  bar.note(f"loss {row['loss']:.4f}")


def check_finite(got, step, config, subset):
  """Raises Diverged, naming the clips, unless all of a step is finite.

  The loss tells of the parameters before the step, their norm of those
  after it: nothing that is not finite is ever saved.
  """
  row = {k: float(v) for k, v in jax.device_get(got).items()}
  if not np.isfinite(list(row.values())).all():
    names = data.clip_names(
        subset, batch=config.train.batch,
        samples=crop_samples(config.data.crop_seconds), seed=config.seed,
        step=step - 1)
    raise Diverged(f"loss {row['loss']} at step {step}, gradient norm "
                   f"{row['grad_norm']}, parameter norm {row['param_norm']}, "
                   f"clips {', '.join(names[:4])} ...")
