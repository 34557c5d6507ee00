"""The front end: waves to log-mels, or to the pictures that waves encode.

The functions of `decode`, which read sound files, are offered here as well.

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
TOP_DB = 120.  # A log-mel is clamped to this range below its loudest value.
FRONTS = ('log_mel', 'pixels')  # Values of the config's model.frontend.


def hann() -> np.ndarray:
  """Returns the periodic Hann window of N_FFT samples, float32."""
  # Periodic (over N_FFT, not N_FFT - 1), as torch.hann_window's default.
  turn = 2 * np.pi * np.arange(N_FFT) / N_FFT
  return (.5 - .5 * np.cos(turn)).astype(np.float32)


def mel_filters(mels: int = 64, bins: int = 257,
                rate: int = config_lib.RATE) -> np.ndarray:
  """Returns filters_MQ: torchaudio's HTK triangles, not normalised.

  Args:
    mels: M.
    bins: Q, frequency bins from 0 to half the rate.
    rate: samples per second.
  """
  # Values are rounded to float32 wherever torch rounds. Computed in float64
  # throughout, log-mels would differ from torch's by 3e-6.
  def line(high: float, count: int) -> np.ndarray:
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
  # Adding 0 turns -0. into 0., as torch has it.
  return np.maximum(0, np.minimum(down, up)).T + np.float32(0)


def windows(wave_BS: jax.Array) -> jax.Array:
  """Returns windows_BTW: Hann-weighted frames of 512 samples, 160 apart.

  The wave is reflected at both ends, so that T = 1 + S // 160.

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
  # 512 samples lie within four blocks of 160, so frames are slices that are
  # put side by side. A gather would be slower.
  short = max(0, (T + 3) * HOP - x_BS.shape[1])
  x_BS = jnp.pad(x_BS, ((0, 0), (0, short)))[:, :(T + 3) * HOP]
  blocks = x_BS.reshape(B, T + 3, HOP)
  frames = jnp.concatenate(
      [blocks[:, i:T + i] for i in range(4)], axis=2)[:, :, :N_FFT]
  return frames * hann()[None, None]


def mel_power(wave_BS: jax.Array) -> jax.Array:
  """Returns mel_BMT, the mel power spectrogram, with T = 1 + S // 160.

  It is torchaudio's MelSpectrogram with Dasheng's settings: 64 HTK mels from 0
  to 8000 Hz. It is float32 throughout, whatever the model computes in.

  Raises:
    ValueError: as `windows`.
  """
  # By itself, XLA gathers the windows of all devices before the transform.
  return sharding.over_rows(_mel_power)(wave_BS)


def _mel_power(wave_BS):
  if not isinstance(wave_BS.shape[0], int):
    return _at_once(wave_BS)  # Exported with a symbolic batch size.
  return jax.lax.platform_dependent(
      wave_BS, cpu=_one_by_one, tpu=_by_matrix, default=_at_once)


def _one_by_one(wave_BS):
  # On a CPU this is 2 to 4 times faster: a clip fits a core's cache, a batch
  # does not.
  return jax.lax.map(lambda wave_S: _at_once(wave_S[None])[0], wave_BS)


def _at_once(wave_BS):
  spectrum_BTQ = jnp.fft.rfft(windows(wave_BS))
  power_BTQ = jnp.square(spectrum_BTQ.real) + jnp.square(spectrum_BTQ.imag)
  return jnp.einsum('btq,mq->bmt', power_BTQ, mel_filters(),
                    precision=jax.lax.Precision.HIGHEST)


def _by_matrix(wave_BS):
  # A TPU has no hardware for FFTs. XLA builds one of matrix products, with a
  # dozen copies of the windows in between. Here two products do the same. The
  # last bin is left out: its mel weights are 0.
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
  """Returns picture_BMT, the model's input for some waves.

  Args:
    config: model config; `front` is 'log_mel', or 'pixels' for waves that
      encode pictures (see images.py).
    wave_BS: float32 in [-1, 1].
    clamp: see `log_mel`; not used for pixels.
  """
  if config.frontend == 'log_mel':
    return log_mel(wave_BS, clamp)
  return pixels(wave_BS, config.mels)


def pixels(wave_BS: jax.Array, rows: int) -> jax.Array:
  """Returns the pictures picture_BMT that waves encode, with M = `rows`.

  Column t is the `rows` samples from sample 160 t. So a picture has as many
  columns as the log-mel of that wave has frames, 1 + S // 160.
  """
  B, S = wave_BS.shape
  T = 1 + S // HOP
  x_BS = jnp.pad(wave_BS.astype(jnp.float32), ((0, 0), (0, T * HOP - S)))
  return x_BS.reshape(B, T, HOP)[:, :, :rows].transpose(0, 2, 1)


def random_gain(key: jax.Array, wave_BS: jax.Array, low: float,
                high: float) -> jax.Array:
  """Returns the waves, each with a random gain.

  The gain is uniform in dB between `low` and `high`, without clipping, as in
  `_audio_gain` of Dasheng's trainer (there -6 and 10).

  Args:
    key: of the random numbers.
    wave_BS: float.
    low, high: dB.
  """
  db_B = jax.random.uniform(key, wave_BS.shape[:1], minval=low, maxval=high)
  return wave_BS * 10 ** (db_B / 20)[:, None]


def log_mel(wave_BS: jax.Array, clamp: str = 'clip') -> jax.Array:
  """Returns mel_BMT in dB, clamped to 120 dB below the loudest value.

  Args:
    wave_BS: float32 in [-1, 1] at 16 kHz.
    clamp: 'clip' takes the loudest value of each clip, so that an embedding
      never depends on the other clips of its batch. 'batch' takes that of the
      batch, as torchaudio does in the official Dasheng; use it only to
      reproduce that exactly.

  Raises:
    ValueError: another clamp, or too few samples.
  """
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  # 1e-10 is torchaudio's floor (amin of AmplitudeToDB).
  db_BMT = 10 * jnp.log10(jnp.maximum(mel_power(wave_BS), 1e-10))
  axes = None
  if clamp == 'clip':
    axes = (1, 2)
  return jnp.maximum(db_BMT, db_BMT.max(axes, keepdims=True) - TOP_DB)
