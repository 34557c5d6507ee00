"""Predictions of a split's clips: scored, and scored on resampled clips.

What every protocol does once it has a predictor's probabilities.

Shapes: N clips (or frames) of a split, C labels, B resamples, F files.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.hear import events
from audiorank.hear import folds
from audiorank.hear import intervals
from audiorank.hear import scores
from audiorank.hear import tasks


class Test(NamedTuple):
  """Predictions of one fold's test clips, scored.

  scores: every measure.  postprocessing: of events.  resampled: measure ->
  q_B.  share: clips that each resample draws, over the fold's own number.
  """
  scores: dict[str, float]
  postprocessing: dict
  resampled: Callable[[str], tuple[np.ndarray, np.ndarray]]


def tested(task: tasks.Task, fold: folds.Fold, p_NC: np.ndarray,
           postprocessing: dict) -> Test:
  """Returns the Test of predictions for a fold's test clips."""
  split = fold.test[0]
  unit_N = intervals.units(task).of[fold.name]

  def resampled(name):
    count_BN = intervals.draws(intervals.units(task).count)[:, unit_N]
    q_B = _resampled(task, name, p_NC, split, postprocessing, count_BN)
    return q_B, count_BN.sum(1) / len(unit_N)

  return Test(test_scores(task, p_NC, split, postprocessing), postprocessing,
              resampled)


def resamples(task: tasks.Task,
              tests: Sequence[Test]) -> dict[str, np.ndarray]:
  """Returns measure -> q_B, the mean over folds on every resample."""
  return {name: intervals.combine(*zip(*(t.resampled(name) for t in tests)))
          for name in task.evaluation}


def resampled_score(task: tasks.Task, name: str, p_NC: np.ndarray,
                    split: folds.Split, postprocessing: dict) -> np.ndarray:
  """Returns q_B, a measure of one split's clips (files), resampled."""
  files = len(split.frames) or len(p_NC)
  return _resampled(task, name, p_NC, split, postprocessing,
                    intervals.draws(files))


def _resampled(task, name, p_NC, split, postprocessing, count_BN):
  if task.embedding_type == 'scene':
    return scores.scene_resampled(name, p_NC, split.y_NC, count_BN)
  predicted = events.decode_files(p_NC, split.frames, task.labels,
                                  postprocessing)
  return scores.event_resampled(name, predicted, split.truth, task.labels,
                                count_BN)


def resampled_loss(p_NC: np.ndarray, split: folds.Split,
                   multiclass: bool) -> np.ndarray:
  """Returns q_B, the mean cross-entropy of one split, resampled by clip."""
  loss_N = log_loss(p_NC, split.y_NC, multiclass)
  if not split.frames:
    count_BN = intervals.draws(len(loss_N))
    return count_BN @ loss_N / count_BN.sum(1)
  # Frames are drawn with their file.
  sizes = np.array([len(ms_L) for _, ms_L in split.frames])
  total_F = np.add.reduceat(loss_N, np.r_[0, np.cumsum(sizes)[:-1]])
  count_BF = intervals.draws(len(sizes))
  return count_BF @ total_F / (count_BF @ sizes)


def log_loss(p_NC: np.ndarray, y_NC: np.ndarray,
             multiclass: bool) -> np.ndarray:
  """Returns loss_N, the cross-entropy of every row."""
  p_NC = np.asarray(p_NC, np.float64).clip(1e-12, 1 - 1e-12)
  if multiclass:
    return -np.log((p_NC * (y_NC > 0)).sum(1))
  return -np.where(y_NC > 0, np.log(p_NC), np.log1p(-p_NC)).mean(1)


def valid_score(task: tasks.Task, p_NC: np.ndarray,
                split: folds.Split) -> tuple[dict, float]:
  """Returns (post-processing, primary score) on a validation split."""
  name = task.evaluation[0]
  if task.embedding_type == 'scene':
    return {}, scores.SCENE[name](p_NC, split.y_NC)
  return events.choose(events.settings(task), lambda candidate: events.primary(
      name, events.decode_files(p_NC, split.frames, task.labels, candidate),
      split.truth, task.labels))


def test_scores(task: tasks.Task, p_NC: np.ndarray, split: folds.Split,
                postprocessing: dict) -> dict[str, float]:
  """Returns every score of the task, for predictions on a test split."""
  if task.embedding_type == 'scene':
    return scores.scene(task.evaluation, p_NC, split.y_NC)
  predicted = events.decode_files(p_NC, split.frames, task.labels,
                                  postprocessing)
  return scores.event(task.evaluation, predicted, split.truth, task.labels)


def aggregate(task: tasks.Task, per_split: list[dict]) -> dict[str, Any]:
  """Returns means and deviations over folds, undefined ones left out, noted.

  Args:
    task: that was scored.
    per_split: of every fold 'split', 'score', 'scores', 'valid' and more.
  """
  names = list(per_split[0]['scores'])
  values = {n: [split['scores'][n] for split in per_split] for n in names}
  several = len(per_split) > 1
  stds = {n: scores.std(values[n]) if several else None for n in names}
  primary = task.evaluation[0]
  notes = []
  for name in names:
    undefined = [split['split'] for split in per_split
                 if math.isnan(split['scores'][name])]
    if undefined:
      notes.append(f'{name} is undefined on {", ".join(undefined)}')
  means = {n: scores.mean(values[n]) for n in names}
  return {'score': means[primary], 'std': stds[primary], 'scores': means,
          'stds': stds, 'valid': scores.mean([s['valid'] for s in per_split]),
          'per_split': per_split, 'notes': notes}


def chance(task: tasks.Task) -> dict[str, float]:
  """Returns what predictions score that ignore the clip, by measure.

  Of scenes they are the shares of labels in the training split: the accuracy
  is that of always saying the commonest class. Of events none is predicted.
  """
  per_fold = []
  for train, _, test in tasks.folds(task):
    if task.embedding_type == 'event':
      predicted = {file: [] for file in task.files[test]}
      truth = dict(zip(task.files[test], task.targets[test]))
      values = scores.event(task.evaluation, predicted, truth, task.labels)
    else:
      y_NC = np.concatenate([task.targets[split] for split in train])
      p_NC = np.repeat(y_NC.mean(0, keepdims=True), len(task.targets[test]),
                       axis=0)
      values = scores.scene(task.evaluation, p_NC, task.targets[test])
    per_fold.append(values)
  # An F measure of no event is undefined for the kit; it is worth nothing.
  return {name: scores.mean([
      0. if name in scores.ONSET_MS else values[name] for values in per_fold])
          for name in task.evaluation}
