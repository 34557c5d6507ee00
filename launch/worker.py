"""What a worker does with its run, from its first step to DONE or FAILED.

launch.train is its command.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from absl import logging

from launch import cli

AGAIN, DIVERGED = 42, 3  # Exit codes; see launch.train.
PATIENCE = 3.  # Seconds to leave by itself, where nothing can be lost.


class Exit:
  """Whether this process was asked to leave, and whether it may at once.

  SIGTERM and SIGINT are noted. The loops that poll `asked` save and leave;
  but a compilation or the scoring of a task may take minutes in which nobody
  polls. A thread then ends the process: `idle` says that nothing is lost.
  """

  def __init__(self):
    self.asked, self.idle = False, True
    self.begun = None  # The step that this process started from.
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: None)
    # The kernel's signal is written here at once; a Python handler would
    # wait for the compiler to return.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=self.watch, args=(read,), daemon=True).start()

  def watch(self, pipe):
    """Waits for a signal, then until the process has left or is idle."""
    while os.read(pipe, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
      pass
    self.asked = True
    time.sleep(PATIENCE)
    while not self.idle:
      time.sleep(.1)
    print('left where nothing was to be saved', file=sys.stderr, flush=True)
    os._exit(AGAIN)

  def tell(self, held):
    """Returns a lease's tell that notes what the process is at."""
    def told(doing, step=None, steps=None, force=False):
      if step is not None and self.begun is None:
        self.begun = step
      # Without a step it is scoring; what training has done is saved.
      self.idle = step is None or step == self.begun
      held.tell(doing, step, steps, force)
    return told


def together(workdirs, stop, leaving, began):
  """Trains several runs in one program, then ends each like any other.

  Returns the exit code: the greatest of theirs, 42 before all where one is
  to go on.
  """
  cli.compile_cache()
  from audiorank import lease
  from audiorank import records
  from audiorank import together
  from audiorank import train
  held, codes = {}, [0]
  for workdir in workdirs:
    if records.state(workdir) == 'done':
      continue
    try:
      held[workdir] = lease.Lease(workdir)
      (workdir / 'FAILED').unlink(missing_ok=True)
    except lease.Held as error:
      print(error, file=sys.stderr)
      codes.append(AGAIN)
  configs = {w: records.load_config(w) for w in held}

  class All:
    """Tells every lease."""
    tell = staticmethod(lambda *told, **how: [
        h.tell(*told, **how) for h in held.values()])

  try:
    lost = together.run(list(held), list(configs.values()), stop,
                        leaving.tell(All)) if len(held) > 1 else {}
  except train.Preempted as saved:
    print(saved, file=sys.stderr)
    return AGAIN
  for workdir, error in lost.items():
    failed(workdir, error)
    codes.append(DIVERGED)
  leaving.idle = True
  for workdir in held.keys() - lost.keys():
    codes.append(work(workdir, configs[workdir], held[workdir], stop, leaving,
                      began))
  for one in held.values():
    one.release()
  return AGAIN if AGAIN in codes else max(codes)


def failed(workdir, error):
  """Marks a run as one that diverged."""
  from audiorank import records
  records.write_json(workdir / 'FAILED', {'error': str(error), **error.about})
  print(f'error: {error}', file=sys.stderr)


def follow(workdir, config, stop):
  """Trains beside the first process, then waits until it has evaluated."""
  cli.compile_cache()
  from audiorank import records
  from audiorank import train
  try:
    train.run(workdir, config, stop)
  except train.Preempted:
    return AGAIN
  except train.Diverged:
    return DIVERGED
  Exit()
  while records.state(workdir) not in ('done', 'failed'):
    time.sleep(1)
  return 0


def work(workdir, config, held, stop, leaving, began):
  """Trains, evaluates and marks the run; returns the exit code.

  Args:
    workdir, config, held: the run, its config, its lease.
    stop: asked with every step's number.
    leaving: the process's Exit; None where it is one of several.
    began: when the process started.
  """
  cli.compile_cache()
  import jax

  from audiorank import evaluate
  from audiorank import records
  from audiorank import train
  tell = leaving.tell(held) if leaving else held.tell
  try:
    train.run(workdir, config, stop, tell)
    # XLA's own notice of a signal ends with training: nobody would ask it.
    leaving = leaving or Exit()
    leaving.idle = True
    if not evaluate.run(workdir, config, stop=lambda: leaving.asked,
                        tell=leaving.tell(held)):
      return AGAIN
  except train.Preempted as saved:
    print(saved, file=sys.stderr)
    return AGAIN
  except train.Diverged as error:
    failed(workdir, error)
    return DIVERGED
  except (ValueError, OSError) as error:
    # On a full disk there may be no room for this either; the first error is
    # the one to be told.
    with contextlib.suppress(OSError):
      records.write_json(workdir / 'FAILED', {'error': str(error)})
    held.release()
    raise
  records.write_json(workdir / 'DONE', {
      'run_id': records.run_id(config), 'seconds': time.time() - began,
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__})
  logging.info('done: %s', workdir)
  return 0
