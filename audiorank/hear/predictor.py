"""The HEAR predictor and its training, as programs compiled once per shape.

hear-eval-kit's network (see `network`), Adam, cross-entropy or binary
cross-entropy (arXiv 2203.03022). Every number that differs between models of
one shape (learning rate, seed, counts of rows, epochs, patience) is an
argument, so that one compiled program, in memory or on disk (jax's own cache),
serves them all.

Rows are padded to whole batches and the padding is masked: it enters no
statistic, no loss and no score.

Shapes: A batches, B rows of a batch, N = A B rows, D width of the embedding,
H hidden units, C labels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiorank.hear import network

BATCH = 1024
# Rows, widths and labels are rounded up to these, with padding that changes no
# number, so that folds, similar tasks and models of several widths share one
# compiled program.
ROWS = (64, 128, 192, 256, 384, 512, 768, BATCH)

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
  D = network.rounded_up(width, network.WIDTH)
  C = network.rounded_up(labels, network.LABELS)
  z_ABD = np.zeros((A * B, D), np.float32)
  y_ABC = np.zeros((A * B, C), np.float32)
  z_ABD[:n, :width], y_ABC[:n, :labels] = z_ND, y_NC
  return Rows(z_ABD.reshape(A, B, -1), y_ABC.reshape(A, B, -1), np.int32(n),
              np.int32(labels))


def _monitor(name, logits_NC, split, multiclass):
  """The score that early stopping watches, larger is better."""
  n, c = split.n, split.c
  y_NC = split.y_ABC.reshape(logits_NC.shape)
  on_N = jnp.arange(len(y_NC)) < n
  if name == 'loss':
    return -network.loss(logits_NC, y_NC, on_N.astype(jnp.float32), c,
                         multiclass)
  p_NC = network.probabilities(logits_NC, multiclass)
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
    logits_BC, updated = network.train_logits(
        net, stats, z_BD, on_B, network.hashed(word ^ network.hashed(step)))
    return network.loss(logits_BC, y_BC, on_B, c, multiclass), updated

  grads, stats = jax.grad(objective, has_aux=True)(net)
  updates, moments = _adam.update(grads, moments)
  net = jax.tree.map(lambda p, u: p - lr * u, net, updates)
  return net, stats, moments, step + 1


def _epoch(state, epoch, train, lr, word, multiclass, shuffled):
  A, B = train.z_ABD.shape[:2]
  z_ABD, y_ABC = train.z_ABD, train.y_ABC
  if shuffled and A > 1:
    index_N = jnp.arange(A * B, dtype=jnp.uint32)
    hashed = network.hashed
    draw_N = hashed(hashed(index_N + word) ^ hashed(word + epoch))
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
  logits_ABC = jax.lax.map(lambda z_BD: network.logits(net, stats, z_BD),
                           split.z_ABD)
  return logits_ABC.reshape(-1, logits_ABC.shape[-1])


def begin(net):
  """Training state: network, running statistics, Adam's moments, step."""
  net = jax.tree.map(jnp.asarray, net)
  return net, network.start(net), _adam.init(net), jnp.uint32(0)


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
  return state, network.probabilities(logits_NC, multiclass)


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


@functools.cache
def fit_program(monitor, multiclass, shuffled):
  """Returns `fit` of these as a jitted function, the same one every time."""
  return jax.jit(functools.partial(
      _fit, monitor=monitor, multiclass=multiclass, shuffled=shuffled))


def fit(*args, monitor, multiclass, shuffled=False):
  """`_fit`, compiled once for arguments of one shape."""
  return fit_program(monitor, multiclass, shuffled)(*args)


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


@functools.cache
def predict_program(multiclass):
  """Returns `predict` as a jitted function, the same one every time."""
  return jax.jit(lambda net, stats, split: network.probabilities(
      _all_logits(net, stats, split), multiclass))


def predict(net, stats, split, *, multiclass):
  """p_NC, probabilities of every row, padding included."""
  return predict_program(multiclass)(net, stats, split)
