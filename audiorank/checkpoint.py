"""Checkpoints with their config and checksums of all their files.

  <folder>/<step>/{params, opt_state, config}  by orbax, committed atomically
  <folder>/<step>.sha256.json                  {relative path: checksum}

Orbax restores flipped bits without noticing. Here the checksums are verified
before a restore, and the newest undamaged step is used. A checksum is a sha256,
or on a bucket 'crc32c:' and the store's own checksum of the object, which costs
no download. Both kinds are verified in both places: folders may be copied.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import sys
from typing import Any
import warnings

from absl import logging
import jax
from jax.experimental import multihost_utils
from ml_collections import config_dict
import numpy as np
import orbax.checkpoint as ocp

from audiorank import config as config_lib
from audiorank import files
from audiorank import train_state

Config = config_lib.Config

# Orbax writes this file into a folder on a bucket when it is complete.
COMMITTED = 'commit_success.txt'
SEAL = '.sha256.json'  # Ends the name of a step's checksums.
CRC = 'crc32c:'  # Begins a checksum that is not a sha256.
OWN = {'params', 'config'}  # Items of a step that show it to be ours.

A, cm = ocp.args, ocp.checkpoint_managers
PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def open_manager(folder: PathLike, every: int, keep: int
                 ) -> Iterator[ocp.CheckpointManager]:
  """Opens an orbax manager: the last two steps and every `keep`th stay.

  Raises:
    ValueError: there is a numbered folder that is none of our checkpoints.
    OSError: on closing it, a checkpoint cannot be written; names the folder.
  """
  others = foreign(folder)
  if others:
    # Orbax would take it for an old step and delete it.
    raise ValueError(f'{files.path(folder) / others[0]}: not a checkpoint of '
                     'ours, but named like one: expected it elsewhere')
  manager = ocp.CheckpointManager(
      files.path(folder).absolute(),
      options=ocp.CheckpointManagerOptions(
          # Either the interval is due, or jax's preemption notice has come.
          save_decision_policy=cm.AnySavePolicy([
              cm.FixedIntervalPolicy(every),
              cm.PreemptionCheckpointingPolicy()]),
          # Two, not one: if the last save is damaged, there is one before it.
          preservation_policy=cm.AnyPreservationPolicy(
              [cm.LatestN(2), cm.EveryNSteps(keep)])))
  try:
    yield manager
  finally:
    # It waits for the last save, and raises its error.
    with one_error(manager):
      manager.close()


def save(manager: ocp.CheckpointManager, state: train_state.TrainState,
         config: Config, force: bool = False) -> bool:
  """Saves a state if the manager's policy or `force` asks for it.

  It is written in the background.

  Raises:
    OSError: this or the previous save cannot be written; names folder and
      reason.
  """
  step = int(state.step)
  # A run that is asked to stop at a saved step saves nothing.
  if step in manager.all_steps():
    return False
  files.check_guards(manager.directory)
  check_there(manager)
  # Orbax first waits for the save before, and raises what went wrong in it.
  with one_error(manager):
    return manager.save(step, force=force, args=A.Composite(
        # Items of their own: a reader of weights does not read the optimizer's
        # moments, which are twice as large.
        params=A.StandardSave({'params': state.params,
                               'batch_stats': state.batch_stats}),
        opt_state=A.StandardSave(train_state.adam_state(state.opt_state)),
        # With paths relative to the runs' folder, so that it may be moved.
        config=A.JsonSave(config_lib.portable(
            config_lib.plain(config), root_of(manager), strict=False))))


def root_of(manager: ocp.CheckpointManager) -> pathlib.Path:
  """Returns the folder that holds the folder of a manager's run."""
  return files.path(manager.directory).parent.parent


def check_there(manager: ocp.CheckpointManager) -> None:
  """Raises OSError if the folder of a run that trains is no longer there.

  Orbax and records would create it again, with a part of the run in it.
  """
  folder = files.path(manager.directory).parent
  # What lies on a bucket is not moved: asking costs a request.
  if not files.is_on_bucket(folder) and not (folder / 'config.json').is_file():
    raise OSError(f'{folder}: moved or deleted while the run trained: run it '
                  'again where it is now')


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until the saves are on disk.

  Raises:
    OSError: it cannot be written; names folder and reason.
  """
  with one_error(manager):
    manager.wait_until_finished()


@contextlib.contextmanager
def one_error(manager: ocp.CheckpointManager) -> Iterator[None]:
  """Converts the errors of a failed save into an OSError of one line."""
  try:
    yield
  except (ValueError, RuntimeError, OSError) as error:
    # The folder may be gone, which explains more than orbax's error.
    check_there(manager)
    # Orbax's message has many lines of paths; one has the system's number.
    reason, number = str(error), re.search(r"os_error_code='(\d+)'", str(error))
    if number:
      reason = os.strerror(int(number[1]))
    raise OSError(f'{manager.directory}: a checkpoint could not be saved: '
                  f'{reason}') from error


def abstract(tree: Any, shardings: Any) -> Any:
  """Returns shapes with shardings, onto which orbax restores."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree, shardings)


class NotVerified(UserWarning):
  """A checkpoint without checksums is used: a flipped bit goes unnoticed."""


def restore(manager: ocp.CheckpointManager, folder: PathLike,
            shapes: train_state.TrainState,
            shardings: train_state.TrainState
            ) -> train_state.TrainState | None:
  """Returns the newest undamaged state, or None if there is none.

  A damaged step is moved to <folder>/../damaged/<step> with a warning, and the
  step before it is tried.

  Args:
    manager: of `folder`.
    folder: the checkpoint folder.
    shapes: a train state of shapes.
    shardings: its shardings.
  """
  while True:
    step = -1
    if not jax.process_index():
      whole = newest(folder)
      if whole is not None:
        step = whole
    if jax.process_count() > 1:
      # The first process verifies, and all restore the step that it chose.
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    # Steps may have been put aside or copied since it was opened.
    manager.reload()
    if step < 0:
      return None
    adam = abstract(*(train_state.adam_state(tree.opt_state)
                      for tree in (shapes, shardings)))
    try:
      saved = manager.restore(step, args=A.Composite(
          params=A.StandardRestore(abstract(*(
              {'params': tree.params, 'batch_stats': tree.batch_stats}
              for tree in (shapes, shardings)))),
          opt_state=A.StandardRestore(adam)))
    except (ValueError, OSError, KeyError) as error:
      if jax.process_count() > 1:
        raise
      # A save without checksums may turn out to be unreadable only here.
      put_aside(folder, step, str(error).splitlines()[0])
      continue
    # The step is the folder's name; it is not saved as an array.
    number = jax.device_put(
        np.asarray(step, shapes.step.dtype), shardings.step)
    return dataclasses.replace(
        shapes, step=number, params=saved.params['params'],
        batch_stats=saved.params['batch_stats'],
        opt_state=train_state.with_adam_state(
            shapes.opt_state, saved.opt_state))


def steps(folder: PathLike) -> list[int]:
  """Returns the committed steps of a checkpoint folder, ascending."""
  folder = files.path(folder)
  if files.is_on_bucket(folder):
    from audiorank import bucket
    whole = {name.split('/')[0]
             for name in bucket.listing(folder, f'*/{COMMITTED}')}
    # Copied from a disk, where orbax commits by giving the folder its name.
    whole |= sealed(folder) & files.names(folder)
    return sorted(int(name) for name in whole if is_step(name))
  # Others are folders that orbax has not renamed yet, and checksums.
  named = sealed(folder)
  return sorted(int(p.name) for p in folder.glob('*')
                if p.is_dir() and is_own(p, named))


def is_step(name: str) -> bool:
  """Returns whether a name is that of a step: 10, but neither 010 nor ²."""
  return name.isascii() and name.isdigit() and str(int(name)) == name


def is_own(step_folder: pathlib.Path, named: Collection[str]) -> bool:
  """Returns whether a folder on a disk is a checkpoint of ours.

  Args:
    step_folder: the folder.
    named: the steps that have checksums.
  """
  if not is_step(step_folder.name):
    return False
  # A step of ours whose parts are gone is damaged, but still ours.
  return step_folder.name in named or files.names(step_folder) >= OWN


def foreign(folder: PathLike) -> list[str]:
  """Returns the folders that are named like steps but are none of ours.

  On a bucket there are none: orbax looks for the sign of its own commit.
  """
  folder = files.path(folder)
  if files.is_on_bucket(folder):
    return []
  named = sealed(folder)
  return sorted(p.name for p in folder.glob('*')
                if p.name.isdigit() and p.is_dir() and not is_own(p, named))


def sealed(folder: PathLike) -> set[str]:
  """Returns the names of the steps that have checksums."""
  return {name.removesuffix(SEAL) for name in files.names(folder)
          if name.endswith(SEAL)}


def file_digests(step_folder: pathlib.Path, like: Mapping[str, str] | None
                 = None) -> dict[str, str]:
  """Returns {relative path: checksum} of every file of one step.

  Args:
    step_folder: of the step.
    like: checksums to compare with: the same kind is returned for each file.
      None returns the kind that is cheapest.
  """
  out, crcs = {}, {}
  if files.is_on_bucket(step_folder):
    from audiorank import bucket
    crcs = {name: CRC + about.crc32c
            for name, about in bucket.listing(step_folder).items()}
  names = crcs or [path.relative_to(step_folder).as_posix()
                   for path in files.walk(step_folder)]
  for name in names:
    # Folders that were copied from a disk have none.
    if name.rpartition('/')[2] == COMMITTED:
      continue
    # A file that is not in `like` gets the kind that costs least here.
    wanted = (like or crcs).get(name, next(iter(crcs.values()), ''))
    if not wanted.startswith(CRC):
      out[name] = files.sha256(step_folder / name)
    elif crcs:
      out[name] = crcs[name]
    else:
      from audiorank import bucket
      out[name] = CRC + bucket.file_crc32c(step_folder / name)
  return out


def seal(folder: PathLike) -> None:
  """Writes the checksums of committed steps that have none yet.

  Only the first process does it; the others need not wait.
  """
  if jax.process_index():
    return
  folder = files.path(folder)
  committed, named = set(map(str, steps(folder))), sealed(folder)
  for step in sorted(committed - named):
    files.write_json(checksums(folder, step), file_digests(folder / step))
  # Checksums of steps that orbax has deleted since.
  for step in named - committed:
    if is_step(step):  # Another program's ._10.sha256.json stays.
      checksums(folder, step).unlink(missing_ok=True)


def checksums(folder: PathLike, step: int | str) -> pathlib.Path:
  """Returns the file with a step's checksums, whether it exists or not."""
  return files.path(folder) / f'{step}{SEAL}'


def unsealed(folder: PathLike) -> list[int]:
  """Returns the committed steps that have no checksums, ascending."""
  named = sealed(folder)
  return [step for step in steps(folder) if str(step) not in named]


def verify(folder: PathLike, step: int) -> str:
  """Returns what is wrong with a step, or '' if all its files are whole.

  A step without checksums counts as whole, with the warning NotVerified: orbax
  committed it, but its process may have died before the checksums were
  written, or they were not copied with it. Files that orbax did not write
  (.DS_Store, .nfs...) are no part of a checkpoint; they are only logged.
  """
  folder = files.path(folder)
  path = checksums(folder, step)
  if not path.exists():
    warnings.warn(f'{folder / str(step)}: no {path.name} beside it, so damage '
                  'would go unnoticed', NotVerified, stacklevel=2)
    return ''
  try:
    expected = files.read_json(path)
  except ValueError:
    return f'{path.name} is damaged'
  if not isinstance(expected, dict) or not all(
      isinstance(value, str) for value in expected.values()):
    return f'{path.name} is damaged'
  # The kind that was written: sha256, or the store's.
  actual = file_digests(folder / str(step), expected)
  # Names in order, so that the message is the same each time.
  for name in sorted(expected):
    if name not in actual:
      return f'{name} is missing'
    if expected[name] != actual[name]:
      return f'{name} is not what was written'
  for name in sorted(set(actual) - set(expected)):
    logging.warning('%s/%d: %s is no part of the checkpoint', folder, step,
                    name)
  return ''


def newest(folder: PathLike) -> int | None:
  """Returns the newest step that is whole, or None; puts later ones aside.

  A step without checksums is whole if it can be read.
  """
  # Newest first: usually one step is verified, not all.
  for step in reversed(steps(folder)):
    fault = verify(folder, step)
    if not fault and not checksums(folder, step).exists():
      fault = unreadable(files.path(folder).absolute() / str(step))
    if not fault:
      commit(folder, step)
      return step
    put_aside(folder, step, fault)
  return None


def unreadable(step_folder: pathlib.Path) -> str:
  """Returns why a step cannot be read, or '' if it can."""
  try:
    for item in ('params', 'opt_state'):
      arrays(step_folder / item)
    config_lib.complete(files.read_json(step_folder / 'config' / 'metadata'))
  # Orbax and its storage raise errors of many kinds for damaged files.
  except Exception as error:
    return f'no checksums, and it cannot be read: {type(error).__name__}'
  return ''


def commit(folder: PathLike, step: int) -> None:
  """Marks a step on a bucket as orbax does, if it was copied from a disk."""
  folder = files.path(folder) / str(step)
  if not files.is_on_bucket(folder) or (folder / COMMITTED).is_file():
    return
  for part in (*folder.iterdir(), folder):
    if part == folder or part.is_dir():
      files.write_text(part / COMMITTED, f'Checkpoint commit was successful to '
                       f'{part}')


def rewind(folder: PathLike, step: int) -> None:
  """Deletes the steps after `step`, so that their run takes them again."""
  folder = files.path(folder)
  for later in steps(folder):
    if later > step:
      files.remove(folder / str(later))
      checksums(folder, later).unlink(missing_ok=True)


def put_aside(folder: PathLike, step: int, fault: str) -> None:
  """Moves a damaged step to damaged/, where it can be inspected."""
  logging.warning('checkpoint %s/%d: %s; taking the step before it',
                  folder, step, fault)
  folder = files.path(folder)
  aside = folder.parent / 'damaged'
  aside.mkdir(exist_ok=True)
  # What was put aside before stays.
  names = itertools.chain([str(step)],
                          (f'{step}.{i}' for i in itertools.count(1)))
  target = next(aside / n for n in names if not (aside / n).exists())
  files.move(folder / str(step), target)
  checksums(folder, step).unlink(missing_ok=True)


def arrays(item: pathlib.Path) -> Any:
  """Returns a saved tree as numpy arrays, from whatever devices."""
  verbosity = logging.get_verbosity()
  # Orbax warns that metadata is missing which only its manager writes.
  logging.set_verbosity(logging.ERROR)
  options = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    # Each process reads alone, without waiting for the others.
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me},
        barrier_sync_key_prefix=f'reader{me}')
  try:
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
        multiprocessing_options=options) as reader:
      metadata = reader.metadata(item).item_metadata
      return reader.restore(item, restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata))
  finally:
    logging.set_verbosity(verbosity)


def warn_of_foreign(folder: pathlib.Path) -> None:
  """Names the folders of `foreign`, which are passed over."""
  for name in foreign(folder):
    logging.warning('%s: not a checkpoint of ours, so it is passed over',
                    folder / name)


def find(path: PathLike) -> tuple[pathlib.Path, int | None]:
  """Returns the checkpoint folder of a path, and a step or None.

  The path is a run's folder, its checkpoints folder, or one step in it.

  Raises:
    FileNotFoundError: there is no checkpoint; names the path.
  """
  path = files.path(path)
  if is_step(path.name) and (path / 'params').is_dir():
    return path.parent, int(path.name)
  for folder in (path / 'checkpoints', path):
    if folder.is_dir() and steps(folder):
      return folder, None
  raise FileNotFoundError(
      f'{path}: no checkpoint: expected the folder of a run, its checkpoints '
      'folder or one step of it')


def load(path: PathLike, step: int | None = None
         ) -> tuple[config_dict.FrozenConfigDict, Any]:
  """Returns (config, params) of a checkpoint, on the default device.

  Args:
    path: a run's folder, its checkpoints folder, or one step.
    step: which step; None takes the newest that is whole.

  Returns:
    the frozen config that the run was trained with, and the linen variables
    {'params', 'batch_stats'} as numpy arrays.

  Raises:
    FileNotFoundError: no checkpoint, or not that step; names those there are.
    ValueError: the checkpoint is damaged; names the file.
  """
  return read(*choose(path, step))


def choose(path: PathLike, step: int | None = None
           ) -> tuple[pathlib.Path, int]:
  """Returns (checkpoint folder, step) that `load` reads; see there."""
  folder, only = find(path)
  if step is None:
    step = only
  # Newest first, as training does.
  candidates = steps(folder)[::-1]
  warn_of_foreign(folder)
  if step is not None:
    if step not in candidates:
      raise FileNotFoundError(
          f'{folder}: no step {step}; there are {candidates[::-1]}')
    candidates = [step]
  for number in candidates:
    fault = verify(folder, number)
    if not fault:
      return folder, number
    logging.warning('checkpoint %s/%d: %s', folder, number, fault)
  raise ValueError(f'{folder}/{candidates[-1]}: damaged checkpoint: {fault}')


def read(folder: pathlib.Path, step: int
         ) -> tuple[config_dict.FrozenConfigDict, Any]:
  """Returns (config, params) of a step as `load`, without verifying it."""
  tree = config_lib.complete(files.read_json(
      folder / str(step) / 'config' / 'metadata'))
  config = config_lib.frozen(config_lib.located(tree, folder.parent.parent))
  with contextlib.suppress(OSError):  # The folder may be read-only.
    commit(folder, step)
  return config, arrays(folder.absolute() / str(step) / 'params')


def fsck(path: PathLike) -> list[tuple[int, str]]:
  """Returns [(step, what is wrong or '')] of a folder's steps, ascending.

  Args:
    path: a run's folder or its checkpoints folder.

  Raises:
    FileNotFoundError: there is no checkpoint; names the path.
  """
  folder, only = find(path)
  warn_of_foreign(folder)
  if only is None:
    chosen = steps(folder)
  else:
    chosen = [only]
  faults = []
  for step in chosen:
    fault = 'no checksums, so damage would go unnoticed'
    if checksums(folder, step).exists():
      fault = verify(folder, step)
    faults.append((step, fault))
  return faults


def main(argv: Sequence[str]) -> int:
  """python -m audiorank.checkpoint fsck DIR ...: verifies every checksum.

  Prints a line a step; exits 1 if a step is damaged or a folder has none.
  """
  if len(argv) < 3 or argv[1] != 'fsck':
    print('usage: python -m audiorank.checkpoint fsck DIR ...',
          file=sys.stderr)
    return 1
  failed = False
  for path in argv[2:]:
    try:
      for step, fault in fsck(path):
        failed |= bool(fault)
        print(f'{path}: step {step}: {fault or "whole"}')
    except FileNotFoundError as error:
      failed = True
      print(f'error: {error}', file=sys.stderr)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
