"""Clips a second embedded, against clips a second trained on, one device.

30,000 clips are embedded at every reading, so this is what a reading costs. A
training step sees a quarter of a clip's patches (forwards and backwards) and
has the decoder; embedding sees them all, forwards: on paper the ratio is
(3/4 E + 3 D) / E of the forward passes of encoder and decoder, no more than 3
where the decoder is the smaller part.
"""

import time

import jax
import numpy as np

from launch.benches import timing
from launch.benches import train

PINNED = True
# Encoder, decoder width, depth and heads, batch of either.
CASES = (('en128-12', (512, 8, 16), 4), ('en128-12', (128, 4, 4), 16),
         ('en768-12', (512, 8, 16), 2))


def embedding(config, wave_NS):
  """Returns a function that embeds clips as a reading does."""
  from audiorank import embed
  from audiorank import records
  from audiorank import sharding
  from audiorank import train as run
  config, on = records.frozen(config), sharding.mesh(1, 1)
  state = run.start(config, on)[2]()
  variables = {'params': state.params, 'batch_stats': state.batch_stats}

  def embedded():
    with jax.set_mesh(on):
      embed.sharded(config.model, variables, wave_NS, on, len(wave_NS))

  return embedded


def rows(quick, only):
  """Yields the Rows of this area."""
  from audiorank import compute
  from audiorank import program
  for size, decoder, batch in CASES[:1] if quick else CASES:
    what = (f'a clip of 10 s embedded against trained on, {size}, decoder '
            f'{decoder[0]}-{decoder[1]}')
    if only not in what:
      continue
    config = train.config_of(size, decoder, batch)
    wave_BS = np.random.default_rng(0).integers(
        -8000, 8000, (batch, 160_000), np.int16)
    L = program.patches(config)
    step = program.flops(config)['total']
    paper = step / (2 * compute.encode(config.model, L))
    yield timing.turns(
        what, embedding(config, wave_BS), train.ours(config, wave_BS),
        2 if quick else 5, time.process_time, 3.,
        ('embedding', 'training step'), f'{paper:.1f} by FLOPs', batch)
