"""What a model holds and what a step of it costs, counted by hand."""

import math

import jax


def parameters(tree):
  """Returns the number of values in a tree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def flops_per_clip(config, L, K):
  """Returns FLOPs of one training step on one clip, counted by hand.

  XLA's own count takes a scanned body once, so it cannot serve. A matrix
  product of n multiply-adds is 2 n, and the backward pass costs twice the
  forward one. Norms, softmax and the front end are left out (below 1 % from
  width 128 on).

  Args:
    config: model config.
    L: patches of a clip.
    K: visible patches.

  Returns:
    {'encoder': ..., 'decoder': ..., 'total': ...}.
  """
  c, d = config, config.decoder
  P = c.mels * c.patch_frames

  def stack(tokens, width, depth):
    dense = 4 * width ** 2 + 2 * c.mlp_ratio * width ** 2
    return depth * (tokens * dense + 2 * tokens ** 2 * width)

  encoder = K * P * c.width + stack(K, c.width, c.depth)
  decoder = (K * c.width * d.width + stack(L, d.width, d.depth)
             + (L - K) * d.width * P)
  return {'encoder': 6 * encoder, 'decoder': 6 * decoder,
          'total': 6 * (encoder + decoder)}
