"""The grid search over predictors, fold by fold, and what it reports.

Shapes: N clips (or frames) of a split, C labels, B resamples, P grid points,
F folds.
"""

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

AT_A_TIME = 4  # Fits on a CPU.
# hear-eval-kit fits one seed. So many more fits of the chosen grid point, on
# one fold after the other, show how far another seed would have come.
MORE_FITS = 3


class Problem(NamedTuple):
  """A task as a search sees it."""
  task: tasks.Task
  folds: list[folds.Fold]
  points: list[dict[str, Any]]   # of hidden_layers, initialization, lr
  schedule: dict[str, int]       # max_epochs, check_every, patience
  hidden: int
  shuffled: bool

  @property
  def watched(self) -> str:
    """What early stopping looks at: the first score, or the loss."""
    scored = self.task.metadata.get('use_scoring_for_early_stopping', True)
    return self.task.evaluation[0] if scored else 'loss'

  @property
  def sign(self) -> int:
    """-1 where less is better."""
    more = self.watched != 'loss' and scores.maximise(self.watched)
    return 1 if more else -1

  @property
  def multiclass(self) -> bool:
    """Whether a clip has exactly one label."""
    return self.task.prediction_type == 'multiclass'


class Trained(NamedTuple):
  """One trained predictor; `value` is its best validation, in its own sign."""
  fit: predictor.Fit
  value: float
  postprocessing: dict   # empty for scene tasks and where the loss is watched


def run(problem: Problem, seeds: Iterable[int]) -> dict[str, Any]:
  """Searches on the first fold, retrains the best point on the others.

  The best point has the best mean validation over `seeds`; of equals the
  earlier one.

  Returns:
    `aggregate`'s dictionary with the search and the interval added.
  """
  seeds = list(seeds)
  jobs = [(seed, point) for point in range(len(problem.points))
          for seed in seeds]
  fits = _each(lambda job: _fit(problem, job[0], 0, job[1]), jobs)
  first = dict(zip(jobs, fits))
  value_P = [np.mean([first[seed, point].value for seed in seeds])
             for point in range(len(problem.points))]
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


def _report(problem, seeds, models):
  """Returns (`aggregate` over folds and seeds, measure -> q_B)."""
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
  mean_B = {name: np.mean([r[name] for r in resampled], axis=0)
            for name in problem.task.evaluation}
  if len(seeds) == 1:
    return {k: v for k, v in repeats[0].items() if k != 'seed'}, mean_B
  return _over_seeds(repeats), mean_B


def _over_seeds(repeats):
  """Returns the means of several seeds' results, theirs in `per_seed`."""
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


def _uncertainty(problem, result, resampled, candidates, seeds, best):
  """Returns `intervals.fields` of a search.

  Seeds: of several their scores; of one, more fits of the chosen point. Grid
  points: how often each would have been chosen on other
  validation clips of the first fold, and what each scores on its test clips.
  """
  task, fold = problem.task, problem.folds[0]
  count = intervals.units(task).count
  of_points = [[_test(problem, trained, fold) for trained in of_seeds]
               for of_seeds in candidates]
  share_P = intervals.chosen_share(np.array([
      np.mean([_validations(problem, trained, fold) for trained in of_seeds],
              axis=0) for of_seeds in candidates]))
  more = _more(problem, seeds[0], best) if len(seeds) == 1 else []
  sources = {}
  for name in task.evaluation:
    if len(seeds) > 1:
      repeats = [[r['scores'][name] for r in result['per_seed']]]
      of_seeds = intervals.of_repeats(repeats, averaged=len(seeds))
    else:
      repeats = [[split['scores'][name], *(t.scores[name] for t in tests)]
                 for split, tests in zip(result['per_split'], more)]
      # Every fold has a fit of its own, with a seed of its own.
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


def _more(problem, seed, point):
  """Returns a list a fold: the Tests of MORE_FITS fits by other seeds."""
  count = len(problem.folds)
  jobs = [(i % count, seed + 1 + i // count) for i in range(MORE_FITS)]
  fits = _each(lambda job: _fit(problem, job[1], job[0], point), jobs)
  tests = [[] for _ in range(count)]
  for (fold, _), trained in zip(jobs, fits):
    tests[fold].append(_test(problem, trained, problem.folds[fold]))
  return tests


def _test(problem, trained, fold):
  """Returns the predictions.Test of one trained predictor on a fold."""
  post = trained.postprocessing
  if problem.task.embedding_type == 'event' and not post:
    # The loss was watched: the kit then allows one setting only.
    valid_NC = _predict(problem, trained, fold.valid)
    post, _ = predictions.valid_score(problem.task, valid_NC, fold.valid[0])
  return predictions.tested(problem.task, fold,
                            _predict(problem, trained, fold.test), post)


def _validations(problem, trained, fold):
  """Returns q_B, what early stopping watches on resampled validation clips,
  larger is better."""
  p_NC = _predict(problem, trained, fold.valid)
  split, name = fold.valid[0], problem.watched
  if name == 'loss':
    return -predictions.resampled_loss(p_NC, split, problem.multiclass)
  return problem.sign * predictions.resampled_score(
      problem.task, name, p_NC, split, trained.postprocessing)


# --- Fits ---


def _start(problem, seed, fold, point):
  """Returns the initial network, learning rate and dropout word of a fit."""
  sequence = np.random.SeedSequence([seed, fold, point])
  word, = sequence.generate_state(1)
  settings = problem.points[point]
  split = problem.folds[fold].train[0]
  widths = (split.z_ND.shape[1], *[problem.hidden] * settings['hidden_layers'],
            split.y_NC.shape[1])
  net = predictor.init(np.random.default_rng(sequence), widths,
                       settings['initialization'])
  return net, np.float32(settings['lr']), np.uint32(word)


def _limits(problem):
  """Returns (validations at most, epochs between, patience), as int32."""
  every = problem.schedule['check_every']
  return tuple(np.int32(n) for n in (
      problem.schedule['max_epochs'] // every, every,
      problem.schedule['patience']))


def _each(fit, jobs):
  """Returns [fit(job), ...], on CPUs several at a time.

  What one leaves of the cores, between its matrix products and in them,
  another takes. The bits are those of fits one by one.
  """
  workers = min(AT_A_TIME, len(jobs), os.cpu_count() or 1)
  if jax.default_backend() == 'cpu' and workers > 1:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      # A context, such as jax.enable_x64's, holds in its own thread alone.
      if pool.submit(_settings).result() == _settings():
        return list(pool.map(fit, jobs))
  return [fit(job) for job in jobs]


def _settings():
  """Returns jax's settings as this thread has them, as text by name."""
  return {name: repr(value) for name, value in jax.config.values.items()}


def _fit(problem, seed, fold, point):
  """Returns the Trained of one fit."""
  net, lr, word = _start(problem, seed, fold, point)
  train, valid = (problem.folds[fold][part][1] for part in (1, 2))
  if problem.watched != 'loss' and problem.task.embedding_type == 'event':
    return _fit_events(problem, net, lr, word, train, valid,
                       problem.folds[fold].valid[0])
  # Pitch accuracy is accuracy: one program serves both.
  fit = predictor.fit(
      net, lr, word, train, valid, *_limits(problem),
      monitor=problem.watched.replace('pitch_acc', 'top1_acc'),
      multiclass=problem.multiclass, shuffled=problem.shuffled)
  return Trained(fit, problem.sign * float(fit.score), {})


def _fit_events(problem, net, lr, word, train, valid, split):
  """Returns the Trained of a fit whose watched score is of events.

  As `predictor.fit`, but events are decoded and scored on the host.
  """
  checks, every, patience = _limits(problem)
  state = predictor.begin(net)
  best, wait, undefined, first = None, 0, 0, 0
  for check in range(checks):
    state, p_NC = predictor.advance(
        state, np.uint32(check * every), every, train, valid, lr, word,
        multiclass=False, shuffled=problem.shuffled)
    post, value = predictions.valid_score(
        problem.task, np.asarray(p_NC)[:, :split.y_NC.shape[1]], split)
    epoch = (check + 1) * int(every)
    if math.isnan(value):
      undefined, first = undefined + 1, first or epoch
      value = -math.inf * problem.sign
    better = best is None or problem.sign * (value - best.value) > 0
    wait = 0 if better else wait + 1
    if better:
      # Copied: the state is donated to the next stretch of training.
      net, stats = jax.tree.map(jnp.copy, state[:2])
      best = Trained(predictor.Fit(net, stats, value, epoch, 0, 0, 0), value,
                     post)
    if wait >= patience:
      break
  fit = best.fit._replace(epochs=epoch, undefined=undefined,
                          first_undefined=first)
  return best._replace(fit=fit)


def _predict(problem, trained, part):
  """Returns p_NC of a split, without padding."""
  split, padded = part
  p_NC = predictor.predict(trained.fit.net, trained.fit.stats, padded,
                           multiclass=problem.multiclass)
  return np.asarray(p_NC)[:len(split.z_ND), :split.y_NC.shape[1]]


# --- Notes ---


def _left_out(fold):
  """Returns a note where a last batch of one row had to be left out."""
  count = len(fold.train[0].z_ND)
  if count % predictor.BATCH != 1:
    return []
  return [f'{fold.name}: 1 of {count} training rows left out, a last batch of '
          'one has no variance (hear-eval-kit fails here)']


def _undefined(problem, trained):
  """Returns a note where the watched score was undefined."""
  count = int(trained.fit.undefined)
  if not count:
    return []
  every = problem.schedule['check_every']
  first = int(trained.fit.first_undefined)
  return [f'{problem.watched} undefined at {count} of '
          f'{int(trained.fit.epochs) // every} validations, first at epoch '
          f'{first}; training went on, hear-eval-kit stops there']


def _shown(problem, value):
  """Returns NaN in place of the worst possible value: never defined."""
  return math.nan if value == -math.inf * problem.sign else value
