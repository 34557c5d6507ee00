"""The lock of a run's folder: one live process at a time works on a run.

It is a flock of the kernel, so it ends with its process, however that ends, and
depends on no clock. The file is called LEASE. Its text, JSON, says which
process has the run and what it does: for people, for the sweep's table, and
for the next process after one that died.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import socket
import time
from typing import Any

from audiorank import files

# The name of older versions: they and this one must exclude each other.
NAME = 'LEASE'
LockHeld = files.LockHeld


class Lock:
  """Locks a run's folder until it is released or the process ends.

  `deaths` counts the processes in a row that died without getting further than
  the one before. A sweep gives up on a run by it.

  Args:
    workdir: the run's folder; created if missing.

  Raises:
    LockHeld: another process has the lock; the message says which.
    OSError: the file system has no locks, such as a mounted bucket.
  """

  def __init__(self, workdir: files.Path):
    folder = files.path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / NAME
    self.file = open(self.path, 'a+', encoding='utf-8')
    try:
      files.lock(self.file)
    except BlockingIOError:
      self.file.close()
      holder = read(folder)
      raise LockHeld(f'{folder}: process {holder.get("pid", "?")} on '
                     f'{holder.get("host", "?")} is working on it') from None
    except OSError as error:
      self.file.close()
      raise OSError(f'{self.path}: cannot be locked ({error.strerror}): '
                    'expected a file system with locks') from None
    # The report of a process that died. One that ended by itself has emptied
    # the file.
    before = read(folder)
    self.deaths, self.reached = 0, -1
    if before.get('pid'):
      self.deaths = before.get('deaths', 0)
      self.reached = before.get('reached', -1)
      # A death on another machine is not counted: the machine may have been
      # taken away (preempted), which is no fault of the run.
      if before.get('machine') == machine():
        self._count_death(before.get('step', 0))
    self._reported = 0.  # When the file was last written.
    self._step: tuple[int, int | None] = 0, 0  # The last step, of how many.
    self.report('starting', force=True)

  def _count_death(self, step: int) -> None:
    """Counts a death; the count restarts if the process had got further.

    Args:
      step: the last step that the process reported.
    """
    # Scoring takes no steps, but it writes records.
    records, written = self.path.parent / 'records', 0
    if records.is_dir():
      written = len(os.listdir(records))
    reached = step + written
    if reached > self.reached:
      self.deaths = 0
    self.deaths += 1
    self.reached = max(reached, self.reached)

  def report(self, doing: str, step: int | None = None,
             steps: int | None = None, force: bool = False) -> None:
    """Writes what is being done, at most once a second.

    Args:
      doing: such as 'training'.
      step, steps: how far training is; None keeps the last step.
      force: write now, however recent the last report is.
    """
    now = time.monotonic()
    if step is not None:
      self._step = step, steps
    if not force and now - self._reported < 1:
      return
    self._reported = now
    text = json.dumps({
        'host': socket.gethostname(), 'machine': machine(),
        'pid': os.getpid(), 'doing': doing, 'step': self._step[0],
        'steps': self._step[1], 'deaths': self.deaths,
        'reached': self.reached})
    # A full disk must not end a run because of this report. The write is not
    # buffered: a buffer would be written again later, and fail again.
    with contextlib.suppress(OSError):
      os.ftruncate(self.file.fileno(), 0)
      os.write(self.file.fileno(), text.encode())

  def release(self) -> None:
    """Unlocks the run; a second call does nothing."""
    if self.file.closed:
      return
    # The file is emptied, not removed: after a removal, two processes could
    # each lock a file of that name, one of them already removed.
    self.file.truncate(0)
    self.file.close()


@functools.cache
def machine() -> str:
  """Returns the name of this machine and of its last boot."""
  # After a reboot, a death before it is not counted against the run.
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  return f'{socket.gethostname()} {boot}'


def read(workdir: files.Path) -> dict[str, Any]:
  """Returns the last report of the process that has the run, or {}."""
  try:
    return json.loads((pathlib.Path(workdir) / NAME).read_text('utf-8'))
  except (OSError, ValueError):
    return {}


def alive(workdir: files.Path) -> bool:
  """Returns whether a live process has the run locked."""
  try:
    with open(pathlib.Path(workdir) / NAME, encoding='utf-8') as file:
      # A shared lock: two processes that ask at once do not see each other.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False
