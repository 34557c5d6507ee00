"""Where the law fails and which runs went wrong: found, listed, in words."""

import json
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.findings import score

BENDS = 9  # Different ranks below which a broken law is not tried.


class Trouble(NamedTuple):
  """What does not follow the law.

  outliers: laws.failures.outliers.  families: laws.failures.families by size.
  signs: laws.failures.runs_test, or None.  bends: laws.failures.bends of
  1 - score against rank, or empty.  unstable: laws.failures.unstable, with
  `name`.  alarms: what the monitor said while training: name, step (the
  first), times, alarm.  words: sentences.
  """
  outliers: pd.DataFrame
  families: pd.DataFrame
  signs: tuple | None
  bends: pd.DataFrame
  unstable: pd.DataFrame
  alarms: pd.DataFrame
  words: list


def find(trained, fit, history, ceiling=1.):
  """Returns the Trouble of a sweep.

  Args:
    trained: runs with their `gain`.
    fit: the law of those that beat their twin, or None.
    history: a row a run and reading.
    ceiling: the most that a score can be; inf where there is no most.
  """
  none = pd.DataFrame()
  curves = history[~history['untrained']] if len(history) else history
  unstable = laws.failures.unstable(curves) if len(curves) else none
  if len(unstable):
    names = dict(zip(curves['run_id'], curves['name']))
    unstable = unstable.assign(name=unstable['run_id'].map(names))
  said = alarmed(curves)
  if fit is None:
    return Trouble(none, none, None, none, unstable, said,
                   of_unstable(unstable))
  beat = trained[trained['gain'] > 0]
  outliers = laws.failures.outliers(fit, beat['name'], beat['size'])
  families = laws.failures.families(fit, beat['size'])
  signs = laws.failures.runs_test(fit)
  bends = none
  error = ceiling - beat['score'].to_numpy(float)
  if math.isfinite(ceiling) and (error > 0).all() and (
      beat['rank'].nunique() >= BENDS):
    bends = laws.failures.bends(
        {'rank': beat['rank'].to_numpy(float), 'error': error}, 'rank',
        'error', groups=score.configurations(beat))
  words = (of_outliers(outliers) + of_families(families) +
           of_shape(signs, bends) + of_unstable(unstable))
  return Trouble(outliers, families, signs, bends, unstable, said, words)


def alarmed(curves):
  """Returns each kind of alarm of each run: first step, how often, words."""
  rows = {}
  if len(curves) and 'alarms' in curves:
    for _, r in curves.sort_values('step').iterrows():
      for alarm in json.loads(r['alarms'] or '[]'):
        key, value = (r['run_id'], alarm['kind']), alarm['value']
        text = alarm['kind'].replace('_', ' ') + (
            '' if value is None else f': {value:g}')
        first = rows.setdefault(key, {'name': r['name'], 'step': r['step'],
                                      'times': 0, 'alarm': text})
        first['times'] += 1
  return pd.DataFrame(rows.values(),
                      columns=['name', 'step', 'times', 'alarm'])


def of_outliers(table):
  """Returns a sentence on the runs that the law does not explain."""
  if not len(table):
    return ['No run lies off the law beyond chance (studentised residuals, '
            '5 % over all runs).']
  each = ', '.join(f"{r['label']} ({r['studentised']:+.1f} sd)"
                   for _, r in table.iterrows())
  return [f'Off the law beyond chance: {each}.']


def of_families(table):
  """Returns a sentence on sizes that stand apart from the law."""
  apart = table[table['p'] < .05]
  if len(table) < 2 or not len(apart):
    return []
  each = ', '.join(f"{r['family']} ({r['mean']:+.3f})"
                   for _, r in apart.iterrows())
  return [f'Sizes that lie off the law as a whole: {each}. One law of RankMe '
          'alone does not hold across sizes.']


def of_shape(signs, bends):
  """Returns sentences on whether the law bends as the runs do."""
  out = []
  runs, expected, p = signs
  if np.isfinite(p):
    out.append(
        f'Ordered by RankMe the residuals change sign {runs - 1} times, '
        f'{expected - 1:.0f} expected '
        + (f'(p = {p:.3f}): the runs bend otherwise than the law.' if p < .05
           else f'(p = {p:.2f}): no bend beyond the law\'s is seen.'))
  if len(bends):
    out.append('A broken power law of 1 - score is '
               + ('' if bends.attrs['broken'] else 'not ')
               + 'preferred to a straight one.')
  return out


def of_unstable(table):
  """Returns a sentence on runs that collapsed, dipped, jumped, diverged."""
  if not len(table):
    return ['No run collapsed, dipped, jumped or diverged.']
  said = {'collapse': 'RankMe collapsed', 'dip': 'RankMe fell by half and '
          'came back', 'spike': 'the loss jumped', 'diverged': 'diverged'}
  out = []
  for kind, rows in table.groupby('kind', sort=False):
    each = ', '.join(f"{r['name']} at step {r['step']:g}"
                     for _, r in rows.iterrows())
    out.append(f'{said[kind]}: {each}')
  text = '; '.join(out)
  return [f'{text[0].upper()}{text[1:]}.']
