"""What is minimised. One function each, all with the same signature:

  objective(config, variables, wave_BS, key, train) -> loss, (stats, metrics)

`wave_BS` is float32 in [-1, 1]; `stats` are the new BatchNorm statistics.

Shapes: B batch, S samples, M mels, T frames, L patches, K kept, R removed,
P values per patch.
"""

import jax
import jax.numpy as jnp

from audiorank import audio
from audiorank import model


def normalise(patches_BRP):
  """Centres and scales every patch by its own mean and unbiased variance."""
  mean_BR1 = patches_BRP.mean(-1, keepdims=True)
  var_BR1 = patches_BRP.var(-1, keepdims=True, ddof=1)
  return (patches_BRP - mean_BR1) * jax.lax.rsqrt(var_BR1 + 1e-6)


def reconstruction(pred_BRP, patches_BRP):
  """Mean squared error to the normalised patches, over removed ones alone."""
  return jnp.square(pred_BRP - normalise(patches_BRP)).mean()


def masked_autoencoding(config, variables, wave_BS, key, train=True):
  """Dasheng's loss: predict the removed patches of the raw dB mel.

  The target has not passed the front BatchNorm; it is normalised patch by
  patch (arXiv 2406.06992 and its training code, norm_pix_loss=True).
  """
  c = config.model
  mel_BMT = audio.log_mel(wave_BS, clamp='clip')
  B, _, T = mel_BMT.shape
  L = T // c.patch_frames
  keep_BK, drop_BR = model.random_mask(
      key, B, L, config.mask.ratio, config.mask.group)
  pred_BRP, updates = model.MAE(c).apply(
      variables, mel_BMT, keep_BK, drop_BR, train=train,
      mutable=['batch_stats'])
  target_BRP = model.take(model.patchify(mel_BMT, c.patch_frames), drop_BR)
  loss = reconstruction(pred_BRP, target_BRP)
  return loss, (updates['batch_stats'], {})


OBJECTIVES = {'mae': masked_autoencoding}


def named(name):
  """Returns the objective of that name; ValueError names those there are."""
  if name not in OBJECTIVES:
    raise ValueError(f'objective {name!r}: expected one of '
                     f'{", ".join(OBJECTIVES)}')
  return OBJECTIVES[name]
