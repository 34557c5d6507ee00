"""Tables of a sweep, rebuilt from its records: runs, history, tasks."""

import collections
from importlib import metadata
import itertools
import json
import pathlib
import platform
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import baselines
from audiorank import config as config_lib
from audiorank import files
from audiorank.records import curve_table
from audiorank.records import run_dir

# The tables of a quickstart sweep, and one of its models, saved.
SAMPLE = pathlib.Path(__file__).parents[1] / 'sample'

def run_folders(root):
  """Returns the run folders under a sweep's root, sorted."""
  return sorted(p.parent for p in files.path(root).glob('*/config.json'))


class Tables(NamedTuple):
  """What `collect` makes of a sweep.

  runs: one row a run, its last reading and its scores.
  history: one row a run and reading.
  tasks: one row a run, step and task.
  """
  runs: pd.DataFrame
  history: pd.DataFrame
  tasks: pd.DataFrame


def described(workdir, config, records):
  """Returns the columns that every row of a run shares.

  `decoder` is '<width>-<depth>-<heads>'. `hours_asked` is data.hours, 0 for
  all there is, where `hours` is what the subset holds. For the keys see
  `baselines.columns`.
  """
  m, t = config['model'], config['train']
  keys = baselines.columns(config)
  row = {
      'run_id': workdir.name, 'experiment': config['experiment'],
      'state': run_dir.state(workdir), 'untrained': t['steps'] == 0,
      'size': config_lib.size_name(m['width'], m['depth']),
      'width': m['width'],
      'depth': m['depth'], 'heads': m['heads'],
      'decoder': '{width}-{depth}-{heads}'.format(**m['decoder']),
      'decoder_heads': m['decoder']['heads'],
      'mask_ratio': float(config['mask']['ratio']),
      'lr': float(config['opt']['lr']), 'batch': t['batch'],
      'steps': t['steps'], 'seed': config['seed'],
      # Before it had a seed of its own, the order of clips was the run's.
      'order': (config['data'] if 'seed' in config['data'] else config)['seed'],
      'crop_seconds': float(config['data']['crop_seconds']),
      'objective': config['objective'],
      'category': config['data']['category'] or 'all',
      'hours_asked': float(config['data']['hours']),
      'config_key': keys['config_key'], 'training_key': keys['training_key'],
      'baseline': keys['baseline'], 'params': None, 'hours': None}
  for about in (r for r in records if r['kind'] == 'run'):
    row['params'] = about['parameters']['encoder']
    row['params_decoder'] = about['parameters']['decoder']
    row['hours'] = about['hours']
    row['flops_per_clip'] = about['flops_per_clip']['total']
    row['flops_per_clip_encoder'] = about['flops_per_clip']['encoder']
  return row


VARIED = {'steps': '{} steps', 'lr': 'lr {:g}', 'batch': 'batch {}',
          'crop_seconds': '{:g} s', 'heads': '{} heads',
          'decoder': 'decoder {}', 'objective': '{}', 'seed': 'seed {}',
          'order': 'order {}'}


def run_name(row, varied=(), usual=None):
  """Returns what a run is called in tables and legends.

  Args:
    row: its columns.
    varied: those of VARIED in which the runs of the sweep differ.
    usual: {name: value} that need not be said.
  """
  said = [v for v in varied if not usual or v not in usual
          or usual[v] != row[v]]
  more = ''.join(' ' + VARIED[name].format(row[name]) for name in said)
  if row['untrained']:
    return f"{row['size']} untrained{more}"
  hours = '' if row['hours'] is None else f" {row['hours']:.2g} h"
  if row['category'] != 'all':
    hours += f" of {row['category']}"
  return f"{row['size']}{hours} mask {row['mask_ratio']:g}{more}"


def name_runs(runs, *others):
  """Gives the rows of every list the names of their runs.

  A name carries the fields of VARIED that tell runs of one short name apart,
  unless most runs have the same value and so has this one.
  """
  names = {}
  for untrained in (False, True):
    mine = [r for r in runs if r['untrained'] == untrained]
    varied = [v for v in VARIED if len({(run_name(r), r[v]) for r in mine})
              > len({run_name(r) for r in mine})]
    usual = {}
    for name in varied:
      (value, count), = collections.Counter(
          r[name] for r in mine).most_common(1)
      if count > 2 and 2 * count > len(mine):
        usual[name] = value
    names.update({r['run_id']: run_name(r, varied, usual) for r in mine})
  for row in itertools.chain(runs, *others):
    row['name'] = names[row['run_id']]


def number(value):
  """Returns a number of a record; null is NaN."""
  return float('nan') if value is None else value


def reading(row, record):
  """Returns the columns of one monitor record."""
  step = record['step']
  out = {'step': step, 'clips': record['n'],
         'valid_loss': record.get('valid_loss')}
  for name, short in (('rank', 'rank'), ('rank_center', 'rank_center')):
    got = record[name]
    out[short] = number(got['value'])
    for part in ('low', 'high', 'value_inf'):
      out[f'{short}_{part}'] = number(got[part])
  for name, value in record['rank']['siblings'].items():
    out[f'sibling_{name}'] = number(value)
  for name, value in record.get('directions', {}).items():
    out[f'direction_{name}'] = number(value)
  # Records that were made before layers, samples and alarms were read lack
  # them; samples are read at the first and the last step.
  for layer in record.get('layers', ()):
    out[f"rank_layer_{layer['layer']}"] = number(layer['rank']['value'])
  for sample in record.get('samples', ()):
    name, got = sample['sample'], sample['rank']
    out[f'clips_{name}'] = sample['n']
    out[f'rank_{name}'] = number(got['value'])
    for part in ('low', 'high', 'value_inf'):
      out[f'rank_{name}_{part}'] = number(got[part])
    out[f'rank_center_{name}'] = number(sample['rank_center']['value'])
  out['alarms'] = json.dumps([alarm(a, step)
                              for a in record.get('alarms', ())])
  for whose in ('', '_encoder'):
    per_clip = row.get(f'flops_per_clip{whose}')
    out[f'flops{whose}'] = (
        None if per_clip is None else per_clip * row['batch'] * step)
  return out


# What each alarm of a record was when alarms were sentences: its kind, the
# words, and the number that follows them. `threshold` of an unusual change is
# what the value was before.
SENTENCES = {
    'small_sample': r'small sample: (?P<value>\d+) clips.*at least '
                    r'(?P<threshold>\d+)',
    'collapse': r'collapse: RankMe (?P<value>[\d.]+)',
    'collapse_centred': r'collapse: every embedding',
    'sinking_centred_rank': r'centred RankMe sinks: (?P<threshold>[\d.]+) to '
                            r'(?P<value>[\d.]+)',
    'valid_loss_not_finite': r'instability: validation loss (nan|inf)',
    'valid_loss_rise': r'instability: validation loss (?P<value>[\d.]+) after '
                       r'(?P<threshold>[\d.]+)',
    'rank_jump': r'instability: RankMe (?P<threshold>[\d.]+) to '
                 r'(?P<value>[\d.]+)'}


def alarm(found, step):
  """Returns an alarm as {'kind', 'value', 'threshold', 'step'}.

  Args:
    found: an alarm of a record; a sentence, in records of older versions.
    step: of the record.
  """
  if isinstance(found, dict):
    return {**found, 'step': step}
  for kind, pattern in SENTENCES.items():
    match = re.match(pattern, found)
    if match:
      numbers = match.groupdict()
      return {'kind': kind, 'step': step, **{
          name: None if numbers.get(name) is None else float(numbers[name])
          for name in ('value', 'threshold')}}
  return {'kind': found, 'value': None, 'threshold': None, 'step': step}


def samples(table):
  """Returns the names of the further samples in a table of readings."""
  return [name.removeprefix('clips_') for name in table
          if name.startswith('clips_')]


def tables(root):
  """Reads every record of a sweep into Tables.

  Where sweep.json names the sweep's runs, others in the folder are left out;
  so are scores by settings that a run's config no longer names.

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
  add_baselines(runs, history, scores)
  name_runs(runs, history, scores)
  return Tables(pd.DataFrame(runs), pd.DataFrame(history),
                pd.DataFrame(scores))


def sweep_folders(root):
  """Returns the folders of a sweep's own runs."""
  path = pathlib.Path(root) / 'sweep.json'
  folders = run_folders(root)
  if not path.exists():
    return folders
  mine = set(files.read_json(path).get('runs', []))
  return [f for f in folders if f.name in mine]


def wanted(record, config):
  """Returns whether a score is by the settings asked for.

  Its task need not be: a sweep that goes on with other tasks keeps the scores
  it has.
  """
  e = config['eval']
  return all(e[k] == v for k, v in record['settings'].items())


def add_rows(workdir, runs, history, scores):
  """Adds the rows of one run to the three lists."""
  config = config_lib.complete(run_dir.config_tree(workdir))
  records = run_dir.read(workdir)
  row = described(workdir, config, records)
  readings = [{**row, **reading(row, r)}
              for r in records if r['kind'] == 'monitor']
  for found in readings:
    found['final'] = found['step'] == row['steps']
  history += readings
  mine = []
  for record in records:
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
  final['config'] = baselines.columns(config)['config']
  runs.append(final)


def add_baselines(runs, history, scores):
  """Gives rows the run id, the score and the gain over their baseline.

  Of sweeps that trained several untrained networks which are equal to the
  bit, the first one that is scored stands for all of them. `gain` is the
  score less `untrained_score`, of the same tasks or not at all.
  """
  chosen = {}
  order = lambda r: (r['baseline'] != r['run_id'], not r['scored_tasks'],
                     r['run_id'])
  for row in sorted(runs, key=order):
    if row['untrained']:
      chosen.setdefault(row['baseline'], row['run_id'])
  for row in itertools.chain(runs, history, scores):
    row['baseline'] = chosen.get(row['baseline'], row['baseline'])
  by_task = {(r['run_id'], r['task']): r['score'] for r in scores
             if r['untrained'] and r['step'] == r['steps']}
  for row in scores:
    row['untrained_score'] = number(by_task.get((row['baseline'], row['task'])))
    row['gain'] = number(row['score']) - row['untrained_score']
  by_run = {r['run_id']: r for r in runs}
  for row in runs:
    row['untrained_score'] = row['gain'] = float('nan')
    other = by_run.get(row['baseline'])
    if other and row['scored_tasks'] == other['scored_tasks'] > 0:
      row['untrained_score'] = other['score']
      row['gain'] = row['score'] - other['score']


def collect(root):
  """Writes runs, history, tasks and curves (.parquet); returns Tables.

  Raises:
    FileNotFoundError: there is no run under the root.
  """
  root = files.path(root)
  if not run_folders(root):
    raise FileNotFoundError(f'{root}: no runs: expected <run_id>/config.json '
                            'in it')
  made = tables(root)
  for name, table in made._asdict().items():
    with files.replacing(root / f'{name}.parquet', sync=False) as part:
      table.to_parquet(part)
  curve_table.write(root, sweep_folders(root))
  return made


def publish(root, folder):
  """Writes a sweep's tables where they can be shown without its runs.

  runs, history, tasks (.parquet) and about.json: versions, the corpus by the
  hash of its manifest, settings of the scores, runs by the hash of what was
  trained. No path of this machine is in any of them.

  Raises:
    FileNotFoundError: there is no run under the root.
  """
  folder = files.path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  made = collect(root)
  for name, table in made._asdict().items():
    table.to_parquet(folder / f'{name}.parquet')
  config = run_dir.config_tree(sweep_folders(root)[0])
  scored = {k: v for k, v in config['eval'].items() if k != 'tasks'}
  files.write_json(folder / 'about.json', {
      'versions': {'python': platform.python_version(), **{
          name: metadata.version(name) for name in
          ('audiorank', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scipy')}},
      'corpus': config['data']['sha256'], 'eval': scored,
      'tasks': sorted(set(made.tasks['task'])) if len(made.tasks) else [],
      'runs': sorted(made.runs['run_id'])})


def load(root):
  """Returns the Tables that `collect` wrote.

  Args:
    root: a sweep's folder, records.SAMPLE, or a URL under which the three
      files lie.

  Raises:
    FileNotFoundError: they are not there.
    ValueError: a URL that gives no tables.
  """
  if '://' in str(root):
    try:
      return Tables(*(pd.read_parquet(f'{str(root).rstrip("/")}/{name}.parquet')
                      for name in Tables._fields))
    except Exception as error:  # Of the network, a server or the file.
      reason = ' '.join(str(error).split())[:200] or type(error).__name__
      raise ValueError(f'{root}: no tables there: {reason}') from None
  root = pathlib.Path(root)
  for name in Tables._fields:
    if not (root / f'{name}.parquet').is_file():
      raise FileNotFoundError(f'{root}/{name}.parquet: no such file: run '
                              'records.collect first')
  return Tables(*(pd.read_parquet(root / f'{name}.parquet')
                  for name in Tables._fields))
