"""Exports an encoder as ONNX, for runtimes without jax.

Shapes: B batch, S samples, T frames, W samples of a window, Q frequency bins,
M mels, L tokens, D width.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import logging
import pathlib
from typing import Any
import warnings

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import files
from audiorank import model


def log_mel(wave_BS: jax.Array) -> jax.Array:
  """Returns audio.log_mel of clips."""
  # The Fourier transform is written as two matrix products, because runtimes
  # disagree on the operator DFT.
  turn_WQ = 2 * np.pi / audio.N_FFT * np.outer(
      np.arange(audio.N_FFT), np.arange(audio.N_FFT // 2 + 1))
  frames_BTW = audio.windows(wave_BS)
  power_BTQ = (jnp.square(frames_BTW @ np.cos(turn_WQ).astype(np.float32))
               + jnp.square(frames_BTW @ np.sin(turn_WQ).astype(np.float32)))
  power_BMT = (power_BTQ @ audio.mel_filters().T).transpose(0, 2, 1)
  db_BMT = 10 * jnp.log10(jnp.maximum(power_BMT, 1e-10))
  return jnp.maximum(db_BMT, db_BMT.max((1, 2), keepdims=True) - audio.TOP_DB)


def encoder(config: Any, params: Any
            ) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns wave_BS -> (z_BD, z_BLD), for clips within the model's positions.

  Args:
    config: the run's config, or its `model` part.
    params: the linen variables.
  """
  # This is model.encode with a loop over blocks instead of flax's scan, which
  # the converter does not support.
  c = getattr(config, 'model', config)
  variables = jax.tree.map(jnp.asarray, model.encoder_variables(params))
  own = variables['params']
  net = model.Encoder(c)
  block = model.Block(c.heads, c.mlp_ratio, 'float32', nn.initializers.zeros)

  def run(wave_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    mel_BMT = log_mel(wave_BS)
    patches_BLP: Any = net.apply(variables, mel_BMT, method='patches')
    # As model.Encoder: a patch has a position in time and one, for all, in
    # frequency.
    at_LD = own['time'][:patches_BLP.shape[1]] + own['freq'][None]
    x_BLD = (patches_BLP @ own['patch']['kernel']
             + own['patch']['bias'][None, None] + at_LD[None])
    for layer in range(c.depth):
      weights = jax.tree.map(lambda x, i=layer: x[i], own['blocks'])
      x_BLD, _ = block.apply({'params': weights}, x_BLD, None)
    z_BLD: Any = nn.LayerNorm(epsilon=1e-6).apply(
        {'params': own['norm']}, x_BLD)
    return z_BLD.mean(1), z_BLD

  return run


def save(path: files.Path, config: Any, params: Any, seconds: float = 10.
         ) -> pathlib.Path:
  """Writes the encoder, weights and front end included; returns the path.

  Its input is wave_BS, float32 at 16 kHz in [-1, 1], any number of clips of
  one length; its outputs are z_BD and z_BLD. clamp is 'clip'.

  Args:
    path: the file.
    config: the run's config, or its `model` part.
    params: the linen variables.
    seconds: length of a clip, within the positions of the model.

  Raises:
    ValueError: a clip too short or too long; jax2onnx is missing.
  """
  c = getattr(config, 'model', config)
  if c.frontend != 'log_mel':
    raise ValueError(
        f"{path}: model.frontend {c.frontend!r}: expected 'log_mel'")
  samples = config_lib.crop_samples(seconds)
  tokens = (1 + samples // audio.HOP) // c.patch_frames
  if samples < embed.SHORTEST or tokens > config_lib.positions(c):
    raise ValueError(
        f'seconds {seconds:g}: expected .04 to {c.target_frames / 100:g}, what '
        'the model has positions for')
  try:
    import jax2onnx
    import onnx
  except ModuleNotFoundError:
    raise ValueError(f"{path}: needs jax2onnx (pip install "
                     "'audiorank[onnx]')") from None
  with quiet():
    graph = jax2onnx.to_onnx(encoder(c, params), inputs=[('B', samples)])
  with files.replacing(path) as part:
    onnx.save(graph, part)
  return files.path(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides the warnings of the converter about its own code."""
  log = logging.getLogger('onnx_ir')
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    log.setLevel(level)
