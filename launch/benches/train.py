"""A training step against the official PyTorch trainer's, float32, one core.

Same sizes, same batch, same crop of 10 s; each side with its own front end,
masks, backward pass and AdamW.
"""

import time

import jax
import numpy as np

from launch.benches import timing
from launch.engines import local

PINNED = True
# As a sweep's workers have it; both sides are served by it.
ENV = {'GLIBC_TUNABLES': local.TUNABLES}
# name: encoder, decoder width, depth and heads, batch, ratio to reach.
CASES = {
    'en128-12, decoder 128-4, B 16': ('en128-12', (128, 4, 4), 16, .95),
    'en128-12, decoder 512-8, B 4': ('en128-12', (512, 8, 16), 4, .9),
    'en256-6, decoder 256-4, B 16': ('en256-6', (256, 4, 4), 16, .95)}


def config_of(size, decoder, batch):
  """Returns the config of a case."""
  from configs import base
  c = base.get_config(size)
  c.model.decoder.update(dict(zip(('width', 'depth', 'heads'), decoder)))
  c.model.unroll = max(c.model.depth, decoder[1])
  c.train.batch = batch
  c.opt.clip = 0.
  c.mesh.data = 1
  return c


def ours(config, wave_BS):
  """Returns a function that takes one step."""
  from audiorank import program
  from audiorank import records
  from audiorank import sharding
  config = records.frozen(config)
  on = sharding.mesh(1, 1)
  programs, h = program.programs(config, on), program.hyper(config)
  state = [programs.init(h)]

  def run():
    with jax.set_mesh(on):
      state[0], got = programs.step(
          state[0], sharding.to_global(wave_BS, on), h)
    jax.block_until_ready(got)

  return run


def rival(config, wave_BS):
  """Returns the same of the package dasheng; None where it is missing."""
  try:
    from dasheng.train import models
    import torch
  except (ImportError, OSError):
    return None
  torch.set_num_threads(1)
  m, d = config.model, config.model.decoder
  encoder = models.AudioTransformerMAE_Encoder(
      embed_dim=m.width, depth=m.depth, num_heads=m.heads,
      target_length=m.target_frames, patch_size=[64, 4],
      patch_stride=[64, 4])
  decoder = models.AudioTransformerMAE_Decoder(
      input_dim=m.width, outputdim=256, embed_dim=d.width, depth=d.depth,
      num_heads=d.heads, num_patches=encoder.patch_embed.num_patches)
  net = models.AudioTransformerMAE(encoder, decoder).train()
  adam = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=.01)
  wave = torch.from_numpy(wave_BS.astype(np.float32) / 32768)

  def run():
    adam.zero_grad()
    net(wave, mask_ratio=config.mask.ratio, return_loss=True).backward()
    adam.step()

  return run


def rows(quick, only):
  """Yields the Rows of this area."""
  for name, (size, decoder, batch, goal) in CASES.items():
    what = f'train step, {name}'
    if only not in what:
      continue
    config = config_of(size, decoder, batch)
    wave_BS = np.random.default_rng(0).integers(
        -8000, 8000, (batch, 160_000), np.int16)
    theirs = rival(config, wave_BS)
    mine = ours(config, wave_BS)
    if theirs is None:
      mine()
      began = time.process_time()
      mine()
      yield timing.absent(what, 'dasheng')._replace(
          ours_value=time.process_time() - began, unit='s')
      continue
    yield timing.turns(what, mine, theirs, 2 if quick else 5,
                       time.process_time, goal, ('step', 'official trainer'),
                       'freed memory is kept on both sides')
