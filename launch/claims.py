"""Which runs of a sweep are left, and taking some: what a worker does next.

A run's folder is the truth: LEASE is locked by the process that works on it,
TRAINED, DONE and FAILED are written when it gets there. sweep.json has what a
worker must know of every run before it reads its config.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import contextlib
import os
import pathlib
import time
from typing import Any
from typing import NamedTuple
import zlib

from audiorank import checkpoint
from audiorank import files
from audiorank import lease
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import cli

ROLES = ('train', 'score')
WAIT = 5.  # Seconds between looks at leases that may end.
DEATHS = 5  # Deaths without progress after which a run is given up.
EVALUATION = .1  # Share of a run's work that follows its last step.
# FLOPs that the front end takes a second of audio: most of the work of the
# smallest models, nothing beside that of large ones.
FRONT_END = 2e7


class Entry(NamedTuple):
  """What is known of a run before its config is read.

  work: FLOPs; only ratios matter.
  steps: of its training; 0 for an untrained baseline.
  group: equal for runs that can train in one program.
  program: equal for runs that share a compiled training step.
  model: equal for runs that share the programs of evaluation.
  """
  work: float
  steps: int
  group: str
  program: str
  model: str


class Claim(NamedTuple):
  """A run that this process holds."""
  workdir: pathlib.Path
  config: Any
  lock: lock_lib.Lock
  entry: Entry


class Progress(NamedTuple):
  """How far a sweep is."""
  runs: int
  done: int
  failed: int
  steps: int
  steps_done: int
  share: float  # Of all work, 0 to 1.


def check_roles(roles: Collection[str]) -> None:
  """Raises ValueError for a role that is none."""
  for role in roles:
    if role not in ROLES:
      raise ValueError(f'--roles={",".join(roles)}: no role {role!r}: expected '
                       f'train, score or both{cli.nearest(role, ROLES)}')
  if not roles:
    raise ValueError('--roles=: expected train, score or both')


def entry(config: Any) -> Entry:
  """Returns the Entry of a config."""
  from audiorank import train
  from audiorank import train_state
  clip = (train_state.flops(config)['total']
          + FRONT_END * config.data.crop_seconds)
  return Entry(
      # Evaluation counts as 200 steps.
      work=clip * config.train.batch * (config.train.steps + 200),
      steps=config.train.steps, group=train.group_key(config),
      program=files.digest(records.plain(train_state.static_config(config))),
      model=files.digest(records.plain(config.model)))


class Board:
  """The runs of a root and their states, as far as they can have changed.

  The first look at a root of 10,000 runs costs some 45 ms of CPU, a later one
  15: one system call a run that nobody has had, none for one that is done.

  Attributes:
    entries: {run_id: Entry}.
    states: {run_id: state}; see records.state.
    holders: processes of this machine that have a run.
  """

  def __init__(self, root: str | os.PathLike[str],
               only: Collection[str] | None = None):
    """Looks for the first time.

    Args:
      root: the sweep's folder.
      only: the runs to know of; None for all.

    Raises:
      FileNotFoundError: there is no sweep.
    """
    self.root = files.path(root)
    self.only = only if only is None else frozenset(only)
    self.entries: dict[str, Entry] = {}
    self.states: dict[str, str] = {}
    self.holders: set[int] = set()
    self._untouched: set[str] = set()  # Runs that nobody has had.
    self._steps: dict[str, int] = {}  # Of runs that somebody works on.
    self._written: int | None = None  # When sweep.json was.
    self.look()
    if not self.entries:
      raise FileNotFoundError(f'{self.root}: no runs: expected the --root of a '
                              'sweep')

  def look(self) -> None:
    """Reads what has changed since the last look."""
    self._read_index()
    state_of = self._state
    if files.is_on_bucket(self.root):
      state_of = self._states_on_bucket().get
    for run_id, state in self.states.items():
      if state not in ('done', 'failed'):
        self.states[run_id] = state_of(run_id) or 'new'
    self._steps, self.holders = {}, set()
    busy = [run_id for run_id, state in self.states.items()
            if state in ('started', 'trained')]
    leases = files.mapped(lock_lib.read, map(self.folder, busy), self.root)
    for run_id, holder in zip(busy, leases):
      self._steps[run_id] = holder.get('step', 0)
      if holder.get('machine') == lease.machine():
        self.holders.add(holder['pid'])

  def folder(self, run_id: str) -> pathlib.Path:
    """Returns the folder of a run."""
    return self.root / run_id

  def _read_index(self) -> None:
    """Reads the runs; another command may have added some."""
    path = self.root / 'sweep.json'
    try:
      written = path.stat().st_mtime_ns
    except FileNotFoundError:
      self._add({f.name: None for f in records.run_folders(self.root)})
      return
    if written != self._written:
      self._written = written
      runs = files.read_json(path)['runs']
      # Older versions wrote the names alone.
      self._add(runs if isinstance(runs, dict) else dict.fromkeys(runs))

  def _add(self, runs: Mapping[str, dict[str, Any] | None]) -> None:
    """Adds the runs that are not known yet; None: its config says the rest."""
    for run_id, about in runs.items():
      if run_id in self.entries or not (
          self.only is None or run_id in self.only):
        continue
      if about is None:
        config = records.load_config(self.folder(run_id))
        self.entries[run_id] = entry(config)
      else:
        self.entries[run_id] = Entry(**about)
      self.states[run_id] = 'new'

  def _state(self, run_id: str) -> str:
    """Returns records.state with as few system calls as will do."""
    folder = f'{self.root}/{run_id}/'
    if run_id in self._untouched:
      # Whoever works on a run locks it first.
      if not os.access(folder + 'LEASE', os.F_OK):
        return 'new'
      self._untouched.discard(run_id)
      return records.state(folder)
    if os.access(folder + 'DONE', os.F_OK):
      return 'done'
    # FAILED may have been written by hand.
    if not (os.access(folder + 'LEASE', os.F_OK)
            or os.access(folder + 'FAILED', os.F_OK)):
      self._untouched.add(run_id)
      return 'new'
    return records.state(folder)

  def _states_on_bucket(self) -> dict[str, str]:
    """Returns {run_id: state} of the runs that somebody has had, of one
    listing."""
    out: dict[str, str] = {}
    # The last of these that a run has is its state.
    for name, state in (('LEASE', 'started'), ('TRAINED', 'trained'),
                        ('FAILED', 'failed'), ('DONE', 'done')):
      for path in self.root.glob(f'*/{name}'):
        out[path.parent.name] = state
    return out

  def progress(self) -> Progress:
    """Returns how far the sweep was at the last look."""
    states = list(self.states.values())
    steps_done, work_done = 0, 0.
    for run_id, state in self.states.items():
      e = self.entries[run_id]
      steps = e.steps
      share = {'done': 1., 'failed': 1., 'trained': 1 - EVALUATION}.get(state)
      if share is None:
        steps = min(self._steps.get(run_id, 0), e.steps)
        share = (1 - EVALUATION) * steps / max(e.steps, 1)
      steps_done += steps
      work_done += share * e.work
    work = sum(e.work for e in self.entries.values())
    return Progress(
        len(states), states.count('done'), states.count('failed'),
        sum(e.steps for e in self.entries.values()), steps_done,
        work_done / max(work, 1.))

  def left(self, roles: Collection[str]) -> list[str]:
    """Returns the runs that are left to do for workers of some roles."""
    wanted = set()
    if 'train' in roles:
      wanted |= {'new', 'started'}
    if 'score' in roles:
      wanted.add('trained')
    return [run_id for run_id, state in self.states.items() if state in wanted]


def await_leases(board: Board, roles: Collection[str]) -> bool:
  """Waits where it is not known yet whether the holder of a run that is left
  still lives, as on a bucket for a while; returns whether that was so."""
  if not files.is_on_bucket(board.root) or not any(files.mapped(
      lock_lib.undecided, map(board.folder, board.left(roles)), board.root)):
    return False
  time.sleep(WAIT)
  return True


def claim(board: Board, roles: Collection[str], last: Entry | None = None,
          size: Callable[[Any], int] = lambda config: 1,
          skip: Collection[str] = (), worker: str = '',
          places: Mapping[str, str] | None = None) -> list[Claim]:
  """Takes the run whose turn it is, and those to train in one program with it.

  Args:
    board: the sweep's.
    roles: 'train', 'score' or both.
    last: what this worker did last; its programs are compiled, so runs that
      share them come first.
    size: config -> how many runs may share a program here.
    skip: runs not to be taken.
    worker: its name: workers begin at different runs of a shape.
    places: {field: folder} of a corpus or tasks that have moved.

  Returns:
    Claims, whose locks the caller releases; none where nothing is left, or
    what is left is held by others.
  """
  board.look()
  ids = [run_id for run_id in board.left(roles) if run_id not in skip]
  for run_id in in_order(board, ids, last, worker):
    first = _take(board, run_id, roles, places)
    if first is None:
      continue
    most = 1
    # An untrained network takes no step: there is nothing to share.
    if (board.states[run_id] != 'trained' and first.entry.steps
        and first.lock.deaths < 2):
      most = size(first.config)
    claims = [first]
    for other in ids:
      if len(claims) == most:
        break
      if other != run_id and _joins(board, other, first.entry):
        more = _take(board, other, roles, places)
        if more is not None:
          claims.append(more)
    return at_one_step(claims)
  return []


def _joins(board: Board, run_id: str, first: Entry) -> bool:
  """Returns whether a run may train in one program with another."""
  if (board.states[run_id] == 'trained'
      or board.entries[run_id].group != first.group):
    return False
  # Its workers died more than once: it may be the cause, and goes on alone.
  return not lock_lib.read(board.folder(run_id)).get('deaths')


def in_order(board: Board, ids: list[str], last: Entry | None,
             worker: str) -> list[str]:
  """Returns runs in the order in which a worker tries to take them.

  First those whose programs it has compiled, then those of programs that
  nobody works on, the largest first.
  """
  busy = {board.entries[run_id].program
          for run_id, state in board.states.items() if state == 'started'}
  largest: dict[str, float] = {}
  for run_id in ids:
    e = board.entries[run_id]
    largest[e.program] = max(e.work, largest.get(e.program, 0.))

  def key(run_id: str) -> tuple[Any, ...]:
    e = board.entries[run_id]
    return (last is None or e.program != last.program,
            last is None or e.model != last.model, e.program in busy,
            -largest[e.program], e.program, -e.work,
            zlib.crc32(f'{worker} {run_id}'.encode()))

  return sorted(ids, key=key)


def _take(board: Board, run_id: str, roles: Collection[str],
          places: Mapping[str, str] | None) -> Claim | None:
  """Returns the Claim of a run, or None where it cannot be had."""
  workdir = board.folder(run_id)
  try:
    lock = lock_lib.Lock(workdir)
  except lock_lib.LockHeld:
    return None
  # Another worker may have finished it since the last look.
  board.states[run_id] = state = records.state(workdir)
  if run_id not in board.left(roles) and state != 'new':
    lock.release()
    return None
  try:
    if lock.deaths >= DEATHS:
      raise ValueError(f'its workers died {lock.deaths} times without progress')
    config = records.load_config(workdir, places)
  except (ValueError, OSError) as error:
    fail(workdir, error)
    board.states[run_id] = 'failed'
    lock.release()
    return None
  return Claim(workdir, config, lock, board.entries[run_id])


def at_one_step(claims: list[Claim]) -> list[Claim]:
  """Returns the runs that can go on together; the others are released.

  They need a save of one step: the newest, or the one before it where a
  process died between the saves of two runs.
  """
  saves = {c.workdir: checkpoint.steps(c.workdir / 'checkpoints')[-2:] or [-1]
           for c in claims}
  start = max(saves[claims[0].workdir], key=lambda step: sum(
      step in steps for steps in saves.values()))
  for c in claims:
    if start not in saves[c.workdir]:
      c.lock.release()
  return [c for c in claims if start in saves[c.workdir]]


def fail(workdir: pathlib.Path, error: Exception,
         about: dict[str, Any] | None = None) -> None:
  """Marks a run as failed, where the disk has room for that."""
  text = str(error).strip() or repr(error)
  if not (workdir / 'config.json').is_file():
    return  # The folder was moved or deleted; it is not created again.
  with contextlib.suppress(OSError):
    files.write_json(workdir / 'FAILED', {'error': text, **(about or {})})


def reopen(root: pathlib.Path, run_ids: Collection[str]) -> tuple[int, int]:
  """Lets runs that failed be tried again; returns how many, and how many not.

  A run whose loss diverged would diverge again at the same step: only
  `launch.sweep retry` has it tried.
  """
  again, diverged = 0, 0
  for run_id in run_ids:
    path = root / run_id / 'FAILED'
    if not path.exists():
      continue
    try:
      about = files.read_json(path)
    except ValueError:
      about = {}
    if isinstance(about, dict) and 'last_good_step' in about:
      diverged += 1
    else:
      path.unlink(missing_ok=True)
      again += 1
  return again, diverged
