"""Which process works on a run: one live process at a time, whatever dies.

The kernel holds the lock (flock), so it ends with the process that has it,
however that ends, and no clock is trusted. The file is called LEASE; its text,
JSON, says who has the run and what is being done: for people, for the sweep's
table, and for whoever takes the run over from a process that died.
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

NAME = 'LEASE'  # Older versions lock a file of this name too.
LockHeld = files.LockHeld


class Lock:
  """Locks a run's folder until it is released or the process ends.

  `deaths` counts the processes that died here one after the other, none of
  which had come further than the one before.

  Args:
    workdir: the run's folder; created where it is missing.

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
    # A process that ended by itself has left the file empty.
    before = read(folder)
    self.deaths, self.reached = 0, -1
    if before.get('pid'):
      self.deaths = before.get('deaths', 0)
      self.reached = before.get('reached', -1)
      if before.get('machine') == machine():
        self._count_death(before.get('step', 0))
    self._reported = 0.  # When the file was last written.
    self._step: tuple[int, int | None] = 0, 0  # The last step, of how many.
    self.report('starting', force=True)

  def _count_death(self, step: int) -> None:
    """Counts a process that died here, from 1 where it had come further.

    One that died on another machine is not counted: the machine may have been
    taken away, which is no fault of the run.
    """
    records = self.path.parent / 'records'
    written = len(os.listdir(records)) if records.is_dir() else 0
    reached = step + written
    self.deaths = 1 if reached > self.reached else self.deaths + 1
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
    # A full disk must not end a run for the sake of the sweep's table. Not
    # buffered: what waited in a buffer would be written, and fail, again.
    with contextlib.suppress(OSError):
      os.ftruncate(self.file.fileno(), 0)
      os.write(self.file.fileno(), text.encode())

  def release(self) -> None:
    """Unlocks the run; a second call does nothing.

    The file stays: were it removed, two processes could each lock a file of
    that name.
    """
    if self.file.closed:
      return
    self.file.truncate(0)
    self.file.close()


@functools.cache
def machine() -> str:
  """Returns what names this machine since it was started."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  return f'{socket.gethostname()} {boot}'


def read(workdir: files.Path) -> dict[str, Any]:
  """Returns what the process that has the run last reported, or {}."""
  try:
    return json.loads((pathlib.Path(workdir) / NAME).read_text('utf-8'))
  except (OSError, ValueError):
    return {}


def alive(workdir: files.Path) -> bool:
  """Returns whether a live process has the run locked."""
  try:
    with open(pathlib.Path(workdir) / NAME, encoding='utf-8') as file:
      # Shared: two that look at once do not see each other.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False
