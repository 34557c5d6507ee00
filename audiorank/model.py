"""The Dasheng masked autoencoder: a ViT encoder over 64x4 log-mel patches.

Sizes, initialisation and arithmetic follow Dasheng (arXiv 2406.06992 and the
code its authors published), so weights can be converted in both directions
(see dasheng/). Nothing here knows of files or steps: arrays in, arrays out.

Shapes: B batch, L patches (tokens), K visible, R removed, G groups, D width,
H heads, E width of a head, F mlp, P values per patch, T frames, M mels,
N layers, S samples.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from audiorank import attention
from audiorank import config as config_lib
from audiorank import sharding

# Values of model.remat: what the backward pass recomputes. 'none': nothing.
# 'dots': all but SAVED, the results of the large matrix products. 'full':
# everything. 'auto': none on a CPU, where arithmetic costs more than memory,
# and dots on accelerators, where it is the other way round.
REMAT = ('auto', 'none', 'dots', 'full')
SAVED = ('qkv', 'attention', 'middle', 'fc1')
normal_02 = nn.initializers.normal(.02)


def uniform_16th(key: jax.Array, shape: tuple[int, ...],
                 dtype: Any = jnp.float32) -> jax.Array:
  """Torch's default initialiser of a convolution over 256 inputs.

  It is uniform within 1 / sqrt(inputs), for kernel and bias alike.
  """
  return jax.random.uniform(key, shape, dtype, -1 / 16, 1 / 16)


def name(config: Any) -> str:
  """Returns the name of a model config's size, such as 'en128-12'."""
  return config_lib.size_name(config.width, config.depth)


def patchify(mel_BMT: jax.Array, frames: int) -> jax.Array:
  """Cuts mels into patches of all M mels x `frames` frames.

  Returns:
    patches_BLP, with P index = mel * frames + frame. Leftover frames are
    dropped.
  """
  B, M, T = mel_BMT.shape
  L = T // frames
  x_BMLt = mel_BMT[:, :, :L * frames].reshape(B, M, L, frames)
  # Mels first, then frames: the order of torch's convolution kernels.
  return x_BMLt.transpose(0, 2, 1, 3).reshape(B, L, M * frames)


def unpatchify(patches_BLP: jax.Array, frames: int) -> jax.Array:
  """The inverse of patchify: patches_BLP -> mel_BMT."""
  B, L, P = patches_BLP.shape
  x_BLMt = patches_BLP.reshape(B, L, P // frames, frames)
  return x_BLMt.transpose(0, 2, 1, 3).reshape(B, P // frames, L * frames)


def take(x_BLD: jax.Array, index_BK: jax.Array) -> jax.Array:
  """Gathers tokens of every clip: x_BLD, index_BK -> x_BKD."""
  return jnp.take_along_axis(x_BLD, index_BK[:, :, None], axis=1)


def mask_from_noise(noise_BG: jax.Array, L: int, ratio: float, group: int
                    ) -> tuple[jax.Array, jax.Array]:
  """Splits L tokens into visible and removed ones.

  Each group of `group` consecutive tokens has one noise value. The groups
  with the smallest noise stay visible. Dasheng masks pairs of 40 ms tokens;
  group 1 masks tokens independently.

  Returns:
    keep_BK, drop_BR: int32 token positions; K = int(L * (1 - ratio)) and
    R = L - K.

  Raises:
    ValueError: L is not a multiple of `group`.
  """
  B, G = noise_BG.shape
  if G * group != L:
    raise ValueError(f'{L} patches are not a multiple of mask.group_size '
                     f'{group}: change the crop length or the group')
  # Sorting keeps K the same for every clip, so shapes stay static under jit.
  # K need not be a multiple of the group: then one group is split.
  order_BG = jnp.argsort(noise_BG, axis=1)
  order_BL = (order_BG[:, :, None] * group
              + jnp.arange(group)[None, None]).reshape(B, L)
  K = config_lib.unmasked(L, ratio)
  return order_BL[:, :K], order_BL[:, K:]


def random_mask(key: jax.Array, B: int, L: int, ratio: float, group: int
                ) -> tuple[jax.Array, jax.Array]:
  """Draws keep_BK, drop_BR; see mask_from_noise."""
  noise_BG = jax.random.uniform(key, (B, L // group))
  return mask_from_noise(noise_BG, L, ratio, group)


class MelNorm(nn.Module):
  """BatchNorm over the mel bins of the dB mel, as torch computes it.

  Flax's BatchNorm averages the biased variance. Torch averages the unbiased
  one, and the published weights contain that.
  """
  momentum: float = .01
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, mel_BMT: jax.Array, train: bool) -> jax.Array:
    M = mel_BMT.shape[1]
    scale_M = self.param('scale', nn.initializers.ones, (M,))
    bias_M = self.param('bias', nn.initializers.zeros, (M,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (M,))
    var = self.variable('batch_stats', 'var', jnp.ones, (M,))
    if train:
      mean_M = mel_BMT.mean((0, 2))
      var_M = mel_BMT.var((0, 2))
      if not self.is_initializing():
        n = mel_BMT.shape[0] * mel_BMT.shape[2]
        # Not +=, which would write into a caller's numpy arrays.
        mean.value = mean.value + self.momentum * (mean_M - mean.value)
        var.value = var.value + self.momentum * (
            var_M * n / (n - 1) - var.value)
    else:
      mean_M, var_M = mean.value, var.value
    gain_M = scale_M * jax.lax.rsqrt(var_M + self.epsilon)
    return ((mel_BMT - mean_M[None, :, None]) * gain_M[None, :, None]
            + bias_M[None, :, None])


class Block(nn.Module):
  """A pre-norm transformer block, as the body of a scan.

  It returns (carry, output): the tokens, and the tokens again where
  `collect` asks for those of every block.
  """
  heads: int
  mlp_ratio: int
  dtype: str
  kernel_init: nn.initializers.Initializer
  collect: bool = False

  @nn.compact
  def __call__(self, x_BLD: jax.Array, valid_BL: jax.Array | None
               ) -> tuple[jax.Array, jax.Array | None]:
    D = x_BLD.shape[2]
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init,
        precision=attention.precision(self.dtype))
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    # checkpoint_name marks what model.remat='dots' saves. It stands after the
    # bias: before it, the sum would be saved as well.
    h_BLD = norm(name='norm1')(x_BLD)
    qkv_BLF = checkpoint_name(dense(3 * D, name='qkv')(h_BLD), 'qkv')
    o_BLD = attention.attend(qkv_BLF, self.heads, valid_BL)
    o_BLD = checkpoint_name(o_BLD, 'attention')
    x_BLD += dense(D, name='proj')(o_BLD)
    x_BLD = checkpoint_name(x_BLD, 'middle')
    h_BLD = norm(name='norm2')(x_BLD)
    h_BLF = dense(self.mlp_ratio * D, name='fc1')(h_BLD)
    h_BLF = nn.gelu(checkpoint_name(h_BLF, 'fc1'), approximate=False)
    x_BLD += dense(D, name='fc2')(h_BLF)
    if self.collect:
      return x_BLD, x_BLD
    return x_BLD, None


def rematerialisation(config: Any, platform: str | None = None) -> str:
  """Returns which of REMAT a model config asks for, 'auto' resolved.

  Args:
    config: model config.
    platform: where it will run; None for sharding.platform().

  Raises:
    ValueError: not one of REMAT.
  """
  # Old configs have True and False, from before these had names.
  name = {False: 'none', True: 'full'}.get(config.remat, config.remat)
  if name not in REMAT:
    raise ValueError(f'model.remat {name!r}: expected one of '
                     f'{", ".join(REMAT)}')
  if name != 'auto':
    return name
  if (platform or sharding.platform()) == 'cpu':
    return 'none'
  return 'dots'


def unrolled(config: Any, depth: int) -> int:
  """Returns the scan's unroll: how many of `depth` blocks a turn contains."""
  if config.unroll:
    return min(config.unroll, depth)
  # A small model's step takes a GPU 1.6 times as long with a loop, but the
  # compile time grows with the unrolled blocks. A TPU loses nothing by a loop.
  longest = {'cpu': depth, 'gpu': 24}.get(sharding.platform(), 1)
  if depth > longest:
    return 1
  return depth


def blocks(config: Any, depth: int, heads: int,
           kernel_init: nn.initializers.Initializer, collect: bool = False
           ) -> nn.Module:
  """Returns `depth` scanned blocks with one stacked parameter tree.

  Args:
    config: model config. `unroll` changes the speed, never the layout of the
      parameters; `remat` is what the backward pass recomputes.
    depth, heads: number of blocks, and of heads in each.
    kernel_init: initialiser of the kernels.
    collect: whether to return the output of every block as well.
  """
  # Kernels that are sharded over 'fsdp' are gathered block by block, forwards
  # and again backwards. Without this, XLA's partitioner computes with the
  # shards and exchanges activations instead, which are larger.
  whole = functools.partial(sharding.whole, dtype=config.dtype)
  block = nn.map_variables(Block, 'params', whole, init=True)
  unroll, remat = unrolled(config, depth), rematerialisation(config)
  policy = {'full': None, 'none': sharding.keeps,
            'dots': jax.checkpoint_policies.save_only_these_names(*SAVED)}
  if remat != 'none' or sharding.cut():
    # Unrolled, both passes are in one loop body, and the compiler would merge
    # the recomputation with the first computation (CSE), which saves it.
    block = nn.remat(block, prevent_cse=unroll > 1, policy=policy[remat])
  return nn.scan(
      block, variable_axes={'params': 0}, split_rngs={'params': True},
      in_axes=nn.broadcast, length=depth, unroll=unroll,
      # The check traces every block once more, to prove that what is broadcast
      # out of the loop is constant. Nothing is.
      check_constancy_invariants=False)(
          heads, config.mlp_ratio, config.dtype, kernel_init, collect,
          name='blocks')


class Encoder(nn.Module):
  """The Dasheng encoder.

  `config`: a frozen model config (configs/base.py describes each field).
  """
  config: Any

  def setup(self) -> None:
    c = self.config
    self.norm_mel = MelNorm()
    # The published convolution has no overlap, so a dense layer does the same.
    self.patch = nn.Dense(
        c.width, dtype=c.dtype, kernel_init=uniform_16th,
        bias_init=uniform_16th, precision=attention.precision(c.dtype))
    self.time_LD = self.param(
        'time', normal_02, (config_lib.positions(c), c.width))
    self.freq_D = self.param('freq', normal_02, (c.width,))
    self.norm = nn.LayerNorm(epsilon=1e-6, dtype=c.dtype)

  def patches(self, mel_BMT: jax.Array, train: bool = False) -> jax.Array:
    """dB mel_BMT -> normalised patches_BLP."""
    return patchify(self.norm_mel(mel_BMT, train), self.config.patch_frames)

  @nn.compact
  def __call__(self, patches_BLP: jax.Array, keep_BK: jax.Array | None = None,
               valid_BL: jax.Array | None = None, layers: bool = False) -> Any:
    """Encodes all patches, or the visible ones alone.

    Args:
      patches_BLP: normalised patches, at most as many as positions.
      keep_BK: positions of the visible tokens, or None for all.
      valid_BL: True where a token is sound, False for padding; None for all
        sound.
      layers: also return the output of every block.

    Returns:
      tokens_BKD float32 after the final norm. With layers=True, the pair of it
      and layers_NBKD float32, from before the norm.

    Raises:
      ValueError: more patches than positions.
    """
    c = self.config
    L = patches_BLP.shape[1]
    most = config_lib.positions(c)
    if L > most:
      raise ValueError(f'{L} patches, but the model has {most} positions: '
                       'shorten the crop or raise model.target_frames')
    at_1LD = (self.time_LD[:L] + self.freq_D[None])[None]
    if keep_BK is None:
      at_BKD = at_1LD
    else:
      patches_BLP = take(patches_BLP, keep_BK)
      at_BKD = self.time_LD[keep_BK] + self.freq_D[None, None]
    x_BKD = self.patch(patches_BLP) + at_BKD.astype(c.dtype)
    x_BKD, layers_NBKD = blocks(
        c, c.depth, c.heads, nn.initializers.xavier_uniform(),
        collect=layers)(x_BKD, valid_BL)
    z_BKD = self.norm(x_BKD).astype(jnp.float32)
    if layers:
      return z_BKD, layers_NBKD.astype(jnp.float32)
    return z_BKD


class Decoder(nn.Module):
  """Predicts the removed tokens from the visible ones.

  `values`: P, the number of values predicted per removed token.
  """
  config: Any
  values: int

  @nn.compact
  def __call__(self, z_BKD: jax.Array, keep_BK: jax.Array, drop_BR: jax.Array
               ) -> jax.Array:
    """Returns pred_BRP float32, such as the normalised dB patches at drop_BR.

    Args:
      z_BKD: the encoder's output for the visible tokens.
      keep_BK, drop_BR: see mask_from_noise.
    """
    c, d = self.config, self.config.decoder
    B, R = drop_BR.shape
    dense = functools.partial(nn.Dense, dtype=c.dtype, kernel_init=normal_02,
                              precision=attention.precision(c.dtype))
    mask_D = self.param('mask_token', normal_02, (d.width,))
    # One slot more than there are patches, as the published decoder has.
    time_LD = self.param('time', nn.initializers.zeros,
                         (config_lib.positions(c) + 1, d.width))
    x_BKD = dense(d.width, name='project')(z_BKD)
    x_BRD = jnp.broadcast_to(mask_D.astype(x_BKD.dtype), (B, R, d.width))
    # Blocks do not depend on the order of tokens. So the tokens are not sorted
    # back: each gets the embedding of the position it came from.
    x_BLD = jnp.concatenate([x_BKD, x_BRD], axis=1)
    at_BL = jnp.concatenate([keep_BK, drop_BR], axis=1)
    x_BLD += time_LD[at_BL].astype(c.dtype)
    x_BLD, _ = blocks(c, d.depth, d.heads, normal_02)(x_BLD, None)
    x_BRD = nn.LayerNorm(epsilon=1e-6, dtype=c.dtype, name='norm')(
        x_BLD[:, -R:])
    return dense(self.values, name='out')(x_BRD).astype(jnp.float32)


class MAE(nn.Module):
  """Encoder and decoder: dB mels and a mask in, predicted patches out.

  `values`: number of values predicted per removed token; None predicts the
  whole patch.
  """
  config: Any
  values: int | None = None

  def setup(self) -> None:
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c, self.values or c.mels * c.patch_frames)

  def __call__(self, mel_BMT: jax.Array, keep_BK: jax.Array,
               drop_BR: jax.Array, train: bool = False) -> jax.Array:
    """Returns pred_BRP for dB mels mel_BMT; see mask_from_noise."""
    patches_BLP = self.encoder.patches(mel_BMT, train)
    return self.decoder(self.encoder(patches_BLP, keep_BK), keep_BK, drop_BR)


def encoder_variables(variables: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the encoder's variables, from those of an MAE or its own."""
  if 'encoder' in variables['params']:
    return {kind: tree['encoder'] for kind, tree in variables.items()}
  return variables


def encode(config: Any, params: Mapping[str, Any], mel_BMT: jax.Array,
           valid_L: jax.Array | None = None, layers: bool = False) -> Any:
  """Encodes whole mels of any length, without masking.

  A clip longer than the model's positions is cut into chunks of that many
  tokens; the last one is shorter. Each chunk is encoded alone, with positions
  from 0, as in the PyPI package dasheng >= 0.0.8. The front BatchNorm uses
  its running statistics.

  Args:
    config: model config.
    params: the linen variables, of the MAE or of its encoder alone.
    mel_BMT: dB mels, at least one patch long.
    valid_L: number of valid tokens of each clip ([B] int), or None for all.
    layers: return the output of each block too.

  Returns:
    tokens_BLD float32; with layers=True (tokens_BLD, layers_NBLD).

  Raises:
    ValueError: less than one patch.
  """
  variables = encoder_variables(params)
  net = Encoder(config)
  patches_BLP: Any = net.apply(variables, mel_BMT, method='patches')
  L, step = patches_BLP.shape[1], config_lib.positions(config)
  if not L:
    raise ValueError(f'{mel_BMT.shape[2]} frames are less than one patch of '
                     f'{config.patch_frames}')
  B, whole = patches_BLP.shape[0], L - L % step
  valid_BL = None
  if valid_L is not None:
    valid_BL = jnp.arange(L)[None] < valid_L[:, None]
  pieces = []
  # Whole chunks become rows of one batch, so that a clip of any length takes
  # two programs: one for these and one for the rest.
  for start, stop, chunks in ((0, whole, L // step), (whole, L, 1)):
    if start == stop:
      continue
    tokens = (stop - start) // chunks
    row = lambda x, c=chunks, n=tokens: x.reshape(B * c, n, *x.shape[2:])
    own_valid = valid_BL
    if own_valid is not None:
      own_valid = row(own_valid[:, start:stop])
    out = net.apply(variables, row(patches_BLP[:, start:stop]),
                    valid_BL=own_valid, layers=layers)
    pieces.append(jax.tree.map(
        lambda x, n=stop - start: x.reshape(*x.shape[:-3], B, n, x.shape[-1]),
        out))
  if layers:
    tokens, stacks = zip(*pieces)
    return (jnp.concatenate(tokens, axis=1),
            jnp.concatenate(stacks, axis=2))
  return jnp.concatenate(pieces, axis=1)
