"""One run on disk: who it is, its config, its records, its state."""

import math
import pathlib

from ml_collections import config_dict

from audiorank import files
from audiorank import lease

SCHEMA = 3  # Raised when the same config would mean another experiment.
# Where things lie, what they are called and how they are scored afterwards
# does not change what is trained.
NOT_IDENTITY = ('experiment', 'eval', 'checkpoint', 'mesh', 'data.root',
                'data.threads', 'data.resident', 'model.remat',
                'model.unroll', 'train.call', 'train.log_every',
                'monitor.batch', 'track')
# Fields that came later, and what they are in a run made before: it has no
# such field, and keeps its name.
LATER = {'train.skip': 0, 'train.call': 1, 'track': '',
         'data.category': '', 'monitor.samples': '',
         'model.front': 'log_mel',
         'contrastive': {'share': .5, 'hidden': 512, 'width': 128,
                         'temperature': .1},
         'latent': {'decay': .999}}
# Of every config.
PARTS = ('model', 'mask', 'data', 'train', 'opt', 'monitor', 'checkpoint',
         'eval', 'mesh')
TIMES = ('seconds', 'started', 'host', 'rate', 'waiting', 'clips_per_second',
         'tflops', 'encoder_tflops', 'mfu', 'memory')


def plain(value, field='config'):
  """Returns a config value as canonical JSON material: 1.0 becomes 1.

  Raises:
    ValueError: a value that JSON cannot carry faithfully; names the field.
  """
  if isinstance(value, (config_dict.ConfigDict, dict)):
    items = value.items()
    return {k: plain(v, f'{field}.{k}') for k, v in sorted(items)}
  if isinstance(value, (list, tuple)):
    return [plain(v, f'{field}[{i}]') for i, v in enumerate(value)]
  if value is None or isinstance(value, (bool, str, int)):
    return value
  if isinstance(value, float) and math.isfinite(value):
    return int(value) if value == int(value) else value
  raise ValueError(f'{field}: {value!r} is not a finite number, a string, '
                   'a boolean or a list of them')


def identity(config):
  """Returns the part of a config that makes a run the run it is."""
  tree = plain(config)
  for name in NOT_IDENTITY:
    node, last = holder(tree, name)
    node.pop(last, None)
  for name, value in LATER.items():
    node, last = holder(tree, name)
    if last in node and node[last] == value:
      node.pop(last)
  return tree


def holder(tree, name):
  """Returns (the part of a tree that holds a field, its last name)."""
  *parents, last = name.split('.')
  for parent in parents:
    tree = tree[parent]
  return tree, last


def run_id(config):
  """Returns a run's name: the same config always gives the same one."""
  return files.digest({'schema': SCHEMA, **identity(config)})


def frozen(tree):
  """Returns a FrozenConfigDict (hashable) of a JSON tree or a config."""
  return config_dict.FrozenConfigDict(
      tree.to_dict() if isinstance(tree, config_dict.ConfigDict) else tree)


def open_run(workdir, config):
  """Makes or checks a run's folder.

  A folder of the same run by other settings is taken over: its config.json
  is rewritten, and DONE becomes TRAINED if they are of the evaluation, so that
  what is missing is scored and nothing trained again.

  Raises:
    ValueError: the folder belongs to another run; names both.
    lease.Held: a live process works on it by other settings.
  """
  workdir = files.path(workdir)
  path = workdir / 'config.json'
  ours = plain(config)
  if path.exists():
    theirs = config_tree(workdir)
    if run_id(theirs) != run_id(ours):
      raise ValueError(
          f'{workdir}: holds run {run_id(theirs)}, this config is run '
          f'{run_id(ours)} ({difference(identity(theirs), identity(ours))}): '
          'expected the same config or an empty folder')
    if complete(theirs) == ours:
      return
    # A worker reads its config once: it would mark the run as done by
    # settings that the folder no longer names.
    held = lease.Lease(workdir)
    try:
      if theirs['eval'] != ours['eval'] and (workdir / 'DONE').exists():
        (workdir / 'DONE').replace(workdir / 'TRAINED')
      files.write_json(path, ours)
    finally:
      held.release()
    return
  files.write_json(path, ours)


def difference(theirs, ours, prefix=''):
  """Returns the first field in which two config trees differ, as text."""
  for key in sorted(set(theirs) | set(ours)):
    a, b = theirs.get(key), ours.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      found = difference(a, b, f'{prefix}{key}.')
      if found:
        return found
    elif a != b:
      return f'{prefix}{key}: {a!r} there, {b!r} here'
  return ''


def load_config(workdir):
  """Returns the frozen config of a run's folder.

  Raises:
    FileNotFoundError, ValueError: as `config_tree`.
  """
  return frozen(complete(config_tree(workdir)))


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
  for part in PARTS:
    if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
      raise ValueError(f'{path}: not the config of a run: no {part!r} in it')
  return tree


def complete(tree):
  """Returns a config tree with the fields that came after it was written."""
  for name, value in LATER.items():
    node, last = holder(tree, name)
    node.setdefault(last, value)
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
  # A lease given back is an empty file.
  started = (workdir / 'checkpoints').exists() or lease.read(workdir)
  return 'started' if started else 'new'
