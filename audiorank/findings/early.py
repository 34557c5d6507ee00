"""Can RankMe, read early, choose the run? Held against what is known as soon.

At a few rungs of training every run's RankMe stands beside its validation
loss, beside its score where the checkpoint was scored, and beside what was
known before the first step: size, hours, masking rate.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.findings import score

RUNGS = (.1, .25, .5)  # Fractions of training.
KNOWN = {'params': 'parameters', 'hours': 'hours of audio',
         'mask_ratio': 'masking rate'}


class Early(NamedTuple):
  """Early prediction of a sweep.

  runs: a row a run: score, size, and a column an early number.
  rungs: (fraction of training, its column of RankMe) in order.
  agreement: laws.early.predict, with `share` and the adjusted p `holm`.
  halving: a row a chooser: saved, kept, regret, random.
  reason: why there is nothing, or ''.  words: sentences.
  """
  runs: pd.DataFrame
  rungs: list
  agreement: pd.DataFrame
  halving: pd.DataFrame
  reason: str
  words: list


def nothing(reason):
  """Returns an Early that only says why."""
  none = pd.DataFrame()
  return Early(none, [], none, none, reason, [])


def nearest(rows, share):
  """Returns the index of the reading at a share of training, or None.

  The nearest in log step, none where all are farther than a factor of 1.5.
  """
  rows = rows[(rows['step'] > 0) & (rows['step'] < rows['steps'])]
  if not len(rows):
    return None
  away = np.abs(np.log(rows['step'] / (share * rows['steps'])))
  return away.idxmin() if away.min() <= math.log(1.5) else None


def scored(tasks, trained):
  """Returns rows of run_id, step, steps, score of checkpoints before the end.

  A checkpoint counts where it is scored on as many tasks as its run.
  """
  columns = ['run_id', 'step', 'steps', 'score']
  if not len(tasks) or 'embedding_type' not in tasks:
    return pd.DataFrame(columns=columns)
  part = tasks[(tasks['embedding_type'] == 'scene')
               & (tasks['step'] < tasks['steps'])]
  found = part.groupby(['run_id', 'step', 'steps'], as_index=False).agg(
      score=('score', 'mean'), count=('score', 'count'))
  whole = dict(zip(trained['run_id'], trained['scored_tasks']))
  return found[found['count'] == found['run_id'].map(whole)][columns]


def at_rung(trained, rows, share, column):
  """Returns (values of a column at a rung, mean share), or None.

  None where a run has no reading there or the values are all the same.
  """
  picked = []
  by_run = dict(tuple(rows.groupby('run_id'))) if len(rows) else {}
  for run in trained['run_id']:
    at = nearest(by_run[run], share) if run in by_run else None
    if at is None:
      return None
    picked.append(at)
  here = rows.loc[picked]
  values = here[column].to_numpy(float)
  if not np.isfinite(values).all() or np.ptp(values) == 0:
    return None
  return values, float((here['step'] / here['steps']).mean())


def columns(trained, history, tasks):
  """Returns the table of early numbers, its rungs, and rivals by rung."""
  trained = trained.reset_index(drop=True)
  table = pd.DataFrame({
      'run_id': trained['run_id'], 'score': trained['score'].astype(float),
      'size': trained['size'], 'configuration': score.configurations(trained)})
  probes = scored(tasks, trained)
  rungs, rivals = [], {}
  for share in RUNGS:
    found = at_rung(trained, history, share, 'rank')
    if found is None:
      continue
    values, at = found
    name = f'RankMe at {100 * at:.0f} %'
    if name in table:
      continue
    table[name] = values
    rungs.append((at, name))
    rivals[name] = []
    if 'valid_loss' in history:
      loss = at_rung(trained, history, share, 'valid_loss')
      if loss is not None:
        other = f'less validation loss at {100 * at:.0f} %'
        table[other] = -loss[0]
        rivals[name].append(other)
    probe = at_rung(trained, probes, share, 'score')
    if probe is not None:
      other = f'score at {100 * probe[1]:.0f} %'
      table[other] = probe[0]
      rivals[name].append(other)
  for column, text in KNOWN.items():
    if column in trained and trained[column].notna().all() and (
        trained[column].nunique() > 1):
      table[text] = trained[column].astype(float)
  return table, rungs, rivals


def find(trained, history, tasks):
  """Returns the Early of a sweep.

  Args:
    trained: runs that are scored.
    history: a row a run and reading.
    tasks: a row a run, step and task.
  """
  if len(trained) < 3:
    return nothing(f'{len(trained)} scored runs; an order needs 3')
  table, rungs, rivals = columns(trained, history, tasks)
  if not rungs:
    return nothing('the runs have no common reading of RankMe early in '
                   'training')
  if np.ptp(table['score']) == 0:
    return nothing('every run has the same score')
  known = [text for text in KNOWN.values() if text in table]
  strata = 'size' if table['size'].nunique() > 1 else None
  parts = []
  for share, name in rungs:
    # What is known beforehand is held against the last RankMe only.
    more = rivals[name] + (known if name == rungs[-1][1] else [])
    part = laws.early.predict(table, name, 'score', strata, 'configuration',
                              more)
    parts.append(part.assign(share=share))
  agreement = pd.concat(parts, ignore_index=True)
  own = agreement['early'].isin([name for _, name in rungs])
  agreement['holm'] = np.nan
  agreement.loc[own, 'holm'] = laws.failures.holm(
      agreement.loc[own, 'p'].to_numpy())
  saved = halvings(table, trained, rungs, rivals, known)
  return Early(table, rungs, agreement, saved, '',
               sentences(agreement, saved, rungs))


def halvings(table, trained, rungs, rivals, known):
  """Returns what successive halving by each chooser saves and costs."""
  cost = (trained['flops'].to_numpy(float) if 'flops' in trained
          and trained['flops'].notna().all() else None)
  steps = [share for share, _ in rungs]
  choosers = {'RankMe': [name for _, name in rungs]}
  losses = [r for name in choosers['RankMe'] for r in rivals[name]
            if 'validation loss' in r]
  if len(losses) == len(rungs):
    choosers['validation loss'] = losses
  choosers.update({name: [name] * len(rungs) for name in known})
  rows = []
  for name, columns_ in choosers.items():
    found = laws.early.halving(table[columns_].to_numpy().T, steps, 1.,
                               table['score'], cost=cost)
    rows.append({'chooser': name, 'saved': found.saved,
                 'kept': len(found.kept), 'regret': found.regret,
                 'random': found.random})
  return pd.DataFrame(rows)


def sentences(agreement, saved, rungs):
  """Returns the findings in words, the most important first."""
  rows = agreement.set_index('early')
  share, name = rungs[-1]
  own = rows.loc[name]
  first = (f'Read at {100 * share:.0f} % of training, RankMe puts '
           f'{100 * own["pairs"]:.0f} % of the pairs of runs in the order of '
           f'their final scores (a coin: 50 %; tau {own["tau"]:+.2f}, '
           f'{own["tau_low"]:+.2f} to {own["tau_high"]:+.2f})')
  if math.isfinite(own['within']):
    first += f'; among runs of one size tau is {own["within"]:+.2f}'
  out = [f'{first}.']
  others = rows[(rows['share'] == share) & (rows.index != name)]
  better = others[others['difference_high'] < 0].index.tolist()
  worse = others[others['difference_low'] > 0].index.tolist()
  if better:
    out.append(f'Beyond chance better than it: {", ".join(better)}.')
  if worse:
    out.append(f'It is beyond chance better than: {", ".join(worse)}.')
  if len(others) and not better and not worse:
    out.append(f'No difference from {", ".join(others.index)} is beyond '
               'chance.')
  mine = saved.set_index('chooser').loc['RankMe']
  out.append(
      f'Halving the runs by RankMe at {len(rungs)} '
      f'rung{"s" * (len(rungs) > 1)} saves {100 * mine["saved"]:.0f} % of the '
      f'compute and loses {mine["regret"]:.3f} of the best score; keeping as '
      f'many runs by lot loses {mine["random"]:.3f} on average.')
  best = saved.loc[saved['regret'].idxmin()]
  if best['regret'] < mine['regret']:
    out.append(f'By {best["chooser"]} it loses {best["regret"]:.3f}.')
  return out
