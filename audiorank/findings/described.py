"""A study's tasks one by one, and the runs that fit worst.

Shapes: N runs.
"""

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.findings import score
from audiorank.findings import within

DIFFERS = ('category', 'mask_ratio', 'decoder', 'crop_seconds', 'lr', 'hours',
           'size', 'heads')


def differs(rows, trained):
  """Returns the first thing in which each row differs from the commonest."""
  commonest = {name: trained[name].mode().iloc[0] for name in DIFFERS
               if name in trained}
  return [next((name for name in commonest if row[name] != commonest[name]),
               'reference') for _, row in rows.iterrows()]


def tasks(tables):
  """Returns a row a task: what training does to it, and RankMe with it.

  Columns: metric, untrained and trained (means of the MAE's runs), gain (over
  each run's own untrained network), beat (share of runs with a gain),
  spearman (of score with RankMe), doubling (score per doubling of RankMe among
  runs of one size).
  """
  runs = tables.runs.drop(columns=['score', 'scored_tasks'])
  rows = {}
  last = tables.tasks[tables.tasks['step'] == tables.tasks['steps']]
  for task, part in last.groupby('task'):
    own = runs.merge(part[['run_id', 'score', 'metric']], on='run_id')
    every, twins = score.with_gain(own.assign(scored_tasks=1))
    mae = within.once(every[every['objective'].str.startswith('mae')])
    x_N = np.log2(mae['rank'].to_numpy(float))
    y_N = mae['score'].to_numpy(float)
    ones_N, size_N = np.ones(len(mae)), mae['size'].to_numpy()
    in_N, out_N = (within.about_means(v, ones_N, size_N) for v in (x_N, y_N))
    rows[task] = {
        'metric': part['metric'].iloc[0], 'untrained': twins['score'].mean(),
        'trained': y_N.mean(), 'gain': mae['gain'].mean(),
        'beat': (mae['gain'] > 0).mean(),
        'spearman': laws.early.spearman(x_N, y_N),
        'doubling': np.sum(in_N * out_N) / np.sum(in_N ** 2)}
  return pd.DataFrame(rows).T.infer_objects()


def farthest(trained, fit, most=10):
  """Returns the runs that lie farthest from the law, with what they differ in.

  Args:
    trained: runs of `score.with_gain`.
    fit: the law of `score.law`, or None: then a line in log RankMe.
    most: how many.
  """
  if fit is None:
    x_N = np.log2(trained['rank'].to_numpy(float))
    expected = np.polyval(np.polyfit(x_N, trained['score'], 1), x_N)
  else:
    expected = fit.predict({'rank': trained['rank'].to_numpy(float)})
  rows = trained[['name', 'experiment', 'rank', 'score', 'gain']].assign(
      expected=expected, away=trained['score'] - expected,
      differs=differs(trained, trained))
  return rows.reindex(rows['away'].abs().sort_values(ascending=False).index
                      ).head(most).reset_index(drop=True)
