"""What is done with a claimed run: train, score, mark as DONE or FAILED.

launch.worker does it for the runs of a sweep, launch.train for one run, alone
or on several hosts.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
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
from launch import claims
from launch import cli
from launch import grid

_CORPUS = flags.DEFINE_string(
    'corpus', '', "Where the runs' corpus is now, if it has moved.")
_TASKS = flags.DEFINE_string(
    'tasks', '', "Where the runs' tasks are now, if they have moved.")

# Runs of a program to begin with on each accelerator, where its memory does
# not say how many fit.
PACKED = 16
MOST_PACKED = 64  # More than this no chip was seen to gain from.
DEVICE_FAILED = 134  # Exit code; as of a process that aborts.
# What jax's runtime says of a device or a peer that fails.
OF_DEVICE = ('INTERNAL', 'UNAVAILABLE', 'ABORTED', 'DATA_LOSS', 'UNKNOWN',
             'DEADLINE_EXCEEDED')
PATIENCE = 3.  # Seconds to leave by itself, where nothing can be lost.


class Report(progress.Status):
  """Tells the locks of the runs that are worked on what is being done.

  Attributes:
    locks: of the runs that are worked on now.
    claimed: of all runs that this process has.
    asked: whether it was asked to leave; of several processes none is alone.
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
  """What this process is at, and whether it was asked to leave.

  SIGTERM and SIGINT are noted in `asked`. Loops that poll it save and leave;
  but a compilation, or the scoring of a task, may take minutes in which nobody
  polls. A thread then ends the process if nothing would be lost: if the last
  call was `idle` and not `busy`.
  """

  def __init__(self) -> None:
    super().__init__()
    self._idle = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: None)
    # The kernel's signal is written here at once; a Python handler would
    # wait for the compiler to return.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=self._watch, args=(read,), daemon=True).start()

  def busy(self) -> None:
    self._idle = False

  def idle(self) -> None:
    self._idle = True

  def _watch(self, pipe: int) -> None:
    """Waits for a signal, then until the process has left or is idle."""
    while os.read(pipe, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
      pass
    self.asked = True
    time.sleep(PATIENCE)
    while not self._idle:
      time.sleep(.1)
    for lock in self.claimed:
      lock.release()  # Nobody died on these runs.
    print('stopped where nothing had to be saved', file=sys.stderr, flush=True)
    os._exit(cli.AGAIN)


def die_with_parent() -> None:
  """Asks the kernel for SIGTERM when the launcher dies (Linux)."""
  parent = os.environ.get('AUDIORANK_PARENT')
  if parent and sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
      sys.exit(cli.AGAIN)


def places() -> dict[str, str]:
  """Returns {field: folder} of what --corpus and --tasks say has moved."""
  return {'data.root': _CORPUS.value, 'eval.tasks': _TASKS.value}


def train(runs: Sequence[claims.Claim], stop: Callable[[int], bool],
          status: Report) -> list[claims.Claim]:
  """Trains claimed runs, several in one program; returns those that did.

  A run that diverges is marked as FAILED and released.

  Args:
    runs: of one group.
    stop: asked with every step's number; True saves and leaves.
    status: of this process.

  Raises:
    train.Preempted: stop() was True.
    ValueError, OSError, RuntimeError: what `train.fit` raises.
  """
  from audiorank import train as training
  began = time.time()
  status.locks = [run.lock for run in runs]
  try:
    diverged = training.fit([run.workdir for run in runs],
                            [run.config for run in runs], stop, status)
  except training.Preempted as saved:
    fail_diverged(runs, saved.diverged)
    raise
  fail_diverged(runs, diverged)
  trained = [run for run in runs if run.workdir not in diverged]
  for run in trained:
    mark(run, 'TRAINED', began)
  return trained


def fail_diverged(runs: Sequence[claims.Claim],
                  diverged: dict[pathlib.Path, Any]) -> None:
  """Marks the runs that diverged as FAILED and releases them."""
  for run in runs:
    if run.workdir in diverged:
      error = diverged[run.workdir]
      claims.fail(run.workdir, error, error.about)
      print(f'error: {run.workdir.name}: {error}', file=sys.stderr, flush=True)
      run.lock.release()


def score(run: claims.Claim, asked: Callable[[], bool],
          status: Report) -> bool:
  """Scores a trained run and marks it as DONE; False where asked to leave."""
  from audiorank import evaluate
  began = time.time()
  status.locks = [run.lock]
  if not evaluate.run(run.workdir, run.config, stop=asked, tell=status.report):
    return False
  mark(run, 'DONE', began)
  logging.info('done: %s', run.workdir)
  return True


def mark(run: claims.Claim, name: str, began: float) -> None:
  """Writes TRAINED or DONE: which run, by what, in how many seconds."""
  import jax
  files.write_json(run.workdir / name, {
      'run_id': records.run_id(run.config), 'seconds': time.time() - began,
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__})


class Worker:
  """One process's way through the runs of a sweep.

  Args:
    board: the runs of the sweep.
    roles: 'train', 'score' or both.
    pack: runs of a program; 0 decides by the device.
    workers: that share what is left.
    status: of this process.
  """

  def __init__(self, board: claims.Board, roles: Collection[str], pack: int,
               workers: int, status: Report):
    self.board = board
    self.roles, self.pack, self.workers = roles, pack, workers
    self.status = status
    self.last: claims.Entry | None = None
    self.limits: dict[str, int] = {}  # Runs of a group that fit together.
    self.alone: set[str] = set()  # Groups whose error may be one run's.
    self.tried: set[str] = set()  # Runs that failed here.

  def run(self) -> int:
    """Works until nothing is left to claim; returns the exit code."""
    from audiorank import train as training
    name = f'{socket.gethostname()} {os.getpid()}'
    while not self.status.asked:
      runs = claims.claim(self.board, self.roles, self.last, self.size,
                          self.tried, name, places())
      if not runs:
        if claims.await_leases(self.board, self.roles):
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
    return cli.AGAIN

  def size(self, config: Any) -> int:
    """Returns how many runs of a config's shape may share a program here."""
    group = claims.entry(config).group
    if group in self.alone:
      return 1
    part = -(-len(self.board.left(('train',))) // self.workers)
    most = min(self.pack or packed(config), part)
    return min(most, self.limits.get(group, most))

  def do(self, runs: list[claims.Claim]) -> bool:
    """Trains and scores claimed runs; False where asked to leave."""
    stop = lambda step: self.status.asked
    if self.board.states[runs[0].workdir.name] != 'trained':
      if len(runs) == 1:
        runs = [on_devices(runs[0])]
      names = ', '.join(run.workdir.name for run in runs)
      print(f'training {names}', flush=True)
      runs = train(runs, stop, self.status)
    if 'score' not in self.roles:
      return True
    return all(self.score(run) for run in runs)

  def score(self, run: claims.Claim) -> bool:
    """Scores a trained run; an error of it is no error of those beside it."""
    print(f'scoring {run.workdir.name}', flush=True)
    try:
      return score(run, lambda: self.status.asked, self.status)
    except (ValueError, OSError) as error:
      self.fail(run, error)
      return True

  def recover(self, runs: list[claims.Claim], error: Exception) -> None:
    """Goes on after an error: runs are tried again alone, or have failed.

    Where the device or its runtime is to blame, the process ends.
    """
    from audiorank import feed
    group = runs[0].entry.group
    if out_of_memory(error):
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
    elif len(runs) > 1:
      self.alone.add(group)
      print(f'{error}: these runs are tried one by one', file=sys.stderr,
            flush=True)
    else:
      self.fail(runs[0], error)

  def fail(self, run: claims.Claim, error: Exception) -> None:
    """Marks a run as failed; this worker does not try it again."""
    if not isinstance(error, (ValueError, OSError)):
      traceback.print_exception(error)
    claims.fail(run.workdir, error)
    self.tried.add(run.workdir.name)
    print(f'error: {run.workdir.name}: {error}', file=sys.stderr, flush=True)


def on_devices(run: claims.Claim) -> claims.Claim:
  """Returns a run whose mesh takes as many of this process's devices as its
  batches can be divided over, where `mesh.data` leaves that open."""
  import jax
  config = run.config
  if config.mesh.data != -1:
    return run
  data = max(1, jax.device_count() // config.mesh.fsdp)
  while data > 1 and any(batch % (data * config.mesh.fsdp) for batch in (
      config.train.batch, config.monitor.batch)):
    data -= 1
  tree = records.plain(config)
  tree['mesh']['data'] = data
  return run._replace(config=records.frozen(tree))


def packed(config: Any) -> int:
  """Returns how many runs of a config may begin in one program here.

  None beside it on a CPU, whose cores are busy with one. On accelerators as
  many as fit by an estimate of their memory beside a corpus; `Worker.recover`
  halves it where that was too many.
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
  fit = int((.8 - feed.DEVICE_SHARE) * limit / grid.device_bytes(config))
  return len(devices) * max(1, min(fit, MOST_PACKED))


def out_of_memory(error: BaseException) -> bool:
  """Returns whether an error is of a device or host without memory left."""
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def is_of_device(error: BaseException) -> bool:
  """Returns whether an error is of the device or jax's runtime, and not of
  the program that it was given."""
  import jax
  return (isinstance(error, jax.errors.JaxRuntimeError)
          and str(error).startswith(OF_DEVICE))


def die(error: BaseException) -> NoReturn:
  """Ends a process whose device has failed; it is to be started again.

  Its locks are not released: that it died on its runs is counted.
  """
  traceback.print_exception(error)
  sys.stderr.flush()
  os._exit(DEVICE_FAILED)


def free_memory(error: BaseException) -> None:
  """Lets go of what a failed program holds: frames, programs, buffers."""
  import jax
  traceback.clear_frames(error.__traceback__)
  error.__traceback__ = None
  jax.clear_caches()
  gc.collect()


def open_device() -> None:
  """Opens the device, before any run is claimed that would fail for it.

  Raises:
    OSError: it cannot be opened.
  """
  import jax
  try:
    jax.devices()
  except RuntimeError as error:
    raise OSError(f'the device cannot be opened: {error}') from None
