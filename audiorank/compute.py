"""What a model holds and what a step of it costs, counted by hand."""

import math

import jax

# FLOP/s of dense bfloat16 products, from the makers' data sheets.
PEAKS = {
    'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12,
    'TPU v5': 459e12, 'TPU v5p': 459e12, 'TPU v6 lite': 918e12,
    'TPU v6e': 918e12, 'NVIDIA H200': 989e12, 'NVIDIA H100': 989e12,
    'NVIDIA A100': 312e12, 'NVIDIA L4': 121e12, 'Tesla T4': 65e12}


def peak(device_kind):
  """Returns a chip's FLOP/s in bfloat16 (float16 on T4), None if unknown.

  Args:
    device_kind: as jax names it; the longest known beginning counts
      ('NVIDIA H100 80GB HBM3').
  """
  known = [name for name in PEAKS if device_kind.startswith(name)]
  return PEAKS[max(known, key=len)] if known else None


def parameters(tree):
  """Returns the number of values in a tree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def sizes(params):
  """Returns {'encoder': its parameters, 'decoder': all that is not kept}.

  Beside a decoder, or in its place, that may be a projection head.
  """
  encoder = parameters(params['encoder'])
  return {'encoder': encoder, 'decoder': parameters(params) - encoder}


def stack(config, tokens, width, depth):
  """Returns the multiply-adds of transformer blocks, forwards."""
  dense = 4 * width ** 2 + 2 * config.mlp_ratio * width ** 2
  return depth * (tokens * dense + 2 * tokens ** 2 * width)


def encode(config, tokens):
  """Returns the multiply-adds of the encoder on so many tokens, forwards."""
  c = config
  return (tokens * c.mels * c.patch_frames * c.width
          + stack(c, tokens, c.width, c.depth))


def flops_per_clip(config, L, K, values=None):
  """Returns FLOPs of one training step on one clip, counted by hand.

  XLA's own count takes a scanned body once, so it cannot serve. A matrix
  product of n multiply-adds is 2 n, and the backward pass costs twice the
  forward one. Norms, softmax and the front end are left out (below 1 % from
  width 128 on).

  Args:
    config: model config.
    L: patches of a clip.
    K: visible patches.
    values: predicted of each removed patch; None is all of its own.

  Returns:
    {'encoder': ..., 'decoder': ..., 'total': ...}.
  """
  c, d = config, config.decoder
  P = c.mels * c.patch_frames if values is None else values
  encoder = encode(c, K)
  decoder = (K * c.width * d.width + stack(c, L, d.width, d.depth)
             + (L - K) * d.width * P)
  return {'encoder': 6 * encoder, 'decoder': 6 * decoder,
          'total': 6 * (encoder + decoder)}
