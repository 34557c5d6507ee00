"""What an accelerator computes, against this machine's CPU.

Embeddings are float32 on both, whatever the model trained in: they are to
agree to 1e-5, and so are RankMe and the log-mel in decibels to .02, the
rounding of a float32 transform on silence.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from launch import devices
from launch.benches import spectra
from launch.benches import timing

ENV = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
CLIPS, SECONDS = 32, 2
SIZES = ('en128-12', 'en768-12')
TOY = ('en64-2',)  # On a pretended GPU, for tests.
# What is wanted of embeddings, RankMe and the log-mel.
NEAR, NEAR_RANK, NEAR_DB = 1e-5, 1e-6, .02


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  device, host = jax.devices()[0], jax.devices('cpu')[0]
  sides = (device.device_kind, 'CPU')
  rng = np.random.default_rng(0)
  # Noise of -21 dB full scale.
  wave_NS = (3000 * rng.standard_normal(
      (CLIPS, SECONDS * 16_000))).astype(np.int16)
  sizes = timing.sized(quick, SIZES[:1], SIZES)
  if devices.find().pretended:
    sizes = TOY
  for size in sizes:
    what = f'embeddings of {size}, trained in bfloat16'
    if only in what:
      theirs, ours = (embedded(size, wave_NS, d) for d in (host, device))
      yield _row(what, np.abs(ours - theirs).max() / np.abs(theirs).max(),
                 NEAR, sides)
  if only in 'log-mel':
    mels = [log_mel(wave_NS, d) for d in (host, device)]
    yield _row('log-mel', np.abs(mels[0] - mels[1]).max(), NEAR_DB, sides)
  if only in 'RankMe':
    from audiorank import rankme
    z_ND = spectra.embeddings('trained', 2_000, 128)
    values = []
    for d in (host, device):
      with jax.default_device(d):
        values.append(float(rankme.rankme(jax.device_put(z_ND, d))))
    yield _row('RankMe', abs(values[1] / values[0] - 1), NEAR_RANK, sides)


def _row(what, off, wanted, sides):
  return timing.alone(
      f'{what}, greatest difference', float(off), '', note='at most '
      f'{wanted:g} wanted', ours=sides[0], rival=sides[1])


def embedded(size: str, wave_NS: np.ndarray, device: Any) -> np.ndarray:
  """Returns z_ND of an untrained model's clips, computed on a device."""
  from audiorank import embed
  from audiorank import records
  from audiorank import train_state
  from configs import base
  config = base.get_config(size)
  # As it trains; its embeddings are float32 all the same.
  config.model.dtype = 'bfloat16'
  config = records.frozen(config)
  # Drawn on the host: the same numbers for every device.
  with jax.default_device(jax.devices('cpu')[0]):
    init = jax.jit(lambda key: train_state.init(config, key))
    state = init(jax.random.key(0))
  variables = jax.device_put(jax.device_get(
      {'params': state.params, 'batch_stats': state.batch_stats}), device)
  with jax.default_device(device):
    return embed.scene(config, variables, wave_NS)


def log_mel(wave_NS: np.ndarray, device: Any) -> np.ndarray:
  """Returns mel_NMT in dB, computed on a device."""
  from audiorank import audio
  with jax.default_device(device):
    wave_NS = jax.device_put(wave_NS.astype(np.float32) / 32768, device)
    return np.asarray(jax.jit(audio.log_mel)(wave_NS))
