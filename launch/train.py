"""Trains and scores one run, on one host or on several.

  python -m launch.train --workdir=DIR
  python -m launch.train --workdir=DIR --config=configs/base.py:en128-12

The run is determined by config.json of the folder; --config writes it first.
Running the command again resumes; if the run is done, it exits at once. A run
that was trained with --noscore is scored by the same command without it. For a
sweep use launch.sweep, whose workers train many runs in one process.

Exit codes: 0 done; 42 stopped or busy, run it again; 1 an error; 3 the loss
diverged; 128 and above killed, or the device failed: run it again.
"""

from collections.abc import Callable
import os
import pathlib
import re
import sys
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from audiorank import files
from launch import cli
from launch import run_queue
from launch import work

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run\'s folder.',
                               required=True)
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, with its point after a colon.')
_MESH = flags.DEFINE_string(
    'mesh', None, "Devices along data and fsdp, such as 64x4, instead of the "
    "config's.")
_REMAT = flags.DEFINE_string(
    'remat', None, "model.remat (recomputation of activations), instead of "
    "the config's.")
_SCORE = flags.DEFINE_boolean(
    'score', True, 'Score the run after training. With --noscore the slice is '
    'free then: the same command without it scores the run, on any machine.')


def laid_out(config: Any, mesh: str | None, remat: str | None) -> Any:
  """Returns a frozen config with another mesh or remat.

  Neither is part of the identity of a run.

  Args:
    config: of the run.
    mesh: data x fsdp, or None for the config's.
    remat: model.remat, or None for the config's.

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


def checked(config: Any) -> Any:
  """Checks a config; returns it with the checksums of its corpus and tasks.

  Raises:
    FileNotFoundError, ValueError: it cannot run.
  """
  import jax

  from audiorank import data
  from audiorank import evaluate
  from audiorank import validate
  from audiorank.hear import tasks
  validate.places(config)
  config.data.mixture = data.mixture.absolute(config.data.mixture)
  # The checksum of the corpus is part of the run's identity.
  config.data.sha256 = data.load(
      config.data.root, config.data.mixture).sha256
  config.eval.sha256 = tasks.checksum(evaluate.task_folders(config))
  validate.run(config, jax.device_count())
  return config


def distributed() -> bool:
  """Joins the processes of a run; returns whether there are several.

  AUDIORANK_DISTRIBUTED is 1 if jax can find the other processes itself (TPU
  pods, Slurm), or host:port,count,index.

  Raises:
    ValueError: it is something else.
  """
  how = os.environ.get('AUDIORANK_DISTRIBUTED', '')
  if not how:
    return False
  import jax
  if how == '1':
    # On TPU pods and under Slurm the environment says who takes part.
    jax.distributed.initialize()
  else:
    form = re.fullmatch(r'([^,]+),(\d+),(\d+)', how)
    if not form:
      raise ValueError(f'AUDIORANK_DISTRIBUTED={how!r}: expected 1 or '
                       'host:port,count,index')
    jax.distributed.initialize(form[1], int(form[2]), int(form[3]))
  return jax.process_count() > 1


def is_complete(workdir: pathlib.Path) -> bool:
  """Returns whether this command has nothing left to do for a run."""
  from audiorank import records
  state = records.state(workdir)
  return state == 'done' or (state == 'trained' and not _SCORE.value)


def follow(workdir: pathlib.Path, config: Any,
           stop: Callable[[int], bool]) -> int:
  """Trains together with the first process, and waits until that has scored.

  Args:
    workdir: of the run.
    config: of the run.
    stop: called with the number of every step; True stops.

  Returns:
    the exit code.
  """
  from audiorank import records
  from audiorank import train
  # As the first process does, which would otherwise leave this one waiting.
  work.check(config, _SCORE.value)
  try:
    # Diverged: the first process has marked the run.
    if train.fit([workdir], [config], stop):
      return cli.DIVERGED
    if not _SCORE.value:
      return 0
  except train.Preempted:
    return cli.AGAIN
  except RuntimeError as error:
    if work.is_of_device(error):
      work.die(error)
    raise
  work.Status()  # From here on a signal ends this process.
  while records.state(workdir) not in ('done', 'failed'):
    time.sleep(1)
  return 0


def train_one(run: run_queue.Claim, stop: Callable[[int], bool],
              status: work.Report) -> int:
  """Trains, scores and marks a claimed run; returns the exit code."""
  from audiorank import records
  from audiorank import train
  several = not isinstance(status, work.Status)
  try:
    # With several processes all have to enter `fit` together; it returns at
    # once if nothing is left.
    trained = records.state(run.workdir) == 'trained' and not several
    if not trained and not work.train([run], stop, status, _SCORE.value):
      return cli.DIVERGED
    if not _SCORE.value:
      return 0
    # In training a signal is handled by XLA, which tells all processes. Scoring
    # is done by this process alone.
    if several:
      status = work.Status()
      status.claimed = [run.lock]
    if not work.score(run, lambda: status.asked, status):
      return cli.AGAIN
  except train.Preempted as saved:
    print(saved, file=sys.stderr)
    return cli.AGAIN
  except RuntimeError as error:
    # If a process of the run is lost, all others get this error and end.
    if work.is_of_device(error):
      work.die(error)
    run_queue.fail(run.workdir, error)
    raise
  except (ValueError, OSError) as error:
    run_queue.fail(run.workdir, error)
    raise
  finally:
    run.lock.release()
  return 0


def main(argv: list[str]) -> None:
  """Runs the command."""
  del argv
  work.die_with_parent()
  # Before anything else uses jax, which would open the devices alone.
  several = distributed()
  status = work.Report()
  if not several:
    status = work.Status()

  def stop(step: int) -> bool:
    if not several:
      return status.asked
    from jax.experimental import multihost_utils
    # A signal to one process stops all of them at the same step.
    return multihost_utils.reached_preemption_sync_point(step)

  from audiorank import records
  from audiorank.records import lock as lock_lib
  workdir = files.path(_WORKDIR.value, '--workdir')
  if _CONFIG.value is not None:
    records.open_run(workdir, checked(_CONFIG.value))
  config = laid_out(records.load_config(workdir, work.places()),
                    _MESH.value, _REMAT.value)
  if is_complete(workdir):
    return
  from audiorank import validate
  if records.state(workdir) != 'trained':
    validate.values(config)  # config.json may have been edited.
  cli.compile_cache()
  if several:
    import jax
    if jax.process_index():  # Only the first process writes records.
      sys.exit(follow(workdir, config, stop))
  try:
    # wait: after a preemption the lease of the process before may still run.
    lock = lock_lib.Lock(workdir, wait=True)
  except lock_lib.LockHeld as error:
    print(error, file=sys.stderr)
    sys.exit(cli.AGAIN)
  # Asked again under the lock: another process may have finished it.
  if is_complete(workdir):
    lock.release()
    return
  # Called by hand, this command tries a failed run again.
  (workdir / 'FAILED').unlink(missing_ok=True)
  status.claimed = [lock]
  run = run_queue.Claim(workdir, config, lock, run_queue.entry(config))
  sys.exit(train_one(run, stop, status))


if __name__ == '__main__':
  cli.run(main)
