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
import time

from absl import flags
from ml_collections import config_flags

from audiorank import files
from launch import cli
from launch import worker

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
      sys.exit(worker.AGAIN)


def checked(config):
  """Returns the config bound to its corpus, or raises before any folder is
  claimed."""
  import jax

  from audiorank import data
  from audiorank import validate
  for field in ('data.root', 'eval.tasks'):
    part, name = field.split('.')
    if not config[part][name]:
      raise ValueError(f'{field} is empty: expected --config.{field}=FOLDER '
                       '(launch.sweep makes the embedded world)')
    folder = files.path(config[part][name], field)
    config[part][name] = os.path.abspath(folder)
  config.data.mixture = data.mixture.absolute(config.data.mixture)
  config.data.sha256 = data.load(
      config.data.root, config.data.mixture).sha256
  validate.run(config, jax.device_count())
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
    leaving = worker.Exit()
    stop = lambda _: leaving.asked
  from audiorank import lease
  from audiorank import records
  workdir = files.path(_WORKDIR.value, '--workdir')
  if _CONFIG.value is not None:
    records.open_run(workdir, checked(_CONFIG.value))
  if _BESIDE.value:
    if several:
      raise ValueError('--beside: expected one process')
    workdirs = [workdir, *map(pathlib.Path, _BESIDE.value)]
    sys.exit(worker.together(workdirs, stop, leaving, began))
  config = laid_out(records.load_config(workdir), _MESH.value, _REMAT.value)
  if records.state(workdir) == 'done':
    return
  if several:
    import jax
    if jax.process_index():  # The first keeps the books.
      sys.exit(worker.follow(workdir, config, stop))
  try:
    held = lease.Lease(workdir)
  except lease.Held as error:
    print(error, file=sys.stderr)
    sys.exit(worker.AGAIN)
  if records.state(workdir) == 'done':
    held.release()
    return
  (workdir / 'FAILED').unlink(missing_ok=True)
  code = worker.work(workdir, config, held, stop, leaving, began)
  held.release()
  sys.exit(code)


if __name__ == '__main__':
  cli.run(main)
