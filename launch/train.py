"""Trains and evaluates one run; the one command that every engine starts.

  python -m launch.train --workdir=DIR
  python -m launch.train --workdir=DIR --config=configs/base.py:en128-12
  python -m launch.train --workdir=DIR --beside=DIR2,DIR3

The folder's config.json says what the run is; --config writes it first.
Started again, it goes on where it was; done, it exits at once. Runs that differ
only in seed, rates or initial scale may be trained beside it in one program.

Exit codes: 0 done; 42 stopped or busy, run me again; 1 a mistake; 3 the loss
diverged; 128 and above killed, run me again.
"""

import ctypes
import os
import pathlib
import re
import signal
import sys
import threading
import time

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import cli

AGAIN, DIVERGED = 42, 3
PATIENCE = 3.  # Seconds to leave by itself, where nothing can be lost.
_WORKDIR = flags.DEFINE_string('workdir', None, 'The run\'s folder.',
                               required=True)
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, its point after a colon.')
_BESIDE = flags.DEFINE_list(
    'beside', [], 'Folders of runs to train in the same program; they differ '
    'in seed, rates or initial scale alone.')
_MESH = flags.DEFINE_string(
    'mesh', None, 'Devices along data and fsdp, such as 64x4, whatever the '
    'config says.')
_REMAT = flags.DEFINE_boolean(
    'remat', None, 'Recompute activations, whatever the config says.')


def laid_out(config, mesh, remat):
  """Returns a frozen config with another mesh or remat, where they are given.

  Neither is part of what a run is.

  Raises:
    ValueError: not a mesh.
  """
  from audiorank import records
  tree = records.plain(config)
  if mesh is not None:
    sides = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', mesh)
    if not sides:
      raise ValueError(f'--mesh={mesh}: expected data x fsdp, such as 64x4')
    tree['mesh'].update(data=int(sides[1]), fsdp=int(sides[2]))
  if remat is not None:
    tree['model']['remat'] = remat
  return records.frozen(tree)


def die_with_parent():
  """Asks the kernel for SIGTERM when the launcher dies (Linux)."""
  parent = os.environ.get('AUDIORANK_PARENT')
  if parent and sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
      sys.exit(AGAIN)


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


def checked(config):
  """Returns the config bound to its corpus, or raises before any folder is
  claimed."""
  from audiorank import data
  from audiorank import evaluate
  from audiorank import sharding
  from audiorank import train
  for field in ('data.root', 'eval.tasks'):
    part, name = field.split('.')
    if not config[part][name]:
      raise ValueError(f'{field} is empty: expected --config.{field}=FOLDER '
                       '(launch.sweep makes the embedded world)')
    config[part][name] = os.path.abspath(config[part][name])
  config.data.sha256 = data.load(config.data.root).sha256
  train.check(config, sharding.mesh(config.mesh.data, config.mesh.fsdp))
  evaluate.task_folders(config)
  return config


def distributed():
  """Joins the processes of a run; returns whether there are several.

  AUDIORANK_DISTRIBUTED is 1 where jax finds its peers by itself (TPU pods,
  Slurm), or host:port,count,index.
  """
  how = os.environ.get('AUDIORANK_DISTRIBUTED', '')
  if not how:
    return False
  import jax
  if how == '1':
    jax.distributed.initialize()
  else:
    try:
      address, count, index = how.split(',')
      count, index = int(count), int(index)
    except ValueError:
      raise ValueError(f'AUDIORANK_DISTRIBUTED={how!r}: expected 1 or '
                       'host:port,count,index') from None
    jax.distributed.initialize(address, count, index)
  return jax.process_count() > 1


def main(argv):
  del argv
  die_with_parent()
  began, leaving = time.time(), None
  several = distributed()
  if several:
    from jax.experimental import multihost_utils
    # One signal to one process, and all stop at one step.
    stop = multihost_utils.reached_preemption_sync_point
  else:
    leaving = Exit()
    stop = lambda _: leaving.asked
  from audiorank import lease
  from audiorank import records
  if '://' in _WORKDIR.value:
    raise ValueError(f'--workdir={_WORKDIR.value}: expected a folder, on a '
                     'file system with locks')
  workdir = pathlib.Path(_WORKDIR.value)
  if _CONFIG.value is not None:
    records.open_run(workdir, checked(_CONFIG.value))
  if _BESIDE.value:
    if several:
      raise ValueError('--beside: expected one process')
    sys.exit(together([workdir, *map(pathlib.Path, _BESIDE.value)], stop,
                      leaving, began))
  config = laid_out(records.load_config(workdir), _MESH.value, _REMAT.value)
  if records.state(workdir) == 'done':
    return
  if several:
    import jax
    if jax.process_index():  # The first keeps the books.
      sys.exit(follow(workdir, config, stop))
  try:
    held = lease.Lease(workdir)
  except lease.Held as error:
    print(error, file=sys.stderr)
    sys.exit(AGAIN)
  if records.state(workdir) == 'done':
    held.release()
    return
  (workdir / 'FAILED').unlink(missing_ok=True)
  code = work(workdir, config, held, stop, leaving, began)
  held.release()
  sys.exit(code)


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
    records.write_json(workdir / 'FAILED', {'error': str(error)})
    held.release()
    raise
  records.write_json(workdir / 'DONE', {
      'run_id': records.run_id(config), 'seconds': time.time() - began,
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__})
  logging.info('done: %s', workdir)
  return 0


if __name__ == '__main__':
  cli.run(main)
