"""Layers: which one is best, which one has the highest RankMe, which falls
first.

The last block counts once, after the final normalisation, so an encoder of
four blocks has four layers. Which layer is best is chosen by the validation
clips of all tasks together; its score is on their test clips. Older tables
have no validation scores: there the test clips choose.

Shapes: N runs, L layers, E evaluations.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.analysis import claims
from audiorank.analysis import law
from audiorank.analysis import study

SHARE = 'share of runs'
HIGHEST, LOWEST, LAST = 'highest RankMe', 'lowest RankMe', 'the last layer'
USUAL = 'the layer that is best in most other configurations'
FIRST = 'the first layer'


class Layers(NamedTuple):
  """Every layer of some runs; NaN where a run has no such layer.

  rows: the runs.  rank_NL: RankMe.  valid_NL: mean score on validation clips,
  or on test clips in older tables.  score_NL: mean score on test clips.
  """
  rows: pd.DataFrame
  rank_NL: np.ndarray
  valid_NL: np.ndarray
  score_NL: np.ndarray


def matrix(rows: pd.DataFrame, prefix: str, final: str) -> np.ndarray:
  """Returns a number of every layer of some rows, (N, L).

  Args:
    rows: with their `depth`.
    prefix: of the columns of blocks: 'rank_layer_'.
    final: the column of the last layer.
  """
  depth_N = rows['depth'].to_numpy(int)
  out_NL = np.full((len(rows), depth_N.max(initial=0)), np.nan)
  for k in range(out_NL.shape[1]):
    # The output of the last block is the last layer before its normalisation.
    mine = depth_N - 1 > k
    if f'{prefix}{k}' in rows:
      out_NL[mine, k] = rows[f'{prefix}{k}'].to_numpy(float)[mine]
  if final in rows:
    out_NL[np.arange(len(rows)), depth_N - 1] = rows[final].to_numpy(float)
  return out_NL


def read(trained: pd.DataFrame) -> Layers:
  """Returns the Layers of runs that were measured and scored at every one."""
  rank_NL = matrix(trained, 'rank_layer_', 'rank')
  score_NL = matrix(trained, 'score_layer_', 'score')
  valid_NL = matrix(trained, 'valid_layer_', 'valid_layer_final')
  # Records of older versions.
  if not np.isfinite(valid_NL).any():
    valid_NL = score_NL
  known_NL = np.isfinite(rank_NL) & np.isfinite(score_NL) & np.isfinite(
      valid_NL)
  # A single layer leaves no choice.
  whole_N = known_NL.sum(1) > 1
  return Layers(trained[whole_N].reset_index(drop=True), *(
      np.where(known_NL, v_NL, np.nan)[whole_N]
      for v_NL in (rank_NL, valid_NL, score_NL)))


def usual(best_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
  """Returns the layer that is best in most runs of the other groups, (N,)."""
  out_N = np.zeros(len(best_N), int)
  for group in np.unique(group_N):
    others = best_N[group_N != group]
    if len(others):
      out_N[group_N == group] = np.bincount(others).argmax()
  return out_N


def rivals_of(hit_N: np.ndarray, others: dict[str, np.ndarray],
              group_N: np.ndarray) -> tuple[claims.Rival, ...]:
  """Returns other rules as Rivals of a share of hits.

  Args:
    hit_N: whether RankMe's rule hits, of each run.
    others: {rule: whether it does}.
    group_N: the configuration of each run.
  """
  group_N = np.unique(group_N, return_inverse=True)[1]
  groups, out = len(np.unique(group_N)), []
  # Bonferroni over the rules, for the verdict that one of them is better.
  wide = 1 - claims.LEVEL / len(others)
  # The mean of a configuration's seeds, so that each counts once.
  mean = lambda v_N: np.bincount(group_N, np.asarray(v_N, float)) / (
      np.bincount(group_N))
  places = np.arange(groups)
  for name, other_N in others.items():
    # law.paired compares squares: roots make it a difference of means.
    pair = np.sqrt(mean(hit_N)), np.sqrt(mean(other_N)), places
    gap, low, high = law.paired(*pair)
    _, least, most = law.paired(*pair, wide)
    out.append(claims.Rival(name, claims.share(other_N, group_N)[0], gap, low,
                            high, law.decided(least, most, groups)))
  return tuple(out)


def shared(key: str, hit_N: np.ndarray, others: dict[str, np.ndarray],
           rows: pd.DataFrame, chance: float, **details) -> claims.Claim:
  """Returns the claim that something is so in most runs.

  Args:
    key: which claim.
    hit_N: whether it is so in each run, or how far.
    others: {rule: the same by another rule}.
    rows: the runs.
    chance: the share to expect of chance.
    **details: further numbers.
  """
  group_N = rows['configuration'].to_numpy()
  counts = law.counted(rows)
  value, low, high = claims.share(hit_N, group_N)
  # More runs do not move a share out of the range between the two verdicts.
  needed = claims.Needed('configurations', max(law.FEWEST, 2 * counts[1]))
  if chance < low and high < .5:
    needed = claims.Needed('between')
  return claims.claim(
      key, SHARE, value, low, high, verdict=claims.most(low, high, chance),
      needed=needed, counts=counts, rivals=rivals_of(hit_N, others, group_N),
      chance=chance, **details)


def of_best(rows: study.Study) -> claims.Claim | None:
  """Returns the claim that the layer of highest RankMe is the best layer;
  None where layers were not both measured and scored."""
  known = read(rows.trained)
  if not len(known.rows):
    return None
  group_N, here_N = known.rows['configuration'].to_numpy(), np.arange(
      len(known.rows))
  best_N = np.nanargmax(known.valid_NL, 1)
  pick = {HIGHEST: np.nanargmax(known.rank_NL, 1),
          LOWEST: np.nanargmin(known.rank_NL, 1),
          LAST: known.rows['depth'].to_numpy(int) - 1,
          USUAL: usual(best_N, group_N)}
  hit = {name: layer_N == best_N for name, layer_N in pick.items()}
  # What each choice costs: score of the best layer less that of its own.
  score_N = known.score_NL[here_N, best_N]
  cost = {name: float(np.nanmean(score_N - known.score_NL[here_N, layer_N]))
          for name, layer_N in pick.items()}
  chance = float(np.mean(1 / np.isfinite(known.rank_NL).sum(1)))
  # Blocks are counted from 1 for readers.
  often = np.bincount(best_N, minlength=known.rank_NL.shape[1])
  return shared('best_layer', hit.pop(HIGHEST), hit, known.rows, chance,
                cost=cost, often=tuple(map(int, often)))


def first_low(rank_EL: np.ndarray) -> np.ndarray:
  """Returns the evaluation at which each layer's RankMe is lowest, (L,).

  Args:
    rank_EL: of a run; the first row is before training. Infinite for a layer
      that never falls below its value there.
  """
  lowest_L = rank_EL[1:].min(0)
  return np.where(lowest_L < rank_EL[0], 1. + rank_EL[1:].argmin(0), np.inf)


def first(at_L: np.ndarray, layer: int) -> float:
  """Returns 1 where a layer is first, its share where several are, else 0."""
  if at_L[layer] > at_L.min():
    return 0.
  return 1 / np.sum(at_L == at_L.min())


def of_order(rows: study.Study) -> claims.Claim | None:
  """Returns the claim that RankMe falls in the last layer first; None where
  layers were not measured during training.

  Runs in which all layers are lowest at the same evaluation, or none falls,
  say nothing of an order and are left out.
  """
  history = rows.history
  if not any(name.startswith('rank_layer_') for name in history):
    return None
  by_run = dict(tuple(history.sort_values('step').groupby('run_id')))
  last, lowest, place, chance, tied = [], [], [], [], 0
  for i, run in enumerate(rows.trained['run_id']):
    if run not in by_run:
      continue
    here = by_run[run]
    rank_EL = matrix(here, 'rank_layer_', 'rank')
    # Blocks that were not measured.
    rank_EL = rank_EL[:, np.isfinite(rank_EL).all(0)]
    # Without the untrained network's RankMe nothing is known to have fallen.
    if here['step'].iloc[0] or len(rank_EL) < 3 or rank_EL.shape[1] < 2:
      continue
    at_L = first_low(rank_EL)
    if (at_L == at_L[0]).all():
      tied += 1
      continue
    # The last layer, and beside it the first.
    last.append(first(at_L, -1))
    lowest.append(first(at_L, 0))
    place.append(i)
    chance.append(1 / len(at_L))
  if not place and not tied:
    return None
  mine = rows.trained.iloc[place]
  if not place:
    return claims.claim('top_first', SHARE, counts=law.counted(mine),
                        needed=claims.Needed('often'), tied=tied)
  return shared('top_first', np.array(last), {FIRST: np.array(lowest)}, mine,
                float(np.mean(chance)), tied=tied)
