"""Clips a second embedded, against clips a second trained on, one device.

30,000 clips are embedded at every evaluation: this is what that costs. A
training step sees a quarter of a clip's patches (forwards and backwards) and
has the decoder; embedding sees them all, forwards: on paper the ratio is
(3/4 E + 3 D) / E of the forward passes of encoder and decoder, no more than 3
where the decoder is the smaller part.

The other rows are of all layers against the last one alone: embeddings, and
for the small model RankMe with its interval. RankMe of the large one needs
3,072 clips, which take half an hour of a core to embed, and then 1.7 s a layer.
"""

from collections.abc import Callable
from collections.abc import Iterator
import time
from typing import Any
import warnings

import jax
import numpy as np

from launch.benches import steps
from launch.benches import timing

PINNED = True
BATCH = 16  # Clips embedded at once.
CASES = (steps.Case('en128-12', (512, 8, 16), 4, dtype='float32'),
         steps.Case('en128-12', (128, 4, 4), 16, dtype='float32'),
         steps.Case('en768-12', (512, 8, 16), 2, dtype='float32'))


LAYERS = (steps.Case('en64-4', (64, 2, 4), 16, dtype='float32'),
          steps.Case('en768-12', (64, 2, 4), 4, dtype='float32'))
MOST = 512  # Clips of those rows, at most.
# What every layer may cost: 1.3 times one layer.
LEAST = 1 / 1.3


def embedding(config: Any, wave_NS: np.ndarray, layer: str = 'final',
              ranked: bool = False) -> Callable[[], None]:
  """Returns a function that embeds clips as an evaluation does.

  Args:
    config: of the model.
    wave_NS: clips.
    layer: 'final' or 'all'.
    ranked: also compute RankMe of every layer, with its interval.
  """
  from audiorank import embed
  from audiorank import rankme
  from audiorank import sharding
  from audiorank import train_state
  mesh = sharding.mesh(1, 1)
  state = train_state.init_state(config, mesh)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}

  def embedded() -> None:
    z = embed.sharded(config.model, variables, wave_NS, mesh,
                      min(len(wave_NS), BATCH), layer)
    if ranked:
      for z_ND in z.reshape(-1, *z.shape[-2:]):
        rankme.estimate(z_ND)

  return embedded


def layer_rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of all layers against the last one."""
  for case in timing.sized(quick, LAYERS[:1], LAYERS):
    config = steps.config_of(case)
    # Enough clips for RankMe: four for each dimension.
    clips, parts = max(4 * config.model.width, BATCH), 'embeddings and RankMe'
    ranked = clips <= MOST
    if not ranked:
      parts = 'embeddings'
    what = f'{parts} of every layer against the last one, {case.name}'
    if only not in what:
      continue
    if quick or not ranked:
      clips = BATCH
    # The clips repeat, which does not change the time.
    wave_NS = np.resize(steps.waves(case), (
        clips, steps.waves(case).shape[1]))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', rankme_warning())
      yield timing.turns(
          what, embedding(config, wave_NS, 'all', ranked),
          embedding(config, wave_NS, ranked=ranked),
          timing.sized(quick, 2, 3), time.process_time, LEAST,
          ('all layers', 'the last one'), per=clips)


def rankme_warning() -> type[Warning]:
  """Returns the warning that a sample is small."""
  from audiorank import rankme
  return rankme.SmallSample


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from audiorank import config as config_lib
  from audiorank import flops
  from audiorank import train_state
  for case in timing.sized(quick, CASES[:1], CASES):
    what = f'a clip of 10 s embedded against trained on, {case.name}'
    if only not in what:
      continue
    config = steps.config_of(case)
    run, _ = steps.ours(case)
    train = lambda run=run: jax.block_until_ready(run())
    step = train_state.flops(config)['total']
    # A multiplication and an addition: two FLOPs a MAC.
    paper = step / (2 * flops.encoder_macs(
        config.model, config_lib.patches(config)))
    yield timing.turns(
        what, embedding(config, steps.waves(case)), train,
        timing.sized(quick, 2, 5), time.process_time, 3.,
        ('embedding', 'training step'),
        f'{paper:.1f} by FLOPs', case.batch)
  yield from layer_rows(quick, only)
