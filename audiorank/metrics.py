"""What a run writes while it trains: metrics.jsonl, throughput, trackers.

A step's numbers are read when the next one is on its way, so that reading
them holds nothing up, and before they are saved, or a resumed run would lack
them. Nothing that is not finite is ever saved.

Trackers show the curve elsewhere too; by default there is none. One is three
functions: log(step, row) takes the numbers of a step, summary(row) those of
the whole run, finish() ends it. What it raises is warned of once and never
stops a run; one that fails FAILURES times in a row is dropped.

  tensorboard   tensorboardX, into <workdir>/tensorboard
  wandb         Weights & Biases; WANDB_MODE=offline writes to <workdir>/wandb
  trackio       a local SQLite file, no account
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
import os
import pathlib
import resource
import sys
import time
from typing import Any
from typing import NamedTuple

from absl import logging
import jax

from audiorank import config as config_lib
from audiorank import data
from audiorank import files
from audiorank import flops as flops_lib
from audiorank import records

Config = config_lib.Config

WAIT_SHARE = .05  # Of the time, waited for input: more deserves a warning,
WAIT_SECONDS = 1.  # if it is more than this.
PROJECT = 'audiorank'  # Of wandb and trackio.
FAILURES = 10  # Errors in a row after which a tracker is dropped.

Row = dict[str, Any]  # One line of metrics.jsonl.
Numbers = Mapping[str, float]


class Diverged(Exception):
  """Loss, gradient or parameters are not finite.

  The message names step and clips; `about` has them as JSON material.
  """

  def __init__(self, message: str, about: dict[str, Any]):
    super().__init__(message)
    self.about = about


class MetricWriter:
  """Writes the metrics of one run, from a step on, and checks them.

  Args:
    workdir: the run's folder.
    config: frozen config.
    subset: the corpus trained on, for the names of clips.
    step: the step that the run starts from.
    main: whether this process writes; all check.
  """

  def __init__(self, workdir: pathlib.Path, config: Config,
               subset: data.Corpus, step: int, main: bool):
    self.workdir, self.config, self.subset = workdir, config, subset
    self.main = main
    self.skipped = skipped_steps(workdir)
    # Steps not looked at yet, as (step, function that fetches its numbers).
    self._unchecked: list[tuple[int, Callable[[], Numbers]]] = []
    self._pending: tuple[int, Callable[[], Numbers], Numbers] | None = None
    self._latest: Row = {}
    if main:
      self._lines = files.Lines(workdir / 'metrics.jsonl')
      self._trackers = MultiTracker(workdir, config, step)

  def add_step(self, step: int, fetch: Callable[[], Numbers],
               throughput: Numbers | None) -> Row | None:
    """Takes the numbers of one step, and writes the row that waited.

    Args:
      step: the number of steps done.
      fetch: returns the step's numbers {name: number}, from their devices.
      throughput: of `Throughput.row` where the step has a row of its own.

    Returns:
      the row that was written, or None.

    Raises:
      Diverged: a step up to the row is not finite.
    """
    row = self._write_pending()
    self._unchecked.append((step, fetch))
    if throughput is not None:
      self._pending = step, fetch, throughput
    return row

  def flush(self) -> Row | None:
    """Checks every step so far and writes what waits: before a save."""
    row = self._write_pending()
    if self._unchecked:
      self._check_finite(self._unchecked[-1][0])
    return row

  def store(self) -> None:
    """Makes sure that every row so far outlives this process."""
    if self.main:
      self._lines.store()

  def add_evaluation(self, step: int, fields: Mapping[str, Any]) -> None:
    """Writes the row of an evaluation, of its record."""
    self._write_row({
        'step': step, 'rank': fields['rank']['value'],
        'rank_center': fields['rank_center']['value'],
        'valid_loss': fields.get('valid_loss'), 'alarms': fields['alarms']})

  def close(self) -> None:
    """Ends the file and the trackers."""
    if self.main:
      self._lines.store()
      self._lines.close()
      self._trackers.finish(self._latest)

  def _write_pending(self):
    if self._pending is None:
      return None
    step, fetch, throughput = self._pending
    self._pending = None
    self._check_finite(step)
    if step in self.skipped:
      return None
    row = {'step': step, **fetch(), **throughput}
    self._write_row(row)
    return row

  def _write_row(self, row):
    if not self.main:
      return
    self._lines.add(files.json_line(row))
    self._latest.update(row)
    self._trackers.log(
        row['step'], {k: v for k, v in row.items() if k != 'step'})

  def _check_finite(self, last):
    """Looks at the steps up to the last, and forgets them.

    Raises:
      Diverged: one is not finite, and no (more) steps may be skipped.
    """
    steps = [s for s in self._unchecked if s[0] <= last]
    self._unchecked = [s for s in self._unchecked if s[0] > last]
    if not steps:
      return
    # What is not finite stays so, unless its update was left out: the latest
    # step then vouches for those before it, and they need not be fetched.
    if not self.config.train.max_skipped_steps and is_finite(steps[-1][1]()):
      return
    for step, fetch in steps:
      numbers = fetch()
      if not is_finite(numbers):
        self._on_nonfinite(step, numbers)

  def _on_nonfinite(self, step, numbers):
    """Notes a step as skipped, or raises Diverged."""
    names = data.clip_names(
        self.subset, batch=self.config.train.batch,
        samples=config_lib.crop_samples(self.config.data.crop_seconds),
        seed=self.config.data.seed, step=step - 1)
    why = (f"loss {numbers['loss']} at step {step}, gradient norm "
           f"{numbers['grad_norm']}, parameter norm {numbers['param_norm']}")
    most = self.config.train.max_skipped_steps
    if not numbers.get('skipped') or len(self.skipped) >= most:
      limit = f'; train.max_skipped_steps {most} are used up' if most else ''
      raise Diverged(
          f"{why}, clips {', '.join(names[:4])} ...{limit}",
          {'step': step, 'last_good_step': step - 1, 'clips': names,
           **{k: str(numbers[k])
              for k in ('loss', 'grad_norm', 'param_norm')}})
    self.skipped.append(step)
    self._write_row({'step': step, 'skipped': 1., 'why': why, 'clips': names})
    if self.main:
      about = files.read_json(records.path(self.workdir, 'run', 0))
      records.write(self.workdir, 'run', 0,
                    {**about, 'skipped': self.skipped})


def is_finite(numbers: Numbers) -> bool:
  """Returns whether all of a step's numbers are finite.

  The loss tells of the parameters before the step, their norm of those after
  it.
  """
  return all(math.isfinite(v) for v in numbers.values())


def skipped_steps(workdir: str | os.PathLike[str]) -> list[int]:
  """Returns the steps of metrics.jsonl whose updates were left out."""
  path = files.path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  return [row['step'] for row in files.read_lines(path) if 'why' in row]


class Throughput:
  """Times training between two rows of metrics.jsonl.

  Evaluations and saves are left out, and so is the first row of a process,
  which compiles.

  Args:
    name: of the run, for warnings.
    batch: clips of a step.
    flops: of one clip, {'encoder': ..., 'total': ...}; flops.step_flops.
    devices: how many share the work.
    step: the first.
  """

  def __init__(self, name: str, batch: int, flops: Mapping[str, float],
               devices: int, step: int):
    self._name, self._batch, self._flops = name, batch, flops
    self._peak = flops_lib.peak(jax.devices()[0].device_kind)
    self._devices, self._step = devices, step
    self._start = time.monotonic()
    self._paused = self._waited = 0.
    self._compiled, self._warned = False, False

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """What happens within is no part of training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  @contextlib.contextmanager
  def data_wait(self) -> Iterator[None]:
    """What happens within is waiting for input."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def row(self, step: int) -> dict[str, float | None]:
    """Returns what happened since the row before, and starts anew.

    waiting: seconds for input. clips_per_second. tflops: 1e12 FLOPs a second
    by our own count, encoder and decoder; encoder_tflops: the encoder's. mfu:
    their share of what the chips can do in bfloat16; None where the chip is
    not known. The last four are None in a process's first row.
    """
    now = time.monotonic()
    seconds = max(now - self._start - self._paused, 1e-9)
    clips = (step - self._step) * self._batch / seconds
    rates: dict[str, float | None] = {
        'clips_per_second': clips,
        'tflops': clips * self._flops['total'] / 1e12,
        'encoder_tflops': clips * self._flops['encoder'] / 1e12, 'mfu': None}
    if self._peak:
      rates['mfu'] = clips * self._flops['total'] / (
          self._peak * self._devices)
    if not self._compiled:
      rates = dict.fromkeys(rates)
    else:
      self._warn_of_waiting(step, self._waited / seconds)
    row = {'waiting': self._waited, **rates}
    self._start, self._paused, self._waited = now, 0., 0.
    self._step, self._compiled = step, True
    return row

  def _warn_of_waiting(self, step, share):
    if share > WAIT_SHARE and self._waited > WAIT_SECONDS and not self._warned:
      self._warned = True
      logging.warning(
          '%s: waited for input %.0f %% of the time up to step %d; raise '
          'data.threads, or keep the audio in memory by data.in_memory',
          self._name, 100 * share, step)


def peak_memory() -> dict[str, int | None]:
  """Returns the most bytes in use so far, {'host': ..., 'device': ...}.

  device is that of the fullest one, None where it does not tell (CPU).
  """
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if sys.platform != 'darwin':
    host *= 1024  # Linux counts in KiB.
  stats = [d.memory_stats() for d in jax.local_devices()]
  return {'host': host, 'device': max(
      (s['peak_bytes_in_use'] for s in stats
       if s and 'peak_bytes_in_use' in s), default=None)}


class Tracker(NamedTuple):
  """One place where a curve is shown."""
  log: Callable[[int, Numbers], Any]
  summary: Callable[[Numbers], Any]
  finish: Callable[[], Any]


def tensorboard(workdir: pathlib.Path, config: Config,
                step: int) -> Tracker:
  """Event files; what a killed process wrote past `step` is hidden."""
  import tensorboardX
  writer = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step)

  def log(step, row):
    for name, value in row.items():
      writer.add_scalar(name, value, step)

  def summary(row):
    for name, value in row.items():
      writer.add_scalar(f'summary/{name}', value, config.train.steps)

  return Tracker(log, summary, writer.close)


def wandb(workdir: pathlib.Path, config: Config,
          step: int) -> Tracker:
  """A run of the project PROJECT, of the same id whenever it is resumed."""
  del step  # Of two rows of one step it keeps the first.
  import wandb as library
  run = library.init(
      project=PROJECT, id=config_lib.run_id(config), name=workdir.name,
      dir=str(workdir), config=config_lib.plain(config), resume='allow')
  return Tracker(lambda step, row: run.log(row, step=step),
                 run.summary.update, run.finish)


def trackio(workdir: pathlib.Path, config: Config,
            step: int) -> Tracker:
  """A run of the project PROJECT, named by its id."""
  del workdir, step
  import trackio as library
  run = library.init(
      project=PROJECT, name=config_lib.run_id(config), resume='allow',
      config=config_lib.plain(config), embed=False)
  return Tracker(lambda step, row: run.log(row, step=step),
                 lambda row: run.log({f'summary/{k}': v
                                      for k, v in row.items()}),
                 run.finish)


TRACKERS = {'tensorboard': tensorboard, 'wandb': wandb, 'trackio': trackio}


def tracker_names(config: Config) -> list[str]:
  """Returns the trackers that a config names.

  Raises:
    ValueError: one that is not known; names those there are.
  """
  for name in config.trackers:
    if name not in TRACKERS:
      raise ValueError(f'trackers {name!r}: expected some of '
                       f'{", ".join(TRACKERS)}')
  return list(config.trackers)


def finite_numbers(row: Mapping[str, Any]) -> dict[str, float]:
  """Returns the finite numbers of a row as floats."""
  return {k: float(v) for k, v in row.items()
          if isinstance(v, (int, float)) and math.isfinite(v)}


class MultiTracker:
  """The trackers of a run, none of which can stop it.

  Args:
    workdir: the run's folder.
    config: frozen config.
    step: the step that the run starts from.
  """

  def __init__(self, workdir: pathlib.Path, config: Config,
               step: int):
    self._open: dict[str, Tracker] = {}
    self._failures: dict[str, int] = {}
    # Trackers write to disks: their files are sent to a bucket at the end.
    self._workdir = self._folder = files.path(workdir)
    if files.is_on_bucket(workdir):
      self._folder = files.staging(workdir) / self._workdir.name
    for name in tracker_names(config):
      self._failures[name] = 0
      tracker = self._call(name, TRACKERS[name], self._folder, config, step)
      if tracker is not None:
        self._open[name] = tracker

  def log(self, step: int, row: Mapping[str, Any]) -> None:
    """Passes the numbers of a row on."""
    for name, tracker in list(self._open.items()):
      self._call(name, tracker.log, step, finite_numbers(row))
      if self._failures[name] >= FAILURES:
        del self._open[name]

  def finish(self, row: Mapping[str, Any]) -> None:
    """Passes the numbers of the whole run on and ends every tracker."""
    for name, tracker in self._open.items():
      self._call(name, tracker.summary, finite_numbers(row))
      self._call(name, tracker.finish)
      if self._folder != self._workdir:
        self._call(name, files.send, self._folder, self._workdir)
    self._open = {}

  def _call(self, name, function, *arguments):
    """Calls a tracker's function; returns its result, or None."""
    try:
      result = function(*arguments)
    except Exception as error:  # Whatever a library of others may raise.
      self._failures[name] += 1
      if self._failures[name] == 1:
        logging.warning('tracker %s: %s: %s; the run goes on without it', name,
                        type(error).__name__, error)
      return None
    self._failures[name] = 0
    return result
