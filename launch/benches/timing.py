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


def sized(quick: bool, small: Any, full: Any) -> Any:
  """Returns the small size for a quick bench, otherwise the full one."""
  if quick:
    return small
  return full


class Row(NamedTuple):
  """One line of a bench's table.

  what: name of the measurement.
  ours, rival: names of the two sides.
  ours_value, rival_value: medians, in `unit`.
  ratio: rival over ours, so that above 1 ours is better. It is the median over
    turns; low and high are the smallest and largest. None without a rival.
  goal: the ratio to reach, or None.
  note: what is needed to understand the numbers.
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
    what: name of the measurement.
    ours: a function without arguments; it returns when its work is done.
    rival: the same for the other side.
    repeats: number of turns.
    clock: seconds; time.process_time for CPU time.
    goal: the ratio to reach.
    names: of the two sides.
    note: what is needed to understand the numbers.
    per: number of things that one call does; times are per thing.
    unit: of the times.
  """
  # Compilation and first touches of memory are not timed.
  ours(), rival()
  spent = []
  for turn in range(repeats):
    pair = []
    # Each side is the first in every second turn, because the second one has
    # warm caches and a hotter chip.
    order = [ours, rival]
    if turn % 2:
      order.reverse()
    for function in order:
      began = clock()
      function()
      pair.append((clock() - began) / per)
    if turn % 2:
      # Back to the order (ours, rival).
      pair.reverse()
    spent.append(pair)
  # Ratios within a turn: the speed of the machine drifts between turns.
  ratios = [theirs / mine for mine, theirs in spent]
  mine, theirs = (statistics.median(side) for side in zip(*spent))
  return Row(what, *names, mine, theirs, unit, statistics.median(ratios),
             min(ratios), max(ratios), goal, note)


def alone(what: str, value: float, unit: str, goal: float | None = None,
          note: str = '', ours: str = 'audiorank', rival: str = '',
          rival_value: float | None = None) -> Row:
  """Returns a Row of values that were measured in another way.

  Args:
    what, unit, goal, note, ours, rival: see Row.
    value: ours.
    rival_value: the rival's, or None; the ratio is rival_value over value.
  """
  ratio = None
  if rival_value is not None:
    ratio = rival_value / value
  return Row(what, ours, rival, value, rival_value, unit, ratio, ratio, ratio,
             goal, note)


def absent(what: str, peer: str) -> Row:
  """Returns a Row without values, for a peer that is not installed."""
  return Row(what, 'audiorank', peer, float('nan'), None, '', None, None, None,
             None, f'{peer} is not installed')


def children(jobs: list[Job], workers: int, seconds: float
             ) -> Iterator[tuple[Job, dict[str, Any]]]:
  """Runs jobs in processes of their own; yields their results as they end.

  Args:
    jobs: most important first; the last ones are left out if time runs out.
    workers: number of processes at once.
    seconds: for all jobs.

  Yields:
    (job, the JSON of its last line of output, or {'error': one line}).
  """
  end = time.monotonic() + seconds
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    # Threads only wait for the processes.
    futures = {pool.submit(_child, job, end): job for job in jobs}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()


def _child(job: Job, end: float) -> dict[str, Any]:
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
    # Waits for the end of what was killed.
    process.communicate()
    return {'error': f'stopped after {left:.0f} s'}
  try:
    # Libraries may print before the result.
    return json.loads(out.splitlines()[-1])
  except (IndexError, ValueError):
    lines = [line for line in log.splitlines() if line.strip()]
    return {'error': f'exit code {process.returncode}: '
                     f'{"".join(lines[-1:])[:200]}'}
