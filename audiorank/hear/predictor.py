"""The HEAR predictor: its network and its training, compiled once per shape.

hear-eval-kit's network, [Linear, BatchNorm, Dropout, ReLU] x {1, 2}, Linear,
with Adam and cross-entropy or binary cross-entropy (arXiv 2203.03022). Every
number that differs between models of one shape (learning rate, seed, counts
of rows, epochs, patience) is an argument, so that one compiled program serves
them all.

Rows are padded to whole batches and the padding is masked: it enters no
statistic, no loss and no score. Dropout comes from a hash of (seed, step,
layer, row, unit), so that it does not depend on the padding, and it costs a
tenth of threefry.

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
MOMENTUM = 0.1   # Of the running statistics: new = .9 old + .1 batch.
EPSILON = 1e-5
# The bias of a label that does not exist: its probability is exactly 0.
NEVER = -1e9

BATCH = 1024
# Rows, widths and labels are rounded up to these, with padding that changes no
# number, so that folds, similar tasks and models of several widths share one
# compiled program.
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
  """A padded split: the first n of A B rows, c of C labels are real."""
  z_ABD: jax.Array
  y_ABC: jax.Array
  n: jax.Array
  c: jax.Array


def rows(z_ND: np.ndarray, y_NC: np.ndarray,
         capacity: int | None = None) -> Rows:
  """Returns `Rows` on the host, padded for `capacity` rows."""
  (n, width), labels = z_ND.shape, y_NC.shape[1]
  if capacity is None:
    capacity = max(n, 1)
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
  """Returns a network for `widths` = (D, H, ..., C), drawn with numpy.

  Weights are Xavier, 'xavier_uniform' or 'xavier_normal', with gain 1 for
  the first layer and sqrt 2 after a ReLU; biases are torch's default,
  uniform within 1 / sqrt(fan in); BatchNorm starts at scale 1, shift 0.
  """
  layers = []
  for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:])):
    gain = 1.0 if i == 0 else np.sqrt(2.0)
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
  """Returns which units survive dropout: a mask of `shape`, of one uint32."""
  index = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(shape[1])
  index += jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  return hashed(hashed(index + word) ^ word) >= jnp.uint32(DROPOUT * 2 ** 32)


def train_logits(net: Net, stats: Stats, z_BD: jax.Array, real_B: jax.Array,
                 word: jax.Array) -> tuple[jax.Array, Stats]:
  """Returns (logits_BC, new statistics), with those of the batch and dropout.

  Args:
    net, stats: the network.
    z_BD: embeddings.
    real_B: 1 for a real row, 0 for padding.
    word: uint32 that dropout is drawn from.
  """
  x_BH, updated = z_BD, []
  n = real_B.sum()
  for i, (layer, stat) in enumerate(zip(net['hidden'], stats)):
    x_BH = linear(layer, x_BH)
    mean_H = dot(real_B, x_BH) / n
    centred_BH = x_BH - mean_H[None]
    var_H = dot(real_B, jnp.square(centred_BH)) / n
    slope_H = layer['scale'] * jax.lax.rsqrt(var_H + EPSILON)
    x_BH = centred_BH * slope_H[None] + layer['shift'][None]
    keep_BH = survivors(hashed(word + jnp.uint32(i)), x_BH.shape)
    x_BH = jnp.where(keep_BH, jax.nn.relu(x_BH) / (1 - DROPOUT), 0)
    # The running variance takes the unbiased one, normalisation the biased.
    updated.append({
        'mean': stat['mean'] + MOMENTUM * (mean_H - stat['mean']),
        'var': stat['var'] + MOMENTUM * (var_H * n / (n - 1) - stat['var'])})
  return linear(net['out'], x_BH), updated


def logits(net: Net, stats: Stats, z_BD: jax.Array) -> jax.Array:
  """Returns logits_BC by the running statistics, without dropout."""
  x_BH = z_BD
  for layer, stat in zip(net['hidden'], stats):
    slope_H = layer['scale'] * jax.lax.rsqrt(stat['var'] + EPSILON)
    x_BH = (linear(layer, x_BH) - stat['mean'][None]) * slope_H[None]
    x_BH = jax.nn.relu(x_BH + layer['shift'][None])
  return linear(net['out'], x_BH)


def loss(logits_BC: jax.Array, y_BC: jax.Array, real_B: jax.Array,
         c: jax.Array, multiclass: bool) -> jax.Array:
  """Returns the mean over real rows (where multilabel, and c real labels)."""
  if multiclass:
    loss_B = -(jax.nn.log_softmax(logits_BC) * y_BC).sum(1)
  else:
    loss_BC = jax.nn.softplus(logits_BC) - logits_BC * y_BC
    loss_B = loss_BC.sum(1) / c
  return jnp.where(real_B > 0, loss_B, 0).sum() / real_B.sum()


def probabilities(logits_BC: jax.Array, multiclass: bool) -> jax.Array:
  """Returns p_BC: of one class out of all, or of each label by itself."""
  squash = jax.nn.softmax if multiclass else jax.nn.sigmoid
  return squash(logits_BC)


# --- What early stopping watches ---


def _monitor(name, logits_NC, split, multiclass):
  """Returns the score that early stopping watches, larger is better."""
  n, c = split.n, split.c
  y_NC = split.y_ABC.reshape(logits_NC.shape)
  real_N = jnp.arange(len(y_NC)) < n
  if name == 'loss':
    return -loss(logits_NC, y_NC, real_N.astype(jnp.float32), c, multiclass)
  p_NC = probabilities(logits_NC, multiclass)
  if name in ('top1_acc', 'chroma_acc'):
    octave = 12 if name == 'chroma_acc' else y_NC.shape[1]
    hit_N = p_NC.argmax(1) % octave == y_NC.argmax(1) % octave
    return (hit_N & real_N).sum() / n
  score_C = jax.vmap(functools.partial(_ranking, name),
                     in_axes=(1, 1, None, None))(p_NC, y_NC, real_N, n)
  return jnp.where(jnp.arange(len(score_C)) < c, score_C, 0).sum() / c


def _ranking(name, p_N, y_N, real_N, n):
  """Returns AP, AUC or d' of one class; see `scores` for the definitions."""
  positive_N = real_N & (y_N > 0)
  positives = positive_N.sum()
  # Sorting outsiders below every probability makes counts of what lies above.
  at_least = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='left')
  above = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='right')
  if name == 'mAP':
    precision_N = at_least(positive_N, p_N) / at_least(real_N, p_N)
    return (jnp.where(positive_N, precision_N, 0).sum()
            / jnp.maximum(positives, 1))
  negative_N = real_N & ~(y_N > 0)
  beaten_N = 2 * (n - positives) - (
      at_least(negative_N, p_N) + above(negative_N, p_N))
  auc = (jnp.where(positive_N, beaten_N, 0).sum()
         / (2.0 * positives * (n - positives)))
  if name == 'aucroc':
    return auc
  return jnp.sqrt(2.) * jax.scipy.special.ndtri(auc)


# --- Training ---


class Fit(NamedTuple):
  """What training leaves: the best network and how it was reached."""
  net: Net
  stats: Stats
  score: jax.Array       # at the best validation
  epoch: jax.Array       # 1-based, of the best validation
  epochs: jax.Array      # trained in all
  undefined: jax.Array   # validations whose score was NaN
  first_undefined: jax.Array   # epoch of the first one, 0 where there is none


# Training state: network, running statistics, Adam's moments, step.
State = tuple[Net, Stats, Any, jax.Array]


def begin(net: Net) -> State:
  """Returns the training state before the first step."""
  net = jax.tree.map(jnp.asarray, net)
  return net, start(net), _adam.init(net), jnp.uint32(0)


def _batch(state, z_BD, y_BC, real_B, c, lr, word, multiclass):
  net, stats, moments, step = state

  def objective(net):
    logits_BC, updated = train_logits(
        net, stats, z_BD, real_B, hashed(word ^ hashed(step)))
    return loss(logits_BC, y_BC, real_B, c, multiclass), updated

  grads, stats = jax.grad(objective, has_aux=True)(net)
  updates, moments = _adam.update(grads, moments)
  net = jax.tree.map(lambda p, u: p - lr * u, net, updates)
  return net, stats, moments, step + 1


def _epoch(state, epoch, train, lr, word, multiclass, shuffled):
  A, B = train.z_ABD.shape[:2]
  z_ABD, y_ABC = train.z_ABD, train.y_ABC
  if shuffled and A > 1:
    index_N = jnp.arange(A * B, dtype=jnp.uint32)
    draw_N = hashed(hashed(index_N + word) ^ hashed(word + epoch))
    # Padding sorts behind every real row, and stays there.
    last = jnp.uint32(2 ** 31)
    order_N = jnp.argsort(jnp.where(index_N < train.n, draw_N >> 1, last))
    z_ABD = z_ABD.reshape(A * B, -1)[order_N].reshape(z_ABD.shape)
    y_ABC = y_ABC.reshape(A * B, -1)[order_N].reshape(y_ABC.shape)

  def batch(a, state):
    real_B = (jnp.arange(B) + a * B < train.n).astype(jnp.float32)
    update = lambda state: _batch(state, z_ABD[a], y_ABC[a], real_B, train.c,
                                  lr, word, multiclass)
    if A == 1:
      return update(state)
    # A batch of one row has no variance; a batch of none belongs to padding.
    return jax.lax.cond(train.n - a * B > 1, update, lambda state: state, state)

  if A == 1:
    return batch(0, state)
  return jax.lax.fori_loop(0, A, batch, state)


def _all_logits(net, stats, split):
  logits_ABC = jax.lax.map(lambda z_BD: logits(net, stats, z_BD), split.z_ABD)
  return logits_ABC.reshape(-1, logits_ABC.shape[-1])


def _advance(state, epoch, count, train, lr, word, multiclass, shuffled):
  step = lambda i, state: _epoch(
      state, jnp.uint32(epoch + i), train, lr, word, multiclass, shuffled)
  return jax.lax.fori_loop(0, count, step, state)


@functools.partial(jax.jit, static_argnames=('multiclass', 'shuffled'),
                   donate_argnums=0)
def advance(state: State, epoch: jax.Array, count: jax.Array, train: Rows,
            valid: Rows, lr: jax.Array, word: jax.Array, *, multiclass: bool,
            shuffled: bool = False) -> tuple[State, jax.Array]:
  """Returns the state after `count` more epochs, and p_NC on `valid`."""
  state = _advance(state, epoch, count, train, lr, word, multiclass, shuffled)
  logits_NC = _all_logits(state[0], state[1], valid)
  return state, probabilities(logits_NC, multiclass)


@functools.partial(jax.jit,
                   static_argnames=('monitor', 'multiclass', 'shuffled'))
def fit(net: Net, lr: jax.Array, word: jax.Array, train: Rows, valid: Rows,
        checks: jax.Array, every: jax.Array, patience: jax.Array, *,
        monitor: str, multiclass: bool, shuffled: bool = False) -> Fit:
  """Trains with early stopping on `monitor`; returns a `Fit`.

  Validates after every `every` epochs, at most `checks` times, and stops
  after `patience` validations without a strict improvement. The first of
  equal bests is kept. A NaN never improves, and is counted. Compiled once for
  arguments of one shape.

  Args:
    net: of `init`.
    lr: learning rate.
    word: uint32 that dropout and shuffling are drawn from.
    train, valid: the data.
    checks, every, patience: see above.
    monitor: 'loss', or a measure of `scores.SCENE`.
    multiclass: else multilabel.
    shuffled: whether batches are drawn anew in every epoch.
  """
  def body(carry):
    state, best, check, wait = carry
    state = _advance(state, check * every, every, train, lr, word, multiclass,
                     shuffled)
    score = _monitor(monitor, _all_logits(state[0], state[1], valid), valid,
                     multiclass)
    undefined = jnp.isnan(score)
    score = jnp.where(undefined, -jnp.inf, score).astype(jnp.float32)
    better = score > best.score
    epoch = (check + 1) * every
    # The first validation is kept whatever it says: there is always a best.
    keep = better | (check == 0)
    newest = jax.tree.map(lambda new, old: jnp.where(keep, new, old),
                          (state[0], state[1], score, epoch), best[:4])
    best = Fit(*newest, epoch, best.undefined + undefined, jnp.where(
        undefined & (best.undefined == 0), epoch, best.first_undefined))
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
  """Returns p_NC, probabilities of every row, padding included."""
  return probabilities(_all_logits(net, stats, split), multiclass)
