"""Reading a state without labels: RankMe with its siblings, held-out loss.

Shapes: N clips, B batch, S samples, D width.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from audiorank import embed
from audiorank import gauges
from audiorank import objectives
from audiorank import program
from audiorank import sharding
from audiorank.rankme import record


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
  """Returns the program (variables, wave_BS int16) -> loss, fixed masks."""
  return _valid(program.static_config(config),
                objectives.named(config.objective))


@functools.lru_cache(program.SHAPES)
def _valid(config, objective):
  @jax.jit
  def valid(variables, wave_BS):
    wave_BS = wave_BS.astype(jnp.float32) / 32768
    return objective(config, variables, wave_BS, jax.random.key(0),
                     train=False)[0]

  return valid


def layers(config):
  """Returns the blocks that are read beside the final layer.

  Raises:
    ValueError: not the numbers of blocks; names the field.
  """
  text = config.monitor.layers
  out = [part.strip() for part in text.split(',') if part.strip()]
  if not all(part.isdigit() and int(part) < config.model.depth
             for part in out):
    raise ValueError(f'monitor.layers {text!r}: expected numbers of blocks, '
                     f'0 to {config.model.depth - 1}, between commas')
  return [int(part) for part in out]


def measure(config, state, sample, on, valid=None, leave=lambda: False,
            further=()):
  """Returns the label-free record of a state: RankMe, siblings, valid loss.

  Args:
    config: the run's config.
    state: a train state.
    sample: (wave_NS int16, source_N) of the fixed monitor clips.
    on: the mesh.
    valid: (function of make_valid, wave_NS) or None.
    leave: polled with every batch; once True, None is returned.
    further: of (name, sample) that RankMe is read on as well.
  """
  wave_NS, source_N = sample
  started = time.monotonic()
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  embedded = lambda wave_NS, layer: embed.sharded(
      config.model, variables, wave_NS, on, config.monitor.batch, layer, leave)
  found, others = [], []
  for layer in ('final', *layers(config)):
    z_ND = embedded(wave_NS, layer)
    if z_ND is None:
      return None
    found.append(record.rank_fields(z_ND, source_N, layer))
  for name, (other_NS, others_N) in further:
    z_ND = embedded(other_NS, 'final')
    if z_ND is None:
      return None
    others.append({'sample': name, **record.rank_fields(z_ND, others_N)})
  fields = {**found[0], 'layers': found[1:], 'samples': others}
  if valid:
    loss_of, valid_NS = valid
    # The masks hang on the rows of a batch: the batch must be one that is
    # part of what the run is.
    B = config.train.batch
    fields['valid_loss'] = float(np.mean([
        float(loss_of(variables, local_rows(valid_NS[i:i + B], on)))
        for i in range(0, len(valid_NS), B)]))
  return {**fields, 'memory': gauges.memory(),
          'seconds': time.monotonic() - started}


def local_rows(wave_BS, on):
  """Places this process's share of rows that every process holds."""
  share = len(wave_BS) // jax.process_count()
  start = jax.process_index() * share
  return sharding.to_global(wave_BS[start:start + share], on)


def alarms(fields, before=()):
  """Returns sentences on what is wrong with a reading, most of them none.

  Args:
    fields: a record of `measure`.
    before: the records before it, in the order of their steps.

  Alarms are raised for
    a small sample: fewer than 4 clips per dimension;
    collapse: RankMe below 1.5, or no centred rank at all;
    a sinking centred rank: its interval lay below the one before at each of
      the last 3 readings. Once or twice is the valley that training starts
      with;
    instability: the validation loss is 1.2 times its least so far, or RankMe
      moved by more than a factor of 2 between readings after the second.
  """
  out = []
  rank, centred = fields['rank'], fields['rank_center']
  if fields['n'] < 4 * fields['width']:
    out.append(f"small sample: {fields['n']} clips at width "
               f"{fields['width']}, RankMe reads low; take at least "
               f"{4 * fields['width']}")
  if rank['value'] is None or rank['value'] < 1.5:
    out.append('collapse: RankMe '
               f"{0. if rank['value'] is None else rank['value']:.2f}")
  elif centred['value'] is None:
    out.append('collapse: every embedding is the same vector')
  last = [r['rank_center'] for r in [*before, fields][-4:]]
  if len(last) == 4 and all(r['value'] is not None for r in last) and all(
      now['high'] < then['low'] for then, now in zip(last, last[1:])):
    out.append(f"centred RankMe sinks: {last[0]['value']:.1f} to "
               f"{last[-1]['value']:.1f} over the last 3 readings")
  losses = [r.get('valid_loss') for r in before]
  least = min((x for x in losses if x is not None), default=None)
  loss = fields.get('valid_loss')
  if loss is not None and not np.isfinite(loss):
    out.append(f'instability: validation loss {loss}')
  if least is not None and loss is not None and loss > 1.2 * least:
    out.append(f'instability: validation loss {loss:.3f} after {least:.3f}')
  then = before[-1]['rank']['value'] if len(before) > 1 else None
  if then and rank['value'] and not .5 < rank['value'] / then < 2:
    out.append(f"instability: RankMe {then:.1f} to {rank['value']:.1f} between "
               'two readings')
  return out
