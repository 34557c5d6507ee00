"""The place of every tensor of the official Dasheng in our tree.

Shapes: D width, M mels, L positions, W width of the decoder, t frames of a
patch.
"""

from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from audiorank import audio

Shape = tuple[int, ...]


class Tensor(NamedTuple):
  """One tensor, in the official state and in our tree."""
  name: str  # Official.
  shape: Shape  # Official.
  path: str  # In the linen variables, such as 'params/encoder/time'.
  layer: int | None  # Number of its block; None outside the blocks.
  ours: Shape  # In our tree, of one layer.
  turned: bool  # Whether it is transposed.


def layout(tree: dict[str, Any], prefix: str, decoder: bool
           ) -> Iterator[Tensor]:
  """Yields every learned Tensor of a model.

  Args:
    tree: the model part of a config.
    prefix: of the encoder's official names.
    decoder: whether to yield the decoder's too.
  """
  D, M, t = tree['width'], tree['mels'], tree['patch_frames']
  L = tree['target_frames'] // t
  at, stats = 'params/encoder', 'batch_stats/encoder/norm_mel'
  # The second of a torch.nn.Sequential; the first only swaps axes.
  batch_norm = f'{prefix}init_bn.1'
  yield turned(f'{prefix}time_pos_embed', f'{at}/time', (1, D, 1, L), (L, D))
  yield same(f'{prefix}freq_pos_embed', f'{at}/freq', D, shape=(1, D, 1, 1))
  yield from norm(batch_norm, f'{at}/norm_mel', M)
  yield same(f'{batch_norm}.running_mean', f'{stats}/mean', M)
  yield same(f'{batch_norm}.running_var', f'{stats}/var', M)
  # A convolution of one patch's size without overlap is a dense layer.
  yield turned(f'{prefix}patch_embed.proj.weight', f'{at}/patch/kernel',
               (D, 1, M, t), (M * t, D))
  yield same(f'{prefix}patch_embed.proj.bias', f'{at}/patch/bias', D)
  yield from blocks(prefix, at, D, tree['depth'], tree['mlp_ratio'])
  yield from norm(f'{prefix}norm', f'{at}/norm', D)
  if decoder:
    at, W = 'params/decoder', tree['decoder']['width']
    yield same('decoder.mask_token', f'{at}/mask_token', W, shape=(1, 1, W))
    yield same('decoder.pos_embed', f'{at}/time', L + 1, W,
               shape=(1, L + 1, W))
    yield from dense('decoder.input_proj', f'{at}/project', D, W)
    yield from blocks('decoder.', at, W, tree['decoder']['depth'],
                      tree['mlp_ratio'])
    yield from norm('decoder.norm', f'{at}/norm', W)
    yield from dense('decoder.outputlayer', f'{at}/out', W, M * t)


def same(name: str, path: str, *ours: int, shape: Shape | None = None
         ) -> Tensor:
  """Returns a Tensor whose values keep their order; `shape` is official."""
  return Tensor(name, shape or ours, path, None, ours, False)


def turned(name: str, path: str, shape: Shape, ours: Shape) -> Tensor:
  """Returns a Tensor that is transposed."""
  return Tensor(name, shape, path, None, ours, True)


def norm(name: str, path: str, width: int) -> Iterator[Tensor]:
  """Yields the Tensors of a LayerNorm or a BatchNorm."""
  yield same(f'{name}.weight', f'{path}/scale', width)
  yield same(f'{name}.bias', f'{path}/bias', width)


def dense(name: str, path: str, fan_in: int, fan_out: int
          ) -> Iterator[Tensor]:
  """Yields the Tensors of a linear layer."""
  yield turned(f'{name}.weight', f'{path}/kernel', (fan_out, fan_in),
               (fan_in, fan_out))
  yield same(f'{name}.bias', f'{path}/bias', fan_out)


def blocks(part: str, path: str, width: int, depth: int, mlp_ratio: int
           ) -> Iterator[Tensor]:
  """Yields the Tensors of a stack of transformer blocks, layer by layer."""
  hidden = width * mlp_ratio
  for layer in range(depth):
    name, ours = f'{part}blocks.{layer}', f'{path}/blocks'
    for tensor in (
        *norm(f'{name}.norm1', f'{ours}/norm1', width),
        # Queries, keys and values are one matrix in both.
        *dense(f'{name}.attn.qkv', f'{ours}/qkv', width, 3 * width),
        *dense(f'{name}.attn.proj', f'{ours}/proj', width, width),
        *norm(f'{name}.norm2', f'{ours}/norm2', width),
        *dense(f'{name}.mlp.fc1', f'{ours}/fc1', width, hidden),
        *dense(f'{name}.mlp.fc2', f'{ours}/fc2', hidden, width)):
      yield tensor._replace(layer=layer)


def front_end(prefix: str) -> dict[str, np.ndarray]:
  """Returns the buffers of the official front end, which are not learned."""
  return {f'{prefix}front_end.0.spectrogram.window': audio.hann(),
          f'{prefix}front_end.0.mel_scale.fb': np.ascontiguousarray(
              audio.mel_filters().T)}


def check_front_end(state: dict[str, np.ndarray], prefix: str) -> None:
  """Removes the front end's buffers from a state and compares them with ours.

  Args:
    state: official name -> array; changed.
    prefix: of the encoder's names.

  Raises:
    ValueError: another front end than Dasheng's; names the buffer.
  """
  state.pop(f'{prefix}init_bn.1.num_batches_tracked', None)
  for name, ours in front_end(prefix).items():
    x = state.pop(name, ours)
    if x.shape != ours.shape:
      raise ValueError(f'{name}: shape {x.shape}, expected {ours.shape}')
    # torchaudio computes them in float32, with errors of about 1e-5. Another
    # mel scale differs by much more.
    tolerance = 1e-4
    # In a state of bfloat16 they have only its 8 bits.
    if np.array_equal(x, x.astype(jnp.bfloat16).astype(x.dtype)):
      tolerance = 4e-3
    error = np.abs(x - ours).max()
    # Not `error >= tolerance`, which is False for a NaN.
    if not error < tolerance:
      raise ValueError(
          f'{name}: off by {error:.3g}, expected periodic Hann windows of 512 '
          'and 64 HTK mel bins over 0-8000 Hz')
