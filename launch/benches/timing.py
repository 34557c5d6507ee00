"""Two things timed in turns: what every bench is made of."""

from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import json
import os
import signal
import statistics
import subprocess
import time
from typing import Any
from typing import NamedTuple


class Row(NamedTuple):
  """One line of a bench's table.

  what: what was measured.  ours, rival: names of the two sides.
  ours_value, rival_value: medians, in `unit`.
  ratio: rival over ours, so that above 1 ours is the better; the median over
    turns, and low, high its least and greatest.  None where there is no rival.
  goal: the ratio to reach, or None.  note: what a reader must know.
  """
  what: str
  ours: str
  rival: str
  ours_value: float
  rival_value: float | None
  unit: str
  ratio: float | None
  low: float | None
  high: float | None
  goal: float | None = None
  note: str = ''


class Job(NamedTuple):
  """A process of its own that measures something."""
  name: str
  command: list[str]
  seconds: float  # It is stopped after so many.
  environment: dict[str, str] = {}


def turns(what: str, ours: Callable[[], Any], rival: Callable[[], Any],
          repeats: int = 5, clock: Callable[[], float] = time.perf_counter,
          goal: float | None = None,
          names: tuple[str, str] = ('audiorank', 'rival'), note: str = '',
          per: float = 1, unit: str = 's') -> Row:
  """Returns a Row of two functions timed in turns, after one call of each.

  Args:
    what: what is measured.
    ours: a function without arguments; it returns when its work is done.
    rival: likewise.
    repeats: how many turns.
    clock: seconds; time.process_time for CPU time.
    goal: the ratio to reach.
    names: of the two sides.
    note: what a reader must know.
    per: how many things one call does; times are given per thing.
    unit: of the times given.
  """
  ours(), rival()
  spent = []
  for turn in range(repeats):
    pair = []
    # Each goes first in every second turn: what runs second finds warm
    # caches and a hotter chip.
    order = (ours, rival) if turn % 2 == 0 else (rival, ours)
    for function in order:
      began = clock()
      function()
      pair.append((clock() - began) / per)
    spent.append(pair if turn % 2 == 0 else pair[::-1])
  ratios = [theirs / mine for mine, theirs in spent]
  mine, theirs = (statistics.median(side) for side in zip(*spent))
  return Row(what, *names, mine, theirs, unit, statistics.median(ratios),
             min(ratios), max(ratios), goal, note)


def alone(what: str, value: float, unit: str, goal: float | None = None,
          note: str = '', ours: str = 'audiorank', rival: str = '',
          rival_value: float | None = None) -> Row:
  """Returns a Row of values that were measured another way.

  The ratio is rival_value over value where there is one.
  """
  ratio = None if rival_value is None else rival_value / value
  return Row(what, ours, rival, value, rival_value, unit, ratio, ratio, ratio,
             goal, note)


def absent(what: str, peer: str) -> Row:
  """Returns the Row that says a peer is not installed."""
  return Row(what, 'audiorank', peer, float('nan'), None, '', None, None, None,
             None, f'{peer} is not installed')


def children(jobs: list[Job], workers: int, seconds: float
             ) -> Iterator[tuple[Job, dict[str, Any]]]:
  """Runs jobs in processes of their own; yields their results as they end.

  Args:
    jobs: in the order of their importance: those that come last are left out
      if the time is over.
    workers: how many run at once.
    seconds: for all of them.

  Yields:
    (job, the JSON of its last line), or {'error': one line} in its place.
  """
  end = time.monotonic() + seconds
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = {pool.submit(_child, job, end): job for job in jobs}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()


def _child(job, end):
  """Returns the result of one job; see `children`."""
  left = min(job.seconds, end - time.monotonic())
  if left <= 0:
    return {'error': 'left out: no time'}
  # A session of its own: what it has started is stopped with it.
  process = subprocess.Popen(
      job.command, env={**os.environ, **job.environment}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
  try:
    out, log = process.communicate(timeout=left)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return {'error': f'stopped after {left:.0f} s'}
  try:
    return json.loads(out.splitlines()[-1])
  except (IndexError, ValueError):
    lines = [line for line in log.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else ''
    return {'error': f'exit code {process.returncode}: {last}'}
