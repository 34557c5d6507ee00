"""Laws of size and data: equal compute, the data bound, longer or larger.

They are of the validation loss, of the runs that share the settings of the
largest group. Each part that the sweep does not allow says what is missing.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import study

LOSS = 'valid_loss'
COMPUTE = 'encoder and decoder'
SIZES, AMOUNTS, CONFIGURATIONS = 3, 2, 8  # Least of a law of five parameters.
DRAWS = 200


class Joint(NamedTuple):
  """What a sweep shows of size and data together.

  valleys: laws.scaling.valleys, or None.  rank_valleys: the same of
  1 / RankMe, so that its minimum is the largest RankMe.  hours: a Fit of
  params and hours, or None.  bound: of the most hours, or None.  steps: a
  Fit of params and steps,
  or None.  choice: laws.scaling.longer_or_larger, or None.  lacks: {part:
  what is missing} of 'valleys', 'hours' and 'steps'.
  """
  valleys: pd.DataFrame | None
  rank_valleys: pd.DataFrame | None
  hours: laws.Fit | None
  bound: laws.scaling.Bound | None
  steps: laws.Fit | None
  choice: pd.DataFrame | None
  lacks: dict[str, claims.Needed]


def read(rows: study.Study) -> Joint:
  """Returns the Joint of a study."""
  trained = rows.trained
  lacks: dict[str, claims.Needed] = {}
  columns = ('params', 'flops', 'hours_asked', 'steps', LOSS)
  missing = [name for name in columns if name not in trained]
  if not len(trained) or missing:
    need = claims.Needed('columns', names=tuple(missing or columns))
    return Joint(None, None, None, None, None, None,
                 dict.fromkeys(('valleys', 'hours', 'steps'), need))
  trained = trained.dropna(subset=list(columns))
  labels = advice.settings(trained, rows.fields)
  # The settings that most runs have.
  largest = np.bincount(labels).argmax()
  mine = trained[labels == largest].reset_index(drop=True)
  # Valleys compare sizes at equal compute, so steps differ in each.
  valleys = valleys_of(mine)
  if valleys is None:
    lacks['valleys'] = claims.Needed('valley', 4)
  rank_valleys = None
  if 'rank' in mine and mine['rank'].nunique() > 1 and (mine['rank'] > 0).all():
    rank_valleys = valleys_of(mine.assign(inverse=1 / mine['rank']), 'inverse')
  hours = law_of(mine, 'hours_asked')
  bound = None
  if hours is None:
    lacks['hours'] = claims.Needed('joint', names=('hours_asked',))
  else:
    bound = laws.scaling.data_bound(hours, float(mine['hours_asked'].max()),
                                    draws=DRAWS)
  steps, choice = law_of(mine, 'steps'), None
  if steps is None:
    lacks['steps'] = claims.Needed('joint', names=('steps',))
  else:
    choice = longer_or_larger(mine, steps)
  return Joint(valleys, rank_valleys, hours, bound, steps, choice, lacks)


def valleys_of(mine: pd.DataFrame, column: str = LOSS) -> pd.DataFrame | None:
  """Returns the valleys, cubic where there are sizes enough, or None.

  Args:
    mine: runs of equal settings.
    column: what is least at the best size.
  """
  for degree in (3, 2):
    try:
      return laws.scaling.valleys(mine, 'flops', 'params', column, degree,
                                  COMPUTE)
    except ValueError:
      continue
  return None


def law_of(mine: pd.DataFrame, amount: str) -> laws.Fit | None:
  """Returns the law of the loss in size and an amount, or None.

  Args:
    mine: runs of equal settings.
    amount: 'hours_asked' or 'steps'.
  """
  kinds = mine.drop_duplicates(['params', amount])
  each = mine.groupby('params')[amount].nunique()
  if len(kinds) < CONFIGURATIONS or (each >= AMOUNTS).sum() < SIZES:
    return None
  try:
    # In the logarithm: runs of a large and of a small loss count alike.
    return laws.fit('separable', mine, loss='log_ls', x=['params', amount],
                    y=LOSS, groups='configuration')
  except ValueError:
    return None


def longer_or_larger(mine: pd.DataFrame, fit: laws.Fit) -> pd.DataFrame | None:
  """Returns the uses of twice the compute of the largest run.

  Args:
    mine: runs of equal settings.
    fit: of params and steps.
  """
  constant, per = advice.step_flops(mine)
  run = mine.loc[mine['flops'].idxmax()]
  try:
    # The lambda gives the steps that compute C buys a size of N.
    return laws.scaling.longer_or_larger(
        fit, float(run['params']), float(run['steps']), 2.,
        lambda C, N: C / (constant + per * N), draws=DRAWS)
  except ValueError:
    return None
