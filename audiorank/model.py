"""The Dasheng masked autoencoder: a ViT encoder over 64x4 log-mel patches.

Sizes, initialisation and arithmetic follow Dasheng (arXiv 2406.06992 and the
code its authors published), so weights move both ways (see dasheng.py).
Nothing here knows of files, steps or devices: arrays in, arrays out.

Shapes: B batch, L patches (tokens), K visible, R removed, G groups, D width,
H heads, E width of a head, F mlp, P values per patch, T frames, M mels,
N layers, S samples.
"""

import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from audiorank import attention
from audiorank import config as config_lib
from audiorank import sharding

# Values of model.remat: what the backward pass computes again. 'none': nothing.
# 'dots': all but SAVED, the results of the large matrix products. 'full':
# everything. 'auto': none on a CPU, where computing costs more than memory,
# and dots elsewhere, where it is the other way round.
REMAT = ('auto', 'none', 'dots', 'full')
SAVED = ('qkv', 'attention', 'middle', 'fc1')
normal_02 = nn.initializers.normal(.02)


def uniform_16th(key, shape, dtype=jnp.float32):
  """Torch's default for a convolution over 256 inputs."""
  return jax.random.uniform(key, shape, dtype, -1 / 16, 1 / 16)


def name(config) -> str:
  """Returns what a model config's size is called, such as 'en128-12'."""
  return config_lib.size_name(config.width, config.depth)


def patchify(mel_BMT, frames):
  """Cuts mels into patches of all M mels x `frames` frames.

  Returns:
    patches_BLP, P index = mel * frames + frame; leftover frames are dropped.
  """
  B, M, T = mel_BMT.shape
  L = T // frames
  x_BMLt = mel_BMT[:, :, :L * frames].reshape(B, M, L, frames)
  return x_BMLt.transpose(0, 2, 1, 3).reshape(B, L, M * frames)


def unpatchify(patches_BLP, frames):
  """The inverse of patchify: patches_BLP -> mel_BMT."""
  B, L, P = patches_BLP.shape
  x_BLMt = patches_BLP.reshape(B, L, P // frames, frames)
  return x_BLMt.transpose(0, 2, 1, 3).reshape(B, P // frames, L * frames)


def take(x_BLD, index_BK):
  """Gathers rows of every clip: x_BLD, index_BK -> x_BKD."""
  return jnp.take_along_axis(x_BLD, index_BK[:, :, None], axis=1)


def mask_from_noise(noise_BG: jax.Array, L: int, ratio: float, group: int
                    ) -> tuple[jax.Array, jax.Array]:
  """Splits L tokens into visible and removed ones by the noise of groups.

  `group` consecutive tokens share one noise value and stay or go together
  (Dasheng masks pairs of 40 ms tokens); group 1 is unstructured. Groups of
  least noise stay.

  Returns:
    keep_BK, drop_BR: int32 token positions; K = int(L * (1 - ratio)) and
    R = L - K.

  Raises:
    ValueError: groups that do not make up L tokens.
  """
  B, G = noise_BG.shape
  if G * group != L:
    raise ValueError(f'{L} patches are not a multiple of mask.group {group}: '
                     'change the crop length or the group')
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

  Flax's BatchNorm keeps the biased variance; torch keeps the unbiased one,
  and published weights hold that.
  """
  momentum: float = .01
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, mel_BMT, train):
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
        # No +=: it would write into a caller's numpy arrays.
        mean.value = mean.value + self.momentum * (mean_M - mean.value)
        var.value = var.value + self.momentum * (
            var_M * n / (n - 1) - var.value)
    else:
      mean_M, var_M = mean.value, var.value
    gain_M = scale_M * jax.lax.rsqrt(var_M + self.epsilon)
    return ((mel_BMT - mean_M[None, :, None]) * gain_M[None, :, None]
            + bias_M[None, :, None])


class Block(nn.Module):
  """A pre-norm transformer block; returns (tokens, tokens or None)."""
  heads: int
  mlp_ratio: int
  dtype: str
  kernel_init: nn.initializers.Initializer
  collect: bool = False

  @nn.compact
  def __call__(self, x_BLD, valid_BL):
    D = x_BLD.shape[2]
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init,
        precision=attention.precision(self.dtype))
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    # The names are those of SAVED: after the bias, or both would be kept.
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
    return x_BLD, x_BLD if self.collect else None


def rematerialisation(config, platform: str | None = None) -> str:
  """Returns which of REMAT a model config asks for, 'auto' resolved.

  Args:
    config: model config.
    platform: where it is to run; None for sharding.platform().

  Raises:
    ValueError: not one of REMAT.
  """
  # Configs written before these had names have True and False.
  name = {False: 'none', True: 'full'}.get(config.remat, config.remat)
  if name not in REMAT:
    raise ValueError(f'model.remat {name!r}: expected one of '
                     f'{", ".join(REMAT)}')
  if name != 'auto':
    return name
  return 'none' if (platform or sharding.platform()) == 'cpu' else 'dots'


def unrolled(config, depth: int) -> int:
  """Returns how many of `depth` blocks are written out one after the other."""
  if config.unroll:
    return min(config.unroll, depth)
  # A loop costs a GPU 1.6 times the time of a small model's step, but the time
  # to compile grows with what is written out. A TPU loses nothing by a loop.
  longest = {'cpu': depth, 'gpu': 24}.get(sharding.platform(), 1)
  return depth if depth <= longest else 1


def blocks(config, depth, heads, kernel_init, collect=False):
  """Returns `depth` scanned blocks: one stacked parameter tree.

  config.unroll keeps the stacked layout at unrolled speed; config.remat
  says what is computed again in the backward pass.
  """
  # Kernels that are cut over devices are made whole block by block, forwards
  # and again backwards. Left to itself the partitioner computes with the
  # cuts and sends activations round instead, at every token.
  whole = functools.partial(sharding.whole, dtype=config.dtype)
  block = nn.map_variables(Block, 'params', whole, init=True)
  unroll, remat = unrolled(config, depth), rematerialisation(config)
  policy = {'full': None, 'none': sharding.keeps,
            'dots': jax.checkpoint_policies.save_only_these_names(*SAVED)}
  if remat != 'none' or sharding.cut():
    # Where no loop stands between the two passes, the compiler would see that
    # both compute the same, and keep it after all.
    block = nn.remat(block, prevent_cse=unroll > 1, policy=policy[remat])
  return nn.scan(
      block, variable_axes={'params': 0}, split_rngs={'params': True},
      in_axes=nn.broadcast, length=depth, unroll=unroll,
      # The check traces every block once more; nothing here is broadcast out.
      check_constancy_invariants=False)(
          heads, config.mlp_ratio, config.dtype, kernel_init, collect,
          name='blocks')


class Encoder(nn.Module):
  """The Dasheng encoder.

  `config`: a frozen model config (configs/base.py describes each field).
  """
  config: object

  def setup(self):
    c = self.config
    self.norm_mel = MelNorm()
    self.patch = nn.Dense(
        c.width, dtype=c.dtype, kernel_init=uniform_16th,
        bias_init=uniform_16th, precision=attention.precision(c.dtype))
    self.time_LD = self.param(
        'time', normal_02, (config_lib.positions(c), c.width))
    self.freq_D = self.param('freq', normal_02, (c.width,))
    self.norm = nn.LayerNorm(epsilon=1e-6, dtype=c.dtype)

  def patches(self, mel_BMT, train=False):
    """dB mel_BMT -> normalised patches_BLP."""
    return patchify(self.norm_mel(mel_BMT, train), self.config.patch_frames)

  @nn.compact
  def __call__(self, patches_BLP, keep_BK=None, valid_BL=None, layers=False):
    """Encodes patches; visible ones alone where keep_BK is given.

    Args:
      patches_BLP: normalised patches, at most as many as positions.
      keep_BK: positions of the visible tokens, or None for all.
      valid_BL: True where a token is sound and not padding, or None.
      layers: also return the output of every block.

    Returns:
      tokens_BKD float32 after the final norm; with layers=True also
      layers_NBKD float32, before it.
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
    return (z_BKD, layers_NBKD.astype(jnp.float32)) if layers else z_BKD


class Decoder(nn.Module):
  """Predicts what was removed from the visible tokens.

  `values`: P, what it predicts of each removed token.
  """
  config: object
  values: int

  @nn.compact
  def __call__(self, z_BKD, keep_BK, drop_BR):
    """Returns pred_BRP float32, such as the normalised dB patches at drop_BR.

    Blocks are equivariant to the order of tokens, so nothing is shuffled
    back: each token is given the position it came from.
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
    x_BLD = jnp.concatenate([x_BKD, x_BRD], axis=1)
    at_BL = jnp.concatenate([keep_BK, drop_BR], axis=1)
    x_BLD += time_LD[at_BL].astype(c.dtype)
    x_BLD, _ = blocks(c, d.depth, d.heads, normal_02)(x_BLD, None)
    x_BRD = nn.LayerNorm(epsilon=1e-6, dtype=c.dtype, name='norm')(
        x_BLD[:, -R:])
    return dense(self.values, name='out')(x_BRD).astype(jnp.float32)


class MAE(nn.Module):
  """Encoder and decoder: dB mels and a mask in, predicted patches out.

  `values`: P of what is predicted instead; None predicts whole patches.
  """
  config: object
  values: int | None = None

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c, self.values or c.mels * c.patch_frames)

  def __call__(self, mel_BMT, keep_BK, drop_BR, train=False):
    """Returns pred_BRP for dB mels mel_BMT; see mask_from_noise."""
    patches_BLP = self.encoder.patches(mel_BMT, train)
    return self.decoder(self.encoder(patches_BLP, keep_BK), keep_BK, drop_BR)


def encoder_variables(variables):
  """Returns the encoder's own variables out of an MAE's (or its own)."""
  if 'encoder' in variables['params']:
    return {kind: tree['encoder'] for kind, tree in variables.items()}
  return variables


def encode(config, params, mel_BMT, valid_L=None, layers=False):
  """Encodes whole mels of any length, nothing masked.

  Clips longer than the model's positions are cut in chunks of that many
  tokens, each encoded alone with positions from 0, the last one shorter, as
  the PyPI package dasheng >= 0.0.8 does it. The front BatchNorm uses its
  running statistics.

  Args:
    config: model config.
    params: the linen variables, of the MAE or of its encoder alone.
    mel_BMT: dB mels, at least one patch long.
    valid_L: number of valid tokens of each clip ([B] int), or None.
    layers: return the output of each block too.

  Returns:
    tokens_BLD float32; with layers=True (tokens_BLD, layers_NBLD).
  """
  variables = encoder_variables(params)
  net = Encoder(config)
  patches_BLP = net.apply(variables, mel_BMT, method='patches')
  L, step = patches_BLP.shape[1], config_lib.positions(config)
  if not L:
    raise ValueError(f'{mel_BMT.shape[2]} frames are less than one patch of '
                     f'{config.patch_frames}')
  B, whole = patches_BLP.shape[0], L - L % step
  valid_BL = None
  if valid_L is not None:
    valid_BL = jnp.arange(L)[None] < valid_L[:, None]
  pieces = []
  # Whole chunks are rows of one batch: a long clip takes one program.
  for part, chunks in ((slice(whole), L // step), (slice(whole, L), 1)):
    tokens = (part.stop - (part.start or 0)) // chunks if chunks else 0
    if not tokens:
      continue
    row = lambda x, c=chunks, n=tokens: x.reshape(B * c, n, *x.shape[2:])
    found = net.apply(
        variables, row(patches_BLP[:, part]),
        valid_BL=None if valid_BL is None else row(valid_BL[:, part]),
        layers=layers)
    pieces.append(jax.tree.map(
        lambda x, n=chunks * tokens: x.reshape(*x.shape[:-3], B, n,
                                               x.shape[-1]), found))
  if layers:
    tokens, stacks = zip(*pieces)
    return (jnp.concatenate(tokens, axis=1),
            jnp.concatenate(stacks, axis=2))
  return jnp.concatenate(pieces, axis=1)
