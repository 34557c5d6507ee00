"""Scores the predictions of a split, also on resampled clips.

All protocols use this once they have a predictor's probabilities.

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
  """The scores of predictions for one fold's test clips."""
  scores: dict[str, float]  # Every measure.
  postprocessing: dict  # Of events.
  # Measure -> (q_B, share_B): its value on every resample, and the clips that
  # the resample draws over the clips of the fold.
  resampled: Callable[[str], tuple[np.ndarray, np.ndarray]]


def tested(task: tasks.Task, fold: folds.Fold, p_NC: np.ndarray,
           postprocessing: dict) -> Test:
  """Returns the Test of predictions for a fold's test clips.

  Args:
    task: of the clips.
    fold: of the clips.
    p_NC: probabilities.
    postprocessing: arguments of events.decode.
  """
  split = fold.test[0]
  unit_N = intervals.units(task).of[fold.name]

  def resampled(name: str) -> tuple[np.ndarray, np.ndarray]:
    # Units are drawn over all folds at once; each fold looks up its clips.
    count_BN = intervals.draws(intervals.units(task).total)[:, unit_N]
    q_B = _resampled(task, name, p_NC, split, postprocessing, count_BN)
    return q_B, count_BN.sum(1) / len(unit_N)

  return Test(test_scores(task, p_NC, split, postprocessing), postprocessing,
              resampled)


def resamples(task: tasks.Task,
              tests: Sequence[Test]) -> dict[str, np.ndarray]:
  """Returns {measure: q_B, the mean over folds on every resample}."""
  return {name: intervals.combine(*zip(*(t.resampled(name) for t in tests)))
          for name in task.evaluation}


def resampled_score(task: tasks.Task, name: str, p_NC: np.ndarray,
                    split: folds.Split, postprocessing: dict) -> np.ndarray:
  """Returns q_B, a measure of one split's clips (files), resampled."""
  # Events are resampled by file, scenes by clip.
  files = len(split.frames) or len(p_NC)
  return _resampled(task, name, p_NC, split, postprocessing,
                    intervals.draws(files))


def _resampled(task: tasks.Task, name: str, p_NC: np.ndarray,
               split: folds.Split, postprocessing: dict,
               count_BN: np.ndarray) -> np.ndarray:
  """Returns q_B; count_BN is how often each clip or file is drawn."""
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
  # Frames of a file depend on each other, so whole files are drawn.
  sizes = np.array([len(ms_L) for _, ms_L in split.frames])
  # Sums over the frames of each file, which follow each other.
  total_F = np.add.reduceat(loss_N, np.r_[0, np.cumsum(sizes)[:-1]])
  count_BF = intervals.draws(len(sizes))
  return count_BF @ total_F / (count_BF @ sizes)


def log_loss(p_NC: np.ndarray, y_NC: np.ndarray,
             multiclass: bool) -> np.ndarray:
  """Returns loss_N, the cross-entropy of every row."""
  # Clipped, because one certain but wrong prediction would be infinite.
  p_NC = np.asarray(p_NC, np.float64).clip(1e-12, 1 - 1e-12)
  if multiclass:
    return -np.log((p_NC * (y_NC > 0)).sum(1))
  return -np.where(y_NC > 0, np.log(p_NC), np.log1p(-p_NC)).mean(1)


def valid_score(task: tasks.Task, p_NC: np.ndarray,
                split: folds.Split) -> tuple[dict, float]:
  """Returns (best post-processing, primary score) on a validation split."""
  name = task.evaluation[0]
  if task.embedding_type == 'scene':
    return {}, scores.SCENE[name](p_NC, split.y_NC)
  return events.choose(events.settings(task), lambda candidate: events.primary(
      name, events.decode_files(p_NC, split.frames, task.labels, candidate),
      split.truth, task.labels))


def test_scores(task: tasks.Task, p_NC: np.ndarray, split: folds.Split,
                postprocessing: dict) -> dict[str, float]:
  """Returns every measure of the task, of predictions on a test split."""
  if task.embedding_type == 'scene':
    return scores.scene(task.evaluation, p_NC, split.y_NC)
  predicted = events.decode_files(p_NC, split.frames, task.labels,
                                  postprocessing)
  return scores.event(task.evaluation, predicted, split.truth, task.labels)


def aggregate(task: tasks.Task, per_split: list[dict]) -> dict[str, Any]:
  """Returns means and standard deviations over folds.

  Folds on which a measure is undefined are left out, with a note.

  Args:
    task: that was scored.
    per_split: for every fold 'split', 'score', 'scores', 'valid' and more.
  """
  names = list(per_split[0]['scores'])
  values = {n: [split['scores'][n] for split in per_split] for n in names}
  stds: dict[str, float | None] = dict.fromkeys(names)
  if len(per_split) > 1:
    stds = {n: scores.std(values[n]) for n in names}
  primary = task.evaluation[0]
  notes = []
  for name in names:
    undefined = [split['split'] for split in per_split
                 if math.isnan(split['scores'][name])]
    # A mean over fewer folds must say so.
    if undefined:
      notes.append(f'{name} is undefined on {", ".join(undefined)}')
  means = {n: scores.mean(values[n]) for n in names}
  return {'score': means[primary], 'std': stds[primary], 'scores': means,
          'stds': stds, 'valid': scores.mean([s['valid'] for s in per_split]),
          'per_split': per_split, 'notes': notes}


def chance(task: tasks.Task) -> dict[str, float]:
  """Returns the scores of predictions that ignore the clip, by measure.

  For scenes these are the frequencies of labels in the training split, so the
  accuracy is that of the most frequent class. For events none is predicted.
  """
  per_fold = []
  for train, _, test in tasks.folds(task):
    if task.embedding_type == 'event':
      predicted: scores.Events = {file: [] for file in task.files[test]}
      truth = dict(zip(task.files[test], task.targets[test]))
      values = scores.event(task.evaluation, predicted, truth, task.labels)
    else:
      y_NC = np.concatenate([task.targets[split] for split in train])
      p_NC = np.repeat(y_NC.mean(0, keepdims=True), len(task.targets[test]),
                       axis=0)
      values = scores.scene(task.evaluation, p_NC, task.targets[test])
    per_fold.append(values)
  out = {name: scores.mean([values[name] for values in per_fold])
         for name in task.evaluation}
  # The kit has no F measure without predicted events; as a baseline it is 0.
  return {**out, **dict.fromkeys(out.keys() & scores.ONSET_MS, 0.)}
