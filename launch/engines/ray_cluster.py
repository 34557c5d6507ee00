"""Workers on a Ray cluster: one a task, or one run of several hosts a slice.

  python -m launch.sweep --engine=ray --address=auto --root=DIR --config=FILE

Ray Core alone, and here alone: it finds the machines and says which were
lost. Every task starts a worker as a process of its own, because XLA ends its
process when a peer is lost, and libtpu's lock outlives a Ray worker that is
used again. The root must be a folder that every node sees, and the package
lie at one path on all.

Workers claim runs, so a task that was lost is only started again. A slice of
several hosts does one run at a time by launch.train.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any
from typing import NamedTuple

from audiorank import files
from launch import cli
from launch import devices
from launch import run_queue
from launch.engines import local

# Ray waits for ever for a slice that lost a host after it was reserved.
RESERVE, READY = 5., 30.  # Seconds for a slice's head, for its other hosts.
LEAVE = 60.  # Seconds for a worker to save and leave when it is cancelled.
# Seconds for the other hosts to follow, when one of a slice has ended: Ray
# may need a minute to find that a machine is gone.
FOLLOW = 90.
STORE = 2 ** 27  # Bytes of the object store, which holds exit codes.


class Needs(NamedTuple):
  """What one worker takes.

  cores, gpus: of a one-host worker.
  machine, topology: of the TPU slice that it takes instead, such as v4 and
    2x2x2; '' for none.
  """
  cores: int
  gpus: int
  machine: str
  topology: str


class Started(NamedTuple):
  """A worker on its hosts."""
  tasks: list  # One a host.
  slice: Any  # That is reserved for them, or None.
  run_id: str  # Of the one run that they do; '' for a worker that claims.


def needs(cores: int, gpus: int, topology: str) -> Needs:
  """Returns the Needs of some flags.

  Raises:
    ValueError: a slice that is not of the form v4:2x2x2.
  """
  name, _, sides = topology.partition(':')
  if bool(name) != bool(sides):
    raise ValueError(f'--slice={topology}: expected such as v4:2x2x2')
  return Needs(cores, gpus, name, sides)


def worker(command: Sequence[str], logs: str, threads: int,
           coordinator: str = '') -> int:
  """Runs a command on this host; returns its exit code.

  Args:
    command: of this package: its name and arguments.
    logs: folder of its output.
    threads: of the numerical libraries.
    coordinator: 'host:port,count' of a run on several hosts.

  Raises:
    OSError: the command cannot be started here.
  """
  # Ray sets the variables that name the GPUs of a task.
  slot = devices.Slot('ray', (), None, {'OMP_NUM_THREADS': str(threads),
                                        'OPENBLAS_NUM_THREADS': str(threads)})
  env = local.environment(slot, os.environ)
  if coordinator:
    env['AUDIORANK_DISTRIBUTED'] = f'{coordinator},{rank()}'
  name = f'{socket.gethostname()}-ray-{os.getpid()}.txt'
  folder = pathlib.Path(logs)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / name, 'ab') as log:
    # In a session of its own: a signal to Ray's process group must not end it
    # before it has saved.
    process = subprocess.Popen(
        local.command(*command), env=env, stdout=log, stderr=log,
        stdin=subprocess.DEVNULL, start_new_session=True)
  try:
    return process.wait()
  finally:
    # Cancelled: ray.cancel raises KeyboardInterrupt here. A second one must
    # not end the wait for the worker that saves.
    if process.poll() is None:
      before = signal.signal(signal.SIGINT, signal.SIG_IGN)
      local.stop([process], LEAVE)
      signal.signal(signal.SIGINT, before)


def rank() -> int:
  """Returns this host's place in its slice, 0 where it has no other.

  A bundle's place in its group is another.
  """
  import ray
  labels = ray.get_runtime_context().get_node_labels()
  return int(labels.get('ray.io/tpu-worker-id', '0'))


def place() -> tuple[int, str, int]:
  """Returns (place in the slice, address, a port that is free) of a host."""
  import ray
  with socket.socket() as s:
    # Port 0: the system picks one that is free.
    s.bind(('', 0))
    port = s.getsockname()[1]
  return rank(), ray.util.get_node_ip_address(), port


def start(board: run_queue.Board, arguments: Sequence[str], run_id: str,
          needs: Needs) -> Started | None:
  """Starts a worker where there is room; None for a slice that cannot be had
  now.

  Args:
    board: the runs.
    arguments: of a worker's command.
    run_id: the run to do where a slice has several hosts.
    needs: what the worker takes.

  Raises:
    OSError: the hosts of a slice cannot run what they are given.
  """
  import ray
  logs = str(files.beside(board.root).absolute() / 'logs')
  command = ['worker', *arguments]
  if not needs.topology:
    task = ray.remote(num_cpus=needs.cores, num_gpus=needs.gpus,
                      # Retrying is the launcher's business: it knows what an
                      # exit code means.
                      max_retries=0)(worker)
    return Started([task.remote(command, logs, needs.cores)], None, '')
  from ray.util import tpu
  try:
    reserved = tpu.SlicePlacementGroup(
        topology=needs.topology, accelerator_version=needs.machine,
        head_reservation_timeout_s=RESERVE)
  except TimeoutError:
    return None

  def on_slice(function, *args):
    return tpu.run_on_slice(ray.remote(max_retries=0)(function), *args,
                            tpu_slice=reserved, pg_ready_timeout_s=READY)

  try:
    # Sorted by place: the first host of the slice coordinates.
    hosts = sorted(ray.get(on_slice(place), timeout=READY))
    coordinator = ''
    if len(hosts) > 1:
      _, address, port = hosts[0]
      coordinator = f'{address}:{port},{len(hosts)}'
      workdir = board.folder(run_id).absolute()
      command = ['train', f'--workdir={workdir}']
    tasks = on_slice(worker, command, logs, needs.cores, coordinator)
    return Started(tasks, reserved, run_id if coordinator else '')
  except ray.exceptions.RayTaskError as error:
    reserved.shutdown()
    raise OSError(f'--slice: {error.cause}') from None
  except (TimeoutError, ray.exceptions.RayError):
    reserved.shutdown()
    return None


def outcome(task: Any) -> int | None:
  """Returns a host's exit code; None where Ray lost it on the way.

  Raises:
    OSError: the worker could not be started.
  """
  import ray
  try:
    return ray.get(task)
  except ray.exceptions.RayTaskError as error:
    raise OSError(f'{type(error.cause).__name__}: {error.cause}') from None
  except ray.exceptions.RayError:
    return None


def exit_code(codes: Sequence[int | None]) -> int | None:
  """Returns the exit code that counts, of all hosts'; None: one was lost.

  A lost or dead host takes the others with it, however they end: their error
  is no error of the run.
  """
  if None in codes:
    return None

  def order(code: int) -> tuple[bool, bool]:
    # Deaths before errors, and those before a host that was asked to leave.
    return 0 < code < 128, code == cli.AGAIN

  return min((code for code in codes if code), default=0, key=order)


def cancel(started: Started) -> int:
  """Asks the tasks that have not ended to leave; returns how many."""
  import ray
  # timeout=0 looks without waiting.
  _, left = ray.wait(started.tasks, num_returns=len(started.tasks), timeout=0)
  for task in left:
    ray.cancel(task)
  return len(left)


def end(started: Started) -> None:
  """Waits for the tasks of a worker and gives its slice back."""
  import ray
  # A little more than a worker gets to save and leave.
  _, left = ray.wait(started.tasks, num_returns=len(started.tasks),
                     timeout=LEAVE + 10)
  for task in left:
    ray.cancel(task, force=True)
  if started.slice is not None:
    started.slice.shutdown()


def connect(address: str) -> None:
  """Joins a cluster: 'local' starts one on this machine.

  Raises:
    ValueError: Ray is not installed.
    OSError: there is no cluster; names the address.
  """
  try:
    import ray
  except ImportError:
    raise ValueError("--engine=ray: Ray is not installed: pip install "
                     "'ray>=2.60'") from None
  own = {}
  if address == 'local':
    # Ray would reserve a third of the memory, for exit codes alone.
    own = {'object_store_memory': STORE, 'include_dashboard': False}
  # Or whatever a worker starts would have the lowest priority but four.
  os.environ.setdefault('RAY_worker_niceness', '0')
  try:
    ray.init(address=address, log_to_driver=False, logging_level='error',
             **own)
  except Exception as error:  # Ray raises that very class as well.
    raise OSError(f'--address={address}: no Ray cluster there '
                  f'({error})') from None


def room(needs: Needs) -> int:
  """Returns how many workers the whole cluster has room for."""
  import ray
  # All that the cluster has, also what is in use at the moment.
  have = ray.cluster_resources()
  most = have.get('CPU', 0) // needs.cores
  if needs.gpus:
    most = min(most, have.get('GPU', 0) // needs.gpus)
  return max(1, int(most))


class Errors:
  """Ends of workers that are no one's fault but their own, in a row."""

  def __init__(self):
    self.count, self.share = 0, -1.

  def add(self, board: run_queue.Board, text: str) -> None:
    """Counts one, anew where the sweep has come further.

    Raises:
      OSError: as many as a run may have deaths.
    """
    share = board.progress().share
    self.count = 1 if share > self.share else self.count + 1
    self.share = max(share, self.share)
    if self.count >= run_queue.DEATHS:
      raise OSError(f'{self.count} workers ended without progress, the last: '
                    f'{text} (see logs/)')


def run(board: run_queue.Board, arguments: Sequence[str],
        roles: Collection[str] = run_queue.ROLES,
        show: Callable[[run_queue.Board], None] = lambda board: None,
        *, needs: Needs, most: int | None = None,
        poll: float = .5) -> list[str]:
  """Has workers do the runs of a board; returns those that nobody could do.

  Args:
    board, arguments, roles, show: as for local.run; Ray is connected.
    needs: what a worker takes.
    most: workers at once; None takes all that the cluster has room for.
    poll: seconds between looks.

  Raises:
    OSError: workers end without progress.
    KeyboardInterrupt: after the workers were asked to save and have left.
  """
  import ray
  running: list[Started] = []
  ended: dict[Any, float] = {}  # When each task had ended.
  left_over: set[str] = set()
  errors, full_until = Errors(), 0.
  try:
    while True:
      board.look()
      show(board)
      free = set(local.free(board, roles))
      ready = sorted(free - left_over - {s.run_id for s in running})
      # Slices are reserved one by one, so their number need not be known.
      limit = most or (len(ready) if needs.topology else room(needs))
      for run_id in ready[:max(0, limit - len(running))]:
        # No more workers than runs that are ready.
        if time.monotonic() < full_until or len(running) >= len(ready):
          break
        started = start(board, arguments, run_id, needs)
        if started is None:
          if not running:
            print(f'no slice {needs.machine}:{needs.topology} is free; '
                  'waiting', file=sys.stderr, flush=True)
          # Asks for a slice again only after a while.
          full_until = time.monotonic() + READY
          break
        running.append(started)
      # Runs that others have claimed may come back, so they are waited for.
      if not running and not ready and free == set(board.left(roles)):
        break
      tasks = [t for s in running for t in s.tasks if t not in ended]
      if tasks:
        # Returns early if all have ended, otherwise after `poll` seconds.
        over, _ = ray.wait(tasks, num_returns=len(tasks), timeout=poll)
        ended.update(dict.fromkeys(over, time.monotonic()))
      else:
        time.sleep(poll)
      for started in list(running):
        # A slice ends as a whole; a host that does not follow is cancelled.
        times = [ended[t] for t in started.tasks if t in ended]
        late = times and time.monotonic() - min(times) > FOLLOW
        if len(times) == len(started.tasks) or late:
          hung = cancel(started)
          end(started)
          running.remove(started)
          # There is room again.
          full_until = 0.
          settle(board, started, hung, left_over, errors)
  except BaseException:
    # A second Ctrl-C must not interrupt the saving.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for started in running:
      cancel(started)
    for started in running:
      end(started)
    raise
  return sorted(free)


def settle(board: run_queue.Board, started: Started, hung: int,
           left_over: set[str], errors: Errors) -> None:
  """Decides what the end of a worker means.

  Args:
    board: the runs.
    started: the worker.
    hung: tasks that did not end with the others.
    left_over: runs that were free when a worker found nothing to do; added
      to.
    errors: ends without progress; added to.

  Raises:
    OSError: too many of those.
  """
  board.look()
  try:
    code = exit_code([outcome(task) for task in started.tasks])
  except OSError as error:
    errors.add(board, f'{error}')
    return
  if hung:
    # As a death: a machine that is lost but not missed, or a deadlock.
    code = -signal.SIGTERM
  if code in (None, cli.AGAIN):
    return
  if code == 0 and not started.run_id:
    # The worker looked at these and could do none of them.
    left_over |= set(local.free(board, run_queue.ROLES))
  elif 0 < code < 128 and started.run_id:
    # Written by launch.train, unless it could not begin.
    if board.states[started.run_id] != 'failed':
      run_queue.fail(board.folder(started.run_id),
                     OSError(f'launch.train ended with exit code {code}'))
      board.states[started.run_id] = 'failed'
  elif code != 0:
    errors.add(board, f'exit code {code}')
