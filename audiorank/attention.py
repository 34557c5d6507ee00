"""Multi-head softmax attention, by what is fastest where it runs.

Every implementation reads the output of the qkv layer and returns what
jax.nn.dot_product_attention returns: scores and softmax in float32, keys
outside `valid` weighing nothing.

  pallas   TPU: one fused kernel; the scores never leave the core
  cudnn    GPU from Ampere on, in bfloat16: cuDNN's fused attention
  by_clip  CPU: a clip at a time, whose scores fit a core's cache
  plain    what cuDNN does not take, short clips on a CPU, exported programs

None of them keeps the scores for the backward pass: they are computed again.

Shapes: B clips, L tokens (the second L: keys), D width, H heads, E width of a
head, F = 3 D (queries, keys, values), W lanes of a kernel's block.
"""

import functools
import math

import jax
import jax.numpy as jnp

from audiorank import sharding

IMPLEMENTATIONS = ('pallas', 'cudnn', 'by_clip', 'plain')
# Scores of a clip (heads x tokens x tokens) from which a CPU takes one clip
# at a time. Below it starting each clip costs more than its cache saves.
LARGE = 2 ** 16
LANES = 128  # Of a TPU's vector registers, and the side of its matrix unit.
ROWS = 256  # Tokens that one program of the kernel takes, at least.
# Of a masked key. Finite, as in jax.nn.dot_product_attention, so that a clip
# whose keys are all masked gives numbers.
MASKED = -.7 * float(jnp.finfo(jnp.float32).max)


def precision(dtype: str) -> jax.lax.Precision:
  """Returns the precision of matrix products in a compute type.

  float32 is float32 everywhere. Products say so themselves, whatever
  jax.default_matmul_precision is around them: left to the default a GPU takes
  TF32 and a TPU bfloat16 for float32, and neither has float32 products of
  bfloat16.
  """
  return (jax.lax.Precision.HIGHEST if dtype == 'float32'
          else jax.lax.Precision.DEFAULT)


def attend(qkv_BLF: jax.Array, heads: int, valid_BL: jax.Array | None = None,
           implementation: str | None = None) -> jax.Array:
  """Returns o_BLD, the attention of every token to all tokens of its clip.

  Args:
    qkv_BLF: queries, keys and values side by side; in each, the heads.
    heads: H.
    valid_BL: True for the tokens that count as keys; None for all.
    implementation: of IMPLEMENTATIONS; None for the platform's own.

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
  # The partitioner can cut neither a kernel nor a loop over clips.
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
  arrays = (qkv_BLF,) if valid_BL is None else (qkv_BLF, valid_BL)
  return sharding.over_rows(own_rows)(*arrays)


def choose(platform: str, shape: tuple, heads: int, dtype: jnp.dtype,
           masked: bool = False) -> str:
  """Returns the implementation that suits a platform and a qkv_BLF."""
  B, L, F = shape
  if not isinstance(B, int):
    return 'plain'  # Exported for any number of clips.
  if platform == 'tpu':
    return 'pallas'
  if platform == 'cpu' and heads * L * L >= LARGE:
    return 'by_clip'
  # cuDNN has no float32 and, for training, no masks of odd lengths.
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
    return False  # AMD's.
  return float(device.compute_capability) >= 8


def _cudnn(qkv_BLF, heads, valid_BL):
  B, L, F = qkv_BLF.shape
  q_BLHE, k_BLHE, v_BLHE = jnp.unstack(
      qkv_BLF.reshape(B, L, 3, heads, -1), axis=2)
  mask = None if valid_BL is None else valid_BL[:, None, None, :]
  o_BLHE = jax.nn.dot_product_attention(
      q_BLHE, k_BLHE, v_BLHE, mask=mask, implementation='cudnn')
  return o_BLHE.reshape(B, L, F // 3)


# What XLA compiles: the formulas of FlashAttention (arXiv 2205.14135) on whole
# rows. Rows of weights are divided by their sum after the product with the
# values, and gradients before theirs: E divisions a row instead of L.


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
  """Returns a function of one clip's arrays for those of a batch."""
  one = functools.partial(function, heads)
  if by_clip:
    return lambda *arrays: jax.lax.map(lambda a: one(*a), arrays)
  return lambda *arrays: jax.vmap(one)(*arrays)


def _heads(x_LF, heads):
  """Splits columns by head: x_LF -> x_HLE, or of q, k and v each."""
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
  """Returns (o_LD, each row's greatest score, its sum of exponentials)."""
  q_HLE, k_HLE, v_HLE = (_heads(x, heads) for x in jnp.split(qkv_LF, 3, 1))
  s_HLL = _scores(q_HLE, k_HLE, valid_L)
  top_HL1 = s_HLL.max(2, keepdims=True)
  e_HLL = jnp.exp(s_HLL - top_HL1)
  sum_HL1 = e_HLL.sum(2, keepdims=True)
  o_HLE = _einsum('hlm,hme->hle', e_HLL.astype(v_HLE.dtype), v_HLE) / sum_HL1
  return _merge(o_HLE).astype(qkv_LF.dtype), top_HL1, sum_HL1


def _clip_backward(heads, qkv_LF, valid_L, o_LD, top_HL1, sum_HL1, g_LD):
  """Returns dqkv_LF."""
  dtype = qkv_LF.dtype
  q_HLE, k_HLE, v_HLE = (_heads(x, heads) for x in jnp.split(qkv_LF, 3, 1))
  g_HLE = _heads(g_LD, heads) / sum_HL1
  # The mean of dp over keys, by the weights, is that of g over columns by o.
  mean_HL1 = (g_HLE * _heads(o_LD, heads)).sum(2, keepdims=True)
  g_HLE = g_HLE.astype(dtype)
  e_HLL = jnp.exp(_scores(q_HLE, k_HLE, valid_L) - top_HL1)
  dp_HLL = _einsum('hle,hme->hlm', g_HLE, v_HLE)
  ds_HLL = e_HLL * (dp_HLL - mean_HL1)
  if valid_L is not None:
    ds_HLL = jnp.where(valid_L[None, None], ds_HLL, 0.)
  ds_HLL = (ds_HLL * q_HLE.shape[2] ** -.5).astype(dtype)
  parts = (_einsum('hlm,hme->hle', ds_HLL, k_HLE),
           _einsum('hlm,hle->hme', ds_HLL, q_HLE),
           _einsum('hlm,hle->hme', e_HLL.astype(dtype), g_HLE))
  return jnp.concatenate([_merge(x).astype(dtype) for x in parts], axis=1)


# The TPU's kernel. A program holds some clips' columns of q, k and v in the
# core's memory, [L, W] each, and computes the scores there, forwards and again
# backwards. Heads are told apart by zeroing the lanes of the others: the
# matrix unit takes 128 lanes at once whatever a head's width, and cutting at a
# head's edge would move every lane.


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
  """Returns W: whole registers that hold whole heads, or all of a row."""
  W = math.lcm(E, LANES)
  return W if D % W == 0 else D


def _call(kernel, qkv_BLF, valid_BL, more, heads, interpret):
  """Runs a kernel over blocks of clips and of heads.

  Args:
    kernel: _forward_kernel, or _backward_kernel with `more`.
    qkv_BLF, valid_BL: as in `attend`.
    more: the gradient of the output [B, L, D]; the result is then that of
      qkv_BLF.
    heads: H.
    interpret: whether to emulate the kernel.
  """
  # Half a second to import, which other platforms need not wait for.
  from jax.experimental import pallas as pl
  B, L, F = qkv_BLF.shape
  D, E = F // 3, F // 3 // heads
  W = _block(D, E)
  clips = max(1, ROWS // L)
  while B % clips:
    clips -= 1

  def columns(part):
    return pl.BlockSpec((clips, L, W),
                        lambda b, d: (b, 0, part * (D // W) + d))

  def whole(rows, width):
    return pl.BlockSpec((clips, rows, width), lambda b, d: (b, 0, 0))

  if W % LANES == 0:
    arrays, specs = [qkv_BLF] * 3, [columns(part) for part in range(3)]
  else:
    arrays, specs = [qkv_BLF], [whole(L, F)]
  arrays += more
  specs += [columns(0) for _ in more]
  if valid_BL is not None:
    arrays.append(valid_BL.astype(jnp.float32)[:, None])
    specs.append(whole(1, L))
  size, exponentials = qkv_BLF.dtype.itemsize, B * heads * L * L
  products, moved = (5, 7) if more else (2, 4)
  return pl.pallas_call(
      functools.partial(kernel, E=E, masked=valid_BL is not None),
      grid=(B // clips, D // W), in_specs=specs,
      out_specs=whole(L, F) if more else columns(0),
      out_shape=jax.ShapeDtypeStruct((B, L, F if more else D), qkv_BLF.dtype),
      cost_estimate=pl.CostEstimate(
          flops=2 * products * E * exponentials, transcendentals=exponentials,
          bytes_accessed=moved * B * L * D * size),
      interpret=interpret)(*arrays)


def _product(a, b, contract):
  """Returns the float32 product of two matrices over these dimensions."""
  return jax.lax.dot_general(
      a, b, (contract, ((), ())), precision=precision(a.dtype),
      preferred_element_type=jnp.float32)


def _clips(refs, masked):
  """Yields every clip of a block: its number, q, k, v and others, valid."""
  valid = refs[-1] if masked else None
  arrays = refs[:-1] if masked else refs
  for b in range(arrays[0].shape[0]):
    blocks = [r[b] for r in arrays]
    if len(blocks) < 3:  # q, k and v are in one.
      W = blocks[0].shape[1] // 3
      blocks[:1] = [blocks[0][:, i * W:(i + 1) * W] for i in range(3)]
    yield b, blocks, None if valid is None else valid[b]


def _windows(W, E):
  """Returns [(head, the slice of whole registers that holds it)]."""
  unit = LANES if W % LANES == 0 else W
  return [(head, slice(head * E // unit * unit,
                       -(-(head + 1) * E // unit) * unit))
          for head in range(W // E)]


def _only(x_LW, head, at, E):
  """Returns a window's columns with the lanes of all other heads zeroed."""
  x_LW = x_LW[:, at]
  lane = at.start + jax.lax.broadcasted_iota(jnp.int32, x_LW.shape, 1)
  own = (lane >= head * E) & (lane < (head + 1) * E)
  return jnp.where(own, x_LW, jnp.zeros_like(x_LW))


def _add(total_LW, at, x_LW):
  """Adds to a window of an accumulator."""
  if x_LW.shape == total_LW.shape:
    return total_LW + x_LW
  return total_LW + jnp.pad(
      x_LW, ((0, 0), (at.start, total_LW.shape[1] - at.stop)))


def _exponentials(q_LW, k_LW, valid_1L, E):
  """Returns (e_LL, their sum_L1) of one head; all of its lanes are in q_LW."""
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
    for part, x_LW in enumerate((dq_LW, dk_LW, dv_LW)):
      lanes = slice(part * W, (part + 1) * W)
      if W % LANES == 0:
        start = part * D + pl.program_id(1) * W
        lanes = pl.ds(pl.multiple_of(start, LANES), W)
      dqkv_ref[b, :, lanes] = x_LW.astype(dqkv_ref.dtype)
