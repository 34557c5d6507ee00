"""Who works on something, where no kernel can lock a file: an object says it.

The generation of an object is a heartbeat. Whoever has the lease writes the
object again every BEAT of its term, each time on the condition that it is
still of the generation that the last write gave it. Whoever wants it notes the
generation and waits: one that does not change for the whole term belongs to
nobody, and the object is written on the condition of that generation. Of two
that try, one succeeds. An empty object was released and may be taken at once.

Times are spans of each process's own monotonic clock; no two clocks are
compared. A holder that cannot renew stops before its term is over, counted
from before its last write was sent: so before anybody may take the lease.
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
BEAT = 1 / 3  # Of the term, between two writes.
MARGIN = 1 / 6  # Of the term, at the end of which a holder has stopped.
SPACING = 1.  # Seconds between writes: a store takes one a second.
TRIES = 3  # Of a write that meets earlier ones of its own process.
LOST = 42  # Exit code of a process that lost its lease: run me again.

Fields = dict[str, Any]  # What a lease says, as JSON material.
FieldsOf = Callable[[Fields], Fields]


class Lost(Exception):
  """The lease belongs to another process, or to nobody known any more."""


class Store(Protocol):
  """One object, read and written whole."""

  def read(self, timeout: float) -> tuple[bytes, int]:
    """Returns (data, generation); (b'', 0) where there is none."""

  def write(self, data: bytes, generation: int, timeout: float) -> int:
    """Writes on the condition of a generation; returns the new one.

    Raises:
      files.Changed: the condition does not hold.
      OSError: it is not known whether anything was written.
    """


class Watch:
  """When generations of leases were first seen by this process.

  Args:
    clock: a monotonic clock, in seconds.
  """

  def __init__(self, clock: Callable[[], float]):
    self._clock = clock
    # Name -> (generation, when it was first seen, whether it had changed).
    self._seen: dict[str, tuple[int, float, bool]] = {}

  def age(self, name: str, generation: int) -> float:
    """Returns the seconds for which a lease has been of a generation."""
    now = self._clock()
    if name not in self._seen:
      self._seen[name] = generation, now, False
    elif self._seen[name][0] != generation:
      self._seen[name] = generation, now, True
    return now - self._seen[name][1]

  def undecided(self, name: str, generation: int, term: float) -> bool:
    """Returns whether it is not yet known if the holder of a lease lives."""
    age = self.age(name, generation)
    return age < term and not self._seen[name][2]


class Lease:
  """What one process has, or has not, of a leased object.

  Args:
    name: of the object, for messages.
    store: the object.
    fields: returns what the lease says at first, of what it said before; {}
      where it was free.
    watch: of this process; remembers how long it has seen which generation.
    clock: monotonic, in seconds.
    term: seconds.

  Raises:
    files.LockHeld: somebody has it, or may have it.
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
    if data and not ended(before) and (
        watch.age(name, generation) < before.get('term', term)):
      raise files.LockHeld(holder_text(name, before))
    self._fields = fields(before)
    self._generation, self._renewed = generation, -float('inf')
    try:
      self._write()
    except files.Changed:
      data, generation = store.read(timeout=term * MARGIN)
      watch.age(name, generation)
      raise files.LockHeld(holder_text(name, parse(data))) from None

  def expired(self) -> bool:
    """Returns whether another process may have the lease by now."""
    return self._clock() - self._renewed > self._term * (1 - MARGIN)

  def update(self, fields: Fields) -> None:
    """Sets what the next beat says."""
    self._fields = fields

  def beat(self) -> None:
    """Renews the lease.

    Raises:
      Lost: it is another's.
      OSError: it is not known whether it was renewed.
    """
    with self._guard:
      if self.expired():
        raise Lost(f'{self.name}: could not be renewed in time')
      try:
        self._write()
      except files.Changed:
        raise Lost(f'{self.name}: another process has taken the run over'
                   ) from None

  def release(self) -> None:
    """Frees the lease at once, if it is still ours."""
    with self._guard, contextlib.suppress(files.Changed, OSError):
      if not self.expired():
        self._store.write(b'', self._generation,
                          timeout=self._term * MARGIN)
      self._renewed = -float('inf')

  def _write(self) -> None:
    """Writes what the lease says, on the condition that it is unchanged."""
    sent = self._clock()
    self._beats += 1
    # No two writes are equal, so that a process knows its own again.
    data = json.dumps({**self._fields, 'term': self._term, 'mark': self._mark,
                       'beat': self._beats}).encode()
    for _ in range(TRIES):
      try:
        self._generation = self._store.write(data, self._generation,
                                             timeout=self._term * MARGIN)
        break
      except files.Changed:
        # A write that was given up, or whose answer was lost, may have come
        # to pass: this one, or one before it.
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
  """Renews a lease in a thread until it is released.

  Args:
    lease: an acquired lease.
    term: its term, in seconds.
    on_lost: called with the reason, once, where it is lost.
  """

  def __init__(self, lease: Lease, term: float,
               on_lost: Callable[[str], None]):
    self.lease, self._term, self._on_lost = lease, term, on_lost
    self._wake, self._stop = threading.Event(), threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def update(self, fields: Fields, now: bool) -> None:
    """Sets what the next beat says, and lets it follow soon if `now`."""
    self.lease.update(fields)
    if now:
      self._wake.set()

  def check(self) -> None:
    """Stops a process whose lease may be another's: called before it writes
    what another process may write as well."""
    if not self._stop.is_set() and self.lease.expired():
      self._on_lost(f'{self.lease.name}: not renewed for too long')

  def release(self) -> None:
    """Frees the lease; a second call does nothing."""
    if self._stop.is_set():
      return
    self._stop.set()
    self._wake.set()
    self._thread.join(self._term)
    self.lease.release()

  def _run(self) -> None:
    spacing = min(SPACING, self._term / 10)
    wait = self._term * BEAT
    while not self._stop.wait(spacing):
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
  """Returns seconds that go on while the machine sleeps, where it says so."""
  if hasattr(time, 'CLOCK_BOOTTIME'):
    return time.clock_gettime(time.CLOCK_BOOTTIME)
  return time.monotonic()


def stop_process(reason: str) -> NoReturn:
  """Ends this process at once: what it works on is another's."""
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
  """Returns what a lease says, or {} where it is free or unreadable."""
  try:
    fields = json.loads(data)
  except ValueError:
    return {}
  return fields if isinstance(fields, dict) else {}


def holder_text(name: str, fields: Fields) -> str:
  """Returns who has something, as a message."""
  return (f'{name}: process {fields.get("pid", "?")} on '
          f'{fields.get("host", "?")} is working on it')


# --- Processes of this machine ---


def identity() -> Fields:
  """Returns what a lease says of its process."""
  return {'host': socket.gethostname(), 'machine': machine(),
          'pid': os.getpid(), 'namespace': _namespace(),
          'started': _started(os.getpid())}


def ended(fields: Fields) -> bool:
  """Returns whether the process of a lease is known to have ended: one of this
  machine that is not there any more."""
  pid = fields.get('pid')
  if not (isinstance(pid, int) and fields.get('machine') == machine()
          and fields.get('namespace') and fields['namespace'] == _namespace()):
    return False
  return _started(pid) != fields.get('started')


@functools.cache
def machine() -> str:
  """Returns what names this machine since it was started."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  return f'{socket.gethostname()} {boot}'


@functools.cache
def _namespace() -> str:
  """Returns what process numbers are counted in: a container has its own."""
  try:
    return os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _started(pid: int) -> str:
  """Returns when a process was started, in ticks, or '' where there is none."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  state, *fields = text.rpartition(')')[2].split()
  return '' if state in 'ZX' else fields[18]
