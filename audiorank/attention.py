"""Multi-head softmax attention, with the fastest implementation per platform.

Every implementation takes the output of the qkv layer and returns what
jax.nn.dot_product_attention returns. Scores and softmax are float32; keys that
are not `valid` have weight 0.

  pallas   TPU: one fused kernel; the scores stay in on-chip memory
  cudnn    GPU from Ampere on, in bfloat16: cuDNN's fused attention
  by_clip  CPU: one clip at a time, so that its scores fit a core's cache
  plain    GPU where cuDNN does not apply, CPU with short clips, exports

No implementation stores the scores for the backward pass. All recompute them.

Shapes: B clips, L tokens (the second L: keys), D width, H heads, E width of a
head, F = 3 D (queries, keys, values), W lanes of a kernel's block.
"""

import functools
import math

import jax
import jax.numpy as jnp

from audiorank import sharding

IMPLEMENTATIONS = ('pallas', 'cudnn', 'by_clip', 'plain')
# From this many scores of a clip (heads x tokens x tokens) a CPU takes one
# clip at a time. Below it, a loop iteration costs more than the cache saves.
LARGE = 2 ** 16
LANES = 128  # Of a TPU's vector registers, and the side of its matrix unit.
# Clips shorter than this share one program of the kernel, up to so many tokens
# together: each program has a fixed cost.
ROWS = 256
# Score of a masked key. Finite, as in jax.nn.dot_product_attention: with -inf
# a clip whose keys are all masked would give NaN.
MASKED = -.7 * float(jnp.finfo(jnp.float32).max)


def precision(dtype: str) -> jax.lax.Precision:
  """Returns the precision argument for matrix products in a compute type.

  Every product of the model passes it, so that float32 means float32 on all
  platforms, whatever jax.default_matmul_precision is.
  """
  if dtype == 'float32':
    # The default is TF32 on a GPU and bfloat16 passes on a TPU.
    return jax.lax.Precision.HIGHEST
  # HIGHEST would fail here: no platform has float32 products of bfloat16.
  return jax.lax.Precision.DEFAULT


def attend(qkv_BLF: jax.Array, heads: int, valid_BL: jax.Array | None = None,
           implementation: str | None = None) -> jax.Array:
  """Returns o_BLD: every token attends to all tokens of its clip.

  Args:
    qkv_BLF: queries, keys and values side by side, each split into heads.
    heads: H.
    valid_BL: True for tokens that serve as keys; None for all.
    implementation: one of IMPLEMENTATIONS; None lets `choose` decide.

  Raises:
    ValueError: an unknown implementation.
  """
  if implementation is None:
    implementation = choose(sharding.platform(), qkv_BLF.shape, heads,
                            qkv_BLF.dtype, valid_BL is not None)
  if implementation == 'cudnn':
    return _cudnn(qkv_BLF, heads, valid_BL)
  if implementation == 'plain':
    return _plain(qkv_BLF, valid_BL, heads, False)
  # XLA's partitioner can split neither a kernel nor a loop over clips, so each
  # device runs these two on its own clips.
  if implementation == 'by_clip':
    own_rows = lambda qkv_BLF, valid_BL=None: _plain(
        qkv_BLF, valid_BL, heads, True)
  elif implementation == 'pallas':
    interpret = sharding.platform() != 'tpu'
    own_rows = lambda qkv_BLF, valid_BL=None: _fused(
        qkv_BLF, valid_BL, heads, interpret)
  else:
    raise ValueError(f'attention {implementation!r}: expected one of '
                     f'{", ".join(IMPLEMENTATIONS)}')
  arrays = [qkv_BLF]
  if valid_BL is not None:
    arrays.append(valid_BL)
  return sharding.over_rows(own_rows)(*arrays)


def choose(platform: str, shape: tuple, heads: int, dtype: jnp.dtype,
           masked: bool = False) -> str:
  """Returns the fastest implementation for a platform and a qkv_BLF.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    shape: of qkv_BLF.
    heads: H.
    dtype: of qkv_BLF.
    masked: whether some keys are not valid.
  """
  B, L, F = shape
  if not isinstance(B, int):
    return 'plain'  # Exported with a symbolic batch size.
  if platform == 'tpu':
    return 'pallas'
  if platform == 'cpu' and heads * L * L >= LARGE:
    return 'by_clip'
  # cuDNN has no float32 kernel and, for training, takes no mask of odd length.
  width = F // 3 // heads
  if platform == 'gpu' and dtype == jnp.bfloat16 and not masked and (
      width % 8 == 0 and width <= 128 and has_cudnn()):
    return 'cudnn'
  return 'plain'


@functools.cache
def has_cudnn() -> bool:
  """Returns whether this machine's GPU has cuDNN's fused attention."""
  device = jax.local_devices(backend='gpu')[0]
  if 'cuda' not in device.client.platform_version:
    return False  # An AMD GPU.
  return float(device.compute_capability) >= 8  # 8.0 is Ampere.


def _cudnn(qkv_BLF, heads, valid_BL):
  B, L, F = qkv_BLF.shape
  q_BLHE, k_BLHE, v_BLHE = jnp.unstack(
      qkv_BLF.reshape(B, L, 3, heads, -1), axis=2)
  mask = valid_BL
  if mask is not None:
    mask = mask[:, None, None, :]  # The same keys for all heads and queries.
  o_BLHE = jax.nn.dot_product_attention(
      q_BLHE, k_BLHE, v_BLHE, mask=mask, implementation='cudnn')
  return o_BLHE.reshape(B, L, F // 3)


# 'plain' and 'by_clip', compiled by XLA: the formulas of FlashAttention (arXiv
# 2205.14135) on whole rows of scores. The softmax divides by its sum after the
# product with the values, and the gradient before its products. So a row needs
# E divisions, not L.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plain(qkv_BLF, valid_BL, heads, by_clip):
  return _plain_fwd(qkv_BLF, valid_BL, heads, by_clip)[0]


def _plain_fwd(qkv_BLF, valid_BL, heads, by_clip):
  o_BLD, *sums = _each_clip(by_clip, heads, _clip_forward)(qkv_BLF, valid_BL)
  return o_BLD, (qkv_BLF, valid_BL, o_BLD, *sums)


def _plain_bwd(heads, by_clip, saved, g_BLD):
  dqkv_BLF = _each_clip(by_clip, heads, _clip_backward)(*saved, g_BLD)
  return dqkv_BLF, None


_plain.defvjp(_plain_fwd, _plain_bwd)


def _each_clip(by_clip, heads, function):
  """Maps a function of one clip's arrays over a batch, in turn or at once."""
  one = functools.partial(function, heads)
  if by_clip:
    return lambda *arrays: jax.lax.map(lambda a: one(*a), arrays)
  return lambda *arrays: jax.vmap(one)(*arrays)


def _heads(x_LF, heads):
  """Splits the columns of q, k or v into heads: x_LD -> x_HLE."""
  return jnp.moveaxis(x_LF.reshape(len(x_LF), heads, -1), 1, 0)


def _merge(x_HLE):
  """The inverse of _heads."""
  return jnp.moveaxis(x_HLE, 0, 1).reshape(x_HLE.shape[1], -1)


def _einsum(formula, a, b):
  return jnp.einsum(formula, a, b, precision=precision(a.dtype),
                    preferred_element_type=jnp.float32)


def _scores(q_HLE, k_HLE, valid_L):
  s_HLL = _einsum('hle,hme->hlm', q_HLE, k_HLE) * q_HLE.shape[2] ** -.5
  if valid_L is None:
    return s_HLL
  return jnp.where(valid_L[None, None], s_HLL, MASKED)


def _clip_forward(heads, qkv_LF, valid_L):
  """Returns o_LD and, per row, the largest score and the sum of exponentials.

  The backward pass needs the two to recompute the softmax.
  """
  q_HLE, k_HLE, v_HLE = (_heads(x, heads) for x in jnp.split(qkv_LF, 3, 1))
  s_HLL = _scores(q_HLE, k_HLE, valid_L)
  top_HL1 = s_HLL.max(2, keepdims=True)  # Subtracted, so exp cannot overflow.
  e_HLL = jnp.exp(s_HLL - top_HL1)
  sum_HL1 = e_HLL.sum(2, keepdims=True)
  o_HLE = _einsum('hlm,hme->hle', e_HLL.astype(v_HLE.dtype), v_HLE) / sum_HL1
  return _merge(o_HLE).astype(qkv_LF.dtype), top_HL1, sum_HL1


def _clip_backward(heads, qkv_LF, valid_L, o_LD, top_HL1, sum_HL1, g_LD):
  """Returns dqkv_LF, the gradient of the loss, from that of o_LD, g_LD."""
  dtype = qkv_LF.dtype
  q_HLE, k_HLE, v_HLE = (_heads(x, heads) for x in jnp.split(qkv_LF, 3, 1))
  g_HLE = _heads(g_LD, heads) / sum_HL1
  # The softmax's gradient needs the weighted mean of dp over L keys. It equals
  # the product of g and o summed over E columns, which is cheaper.
  mean_HL1 = (g_HLE * _heads(o_LD, heads)).sum(2, keepdims=True)
  g_HLE = g_HLE.astype(dtype)
  e_HLL = jnp.exp(_scores(q_HLE, k_HLE, valid_L) - top_HL1)
  dp_HLL = _einsum('hle,hme->hlm', g_HLE, v_HLE)
  ds_HLL = e_HLL * (dp_HLL - mean_HL1)
  if valid_L is not None:
    # Where all keys are masked their weights are not 0, but equal.
    ds_HLL = jnp.where(valid_L[None, None], ds_HLL, 0.)
  ds_HLL = (ds_HLL * q_HLE.shape[2] ** -.5).astype(dtype)
  parts = (_einsum('hlm,hme->hle', ds_HLL, k_HLE),
           _einsum('hlm,hle->hme', ds_HLL, q_HLE),
           _einsum('hlm,hle->hme', e_HLL.astype(dtype), g_HLE))
  return jnp.concatenate([_merge(x).astype(dtype) for x in parts], axis=1)


# The TPU's kernel. A program loads the q, k and v of a few clips and heads into
# on-chip memory, [L, W] each, and computes the scores there. To work on one
# head, it zeroes the lanes of the other heads. The matrix unit takes 128 lanes
# at once whatever a head's width, so this costs nothing; slicing at a head's
# edge would shift every lane.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fused(qkv_BLF, valid_BL, heads, interpret):
  return _call(_forward_kernel, qkv_BLF, valid_BL, (), heads, interpret)


def _fused_fwd(qkv_BLF, valid_BL, heads, interpret):
  return _fused(qkv_BLF, valid_BL, heads, interpret), (qkv_BLF, valid_BL)


def _fused_bwd(heads, interpret, saved, g_BLD):
  dqkv_BLF = _call(_backward_kernel, *saved, (g_BLD,), heads, interpret)
  return dqkv_BLF, None


_fused.defvjp(_fused_fwd, _fused_bwd)


def _block(D: int, E: int) -> int:
  """Returns W, the lanes of a block: whole registers of whole heads, or D."""
  W = math.lcm(E, LANES)
  if D % W:
    return D  # A narrow or odd width: one block holds all heads.
  return W


def _call(kernel, qkv_BLF, valid_BL, more, heads, interpret):
  """Runs a kernel over a grid: blocks of clips times blocks of heads.

  Args:
    kernel: _forward_kernel, or _backward_kernel with `more`.
    qkv_BLF, valid_BL: as in `attend`.
    more: (the gradient of the output [B, L, D],) for the backward pass, which
      returns the gradient of qkv_BLF.
    heads: H.
    interpret: whether to emulate the kernel, on another platform.
  """
  # The import takes half a second, which other platforms should not pay.
  from jax.experimental import pallas as pl
  B, L, F = qkv_BLF.shape
  D, E = F // 3, F // 3 // heads
  W = _block(D, E)
  clips = max(1, ROWS // L)
  while B % clips:  # A grid has no partial blocks of clips.
    clips -= 1

  def columns(part: int):
    return pl.BlockSpec((clips, L, W),
                        lambda b, d: (b, 0, part * (D // W) + d))

  def whole(rows: int, width: int):
    return pl.BlockSpec((clips, rows, width), lambda b, d: (b, 0, 0))

  if W % LANES == 0:
    # The same array three times: each spec picks the columns of q, k or v.
    arrays, specs = [qkv_BLF] * 3, [columns(part) for part in range(3)]
  else:
    # Blocks must start at whole registers, which k and v would not.
    arrays, specs = [qkv_BLF], [whole(L, F)]
  arrays += more
  specs += [columns(0) for _ in more]
  if valid_BL is not None:
    arrays.append(valid_BL.astype(jnp.float32)[:, None])
    specs.append(whole(1, L))
  # For XLA's scheduler: the matrix products of a head, and the [L, D] arrays
  # that are read or written.
  if more:
    products, moved = 5, 7  # Scores, dp, dq, dk, dv; q, k, v, g, dq, dk, dv.
    out_spec, width = whole(L, F), F
  else:
    products, moved = 2, 4  # Scores, o; q, k, v, o.
    out_spec, width = columns(0), D
  size, exponentials = qkv_BLF.dtype.itemsize, B * heads * L * L
  return pl.pallas_call(
      functools.partial(kernel, E=E, masked=valid_BL is not None),
      grid=(B // clips, D // W), in_specs=specs, out_specs=out_spec,
      out_shape=jax.ShapeDtypeStruct((B, L, width), qkv_BLF.dtype),
      cost_estimate=pl.CostEstimate(
          flops=2 * products * E * exponentials, transcendentals=exponentials,
          bytes_accessed=moved * B * L * D * size),
      interpret=interpret)(*arrays)


def _product(a, b, contract):
  """Returns the float32 product of two matrices, `contract` summed over."""
  return jax.lax.dot_general(
      a, b, (contract, ((), ())), precision=precision(a.dtype),
      preferred_element_type=jnp.float32)


def _clips(refs, masked):
  """Yields (number, [q, k, v, others], valid or None) per clip of a block."""
  arrays, valid = refs, None
  if masked:
    *arrays, valid = refs
  for b in range(arrays[0].shape[0]):
    blocks = [r[b] for r in arrays]
    if len(blocks) < 3:  # One block holds q, k and v; see _call.
      W = blocks[0].shape[1] // 3
      blocks[:1] = [blocks[0][:, i * W:(i + 1) * W] for i in range(3)]
    own = None
    if valid is not None:
      own = valid[b]
    yield b, blocks, own


def _windows(W, E):
  """Returns [(head, slice of the whole registers that hold it)]."""
  unit = W
  if W % LANES == 0:
    unit = LANES
  return [(head, slice(head * E // unit * unit,
                       -(-(head + 1) * E // unit) * unit))
          for head in range(W // E)]


def _only(x_LW, head, at, E):
  """Returns the columns of a window, zero in the lanes of other heads."""
  x_LW = x_LW[:, at]
  lane = at.start + jax.lax.broadcasted_iota(jnp.int32, x_LW.shape, 1)
  own = (lane >= head * E) & (lane < (head + 1) * E)
  return jnp.where(own, x_LW, jnp.zeros_like(x_LW))


def _add(total_LW, at, x_LW):
  """Adds x_LW to one window of an accumulator."""
  if x_LW.shape == total_LW.shape:
    return total_LW + x_LW
  # A TPU kernel has no scatter, which total_LW.at[:, at].add would need.
  return total_LW + jnp.pad(
      x_LW, ((0, 0), (at.start, total_LW.shape[1] - at.stop)))


def _exponentials(q_LW, k_LW, valid_1L, E):
  """Returns one head's exponentials e_LL and their sum_L1.

  q_LW is zero in the lanes of other heads; k_LW need not be.
  """
  s_LL = _product(q_LW, k_LW, ((1,), (1,))) * E ** -.5
  if valid_1L is not None:
    s_LL = jnp.where(valid_1L > 0, s_LL, MASKED)
  e_LL = jnp.exp(s_LL - s_LL.max(1, keepdims=True))
  return e_LL, e_LL.sum(1, keepdims=True)


def _forward_kernel(*refs, E, masked):
  *refs, o_ref = refs
  for b, (q_LW, k_LW, v_LW), valid_1L in _clips(refs, masked):
    o_LW = jnp.zeros(q_LW.shape, jnp.float32)
    for head, at in _windows(q_LW.shape[1], E):
      q, v = (_only(x, head, at, E) for x in (q_LW, v_LW))
      e_LL, sum_L1 = _exponentials(q, k_LW[:, at], valid_1L, E)
      o = _product(e_LL.astype(v.dtype), v, ((1,), (0,)))
      o_LW = _add(o_LW, at, o / sum_L1)
    o_ref[b] = o_LW.astype(o_ref.dtype)


def _backward_kernel(*refs, E, masked):
  from jax.experimental import pallas as pl
  *refs, dqkv_ref = refs
  D = dqkv_ref.shape[2] // 3
  for b, (q_LW, k_LW, v_LW, g_LW), valid_1L in _clips(refs, masked):
    W, dtype = q_LW.shape[1], q_LW.dtype
    dq_LW = jnp.zeros(q_LW.shape, jnp.float32)
    dk_LW, dv_LW = dq_LW, dq_LW
    for head, at in _windows(W, E):
      q, k, v, g = (_only(x, head, at, E) for x in (q_LW, k_LW, v_LW, g_LW))
      e_LL, sum_L1 = _exponentials(q, k, valid_1L, E)
      g = (g / sum_L1).astype(dtype)
      dp_LL = _product(g, v, ((1,), (1,)))
      mean_L1 = (e_LL * dp_LL).sum(1, keepdims=True) / sum_L1
      ds_LL = e_LL * (dp_LL - mean_L1) * E ** -.5
      if valid_1L is not None:
        ds_LL = jnp.where(valid_1L > 0, ds_LL, 0.)
      ds_LL, e_LL = ds_LL.astype(dtype), e_LL.astype(dtype)
      dq_LW = _add(dq_LW, at, _product(ds_LL, k, ((1,), (0,))))
      dk_LW = _add(dk_LW, at, _product(ds_LL, q, ((0,), (0,))))
      dv_LW = _add(dv_LW, at, _product(e_LL, g, ((0,), (0,))))
    # The output block is a whole row of 3 D. Programs of the same clips hold
    # it one after the other, and each writes the columns of its own heads.
    for part, x_LW in enumerate((dq_LW, dk_LW, dv_LW)):
      lanes = slice(part * W, (part + 1) * W)
      if W % LANES == 0:
        start = part * D + pl.program_id(1) * W
        lanes = pl.ds(pl.multiple_of(start, LANES), W)
      dqkv_ref[b, :, lanes] = x_LW.astype(dqkv_ref.dtype)
