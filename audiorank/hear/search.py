"""The grid search over predictors, fold by fold, and what it reports.

Shapes: N clips (or frames) of a split, C labels.
"""

import concurrent.futures
import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiorank.hear import events
from audiorank.hear import network
from audiorank.hear import predictor
from audiorank.hear import scores
from audiorank.hear import summary
from audiorank.hear import tasks

AT_A_TIME = 4  # Fits on a CPU.


class Problem(NamedTuple):
  """A task as a search sees it."""
  task: tasks.Task
  folds: list      # of folds.Fold
  points: list     # dictionaries of hidden_layers, initialization, lr
  schedule: dict   # max_epochs, check_every, patience
  hidden: int
  shuffled: bool
  parallel: bool

  @property
  def watched(self):
    """What early stopping looks at: the first score, or the loss."""
    scored = self.task.metadata.get('use_scoring_for_early_stopping', True)
    return self.task.evaluation[0] if scored else 'loss'

  @property
  def sign(self):
    """-1 where less is better."""
    more = self.watched != 'loss' and scores.maximise(self.watched)
    return 1 if more else -1

  @property
  def multiclass(self):
    return self.task.prediction_type == 'multiclass'


class Trained(NamedTuple):
  """One trained predictor; `value` is its best validation, in its own sign."""
  fit: predictor.Fit
  value: float
  postprocessing: dict   # empty for scene tasks and where the loss is watched


def run(problem, seeds):
  """Searches on the first fold, retrains the best point on the others.

  The best point has the best mean validation over `seeds`; of equals the
  earlier one. Returns `aggregate`'s dictionary with the search added.
  """
  seeds = list(seeds)
  jobs = [(seed, point) for point in range(len(problem.points))
          for seed in seeds]
  first = dict(zip(jobs, _fit_points(problem, jobs)))
  value_P = [np.mean([first[seed, point].value for seed in seeds])
             for point in range(len(problem.points))]
  best = int(np.argmax(problem.sign * np.asarray(value_P)))
  per_seed = [[first[seed, best], *_fit_folds(problem, seed, best)]
              for seed in seeds]
  out = _report(problem, seeds, per_seed)
  out['grid'] = dict(problem.points[best])
  out['searched'] = [
      {**point, 'valid': _shown(problem, float(value))}
      for point, value in zip(problem.points, value_P)]
  out['notes'] += [
      f'grid point {point} (seed {seed}): {note}'
      for (seed, point), trained in first.items() if point != best
      for note in _undefined(problem, trained)]
  return out


def _report(problem, seeds, per_seed):
  """`aggregate` over the folds, averaged over seeds where there are several."""
  task, runs = problem.task, []
  for seed, models in zip(seeds, per_seed):
    per_split, notes = [], []
    for fold, trained in zip(problem.folds, models):
      p_NC = _predict(problem, trained, fold.test)
      post = trained.postprocessing
      if task.embedding_type == 'event' and not post:
        # The loss was watched: the kit then allows one setting only.
        valid_NC = _predict(problem, trained, fold.valid)
        post, _ = valid_score(task, valid_NC, fold.valid[0])
      found = test_scores(task, p_NC, fold.test[0], post)
      per_split.append({
          'split': fold.name, 'score': found[task.evaluation[0]],
          'scores': found, 'valid': _shown(problem, trained.value),
          'epoch': int(trained.fit.epoch), 'epochs': int(trained.fit.epochs),
          'postprocessing': post})
      notes += [f'{fold.name}: {n}' for n in _undefined(problem, trained)]
      rows = len(fold.train[0].z_ND)
      if rows % predictor.BATCH == 1:
        notes.append(f'{fold.name}: 1 of {rows} training rows left out, a last '
                     'batch of one has no variance (hear-eval-kit fails here)')
    result = summary.aggregate(task, per_split)
    result['notes'] += notes
    runs.append({'seed': seed, **result})
  if not problem.shuffled:
    return {k: v for k, v in runs[0].items() if k != 'seed'}
  score_R = np.asarray([r['score'] for r in runs])
  mean, low, high = summary.interval(score_R)
  return {
      'score': mean, 'low': low, 'high': high, 'std': summary.std(score_R),
      'scores': {name: summary.mean([r['scores'][name] for r in runs])
                 for name in runs[0]['scores']},
      'stds': {name: summary.std([r['scores'][name] for r in runs])
               for name in runs[0]['scores']},
      'valid': summary.mean([r['valid'] for r in runs]),
      'per_split': [{
          'split': fold.name, 'valid': summary.mean([r['per_split'][i]['valid']
                                              for r in runs]),
          'score': summary.mean([r['per_split'][i]['score'] for r in runs])}
                    for i, fold in enumerate(problem.folds)],
      'per_seed': runs, 'notes': sorted({n for r in runs for n in r['notes']})}


def valid_score(task, p_NC, split):
  """(post-processing, primary score) of predictions on a validation split."""
  name = task.evaluation[0]
  if task.embedding_type == 'scene':
    return {}, scores.SCENE[name](p_NC, split.y_NC)
  return events.choose(events.settings(task), lambda candidate: events.primary(
      name, events.decode_files(p_NC, split.frames, task.labels, candidate),
      split.truth, task.labels))


def test_scores(task, p_NC, split, postprocessing):
  """Every score of the task, for predictions on a test split."""
  if task.embedding_type == 'scene':
    return scores.scene(task.evaluation, p_NC, split.y_NC)
  found = events.decode_files(p_NC, split.frames, task.labels, postprocessing)
  return scores.event(task.evaluation, found, split.truth, task.labels)


def _start(problem, seed, fold, point):
  """Initial network, learning rate and dropout word of one fit."""
  sequence = np.random.SeedSequence([seed, fold, point])
  word, = sequence.generate_state(1)
  settings = problem.points[point]
  split = problem.folds[fold].train[0]
  widths = (split.z_ND.shape[1], *[problem.hidden] * settings['hidden_layers'],
            split.y_NC.shape[1])
  net = network.init(np.random.default_rng(sequence), widths,
                       settings['initialization'])
  return net, np.float32(settings['lr']), np.uint32(word)


def _limits(problem):
  """(validations at most, epochs between, patience), as int32."""
  every = problem.schedule['check_every']
  return tuple(np.int32(n) for n in (
      problem.schedule['max_epochs'] // every, every,
      problem.schedule['patience']))


def _static(problem):
  # Pitch accuracy is accuracy: one program serves both.
  monitor = problem.watched.replace('pitch_acc', 'top1_acc')
  return dict(monitor=monitor, multiclass=problem.multiclass,
              shuffled=problem.shuffled)


def _in_graph(problem):
  return problem.watched == 'loss' or problem.task.embedding_type == 'scene'


def _fit_points(problem, jobs):
  """A `Trained` per (seed, point) of `jobs`, on the first fold."""
  if not (problem.parallel and _in_graph(problem)):
    return _each(lambda job: _fit(problem, job[0], 0, job[1]), jobs)
  out, fold = {}, problem.folds[0]
  depths = {job: problem.points[job[1]]['hidden_layers'] for job in jobs}
  for depth in sorted(set(depths.values())):
    group = [job for job in jobs if depths[job] == depth]
    starts = _stack([_start(problem, seed, 0, point) for seed, point in group])
    fits = predictor.fit_points(*starts, fold.train[1], fold.valid[1],
                                *_limits(problem), **_static(problem))
    out.update(zip(group, _unstack(problem, fits, len(group))))
  return [out[job] for job in jobs]


def _fit_folds(problem, seed, point):
  """A `Trained` per fold after the first."""
  later = range(1, len(problem.folds))
  if not later:
    return []
  if not (problem.parallel and _in_graph(problem)):
    return _each(lambda fold: _fit(problem, seed, fold, point), later)
  nets, lrs, words = _stack([_start(problem, seed, f, point) for f in later])
  train, valid = (_stack([problem.folds[f][part][1] for f in later])
                  for part in (1, 2))
  fits = predictor.fit_folds(nets, lrs[0], words, train, valid,
                             *_limits(problem), **_static(problem))
  return _unstack(problem, fits, len(later))


def _each(fit, jobs):
  """Returns [fit(job), ...], on CPUs several at a time: what one leaves of the
  cores, between its matrix products and in them, another takes. The bits are
  those of fits one by one."""
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


def _stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _unstack(problem, fits, count):
  fits = jax.device_get(fits)
  return [_trained(problem, jax.tree.map(lambda leaf: leaf[i], fits))
          for i in range(count)]


def _trained(problem, fit):
  return Trained(fit, problem.sign * float(fit.score), {})


def _fit(problem, seed, fold, point):
  net, lr, word = _start(problem, seed, fold, point)
  train, valid = (problem.folds[fold][part][1] for part in (1, 2))
  if _in_graph(problem):
    return _trained(problem, predictor.fit(
        net, lr, word, train, valid, *_limits(problem), **_static(problem)))
  return _fit_events(problem, net, lr, word, train, valid,
                     problem.folds[fold].valid[0])


def _fit_events(problem, net, lr, word, train, valid, split):
  """`predictor.fit` where the watched score is of events, on the host."""
  checks, every, patience = _limits(problem)
  state = predictor.begin(net)
  best, wait, undefined, first = None, 0, 0, 0
  for check in range(checks):
    state, p_NC = predictor.advance(
        state, np.uint32(check * every), every, train, valid, lr, word,
        multiclass=False, shuffled=problem.shuffled)
    post, value = valid_score(
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
  split, rows = part
  p_NC = predictor.predict(trained.fit.net, trained.fit.stats, rows,
                           multiclass=problem.multiclass)
  return np.asarray(p_NC)[:len(split.z_ND), :split.y_NC.shape[1]]


def _undefined(problem, trained):
  count = int(trained.fit.undefined)
  if not count:
    return []
  every = problem.schedule['check_every']
  first = int(trained.fit.first_undefined)
  return [f'{problem.watched} undefined at {count} of '
          f'{int(trained.fit.epochs) // every} validations, first at epoch '
          f'{first}; training went on, hear-eval-kit stops there']


def _shown(problem, value):
  """The worst possible value stands for one that was never defined."""
  return math.nan if value == -math.inf * problem.sign else value
