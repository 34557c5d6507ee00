"""One run on disk: its config, its records, its state."""

import pathlib

from audiorank import config as config_lib
from audiorank import files
from audiorank.records import lock as lock_lib

TIMES = ('seconds', 'started', 'host', 'rate', 'waiting', 'clips_per_second',
         'tflops', 'encoder_tflops', 'mfu', 'memory')


def open_run(workdir, config):
  """Makes or checks a run's folder.

  A folder of the same run by other settings is taken over: its config.json
  is rewritten, and DONE becomes TRAINED if they are of the evaluation, so that
  what is missing is scored and nothing trained again.

  Raises:
    ValueError: the folder belongs to another run; names both.
    lock_lib.LockHeld: a live process works on it by other settings.
  """
  workdir = files.path(workdir)
  path = workdir / 'config.json'
  ours = config_lib.plain(config)
  if path.exists():
    theirs = config_tree(workdir)
    there, here = config_lib.run_id(theirs), config_lib.run_id(ours)
    if there != here:
      field = config_lib.difference(*map(config_lib.identity, (theirs, ours)))
      raise ValueError(
          f'{workdir}: holds run {there}, this config is run {here} ({field}): '
          'expected the same config or an empty folder')
    if config_lib.complete(theirs) == ours:
      return
    # A worker reads its config once: it would mark the run as done by
    # settings that the folder no longer names.
    held = lock_lib.Lock(workdir)
    try:
      if theirs['eval'] != ours['eval'] and (workdir / 'DONE').exists():
        (workdir / 'DONE').replace(workdir / 'TRAINED')
      files.write_json(path, ours)
    finally:
      held.release()
    return
  files.write_json(path, ours)


def load_config(workdir):
  """Returns the frozen config of a run's folder.

  Raises:
    FileNotFoundError, ValueError: as `config_tree`.
  """
  return config_lib.frozen(config_lib.complete(config_tree(workdir)))


def config_tree(workdir):
  """Returns the config of a run's folder as it was written.

  Raises:
    FileNotFoundError: there is none; names it.
    ValueError: it is no config; says which part is missing.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file: expected the folder of a '
                            'run')
  tree = files.read_json(path)
  for part in config_lib.PARTS:
    if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
      raise ValueError(f'{path}: not the config of a run: no {part!r} in it')
  return tree


def path(workdir, kind, step):
  """Returns where the record of (kind, step) lies."""
  return pathlib.Path(workdir) / 'records' / f'{kind}-{step:08d}.json'


def write(workdir, kind, step, fields):
  """Writes one result; the same (kind, step) again replaces it."""
  files.write_json(path(workdir, kind, step),
                   {'kind': kind, 'step': step, **fields})


def read(workdir, kind=None):
  """Returns the records of a run, in the order of kind and step."""
  folder = pathlib.Path(workdir) / 'records'
  found = [files.read_json(p) for p in sorted(folder.glob('*.json'))]
  return [r for r in found if kind is None or r['kind'] == kind]


def cut_metrics(workdir, step):
  """Drops the rows of metrics.jsonl past a step, and a half-written one.

  The step's own reading (a row with a rank) is dropped as well: the run comes
  to it again.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return
  rows = [row for row in files.read_lines(path) if row['step'] < step or
          row['step'] == step and 'rank' not in row]
  files.write_text(path, ''.join(map(files.json_line, rows)))


def state(workdir):
  """Returns 'done', 'failed', 'trained' (not scored), 'started' or 'new'."""
  workdir = pathlib.Path(workdir)
  for name in ('DONE', 'FAILED', 'TRAINED'):
    if (workdir / name).exists():
      return name.lower()
  # A lock that was released is an empty file.
  started = (workdir / 'checkpoints').exists() or lock_lib.read(workdir)
  return 'started' if started else 'new'
