"""Training: one loop for one run on a mesh and for several in one program.

All numbers of a run are a function of its config: random keys are folded with
the step, batches are a function of the step, and what happens at a step does
not depend on when the process started or which runs train beside it.

Shapes: B batch, C steps of a call, K runs, S samples.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import orbax.checkpoint as ocp

from audiorank import baselines
from audiorank import branch
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import data
from audiorank import evals
from audiorank import feed
from audiorank import files
from audiorank import flops
from audiorank import metrics
from audiorank import progress
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import train_state
from audiorank import validate

Config = config_lib.Config

# Fields in which the runs of one program may differ: arguments of the program,
# and the choice of clips. All other fields must be equal.
VARIES = ('experiment', 'seed', 'train.init_scale', 'opt.lr', 'opt.warmup',
          'opt.final_lr_ratio', 'opt.weight_decay', 'opt.clip', 'opt.schedule',
          'opt.decay', 'data.seed',
          'data.hours', 'data.category')

Diverged = metrics.Diverged


class Preempted(Exception):
  """The runs were asked to stop. They are saved; running again resumes them.

  `diverged` has the runs that diverged, as `fit` returns them.
  """

  def __init__(self, message: str, diverged: dict[pathlib.Path, Diverged]):
    super().__init__(message)
    self.diverged = diverged


def check(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError for a config that cannot run, naming the field."""
  validate.fields(config, mesh.size)


def group_key(config: Config) -> str:
  """Returns a digest that is equal for runs that can share a program."""
  tree = config_lib.plain(config)
  for field in VARIES:
    node, name = config_lib.parent(tree, field)
    del node[name]
  return files.digest(tree)


def describe(config: Config, subset: data.Corpus,
             shapes: train_state.TrainState) -> dict[str, Any]:
  """Returns the numbers of a run's record: sizes, hours, FLOPs (our count)."""
  size = config_lib.size_name(config.model.width, config.model.depth)
  return {
      'size': size, 'patches': config_lib.patches(config),
      'kept': config_lib.visible(config),
      'parameters': flops.parameter_counts(shapes.params),
      'flops_per_clip': train_state.flops(config),
      'hours': subset.hours, 'records': len(subset),
      # The baseline of a run is looked up by this id, not by its size.
      'corpus': subset.sha256, 'baseline': baselines.untrained_id(config)}


def fit(workdirs: Sequence[str | os.PathLike[str]],
        configs: Sequence[Config],
        stop: Callable[[int], bool] = lambda step: False,
        status: progress.Status | None = None
        ) -> dict[pathlib.Path, Diverged]:
  """Trains or resumes one run on its mesh, or several in one program.

  Runs of one `group_key` share a program. Each has its own folder, checkpoints,
  evaluations and metrics, and may be resumed alone or beside other runs, with
  the same numbers up to the rounding of float32.

  Args:
    workdirs: the runs' folders; each config.json is the run's config.
    configs: frozen configs, of one `group_key`.
    stop: called with the step before every call of the program; if True, the
      runs are saved and Preempted is raised. All processes must get the same
      answer.
    status: gets `busy` when ending the process would lose steps, `idle` when
      all is saved, and `report` for display.

  Returns:
    {workdir: Diverged} of the runs that diverged; the others are trained.

  Raises:
    Preempted: stop() was True.
    ValueError, FileNotFoundError: configs that cannot train, or not together.
    OSError: a checkpoint, record or row cannot be written.
    jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED if the runs do not fit into
      memory together. Fewer of them can resume from what was saved.
  """
  runs, _ = _fit(workdirs, configs, stop, status)
  return diverged(runs)


def run(workdir: str | os.PathLike[str], config: Config,
        stop: Callable[[int], bool] = lambda step: False,
        status: progress.Status | None = None
        ) -> tuple[train_state.TrainState, jax.sharding.Mesh]:
  """Trains or resumes one run; returns its final state and the mesh.

  Raises:
    Diverged: the loss is not finite; and as `fit`.
  """
  (one,), stepper = _fit([workdir], [config], stop, status)
  # A caller of one run expects an error, one of several a list of those that
  # failed.
  if one.diverged:
    raise one.diverged
  return stepper.state(0), stepper.mesh


@dataclasses.dataclass
class Run:
  """One run of a program: its config, its clips and its files."""
  workdir: pathlib.Path
  config: Config
  samples: sampling.Samples
  manager: ocp.CheckpointManager
  writer: metrics.MetricWriter
  diverged: Diverged | None = None

  @property
  def folder(self) -> pathlib.Path:
    return self.workdir / 'checkpoints'


class Alone:
  """Takes the steps of one run, on a whole mesh and all processes.

  Args:
    runs: the only run.
    states: its state, placed on the mesh.
    mesh: of the run.
    step: steps done.
  """

  def __init__(self, runs: Sequence[Run],
               states: Sequence[train_state.TrainState],
               mesh: jax.sharding.Mesh, step: int):
    run, = runs
    self._state, = states
    self.mesh, self.devices = mesh, mesh.size
    self._programs = train_state.programs(run.config, mesh)
    self._hparams = train_state.make_hparams(run.config)
    # Batches are split over the mesh; a corpus on the devices is whole on each.
    self.feed = feed.Feed(
        [run.config], [run.samples], step,
        lambda rows, axis: sharding.to_global(rows, mesh, axis),
        sharding.replicated(mesh))

  def step(self, batches: Any, count: int) -> dict[str, jax.Array]:
    """Takes `count` steps; returns {name: scalar, or vector_C}."""
    program = self._programs.step
    if count > 1:
      program = self._programs.steps
    # Shardings in the model are written as axis names, which need a mesh.
    with jax.set_mesh(self.mesh):
      self._state, numbers = program(self._state, batches, self._hparams,
                                     self.feed.audio_RW)
    return numbers

  def state(self, index: int) -> train_state.TrainState:
    """Returns the state of the run."""
    del index
    return self._state


class Packed:
  """Takes the steps of K runs in one vmapped program.

  The runs are distributed over a mesh axis 'sweep', without communication. A
  run that has diverged goes on with the others, but is no longer saved.

  Args:
    runs: the runs.
    states: of the runs, each on one device.
    mesh: of one device, on which runs are evaluated.
    step: steps done.
  """

  def __init__(self, runs: Sequence[Run],
               states: Sequence[train_state.TrainState],
               mesh: jax.sharding.Mesh, step: int):
    K = len(runs)
    # Every device must get the same number of runs.
    sweep = jax.make_mesh((math.gcd(K, jax.device_count()),), ('sweep',),
                          axis_types=(AxisType.Auto,))
    self.mesh, self.devices = mesh, sweep.size
    spread = NamedSharding(sweep, P('sweep'))

    def stack(trees):
      return jax.device_put(
          jax.tree.map(lambda *leaves: np.stack(leaves), *trees), spread)

    # By way of the host: the states lie on one device, the stack on all.
    self._states = stack([jax.device_get(state) for state in states])
    self._hparams = stack([train_state.make_hparams(r.config) for r in runs])
    self.feed = feed.Feed([r.config for r in runs], [r.samples for r in runs],
                          step, self._place, NamedSharding(sweep, P()))
    self._sweep = sweep
    # Hyper-parameters are stacked too, so one program serves all learning rates
    # and seeds.
    self._programs = train_state.packed_programs(
        runs[0].config, spread, self.feed.shared)

  def _place(self, rows, axis):
    # Runs with equal batches get one copy; others each get their own.
    spec = P(*[None] * axis, 'sweep')
    if self.feed.shared:
      spec = P()
    return jax.device_put(rows, NamedSharding(self._sweep, spec))

  def step(self, batches: Any, count: int) -> dict[str, jax.Array]:
    """Takes `count` steps; returns {name: vector_K, or matrix_CK}."""
    program = self._programs.step
    if count > 1:
      program = self._programs.steps
    self._states, numbers = program(self._states, batches, self._hparams,
                                    self.feed.audio_RW)
    return numbers

  def state(self, index: int) -> train_state.TrainState:
    """Returns the state of one run, on one device."""
    # Indexing the stacked arrays would gather them from all devices.
    def own(leaf_K):
      for shard in leaf_K.addressable_shards:
        first, last, _ = shard.index[0].indices(len(leaf_K))
        if first <= index < last:
          return shard.data[index - first]
      raise AssertionError(f'run {index} is on no device of this process')

    return jax.device_put(jax.tree.map(own, self._states),
                          sharding.replicated(self.mesh))


class Outputs:
  """The numbers of the steps of a call, fetched from the devices once.

  Args:
    arrays: {name: array} on devices.
    steps, runs: C and K.
  """

  def __init__(self, arrays: dict[str, jax.Array], steps: int, runs: int):
    self._arrays: Mapping[str, jax.Array | np.ndarray] = arrays
    self._shape, self._fetched = (steps, runs), False

  def at(self, step: int, run: int) -> dict[str, float]:
    """Returns the numbers of one step of one run."""
    # Not before a number is asked for: until then the devices can work ahead.
    if not self._fetched:
      self._arrays = {
          name: np.reshape(array, self._shape)
          for name, array in jax.device_get(self._arrays).items()}
      self._fetched = True
    return {name: float(array_CK[step, run])
            for name, array_CK in self._arrays.items()}


def _fit(workdirs, configs, stop, status):
  """Does what `fit` does; returns (Runs, the stepper with their states)."""
  workdirs, first = [files.path(w) for w in workdirs], configs[0]
  status = status or progress.Status()
  mesh = sharding.mesh(first.mesh.data, first.mesh.fsdp)
  # Packed runs have a device each, whatever mesh their config names.
  if len(configs) > 1:
    mesh = sharding.mesh(1, 1)
    check_group(workdirs, configs)
  for config in configs:
    check(config, mesh)
  # The clips to train on, and the fixed clips of the evaluations.
  samples = [sampling.samples(config) for config in configs]
  with contextlib.ExitStack() as stack:
    runs, states = open_runs(stack, workdirs, configs, samples, mesh)
    step = int(states[0].step)
    kind: type[Alone] | type[Packed] = Alone
    if len(runs) > 1:
      kind = Packed
    stepper = kind(runs, states, mesh, step)
    # Closed in reverse order: the feed before the writers and checkpoints of
    # `open_runs`.
    stack.callback(stepper.feed.close)
    # Steps free the memory of the states before them, unless named here.
    del states
    # Only for the progress bar and the log.
    name = workdirs[0].name
    if len(runs) > 1:
      name += f' and {len(runs) - 1} others'
    size = config_lib.size_name(first.model.width, first.model.depth)
    bar = progress.Bar(first.train.steps, step, f'{name} {size}')
    stack.callback(bar.close)
    timer = metrics.Throughput(
        name, first.train.batch,
        {part: len(runs) * n
         for part, n in train_state.flops(first).items()},
        stepper.devices, step)
    train_loop(runs, stepper, step, stop, status, bar, timer)
  return runs, stepper


def check_group(workdirs: Sequence[pathlib.Path],
                configs: Sequence[Config]) -> None:
  """Raises ValueError for configs that cannot train in one program."""
  for workdir, config in zip(workdirs, configs):
    if group_key(config) != group_key(configs[0]):
      raise ValueError(f'{workdir}: cannot train together with {workdirs[0]}: '
                       f'expected to differ in {", ".join(VARIES)} alone')
  if jax.process_count() > 1:
    raise ValueError('several runs in one program: expected one process')


def open_runs(stack: contextlib.ExitStack, workdirs: Sequence[pathlib.Path],
              configs: Sequence[Config],
              samples: Sequence[sampling.Samples], mesh: jax.sharding.Mesh
              ) -> tuple[list[Run], list[train_state.TrainState]]:
  """Opens the folders of runs; returns (Runs, their states).

  Args:
    stack: closes what is opened here.
    workdirs, configs, samples: of the runs.
    mesh: on which the states are placed.
  """
  main = jax.process_index() == 0
  folders = [workdir / 'checkpoints' for workdir in workdirs]
  for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
  # Before any checkpoint manager caches which steps there are.
  if main:
    branch.begin_together(workdirs, configs)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('branch')
  if len(folders) > 1:
    common_step(folders)
  runs, states = [], []
  for workdir, folder, config, sample in zip(
      workdirs, folders, configs, samples):
    manager = stack.enter_context(checkpoint.open_manager(
        folder, config.checkpoint.save_every, config.checkpoint.keep_every))
    # Asked before `seal` gives the last save its checksums.
    unverified = checkpoint.unsealed(folder)
    state = first_state(config, manager, folder, sample, mesh)
    step = int(state.step)
    checkpoint.seal(folder)
    # Rows after the restored step would otherwise be there twice.
    if main:
      records.cut_metrics(workdir, step)
      records.write(workdir, 'run', 0, {
          **describe(config, sample.subset, state),
          'skipped': metrics.skipped_steps(workdir),
          'unverified': unverified_steps(workdir, unverified)})
    writer = stack.enter_context(contextlib.closing(metrics.MetricWriter(
        workdir, config, sample.subset, step, main)))
    runs.append(Run(workdir, config, sample, manager, writer))
    states.append(state)
  return runs, states


def unverified_steps(workdir: pathlib.Path, new: Sequence[int]) -> list[int]:
  """Returns the steps of a run that went without checksums for a time.

  Args:
    workdir: the run's folder; its record names those of earlier starts.
    new: steps that have none now.
  """
  try:
    earlier = records.read_record(records.path(workdir, 'run', 0))['unverified']
    return sorted({*earlier, *new})
  # No record yet, a damaged one, or one of an older version.
  except (OSError, ValueError, KeyError, TypeError):
    return list(new)


def common_step(folders: Sequence[pathlib.Path]) -> int:
  """Returns the step from which packed runs go on; -1: from the start.

  A process that died between the saves of two runs leaves one run a save
  ahead. That save is deleted; its run gets there again.

  Raises:
    ValueError: a run is further ahead, so that work would be lost.
  """
  newest = {folder: checkpoint.newest(folder) for folder in folders}
  saved = [step for step in newest.values() if step is not None]
  least = -1
  # A run without any save starts afresh, so all have to.
  if len(saved) == len(newest):
    least = min(saved)
  for folder, step in newest.items():
    if step is None or step == least:
      continue
    # One save of difference comes from a death between two saves; more is
    # another history.
    if least not in checkpoint.steps(folder)[-2:]:
      others = str(least)
      if least < 0:
        others = 'the start'
      raise ValueError(f'{folder}: at step {step}, others at {others}: '
                       'expected runs at one step')
    checkpoint.rewind(folder, least)
  return least


def first_state(config: Config, manager: ocp.CheckpointManager,
                folder: pathlib.Path, samples: sampling.Samples,
                mesh: jax.sharding.Mesh) -> train_state.TrainState:
  """Returns the newest saved state of a run, or a fresh one."""
  with jax.set_mesh(mesh):
    programs = train_state.programs(config, mesh)
    state = checkpoint.restore(manager, folder, programs.shapes,
                               programs.shardings)
    if state is None:
      # Nothing to restore: the run starts here.
      state = programs.init(train_state.make_hparams(config))
      if config.train.calibrate_batch_norm:
        state = train_state.with_statistics(state, *mel_statistics(
            config.model.frontend, config.model.mels, samples.monitor))
  return state


@functools.lru_cache(4)
def mel_statistics(front, mels, sample):
  """Returns train_state.mel_statistics; cached for runs of one sample."""
  return train_state.mel_statistics(front, mels, sample.wave_NS)


def train_loop(runs: Sequence[Run], stepper: Alone | Packed, step: int,
               stop: Callable[[int], bool], status: progress.Status,
               bar: progress.Bar, timer: metrics.Throughput) -> None:
  """Takes all remaining steps; see `fit`."""
  config, last = runs[0].config, runs[0].config.train.steps
  eval_steps = set(evals.eval_steps(config))
  unsealed = False
  # The order is save, evaluate, stop, step: then a run that is killed anywhere
  # ends with the same numbers.
  while live(runs):
    left = False
    # Save first: an evaluation that dies is repeated from this very state.
    if step == last or step % config.checkpoint.save_every == 0:
      with timer.pause():
        save(runs, stepper, bar, force=step == last)
      unsealed = True
    elif unsealed and step % config.train.log_every == 0:
      # The save was written in the background, during the steps since.
      with timer.pause():
        seal(runs)
      unsealed = False
    if step in eval_steps:
      status.report('evaluating', step, last, force=True)
      with timer.pause():
        left = not evaluate(runs, stepper, step, stop, bar)
    # After its evaluation, so that the last step has a record too.
    if step == last and not left:
      break
    if left or stop(step):
      save(runs, stepper, bar, force=True)
      seal(runs)
      raise Preempted(f'saved at step {step}', diverged(runs))
    count = call_length(config, step, eval_steps)
    # Time spent waiting for data is reported apart from the steps.
    with timer.data_wait():
      batches = stepper.feed.next(count)
    outputs = Outputs(stepper.step(batches, count), count, len(runs))
    # From here on ending the process would lose steps.
    status.busy()
    # One row per step, although the steps of a call ran together.
    for index in range(count):
      step += 1
      row = None
      if step % config.train.log_every == 0 or step == last:
        row = timer.row(step)
      each(runs, lambda k, run: show_loss(bar, run.writer.add_step(
          step, functools.partial(outputs.at, index, k), row)))
    bar.step(count)
    status.report('training', step, last)
  # The last save is still being written.
  seal(runs)
  status.idle()


def call_length(config: Config, step: int,
                eval_steps: set[int]) -> int:
  """Returns the number of steps of the next call: train.steps_per_call or 1.

  It is 1 if a row, a save, an evaluation or the end is fewer steps away.
  """
  train, every = config.train, config.checkpoint.save_every
  # Rows, saves and evaluations happen between calls, so a call must not step
  # over one.
  undisturbed = min(
      train.steps - step, train.log_every - step % train.log_every,
      every - step % every, *(s - step for s in eval_steps if s > step))
  # 1 rather than what is left: any other length would compile one more program.
  if train.steps_per_call > undisturbed:
    return 1
  return train.steps_per_call


def diverged(runs: Sequence[Run]) -> dict[pathlib.Path, Diverged]:
  """Returns {workdir: Diverged} of the runs that diverged."""
  return {run.workdir: run.diverged for run in runs if run.diverged}


def live(runs: Sequence[Run]) -> list[tuple[int, Run]]:
  """Returns (index, run) of the runs that have not diverged."""
  return [(k, run) for k, run in enumerate(runs) if run.diverged is None]


def each(runs: Sequence[Run], function: Callable[[int, Run], None]) -> None:
  """Calls a function with every live run; marks those that diverge."""
  for k, run in live(runs):
    try:
      function(k, run)
    except Diverged as error:
      run.diverged = error
      logging.warning('%s: %s', run.workdir.name, error)


def save(runs: Sequence[Run], stepper: Alone | Packed, bar: progress.Bar,
         force: bool) -> None:
  """Saves the runs of which all steps so far were finite."""
  # Flushing looks at the losses that are still on the devices, and marks runs
  # that have diverged: their states must not be saved.
  each(runs, lambda _, run: show_loss(bar, run.writer.flush()))
  for k, run in live(runs):
    run.writer.store()
    checkpoint.save(run.manager, stepper.state(k), run.config, force)


def seal(runs: Sequence[Run]) -> None:
  """Waits until saves are on disk, then writes their checksums."""
  for _, run in live(runs):
    checkpoint.wait(run.manager)
    checkpoint.seal(run.folder)


def evaluate(runs: Sequence[Run], stepper: Alone | Packed, step: int,
             stop: Callable[[int], bool], bar: progress.Bar) -> bool:
  """Evaluates every live run; returns False if asked to stop."""
  # A run that has diverged is not evaluated.
  each(runs, lambda _, run: show_loss(bar, run.writer.flush()))
  # Several processes evaluate together: none of them may stop in between.
  interruptible = jax.process_count() == 1
  for k, run in live(runs):
    checkpoint.check_there(run.manager)
    fields = evals.evaluate_once(
        run.workdir, run.config, stepper.state(k), step, run.samples,
        stepper.mesh, lambda: interruptible and stop(step))
    if fields is None:
      return False
    run.writer.add_evaluation(step, fields)
    bar.note(f"RankMe {fields['rank']['value'] or 0:.2f}")
  return True


def show_loss(bar: progress.Bar, row: metrics.Row | None) -> None:
  """Shows the loss of a row, if there is one."""
  if row:
    bar.note(f"loss {row['loss']:.4f}")
