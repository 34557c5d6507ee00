"""The HEAR predictor: its network and its training.

It is the network of hear-eval-kit, [Linear, BatchNorm, Dropout, ReLU] x {1, 2},
Linear, with Adam and cross-entropy or binary cross-entropy (arXiv 2203.03022).

All numbers that differ between models of one shape (learning rate, seed, counts
of rows, epochs, patience) are arguments, so that one compiled program serves
all of them. Rows are padded to whole batches; padding is masked and affects no
statistic, no loss and no score.

Shapes: A batches, B rows of a batch, N = A B rows, D width of the embedding,
H hidden units, C labels.
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

DROPOUT = 0.1
MOMENTUM = 0.1  # Of the running statistics: new = .9 old + .1 batch.
EPSILON = 1e-5
# The bias of a label that does not exist: its probability is exactly 0.
NEVER = -1e9

BATCH = 1024
# Rows, widths and labels are rounded up to these sizes, so that folds, similar
# tasks and models of several widths share a compiled program. The padding
# changes no result.
ROWS = (64, 128, 192, 256, 384, 512, 768, BATCH)
WIDTH = 128
LABELS = 16

# Float32 throughout: accelerators would otherwise round inputs to bfloat16.
dot = functools.partial(jnp.matmul, precision='highest')
_adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)

Net = dict[str, Any]
# Of each hidden layer: its running mean and variance.
Stats = list[dict[str, jax.Array]]


# --- Data ---


class Rows(NamedTuple):
  """A padded split. Arrays are of numpy or jax."""
  z_ABD: Any
  y_ABC: Any
  n: Any  # Rows that are real, the first of A B.
  c: Any  # Labels that are real, the first of C.


def rows(z_ND: np.ndarray, y_NC: np.ndarray,
         capacity: int | None = None) -> Rows:
  """Returns `Rows` of numpy arrays.

  Args:
    z_ND, y_NC: embeddings and labels.
    capacity: rows to pad to; None takes those of z_ND.
  """
  (n, width), labels = z_ND.shape, y_NC.shape[1]
  if capacity is None:
    capacity = max(n, 1)
  # A few sizes of one batch; larger splits are several batches of 1,024.
  B = next((size for size in ROWS if capacity <= size), BATCH)
  A = -(-capacity // B)
  z_ABD = np.zeros((A * B, rounded_up(width, WIDTH)), np.float32)
  y_ABC = np.zeros((A * B, rounded_up(labels, LABELS)), np.float32)
  z_ABD[:n, :width], y_ABC[:n, :labels] = z_ND, y_NC
  return Rows(z_ABD.reshape(A, B, -1), y_ABC.reshape(A, B, -1), np.int32(n),
              np.int32(labels))


def rounded_up(size: int, step: int) -> int:
  """Returns the next multiple of `step`."""
  return -(-size // step) * step


# --- The network ---


def init(rng: np.random.Generator, widths: Sequence[int],
         initialization: str) -> Net:
  """Returns an initial network, as hear-eval-kit draws it.

  Weights are Xavier's with gain 1 in the first layer and sqrt 2 after a ReLU.
  Biases are torch's default, uniform within 1 / sqrt(fan in).

  Args:
    rng: of numpy, so that networks are the same on every device.
    widths: (D, H, ..., C).
    initialization: 'xavier_uniform' or 'xavier_normal'.

  Raises:
    ValueError: another initialization.
  """
  layers = []
  for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:])):
    gain = np.sqrt(2.0)
    if i == 0:
      gain = 1.0
    # Xavier: variance 2 / (fan in + fan out).
    std = gain * np.sqrt(2.0 / (fan_in + fan_out))
    if initialization == 'xavier_normal':
      kernel = rng.standard_normal((fan_in, fan_out)) * std
    elif initialization == 'xavier_uniform':
      bound = np.sqrt(3.0) * std
      kernel = rng.uniform(-bound, bound, (fan_in, fan_out))
    else:
      raise ValueError(f'initialization is {initialization!r}, expected '
                       "'xavier_uniform' or 'xavier_normal'")
    bias = rng.uniform(-1, 1, fan_out) / np.sqrt(fan_in)
    layers.append({'kernel': kernel, 'bias': bias})
  # Padding after drawing, so that it does not change the weights.
  more = rounded_up(widths[0], WIDTH) - widths[0]
  layers[0]['kernel'] = np.pad(layers[0]['kernel'], ((0, more), (0, 0)))
  more = rounded_up(widths[-1], LABELS) - widths[-1]
  layers[-1] = {
      'kernel': np.pad(layers[-1]['kernel'], ((0, 0), (0, more))),
      'bias': np.pad(layers[-1]['bias'], (0, more), constant_values=NEVER)}
  for layer in layers[:-1]:
    layer['scale'] = np.ones_like(layer['bias'])
    layer['shift'] = np.zeros_like(layer['bias'])
  net = {'hidden': layers[:-1], 'out': layers[-1]}
  return jax.tree.map(lambda leaf: leaf.astype(np.float32), net)


def start(net: Net) -> Stats:
  """Returns running statistics before training: mean 0, variance 1."""
  return [{'mean': jnp.zeros_like(layer['bias']),
           'var': jnp.ones_like(layer['bias'])} for layer in net['hidden']]


def linear(layer: Net, x_BD: jax.Array) -> jax.Array:
  """Returns x_BH, an affine map of x_BD."""
  return dot(x_BD, layer['kernel']) + layer['bias'][None]


def hashed(x: jax.Array) -> jax.Array:
  """Returns 32 well mixed bits of 32 bits."""
  # Wellons' lowbias32: two multiplications, no measurable bias per bit.
  x = (x ^ (x >> 16)) * jnp.uint32(0x7feb352d)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846ca68b)
  return x ^ (x >> 16)


def survivors(word: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Returns which units survive dropout: a mask of `shape`.

  Args:
    word: uint32 that determines the mask.
    shape: (rows, units).
  """
  # A hash of (seed, step, layer, row, unit): it does not depend on the padding,
  # and takes a tenth of the time of jax.random.
  index = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(shape[1])
  index += jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  return hashed(hashed(index + word) ^ word) >= jnp.uint32(DROPOUT * 2 ** 32)


def train_logits(net: Net, stats: Stats, z_BD: jax.Array, real_B: jax.Array,
                 word: jax.Array) -> tuple[jax.Array, Stats]:
  """Returns (logits_BC, new running statistics) in training.

  Batch normalisation uses the statistics of the batch.

  Args:
    net, stats: the network.
    z_BD: embeddings.
    real_B: 1 for a real row, 0 for padding.
    word: uint32 that determines dropout.
  """
  x_BH, updated = z_BD, []
  # Padded rows have weight 0 in every statistic.
  n = real_B.sum()
  for i, (layer, stat) in enumerate(zip(net['hidden'], stats)):
    x_BH = linear(layer, x_BH)
    mean_H = dot(real_B, x_BH) / n
    centred_BH = x_BH - mean_H[None]
    var_H = dot(real_B, jnp.square(centred_BH)) / n
    # Scale and normalisation in one factor.
    slope_H = layer['scale'] * jax.lax.rsqrt(var_H + EPSILON)
    x_BH = centred_BH * slope_H[None] + layer['shift'][None]
    # A different mask for each layer of the step.
    keep_BH = survivors(hashed(word + jnp.uint32(i)), x_BH.shape)
    x_BH = jnp.where(keep_BH, jax.nn.relu(x_BH) / (1 - DROPOUT), 0)
    # As in torch: the running variance is the unbiased one, and that of the
    # batch is not.
    updated.append({
        'mean': stat['mean'] + MOMENTUM * (mean_H - stat['mean']),
        'var': stat['var'] + MOMENTUM * (var_H * n / (n - 1) - stat['var'])})
  return linear(net['out'], x_BH), updated


def logits(net: Net, stats: Stats, z_BD: jax.Array) -> jax.Array:
  """Returns logits_BC with the running statistics, without dropout."""
  x_BH = z_BD
  for layer, stat in zip(net['hidden'], stats):
    slope_H = layer['scale'] * jax.lax.rsqrt(stat['var'] + EPSILON)
    x_BH = (linear(layer, x_BH) - stat['mean'][None]) * slope_H[None]
    x_BH = jax.nn.relu(x_BH + layer['shift'][None])
  return linear(net['out'], x_BH)


def loss(logits_BC: jax.Array, y_BC: jax.Array, real_B: jax.Array,
         c: jax.Array, multiclass: bool) -> jax.Array:
  """Returns the mean over real rows and, if multilabel, over real labels.

  Args:
    logits_BC, y_BC: predictions and labels.
    real_B: 1 for a real row, 0 for padding.
    c: number of real labels.
    multiclass: whether a row has exactly one label.
  """
  if multiclass:
    loss_B = -(jax.nn.log_softmax(logits_BC) * y_BC).sum(1)
  else:
    # Binary cross-entropy of logits, without overflow.
    loss_BC = jax.nn.softplus(logits_BC) - logits_BC * y_BC
    loss_B = loss_BC.sum(1) / c
  return jnp.where(real_B > 0, loss_B, 0).sum() / real_B.sum()


def probabilities(logits_BC: jax.Array, multiclass: bool) -> jax.Array:
  """Returns p_BC: of one class out of all, or of each label by itself."""
  if multiclass:
    return jax.nn.softmax(logits_BC)
  return jax.nn.sigmoid(logits_BC)


# --- The score for early stopping ---


def _monitor(name: str, logits_NC: jax.Array, split: Rows,
             multiclass: bool) -> jax.Array:
  """Returns the score for early stopping, larger is better."""
  n, c = split.n, split.c
  y_NC = split.y_ABC.reshape(logits_NC.shape)
  real_N = jnp.arange(len(y_NC)) < n
  if name == 'loss':
    return -loss(logits_NC, y_NC, real_N.astype(jnp.float32), c, multiclass)
  p_NC = probabilities(logits_NC, multiclass)
  if name in ('top1_acc', 'chroma_acc'):
    octave = y_NC.shape[1]
    if name == 'chroma_acc':
      octave = 12
    hit_N = p_NC.argmax(1) % octave == y_NC.argmax(1) % octave
    return (hit_N & real_N).sum() / n
  score_C = jax.vmap(functools.partial(_ranking, name),
                     in_axes=(1, 1, None, None))(p_NC, y_NC, real_N, n)
  return jnp.where(jnp.arange(len(score_C)) < c, score_C, 0).sum() / c


def _ranking(name: str, p_N: jax.Array, y_N: jax.Array, real_N: jax.Array,
             n: jax.Array) -> jax.Array:
  """Returns AP, AUC or d' of one class; see `scores` for the definitions."""
  positive_N = real_N & (y_N > 0)
  positives = positive_N.sum()
  # How many members of a set are at least, or above, each threshold. Others get
  # -1, below every probability, so that arrays keep their shapes.
  at_least = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='left')
  above = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='right')
  if name == 'mAP':
    # As `scores.average_precision`, for arrays of fixed shape.
    precision_N = at_least(positive_N, p_N) / at_least(real_N, p_N)
    return (jnp.where(positive_N, precision_N, 0).sum()
            / jnp.maximum(positives, 1))
  negative_N = real_N & ~(y_N > 0)
  # Twice the negatives below, ties once: Mann-Whitney in whole numbers.
  beaten_N = 2 * (n - positives) - (
      at_least(negative_N, p_N) + above(negative_N, p_N))
  auc = (jnp.where(positive_N, beaten_N, 0).sum()
         / (2.0 * positives * (n - positives)))
  if name == 'aucroc':
    return auc
  return jnp.sqrt(2.) * jax.scipy.special.ndtri(auc)


# --- Training ---


class Fit(NamedTuple):
  """The best network of a training, and its history. Numbers are scalars."""
  net: Net
  stats: Stats
  score: Any  # Of the best validation.
  epoch: Any  # 1-based, of the best validation.
  epochs: Any  # In all.
  undefined: Any  # Number of validations whose score was NaN.
  first_undefined: Any  # Epoch of the first one, or 0.


# Training state: network, running statistics, Adam's moments, step.
State = tuple[Net, Stats, Any, jax.Array]


def begin(net: Net) -> State:
  """Returns the training state before the first step."""
  net = jax.tree.map(jnp.asarray, net)
  return net, start(net), _adam.init(net), jnp.uint32(0)


def _batch(state: State, z_BD: jax.Array, y_BC: jax.Array, real_B: jax.Array,
           c: jax.Array, lr: jax.Array, word: jax.Array,
           multiclass: bool) -> State:
  """Returns the state after one more step."""
  net, stats, moments, step = state

  def objective(net: Net) -> tuple[jax.Array, Stats]:
    logits_BC, updated = train_logits(
        net, stats, z_BD, real_B, hashed(word ^ hashed(step)))
    return loss(logits_BC, y_BC, real_B, c, multiclass), updated

  grads, stats = jax.grad(objective, has_aux=True)(net)
  updates, moments = _adam.update(grads, moments)
  # The rate is traced: all rates of the grid share one program.
  net = jax.tree.map(lambda p, u: p - lr * u, net, updates)
  return net, stats, moments, step + 1


def _epoch(state: State, epoch: jax.Array, train: Rows, lr: jax.Array,
           word: jax.Array, multiclass: bool, shuffled: bool) -> State:
  """Returns the state after one more epoch."""
  A, B = train.z_ABD.shape[:2]
  z_ABD, y_ABC = train.z_ABD, train.y_ABC
  if shuffled and A > 1:
    index_N = jnp.arange(A * B, dtype=jnp.uint32)
    # A permutation by sorting hashes: the same for any padding.
    draw_N = hashed(hashed(index_N + word) ^ hashed(word + epoch))
    # Padding must stay at the end, so it sorts behind every real row.
    last = jnp.uint32(2 ** 31)
    order_N = jnp.argsort(jnp.where(index_N < train.n, draw_N >> 1, last))
    z_ABD = z_ABD.reshape(A * B, -1)[order_N].reshape(z_ABD.shape)
    y_ABC = y_ABC.reshape(A * B, -1)[order_N].reshape(y_ABC.shape)

  def batch(a: Any, state: State) -> State:
    real_B = (jnp.arange(B) + a * B < train.n).astype(jnp.float32)
    update = lambda state: _batch(state, z_ABD[a], y_ABC[a], real_B, train.c,
                                  lr, word, multiclass)
    if A == 1:
      return update(state)
    # A batch of one row has no variance, and one without rows is padding.
    return jax.lax.cond(train.n - a * B > 1, update, lambda state: state, state)

  if A == 1:
    return batch(0, state)
  return jax.lax.fori_loop(0, A, batch, state)


def _all_logits(net: Net, stats: Stats, split: Rows) -> jax.Array:
  """Returns logits_NC, batch by batch to save memory."""
  logits_ABC = jax.lax.map(lambda z_BD: logits(net, stats, z_BD), split.z_ABD)
  return logits_ABC.reshape(-1, logits_ABC.shape[-1])


def _advance(state: State, epoch: jax.Array, count: jax.Array, train: Rows,
             lr: jax.Array, word: jax.Array, multiclass: bool,
             shuffled: bool) -> State:
  """Returns the state after `count` more epochs."""
  # A loop in the program: the host waits once per validation, not once per
  # epoch.
  step = lambda i, state: _epoch(
      state, jnp.uint32(epoch + i), train, lr, word, multiclass, shuffled)
  return jax.lax.fori_loop(0, count, step, state)


@functools.partial(jax.jit, static_argnames=('multiclass', 'shuffled'),
                   donate_argnums=0)
def advance(state: State, epoch: jax.Array, count: jax.Array, train: Rows,
            valid: Rows, lr: jax.Array, word: jax.Array, *, multiclass: bool,
            shuffled: bool = False) -> tuple[State, jax.Array]:
  """Returns (the state after `count` more epochs, p_NC on `valid`).

  Args:
    state: donated; do not use it afterwards.
    epoch: number of epochs before.
    count: number of epochs to train.
    train, valid: the data.
    lr, word, multiclass, shuffled: as for `fit`.
  """
  state = _advance(state, epoch, count, train, lr, word, multiclass, shuffled)
  logits_NC = _all_logits(state[0], state[1], valid)
  return state, probabilities(logits_NC, multiclass)


@functools.partial(jax.jit,
                   static_argnames=('monitor', 'multiclass', 'shuffled'))
def fit(net: Net, lr: jax.Array, word: jax.Array, train: Rows, valid: Rows,
        checks: jax.Array, every: jax.Array, patience: jax.Array, *,
        monitor: str, multiclass: bool, shuffled: bool = False) -> Fit:
  """Trains with early stopping; returns a `Fit`.

  The first of equally good validations is kept. A NaN is never an improvement.

  Args:
    net: from `init`.
    lr: learning rate.
    word: uint32 that determines dropout and shuffling.
    train, valid: the data.
    checks: validations at most.
    every: epochs between validations.
    patience: validations without improvement after which training stops.
    monitor: score for early stopping: 'loss', or a measure of `scores.SCENE`.
    multiclass: whether a row has exactly one label, or else any number.
    shuffled: whether batches are drawn again in every epoch.
  """
  def body(carry: Any) -> Any:
    state, best, check, wait = carry
    state = _advance(state, check * every, every, train, lr, word, multiclass,
                     shuffled)
    score = _monitor(monitor, _all_logits(state[0], state[1], valid), valid,
                     multiclass)
    undefined = jnp.isnan(score)
    score = jnp.where(undefined, -jnp.inf, score).astype(jnp.float32)
    better = score > best.score
    epoch = (check + 1) * every
    # The first validation is always kept, so that there is a best one even if
    # all are NaN.
    keep = better | (check == 0)
    net, stats, score, best_epoch = jax.tree.map(
        lambda new, old: jnp.where(keep, new, old),
        (state[0], state[1], score, epoch), best[:4])
    first = jnp.where(undefined & (best.undefined == 0), epoch,
                      best.first_undefined)
    best = Fit(net, stats, score, best_epoch, epoch,
               best.undefined + undefined, first)
    return state, best, check + 1, jnp.where(better, 0, wait + 1)

  state = begin(net)
  zero = jnp.int32(0)
  best = Fit(state[0], state[1], jnp.float32(-jnp.inf), zero, zero, zero, zero)
  _, best, _, _ = jax.lax.while_loop(
      lambda carry: (carry[2] < checks) & (carry[3] < patience), body,
      (state, best, zero, zero))
  return best


@functools.partial(jax.jit, static_argnames='multiclass')
def predict(net: Net, stats: Stats, split: Rows, *,
            multiclass: bool) -> jax.Array:
  """Returns p_NC, the probabilities of every row, padding included."""
  return probabilities(_all_logits(net, stats, split), multiclass)
