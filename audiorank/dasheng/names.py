"""Where every tensor of the official Dasheng lies in a tree of ours."""

import collections

import jax.numpy as jnp
import numpy as np

from audiorank import audio

# One tensor: its name and shape there; its path, layer (None outside the
# blocks) and shape here; whether it is transposed on the way.
Tensor = collections.namedtuple(
    'Tensor', 'name shape path layer ours turned')


def layout(tree, prefix, decoder):
  """Yields every learned Tensor of a model."""
  D, M, t = tree['width'], tree['mels'], tree['patch_frames']
  L = tree['target_frames'] // t

  def same(name, path, *ours, shape=None):
    return Tensor(name, shape or ours, path, None, ours, False)

  def turned(name, path, shape, ours):
    return Tensor(name, shape, path, None, ours, True)

  def norm(name, path, width):
    yield same(f'{name}.weight', f'{path}/scale', width)
    yield same(f'{name}.bias', f'{path}/bias', width)

  def dense(name, path, fan_in, fan_out):
    yield turned(f'{name}.weight', f'{path}/kernel', (fan_out, fan_in),
                 (fan_in, fan_out))
    yield same(f'{name}.bias', f'{path}/bias', fan_out)

  def block(name, path, width):
    wide = width * tree['mlp_ratio']
    yield from norm(f'{name}.norm1', f'{path}/norm1', width)
    yield from dense(f'{name}.attn.qkv', f'{path}/qkv', width, 3 * width)
    yield from dense(f'{name}.attn.proj', f'{path}/proj', width, width)
    yield from norm(f'{name}.norm2', f'{path}/norm2', width)
    yield from dense(f'{name}.mlp.fc1', f'{path}/fc1', width, wide)
    yield from dense(f'{name}.mlp.fc2', f'{path}/fc2', wide, width)

  def blocks(part, path, width, depth):
    for layer in range(depth):
      for one in block(f'{part}blocks.{layer}', f'{path}/blocks', width):
        yield one._replace(layer=layer)

  at, stats = 'params/encoder', 'batch_stats/encoder/norm_mel'
  bn = f'{prefix}init_bn.1'
  yield turned(f'{prefix}time_pos_embed', f'{at}/time', (1, D, 1, L), (L, D))
  yield same(f'{prefix}freq_pos_embed', f'{at}/freq', D, shape=(1, D, 1, 1))
  yield from norm(bn, f'{at}/norm_mel', M)
  yield same(f'{bn}.running_mean', f'{stats}/mean', M)
  yield same(f'{bn}.running_var', f'{stats}/var', M)
  yield turned(f'{prefix}patch_embed.proj.weight', f'{at}/patch/kernel',
               (D, 1, M, t), (M * t, D))
  yield same(f'{prefix}patch_embed.proj.bias', f'{at}/patch/bias', D)
  yield from blocks(prefix, at, D, tree['depth'])
  yield from norm(f'{prefix}norm', f'{at}/norm', D)
  if decoder:
    at, W = 'params/decoder', tree['decoder']['width']
    yield same('decoder.mask_token', f'{at}/mask_token', W, shape=(1, 1, W))
    yield same('decoder.pos_embed', f'{at}/time', L + 1, W,
               shape=(1, L + 1, W))
    yield from dense('decoder.input_proj', f'{at}/project', D, W)
    yield from blocks('decoder.', at, W, tree['decoder']['depth'])
    yield from norm('decoder.norm', f'{at}/norm', W)
    yield from dense('decoder.outputlayer', f'{at}/out', W, M * t)


def front_end(prefix):
  """Returns the buffers of the official front end, which learns nothing."""
  return {f'{prefix}front_end.0.spectrogram.window': audio.hann(),
          f'{prefix}front_end.0.mel_scale.fb': np.ascontiguousarray(
              audio.mel_filters().T)}


def check_front_end(state, prefix):
  """Takes the buffers out of a state and compares them with ours.

  Torchaudio computes them in float32, some 1e-5 off; another mel scale is off
  by much more.
  """
  state.pop(f'{prefix}init_bn.1.num_batches_tracked', None)
  for name, ours in front_end(prefix).items():
    x = state.pop(name, ours)
    if x.shape != ours.shape:
      raise ValueError(f'{name}: shape {x.shape}, expected {ours.shape}')
    # In a dictionary of bfloat16 they have its 8 bits.
    coarse = np.array_equal(x, x.astype(jnp.bfloat16).astype(x.dtype))
    if not np.abs(x - ours).max() < (4e-3 if coarse else 1e-4):
      raise ValueError(
          f'{name}: off by {np.abs(x - ours).max():.3g}, expected periodic '
          'Hann windows of 512 and 64 HTK mel bins over 0-8000 Hz')
