"""Checkpoints that say what they are and whether they are whole.

  <folder>/<step>/{params, opt_state, config}  by orbax, committed atomically
  <folder>/<step>.sha256.json                  a checksum of every file

Orbax restores a flipped bit without a word; here the checksums are verified
before anything is restored, and the newest step that is whole is taken.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from audiorank import checksums
from audiorank import files
from audiorank import records

A, cm = ocp.args, ocp.checkpoint_managers


def manager(folder, every, keep):
  """Returns an orbax manager: the last two steps and every `keep`th stay."""
  return ocp.CheckpointManager(
      pathlib.Path(folder).absolute(),
      options=ocp.CheckpointManagerOptions(
          save_decision_policy=cm.AnySavePolicy([
              cm.FixedIntervalPolicy(every),
              cm.PreemptionCheckpointingPolicy()]),
          preservation_policy=cm.AnyPreservationPolicy(
              [cm.LatestN(2), cm.EveryNSteps(keep)])))


def save(m, state, config, force=False):
  """Saves a state where the manager's policy (or `force`) says so.

  Raises:
    OSError: it, or the one before it, cannot be written; names folder and
      reason.
  """
  step = int(state.step)
  if step in m.all_steps():
    return False
  with written(m):
    return m.save(step, force=force, args=A.Composite(
        params=A.StandardSave({'params': state.params,
                               'batch_stats': state.batch_stats}),
        opt_state=A.StandardSave(state.opt_state),
        config=A.JsonSave(records.plain(config))))


def wait(m):
  """Waits until what was saved is on disk.

  Raises:
    OSError: it cannot be written; names folder and reason.
  """
  with written(m):
    m.wait_until_finished()


@contextlib.contextmanager
def written(m):
  """Makes one OSError of what orbax raises where a save has failed."""
  try:
    yield
  except (ValueError, RuntimeError, OSError) as error:
    # Its own message is of lines full of paths; the system's number is in it.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    why = os.strerror(int(number[1])) if number else str(error)
    raise OSError(f'{m.directory}: a checkpoint could not be saved: '
                  f'{why}') from error


def abstract(tree, placed):
  """Returns shapes with shardings: what orbax restores onto."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree, placed)


def restore(m, folder, shapes, placed):
  """Returns the newest whole state, or None where there is none.

  Args:
    m: the manager of `folder`.
    folder: the checkpoint folder.
    shapes: a train state of shapes.
    placed: its shardings.

  A damaged or unsealed step is moved to <folder>/../damaged/<step> with a
  warning and the step before it is tried. Of several processes the first
  judges, and all restore what it found whole.
  """
  while True:
    step = newest(folder) if not jax.process_index() else None
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(
          np.int32(-1 if step is None else step)))
      step = None if step < 0 else step
    m.reload()
    if step is None:
      return None
    try:
      got = m.restore(step, args=A.Composite(
          params=A.StandardRestore(abstract(
              {'params': shapes.params, 'batch_stats': shapes.batch_stats},
              {'params': placed.params, 'batch_stats': placed.batch_stats})),
          opt_state=A.StandardRestore(
              abstract(shapes.opt_state, placed.opt_state))))
    except (ValueError, OSError, KeyError) as error:
      if jax.process_count() > 1:
        raise
      put_aside(folder, step, str(error).splitlines()[0])
      continue
    number = jax.device_put(np.asarray(step, shapes.step.dtype), placed.step)
    return shapes.replace(
        step=number, params=got.params['params'],
        batch_stats=got.params['batch_stats'], opt_state=got.opt_state)


def newest(folder):
  """Returns the newest step that is sealed and whole, or None; those after it
  are put aside."""
  for step in reversed(checksums.steps(folder)):
    sealed = (pathlib.Path(folder) / f'{step}.sha256.json').exists()
    wrong = checksums.verify(folder, step) if sealed else (
        'its writer died before it was verified')
    if not wrong:
      return step
    put_aside(folder, step, wrong)
  return None


def rewind(folder, step):
  """Deletes the steps after `step`: their run is to come to them again."""
  folder = pathlib.Path(folder)
  for later in checksums.steps(folder):
    if later > step:
      shutil.rmtree(folder / str(later))
      (folder / f'{later}.sha256.json').unlink(missing_ok=True)


def put_aside(folder, step, wrong):
  """Moves a damaged step out of the way, keeping it for inspection."""
  logging.warning('checkpoint %s/%d: %s; taking the step before it',
                  folder, step, wrong)
  folder = pathlib.Path(folder)
  aside = folder.parent / 'damaged'
  aside.mkdir(exist_ok=True)
  shutil.rmtree(aside / str(step), ignore_errors=True)
  shutil.move(folder / str(step), aside / str(step))
  (folder / f'{step}.sha256.json').unlink(missing_ok=True)


def arrays(item):
  """Returns a saved tree as numpy arrays, whatever devices it came from."""
  told = logging.get_verbosity()
  # Orbax warns of metadata that only its own manager writes.
  logging.set_verbosity(logging.ERROR)
  try:
    me = jax.process_index()
    # Whoever reads, reads alone: the other processes are not asked to wait.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me},
        barrier_sync_key_prefix=f'reader{me}') if jax.process_count() > 1 else (
            ocp.options.MultiprocessingOptions())
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        multiprocessing_options=alone) as reader:
      saved = reader.metadata(item).item_metadata
      return reader.restore(item, restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved))
  finally:
    logging.set_verbosity(told)


def find(path):
  """Returns the checkpoint folder meant by a path, and a step or None.

  The path is a run's folder, its checkpoints folder, or one step in it.

  Raises:
    FileNotFoundError: there is no checkpoint; names the path.
  """
  path = files.path(path)
  if path.name.isdigit() and (path / 'params').is_dir():
    return path.parent, int(path.name)
  for folder in (path / 'checkpoints', path):
    if folder.is_dir() and checksums.steps(folder):
      return folder, None
  raise FileNotFoundError(
      f'{path}: no checkpoint: expected the folder of a run, its checkpoints '
      'folder or one step of it')


def load(path, step=None):
  """Returns (config, params) of a checkpoint, on the default device.

  Args:
    path: a run's folder, its checkpoints folder, or one step.
    step: which step; None takes the newest that is whole.

  Returns:
    the frozen config the run was made with, and the linen variables
    {'params', 'batch_stats'} as numpy arrays.

  Raises:
    FileNotFoundError: no checkpoint, or not that step; names those there are.
    ValueError: the checkpoint is damaged; names the file.
  """
  folder, only = find(path)
  step = only if step is None else step
  have = checksums.steps(folder)
  if step is not None and step not in have:
    raise FileNotFoundError(f'{folder}: no step {step}; there are {have}')
  tries = [step] if step is not None else list(reversed(have))
  wrong = ''
  for number in tries:
    wrong = checksums.verify(folder, number)
    if wrong:
      logging.warning('checkpoint %s/%d: %s', folder, number, wrong)
      continue
    config = records.frozen(records.complete(records.read_json(
        folder / str(number) / 'config' / 'metadata')))
    return config, arrays(folder.absolute() / str(number) / 'params')
  raise ValueError(f'{folder}/{tries[-1]}: damaged checkpoint: {wrong}')


def fsck(path):
  """Returns [(step, what is wrong or '')] of a folder's steps, ascending.

  Args:
    path: a run's folder or its checkpoints folder.

  Raises:
    FileNotFoundError: there is no checkpoint; names the path.
  """
  folder, only = find(path)
  found = []
  for step in [only] if only is not None else checksums.steps(folder):
    sealed = (folder / f'{step}.sha256.json').exists()
    found.append((step, checksums.verify(folder, step) if sealed else
                  'no checksums: its writer died before it was verified'))
  return found


def main(argv):
  """python -m audiorank.checkpoint fsck DIR ...: verifies every checksum.

  Prints a line a step; exits 1 if a step is damaged or a folder has none.
  """
  if len(argv) < 3 or argv[1] != 'fsck':
    print('usage: python -m audiorank.checkpoint fsck DIR ...',
          file=sys.stderr)
    return 1
  bad = 0
  for path in argv[2:]:
    try:
      for step, wrong in fsck(path):
        bad += bool(wrong)
        print(f'{path}: step {step}: {wrong or "whole"}')
    except FileNotFoundError as error:
      bad += 1
      print(f'error: {error}', file=sys.stderr)
  return 1 if bad else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
