"""Scores as columns: with intervals, and beside what a run is compared with.

Of every task, and as means over scene tasks of every run:

  score, score_low, score_high, score_se   with its 95 % interval
  test_clips                    how many it was tested on
  chance                        predictions that ignore the clip
  log_mel, mfcc                 features without a network, same predictor
  untrained_score               the run's own network before training
  gain, gain_low, gain_high, gain_se       score less untrained_score, paired
                                           clip by clip

Where every layer was scored, also score_layer_<k> and, on the validation clips,
valid_layer_<k>; best_layer_score of the layer (best_layer, of a task) that the
validation clips choose.

What is not known is NaN.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.hear import intervals
from audiorank.hear import scores

FEATURES = ('log_mel', 'mfcc')

Row = dict[str, Any]
Record = Mapping[str, Any]


class Scored(NamedTuple):
  """One record of a score.

  row: of the table of tasks.  scored_as: see `scored_as`.
  """
  row: Row
  record: Record
  scored_as: tuple


def number(value: float | None) -> float:
  """Returns a number of a record; null is NaN."""
  return math.nan if value is None else value


def scored(run: Row, record: Record) -> Scored:
  """Returns a record of a score with its row.

  Args:
    run: columns of the run.
    record: of evaluate.score. Older versions have no interval.
  """
  result, metric = record['result'], record['metric']
  row = {
      **run, 'step': record['step'], 'task': record['task'], 'metric': metric,
      'score': number(result['score']), 'std': number(result.get('std')),
      'score_low': number(result.get('low')),
      'score_high': number(result.get('high')),
      'score_se': number(result.get('se')),
      'test_clips': number(result.get('clips')),
      'chance': number(result.get('chance', {}).get(metric)),
      'protocol': result['protocol'],
      'embedding_type': record['embedding_type'],
      # Filled in by add_features and add_gains.
      **dict.fromkeys((*FEATURES, 'untrained_score', 'gain', 'gain_low',
                       'gain_high', 'gain_se'), math.nan)}
  if 'best' in record:
    row['best_layer'] = str(record['best']['layer'])
    row['best_layer_score'] = number(record['best']['score'])
    for layer in record['layers']:
      row[f"score_layer_{layer['layer']}"] = number(layer['score'])
      row[f"valid_layer_{layer['layer']}"] = number(layer.get('valid'))
  return Scored(row, record, scored_as(record))


def scored_as(record: Record) -> tuple:
  """Returns what two records share that are of one task and predictor."""
  return record['task_sha256'], *sorted(record['settings'].items())


def newest(scored: Sequence[Scored]) -> list[Scored]:
  """Returns those of the newest version of scoring among them.

  Scores of two versions are not compared: the older ones count as missing.
  """
  # The first version did not write its number.
  version = lambda one: one.record.get('version', 1)
  latest = max(map(version, scored), default=1)
  return [one for one in scored if version(one) == latest]


def add_features(scored: Sequence[Scored],
                 features: Iterable[Record]) -> None:
  """Adds the scores of features to rows of the same task and settings.

  Args:
    scored: of all runs.
    features: records of kind 'features.<name>.<task>'.
  """
  score_of = {(r['kind'].split('.')[1], scored_as(r)):
              number(r['result']['score']) for r in features}
  for one in scored:
    for name in FEATURES:
      one.row[name] = score_of.get((name, one.scored_as), math.nan)


def add_gains(scored: Sequence[Scored]) -> dict[tuple, intervals.Interval]:
  """Adds the untrained baseline's score and the gain over it.

  Args:
    scored: of all runs; their rows name the baseline.

  Returns:
    (run_id, step, task) -> the interval of the gain.
  """
  of_baselines = {
      (s.row['run_id'], s.row['task']): s for s in scored
      if s.row['untrained'] and s.row['step'] == s.row['steps']}
  gains = {}
  for one in scored:
    other = of_baselines.get((one.row['baseline'], one.row['task']))
    if other is None:
      continue
    gain, interval = math.nan, intervals.UNKNOWN
    # Of other clips there is nothing to compare.
    if other.record['task_sha256'] == one.record['task_sha256']:
      gain, interval = intervals.difference(one.record['result'],
                                            other.record['result'])
    one.row.update(untrained_score=other.row['score'], gain=gain,
                   gain_low=interval.low, gain_high=interval.high,
                   gain_se=interval.se)
    gains[one.row['run_id'], one.row['step'], one.row['task']] = interval
  return gains


def means(scored: Sequence[Scored],
          gains: Mapping[tuple, intervals.Interval]) -> Row:
  """Returns a run's means over its scene tasks, scored at its last step.

  Their number is `scored_tasks`; without any, `score` is None. A mean of
  which one task lacks a part is NaN: it would be of other tasks.

  Args:
    scored: of one run.
    gains: of `add_gains`.
  """
  # Earlier scores belong to a shorter training.
  last = [s for s in scored if s.row['step'] == s.row['steps']
          and s.row['embedding_type'] == 'scene'
          and not math.isnan(s.row['score'])]
  if not last:
    return {'score': None, 'scored_tasks': 0}
  # np.mean, not nanmean: a mean over fewer tasks would be another score.
  mean = lambda name: float(np.mean([s.row[name] for s in last]))
  result = lambda s, name: number(s.record['result'].get(name))
  own = intervals.mean_interval(
      [intervals.Interval(*(result(s, name) for name in
                            intervals.Interval._fields)) for s in last],
      mean('score'), all(scores.bounded(s.row['metric']) for s in last))
  # A gain may be negative, so its interval is not cut at 0 and 1.
  gain = intervals.mean_interval(
      [gains.get((s.row['run_id'], s.row['step'], s.row['task']),
                 intervals.UNKNOWN) for s in last],
      mean('gain'), within=False)
  # Of runs that were scored at every layer.
  layers = [name for name in last[0].row
            if name == 'best_layer_score' or name.startswith(
                ('score_layer_', 'valid_layer_'))]
  by_layer = {name: mean(name) for name in layers
              if all(name in s.row for s in last)}
  return {
      **by_layer,
      'score': mean('score'), 'scored_tasks': len(last),
      'score_low': own.low, 'score_high': own.high, 'score_se': own.se,
      'test_clips': float(np.sum([s.row['test_clips'] for s in last])),
      **{name: mean(name) for name in
         ('chance', *FEATURES, 'untrained_score', 'gain')},
      'gain_low': gain.low, 'gain_high': gain.high, 'gain_se': gain.se}
