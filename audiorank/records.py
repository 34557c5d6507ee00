"""Runs and their results on disk: one folder a run, one JSON a result.

  <root>/<run_id>/config.json              resolved, canonical
                 /records/<kind>-<step>.json   one result each
                 /metrics.jsonl            the training curve
                 /LEASE  /DONE  /FAILED    state, written whole or not at all
  <root>/runs.parquet, history.parquet     rebuilt from the above

The JSON files are the truth; the tables are a cache that `collect` rebuilds.
"""

import hashlib
import json
import math
import os
import pathlib
from typing import NamedTuple

from ml_collections import config_dict
import numpy as np
import pandas as pd

SCHEMA = 2  # Raised when the same config would mean another experiment.
# Where things lie, what they are called and how they are scored afterwards
# does not change what is trained.
NOT_IDENTITY = ('experiment', 'eval', 'checkpoint', 'mesh', 'data.root',
                'data.threads', 'data.resident', 'model.remat',
                'model.unroll', 'train.log_every', 'monitor.batch')
TIMES = ('seconds', 'started', 'host', 'rate', 'waiting', 'clips_per_second')


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
    *parents, last = name.split('.')
    node = tree
    for parent in parents:
      node = node[parent]
    node.pop(last, None)
  return tree


def digest(tree):
  """Returns 12 hex digits of a JSON tree's canonical text."""
  text = json.dumps(tree, sort_keys=True, separators=(',', ':'),
                    allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_id(config):
  """Returns a run's name: the same config always gives the same one."""
  return digest({'schema': SCHEMA, **identity(config)})


def frozen(tree):
  """Returns a FrozenConfigDict (hashable) of a JSON tree or a config."""
  return config_dict.FrozenConfigDict(
      tree.to_dict() if isinstance(tree, config_dict.ConfigDict) else tree)


def write_json(path, tree):
  """Writes JSON whole or not at all; NaN and infinity become null."""
  def strict(x):
    if isinstance(x, dict):
      return {k: strict(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
      return [strict(v) for v in x]
    if hasattr(x, 'item'):
      x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
      return None
    return x

  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(part, 'w', encoding='utf-8') as f:
      json.dump(strict(tree), f, indent=1, sort_keys=True, allow_nan=False)
      f.write('\n')
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def line(row):
  """Returns one line of JSON; NaN and infinity are refused."""
  return json.dumps(row, sort_keys=True, allow_nan=False) + '\n'


def read_json(path):
  """Returns the tree of a JSON file.

  Raises:
    ValueError: the file is not JSON; names it.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: not a JSON file ({error})') from None


def open_run(workdir, config):
  """Makes or checks a run's folder.

  A folder of the same run whose evaluation settings differ is taken over:
  its config.json is rewritten and DONE removed, so that what is missing is
  measured and nothing trained again.

  Raises:
    ValueError: the folder belongs to another run; names both.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  ours = plain(config)
  if path.exists():
    theirs = read_json(path)
    if run_id(theirs) != run_id(ours):
      raise ValueError(
          f'{workdir}: holds run {run_id(theirs)}, this config is run '
          f'{run_id(ours)} ({difference(identity(theirs), identity(ours))}): '
          'expected the same config or an empty folder')
    if theirs == ours:
      return
    (workdir / 'DONE').unlink(missing_ok=True)
  write_json(path, ours)


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
  """Returns the frozen config of a run's folder."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file: expected the folder of a '
                            'run')
  return frozen(read_json(path))


def path(workdir, kind, step):
  """Returns where the record of (kind, step) lies."""
  return pathlib.Path(workdir) / 'records' / f'{kind}-{step:08d}.json'


def write(workdir, kind, step, fields):
  """Writes one result; the same (kind, step) again replaces it."""
  write_json(path(workdir, kind, step), {'kind': kind, 'step': step, **fields})


def read(workdir, kind=None):
  """Returns the records of a run, in the order of kind and step."""
  folder = pathlib.Path(workdir) / 'records'
  found = [read_json(p) for p in sorted(folder.glob('*.json'))]
  return [r for r in found if kind is None or r['kind'] == kind]


def cut_metrics(workdir, step):
  """Drops the rows of metrics.jsonl past a step, and a half-written one."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      break
    if row['step'] <= step:
      rows.append(line + '\n')
  part = path.with_name(f'.metrics.{os.getpid()}')
  part.write_text(''.join(rows), encoding='utf-8')
  os.replace(part, path)


def state(workdir):
  """Returns 'done', 'failed', 'started' or 'new'."""
  workdir = pathlib.Path(workdir)
  for name in ('DONE', 'FAILED'):
    if (workdir / name).exists():
      return name.lower()
  started = (workdir / 'checkpoints').exists() or (workdir / 'LEASE').exists()
  return 'started' if started else 'new'


def run_folders(root):
  """Returns the run folders under a sweep's root, sorted."""
  return sorted(p.parent for p in pathlib.Path(root).glob('*/config.json'))


class Tables(NamedTuple):
  """What `collect` makes of a sweep.

  runs: one row a run, its last reading and its scores.
  history: one row a run and reading.
  tasks: one row a run, step and task.
  """
  runs: pd.DataFrame
  history: pd.DataFrame
  tasks: pd.DataFrame


def described(workdir):
  """Returns the columns that every row of a run shares."""
  config = read_json(workdir / 'config.json')
  m, t = config['model'], config['train']
  row = {
      'run_id': workdir.name, 'experiment': config['experiment'],
      'state': state(workdir), 'untrained': t['steps'] == 0,
      'size': f"en{m['width']}-{m['depth']}", 'width': m['width'],
      'depth': m['depth'], 'heads': m['heads'],
      'mask_ratio': float(config['mask']['ratio']),
      'lr': float(config['opt']['lr']), 'batch': t['batch'],
      'steps': t['steps'], 'seed': config['seed'],
      'crop_seconds': float(config['data']['crop_seconds']),
      'objective': config['objective'], 'params': None, 'hours': None}
  for about in read(workdir, 'run'):
    row['params'] = about['parameters']['encoder']
    row['params_decoder'] = about['parameters']['decoder']
    row['hours'] = about['hours']
    row['flops_per_clip'] = about['flops_per_clip']['total']
    row['flops_per_clip_encoder'] = about['flops_per_clip']['encoder']
  row['name'] = run_name(row)
  return row


def run_name(row):
  """Returns what a run is called in tables and legends."""
  if row['untrained']:
    return f"{row['size']} untrained"
  hours = '' if row['hours'] is None else f" {row['hours']:.2g} h"
  return f"{row['size']}{hours} mask {row['mask_ratio']:g}"


def reading(row, record):
  """Returns the columns of one monitor record."""
  step = record['step']
  out = {'step': step, 'clips': record['n'],
         'valid_loss': record.get('valid_loss')}
  for name, short in (('rank', 'rank'), ('rank_center', 'rank_center')):
    got = record[name]
    out[short] = got['value']
    for part in ('low', 'high', 'value_inf'):
      out[f'{short}_{part}'] = got[part]
  for name, value in record['rank']['siblings'].items():
    out[f'sibling_{name}'] = value
  for whose in ('', '_encoder'):
    per_clip = row.get(f'flops_per_clip{whose}')
    out[f'flops{whose}'] = (
        None if per_clip is None else per_clip * row['batch'] * step)
  return out


def tables(root):
  """Reads every record of a sweep into Tables.

  Where sweep.json names the sweep's runs, others in the folder are left out;
  so are scores of tasks or by settings that a run's config no longer names.

  Raises:
    ValueError: a record or config that is damaged; names the folder.
  """
  runs, history, scores = [], [], []
  for workdir in sweep_folders(root):
    try:
      add_rows(workdir, runs, history, scores)
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(
          f'{workdir}: config.json or a record is damaged (no {error}): '
          'remove the file and DONE, and run the sweep again') from None
  return Tables(pd.DataFrame(runs), pd.DataFrame(history),
                pd.DataFrame(scores))


def sweep_folders(root):
  """Returns the folders of a sweep's own runs."""
  path = pathlib.Path(root) / 'sweep.json'
  folders = run_folders(root)
  if not path.exists():
    return folders
  mine = set(read_json(path).get('runs', []))
  return [f for f in folders if f.name in mine]


def wanted(record, config):
  """Returns whether a score is of a task and by settings still asked for."""
  e = config['eval']
  names = [n for n in e['names'].split(',') if n]
  same = all(e[k] == v for k, v in record['settings'].items())
  return same and (not names or record['task'] in names)


def add_rows(workdir, runs, history, scores):
  """Adds the rows of one run to the three lists."""
  row = described(workdir)
  config = read_json(workdir / 'config.json')
  readings = [{**row, **reading(row, r)} for r in read(workdir, 'monitor')]
  for found in readings:
    found['final'] = found['step'] == row['steps']
  history += readings
  mine = []
  for record in read(workdir):
    if record['kind'].startswith('hear.') and wanted(record, config):
      result = record['result']
      mine.append({
          **row, 'step': record['step'], 'task': record['task'],
          'metric': record['metric'], 'score': result['score'],
          'std': result.get('std'), 'protocol': result['protocol'],
          'embedding_type': record['embedding_type']})
  scores += mine
  last = max((r for r in readings), key=lambda r: r['step'], default=row)
  final = {**row, **last}
  done = [r['score'] for r in mine if r['step'] == row['steps']
          and r['embedding_type'] == 'scene' and r['score'] is not None]
  final['score'] = float(np.mean(done)) if done else None
  final['scored_tasks'] = len(done)
  runs.append(final)


def collect(root):
  """Writes runs.parquet, history.parquet and tasks.parquet; returns Tables.

  Raises:
    FileNotFoundError: there is no run under the root.
  """
  root = pathlib.Path(root)
  if not run_folders(root):
    raise FileNotFoundError(f'{root}: no runs: expected <run_id>/config.json '
                            'in it')
  made = tables(root)
  for name, table in made._asdict().items():
    part = root / f'.{name}.{os.getpid()}'
    table.to_parquet(part)
    os.replace(part, root / f'{name}.parquet')
  return made


def load(root):
  """Returns the Tables that `collect` wrote.

  Raises:
    FileNotFoundError: they are not there.
  """
  root = pathlib.Path(root)
  for name in Tables._fields:
    if not (root / f'{name}.parquet').is_file():
      raise FileNotFoundError(f'{root}/{name}.parquet: no such file: run '
                              'records.collect first')
  return Tables(*(pd.read_parquet(root / f'{name}.parquet')
                  for name in Tables._fields))
