"""Sound files to waves, waves to log-mels (or to the pictures they carry).

Shapes: B batch, C channels, M mels, N clips, Q frequency bins, S samples,
T frames, W samples of a window.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiorank import config as config_lib
from audiorank import sharding
from audiorank.decode import BLOCK as BLOCK
from audiorank.decode import blocks as blocks
from audiorank.decode import name as name
from audiorank.decode import PEAK as PEAK
from audiorank.decode import read as read
from audiorank.decode import to_float as to_float
from audiorank.decode import to_int16 as to_int16

N_FFT = 512  # Samples of a window, 32 ms at 16 kHz.
HOP = config_lib.HOP  # Samples between frames, 10 ms.
TOP_DB = 120.  # Range of a log-mel below its loudest value.
FRONTS = ('log_mel', 'pixels')  # What `front` can make of a wave.


def hann() -> np.ndarray:
  """Returns the periodic Hann window of N_FFT samples, float32."""
  turn = 2 * np.pi * np.arange(N_FFT) / N_FFT
  return (.5 - .5 * np.cos(turn)).astype(np.float32)


def mel_filters(mels: int = 64, bins: int = 257,
                rate: int = config_lib.RATE) -> np.ndarray:
  """Returns the HTK triangles filters_MQ of torchaudio (norm None).

  Rounded to float32 where torch rounds, or the mels are 3e-6 off its own.
  """
  def line(high, count):
    # torch.linspace: a float32 step, counted from the nearer end.
    step = np.float64(np.float32(high) / np.float32(count - 1))
    index = np.arange(count)
    return np.where(
        index < count // 2, step * index,
        np.float32(high) - step * (count - 1 - index)).astype(np.float32)

  top = 2595 * np.log10(1 + rate / 2 / 700)
  power = 10. ** (line(top, mels + 2) / np.float32(2595)).astype(np.float64)
  points = np.float32(700) * (power.astype(np.float32) - np.float32(1))
  width = np.diff(points)
  slope = points[None] - line(rate / 2, bins)[:, None]
  down = -slope[:, :-2] / width[:-1]
  up = slope[:, 2:] / width[1:]
  # Without the sum some zeros would be negative.
  return np.maximum(0, np.minimum(down, up)).T + np.float32(0)


def windows(wave_BS: jax.Array) -> jax.Array:
  """Returns windows_BTW of 512 samples at every 160th, T = 1 + S // 160.

  A periodic Hann window; the wave is reflected at both ends.

  Raises:
    ValueError: fewer than 257 samples, which cannot be reflected.
  """
  B, S = wave_BS.shape
  if S <= N_FFT // 2:
    raise ValueError(f'{S} samples: the front end needs more than '
                     f'{N_FFT // 2}')
  T = 1 + S // HOP
  x_BS = jnp.pad(wave_BS.astype(jnp.float32),
                 ((0, 0), (N_FFT // 2, N_FFT // 2)), mode='reflect')
  # Frames without a gather: 512 samples lie in four blocks of 160.
  short = max(0, (T + 3) * HOP - x_BS.shape[1])
  x_BS = jnp.pad(x_BS, ((0, 0), (0, short)))[:, :(T + 3) * HOP]
  blocks = x_BS.reshape(B, T + 3, HOP)
  frames = jnp.concatenate(
      [blocks[:, i:T + i] for i in range(4)], axis=2)[:, :, :N_FFT]
  return frames * hann()[None, None]


def mel_power(wave_BS: jax.Array) -> jax.Array:
  """Returns mel_BMT, the mel power spectrogram, T = 1 + S // 160.

  64 HTK mels from 0 to 8000 Hz of `windows`: torchaudio's MelSpectrogram as
  Dasheng sets it. Float32 throughout, whatever the model computes in.

  Raises:
    ValueError: as `windows`.
  """
  # Left to itself, XLA gathers the windows of all devices for the transform.
  return sharding.over_rows(_mel_power)(wave_BS)


def _mel_power(wave_BS):
  if not isinstance(wave_BS.shape[0], int):
    return _at_once(wave_BS)  # Exported for any number of clips.
  return jax.lax.platform_dependent(
      wave_BS, cpu=_one_by_one, tpu=_by_matrix, default=_at_once)


def _one_by_one(wave_BS):
  # A clip fits a core's cache, a batch does not: 2 to 4 times faster.
  return jax.lax.map(lambda wave_S: _at_once(wave_S[None])[0], wave_BS)


def _at_once(wave_BS):
  spectrum_BTQ = jnp.fft.rfft(windows(wave_BS))
  power_BTQ = jnp.square(spectrum_BTQ.real) + jnp.square(spectrum_BTQ.imag)
  return jnp.einsum('btq,mq->bmt', power_BTQ, mel_filters(),
                    precision=jax.lax.Precision.HIGHEST)


def _by_matrix(wave_BS):
  # A TPU has no transform: XLA makes one of matrix products, with a dozen
  # copies of the windows between them. Two products do the same. The first
  # and last bins, whose mel weights are 0, are left out.
  frames_BTW = windows(wave_BS)
  turn_WQ = 2 * np.pi / N_FFT * np.outer(
      np.arange(N_FFT), np.arange(N_FFT // 2))
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  real_BTQ, imaginary_BTQ = (
      product('btw,wq->btq', frames_BTW, part_WQ.astype(np.float32))
      for part_WQ in (np.cos(turn_WQ), np.sin(turn_WQ)))
  power_BTQ = jnp.square(real_BTQ) + jnp.square(imaginary_BTQ)
  return product('btq,mq->bmt', power_BTQ, mel_filters()[:, :N_FFT // 2])


def front(config: Any, wave_BS: jax.Array, clamp: str = 'clip') -> jax.Array:
  """Returns picture_BMT, what a model is shown of waves.

  Args:
    config: model config; `front` is 'log_mel', or 'pixels' for waves that
      carry pictures.
    wave_BS: float32 in [-1, 1].
    clamp: see `log_mel`; pixels have none.
  """
  if config.front == 'log_mel':
    return log_mel(wave_BS, clamp)
  return pixels(wave_BS, config.mels)


def pixels(wave_BS: jax.Array, rows: int) -> jax.Array:
  """Returns the pictures picture_BMT that waves carry, M = `rows`.

  Column t is the first `rows` samples from sample 160 t, so that a picture has
  as many columns as a log-mel of that wave has frames, 1 + S // 160.
  """
  B, S = wave_BS.shape
  T = 1 + S // HOP
  x_BS = jnp.pad(wave_BS.astype(jnp.float32), ((0, 0), (0, T * HOP - S)))
  return x_BS.reshape(B, T, HOP)[:, :, :rows].transpose(0, 2, 1)


def random_gain(key: jax.Array, wave_BS: jax.Array, low: float,
                high: float) -> jax.Array:
  """Returns waves, each made louder by a random number of dB.

  As `_audio_gain` of Dasheng's trainer: uniform between `low` and `high`
  (there -6 and 10), without clipping.

  Args:
    key: of the random numbers.
    wave_BS: float.
    low, high: dB.
  """
  db_B = jax.random.uniform(key, wave_BS.shape[:1], minval=low, maxval=high)
  return wave_BS * 10 ** (db_B / 20)[:, None]


def log_mel(wave_BS: jax.Array, clamp: str = 'clip') -> jax.Array:
  """Returns mel_BMT in dB, at most 120 dB below its loudest value.

  Args:
    wave_BS: float32 in [-1, 1] at 16 kHz.
    clamp: whose loudest value: 'clip' takes each clip's own, so that an
      embedding never depends on its batch-mates; 'batch' takes the whole
      batch's, as torchaudio does in the official Dasheng (bit parity alone
      wants it).

  Raises:
    ValueError: another clamp, or too few samples.
  """
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  db_BMT = 10 * jnp.log10(jnp.maximum(mel_power(wave_BS), 1e-10))
  axes = (1, 2) if clamp == 'clip' else None
  return jnp.maximum(db_BMT, db_BMT.max(axes, keepdims=True) - TOP_DB)
