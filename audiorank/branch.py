"""Runs that branch from another: one constant-rate trunk, several durations.

With `opt.schedule = 'wsd'` the learning rate warms up, stays constant, and
decays over the last share `opt.decay` of the steps. Up to the decay, a run is
to the bit the beginning of every longer run of the same family: batches and
random keys are functions of the step alone. So a run may start from a
checkpoint of another run of its family instead of from the first step. It is
the same run, with the same run_id and the same numbers; only the steps before
the branch are not computed again.

A run that no run of its family is ahead of trains from its first step.
"""

from collections.abc import Sequence
import contextlib
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging

from audiorank import baselines
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import files
from audiorank import records

# Where it came from, in the folder of a run that has branched.
FILE = 'branch.json'
# Fields that change nothing before the decay.
AFTER = ('train.steps', 'opt.decay', 'opt.final_lr_ratio')


def family(config: Any) -> str:
  """Returns what runs that share their constant phase have in common, ''
  for a run that cannot branch.

  Args:
    config: of a run: a config, or its JSON tree.
  """
  tree = config_lib.complete(config_lib.plain(config))
  if tree['opt']['schedule'] != 'wsd' or not tree['train']['steps']:
    return ''
  tree = baselines.training(tree)
  for field in AFTER:
    node, name = config_lib.parent(tree, field)
    node.pop(name, None)
  return files.digest(config_lib.hashed(tree))


def constant_steps(config: Any) -> int:
  """Returns the number of steps before the decay begins."""
  # For rounding: (1 - .9) * 10 is a little less than 1.
  return math.floor((1 - config.opt.decay) * config.train.steps + 1e-6)


def branch_step(config: Any) -> int:
  """Returns the step at which a run can begin where its trunk has been.

  It is the last in its constant phase at which a trunk with its settings keeps
  a checkpoint.
  """
  every = math.lcm(config.checkpoint.save_every, config.checkpoint.keep_every)
  return constant_steps(config) // every * every


def shared_steps(configs: Sequence[Any]) -> list[int]:
  """Returns the steps that each run need not compute, as its trunk does.

  The trunk of a family is its longest run, which is trained first.
  """
  families = [family(config) for config in configs]
  trunks: dict[str, int] = {}
  for index, name in enumerate(families):
    longest = trunks.setdefault(name, index)
    if configs[index].train.steps > configs[longest].train.steps:
      trunks[name] = index
  shared = [0] * len(configs)
  for index, name in enumerate(families):
    if name and trunks[name] != index:
      shared[index] = min(branch_step(configs[i])
                          for i in (index, trunks[name]))
  return shared


def computed_steps(configs: Sequence[Any]) -> int:
  """Returns the steps that runs take together where they branch."""
  return sum(config.train.steps for config in configs) - sum(
      shared_steps(configs))


def begin(workdir: files.Path, config: Any) -> int:
  """Copies the latest state that a run shares with another of its root.

  Returns:
    its step; 0 if the run has checkpoints already or there is no such state.
  """
  workdir = files.path(workdir)
  own = workdir / 'checkpoints'
  name = family(config)
  if not name or checkpoint.steps(own):
    return 0
  for step, donor in ahead(workdir, config, name):
    try:
      copy(donor, workdir, step, config)
    except OSError as error:
      # Its run may have deleted the checkpoint meanwhile.
      logging.warning('%s: cannot branch from %s: %s', workdir, donor, error)
      files.remove(own / str(step))
      continue
    logging.info('%s: branches from %s at step %d', workdir, donor, step)
    return step
  return 0


def begin_together(workdirs: Sequence[pathlib.Path],
                   configs: Sequence[Any]) -> int:
  """Does `begin` for runs of one program, which go on from one step.

  Returns:
    the step; 0 if not all of them can branch there.
  """
  reached = [begin(*pair) for pair in zip(workdirs, configs)]
  if len(set(reached)) == 1:
    return reached[0]
  # One program goes on from one step, so what some have got is removed.
  for workdir, step in zip(workdirs, reached):
    if step:
      files.remove(workdir / 'checkpoints' / str(step))
      checkpoint.checksums(workdir / 'checkpoints', step).unlink()
      (workdir / FILE).unlink()
  return 0


def ahead(workdir: pathlib.Path, config: Any,
          name: str) -> list[tuple[int, pathlib.Path]]:
  """Returns (step, folder) of states that a run shares, the latest first.

  Args:
    workdir: the run's folder.
    config: of the run.
    name: its family.
  """
  out = []
  # Known from the index, most folders need not be read.
  runs = records.index(workdir.parent).get('runs')
  others = set()
  if isinstance(runs, dict):  # Older versions wrote a list of names.
    others = {run_id for run_id, about in runs.items() if isinstance(
        about, dict) and about.get('family', name) != name}
  for donor in records.run_folders(workdir.parent):
    if donor.name in others | {workdir.name}:
      continue
    try:
      theirs = records.load_config(donor)
    except (OSError, ValueError):
      continue  # Another's folder; it is reported where it matters.
    if family(theirs) != name:
      continue
    most = min(constant_steps(config), constant_steps(theirs))
    out += [(step, donor) for step in checkpoint.steps(donor / 'checkpoints')
            if 0 < step <= most]
  return sorted(out, reverse=True)


def copy(donor: pathlib.Path, workdir: pathlib.Path, step: int,
         config: Any) -> None:
  """Copies a state, and what was measured until then, to another run.

  Raises:
    OSError: it is damaged or cannot be copied.
  """
  source, own = donor / 'checkpoints', workdir / 'checkpoints'
  if not checkpoint.checksums(source, step).exists():
    raise OSError(f'{source / str(step)}: its save has not ended')
  fault = checkpoint.verify(source, step)
  if fault:
    raise OSError(f'{source / str(step)}: {fault}')
  (workdir / 'records').mkdir(parents=True, exist_ok=True)
  for path in sorted((donor / 'records').glob('monitor-*.json')):
    if int(path.stem.rpartition('-')[2]) <= step:
      files.write_bytes(workdir / 'records' / path.name, path.read_bytes())
  if (donor / 'metrics.jsonl').exists():
    files.write_bytes(workdir / 'metrics.jsonl',
                      (donor / 'metrics.jsonl').read_bytes())
    records.cut_metrics(workdir, step)
  files.write_json(workdir / FILE, {'run_id': donor.name, 'step': step})
  # The checkpoint describes the run that it belongs to now.
  tree = config_lib.portable(config_lib.plain(config), workdir.parent,
                             strict=False)
  # Last: only now is there a checkpoint of this name.
  copy_checkpoint(source / str(step), own / str(step), tree)
  checkpoint.seal(own)


def copy_checkpoint(source: pathlib.Path, target: pathlib.Path,
                    config_tree: Any) -> None:
  """Copies a step, which is none before all its files are there.

  Args:
    source, target: folders of a step, both on a disk or both on a bucket.
    config_tree: the config that the copy contains.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    if files.is_on_bucket(target):
      part = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
      files.fetch(source, part)
      # The signs of orbax name the folder, and must not come before the files.
      for sign in part.rglob(checkpoint.COMMITTED):
        sign.unlink()
    else:
      # Under a name that is no step.
      part = target.with_name(f'{target.name}.copy-{os.getpid()}')
      shutil.copytree(source, part)
    files.write_json(part / 'config' / 'metadata', config_tree)
    if files.is_on_bucket(target):
      files.send(part, target)
      checkpoint.commit(target.parent, int(target.name))
    else:
      os.replace(part, target)
