"""All findings of a sweep, and the sentences that open its report."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.findings import early
from audiorank.findings import score
from audiorank.findings import trouble

KNOBS = {'lr': 'learning rate', 'batch': 'batch', 'steps': 'steps'}


class Findings(NamedTuple):
  """What a sweep shows.

  runs: trained runs with `gain` over their twin.  twins: untrained networks.
  fit: the law from rank to score, or None.  reason: why there is none.
  rivals: a row a predictor of the score.  shapes: a row a shape of law.
  early: an early.Early.  trouble: a trouble.Trouble.
  checklist: of the fit; empty without one.  words: sentences.
  """
  runs: pd.DataFrame
  twins: pd.DataFrame
  fit: laws.Fit | None
  reason: str
  rivals: pd.DataFrame
  shapes: pd.DataFrame
  early: early.Early
  trouble: trouble.Trouble
  checklist: pd.DataFrame
  words: list


def find(tables):
  """Returns the Findings of a sweep's records.Tables."""
  trained, twins = score.with_gain(tables.runs)
  unbounded = len(tables.tasks) and (tables.tasks['metric'] == 'd_prime').any()
  ceiling = np.inf if unbounded else 1.
  if not len(trained):
    why = 'no trained run is scored yet'
    return Findings(
        trained, twins, None, why, pd.DataFrame(), pd.DataFrame(),
        early.find(trained, tables.history, tables.tasks),
        trouble.find(trained, None, tables.history, ceiling), pd.DataFrame(),
        ['No trained run is scored yet.'])
  words = []
  if not len(twins):
    words.append('There is no untrained network to compare with.')
  fit, reason = score.law(trained)
  rivals = score.predictors(trained)
  shapes = score.shapes(trained, fit)
  soon = early.find(trained, tables.history, tables.tasks)
  wrong = trouble.find(trained, fit, tables.history, ceiling)
  words += score.training_helps(trained) if len(twins) else []
  words += score.of_rank(tables.history)
  words += score.of_law(fit, reason, ceiling)
  words += score.of_shapes(shapes)
  words += score.of_rivals(rivals, trained)
  words += soon.words[:1] + wrong.words[:1]
  if len(trained) < laws.early.ENOUGH:
    words.append(f'{len(trained)} runs are few: all of this is exploratory.')
  waiting = len(tables.runs) - len(trained) - len(twins)
  if waiting:
    words.append(f'{waiting} runs are not scored on every task yet and are '
                 'left out of all of this.')
  if trained['seed'].nunique() == 1:
    words.append('Every point was trained with one seed, so the noise floor '
                 'under these differences is not measured here.')
  filled = (pd.DataFrame() if fit is None else
            laws.checklist.fill(fit, about(trained, shapes, tables)))
  return Findings(trained, twins, fit, reason, rivals, shapes, soon, wrong,
                  filled, words)


def about(trained, shapes, tables):
  """Returns the answers of the checklist that only the sweep knows."""
  def tried(name, text):
    values = sorted(trained[name].unique())
    return f'{text} ' + ', '.join(f'{v:g}' for v in values)

  behind = int((~(trained['gain'] > 0)).sum())
  metrics = (sorted(tables.tasks['metric'].unique()) if len(tables.tasks)
             else [])
  names = [name for name in KNOBS if name in trained]
  knobs = ', '.join(tried(name, KNOBS[name]) for name in names)
  same = all(trained.groupby('size')[name].agg(frozenset).nunique() == 1
             for name in names)
  return {
      'alternatives compared': ', '.join(shapes['law']),
      'hyperparameters per size': f'{knobs}; ' + (
          'the same for every size' if same else 'not the same for all sizes'),
      'learning rate schedule': 'in config.json of each run',
      'seeds per configuration': str(trained['seed'].nunique()),
      'metric': 'mean over tasks'
                + (f' of {", ".join(metrics)}' if metrics else ''),
      'checkpoints used': 'the last of each run',
      'how size is counted': 'encoder parameters; no size enters this law',
      'how compute is counted': 'encoder and decoder, forward and backward; '
                                'no compute enters this law',
      'points left out': f'{behind} of {len(trained)} runs, which do not beat '
                         'their untrained network' if behind else 'none'}
