"""Chips, and what a training step asks of them: FLOPs counted by hand.

XLA's own count takes a scanned body once, so it cannot serve. A matrix product
of n multiply-adds is 2 n FLOPs, and the backward pass costs twice the forward
one. Norms and softmax are left out (below 1 % from width 128 on).
"""

import math
from typing import Any
from typing import NamedTuple

GIB = 2 ** 30


class Chip(NamedTuple):
  """What a chip can do. Of those that no plan is made for, the peak alone."""
  flops: float  # Of the matrix units in bfloat16, a second (T4: float16).
  memory: float = 0.  # Bytes that programs may use, as the compiler says.
  hbm: float = 0.  # Bytes a second between memory and cores.
  link: float = 0.  # Bytes a second of one link, one way.
  tile: int = 1  # Rows and columns of a matrix unit.
  dims: int = 0  # Of its slices.
  ring: int = 0  # An axis of a multiple of so many chips closes to a ring.
  gke: str = ''  # Google's name of the machine that has it.


# The one table of chips, by the beginning of the name that jax gives a device
# (a TPU has two: as it calls itself, and as people do). FLOP/s: the makers'
# data sheets. TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in
# November 2026; a link's rate is the chip's bidirectional interconnect rate
# over twice its ports.
CHIPS = {
    'v4': Chip(275e12, 30.75 * GIB, 1228e9, 50e9, 128, 3, 4,
               'tpu-v4-podslice'),
    'v5e': Chip(197e12, 15.75 * GIB, 819e9, 50e9, 128, 2, 16,
                'tpu-v5-lite-podslice'),
    'v5p': Chip(459e12, 95.74 * GIB, 2765e9, 100e9, 128, 3, 4,
                'tpu-v5p-slice'),
    'v6e': Chip(918e12, 31.25 * GIB, 1640e9, 100e9, 256, 2, 16,
                'tpu-v6e-slice'),
    'H200': Chip(989e12), 'H100': Chip(989e12), 'A100': Chip(312e12),
    'L4': Chip(121e12), 'T4': Chip(65e12)}
TPUS = tuple(name for name, chip in CHIPS.items() if chip.gke)
DEVICE_KINDS = {
    'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p',
    'TPU v5p': 'v5p', 'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e',
    'NVIDIA H200': 'H200', 'NVIDIA H100': 'H100', 'NVIDIA A100': 'A100',
    'NVIDIA L4': 'L4', 'Tesla T4': 'T4'}
# bfloat16 products that one float32 product takes of a TPU's matrix unit, at
# the precision that the model asks for.
PASSES = {'float32': 6, 'bfloat16': 1}


def peak(device_kind: str) -> float | None:
  """Returns a chip's FLOP/s in bfloat16 (float16 on T4), None if unknown.

  Args:
    device_kind: as jax names it; the longest known beginning counts
      ('NVIDIA H100 80GB HBM3').
  """
  known = [name for name in DEVICE_KINDS if device_kind.startswith(name)]
  if not known:
    return None
  return CHIPS[DEVICE_KINDS[max(known, key=len)]].flops


def parameters(tree: Any) -> int:
  """Returns the number of values in a tree of arrays or shapes."""
  import jax  # The launcher reads the table of chips without it.
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def parameter_counts(params: Any) -> dict[str, int]:
  """Returns {'encoder': its parameters, 'decoder': all that is not kept}.

  Beside a decoder, or in its place, that may be a projection head.
  """
  encoder = parameters(params['encoder'])
  return {'encoder': encoder, 'decoder': parameters(params) - encoder}


def block_macs(config: Any, tokens: int, width: int, depth: int, heads: int,
               tile: int = 1) -> int:
  """Returns the multiply-adds of transformer blocks on a clip, forwards.

  Args:
    config: model config.
    tokens: of the clip.
    width, depth, heads: of the blocks.
    tile: what the sides of a weight, and of a head, are rounded up to.
  """
  wide, hidden = _up(width, tile), _up(config.mlp_ratio * width, tile)
  dense = wide * _up(3 * width, tile) + wide ** 2 + 2 * wide * hidden
  attention = 2 * heads * _up(tokens, tile) * _up(width // heads, tile)
  return depth * tokens * (dense + attention)


def encoder_macs(config: Any, tokens: int, tile: int = 1) -> int:
  """Returns the multiply-adds of the encoder on a clip, forwards."""
  c = config
  patches = tokens * _up(c.mels * c.patch_frames, tile) * _up(c.width, tile)
  return patches + block_macs(c, tokens, c.width, c.depth, c.heads, tile)


def step_flops(config: Any, L: int, K: int, values: int | None = None,
               tile: int = 1) -> dict[str, int]:
  """Returns the FLOPs of one training step on one clip of an MAE.

  Args:
    config: model config.
    L: patches of a clip.
    K: visible patches.
    values: predicted of each removed patch; None is all of its own.
    tile: side of a matrix unit, whose unused rows and columns then count too:
      a head 64 wide keeps a unit of 128 half busy. 1 rounds nothing.

  Returns:
    {'encoder': ..., 'decoder': ..., 'total': ...}.
  """
  c, d = config, config.decoder
  P = c.mels * c.patch_frames if values is None else values
  width = _up(d.width, tile)
  encoder = encoder_macs(c, K, tile)
  decoder = (K * _up(c.width, tile) * width
             + block_macs(c, L, d.width, d.depth, d.heads, tile)
             + (L - K) * width * _up(P, tile))
  return {'encoder': 6 * encoder, 'decoder': 6 * decoder,
          'total': 6 * (encoder + decoder)}


def unit_flops(config: Any, L: int, K: int, frames: int, remat: str,
               tile: int) -> float:
  """Returns what a TPU's matrix unit is busy with, in bfloat16 FLOPs.

  `step_flops` by whole tiles and passes, the blocks' forward pass again where
  `remat` is 'full', the scores again in the backward pass of attention (whose
  kernel does not keep them), and the front end, which is matrix products there.

  Args:
    config, L, K, tile: as in `step_flops`.
    frames: of a clip.
    remat: what the backward pass recomputes; see model.REMAT.
  """
  c, d = config, config.decoder
  stacks = ((K, c.width, c.depth, c.heads), (L, d.width, d.depth, d.heads))
  total = step_flops(c, L, K, tile=tile)['total']
  for tokens, width, depth, heads in stacks:
    if remat == 'full':
      total += 2 * block_macs(c, tokens, width, depth, heads, tile)
    scores = heads * tokens * _up(tokens, tile) * _up(width // heads, tile)
    total += 2 * depth * scores
  # 512 samples to 256 cosines and sines, their squares to mels; float32.
  front = 2 * frames * (512 * 512 + 256 * _up(c.mels, tile))
  return PASSES[c.dtype] * total + PASSES['float32'] * front


def _up(n, tile):
  return -(-n // tile) * tile
