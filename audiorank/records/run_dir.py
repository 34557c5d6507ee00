"""The folder of one run: its config, its records, its state.

  config.json                 the config
  records/<kind>-<step>.json  one result each
  metrics.jsonl               rows of training metrics
  checkpoints/                see checkpoint.py
  LEASE                       the lock, see lock.py
  TRAINED, DONE, FAILED       an empty file or a message: the state
"""

import pathlib
from typing import Any

from ml_collections import config_dict

from audiorank import config as config_lib
from audiorank import files
from audiorank.records import lock as lock_lib

# Fields of records and rows that differ between two runs of the same config.
TIMES = ('seconds', 'started', 'host', 'rate', 'waiting', 'clips_per_second',
         'tflops', 'encoder_tflops', 'mfu', 'memory')


def open_run(workdir: files.Path, config: Any) -> None:
  """Creates or checks a run's folder.

  If the folder has the same run with other settings, its config.json is
  rewritten. If the settings are those of the evaluation, DONE becomes TRAINED:
  then missing tasks are scored and nothing is trained again.

  Raises:
    ValueError: the folder belongs to another run; names both.
    LockHeld: a live process works on it with other settings.
  """
  folder = files.path(workdir)
  target = folder / 'config.json'
  ours = config_lib.plain(config)
  if not target.exists():
    files.write_json(target, ours)
    return
  # Paths and settings may differ; what is trained may not.
  theirs = config_tree(folder)
  there, here = config_lib.run_id(theirs), config_lib.run_id(ours)
  if there != here:
    field = config_lib.difference(config_lib.identity(theirs),
                                  config_lib.identity(ours))
    raise ValueError(
        f'{folder}: holds run {there}, this config is run {here} ({field}): '
        'expected the same config or an empty folder')
  if config_lib.complete(theirs) == ours:
    return
  # Under the lock: a worker reads its config once, and would mark the run as
  # DONE under settings that it did not use.
  lock = lock_lib.Lock(folder)
  try:
    if theirs['eval'] != ours['eval'] and (folder / 'DONE').exists():
      (folder / 'DONE').replace(folder / 'TRAINED')
    files.write_json(target, ours)
  finally:
    lock.release()


def load_config(workdir: files.Path) -> config_dict.FrozenConfigDict:
  """Returns the frozen config of a run's folder.

  Raises:
    FileNotFoundError, ValueError: as `config_tree`.
  """
  return config_lib.frozen(config_lib.complete(config_tree(workdir)))


def config_tree(workdir: files.Path) -> config_lib.Tree:
  """Returns the config of a run's folder as it was written.

  Raises:
    FileNotFoundError: the folder has no config; names the file.
    ValueError: the file is no config; names the missing part.
  """
  source = files.path(workdir) / 'config.json'
  if not source.is_file():
    raise FileNotFoundError(f'{source}: no such file: expected the folder of a '
                            'run')
  tree = files.read_json(source)
  for part in config_lib.PARTS:
    if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
      raise ValueError(f'{source}: not the config of a run: no {part!r} in it')
  return tree


def path(workdir: files.Path, kind: str, step: int) -> pathlib.Path:
  """Returns the path of the record of (kind, step)."""
  # Padded, so that names sort like steps.
  return pathlib.Path(workdir) / 'records' / f'{kind}-{step:08d}.json'


def write(workdir: files.Path, kind: str, step: int, fields: dict[str, Any]
          ) -> None:
  """Writes one result; it replaces an earlier one of the same (kind, step)."""
  files.write_json(path(workdir, kind, step),
                   {'kind': kind, 'step': step, **fields})


def read(workdir: files.Path, kind: str | None = None
         ) -> list[dict[str, Any]]:
  """Returns the records of a run, in the order of kind and step.

  Args:
    workdir: the run's folder.
    kind: of the records; None returns all.

  Raises:
    ValueError: a record that is not JSON; names it.
  """
  folder = pathlib.Path(workdir) / 'records'
  records = [files.read_json(p) for p in sorted(folder.glob('*.json'))]
  return [r for r in records if kind is None or r['kind'] == kind]


def cut_metrics(workdir: files.Path, step: int) -> None:
  """Drops the rows of metrics.jsonl after a step, and a half-written one.

  The step's own evaluation, a row with a rank, is dropped as well.
  """
  target = pathlib.Path(workdir) / 'metrics.jsonl'
  if not target.exists():
    return
  # A run that resumes at a step saves, then evaluates, then goes on. So it
  # writes the evaluation of that step and all later rows again.
  rows = [row for row in files.read_lines(target) if row['step'] < step or
          row['step'] == step and 'rank' not in row]
  files.write_text(target, ''.join(map(files.json_line, rows)))


def state(workdir: files.Path) -> str:
  """Returns 'done', 'failed', 'trained' (not scored), 'started' or 'new'."""
  folder = pathlib.Path(workdir)
  for name in ('DONE', 'FAILED', 'TRAINED'):
    if (folder / name).exists():
      return name.lower()
  # A released lock leaves an empty file, which reads as {}.
  if (folder / 'checkpoints').exists() or lock_lib.read(folder):
    return 'started'
  return 'new'
