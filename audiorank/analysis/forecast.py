"""Predictions of a larger run, written before it is trained, scored after.

RankMe, validation loss and scores are each predicted by `laws.averaged`, the
first two in their logarithm, with the interval of one run: what the law does
not know, and the noise of its seed. A quantity whose largest runs were not
foreseen by the smaller ones, or that does not change from the smallest run to
the largest, is said not to scale smoothly.

A forecast is a JSON tree with its date and a digest of all the rest of it.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import datetime
import hashlib
import json
import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import config as config_lib
from audiorank import files
from audiorank import records
from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import study
from audiorank.laws import averaged

SCHEMA = 1
FOLDER = 'forecasts'  # Of a sweep.
# Column of the runs: (what it is called, whether it is fitted in logarithms).
QUANTITIES = {'rank': ('RankMe', True), 'valid_loss': ('validation loss', True),
              'score': ('score', False)}
SMOOTH, NO_TREND, BREAKS, UNKNOWN = 'smooth', 'no trend', 'breaks', 'unknown'
DRAWS = 2000
TAIL = .025  # Of a 95 % interval.


class Prediction(NamedTuple):
  """A quantity of a run that is not trained yet.

  quantity: 'RankMe', 'validation loss', 'score' or 'score of <task>'.
  value, low, high: with the 95 % interval of one run.  scaling: SMOOTH,
  NO_TREND, BREAKS or UNKNOWN.  runs: on which it rests.
  """
  quantity: str
  value: float
  low: float
  high: float
  scaling: str
  runs: int


class Target(NamedTuple):
  """The run that is predicted: inputs of a law, and its FLOPs."""
  params: float
  hours: float
  steps: float
  flops: float


def measured(rows: study.Study) -> dict[str, tuple[pd.Series, bool]]:
  """Returns {quantity: (a value a run by run_id, logarithmic)}."""
  runs = rows.trained.set_index('run_id')
  out = {text: (runs[name].astype(float), log)
         for name, (text, log) in QUANTITIES.items() if name in runs}
  if len(rows.tasks):
    # Scores of the last step: earlier ones belong to a shorter training.
    last = rows.tasks[rows.tasks['step'] == rows.tasks['steps']]
    for task, part in last.groupby('task'):
      score = part.drop_duplicates('run_id').set_index('run_id')['score']
      out[f'score of {task}'] = score.reindex(runs.index).astype(float), False
  return out


def predict(rows: study.Study, target: Target, labels: np.ndarray,
            group: int) -> list[Prediction] | claims.Needed:
  """Returns the Predictions of a run, or what is needed for any.

  Args:
    rows: the study.
    target: see Target.
    labels: N labels of the trained runs: equal settings, see advice.settings.
    group: the label of the target's settings.
  """
  trained = rows.trained
  inside = trained[labels == group]
  wanted = {'size': target.params, 'hours': target.hours,
            'steps': target.steps}
  axes = []
  for axis, column in advice.AXES.items():
    own = float(inside[column].iloc[0])
    # What runs of other settings tell of an axis holds for these as well.
    if trained.groupby(labels)[column].nunique().max() > 1:
      axes.append(axis)
    elif abs(math.log(wanted[axis] / own)) > math.log(study.SAME_HOURS):
      # The run differs in what these runs have in common.
      return claims.Needed('vary', names=(axis,))
  if not axes:
    return claims.Needed('scaling_runs', 4)
  alone = averaged.confounded(
      trained[[advice.AXES[axis] for axis in axes]].to_numpy(float), labels)
  if alone:
    return claims.Needed('vary_alone', names=(axes[alone[0]],))
  out = []
  for quantity, (values, log) in measured(rows).items():
    y_N = values.to_numpy(float)
    # Each quantity has its own runs: a task added later lacks the first ones.
    known = np.isfinite(y_N) & ((y_N > 0) | (not log))
    if log:
      y_N = np.log(np.where(known, y_N, 1.))
    try:
      out.append(one_quantity(quantity, trained[known], y_N[known], log, axes,
                              wanted, labels[known], group))
    # Too few runs have this quantity; others may have enough.
    except ValueError:
      continue
  if not out:
    return claims.Needed('scaling_runs', len(axes) + 4)
  return out


def one_quantity(quantity: str, trained: pd.DataFrame, y_N: np.ndarray,
                 log: bool, axes: Iterable[str], wanted: Mapping[str, float],
                 labels: np.ndarray, group: int) -> Prediction:
  """Returns the Prediction of a quantity.

  Args:
    quantity: its name.
    trained: the runs that have it.
    y_N: their values, or logarithms.
    log: whether they are logarithms.
    axes: inputs of the law.
    wanted: {axis: value} of the run.
    labels: of equal settings.
    group: the run's.

  Raises:
    ValueError: too few runs.
  """
  low, middle, high = interval_of(
      trained, y_N, axes, {axis: [wanted[axis]] for axis in axes}, labels,
      group)[:, 0]
  if log:
    low, middle, high = np.exp((low, middle, high))
  return Prediction(quantity, float(middle), float(low), float(high),
                    how_it_scales(trained, y_N, axes, labels, group),
                    len(trained))


def interval_of(trained: pd.DataFrame, y_N: np.ndarray, axes: Iterable[str],
                points: Mapping[str, Any], labels: np.ndarray, group: int,
                tail: float = TAIL) -> np.ndarray:
  """Returns (low, median, high) of single runs at Q points, (3, Q)."""
  law = averaged.fit(advice.points_of(axes, trained), y_N, labels)
  # averaged.fit numbers groups by their place among those that it was given.
  place = int(np.searchsorted(np.unique(labels), group))
  v_SQ = averaged.values(law, points, place, DRAWS, noise=True)
  return np.quantile(v_SQ, [tail, .5, 1 - tail], 0)


def how_it_scales(trained: pd.DataFrame, y_N: np.ndarray, axes: Iterable[str],
                  labels: np.ndarray, group: int) -> str:
  """Returns whether a quantity scales smoothly, as far as runs show it.

  The runs of most compute, and those of the largest value of each axis, are
  predicted from all others; together they have to lie within intervals of 95 %
  (Bonferroni).
  """
  flops_N = trained['flops'].to_numpy(float)
  mine = labels == group
  # Runs that took at least 70 % of the largest one's compute.
  tops = [mine & (flops_N >= .7 * flops_N[mine].max())]
  for column in advice.points_of(axes, trained).values():
    tops.append(mine & (column == column[mine].max()))
  # The same runs tested twice would widen all intervals for nothing.
  tops = [top for i, top in enumerate(tops)
          if not any((top == other).all() for other in tops[:i])]
  # Bonferroni: an equal part of the tail for every run predicted.
  tail = TAIL / sum(top.sum() for top in tops)
  judged = 0
  for top in tops:
    inside = foreseen(trained, y_N, axes, labels, group, top, tail)
    # None: the other runs are too few, which shows no break.
    if inside is False:
      return BREAKS
    judged += inside is not None
  if not judged:
    return UNKNOWN
  law = averaged.fit(advice.points_of(axes, trained), y_N, labels)
  place = int(np.searchsorted(np.unique(labels), group))
  # Smooth and flat are told apart by the law's own change over the sweep.
  ends = trained[mine].iloc[[int(flops_N[mine].argmin()),
                             int(flops_N[mine].argmax())]]
  v_SQ = averaged.values(law, advice.points_of(axes, ends), place, DRAWS)
  below, above = averaged.interval(v_SQ[:, 1] - v_SQ[:, 0])
  if below <= 0 <= above:
    return NO_TREND
  return SMOOTH


def foreseen(trained: pd.DataFrame, y_N: np.ndarray, axes: Iterable[str],
             labels: np.ndarray, group: int, top: np.ndarray, tail: float
             ) -> bool | None:
  """Returns whether some runs lie where all others predict them, None where
  these are too few.

  Args:
    trained: N runs.
    y_N: their values.
    axes: inputs of the law.
    labels: of equal settings.
    group: of the runs predicted.
    top: which N are predicted.
    tail: of each interval.
  """
  # Without any run of the settings their level is unknown.
  if not (labels[~top] == group).any():
    return None
  try:
    low, _, high = interval_of(
        trained[~top], y_N[~top], axes, advice.points_of(axes, trained[top]),
        labels[~top], group, tail)
  except ValueError:
    return None
  return bool(((low <= y_N[top]) & (y_N[top] <= high)).all())


def digest(tree: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a forecast without its own digest."""
  rest = {name: value for name, value in tree.items() if name != 'sha256'}
  # One text for one content, however a file is indented or ordered.
  text = json.dumps(rest, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def as_tree(several: Iterable[Prediction], config: Any, rows: study.Study,
            target: Target, now: datetime.datetime) -> dict[str, Any]:
  """Returns a forecast as JSON.

  Args:
    several: its predictions.
    config: of the run.
    rows: the study it rests on.
    target: see Target.
    now: the date, with a time zone.
  """
  tree = {
      'schema': SCHEMA, 'run_id': config_lib.run_id(config),
      'date': now.astimezone(datetime.UTC).isoformat(
          timespec='seconds'),
      'config': config_lib.identity(config),
      'times_the_compute': round(
          target.flops / float(rows.trained['flops'].max()), 3),
      # What was known: the runs and their scores.
      'runs': files.digest(sorted(
          zip(rows.trained['run_id'], rows.trained['score'].astype(float)))),
      'predictions': [one._asdict() for one in several]}
  return {**tree, 'sha256': digest(tree)}


def read(root: files.Path) -> list[dict[str, Any]]:
  """Returns the forecasts of a sweep, the oldest first."""
  folder = files.path(root) / FOLDER
  if not folder.is_dir():
    return []
  out = [files.read_json(folder / name) for name in sorted(files.names(folder))
         if name.endswith('.json')]
  return sorted(out, key=lambda tree: tree['date'])


def compared(forecasts: Iterable[Mapping[str, Any]],
             rows: study.Study) -> pd.DataFrame:
  """Returns a row a prediction of every forecast.

  Columns: run_id, date, times (as much compute), quantity, value, low, high,
  scaling, observed (NaN before the run is scored), inside, intact (whether the
  digest agrees).
  """
  known = measured(rows)
  out = []
  for tree in forecasts:
    for one in tree['predictions']:
      observed = math.nan
      if one['quantity'] in known:
        observed = float(known[one['quantity']][0].get(tree['run_id'],
                                                       math.nan))
      out.append({
          'run_id': tree['run_id'], 'date': tree['date'],
          'times': tree['times_the_compute'], **one, 'observed': observed,
          # False as long as `observed` is NaN.
          'inside': one['low'] <= observed <= one['high'],
          'intact': digest(tree) == tree['sha256']})
  return pd.DataFrame(out)


def started(workdir: files.Path) -> bool:
  """Returns whether a run has begun: a forecast of it comes too late."""
  folder = files.path(workdir)
  return (folder / 'metrics.jsonl').exists() or (
      records.state(folder) != 'new')
