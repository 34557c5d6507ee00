"""Training objectives. Each is a function of one signature:

  objective(config, variables, wave_BS, key, train) -> loss, (stats, metrics)

`wave_BS` is float32 in [-1, 1]. `stats` is the new `batch_stats` collection:
the statistics of BatchNorm, and what else an objective carries from step to
step without a gradient. An objective with other variables or other FLOPs than
an MAE has an entry in PARTS. All variables are initialised, placed, saved and
restored together; embeddings use only those under 'encoder'.

Shapes: B batch, S samples, M mels, T frames, L patches, K kept, R removed,
P values per patch, V crops of a clip (2), C patches of a crop, N crops of a
batch (V B), D width, W width of a projection.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from audiorank import audio
from audiorank import config as config_lib
from audiorank import flops
from audiorank import model

Config = config_lib.Config
Variables = Any  # Nested dictionaries of arrays, by collection.
# (loss, (new batch_stats, {name: scalar})).
Loss = tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]


def normalise(patches_BLP: jax.Array, by: str = 'patch') -> jax.Array:
  """Returns patches centred and scaled by their mean and unbiased variance.

  Args:
    patches_BLP: raw dB patches.
    by: over which values mean and variance are taken: 'patch' within each
      patch, 'batch' over all values, 'none' returns the decibels unchanged
      (norm_pix_loss = True, 'global' and False in Dasheng's code).
  """
  if by == 'none':
    return patches_BLP
  axes = {'patch': -1, 'batch': None}[by]
  mean = patches_BLP.mean(axes, keepdims=True)
  var = patches_BLP.var(axes, keepdims=True, ddof=1)
  # Digital silence has no variance; 1e-6 is Dasheng's.
  return (patches_BLP - mean) * jax.lax.rsqrt(var + 1e-6)


def reconstruction(pred_BRP: jax.Array, target_BRP: jax.Array) -> jax.Array:
  """Returns the mean squared error over the removed patches."""
  return jnp.square(pred_BRP - target_BRP).mean()


def masked_autoencoding(config: Config, variables: Variables,
                        wave_BS: jax.Array, key: jax.Array,
                        train: bool = True, by: str = 'patch') -> Loss:
  """Predicts the removed patches of the log-mel (Dasheng, arXiv 2406.06992).

  The target is the log-mel in dB before the front BatchNorm, normalised by
  `by`; see `normalise`.
  """
  c = config.model
  mel_BMT = audio.front(c, wave_BS)
  B, _, T = mel_BMT.shape
  L = T // c.patch_frames
  keep_BK, drop_BR = model.random_mask(
      key, B, L, config.mask.ratio, config.mask.group_size)
  # Only visible patches enter the encoder, which is where an MAE saves its
  # compute.
  pred_BRP, updates = model.MAE(c).apply(
      variables, mel_BMT, keep_BK, drop_BR, train=train,
      mutable=['batch_stats'])
  target_BLP = normalise(model.patchify(mel_BMT, c.patch_frames), by)
  loss = reconstruction(pred_BRP, model.take(target_BLP, drop_BR))
  return loss, (updates['batch_stats'], {})


class Contrast(nn.Module):
  """The network of `contrastive`: encoder and projection head."""
  config: Config

  def setup(self):
    c = self.config
    dense = functools.partial(nn.Dense, dtype=c.model.dtype)
    self.encoder = model.Encoder(c.model)
    self.hidden = dense(c.contrastive.hidden)
    self.out = dense(c.contrastive.width)

  def __call__(self, mel_BMT: jax.Array, at_BVC: jax.Array,
               train: bool = False) -> jax.Array:
    """Returns y_NW float32, the projections of the crops of patches at_BVC.

    Row 2 b + v is crop v of clip b.
    """
    B, V, C = at_BVC.shape
    patches_BLP = self.encoder.patches(mel_BMT, train)
    crops_NCP = model.take(patches_BLP, at_BVC.reshape(B, V * C)).reshape(
        B * V, C, -1)
    # Positions of every crop start at 0: otherwise the position within the
    # clip would give a pair away.
    z_ND = self.encoder(crops_NCP).mean(1)
    return self.out(nn.relu(self.hidden(z_ND))).astype(jnp.float32)


def crop_patches(config: Config, L: int) -> int:
  """Returns the number of patches of a crop of a clip of L patches."""
  return int(round(L * config.contrastive.share))


def nt_xent(y_NW: jax.Array, temperature: float
            ) -> tuple[jax.Array, jax.Array]:
  """Returns (loss, accuracy) of finding the other crop of each pair.

  The normalised temperature-scaled cross entropy of SimCLR (arXiv 2002.05709,
  equation 1). Rows 2 b and 2 b + 1 are a pair. If all rows are equal, the loss
  is log(N - 1). The accuracy is the share of rows whose nearest row is the
  other of their pair.
  """
  N, W = y_NW.shape
  square_N1 = jnp.square(y_NW).sum(1, keepdims=True)
  # Length 1: products are cosines.
  y_NW = y_NW * jax.lax.rsqrt(square_N1 + 1e-12)
  # Each row next to the other of its pair.
  other_NW = y_NW.reshape(N // 2, 2, W)[:, ::-1].reshape(N, W)
  pair_N = (y_NW * other_NW).sum(1) / temperature
  # A row is not its own candidate.
  logits_NN = jnp.where(
      jnp.eye(N, dtype=bool), -jnp.inf, jnp.dot(
          y_NW, y_NW.T, precision=jax.lax.Precision.HIGHEST) / temperature)
  loss = (jax.nn.logsumexp(logits_NN, axis=1) - pair_N).mean()
  # i ^ 1 is the other row of a pair: 2 b and 2 b + 1.
  accuracy = (logits_NN.argmax(1) == jnp.arange(N) ^ 1).mean()
  return loss, accuracy


def contrastive(config: Config, variables: Variables, wave_BS: jax.Array,
                key: jax.Array, train: bool = True) -> Loss:
  """Tells two crops of a clip from those of other clips (SimCLR, COLA).

  Two random crops of contrastive.share of the clip, which may overlap as in
  COLA (arXiv 2010.10915), are projected as in SimCLR (arXiv 2002.05709) and
  compared with every other crop of the batch. Nothing is masked.
  """
  # One log-mel for both crops, which are cut on its grid of patches: the front
  # end costs what that of the MAE does.
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


def latent_prediction(config: Config, variables: Variables,
                      wave_BS: jax.Array, key: jax.Array,
                      train: bool = True) -> Loss:
  """Predicts a teacher's embeddings of the removed patches (data2vec, I-JEPA).

  As the MAE, but the targets are the final tokens of a teacher that gets all
  patches, each normalised to mean 0 and variance 1. I-JEPA (arXiv 2301.08243)
  also uses the last block, data2vec (arXiv 2202.03555) the mean of several.
  The teacher is the exponential moving average of the encoder's parameters
  (latent.decay), starts as a copy and gets no gradient. It uses the student's
  BatchNorm statistics. Embeddings are the student's.

  The metric `target_std` is the standard deviation of targets over clips and
  patches. It goes to 0 if student and teacher collapse onto one vector, which
  the loss does not show.
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
  net = model.Encoder(c)
  # The student's statistics: both see the same batch, and a second set would
  # drift.
  teacher_variables = {'params': teacher, 'batch_stats': stats}
  patches_BLP, _ = net.apply(teacher_variables, mel_BMT, train,
                             method='patches', mutable=['batch_stats'])
  teacher_BLD: Any = net.apply(teacher_variables, patches_BLP)
  target_BLD = jax.lax.stop_gradient(
      normalise(teacher_BLD))
  loss = reconstruction(pred_BRD, model.take(target_BLD, drop_BR))
  if train:
    rate = 1 - config.latent.decay
    # After the loss: the teacher that this step used is the one before.
    teacher = jax.tree.map(lambda old, new: old + rate * (new - old),
                           teacher, variables['params']['encoder'])
  return loss, ({**updates['batch_stats'], 'teacher': teacher},
                {'target_std': target_BLD.std((0, 1)).mean()})


def mae_variables(config: Config, key: jax.Array, L: int,
                  values: int | None = None) -> Variables:
  """Returns new variables of an MAE; `values` as in model.MAE."""
  c = config.model
  keep_BK, drop_BR = model.mask_from_noise(
      jnp.zeros((1, L // config.mask.group_size)), L, config.mask.ratio,
      config.mask.group_size)
  mel_BMT = jnp.zeros((1, c.mels, L * c.patch_frames))
  return model.MAE(c, values).init(key, mel_BMT, keep_BK, drop_BR)


def contrastive_variables(config: Config, key: jax.Array, L: int) -> Variables:
  """Returns new variables of an encoder and a projection head."""
  c = config.model
  mel_BMT = jnp.zeros((1, c.mels, L * c.patch_frames))
  at_BVC = jnp.zeros((1, 2, crop_patches(config, L)), jnp.int32)
  return Contrast(config).init(key, mel_BMT, at_BVC)


def latent_variables(config: Config, key: jax.Array, L: int) -> Variables:
  """Returns new variables of an MAE, the teacher among its statistics."""
  variables = mae_variables(config, key, L, config.model.width)
  # There no gradient reaches it, and it is saved with the rest.
  return {**variables, 'batch_stats': {
      **variables['batch_stats'],
      'teacher': variables['params']['encoder']}}


def mae_cost(config: Config, L: int) -> dict[str, int]:
  """Returns FLOPs by part of a training step of an MAE on one clip."""
  return flops.step_flops(
      config.model, L, config_lib.unmasked(L, config.mask.ratio))


def contrastive_cost(config: Config, L: int) -> dict[str, int]:
  """Returns FLOPs by part: encoder of two crops, head with comparisons."""
  c, own = config.model, config.contrastive
  # Two FLOPs a multiply-add; the backward pass costs two forward passes.
  encoder = 2 * flops.encoder_macs(c, crop_patches(config, L))
  head = 2 * (c.width * own.hidden + own.hidden * own.width
              + 2 * config.train.batch * own.width)
  return {'encoder': 6 * encoder, 'head': 6 * head,
          'total': 6 * (encoder + head)}


def latent_cost(config: Config, L: int) -> dict[str, int]:
  """Returns FLOPs by part: those of an MAE and the teacher's forward pass."""
  c = config.model
  out = flops.step_flops(
      c, L, config_lib.unmasked(L, config.mask.ratio), c.width)
  teacher = 2 * flops.encoder_macs(c, L)
  return {**out, 'teacher': teacher, 'total': out['total'] + teacher}


class Parts(NamedTuple):
  """The variables and the cost of an objective.

  variables: (config, key, L patches of a crop) -> the linen variables.
  cost: (config, L) -> {'encoder': FLOPs of training the encoder on one clip,
    'total': of all, ...}.
  """
  variables: Callable[[Config, jax.Array, int], Variables] = mae_variables
  cost: Callable[[Config, int], dict[str, int]] = mae_cost


OBJECTIVES: dict[str, Callable[..., Loss]] = {
    'mae': masked_autoencoding,
    'mae_batch': functools.partial(masked_autoencoding, by='batch'),
    'mae_raw': functools.partial(masked_autoencoding, by='none'),
    'contrastive': contrastive,
    'latent': latent_prediction,
}

# Of the objectives that are not an MAE with another loss.
PARTS = {
    'contrastive': Parts(contrastive_variables, contrastive_cost),
    'latent': Parts(latent_variables, latent_cost),
}


def named(name: str) -> Callable[..., Loss]:
  """Returns the objective of a name.

  Raises:
    ValueError: there is none; names those there are.
  """
  if name not in OBJECTIVES:
    raise ValueError(f'objective {name!r}: expected one of '
                     f'{", ".join(OBJECTIVES)}')
  return OBJECTIVES[name]


def parts(config: Config) -> Parts:
  """Returns the Parts of a config's objective."""
  return PARTS.get(config.objective, Parts())


def check(config: Config, L: int) -> None:
  """Raises ValueError for an objective that cannot train, naming the field.

  Args:
    config: of the run.
    L: patches of a training clip.
  """
  named(config.objective)
  if config.objective == 'contrastive':
    _check_contrastive(config, L)
  if config.objective == 'latent' and not 0 <= config.latent.decay <= 1:
    raise ValueError(f'latent.decay {config.latent.decay}: expected 0 to 1')


def _check_contrastive(config, L):
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
      raise ValueError(f'contrastive.{field} {own[field]}: expected at least 1')
  if batch < 2:
    raise ValueError(f'train.batch {batch}: expected at least 2 for objective '
                     'contrastive')
