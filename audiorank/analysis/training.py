"""What training does: to the score, to RankMe, and which runs went wrong.

Shapes: N runs, G untrained baselines.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank import laws
from audiorank.analysis import claims
from audiorank.analysis import slopes
from audiorank.analysis import study
from audiorank.laws import failures

# What the table of tasks has of every score, where it is known.
BESIDE = ('test_clips', 'chance', 'log_mel', 'mfcc', 'score_low', 'score_high')
# Different ranks below which a broken law, of six parameters, is not tried.
BENDS = 20


class Diagnostics(NamedTuple):
  """What does not follow the law, and what went wrong in training.

  outliers: laws.failures.outliers.  families: laws.failures.families by size.
  signs: laws.failures.runs_test, or None.  bends: laws.failures.bends of
  1 - score against rank, or empty.  events: a row a run and kind: name,
  run_id, kind, step (the first), times, value, threshold, source ('curve' or
  'monitor').
  """
  outliers: pd.DataFrame
  families: pd.DataFrame
  signs: tuple[int, float, float] | None
  bends: pd.DataFrame
  events: pd.DataFrame


def diagnose(rows: study.Study, law: laws.Fit | None) -> Diagnostics:
  """Returns the Diagnostics of a study."""
  none = pd.DataFrame()
  wrong = events(rows)
  if law is None:
    return Diagnostics(none, none, None, none, wrong)
  above = study.above_baseline(rows.trained)
  bends = none
  # A broken power law is one of an error that falls to 0.
  error = (1. if rows.bounded else math.inf) - above['score'].to_numpy(float)
  if rows.bounded and (error > 0).all() and above['rank'].nunique() >= BENDS:
    bends = failures.bends(
        {'rank': above['rank'].to_numpy(float), 'error': error}, 'rank',
        'error', groups=above['configuration'].to_numpy())
  return Diagnostics(failures.outliers(law, above['name'], above['size']),
                     failures.families(law, above['size']),
                     failures.runs_test(law), bends, wrong)


def events(rows: study.Study) -> pd.DataFrame:
  """Returns what the curves show and what the monitor raised, together."""
  columns = ['run_id', 'name', 'kind', 'step', 'times', 'value', 'threshold',
             'source']
  out = []
  if len(rows.history):
    names = dict(zip(rows.history['run_id'], rows.history['name']))
    for row in failures.unstable(rows.history).itertuples():
      out.append((row.run_id, names[row.run_id], row.kind, row.step, 1,
                  row.value, row.before, 'curve'))
    # An alarm that rings at every evaluation is one event.
    first: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for alarm in study.alarms(rows.history):
      key = alarm['run_id'], alarm['kind']
      first.setdefault(key, []).append(alarm)
    for (run_id, kind), several in first.items():
      one = several[0]
      out.append((run_id, names[run_id], kind, one['step'], len(several),
                  one['value'], one['threshold'], 'monitor'))
  return pd.DataFrame(out, columns=columns)


def by_baseline(trained: pd.DataFrame,
                value: pd.Series) -> tuple[float, float, float, float]:
  """Returns (mean, low, high, p) of a comparison with the untrained network.

  Runs of one baseline share its noise: the mean is over baselines, each the
  mean of its configurations, and so is the t interval. Untrained networks
  with the same score and RankMe are one. Of fewer than four nothing is told
  of the noise.
  """
  table = trained.assign(value=value, network=networks(trained)).dropna(
      subset=['value'])
  # First over seeds, then over configurations, so that none counts twice.
  each = table.groupby(['network', 'configuration'])['value'].mean()
  mean_G = each.groupby('network').mean().to_numpy()
  if len(mean_G) <= slopes.LEAST_FREE:
    # The mean of none is NaN.
    middle = float(pd.Series(mean_G).mean())
    return middle, math.nan, math.nan, math.nan
  middle, free = float(mean_G.mean()), len(mean_G) - 1
  se = float(mean_G.std(ddof=1)) / math.sqrt(len(mean_G))
  reach = float(special.stdtrit(free, .975)) * se
  # Baselines that agree to the last digit leave no doubt.
  p = 0.
  if se:
    p = 2 * special.stdtr(free, -abs(middle) / se)
  return middle, middle - reach, middle + reach, float(p)


def decided(low: float, high: float, p: float) -> str:
  """Returns the verdict on a positive effect of training.

  The two claims about it, on score and RankMe, share the level.
  """
  # Written so that NaN is inconclusive too.
  if not p < claims.LEVEL / 2:
    return claims.INCONCLUSIVE
  return claims.sign(low, high)


def networks(trained: pd.DataFrame) -> np.ndarray:
  """Returns a number a run: runs of one untrained network share it, (N,)."""
  same = trained[['untrained_score', 'untrained_rank']]
  return same.groupby(list(same), dropna=False).ngroup().to_numpy()


def of_gain(rows: study.Study) -> claims.Claim:
  """Returns the claim that training lifts the score above the untrained
  network's."""
  known = rows.trained[rows.trained['gain'].notna()]
  counts = (len(known), int(known['configuration'].nunique()), len(known))
  if not len(known):
    return claims.claim('gain', 'score', counts=counts,
                        needed=claims.Needed('baselines'))
  mean, low, high, p = by_baseline(known, known['gain'])
  return claims.claim(
      'gain', 'score', mean, low, high, p, decided(low, high, p),
      claims.Needed('more_baselines'), counts=counts,
      above=int((known['gain'] > 0).sum()),
      beat=study.beating(known),
      baselines=len(set(networks(known))),
      unknown=len(rows.trained) - len(known))


def of_rank(rows: study.Study) -> claims.Claim:
  """Returns the claim that RankMe grows in training.

  The estimate is log2 of the final RankMe over the untrained network's.
  """
  trained = rows.trained
  change = np.log2(trained['rank'].astype(float)
                   / trained['untrained_rank'].astype(float))
  known = trained[change.notna()]
  counts = (len(known), int(known['configuration'].nunique()), len(known))
  unit = 'doublings of RankMe'
  if not len(known):
    return claims.claim('growth', unit, counts=counts,
                        needed=claims.Needed('baselines'))
  mean, low, high, p = by_baseline(known, change)
  return claims.claim(
      'growth', unit, mean, low, high, p, decided(low, high, p),
      claims.Needed('more_baselines'), counts=counts,
      above=int((change > 0).sum()),
      rank_low=float(known['rank'].min()), rank_high=float(known['rank'].max()),
      untrained_low=float(known['untrained_rank'].min()),
      untrained_high=float(known['untrained_rank'].max()),
      valley=valley(rows.history))


def valley(history: pd.DataFrame) -> tuple[int, int, int]:
  """Returns how many runs fell below the untrained RankMe at first, had risen
  5 % above their least at the end, and are there."""
  fell = rose = runs = 0
  if len(history):
    for _, rows in history.groupby('run_id'):
      rank = rows.sort_values('step')['rank'].to_numpy(float)
      if len(rank) > 2:
        runs += 1
        fell += int(rank[1] < rank[0])
        # 5 % is more than what seeds move RankMe by.
        rose += int(rank[1] < rank[0] and rank[-1] > 1.05 * rank.min())
  return fell, rose, runs


def tasks(rows: study.Study) -> pd.DataFrame:
  """Returns a row a task: what training does to it, and RankMe with it.

  Columns: metric, test_clips and chance (where known), log_mel and mfcc
  (features without a network, where known), untrained and trained (means),
  score_low and score_high (mean interval of a run's score, where known), gain
  (mean, over each run's own untrained network), above (share of runs with a
  gain), beat and below (shares whose paired interval excludes 0, where
  known), best, spearman (of score with RankMe), doubling (score per doubling
  of RankMe among runs of one size).
  """
  if not len(rows.tasks):
    return pd.DataFrame()
  last = rows.tasks[rows.tasks['step'] == rows.tasks['steps']]
  out = {}
  for task, part in last.groupby('task'):
    score = part.set_index('run_id')['score'].astype(float)
    mine = rows.trained[rows.trained['run_id'].isin(score.index)]
    y_N = mine['run_id'].map(score).astype(float)
    # Each run against its own baseline, on this task.
    base_N = mine['baseline'].map(score).astype(float)
    gain_N = (y_N - base_N).dropna()
    x_N = np.log2(mine['rank'].astype(float))
    known = (y_N.notna() & x_N.notna()).to_numpy()
    untrained = part[part['untrained']]['score'].astype(float)
    row = {'metric': part['metric'].iloc[0], 'untrained': untrained.mean(),
           'trained': y_N.mean(), 'gain': gain_N.mean(),
           'above': (gain_N > 0).astype(float).mean(),
           'best': y_N.max(), 'spearman': math.nan, 'doubling': math.nan}
    row.update(related(x_N.to_numpy()[known], y_N.to_numpy()[known],
                       mine['size'].to_numpy()[known]))
    trained = part[~part['untrained']]
    for name in BESIDE:
      if name in trained and trained[name].notna().any():
        row[name] = float(trained[name].astype(float).mean())
    if 'gain_low' in trained and trained['gain_low'].notna().any():
      own = trained[trained['run_id'].isin(mine['run_id'])
                    & trained['gain_low'].notna()]
      row['beat'] = float((own['gain_low'] > 0).mean())
      row['below'] = float((own['gain_high'] < 0).mean())
    out[task] = row
  return pd.DataFrame(out).T.infer_objects()


def related(x_N: np.ndarray, y_N: np.ndarray,
            size_N: np.ndarray) -> dict[str, float]:
  """Returns the rank correlation, and the slope among runs of one size."""
  if len(x_N) < 4 or not np.ptp(x_N) or not np.ptp(y_N):
    return {}
  out = {'spearman': laws.early.spearman(x_N, y_N)}
  # About the mean of their size, so that size itself explains nothing.
  x_N, y_N = (v - pd.Series(v).groupby(size_N).transform('mean').to_numpy()
              for v in (x_N, y_N))
  if np.sum(x_N ** 2):
    out['doubling'] = float(np.sum(x_N * y_N) / np.sum(x_N ** 2))
  return out
