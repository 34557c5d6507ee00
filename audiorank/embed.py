"""(params, clips) -> embeddings: scenes, timestamps, any layer, any length.

Shapes: N clips, B batch, S samples, L tokens, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from audiorank import audio
from audiorank import model
from audiorank import sharding

SHORTEST = 640  # Samples of one token, 40 ms: shorter clips are padded.


@functools.lru_cache(maxsize=64)
def encoder(config, kind, layer, clamp):
  """Returns a jitted (params, wave_BS) -> z_BD or z_BLD, float32.

  Args:
    config: frozen model config.
    kind: 'scene' (time mean of tokens) or 'tokens'.
    layer: 'final' (after the last norm) or a block's index, from 0.
    clamp: see audio.log_mel.
  """
  def run(params, wave_BS):
    if jnp.issubdtype(wave_BS.dtype, jnp.integer):
      wave_BS = wave_BS.astype(jnp.float32) / 32768
    mel_BMT = audio.log_mel(wave_BS, clamp=clamp)
    if layer == 'final':
      z_BLD = model.encode(config, params, mel_BMT)
    else:
      _, layers_NBLD = model.encode(config, params, mel_BMT, layers=True)
      z_BLD = layers_NBLD[layer]
    return z_BLD.mean(1) if kind == 'scene' else z_BLD

  return jax.jit(run)


def check_layer(config, layer):
  """Raises ValueError for a layer the model does not have."""
  if layer != 'final' and not (
      isinstance(layer, int) and 0 <= layer < config.depth):
    raise ValueError(f"layer {layer!r}: expected 'final' or 0 ... "
                     f'{config.depth - 1}')


def batches(waves, batch):
  """Yields (positions, wave_BS) of clips of one length, B = batch always.

  The last batch of each length is filled with silence, so that one program
  serves them all; its `positions` are shorter than B.
  """
  lengths = np.array([len(w) for w in waves])
  for length in np.unique(lengths):
    index = np.flatnonzero(lengths == length)
    for start in range(0, len(index), batch):
      part = index[start:start + batch]
      wave_BS = np.zeros((batch, max(length, SHORTEST)),
                         np.asarray(waves[part[0]]).dtype)
      for row, i in enumerate(part):
        wave_BS[row, :length] = waves[i]
      yield part, wave_BS


def scene(config, params, waves, batch=64, layer='final', clamp='clip'):
  """Returns z_ND float32: one embedding a clip, the time mean of its tokens.

  With clamp='clip' an embedding never depends on the other clips.

  Args:
    config: the run's config (or its `model` part).
    params: the linen variables.
    waves: wave_NS, or a sequence of wave_S of any lengths; float32 in
      [-1, 1] or int16, 16 kHz.
    batch: clips encoded at once.
    layer: 'final', or a block's index.
    clamp: see audio.log_mel; 'batch' holds over each batch of `batch` clips.

  Raises:
    ValueError: no clips, an unknown layer.
  """
  config = getattr(config, 'model', config)
  check_layer(config, layer)
  if not len(waves):
    raise ValueError('no clips to embed')
  run = encoder(config, 'scene', layer, clamp)
  z_ND = np.zeros((len(waves), config.width), np.float32)
  for index, wave_BS in batches(waves, min(batch, len(waves))):
    z_ND[index] = np.asarray(run(params, wave_BS))[:len(index)]
  return z_ND


def timestamps(config, params, waves, layer='final', clamp='clip'):
  """Returns (z_BLD, ms_BL): an embedding every 40 ms and its centre in ms.

  Args:
    config: the run's config (or its `model` part).
    params: the linen variables.
    waves: wave_BS, clips of one length.
    layer: 'final', or a block's index.
    clamp: see audio.log_mel.
  """
  config = getattr(config, 'model', config)
  check_layer(config, layer)
  wave_BS = np.asarray(waves)
  short = max(0, SHORTEST - wave_BS.shape[1])
  wave_BS = np.pad(wave_BS, ((0, 0), (0, short)))
  z_BLD = np.asarray(encoder(config, 'tokens', layer, clamp)(params, wave_BS))
  token = 10. * config.patch_frames
  ms_L = (token * np.arange(z_BLD.shape[1]) + token / 2).astype(np.float32)
  return z_BLD, np.broadcast_to(ms_L, z_BLD.shape[:2])


def sharded(config, params, wave_NS, on, batch):
  """Returns z_ND, computed over a whole mesh and gathered to every host.

  Args:
    config: frozen model config.
    params: the linen variables, placed on the mesh.
    wave_NS: int16, the same on every process.
    on: the mesh.
    batch: clips encoded at once, over all devices.
  """
  run = encoder(config, 'scene', 'final', 'clip')
  N, S = wave_NS.shape
  mine = slice(None)
  if jax.process_count() > 1:
    share = batch // jax.process_count()
    mine = slice(jax.process_index() * share,
                 (jax.process_index() + 1) * share)
  pieces = []
  for start in range(0, N, batch):
    wave_BS = np.zeros((batch, S), wave_NS.dtype)
    part = wave_NS[start:start + batch]
    wave_BS[:len(part)] = part
    z_BD = run(params, sharding.to_global(wave_BS[mine], on))
    z_BD = jax.jit(lambda z: z, out_shardings=sharding.replicated(on))(z_BD)
    pieces.append(np.asarray(z_BD)[:len(part)])
  return np.concatenate(pieces)
