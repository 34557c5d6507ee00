"""The verdicts on slopes, repeated with other scores of the same runs.

A score of the last layer by one predictor may hide what another layer or
another predictor shows. So one slope for all and the slope at equal width are
tested again, with each of these as the score: the best layer's, every block's
own (beside its own RankMe), kNN, and further predictors where a table has
them.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.analysis import claims
from audiorank.analysis import factors
from audiorank.analysis import law
from audiorank.analysis import layers
from audiorank.analysis import study

# Columns of further scores, and what they are called.
SCORES = {'best_layer_score': 'the best layer', 'score_knn': 'kNN',
          'score_hear': "HEAR's protocol", 'score_logistic':
          'logistic regression', 'knn': 'kNN of one task'}


class Scoring(NamedTuple):
  """Another score of runs.

  name: what it is called.  trained: the runs that have it, with it in the
  column `score`, and the RankMe that belongs to it in `rank`.
  """
  name: str
  trained: pd.DataFrame


def scorings(trained: pd.DataFrame) -> list[Scoring]:
  """Returns the other scores that runs have: most of them, or many."""
  out = [Scoring(name, trained.assign(score=trained[column].astype(float)))
         for column, name in SCORES.items() if column in trained]
  if len(trained):
    rank_NL, score_NL = (layers.matrix(trained, f'{name}_layer_', name)
                         for name in ('rank', 'score'))
    # The last layer is the score that all other claims are about. It has
    # another number in encoders of another depth.
    depth_N = trained['depth'].to_numpy(int)
    score_NL[np.arange(len(trained)), depth_N - 1] = np.nan
    out += [Scoring(f'layer {k + 1}',
                    trained.assign(rank=rank_NL[:, k], score=score_NL[:, k]))
            for k in range(rank_NL.shape[1] - 1)]
  known = [(one.trained[['rank', 'score']].notna().all(axis=1), one)
           for one in out]
  # Of a part of the runs too, if it has enough configurations.
  return [one._replace(trained=one.trained[mine_N].reset_index(drop=True))
          for mine_N, one in known if 2 * mine_N.sum() > len(trained)
          or trained['configuration'][mine_N].nunique() >= law.FEWEST]


def of_scorings(rows: study.Study, one_slope: claims.Claim,
                at_width: claims.Claim) -> list[claims.Claim]:
  """Returns a claim for each other score: both verdicts are the same by it.

  It holds where both are decided by both scores, and alike; it fails where one
  is decided the other way.

  Args:
    rows: the study.
    one_slope, at_width: its own claims.
  """
  out = []
  for name, trained in scorings(rows.trained):
    compared = factors.compare(rows._replace(trained=trained))
    again = factors.of_one_slope(compared), factors.of_width(compared)
    pairs = list(zip((one_slope, at_width), again))
    decided = [claims.INCONCLUSIVE not in (a.verdict, b.verdict)
               for a, b in pairs]
    same = [a.verdict == b.verdict for a, b in pairs]
    verdict = claims.INCONCLUSIVE
    if any(sure and not alike for sure, alike in zip(decided, same)):
      verdict = claims.FAILS
    elif all(decided):
      verdict = claims.HOLDS
    slope = again[1]
    out.append(claims.claim(
        'scoring', slope.unit, slope.estimate, slope.low, slope.high, slope.p,
        verdict, claims.Needed('both'), name, factors.total(compared),
        again=again,
        before=(one_slope.verdict, at_width.verdict),
        spearman=spearman(rows.trained, trained)))
  return out


def spearman(before: pd.DataFrame, after: pd.DataFrame) -> float:
  """Returns the rank correlation of two scores of the same runs."""
  both = after[['run_id', 'score']].merge(before[['run_id', 'score']],
                                          on='run_id')
  if both['score_x'].nunique() < 2 or both['score_y'].nunique() < 2:
    return np.nan
  return float(both['score_x'].corr(both['score_y'], method='spearman'))
