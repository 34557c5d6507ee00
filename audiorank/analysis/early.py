"""Can RankMe, measured early, choose the run? Beside what is known as soon.

At a few points of training every run's RankMe stands beside its validation
loss, beside the other measures of its embeddings (`law.MEASURED`), beside its
score where the checkpoint was scored, and beside what was known before the
first step: width, parameters, the untrained network's RankMe, hours, masking
rate.
"""

import json
import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.analysis import claims
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.laws import failures

RUNGS = (.1, .25, .5)  # Fractions of training.
NEAR = 1.5  # An evaluation counts for a rung within this factor of its step.
LEAST = 3  # Runs without which there is no order.
MOST_RUNS = .8  # Share of the runs that must have an evaluation at a rung.
# Readings are compared if their learning rates, as shares of the peak, differ
# by less: a network changes much in the decay of its rate.
RATES_APART = .25


class Early(NamedTuple):
  """Early prediction of a sweep.

  runs: a row a run: score, size, and a column an early number.
  rungs: (fraction of training, its column of RankMe) in order.
  agreement: laws.early.predict, with `share` and the adjusted p `holm`.
  halving: a row a chooser: saved, kept, regret, random.
  lacks: what is missing where there is nothing, or None.
  without: runs left out: they have no evaluation at one of the rungs.
  """
  runs: pd.DataFrame
  rungs: list[tuple[float, str]]
  agreement: pd.DataFrame
  halving: pd.DataFrame
  lacks: claims.Needed | None
  without: int = 0


def nothing(lacks: claims.Needed) -> Early:
  """Returns an Early that only says what is missing."""
  none = pd.DataFrame()
  return Early(none, [], none, none, lacks)


def nearest(rows: pd.DataFrame | None, share: float) -> int | None:
  """Returns the index of the evaluation at a share of training, or None.

  Args:
    rows: evaluations of one run, or None where there are none.
    share: of its steps.
  """
  if rows is None:
    return None
  # The untrained network and the final one are no early evaluations.
  rows = rows[(rows['step'] > 0) & (rows['step'] < rows['steps'])]
  if not len(rows):
    return None
  # Evaluations are spaced by factors, so near is near in the logarithm.
  away = np.abs(np.log(rows['step'] / (share * rows['steps'])))
  if away.min() > math.log(NEAR):
    return None
  return away.idxmin()


def comparable(trained: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
  """Returns the runs that have an evaluation at the rungs most runs have.

  Runs of many more or fewer steps may have none near a rung: without them the
  others are still compared. From the last rung on, a rung counts if at least
  MOST_RUNS of all runs have it and those before.
  """
  if not len(history):
    return trained
  by_run = dict(tuple(history.groupby('run_id')))
  mine_N = np.ones(len(trained), bool)
  for share in reversed(RUNGS):
    here_N = np.array([nearest(by_run.get(run), share) is not None
                       for run in trained['run_id']]) & mine_N
    if here_N.sum() >= MOST_RUNS * len(trained):
      mine_N = here_N
  return trained[mine_N].reset_index(drop=True)


def rate(opt: dict[str, Any], steps: int, step: int) -> float:
  """Returns the learning rate at a step as a share of its peak.

  As train_state.learning_rate.

  Args:
    opt: of a run's config, without what has its default.
    steps: of the run.
    step: the evaluation's.
  """
  warmup, last = opt.get('warmup', 0), opt.get('final_lr_ratio', .1)
  if step < warmup:
    return step / warmup
  if opt.get('schedule', 'cosine') == 'wsd':
    left = (steps - step) / max(opt.get('decay', .1) * steps, 1)
    return last + (1 - last) * min(left, 1)
  past = (step - warmup) / max(steps - warmup, 1)
  return last + (1 - last) * .5 * (1 + math.cos(math.pi * past))


def scored(tasks: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
  """Returns run_id, step, steps, score of checkpoints before the end.

  A checkpoint counts where it is scored on as many tasks as its run.
  """
  columns = ['run_id', 'step', 'steps', 'score']
  if not len(tasks) or 'embedding_type' not in tasks:
    return pd.DataFrame(columns=columns)
  part = tasks[(tasks['embedding_type'] == 'scene')
               & (tasks['step'] < tasks['steps'])]
  means = part.groupby(['run_id', 'step', 'steps'], as_index=False).agg(
      score=('score', 'mean'), count=('score', 'count'))
  whole = dict(zip(trained['run_id'], trained['scored_tasks']))
  return means[means['count'] == means['run_id'].map(whole)][columns]


def at_rung(trained: pd.DataFrame, rows: pd.DataFrame, share: float,
            column: str) -> tuple[np.ndarray, float] | None:
  """Returns (values of a column at a rung, mean share), or None.

  None as `rows_at`, and where the values are all the same.
  """
  here = rows_at(trained, rows, share)
  if here is None or column not in here:
    return None
  values = here[column].to_numpy(float)
  if not np.isfinite(values).all() or np.ptp(values) == 0:
    return None
  return values, float((here['step'] / here['steps']).mean())


def rows_at(trained: pd.DataFrame, rows: pd.DataFrame,
            share: float) -> pd.DataFrame | None:
  """Returns the evaluation of each run at a rung, in the order of the runs.

  None where a run has none there, or the runs are not in comparable states:
  some of a cosine schedule, say, whose rate has fallen by half there, and some
  of wsd, whose rate has not fallen yet.
  """
  if not len(rows):
    return None
  by_run = dict(tuple(rows.groupby('run_id')))
  places = [nearest(by_run.get(run), share) for run in trained['run_id']]
  if any(place is None for place in places):
    # An order of some of the runs is not compared with one of all.
    return None
  here = rows.loc[places]
  if 'config' in trained:
    rates = [rate(json.loads(text or '{}').get('opt', {}), steps, step)
             for text, steps, step in zip(trained['config'], here['steps'],
                                          here['step'])]
    if np.ptp(rates) > RATES_APART:
      return None
  # CLID is standardised over the runs at this rung.
  return law.with_clid(here)


def columns(rows: study.Study) -> tuple[pd.DataFrame, list[tuple[float, str]],
                                        dict[str, list[str]], list[str]]:
  """Returns the table of early numbers, its rungs, what is measured at each
  beside RankMe, and what is known before training."""
  trained, history = rows.trained, rows.history
  table = pd.DataFrame({
      'run_id': trained['run_id'], 'score': trained['score'].astype(float),
      'size': trained['size'], 'configuration': trained['configuration']})
  probes = scored(rows.tasks, trained)
  rungs: list[tuple[float, str]] = []
  beside: dict[str, list[str]] = {}
  for share in RUNGS:
    ranks = at_rung(trained, history, share, 'rank')
    if ranks is None:
      continue
    name = f'RankMe at {100 * ranks[1]:.0f} %'
    if name in table:
      # Few evaluations: two rungs meet the same one.
      continue
    table[name] = ranks[0]
    rungs.append((ranks[1], name))
    beside[name] = []
    loss = at_rung(trained, history, share, 'valid_loss')
    if loss is not None:
      other = f'lower validation loss at {100 * loss[1]:.0f} %'
      table[other] = -loss[0]  # The larger the better, as of all columns.
      beside[name].append(other)
    for column, (text, sign) in law.MEASURED.items():
      one = at_rung(trained, history, share, column)
      if one is not None:
        lower = {1: '', -1: 'lower '}[sign]
        other = f'{lower}{text} at {100 * one[1]:.0f} %'
        table[other] = sign * one[0]
        beside[name].append(other)
    probe = at_rung(trained, probes, share, 'score')
    if probe is not None:
      other = f'score at {100 * probe[1]:.0f} %'
      table[other] = probe[0]
      beside[name].append(other)
  known = []
  for column, text in law.KNOWN.items():
    if column in trained and trained[column].notna().all() and (
        trained[column].nunique() > 1):
      table[text] = trained[column].astype(float)
      known.append(text)
  return table, rungs, beside, known


def predict(rows: study.Study) -> Early:
  """Returns the Early of a study."""
  if len(rows.trained) < LEAST:
    return nothing(claims.Needed('order', LEAST))
  trained = comparable(rows.trained, rows.history)
  without = len(rows.trained) - len(trained)
  rows = rows._replace(trained=trained)
  table, rungs, beside, known = columns(rows)
  if not rungs:
    return nothing(claims.Needed('evaluations'))
  if np.ptp(table['score']) == 0:
    return nothing(claims.Needed('scores'))
  strata = None
  if table['size'].nunique() > 1:
    strata = 'size'
  parts = []
  for share, name in rungs:
    more = list(beside[name])
    if name == rungs[-1][1]:
      # What is known beforehand is compared with the last RankMe only.
      more += known
    part = laws.early.predict(table, name, 'score', strata, 'configuration',
                              more, draws=law.DRAWS)
    parts.append(part.assign(share=share))
  agreement = pd.concat(parts, ignore_index=True)
  if trained['configuration'].nunique() < law.FEWEST:
    # A bootstrap over a handful of configurations is no interval.
    ends = [name for name in agreement if name.endswith(('_low', '_high'))]
    agreement[ends] = np.nan
  # Several rungs are several tests of RankMe: adjusted for their number.
  own = agreement['early'].isin([name for _, name in rungs])
  agreement['holm'] = np.nan
  agreement.loc[own, 'holm'] = failures.holm(
      agreement.loc[own, 'p'].to_numpy())
  return Early(table, rungs, agreement,
               halvings(table, trained, rungs, beside, known), None, without)


def halvings(table: pd.DataFrame, trained: pd.DataFrame,
             rungs: list[tuple[float, str]], beside: dict[str, list[str]],
             known: list[str]) -> pd.DataFrame:
  """Returns what successive halving by each chooser saves and costs."""
  cost = None
  if 'flops' in trained and trained['flops'].notna().all():
    cost = trained['flops'].to_numpy(float)
  steps = [share for share, _ in rungs]
  choosers = {law.SUBJECT: [name for _, name in rungs]}
  losses = [other for _, name in rungs for other in beside[name]
            if 'validation loss' in other]
  # A chooser needs a number at every rung.
  if len(losses) == len(rungs):
    choosers['validation loss'] = losses
  # What is known beforehand chooses the same runs at every rung.
  choosers.update({name: [name] * len(rungs) for name in known})
  rows = []
  for name, names in choosers.items():
    cut = laws.early.halving(table[names].to_numpy().T, steps, 1.,
                             table['score'], cost=cost)
    rows.append({'chooser': name, 'saved': cut.saved, 'kept': len(cut.kept),
                 'regret': cut.regret, 'random': cut.random})
  return pd.DataFrame(rows)


def of_early(rows: study.Study, soon: Early) -> claims.Claim:
  """Returns the claim that early RankMe orders the runs by their final score
  better than what is known as soon.

  The estimate is Kendall's tau at the last rung; each rival comes with the
  paired difference of the taus, resampled by configuration.
  """
  unit = "Kendall's tau with the final score"
  if soon.lacks:
    return claims.claim('early', unit, counts=law.counted(rows.trained),
                        needed=soon.lacks)
  # Without the runs that were not measured near a rung.
  counts = law.counted(soon.runs)
  share, name = soon.rungs[-1]
  table = soon.agreement.set_index('early')
  own = table.loc[name]
  others = [i for i in table.index
            if i != name and table.loc[i, 'share'] == share]
  # Bonferroni over the rivals, for the verdict that one of them is better.
  confidence = 1 - claims.LEVEL / max(len(others), 1)
  rivals = []
  # Width first: the cheapest rival.
  for other in sorted(others, key=lambda i: i != law.WIDTH):
    row = table.loc[other]
    _, low, high = laws.early.difference(
        soon.runs[name], soon.runs[other], soon.runs['score'],
        soon.runs['configuration'], confidence, law.DRAWS)
    rivals.append(claims.Rival(
        other, row['tau'], row['difference'], row['difference_low'],
        row['difference_high'], law.decided(low, high, counts[1])))
  verdict = claims.against(tuple(rivals))
  # Better than rivals that order nothing is not yet an order.
  if verdict == claims.HOLDS and not own['tau_low'] > 0:
    verdict = claims.INCONCLUSIVE
  return claims.claim(
      'early', unit, own['tau'], own['tau_low'], own['tau_high'], own['holm'],
      verdict, claims.Needed('configurations', max(law.FEWEST,
                                                   2 * counts[1])),
      counts=counts, rivals=tuple(rivals), share=share, pairs=own['pairs'],
      within=own['within'], without=soon.without,
      rival_pairs={other: table.loc[other, 'pairs'] for other in others})
