"""The lock of a run's folder: one live process at a time works on a run.

On a disk it is a flock of the kernel, so it ends with its process, however that
ends. On a bucket it is a lease, see lease.py: that of a process that died ends
with its term. Neither trusts a clock. The file is called LEASE. Its text, JSON,
says which process has the run and what it does: for people, for the sweep's
table, and for the next process after one that died.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time
from typing import Any

from audiorank import files
from audiorank import lease

# The name of older versions: they and this one must exclude each other.
NAME = 'LEASE'
LockHeld = files.LockHeld
# How long this process has watched which lease on a bucket.
_watch = lease.Watch(lease.clock)
WAIT = 1.  # Seconds between looks at a lease that may have ended.


class _File:
  """A file that the kernel locks for this process.

  Args:
    path: the file.
    fields: report of the process before -> first report of this one.
  """

  def __init__(self, path: pathlib.Path, fields: lease.FieldsOf):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(path, 'a+', encoding='utf-8')
    try:
      # 'a+' above does not truncate: the report of the process before is still
      # there if the lock is held.
      files.lock(self._file)
    except BlockingIOError:
      self._file.close()
      raise LockHeld(lease.holder_text(str(path.parent), read(path.parent))
                     ) from None
    except OSError as error:
      self._file.close()
      raise OSError(f'{path}: cannot be locked ({error.strerror}): '
                    'expected a file system with locks') from None
    # The report of the process before says whether it died.
    self.write(fields(read(path.parent)))

  def write(self, fields: dict[str, Any], now: bool = False) -> None:
    """Writes a report."""
    del now
    # A full disk must not end a run because of this report. The write is not
    # buffered: a buffer would be written again later, and fail again.
    with contextlib.suppress(OSError):
      os.ftruncate(self._file.fileno(), 0)
      os.write(self._file.fileno(), json.dumps(fields).encode())

  def release(self) -> None:
    """Unlocks the file."""
    # The file is emptied, not removed: after a removal, two processes could
    # each lock a file of that name, one of them already removed.
    if not self._file.closed:
      self._file.truncate(0)
      self._file.close()


class _Object:
  """A leased object on a bucket, with the methods of `_File`."""

  def __init__(self, path: pathlib.Path, fields: lease.FieldsOf):
    from audiorank import bucket
    self._folder, term = path.parent, lease.term()
    claim = lease.Lease(str(path.parent), bucket.Leased(path), fields, _watch,
                        lease.clock, term)
    self._heart = lease.Heart(claim, term, lease.stop_process)
    # From now on every write below the folder asks first whether the lease
    # still holds.
    files.guard(self._folder, self._heart.check)

  def write(self, fields: dict[str, Any], now: bool = False) -> None:
    self._heart.update(fields, now)

  def release(self) -> None:
    # Unguarded first: what is written after the release is not ours to stop.
    files.guard(self._folder, None)
    self._heart.release()


class Lock:
  """Locks a run's folder until it is released or the process ends.

  `deaths` counts the processes in a row that died without getting further than
  the one before. A sweep gives up on a run by it. On a bucket, a process that
  loses the lock ends at once with exit code 42.

  Args:
    workdir: the run's folder; created if missing.
    wait: on a bucket, wait until it is known whether the process that has the
      lock is alive: at most the term of a lease.

  Raises:
    LockHeld: another process has the lock; the message says which.
    OSError: the file system has no locks, such as a mounted bucket.
  """

  def __init__(self, workdir: files.Path, wait: bool = False):
    folder = files.path(workdir)
    self.path = folder / NAME
    self.deaths, self.reached = 0, -1
    self._released = False
    self._step: tuple[int, int | None] = 0, 0  # The last step, of how many.
    self._reported = time.monotonic()  # When the file was last written.
    kind = _Object if files.is_on_bucket(folder) else _File
    while True:
      try:
        self._claim: _File | _Object = kind(self.path, self._begin)
        break
      except LockHeld:
        if not (wait and undecided(folder)):
          raise
        time.sleep(WAIT)

  def _begin(self, before: dict[str, Any]) -> dict[str, Any]:
    """Returns the first report, after the last one of the process before."""
    # A process that ended by itself has emptied the file.
    if before.get('pid'):
      self.deaths = before.get('deaths', 0)
      self.reached = before.get('reached', -1)
      # A death on another machine is not counted: the machine may have been
      # taken away (preempted), which is no fault of the run.
      if before.get('machine') == lease.machine():
        self._count_death(before.get('step', 0))
    return self._fields('starting')

  def _count_death(self, step: int) -> None:
    """Counts a death; the count restarts if the process had got further.

    Args:
      step: the last step that the process reported.
    """
    # Scoring takes no steps, but it writes records.
    reached = step + len(files.names(self.path.parent / 'records'))
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
    self._claim.write(self._fields(doing), now=force)

  def _fields(self, doing: str) -> dict[str, Any]:
    """Returns a report."""
    return {**lease.identity(), 'doing': doing, 'step': self._step[0],
            'steps': self._step[1], 'deaths': self.deaths,
            'reached': self.reached}

  def release(self) -> None:
    """Unlocks the run; a second call does nothing."""
    if not self._released:
      self._released = True
      self._claim.release()


def read(workdir: files.Path) -> dict[str, Any]:
  """Returns the last report of the process that has the run, or {}."""
  try:
    return lease.parse((files.path(workdir) / NAME).read_bytes())
  except OSError:
    return {}


def alive(workdir: files.Path) -> bool:
  """Returns whether a live process has the run locked.

  On a bucket: whether a process may have it, as far as is known by now.
  """
  folder = files.path(workdir)
  if files.is_on_bucket(folder):
    return may_live(folder, *_look(folder))
  try:
    with open(folder / NAME, encoding='utf-8') as file:
      # A shared lock: two processes that ask at once do not see each other.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


def undecided(workdir: files.Path) -> bool:
  """Returns whether it is not known yet if the process that has a run is alive.

  On a disk it is always known; on a bucket after watching its lease.
  """
  folder = files.path(workdir)
  if not files.is_on_bucket(folder):
    return False
  fields, generation = _look(folder)
  if not fields or lease.ended(fields):
    return False
  return _watch.undecided(str(folder), generation,
                          fields.get('term', lease.TERM))


def may_live(folder: pathlib.Path, fields: dict[str, Any],
             generation: int) -> bool:
  """Returns whether the process that wrote a lease may be alive, as far as
  this process has watched the lease."""
  if not fields or lease.ended(fields):
    return False
  age = _watch.age(str(folder), generation)
  return age < fields.get('term', lease.TERM)


def _look(folder: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Returns (what the lease of a run says, its generation)."""
  from audiorank import bucket
  data, generation = bucket.Leased(folder / NAME).read()
  return lease.parse(data), generation
