"""Who is working on a run: one live process at a time, whatever dies.

The lock is the kernel's (flock), so it ends with its holder, however that
ends, and no clock is trusted. The file's text is for people and for the
sweep's table.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import socket
import time

from audiorank import files


class Held(Exception):
  """Another live process has the run."""


class Lease:
  """Holds <workdir>/LEASE while it lives.

  `deaths` counts the holders that died here, one after the other, none of
  which had come further than the one before.

  Raises:
    Held: another process holds it; the message says which.
    OSError: the file system has no locks, such as a bucket that is mounted.
  """

  def __init__(self, workdir):
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self.path = workdir / 'LEASE'
    self.file = open(self.path, 'a+', encoding='utf-8')
    try:
      files.lock(self.file)
    except BlockingIOError:
      self.file.close()
      found = read(workdir)
      raise Held(f'{workdir}: process {found.get("pid", "?")} on '
                 f'{found.get("host", "?")} is working on it') from None
    except OSError as error:
      self.file.close()
      raise OSError(f'{self.path}: cannot be locked ({error.strerror}): '
                    'expected a file system with locks') from None
    # A holder that ended by itself has left the file empty.
    before = read(workdir)
    self.deaths, self.reached = 0, -1
    if before.get('pid'):
      self.deaths = before.get('deaths', 0)
      self.reached = before.get('reached', -1)
      if before.get('machine') == machine():
        self.count_death(before.get('step', 0))
    self.told, self.at = 0., (0, 0)
    self.tell('starting', force=True)

  def count_death(self, step):
    """Counts a holder that died here: anew, where it had come further.

    One that died on another machine is not counted: the machine may have been
    taken away, which is no fault of the run.
    """
    records = self.path.parent / 'records'
    reached = step + (len(os.listdir(records)) if records.is_dir() else 0)
    self.deaths = 1 if reached > self.reached else self.deaths + 1
    self.reached = max(reached, self.reached)

  def tell(self, doing, step=None, steps=None, force=False):
    """Writes what is being done, at most once a second; a call without a
    step keeps the last one."""
    now = time.monotonic()
    if step is not None:
      self.at = (step, steps)
    if not force and now - self.told < 1:
      return
    self.told = now
    text = json.dumps({
        'host': socket.gethostname(), 'machine': machine(),
        'pid': os.getpid(), 'doing': doing, 'step': self.at[0],
        'steps': self.at[1], 'deaths': self.deaths, 'reached': self.reached})
    # A full disk must not end a run for the sake of the sweep's table; what
    # waited in a buffer would be written, and fail, again.
    with contextlib.suppress(OSError):
      os.ftruncate(self.file.fileno(), 0)
      os.write(self.file.fileno(), text.encode())

  def release(self):
    """Gives the run free. The file stays: removing it would let two
    processes each lock a file of that name. Twice is once."""
    if self.file.closed:
      return
    self.file.truncate(0)
    self.file.close()


@functools.cache
def machine():
  """Returns what names this machine since it was started."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  return f'{socket.gethostname()} {boot}'


def read(workdir):
  """Returns what the holder last told, or {}."""
  try:
    return json.loads((pathlib.Path(workdir) / 'LEASE').read_text('utf-8'))
  except (OSError, ValueError):
    return {}


def alive(workdir):
  """Returns whether a live process of this machine holds the run."""
  try:
    with open(pathlib.Path(workdir) / 'LEASE', encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False
