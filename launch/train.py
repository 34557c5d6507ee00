"""Trains and evaluates one run; the one command that every engine starts.

  python -m launch.train --workdir=DIR
  python -m launch.train --workdir=DIR --config=configs/base.py:en128-12

The folder's config.json says what the run is; --config writes it first.
Started again, it goes on where it was; done, it exits at once.

Exit codes: 0 done; 42 stopped or busy, run me again; 1 a mistake; 3 the loss
diverged; 128 and above killed, run me again.
"""

import ctypes
import os
import pathlib
import signal
import sys
import time

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import cli

AGAIN, DIVERGED = 42, 3
_WORKDIR = flags.DEFINE_string('workdir', None, 'The run\'s folder.',
                               required=True)
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, its point after a colon.')


def die_with_parent():
  """Asks the kernel for SIGTERM when the launcher dies (Linux)."""
  parent = os.environ.get('AUDIORANK_PARENT')
  if parent and sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
      sys.exit(AGAIN)


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
  began = time.time()
  asked = []
  several = distributed()
  if several:
    from jax.experimental import multihost_utils
    # One signal to one process, and all stop at one step.
    stop = multihost_utils.reached_preemption_sync_point
  else:
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: asked.append(number))
    stop = lambda _: bool(asked)
  from audiorank import lease
  from audiorank import records
  workdir = pathlib.Path(_WORKDIR.value)
  if _CONFIG.value is not None:
    records.open_run(workdir, checked(_CONFIG.value))
  config = records.load_config(workdir)
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
  code = work(workdir, config, held, stop, lambda: bool(asked), began)
  held.release()
  sys.exit(code)


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
  while records.state(workdir) not in ('done', 'failed'):
    time.sleep(1)
  return 0


def work(workdir, config, held, stop, leave, began):
  """Trains, evaluates and marks the run; returns the exit code.

  Args:
    workdir, config, held: the run, its config, its lease.
    stop: asked with every step's number.
    leave: asked between tasks.
    began: when the process started.
  """
  cli.compile_cache()
  import jax

  from audiorank import evaluate
  from audiorank import records
  from audiorank import train
  try:
    train.run(workdir, config, stop, held.tell)
    if not evaluate.run(workdir, config, stop=leave, tell=held.tell):
      return AGAIN
  except train.Preempted as saved:
    print(saved, file=sys.stderr)
    return AGAIN
  except train.Diverged as error:
    records.write_json(workdir / 'FAILED', {'error': str(error)})
    print(f'error: {error}', file=sys.stderr)
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
