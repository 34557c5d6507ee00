"""A sweep's runs over a Ray cluster: one-host runs, or one run a TPU slice.

  python -m launch.sweep --engine=ray --address=auto --root=DIR --config=FILE

Ray Core alone, and here alone: it finds the machines and says which were
lost. Every host of a run gets a task that starts the one worker command as a
process of its own, because XLA ends its process when a peer is lost, and
libtpu's lock outlives a Ray worker that is used again. The root must be a
folder that every node sees, and the repository lie at one place on all.

A run that was preempted (exit code 42, a Ray worker or a node lost) and a run
that dies by itself have budgets of their own: PREEMPTIONS and pool.DEATHS.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any
from typing import NamedTuple

from audiorank import records
from launch import pool

PREEMPTIONS = 10_000  # Of one run: machines that are taken away are no fault.
# Ray waits for ever for a slice that lost a host after it was reserved.
RESERVE, READY = 5., 30.  # Seconds for a slice's head, for its other hosts.
LEAVE = 60.  # Seconds for a worker to save and leave when it is cancelled.
# Seconds for the other hosts to follow, when one of a slice has ended: Ray
# may need a minute to find that a machine is gone.
FOLLOW = 90.
STORE = 2 ** 27  # Bytes of the object store, which holds exit codes.
FOLDER = pathlib.Path(__file__).parents[1]


class Needs(NamedTuple):
  """What one run takes.

  cores, gpus: of a one-host run.
  machine, topology: of the TPU slice that a run takes instead, such as v4
    and 2x2x2; '' for none.
  """
  cores: int
  gpus: int
  machine: str
  topology: str


class Started(NamedTuple):
  """A run on its hosts: a task each, and the slice that is held for them."""
  job: pool.Job
  tasks: list
  slice: Any


def worker(workdir, threads, coordinator=''):
  """Runs the one worker command on this host; returns its exit code.

  Args:
    workdir: the run's folder.
    threads: of the numerical libraries.
    coordinator: 'host:port,count' of a run on several hosts.

  Raises:
    OSError: the command cannot be started here.
  """
  env = pool.environment(threads)
  if coordinator:
    env['AUDIORANK_DISTRIBUTED'] = f'{coordinator},{rank()}'
  with open(pathlib.Path(workdir) / 'log.txt', 'ab') as log:
    process = subprocess.Popen(
        pool.command(workdir), cwd=FOLDER, env=env, stdout=log, stderr=log,
        stdin=subprocess.DEVNULL, start_new_session=True)
  try:
    return process.wait()
  finally:
    # Cancelled: ray.cancel raises KeyboardInterrupt here. A second one must
    # not end the wait for the worker that saves.
    if process.poll() is None:
      before = signal.signal(signal.SIGINT, signal.SIG_IGN)
      pool.stop([process], LEAVE)
      signal.signal(signal.SIGINT, before)


def rank():
  """Returns this host's place in its slice, 0 where it has no other.

  A bundle's place in its group is another.
  """
  import ray
  labels = ray.get_runtime_context().get_node_labels()
  return int(labels.get('ray.io/tpu-worker-id', '0'))


def place():
  """Returns (place in the slice, address, a port that is free) of a host."""
  import ray
  with socket.socket() as s:
    s.bind(('', 0))
    port = s.getsockname()[1]
  return rank(), ray.util.get_node_ip_address(), port


def start(root, job, needs):
  """Starts a run where there is room; returns Started, or None for a slice
  that cannot be had now.

  Raises:
    OSError: the hosts of a slice cannot run what they are given.
  """
  import ray
  workdir = str(pathlib.Path(root).absolute() / job.run_id)
  if not needs.topology:
    task = ray.remote(num_cpus=needs.cores, num_gpus=needs.gpus,
                      max_retries=0)(worker)
    return Started(job, [task.remote(workdir, needs.cores)], None)
  from ray.util import tpu
  try:
    held = tpu.SlicePlacementGroup(
        topology=needs.topology, accelerator_version=needs.machine,
        head_reservation_timeout_s=RESERVE)
  except TimeoutError:
    return None
  on_slice = lambda function, *given: tpu.run_on_slice(
      ray.remote(max_retries=0)(function), *given, tpu_slice=held,
      pg_ready_timeout_s=READY)
  try:
    hosts = sorted(ray.get(on_slice(place), timeout=READY))
    _, address, port = hosts[0]
    coordinator = f'{address}:{port},{len(hosts)}' if len(hosts) > 1 else ''
    return Started(
        job, on_slice(worker, workdir, needs.cores, coordinator), held)
  except ray.exceptions.RayTaskError as error:
    held.shutdown()
    raise OSError(f'--slice: {error.cause}') from None
  except (TimeoutError, ray.exceptions.RayError):
    held.shutdown()
    return None


def outcome(task):
  """Returns a host's exit code; None where Ray lost it on the way.

  Raises:
    OSError: the worker could not be started.
  """
  import ray
  try:
    return ray.get(task)
  except ray.exceptions.RayTaskError as error:
    raise OSError(f'{type(error.cause).__name__}: {error.cause}') from None
  except ray.exceptions.RayError:
    return None


def verdict(codes):
  """Returns the exit code that counts, of all hosts'; None: preempted.

  A lost or dead host takes the others with it, however they end: their error
  is no mistake of the run.
  """
  if None in codes:
    return None
  order = lambda c: (0 < c < 128, c == pool.AGAIN)
  return min((c for c in codes if c), default=0, key=order)


def cancel(started):
  """Asks the tasks of a run that have not ended to leave; returns how many."""
  import ray
  _, left = ray.wait(started.tasks, num_returns=len(started.tasks), timeout=0)
  for task in left:
    ray.cancel(task)
  return len(left)


def end(started):
  """Waits for the tasks of a run and gives its slice back."""
  import ray
  _, left = ray.wait(started.tasks, num_returns=len(started.tasks),
                     timeout=LEAVE + 10)
  for task in left:
    ray.cancel(task, force=True)
  if started.slice is not None:
    started.slice.shutdown()


def connect(address):
  """Joins a cluster: 'local' starts one on this machine.

  Raises:
    ValueError: Ray is not installed.
    OSError: there is no cluster; names the address.
  """
  try:
    import ray
  except ImportError:
    raise ValueError("--engine=ray: Ray is not installed: pip install "
                     "'ray>=2.60'") from None
  local = {'object_store_memory': STORE, 'include_dashboard': False}
  # Or whatever a worker starts would have the lowest priority but four.
  os.environ.setdefault('RAY_worker_niceness', '0')
  try:
    ray.init(address=address, log_to_driver=False, logging_level='error',
             **(local if address == 'local' else {}))
  except Exception as error:  # Ray raises that very class as well.
    raise OSError(f'--address={address}: no Ray cluster there '
                  f'({error})') from None


def run(root, jobs, needs, show=lambda _: None, most=None, poll=.5):
  """Runs every job to DONE or FAILED; returns {run_id: error} of failures.

  Args:
    root, jobs, show: as for pool.run; Ray is connected.
    needs: what a run takes.
    most: runs at once; None takes all that the cluster has room for.
    poll: seconds between looks.

  Raises:
    KeyboardInterrupt: after the workers were asked to save and have left.
  """
  import ray
  waiting = [j for j in jobs if records.state(
      pathlib.Path(root) / j.run_id) != 'done']
  failed, tries = {}, {j.run_id: pool.Tries() for j in waiting}
  running, ended, full = [], {}, 0.
  try:
    while waiting or running:
      now = time.monotonic()
      ready = [j for j in waiting if tries[j.run_id].after <= now]
      for job in ready[:(most or len(jobs)) - len(running)]:
        if now < full:
          break
        started = start(root, job, needs)
        if started is None:
          if not running:
            print(f'no slice {needs.machine}:{needs.topology} is free; '
                  'waiting', file=sys.stderr, flush=True)
          full = time.monotonic() + READY
          break
        waiting.remove(job)
        running.append(started)
      tasks = [t for s in running for t in s.tasks if t not in ended]
      if tasks:
        over, _ = ray.wait(tasks, num_returns=len(tasks), timeout=poll)
        ended.update(dict.fromkeys(over, time.monotonic()))
      else:
        time.sleep(poll)
      for started in list(running):
        over = [ended[t] for t in started.tasks if t in ended]
        late = over and time.monotonic() - min(over) > FOLLOW
        if len(over) == len(started.tasks) or late:
          hung = cancel(started)
          end(started)
          running.remove(started)
          full = 0.
          settle(root, started, hung, waiting, tries, failed)
      show(pool.share(root, jobs))
  except BaseException:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for started in running:
      cancel(started)
    for started in running:
      end(started)
    raise
  return failed


def settle(root, started, hung, waiting, tries, failed):
  """Decides what a run's end means: done, again, or failed.

  Args:
    root, waiting, tries, failed: as for pool.settle.
    started: the run.
    hung: tasks that did not end with the others.
  """
  job, tried = started.job, tries[started.job.run_id]
  try:
    code = verdict([outcome(t) for t in started.tasks])
  except OSError as error:
    pool.give_up(root, job, f'{error}', failed)
    return
  if hung:
    # As a death: a machine that is lost but not missed, or a deadlock.
    code = -signal.SIGTERM
  if code in (None, pool.AGAIN):
    tried.preempted += 1
    if tried.preempted >= PREEMPTIONS:
      pool.give_up(root, job, f'preempted {tried.preempted} times', failed)
      return
  if code is None:
    waiting.append(job)
    return
  pool.settle(root, job, code, waiting, tries, failed)
