"""Workers on this machine: one in every slot, started again when they die.

Nothing is kept here that the run folders do not hold, so this process may die
as well: its workers then save and leave, and the same command goes on.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import IO

from audiorank import files
from audiorank.records import lock as lock_lib
from launch import cli
from launch import devices as machine
from launch import run_queue

LOOK = 1.  # Seconds between looks at the run folders.
LOOK_ON_BUCKET = 5.  # Each costs some requests.
MAIN = pathlib.Path(__file__).parents[1] / '__main__.py'
# glibc gives large arrays back to the kernel when they are freed, and XLA
# takes them anew at every step: on a CPU a quarter of a large step goes into
# pages of 4 KiB. With huge pages there is nearly nothing to do. A heap that
# never shrinks made a worker of five quickstart runs a fifth slower.
TUNABLES = 'glibc.malloc.hugetlb=1'


def command(name: str, *arguments: object) -> list[str]:
  """Returns a command of this package, whatever the current folder is."""
  # -P keeps the folder of __main__.py off the path.
  return [sys.executable, '-P', str(MAIN), name, *map(str, arguments)]


def environment(slot: machine.Slot,
                environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment of a slot's worker.

  Args:
    slot: its devices and cores.
    environ: the launcher's own, as it was started with.
  """
  out: dict[str, str | None] = {
      **environ, 'AUDIORANK_PARENT': str(os.getpid()), 'PYTHONUNBUFFERED': '1',
      'TF_CPP_MIN_LOG_LEVEL': '2', **slot.environment}
  # setdefault: what the user has set stays.
  if not slot.ids:
    out.setdefault('GLIBC_TUNABLES', TUNABLES)
  return {name: value for name, value in out.items() if value is not None}


class Place:
  """A slot and the worker in it.

  Attributes:
    process: the worker; None while there is none.
    deaths: of workers that died before they had a run, in a row.
    error: why no worker is started here any more; '' while some are.
  """

  def __init__(self, slot: machine.Slot, log: pathlib.Path):
    self.slot, self.log = slot, log
    self.process: subprocess.Popen | None = None
    self.deaths, self.error = 0, ''

  def start(self, arguments: Sequence[str], environ: dict[str, str],
            locks: Sequence[IO[str]]) -> None:
    """Starts a worker; its output is appended to the log."""
    mine = None
    if self.slot.cores:
      # Inherited from here: threads are pinned from the process's start.
      mine = os.sched_getaffinity(0)
      os.sched_setaffinity(0, self.slot.cores)
    try:
      with open(self.log, 'ab') as log:
        self.process = subprocess.Popen(
            command('worker', *arguments), stdin=subprocess.DEVNULL,
            # A session of its own: Ctrl-C reaches the launcher alone, which
            # asks the workers to save.
            stdout=log, stderr=log, env=environ, start_new_session=True,
            pass_fds=[lock.fileno() for lock in locks])
    finally:
      if mine:
        os.sched_setaffinity(0, mine)

  def settle(self, board: run_queue.Board) -> bool:
    """Decides what an ended worker means; returns whether it left by itself
    with nothing more to do."""
    worker, self.process = self.process, None
    if worker is None:
      return False
    pid, code = worker.pid, worker.returncode
    if code == 0:
      self.deaths = 0
      return True
    # An error by which it ended itself, not a signal: it would end again.
    if 0 < code < 128 and code != cli.AGAIN:
      self.error = last_line(self.log) or f'exit code {code}'
    elif code != cli.AGAIN:
      # A run counts the deaths of those who had it; see run_queue.
      had_a_run = any(
          lock_lib.read(board.folder(run_id)).get('pid') == pid
          for run_id in board.left(('train', 'score')))
      self.deaths = 0 if had_a_run else self.deaths + 1
      if self.deaths == run_queue.DEATHS:
        self.error = (f'its worker died {self.deaths} times before it had a '
                      f'run (code {code}): {last_line(self.log)}')
    return False


def last_line(log: pathlib.Path) -> str:
  """Returns the last line of a worker's log that is not empty."""
  try:
    text = log.read_text('utf-8', 'replace')
  except OSError:
    return ''
  lines = [line for line in text.splitlines() if line.strip()]
  return (lines or [''])[-1][:300].removeprefix('error: ')


def run(board: run_queue.Board, arguments: Sequence[str],
        roles: Collection[str] = run_queue.ROLES,
        show: Callable[[run_queue.Board], None] = lambda board: None, *,
        slots: Sequence[machine.Slot],
        environ: Mapping[str, str] = os.environ,
        locks: Sequence[IO[str]] = (), poll: float = .2) -> list[str]:
  """Has workers do the runs of a board; returns those that nobody could do.

  Runs that failed are not among them: their folders say why.

  Args:
    board: the runs.
    arguments: of the workers' command.
    roles: what they do.
    show: called with the board after every look.
    slots: a worker runs in each.
    environ: the environment that workers start from.
    locks: of the devices; workers inherit them.
    poll: seconds between looks at the workers.

  Raises:
    OSError: no worker can work here; says why.
    KeyboardInterrupt: after the workers were asked to save and have left.
  """
  logs = files.beside(board.root) / 'logs'
  logs.mkdir(parents=True, exist_ok=True)
  host = socket.gethostname()
  places = [Place(slot, logs / f'{host}-{slot.name}.txt') for slot in slots]
  # Runs that were free when a worker found nothing that it could do.
  left_over: set[str] = set()
  wait = LOOK_ON_BUCKET if files.is_on_bucket(board.root) else LOOK
  looked = -wait
  try:
    while True:
      ended = [place for place in places
               if place.process and place.process.poll() is not None]
      # Workers are polled often, folders seldom.
      if ended or time.monotonic() - looked > wait:
        board.look()
        looked = time.monotonic()
        for place in ended:
          if place.settle(board):
            left_over |= set(free(board, roles))
        ready = set(free(board, roles))
        # More workers than runs would start and leave at once.
        for place in vacant(places, board, len(ready - left_over)):
          place.start([*arguments, f'--workers={len(places)}'],
                      environment(place.slot, environ), locks)
        show(board)
        if not any(place.process for place in places) and not awaited(
            board, roles, ready):
          break
      time.sleep(poll)
  except BaseException:
    stop([place.process for place in places if place.process])
    raise
  # Only if no place works: one broken device does not end the sweep.
  if ready and all(place.error for place in places):
    raise OSError(f'{places[-1].slot.name}: {places[-1].error}')
  return sorted(ready)


def awaited(board: run_queue.Board, roles: Collection[str],
            ready: set[str]) -> bool:
  """Returns whether workers of other launchers have runs that may still be
  done here: because they die, or leave them to be scored."""
  if ready != set(board.left(roles)):
    return True
  return 'train' not in roles and any(
      lock_lib.alive(board.folder(run_id))
      for run_id, state in board.states.items() if state == 'started')


def vacant(places: Sequence[Place], board: run_queue.Board,
           ready: int) -> list[Place]:
  """Returns the places that get a worker: as many as there are runs ready
  beyond those that workers without a run will take."""
  at_work = sum(place.process is not None
                and place.process.pid not in board.holders for place in places)
  empty = [place for place in places if not (place.process or place.error)]
  return empty[:max(0, ready - at_work)]


def free(board: run_queue.Board, roles: Collection[str]) -> list[str]:
  """Returns the runs left to do that no live process of this machine has."""
  return [run_id for run_id in board.left(roles)
          if board.states[run_id] == 'new'
          or not lock_lib.alive(board.folder(run_id))]


def stop(processes: Sequence[subprocess.Popen], patience: float = 60.) -> None:
  """Asks workers to save and leave; kills those that do not."""
  for process in processes:
    # All are asked before any is waited for.
    process.send_signal(signal.SIGTERM)
  end = time.monotonic() + patience
  for process in processes:
    try:
      process.wait(max(0., end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
