"""Reading a state without labels: RankMe with its siblings, held-out loss.

Shapes: N clips, B batch, S samples, D width, K singular values.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from audiorank import embed
from audiorank import objectives
from audiorank import rankme
from audiorank import sharding


def steps(config):
  """Returns the steps at which a run is read.

  Step 0, the last, `monitor.readings - 2` between them at equal ratios from
  `monitor.first`, and every multiple of `monitor.every`.
  """
  last, r = config.train.steps, config.monitor
  between = np.geomspace(min(r.first, max(last, 1)), max(last, 1),
                         r.readings - 1)[:-1]
  fixed = range(r.every, last, r.every) if r.every else ()
  return sorted({0, last, *fixed, *(
      int(round(x)) for x in between if x < last)})


def make_valid(config):
  """Returns the jitted (variables, wave_BS int16) -> loss, fixed masks."""
  objective = objectives.named(config.objective)

  @jax.jit
  def valid(variables, wave_BS):
    wave_BS = wave_BS.astype(jnp.float32) / 32768
    return objective(config, variables, wave_BS, jax.random.key(0),
                     train=False)[0]

  return valid


def measure(config, state, sample, on, valid=None):
  """Returns the label-free record of a state: RankMe, siblings, valid loss.

  Args:
    config: the run's config.
    state: a train state.
    sample: (wave_NS int16, source_N) of the fixed monitor clips.
    on: the mesh.
    valid: (function of make_valid, wave_NS) or None.
  """
  wave_NS, source_N = sample
  started = time.monotonic()
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  z_ND = embed.sharded(config.model, variables, wave_NS, on,
                       config.monitor.batch)
  fields = rank_fields(z_ND, source_N)
  if valid:
    loss_of, valid_NS = valid
    # The masks hang on the rows of a batch: the batch must be one that is
    # part of what the run is.
    B = config.train.batch
    fields['valid_loss'] = float(np.mean([
        float(loss_of(variables, local_rows(valid_NS[i:i + B], on)))
        for i in range(0, len(valid_NS), B)]))
  return {**fields, 'seconds': time.monotonic() - started}


def local_rows(wave_BS, on):
  """Places this process's share of rows that every process holds."""
  share = len(wave_BS) // jax.process_count()
  start = jax.process_index() * share
  return sharding.to_global(wave_BS[start:start + share], on)


def rank_fields(z_ND, source_N, layer='final'):
  """Returns the rank part of a record, conventions and all."""
  N, D = z_ND.shape
  out = {'n': N, 'width': D, 'layer': layer,
         'sources': len(np.unique(source_N))}
  for name, center in (('rank', False), ('rank_center', True)):
    got = rankme.estimate(z_ND, groups=source_N, center=center)
    s_K = rankme.singular_values(z_ND, center=center)
    out[name] = {**got._asdict(), 'siblings': rankme.metrics(s_K, N)}
  return out
