"""A run: its checks, its data, its loop. Killed anywhere, it goes on.

Every number of a run is a function of its config alone: keys are folded with
the step, batches are a function of the step, and what happens at a step
(save, then measure) does not depend on when the process was started.

Shapes: B batch, C steps of a call, S samples, N clips, L patches.
"""

import contextlib
import pathlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from audiorank import baselines
from audiorank import checkpoint
from audiorank import checksums
from audiorank import config as config_lib
from audiorank import curve
from audiorank import data
from audiorank import flops
from audiorank import gauges
from audiorank import model
from audiorank import monitor
from audiorank import program
from audiorank import progress
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import validate


class Preempted(Exception):
  """The run was asked to stop; it is saved, and running it again goes on."""


Diverged = curve.Diverged


def check(config, on):
  """Raises ValueError for a config that cannot run, naming the field."""
  validate.fields(config, on.size)


def prepare_data(config):
  """Returns (training subset, monitor sample, valid sample) of a config."""
  parts, r = sampling.parts(config), config.monitor
  sample = data.sample(
      parts.usable, r.clips, config_lib.crop_samples(r.crop_seconds), r.seed)
  valid_NS = np.zeros((0, 1), np.int16)
  if r.valid_clips and len(parts.valid):
    valid_NS, _ = data.sample(
        parts.valid, r.valid_clips,
        config_lib.crop_samples(config.data.crop_seconds), r.seed)
  return parts.subset, sample, valid_NS


def described(config, subset, shapes):
  """Returns what a run is in numbers: sizes, hours, FLOPs by our own count."""
  c = config.model
  L = config_lib.patches(config)
  K = config_lib.visible(config)
  return {
      'size': config_lib.size_name(c.width, c.depth), 'patches': L, 'kept': K,
      'parameters': flops.parameter_counts(shapes.params),
      'flops_per_clip': program.flops(config),
      'hours': subset.hours, 'records': len(subset),
      'corpus': subset.sha256, 'baseline': baselines.untrained_id(config)}


def run(workdir, config, stop=lambda step: False, tell=lambda *_, **__: None):
  """Trains (or goes on training) the run in a folder, measuring as it goes.

  Args:
    workdir: the run's folder; its config.json is this config.
    config: frozen config.
    stop: polled with every step's number; once True, the run is saved and
      left. Of several processes all must get the same answer.
    tell: called with (what is being done, step, steps); force=True says that
      it must not be passed over.

  Returns:
    the final state and the mesh.

  Raises:
    Preempted: stop() was True.
    Diverged: the loss is not finite.
    ValueError, FileNotFoundError: a config or corpus that cannot run.
    OSError: a checkpoint, record or row cannot be written.
  """
  workdir = pathlib.Path(workdir)
  on = sharding.mesh(config.mesh.data, config.mesh.fsdp)
  check(config, on)
  subset, sample, valid_NS = prepare_data(config)
  steps, main = config.train.steps, jax.process_index() == 0
  shapes, placed, init, advance, advance_more = program.programs(config, on)
  h = program.hyper(config)
  valid = (monitor.make_valid(config), valid_NS) if len(valid_NS) else None
  readings = set(monitor.steps(config))
  folder = workdir / 'checkpoints'
  folder.mkdir(parents=True, exist_ok=True)
  with jax.set_mesh(on), checkpoint.manager(
      folder, config.checkpoint.every, config.checkpoint.keep) as m:
    state = checkpoint.restore(m, folder, shapes, placed)
    checksums.seal(folder)
    if state is None:
      state = init(h)
      if config.train.calibrate:
        state = program.calibrated(config, state, sample[0])
    step = int(state.step)
    if main:
      records.cut_metrics(workdir, step)
      records.write(workdir, 'run', 0, {
          **described(config, subset, shapes),
          'skipped': curve.skipped(workdir)})
    stream = None
    if step < steps:
      stream = data.stream(
          subset, batch=config.train.batch,
          samples=config_lib.crop_samples(config.data.crop_seconds),
          seed=config.data.seed, first_step=step,
          process_index=jax.process_index(),
          process_count=jax.process_count(), threads=config.data.threads,
          resident=config.data.resident)
    bar = progress.Bar(steps, step,
                       f'{workdir.name} {model.name(config.model)}')
    unsealed, leaving = False, False
    # Of several processes none can leave a reading that the others share.
    alone = jax.process_count() == 1
    gauge = gauges.Gauge(workdir.name, config.train.batch,
                         program.flops(config), on.size, step)
    with contextlib.closing(
        curve.Curve(workdir, config, subset, step, main)) as rows:
      while True:
        saving = step == steps or step % config.checkpoint.every == 0
        if saving or step in readings:
          noted(bar, rows.flush())
        if saving:
          with gauge.aside():
            checkpoint.save(m, state, config, force=step == steps)
          unsealed = True
        elif unsealed and step % config.train.log_every == 0:
          with gauge.aside():
            checkpoint.wait(m)
            if main:
              checksums.seal(folder)
          unsealed = False
        if step in readings:
          tell('measuring', step, steps, force=True)
          with gauge.aside():
            fields = read(workdir, config, state, step, sample, on, valid,
                          lambda: alone and stop(step))
          leaving = fields is None
          if not leaving:
            rows.reading(step, fields)
            bar.note(f"RankMe {fields['rank']['value'] or 0:.2f}")
        if step == steps and not leaving:
          break
        if leaving or stop(step):
          rows.flush()
          checkpoint.save(m, state, config, force=True)
          checkpoint.wait(m)
          checksums.seal(folder)
          raise Preempted(f'saved at step {step}')
        ahead = min(config.train.call, undisturbed(config, step, readings))
        if ahead < config.train.call or ahead == 1:
          with gauge.waiting():
            wave_BS = sharding.to_global(next(stream), on)
          state, got = advance(state, wave_BS, h)
          places = (None,)
        else:
          with gauge.waiting():
            wave_CBS = sharding.to_global(
                np.stack([next(stream) for _ in range(ahead)]), on, axis=1)
          state, got = advance_more(state, wave_CBS, h)
          places = range(ahead)
        for at in places:
          step += 1
          noted(bar, rows.add(step, got, gauge.row, at))
        bar.step(len(places))
        tell('training', step, steps)
    checkpoint.wait(m)
    checksums.seal(folder)
    bar.close()
  return state, on


def undisturbed(config, step, readings):
  """Returns the steps up to the next at which something is to be done."""
  t, p = config.train, config.checkpoint
  return min(t.steps - step, t.log_every - step % t.log_every,
             p.every - step % p.every,
             *(r - step for r in readings if r > step))


def read(workdir, config, state, step, sample, on, valid, leave):
  """Returns the record of a reading, measured and written if it is not there;
  None where leave() was True on the way.

  Every process must come to the same answer on what is there: the first
  one's.
  """
  path = records.path(workdir, 'monitor', step)
  known = path.exists()
  if jax.process_count() > 1:
    known = bool(multihost_utils.broadcast_one_to_all(np.int32(known)))
  if known:
    return records.read_json(path)
  further = (sampling.further(config) if step in (0, config.train.steps)
             else ())
  fields = monitor.measure(config, state, sample, on, valid, leave, further)
  if fields is None:
    return None
  before = [r for r in records.read(workdir, 'monitor') if r['step'] < step]
  fields['alarms'] = monitor.alarms(fields, before)
  if jax.process_index() == 0:
    records.write(workdir, 'monitor', step, fields)
  said = {a.split(':')[0] for a in before[-1]['alarms']} if before else ()
  for alarm in fields['alarms']:
    if alarm.split(':')[0] not in said:
      logging.warning('%s, step %d: %s', workdir.name, step, alarm)
  return fields


def noted(bar, row):
  """Shows the loss of a row that was written, if one was."""
  if row:
    bar.note(f"loss {row['loss']:.4f}")
