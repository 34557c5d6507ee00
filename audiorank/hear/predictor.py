"""The HEAR predictor and its training, as programs compiled once per shape.

The network is hear-eval-kit's: [Linear, BatchNorm, Dropout, ReLU] x {1, 2},
Linear; Adam; cross-entropy or binary cross-entropy (arXiv 2203.03022). Every
number that differs between models of one shape (learning rate, seed, counts
of rows, epochs, patience) is an argument, so that one compiled program, in
memory or in jax's persistent cache, serves them all.

Rows are padded to whole batches and the padding is masked: it enters no
statistic, no loss and no score. Dropout comes from a hash of (seed, step,
layer, row, unit), so that it depends on neither the padding nor on whether
fits run one by one or under vmap, and it costs a tenth of threefry.

Shapes: A batches, B rows of a batch, N = A B rows, D width of the embedding,
H hidden units, C labels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH = 1024
DROPOUT = 0.1
MOMENTUM = 0.1   # of the running statistics: new = .9 old + .1 batch
EPSILON = 1e-5
# Rows, widths and labels are rounded up to these, with padding that changes no
# number, so that folds, similar tasks and models of several widths share one
# compiled program.
ROWS = (64, 128, 192, 256, 384, 512, 768, BATCH)
WIDTH = 128
LABELS = 16
# The bias of a label that does not exist: its probability is exactly 0.
NEVER = -1e9

# Float32 throughout: accelerators would otherwise round inputs to bfloat16.
_dot = functools.partial(jnp.matmul, precision='highest')
_adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


class Rows(NamedTuple):
  """A padded split: the first n of A B rows, c of C labels are real."""
  z_ABD: jax.Array
  y_ABC: jax.Array
  n: jax.Array
  c: jax.Array


class Fit(NamedTuple):
  """What training leaves: the best network and how it was reached."""
  net: dict
  stats: list
  score: jax.Array       # at the best validation
  epoch: jax.Array       # 1-based, of the best validation
  epochs: jax.Array      # trained in all
  undefined: jax.Array   # validations whose score was NaN
  first_undefined: jax.Array   # epoch of the first one, 0 where there is none


def rows(z_ND, y_NC, capacity=None):
  """`Rows` on the host; `capacity` is the count to pad for."""
  (n, width), labels = z_ND.shape, y_NC.shape[1]
  capacity = max(n, 1) if capacity is None else capacity
  B = next((size for size in ROWS if capacity <= size), BATCH)
  A = -(-capacity // B)
  z_ABD = np.zeros((A * B, _up(width, WIDTH)), np.float32)
  y_ABC = np.zeros((A * B, _up(labels, LABELS)), np.float32)
  z_ABD[:n, :width], y_ABC[:n, :labels] = z_ND, y_NC
  return Rows(z_ABD.reshape(A, B, -1), y_ABC.reshape(A, B, -1), np.int32(n),
              np.int32(labels))


def _up(size, step):
  return -(-size // step) * step


def init(rng, widths, initialization):
  """A network for `widths` = (D, H, ..., C), drawn with numpy's `rng`.

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
  more = _up(widths[0], WIDTH) - widths[0]
  layers[0]['kernel'] = np.pad(layers[0]['kernel'], ((0, more), (0, 0)))
  more = _up(widths[-1], LABELS) - widths[-1]
  layers[-1] = {
      'kernel': np.pad(layers[-1]['kernel'], ((0, 0), (0, more))),
      'bias': np.pad(layers[-1]['bias'], (0, more), constant_values=NEVER)}
  for layer in layers[:-1]:
    layer['scale'] = np.ones_like(layer['bias'])
    layer['shift'] = np.zeros_like(layer['bias'])
  net = {'hidden': layers[:-1], 'out': layers[-1]}
  return jax.tree.map(lambda leaf: leaf.astype(np.float32), net)


def start(net):
  """Running statistics before training: mean 0, variance 1 per layer."""
  return [{'mean': jnp.zeros_like(layer['bias']),
           'var': jnp.ones_like(layer['bias'])} for layer in net['hidden']]


def _linear(layer, x_BD):
  return _dot(x_BD, layer['kernel']) + layer['bias'][None]


def _hash(x):
  # Wellons' lowbias32: two multiplications, no measurable bias per bit.
  x = (x ^ (x >> 16)) * jnp.uint32(0x7feb352d)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846ca68b)
  return x ^ (x >> 16)


def _keep(word, shape):
  """Which units survive dropout: a mask of `shape`, from one uint32."""
  index = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(shape[1])
  index += jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  return _hash(_hash(index + word) ^ word) >= jnp.uint32(DROPOUT * 2 ** 32)


def train_logits(net, stats, z_BD, on_B, word):
  """logits_BC with batch statistics and dropout, and the new statistics."""
  x_BH, updated = z_BD, []
  n = on_B.sum()
  for i, (layer, stat) in enumerate(zip(net['hidden'], stats)):
    x_BH = _linear(layer, x_BH)
    mean_H = _dot(on_B, x_BH) / n
    centred_BH = x_BH - mean_H[None]
    var_H = _dot(on_B, jnp.square(centred_BH)) / n
    slope_H = layer['scale'] * jax.lax.rsqrt(var_H + EPSILON)
    x_BH = centred_BH * slope_H[None] + layer['shift'][None]
    keep_BH = _keep(_hash(word + jnp.uint32(i)), x_BH.shape)
    x_BH = jnp.where(keep_BH, jax.nn.relu(x_BH) / (1 - DROPOUT), 0)
    # The running variance takes the unbiased one, normalisation the biased.
    updated.append({
        'mean': stat['mean'] + MOMENTUM * (mean_H - stat['mean']),
        'var': stat['var'] + MOMENTUM * (var_H * n / (n - 1) - stat['var'])})
  return _linear(net['out'], x_BH), updated


def logits(net, stats, z_BD):
  """logits_BC with the running statistics, without dropout."""
  x_BH = z_BD
  for layer, stat in zip(net['hidden'], stats):
    slope_H = layer['scale'] * jax.lax.rsqrt(stat['var'] + EPSILON)
    x_BH = (_linear(layer, x_BH) - stat['mean'][None]) * slope_H[None]
    x_BH = jax.nn.relu(x_BH + layer['shift'][None])
  return _linear(net['out'], x_BH)


def loss(logits_BC, y_BC, on_B, c, multiclass):
  """Mean over real rows (and the c real labels, where multilabel)."""
  if multiclass:
    loss_B = -(jax.nn.log_softmax(logits_BC) * y_BC).sum(1)
  else:
    loss_BC = jax.nn.softplus(logits_BC) - logits_BC * y_BC
    loss_B = loss_BC.sum(1) / c
  return jnp.where(on_B > 0, loss_B, 0).sum() / on_B.sum()


def probabilities(logits_BC, multiclass):
  squash = jax.nn.softmax if multiclass else jax.nn.sigmoid
  return squash(logits_BC)


def _monitor(name, logits_NC, split, multiclass):
  """The score that early stopping watches, larger is better."""
  n, c = split.n, split.c
  y_NC = split.y_ABC.reshape(logits_NC.shape)
  on_N = jnp.arange(len(y_NC)) < n
  if name == 'loss':
    return -loss(logits_NC, y_NC, on_N.astype(jnp.float32), c, multiclass)
  p_NC = probabilities(logits_NC, multiclass)
  if name in ('top1_acc', 'chroma_acc'):
    octave = 12 if name == 'chroma_acc' else y_NC.shape[1]
    hit_N = p_NC.argmax(1) % octave == y_NC.argmax(1) % octave
    return (hit_N & on_N).sum() / n
  score_C = jax.vmap(functools.partial(_ranking, name),
                     in_axes=(1, 1, None, None))(p_NC, y_NC, on_N, n)
  return jnp.where(jnp.arange(len(score_C)) < c, score_C, 0).sum() / c


def _ranking(name, p_N, y_N, on_N, n):
  """AP, AUC or d' of one class; see `scores` for the definitions."""
  positive_N = on_N & (y_N > 0)
  positives = positive_N.sum()
  # Sorting outsiders below every probability makes counts of what lies above.
  at_least = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='left')
  above = lambda among_N, t_N: len(p_N) - jnp.searchsorted(
      jnp.sort(jnp.where(among_N, p_N, -1)), t_N, side='right')
  if name == 'mAP':
    precision_N = at_least(positive_N, p_N) / at_least(on_N, p_N)
    return (jnp.where(positive_N, precision_N, 0).sum()
            / jnp.maximum(positives, 1))
  negative_N = on_N & ~(y_N > 0)
  beaten_N = 2 * (n - positives) - (
      at_least(negative_N, p_N) + above(negative_N, p_N))
  auc = (jnp.where(positive_N, beaten_N, 0).sum()
         / (2.0 * positives * (n - positives)))
  if name == 'aucroc':
    return auc
  return jnp.sqrt(2.) * jax.scipy.special.ndtri(auc)


def _batch(state, z_BD, y_BC, on_B, c, lr, word, multiclass):
  net, stats, moments, step = state

  def objective(net):
    logits_BC, updated = train_logits(
        net, stats, z_BD, on_B, _hash(word ^ _hash(step)))
    return loss(logits_BC, y_BC, on_B, c, multiclass), updated

  grads, stats = jax.grad(objective, has_aux=True)(net)
  updates, moments = _adam.update(grads, moments)
  net = jax.tree.map(lambda p, u: p - lr * u, net, updates)
  return net, stats, moments, step + 1


def _epoch(state, epoch, train, lr, word, multiclass, shuffled):
  A, B = train.z_ABD.shape[:2]
  z_ABD, y_ABC = train.z_ABD, train.y_ABC
  if shuffled and A > 1:
    index_N = jnp.arange(A * B, dtype=jnp.uint32)
    draw_N = _hash(_hash(index_N + word) ^ _hash(word + epoch))
    last = jnp.uint32(2 ** 31)
    order_N = jnp.argsort(jnp.where(index_N < train.n, draw_N >> 1, last))
    z_ABD = z_ABD.reshape(A * B, -1)[order_N].reshape(z_ABD.shape)
    y_ABC = y_ABC.reshape(A * B, -1)[order_N].reshape(y_ABC.shape)

  def batch(a, state):
    on_B = (jnp.arange(B) + a * B < train.n).astype(jnp.float32)
    update = lambda state: _batch(state, z_ABD[a], y_ABC[a], on_B, train.c, lr,
                                  word, multiclass)
    if A == 1:
      return update(state)
    # A batch of one row has no variance; a batch of none belongs to padding.
    return jax.lax.cond(train.n - a * B > 1, update, lambda state: state, state)

  return batch(0, state) if A == 1 else jax.lax.fori_loop(0, A, batch, state)


def _all_logits(net, stats, split):
  logits_ABC = jax.lax.map(lambda z_BD: logits(net, stats, z_BD), split.z_ABD)
  return logits_ABC.reshape(-1, logits_ABC.shape[-1])


def begin(net):
  """Training state: network, running statistics, Adam's moments, step."""
  net = jax.tree.map(jnp.asarray, net)
  return net, start(net), _adam.init(net), jnp.uint32(0)


def _advance(state, epoch, count, train, lr, word, multiclass, shuffled):
  step = lambda i, state: _epoch(
      state, jnp.uint32(epoch + i), train, lr, word, multiclass, shuffled)
  return jax.lax.fori_loop(0, count, step, state)


@functools.partial(jax.jit, static_argnames=('multiclass', 'shuffled'),
                   donate_argnums=0)
def advance(state, epoch, count, train, valid, lr, word, *, multiclass,
            shuffled=False):
  """The state after `count` more epochs, and p_NC on `valid` (padded)."""
  state = _advance(state, epoch, count, train, lr, word, multiclass, shuffled)
  logits_NC = _all_logits(state[0], state[1], valid)
  return state, probabilities(logits_NC, multiclass)


def _fit(net, lr, word, train, valid, checks, every, patience, *, monitor,
         multiclass, shuffled=False):
  """Trains with early stopping on `monitor`; returns a `Fit`.

  Validates after every `every` epochs, at most `checks` times, and stops
  after `patience` validations without a strict improvement. The first of
  equal bests is kept. A NaN never improves, and is counted.
  """
  def body(carry):
    state, fit, check, wait = carry
    state = _advance(state, check * every, every, train, lr, word, multiclass,
                     shuffled)
    score = _monitor(monitor, _all_logits(state[0], state[1], valid), valid,
                     multiclass)
    undefined = jnp.isnan(score)
    score = jnp.where(undefined, -jnp.inf, score).astype(jnp.float32)
    better = score > fit.score
    epoch = (check + 1) * every
    # The first validation is kept whatever it says: there is always a best.
    keep = better | (check == 0)
    best = jax.tree.map(lambda new, old: jnp.where(keep, new, old),
                        (state[0], state[1], score, epoch), fit[:4])
    fit = Fit(*best, epoch, fit.undefined + undefined, jnp.where(
        undefined & (fit.undefined == 0), epoch, fit.first_undefined))
    return state, fit, check + 1, jnp.where(better, 0, wait + 1)

  state = begin(net)
  zero = jnp.int32(0)
  fit = Fit(state[0], state[1], jnp.float32(-jnp.inf), zero, zero, zero, zero)
  _, fit, _, _ = jax.lax.while_loop(
      lambda carry: (carry[2] < checks) & (carry[3] < patience), body,
      (state, fit, zero, zero))
  return fit


_STATIC = ('monitor', 'multiclass', 'shuffled')
fit = jax.jit(_fit, static_argnames=_STATIC)


@functools.partial(jax.jit, static_argnames=_STATIC)
def fit_points(nets, lrs, words, train, valid, checks, every, patience,
               **static):
  """`fit` for several grid points of one depth at once (leading axis)."""
  one = functools.partial(_fit, **static)
  return jax.vmap(one, in_axes=(0, 0, 0, *[None] * 5))(
      nets, lrs, words, train, valid, checks, every, patience)


@functools.partial(jax.jit, static_argnames=_STATIC)
def fit_folds(nets, lr, words, train, valid, checks, every, patience,
              **static):
  """`fit` for several folds of one task at once (leading axis)."""
  one = functools.partial(_fit, **static)
  return jax.vmap(one, in_axes=(0, None, 0, 0, 0, *[None] * 3))(
      nets, lr, words, train, valid, checks, every, patience)


@functools.partial(jax.jit, static_argnames='multiclass')
def predict(net, stats, split, *, multiclass):
  """p_NC, probabilities of every row, padding included."""
  return probabilities(_all_logits(net, stats, split), multiclass)
