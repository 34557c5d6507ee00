"""Scores of frozen embeddings on a HEAR task, by one of three protocols.

'hear'      hear-eval-kit 2021.1.3's predictor and search (arXiv 2203.03022)
'shuffled'  the same network and grid with shuffled batches, several seeds and
            an interval: statistically better, not comparable number by number
'logistic'  L2-regularised logistic regression, the penalty chosen on the
            validation split: fast, convex, no seed

A result always names its protocol; README.md says how the three differ.

Shapes: N clips (or frames) of a split, D width, C labels, L frames of a file.
"""

import itertools
import math
import random

import jax
import numpy as np

from audiorank.hear import folds
from audiorank.hear import linear
from audiorank.hear import predictor
from audiorank.hear import scores
from audiorank.hear import search
from audiorank.hear import summary

PROTOCOLS = ('hear', 'shuffled', 'logistic')
GRID = {'hidden_layers': [1, 2],
        'initialization': ['xavier_uniform', 'xavier_normal'],
        'lr': [3.2e-3, 1e-3, 3.2e-4, 1e-4]}
# What a task may override (evaluation_params.task_specific_param_grid), by
# the kit's names, and the one override that the kit itself carries.
SCHEDULE = {'max_epochs': 'max_epochs', 'patience': 'patience',
            'check_val_every_n_epoch': 'check_every'}
KIT_OVERRIDES = {'dcase2016_task2': {'check_val_every_n_epoch': [10]}}
KNOBS = {'grid_points': ('points', 8), 'hidden': ('hidden', 1024),
         'max_epochs': ('epochs', 500), 'check_every': ('every', 3),
         'patience': ('patience', 20)}


def evaluate(task, embeddings, grid_points=8, hidden=1024, max_epochs=500,
             check_every=3, patience=20, seed=42, protocol='hear', seeds=5,
             parallel=None):
  """Trains predictors on a task's embeddings; returns their scores.

  `embeddings` maps split -> z_ND, rows in the order of `task.files`, for a
  scene task and file -> (z_LD, ms_L) for an event task.

  The knobs make a cheaper protocol, which the result then names, for instance
  'hear-points2-hidden256-epochs100': the first `grid_points` of the 16 in the
  kit's order, `hidden` units a layer, at most `max_epochs`, a validation
  every `check_every` epochs, `patience` validations without improvement. A
  task's own evaluation_params replace check_every and patience and lower
  max_epochs. 'shuffled' uses the `seeds` seeds from `seed` on. `parallel`
  trains grid points and folds at once (default: on accelerators only).

  Returns plain Python values: score (of the test split, by the task's first
  measure, mean over folds), scores (each measure), std and stds (over folds,
  ddof 1; None without folds), per_split, valid (mean validation score), grid
  (the chosen point), searched (every point tried), protocol, settings, notes.
  'shuffled' averages all that over seeds, its std and stds are over seeds, and
  it adds per_seed, low and high (95 % t interval). What is undefined is NaN,
  never 0.

  Raises ValueError for embeddings or knobs that do not fit the task.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f'protocol is {protocol!r}, expected one of {PROTOCOLS}')
  if protocol == 'logistic':
    return logistic(task, embeddings)
  knobs = dict(grid_points=grid_points, hidden=hidden, max_epochs=max_epochs,
               check_every=check_every, patience=patience)
  for name, value in {**knobs, 'seeds': seeds}.items():
    if value < 1:
      raise ValueError(f'{name} is {value}, expected at least 1')
  points, schedule = search_space(task, knobs)
  if parallel is None:
    parallel = jax.default_backend() != 'cpu'
  shuffled = protocol == 'shuffled'
  problem = search.Problem(task, folds.load(task, embeddings), points,
                           schedule, hidden, shuffled, parallel)
  result = search.run(problem, range(seed, seed + (seeds if shuffled else 1)))
  changed = [f'-{short}{knobs[name]}' for name, (short, default)
             in KNOBS.items() if knobs[name] != default]
  result['protocol'] = protocol + ''.join(changed)
  result['settings'] = {**knobs, **schedule, 'seed': seed,
                        'seeds': seeds if shuffled else 1}
  return result


def logistic(task, embeddings, penalties=linear.PENALTIES):
  """Logistic regression on standardised embeddings; like `evaluate`.

  The penalty is chosen per fold on its validation split by the task's first
  measure, of equals the one with the smaller validation loss. `grid` has the
  penalty of each fold. Event tasks are fitted frame by frame and their
  post-processing is chosen on the validation split.
  """
  multiclass = task.prediction_type == 'multiclass'
  penalties_P = np.asarray(sorted(penalties, reverse=True), np.float32)
  per_split, chosen = [], []
  for fold in folds.load(task, embeddings):
    mean_D, basis_DD, spectrum_D = linear.standardise(fold.train[0].z_ND)
    rotate = lambda z_ND: linear.rotate(z_ND, mean_D, basis_DD)
    capacity = math.prod(fold.train[1].z_ABD.shape[:2])
    rows = predictor.rows(
        rotate(fold.train[0].z_ND), fold.train[0].y_NC, capacity)
    spectrum_D = np.pad(
        spectrum_D, (0, rows.z_ABD.shape[-1] - len(spectrum_D)))
    w_PDC, b_PC, gap_P = jax.device_get(linear.path(
        rows, spectrum_D.astype(np.float32), penalties_P,
        multiclass=multiclass))
    width, labels = fold.train[0].z_ND.shape[1], len(task.labels)
    w_PDC, b_PC = w_PDC[:, :width, :labels], b_PC[:, :labels]
    valid, test = (rotate(part[0].z_ND) for part in (fold.valid, fold.test))
    tried = []
    for p, penalty in enumerate(penalties_P.tolist()):
      p_NC = linear.probabilities(valid, w_PDC[p], b_PC[p], multiclass)
      post, value = search.valid_score(task, p_NC, fold.valid[0])
      better = value if scores.maximise(task.evaluation[0]) else -value
      better = -math.inf if math.isnan(better) else better
      tried.append(((better, -_log_loss(p_NC, fold.valid[0].y_NC, multiclass)),
                    p, penalty, post, value))
    _, p, penalty, post, value = max(tried, key=lambda entry: entry[0])
    p_NC = linear.probabilities(test, w_PDC[p], b_PC[p], multiclass)
    found = search.test_scores(task, p_NC, fold.test[0], post)
    chosen.append({'penalty': penalty})
    per_split.append({'split': fold.name, 'score': found[task.evaluation[0]],
                      'scores': found, 'valid': value, 'penalty': penalty,
                      'gap': float(gap_P[p]), 'postprocessing': post})
  return {**summary.aggregate(task, per_split), 'grid': chosen, 'searched': [
      {'penalty': penalty} for penalty in penalties_P.tolist()],
          'protocol': 'logistic', 'settings': {}}


def search_space(task, knobs):
  """(points, schedule): the kit's first grid points for this task, in order.

  The kit lists the product of its grid with names sorted (the last fastest),
  shuffles the list with random seed 42 and takes the first `grid_points`.
  Raises ValueError for an override that this predictor does not have.
  """
  space, schedule = dict(GRID), {name: knobs[name] for name in
                                 ('max_epochs', 'check_every', 'patience')}
  overrides = {
      **KIT_OVERRIDES.get(task.metadata.get('task_name'), {}),
      **task.metadata.get('evaluation_params', {}).get(
          'task_specific_param_grid', {})}
  for name, values in overrides.items():
    if name in GRID:
      space[name] = values
    elif name in SCHEDULE and len(values) == 1:
      ours, value = SCHEDULE[name], int(values[0])
      lower = ours == 'max_epochs'
      schedule[ours] = min(value, schedule[ours]) if lower else value
    else:
      raise ValueError(
          f'{task.name}: task_specific_param_grid has {name} = {values}; known '
          f'are {sorted(GRID)} and, with one value, {sorted(SCHEDULE)}')
  if schedule['max_epochs'] < schedule['check_every']:
    raise ValueError(
        f'{task.name}: max_epochs is {schedule["max_epochs"]}, expected at '
        f'least one validation, every {schedule["check_every"]} epochs')
  names = sorted(space)
  points = [dict(zip(names, values))
            for values in itertools.product(*(space[name] for name in names))]
  random.Random(42).shuffle(points)
  return points[:knobs['grid_points']], schedule


def _log_loss(p_NC, y_NC, multiclass):
  p_NC = p_NC.clip(1e-12, 1 - 1e-12)
  if multiclass:
    return -float(np.mean(np.log(p_NC[y_NC > 0])))
  return -float(np.mean(np.where(y_NC > 0, np.log(p_NC), np.log1p(-p_NC))))
