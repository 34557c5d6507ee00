"""The queue of a sweep: which runs remain, and which to work on next.

The state of a run is in its folder: LEASE is locked by the process that works
on it, and TRAINED, DONE and FAILED are written when it gets there. sweep.json
contains what a worker needs of every run to choose without reading its config.
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

from absl import logging

from audiorank import branch
from audiorank import checkpoint
from audiorank import files
from audiorank import lease
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import cli

ROLES = ('train', 'score')
WAIT = 5.  # Seconds between checks of leases that may end.
DEATHS = 5  # A run fails after so many deaths of workers without progress.
EVALUATION = .1  # Share of a run's work after its last step.
# FLOPs of the front end per second of audio. It is most of the work of the
# smallest models, and negligible for large ones.
FRONT_END = 2e7


class Entry(NamedTuple):
  """The entry of a run in sweep.json.

  work: FLOPs; only ratios matter.
  steps: of its training; 0 for an untrained baseline.
  group: equal for runs that can train in one program.
  program: equal for runs that share a compiled training step.
  model: equal for runs that share the programs of evaluation.
  family: equal for runs that can branch from one another; see branch.py.
  branch: the step at which it can begin where a longer one of its family was.
  """
  work: float
  steps: int
  group: str
  program: str
  model: str
  family: str = ''
  branch: int = 0


class Claim(NamedTuple):
  """A run that this process has locked."""
  workdir: pathlib.Path
  config: Any
  lock: lock_lib.Lock
  entry: Entry


class Progress(NamedTuple):
  """The progress of a sweep."""
  runs: int
  done: int
  failed: int
  steps: int
  steps_done: int
  share: float  # Of all work, 0 to 1.


def check_roles(roles: Collection[str]) -> None:
  """Raises ValueError unless all roles are of ROLES."""
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
      model=files.digest(records.plain(config.model)),
      family=branch.family(config), branch=branch.branch_step(config))


def entries_of(tree: Any, path: files.Path) -> dict[str, Any]:
  """Returns {run_id: its entry, or None} of the contents of sweep.json.

  Raises:
    ValueError: it is damaged; names the file.
  """
  runs = None
  if isinstance(tree, dict) and isinstance(tree.get('experiments', {}), dict):
    runs = tree.get('runs')
  if isinstance(runs, list):  # Older versions wrote only names.
    runs = dict.fromkeys(map(str, runs))
  fields = set(Entry._fields)
  # Older versions wrote entries without the fields that have a default.
  needed = fields - set(Entry._field_defaults)
  if not isinstance(runs, dict) or not all(
      about is None or isinstance(about, dict)
      and needed <= set(about) <= fields for about in runs.values()):
    raise ValueError(f'{path}: damaged: expected the runs of a sweep: remove '
                     'it and run the same launch.sweep again')
  return runs


class Board:
  """The runs of a sweep and their states, updated by `look`.

  Attributes:
    entries: {run_id: Entry}.
    states: {run_id: state}; see records.state.
    holders: processes of this machine that have a run.
  """

  def __init__(self, root: str | os.PathLike[str],
               only: Collection[str] | None = None):
    """Reads the states for the first time.

    Args:
      root: the sweep's folder.
      only: the runs to consider; None for all.

    Raises:
      FileNotFoundError: there is no sweep.
    """
    self.root = files.path(root)
    self.only = only if only is None else frozenset(only)
    self.entries: dict[str, Entry] = {}
    self.states: dict[str, str] = {}
    self.holders: set[int] = set()
    self._untouched: set[str] = set()  # Runs that were never locked.
    self._steps: dict[str, int] = {}  # Of runs in progress.
    self._paused: dict[str, int] = {}  # The same, of runs that wait.
    self._written: int | None = None  # Modification time of sweep.json.
    self._trunks: dict[str, str] | None = None  # {family: its longest run}.
    self._alive: dict[str, bool] = {}  # Trunks, since the last `look`.
    self.look()
    if not self.entries:
      raise FileNotFoundError(f'{self.root}: no runs: expected the --root of a '
                              'sweep')

  def look(self) -> None:
    """Updates the states."""
    # A sweep can have 10,000 runs and is read every few seconds: for most runs
    # one system call is enough, for those that are done none. The first call
    # takes some 45 ms of CPU, later ones 15.
    self._read_index()
    state_of = self._state
    if files.is_on_bucket(self.root):
      state_of = self._states_on_bucket().get
    # Done and failed are final for this process.
    for run_id, state in self.states.items():
      if state not in ('done', 'failed'):
        self.states[run_id] = state_of(run_id) or 'new'
    self._steps, self.holders, self._alive = {}, set(), {}
    busy = [run_id for run_id, state in self.states.items()
            if state in ('started', 'trained')]
    for run_id, state in self.states.items():
      if state == 'paused':
        if run_id not in self._paused:
          self._paused[run_id] = paused_step(self.folder(run_id))
        self._steps[run_id] = self._paused[run_id]
      else:
        # It may be paused again, at a later rung.
        self._paused.pop(run_id, None)
    leases = files.mapped(lock_lib.read, map(self.folder, busy), self.root)
    for run_id, holder in zip(busy, leases):
      self._steps[run_id] = holder.get('step', 0)
      # A process id says something on its own machine alone.
      if holder.get('machine') == lease.machine():
        self.holders.add(holder['pid'])

  def folder(self, run_id: str) -> pathlib.Path:
    """Returns the folder of a run."""
    return self.root / run_id

  def _read_index(self) -> None:
    """Reads the runs; another command may have added some."""
    path = self.root / 'sweep.json'
    try:
      # Asking for the time of the file takes less than reading it.
      written = path.stat().st_mtime_ns
    except FileNotFoundError:
      # Without an index, the folders are the runs.
      self._add({f.name: None for f in records.run_folders(self.root)})
      return
    if written != self._written:
      self._written = written
      self._add(entries_of(files.read_json(path), path))

  def _add(self, runs: Mapping[str, dict[str, Any] | None]) -> None:
    """Adds new runs.

    Args:
      runs: {run_id: its entry, or None to compute that from its config}.
    """
    for run_id, about in runs.items():
      if run_id in self.entries or not (
          self.only is None or run_id in self.only):
        continue
      if about is None:
        try:
          config = records.load_config(self.folder(run_id))
        except (ValueError, OSError) as error:
          logging.warning('%s: this run is left out', error)
          continue
        self.entries[run_id] = entry(config)
      else:
        self.entries[run_id] = Entry(**about)
      self.states[run_id] = 'new'
      self._trunks = None

  def _state(self, run_id: str) -> str:
    """Returns records.state with as few system calls as possible."""
    folder = f'{self.root}/{run_id}/'
    if run_id in self._untouched:
      # A process that works on a run locks it first.
      if not os.access(folder + 'LEASE', os.F_OK):
        return 'new'
      self._untouched.discard(run_id)
      return records.state(folder)
    if os.access(folder + 'DONE', os.F_OK):
      return 'done'
    # FAILED may have been written by hand, and a folder that was copied here
    # may lack the lock.
    if not any(os.access(folder + name, os.F_OK)
               for name in ('LEASE', 'FAILED', 'TRAINED',
                            'HALVED')):
      self._untouched.add(run_id)
      return 'new'
    return records.state(folder)

  def _states_on_bucket(self) -> dict[str, str]:
    """Returns {run_id: state} of the runs that were ever locked."""
    # From one listing, because asking for each run takes long on a bucket.
    # The last of these that a run has is its state.
    states = {'LEASE': 'started', 'PAUSED': 'paused', 'HALVED': 'halved',
              'TRAINED': 'trained', 'FAILED': 'failed', 'DONE': 'done'}
    out: dict[str, str] = {}
    paths = self.root.glob(f'*/{{{",".join(states)}}}')
    for path in sorted(paths, key=lambda path: list(states).index(path.name)):
      out[path.parent.name] = states[path.name]
    return out

  def progress(self) -> Progress:
    """Returns the progress of the sweep at the last `look`."""
    states = list(self.states.values())
    steps_done, work, work_done = 0, 0., 0.
    for run_id, state in self.states.items():
      e = self.entries[run_id]
      steps = e.steps
      # What a longer run of its family has computed is no work.
      shared = self.shared(run_id)
      own = e.work * (1 - (1 - EVALUATION) * shared / max(steps, 1))
      # Failed runs count as finished: the time left is of what is still to do.
      share = {'done': 1., 'failed': 1., 'halved': 1.,
               'trained': 1 - EVALUATION}.get(state)
      if share is None:
        steps = min(self._steps.get(run_id, 0), e.steps)
        share = (1 - EVALUATION) * max(steps - shared, 0) / max(
            e.steps - shared, 1)
      steps_done += steps
      work_done += share * own
      work += own
    return Progress(
        len(states), states.count('done'), states.count('failed'),
        sum(e.steps for e in self.entries.values()), steps_done,
        work_done / max(work, 1.))

  def trunk(self, run_id: str) -> str:
    """Returns the run that a run can branch from, or itself.

    It is the longest of the family.
    """
    if self._trunks is None:
      self._trunks = {}
      # The id decides among runs of equal length: all workers must agree.
      for name in sorted(self.entries, key=lambda name: (
          self.entries[name].steps, name)):
        self._trunks[self.entries[name].family] = name
    family = self.entries[run_id].family
    if not family:
      return run_id
    return self._trunks[family]

  def shared(self, run_id: str) -> int:
    """Returns the steps of a run that its trunk computes for it."""
    trunk = self.trunk(run_id)
    if trunk == run_id:
      return 0
    return min(self.entries[name].branch for name in (run_id, trunk))

  def awaits(self, run_id: str) -> bool:
    """Returns whether a run can begin where its trunk, in progress, will be.

    On a bucket every trunk is asked about once a `look`.
    """
    trunk = self.trunk(run_id)
    if trunk == run_id or self.states[run_id] != 'new' or (
        self.states.get(trunk) not in ('new', 'started')):
      return False
    if not files.is_on_bucket(self.root):
      return lock_lib.alive(self.folder(trunk))
    if trunk not in self._alive:
      self._alive[trunk] = lock_lib.alive(self.folder(trunk))
    return self._alive[trunk]

  def left(self, roles: Collection[str]) -> list[str]:
    """Returns the runs that remain for workers with some roles."""
    wanted = set()
    if 'train' in roles:
      wanted |= {'new', 'started'}
    if 'score' in roles:
      wanted.add('trained')
    return [run_id for run_id, state in self.states.items() if state in wanted]


def paused_step(workdir: pathlib.Path) -> int:
  """Returns the step at which a run waits for a decision."""
  # Another worker may have removed it just now.
  try:
    return int(files.read_json(workdir / 'PAUSED')['step'])
  except (OSError, ValueError, KeyError, TypeError):
    return 0


def await_leases(board: Board, roles: Collection[str]) -> bool:
  """Waits if it is not known whether a remaining run still has a worker.

  On a bucket this takes a while, because a lease ends only by its time. It
  also waits while a run that others branch from is in progress.

  Returns:
    whether it has waited.
  """
  if any(board.awaits(run_id) for run_id in board.left(roles)):
    time.sleep(WAIT)
    return True
  # On a disk the kernel knows at once whether a lock is still in use.
  if not files.is_on_bucket(board.root) or not any(files.mapped(
      lock_lib.undecided, map(board.folder, board.left(roles)), board.root)):
    return False
  time.sleep(WAIT)
  return True


def claim(board: Board, roles: Collection[str], last: Entry | None = None,
          size: Callable[[Any], int] = lambda config: 1,
          skip: Collection[str] = (), worker: str = '',
          places: Mapping[str, str] | None = None) -> list[Claim]:
  """Claims the next run, and others to train in one program with it.

  Args:
    board: of the sweep.
    roles: 'train', 'score' or both.
    last: the last run of this worker. Its programs are compiled, so runs that
      share them come first.
    size: config -> how many runs may share a program.
    skip: runs that must not be claimed.
    worker: its name; workers begin with different runs of a group.
    places: {field: folder} of a corpus or tasks that have moved.

  Returns:
    Claims, whose locks the caller has to release. None if no run is left, or if
    others have locked all of them.
  """
  board.look()
  ids = [run_id for run_id in board.left(roles) if run_id not in skip]
  for run_id in in_order(board, ids, last, worker):
    # The lock decides, not the look before: another worker may have been
    # faster.
    if board.awaits(run_id):
      continue
    first = _take(board, run_id, roles, places)
    if first is None:
      continue
    most = 1
    # Untrained networks have no training step to share. A run on which workers
    # died twice may be the cause, so it is alone.
    if (board.states[run_id] != 'trained' and first.entry.steps
        and first.lock.deaths < 2):
      most = size(first.config)
    claims = [first]
    for other in ids:
      if len(claims) == most:
        break
      if other != run_id and _joins(board, other, run_id):
        more = _take(board, other, roles, places)
        if more is not None:
          claims.append(more)
    return at_one_step(claims)
  return []


def _joins(board: Board, run_id: str, first: str) -> bool:
  """Returns whether a run may train in one program with another."""
  if (board.states[run_id] == 'trained' or board.awaits(run_id)
      or board.entries[run_id].group != board.entries[first].group):
    return False
  # One program begins at one step: beside a run that begins at 0, a branch
  # would compute again what its trunk has computed.
  if board.shared(run_id) != board.shared(first):
    return False
  # A run on which a worker died may be the cause, so it is alone.
  return not lock_lib.read(board.folder(run_id)).get('deaths')


def in_order(board: Board, ids: list[str], last: Entry | None,
             worker: str) -> list[str]:
  """Returns runs in the order in which a worker tries to claim them.

  First those whose programs it has compiled, then those whose programs no
  worker has, largest first. Of these, a model that no worker has comes first:
  its initialisation and evaluation are then compiled by one worker, and the
  others find them in the cache.
  """
  started = [board.entries[run_id] for run_id, state in board.states.items()
             if state == 'started']
  programs, models = {e.program for e in started}, {e.model for e in started}
  largest: dict[str, float] = {}
  for run_id in ids:
    e = board.entries[run_id]
    largest[e.program] = max(e.work, largest.get(e.program, 0.))

  def key(run_id: str) -> tuple[Any, ...]:
    e = board.entries[run_id]
    # False sorts before True: each of the first three is a preference.
    return (last is None or e.program != last.program,
            last is None or e.model != last.model, e.model in models,
            e.program in programs, -largest[e.program], e.program, -e.work,
            # Spreads workers over runs that are equal in all else.
            zlib.crc32(f'{worker} {run_id}'.encode()))

  return sorted(ids, key=key)


def _take(board: Board, run_id: str, roles: Collection[str],
          places: Mapping[str, str] | None) -> Claim | None:
  """Returns the Claim of a run, or None if it is locked, done or failed."""
  from audiorank import validate
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
    # A run on which workers die again and again would stop the sweep.
    if lock.deaths >= DEATHS:
      raise ValueError(f'its workers died {lock.deaths} times without progress')
    config = records.load_config(workdir, places)
    # Before the size of the run is computed from them.
    if state != 'trained':
      validate.values(config)
  except (ValueError, OSError) as error:
    # Under the lock, which no other worker has now.
    fail(workdir, error)
    board.states[run_id] = 'failed'
    lock.release()
    return None
  return Claim(workdir, config, lock, board.entries[run_id])


def at_one_step(claims: list[Claim]) -> list[Claim]:
  """Returns the runs that can continue in one program; releases the others.

  They need a save of the same step. It is the newest, or the one before if a
  process died between the saves of two runs.
  """
  # -1 stands for no save yet.
  saves = {c.workdir: checkpoint.steps(c.workdir / 'checkpoints')[-2:] or [-1]
           for c in claims}
  # The step that most runs can start from; others are claimed again later.
  start = max(saves[claims[0].workdir], key=lambda step: sum(
      step in steps for steps in saves.values()))
  for c in claims:
    if start not in saves[c.workdir]:
      c.lock.release()
  return [c for c in claims if start in saves[c.workdir]]


def fail(workdir: pathlib.Path, error: Exception,
         about: dict[str, Any] | None = None) -> None:
  """Marks a run as failed, unless the disk is full or a bucket cannot be
  reached."""
  if isinstance(error, files.StoreError):
    return
  # Some errors have no text.
  text = str(error).strip() or repr(error)
  if not (workdir / 'config.json').is_file():
    return  # The folder was moved or deleted; it is not created again.
  # A disk that is full cannot take this file either.
  with contextlib.suppress(OSError):
    files.write_json(workdir / 'FAILED', {'error': text, **(about or {})})


def reopen(root: pathlib.Path, run_ids: Collection[str]) -> tuple[int, int]:
  """Lets failed runs be tried again, except those that diverged.

  A run whose loss diverged would diverge again at the same step; only
  `launch.sweep retry` lets it be tried again.

  Returns:
    how many are tried again, and how many are not.
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
    # Only a loss that diverged leaves this field.
    if isinstance(about, dict) and 'last_good_step' in about:
      diverged += 1
    else:
      path.unlink(missing_ok=True)
      again += 1
  return again, diverged
