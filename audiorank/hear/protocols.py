"""Protocols of other benchmarks for scene tasks: kNN, X-ARES, few-shot.

'knn'        k nearest neighbours by cosine, weights softmax(cosine / .07),
             k = 10: Dasheng's README and X-ARES (Zhang et al., Interspeech
             2025) describe it
'xares_knn'  the same as xares 0.1.3 computes it: its training embeddings are
             divided by the length of each column, not of each row
'xares'      X-ARES' linear protocol: LayerNorm and a linear layer, Adam, 10
             epochs of batches of 32
'fewshot'    logistic regression on a few labels of each class, 10 draws: MTEB's
             classification protocol, which MAEB uses with 8
'weighted'   'xares' on a learned mean of all layers, as in SUPERB

README.md says where each follows its owner and where it cannot.

Shapes: N clips, D width, C labels, K layers, B batch, A batches, E epochs,
J neighbours, S seeds.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize
from scipy import special

from audiorank.hear import folds
from audiorank.hear import intervals
from audiorank.hear import predictions
from audiorank.hear import scores
from audiorank.hear import search
from audiorank.hear import tasks

NEIGHBOURS, TEMPERATURE = 10, .07
SEEDS = 5  # Of 'xares' and 'weighted'; xares itself runs one.
DRAWS = 10  # Of 'fewshot', as in MTEB.
SHOTS = (8,)  # Labels of each class, as in MAEB.
EPOCHS, BATCH, RATE, DECAY = 10, 32, 1e-3, .1  # Of xares.task.TaskConfig.
BLOCK = 1024  # Test clips whose cosines are in memory at once.
MTEB_SEED = 42
# sklearn's LogisticRegression(max_iter=100), as MTEB calls it.
ITERATIONS, TOLERANCE, PENALTY = 100, 1e-4, 1.

# (Fold, seed) -> (p_NC of the test clips, validation score, notes).
Predict = Callable[[folds.Fold, int], tuple[np.ndarray, float, list[str]]]


def check(task: tasks.Task, protocol: str) -> None:
  """Raises ValueError for a task that a protocol of this module lacks."""
  if task.embedding_type != 'scene':
    raise ValueError(f'{task.name}: protocol {protocol!r} is for scene tasks, '
                     "not for events: use 'hear' or 'logistic'")
  if protocol == 'fewshot' and task.prediction_type != 'multiclass':
    raise ValueError(f"{task.name}: protocol 'fewshot' needs one label a clip, "
                     f'found {task.prediction_type}')


# --- k nearest neighbours ---


def knn(task: tasks.Task, embeddings: Mapping[str, Any],
        columns: bool = False) -> dict[str, Any]:
  """Scores the k nearest neighbours; returns as `probe.evaluate`.

  Of folds the neighbours are all the other folds' clips.

  Args:
    task, embeddings: as for `probe.evaluate`, of a scene task.
    columns: divide the training embeddings by the length of each column, as
      xares 0.1.3 does, instead of each row.
  """
  def predict(fold: folds.Fold, _: int) -> tuple[np.ndarray, float, list[str]]:
    train, valid, test = fold.train[0], fold.valid[0], fold.test[0]
    near = functools.partial(neighbours, columns=columns)
    # Validation clips may not be their own neighbours; test clips have those as
    # neighbours too in a task with folds.
    valid_NC = near(train.z_ND, train.y_NC, valid.z_ND)
    z_ND, y_NC = everything(task, fold)
    return (near(z_ND, y_NC, test.z_ND),
            predictions.valid_score(task, valid_NC, valid)[1], [])

  name = 'knn'
  if columns:
    name = 'xares_knn'
  return _scored(task, embeddings, predict, [0], name, {
      'neighbours': NEIGHBOURS, 'temperature': TEMPERATURE})


def everything(task: tasks.Task,
               fold: folds.Fold) -> tuple[np.ndarray, np.ndarray]:
  """Returns (z_ND, y_NC) that X-ARES trains on.

  Of folds that is all but the test fold, of splits the training split.
  """
  train, valid = fold.train[0], fold.valid[0]
  if not task.kfold:
    return train.z_ND, train.y_NC
  return (np.concatenate([train.z_ND, valid.z_ND]),
          np.concatenate([train.y_NC, valid.y_NC]))


def neighbours(train_ND: np.ndarray, y_NC: np.ndarray, test_ND: np.ndarray,
               columns: bool = False) -> np.ndarray:
  """Returns p_NC of test clips, the weighted labels of their neighbours.

  Args:
    train_ND, y_NC: embeddings and labels.
    test_ND: embeddings to predict.
    columns: see `knn`.
  """
  # Zero vectors stay zero, as in torch.nn.functional.normalize.
  unit = lambda z, axis: z / np.linalg.norm(
      z, axis=axis, keepdims=True).clip(1e-12)
  known_ND = unit(np.asarray(train_ND, np.float32), 1 - columns)
  # Toy tasks have fewer than ten training clips.
  J = min(NEIGHBOURS, len(known_ND))
  out_NC = np.zeros((len(test_ND), y_NC.shape[1]))
  for start in range(0, len(test_ND), BLOCK):
    z_BD = unit(np.asarray(test_ND[start:start + BLOCK], np.float32), 1)
    cosine_BN = z_BD @ known_ND.T
    near_BJ = np.argpartition(-cosine_BN, J - 1, axis=1)[:, :J]
    # The order among the J does not matter: their labels are summed.
    cosine_BJ = np.take_along_axis(cosine_BN, near_BJ, 1).astype(np.float64)
    weight_BJ = special.softmax(cosine_BJ / TEMPERATURE, axis=1)
    out_NC[start:start + BLOCK] = np.einsum(
        'bj,bjc->bc', weight_BJ, y_NC[near_BJ])
  return out_NC


# --- Few labels ---


def fewshot(task: tasks.Task, embeddings: Mapping[str, Any],
            shots: Sequence[int] = SHOTS, draws: int = DRAWS
            ) -> dict[str, Any]:
  """Logistic regression on a few labels of each class; as `probe.evaluate`.

  Args:
    task, embeddings: as for `probe.evaluate`, of a multiclass scene task.
    shots: labels of each class. The result is that of the first number, and
      `curve` has shots, score, low, high and std of each.
    draws: of the labels; the scores are means over them, std over them.

  Raises:
    ValueError: no numbers of labels, or one below 1.
  """
  if not shots or min(shots) < 1:
    raise ValueError(f'shots is {list(shots)}, expected numbers from 1')
  results = []
  for count in shots:
    def predict(fold: folds.Fold, draw: int, count: int = count
                ) -> tuple[np.ndarray, float, list[str]]:
      train, valid = fold.train[0], fold.valid[0]
      rows = drawn(train.y_NC.argmax(1), count, draw)
      model = regression(train.z_ND[rows], train.y_NC[rows])
      notes = []
      if len(rows) < count * train.y_NC.shape[1]:
        notes = [f'{fold.name}: {len(rows)} labels, some class has fewer than '
                 f'{count}']
      return (model(fold.test[0].z_ND),
              predictions.valid_score(task, model(valid.z_ND), valid)[1], notes)

    results.append(_scored(task, embeddings, predict, range(draws),
                           f'fewshot{count}', {'draws': draws}))
  curve = [{'shots': count, **{name: result[name] for name in
                               ('score', 'low', 'high', 'std')}}
           for count, result in zip(shots, results)]
  return {**results[0], 'curve': curve}


def drawn(label_N: np.ndarray, count: int, draw: int) -> list[int]:
  """Returns the rows of a draw, at most `count` of each label.

  The same rows as MTEB 2.26 draws in its experiment number `draw`.
  """
  order = np.arange(len(label_N))
  # MTEB shuffles what it shuffled before, by the same generator.
  for _ in range(draw + 1):
    np.random.RandomState(MTEB_SEED).shuffle(order)
  number: dict[int, int] = {}
  rows = []
  for i in order.tolist():
    label = int(label_N[i])
    if number.get(label, 0) < count:
      rows.append(i)
      number[label] = number.get(label, 0) + 1
  return rows


def regression(z_ND: np.ndarray, y_NC: np.ndarray
               ) -> Callable[[np.ndarray], np.ndarray]:
  """Returns z_ND -> p_NC, sklearn's LogisticRegression(max_iter=100).

  Classes without a row get probability 0; two classes share one weight vector,
  as in sklearn.
  """
  present_C = np.flatnonzero(y_NC.sum(0))
  # E = D + 1: the intercept is the weight of a column of ones.
  x_NE = np.column_stack([np.asarray(z_ND, np.float64), np.ones(len(z_ND))])
  y_NC, width = y_NC[:, present_C].astype(float), y_NC.shape[1]
  N, C = y_NC.shape
  binary = C == 2
  vectors = C
  if binary:
    vectors = 1

  def logits(w: np.ndarray, x_NE: np.ndarray) -> np.ndarray:
    out_NV = x_NE @ w.reshape(vectors, -1).T
    if binary:  # Of a softmax with the same probabilities.
      return np.concatenate([np.zeros_like(out_NV), out_NV], axis=1)
    return out_NV

  def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
    logits_NC = logits(w, x_NE)
    log_NC = logits_NC - special.logsumexp(logits_NC, axis=1, keepdims=True)
    w_VE = w.reshape(vectors, -1).copy()
    w_VE[:, -1] = 0  # The intercept is not penalised.
    # Of two classes only the second has weights.
    residual_NC = (np.exp(log_NC) - y_NC)[:, C - vectors:]
    value = (-(y_NC * log_NC).sum() + .5 * PENALTY * (w_VE ** 2).sum()) / N
    return value, ((residual_NC.T @ x_NE + PENALTY * w_VE) / N).ravel()

  if C == 1:  # A single class leaves nothing to fit.
    w = np.zeros(x_NE.shape[1])
  else:
    # Solver and tolerances as in sklearn, so that a fit which stops at the
    # iteration limit stops in the same place.
    w = optimize.minimize(
        objective, np.zeros(vectors * x_NE.shape[1]), jac=True,
        method='L-BFGS-B', options={
            'maxiter': ITERATIONS, 'maxls': 50, 'gtol': TOLERANCE,
            'ftol': 64 * np.finfo(float).eps}).x

  def predict(z_ND: np.ndarray) -> np.ndarray:
    x_NE = np.column_stack([np.asarray(z_ND, np.float64), np.ones(len(z_ND))])
    p_NC = np.zeros((len(x_NE), width))
    p_NC[:, present_C] = special.softmax(logits(w, x_NE), axis=1)
    return p_NC

  return predict


# --- The linear protocol of X-ARES, and weighted layers ---


def xares(task: tasks.Task, embeddings: Mapping[str, Any],
          seeds: int = SEEDS) -> dict[str, Any]:
  """X-ARES' linear protocol; returns as `probe.evaluate`.

  Args:
    task, embeddings: as for `probe.evaluate`, of a scene task.
    seeds: of initial weights and batches; the scores are means over them.
  """
  def predict(fold: folds.Fold, seed: int
              ) -> tuple[np.ndarray, float, list[str]]:
    z_ND, y_NC = everything(task, fold)
    # xares validates each fold on the clips that it then tests.
    chosen_on, notes = fold.valid[0], []
    if task.kfold:
      chosen_on, notes = fold.test[0], [
          'the epoch is chosen on the test fold, as in xares 0.1.3']
    p_NC, value, _ = trained(task, z_ND[None], y_NC, chosen_on,
                             chosen_on.z_ND[None], fold.test[0].z_ND[None],
                             seed)
    if task.kfold:  # There is no validation that the test clips do not enter.
      value = math.nan
    return p_NC, value, notes

  return _scored(task, embeddings, predict, range(seeds), 'xares',
                 {'epochs': EPOCHS, 'batch': BATCH, 'seeds': seeds})


def weighted(task: tasks.Task, embeddings: Mapping[Any, Mapping[str, Any]],
             seeds: int = SEEDS) -> dict[str, Any]:
  """'xares' on a learned mean of all layers; returns as `probe.evaluate`.

  The weights of the mean are a softmax, learned with the linear layer. Splits
  are those of `probe.evaluate`: the epoch is chosen on the validation split.
  `layer_weights` are their means over folds and seeds, by layer.

  Args:
    task: a scene task.
    embeddings: {layer: embeddings as for `probe.evaluate`}, of one width.
    seeds: as for `xares`.

  Raises:
    ValueError: layers of several widths.
  """
  layers = list(embeddings)
  widths = {layer: np.shape(next(iter(z.values())))[1]
            for layer, z in embeddings.items()}
  if len(set(widths.values())) > 1:
    raise ValueError(f"{task.name}: protocol 'weighted' needs layers of one "
                     f'width, found {widths}')
  by_layer = {layer: {f.name: f for f in folds.load(task, z)}
              for layer, z in embeddings.items()}
  shares: list[np.ndarray] = []

  def predict(fold: folds.Fold, seed: int
              ) -> tuple[np.ndarray, float, list[str]]:
    own = [by_layer[layer][fold.name] for layer in layers]
    part = lambda name: np.stack([getattr(f, name)[0].z_ND for f in own])
    p_NC, value, share_K = trained(
        task, part('train'), fold.train[0].y_NC, fold.valid[0], part('valid'),
        part('test'), seed)
    shares.append(share_K)
    return p_NC, value, []

  result = _scored(task, embeddings[layers[-1]], predict, range(seeds),
                   'weighted', {'epochs': EPOCHS, 'batch': BATCH,
                                'seeds': seeds})
  mean_K = np.mean(shares, axis=0)
  return {**result, 'layer_weights': {
      str(layer): float(share) for layer, share in zip(layers, mean_K)}}


def trained(task: tasks.Task, train_KND: np.ndarray, y_NC: np.ndarray,
            valid: folds.Split, valid_KND: np.ndarray, test_KND: np.ndarray,
            seed: int) -> tuple[np.ndarray, float, np.ndarray]:
  """Trains one linear layer; returns (p_NC of the test, validation, share_K).

  Args:
    task: of the clips.
    train_KND, y_NC: embeddings of every layer, and labels.
    valid, valid_KND: the split on which the epoch is chosen; the first of
      equal ones.
    test_KND: embeddings to predict.
    seed: of initial weights and batches.
  """
  K, N, D = train_KND.shape
  rng = np.random.default_rng([MTEB_SEED, seed])
  # torch.nn.Linear's own initialisation.
  bound = 1 / math.sqrt(D)
  net: dict[str, Any] = {
      'layers_K': np.zeros(K), 'scale_D': np.ones(D), 'shift_D': np.zeros(D),
      'kernel_DC': rng.uniform(-bound, bound, (D, y_NC.shape[1])),
      'bias_C': rng.uniform(-bound, bound, y_NC.shape[1])}
  net = {name: x.astype(np.float32) for name, x in net.items()}
  A = -(-N // BATCH)
  # Every epoch is a permutation; the last batch is filled up with -1, which the
  # loss leaves out, so that one compiled step serves all batches.
  order_EAB = np.full((EPOCHS, A * BATCH), -1, np.int32)
  for epoch in range(EPOCHS):
    order_EAB[epoch, :N] = rng.permutation(N)
  multiclass = task.prediction_type == 'multiclass'
  net, of_epochs = fit(net, train_KND.astype(np.float32),
                       y_NC.astype(np.float32),
                       order_EAB.reshape(EPOCHS, A, BATCH),
                       multiclass=multiclass)
  sign = 1
  if not scores.maximise(task.evaluation[0]):
    sign = -1
  best: Any = None
  best_value = -math.inf
  for epoch in range(EPOCHS):
    now = jax.tree.map(lambda x, epoch=epoch: x[epoch], of_epochs)
    value = predictions.valid_score(
        task, predicted(now, valid_KND, multiclass), valid)[1]
    # A first network in any case: validation may be NaN in every epoch.
    if best is None or sign * value > best_value:
      best = now
      if not math.isnan(value):
        best_value = sign * value
  return (predicted(best, test_KND, multiclass), sign * best_value,
          np.asarray(jax.nn.softmax(best['layers_K'])))


def outputs(net: Mapping[str, Any], x_KBD: jax.Array) -> jax.Array:
  """Returns logits_BC of a mean of layers, a LayerNorm and a linear layer."""
  x_BD = jnp.einsum('k,kbd->bd', jax.nn.softmax(net['layers_K']), x_KBD,
                    precision='highest')
  # LayerNorm with torch's epsilon.
  x_BD -= x_BD.mean(1, keepdims=True)
  x_BD *= jax.lax.rsqrt((x_BD ** 2).mean(1, keepdims=True) + 1e-5)
  x_BD = x_BD * net['scale_D'][None] + net['shift_D'][None]
  return jnp.matmul(x_BD, net['kernel_DC'],
                    precision='highest') + net['bias_C'][None]


@functools.partial(jax.jit, static_argnames='multiclass')
def fit(net: Any, x_KND: jax.Array, y_NC: jax.Array, order_EAB: jax.Array, *,
        multiclass: bool) -> tuple[Any, Any]:
  """Trains with Adam; returns the last network and that of every epoch.

  Args:
    net: initial weights.
    x_KND, y_NC: embeddings of every layer, and labels.
    order_EAB: rows of each batch; -1 is padding.
    multiclass: cross-entropy, or else the mean of binary cross-entropies.
  """
  adam = optax.scale_by_adam()

  def loss(net: Any, x_KBD: jax.Array, y_BC: jax.Array, real_B: jax.Array
           ) -> jax.Array:
    logits_BC = outputs(net, x_KBD)
    if multiclass:
      loss_B = -(y_BC * jax.nn.log_softmax(logits_BC)).sum(1)
    else:
      loss_B = optax.sigmoid_binary_cross_entropy(logits_BC, y_BC).mean(1)
    return (loss_B * real_B).sum() / real_B.sum()

  def step(carry: Any, index_B: jax.Array) -> Any:
    net, state, rate = carry
    # Padding gathers the last row, which is then weighted by 0.
    grads = jax.grad(loss)(net, x_KND[:, index_B], y_NC[index_B],
                           (index_B >= 0).astype(jnp.float32))
    moves, state = adam.update(grads, state)
    net = jax.tree.map(lambda x, move: x - rate * move, net, moves)
    return (net, state, rate), None

  def epoch(carry: Any, inputs: Any) -> Any:
    order_AB, number = inputs
    net, state = carry
    # As ignite's CosineAnnealingScheduler, from RATE to DECAY RATE.
    share = (1 - jnp.cos(jnp.pi * number / EPOCHS)) / 2
    rate = RATE * (1 - (1 - DECAY) * share)
    (net, state, _), _ = jax.lax.scan(step, (net, state, rate), order_AB)
    return (net, state), net

  # All epochs in one program, with the network after each as an output: the
  # best is chosen outside, by scores that need no gradient.
  (net, _), of_epochs = jax.lax.scan(
      epoch, (net, adam.init(net)),
      (order_EAB, jnp.arange(EPOCHS, dtype=jnp.float32)))
  return net, of_epochs


def predicted(net: Any, x_KND: np.ndarray, multiclass: bool) -> np.ndarray:
  """Returns p_NC, float64."""
  logits_NC = np.asarray(jax.jit(outputs)(net, x_KND), np.float64)
  if multiclass:
    return special.softmax(logits_NC, axis=1)
  return special.expit(logits_NC)


# --- Results ---


def _scored(task: tasks.Task, embeddings: Mapping[str, Any], predict: Predict,
            seeds: Sequence[int] | range, protocol: str,
            settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the result of a protocol, as `probe.evaluate`.

  Args:
    task, embeddings: as for `probe.evaluate`.
    predict: see `Predict`.
    seeds: numbers that `predict` is called with.
    protocol, settings: of the result.
  """
  repeats, resampled, of_folds = [], [], folds.load(task, embeddings)
  for seed in seeds:
    per_split, tests, notes = [], [], []
    for fold in of_folds:
      p_NC, value, more = predict(fold, seed)
      tests.append(predictions.tested(task, fold, p_NC, {}))
      per_split.append({
          'split': fold.name, 'score': tests[-1].scores[task.evaluation[0]],
          'scores': tests[-1].scores, 'valid': value})
      notes += more
    result = predictions.aggregate(task, per_split)
    result['notes'] = sorted({*result['notes'], *notes})
    repeats.append({'seed': seed, **result})
    resampled.append(predictions.resamples(task, tests))
  # The same resampled clips in every seed, so their mean is that of the mean
  # score.
  q_B = {name: np.mean([r[name] for r in resampled], axis=0)
         for name in task.evaluation}
  if len(repeats) == 1:
    result = {k: v for k, v in repeats[0].items() if k != 'seed'}
  else:
    result = search.over_seeds(repeats)
  count, sources = intervals.units(task).total, {}
  for name in task.evaluation:
    sources[name] = {
        'clips': intervals.of_clips(q_B[name], count),
        'folds': intervals.of_folds(
            [split['scores'][name] for split in result['per_split']])}
    if len(repeats) > 1:
      sources[name]['seeds'] = intervals.of_repeats(
          [[r['scores'][name] for r in repeats]], averaged=len(repeats))
  return {**result, **intervals.fields(task, result, q_B, sources,
                                       predictions.chance(task)),
          'grid': {}, 'searched': [], 'protocol': protocol,
          'settings': dict(settings)}
