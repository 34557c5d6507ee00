"""Tables of a sweep, rebuilt from its records: runs, history, tasks."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from importlib import metadata
import itertools
import json
import pathlib
import platform
import re
from typing import Any
from typing import NamedTuple

from absl import logging
import pandas as pd

from audiorank import baselines
from audiorank import config as config_lib
from audiorank import files
from audiorank.records import curve_table
from audiorank.records import run_dir
from audiorank.records import score_table

# The tables of a quickstart sweep, and one of its models, saved.
SAMPLE = pathlib.Path(__file__).parents[1] / 'sample'

Row = dict[str, Any]
number = score_table.number


class Tables(NamedTuple):
  """What `collect` returns of a sweep.

  All share the columns of `run_columns`; scores have those of score_table.

  runs: one row a run, its last measurement of RankMe and its mean scores.
  history: one row a run and step at which RankMe was measured.
  tasks: one row a run, step and task.
  """
  runs: pd.DataFrame
  history: pd.DataFrame
  tasks: pd.DataFrame


class RunRecords(NamedTuple):
  """One run: its columns, its rows of history, its scores, its features.

  row: of `run_columns`.  config: its canonical JSON; see baselines.columns.
  history: rows.  scores: rows with their records.  features: records.
  """
  row: Row
  config: str
  history: list[Row]
  scores: list[score_table.Scored]
  features: list[score_table.Record]


# --- Columns of a run ---


def run_columns(workdir: pathlib.Path, config: Mapping[str, Any],
                records: Iterable[Mapping[str, Any]]) -> Row:
  """Returns the columns that every row of a run shares.

  `decoder` is '<width>-<depth>-<heads>'. `hours_asked` is data.hours, 0 for
  all there is, where `hours` is what the subset holds. `config_key`,
  `training_key` and `baseline`: see `baselines.columns`.
  """
  m, t, keys = config['model'], config['train'], baselines.columns(config)
  # Before it had a seed of its own, the order of clips was the run's.
  ordered_by = config['data'] if 'seed' in config['data'] else config
  # The names of columns are an interface: published tables and notebooks use
  # them.
  row = {
      'run_id': workdir.name, 'experiment': config['experiment'],
      'state': run_dir.state(workdir), 'untrained': t['steps'] == 0,
      'size': config_lib.size_name(m['width'], m['depth']),
      'width': m['width'], 'depth': m['depth'], 'heads': m['heads'],
      'decoder': '{width}-{depth}-{heads}'.format(**m['decoder']),
      'decoder_heads': m['decoder']['heads'],
      'mask_ratio': float(config['mask']['ratio']),
      'lr': float(config['opt']['lr']), 'batch': t['batch'],
      'steps': t['steps'], 'seed': config['seed'],
      'order': ordered_by['seed'],
      'crop_seconds': float(config['data']['crop_seconds']),
      'objective': config['objective'],
      'category': ','.join(config['data']['category']) or 'all',
      'hours_asked': float(config['data']['hours']),
      'config_key': keys['config_key'], 'training_key': keys['training_key'],
      # Not known before the run has written its own record.
      'baseline': keys['baseline'], 'params': None, 'hours': None}
  for about in (r for r in records if r['kind'] == 'run'):
    row['params'] = about['parameters']['encoder']
    row['params_decoder'] = about['parameters']['decoder']
    row['hours'] = about['hours']
    row['flops_per_clip'] = about['flops_per_clip']['total']
    row['flops_per_clip_encoder'] = about['flops_per_clip']['encoder']
    # As the run wrote it, where a later version would name another.
    row['baseline'] = about.get('baseline', row['baseline'])
  return row


# --- Names of runs ---

VARIED = {'steps': '{} steps', 'lr': 'lr {:g}', 'batch': 'batch {}',
          'crop_seconds': '{:g} s', 'heads': '{} heads',
          'decoder': 'decoder {}', 'objective': '{}', 'seed': 'seed {}',
          'order': 'order {}'}


def run_name(row: Row, varied: Iterable[str] = (),
             usual: Mapping[str, Any] | None = None) -> str:
  """Returns what a run is called in tables and legends.

  Args:
    row: its columns.
    varied: those of VARIED in which the runs of the sweep differ.
    usual: {name: value} that need not be named.
  """
  usual = usual or {}
  named = [v for v in varied if v not in usual or usual[v] != row[v]]
  more = ''.join(' ' + VARIED[name].format(row[name]) for name in named)
  if row['untrained']:
    return f"{row['size']} untrained{more}"
  hours = '' if row['hours'] is None else f" {row['hours']:.2g} h"
  if row['category'] != 'all':
    hours += f" of {row['category']}"
  return f"{row['size']}{hours} mask {row['mask_ratio']:g}{more}"


def name_runs(runs: Sequence[Row], *others: Sequence[Row]) -> None:
  """Gives the rows of every list the names of their runs.

  A name carries the fields of VARIED that tell runs of one short name apart,
  unless most runs have the same value and so has this one.
  """
  names = {}
  for untrained in (False, True):
    mine = [r for r in runs if r['untrained'] == untrained]
    # A field is named only if it tells apart runs that would share a name.
    varied = [v for v in VARIED if len({(run_name(r), r[v]) for r in mine})
              > len({run_name(r) for r in mine})]
    usual = {}
    for name in varied:
      (value, count), = collections.Counter(
          r[name] for r in mine).most_common(1)
      # The value of most runs is left out of names: it would be noise.
      if count > 2 and 2 * count > len(mine):
        usual[name] = value
    names.update({r['run_id']: run_name(r, varied, usual) for r in mine})
  for row in itertools.chain(runs, *others):
    row['name'] = names[row['run_id']]


# --- Columns of a measurement of RankMe ---


def rank_columns(run: Row, record: Mapping[str, Any]) -> Row:
  """Returns the columns of one monitor record.

  `clips` is the number that RankMe was measured on; `alarms` is JSON, a list
  of what `alarm` returns.
  """
  step = record['step']
  out = {'step': step, 'clips': record['n'],
         'valid_loss': record.get('valid_loss')}
  out |= interval_columns('rank', record['rank'])
  out |= interval_columns('rank_center', record['rank_center'])
  for name, value in record['rank']['siblings'].items():
    out[f'sibling_{name}'] = number(value)
  for name, value in record.get('directions', {}).items():
    out[f'direction_{name}'] = number(value)
  for name, value in record.get('neighbourhood', {}).items():
    out[f'neighbour_{name}'] = number(value)
  if 'knn' in record:
    out |= {'knn': number(record['knn']['score']),
            'knn_low': number(record['knn']['low']),
            'knn_high': number(record['knn']['high'])}
  if 'lidar' in record:
    out['lidar'] = number(record['lidar']['value'])
  # Records of older versions have no layers, samples and alarms; samples are
  # measured at the first and the last step.
  for layer in record.get('layers', ()):
    out[f"rank_layer_{layer['layer']}"] = number(layer['rank']['value'])
    if 'tokens' in layer:
      out[f"rank_token_layer_{layer['layer']}"] = number(
          layer['tokens']['value'])
  if 'tokens' in record:
    out['rank_token'] = number(record['tokens']['value'])
  for sample in record.get('samples', ()):
    name = sample['sample']
    out[f'clips_{name}'] = sample['n']
    out |= interval_columns(f'rank_{name}', sample['rank'])
    out[f'rank_center_{name}'] = number(sample['rank_center']['value'])
  # As text, because kinds of alarms have different fields.
  out['alarms'] = json.dumps([alarm(a, step)
                              for a in record.get('alarms', ())])
  for part in ('', '_encoder'):
    # FLOPs so far, with and without the decoder.
    per_clip = run.get(f'flops_per_clip{part}')
    out[f'flops{part}'] = (
        None if per_clip is None else per_clip * run['batch'] * step)
  out['final'] = step == run['steps']
  return out


def interval_columns(name: str, rank: Mapping[str, Any]) -> Row:
  """Returns <name>, <name>_low, <name>_high, <name>_value_inf of a RankMe."""
  return {name: number(rank['value']), **{
      f'{name}_{part}': number(rank[part])
      for part in ('low', 'high', 'value_inf')}}


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


def alarm(entry: Mapping[str, Any] | str, step: int) -> Row:
  """Returns an alarm as {'kind', 'value', 'threshold', 'step'}.

  Args:
    entry: an alarm of a record; a sentence, in records of older versions.
    step: of the record.
  """
  if not isinstance(entry, str):
    return {**entry, 'step': step}
  for kind, pattern in SENTENCES.items():
    match = re.match(pattern, entry)
    if match:
      numbers = {name: float(text) for name, text in match.groupdict().items()}
      return {'kind': kind, 'value': None, 'threshold': None, **numbers,
              'step': step}
  return {'kind': entry, 'value': None, 'threshold': None, 'step': step}


def samples(table: pd.DataFrame) -> list[str]:
  """Returns the names of the further samples that RankMe was measured on."""
  return [name.removeprefix('clips_') for name in table
          if name.startswith('clips_')]


# --- Reading a sweep ---


def run_folders(root: files.Path) -> list[pathlib.Path]:
  """Returns the run folders under a sweep's root, sorted."""
  return sorted(p.parent for p in files.path(root).glob('*/config.json'))


def sweep_folders(root: files.Path) -> list[pathlib.Path]:
  """Returns the folders of a sweep's own runs."""
  folders, named = run_folders(root), index(root).get('runs')
  if named is None:
    return folders
  missing = sorted(set(named) - {f.name for f in folders})
  if missing:
    logging.warning('%s: no folder of the run %s, which sweep.json names',
                    root, files.one_line(', '.join(missing)))
  others = [f.name for f in folders if f.name not in named]
  if missing and others:
    logging.warning('%s: sweep.json does not name the run %s: left out',
                    root, files.one_line(', '.join(others)))
  return [f for f in folders if f.name in named]


def joined(roots: Sequence[files.Path], folder: files.Path) -> pathlib.Path:
  """Links the runs of several sweeps in an empty folder: they are one there.

  A run that several have is taken from the first where it is done.

  Raises:
    FileNotFoundError: a root without runs.
    ValueError: a root that is not on a disk.
  """
  folder, titles = pathlib.Path(folder), []
  chosen: dict[str, pathlib.Path] = {}
  for name in roots:
    if files.is_on_bucket(name):
      raise ValueError(f'{name}: of several sweeps each must be on a disk')
    root = files.path(name)
    runs = sweep_folders(root)
    if not runs:
      raise FileNotFoundError(f'{root}: no runs: expected '
                              '<run_id>/config.json in it')
    titles.append(str(index(root).get('title', root.name)))
    for run in runs:
      known = chosen.setdefault(run.name, run)
      if run_dir.state(known) != 'done' and run_dir.state(run) == 'done':
        chosen[run.name] = run
  for name, run in chosen.items():
    # Resolved: a relative link would begin at this folder.
    (folder / name).symlink_to(pathlib.Path(run).resolve())
  files.write_json(folder / 'sweep.json', {
      'title': '; '.join(dict.fromkeys(titles)), 'runs': sorted(chosen)})
  return folder


def index(root: files.Path) -> dict[str, Any]:
  """Returns the contents of sweep.json; {} where there is none.

  Of one that is damaged a warning is logged: then every run of the folder is
  the sweep's.
  """
  path = files.path(root) / 'sweep.json'
  try:
    tree = files.read_json(path)
  except FileNotFoundError:
    return {}
  except ValueError as error:
    logging.warning('%s; every run of the folder is taken', error)
    return {}
  runs = tree.get('runs', []) if isinstance(tree, dict) else None
  if not isinstance(runs, (dict, list)) or not all(
      isinstance(name, str) for name in runs):
    logging.warning('%s: damaged: names no runs; every run of the folder is '
                    'taken', path)
    return {}
  return tree


def read_run(workdir: pathlib.Path) -> RunRecords:
  """Returns the records of one run.

  Raises:
    ValueError: a record or config that is damaged; names the folder.
  """
  try:
    config = own_config(workdir)
    records = run_dir.read(workdir)
    row = run_columns(workdir, config, records)
    return RunRecords(
        row, baselines.columns(config)['config'],
        [{**row, **rank_columns(row, r)} for r in records
         if r['kind'] == 'monitor'],
        [score_table.scored(row, r) for r in records
         if r['kind'].startswith('hear.') and wanted(r, config)],
        [r for r in records if r['kind'].startswith('features.')
         and wanted(r, config)])
  # All of these can come from a tree of another shape.
  except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
    raise ValueError(
        f'{workdir}: config.json or a record is damaged '
        f'({type(error).__name__}: {files.one_line(error)}): remove the file '
        'and DONE, and run the sweep again') from None


def own_config(workdir: pathlib.Path) -> config_lib.Tree:
  """Returns the config tree of a run's folder.

  Raises:
    ValueError: damaged, or of another run than the folder's name says.
  """
  config = config_lib.complete(run_dir.config_tree(workdir))
  known = config_lib.run_id(config)
  # Folders of runs outside a sweep may have any name.
  if known != workdir.name and re.fullmatch('[0-9a-f]{12}', workdir.name):
    raise ValueError(f'{workdir}/config.json: the config of run {known}')
  if not isinstance(config.get('experiment'), str):
    raise ValueError(f'{workdir}/config.json: experiment: expected a text')
  return config


def _read_or_error(workdir: pathlib.Path) -> RunRecords | ValueError:
  """Returns the records of a run, or what is wrong with them."""
  try:
    return read_run(workdir)
  except ValueError as error:
    return error
  except OSError as error:
    return ValueError(f'{workdir}: cannot be read: {error.strerror or error}')


def wanted(record: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
  """Returns whether a score is by the settings asked for.

  Its task need not be: a sweep that goes on with other tasks keeps the scores
  it has.
  """
  return all(config['eval'][name] == value
             for name, value in record['settings'].items())


def tables(root: files.Path) -> Tables:
  """Reads every record of a sweep into Tables.

  Where sweep.json names the sweep's runs, others in the folder are left out;
  so are scores by settings that a run's config no longer names.

  A run with a damaged record or config is left out, and named in a warning.

  Raises:
    ValueError: every run is damaged; names one.
  """
  outcomes = files.mapped(_read_or_error, sweep_folders(root), root)
  read = [one for one in outcomes if isinstance(one, RunRecords)]
  # One damaged run must not hide the others.
  errors = [one for one in outcomes if isinstance(one, ValueError)]
  if errors and not read:
    raise errors[0]
  for error in errors:
    logging.warning('%s; this run is left out of the tables', error)
  name_baselines(read)
  # Features and gains are added to all rows at once, because baselines are runs
  # of their own.
  scored = score_table.newest([s for one in read for s in one.scores])
  score_table.add_features(scored, [f for one in read for f in one.features])
  gains = score_table.add_gains(scored)
  runs, history = [], []
  for one in read:
    # A run without any evaluation still has its columns.
    last = max(one.history, key=lambda r: r['step'], default=one.row)
    means = score_table.means(
        [s for s in scored if s.row['run_id'] == one.row['run_id']], gains)
    runs.append({**one.row, **last, **means, 'config': one.config})
    history += one.history
  tasks = [s.row for s in scored]
  name_runs(runs, history, tasks)
  return Tables(pd.DataFrame(runs), pd.DataFrame(history),
                pd.DataFrame(tasks))


def name_baselines(read: Sequence[RunRecords]) -> None:
  """Lets every row name an untrained baseline that the sweep has.

  Of a sweep that trained several untrained networks which are equal to the
  bit, as older versions did, the first one that is scored stands for all.
  """
  chosen: dict[str, str] = {}
  order = lambda r: (r.row['baseline'] != r.row['run_id'], not r.scores,
                     r.row['run_id'])
  # The run that is named itself first, then one that is scored.
  for one in sorted(read, key=order):
    if one.row['untrained']:
      chosen.setdefault(one.row['baseline'], one.row['run_id'])
  for one in read:
    for row in (one.row, *one.history, *(s.row for s in one.scores)):
      row['baseline'] = chosen.get(row['baseline'], row['baseline'])


# --- Tables on disk ---


def collect(root: files.Path) -> Tables:
  """Writes runs, history, tasks and curves (.parquet); returns Tables.

  Where the folder cannot be written, they are only returned.

  Raises:
    FileNotFoundError: there is no run under the root.
  """
  root = files.path(root)
  if not run_folders(root):
    raise FileNotFoundError(f'{root}: no runs: expected <run_id>/config.json '
                            'in it')
  result = tables(root)
  try:
    write_tables(result, root)
    curve_table.write(root, sweep_folders(root))
  except OSError as error:  # Of a colleague's sweep, which can only be read.
    logging.warning('%s: the tables are not kept there (%s)', root,
                    error.strerror or error)
  return result


def write_tables(result: Tables, folder: pathlib.Path) -> None:
  """Writes each of the Tables as <folder>/<name>.parquet."""
  for name, table in result._asdict().items():
    with files.replacing(folder / f'{name}.parquet', sync=False) as part:
      table.to_parquet(part)


def with_scores(result: Tables, root: files.Path) -> Tables:
  """Adds scores of the same runs by another protocol, as score_<protocol>.

  Args:
    result: of a sweep.
    root: a sweep with the same runs, scored by that protocol; some may be
      missing, and are NaN.

  Raises:
    ValueError: scores of no protocol there, or of several; of other runs or
      other tasks.
  """
  runs, _, tasks = tables(root)
  names = set()
  if len(tasks):
    # 'hear-...' names what was changed of a protocol.
    names = {re.split(r'\W', name)[0] for name in tasks['protocol']}
  if len(names) != 1:
    raise ValueError(f'{root}: expected scores of one protocol, found '
                     f'{", ".join(sorted(names)) or "none"}')
  own, theirs = set(result.tasks.get('task', ())), set(tasks['task'])
  if own != theirs:
    raise ValueError(f'{root}: scores of other tasks: '
                     f'{", ".join(sorted(own ^ theirs))} in one sweep only')
  # A mean over fewer tasks is another score.
  whole = runs[runs['scored_tasks'] == runs['scored_tasks'].max()]
  score_N = result.runs['run_id'].map(
      whole.set_index('run_id')['score'].astype(float))
  if score_N.isna().all():
    raise ValueError(f'{root}: none of its runs is one of this sweep')
  return result._replace(runs=result.runs.assign(
      **{f'score_{names.pop()}': score_N}))


def publish(root: files.Path, folder: files.Path,
            scores: Iterable[files.Path] = ()) -> None:
  """Writes a sweep's tables where they can be shown without its runs.

  runs, history, tasks (.parquet) and about.json: versions, the corpus by the
  hash of its manifest, settings of the scores, runs by the hash of what was
  trained, and the step at which runs branched from another. No path of this
  machine is in any of them.

  Raises:
    FileNotFoundError: there is no run under the root.
  """
  folder = files.path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  result = collect(root)
  for other in scores:
    result = with_scores(result, other)
  write_tables(result, folder)
  config = run_dir.config_tree(sweep_folders(root)[0])
  # Without the folder of the tasks, a path of this machine.
  scored_by = {k: v for k, v in config['eval'].items()
               if k not in ('tasks', 'sha256')}
  names = sorted(set(result.tasks['task'])) if len(result.tasks) else []
  files.write_json(folder / 'about.json', {
      'versions': {'python': platform.python_version(), **{
          name: metadata.version(name) for name in
          ('audiorank', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scipy')}},
      'corpus': config['data']['sha256'], 'eval': scored_by, 'tasks': names,
      'runs': sorted(result.runs['run_id']), 'branches': branches(root)})


def branches(root: files.Path) -> dict[str, int]:
  """Returns {run_id: the step at which it branched} of a sweep's runs; see
  branch.py."""
  out = {}
  for folder in sweep_folders(root):
    with contextlib.suppress(FileNotFoundError):
      out[folder.name] = int(files.read_json(folder / 'branch.json')['step'])
  return out


def load(root: files.Path) -> Tables:
  """Returns the Tables that `collect` wrote.

  Args:
    root: a sweep's folder, records.SAMPLE, or a URL (https:// as well) under
      which the three files lie.

  Raises:
    FileNotFoundError: they are not there.
    ValueError: a URL that gives no tables.
  """
  if '://' in str(root) and not files.is_on_bucket(root):
    try:
      return Tables(*(pd.read_parquet(f'{str(root).rstrip("/")}/{name}.parquet')
                      for name in Tables._fields))
    except Exception as error:  # Of the network, a server or the file.
      reason = ' '.join(str(error).split())[:200] or type(error).__name__
      raise ValueError(f'{root}: no tables there: {reason}') from None
  root, out = files.path(root), []
  for name in Tables._fields:
    path = root / f'{name}.parquet'
    if not path.is_file():
      raise FileNotFoundError(f'{path}: no such file: run records.collect '
                              'first')
    with files.local(path) as copy:
      out.append(pd.read_parquet(copy))
  return Tables(*out)
