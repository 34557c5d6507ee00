"""Which runs to stop early: their final score, predicted with its interval.

Some runs, the pilots, are trained to the end. From their final scores the rule
learns which early number predicts best: size, or what is measured at the rung
(RankMe, validation loss, kNN score), alone or together with size. At each rung
the half of the other runs with the lower predicted scores is stopped. Nothing
is random: the same records give the same decisions.

Shapes: N runs, P predictors.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

SHARES = (.1, .25)  # Rungs, as shares of a run's steps.
KEEP = .5  # Share of the runs that go on at a rung.
PILOTS = 5  # Least number of pilots: with fewer no predictor can be judged.
PILOT_SHARE = .1
LEAST = 12  # Runs below which halving is refused.
SIZE, MEAN = 'size', 'the mean of the pilots'
# Column of a run at a rung: (its name, the scale in which it is a line).
MEASURED: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    'rank': ('RankMe', np.log), 'valid_loss': ('validation loss', np.log),
    'knn': ('kNN score', np.asarray)}


class Prediction(NamedTuple):
  """Final scores of runs, predicted.

  by: name of the predictor.  error: its leave-one-out error on the pilots,
  root mean square.  errors: {predictor: the same}.  score_N, low_N, high_N:
  with the 95 % interval of one run.  tie_N: by the second best predictor,
  for runs that the first does not tell apart (size: those of one size).
  """
  by: str
  error: float
  errors: dict[str, float]
  score_N: np.ndarray
  low_N: np.ndarray
  high_N: np.ndarray
  tie_N: np.ndarray


class Replay(NamedTuple):
  """What halving would have saved on runs that were all trained.

  saved: share of the compute.  finalists: number of runs trained to the end.
  regret: the best score less the best of these.  random: the same for as many
  runs at random.  by: the predictor at every rung.
  """
  saved: float
  finalists: int
  regret: float
  random: float
  by: tuple[str, ...]


def pilots(work: Mapping[str, float]) -> list[str]:
  """Returns the runs that are trained to the end: spread evenly over cost.

  Args:
    work: {run_id: FLOPs} of all runs.
  """
  number = max(PILOTS, int(PILOT_SHARE * len(work)))
  # The id decides among runs of equal cost, so that every machine agrees.
  order = sorted(work, key=lambda run_id: (work[run_id], run_id))
  at = (np.arange(number) + .5) / number * len(order)
  return [order[int(i)] for i in at]


def predictors(rows: pd.DataFrame) -> dict[str, np.ndarray]:
  """Returns {name: x_NP} of what is known of every run and varies.

  Args:
    rows: params, and what was measured of MEASURED.
  """
  size_N = np.log(rows['params'].to_numpy(float))
  # Without sizes that differ, size predicts the same score for all.
  first = SIZE
  if not np.ptp(size_N):
    first = MEAN
  out = {first: size_N[:, None]}
  for column, (name, scale) in MEASURED.items():
    if column not in rows:
      continue
    x_N = rows[column].to_numpy(float)
    # The logarithm of 0 or less is no number.
    if not np.isfinite(x_N).all() or (scale is np.log and (x_N <= 0).any()):
      continue
    out[name] = scale(x_N)[:, None]
    # Without sizes that differ, size adds nothing.
    if np.ptp(size_N):
      out[f'{SIZE} and {name}'] = np.stack([size_N, scale(x_N)], 1)
  return out


def left_out(x_NP: np.ndarray, y_N: np.ndarray) -> np.ndarray:
  """Returns the errors of a linear fit for each run left out, (N,)."""
  design = np.column_stack([np.ones(len(y_N)), x_NP])
  hat = design @ np.linalg.pinv(design)
  # A run that alone decides its own prediction cannot be left out.
  return (y_N - hat @ y_N) / np.maximum(1 - np.diag(hat), 1e-9)


def predict(known: pd.DataFrame, alive: pd.DataFrame) -> Prediction:
  """Returns the Prediction of runs at a rung.

  Args:
    known: runs with a final `score`, params, and what was measured at the
      rung.
    alive: the same columns of the runs to predict, without the score.

  Raises:
    ValueError: fewer than three runs have a score.
  """
  y_K = known['score'].to_numpy(float)
  if len(y_K) < 3:
    raise ValueError(f'{len(y_K)} scored runs: expected at least 3')
  both = pd.concat([known, alive], ignore_index=True)
  errors, designs = {}, predictors(both)
  for name, x_NP in designs.items():
    # At least one degree of freedom must be left when one run is left out.
    if len(y_K) >= x_NP.shape[1] + 3 or name in (SIZE, MEAN):
      errors[name] = float(np.sqrt(np.mean(
          left_out(x_NP[:len(y_K)], y_K) ** 2)))
  # sorted is stable: size, which costs nothing to know, is first of equals.
  by, *others = sorted(errors, key=lambda name: errors[name])
  score_N, half_N = line(designs[by], y_K)
  tie_N = np.zeros(len(alive))
  if others:
    tie_N, _ = line(designs[others[0]], y_K)
  return Prediction(by, errors[by], errors, score_N, score_N - half_N,
                    score_N + half_N, tie_N)


def line(x_MP: np.ndarray, y_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (predictions, half their 95 % intervals) by least squares.

  Args:
    x_MP: of K known runs, then of the N to predict.
    y_K: scores of the known runs.

  Returns:
    two arrays (N,): the interval is that of one further run.
  """
  design = np.column_stack([np.ones(len(x_MP)), x_MP])
  own, there = design[:len(y_K)], design[len(y_K):]
  inverse = np.linalg.pinv(own.T @ own)
  coefficients = inverse @ own.T @ y_K
  free = max(1, len(y_K) - int(np.linalg.matrix_rank(own)))
  variance = float(np.sum((y_K - own @ coefficients) ** 2)) / free
  spread_N = np.sqrt(variance * (1 + np.einsum('np,pq,nq->n', there, inverse,
                                               there)))
  return there @ coefficients, float(stats.t.ppf(.975, free)) * spread_N


def keeps(predicted: Prediction, keep: float = KEEP) -> np.ndarray:
  """Returns which of the predicted runs go on, (N,) of bool."""
  number = max(1, math.ceil(keep * len(predicted.score_N)))
  # The last key of lexsort is the first to sort by.
  order = np.lexsort((-predicted.tie_N, -predicted.score_N))
  out = np.zeros(len(order), bool)
  out[order[:number]] = True
  return out


def replay(runs: pd.DataFrame, rungs: list[tuple[float, pd.DataFrame]]
           ) -> Replay:
  """Returns what the rule would have done on runs that were all trained.

  Args:
    runs: run_id, params, flops and score of N runs.
    rungs: (share of training, N rows of what was measured there), ascending.
  """
  runs = runs.reset_index(drop=True)
  cost_N, y_N = (runs[name].to_numpy(float) for name in ('flops', 'score'))
  first = runs['run_id'].isin(pilots(dict(zip(runs['run_id'], cost_N))))
  alive = np.flatnonzero(~first)
  spent, before, by = float(cost_N[first].sum()), 0., []
  for share, measured in rungs:
    spent += float(cost_N[alive].sum()) * (share - before)
    before = share
    table = pd.concat([runs[['params', 'score']],
                       measured.reset_index(drop=True)], axis=1)
    predicted = predict(table[first], table.iloc[alive])
    by.append(predicted.by)
    alive = alive[keeps(predicted)]
  spent += float(cost_N[alive].sum()) * (1 - before)
  ends = np.union1d(alive, np.flatnonzero(first))
  # Qualities below the best, and the chance that the i-th is the best drawn.
  gap_N, n, k = y_N.max() - np.sort(y_N)[::-1], len(y_N), len(ends)
  chance_N = [math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)]
  return Replay(1 - spent / float(cost_N.sum()), k,
                float(y_N.max() - y_N[ends].max()),
                float(gap_N @ chance_N), tuple(by))
