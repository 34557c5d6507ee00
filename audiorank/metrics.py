"""What a run writes while it trains: metrics.jsonl, throughput, trackers.

The numbers of a step are fetched from the device while the next step runs, so
that fetching does not hold up training. Before a save all steps are checked:
only states whose numbers are finite are saved, and a resumed run lacks no row.

Trackers also show the numbers elsewhere; by default there is none. A tracker is
three functions: log(step, row) for a step, summary(row) for the whole run and
finish(). Its errors never stop a run: the first is logged, and after FAILURES
errors in a row the tracker is dropped.

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

# Waiting for input is warned of above both this share of the time
WAIT_SHARE = .05
WAIT_SECONDS = 1.  # and these seconds.
PROJECT = 'audiorank'  # In wandb and trackio.
FAILURES = 10  # Errors in a row after which a tracker is dropped.

Row = dict[str, Any]  # One line of metrics.jsonl.
Numbers = Mapping[str, float]
Rates = Mapping[str, float | None]  # Of `Throughput.row`.


class Diverged(Exception):
  """Loss, gradient or parameters are not finite.

  The message names step and clips; `about` has them for a JSON file.
  """

  def __init__(self, message: str, about: dict[str, Any]):
    super().__init__(message)
    self.about = about


class MetricWriter:
  """Checks the numbers of a run's steps and writes them to metrics.jsonl.

  Args:
    workdir: the run's folder.
    config: frozen config.
    subset: the corpus that is trained on; gives the names of clips.
    step: the step from which the run goes on.
    main: whether this process writes. All processes check.
  """

  def __init__(self, workdir: pathlib.Path, config: Config,
               subset: data.Corpus, step: int, main: bool):
    self.workdir, self.config, self.subset = workdir, config, subset
    self.main = main
    # From the file, so that a resumed run counts on.
    self.skipped = skipped_steps(workdir)
    # Steps not checked yet, as (step, function that fetches the numbers).
    self._unchecked: list[tuple[int, Callable[[], Numbers]]] = []
    self._pending: tuple[int, Callable[[], Numbers], Rates] | None = None
    self._latest: Row = {}
    if main:
      self._lines = files.Lines(workdir / 'metrics.jsonl')
      self._trackers = MultiTracker(workdir, config, step)

  def add_step(self, step: int, fetch: Callable[[], Numbers],
               throughput: Rates | None) -> Row | None:
    """Adds a step, and writes the row of an earlier one if it has one.

    Args:
      step: the number of steps done.
      fetch: returns the step's numbers {name: number}, from their devices.
      throughput: of `Throughput.row` if the step gets a row, else None.

    Returns:
      the row that was written, or None.

    Raises:
      Diverged: a step up to the row is not finite.
    """
    # The row before: its numbers have arrived while this step was computed.
    row = self._write_pending()
    self._unchecked.append((step, fetch))
    if throughput is not None:
      self._pending = step, fetch, throughput
    return row

  def flush(self) -> Row | None:
    """Checks all steps so far and writes the last row; before a save."""
    row = self._write_pending()
    # Steps after the last row have no row, but must be finite all the same.
    if self._unchecked:
      self._check_finite(self._unchecked[-1][0])
    return row

  def store(self) -> None:
    """Makes sure that every row so far outlives this process."""
    if self.main:
      self._lines.store()

  def add_evaluation(self, step: int, fields: Mapping[str, Any]) -> None:
    """Writes the row of an evaluation from the fields of its record."""
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
    # `_on_nonfinite` has written a row for it.
    if step in self.skipped:
      return None
    row = {'step': step, **fetch(), **throughput}
    self._write_row(row)
    return row

  def _write_row(self, row):
    # All processes check, one writes.
    if not self.main:
      return
    self._lines.add(files.json_line(row))
    self._latest.update(row)
    self._trackers.log(
        row['step'], {k: v for k, v in row.items() if k != 'step'})

  def _check_finite(self, last):
    """Checks the steps up to the last.

    Raises:
      Diverged: one is not finite, and no more steps may be skipped.
    """
    steps = [s for s in self._unchecked if s[0] <= last]
    self._unchecked = [s for s in self._unchecked if s[0] > last]
    if not steps:
      return
    # Parameters that are not finite stay so unless updates are skipped. If the
    # last step is finite, the others are too, and need not be fetched.
    if not self.config.train.max_skipped_steps and is_finite(steps[-1][1]()):
      return
    # In order, so that the first that is not finite is named.
    for step, fetch in steps:
      numbers = fetch()
      if not is_finite(numbers):
        self._on_nonfinite(step, numbers)

  def _on_nonfinite(self, step, numbers):
    """Notes a step as skipped, or raises Diverged."""
    # The stream is a function of the step: the clips can still be named.
    # `step` counts steps done, so its own batch is that of step - 1.
    names = data.clip_names(
        self.subset, batch=self.config.train.batch,
        samples=config_lib.crop_samples(self.config.data.crop_seconds),
        seed=self.config.data.seed, step=step - 1)
    why = (f"loss {numbers['loss']} at step {step}, gradient norm "
           f"{numbers['grad_norm']}, parameter norm {numbers['param_norm']}")
    most, limit = self.config.train.max_skipped_steps, ''
    if most:
      limit = f'; train.max_skipped_steps {most} are used up'
    # Only an update that train_step left out itself counts as skipped; any
    # other has spoilt the parameters.
    if not numbers.get('skipped') or len(self.skipped) >= most:
      raise Diverged(
          f"{why}, clips {', '.join(names[:4])} ...{limit}",
          # As text: JSON has no NaN.
          {'step': step, 'last_good_step': step - 1, 'clips': names,
           **{k: str(numbers[k])
              for k in ('loss', 'grad_norm', 'param_norm')}})
    self.skipped.append(step)
    self._write_row({'step': step, 'skipped': 1., 'why': why, 'clips': names})
    # The record of the run says how many were skipped, without its rows.
    if self.main:
      about = records.read_record(records.path(self.workdir, 'run', 0))
      records.write(self.workdir, 'run', 0,
                    {**about, 'skipped': self.skipped})


def is_finite(numbers: Numbers) -> bool:
  """Returns whether all of a step's numbers are finite.

  They include the loss, which depends on the parameters before the step, and
  the norm of the parameters after it.
  """
  return all(math.isfinite(v) for v in numbers.values())


def skipped_steps(workdir: str | os.PathLike[str]) -> list[int]:
  """Returns the steps whose updates were skipped, from metrics.jsonl."""
  return [row['step'] for row in records.metric_rows(workdir) if 'why' in row]


class Throughput:
  """Measures the throughput between two rows of metrics.jsonl.

  Evaluations, saves and the compilation before a process's first row do not
  count.

  Args:
    name: of the run, for warnings.
    batch: clips of a step.
    flops: of one clip, {'encoder': ..., 'total': ...}; flops.step_flops.
    devices: the number of devices that share the work.
    step: the step to begin with.
  """

  def __init__(self, name: str, batch: int, flops: Mapping[str, float],
               devices: int, step: int):
    self._name, self._batch, self._flops = name, batch, flops
    self._peak = flops_lib.peak(jax.devices()[0].device_kind)
    self._devices, self._step = devices, step
    # Monotonic, as the wall clock may be set during a run.
    self._start = time.monotonic()
    self._paused = self._waited = 0.
    self._compiled, self._warned = False, False

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """A context whose time does not count as training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  @contextlib.contextmanager
  def data_wait(self) -> Iterator[None]:
    """A context whose time counts as waiting for input."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def row(self, step: int) -> Rates:
    """Returns the rates since the previous row.

    waiting: seconds of waiting for input. clips_per_second. tflops: 1e12 FLOPs
    per second by our own count, of encoder and decoder; encoder_tflops: of the
    encoder. mfu: tflops over the peak of the chips in bfloat16, None for
    unknown chips. All but waiting are None in a process's first row, because
    it contains the compilation.
    """
    now = time.monotonic()
    # Waiting for input is part of it: clips per second are those that one gets.
    seconds = max(now - self._start - self._paused, 1e-9)
    clips = (step - self._step) * self._batch / seconds
    rates: dict[str, float | None] = {
        'clips_per_second': clips,
        'tflops': clips * self._flops['total'] / 1e12,
        'encoder_tflops': clips * self._flops['encoder'] / 1e12, 'mfu': None}
    if self._peak:
      # Model FLOPs utilisation as defined for PaLM (arXiv 2204.02311).
      rates['mfu'] = clips * self._flops['total'] / (
          self._peak * self._devices)
    # The first row's time is that of compilation.
    if not self._compiled:
      rates = dict.fromkeys(rates)
    else:
      self._warn_of_waiting(step, self._waited / seconds)
    row = {'waiting': self._waited, **rates}
    self._start, self._paused, self._waited = now, 0., 0.
    self._step, self._compiled = step, True
    return row

  def _warn_of_waiting(self, step, share):
    # Once per process: the advice stays the same.
    if share > WAIT_SHARE and self._waited > WAIT_SECONDS and not self._warned:
      self._warned = True
      logging.warning(
          '%s: waited for input %.0f %% of the time up to step %d; raise '
          'data.threads, or keep the audio in memory by data.in_memory',
          self._name, 100 * share, step)


def peak_memory() -> dict[str, int | None]:
  """Returns the peak bytes in use so far, {'host': ..., 'device': ...}.

  device is the maximum over devices, None if they do not report it (CPU).
  """
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if sys.platform != 'darwin':
    host *= 1024  # Linux counts in KiB.
  stats = [d.memory_stats() for d in jax.local_devices()]
  return {'host': host, 'device': max(
      (s['peak_bytes_in_use'] for s in stats
       if s and 'peak_bytes_in_use' in s), default=None)}


class Tracker(NamedTuple):
  """The three functions of a tracker; see the top of this module."""
  log: Callable[[int, Numbers], Any]
  summary: Callable[[Numbers], Any]
  finish: Callable[[], Any]


def tensorboard(workdir: pathlib.Path, config: Config,
                step: int) -> Tracker:
  """Returns a Tracker that writes event files.

  Rows after `step`, from a process that was killed, are hidden.
  """
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
  """Returns a Tracker of wandb; a resumed run keeps its id."""
  del step  # wandb itself ignores a second row of a step.
  import wandb as library
  run = library.init(
      project=PROJECT, id=config_lib.run_id(config), name=workdir.name,
      dir=str(workdir), config=config_lib.plain(config), resume='allow')
  return Tracker(lambda step, row: run.log(row, step=step),
                 run.summary.update, run.finish)


def trackio(workdir: pathlib.Path, config: Config,
            step: int) -> Tracker:
  """Returns a Tracker of trackio; the run is named by its id."""
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
  """Returns the names of a config's trackers.

  Raises:
    ValueError: an unknown name; lists the known ones.
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
  """All trackers of a run. None of them can stop it.

  Args:
    workdir: the run's folder.
    config: frozen config.
    step: the step from which the run goes on.
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
    """Logs the finite numbers of a row."""
    # A copy, because trackers may be dropped on the way.
    for name, tracker in list(self._open.items()):
      self._call(name, tracker.log, step, finite_numbers(row))
      if self._failures[name] >= FAILURES:
        del self._open[name]

  def finish(self, row: Mapping[str, Any]) -> None:
    """Logs the numbers of the whole run and ends the trackers."""
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
    except Exception as error:  # Any error of a tracker's library.
      self._failures[name] += 1
      if self._failures[name] == 1:
        logging.warning('tracker %s: %s: %s; the run goes on without it', name,
                        type(error).__name__, error)
      return None
    # Only errors in a row count.
    self._failures[name] = 0
    return result
