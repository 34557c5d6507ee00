"""The rows that every claim rests on, from a sweep's tables.

This is the one place that knows about tables of older versions, which lack
some columns. `read` returns a Study: each different training once, each run
beside its untrained baseline, configurations compared by every field that
the training used.

Rules, the same in every command:
* A run counts if it is trained and scored on every task of the sweep.
* Rows whose configuration and seeds are equal are one training: the row with
  the most evaluations stands for all.
* The objective that most runs share is the one whose law is fitted; runs of
  other objectives are compared with it.
* A run enters the law if it scores higher than its untrained baseline. It
  beats the baseline if the interval of the paired difference excludes 0.

Shapes: N runs, K configurations.
"""

import json
import re
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import config as config_lib
from audiorank import records

# Columns that describe a configuration, by the config's own fields.
COLUMNS = {
    'width': 'model.width', 'depth': 'model.depth', 'heads': 'model.heads',
    'decoder': '', 'decoder_heads': 'model.decoder.heads',
    'hours_asked': 'data.hours', 'mask_ratio': 'mask.ratio', 'lr': 'opt.lr',
    'steps': 'train.steps', 'crop_seconds': 'data.crop_seconds',
    'batch': 'train.batch', 'objective': 'objective',
    'category': 'data.category'}
SEEDS = {'seed': 'seed', 'order': 'data.seed'}
# Fields that no training depends on: where a corpus came from (its checksum
# says what it is), and what is measured when. The monitor's clips count:
# RankMe is measured on them and BatchNorm starts from them.
MONITOR = ('monitor.clips', 'monitor.crop_seconds', 'monitor.seed')
IGNORED = ('data.world.', 'monitor.', 'model.decoder.width',
           'model.decoder.depth')
# Where one alarm of an older table ends and the next begins.
SENTENCE = re.compile(
    '; (?=small sample|collapse|centred RankMe|instability)')
SAME_HOURS = 1.03  # Measured hours closer than this were asked for as one.


class Counts(NamedTuple):
  """How many rows the tables have, and what became of them.

  rows: trained rows.  scored: those scored on every task.  trainings:
  different trainings among these.  configurations: among these, without
  seeds.  untrained: rows of untrained networks.  baselines: different ones.
  """
  rows: int
  scored: int
  trainings: int
  configurations: int
  untrained: int
  baselines: int
  halved: int = 0  # Stopped early: not scored.


class Study(NamedTuple):
  """What the claims of a sweep rest on.

  trained: a row a training of the main objective, with `configuration` (a
    number), `untrained_score`, `untrained_rank` and `gain`.
  others: the same for other objectives.
  untrained: a row an untrained network.
  history: a row a training and evaluation.
  tasks: a row a training or untrained network, step and task.
  fields: the columns in which configurations are compared.
  counts: Counts.
  bounded: whether no score can exceed 1.
  """
  trained: pd.DataFrame
  others: pd.DataFrame
  untrained: pd.DataFrame
  history: pd.DataFrame
  tasks: pd.DataFrame
  fields: tuple[str, ...]
  counts: Counts
  bounded: bool


def read(tables: records.Tables) -> Study:
  """Returns the Study of a sweep's tables."""
  runs, fields = with_fields(tables.runs)
  scored = pd.Series(False, runs.index)
  if 'score' in runs and 'scored_tasks' in runs:
    scored = runs['score'].notna() & (
        runs['scored_tasks'] == runs['scored_tasks'].max())
  elif 'score' in runs:
    scored = runs['score'].notna()
  # A mean over fewer tasks than others is another score.
  untrained = runs[scored & runs['untrained']]
  every = runs[scored & ~runs['untrained']]
  once = without_repeats(every, tables.history, fields)
  once = with_baselines(once, runs, untrained)
  once = once.assign(configuration=numbers(once, fields))
  # The objective with most runs is the main one.
  is_main = np.zeros(len(once), bool)
  if len(once):
    is_main = (once['objective'] == once['objective'].mode().iloc[0]).to_numpy()
  trained = once[is_main].reset_index(drop=True)
  halved = 0
  if 'state' in runs:
    halved = int(runs['state'].isin(['halved', 'paused']).sum())
  counts = Counts(
      int((~runs['untrained']).sum()), len(every), len(once),
      once['configuration'].nunique(), int(runs['untrained'].sum()),
      len(distinct(runs[runs['untrained']])), halved)
  history = only(tables.history, set(once['run_id']))
  tasks = only(tables.tasks, set(once['run_id']) | set(untrained['run_id']))
  # d' is the only measure above 1.
  bounded = not (len(tasks) and (tasks['metric'] == 'd_prime').any())
  return Study(trained, once[~is_main].reset_index(drop=True),
               untrained.reset_index(drop=True), history, tasks, fields,
               counts, bounded)


def only(table: pd.DataFrame, run_ids: set[str]) -> pd.DataFrame:
  """Returns a table's rows of some runs."""
  if not len(table):
    return table
  return table[table['run_id'].isin(run_ids)].reset_index(drop=True)


def with_fields(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
  """Returns runs with their configuration's columns, and these columns.

  Columns of `COLUMNS` that a table lacks are left out, but for the hours
  asked for, which are then made of the measured ones. A table with a
  `config` (JSON, as `records` writes it) gets a column for every further
  field in which its trained runs differ.
  """
  runs = runs.reset_index(drop=True)
  if 'objective' not in runs:
    # Tables without the column are of masked autoencoders alone.
    runs = runs.assign(objective='mae')
  if 'untrained' not in runs:
    runs = runs.assign(untrained=False)
  if 'hours' in runs:
    hours = asked(runs['hours'])
    if 'hours_asked' in runs:
      # 0 asks for all there is.
      hours = runs['hours_asked'].where(runs['hours_asked'] > 0, hours)
    runs = runs.assign(hours_asked=hours)
  fields = [name for name in COLUMNS if name in runs]
  if 'config' in runs:
    extra = further_fields(runs)
    runs = pd.concat([runs, extra], axis=1)
    fields += list(extra)
  return runs, tuple(fields)


def further_fields(runs: pd.DataFrame) -> pd.DataFrame:
  """Returns the fields of `config` that vary and have no column yet."""
  # Fields that a config of an older version lacks get their values.
  trees = [flat(config_lib.complete(json.loads(text or '{}')))
           for text in runs['config']]
  covered = {*COLUMNS.values(), *SEEDS.values()}
  names = sorted({name for tree in trees for name in tree
                  if name not in covered and (
                      name in MONITOR or not name.startswith(IGNORED))})
  is_trained = (~runs['untrained']).to_numpy(bool)
  out = {}
  for name in names:
    column = [str(tree.get(name, '')) for tree in trees]
    if len({v for v, mine in zip(column, is_trained) if mine}) > 1:
      out[name] = column
  return pd.DataFrame(out, index=runs.index)


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'a.b': value} of nested dictionaries."""
  out = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{name}.'))
    else:
      out[f'{prefix}{name}'] = value
  return out


def asked(hours: pd.Series) -> pd.Series:
  """Returns the hours that were asked for, from the measured ones.

  A subset ends with the first recording that fills it, so measured hours are
  a little more than what was asked: near ones were asked for as one amount.
  """
  known = np.sort(hours.dropna().unique().astype(float))
  # From the smallest on: the first of a run of near values names them all.
  label, labels = None, {}
  for value in known:
    if label is None or value > label * SAME_HOURS:
      label = value
    labels[value] = label
  return hours.astype(float).map(labels)


def numbers(rows: pd.DataFrame, fields: tuple[str, ...]) -> np.ndarray:
  """Returns a number a row: rows with equal fields share it, (N,)."""
  if not len(rows) or not fields:
    return np.zeros(len(rows), int)
  # A field without a value is a value like the others.
  return rows.groupby(list(fields), dropna=False, observed=True
                      ).ngroup().to_numpy()


def without_repeats(rows: pd.DataFrame, history: pd.DataFrame,
                    fields: tuple[str, ...]) -> pd.DataFrame:
  """Returns one row a training, in the order of the table."""
  same = [*fields, *(name for name in SEEDS if name in rows)]
  # The key is a hash of all that training reads.
  if 'training_key' in rows and rows['training_key'].notna().all():
    same = ['training_key']
  if not len(rows) or not same:
    return rows.reset_index(drop=True)
  read_times = pd.Series(dtype=int)
  if len(history):
    read_times = history['run_id'].value_counts()
  # Of equal trainings the one with the most evaluations stands for all.
  # stable: among equals the order of the table decides.
  order = rows['run_id'].map(read_times).fillna(0).sort_values(
      ascending=False, kind='stable').index
  return rows.loc[order].drop_duplicates(same).sort_index().reset_index(
      drop=True)


def distinct(untrained: pd.DataFrame) -> pd.DataFrame:
  """Returns the untrained networks that differ in size, seed or result."""
  what = [name for name in ('width', 'depth', 'heads', 'seed', 'rank', 'score')
          if name in untrained]
  if not what:
    return untrained
  return untrained.drop_duplicates(what)


def with_baselines(rows: pd.DataFrame, runs: pd.DataFrame,
                   untrained: pd.DataFrame) -> pd.DataFrame:
  """Returns rows with the score and RankMe of their untrained baseline.

  A row's `baseline` names it. Tables without that column: the untrained
  network of the same shape, seed and crop, of the same experiment where
  there are several.

  Args:
    rows: trained runs.
    runs: every run.
    untrained: untrained networks that are scored.
  """
  if 'baseline' in rows and rows['baseline'].notna().any():
    name_N = rows['baseline']
  else:
    name_N = pd.Series([matching(row, untrained) for _, row in
                        rows.iterrows()], rows.index, dtype=object)
  scores = untrained.set_index('run_id')['score'] if len(untrained) else {}
  ranks = runs[runs['untrained']].set_index('run_id').get('rank', {})
  score_N = name_N.map(dict(scores)).astype(float)
  out = rows.assign(baseline=name_N, untrained_score=score_N,
                    untrained_rank=name_N.map(dict(ranks)).astype(float))
  if not len(rows):
    return out.assign(gain=pd.Series(dtype=float))
  return out.assign(gain=out['score'].astype(float) - score_N)


def matching(row: pd.Series, untrained: pd.DataFrame) -> str | None:
  """Returns the run id of the untrained network that a run started from."""
  here = untrained
  for name in ('width', 'depth', 'heads', 'seed', 'crop_seconds'):
    if name in untrained and name in row:
      here = here[here[name] == row[name]]
  # Experiments may evaluate on clips of their own.
  if 'experiment' in here and (here['experiment'] == row['experiment']).any():
    here = here[here['experiment'] == row['experiment']]
  if not len(here):
    return None
  return here['run_id'].iloc[0]


def alarms(history: pd.DataFrame) -> list[dict[str, Any]]:
  """Returns the monitor's alarms: run_id, kind, value, threshold, step.

  Tables of older versions hold sentences, joined by '; '.
  """
  out: list[dict[str, Any]] = []
  if 'alarms' not in history:
    return out
  for row in history.sort_values('step').itertuples():
    text = row.alarms or '[]'
    if text.startswith('['):
      several = json.loads(text)
    else:
      several = [{'kind': kind_of(words)} for words in SENTENCE.split(text)]
    for alarm in several:
      out.append({'value': None, 'threshold': None, 'step': row.step, **alarm,
                  'run_id': row.run_id})
  return out


def kind_of(sentence: str) -> str:
  """Returns the kind of an alarm that is a sentence: its first words."""
  return sentence.split(':')[0].split(' to ')[0].replace(' ', '_')


def every(rows: Study) -> pd.DataFrame:
  """Returns a row a training or untrained network, of every objective."""
  tables = [rows.trained, rows.others, rows.untrained]
  return pd.concat([t for t in tables if len(t)] or tables[:1],
                   ignore_index=True)


def above_baseline(trained: pd.DataFrame) -> pd.DataFrame:
  """Returns the runs that enter a law: they score above their baseline."""
  return trained[trained['gain'] > 0].reset_index(drop=True)


def beating(trained: pd.DataFrame) -> int | None:
  """Returns how many runs beat their baseline, None where it is not known.

  The 95 % interval of the difference is paired over the clips of the tests;
  records of older versions have none.
  """
  if 'gain_low' not in trained or trained['gain_low'].isna().all():
    return None
  return int((trained['gain_low'] > 0).sum())
