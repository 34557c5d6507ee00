"""Works on claimed runs: trains, scores, and marks them as DONE or FAILED.

launch.worker uses this for the runs of a sweep, launch.train for one run, on
one or several hosts.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import contextlib
import ctypes
import gc
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any
from typing import NoReturn

from absl import flags
from absl import logging

from audiorank import files
from audiorank import progress
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import cli
from launch import grid
from launch import halving
from launch import run_queue

_CORPUS = flags.DEFINE_string(
    'corpus', '', "The new place of the runs' corpus, if it has moved.")
_TASKS = flags.DEFINE_string(
    'tasks', '', "The new place of the runs' tasks, if they have moved.")

# Runs per program and accelerator to begin with, if the size of its memory is
# not known.
PACKED = 16
MOST_PACKED = 64  # No chip was faster with more.
DEVICE_FAILED = 134  # Exit code, that of a process that aborts.
# Beginnings of the errors of jax's runtime if a device or a peer fails.
OF_DEVICE = ('INTERNAL', 'UNAVAILABLE', 'ABORTED', 'DATA_LOSS', 'UNKNOWN',
             'DEADLINE_EXCEEDED')
PATIENCE = 3.  # Seconds before an idle process is ended.
_READ: set[str] = set()  # What `check` has read, for runs that share it.


class Report(progress.Status):
  """Writes the progress of runs to their locks.

  Attributes:
    locks: of the runs that are in progress.
    claimed: locks of all runs that this process has.
    asked: whether the process was asked to stop. Processes that train one run
      together cannot be asked one by one.
  """

  def __init__(self) -> None:
    self.asked = False
    self.locks: list[lock_lib.Lock] = []
    self.claimed: list[lock_lib.Lock] = []

  def report(self, doing: str, step: int | None = None,
             steps: int | None = None, force: bool = False) -> None:
    for lock in self.locks:
      lock.report(doing, step, steps, force)


class Status(Report):
  """A Report that also handles SIGTERM and SIGINT.

  A signal sets `asked`, and loops that check it save and stop. But a
  compilation, or the scoring of a task, can take minutes without a check. Then
  a thread ends the process if nothing would be lost: if the last call was
  `idle` and not `busy`.
  """

  def __init__(self) -> None:
    super().__init__()
    self._idle = True
    read, write = os.pipe()
    # A full pipe must not block a signal handler.
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
      # A handler that does nothing replaces the default, which ends the
      # process.
      signal.signal(number, lambda *_: None)
    # Python's signal handlers run only between bytecodes, so they would wait
    # until the compiler returns. This file descriptor is written at once.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=self._watch, args=(read,), daemon=True).start()

  def busy(self) -> None:
    self._idle = False

  def idle(self) -> None:
    self._idle = True

  def _watch(self, pipe: int) -> None:
    """Waits for a signal, and then until the process has ended or is idle."""
    while os.read(pipe, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
      pass
    self.asked = True
    # Time for a loop that checks `asked` to leave by itself.
    time.sleep(PATIENCE)
    while not self._idle:
      time.sleep(.1)
    for lock in self.claimed:
      # Otherwise the end of this process would count as a failure of the run.
      lock.release()
    print('stopped where nothing had to be saved', file=sys.stderr, flush=True)
    # Not sys.exit, which would end only this thread.
    os._exit(cli.AGAIN)


def die_with_parent() -> None:
  """Asks the kernel for SIGTERM when the launcher dies (Linux)."""
  parent = os.environ.get('AUDIORANK_PARENT')
  if parent and sys.platform == 'linux':
    # 1 is PR_SET_PDEATHSIG. The parent may have died before this call: then
    # there is another one now.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
      sys.exit(cli.AGAIN)


def places() -> dict[str, str]:
  """Returns {field: folder} of --corpus and --tasks."""
  return {'data.root': _CORPUS.value, 'eval.tasks': _TASKS.value}


def check(config: Any, scored: bool, packed_runs: int = 1) -> None:
  """Raises unless a run can be trained, by the check of launch.sweep.

  Its config.json may have been edited, and corpus or tasks may have moved.

  Args:
    config: of the run.
    scored: whether it is scored here too. If not, its tasks may be elsewhere.
    packed_runs: runs of its program; packed ones have a device each.

  Raises:
    FileNotFoundError, ValueError: the first fault, in one line.
  """
  import jax

  from audiorank import validate
  devices = 1
  if packed_runs == 1:
    devices = jax.device_count()
  validate.training(config, devices, _READ)
  if scored:
    validate.scoring(config, _READ)


def train(runs: Sequence[run_queue.Claim], stop: Callable[[int], bool],
          status: Report, scored: bool = True) -> list[run_queue.Claim]:
  """Trains claimed runs in one program; returns those that did not diverge.

  A run that diverges is marked as FAILED and released.

  Args:
    runs: of one group.
    stop: called with the number of every step; True saves and stops.
    status: of this process.
    scored: as for `check`.

  Raises:
    train.Preempted: stop() was True.
    ValueError, OSError, RuntimeError: as `check` and `train.fit`.
  """
  from audiorank import train as training
  for run in runs:
    check(run.config, scored, len(runs))
  began = time.time()
  status.locks = [run.lock for run in runs]
  try:
    diverged = training.fit([run.workdir for run in runs],
                            [run.config for run in runs], stop, status)
  # Some runs may have diverged before the signal.
  except training.Preempted as saved:
    fail_diverged(runs, saved.diverged)
    raise
  fail_diverged(runs, diverged)
  trained = [run for run in runs if run.workdir not in diverged]
  for run in trained:
    mark(run, 'TRAINED', began)
  return trained


def fail_diverged(runs: Sequence[run_queue.Claim],
                  diverged: dict[pathlib.Path, Any]) -> None:
  """Marks the runs that diverged as FAILED and releases them."""
  for run in runs:
    if run.workdir in diverged:
      error = diverged[run.workdir]
      run_queue.fail(run.workdir, error, error.about)
      print(f'error: {run.workdir.name}: {error}', file=sys.stderr, flush=True)
      run.lock.release()


def score(run: run_queue.Claim, asked: Callable[[], bool],
          status: Report) -> bool:
  """Scores a trained run and marks it as DONE.

  Args:
    run: to score.
    asked: returns whether to stop.
    status: of this process.

  Returns:
    False if it was asked to stop.

  Raises:
    ValueError, OSError: as validate.scoring and evaluate.run.
  """
  from audiorank import evaluate
  from audiorank import validate
  began = time.time()
  status.locks = [run.lock]
  validate.scoring(run.config, _READ)
  if not evaluate.run(run.workdir, run.config, stop=asked, tell=status.report):
    return False
  mark(run, 'DONE', began)
  logging.info('done: %s', run.workdir)
  return True


def mark(run: run_queue.Claim, name: str, began: float) -> None:
  """Writes TRAINED or DONE, with run, device and seconds.

  Args:
    run: the run.
    name: of the file.
    began: time.time() at the beginning of the work.
  """
  import jax
  files.write_json(run.workdir / name, {
      'run_id': records.run_id(run.config), 'seconds': time.time() - began,
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__})


class Worker:
  """A process that works on the runs of a sweep, one claim after the other.

  Args:
    board: the runs of the sweep.
    roles: 'train', 'score' or both.
    pack: runs per program; 0 decides by the device.
    workers: number of workers that share the remaining runs.
    status: of this process.
  """

  def __init__(self, board: run_queue.Board, roles: Collection[str], pack: int,
               workers: int, status: Report):
    self.board = board
    self.roles, self.pack, self.workers = roles, pack, workers
    self.status = status
    self.last: run_queue.Entry | None = None
    # Group -> runs that fit in one program, after it ran out of memory.
    self.limits: dict[str, int] = {}
    # Groups that are trained one by one, to find the run with an error.
    self.alone: set[str] = set()
    self.tried: set[str] = set()  # Runs that failed here.

  def run(self) -> int:
    """Works until nothing is left to claim; returns the exit code."""
    from audiorank import train as training
    name = f'{socket.gethostname()} {os.getpid()}'
    while not self.status.asked:
      runs = run_queue.claim(self.board, self.roles, self.last, self.size,
                             self.tried, name, places())
      if not runs:
        if (halving.advance(self.board) or halving.wait(self.board)
            or run_queue.await_leases(self.board, self.roles)):
          continue
        return 0
      self.last = runs[0].entry
      self.status.claimed = [run.lock for run in runs]
      try:
        if not self.do(runs):
          return cli.AGAIN
      except training.Preempted as saved:
        print(saved, file=sys.stderr)
        return cli.AGAIN
      except Exception as error:
        self.recover(runs, error)
      finally:
        self.status.idle()
        for run in runs:
          run.lock.release()
        trim_memory()
    return cli.AGAIN

  def size(self, config: Any) -> int:
    """Returns how many runs of a config's group may share a program."""
    group = run_queue.entry(config).group
    if group in self.alone:
      return 1
    # Not more than this worker's share, so that the others have work as well.
    part = -(-len(self.board.left(('train',))) // self.workers)
    most = min(self.pack or packed(config), part)
    return min(most, self.limits.get(group, most))

  def do(self, runs: list[run_queue.Claim]) -> bool:
    """Trains and scores claimed runs; returns False if asked to stop."""
    from audiorank import train as training
    # A claim of several has none that is trained; see run_queue.claim.
    if self.board.states[runs[0].workdir.name] != 'trained':
      # A single run takes all devices; packed runs have one each.
      if len(runs) == 1:
        runs = [on_devices(runs[0])]
      names = ', '.join(run.workdir.name for run in runs)
      print(f'training {names}', flush=True)
      plan = halving.read(self.board.root)
      pauses = [halving.pause_step(plan, run.workdir.name, run.config)
                for run in runs]
      stop = lambda step: self.status.asked or any(
          halving.reached(run.workdir, pause, step)
          for run, pause in zip(runs, pauses))
      try:
        runs = train(runs, stop, self.status, 'score' in self.roles)
      except training.Preempted:
        # Saved at a rung of halving, and not because this process has to end.
        if self.status.asked or plan is None:
          raise
        halving.mark_paused(runs, plan, pauses)
        return True
    if 'score' not in self.roles:
      return True
    return all(self.score(run) for run in runs)

  def score(self, run: run_queue.Claim) -> bool:
    """Scores a trained run. An error fails only this run, not its group."""
    print(f'scoring {run.workdir.name}', flush=True)
    try:
      return score(run, lambda: self.status.asked, self.status)
    except files.StoreError:
      raise  # See `recover`.
    except (ValueError, OSError) as error:
      self.fail(run, error)
      return True

  def recover(self, runs: list[run_queue.Claim], error: Exception) -> None:
    """Handles an error in training.

    Runs that ran out of memory are claimed again in smaller groups, and other
    groups one by one. A single run has failed. An error of the device or its
    runtime ends the process.
    """
    from audiorank import feed
    group = runs[0].entry.group
    if isinstance(error, files.StoreError):
      raise error  # A bucket that cannot be reached is no fault of the run.
    if cli.out_of_memory(error):
      if len(runs) > 1:
        self.limits[group] = half = (len(runs) + 1) // 2
        print(f'{len(runs)} runs in one program need more memory than there '
              f'is: {half} are tried', file=sys.stderr, flush=True)
      elif feed.read_from_disk():
        print(f'{runs[0].workdir.name} needs more memory than the corpus on '
              'the device leaves: clips are read from disk from now on',
              file=sys.stderr, flush=True)
      else:
        self.fail(runs[0], ValueError(
            f'out of memory: train.batch {runs[0].config.train.batch} of '
            f'{runs[0].workdir.name} does not fit: expected a smaller batch, '
            'model.remat or mesh.fsdp'))
      free_memory(error)
    elif is_of_device(error):
      die(error)
    # One of them has the error; alone it can be named.
    elif len(runs) > 1:
      self.alone.add(group)
      print(f'{error}: these runs are tried one by one', file=sys.stderr,
            flush=True)
    else:
      self.fail(runs[0], error)

  def fail(self, run: run_queue.Claim, error: Exception) -> None:
    """Marks a run as failed; this worker does not try it again."""
    # A user's mistake gets one line; an error of ours its traceback.
    if not isinstance(error, (ValueError, OSError)):
      traceback.print_exception(error)
    run_queue.fail(run.workdir, error)
    self.tried.add(run.workdir.name)
    print(f'error: {run.workdir.name}: {error}', file=sys.stderr, flush=True)


def on_devices(run: run_queue.Claim) -> run_queue.Claim:
  """Returns a run with a mesh for the devices of this process.

  If `mesh.data` is -1, it becomes the largest number over which the batches can
  be divided.
  """
  import jax
  config = run.config
  # A mesh without devices is refused by `check`.
  if config.mesh.data != -1 or config.mesh.fsdp < 1:
    return run
  data = max(1, jax.device_count() // config.mesh.fsdp)
  # Each device takes an equal part of every batch.
  while data > 1 and any(batch % (data * config.mesh.fsdp) for batch in (
      config.train.batch, config.monitor.batch)):
    data -= 1
  tree = records.plain(config)
  tree['mesh']['data'] = data
  return run._replace(config=records.frozen(tree))


def packed(config: Any) -> int:
  """Returns how many runs of a config to begin with in one program.

  On a CPU it is one, which keeps the cores busy. On accelerators it is the
  number that fits, by an estimate of memory with a corpus. If that is too many,
  `Worker.recover` halves it.
  """
  import jax

  from audiorank import feed
  if jax.default_backend() == 'cpu':
    return 1
  devices = jax.local_devices()
  stats = devices[0].memory_stats() or {}
  limit = stats.get('bytes_limit')
  if not limit:
    return PACKED * len(devices)
  # What the corpus may take is not there for runs; a fifth is left for what the
  # estimate does not know.
  fit = int((.8 - feed.DEVICE_SHARE) * limit / grid.device_bytes(config))
  return len(devices) * max(1, min(fit, MOST_PACKED))


def is_of_device(error: BaseException) -> bool:
  """Returns whether an error comes from the device or jax's runtime."""
  import jax
  return (isinstance(error, jax.errors.JaxRuntimeError)
          and str(error).startswith(OF_DEVICE))


def die(error: BaseException) -> NoReturn:
  """Ends a process whose device has failed. The launcher starts another one."""
  # Without releasing its locks: runs on which processes die are counted, and
  # fail after some of them.
  traceback.print_exception(error)
  sys.stderr.flush()
  os._exit(DEVICE_FAILED)


def free_memory(error: BaseException) -> None:
  """Frees the memory of a failed program."""
  # The traceback refers to the frames, and these to arrays on the device.
  import jax
  traceback.clear_frames(error.__traceback__)
  error.__traceback__ = None
  # The programs that did not fit as well.
  jax.clear_caches()
  # Frames and arrays refer to each other in circles.
  gc.collect()


def trim_memory() -> None:
  """Returns freed memory to the system, where the C library is glibc.

  It keeps pages that are free between others in use: after the compilation of
  a small shape's programs, 100 MB of them.
  """
  # Other C libraries have no such function.
  with contextlib.suppress(AttributeError):
    ctypes.CDLL(None).malloc_trim(0)


def skip_storage_metrics() -> None:
  """Keeps orbax from reading tensorstore's metrics at every save.

  It reads them for its debug log, and tensorstore (0.1.86) never frees the
  lists that it returns: some .1 MB a save, in a worker that saves for days.
  """
  import tensorstore
  if hasattr(tensorstore, 'experimental_collect_matching_metrics'):
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []


def open_device() -> None:
  """Opens the device. Called before a run is claimed, which would fail.

  Raises:
    OSError: it cannot be opened.
  """
  import jax
  try:
    jax.devices()
  except RuntimeError as error:
    raise OSError(f'the device cannot be opened: {error}') from None
