"""What is minimised. One function each, all with the same signature:

  objective(config, variables, wave_BS, key, train) -> loss, (stats, metrics)

`wave_BS` is float32 in [-1, 1]; `stats` are the new BatchNorm statistics.

Shapes: B batch, S samples, M mels, T frames, L patches, K kept, R removed,
P values per patch.
"""

import functools

import jax
import jax.numpy as jnp

from audiorank import audio
from audiorank import masking
from audiorank import model


def normalise(patches_BLP, by='patch'):
  """Centres and scales patches by their mean and unbiased variance.

  Args:
    patches_BLP: raw dB patches.
    by: whose mean and variance: 'patch' takes each patch's own, 'batch' those
      of all values there are, 'none' leaves the decibels as they are
      (norm_pix_loss = True, 'global' and False of the official code).
  """
  if by == 'none':
    return patches_BLP
  axes = {'patch': -1, 'batch': None}[by]
  mean = patches_BLP.mean(axes, keepdims=True)
  var = patches_BLP.var(axes, keepdims=True, ddof=1)
  return (patches_BLP - mean) * jax.lax.rsqrt(var + 1e-6)


def reconstruction(pred_BRP, target_BRP):
  """Mean squared error over the removed patches, which is all there are."""
  return jnp.square(pred_BRP - target_BRP).mean()


def masked_autoencoding(config, variables, wave_BS, key, train=True,
                        by='patch'):
  """Dasheng's loss: predict the removed patches of the raw dB mel.

  The target has not passed the front BatchNorm; it is normalised patch by
  patch (arXiv 2406.06992 and its training code), or as `by` says.
  """
  c = config.model
  mel_BMT = audio.front(c, wave_BS)
  B, _, T = mel_BMT.shape
  L = T // c.patch_frames
  keep_BK, drop_BR = masking.random_mask(
      key, B, L, config.mask.ratio, config.mask.group)
  pred_BRP, updates = model.MAE(c).apply(
      variables, mel_BMT, keep_BK, drop_BR, train=train,
      mutable=['batch_stats'])
  target_BLP = normalise(model.patchify(mel_BMT, c.patch_frames), by)
  loss = reconstruction(pred_BRP, model.take(target_BLP, drop_BR))
  return loss, (updates['batch_stats'], {})


OBJECTIVES = {
    'mae': masked_autoencoding,
    'mae_batch': functools.partial(masked_autoencoding, by='batch'),
    'mae_raw': functools.partial(masked_autoencoding, by='none'),
}


def named(name):
  """Returns the objective of that name; ValueError names those there are."""
  if name not in OBJECTIVES:
    raise ValueError(f'objective {name!r}: expected one of '
                     f'{", ".join(OBJECTIVES)}')
  return OBJECTIVES[name]
