"""What further seeds would do to an inconclusive slope.

A family's slope (see slopes.py) rests on configurations that differ in one
thing. Each gets further seeds; the width of the interval afterwards is what
the same analysis gives with runs drawn about the configurations' means, by the
noise of seeds.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.analysis import claims
from audiorank.analysis import factors
from audiorank.analysis import study

FUTURES = 8  # Outcomes of the runs that are drawn.
MOST = 8  # Seeds more of each configuration.


class Plan(NamedTuple):
  """Further seeds of a family's configurations.

  family: which.  runs: a row a proposed run: a run of its configuration, with
  `new_seed`.  flops: of all of them.  seeds: more of each configuration.
  now: width of the slope's interval.  after: its expected width; NaN where the
  noise of seeds is not known.
  """
  family: str
  runs: pd.DataFrame
  flops: float
  seeds: int
  now: float
  after: float


def families(rows: study.Study) -> tuple[str, ...]:
  """Returns the families in which configurations are compared."""
  if not len(rows.trained):
    return ()
  return tuple(factors.compare(rows).live)


def more_seeds(rows: study.Study, family: str, budget: float | None = None,
               draws: int = FUTURES) -> Plan | claims.Needed:
  """Returns the Plan of a family, or what else its slope needs.

  Args:
    rows: the study.
    family: one of `families`.
    budget: FLOPs; None for one more seed of each configuration.
    draws: outcomes of which the width afterwards is the median.
  """
  compared = factors.compare(rows)
  if family in compared.flat:
    # RankMe moves no more than between seeds: more seeds only show that.
    return claims.Needed('moves')
  kinds = np.sort(rows.trained['configuration'].unique())
  numbers = kinds[compared.live[family].at_C]
  trained = rows.trained[rows.trained['configuration'].isin(numbers)]
  once = trained.drop_duplicates('configuration')
  cost = float(once['flops'].sum())
  seeds = 1
  if budget is not None:
    seeds = min(int(budget * (1 + 1e-9) / cost), MOST)
  if seeds < 1:
    return claims.Needed('budget', cost)
  last = int(rows.trained['seed'].max())
  runs = pd.concat([once.assign(new_seed=last + 1 + k) for k in range(seeds)],
                   ignore_index=True)
  now = width(compared, family)
  after = math.nan
  if compared.noise.free:
    # The same seed for every plan: two calls give one answer.
    rng = np.random.default_rng(0)
    after = float(np.median([width(outcome(rows, compared, runs, rng), family)
                             for _ in range(draws)]))
  return Plan(family, runs, cost * seeds, seeds, now, after)


def width(compared: factors.Factors, family: str) -> float:
  """Returns the width of a slope's interval; infinite where unbounded."""
  if compared.moments is None:
    return math.inf
  one = compared.slope(family)
  return one.high - one.low


def outcome(rows: study.Study, compared: factors.Factors, runs: pd.DataFrame,
            rng: np.random.Generator) -> factors.Factors:
  """Returns the comparisons of a study with runs that are drawn at random."""
  noise = compared.noise
  # A seed moves score and RankMe together.
  covariance = np.array([[noise.score ** 2, noise.covariance],
                         [noise.covariance, noise.log2_rank ** 2]])
  # Rounding may leave an eigenvalue a little below 0.
  errors_N2 = rng.multivariate_normal(np.zeros(2), covariance, len(runs),
                                      check_valid='ignore')
  means = rows.trained.assign(log2=np.log2(rows.trained['rank'])).groupby(
      'configuration')[['score', 'log2']].mean()
  at = means.loc[runs['configuration']].to_numpy(float) + errors_N2
  more = runs.assign(score=at[:, 0], rank=2. ** at[:, 1],
                     seed=runs['new_seed']).drop(columns='new_seed')
  trained = pd.concat([rows.trained, more], ignore_index=True)
  return factors.compare(rows._replace(trained=trained))
