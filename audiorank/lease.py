"""A lock on a bucket: a lease, with an object's generation as its heartbeat.

The holder rewrites the object every third of the lease's term, with the
precondition that the object still has the generation of the holder's last
write. A contender notes the generation and waits. If it does not change for a
whole term, the holder is dead, and the contender writes the object with the
precondition of that generation. Of two contenders, one succeeds. An empty
object is a released lease and can be acquired at once.

Every process measures time by its own monotonic clock; no two clocks are
compared. A holder that cannot renew stops before its term ends, counted from
the moment before it sent its last write. So it stops before a contender can
acquire the lease.
"""

from collections.abc import Callable
import contextlib
import functools
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any
from typing import NoReturn
from typing import Protocol

from audiorank import files

TERM = 90.  # Seconds; the environment's AUDIORANK_LEASE_SECONDS replaces it.
BEAT = 1 / 3  # Share of the term between two writes.
MARGIN = 1 / 6  # The holder stops this share of the term before its end.
SPACING = 1.  # Seconds between writes of an object: buckets accept no more.
TRIES = 3  # Attempts of a write that meets earlier writes of its own process.
LOST = 42  # Exit code of a process that lost its lease: run it again.

Fields = dict[str, Any]  # The content of a lease: JSON.
FieldsOf = Callable[[Fields], Fields]


class Lost(Exception):
  """This process no longer has the lease, or cannot know that it has."""


class Store(Protocol):
  """One object, which is read and written as a whole."""

  def read(self, timeout: float) -> tuple[bytes, int]:
    """Returns (data, generation); (b'', 0) if there is no object."""

  def write(self, data: bytes, generation: int, timeout: float) -> int:
    """Replaces the object of a generation; returns the new generation.

    Raises:
      files.Changed: the object has another generation.
      OSError: it is unknown whether the object was written.
    """


class Watch:
  """For how long this process has seen each lease unchanged.

  Args:
    clock: a monotonic clock, in seconds.
  """

  def __init__(self, clock: Callable[[], float]):
    self._clock = clock
    # name -> (generation, when it was first seen, whether it is a later one)
    self._seen: dict[str, tuple[int, float, bool]] = {}

  def age(self, name: str, generation: int) -> float:
    """Returns the seconds since a lease was first seen at a generation."""
    now = self._clock()
    # Clocks of machines differ, so times in a lease are never compared with
    # this one's; only how long it stays unchanged counts.
    if name not in self._seen:
      self._seen[name] = generation, now, False
    elif self._seen[name][0] != generation:
      self._seen[name] = generation, now, True
    return now - self._seen[name][1]

  def undecided(self, name: str, generation: int, term: float) -> bool:
    """Returns whether it is not known yet if the holder of a lease is alive."""
    age = self.age(name, generation)
    return age < term and not self._seen[name][2]


class Lease:
  """A lease that this process has acquired.

  Args:
    name: the object's name, for messages.
    store: the object.
    fields: content of the lease before, {} if it was free -> first content
      of this lease.
    watch: this process's record of the leases that it has seen.
    clock: monotonic, in seconds.
    term: seconds.

  Raises:
    files.LockHeld: another process has it, or may have it.
    OSError: the store cannot be reached.
  """

  def __init__(self, name: str, store: Store, fields: FieldsOf, watch: Watch,
               clock: Callable[[], float], term: float):
    self.name, self._store, self._clock = name, store, clock
    self._term = term
    self._beats, self._mark = 0, secrets.token_hex(8)
    self._guard = threading.Lock()
    data, generation = store.read(timeout=term * MARGIN)
    before = parse(data)
    # A lease is free if it is empty, if its process is known to have ended, or
    # if nobody renewed it for a whole term.
    if data and not ended(before) and (
        watch.age(name, generation) < before.get('term', term)):
      raise files.LockHeld(holder_text(name, before))
    self._fields = fields(before)
    self._generation, self._renewed = generation, -float('inf')
    # The write is conditional on the generation: of two that try, one gets it.
    try:
      self._write()
    except files.Changed:
      data, generation = store.read(timeout=term * MARGIN)
      watch.age(name, generation)
      raise files.LockHeld(holder_text(name, parse(data))) from None

  def expired(self) -> bool:
    """Returns whether another process may have acquired the lease by now."""
    return self._clock() - self._renewed > self._term * (1 - MARGIN)

  def update(self, fields: Fields) -> None:
    """Sets the content of the next write."""
    self._fields = fields

  def beat(self) -> None:
    """Renews the lease.

    Raises:
      Lost: another process has it.
      OSError: it is unknown whether it was renewed.
    """
    with self._guard:
      # Another process may have it already: a write now could undo theirs.
      if self.expired():
        raise Lost(f'{self.name}: could not be renewed in time')
      try:
        self._write()
      except files.Changed:
        raise Lost(f'{self.name}: another process has taken the run over'
                   ) from None

  def release(self) -> None:
    """Releases the lease, if this process still has it."""
    with self._guard, contextlib.suppress(files.Changed, OSError):
      if not self.expired():
        self._store.write(b'', self._generation,
                          timeout=self._term * MARGIN)
      self._renewed = -float('inf')

  def _write(self) -> None:
    """Renews the lease with its current content."""
    # From before the request: the term counts for others from when the object
    # changed, which is later.
    sent = self._clock()
    self._beats += 1
    # No two writes are equal, so that a process recognizes its own.
    data = json.dumps({**self._fields, 'term': self._term, 'mark': self._mark,
                       'beat': self._beats}).encode()
    for _ in range(TRIES):
      try:
        self._generation = self._store.write(data, self._generation,
                                             timeout=self._term * MARGIN)
        break
      except files.Changed:
        # A write that timed out, or whose answer was lost, may have succeeded
        # after all: this one, or an earlier one of this process.
        there, generation = self._store.read(timeout=self._term * MARGIN)
        if parse(there).get('mark') != self._mark:
          raise
        self._generation = generation
        if there == data:
          break
    else:
      raise OSError(f'{self.name}: cannot be renewed')
    self._renewed = sent


class Heart:
  """A thread that renews a lease until it is released.

  Args:
    lease: an acquired lease.
    term: its term, in seconds.
    on_lost: called once with the reason, if the lease is lost.
  """

  def __init__(self, lease: Lease, term: float,
               on_lost: Callable[[str], None]):
    self.lease, self._term, self._on_lost = lease, term, on_lost
    self._wake, self._stop = threading.Event(), threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def update(self, fields: Fields, now: bool) -> None:
    """Sets the content of the next write; `now` brings it forward."""
    self.lease.update(fields)
    if now:
      self._wake.set()

  def check(self) -> None:
    """Stops the process if its lease may have been acquired by another.

    Called before each write of a file that the next holder writes as well.
    """
    if not self._stop.is_set() and self.lease.expired():
      self._on_lost(f'{self.lease.name}: not renewed for too long')

  def release(self) -> None:
    """Releases the lease; a second call does nothing."""
    if self._stop.is_set():
      return
    self._stop.set()
    self._wake.set()
    # A beat under way must end first, or it would renew what is released.
    self._thread.join(self._term)
    self.lease.release()

  def _run(self) -> None:
    spacing = min(SPACING, self._term / 10)
    wait = self._term * BEAT
    while not self._stop.wait(spacing):
      # `update` may bring a beat forward, but never closer than the spacing.
      self._wake.wait(wait - spacing)
      self._wake.clear()
      if self._stop.is_set():
        return
      try:
        self.lease.beat()
        wait = self._term * BEAT
      except Lost as error:
        self._on_lost(str(error))
        return
      except OSError:
        wait = spacing  # Until the lease has expired.


def clock() -> float:
  """Returns seconds of a monotonic clock."""
  # One that also runs while the machine is suspended, if there is one.
  if hasattr(time, 'CLOCK_BOOTTIME'):
    return time.clock_gettime(time.CLOCK_BOOTTIME)
  return time.monotonic()


def stop_process(reason: str) -> NoReturn:
  """Ends this process at once: another process has its run."""
  print(f'{reason}: stopping', file=sys.stderr, flush=True)
  os._exit(LOST)


def term() -> float:
  """Returns the term of leases of this process, in seconds.

  Raises:
    ValueError: AUDIORANK_LEASE_SECONDS is no positive number.
  """
  text = os.environ.get('AUDIORANK_LEASE_SECONDS')
  if not text:
    return TERM
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.
  if not 0 < seconds < float('inf'):
    raise ValueError(f'AUDIORANK_LEASE_SECONDS={text}: expected a positive '
                     'number of seconds')
  return seconds


def parse(data: bytes) -> Fields:
  """Returns the content of a lease, or {} if it is free or unreadable."""
  try:
    fields = json.loads(data)
  except (ValueError, RecursionError):
    return {}
  return fields if isinstance(fields, dict) else {}


def holder_text(name: str, fields: Fields) -> str:
  """Returns a message that names the holder of a lease."""
  return (f'{name}: process {fields.get("pid", "?")} on '
          f'{fields.get("host", "?")} is working on it')


# --- Processes of this machine ---


def identity() -> Fields:
  """Returns the part of a lease that identifies its process."""
  return {'host': socket.gethostname(), 'machine': machine(),
          'pid': os.getpid(), 'namespace': _namespace(),
          'started': _started(os.getpid())}


def ended(fields: Fields) -> bool:
  """Returns whether the process of a lease is known to have ended.

  Only processes of this machine, in the same container, can be looked up.
  """
  pid = fields.get('pid')
  if not (isinstance(pid, int) and fields.get('machine') == machine()
          and fields.get('namespace') and fields['namespace'] == _namespace()):
    return False
  return _started(pid) != fields.get('started')


@functools.cache
def machine() -> str:
  """Returns the name of this machine and of its last boot."""
  # After a reboot, process ids are assigned anew.
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  return f'{socket.gethostname()} {boot}'


@functools.cache
def _namespace() -> str:
  """Returns the namespace of process ids: a container has its own."""
  try:
    return os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _started(pid: int) -> str:
  """Returns when a process started, in clock ticks; '' if it has ended."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  # After the name in parentheses, which may itself contain spaces; field 22 of
  # stat, counted from 1, is the start time.
  state, *fields = text.rpartition(')')[2].split()
  return '' if state in 'ZX' else fields[18]
