"""The grid search over predictors, with the scores of the best one.

Shapes: N clips (or frames) of a split, C labels, B resamples, P grid points,
F folds.
"""

from collections.abc import Callable
from collections.abc import Iterable
import concurrent.futures
import math
import os
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.hear import folds
from audiorank.hear import intervals
from audiorank.hear import predictions
from audiorank.hear import predictor
from audiorank.hear import scores
from audiorank.hear import tasks

AT_A_TIME = 4  # Fits at the same time on a CPU.
# hear-eval-kit fits one seed. So many further fits of the chosen grid point,
# each on another fold, estimate the variation between seeds.
MORE_FITS = 3


class Problem(NamedTuple):
  """The task of a search, its data and its grid."""
  task: tasks.Task
  folds: list[folds.Fold]
  points: list[dict[str, Any]]  # Of hidden_layers, initialization, lr.
  schedule: dict[str, int]  # max_epochs, check_every, patience.
  hidden: int  # Units of a hidden layer.
  shuffled: bool  # Whether batches are shuffled in every epoch.

  @property
  def watched(self) -> str:
    """The score for early stopping: the first measure, or 'loss'."""
    if self.task.metadata.get('use_scoring_for_early_stopping', True):
      return self.task.evaluation[0]
    return 'loss'

  @property
  def sign(self) -> int:
    """1 if larger values of the watched score are better, otherwise -1."""
    if self.watched != 'loss' and scores.maximise(self.watched):
      return 1
    return -1

  @property
  def multiclass(self) -> bool:
    """Whether a clip has exactly one label."""
    return self.task.prediction_type == 'multiclass'


class Trained(NamedTuple):
  """One trained predictor."""
  fit: predictor.Fit
  value: float  # Its best watched score, without the sign.
  postprocessing: dict  # Empty for scene tasks and if the loss is watched.


def run(problem: Problem, seeds: Iterable[int]) -> dict[str, Any]:
  """Searches on the first fold, and trains the best point on the others.

  The best point has the best mean validation over seeds. The first of equal
  ones is chosen.

  Args:
    problem: the task and its grid.
    seeds: of the predictors.

  Returns:
    the dictionary of `predictions.aggregate`, the search and the interval.
  """
  # Like the kit: the grid is searched on one fold, to save time.
  seeds = list(seeds)
  jobs = [(seed, point) for point in range(len(problem.points))
          for seed in seeds]
  fits = _each(lambda job: _fit(problem, job[0], 0, job[1]), jobs)
  first = dict(zip(jobs, fits))
  # Seeds are averaged before points are compared: the choice is of a setting,
  # not of a lucky seed.
  value_P = [np.mean([first[seed, point].value for seed in seeds])
             for point in range(len(problem.points))]
  # argmax takes the first of equal values.
  best = int(np.argmax(problem.sign * np.asarray(value_P)))
  later = [(seed, fold) for seed in seeds
           for fold in range(1, len(problem.folds))]
  fits = _each(lambda job: _fit(problem, job[0], job[1], best), later)
  others = dict(zip(later, fits))
  models = [[first[seed, best], *[others[seed, fold] for fold in range(
      1, len(problem.folds))]] for seed in seeds]
  result, resampled = _report(problem, seeds, models)
  result['grid'] = dict(problem.points[best])
  result['searched'] = [
      {**point, 'valid': _shown(problem, float(value))}
      for point, value in zip(problem.points, value_P)]
  result['notes'] += [
      f'grid point {point} (seed {seed}): {note}'
      for (seed, point), trained in first.items() if point != best
      for note in _undefined(problem, trained)]
  candidates = [[first[seed, point] for seed in seeds]
                for point in range(len(problem.points))]
  return {**result, **_uncertainty(problem, result, resampled, candidates,
                                   seeds, best)}


def _report(problem: Problem, seeds: list[int], models: list[list[Trained]]
            ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns (results over folds and seeds, {measure: q_B}).

  Args:
    problem: the task.
    seeds: of the predictors.
    models: for each seed the predictors of all folds.
  """
  repeats, resampled = [], []
  for seed, of_folds in zip(seeds, models):
    per_split, notes, of_seed = [], [], []
    for fold, trained in zip(problem.folds, of_folds):
      test = _test(problem, trained, fold)
      of_seed.append(test)
      per_split.append({
          'split': fold.name, 'score': test.scores[problem.task.evaluation[0]],
          'scores': test.scores, 'valid': _shown(problem, trained.value),
          'epoch': int(trained.fit.epoch), 'epochs': int(trained.fit.epochs),
          'postprocessing': test.postprocessing})
      notes += [f'{fold.name}: {n}' for n in _undefined(problem, trained)]
      notes += _left_out(fold)
    result = predictions.aggregate(problem.task, per_split)
    result['notes'] += notes
    repeats.append({'seed': seed, **result})
    resampled.append(predictions.resamples(problem.task, of_seed))
  # The reported score is the mean over seeds, so each resample is too.
  mean_B = {name: np.mean([r[name] for r in resampled], axis=0)
            for name in problem.task.evaluation}
  if len(seeds) == 1:
    del repeats[0]['seed']
    return repeats[0], mean_B
  return over_seeds(repeats), mean_B


def over_seeds(repeats: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the means of several seeds' results, which are in `per_seed`."""
  names = list(repeats[0]['scores'])
  of_split = lambda i, field: scores.mean(
      [r['per_split'][i][field] for r in repeats])
  return {
      'score': scores.mean([r['score'] for r in repeats]),
      'std': scores.std([r['score'] for r in repeats]),
      'scores': {name: scores.mean([r['scores'][name] for r in repeats])
                 for name in names},
      'stds': {name: scores.std([r['scores'][name] for r in repeats])
               for name in names},
      'valid': scores.mean([r['valid'] for r in repeats]),
      'per_split': [
          {'split': split['split'], 'valid': of_split(i, 'valid'),
           'score': of_split(i, 'score'),
           'scores': {name: scores.mean(
               [r['per_split'][i]['scores'][name] for r in repeats])
                      for name in names}}
          for i, split in enumerate(repeats[0]['per_split'])],
      'per_seed': repeats,
      'notes': sorted({n for r in repeats for n in r['notes']})}


def _uncertainty(problem: Problem, result: dict[str, Any],
                 resampled: dict[str, np.ndarray],
                 candidates: list[list[Trained]], seeds: list[int],
                 best: int) -> dict[str, Any]:
  """Returns `intervals.fields` of a search.

  Args:
    problem: the task and its grid.
    result, resampled: from `_report`.
    candidates: for each grid point the predictors of all seeds, first fold.
    seeds: of the predictors.
    best: the chosen grid point.
  """
  task, fold = problem.task, problem.folds[0]
  count = intervals.units(task).total
  # Test scores of the points that were not chosen say how much the choice
  # matters.
  of_points = [[_test(problem, trained, fold) for trained in of_seeds]
               for of_seeds in candidates]
  # How often each grid point would be chosen on other validation clips.
  share_P = intervals.chosen_share(np.array([
      np.mean([_validations(problem, trained, fold) for trained in of_seeds],
              axis=0) for of_seeds in candidates]))
  # The variation between seeds is that of their scores. With a single seed,
  # further fits of the chosen point estimate it.
  more = []
  if len(seeds) == 1:
    more = _more(problem, seeds[0], best)
  sources = {}
  for name in task.evaluation:
    if len(seeds) > 1:
      repeats = [[r['scores'][name] for r in result['per_seed']]]
      of_seeds = intervals.of_repeats(repeats, averaged=len(seeds))
    else:
      repeats = [[split['scores'][name], *(t.scores[name] for t in tests)]
                 for split, tests in zip(result['per_split'], more)]
      # Every fold has its own fit, with its own initialisation.
      of_seeds = intervals.of_repeats(repeats, averaged=len(problem.folds))
    sources[name] = {
        'clips': intervals.of_clips(resampled[name], count),
        'folds': intervals.of_folds(
            [split['scores'][name] for split in result['per_split']]),
        'seeds': of_seeds,
        'choice': intervals.of_choice(
            [scores.mean([t.scores[name] for t in of_seeds])
             for of_seeds in of_points], share_P)}
  return intervals.fields(task, result, resampled, sources,
                          predictions.chance(task))


def _more(problem: Problem, seed: int, point: int
          ) -> list[list[predictions.Test]]:
  """Returns for each fold the Tests of further fits, MORE_FITS in all.

  Args:
    problem: the task and its grid.
    seed: the fits have the following seeds.
    point: of the grid.
  """
  count = len(problem.folds)
  jobs = [(i % count, seed + 1 + i // count) for i in range(MORE_FITS)]
  fits = _each(lambda job: _fit(problem, job[1], job[0], point), jobs)
  tests: list[list[predictions.Test]] = [[] for _ in range(count)]
  for (fold, _), trained in zip(jobs, fits):
    tests[fold].append(_test(problem, trained, problem.folds[fold]))
  return tests


def _test(problem: Problem, trained: Trained,
          fold: folds.Fold) -> predictions.Test:
  """Returns the predictions.Test of one trained predictor on a fold."""
  post = trained.postprocessing
  if problem.task.embedding_type == 'event' and not post:
    # The loss was watched, so that nothing was decoded in training.
    valid_NC = _predict(problem, trained, fold.valid)
    post, _ = predictions.valid_score(problem.task, valid_NC, fold.valid[0])
  return predictions.tested(problem.task, fold,
                            _predict(problem, trained, fold.test), post)


def _validations(problem: Problem, trained: Trained,
                 fold: folds.Fold) -> np.ndarray:
  """Returns q_B, the watched score on resampled validation clips.

  Larger is better.
  """
  p_NC = _predict(problem, trained, fold.valid)
  split, name = fold.valid[0], problem.watched
  if name == 'loss':
    return -predictions.resampled_loss(p_NC, split, problem.multiclass)
  return problem.sign * predictions.resampled_score(
      problem.task, name, p_NC, split, trained.postprocessing)


# --- Fits ---


def _start(problem: Problem, seed: int, fold: int, point: int
           ) -> tuple[predictor.Net, np.float32, np.uint32]:
  """Returns the initial network, learning rate and dropout word of a fit."""
  # Every fit has its own random numbers, whatever the order of fits.
  sequence = np.random.SeedSequence([seed, fold, point])
  word, = sequence.generate_state(1)
  settings = problem.points[point]
  split = problem.folds[fold].train[0]
  widths = (split.z_ND.shape[1], *[problem.hidden] * settings['hidden_layers'],
            split.y_NC.shape[1])
  net = predictor.init(np.random.default_rng(sequence), widths,
                       settings['initialization'])
  return net, np.float32(settings['lr']), np.uint32(word)


def _limits(problem: Problem) -> tuple[np.int32, ...]:
  """Returns (most validations, epochs between them, patience)."""
  every = problem.schedule['check_every']
  return tuple(np.int32(n) for n in (
      problem.schedule['max_epochs'] // every, every,
      problem.schedule['patience']))


def _each(fit: Callable, jobs: list) -> list:
  """Returns [fit(job), ...]; on CPUs several are computed at a time."""
  # One small fit cannot keep all cores busy. The results do not depend on how
  # many run at a time.
  workers = min(AT_A_TIME, len(jobs), os.cpu_count() or 1)
  if jax.default_backend() == 'cpu' and workers > 1:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      # jax settings from a context, such as jax.enable_x64, are per thread.
      # In such a context the pool's threads would compute something else.
      if pool.submit(_settings).result() == _settings():
        return list(pool.map(fit, jobs))
  return [fit(job) for job in jobs]


def _settings() -> dict[str, str]:
  """Returns the settings of jax in this thread, as text."""
  return {name: repr(value) for name, value in jax.config.values.items()}


def _fit(problem: Problem, seed: int, fold: int, point: int) -> Trained:
  """Trains one predictor."""
  net, lr, word = _start(problem, seed, fold, point)
  data = problem.folds[fold]
  (_, train), (split, valid) = data.train, data.valid
  if problem.watched != 'loss' and problem.task.embedding_type == 'event':
    return _fit_events(problem, net, lr, word, train, valid, split)
  # Pitch accuracy is accuracy; the same program serves both.
  fit = predictor.fit(
      net, lr, word, train, valid, *_limits(problem),
      monitor=problem.watched.replace('pitch_acc', 'top1_acc'),
      multiclass=problem.multiclass, shuffled=problem.shuffled)
  return Trained(fit, problem.sign * float(fit.score), {})


def _fit_events(problem: Problem, net: predictor.Net, lr: np.float32,
                word: np.uint32, train: predictor.Rows, valid: predictor.Rows,
                split: folds.Split) -> Trained:
  """Trains one predictor for which an event score is watched.

  Like `predictor.fit`, but events are decoded and scored on the host.

  Args:
    problem: the task and its grid.
    net, lr, word: from `_start`.
    train, valid: padded data.
    split: the validation split.
  """
  checks, every, patience = _limits(problem)
  state = predictor.begin(net)
  best: Any = None
  wait = undefined = first = epoch = 0
  for check in range(checks):
    state, p_NC = predictor.advance(
        state, np.uint32(check * every), every, train, valid, lr, word,
        multiclass=False, shuffled=problem.shuffled)
    post, value = predictions.valid_score(
        problem.task, np.asarray(p_NC)[:, :split.y_NC.shape[1]], split)
    epoch = (check + 1) * int(every)
    if math.isnan(value):
      undefined, first = undefined + 1, first or epoch
      value = -math.inf * problem.sign  # Never an improvement.
    better = best is None or problem.sign * (value - best.value) > 0
    wait += 1
    if better:
      wait = 0
      # A copy, because the state is donated to the next call of `advance`.
      net, stats = jax.tree.map(jnp.copy, state[:2])
      best = Trained(predictor.Fit(net, stats, value, epoch, 0, 0, 0), value,
                     post)
    if wait >= patience:
      break
  fit = best.fit._replace(epochs=epoch, undefined=undefined,
                          first_undefined=first)
  return best._replace(fit=fit)


def _predict(problem: Problem, trained: Trained, part: tuple) -> np.ndarray:
  """Returns p_NC of a split, without padding.

  Args:
    problem: the task.
    trained: the predictor.
    part: (Split, padded rows) of a fold.
  """
  split, padded = part
  p_NC = predictor.predict(trained.fit.net, trained.fit.stats, padded,
                           multiclass=problem.multiclass)
  return np.asarray(p_NC)[:len(split.z_ND), :split.y_NC.shape[1]]


# --- Notes ---


def _left_out(fold: folds.Fold) -> list[str]:
  """Returns a note if a last batch of one row had to be left out."""
  count = len(fold.train[0].z_ND)
  if count % predictor.BATCH != 1:
    return []
  return [f'{fold.name}: 1 of {count} training rows left out, a last batch of '
          'one has no variance (hear-eval-kit fails here)']


def _undefined(problem: Problem, trained: Trained) -> list[str]:
  """Returns a note if the watched score was undefined."""
  count = int(trained.fit.undefined)
  if not count:
    return []
  every = problem.schedule['check_every']
  first = int(trained.fit.first_undefined)
  return [f'{problem.watched} undefined at {count} of '
          f'{int(trained.fit.epochs) // every} validations, first at epoch '
          f'{first}; training went on, hear-eval-kit stops there']


def _shown(problem: Problem, value: float) -> float:
  """Returns a watched score, NaN if it was never defined."""
  if value == -math.inf * problem.sign:
    return math.nan
  return value
