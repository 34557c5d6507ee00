"""What needs several looks at a clip, or the network before it was trained.

Shapes: N clips, V views of a clip, B batch, S samples, L tokens, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import masking
from audiorank import model
from audiorank import program
from audiorank import rankme


@functools.lru_cache(maxsize=16)
def masked_encoder(config, ratio, group):
  """Returns a jitted (params, wave_BS, key) -> z_BD of the visible tokens."""
  net = model.Encoder(config)

  @jax.jit
  def run(params, wave_BS, key):
    mel_BMT = audio.front(config, wave_BS.astype(jnp.float32) / 32768)
    variables = model.encoder_variables(params)
    patches_BLP = net.apply(variables, mel_BMT, method='patches')
    keep_BK, _ = masking.random_mask(
        key, len(patches_BLP), patches_BLP.shape[1], ratio, group)
    return net.apply(variables, patches_BLP, keep_BK).mean(1)

  return run


def of_clips(config, params, wave_NS, views, samples, seed=0, batch=64):
  """Returns z_NVD float32: other crops and other masks of every clip.

  A view is a random crop of a clip, of whose tokens a random part is hidden
  as in training.

  Args:
    config: the run's config.
    params: the linen variables.
    wave_NS: int16 clips, longer than a view.
    views: V.
    samples: of a crop.
    seed: of crops and masks.
    batch: clips encoded at once.

  Raises:
    ValueError: clips shorter than a crop, or crops that do not divide into
      groups of patches.
  """
  N, S = wave_NS.shape
  L = (1 + samples // audio.HOP) // config.model.patch_frames
  if samples > S:
    raise ValueError(f'views of {samples} samples of clips of {S}: expected '
                     'longer clips')
  if L % config.mask.group or not 0 < masking.kept(L, config.mask.ratio) < L:
    raise ValueError(f'views of {L} patches do not go with mask.group '
                     f'{config.mask.group} and mask.ratio {config.mask.ratio}')
  run = masked_encoder(config.model, config.mask.ratio, config.mask.group)
  start_NV = np.random.default_rng(seed).integers(
      0, S - samples + 1, (N, views))
  z_NVD = np.zeros((N, views, config.model.width), np.float32)
  batch = min(batch, N)
  for view in range(views):
    for first in range(0, N, batch):
      rows = np.arange(first, min(first + batch, N))
      wave_BS = np.zeros((batch, samples), wave_NS.dtype)
      for b, n in enumerate(rows):
        at = start_NV[n, view]
        wave_BS[b] = wave_NS[n, at:at + samples]
      key = jax.random.fold_in(
          jax.random.fold_in(jax.random.key(seed), view), first)
      z_NVD[rows, view] = np.asarray(run(params, wave_BS, key))[:len(rows)]
  return z_NVD


def untrained(config, wave_NS):
  """Returns the linen variables that a run of `config` would start from.

  Where train.calibrate is set its BatchNorm statistics are those of
  `wave_NS`: the run's own are of other clips, and stand in its step 0.
  """
  state = jax.jit(lambda key: program.init(config, key))(
      jax.random.key(config.seed))
  if config.train.calibrate:
    state = program.calibrated(config, state, wave_NS)
  return {'params': state.params, 'batch_stats': state.batch_stats}


def fields(config, params, before, wave_NS, views=10, seed=0, batch=64,
           tokens=256):
  """Returns LiDAR and Diff-eRank of a run of ours, with their settings.

  Args:
    config: the run's config: its masks, its crop, its seed.
    params: the linen variables.
    before: those that training started from.
    wave_NS: int16 clips, at least as long as the run's crop.
    views: of a clip, for LiDAR.
    seed: of crops and masks.
    batch: clips encoded at once.
    tokens: clips whose tokens are compared with the untrained network's.

  Raises:
    ValueError: as `of_clips`.

  Source: Thilak et al., arXiv 2312.04000 (LiDAR); Wei et al., arXiv
  2401.17139 (Diff-eRank); see rankme.lidar and rankme.diff_erank.
  """
  samples = min(config_lib.crop_samples(config.data.crop_seconds),
                wave_NS.shape[1] * 3 // 4)
  group = config.mask.group * config.model.patch_frames * audio.HOP
  samples = samples // group * group
  z_NVD = of_clips(config, params, wave_NS, views, samples, seed, batch)
  few_NS = wave_NS[:tokens]
  rank = [rankme.token_rank(embed.timestamps(config, p, few_NS)[0])
          for p in (before, params)]
  return {'lidar': rankme.lidar(z_NVD), 'lidar_views': views,
          'lidar_seconds': samples / config_lib.RATE,
          'lidar_clips': len(wave_NS),
          'token_rank_untrained': rank[0], 'token_rank': rank[1],
          'diff_erank': rank[0] - rank[1], 'token_clips': len(few_NS)}
