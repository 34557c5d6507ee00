"""What is minimised. One function each, all with the same signature:

  objective(config, variables, wave_BS, key, train) -> loss, (stats, metrics)

`wave_BS` is float32 in [-1, 1]; `stats` is the new `batch_stats` collection:
BatchNorm's statistics and whatever else an objective carries from step to step
without a gradient. An objective that trains other variables than an MAE, or
costs other FLOPs, says so in PARTS. All of it is initialised, placed, saved
and restored with the rest; embeddings read what is under 'encoder' alone.

Shapes: B batch, S samples, M mels, T frames, L patches, K kept, R removed,
P values per patch, V crops of a clip (2), C patches of a crop, N crops of a
batch (V B), D width, W width of a projection.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from audiorank import audio
from audiorank import config as config_lib
from audiorank import flops
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
  keep_BK, drop_BR = model.random_mask(
      key, B, L, config.mask.ratio, config.mask.group_size)
  pred_BRP, updates = model.MAE(c).apply(
      variables, mel_BMT, keep_BK, drop_BR, train=train,
      mutable=['batch_stats'])
  target_BLP = normalise(model.patchify(mel_BMT, c.patch_frames), by)
  loss = reconstruction(pred_BRP, model.take(target_BLP, drop_BR))
  return loss, (updates['batch_stats'], {})


class Contrast(nn.Module):
  """Encoder and projection head: what `contrastive` trains."""
  config: object

  def setup(self):
    c = self.config
    dense = functools.partial(nn.Dense, dtype=c.model.dtype)
    self.encoder = model.Encoder(c.model)
    self.hidden = dense(c.contrastive.hidden)
    self.out = dense(c.contrastive.width)

  def __call__(self, mel_BMT, at_BVC, train=False):
    """Returns y_NW float32, the projections of crops: the patches at_BVC.

    Row 2 b + v is crop v of clip b. Every crop has the positions from 0 on,
    so that none tells where in the clip it was.
    """
    B, V, C = at_BVC.shape
    patches_BLP = self.encoder.patches(mel_BMT, train)
    crops_NCP = model.take(patches_BLP, at_BVC.reshape(B, V * C)).reshape(
        B * V, C, -1)
    z_ND = self.encoder(crops_NCP).mean(1)
    return self.out(nn.relu(self.hidden(z_ND))).astype(jnp.float32)


def crop_patches(config, L):
  """Returns the patches of each of `contrastive`'s crops of L patches."""
  return int(round(L * config.contrastive.share))


def nt_xent(y_NW, temperature):
  """Returns (loss, accuracy) of telling each crop's other half of a pair.

  The normalised temperature-scaled cross entropy of SimCLR (arXiv 2002.05709,
  equation 1): rows 2 b and 2 b + 1 are a pair, all others are not. Where all
  rows are one vector the loss is log(N - 1); `accuracy` is the share of rows
  whose nearest is their own.
  """
  N, W = y_NW.shape
  square_N1 = jnp.square(y_NW).sum(1, keepdims=True)
  y_NW = y_NW * jax.lax.rsqrt(square_N1 + 1e-12)
  other_NW = y_NW.reshape(N // 2, 2, W)[:, ::-1].reshape(N, W)
  pair_N = (y_NW * other_NW).sum(1) / temperature
  logits_NN = jnp.where(
      jnp.eye(N, dtype=bool), -jnp.inf, jnp.dot(
          y_NW, y_NW.T, precision=jax.lax.Precision.HIGHEST) / temperature)
  loss = (jax.nn.logsumexp(logits_NN, axis=1) - pair_N).mean()
  accuracy = (logits_NN.argmax(1) == jnp.arange(N) ^ 1).mean()
  return loss, accuracy


def contrastive(config, variables, wave_BS, key, train=True):
  """Tells two crops of one clip from those of other clips (SimCLR, COLA).

  Two random crops of contrastive.share of the clip, which may overlap, as in
  COLA (arXiv 2010.10915), projected as in SimCLR (arXiv 2002.05709) and
  compared with every other crop of the batch. They are cut on the grid of
  patches out of one log-mel, so that the front end costs what the MAE's does.
  Nothing is masked: the crop alone is what the embedding shall not depend on,
  and the encoder sees in training what it will embed.
  """
  mel_BMT = audio.log_mel(wave_BS, clamp='clip')
  B, _, T = mel_BMT.shape
  L = T // config.model.patch_frames
  C = crop_patches(config, L)
  start_BV = jax.random.randint(key, (B, 2), 0, L - C + 1)
  at_BVC = start_BV[:, :, None] + jnp.arange(C)[None, None]
  y_NW, updates = Contrast(config).apply(
      variables, mel_BMT, at_BVC, train=train, mutable=['batch_stats'])
  loss, accuracy = nt_xent(y_NW, config.contrastive.temperature)
  return loss, (updates['batch_stats'], {'accuracy': accuracy})


def latent_prediction(config, variables, wave_BS, key, train=True):
  """Predicts a teacher's embeddings of the removed patches (data2vec, I-JEPA).

  The MAE, but the decoder predicts the final tokens that the teacher, which
  sees all patches, has at the removed places, each normalised to mean 0 and
  variance 1 (data2vec, arXiv 2202.03555, takes the mean of several blocks;
  I-JEPA, arXiv 2301.08243, the last as here). The teacher is the exponential
  moving average of the encoder's parameters by latent.decay, starts as a copy
  of it, and gets no gradient; its front BatchNorm has the student's
  statistics. Embeddings are the student's. Both collapsing onto one vector
  would cost nothing: `target_std`, the spread of a target over clips and
  places, then goes to 0.
  """
  c = config.model
  stats, teacher = (variables['batch_stats'][k] for k in ('encoder', 'teacher'))
  mel_BMT = audio.log_mel(wave_BS, clamp='clip')
  B, _, T = mel_BMT.shape
  keep_BK, drop_BR = model.random_mask(
      key, B, T // c.patch_frames, config.mask.ratio, config.mask.group_size)
  pred_BRD, updates = model.MAE(c, c.width).apply(
      {'params': variables['params'], 'batch_stats': {'encoder': stats}},
      mel_BMT, keep_BK, drop_BR, train=train, mutable=['batch_stats'])
  net, seen = model.Encoder(c), {'params': teacher, 'batch_stats': stats}
  patches_BLP, _ = net.apply(seen, mel_BMT, train, method='patches',
                             mutable=['batch_stats'])
  target_BLD = jax.lax.stop_gradient(normalise(net.apply(seen, patches_BLP)))
  loss = reconstruction(pred_BRD, model.take(target_BLD, drop_BR))
  if train:
    rate = 1 - config.latent.decay
    teacher = jax.tree.map(lambda old, new: old + rate * (new - old),
                           teacher, variables['params']['encoder'])
  return loss, ({**updates['batch_stats'], 'teacher': teacher},
                {'target_std': target_BLD.std((0, 1)).mean()})


def mae_variables(config, key, L, values=None):
  """Returns an MAE's variables; see model.MAE."""
  c = config.model
  keep_BK, drop_BR = model.mask_from_noise(
      jnp.zeros((1, L // config.mask.group_size)), L, config.mask.ratio,
      config.mask.group_size)
  mel_BMT = jnp.zeros((1, c.mels, L * c.patch_frames))
  return model.MAE(c, values).init(key, mel_BMT, keep_BK, drop_BR)


def contrastive_variables(config, key, L):
  """Returns an encoder's and a projection head's, no decoder's."""
  c = config.model
  mel_BMT = jnp.zeros((1, c.mels, L * c.patch_frames))
  at_BVC = jnp.zeros((1, 2, crop_patches(config, L)), jnp.int32)
  return Contrast(config).init(key, mel_BMT, at_BVC)


def latent_variables(config, key, L):
  """Returns an MAE's, with the teacher among its statistics."""
  made = mae_variables(config, key, L, config.model.width)
  return {**made, 'batch_stats': {
      **made['batch_stats'], 'teacher': made['params']['encoder']}}


def mae_cost(config, L):
  """Returns FLOPs by part, of an MAE's training step on one clip."""
  return flops.step_flops(
      config.model, L, config_lib.unmasked(L, config.mask.ratio))


def contrastive_cost(config, L):
  """Returns FLOPs by part: two crops, and the head with the comparisons."""
  c, own = config.model, config.contrastive
  encoder = 2 * flops.encoder_macs(c, crop_patches(config, L))
  head = 2 * (c.width * own.hidden + own.hidden * own.width
              + 2 * config.train.batch * own.width)
  return {'encoder': 6 * encoder, 'head': 6 * head,
          'total': 6 * (encoder + head)}


def latent_cost(config, L):
  """Returns FLOPs by part: an MAE's, and the teacher's forward pass."""
  c = config.model
  out = flops.step_flops(
      c, L, config_lib.unmasked(L, config.mask.ratio), c.width)
  teacher = 2 * flops.encoder_macs(c, L)
  return {**out, 'teacher': teacher, 'total': out['total'] + teacher}


class Parts(NamedTuple):
  """What an objective is beside its loss.

  variables: (config, key, L patches of a crop) -> the linen variables.
  cost: (config, L) -> {'encoder': FLOPs of training the encoder on one clip,
    'total': of all, ...}.
  """
  variables: Callable = mae_variables
  cost: Callable = mae_cost


OBJECTIVES = {
    'mae': masked_autoencoding,
    'mae_batch': functools.partial(masked_autoencoding, by='batch'),
    'mae_raw': functools.partial(masked_autoencoding, by='none'),
    'contrastive': contrastive,
    'latent': latent_prediction,
}

# Of those that are not an MAE with another loss.
PARTS = {
    'contrastive': Parts(contrastive_variables, contrastive_cost),
    'latent': Parts(latent_variables, latent_cost),
}


def named(name):
  """Returns the objective of that name; ValueError names those there are."""
  if name not in OBJECTIVES:
    raise ValueError(f'objective {name!r}: expected one of '
                     f'{", ".join(OBJECTIVES)}')
  return OBJECTIVES[name]


def parts(config):
  """Returns the Parts of a config's objective."""
  return PARTS.get(config.objective, Parts())


def check(config, L):
  """Raises ValueError for an objective that cannot train, naming the field."""
  named(config.objective)
  if config.objective == 'contrastive':
    own, batch = config.contrastive, config.train.batch
    C = crop_patches(config, L)
    if not 1 <= C <= L:
      raise ValueError(f'contrastive.share {own.share} of {L} patches is {C}: '
                       f'expected 1 to {L}')
    if own.temperature <= 0:
      raise ValueError(f'contrastive.temperature {own.temperature}: expected '
                       'more than 0')
    for field in ('hidden', 'width'):
      if own[field] < 1:
        raise ValueError(f'contrastive.{field} {own[field]}: expected at '
                         'least 1')
    if batch < 2:
      raise ValueError(f'train.batch {batch}: expected at least 2 for '
                       'objective contrastive')
  if config.objective == 'latent' and not 0 <= config.latent.decay <= 1:
    raise ValueError(f'latent.decay {config.latent.decay}: expected 0 to 1')
