"""Several runs of one shape in one program: small models fill a large chip.

Runs that differ only in what the compiled step takes as arguments (seed,
rates, initial scale) see the same batches, so one vmapped step trains them
all. They are spread over the devices of a 'sweep' axis, with no traffic
between them. Each keeps its own folder, checkpoints, readings and metrics, and
may be gone on with alone, or in other company, at any time.

Shapes: K runs, B batch, S samples.
"""

import contextlib
import math
import pathlib

from absl import logging
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np

from audiorank import checkpoint
from audiorank import checksums
from audiorank import curve
from audiorank import data
from audiorank import gauges
from audiorank import monitor
from audiorank import objectives
from audiorank import program
from audiorank import progress
from audiorank import records
from audiorank import sharding
from audiorank import train

# What runs of one program may differ in; all else must be equal.
VARIES = ('experiment', 'seed', 'train.init_scale', 'opt.lr', 'opt.warmup',
          'opt.final', 'opt.weight_decay', 'opt.clip')


def company(config):
  """Returns a digest that is equal for configs that can train together."""
  tree = records.plain(config)
  for name in VARIES:
    *parents, last = name.split('.')
    node = tree
    for parent in parents:
      node = node[parent]
    del node[last]
  return records.digest(tree)


def common_step(folders):
  """Returns the step that checkpoint folders share, after going back to it.

  A process that died between the saves of two runs leaves one a save ahead:
  that save is undone (its run comes to it again). -1: none has any.

  Raises:
    ValueError: a run that is further ahead, which would lose work.
  """
  newest = {f: checkpoint.newest(f) for f in folders}
  least = min(-1 if step is None else step for step in newest.values())
  for folder, step in newest.items():
    if step is None or step == least:
      continue
    held = checksums.steps(folder)[-2:]
    if least not in held:
      raise ValueError(f'{folder}: at step {step}, others at '
                       f'{"the start" if least < 0 else least}: expected runs '
                       'at one step')
    checkpoint.rewind(folder, least)
  return least


def run(workdirs, configs, stop=lambda step: False, tell=lambda *_, **__: None):
  """Trains several runs, or goes on training them, in one program.

  Args:
    workdirs: their folders.
    configs: their frozen configs, of one `company`.
    stop: polled with every step's number; once True all are saved and left.
    tell: called with (what is being done, step, steps); force=True says that
      it must not be passed over.

  Returns:
    {workdir: curve.Diverged} of the runs that diverged; the others are
    trained.

  Raises:
    Preempted: stop() was True.
    ValueError: configs that cannot train together, or cannot train at all.
  """
  workdirs = [pathlib.Path(w) for w in workdirs]
  first = configs[0]
  for workdir, config in zip(workdirs, configs):
    if company(config) != company(first):
      raise ValueError(f'{workdir}: cannot train together with {workdirs[0]}: '
                       f'expected to differ in {", ".join(VARIES)} alone')
  if jax.process_count() > 1:
    raise ValueError('several runs in one program: expected one process')
  K, steps = len(configs), first.train.steps
  alone = sharding.mesh(1, 1)
  over = jax.make_mesh((math.gcd(K, jax.device_count()),), ('sweep',),
                       axis_types=(AxisType.Auto,))
  for config in configs:
    train.check(config, alone)
  subset, sample, valid_NS = train.prepare_data(first)
  valid = (monitor.make_valid(first), valid_NS) if len(valid_NS) else None
  readings = set(monitor.steps(first))
  folders = [w / 'checkpoints' for w in workdirs]
  for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
  step = common_step(folders)
  lost = {}
  with contextlib.ExitStack() as stack:
    savers = [stack.enter_context(checkpoint.manager(
        f, first.checkpoint.every, first.checkpoint.keep)) for f in folders]
    started = [one(config, saver, folder, sample, alone, step) for
               config, saver, folder in zip(configs, savers, folders)]
    step = max(step, 0)
    for workdir, config, (_, shapes) in zip(workdirs, configs, started):
      records.cut_metrics(workdir, step)
      records.write(workdir, 'run', 0, {
          **train.described(config, subset, shapes),
          'skipped': curve.skipped(workdir)})
    rows = [stack.enter_context(contextlib.closing(
        curve.Curve(workdir, config, subset, step, True)))
            for workdir, config in zip(workdirs, configs)]
    spread = NamedSharding(over, P('sweep'))
    states = jax.device_put(
        jax.tree.map(lambda *x: np.stack(x),
                     *(jax.device_get(s) for s, _ in started)), spread)
    h = jax.tree.map(lambda *x: np.stack(x),
                     *(program.hyper(c) for c in configs))
    h = jax.device_put(h, spread)
    advance = program.packed_step(
        program.static_config(first), objectives.named(first.objective),
        spread)
    stream = None
    if step < steps:
      stream = data.stream(
          subset, batch=first.train.batch,
          samples=program.crop_samples(first.data.crop_seconds),
          seed=first.data.seed, first_step=step, process_index=0,
          process_count=1, threads=first.data.threads,
          resident=first.data.resident)
    flops = {part: K * n for part, n in program.flops(first).items()}
    name = f'{workdirs[0].name} and {K - 1} others'
    bar = progress.Bar(steps, step, name)
    gauge = gauges.Gauge(name, first.train.batch, flops, over.size, step)
    whole, held = NamedSharding(over, P()), None
    unsealed, leaving = False, False

    def live():
      return [k for k in range(K) if workdirs[k] not in lost]

    def each(tell_of):
      """Calls a function of every run's curve; notes those that diverged."""
      for k in live():
        try:
          tell_of(k)
        except curve.Diverged as error:
          lost[workdirs[k]] = error
          logging.warning('%s: %s', workdirs[k].name, error)

    def take():
      """Hands the numbers of the step before to the curves, in one transfer."""
      if held is None:
        return
      at, got = held[0], jax.device_get(held[1])
      due = at % first.train.log_every == 0 or at == steps
      speed = gauge.row(at) if due else None
      each(lambda k: rows[k].add(at, {n: v[k] for n, v in got.items()},
                                 lambda _: speed))

    def save(step, force):
      take()
      each(lambda k: rows[k].flush())
      for k in live():
        checkpoint.save(savers[k], part(states, k, alone), configs[k], force)

    def settle():
      for k in live():
        checkpoint.wait(savers[k])
        checksums.seal(folders[k])

    while live():
      saving = step == steps or step % first.checkpoint.every == 0
      if saving:
        with gauge.aside():
          save(step, step == steps)
        held, unsealed = None, True
      elif unsealed and step % first.train.log_every == 0:
        with gauge.aside():
          settle()
        unsealed = False
      if step in readings:
        take()
        held = None
        each(lambda k: rows[k].flush())
        tell('measuring', step, steps, force=True)
        with gauge.aside():
          for k in live():
            state = part(states, k, alone)
            with jax.set_mesh(alone):
              fields = train.read(workdirs[k], configs[k], state, step, sample,
                                  alone, valid, lambda: stop(step))
            leaving = fields is None
            if leaving:
              break
            rows[k].reading(step, fields)
      if step == steps and not leaving:
        break
      if leaving or stop(step):
        save(step, True)
        settle()
        raise train.Preempted(f'saved at step {step}')
      with gauge.waiting():
        wave_BS = jax.device_put(next(stream), whole)
      states, got = advance(states, wave_BS, h)
      step += 1
      bar.step()
      tell('training', step, steps)
      take()
      held = step, got
    settle()
    bar.close()
  return lost


def one(config, saver, folder, sample, alone, step):
  """Returns (state, shapes) of one run on one device, restored or fresh."""
  with jax.set_mesh(alone):
    shapes, placed, init, *_ = program.programs(config, alone)
    state = (checkpoint.restore(saver, folder, shapes, placed) if step >= 0
             else None)
    if state is None:
      state = init(program.hyper(config))
      if config.train.calibrate:
        state = program.calibrated(config, state, sample[0])
  return state, shapes


def part(states, k, alone):
  """Returns the state of run k, on one device."""
  def own(x_K):
    shard, = (s for s in x_K.addressable_shards
              if s.index[0].start is None or
              s.index[0].start <= k < s.index[0].stop)
    return shard.data[k - (shard.index[0].start or 0)]

  return jax.device_put(jax.tree.map(own, states), sharding.replicated(alone))
