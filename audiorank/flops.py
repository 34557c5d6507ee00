"""The table of chips, and the FLOPs of a training step, counted analytically.

XLA's own count cannot be used: it counts the body of a scan once. A matrix
product of n multiply-adds is 2 n FLOPs, and the backward pass costs twice the
forward pass. Norms and softmax are left out: below 1 % from width 128 on.
"""

import math
from typing import Any
from typing import NamedTuple

GIB = 2 ** 30


class Chip(NamedTuple):
  """The figures of a chip. Only TPUs, which launch/tpu plans for, have all."""
  flops: float  # Peak bfloat16 FLOP/s of the matrix units (T4: float16).
  memory: float = 0.  # Bytes available to programs, as the compiler reports.
  hbm: float = 0.  # Bytes per second between memory and cores.
  link: float = 0.  # Bytes per second of one link, in one direction.
  tile: int = 1  # Rows and columns of a matrix unit.
  dims: int = 0  # Dimensions of the torus or grid of a slice.
  ring: int = 0  # A side closes to a ring if it is a multiple of this.
  gke: str = ''  # Google's name of the machine type.


# The only table of chips. FLOP/s are from the makers' data sheets. Figures of
# TPUs are from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in
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
# The beginnings of jax's device_kind. Some TPUs have two: the name that the
# runtime reports, and the product's.
DEVICE_KINDS = {
    'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p',
    'TPU v5p': 'v5p', 'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e',
    'NVIDIA H200': 'H200', 'NVIDIA H100': 'H100', 'NVIDIA A100': 'A100',
    'NVIDIA L4': 'L4', 'Tesla T4': 'T4'}
# bfloat16 passes of a TPU's matrix unit for one product. At the model's
# precision (HIGHEST), XLA computes a float32 product in six.
PASSES = {'float32': 6, 'bfloat16': 1}


def peak(device_kind: str) -> float | None:
  """Returns a chip's FLOP/s in bfloat16 (float16 on T4), None if unknown.

  Args:
    device_kind: jax's name of the device, such as 'NVIDIA H100 80GB HBM3'. It
      is matched by the longest known beginning.
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
  """Returns the parameters of the encoder and, as 'decoder', of the rest.

  The rest is what training throws away at the end: a decoder, a projection
  head, or both.
  """
  encoder = parameters(params['encoder'])
  return {'encoder': encoder, 'decoder': parameters(params) - encoder}


def block_macs(config: Any, tokens: int, width: int, depth: int, heads: int,
               tile: int = 1) -> int:
  """Returns the forward multiply-adds of transformer blocks on one clip.

  Args:
    config: model config.
    tokens: of the clip.
    width, depth, heads: of the blocks.
    tile: the sides of weights and heads are rounded up to multiples of it.
  """
  wide, hidden = _up(width, tile), _up(config.mlp_ratio * width, tile)
  # Per token: the qkv layer, the projection, and the two layers of the MLP.
  dense = wide * _up(3 * width, tile) + wide ** 2 + 2 * wide * hidden
  # Per token: the scores, and their product with the values.
  attention = 2 * heads * _up(tokens, tile) * _up(width // heads, tile)
  return depth * tokens * (dense + attention)


def encoder_macs(config: Any, tokens: int, tile: int = 1) -> int:
  """Returns the forward multiply-adds of the encoder on one clip."""
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
    values: number of values predicted per removed patch; None for all.
    tile: side of a matrix unit, to count its unused rows and columns too: a
      head of width 64 uses half of a unit of 128. 1 rounds nothing.

  Returns:
    {'encoder': ..., 'decoder': ..., 'total': ...}.
  """
  c, d = config, config.decoder
  P = values
  if P is None:
    P = c.mels * c.patch_frames
  width = _up(d.width, tile)
  encoder = encoder_macs(c, K, tile)
  decoder = (K * _up(c.width, tile) * width
             + block_macs(c, L, d.width, d.depth, d.heads, tile)
             + (L - K) * width * _up(P, tile))
  # 2 FLOPs per multiply-add, and the backward pass costs twice the forward.
  return {'encoder': 6 * encoder, 'decoder': 6 * decoder,
          'total': 6 * (encoder + decoder)}


def unit_flops(config: Any, L: int, K: int, frames: int, remat: str,
               tile: int) -> float:
  """Returns the load of a TPU's matrix unit per clip, in bfloat16 FLOPs.

  It is `step_flops`, counted in whole tiles and in passes of bfloat16, plus:
  the forward pass of the blocks where `remat` is 'full'; the scores, which
  attention recomputes in its backward pass; and the front end, which consists
  of matrix products on a TPU (see audio.mel_power).

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
  # Per frame: 512 samples to 256 cosines and 256 sines, then 256 powers to
  # mels. The front end is float32 whatever the model's type.
  front = 2 * frames * (512 * 512 + 256 * _up(c.mels, tile))
  return PASSES[c.dtype] * total + PASSES['float32'] * front


def _up(n, tile):
  """Rounds n up to a multiple of tile."""
  return -(-n // tile) * tile
