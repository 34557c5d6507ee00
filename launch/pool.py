"""A bounded pool of worker processes, one per group of cores.

Every worker is `python -m launch.train --workdir=<root>/<run_id>`: it may die
at any moment and be started again. Nothing is kept here that the run folders
do not hold, so this process may die as well.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from audiorank import lease
from audiorank import records

AGAIN = 42
DEATHS = 5  # Deaths without progress after which a run is given up.
LONGEST_WAIT = 30.  # Seconds between looks at a run that others hold.
EVALUATION = .1  # Share of a run's work that follows its last step.
# glibc gives large arrays back to the kernel when they are freed, and XLA
# takes them anew at every step: on a CPU that is a sixth of a large step. Here
# they stay with the process, which then holds up to twice the memory.
TUNABLES = ('glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:'
            f'glibc.malloc.trim_threshold={2 ** 62}')


class Job(NamedTuple):
  run_id: str
  work: float  # In any unit; only ratios matter.
  beside: tuple = ()  # Runs that are trained in the same program.

  @property
  def runs(self):
    return (self.run_id, *self.beside)


def grouped(runs, most):
  """Returns the Jobs of runs: up to `most` of one shape in each.

  Args:
    runs: {run_id: (config, work)}.
    most: runs of one program.
  """
  from audiorank import together
  companies = {}
  for run_id, (config, work) in runs.items():
    # An untrained network takes no step: there is nothing to share.
    alone = most == 1 or not config.train.steps
    key = run_id if alone else together.company(config)
    companies.setdefault(key, []).append((run_id, work))
  jobs = []
  for members in companies.values():
    for i in range(0, len(members), most):
      (first, _), *rest = members[i:i + most]
      jobs.append(Job(first, sum(w for _, w in members[i:i + most]),
                           tuple(run_id for run_id, _ in rest)))
  return sorted(jobs, key=lambda job: -job.work)


def core_groups(workers):
  """Returns the cores of each of `workers` workers (Linux), or None each."""
  if not hasattr(os, 'sched_getaffinity'):
    return [None] * workers
  mine = sorted(os.sched_getaffinity(0))
  share = max(1, len(mine) // workers)
  return [set(mine[i * share % len(mine):][:share])
          for i in range(workers)]


@dataclasses.dataclass
class Tries:
  """What became of a run's workers so far."""
  after: float = 0.  # No new worker before this time.
  wait: float = 1.  # Seconds to wait the next time it is held or leaves.
  deaths: int = 0  # Since it last came further.
  reached: float = -1.  # Share done at the last death.
  preempted: int = 0  # Times its machine was taken away.


def cores():
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def command(workdir, beside=()):
  """Returns the one command that every engine starts."""
  more = [f'--beside={",".join(map(str, beside))}'] if beside else []
  return [sys.executable, '-m', 'launch.train', f'--workdir={workdir}', *more]


def environment(threads):
  """Returns the environment of a worker of this process."""
  return {**os.environ, 'AUDIORANK_PARENT': str(os.getpid()),
          'OMP_NUM_THREADS': str(threads),
          'OPENBLAS_NUM_THREADS': str(threads),
          'PYTHONUNBUFFERED': '1', 'TF_CPP_MIN_LOG_LEVEL': '2',
          'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', TUNABLES)}


def start(root, job, cores):
  """Starts one worker on its cores, its output appended to log.txt."""
  workdir, *beside = (pathlib.Path(root) / r for r in job.runs)
  env = environment(len(cores) if cores else os.cpu_count())
  mine = os.sched_getaffinity(0) if cores else None
  with open(workdir / 'log.txt', 'ab') as log:
    if cores:
      os.sched_setaffinity(0, cores)
    try:
      return subprocess.Popen(
          command(workdir, beside), stdin=subprocess.DEVNULL, stdout=log,
          stderr=log, env=env, start_new_session=True)
    finally:
      if cores:
        os.sched_setaffinity(0, mine)


def done_share(root, run_id):
  """Returns how much of a run is done, 0 to 1."""
  workdir = pathlib.Path(root) / run_id
  if records.state(workdir) == 'done':
    return 1.
  told = lease.read(workdir)
  if not told.get('steps'):
    return 0.
  return (1 - EVALUATION) * told['step'] / told['steps']


def share(root, jobs):
  """Returns how much of all jobs' work is done, 0 to 1."""
  total = sum(j.work for j in jobs)
  done = sum(j.work * done_share(root, r) / len(j.runs)
             for j in jobs for r in j.runs)
  return done / total if total else 1.


def last_error(workdir):
  """Returns the last line of a worker's log that says something."""
  try:
    lines = (pathlib.Path(workdir) / 'log.txt').read_text(
        'utf-8', 'replace').splitlines()
  except OSError:
    return ''
  said = [line for line in lines if line.strip()]
  return said[-1][:300] if said else ''


def run(root, jobs, workers, show=lambda _: None, poll=.2):
  """Runs every job to DONE or FAILED; returns {run_id: error} of failures.

  Args:
    root: the sweep's folder, with <run_id>/config.json in it.
    jobs: Jobs, the largest first.
    workers: how many at once.
    show: called with the share of all work that is done.
    poll: seconds between looks.

  Raises:
    KeyboardInterrupt: after the workers were asked to save and have left.
  """
  waiting = [j for j in jobs if any(records.state(
      pathlib.Path(root) / r) != 'done' for r in j.runs)]
  failed, tries = {}, {r: Tries() for j in waiting for r in j.runs}
  slots = dict.fromkeys(range(workers))
  groups = core_groups(workers)
  try:
    while waiting or any(slots.values()):
      now = time.monotonic()
      for slot, busy in slots.items():
        if busy and busy[1].poll() is not None:
          slots[slot] = None
          settle(root, busy[0], busy[1].returncode, waiting, tries, failed)
        if slots[slot] is None:
          ready = [j for j in waiting if tries[j.run_id].after <= now]
          if ready:
            waiting.remove(ready[0])
            slots[slot] = (ready[0], start(root, ready[0], groups[slot]))
      show(share(root, jobs))
      time.sleep(poll)
  except BaseException:
    stop([busy[1] for busy in slots.values() if busy])
    raise
  return failed


def settle(root, job, code, waiting, tries, failed):
  """Decides what an ended worker means: done, again, or failed."""
  workdir = pathlib.Path(root) / job.run_id
  if code == 0:
    return
  if job.beside and 0 < code < 128 and code != AGAIN:
    part(root, job, waiting, failed)
    return
  reached, tried = done_share(root, job.run_id), tries[job.run_id]
  if code == AGAIN:
    # Another launcher's worker has the run, or this one was asked to leave:
    # look again, less and less often.
    tried.after = time.monotonic() + tried.wait
    tried.wait = min(2 * tried.wait, LONGEST_WAIT)
    waiting.append(job)
    return
  if code < 0 or code >= 128:
    tried.deaths = 1 if reached > tried.reached else tried.deaths + 1
    tried.reached = reached
    if tried.deaths < DEATHS:
      waiting.append(job)
      return
    error = f'killed {tried.deaths} times without progress (last by {-code})'
  else:
    error = last_error(workdir) or f'exit code {code}'
  give_up(root, job, error, failed)


def part(root, job, waiting, failed):
  """Lets the runs of a job that made a mistake go on one by one."""
  for run_id in job.runs:
    workdir = pathlib.Path(root) / run_id
    state = records.state(workdir)
    if state == 'failed':
      failed[run_id] = records.read_json(workdir / 'FAILED')['error']
    elif state != 'done':
      waiting.append(Job(run_id, job.work / len(job.runs)))


def give_up(root, job, error, failed):
  """Notes a run as failed, in its folder where it has not done so itself.

  Where that cannot be written (a full disk) the other runs go on, and the
  next sweep takes it up again.
  """
  workdir = pathlib.Path(root) / job.run_id
  failed[job.run_id] = error
  if not (workdir / 'FAILED').exists():
    with contextlib.suppress(OSError):
      records.write_json(workdir / 'FAILED', {'error': error})


def stop(processes, patience=60.):
  """Asks workers to save and leave; kills those that do not."""
  for process in processes:
    process.send_signal(signal.SIGTERM)
  end = time.monotonic() + patience
  for process in processes:
    try:
      process.wait(max(0., end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
