"""The HEAR predictor's network: its start, its forward pass, its loss.

hear-eval-kit's: [Linear, BatchNorm, Dropout, ReLU] x {1, 2}, Linear
(arXiv 2203.03022). Rows that are padding enter no statistic and no loss.
Dropout comes from a hash of (seed, step, layer, row, unit), so that it
depends on neither the padding nor on whether fits run one by one or under
vmap, and it costs a tenth of threefry.

Shapes: B rows of a batch, D width of the embedding, H hidden units, C labels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

DROPOUT = 0.1
MOMENTUM = 0.1   # of the running statistics: new = .9 old + .1 batch
EPSILON = 1e-5
# Widths and labels are rounded up to these, with padding that changes no
# number, so that similar tasks and models share one compiled program.
WIDTH = 128
LABELS = 16
# The bias of a label that does not exist: its probability is exactly 0.
NEVER = -1e9

# Float32 throughout: accelerators would otherwise round inputs to bfloat16.
dot = functools.partial(jnp.matmul, precision='highest')


def rounded_up(size, step):
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


def start(net):
  """Running statistics before training: mean 0, variance 1 per layer."""
  return [{'mean': jnp.zeros_like(layer['bias']),
           'var': jnp.ones_like(layer['bias'])} for layer in net['hidden']]


def linear(layer, x_BD):
  return dot(x_BD, layer['kernel']) + layer['bias'][None]


def hashed(x):
  # Wellons' lowbias32: two multiplications, no measurable bias per bit.
  x = (x ^ (x >> 16)) * jnp.uint32(0x7feb352d)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846ca68b)
  return x ^ (x >> 16)


def survivors(word, shape):
  """Which units survive dropout: a mask of `shape`, from one uint32."""
  index = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(shape[1])
  index += jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  return hashed(hashed(index + word) ^ word) >= jnp.uint32(DROPOUT * 2 ** 32)


def train_logits(net, stats, z_BD, on_B, word):
  """logits_BC with batch statistics and dropout, and the new statistics."""
  x_BH, updated = z_BD, []
  n = on_B.sum()
  for i, (layer, stat) in enumerate(zip(net['hidden'], stats)):
    x_BH = linear(layer, x_BH)
    mean_H = dot(on_B, x_BH) / n
    centred_BH = x_BH - mean_H[None]
    var_H = dot(on_B, jnp.square(centred_BH)) / n
    slope_H = layer['scale'] * jax.lax.rsqrt(var_H + EPSILON)
    x_BH = centred_BH * slope_H[None] + layer['shift'][None]
    keep_BH = survivors(hashed(word + jnp.uint32(i)), x_BH.shape)
    x_BH = jnp.where(keep_BH, jax.nn.relu(x_BH) / (1 - DROPOUT), 0)
    # The running variance takes the unbiased one, normalisation the biased.
    updated.append({
        'mean': stat['mean'] + MOMENTUM * (mean_H - stat['mean']),
        'var': stat['var'] + MOMENTUM * (var_H * n / (n - 1) - stat['var'])})
  return linear(net['out'], x_BH), updated


def logits(net, stats, z_BD):
  """logits_BC with the running statistics, without dropout."""
  x_BH = z_BD
  for layer, stat in zip(net['hidden'], stats):
    slope_H = layer['scale'] * jax.lax.rsqrt(stat['var'] + EPSILON)
    x_BH = (linear(layer, x_BH) - stat['mean'][None]) * slope_H[None]
    x_BH = jax.nn.relu(x_BH + layer['shift'][None])
  return linear(net['out'], x_BH)


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
