"""Settings that transfer between widths: muP for Adam (arXiv 2203.03466).

Under the usual rules one learning rate moves the activations of a wider
network further at every step, so that its best learning rate is lower, and a
comparison of sizes at one rate also compares rates. With `opt.transfer` = W,
the settings in `opt` and the initial weights are those of a network of width W.
For an encoder of width D = m W they become, by kind of parameter,

  kind     which                                     initial std  rate
  vector   biases, norms, position embeddings,       1            1
           mask token
  input    kernels from a fixed number of inputs     1            1
           (patches, and the latent objective's
           output, whose targets widen)
  hidden   kernels of the encoder's blocks           m ** -.5     1 / m
  readout  kernels from the encoder's width to a     1 / m        1 / m
           fixed one: the decoder's projection,
           the contrastive head's first layer
  fixed    kernels whose sides do not change:        1            1
           the decoder

The readout is what the last layer is in the paper: to the encoder, the decoder
of constant width is a part of the loss. Attention divides scores by the square
root of a head's width. The paper divides by the width itself, which is the same
up to a constant while heads keep their width and their number grows, as sizes
in configs/base.py do from width 32 to 224 and from 256 to 768; the one head of
a narrower encoder is narrower.

Weight decay is independent of these rates: every parameter loses the share
lr * weight_decay at a step, as arXiv 2510.19093 finds necessary for rates to
transfer in long training. At width W nothing changes, to the bit.
"""

import functools
from typing import Any

import jax
import optax

from audiorank import config as config_lib
from audiorank import objectives

KINDS = ('vector', 'input', 'hidden', 'readout', 'fixed')
# Kernels whose initial standard deviation is a constant, whatever their inputs.
# All others fall with the square root of the number of inputs.
CONSTANT_INIT = ('project',)
SHAPED_BY = ('objective', 'model', 'mask', 'train', 'data')


def ratio(config: Any) -> float:
  """Returns m: the encoder's width over the width that `opt` is set for."""
  return config.model.width / config.opt.transfer


def wider(config: Any) -> Any:
  """Returns the shapes of the parameters at twice the encoder's width."""
  tree = config_lib.plain(config)
  # What an objective's variables depend on; see objectives.Parts.
  tree = {name: part for name, part in tree.items()
          if name in (*SHAPED_BY, config.objective)}
  tree['model']['width'] *= 2
  return _shapes(config_lib.frozen(tree), objectives.parts(config),
                 config_lib.patches(config))


@functools.lru_cache(64)
def _shapes(config, parts, L):
  return jax.eval_shape(lambda key: parts.variables(config, key, L),
                        jax.random.key(0))['params']


def kinds(config: Any, params: Any) -> Any:
  """Returns the tree of the KINDS of parameters.

  Which sides of a kernel grow with the encoder is read off its shape at another
  width, so that it holds for every objective.

  Args:
    config: of the run.
    params: arrays, or their shapes.
  """
  def kind(path: Any, x: Any, wide: Any) -> str:
    if path[-1].key != 'kernel':
      return 'vector'
    # The last two axes are inputs and outputs; blocks are stacked before.
    inputs, outputs = (a != b for a, b in zip(x.shape[-2:], wide.shape[-2:]))
    return {(False, False): 'fixed', (False, True): 'input',
            (True, True): 'hidden', (True, False): 'readout'}[inputs, outputs]

  return jax.tree.map_with_path(kind, params, wider(config))


def init_scales(config: Any, params: Any) -> Any:
  """Returns the tree of factors on initial parameters.

  They correct what the initialisers do: those of hidden kernels follow the rule
  already.

  Args:
    config: of the run.
    params: arrays, or their shapes.
  """
  m = ratio(config)

  def scale(path: Any, kind: str) -> float:
    if kind != 'readout':
      return 1.
    if path[-2].key in CONSTANT_INIT:
      return 1 / m
    return m ** -.5

  return jax.tree.map_with_path(scale, kinds(config, params))


def scale_rates(config: Any) -> optax.GradientTransformation:
  """Returns the transformation that scales Adam's steps by kind of parameter.

  It stands before the weight decay, which it must not scale.
  """
  narrower = optax.scale(1 / ratio(config))
  rates = {kind: optax.identity() for kind in KINDS}
  rates.update(hidden=narrower, readout=narrower)
  return optax.multi_transform(rates, functools.partial(kinds, config))
