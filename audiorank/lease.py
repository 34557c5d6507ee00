"""Who is working on a run: one live process at a time, whatever dies.

The lock is the kernel's (flock), so it ends with its holder, however that
ends, and no clock is trusted. The file's text is for people and for the
sweep's table.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time


class Held(Exception):
  """Another live process has the run."""


class Lease:
  """Holds <workdir>/LEASE while it lives.

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
      fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self.file.close()
      found = read(workdir)
      raise Held(f'{workdir}: process {found.get("pid", "?")} on '
                 f'{found.get("host", "?")} is working on it') from None
    except OSError as error:
      self.file.close()
      raise OSError(f'{self.path}: cannot be locked ({error.strerror}): '
                    'expected a file system with locks') from None
    self.told, self.at = 0., (0, 0)
    self.tell('starting', force=True)

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
        'host': socket.gethostname(), 'pid': os.getpid(), 'doing': doing,
        'step': self.at[0], 'steps': self.at[1]})
    # A full disk must not end a run for the sake of the sweep's table; what
    # waited in a buffer would be written, and fail, again.
    with contextlib.suppress(OSError):
      os.ftruncate(self.file.fileno(), 0)
      os.write(self.file.fileno(), text.encode())

  def release(self):
    """Gives the run free. The file stays: removing it would let two
    processes each lock a file of that name."""
    self.file.truncate(0)
    self.file.close()


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
