"""Scores frozen embeddings on a HEAR task, by one of several protocols.

'hear'      the predictor and the search of hear-eval-kit 2021.1.3
            (arXiv 2203.03022)
'shuffled'  the same network and grid with shuffled batches and several seeds:
            statistically better, but not comparable with the kit
'logistic'  L2-regularised logistic regression, the penalty chosen on the
            validation split: fast, convex, no seed
others      of X-ARES, MTEB and SUPERB, for scene tasks: see protocols.py

A result contains the name of its protocol. README.md describes the differences,
and intervals.py the interval of a score.

Shapes: N clips (or frames) of a split, D width, C labels, L frames of a file,
P penalties, B resamples.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import random
from typing import Any

import numpy as np

from audiorank.hear import folds
from audiorank.hear import intervals
from audiorank.hear import linear
from audiorank.hear import predictions
from audiorank.hear import protocols
from audiorank.hear import scores
from audiorank.hear import search
from audiorank.hear import tasks

PROTOCOLS = ('hear', 'shuffled', 'logistic', 'knn', 'xares_knn', 'xares',
             'fewshot', 'weighted')
# To be raised when the same embeddings would get another score or interval.
VERSION = 2
# The kit's grid of predictors.
GRID: dict[str, list] = {
    'hidden_layers': [1, 2],
    'initialization': ['xavier_uniform', 'xavier_normal'],
    'lr': [3.2e-3, 1e-3, 3.2e-4, 1e-4]}
# Settings that a task may override (evaluation_params.task_specific_param_grid)
# by the kit's names, and the only override that the kit itself contains.
SCHEDULE = {'max_epochs': 'max_epochs', 'patience': 'patience',
            'check_val_every_n_epoch': 'check_every'}
KIT_OVERRIDES = {'dcase2016_task2': {'check_val_every_n_epoch': [10]}}
# Argument -> its short name in a protocol, and the kit's value.
KNOBS = {'grid_points': ('points', 8), 'hidden': ('hidden', 1024),
         'max_epochs': ('epochs', 500), 'check_every': ('every', 3),
         'patience': ('patience', 20)}
# Name -> (task, embeddings, seeds, shots) -> result, of protocols.py.
OTHERS: dict[str, Callable[..., dict[str, Any]]] = {
    'knn': lambda task, z, *_: protocols.knn(task, z),
    'xares_knn': lambda task, z, *_: protocols.knn(task, z, columns=True),
    'xares': lambda task, z, seeds, _: protocols.xares(task, z, seeds),
    'weighted': lambda task, z, seeds, _: protocols.weighted(task, z, seeds),
    'fewshot': lambda task, z, _, shots: protocols.fewshot(task, z, shots)}
# {split: z_ND} of a scene task, {file: (z_LD, ms_L)} of an event task.
Embeddings = Mapping[str, Any]


def evaluate(task: tasks.Task, embeddings: Embeddings, grid_points: int = 8,
             hidden: int = 1024, max_epochs: int = 500, check_every: int = 3,
             patience: int = 20, seed: int = 42, protocol: str = 'hear',
             seeds: int = 5, shots: Sequence[int] = protocols.SHOTS
             ) -> dict[str, Any]:
  """Trains predictors on a task's embeddings; returns their scores.

  Other numbers than the defaults make a cheaper protocol, which gets a name of
  its own, for example 'hear-points2-hidden256-epochs100'. A task's own
  evaluation_params replace check_every and patience and lower max_epochs.

  Args:
    task: from `tasks.load`.
    embeddings: of a scene task {split: z_ND}, rows in the order of
      `task.files`; of an event task {file: (z_LD, ms_L)}. 'weighted' takes
      {layer: these}.
    grid_points: number of points to try, of the 16 in the kit's order.
    hidden: units of a hidden layer.
    max_epochs: at most.
    check_every: epochs between validations.
    patience: validations without improvement after which a fit stops.
    seed: the first one.
    protocol: one of PROTOCOLS.
    seeds: number of seeds of 'shuffled', 'xares' and 'weighted'.
    shots: labels of each class of 'fewshot', see protocols.fewshot.

  Returns:
    plain Python values: score (of the test split, by the task's first
    measure, mean over folds), its interval and more (`intervals.fields`),
    scores (each measure), std and stds (over folds, ddof 1; None without
    folds), per_split, valid (mean validation score), grid (the chosen point),
    searched (all points), protocol, settings, notes. 'shuffled' averages these
    over seeds, its std and stds are over seeds, and it adds per_seed.
    Undefined values are NaN, never 0.

  Raises:
    ValueError: embeddings or settings that do not fit the task.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f'protocol is {protocol!r}, expected one of {PROTOCOLS}')
  if protocol == 'logistic':
    return logistic(task, embeddings)
  if protocol not in ('hear', 'shuffled'):
    protocols.check(task, protocol)
    return OTHERS[protocol](task, embeddings, seeds, shots)
  knobs = dict(grid_points=grid_points, hidden=hidden, max_epochs=max_epochs,
               check_every=check_every, patience=patience)
  for name, value in {**knobs, 'seeds': seeds}.items():
    if value < 1:
      raise ValueError(f'{name} is {value}, expected at least 1')
  points, schedule = search_space(task, knobs)
  shuffled = protocol == 'shuffled'
  count = 1
  if shuffled:
    count = seeds
  problem = search.Problem(task, folds.load(task, embeddings), points,
                           schedule, hidden, shuffled)
  result = search.run(problem, range(seed, seed + count))
  # Every departure from the kit's numbers is in the protocol's name, so that
  # scores of different protocols are not compared by mistake.
  changed = [f'-{short}{knobs[name]}' for name, (short, default)
             in KNOBS.items() if knobs[name] != default]
  result['protocol'] = protocol + ''.join(changed)
  result['settings'] = {**knobs, **schedule, 'seed': seed, 'seeds': count}
  return result


def logistic(task: tasks.Task, embeddings: Embeddings,
             penalties: Sequence[float] = linear.PENALTIES) -> dict[str, Any]:
  """Logistic regression on standardised embeddings; returns as `evaluate`.

  Predictions are averaged over penalties. The weight of a penalty is how often
  it is the best on resampled validation clips, by the task's first measure and
  then by the loss. `grid` has these weights by fold. Event tasks are fitted
  frame by frame, and their post-processing is chosen on the validation split.

  Args:
    task, embeddings: as for `evaluate`.
    penalties: to try.

  Raises:
    ValueError: embeddings that do not fit the task.
  """
  # Why the average: a single choice on some hundred validation clips can jump
  # to another penalty if the embeddings change only a little.
  penalties_P = np.asarray(sorted(penalties, reverse=True), np.float32)
  per_split: list[dict[str, Any]] = []
  shares, tests, choices = [], [], []
  for fold in folds.load(task, embeddings):
    model = _path(task, fold, penalties_P)
    share_P, posts = _weigh(task, fold, model)
    # Probabilities are averaged, not weights: these are linear in no common
    # basis.
    average = lambda p_PNC, share_P=share_P: np.tensordot(share_P, p_PNC, 1)
    valid_NC, test_NC = average(model.valid_PNC), average(model.test_PNC)
    post, value = predictions.valid_score(task, valid_NC, fold.valid[0])
    tests.append(predictions.tested(task, fold, test_NC, post))
    # Penalties that are never the best need no test scores.
    used_P = np.flatnonzero(share_P)
    choices.append((share_P[used_P], [
        predictions.test_scores(task, model.test_PNC[p], fold.test[0],
                                posts[p]) for p in used_P]))
    shares.append({f'{penalties_P[p]:g}': float(share_P[p]) for p in used_P})
    per_split.append({
        'split': fold.name, 'score': tests[-1].scores[task.evaluation[0]],
        'scores': tests[-1].scores, 'valid': value, 'penalties': shares[-1],
        'gap': float(model.gap_P[used_P].max()), 'postprocessing': post})
  result = predictions.aggregate(task, per_split)
  resampled = predictions.resamples(task, tests)
  count = intervals.units(task).total
  sources: dict[str, dict] = {name: {
      'clips': intervals.of_clips(resampled[name], count),
      'folds': intervals.of_folds([s['scores'][name] for s in per_split]),
      'choice': _choice(choices, name)} for name in task.evaluation}
  return {**result, **intervals.fields(task, result, resampled, sources,
                                       predictions.chance(task)),
          'grid': shares, 'protocol': 'logistic', 'settings': {},
          'searched': [{'penalty': p} for p in penalties_P.tolist()]}


def _path(task: tasks.Task, fold: folds.Fold,
          penalties_P: np.ndarray) -> linear.Path:
  """Returns a fold's predictions by every penalty."""
  train = fold.train[0]
  return linear.predictions(
      train.z_ND, train.y_NC, fold.valid[0].z_ND, fold.test[0].z_ND,
      penalties_P, task.prediction_type == 'multiclass',
      capacity=math.prod(fold.train[1].z_ABD.shape[:2]))


def _weigh(task: tasks.Task, fold: folds.Fold, model: linear.Path
           ) -> tuple[np.ndarray, list[dict]]:
  """Returns share_P and the post-processing of each penalty.

  Both are chosen on the validation clips.
  """
  split, name = fold.valid[0], task.evaluation[0]
  multiclass = task.prediction_type == 'multiclass'
  sign = 1
  if not scores.maximise(name):
    sign = -1
  q_PB, posts = [], []
  for p_NC in model.valid_PNC:
    post, _ = predictions.valid_score(task, p_NC, split)
    q_B = predictions.resampled_score(task, name, p_NC, split, post)
    loss_B = predictions.resampled_loss(p_NC, split, multiclass)
    # Scores differ by more than this if at all, so the loss decides only
    # between equal ones.
    q_PB.append(sign * q_B - 1e-9 * loss_B)
    posts.append(post)
  return intervals.chosen_share(np.stack(q_PB)), posts


def _choice(choices: Sequence[tuple], name: str) -> intervals.Source:
  """Returns the Source of choosing penalties, over all folds.

  Args:
    choices: for each fold (share_P, scores of each penalty).
    name: of the measure.
  """
  of_folds = [intervals.of_choice([s[name] for s in by_penalty], share_P)
              for share_P, by_penalty in choices]
  # The score is a mean over folds: the variance of a sum over F^2.
  whole = intervals.added(of_folds)
  return intervals.Source(
      intervals.AVERAGED * whole.variance / len(of_folds) ** 2, whole.free)


def search_space(task: tasks.Task, knobs: Mapping[str, int]
                 ) -> tuple[list[dict[str, Any]], dict[str, int]]:
  """Returns (points, schedule): the kit's first grid points for a task.

  Args:
    task: may override the grid and the schedule.
    knobs: the arguments of `evaluate` in KNOBS.

  Raises:
    ValueError: an override that this predictor does not have.
  """
  space, schedule = dict(GRID), {name: knobs[name] for name in
                                 ('max_epochs', 'check_every', 'patience')}
  overrides = {
      **KIT_OVERRIDES.get(str(task.metadata.get('task_name')), {}),
      **task.metadata.get('evaluation_params', {}).get(
          'task_specific_param_grid', {})}
  for name, values in overrides.items():
    if name in GRID:
      space[name] = values
    elif name == 'max_epochs' and len(values) == 1:
      # A task may ask for fewer epochs; a cheap protocol stays cheap.
      schedule[name] = min(int(values[0]), schedule[name])
    elif name in SCHEDULE and len(values) == 1:
      schedule[SCHEDULE[name]] = int(values[0])
    else:
      raise ValueError(
          f'{task.name}: task_specific_param_grid has {name} = {values}; known '
          f'are {sorted(GRID)} and, with one value, {sorted(SCHEDULE)}')
  if schedule['max_epochs'] < schedule['check_every']:
    raise ValueError(
        f'{task.name}: max_epochs is {schedule["max_epochs"]}, expected at '
        f'least one validation, every {schedule["check_every"]} epochs')
  # The kit's order: the product with names sorted, shuffled with seed 42.
  names = sorted(space)
  points = [dict(zip(names, values))
            for values in itertools.product(*(space[name] for name in names))]
  random.Random(42).shuffle(points)
  return points[:knobs['grid_points']], schedule
